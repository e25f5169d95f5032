"""Convolution of planes: every output plane is a sum over few input planes.

Depthwise layers, images and signals have no channels to sum over, so the only products that share
a load are those of neighbouring output rows, and lanes are output columns.  The tile is that of
:mod:`convjit_numba.planetile`.  Tiles that lie inside read the input where it is; those that meet
the border read it with lanes masked off or, where the machine has no masked loads or the border is
not zeros, through a padded copy of their own input.

Three changes of view bring other problems to that tile:

* Output rows ``dilation / gcd(stride, dilation)`` apart meet the same input rows, so a tile takes
  its rows that far apart, and to the tile there is no dilation.
* A signal is *folded* into rows of ``D`` numbers: with ``t = D * a + b`` the sum ``y[D * r + l] =
  sum over (a, b) of w[D * a + b] * x[D * (r + a) + b + l]`` is a correlation in two dimensions
  whose input rows overlap, so that one load serves several output rows here, too.
* A kernel about as large as its image meets mostly padding.  Correlation is commutative up to a
  reversal, ``y[i] = sum over a of x[a] * w[a - i + p]``, so the roles are *swapped*: the reversed
  kernel is the image, and the image's samples are the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import (
    DEFAULT_CONFIG, Array, Config, Executable, Feature, Phase, Refusal, Target, Work,
)  # fmt: skip
from convjit_numba import cache, problem, targets
from convjit_numba.problem import FIELD, PanelExecutable, Problem

MAX_CHANNELS = 4  # input planes of one output plane; with more, channels share loads better
UNROLLED_TAPS = 25
UNROLLED_CODE = 420  # vector products in the code of a tile
PAD_MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
EVERY_ROW = 1 << 30


class Machine(NamedTuple):
    """What the tile depends on, by instruction set.

    ``access`` is what an unaligned load costs in units of an aligned one: a vector of 64 bytes
    always lies across two cache lines.
    """

    registers: int
    masks: bool
    access: float


MACHINES = {
    "avx512": Machine(32, True, 2.0),
    "avx2": Machine(16, True, 1.5),
    "sse2": Machine(16, False, 1.25),
    "neon": Machine(32, False, 1.25),
    "generic": Machine(16, False, 1.25),
}
# Rows by vectors.  Images narrower than a vector or two want many rows, to have enough sums in
# flight; 1, 2 and 4 rows are for images and kernels that have no more.
SHAPES = (
    (1, 1), (2, 1), (4, 1), (7, 1), (14, 1),
    (1, 2), (2, 2), (4, 2), (7, 2), (10, 2),
    (1, 4), (2, 4), (3, 4), (4, 4), (6, 4), (4, 3), (7, 3),
    (1, 8), (2, 8), (3, 8), (12, 1), (6, 2),
)  # fmt: skip


class Code(NamedTuple):
    """The literals of a kernel, see :func:`convjit_numba.planetile.plane_tile`."""

    bits: int
    rows: int
    nv: int
    vl: int
    kh: int
    kw: int
    down: int
    across: int
    held: int
    masks: int
    fold: int

    @property
    def name(self) -> str:
        taps = f"{self.kh}x{self.kw}" if self.kh else "fold" if self.fold else "loop"
        masks = "m" if self.masks else ""
        return f"planes.f{self.bits}.{taps}s{self.down}x{self.across}.{self.tile}{masks}"

    @property
    def tile(self) -> targets.Tile:
        return targets.Tile(self.rows, self.nv, self.vl)

    @property
    def nr(self) -> int:
        return self.nv * self.vl


def build(code: Code) -> Callable[..., None]:
    """The kernel for one tile (imports numba)."""
    from numba import njit

    from convjit_numba.microkernel import (
        OPTIONS,
        atomic_add,
        copy_bytes,
        load_int,
        zero_bytes,
    )
    from convjit_numba.planetile import SEGMENT, border_index, bordered_row, plane_tile, store_rows

    bits, rows, nv, vl, kh, kw, down, across, held, masks, fold = code
    size = bits // 8
    nr = nv * vl
    block_cols = rows * nr if fold else nr
    step_rows = 1 if fold else rows
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW, KD = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"], f["kd"]
    SD, SH, SW, PD, PH, PW, DD, DH, DW = (
        f["sd"], f["sh"], f["sw"], f["pd"], f["ph"], f["pw"], f["dd"], f["dh"], f["dw"],
    )  # fmt: skip
    KERNEL, ACTIVATION, SLOPES = f["kernel"], f["activation"], f["slope0"]
    ROW_BLOCKS, COL_BLOCKS, APART = f["row_blocks"], f["col_blocks"], f["apart"]
    SPAN, DEEP, MODE, SWAPPED, IN_PLACE = (
        f["span"], f["deep"], f["mode"], f["swapped"], f["in_place"],
    )  # fmt: skip
    WROW, WCOL, TABLE, BUFFER_TABLE, PER_DEPTH = (
        f["wrow"], f["wcol"], f["table"], f["buffer_table"], f["per_depth"],
    )  # fmt: skip
    PITCH, STEP, BUFFER_PITCH, BUFFER_STEP, WIDE, PHASES, ALL_ROWS = (
        f["pitch"], f["step"], f["buffer_pitch"], f["buffer_step"], f["wide"], f["phases_w"],
        f["all_rows"],
    )  # fmt: skip
    image_at = problem.aligned(rows * nr * size)

    @njit(**OPTIONS)
    def ceil_div(a, b):
        return a if b == 1 else (a + b - 1) // b

    @njit(**OPTIONS)
    def fill(g, buffer, image, t_low, t_high, z, row_base, col_base):
        """The padded input of one tile, its columns split by their residues where it loops."""
        d, h, w, cg = load_int(g + D), load_int(g + H), load_int(g + W), load_int(g + CG)
        sd, sw, pd, dd = load_int(g + SD), load_int(g + SW), load_int(g + PD), load_int(g + DD)
        dh, dw, mode = load_int(g + DH), load_int(g + DW), load_int(g + MODE)
        wide, phases, deep = load_int(g + WIDE), load_int(g + PHASES), load_int(g + DEEP)
        stride = sw if kh == 0 else 1
        target = buffer + t_low * cg * phases * deep * wide * size
        for t in range(t_low, t_high):
            zt = z * sd - pd + t * dd
            if mode != 0:
                zt = border_index(mode, zt, d)
            for c in range(cg):
                source = image + (c * d + zt) * h * w * size
                for phase in range(phases):
                    col = col_base + phase * dw % stride
                    for u in range(deep):
                        row = row_base + u * dh
                        if mode != 0:
                            row = border_index(mode, row, h)
                        if 0 <= row < h:
                            start = source + row * w * size
                            bordered_row(bits, mode, target, start, w, col, stride, wide)
                        else:
                            zero_bytes(target, wide * size)
                        target += wide * size

    def kernel(g, x, weights, bias, y, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        groups, cg, kg = load_int(g + GROUPS), load_int(g + CG), load_int(g + KG)
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        od, oh, ow, kd = load_int(g + OD), load_int(g + OH), load_int(g + OW), load_int(g + KD)
        sd, sh, sw = load_int(g + SD), load_int(g + SH), load_int(g + SW)
        pd, ph, pw = load_int(g + PD), load_int(g + PH), load_int(g + PW)
        dd, dh, dw = load_int(g + DD), load_int(g + DH), load_int(g + DW)
        kernel_bytes, activation = load_int(g + KERNEL), load_int(g + ACTIVATION)
        row_blocks, col_blocks = load_int(g + ROW_BLOCKS), load_int(g + COL_BLOCKS)
        apart, span, deep = load_int(g + APART), load_int(g + SPAN), load_int(g + DEEP)
        mode, swapped, in_place = load_int(g + MODE), load_int(g + SWAPPED), load_int(g + IN_PLACE)
        wrow, wcol = load_int(g + WROW), load_int(g + WCOL)
        table, per_depth = load_int(g + TABLE), load_int(g + PER_DEPTH)
        pitch, step = load_int(g + PITCH), load_int(g + STEP)
        image_bytes = cg * d * h * w * size
        ldy = nr * size if fold else apart * ow * size
        slot = 0
        if control != 0:
            slot = atomic_add(control + 64, 1)
        scratch = workspace + slot * load_int(g + SLOT_BYTES)
        buffer = scratch + image_at
        first = 0
        while True:
            if control != 0:
                first = atomic_add(control, grain)
            if first >= tasks:
                break
            last = min(first + grain, tasks)
            col_block = first % col_blocks
            rest = first // col_blocks
            row_block = rest % row_blocks
            rest //= row_blocks
            z = rest % od
            plane = rest // od  # image and output channel
            for _ in range(first, last):
                k = plane % (groups * kg)
                unit = plane if kg == 1 else plane // kg  # image and group
                image, weight = x + unit * image_bytes, weights + k * kernel_bytes
                if swapped != 0:
                    # The last sample of the image is the first weight.
                    image = weights + k * image_bytes
                    weight = x + (unit + 1) * kernel_bytes - size
                add = 0 if bias == 0 else bias + k * size
                # Rows: the last block of a class begins so that it ends with the class.
                r0 = row_block * step_rows
                if apart == 1:
                    r0 = min(r0, oh - step_rows)
                else:
                    place = row_block % apart
                    count = (oh - place + apart - 1) // apart
                    r0 = place + apart * min(row_block // apart * step_rows, count - step_rows)
                c0 = col_block * block_cols
                valid = min(ow - c0, block_cols)
                row_base, col_base = r0 * sh - ph, c0 * sw - pw
                low, high = 0, min(deep, ceil_div(h - row_base, dh))
                if row_base < 0:
                    low = ceil_div(-row_base, dh)
                t_low, t_high = 0, kd
                z_base = z * sd - pd
                if z_base < 0:
                    t_low = min(kd, ceil_div(-z_base, dd))
                if z_base + (kd - 1) * dd >= d:
                    t_high = max(t_low, ceil_div(d - z_base, dd))
                plain = in_place != 0 and col_base >= 0 and col_base + span <= w
                if mode != 0:
                    plain = plain and low == 0 and high == deep and t_low == 0 and t_high == kd
                if fold:
                    low, high = 0, EVERY_ROW
                out = y + (((plane * od + z) * oh + r0) * ow + c0) * size
                there = image + ((z_base * h + row_base) * w + col_base) * size
                segments, count = table + t_low * per_depth * SEGMENT, t_high - t_low
                down_bytes, tap_bytes, row_bytes, to = pitch, step, ldy, out
                whole = valid == block_cols
                if masks != 0 and in_place != 0 and mode == 0 and not (plain and whole):
                    plane_tile(
                        bits, rows, nv, vl, kh, kw, down, across, held, 1,
                        there, pitch, step, segments, count * per_depth, weight, wrow, wcol,
                        low, high, col_base, dw, w, valid, out, ldy,
                        add, activation, g + SLOPES,
                    )  # fmt: skip
                else:
                    if not (plain and whole):
                        if mode != 0:
                            t_low, count, low, high = 0, kd, 0, EVERY_ROW
                        if load_int(g + ALL_ROWS) != 0:
                            low, high = 0, EVERY_ROW
                        fill(g, buffer, image, t_low, t_low + count, z, row_base, col_base)
                        there = buffer
                        segments = load_int(g + BUFFER_TABLE) + t_low * per_depth * SEGMENT
                        down_bytes, tap_bytes = load_int(g + BUFFER_PITCH), load_int(g + BUFFER_STEP)
                        if not whole:
                            to, row_bytes = scratch, nr * size
                    plane_tile(
                        bits, rows, nv, vl, kh, kw, down, across, held, 0,
                        there, down_bytes, tap_bytes, segments, count * per_depth, weight,
                        wrow, wcol, low, high, 0, 0, 0, 0, to, row_bytes,
                        add, activation, g + SLOPES,
                    )  # fmt: skip
                    if not whole:
                        if fold:
                            copy_bytes(out, scratch, valid * size)
                        else:
                            store_rows(bits, out, ldy, scratch, nr * size, rows, valid)
                col_block += 1
                if col_block == col_blocks:
                    col_block = 0
                    row_block += 1
                    if row_block == row_blocks:
                        row_block = 0
                        z += 1
                        if z == od:
                            z = 0
                            plane += 1
            if control == 0:
                first = last

    return kernel


# -------------------------------------------------------------------- views of a problem


@dataclass(frozen=True, slots=True)
class View:
    """A problem as the kernel sees it, the roles of image and kernel swapped or not."""

    p: Problem
    mode: int
    swapped: bool

    @property
    def apart(self) -> int:
        """Output rows from row to row of a tile."""
        return self.p.dilation[1] // gcd(self.p.stride[1], self.p.dilation[1])

    @property
    def down(self) -> int:
        """Input rows of a tile from output row to output row."""
        return self.p.stride[1] // gcd(self.p.stride[1], self.p.dilation[1])

    @property
    def unrolled(self) -> bool:
        """Whether the code is unrolled over the taps; the order of summation follows from it."""
        _, kh, kw = self.p.kernel
        near = self.p.dilation[2] == 1 and self.p.stride[2] <= 2 and self.down <= 2
        return kh * kw <= UNROLLED_TAPS and near and not self.swapped

    @property
    def phases(self) -> tuple[int, int]:
        """Residues by which the taps' rows and columns are split where the code loops."""
        if self.unrolled:
            return 1, 1
        _, kh, kw = self.p.kernel
        across = self.p.stride[2] // gcd(self.p.stride[2], self.p.dilation[2])
        return min(kh, self.down), min(kw, across)


@lru_cache(maxsize=1024)
def views(p: Problem, mode: int) -> tuple[View, ...]:
    """The problem, and what it is with the roles swapped where that is possible."""
    if p.kernel[:2] == (1, 1) and p.size[0] == p.out[0] == 1 and p.pad[0] == 0:
        # Rows that do not meet each other are so many signals.
        def turn(axes: tuple[int, int, int]) -> tuple[int, int, int]:
            return axes[1], axes[0], axes[2]

        p = replace(
            p, size=turn(p.size), out=turn(p.out), kernel=turn(p.kernel), stride=turn(p.stride),
            pad=turn(p.pad), dilation=turn(p.dilation),
        )  # fmt: skip
    found = [View(p, mode, False)]
    plain = p.stride == p.dilation == (1, 1, 1) and p.kernel[0] == p.size[0] == p.out[0] == 1
    if plain and p.pad[0] == 0 and p.cg == 1 and mode == 0 and p.taps > UNROLLED_TAPS:
        # With w'[m] = w[K - 1 - m] and x'[a] = x[H - 1 - a] the sum of the module's docstring is
        # that over a of x'[a] * w'[i + a + K - H - p]: a correlation with padding p + H - K.
        pad = tuple(lo + n - k for lo, n, k in zip(p.pad, p.size, p.kernel, strict=True))
        found.append(View(replace(p, size=p.kernel, kernel=p.size, pad=pad), mode, True))
    return tuple(found)


# -------------------------------------------------------------------- blocking


@dataclass(frozen=True, slots=True)
class Blocking:
    """The kernel of a view and its grid of tiles; ``cycles`` is the model's for all of them."""

    view: View
    code: Code
    apart: int
    row_blocks: int
    col_blocks: int
    cycles: float

    @property
    def tasks(self) -> int:
        p = self.view.p
        return p.batch * p.groups * p.kg * p.out[0] * self.row_blocks * self.col_blocks

    @property
    def deep(self) -> int:
        """Input rows that a tile meets."""
        if self.code.fold:
            return 1
        return self.view.down * (self.code.rows - 1) + self.view.p.kernel[1]

    @property
    def span(self) -> int:
        """Input columns that a tile reads, from the first on."""
        _, _, kw = self.view.p.kernel
        if self.code.across == 2:
            return 2 * self.code.nr + kw - 2 if kw > 1 else 2 * self.code.nr - 1
        cols = self.code.nr * (self.code.rows if self.code.fold else 1)
        return cols + (kw - 1) * self.view.p.dilation[2]

    @property
    def wide(self) -> int:
        """Columns of a phase of a padded copy."""
        if self.code.kh or self.code.fold:
            return self.span
        return self.code.nr + (self.view.p.kernel[2] - 1) * self.view.p.dilation[2] // (
            self.view.p.stride[2]
        )

    @property
    def in_place(self) -> bool:
        """Whether tiles may read the input where it is."""
        return bool(self.code.kh) or (self.view.down == 1 and self.view.p.stride[2] == 1)

    @property
    def copies(self) -> bool:
        """Whether some tiles go through a padded copy."""
        p = self.view.p
        if not self.in_place:
            return True
        if self.code.masks and self.view.mode == 0:
            return False
        cols = self.code.nr * (self.code.rows if self.code.fold else 1)
        whole = p.out[2] % cols == 0 and p.pad[2] == 0
        return not (whole and (p.out[2] - cols) * p.stride[2] + self.span <= p.size[2])

    @property
    def slot_bytes(self) -> int:
        """Workspace of one thread: the results of a tile, and its padded input."""
        if not self.copies:
            return 0
        p, phases = self.view.p, self.view.phases
        image = p.cg * p.kernel[0] * phases[1] * self.deep * self.wide
        tile = problem.aligned(self.code.rows * self.code.nr * p.bytes)
        return tile + problem.aligned(image * p.bytes)


@lru_cache(maxsize=1024)
def blocking(p: Problem, mode: int, isa: str, config: Config = DEFAULT_CONFIG) -> Blocking:
    """The tile and view whose modelled time is least."""
    wanted = dict(config)
    best: Blocking | None = None
    swap = choose_swap(p, mode, isa)
    for view in views(p, mode):
        if view.swapped != swap:
            continue
        for found in _candidates(view, isa):
            shape = {"rows": found.code.rows, "nv": found.code.nv, "fold": found.code.fold}
            if wanted and shape != wanted:
                continue
            if best is None or found.cycles < best.cycles:
                best = found
    assert best is not None, f"no tile {wanted} for {p}"
    return best


@lru_cache(maxsize=1024)
def choose_swap(p: Problem, mode: int, isa: str) -> bool:
    """Whether the roles are swapped: as the model says for the best tile of either.

    Configurations do not change it, since the order of summation depends on it.
    """
    found = views(p, mode)
    cycles = [min(b.cycles for b in _candidates(view, isa)) for view in found]
    return found[cycles.index(min(cycles))].swapped


@lru_cache(maxsize=1024)
def _candidates(view: View, isa: str) -> tuple[Blocking, ...]:
    """The tiles that suit a view, with their costs."""
    p, machine = view.p, MACHINES[isa]
    vl = targets.tiles(isa, p.dtype)[0].vl
    bits, (_, kh, kw) = targets.BITS[p.dtype], p.kernel
    across = p.stride[2] if view.unrolled else 1
    found = []
    for rows, nv in SHAPES:
        needed = rows * nv + nv * across + 1
        if needed > machine.registers or (nv > 1 and (nv - 1) * vl >= p.out[2]):
            continue
        apart, down = (view.apart, view.down) if rows > 1 else (1, 1)
        if rows > 1 and rows > p.out[1] // apart:
            continue
        if view.unrolled:
            taps = kh * kw
            if rows * nv * taps > UNROLLED_CODE and rows * nv > 1:
                continue
            held = int(taps + needed - 1 <= machine.registers - 1)
            code = Code(
                bits, rows, nv, vl, kh, kw, down, across, held, int(machine.masks), 0
            )
        else:
            code = Code(bits, rows, nv, vl, 0, 0, 1, 1, 0, int(machine.masks), 0)
        classes = [-(-(p.out[1] - i) // apart) for i in range(apart)]
        row_blocks = apart * -(-max(classes) // rows)
        found.append(
            _costed(Blocking(view, code, apart, row_blocks, -(-p.out[2] // code.nr), 0.0), isa)
        )
    if p.kernel[1] == p.size[1] == p.out[1] == 1 and p.pad[1] == 0:
        for rows, nv in SHAPES:
            code = Code(bits, rows, nv, vl, 0, 0, 1, 1, 0, 0, 1)
            if (
                rows * nv + nv + 1 <= machine.registers
                and min(rows, 2) <= kw // code.nr  # some rows share their loads
                and p.stride[2] == p.dilation[2] == 1
                and not view.unrolled
            ):
                blocks = -(-p.out[2] // (rows * code.nr))
                found.append(_costed(Blocking(view, code, 1, 1, blocks, 0.0), isa))
    return tuple(found)


def _costed(b: Blocking, isa: str) -> Blocking:
    """With the modelled cycles of all tiles, two vector products or loads each."""
    machine, code, p = MACHINES[isa], b.code, b.view.p
    rows, nv = code.rows, code.nv
    _, kh, kw = p.kernel
    folded = kw // code.nr if code.fold else kh
    width = code.nr if code.fold else kw

    def stretch(active: int, columns: float) -> float:
        """One input row that ``active`` output rows meet."""
        loads = nv * machine.access + (0 if code.held else active)
        if code.across == 2:
            loads = nv * 2 * machine.access * -(-kw // 2) / kw + nv + (0 if code.held else active)
        floor = 0.0 if code.kh else 3.0  # a sum waits four cycles for its last product
        return columns * max(active * nv / 2, loads / 2, floor) + (0 if code.kh else 3.0)

    if code.kh:
        active = [
            sum(0 <= u - b.view.down * r < kh for r in range(rows)) for u in range(b.deep)
        ]
        tile = sum(stretch(a, kw) for a in active)
    elif folded >= rows:
        tile = 2 * sum(stretch(a, width) for a in range(1, rows))
        tile += (folded - rows + 1) * stretch(rows, width)
    else:
        tile = rows * folded * stretch(1, width)
    if code.fold and kw % code.nr:
        tile += rows * stretch(1, kw % code.nr)
    tile *= _share_inside(p, 0) * _share_inside(p, 1) * p.cg * p.kernel[0]
    tile += 25 + rows * nv
    cols = code.nr * (rows if code.fold else 1)
    inside = max(0, (min(p.size[2] - b.span, p.out[2] * p.stride[2]) + p.pad[2]) // p.stride[2])
    plain = max(0, min(inside // cols, p.out[2] // cols) - (1 if p.pad[2] else 0))
    edges = b.col_blocks - (plain if b.in_place else 0)
    if code.masks and b.in_place and b.view.mode == 0:
        edge = nv * (kw * code.across + rows) if code.kh else 0.75 * nv * kw * b.deep
    else:
        copies = b.deep * p.kernel[0] * p.cg * b.view.phases[1]
        edge = copies * (25 + 3 * b.wide / code.vl) + 12 * rows
    tiles = b.tasks / b.col_blocks
    return replace(b, cycles=tiles * (b.col_blocks * tile + edges * edge) + 100)


@lru_cache(maxsize=1024)
def _share_inside(p: Problem, axis: int) -> float:
    """The part of the taps along an axis that meet the image, over all outputs."""
    n, out, stride, pad = p.size[axis], p.out[axis], p.stride[axis], p.pad[axis]
    inside = 0
    for t in range(p.kernel[axis]):
        at = pad - t * p.dilation[axis]
        inside += max(0, min(out, -(-(n + at) // stride)) - max(0, -(-at // stride)))
    return inside / (out * p.kernel[axis])


# -------------------------------------------------------------------- the tables of segments


def _tables(b: Blocking) -> tuple[Any, Any]:
    """Segments for tiles that read in place and for those that read a copy.

    Each correlation of an input plane (depth tap, channel) with the kernel, split by the residues
    of its rows and columns, is one segment; a folded signal is two, whole rows and the rest.
    """
    p, code, size = b.view.p, b.code, b.view.p.bytes
    kd, kh, kw = p.kernel
    taps = kh * kw
    plane = p.size[1] * p.size[2]
    phases_h, phases_w = b.view.phases
    slice_ = phases_w * b.deep * b.wide
    in_place, copied = [], []
    for t in range(kd):
        for c in range(p.cg):
            here = (c * p.size[0] + t * p.dilation[0]) * plane
            there = (t * p.cg + c) * slice_
            weight = (c * kd + t) * taps
            if code.fold:
                rows, rest = divmod(kw, code.nr)
                parts = [(0, 0, 0, rows, code.nr)] if rows else []
                if rest:
                    start = rows * code.nr
                    parts.append((start, start, start, 1, rest))
            else:
                across = p.stride[2] // gcd(p.stride[2], p.dilation[2])
                parts = []
                for i in range(phases_h):
                    for j in range(phases_w):
                        buffered = (j * b.deep + i) * b.wide
                        buffered += j * p.dilation[2] // p.stride[2] if phases_w > 1 else 0
                        high, wide = kh, kw
                        if not code.kh:
                            high, wide = -(-(kh - i) // b.view.down), -(-(kw - j) // across)
                        parts.append((0, buffered, i * kw + j, high, wide))
            for at, buffered, tap, high, wide in parts:
                w_at = (weight + tap) * size * (-1 if b.view.swapped else 1)
                in_place.append(((here + at) * size, w_at, high, wide))
                copied.append(((there + buffered) * size, w_at, high, wide))
    return np.array(in_place, np.int64), np.array(copied, np.int64)


def _fields(b: Blocking, tables: tuple[Any, Any]) -> dict[str, int]:
    """The geometry fields of the section "planes"."""
    p, code, size = b.view.p, b.code, b.view.p.bytes
    phases_w = b.view.phases[1]
    sign = -1 if b.view.swapped else 1
    across = p.stride[2] // gcd(p.stride[2], p.dilation[2])
    fold = bool(code.fold)
    row = code.nr if fold else p.kernel[2]
    looped = not code.kh
    return {
        "kernel": p.depth * size,
        "row_blocks": b.row_blocks,
        "col_blocks": b.col_blocks,
        "apart": b.apart,
        "span": b.span,
        "deep": b.deep,
        "mode": b.view.mode,
        "swapped": int(b.view.swapped),
        "in_place": int(b.in_place),
        "wrow": sign * b.view.down * row * size,
        "wcol": sign * across * size,
        "table": problem.address(tables[0]),
        "buffer_table": problem.address(tables[1]),
        "per_depth": len(tables[0]) // p.kernel[0],
        "pitch": code.nr * size if fold else p.dilation[1] * p.size[2] * size,
        "step": p.dilation[2] * size,
        "buffer_pitch": code.nr * size if fold else (b.view.down if looped else 1) * b.wide * size,
        "buffer_step": (
            p.dilation[2] // gcd(p.stride[2], p.dilation[2]) if looped else 1
        ) * size,
        "wide": b.wide,
        "phases_w": phases_w,
        "all_rows": int(looped and b.view.down > 1),
    }  # fmt: skip


# -------------------------------------------------------------------- the solver


class Planes:
    """Planes convolved one by one: images, signals and volumes, any stride and padding."""

    id = "numba.planes"
    algorithm = "direct"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if spec.dtype not in targets.BITS:
            return Refusal(Feature.DTYPE, f"computes float32 and float64, not {spec.dtype}")
        if spec.direction is not Direction.FORWARD:
            told = f"computes the forward direction, not {spec.direction}"
            return Refusal(Feature.DIRECTION, told)
        if spec.strided:
            return Refusal(Feature.STRIDED, "reads contiguous arrays")
        if spec.channels_last:
            return Refusal(Feature.LAYOUT, f"reads channels-first arrays, not {spec.layout}")
        if spec.is_empty:
            return Refusal(Feature.SIZE, "there is nothing to sum")
        return self._refuse_channels(spec) or self._refuse_size(spec, target)

    def _refuse_channels(self, spec: ConvSpec) -> Refusal | None:
        channels = spec.in_channels // spec.groups
        if channels > MAX_CHANNELS:
            told = f"sums at most {MAX_CHANNELS} input planes for an output plane, not {channels}"
            return Refusal(Feature.OTHER, told)
        if is_depthwise(spec):
            return Refusal(Feature.OTHER, "leaves depthwise layers to numba.planes.depthwise")
        return None

    def _refuse_size(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if self._blocking(spec, target).slot_bytes > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the padded input of one tile exceeds 1 GiB")
        return None

    @staticmethod
    def _blocking(spec: ConvSpec, target: Target, config: Config = DEFAULT_CONFIG) -> Blocking:
        padded = any(lo or hi for lo, hi in spec.padding)
        mode = PAD_MODES.index(spec.pad_mode) if padded else 0
        return blocking(Problem.of(spec), mode, problem.isa_of(target), config)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = self._blocking(spec, target)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        # Cycles in which nothing multiplies count as if they did, so that one rate stands for all
        # tiles; so do the threads that are left without a task.
        flops = 4.0 * b.code.vl * b.cycles * (target.cores / slots if wakes else target.cores)
        weights = prod(spec.w_shape) * p.bytes
        return Work(
            (Phase("planes", flops, f"numba.planes.{p.dtype}", p.traffic),),
            Numerics("direct"),
            Phase("pack", bytes={"copy": 2.0 * weights}),
            launches=int(wakes),
            workspace=slots * b.slot_bytes,
            packed_bytes=weights,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        yield DEFAULT_CONFIG
        view = self._blocking(spec, target).view
        for b in _candidates(view, problem.isa_of(target)):
            yield (("rows", b.code.rows), ("nv", b.code.nv), ("fold", b.code.fold))

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        isa = problem.isa_of(target)
        b = self._blocking(spec, target, config)
        p = b.view.p
        kernel = cache.function(b.code.name, 7, partial(build, b.code))
        tables = _tables(b)
        slots = min(target.cores, b.tasks)
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(spec)
            | _fields(b, tables)
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "slot_bytes": b.slot_bytes,
            }
        )
        reverse = spec.flip != b.view.swapped
        return PanelExecutable(
            kernel, partial(_pack, reverse), geometry, tables,
            slots=slots, slot_bytes=b.slot_bytes, seconds=seconds,
        )  # fmt: skip


class DepthwisePlanes(Planes):
    """Depthwise layers, channels first: the same kernels."""

    id = "numba.planes.depthwise"
    algorithm = "depthwise"

    def _refuse_channels(self, spec: ConvSpec) -> Refusal | None:
        if not is_depthwise(spec):
            told = "takes depthwise layers: as many groups as channels, and more than one"
            return Refusal(Feature.OTHER, told)
        return None


def is_depthwise(spec: ConvSpec) -> bool:
    """A depthwise layer; an image has one channel and is none."""
    return spec.is_depthwise and spec.groups > 1


def _pack(reverse: bool, weights: Array) -> Array:
    """A copy of the weights, reversed along the spatial axes or not."""
    if reverse:
        spatial = (slice(None, None, -1),) * (weights.ndim - 2)
        weights = weights[(slice(None), slice(None), *spatial)]
    return np.array(weights, order="C")

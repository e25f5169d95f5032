"""Planning of the convolution of planes: views of a problem, tiles and their costs, tables.

Three changes of view bring problems to the tile of :mod:`convjit_numba.planetile`:

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

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from convjit.algorithms.workspace import aligned
from convjit.spi import DEFAULT_CONFIG, Config
from convjit_numba import problem, targets
from convjit_numba.executable import address
from convjit_numba.problem import Problem

PAD_MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
UNROLLED_TAPS = 25
UNROLLED_CODE = 420  # vector products in the code of a tile
LARGE_PLANE = 16 << 10  # bytes
LEAST_VECTOR = 16  # bytes
LINE = 64  # bytes of a cache line
GATHERED = 0.55  # cycles of the model to copy one number of a row whose numbers lie a stride apart


class Machine(NamedTuple):
    """What the tile depends on, by instruction set."""

    registers: int
    masks: bool


MACHINES = {
    "avx512": Machine(32, True),
    "avx2": Machine(16, True),
    "sse2": Machine(16, False),
    "neon": Machine(32, False),
    "generic": Machine(16, False),
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
    def config(self) -> Config:
        return ("rows", self.rows), ("nv", self.nv), ("fold", self.fold)

    @property
    def tile(self) -> targets.Tile:
        return targets.Tile(self.rows, self.nv, self.vl)

    @property
    def nr(self) -> int:
        return self.nv * self.vl


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
        pad = (0, p.pad[1] + p.size[1] - p.kernel[1], p.pad[2] + p.size[2] - p.kernel[2])
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
        return (
            self.code.nr
            + (self.view.p.kernel[2] - 1) * self.view.p.dilation[2] // (self.view.p.stride[2])
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
        if self.view.mode != 0:  # rows and slices beyond the image are copied too
            return True
        if self.code.masks:
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
        tile = aligned(self.code.rows * self.code.nr * p.bytes)
        return tile + aligned(image * p.bytes)


@lru_cache(maxsize=1024)
def blocking(p: Problem, mode: int, isa: str, config: Config = DEFAULT_CONFIG) -> Blocking:
    """The tile and view whose modelled time is least, of those that a configuration names.

    A configuration may come from a similar problem, which another tile suits: then it is passed
    over.
    """
    swap = choose_swap(p, mode, isa)
    offered = [b for view in views(p, mode) if view.swapped == swap for b in candidates(view, isa)]
    named = [b for b in offered if b.code.config == config]
    return min(named or offered, key=lambda b: b.cycles)


@lru_cache(maxsize=1024)
def choose_swap(p: Problem, mode: int, isa: str) -> bool:
    """Whether the roles are swapped: as the model says for the best tile of either.

    Configurations do not change it, since the order of summation depends on it.
    """
    found = views(p, mode)
    cycles = [min(b.cycles for b in candidates(view, isa)) for view in found]
    return found[cycles.index(min(cycles))].swapped


@lru_cache(maxsize=1024)
def candidates(view: View, isa: str) -> tuple[Blocking, ...]:
    """The tiles that suit a view, with their costs."""
    p, machine = view.p, MACHINES[isa]
    vl = targets.tiles(isa, p.dtype)[0].vl
    while p.out[2] <= vl // 2 and vl * p.bytes > LEAST_VECTOR:
        vl //= 2  # shorter vectors lie across fewer cache lines
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
            code = Code(bits, rows, nv, vl, kh, kw, down, across, held, int(machine.masks), 0)
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
    code, p = b.code, b.view.p
    rows, nv = code.rows, code.nv
    _, kh, kw = p.kernel
    folded = kw // code.nr if code.fold else kh
    width = code.nr if code.fold else kw

    share = targets.vector_cost(code.vl, isa, p.dtype)
    # The part of the vectors at any address that lie across two lines is loaded twice.
    access = 1 + code.vl * p.bytes / LINE

    def row(active: int) -> tuple[float, float]:
        """Products and loads of a tap column of an input row that ``active`` output rows meet."""
        loads = nv * access
        if code.across == 2:  # two loads for two columns, and a shuffle for each
            loads *= 2 * -(-kw // 2) / kw + 0.5
        return share * active * nv, share * (loads + (0 if code.held else active))

    def stretch(active: int, columns: int) -> float:
        """An input row where the code loops: a sum waits four cycles for its last product."""
        return columns * max(*(n / 2 for n in row(active)), 3.0) + 3.0

    if code.kh:
        met = [sum(0 <= u - b.view.down * r < kh for r in range(rows)) for u in range(b.deep)]
        pairs = [row(active) for active in met if active]
        tile = kw * max(sum(n for n, _ in pairs), sum(n for _, n in pairs)) / 2
    elif folded >= rows:
        tile = 2 * sum(stretch(active, width) for active in range(1, rows))
        tile += (folded - rows + 1) * stretch(rows, width)
    else:
        tile = rows * folded * stretch(1, width)
    if code.fold and kw % code.nr:
        tile += rows * stretch(1, kw % code.nr)
    if b.view.mode == 0:
        tile *= problem.inside_share(p, 0) * problem.inside_share(p, 1)
    tile *= p.cg * p.kernel[0]
    # A row is a place of its own in memory: where the plane exceeds L1, prefetchers follow few
    # rows well and many badly.  Results lie across cache lines.
    large = p.size[1] * p.size[2] * p.bytes > LARGE_PLANE
    tile += 25 + (5.0 if large else 1.0) * (b.deep + rows) + 1.5 * rows * nv
    cols = code.nr * (rows if code.fold else 1)
    inside = max(0, (min(p.size[2] - b.span, p.out[2] * p.stride[2]) + p.pad[2]) // p.stride[2])
    plain = max(0, min(inside // cols, p.out[2] // cols) - (1 if p.pad[2] else 0))
    edges = b.col_blocks - (plain if b.in_place else 0)
    if code.masks and b.in_place and b.view.mode == 0:
        edge = nv * (kw * code.across + rows) if code.kh else 0.5 * nv * kw * b.deep
    else:
        copies = b.deep * p.kernel[0] * p.cg * b.view.phases[1]
        each = 3 / code.vl if b.in_place or p.stride[2] == 1 else GATHERED
        edge = copies * (25 + each * b.wide) + 12 * rows
    tiles = b.tasks / b.col_blocks
    return replace(b, cycles=tiles * (b.col_blocks * tile + edges * edge) + 100)


# -------------------------------------------------------------------- the tables of segments


def tables(b: Blocking) -> tuple[Any, Any]:
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


def fields(b: Blocking, segments: tuple[Any, Any]) -> dict[str, int]:
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
        "table": address(segments[0]),
        "buffer_table": address(segments[1]),
        "per_depth": len(segments[0]) // p.kernel[0],
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

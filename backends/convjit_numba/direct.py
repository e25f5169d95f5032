"""Direct convolution on register tiles of output pixels.

A task owns a block of output rows and columns of one image and group.  It copies the input that
the block needs, zero-padded, into its thread's workspace, split by the residues of the strides
(a polyphase image): there the inputs of consecutive outputs are consecutive for every tap, so a tap
is a constant offset from a table, whatever stride and dilation are, and the register tile reads
pixels without packing them further.  Where the kernel widens rows by less than vectors waste at
their ends, the rows of a block are one flat run whose surplus columns are dropped.

Loops (after Georganas et al. 2018, "Anatomy of high-performance deep learning convolutions"):
channels in blocks, so that a panel of weights stays in L1 and the image of a block in L2; panels of
weights in blocks that stay in L2; pixels; panels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from convjit.precision import Numerics
from convjit.spec import ConvSpec
from convjit.spi import DEFAULT_CONFIG, Config, Executable, Feature, Refusal, Target, Work
from convjit_numba import cache, pack, problem, targets, taskloop, threads
from convjit_numba.executable import PanelExecutable, address
from convjit_numba.problem import FIELD, Problem, Scratch
from convjit_numba.targets import Tile

MAX_FLAT_COLUMNS = 512
# Neighbouring taps read the same lines, so pixels take less of L1 than panels of columns do.
DEPTH = 2
# Planes of results that are written side by side where L2 does not hold what a task writes: more
# streams evict each other's lines before they are whole, at the worst where planes are a power of
# two apart.
STREAMS = 8
# Cycles of the model, least squares over 130 layers and tiles: to write a vector of results, to
# begin a row of the image, and for each byte of it, side by side or apart in the input.
WRITE = 3.0
ROW = 4.0
BYTE, BYTE_APART = 0.0375, 0.075
PIXELS = 32.0  # bytes a cycle of pixels and results, which come from L3 or memory


def build(bits: int, mr: int, nv: int, vl: int, step: int) -> Callable[..., None]:
    """The kernel for one register tile (imports numba).

    ``step`` is the stride along a row where its numbers are gathered by shuffles, else 0.
    """
    from numba import njit

    from convjit_numba.memory import load_int, move_real, zero_bytes
    from convjit_numba.microkernel import edge, register_tile
    from convjit_numba.pixeltile import row_gatherer
    from convjit_numba.vectorcode import OPTIONS

    slot_of, take = taskloop.sharing()
    size = bits // 8
    nr = nv * vl
    bias_at = Scratch(0, Tile(mr, nv, vl), size).bias
    image_at = Scratch(0, Tile(mr, nv, vl), size).pixels
    tail = 8 * len(FIELD)
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, GROUPS, CG, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["cg"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW, KD = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"], f["kd"]
    KH, KW, SD, SH, SW, PD, PH, PW, DD = (
        f["kh"], f["kw"], f["sd"], f["sh"], f["sw"], f["pd"], f["ph"], f["pw"], f["dd"],
    )  # fmt: skip
    CBLOCK, CBLOCKS, PANELS = f["cblock"], f["cblocks"], f["panels"]
    TASK_PANELS, TASK_SPLITS, PASS_PANELS = f["task_panels"], f["task_splits"], f["pass_panels"]
    ACTIVATION, SLOPES, OFFSETS = f["activation"], f["slope0"], f["offsets"]
    ROWS, COLS, HBLOCKS, WBLOCKS = f["rows"], f["cols"], f["hblocks"], f["wblocks"]
    PITCH, PLANE, SLICE, PHASES_H, PHASES_W = (
        f["pitch"], f["plane"], f["slice"], f["phases_h"], f["phases_w"],
    )  # fmt: skip
    EXTRA_H, EXTRA_W, FLAT = f["extra_h"], f["extra_w"], f["flat"]

    gather_row = row_gatherer(bits, vl, step)

    @njit(**OPTIONS)
    def fill(g, image, x, count, z0, r0, rows, c0, cols):
        """The polyphase image of ``count`` channels from output (z0, r0, c0) on."""
        d, h, w = load_int(g + D), load_int(g + H), load_int(g + W)
        kd, sd, sh, sw = load_int(g + KD), load_int(g + SD), load_int(g + SH), load_int(g + SW)
        pd, ph, pw = load_int(g + PD), load_int(g + PH), load_int(g + PW)
        dd, phases_h, phases_w = load_int(g + DD), load_int(g + PHASES_H), load_int(g + PHASES_W)
        pitch, plane, slice_ = load_int(g + PITCH), load_int(g + PLANE), load_int(g + SLICE)
        high, wide = rows + load_int(g + EXTRA_H), cols + load_int(g + EXTRA_W)
        # Tiles read beyond the outputs of a smaller block, and beyond the last row.  What lies
        # there is not used, but old memory may hold numbers so small that products with them take
        # a hundred times as long.
        for c in range(count):
            for t in range(kd):
                z = z0 * sd - pd + t * dd
                into = image + (c * kd + t) * slice_ * size
                start = x + (c * d + z) * h * w * size
                for a in range(phases_h):
                    row0 = r0 * sh - ph + load_int(g + tail + a * 8)
                    for b in range(phases_w):
                        col0 = c0 * sw - pw + load_int(g + tail + (phases_h + b) * 8)
                        target = into + (a * phases_w + b) * plane * size
                        for r in range(high):
                            row = row0 + r * sh
                            if 0 <= row < h and 0 <= z < d:
                                gather_row(target, start + row * w * size, col0, w, sw, wide)
                            else:
                                zero_bytes(target, wide * size)
                            if wide < pitch:
                                zero_bytes(target + wide * size, (pitch - wide) * size)
                            target += pitch * size
                        rest = plane - high * pitch
                        if rest > 0:
                            zero_bytes(target, min(rest, nr) * size)
        zero_bytes(image + count * kd * slice_ * size, nr * size)

    def kernel(g, x, weights, bias, y, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        groups, cg, kg = load_int(g + GROUPS), load_int(g + CG), load_int(g + KG)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        channel = load_int(g + D) * load_int(g + H) * load_int(g + W) * size
        taps = load_int(g + KD) * load_int(g + KH) * load_int(g + KW)
        cblock, cblocks, panels = load_int(g + CBLOCK), load_int(g + CBLOCKS), load_int(g + PANELS)
        task_panels, task_splits = load_int(g + TASK_PANELS), load_int(g + TASK_SPLITS)
        pass_panels, activation = load_int(g + PASS_PANELS), load_int(g + ACTIVATION)
        offsets, flat, pitch = load_int(g + OFFSETS), load_int(g + FLAT), load_int(g + PITCH)
        hblocks, wblocks = load_int(g + HBLOCKS), load_int(g + WBLOCKS)
        block_rows, block_cols = load_int(g + ROWS), load_int(g + COLS)
        ldc = od * oh * ow * size
        # Without surplus columns the rows of a block are one run in the result too.
        joined = flat != 0 and pitch == ow
        edges = workspace + slot_of(control) * load_int(g + SLOT_BYTES)
        image = edges + image_at
        first, last, turn = take(control, tasks, grain, 0)
        while first < last:
            for task in range(first, last):
                rest = task
                split = rest % task_splits
                rest //= task_splits
                c0 = rest % wblocks * block_cols
                rest //= wblocks
                r0 = rest % hblocks * block_rows
                rest //= hblocks
                z = rest % od
                unit = rest // od  # image and group
                group = unit % groups
                rows, cols = min(block_rows, oh - r0), min(block_cols, ow - c0)
                panel_end = min((split + 1) * task_panels, panels)
                corner = y + unit * kg * ldc + ((z * oh + r0) * ow + c0) * size
                runs, length = rows, cols
                if flat != 0:
                    runs, length = 1, (rows - 1) * pitch + cols
                for block in range(cblocks):
                    begin = block * cblock
                    count = min(cblock, cg - begin)
                    fill(g, image, x + (unit * cg + begin) * channel, count, z, r0, rows, c0, cols)
                    kc = count * taps
                    wblock = weights + (group * panels * cg + begin) * taps * mr * size
                    is_last = block == cblocks - 1
                    kind = activation if is_last else 0
                    accumulate = 1 if block > 0 else 0
                    low = split * task_panels
                    while low < panel_end:
                        high = min(low + pass_panels, panel_end)
                        for run in range(runs):
                            for p in range(0, length, nr):
                                place = run * pitch + p
                                row = place // pitch
                                col = place - row * pitch
                                whole = col + nr <= cols or (joined and p + nr <= length)
                                # A run of one row ends with it: lanes that reach into the next
                                # row are that row's own tile's to add.
                                row_end = rows if flat != 0 else row + 1
                                pixels = image + place * size
                                for panel in range(low, high):
                                    k = panel * mr
                                    a = wblock + panel * cg * taps * mr * size
                                    c = corner + k * ldc + (row * ow + col) * size
                                    add = 0
                                    if is_last and bias != 0:
                                        add = bias + (group * kg + k) * size
                                    if whole and k + mr <= kg:
                                        register_tile(
                                            bits, mr, nv, vl, 1, kc, a, pixels, offsets,
                                            c, ldc, accumulate, add, kind, g + SLOPES,
                                        )  # fmt: skip
                                        continue
                                    count_k = min(mr, kg - k)
                                    if add != 0:
                                        for i in range(count_k):
                                            move_real(
                                                bits, edges + bias_at + i * size, add + i * size
                                            )
                                        add = edges + bias_at
                                    to = corner + k * ldc
                                    if accumulate != 0:
                                        edge(bits, nr, 1, edges, to, ldc, count_k, row, col,
                                             row_end, cols, pitch, ow)  # fmt: skip
                                    register_tile(
                                        bits, mr, nv, vl, 1, kc, a, pixels, offsets,
                                        edges, nr * size, accumulate, add, kind, g + SLOPES,
                                    )  # fmt: skip
                                    edge(bits, nr, 0, edges, to, ldc, count_k, row, col,
                                         row_end, cols, pitch, ow)  # fmt: skip
                        low = high
            first, last, turn = take(control, tasks, grain, turn)

    return kernel


# -------------------------------------------------------------------- blocking


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops, see :func:`build`; ``cycles`` is the model's for all tasks together."""

    tile: Tile
    cblock: int
    rows: int
    cols: int
    task_panels: int
    pass_panels: int
    flat: bool
    tasks: int
    cycles: float
    makespan: float


class Division(NamedTuple):
    """A block of rows and columns: its register tiles, in flat runs or not, and such blocks."""

    rows: int
    cols: int
    flat: bool
    tiles: int
    blocks: int


def divisions(high: int, wide: int, extra: int, tile: Tile) -> Iterator[Division]:
    """Blocks to choose from for a plane whose image has ``extra`` columns beyond a block's."""
    for cols in targets.splits(wide, 1 + wide // (2 * tile.nr)):
        if cols > MAX_FLAT_COLUMNS and wide // cols < 12 and high > 1:
            continue
        for rows in targets.splits(high, high):
            flat_tiles = -(-((rows - 1) * (cols + extra) + cols) // tile.nr)
            row_tiles = rows * -(-cols // tile.nr)
            yield Division(
                rows, cols, flat_tiles < row_tiles, min(flat_tiles, row_tiles),
                -(-high // rows) * -(-wide // cols),
            )  # fmt: skip


@lru_cache(maxsize=1024)
def blocking(p: Problem, isa: str, cores: int, config: Config = DEFAULT_CONFIG) -> Blocking:
    """The blocking whose modelled time on ``cores`` threads is least, as far as it is free."""
    tile = targets.tile_of(isa, p.dtype, config)
    wanted = problem.wanted_tasks(config, partial(blocking, p, isa, cores))
    blocks, lag = problem.blocks_of(p.dtype), targets.lag(isa)
    candidates = targets.tiles(isa, p.dtype) if tile is None else (tile,)
    parts = max(1, -(-p.depth // (DEPTH * blocks.depth)))
    cblock = -(-p.cg // min(parts, p.cg))
    cblocks = -(-p.cg // cblock)
    phases = len(_residues(p, 1)) * len(_residues(p, 2))
    extra_h, extra_w = _extra(p, 1), _extra(p, 2)
    units = p.batch * p.groups * p.out[0]
    byte = BYTE if p.stride[2] == 1 else BYTE_APART
    arriving = problem.arriving(p, isa, PIXELS)
    # Of each row of the image whole lines arrive, of which one phase takes its numbers.
    lines = p.stride[2] / len(_residues(p, 2))
    best: Blocking | None = None
    for t in candidates:
        panels = -(-p.kg // t.mr)
        if t is not candidates[-1] and tile is None and t.mr >= 2 * p.kg:
            continue
        step = targets.tile_cycles(t, isa)
        per_panel = t.mr * cblock * p.taps * p.bytes
        pass_panels = max(1, blocks.weights // per_panel)
        for rows, cols, flat, tiles, spatial in divisions(p.out[1], p.out[2], extra_w, t):
            pitch = cols + extra_w
            image = cblock * p.kernel[0] * phases * (rows + extra_h) * pitch
            miss = 1.0 if image * p.bytes <= blocks.image else 1.05
            few = units * spatial < 4 * cores
            for task_panels in targets.splits(panels, panels if few else 1):
                tasks = units * spatial * -(-panels // task_panels)
                if not targets.is_about(tasks, wanted):
                    continue
                writes = lag * WRITE * t.mr * t.nv
                compute = tiles * task_panels * (p.depth * step * miss + cblocks * writes)
                filling = ROW * image / pitch + byte * image * p.bytes
                results = task_panels * t.mr * rows * cols * p.bytes
                at_once = STREAMS // t.mr if results > blocks.weights else task_panels
                kept = min(task_panels * t.mr, p.kg) * rows * cols  # results that exist
                moved = (lines * image * cblocks + kept * (2 * cblocks - 1)) * p.bytes
                cycles = compute + lag * (filling * cblocks + 200) + moved / arriving
                makespan = targets.makespan(tasks, tasks * cycles, cycles, cores)
                if best is None or makespan < best.makespan:
                    best = Blocking(
                        t, cblock, rows, cols, task_panels, max(1, min(pass_panels, at_once)),
                        flat, tasks, cycles * tasks, makespan,
                    )  # fmt: skip
    return blocking(p, isa, cores) if best is None else best


def _residues(p: Problem, axis: int) -> list[int]:
    """The residues of tap positions modulo the stride: the phases of that axis."""
    return sorted({t * p.dilation[axis] % p.stride[axis] for t in range(p.kernel[axis])})


def _extra(p: Problem, axis: int) -> int:
    """Samples that a phase has beyond the outputs."""
    return (p.kernel[axis] - 1) * p.dilation[axis] // p.stride[axis]


def _offsets(p: Problem, b: Blocking) -> np.ndarray[Any, Any]:
    """Bytes from an output's place in the image to its input, for each step of a channel block."""
    residues_h, residues_w = _residues(p, 1), _residues(p, 2)
    pitch, plane, slice_ = _strides(p, b)

    def axis(kernel: int, dilation: int, stride: int, residues: list[int]) -> tuple[Any, Any]:
        position = np.arange(kernel) * dilation
        return np.searchsorted(residues, position % stride), position // stride

    a, r = axis(p.kernel[1], p.dilation[1], p.stride[1], residues_h)
    b_, c = axis(p.kernel[2], p.dilation[2], p.stride[2], residues_w)
    taps = (a[:, None] * len(residues_w) + b_) * plane + r[:, None] * pitch + c
    slices = np.arange(b.cblock * p.kernel[0]) * slice_
    return ((slices[:, None] + taps.reshape(1, -1)) * p.bytes).astype(np.int32).reshape(-1)


def _strides(p: Problem, b: Blocking) -> tuple[int, int, int]:
    """Numbers from row to row, from phase to phase and from channel to channel of the image."""
    pitch = b.cols + _extra(p, 2)
    plane = (b.rows + _extra(p, 1)) * pitch
    return pitch, plane, plane * len(_residues(p, 1)) * len(_residues(p, 2))


def _scratch(p: Problem, b: Blocking) -> Scratch:
    image = b.cblock * p.kernel[0] * _strides(p, b)[2]
    return Scratch(image * p.bytes, b.tile, p.bytes)


# -------------------------------------------------------------------- the solver


class Direct:
    """Summation over the taps of a padded polyphase image, any stride, dilation and groups."""

    id = "numba.direct"
    algorithm = "direct"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        refusal = problem.refuse(spec)
        if refusal is not None:
            return refusal
        p = Problem.of(spec)
        b = blocking(p, problem.isa_of(target), target.cores)
        if _scratch(p, b).bytes > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the input of one block of rows exceeds 1 GiB")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        b = blocking(p, problem.isa_of(target), target.cores)
        weights = int(np.prod(pack.packed_shape(p, b.tile.mr))) * p.bytes
        isa = problem.isa_of(target)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        return problem.work(
            self.algorithm, p, b.tile, weights,
            cycles=b.makespan * target.cores if wakes else b.cycles,
            streamed=b.tasks * b.task_panels * b.tile.mr * p.depth * p.bytes,
            workspace=threads.slots_bytes(slots, _scratch(p, b).bytes),
            wakes=wakes,
            numerics=Numerics("direct"),
        )  # fmt: skip

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        p, isa = Problem.of(spec), problem.isa_of(target)
        tiles = targets.tiles(isa, p.dtype)
        return problem.configs(tiles, partial(blocking, p, isa, target.cores))

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(p, isa, target.cores, config)
        tile, bits = b.tile, targets.BITS[p.dtype]
        step = problem.gathered_step(p.stride[2])
        kernel = cache.function(
            f"direct.{targets.SHORT[p.dtype]}.{tile}.{step}", 7, partial(build, bits, *tile, step)
        )
        offsets = _offsets(p, b)
        pitch, plane, slice_ = _strides(p, b)
        residues_h, residues_w = _residues(p, 1), _residues(p, 2)
        slots = min(target.cores, b.tasks)
        slot_bytes = _scratch(p, b).bytes
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        panels = -(-p.kg // tile.mr)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(spec)
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "slot_bytes": slot_bytes,
                "cblock": b.cblock,
                "cblocks": -(-p.cg // b.cblock),
                "panels": panels,
                "task_panels": b.task_panels,
                "task_splits": -(-panels // b.task_panels),
                "pass_panels": b.pass_panels,
                "offsets": address(offsets),
                "rows": b.rows,
                "cols": b.cols,
                "hblocks": -(-p.out[1] // b.rows),
                "wblocks": -(-p.out[2] // b.cols),
                "pitch": pitch,
                "plane": plane,
                "slice": slice_,
                "phases_h": len(residues_h),
                "phases_w": len(residues_w),
                "extra_h": _extra(p, 1),
                "extra_w": _extra(p, 2),
                "flat": int(b.flat),
            },
            (*residues_h, *residues_w),
        )
        return PanelExecutable(
            kernel, pack.packer(p, tile.mr), geometry, (offsets,),
            slots=slots, slot_bytes=slot_bytes, seconds=seconds,
        )  # fmt: skip

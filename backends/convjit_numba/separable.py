"""The separable layer in one pass: a depthwise convolution whose result never leaves the cache.

A task computes some lines of the depthwise result into its thread's workspace, channels last, and
multiplies them by the weights of the pointwise convolution at once: each pixel is a row of the
matrix product (:mod:`convjit_numba.rowtile`).  What is saved is writing the intermediate result,
reading it again and a second start of the threads.  Alwani et al. (2016, "Fused-Layer CNN
Accelerators") fuse layers so; the overlap of blocks that theirs compute twice or keep does not
exist here, because a pointwise convolution needs no neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod

from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics
from convjit.spec import ConvSpec
from convjit.spi import (
    DEFAULT_CONFIG,
    Array,
    Config,
    Feature,
    Phase,
    Refusal,
    Target,
    Work,
)
from convjit_numba import (
    cache,
    depthwiseplan,
    indirectplan,
    pack,
    problem,
    rowtables,
    targets,
    taskloop,
    threads,
)
from convjit_numba.depthwise import Depthwise
from convjit_numba.depthwisekernel import build_line
from convjit_numba.executable import Launch
from convjit_numba.problem import FIELD, Problem
from convjit_numba.rowtables import HEAD, table_words
from convjit_numba.targets import Tile


def build(
    bits: int, outputs: int, taps: int, stride: int, vl: int, kept: int, multiplier: int,
    mr: int, nv: int, lanes: int, tail: int, end: int,
) -> Callable[..., None]:  # fmt: skip
    """The kernel for a depthwise tile and a row tile (imports numba).

    The first seven are those of :func:`convjit_numba.depthwise.build`; then come the row tile and
    the last panel's ``tail`` and ``end`` of :func:`convjit_numba.rowtables.build`.
    """
    from convjit_numba.memory import load_int, move_real, store_int

    slot_of, take = taskloop.sharing()
    _, copy_run, addends_of, sum_panel = rowtables.build(bits, mr, nv, lanes, tail, end)
    row_table, depthwise_line = build_line(bits, outputs, taps, stride, vl, kept, multiplier)
    size = bits // 8
    nr = nv * lanes
    walk = nr * size
    step = 8 * table_words(1, mr)
    f = dict(FIELD)
    TASKS, GRAIN, SLOT_BYTES, GROUPS, KG = (
        f["tasks"], f["grain"], f["slot_bytes"], f["groups"], f["kg"],
    )  # fmt: skip
    D, H, W, OD, OH, OW = f["d"], f["h"], f["w"], f["od"], f["oh"], f["ow"]
    ROWS, COLS, HBLOCKS, WBLOCKS = f["rows"], f["cols"], f["hblocks"], f["wblocks"]
    VECTORS, PANELS, MIXED = f["vectors"], f["panels"], f["mixed"]
    ACTIVATION, SLOPES = f["mixed_activation"], f["mixed_slope0"]
    AT_BIAS, AT_BUFFER, AT_SLAB = f["at_bias"], f["at_buffer"], f["at_slab"]
    AT_TABLE, AT_SUMS = f["at_table"], f["at_sums"]

    def kernel(g, x, weights, addends, mixing, bias, y, workspace, control):
        tasks, grain = load_int(g + TASKS), load_int(g + GRAIN)
        channels, m = load_int(g + GROUPS), load_int(g + KG)
        od, oh, ow = load_int(g + OD), load_int(g + OH), load_int(g + OW)
        image_bytes = load_int(g + D) * load_int(g + H) * load_int(g + W) * channels * size
        hblocks, wblocks = load_int(g + HBLOCKS), load_int(g + WBLOCKS)
        block_rows, block_cols = load_int(g + ROWS), load_int(g + COLS)
        vectors, panels, mixed = load_int(g + VECTORS), load_int(g + PANELS), load_int(g + MIXED)
        activation = load_int(g + ACTIVATION)
        depth = channels * m
        mine = workspace + slot_of(control) * load_int(g + SLOT_BYTES)
        packed_bias, buffer = mine + load_int(g + AT_BIAS), mine + load_int(g + AT_BUFFER)
        slab, table = mine + load_int(g + AT_SLAB), mine + load_int(g + AT_TABLE)
        sums = mine + load_int(g + AT_SUMS)
        first, last, turn = take(control, tasks, grain, 0)
        add = addends
        if multiplier != 1 and addends != 0 and first < last:
            add = packed_bias
            for v in range(vectors):
                c = min(v * vl, channels - vl)
                for j in range(m):
                    for lane in range(vl):
                        to = (v * m + j) * vl + lane
                        number = (c + lane) * m + j
                        move_real(bits, packed_bias + to * size, addends + number * size)
        while first < last:
            for task in range(first, last):
                block = task // wblocks
                col0 = (task - block * wblocks) * block_cols
                cols = min(block_cols, ow - col0)
                plane = block // hblocks
                r0 = (block - plane * hblocks) * block_rows
                rows = min(block_rows, oh - r0)
                image = x + plane // od * image_bytes
                pixel_in = channels * size
                for r in range(rows):
                    met = row_table(g, mine, plane % od, r0 + r, load_int(g + W) * pixel_in, 0)
                    line = slab + (r * cols - col0) * depth * size
                    depthwise_line(
                        g, mine, met, image, pixel_in, channels, weights, add, line, buffer,
                        0, vectors, col0, col0 + cols, 0, 0, 0,
                    )  # fmt: skip
                pixels = rows * cols
                tiles = (pixels + mr - 1) // mr
                for tile in range(tiles):
                    p = tile * pixels // tiles
                    count = (tile + 1) * pixels // tiles - p
                    here = table + tile * step
                    store_int(here, 1)
                    store_int(here + 8, count)
                    store_int(here + 16, p)
                    store_int(here + 8 * HEAD, 0)
                    for i in range(count):
                        store_int(here + 8 * (HEAD + 1 + i), slab + (p + i) * depth * size)
                # The block is a run of whole lines, or a part of one line.
                result = y + ((plane * oh + r0) * ow + col0) * mixed * size
                for panel in range(panels):
                    k = panel * nr
                    count = min(nr, mixed - k)
                    shift = addends_of(bias, k, count, sums)
                    b = mixing + panel * depth * walk
                    to, pixel = result + k * size, mixed * size
                    if end != 0 or count % lanes == 0:
                        sum_panel(
                            table, tiles, step, 0, count, depth, depth, b, to, pixel, pixel,
                            shift, activation, g + SLOPES,
                        )  # fmt: skip
                        continue
                    spare = sums + walk
                    for tile in range(tiles):
                        here = table + tile * step
                        sum_panel(
                            here, 1, step, 0, count, depth, depth, b, spare, 0, walk,
                            shift, activation, g + SLOPES,
                        )  # fmt: skip
                        p = load_int(here + 16)
                        for i in range(load_int(here + 8)):
                            copy_run(to + (p + i) * pixel, spare + i * walk, count)
            first, last, turn = take(control, tasks, grain, turn)

    return kernel


# -------------------------------------------------------------------- blocking


@dataclass(frozen=True, slots=True)
class Blocking:
    """Both tiles and the sizes of the loops; ``cycles`` is the model's for all tasks together.

    A task has ``rows`` whole lines, or ``cols`` outputs of one.
    """

    depth: depthwiseplan.Blocking
    tile: Tile
    tail: int
    end: int
    rows: int
    cols: int
    tasks: int
    depth_share: float  # of the cycles
    cycles: float
    makespan: float


@lru_cache(maxsize=512)
def blocking(
    p: Problem, q: Problem, isa: str, cores: int, config: Config = DEFAULT_CONFIG
) -> Blocking:
    """The blocking of depthwise problem ``p`` and pointwise problem ``q`` that takes least time.

    As far as it is free: ``config`` may name the row tile, or how many tasks there are.
    """
    chosen = targets.tile_of(isa, p.dtype, config)
    wanted = problem.wanted_tasks(config, partial(blocking, p, q, isa, cores))
    first = depthwiseplan.blocking(p, isa, cores, ringed=False)
    line = depthwiseplan.line_cycles_of(p, isa, first.mr)
    vectors = -(-p.groups // first.vl)
    limit = problem.blocks_of(p.dtype).image
    mixed = -(-q.kg // targets.row_tiles(isa, p.dtype)[0].vl)
    blocks = [(rows, p.out[2]) for rows in targets.splits(p.out[1], p.out[1])]
    blocks += [(1, cols) for cols in targets.splits(p.out[2], p.out[2] // 16 or 1)]
    end = targets.stored_lanes(q.kg, isa, p.dtype)
    best: Blocking | None = None
    for tile in targets.row_tiles(isa, p.dtype) if chosen is None else (chosen,):
        panels = -(-mixed // tile.nv)
        tail = mixed - (panels - 1) * tile.nv
        computed = targets.computed_vectors(tail, end, isa, p.dtype)
        for rows, cols in blocks:
            pixels = rows * cols
            miss = 1.0 if pixels * q.cg * p.bytes <= limit else 1.2
            tasks = p.batch * p.out[0] * -(-p.out[1] // rows) * -(-p.out[2] // cols)
            if not targets.is_about(tasks, wanted):
                continue
            apart = vectors * rows * (line * cols / p.out[2] + depthwiseplan.ENTRY * p.taps)
            tiles = -(-pixels // tile.mr)
            together = 0.0
            for width, count in ((tile.nv, panels - 1), (computed, 1)):
                step = targets.row_tile_cycles(pixels / tiles, width, isa)
                step = tiles * (q.cg * step * miss + indirectplan.CALL + indirectplan.TAP)
                # The first tile waits for the weights, some 10 bytes a cycle.
                together += count * (step + q.cg * width * tile.vl * p.bytes / 20)
            cycles = apart + together + depthwiseplan.TASK + indirectplan.TASK
            makespan = targets.makespan(tasks, tasks * cycles, cycles, cores)
            if best is None or makespan < best.makespan:
                best = Blocking(
                    first, tile, tail, end, rows, cols, tasks, apart / cycles, cycles * tasks,
                    makespan,
                )  # fmt: skip
    if best is None:  # no division is near enough to the one asked for
        return blocking(p, q, isa, cores)
    return best


def _places(p: Problem, q: Problem, b: Blocking) -> tuple[dict[str, int], int]:
    """Where the regions of a thread's workspace begin, as fields of the geometry; its bytes."""
    own = depthwiseplan.Slot.of(p, b.depth.mr, b.depth.vl, -(-p.groups // b.depth.vl))
    pixels = b.rows * b.cols
    regions = (
        ("at_table", -(-pixels // b.tile.mr) * 8 * table_words(1, b.tile.mr)),
        ("at_sums", (1 + b.tile.mr) * b.tile.nr * p.bytes),
        ("at_slab", pixels * q.cg * p.bytes),
    )
    places, at = {"at_bias": own.bias, "at_buffer": own.buffer}, own.bytes
    for name, size in regions:
        places[name] = at
        at += aligned(size)
    return places, at


# -------------------------------------------------------------------- what the core is offered


class SeparableExecutable:
    """A planned separable layer: kernel, geometry and packers; immutable."""

    __slots__ = ("_launch", "pack_depth", "pack_point", "workspace")

    def __init__(self, depth: ConvSpec, point: ConvSpec, target: Target, config: Config) -> None:
        p, q = Problem.of(depth), Problem.of(point)
        isa = problem.isa_of(target)
        b = blocking(p, q, isa, target.cores, config)
        d = b.depth
        m = depthwiseplan.multiplier(p)
        bits, short = targets.BITS[p.dtype], targets.SHORT[p.dtype]
        name = f"separable.{short}.{d.mr}x{p.kernel[2]}x{d.stride}x{d.vl}.m{m}"
        name += f".{b.tile}.{b.tail}.{b.end}"
        literals = (bits, d.mr, p.kernel[2], d.stride, d.vl, d.kept, m, *b.tile, b.tail, b.end)
        kernel = cache.function(name, 9, partial(build, *literals))
        self.pack_depth = depthwiseplan.packer(p, d.vl)
        self.pack_point = pack.lanes_packer(q, b.tile)
        places, slot_bytes = _places(p, q, b)
        slots = min(target.cores, b.tasks)
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        after = problem.activation_fields(point)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(depth)
            | {f"mixed_{name}": value for name, value in after.items()}
            | places
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "slot_bytes": slot_bytes,
                "rows": b.rows,
                "cols": b.cols,
                "hblocks": -(-p.out[1] // b.rows),
                "wblocks": -(-p.out[2] // b.cols),
                "classes": d.classes,
                "vectors": -(-p.groups // d.vl),
                "panels": -(-q.kg // b.tile.nr),
                "mixed": q.kg,
            }
        )
        self._launch = Launch(kernel, geometry, 7, slots, seconds)
        self.workspace = threads.slots_bytes(slots, slot_bytes)

    def run(
        self, x: Array, depth: Array, depth_bias: Array | None, point: Array, bias: Array | None,
        out: Array, workspace: Array,
    ) -> None:  # fmt: skip
        """Compute into ``out`` on as many threads as are in force and had been at planning."""
        self._launch(x, depth, depth_bias, point, bias, out, workspace)


class SeparableLayer:
    """Depthwise and pointwise convolution of channels-last arrays as one."""

    id = "numba.separable"

    def refuse(self, depth: ConvSpec, point: ConvSpec, target: Target) -> Refusal | None:
        """None if the pair is taken."""
        refusal = Depthwise().refuse(depth, target) or problem.refuse(point, channels_last=True)
        if refusal is not None:
            return refusal
        if not depth.channels_last:
            return Refusal(Feature.LAYOUT, f"reads channels-last arrays, not {depth.layout}")
        p, q = Problem.of(depth), Problem.of(point)
        b = blocking(p, q, problem.isa_of(target), target.cores)
        if _places(p, q, b)[1] > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the intermediate result of a line exceeds 1 GiB")
        return None

    def estimate(self, depth: ConvSpec, point: ConvSpec, target: Target) -> Work:
        """Work of a pair that was not refused."""
        p, q = Problem.of(depth), Problem.of(point)
        isa = problem.isa_of(target)
        b = blocking(p, q, isa, target.cores)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        cycles = (b.makespan if wakes else b.cycles) * target.cores
        flops = 4.0 * targets.tiles(isa, p.dtype)[0].vl * cycles
        x = p.batch * p.groups * prod(p.size)
        y = p.batch * q.kg * p.pixels
        traffic = problem.by_level(float((x + y) * p.bytes))
        packed = prod(depthwiseplan.packed_shape(p, b.depth.vl)) * p.bytes
        packed += prod(pack.lanes_shape(q, b.tile)) * q.bytes
        return Work(
            (
                Phase("depthwise", flops * b.depth_share, f"numba.depthwise.{p.dtype}", traffic),
                Phase("pointwise", flops * (1 - b.depth_share), f"numba.indirect.{p.dtype}"),
            ),
            Numerics("direct"),
            Phase("pack", bytes=problem.by_level(4.0 * packed)),
            launches=int(wakes),
            workspace=threads.slots_bytes(slots, _places(p, q, b)[1]),
            packed_bytes=packed,
        )  # fmt: skip

    def configs(self, depth: ConvSpec, point: ConvSpec, target: Target) -> Iterator[Config]:
        """The default's, then those of other row tiles and other numbers of tasks that fit."""
        p, q, isa = Problem.of(depth), Problem.of(point), problem.isa_of(target)
        tiles = targets.row_tiles(isa, p.dtype)
        blockings = partial(blocking, p, q, isa, target.cores)
        for config in problem.configs(tiles, blockings):
            if _places(p, q, blockings(config))[1] <= problem.MAX_SLOT:
                yield config

    def plan(
        self, depth: ConvSpec, point: ConvSpec, target: Target, config: Config
    ) -> SeparableExecutable:
        """The executable of a pair that was not refused."""
        return SeparableExecutable(depth, point, target, config)

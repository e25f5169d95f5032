"""Implicit GEMM whose lanes are pixels: the matrix of columns is made a strip at a time.

A task owns some strips of output pixels of one image and group and a range of output channels.
For each strip and block of channels it gathers what each (channel, tap) reads into a strip
``(depth, NR)`` in its thread's workspace, so that the pixel tile
(:mod:`convjit_numba.pixeltile`) reads it consecutively; then the panels of weights pass over it.
A 1x1 convolution of stride 1 reads its rows of pixels where they lie, unless they evict each other
from L2.

Of the loops of Goto and van de Geijn (2008, "Anatomy of high-performance matrix multiplication",
section 4) that leaves one block a task: its strip stays in L1 or L2 while all weights stream by,
``MR`` numbers for every ``MR * NR`` products, which any level of the memory delivers.  While the
panels pass over a strip of a 1x1 convolution, the next one is fetched into L2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from math import gcd

from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics
from convjit.spec import ConvSpec
from convjit.spi import DEFAULT_CONFIG, Config, Executable, Feature, Refusal, Target, Work
from convjit_numba import cache, pack, problem, targets, threads
from convjit_numba.executable import PanelExecutable
from convjit_numba.gemmkernel import build
from convjit_numba.problem import Problem
from convjit_numba.targets import Tile

# Cycles of the model, measured on products of known size: a task, a call of the tile, a number of a
# vector stored; a vector gathered, and per channel and tap a row's share of a strip.
TASK, CALL, STORE, GATHER, SEGMENT = 200.0, 20.0, 0.75, 3.0, 6.0
SCALAR = 1.2  # a number gathered alone
# Two tasks write the cache line at which their pixels of a channel meet.
SHARED = 20.0
# Rows of pixels are read in place up to so many times as many as L2 holds.  What it does not hold
# comes from L3 again for each panel, which the products hide; but where rows lie a large power of
# two apart, L3 and the tables of pages fail as L2 does.  (256 channels of 64x64 to 64: .70 ms
# gathered, .59 in place; 512 of 128x128, of which L2 holds 16: 7.8 and 9.0; 128 of 256x256, of
# which it holds 8: 6.5 and 8.6.)
EVICTED = 8
L2_WAY = 128 << 10  # bytes that lie so far apart share a set of L2 (64 KiB are such a distance too)
FMA_LATENCY = 4  # cycles: a tile with few sums waits for each of them
PIXELS = 64.0  # bytes a cycle of pixels and results, which come from L3 or memory
BEGIN = 8.0  # cycles to begin a row of a strip where L2 does not hold what was fetched of it
L2_BYTES = 60.0  # bytes a cycle from L2
# Of weights, beside products: a panel is read once for each strip.
WEIGHTS = 64.0
FETCHES = (1, 4, 12)  # lines that are fetched with a product, more where panels are few


# -------------------------------------------------------------------- blocking


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops; ``cycles`` is the model's for all tasks together.

    Attributes
    ----------
    tile : Tile
        The largest that occurs.
    tail : int
        Lanes of the last vector, 0 if that is a whole one.
    vectors, strips, panels : int
        Vectors of pixels and their division, division of the output channels.
    strip_blocks : int
        Tasks that the strips of an image and group are divided among.
    """

    problem: Problem
    tile: Tile
    tail: int
    in_place: bool
    cblock: int
    vectors: int
    strips: int
    strip_blocks: int
    panels: int
    task_panels: int
    tasks: int
    cycles: float
    makespan: float


def flatten(p: Problem) -> Problem:
    """A 1x1 problem of stride 1 without padding as one long row: every strip is contiguous."""
    if p.taps == 1 and p.stride == (1, 1, 1) and p.size == p.out and p.pad == (0, 0, 0):
        return replace(p, size=(1, 1, p.pixels), out=(1, 1, p.pixels), dilation=(1, 1, 1))
    return p


def _rows_held(p: Problem) -> int:
    """Rows of pixels, one of each channel, whose lines L2 holds at the same time."""
    return problem.caches()["l2"] // gcd(p.size[2] * p.bytes, L2_WAY)


def _tasks(
    units: int, vectors: int, wide: float, strips: int, blocks: int, panels: int, task_panels: int,
    share: float, fixed: float, each: float,
) -> list[float]:  # fmt: skip
    """Cycles of the tasks in their order; ``units`` images and groups are alike.

    ``fixed`` and ``each`` are those of a strip as wide as ``wide / strips`` vectors, ``share`` is a
    task's own.
    """
    ends: list[float] = [
        (block + 1) * strips // blocks * vectors // strips for block in range(blocks)
    ]
    ends[-1] = wide
    passes = [min(task_panels, panels - low) for low in range(0, panels, task_panels)]
    return units * [
        share + (end - first) * strips / wide * (fixed + count * each)
        for first, end in pairwise([0, *ends])
        for count in passes
    ]


@lru_cache(maxsize=1024)
def blocking(p: Problem, isa: str, cores: int, config: Config = DEFAULT_CONFIG) -> Blocking:
    """The blocking whose modelled time on ``cores`` threads is least, as far as it is free."""
    shape = targets.tile_of(isa, p.dtype, config)
    wanted = problem.wanted_tasks(config, partial(blocking, p, isa, cores))
    row = flatten(p)
    plain, p = row is not p, row
    blocks, lag = problem.blocks_of(p.dtype), targets.lag(isa)
    arriving = problem.arriving(p, isa, PIXELS)
    shapes = targets.pixel_tiles(isa, p.dtype)
    vl = shapes[0].vl
    # The order of summation is that of the blocks, which must not depend on tile or threads.
    widest = max(t.nr for t in shapes)
    parts = max(1, -(-p.depth * min(widest, 4 * vl) * p.bytes // blocks.image))
    cblock = -(-p.cg // min(parts, p.cg))
    cblocks = -(-p.cg // cblock)
    units = p.batch * p.groups
    vectors = -(-p.pixels // vl)
    tail = targets.tail_lanes(p.pixels, isa, p.dtype)
    # What one (channel, tap) of all pixels costs to gather.
    lines = p.pixels // p.out[2]
    if p.stride[2] <= problem.GATHERED_STEPS:
        gather = GATHER * p.stride[2] * vectors + SEGMENT * lines
    else:
        gather = SCALAR * p.pixels + SEGMENT * lines
    wide = targets.computed_vectors(vectors, tail, isa, p.dtype)
    weights = WEIGHTS
    if p.kg * p.depth * p.bytes > blocks.weights:
        weights = min(weights, lag * targets.streams(isa)[0])
    best: Blocking | None = None
    for t in shapes if shape is None else (shape,):
        panels, strips = -(-p.kg // t.mr), -(-vectors // t.nv)
        tile = Tile(-(-p.kg // panels), -(-vectors // strips), vl)
        in_place = plain and (panels <= 2 or cblock <= EVICTED * _rows_held(p))
        rows, wide_each = p.kg / panels, wide / strips
        step = max(rows * wide_each / 2, (rows + wide_each) / 2, FMA_LATENCY)
        if min(p.cg, cblock) * p.taps * tile.nr * p.bytes > blocks.strip:
            step = max(step, lag * wide_each * vl * p.bytes / L2_BYTES)
        call = CALL + STORE * rows * wide_each
        others = cblocks * call
        others += rows * p.depth * p.bytes / weights
        each = p.depth * step + lag * others
        each += rows * wide_each * vl * p.bytes / arriving * (2 * cblocks - 1)
        read = p.cg * wide_each * vl * p.bytes * p.stride[1] * p.stride[2] / arriving
        fixed = read + (0.0 if in_place else lag * p.depth * gather / strips)
        if p.cg > _rows_held(p):
            fixed += BEGIN * p.cg
        for task_strips in targets.splits(strips, strips):
            strip_blocks = -(-strips // task_strips)
            few = units * strip_blocks < 4 * cores
            for task_panels in targets.splits(panels, panels if few else 1):
                parts_k = -(-panels // task_panels)
                tasks = units * strip_blocks * parts_k
                if not targets.is_about(tasks, wanted):
                    continue
                share = lag * (TASK + SHARED * p.kg / parts_k)
                total = tasks * share + units * strips * (parts_k * fixed + panels * each)
                # The strips of a task by the vectors that they have.
                largest = -(-vectors * task_strips // strips) / wide * strips
                longest = share + min(strips, largest) * (fixed + task_panels * each)
                sizes = partial(
                    _tasks, units, vectors, wide, strips, strip_blocks, panels, task_panels,
                    share, fixed, each,
                )  # fmt: skip
                makespan = targets.makespan(tasks, total, longest, cores, sizes)
                if best is None or makespan < best.makespan:
                    best = Blocking(
                        p, tile, tail, in_place, cblock, vectors, strips, strip_blocks, panels,
                        task_panels, tasks, total, makespan,
                    )  # fmt: skip
    return blocking(p, isa, cores) if best is None else best


def _reads_tail(b: Blocking, isa: str) -> bool:
    """Whether the last vector is read in place although lanes of it do not exist."""
    return b.in_place and b.tail != 0 and targets.MACHINES[isa].masks


def _slot_bytes(b: Blocking, isa: str) -> int:
    """A thread's part of the workspace: one gathered strip."""
    if b.in_place and (b.tail == 0 or targets.MACHINES[isa].masks):
        return 0
    return aligned(b.cblock * b.problem.taps * b.tile.nr * b.problem.bytes)


# -------------------------------------------------------------------- the solver


class Gemm:
    """Implicit GEMM over strips of columns, any kernel, stride, dilation and groups."""

    id = "numba.gemm"
    algorithm = "gemm"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        refusal = problem.refuse(spec)
        if refusal is not None:
            return refusal
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        if _slot_bytes(blocking(p, isa, target.cores), isa) > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the columns of one channel exceed 1 GiB")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(p, isa, target.cores)
        weights = p.groups * p.kg * p.depth * p.bytes
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        return problem.work(
            self.algorithm, p, b.tile, weights,
            cycles=b.makespan * target.cores if wakes else b.cycles * target.cores,
            streamed=float(p.batch * b.strips * weights),
            workspace=threads.slots_bytes(slots, _slot_bytes(b, isa)),
            wakes=wakes,
            numerics=Numerics("gemm"),
        )  # fmt: skip

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        p, isa = Problem.of(spec), problem.isa_of(target)
        tiles = targets.pixel_tiles(isa, p.dtype)
        return problem.configs(tiles, partial(blocking, p, isa, target.cores))

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(p, isa, target.cores, config)
        bits, step = targets.BITS[p.dtype], problem.gathered_step(p.stride[2])
        masked = int(_reads_tail(b, isa))
        lines = b.tile.nr * p.bytes // targets.LINE  # of a channel that a strip reads
        fetches = next(n for n in FETCHES if n * b.task_panels >= lines or n == FETCHES[-1])
        kernel = cache.function(
            f"gemm.{targets.SHORT[p.dtype]}.{b.tile}.{b.tail}.{step}.{masked}.{fetches}",
            7,
            partial(build, bits, *b.tile, b.tail, step, masked, fetches),
        )
        slots = min(target.cores, b.tasks)
        slot_bytes = _slot_bytes(b, isa)
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        geometry = problem.pack_geometry(
            b.problem.geometry()
            | problem.activation_fields(spec)
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "slot_bytes": slot_bytes,
                "cblock": b.cblock,
                "cblocks": -(-p.cg // b.cblock),
                "panels": b.panels,
                "task_panels": b.task_panels,
                "task_splits": -(-b.panels // b.task_panels),
                "pixels": p.pixels,
                "strips": b.strips,
                "strip_blocks": b.strip_blocks,
                "vectors": b.vectors,
                "in_place": int(b.in_place),
            }
        )
        return PanelExecutable(
            kernel, pack.even_packer(p, b.panels, b.tile.vl), geometry, (),
            slots=slots, slot_bytes=slot_bytes, seconds=seconds,
        )  # fmt: skip

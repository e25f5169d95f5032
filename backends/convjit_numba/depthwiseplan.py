"""Tiles, block sizes, workspace and packed weights of :mod:`convjit_numba.depthwise`.

``(C * m, 1, taps)`` becomes ``(vectors, m, taps, VL)``: per vector of channels and kernel of a
channel the numbers that one step of the tile multiplies lie side by side.  The last vector ends
with the last channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from math import gcd, prod
from typing import Any

import numpy as np

from convjit.algorithms.workspace import aligned
from convjit.precision import numpy_dtype
from convjit.spi import Array, empty, num_threads
from convjit_numba import cache, problem, targets, taskloop, threads
from convjit_numba.executable import address
from convjit_numba.problem import Problem

MAX_POSITIONS = 96  # inputs that a tile walks over
MANY_ROWS = 6  # of a kernel, on average over the lines that they meet
SHUFFLED = 8  # multipliers up to this are interleaved by shuffles
SECONDS_PER_NUMBER = 1.5e-9  # packing
# Cycles of the model: a tile, a kernel row of it, an output stored, an entry of the table, a task.
TILE, ROW, STORE, ENTRY, TASK = 16.0, 4.0, 1.0, 5.0, 300.0
FMA_LATENCY = 4  # cycles: a tile with few outputs waits for each of its sums
# Of channels-first planes: a number transposed, a vector of channels that a task passes to.
TO_SLAB, FROM_SLAB, SLAB = 0.12, 0.2, 300.0
PIXELS = 48.0  # bytes a cycle that are transposed
# What the processor fetches ahead, the next channels of a tile's pixels, stays in L1 until it is
# used where the lines of a tile are no more than MOST_LINES and find room in their sets; those that
# lie a multiple of L1_WAY bytes apart share one.  Tiles smaller than LEAST_OUTPUTS lose more than
# they gain.  (256 channels of 56x56: .207 ms by tiles of 27, .132 by 6; 64 of 256x256: 1.16, .95 by
# 16.)
MOST_LINES, L1_WAY, LEAST_OUTPUTS = 72, 4096, 4
LEAST_ROOM = 3  # outputs of a tile below which rows are copied
RING = 1.0  # cycles of the model that copying a vector of channels of a pixel to a ring takes
HELD = 1.5  # times what L2 holds: up to there all of it comes so fast that large tiles are better
FEW_TAPS = 9  # more of them take so long that lines come in time


@dataclass(frozen=True, slots=True)
class Blocking:
    """The tile, and the sizes of the loops; ``cycles`` is the model's for all tasks together.

    ``stride`` is the tile's, in positions; ``kept`` says that it keeps a row of weights.  A task of
    channels-first planes transposes pixels to a slab of ``slab_bytes`` and sums ``sum_pixels``.
    One of channels-last arrays may copy rows of pixels, ``pitch`` bytes apart, to a ``ring`` of so
    many.  Else these are 0.
    """

    mr: int
    vl: int
    stride: int
    classes: int
    kept: int
    rows: int
    cols: int
    task_vectors: int
    ring: int
    pitch: int
    slab_bytes: int
    sum_pixels: int
    tasks: int
    cycles: float
    makespan: float

    def name(self, p: Problem) -> str:
        """Of the kernel."""
        numbers = f"{self.mr}x{p.kernel[2]}x{self.stride}x{self.vl}"
        order = "first" if self.sum_pixels else f"m{multiplier(p)}"
        return f"depthwise.{targets.SHORT[p.dtype]}.{numbers}.{order}"


def multiplier(p: Problem) -> int:
    """The multiplier as the kernel has it: 0 if it is not a literal."""
    return p.kg if p.kg <= SHUFFLED else 0


def lanes(p: Problem, isa: str) -> int:
    """Lanes of a vector: all, or the largest power of two up to the number of channels."""
    vl = targets.tiles(isa, p.dtype)[0].vl
    while vl > p.groups:
        vl //= 2
    return vl


def _positions(p: Problem) -> tuple[int, int]:
    """Stride of the tile, in positions, and the classes of columns."""
    common = gcd(p.dilation[2], p.stride[2])
    return p.stride[2] // common, p.dilation[2] // common


def line_cycles(p: Problem, isa: str, mr: int) -> tuple[float, float, int]:
    """Cycles of all kernel rows and of none, for one vector and one line; whether weights stay."""
    taps, dw = p.kernel[2], p.dilation[2]
    stride, classes = _positions(p)
    kept = int(mr + taps + 2 <= targets.REGISTERS[isa])
    width = targets.vector_cost(lanes(p, isa), isa, p.dtype)
    # How many products end before each position.
    u = np.arange((mr - 1) * stride + taps + 1)
    ends = np.clip(u - np.arange(mr)[:, None] * stride, 0, taps).sum(axis=0)
    per_row = fixed = 0.0
    for phase in range(min(classes, p.out[2])):
        outputs = -(-(p.out[2] - phase) // classes)
        first = np.arange(0, outputs, mr)
        at = (phase + classes * first) * p.stride[2] - p.pad[2]
        low = np.maximum(0, -(at // dw))
        count = np.minimum(mr, outputs - first)
        high = np.minimum((count - 1) * stride + taps, np.maximum(0, -((at - p.size[2]) // dw)))
        high = np.maximum(high, np.minimum(low, len(u) - 1))
        low = np.minimum(low, high)
        products = ends[high] - ends[low]
        loads = high - low + taps
        cycles = np.maximum(width * np.maximum(products, loads) / 2, FMA_LATENCY * products / mr)
        per_row += float(np.sum(np.where(products > 0, cycles + ROW, 0.0)))
        fixed += TILE * len(first) + STORE * outputs
    return per_row, fixed, kept


def line_cycles_of(p: Problem, isa: str, mr: int) -> float:
    """Cycles of one vector of channels and a line that meets the usual number of kernel rows."""
    per_row, fixed, _ = line_cycles(p, isa, mr)
    return (_row_count(p) * per_row + fixed) * p.kg


def _row_count(p: Problem) -> float:
    """Kernel rows that meet the image, on average over the lines."""
    total = 1.0
    for axis in (0, 1):
        first = np.arange(p.out[axis])[:, None] * p.stride[axis] - p.pad[axis]
        at = first + np.arange(p.kernel[axis]) * p.dilation[axis]
        total *= float(np.count_nonzero((at >= 0) & (at < p.size[axis]))) / p.out[axis]
    return total


def _most_unevicted(p: Problem, stride: int) -> int:
    """Outputs of a tile whose pixels, of one vector of channels, do not fill their sets of L1."""
    pitch = p.groups * p.bytes * p.dilation[2]
    sets = L1_WAY // max(gcd(pitch, L1_WAY), targets.LINE)
    lines = min(MOST_LINES, sets * (problem.caches()["l1"] // L1_WAY))
    rows = min(p.kernel[1], p.size[1]) * min(p.kernel[0], p.size[0])
    return (lines - rows * (p.kernel[2] - stride)) // (rows * stride + 1)


def _meets_again(p: Problem) -> bool:
    """Whether every pixel is met by all taps, those of neighbouring rows, of one plane."""
    return p.stride == p.dilation == (1, 1, 1) and p.kernel[0] == 1 and p.pad[0] == 0


def ring_pitch(p: Problem, vl: int, task_vectors: int) -> int:
    """Bytes from pixel to pixel of a ring: an odd number of lines, which fill all sets alike."""
    lines = -(-min(task_vectors * vl, p.groups) * p.bytes // targets.LINE)
    return (lines + 1 - lines % 2) * targets.LINE


@lru_cache(maxsize=1024)
def blocking(
    p: Problem, isa: str, cores: int, mr: int | None = None, *, last: bool = True,
    ringed: bool = True,
) -> Blocking:  # fmt: skip
    """The blocking whose modelled time on ``cores`` threads is least.

    Unless ``ringed`` a task reads pixels where they lie.
    """
    vl = lanes(p, isa)
    stride, classes = _positions(p)
    most = -(-p.out[2] // classes)
    most = max(1, min(most, (MAX_POSITIONS - p.kernel[2]) // stride + 1))
    # The weights that a position meets slide through registers too.
    free = targets.REGISTERS[isa] - 2
    most = max(1, min(most, max(free // 2, free - p.kernel[2])))
    rows_met = _row_count(p)

    def cost(outputs: int) -> float:
        per_row, fixed, _ = line_cycles(p, isa, outputs)
        return rows_met * per_row + fixed

    wanted = mr
    mr = min(range(most, 0, -1), key=cost) if wanted is None else min(wanted, most)
    held = HELD * cores * problem.caches()["l2"]
    few = p.taps <= FEW_TAPS and p.groups > vl
    if last and few and sum(p.traffic.values()) > held:
        room = _most_unevicted(p, stride)
        if ringed and room < LEAST_ROOM and _meets_again(p):
            found = _with_tile(p, isa, cores, mr, last, True)
            if found is not None:
                return found
        if wanted is None:
            most = min(most, max(LEAST_OUTPUTS, room))
            mr = min(range(most, 0, -1), key=cost)
    best = _with_tile(p, isa, cores, mr, last, False)
    assert best is not None
    return best


def _with_tile(
    p: Problem, isa: str, cores: int, mr: int, last: bool, ringed: bool
) -> Blocking | None:
    """The best blocking with a tile; none where no ring fits beside what else L2 holds."""
    vl = lanes(p, isa)
    stride, classes = _positions(p)
    rows_met = _row_count(p)
    kept = line_cycles(p, isa, mr)[2]
    line = line_cycles_of(p, isa, mr)
    vectors = -(-p.groups // vl)
    blocks, lag = problem.blocks_of(p.dtype), targets.lag(isa)
    arriving = problem.arriving(p, isa, PIXELS)
    units = p.batch * p.out[0]
    reach = (p.kernel[1] - 1) * p.dilation[1] + 1
    best: Blocking | None = None
    for task_vectors in targets.splits(vectors, vectors):
        weights = task_vectors * p.kg * p.taps * vl * p.bytes
        pitch = ring_pitch(p, vl, task_vectors) if ringed else 0
        for rows in targets.splits(p.out[1], p.out[1]):
            # The results of a range of tasks are neighbours: a core that writes fetches the lines
            # ahead, which would be another's in every pixel.  (Kernels of many rows write seldom,
            # and had better read their weights once.)
            if last and task_vectors < vectors and rows > 1 and rows_met < MANY_ROWS:
                continue
            high = min(p.size[1], (rows - 1) * p.stride[1] + reach)
            window = min(p.kernel[0], p.size[0]) * high * p.size[2] * task_vectors * vl * p.bytes
            # Kernels of many rows read their window again for every line.
            miss = 1.0 if weights + window <= 2 * blocks.image or rows_met < MANY_ROWS else 1.3
            miss *= 1.0 if weights <= blocks.weights else 1.3
            # A task that reads less than a few cache lines of each pixel reads memory at a stride.
            if last and task_vectors < vectors and task_vectors * vl * p.bytes < 256:
                miss *= 1.2
            most = p.out[2] // ((1 if ringed else 4) * mr * classes) or 1
            for cols in targets.splits(p.out[2], most):
                parts = -(-p.out[1] // rows) * -(-p.out[2] // cols) * -(-vectors // task_vectors)
                tasks = units * parts
                work = rows * line * cols / p.out[2] * miss
                fixed = rows * ENTRY * p.kernel[0] * p.kernel[1]
                slab = sums = 0
                wide = (cols - 1) * p.stride[2] + (p.kernel[2] - 1) * p.dilation[2] + 1
                wide = min(p.size[2], wide)
                if not last:
                    slab, sums = max(1, high * wide) * vl * p.bytes, rows * cols
                    if slab > blocks.image:
                        work *= 1.3
                    pixels = slab // (vl * p.bytes)
                    moved = TO_SLAB * -(-pixels // vl) + FROM_SLAB * -(-sums // vl)  # by squares
                    work += lag * (vl * vl * moved + SLAB + fixed)
                    work += (slab + sums * vl * p.bytes) / arriving
                elif ringed:
                    slab = reach * wide * pitch
                    if slab > blocks.image:
                        continue
                    work += lag * RING * high * wide
                cycles = task_vectors * work + fixed + TASK
                makespan = targets.makespan(tasks, tasks * cycles, cycles, cores)
                if best is None or makespan < best.makespan:
                    best = Blocking(
                        mr, vl, stride, classes, kept, rows, cols, task_vectors,
                        reach if ringed else 0, pitch, slab, sums, tasks, cycles * tasks, makespan,
                    )  # fmt: skip
    return best


@dataclass(frozen=True, slots=True)
class Slot:
    """Regions of a thread's part of the workspace, and the bytes of all.

    First the table; then a task's bias and a tile's results, of kernels with a multiplier; then a
    slab or ring of pixels, and the results of a task of channels-first planes.
    """

    bias: int
    buffer: int
    slab: int
    sums: int
    bytes: int

    @classmethod
    def of(
        cls, p: Problem, mr: int, vl: int, vectors: int, slab_bytes: int = 0, sum_pixels: int = 0
    ) -> Slot:
        multiplied = p.kg if p.kg > 1 else 0
        sizes = (
            16 * p.kernel[0] * p.kernel[1],
            vectors * multiplied * vl * p.bytes,
            mr * multiplied * vl * p.bytes,
            slab_bytes,
            sum_pixels * vl * p.bytes,
        )
        return cls(*accumulate(aligned(size) for size in sizes))


# -------------------------------------------------------------------- packing


def packed_shape(p: Problem, vl: int) -> tuple[int, int, int, int]:
    """(vectors of channels, multiplier, taps, lanes)."""
    return -(-p.groups // vl), p.kg, p.taps, vl


def _build_pack(bits: int, vl: int) -> Callable[..., None]:
    from convjit_numba.memory import move_real

    _, take = taskloop.sharing()
    size = bits // 8

    def kernel(source, target, channels, m, taps, control):
        vectors = (channels + vl - 1) // vl
        first, last, turn = take(control, vectors, 1, 0)
        while first < last:
            for task in range(first, last):
                c = min(task * vl, channels - vl)
                for j in range(m):
                    to = target + (task * m + j) * taps * vl * size
                    for lane in range(vl):
                        row = source + ((c + lane) * m + j) * taps * size
                        for t in range(taps):
                            move_real(bits, to + (t * vl + lane) * size, row + t * size)
            first, last, turn = take(control, vectors, 1, turn)

    return kernel


def packer(p: Problem, vl: int) -> Callable[[Array], Any]:
    """The function that packs weights of one problem."""
    dtype = numpy_dtype(p.dtype)
    shape = packed_shape(p, vl)
    name = f"depthwise.pack.{targets.SHORT[p.dtype]}.{vl}"
    kernel = cache.function(name, 6, partial(_build_pack, targets.BITS[p.dtype], vl))
    seconds = prod(shape) * SECONDS_PER_NUMBER

    def pack(weights: Array) -> Any:
        panels = empty(shape, dtype)
        arguments = (address(weights), address(panels), p.groups, p.kg, p.taps)
        threads.run(kernel, arguments, num_threads(), seconds)
        return panels

    return pack

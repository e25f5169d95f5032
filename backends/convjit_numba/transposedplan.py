"""Block sizes and workspace of :mod:`convjit_numba.transposed`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd, prod

from convjit.algorithms.workspace import aligned
from convjit_numba import problem, targets
from convjit_numba.indirectplan import (
    ADDRESS,
    CALL,
    ENTRY,
    PIXELS,
    TAP,
    TASK,
    TRANSPOSE,
    TRANSPOSE_BACK,
    WEIGHTS,
)
from convjit_numba.problem import Axes, Problem
from convjit_numba.rowtables import table_words
from convjit_numba.targets import Tile

COPY = 0.1  # cycles of the model that copying a number from the sums to the result takes


def canonical(p: Problem) -> Problem:
    """The problem with a stride that separates all samples wherever gy has a single one.

    The stride says how far apart the samples of y lie, of which there are no two.
    """
    stride = tuple(n if m == 1 else s for n, m, s in zip(p.size, p.out, p.stride, strict=True))
    return replace(p, stride=(stride[0], stride[1], stride[2]))


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops; ``cycles`` is the model's for all tasks together.

    Attributes
    ----------
    problem : Problem
        The forward operator, whose y is read and whose x is the result.
    direct : bool
        Whether row tiles write to the result rather than to a buffer.
    tail : int
        Vectors of the last panel.
    end : int
        Lanes of the last of them, stored as far as they exist; 0 if it is stored whole.
    kblock : int
        Channels of y that one pass sums.
    images, lines, cols : int
        Of a task, in periods of the stride.
    """

    problem: Problem
    last: bool
    direct: bool
    tile: Tile
    tail: int
    end: int
    kblock: int
    images: int
    lines: int
    cols: int
    task_panels: int
    tasks: int
    streamed: float
    cycles: float
    makespan: float


def periods(p: Problem) -> Axes:
    """Periods of the stride along each axis of the result."""
    d, h, w = (-(-n // s) for n, s in zip(p.size, p.stride, strict=True))
    return d, h, w


def most_taps(p: Problem) -> Axes:
    """The most taps that a sample of the result meets along each axis."""
    d, h, w = (
        -(-k // (s // gcd(s, e))) for k, s, e in zip(p.kernel, p.stride, p.dilation, strict=True)
    )
    return d, h, w


def reach(p: Problem, axis: int) -> tuple[int, int]:
    """The samples of y, from that of its own number, that a period of the result meets."""
    lo, s = p.pad[axis], p.stride[axis]
    first = -((p.kernel[axis] - 1) * p.dilation[axis] - lo) // s
    return first, (min(s, p.size[axis]) - 1 + lo) // s


def window(p: Problem, lines: int, cols: int) -> tuple[int, int]:
    """Rows and columns of y that a task reads at most."""
    sizes = []
    for axis, count in ((1, lines), (2, cols)):
        first, last = reach(p, axis)
        sizes.append(min(p.out[axis], count + last - first))
    return sizes[0], sizes[1]


def _blocks(p: Problem, lanes: int, largest: int) -> Iterator[tuple[int, int, int]]:
    """Candidates for the images, lines and columns of a task."""
    _, high, wide = periods(p)
    if 2 * high * wide <= largest and p.batch > 1:
        for images in targets.splits(p.batch, p.batch, largest // (high * wide)):
            yield images, high, wide
    for lines in targets.splits(high, high, max(1, largest // wide)):
        yield 1, lines, wide
    if wide > 4 * lanes:
        for size in targets.splits(wide, wide // (2 * lanes), largest):
            yield 1, 1, min(wide, -(-size // lanes) * lanes)


def _task_cycles(
    p: Problem, last: bool, direct: bool, t: Tile, tail: float, images: int, lines: int, cols: int,
    passes: int, isa: str,
) -> tuple[float, float, float]:  # fmt: skip
    """Of a task: what does not depend on its panels, each panel, and the last of all panels."""
    lag, arriving = targets.lag(isa), problem.arriving(p, isa, PIXELS)
    pixels = images * lines * cols
    phases = min(p.stride[1], p.size[1]) * min(p.stride[2], p.size[2])  # of a task
    taps = p.taps / (phases * min(p.stride[0], p.size[0]))  # of a phase, on average
    runs, run = (images * lines, cols) if direct else (1, pixels)
    tiles = -(-run // t.mr)
    calls = runs * tiles * phases

    def panel(vectors: float) -> float:
        lanes = vectors * t.vl
        results = pixels * phases * lanes
        cycles = taps * p.kg * calls * targets.row_tile_cycles(run / tiles, vectors, isa)
        others = calls * passes * (CALL + (TAP + ADDRESS * t.mr) * taps)
        others += lanes * phases * taps * p.kg * p.bytes / WEIGHTS
        others += results * (0.0 if direct else COPY if last else TRANSPOSE_BACK * p.bytes)
        return cycles + lag * others + results * p.bytes / arriving

    met = images * prod(window(p, lines, cols)) * most_taps(p)[0] * p.kg
    others = TASK + ENTRY * pixels * phases * (taps + 1)
    others += 0.0 if last else TRANSPOSE * met * p.bytes
    fixed = lag * others + met * p.bytes / arriving
    return fixed, panel(t.nv), panel(tail)


@lru_cache(maxsize=1024)
def blocking(p: Problem, last: bool, isa: str, cores: int, tile: Tile | None = None) -> Blocking:
    """The blocking whose modelled time on ``cores`` threads is least."""
    p = canonical(p)
    blocks = problem.blocks_of(p.dtype)
    tiles = targets.row_tiles(isa, p.dtype) if tile is None else (tile,)
    # The order of summation is that of the blocks, which must not depend on tile or threads.
    widest = max(t.nr for t in targets.row_tiles(isa, p.dtype))
    deepest = prod(most_taps(p)) * p.kg
    parts = -(-deepest * widest * p.bytes // blocks.weights)
    kblock = -(-p.kg // min(parts, p.kg))
    passes = -(-p.kg // kblock)
    columns = min(p.stride[2], p.size[2])
    planes = p.groups * p.size[0]
    _, high, wide = periods(p)
    end = targets.stored_lanes(p.cg, isa, p.dtype)
    fits = targets.stores_exactly(p.cg, isa, p.dtype)
    best: Blocking | None = None
    for t in tiles:
        vectors = -(-p.cg // t.vl)
        panels = -(-vectors // t.nv)
        tail = vectors - (panels - 1) * t.nv
        computed = targets.computed_vectors(tail, end, isa, p.dtype)
        each = (p.kg + columns * t.nr) * p.bytes
        for images, lines, cols in _blocks(p, t.vl, max(6 * t.vl, blocks.image // each)):
            direct = last and fits and 2 * cols > t.mr
            fixed, whole, final = _task_cycles(
                p, last, direct, t, computed, images, lines, cols, passes, isa
            )
            units = planes * -(-p.batch // images) * -(-high // lines) * -(-wide // cols)
            # The last blocks of an axis may be smaller.
            share = p.batch * high * wide / (units / planes * images * lines * cols)
            for task_panels in targets.splits(panels, panels if units < 4 * cores else 1):
                splits = -(-panels // task_panels)
                longest = fixed + task_panels * whole + (final - whole if splits == 1 else 0.0)
                total = units * share * (splits * fixed + (panels - 1) * whole + final)
                makespan = targets.makespan(units * splits, total, longest, cores)
                if best is None or makespan < best.makespan:
                    best = Blocking(
                        p, last, direct, t, tail, end, kblock, images, lines, cols, task_panels,
                        units * splits, float(units * panels * t.nr * p.kg * p.taps * p.bytes),
                        total, makespan,
                    )  # fmt: skip
    assert best is not None
    return best


def slab_pitch(p: Problem) -> int:
    """Bytes from pixel to pixel of a slab: a line more where pixels would share few cache sets."""
    size = p.kg * p.bytes
    return size + 64 if size % 256 == 0 else size


# -------------------------------------------------------------------- the workspace


@dataclass(frozen=True, slots=True)
class Slot:
    """A thread's part of the workspace: bytes of its regions, in their order.

    Bias, positions of a tile's rows, a row of zeros, sums of a panel, tables of addresses, the
    channels-last copy of y.
    """

    bias: int
    positions: int
    zeros: int
    sums: int
    table: int
    slab: int

    @classmethod
    def of(cls, b: Blocking) -> Slot:
        p = b.problem
        pixels = b.images * b.lines * b.cols
        rows, cols = window(p, b.lines, b.cols)
        met = b.images * most_taps(p)[0] * rows * cols
        return cls(
            b.tile.nr * p.bytes,
            3 * 8 * b.tile.mr,
            p.kg * p.bytes,
            0 if b.direct else pixels * p.stride[2] * b.tile.nr * p.bytes,
            tables(b) * table_bytes(b),
            0 if b.last else met * slab_pitch(p) + b.tile.vl * p.bytes,
        )

    def places(self) -> dict[str, int]:
        """Where the regions begin, as fields of the geometry."""
        at, places = aligned(self.bias), {}
        for name in ("positions", "zeros", "sums", "table", "slab"):
            places[f"at_{name}"] = at
            at += aligned(getattr(self, name))
        return places

    @property
    def bytes(self) -> int:
        return self.places()["at_slab"] + aligned(self.slab)


def tiles_of_phase(b: Blocking) -> int:
    """Row tiles of a task for one phase."""
    if b.direct:
        return b.images * b.lines * -(-b.cols // b.tile.mr)
    return -(-b.images * b.lines * b.cols // b.tile.mr)


def tables(b: Blocking) -> int:
    """Tables that are kept: of the phases of one row."""
    return tiles_of_phase(b) * min(b.problem.stride[2], b.problem.size[2])


def table_bytes(b: Blocking) -> int:
    """Of the table of addresses of a row tile."""
    return 8 * table_words(prod(most_taps(b.problem)), b.tile.mr)

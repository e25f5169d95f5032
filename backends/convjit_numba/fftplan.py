"""Tiles of :mod:`convjit_numba.fft` and their modelled cost.

Lengths are products of few butterflies, a line's tile is a matrix of them, and the best tile has
the least modelled time, all threads being busy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from convjit.algorithms import cooley_tukey
from convjit.algorithms.geometry import extent
from convjit.algorithms.workspace import aligned
from convjit.precision import REAL_OF
from convjit.spec import ConvSpec
from convjit_numba import problem, targets
from convjit_numba.problem import Axes, Problem

MAX_LENGTH = 2048  # of the transforms of an axis of a tile

# Cycles that a butterfly takes for each of its complex vectors, operands in L1.
CYCLES = {3: 3.1, 4: 3.0, 5: 4.8, 6: 4.8, 8: 4.0}
MOVE = 2.8  # of a complex vector into a tile or out of it
TURN = 4.0  # of a complex vector in a transpose
TWISTED = 4.0  # of a complex vector between the columns and the rows of a line
PRODUCT = 2.1  # of a product of complex vectors, and its sum
APART = 3.0  # times as long a butterfly takes whose vectors lie in as many pages
TASK = 400.0
SPECTRA = 28.0  # bytes a cycle that products read of spectra beyond L2, at most
EXPOSED = 0.3  # part of the shorter of multiplying and streaming that the longer one does not hide
MOST_CORES = 16  # for which tiles are made small enough

# Of products with many channels: output channels of a panel, tiles of a task.
PANEL_ROWS = 2
PAIRS = (1, 2, 4, 8)

# Lengths tried an axis, by the number of axes.
MOST_LENGTHS = {2: 14, 3: 7}


# -------------------------------------------------------------------- lengths


@dataclass(frozen=True, slots=True)
class Shape:
    """A tile: a stack of matrices of samples, or one line of them if ``line``."""

    rows: int
    cols: int
    line: bool
    depth: int = 1

    @property
    def points(self) -> int:
        return self.depth * self.rows * self.cols

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the transforms, an axis each."""
        if self.line:
            return (self.points,)
        plane = (self.rows, self.cols)
        return plane if self.depth == 1 else (self.depth, *plane)

    def transform_cycles(self, lanes: int, l1: int, size: int) -> float:
        """Of one transform of all columns, a transpose, and the transform of all rows."""
        each = TURN + sum(axis_cycles(n, lanes, l1, size) for n in (self.rows, self.cols))
        each += TWISTED if self.line else 0.0
        if self.depth > 1:
            each += APART * axis_cycles(self.depth, lanes, l1, size)
        return each * self.points / lanes


@lru_cache(maxsize=4096)
def axis_cycles(n: int, lanes: int, l1: int, size: int) -> float:
    """Of a transform of n complex vectors, for each."""
    cycles = sum(CYCLES[radix] for radix in cooley_tukey.factors(n) or ())
    return cycles if n * 2 * lanes * size <= l1 * 3 // 4 else 1.6 * cycles


@lru_cache(maxsize=16)
def lengths(lanes: int) -> tuple[int, ...]:
    """Lengths of rows and columns: multiples of the lanes that have butterflies."""
    unit = max(4, lanes)
    found = range(unit, MAX_LENGTH + 1, unit)
    return tuple(n for n in found if cooley_tukey.factors(n) is not None)


@lru_cache(maxsize=16)
def lines(lanes: int, l1: int, size: int) -> tuple[Shape, ...]:
    """The cheapest matrix for each number of samples, none dearer than one of more samples."""
    found: dict[int, tuple[float, Shape]] = {}
    cost = {n: axis_cycles(n, lanes, l1, size) for n in lengths(lanes)}
    for rows, down in cost.items():
        for cols, across in cost.items():
            if cols <= 2 * rows and rows <= 2 * cols:
                points, cycles = rows * cols, rows * cols * (down + across)
                if points not in found or cycles < found[points][0]:
                    found[points] = cycles, Shape(rows, cols, True)
    kept: list[Shape] = []
    least = float("inf")
    for points in sorted(found, reverse=True):
        cycles, shape = found[points]
        if cycles < least:
            least = cycles
            kept.append(shape)
    return tuple(kept[::-1])


# -------------------------------------------------------------------- tiles and tasks


@dataclass(frozen=True, slots=True)
class Signal:
    """A problem as the transforms see it.

    Attributes
    ----------
    p : Problem
        Its dtype that of the real and imaginary parts.
    parts : int
        Numbers of a sample: 1 of real data, 2 of complex.
    """

    p: Problem
    parts: int

    @classmethod
    def of(cls, spec: ConvSpec) -> Signal:
        real = REAL_OF.get(spec.dtype)
        p = Problem.of(spec)
        return cls(p, 1) if real is None else cls(replace(p, dtype=real), 2)

    @property
    def per_tile(self) -> int:
        """Tiles of data that one complex tile holds."""
        return 2 // self.parts

    @property
    def is_line(self) -> bool:
        """Whether there is one axis."""
        p = self.p
        return all(p.size[a] == p.out[a] == p.kernel[a] == 1 for a in (0, 1))

    @property
    def extents(self) -> Axes:
        a, b, c = (extent(k, d) for k, d in zip(self.p.kernel, self.p.dilation, strict=True))
        return a, b, c


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles, and what a task does; ``cycles`` is the model's for all tasks together.

    Attributes
    ----------
    shape : Shape
    outputs, counts : tuple of int
        Outputs of a tile, and tiles of an image: deep, down and across.
    units : int
        Tiles of all images.
    panel_rows, panels : int
        Output channels of a panel, panels of a group.
    task_pairs, task_panels, tasks : int
        Complex tiles of a task, its panels, and how many tasks there are.
    cycles, makespan : float
    products : float
        Share of the cycles that multiplies spectra, the rest transforms.
    """

    shape: Shape
    lanes: int
    size: int
    outputs: Axes
    counts: Axes
    units: int
    panel_rows: int
    panels: int
    task_pairs: int
    task_panels: int
    tasks: int
    cycles: float
    makespan: float
    products: float

    @property
    def pitch(self) -> int:
        """Bytes from row to row: an odd number of cache lines, so that columns spread over L1."""
        return _odd_lines(self.shape.cols * 2 * self.size)

    @property
    def plane_bytes(self) -> int:
        """From matrix to matrix of a tile, likewise odd."""
        return _odd_lines(self.shape.rows * self.pitch)

    @property
    def line_bytes(self) -> int:
        """Of a transposed line of columns."""
        return _odd_lines(self.shape.cols * 2 * self.lanes * self.size)

    @property
    def tile_bytes(self) -> int:
        return aligned(self.shape.depth * self.plane_bytes)

    def slot(self, cg: int, kg: int) -> dict[str, int]:
        """A thread's part of the workspace, in bytes from its start.

        Tiles of all channels, then a line of each, then the lines of a panel's sums and the tiles
        of the results, which are those of the data where there is one channel of each.
        """
        tile = self.tile_bytes
        single = cg == 1 and kg == 1
        spectra = self.task_pairs * cg * tile
        sums = spectra + (1 if single else self.task_pairs * cg) * self.line_bytes
        if single:
            return {"at_spectra": spectra, "at_line_sums": 0, "at_results": 0, "slot_bytes": sums}
        results = sums + self.task_pairs * self.panel_rows * self.line_bytes
        kept = self.task_pairs * self.task_panels * self.panel_rows
        return {
            "at_spectra": spectra,
            "at_line_sums": sums,
            "at_results": results,
            "slot_bytes": results + kept * tile,
        }

    def spectra_shape(self, p: Problem) -> tuple[int, ...]:
        """(groups, panels, blocks of rows, columns, channels, rows of a panel, parts, lanes)."""
        blocks = self.shape.depth * self.shape.rows // self.lanes
        return (
            p.groups, self.panels, blocks, self.shape.cols, p.cg, self.panel_rows, 2, self.lanes,
        )  # fmt: skip


def _odd_lines(length: int) -> int:
    lines = -(-length // 64)
    return (lines + 1 - lines % 2) * 64


@lru_cache(maxsize=1)
def _machine_cores() -> int:
    """Processors to keep busy, whatever the threads in force: results depend on the tiles."""
    return min(os.cpu_count() or 1, MOST_CORES)


@lru_cache(maxsize=1024)
def tiling(s: Signal, isa: str, cores: int, pairs: int = 0) -> Tiling | None:
    """The tiles whose modelled time on this machine is least, in tasks for ``cores`` threads.

    None if a tile would be too large.
    """
    caches = problem.caches()
    lanes = targets.tiles(isa, s.p.dtype)[0].vl
    best: Tiling | None = None
    for shape in _shapes(s, lanes, caches["l1"]):
        found = _tiling_of(s, shape, isa, _machine_cores(), caches)
        if best is None or found.makespan < best.makespan:
            best = found
    if best is None or (pairs == 0 and cores == _machine_cores()):
        return best
    return _tiling_of(s, best.shape, isa, cores, caches, pairs)


def _shapes(s: Signal, lanes: int, l1: int) -> list[Shape]:
    """Tiles to try: up to the whole result, for lines; some lengths an axis for others."""
    p, (deep, high, wide) = s.p, s.extents
    if s.is_line:
        found = [shape for shape in lines(lanes, l1, p.bytes) if shape.points >= wide]
        whole = p.out[2] + wide - 1
        enough = next((i for i, f in enumerate(found) if f.points >= whole), len(found) - 1)
        return [f for f in found[:enough] if f.points > 1.1 * wide] + found[enough : enough + 1]
    flat = p.size[0] == p.out[0] == p.kernel[0] == 1
    most = MOST_LENGTHS[2 if flat else 3]
    # The depth's transforms run between the matrices, whose lanes are columns: any length does.
    depths = [1] if flat else _axis_lengths(deep, p.out[0], lengths(1), most)
    rows, cols = (
        _axis_lengths(e, n, lengths(lanes), most) for e, n in ((high, p.out[1]), (wide, p.out[2]))
    )
    return [Shape(r, c, False, d) for d in depths for r in rows for c in cols]


def _axis_lengths(taps: int, outputs: int, offered: tuple[int, ...], most: int) -> list[int]:
    """Lengths that give an output, each the least for its number of tiles, some ``most``."""
    found: dict[int, int] = {}
    for n in offered:
        if n >= taps:
            found.setdefault(-(-outputs // (n - taps + 1)), n)
    kept = list(found.values())
    return kept if len(kept) <= most else kept[:: -(-len(kept) // most)] + kept[-1:]


def _tiling_of(
    s: Signal, shape: Shape, isa: str, cores: int, caches: dict[str, int], given: int = 0
) -> Tiling:
    """The tasks of least modelled time for a shape of tiles, of ``given`` pairs if not 0."""
    p, (deep, high, wide) = s.p, s.extents
    lanes = targets.tiles(isa, p.dtype)[0].vl
    shared, memory = targets.streams(isa)
    if shape.line:
        outputs = (1, 1, min(shape.points - wide + 1, p.out[2]))
    else:
        outputs = (
            min(shape.depth - deep + 1, p.out[0]),
            min(shape.rows - high + 1, p.out[1]),
            min(shape.cols - wide + 1, p.out[2]),
        )
    a, b, c = (-(-n // v) for n, v in zip(p.out, outputs, strict=True))
    counts = (a, b, c)
    units = p.batch * prod(counts)
    pairs = -(-units // s.per_tile)
    single = p.cg == p.kg == 1
    panel_rows = 1 if p.kg == 1 else PANEL_ROWS
    panels = -(-p.kg // panel_rows)
    vectors = shape.points / lanes
    tile_bytes = shape.points * 2 * p.bytes
    one = shape.transform_cycles(lanes, caches["l1"], p.bytes) + MOVE * vectors
    weights = panels * panel_rows * p.cg * tile_bytes
    results = p.groups * p.kg * p.batch * p.pixels * p.bytes
    best: Tiling | None = None
    for task_pairs in (1,) if single else PAIRS if given == 0 else (given,):
        if task_pairs != given and task_pairs > 1 and task_pairs >= 2 * pairs:
            break
        blocks = -(-pairs // task_pairs)
        few = p.groups * blocks < 4 * cores
        for task_panels in targets.splits(panels, panels if few else 1):
            parts = -(-panels // task_panels)
            outs = min(p.kg, task_panels * panel_rows)
            held = task_pairs * (p.cg + (0 if single else outs)) * tile_bytes
            tables = outs * p.cg * tile_bytes + (tile_bytes if shape.line else 0)
            missing = 1.1 if held + tables > caches["l2"] * 7 // 8 else 1.0
            # Tiles that L2 does not hold go out and come back, with those of the other threads and
            # the kernels' spectra.
            room = caches["l3"] // (2 if shape.depth == 1 else 4)
            crowded = weights + cores * held + results > room
            away = 0.0
            if held > caches["l2"]:
                away = 2 * held / (memory if crowded else shared)
            product = p.cg * outs * PRODUCT * vectors * task_pairs
            # Spectra that no cache holds come from further away for every task.
            rate = 64.0 if weights <= caches["l2"] // 2 else min(SPECTRA, shared)
            if weights > caches["l2"] // 2 and crowded:
                # One stream alone is seen coming; others are in its way.
                rate = min(SPECTRA, memory if held > caches["l2"] else 1.5 * memory)
            stream = outs * p.cg * tile_bytes / rate
            product = max(product, stream) + EXPOSED * min(product, stream)
            cycles = task_pairs * (p.cg + outs) * one * missing + away + product + TASK
            tasks = p.groups * blocks * parts
            makespan = targets.makespan(tasks, tasks * cycles, cycles, cores)
            if best is None or makespan < best.makespan:
                best = Tiling(
                    shape, lanes, p.bytes, outputs, counts, units, panel_rows, panels,
                    task_pairs, task_panels, tasks, cycles * tasks, makespan, product / cycles,
                )  # fmt: skip
    assert best is not None
    return best

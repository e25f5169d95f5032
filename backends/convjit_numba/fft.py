"""Convolution by fast Fourier transforms: overlap-save in tiles that stay in cache.

The method is that of :mod:`convjit.algorithms.fft`; :mod:`convjit_numba.fftkernel` says how a tile
is transformed.  This file chooses the tiles: lengths are products of few butterflies, a line's tile
is a matrix of them, and the best has the least modelled time, all threads being busy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np

from convjit.algorithms import cooley_tukey
from convjit.algorithms.geometry import extent
from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics, numpy_dtype
from convjit.spec import ConvSpec
from convjit.spi import (
    DEFAULT_CONFIG,
    Array,
    Config,
    Executable,
    Feature,
    Phase,
    Refusal,
    Target,
    Work,
    num_threads,
)
from convjit_numba import cache, problem, targets, threads
from convjit_numba.problem import PanelExecutable, Problem, address

MAX_LENGTH = 2048  # of the transforms of columns and of rows

# Cycles that a butterfly takes for each of its complex vectors, operands in L1.
CYCLES = {3: 3.1, 4: 3.0, 5: 4.8, 6: 4.8, 8: 4.0}
MOVE = 2.8  # of a complex vector into a tile or out of it
TURN = 4.0  # of a complex vector in a transpose
TWISTED = 4.0  # of a complex vector between the columns and the rows of a line
PRODUCT = 4.0  # of a product of complex vectors
TASK = 400.0
MOST_CORES = 16  # for which tiles are made small enough

# Of products with many channels: output channels of a panel, pairs of tiles of a task.
PANEL_ROWS = 2
PAIRS = (1, 2, 4, 8)


# -------------------------------------------------------------------- lengths


@dataclass(frozen=True, slots=True)
class Shape:
    """A tile: a matrix of samples, one line of them if ``line``."""

    rows: int
    cols: int
    line: bool

    @property
    def points(self) -> int:
        return self.rows * self.cols

    def transform_cycles(self, lanes: int, l1: int, size: int) -> float:
        """Of one transform of all columns, a transpose, and the transform of all rows."""
        each = TURN + sum(axis_cycles(n, lanes, l1, size) for n in (self.rows, self.cols))
        each += TWISTED if self.line else 0.0
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
class Tiling:
    """Tiles, and what a task does; ``cycles`` is the model's for all tasks together.

    Attributes
    ----------
    shape : Shape
    outputs, counts : tuple of int
        Outputs of a tile, and tiles of an image, down and across.
    units : int
        Tiles of all images.
    panel_rows, panels : int
        Output channels of a panel, panels of a group.
    task_pairs, task_panels, tasks : int
    cycles, makespan : float
    """

    shape: Shape
    lanes: int
    size: int
    outputs: tuple[int, int]
    counts: tuple[int, int]
    units: int
    panel_rows: int
    panels: int
    task_pairs: int
    task_panels: int
    tasks: int
    cycles: float
    makespan: float

    @property
    def pitch(self) -> int:
        """Bytes from row to row: an odd number of cache lines, so that columns spread over L1."""
        return _odd_lines(self.shape.cols * 2 * self.size)

    @property
    def line_bytes(self) -> int:
        """Of a transposed line of columns."""
        return _odd_lines(self.shape.cols * 2 * self.lanes * self.size)

    def slot(self, cg: int, kg: int) -> dict[str, int]:
        """A thread's part of the workspace, in bytes from its start.

        Tiles of all channels, then a line of each, then the lines of a panel's sums and the tiles
        of the results, which are those of the data where there is one channel of each.
        """
        tile = aligned(self.shape.rows * self.pitch)
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
        blocks = self.shape.rows // self.lanes
        return (
            p.groups, self.panels, blocks, self.shape.cols, p.cg, self.panel_rows, 2, self.lanes,
        )  # fmt: skip


def _odd_lines(length: int) -> int:
    lines = -(-length // 64)
    return (lines + 1 - lines % 2) * 64


def is_line(p: Problem) -> bool:
    """Whether the problem has one axis."""
    return p.size[1] == p.out[1] == p.kernel[1] == 1


def _extents(p: Problem) -> tuple[int, int]:
    return extent(p.kernel[1], p.dilation[1]), extent(p.kernel[2], p.dilation[2])


@lru_cache(maxsize=1)
def _machine_cores() -> int:
    """Processors to keep busy, whatever the threads in force: results depend on the tiles."""
    return min(os.cpu_count() or 1, MOST_CORES)


@lru_cache(maxsize=1024)
def tiling(p: Problem, isa: str, cores: int, pairs: int = 0) -> Tiling | None:
    """The tiles whose modelled time on this machine is least, in tasks for ``cores`` threads.

    None if a tile would be too large.
    """
    caches = problem._caches()
    lanes = targets.tiles(isa, p.dtype)[0].vl
    best: Tiling | None = None
    for shape in _shapes(p, lanes, caches["l1"]):
        found = _tiling_of(p, shape, lanes, _machine_cores(), caches)
        if best is None or found.makespan < best.makespan:
            best = found
    if best is None or (pairs == 0 and cores == _machine_cores()):
        return best
    return _tiling_of(p, best.shape, lanes, cores, caches, pairs)


def _shapes(p: Problem, lanes: int, l1: int) -> list[Shape]:
    """Tiles to try: up to the whole result, for lines; some 14 lengths an axis for images."""
    high, wide = _extents(p)
    if is_line(p):
        found = [s for s in lines(lanes, l1, p.bytes) if s.points >= wide]
        whole = p.out[2] + wide - 1
        enough = next((i for i, s in enumerate(found) if s.points >= whole), len(found) - 1)
        return [s for s in found[:enough] if s.points > 1.1 * wide] + found[enough : enough + 1]
    axes = [_axis_lengths(e, n, lanes) for e, n in ((high, p.out[1]), (wide, p.out[2]))]
    return [Shape(rows, cols, False) for rows in axes[0] for cols in axes[1]]


def _axis_lengths(taps: int, outputs: int, lanes: int) -> list[int]:
    """Lengths that give an output, each the least for its number of tiles, at most 14 of them."""
    found: dict[int, int] = {}
    for n in lengths(lanes):
        if n >= taps:
            found.setdefault(-(-outputs // (n - taps + 1)), n)
    kept = list(found.values())
    return kept if len(kept) <= 14 else kept[:: -(-len(kept) // 14)] + kept[-1:]


def _tiling_of(
    p: Problem, shape: Shape, lanes: int, cores: int, caches: dict[str, int], given: int = 0
) -> Tiling:
    """The tasks of least modelled time for a shape of tiles, of ``given`` pairs if not 0."""
    high, wide = _extents(p)
    if shape.line:
        outputs = (1, min(shape.points - wide + 1, p.out[2]))
    else:
        outputs = (min(shape.rows - high + 1, p.out[1]), min(shape.cols - wide + 1, p.out[2]))
    counts = (-(-p.out[1] // outputs[0]), -(-p.out[2] // outputs[1]))
    units = p.batch * prod(counts)
    pairs = -(-units // 2)
    single = p.cg == p.kg == 1
    panel_rows = 1 if p.kg == 1 else PANEL_ROWS
    panels = -(-p.kg // panel_rows)
    vectors = shape.points / lanes
    tile_bytes = shape.points * 2 * p.bytes
    one = shape.transform_cycles(lanes, caches["l1"], p.bytes) + MOVE * vectors
    weights = panels * panel_rows * p.cg * tile_bytes
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
            if held > caches["l2"]:
                missing = 1.25
            if held > caches["l3"] // (2 * cores):
                missing = 2.0
            product = p.cg * outs * PRODUCT * vectors * task_pairs
            # Spectra that no cache holds come from further away for every task.
            rate = 64.0 if weights <= caches["l2"] // 2 else 12.0
            if weights > caches["l3"] // 2:
                rate = 8.0
            product = max(product, outs * p.cg * tile_bytes / rate)
            cycles = task_pairs * (p.cg + outs) * one * missing + product + TASK
            tasks = p.groups * blocks * parts
            makespan = cycles * -(-tasks // cores)
            if best is None or makespan < best.makespan:
                best = Tiling(
                    shape, lanes, p.bytes, outputs, counts, units, panel_rows, panels,
                    task_pairs, task_panels, tasks, cycles * tasks, makespan,
                )  # fmt: skip
    assert best is not None
    return best


# -------------------------------------------------------------------- tables


@lru_cache(maxsize=64)
def _stage_table(n: int, dtype: str) -> tuple[np.ndarray[Any, Any], ...]:
    """A transform's stages as the kernels read them, and what they refer to."""
    radices = cooley_tukey.factors(n)
    assert radices is not None
    kind = numpy_dtype(dtype)
    table, factors = [], []
    for s in cooley_tukey.stages(radices):
        factors.append(_parts(cooley_tukey.twiddles(s), kind))
        table.append((*s, address(factors[-1])))
    return np.array(table, np.int64), *factors


@lru_cache(maxsize=16)
def _twist(rows: int, cols: int, lanes: int, dtype: str) -> np.ndarray[Any, Any]:
    """The factors between the columns and the rows of a line, laid out like a tile."""
    radices = cooley_tukey.factors(rows)
    assert radices is not None
    order = cooley_tukey.frequencies(radices)
    factors = cooley_tukey.roots(order[:, None] * np.arange(cols), rows * cols)
    blocks = factors.reshape(rows, cols // lanes, lanes)
    return np.stack((blocks.real, blocks.imag), 2).astype(dtype)


def _parts(values: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    return np.stack((values.real, values.imag), -1).astype(kind)


# -------------------------------------------------------------------- the solver


class Fft:
    """Overlap-save, one or two axes; any padding, dilation and groups; stride 1."""

    id = "numba.fft"
    algorithm = "fft"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        refusal = problem.refuse(spec)
        if refusal is not None:
            return refusal
        if prod(spec.kernel_size) == 1:
            return Refusal(Feature.SIZE, "a kernel of one tap gains nothing from a transform")
        if set(spec.stride) != {1}:
            return Refusal(Feature.STRIDE, "transforms give neighbouring outputs: stride 1")
        p = Problem.of(spec)
        if p.size[0] != 1 or p.out[0] != 1 or p.kernel[0] != 1:
            return Refusal(Feature.NDIM, "transforms one or two axes, not three")
        t = tiling(p, problem.isa_of(target), target.cores)
        if t is None:
            return Refusal(Feature.SIZE, f"the kernel spans more than {MAX_LENGTH} samples an axis")
        return None

    def _tiling(self, spec: ConvSpec, target: Target, config: Config = ()) -> Tiling:
        pairs = dict(config).get("pairs", 0)
        found = tiling(Problem.of(spec), problem.isa_of(target), target.cores, pairs)
        assert found is not None
        return found

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p, isa = Problem.of(spec), problem.isa_of(target)
        t = self._tiling(spec, target)
        slots = min(target.cores, t.tasks)
        wakes = problem.wakes_helpers(target, p, isa, t.cycles, slots)
        # The model's cycles as the multiply-adds that fit into them, threads without work included.
        flops = 4.0 * t.lanes * (t.makespan * target.cores if wakes else t.cycles)
        shape = t.shape
        packed = prod(t.spectra_shape(p)) * p.bytes
        one = shape.transform_cycles(t.lanes, problem._caches()["l1"], p.bytes)
        pack = 4.0 * t.lanes * one * p.groups * p.kg * p.cg
        rate = f"numba.fft.{p.dtype}"
        return Work(
            (Phase("fft", flops, rate, p.traffic),),
            Numerics(
                "fft",
                (shape.points,) if shape.line else (shape.rows, shape.cols),
                spreads_nonfinite=True,
            ),
            Phase("pack", pack, rate, {"memory": float(packed)}),
            launches=int(wakes),
            workspace=slots * t.slot(p.cg, p.kg)["slot_bytes"],
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        yield DEFAULT_CONFIG
        p = Problem.of(spec)
        if p.cg > 1 or p.kg > 1:
            units = self._tiling(spec, target).units
            yield from ((("pairs", n),) for n in PAIRS if n == 1 or n < units)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p, isa = Problem.of(spec), problem.isa_of(target)
        t = self._tiling(spec, target, config)
        bits = targets.BITS[p.dtype]
        name = f"{targets.SHORT[p.dtype]}.{t.lanes}"
        kernel = cache.function(f"fft.{name}", 7, partial(_build, bits, t.lanes))
        rows, cols = t.shape.rows, t.shape.cols
        column_table, row_table = _stage_table(rows, p.dtype), _stage_table(cols, p.dtype)
        keep = (*column_table, *row_table)
        twist = 0
        if t.shape.line:
            keep = (*keep, _twist(rows, cols, t.lanes, p.dtype))
            twist = address(keep[-1])
        slots = min(target.cores, t.tasks)
        seconds = t.cycles / problem.cycles_per_second(target, p.dtype, isa)
        fields = t.slot(p.cg, p.kg)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(spec)
            | fields
            | {
                "tasks": t.tasks,
                "grain": targets.grain(t.tasks, slots, seconds),
                "panels": t.panels,
                "panel_rows": t.panel_rows,
                "task_panels": t.task_panels,
                "task_splits": -(-t.panels // t.task_panels),
                "rows": rows,
                "cols": cols,
                "pitch": t.pitch,
                "line_bytes": t.line_bytes,
                "hblocks": t.counts[0],
                "wblocks": t.counts[1],
                "line": int(t.shape.line),
                "tile_h": t.outputs[0],
                "tile_w": t.outputs[1],
                "units": t.units,
                "task_pairs": t.task_pairs,
                "pair_blocks": -(-t.units // (2 * t.task_pairs)),
                "column_stages": address(column_table[0]),
                "column_count": len(column_table[0]),
                "row_stages": address(row_table[0]),
                "row_count": len(row_table[0]),
                "twist": twist,
            }
        )
        packer = _Packer(p, t, geometry, seconds / max(1, t.units * (p.cg + p.kg)))
        return PanelExecutable(
            kernel, packer, geometry, keep,
            slots=slots, slot_bytes=fields["slot_bytes"], seconds=seconds,
        )  # fmt: skip


def _build(bits: int, lanes: int) -> Callable[..., None]:
    from convjit_numba.fftkernel import build

    return build(bits, lanes)


def _build_pack(bits: int, lanes: int) -> Callable[..., None]:
    from convjit_numba.fftkernel import build_pack

    return build_pack(bits, lanes)


class _Packer:
    """Weights to spectra, divided by the number of points."""

    __slots__ = (
        "_bytes",
        "_count",
        "_geometry",
        "_kernel",
        "_kind",
        "_scale",
        "_seconds",
        "_shape",
    )

    def __init__(
        self, p: Problem, t: Tiling, geometry: np.ndarray[Any, Any], seconds: float
    ) -> None:
        name = f"{targets.SHORT[p.dtype]}.{t.lanes}"
        build = partial(_build_pack, targets.BITS[p.dtype], t.lanes)
        self._kernel = cache.function(f"fftpack.{name}", 7, build)
        self._geometry = geometry
        self._kind = numpy_dtype(p.dtype)
        self._shape = t.spectra_shape(p)
        self._bytes = t.line_bytes + aligned(t.shape.rows * t.pitch)
        self._scale = np.array([1.0 / t.shape.points], self._kind)
        self._count = p.groups * p.kg * p.cg
        self._seconds = seconds * self._count

    def __call__(self, weights: Array) -> Array:
        whole = self._count == prod(self._shape[:2]) * self._shape[4] * self._shape[5]
        packed = (np.empty if whole else np.zeros)(self._shape, self._kind)
        count = min(num_threads(), self._count)
        scratch = np.empty(count * self._bytes + 64, np.uint8)
        start = address(scratch)
        threads.run(
            self._kernel,
            (
                address(self._geometry), address(weights), address(packed), address(self._scale),
                start + -start % 64, self._bytes,
            ),
            count,
            self._seconds,
        )  # fmt: skip
        return packed

"""Winograd convolution F(m, r), fused: transform, multiply and transform back a block of tiles.

A task owns a block of tiles and a range of panels of output channels.  It transforms the block's
data once, lanes being channels, then takes one panel after another: a matrix product for each of
the tile's points (rows are tiles, lanes are output channels), and the output transform while the
products are still in cache (A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016, section 4.1; the order of the loops follows Z. Jia, A. Zlateski, F. Durand and
K. Li, "Optimizing N-dimensional, Winograd-based Convolution for Manycore CPUs", PPoPP 2018, section
4.3).  Channels-last images are transformed as they lie; channels-first rows are transposed into
vectors of channels on their way in and back on their way out, so that both layouts share the code.

1-D to 3-D: an axis with one tap is not transformed, the others each have their F(m, r).

Along a dilated axis every d-th sample meets every d-th other one only, so that the outputs of a
tile are d samples apart, as are those it reads: d problems without dilation, which alternate.
Their tiles alternate, too; transposed rows serve all tiles of a ``unit``, whose first samples are
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Any

import numpy as np

from convjit.algorithms import winograd
from convjit.algorithms.policies import AMPLIFICATION_LIMIT
from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics, numpy_dtype
from convjit.spec import ConvSpec
from convjit.spi import (
    Array,
    Config,
    Executable,
    Feature,
    Phase,
    Refusal,
    Target,
    Work,
    empty,
    num_threads,
)
from convjit_numba import cache, problem, targets, threads
from convjit_numba.executable import PanelExecutable, address
from convjit_numba.problem import Axes, Problem
from convjit_numba.targets import Tile

# -------------------------------------------------------------------- blocking

# Kinds of transforms, as in convjit_numba.winogradcode (which imports numba).
KINDS = {"data": 0, "output": 1, "taps": 2}

EXPOSED = 0.25  # part of the shorter of computing and streaming that the longer one does not hide

PACKED = 2.5  # how often a byte of transformed weights moves until it is packed
MOST_OUTPUTS = 6  # of a tile along an axis
NOMINAL_CORES = 2  # for which tiles are chosen


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops, see :mod:`convjit_numba.winogradkernel`.

    Attributes
    ----------
    tile : Tile
        Register tile of the products.
    m, r : tuple of int
        Outputs and taps of a tile per axis; m is 1 where r is.
    counts : tuple of int
        Tiles of an image per axis.
    unit : int
        Tiles along the last axis that a transposed row serves: its dilation, or a part of that.
    run : int
        Tiles side by side that a task takes together.
    task_tiles, task_panels : int
        Of one task.
    tasks : int
    cycles, makespan : float
        The model's, for all tasks together, and until the last thread is done.
    products : float
        Share of them that multiplies, the rest transforms.
    """

    tile: Tile
    m: Axes
    r: Axes
    counts: Axes
    unit: int
    run: int
    task_tiles: int
    task_panels: int
    tasks: int
    cycles: float
    makespan: float
    products: float

    @property
    def n(self) -> Axes:
        d, h, w = (m + r - 1 for m, r in zip(self.m, self.r, strict=True))
        return d, h, w

    @property
    def points(self) -> int:
        return prod(self.n)


@lru_cache(maxsize=1024)
def best_tile(p: Problem, channels_last: bool, isa: str) -> Axes:
    """Outputs of a tile per axis for a problem, whatever threads and configuration are in force.

    Results depend on the tile by rounding errors, and must not depend on those.
    """
    found = [blocking(p, m, channels_last, isa, NOMINAL_CORES) for m in tiles_that_suit(p, isa)]
    return min(found, key=lambda b: b.makespan).m


def _operations(kind: int, m: Axes, r: Axes) -> float:
    """Vector operations of a transform of all axes on one tile."""

    def along(axis: int) -> tuple[int, int, int]:
        t = winograd.transforms(m[axis], r[axis])
        code = (t.data_program, t.output_program, t.taps_program)[kind]()
        return len(code.ops), code.inputs, len(code.outputs)

    (d, d_in, d_out), (h, h_in, h_out), (w, w_in, _) = map(along, range(3))
    if kind == 1:  # the depth first
        return d * h_in * w_in + d_out * (h * w_in + h_out * w)
    return d_in * (h * w_in + h_out * w) + d * h_out * along(2)[2]


def tile_of(kernel: Axes, m: int) -> Axes:
    """Outputs of a tile per axis: 1 where there is one tap, and of three axes 2 on the first.

    F(4, 3) on three axes would amplify rounding errors 135 times for a quarter fewer products.
    """
    d, h, w = (m if r > 1 else 1 for r in kernel)
    return (2 if min(d, h, w) > 2 else d), h, w


def tiles_that_suit(p: Problem, isa: str) -> list[Axes]:
    """The few most promising numbers of outputs of a tile per axis for a problem.

    An image of 13 rows is covered by three tiles of 5 as well as by four of 4, one of 7 by two of 4
    on one axis; how much a larger tile saves in products it may lose in weights, which grow with
    its points.  Offered are sizes that no smaller one covers the image as often as, together within
    the amplification that ``precision="default"`` admits.
    """
    lanes = targets.row_tiles(isa, p.dtype)[0].vl
    axes = []
    for r, out, dilation in zip(p.kernel, p.out, p.dilation, strict=True):
        least = {tiles_along(out, m, dilation): m for m in range(MOST_OUTPUTS, 1, -1)}
        axes.append(list(least.values()) if r > 1 else [1])
    costs: dict[Axes, float] = {}
    for d, h, w in product(*axes):
        m = d, h, w
        amplified = prod(
            winograd.amplification(size, r) for size, r in zip(m, p.kernel, strict=True) if r > 1
        )
        if amplified > AMPLIFICATION_LIMIT:
            continue
        points = prod(size + r - 1 for size, r in zip(m, p.kernel, strict=True))
        tiles = p.batch * prod(map(tiles_along, p.out, m, p.dilation))
        products = p.groups * tiles * points * p.cg * p.kg / (2 * lanes)
        weights = p.groups * points * p.cg * p.kg * p.bytes
        streamed = weights / problem.stream(weights, isa)
        # Some six vector operations and moves a point for each of the two transforms.
        transforms = p.groups * tiles * points * (-(-p.cg // lanes) + -(-p.kg // lanes)) * 3.5
        costs[m] = _overlapped(products, streamed) + transforms
    return sorted(costs, key=costs.__getitem__)[:3] or [tile_of(p.kernel, 2)]


def tiles_along(out: int, m: int, dilation: int) -> int:
    """Tiles of ``m`` outputs that cover an axis, as many for each of the samples that alternate."""
    return dilation * -(-out // (dilation * m))


MOST_UNIT, LEAST_UNIT = 64, 16


@lru_cache(maxsize=256)
def unit_of(dilation: int) -> int:
    """Tiles that a transposed row serves: all that alternate, or an even part of many."""
    parts = range(MOST_UNIT, LEAST_UNIT - 1, -1)
    return next((n for n in parts if dilation > n and dilation % n == 0), dilation)


def _overlapped(computing: float, streaming: float) -> float:
    """Cycles of computing while weights for later come in."""
    return max(computing, streaming) + EXPOSED * min(computing, streaming)


@lru_cache(maxsize=1024)
def blocking(
    p: Problem, outputs: Axes, channels_last: bool, isa: str, cores: int, config: Config = ()
) -> Blocking:
    """The blocking of least modelled time on ``cores`` threads, for a tile's outputs."""
    caches = problem.caches()
    md, mh, mw = outputs
    deep, high, wide = map(tiles_along, p.out, outputs, p.dilation)
    counts = deep, high, wide
    unit = 1 if channels_last else unit_of(p.dilation[2])
    most = unit if not channels_last and unit < p.dilation[2] else counts[2]
    n = tuple(size + r - 1 for size, r in zip(outputs, p.kernel, strict=True))
    points, (nd, nh, nw) = prod(n), n
    tiles = p.batch * prod(counts)
    lanes = targets.row_tiles(isa, p.dtype)[0].vl
    in_blocks, out_blocks = -(-p.cg // lanes), -(-p.kg // lanes)
    # Two vector operations a cycle; points are lines that go to, or come from, the second level.
    data = 0.6 * _operations(0, outputs, p.kernel) + 2.0 * points
    result = 0.6 * _operations(1, outputs, p.kernel) + 1.5 * points
    if channels_last:
        border = 1 - prod(max(0, c - 2) for c in counts[-2:]) / prod(counts[-2:])
        data += border * points
    else:  # squares of lanes x lanes: some five cycles a vector
        span = ((most // unit - 1) * mw + nw) * unit
        alone = (span, min(p.out[2], most * mw)) if unit == p.dilation[2] else (unit, unit)
        data += 5 * nd * nh * span / most * _whole(alone[0], lanes)
        result += 6 * md * mh * mw * _whole(alone[1], lanes)
    weights = p.groups * points * p.cg * p.kg * p.bytes
    stream, shared = problem.stream(weights, isa), targets.streams(isa)[0]
    best: Blocking | None = None
    tile = targets.tile_of(isa, p.dtype, config)
    wanted = problem.wanted_tasks(config, partial(blocking, p, outputs, channels_last, isa, cores))
    for t in targets.row_tiles(isa, p.dtype) if tile is None else (tile,):
        panels = -(-p.kg // t.nr)
        for task_units in targets.splits(tiles // unit, tiles // unit):
            task_tiles = task_units * unit
            blocks = -(-tiles // task_tiles)
            whole, rest = divmod(task_tiles, t.mr)
            step = whole * _step(t.mr, t.nv) + (_step(rest, t.nv) if rest else 0.0)
            calls = whole + (rest > 0)
            panel = points * (p.cg * step * 1.05 + 30 * calls)
            data_bytes = points * task_tiles * p.cg * p.bytes
            slot = data_bytes + points * task_tiles * t.nr * p.bytes
            if slot > problem.MAX_SLOT:
                continue
            # Points that L2 cannot hold beside a panel go to L3 and come back for every panel, and
            # nothing fetches them ahead.
            again = data_bytes / shared if slot > caches["l2"] else 0.0
            panel = _overlapped(panel, points * p.cg * t.nr * p.bytes / stream) + again
            few = p.groups * blocks < 4 * cores
            for task_panels in targets.splits(panels, panels if few else 1):
                parts = -(-panels // task_panels)
                tasks = p.groups * blocks * parts
                if not targets.is_about(tasks, wanted):
                    continue
                products = task_panels * panel
                cycles = task_tiles * in_blocks * data + products + 500
                cycles += again
                cycles += task_tiles * result * out_blocks * task_panels / panels
                makespan = targets.makespan(tasks, tasks * cycles, cycles, cores)
                if best is None or makespan < best.makespan:
                    best = Blocking(
                        t, outputs, p.kernel, counts, unit, min(task_tiles, most), task_tiles,
                        task_panels, tasks, cycles * tasks, makespan, products / cycles,
                    )  # fmt: skip
    if best is None:
        return blocking(p, outputs, channels_last, isa, cores)
    return best


def _whole(pixels: int, lanes: int) -> float:
    """Vectors transposed for a row, over those that it fills."""
    return -(-pixels // lanes) * lanes / pixels


def _step(rows: int, vectors: int) -> float:
    """Cycles of one step of a row tile: two multiply-adds, two loads, or a vector from L2."""
    return max(rows * vectors, rows + vectors, 2 * vectors) / 2


# -------------------------------------------------------------------- workspace


@dataclass(frozen=True, slots=True)
class Slot:
    """A thread's part of the workspace, in bytes from its start.

    A panel of bias and a table of row addresses come first; then the patch that a border or a
    transpose fills, what the transform of a third axis keeps, the points of the task's tiles, the
    products of one panel, and the outputs before they are transposed.
    """

    blocking: Blocking
    cg: int
    size: int

    @property
    def fields(self) -> dict[str, int]:
        b = self.blocking
        vector = b.tile.vl * self.size
        nd, nh, nw = b.n
        md, mh, mw = b.m
        row = -(-self.cg // b.tile.vl) * vector
        # An odd number of cache lines from point to point: a tile's points would otherwise fall
        # into few sets of the caches.
        point = _odd_lines(b.task_tiles * row)
        product = _odd_lines(b.task_tiles * b.tile.nr * self.size)
        parts = {
            "at_patch": nd * nh * ((b.run // b.unit - 1) * mw + nw) * b.unit * vector,
            "at_fold": nd * nh * nw * vector if nd > 1 else 0,
            "at_points": b.points * point,
            "at_products": b.points * product,
            "at_outputs": md * mh * b.run * mw * vector,
        }
        place = aligned(b.tile.nr * self.size + 8 * (1 + b.tile.mr))
        found = {"row_bytes": row, "point_bytes": point, "product_bytes": product}
        for name, length in parts.items():
            found[name] = place
            place += aligned(length)
        found["slot_bytes"] = place
        return found


def _odd_lines(length: int) -> int:
    lines = -(-length // 64)
    return (lines + 1 - lines % 2) * 64


# -------------------------------------------------------------------- the solver


class Winograd:
    """``numba.winograd.f4x3`` and the like: m outputs of up to r taps per axis.

    ``numba.winograd.fmx3`` chooses m by itself, for each axis.
    """

    algorithm = "winograd"

    def __init__(self, m: int | None, r: int) -> None:
        self.id = f"numba.winograd.f{'m' if m is None else m}x{r}"
        self._m = m
        self._r = r

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        refusal = problem.refuse(spec, channels_last=True)
        if refusal is not None:
            return refusal
        if set(spec.stride) != {1}:
            return Refusal(Feature.STRIDE, "outputs of a tile are neighbours: stride 1")
        smallest = 2 if self._r == 3 else 4
        if not smallest <= max(spec.kernel_size) <= self._r:
            taps = "x".join(map(str, spec.kernel_size))
            return Refusal(
                Feature.SIZE,
                f"F({self._m or 'm'}, {self._r}) takes {smallest} to {self._r} taps on its longest "
                f"axis, not {taps}",
            )
        p = Problem.of(spec)
        unit = 1 if spec.channels_last else unit_of(p.dilation[2])
        if p.cg * 1024 * unit * p.bytes > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the tiles of a task exceed 1 GiB")
        return None

    def _blocking(self, spec: ConvSpec, target: Target, config: Config = ()) -> Blocking:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        if self._m is not None:
            outputs = tile_of(p.kernel, self._m)
        else:
            outputs = best_tile(p, spec.channels_last, isa)
        return blocking(p, outputs, spec.channels_last, isa, target.cores, config)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = self._blocking(spec, target)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        weights = prod(_packed_shape(p, b)) * p.bytes
        # The model's cycles as the multiply-adds that fit into them, threads without work included.
        cycles = b.makespan * target.cores if wakes else b.cycles
        phases = problem.phases(
            {
                ("transforms", f"numba.winograd.transform.{p.dtype}"): 1 - b.products,
                ("products", f"numba.winograd.{p.dtype}"): b.products,
            },
            cycles * 4 * b.tile.vl,
            p.traffic,
        )
        # Results are written when a panel's products are done, with nothing to hide it: the lines
        # are read and written.
        results = 2.0 * prod(spec.result_shape) * p.bytes
        return Work(
            (*phases, Phase("results", bytes=problem.by_level(results))),
            Numerics("winograd", tile=b.m[3 - spec.ndim :], spreads_nonfinite=True),
            problem.pack_phase(p, weights, PACKED),
            launches=int(wakes),
            workspace=threads.slots_bytes(slots, Slot(b, p.cg, p.bytes).fields["slot_bytes"]),
            packed_bytes=weights,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        tiles = targets.row_tiles(problem.isa_of(target), spec.dtype)
        return problem.configs(tiles, partial(self._blocking, spec, target))

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = self._blocking(spec, target, config)
        tile, bits = b.tile, targets.BITS[p.dtype]
        last = spec.channels_last
        name = f"winograd.{targets.SHORT[p.dtype]}.{tile.vl}.{'last' if last else 'first'}"
        kernel = cache.function(name, 7, partial(_build, bits, tile.vl, last))
        md, mh, mw = b.m
        nd, nh, nw = b.n
        fields = Slot(b, p.cg, p.bytes).fields
        slots = min(target.cores, b.tasks)
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        panels = -(-p.kg // tile.nr)
        tiles = p.batch * prod(b.counts)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(spec)
            | fields
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "panels": panels,
                "task_panels": b.task_panels,
                "task_splits": -(-panels // b.task_panels),
                "md": md, "mh": mh, "mw": mw, "nd": nd, "nh": nh, "nw": nw,
                "points": b.points,
                "unit": b.unit,
                "tile_rows": tile.mr,
                "tile_columns": tile.nr,
                "data_code": _transform(p, b, "data", 7),
                "output_code": _transform(p, b, "output", 10),
                "rows_code": row_tiles(bits, tile).address,
                "tiles_d": b.counts[0],
                "tiles_h": b.counts[1],
                "tiles_w": b.counts[2],
                "tiles": tiles,
                "task_tiles": b.task_tiles,
                "tile_blocks": -(-tiles // b.task_tiles),
            }
        )  # fmt: skip
        return PanelExecutable(
            kernel, _Packer(p, b), geometry, (),
            slots=slots, slot_bytes=fields["slot_bytes"], seconds=seconds,
        )  # fmt: skip


def _transform(p: Problem, b: Blocking, kind: str, arguments: int) -> int:
    """Address of the transform of data, outputs or taps of one tile."""
    axes = "-".join(f"{m}x{r}" for m, r in zip(b.m, b.r, strict=True))
    name = f"winograd.{kind}.{targets.SHORT[p.dtype]}.{b.tile.vl}.f{axes}"
    build = partial(_build_transform, targets.BITS[p.dtype], b.tile.vl, KINDS[kind], b.m, b.r)
    return int(cache.function(name, arguments, build).address)


def row_tiles(bits: int, tile: Tile) -> Any:
    """The kernel of 1 to ``mr`` rows of a row tile, for other kernels to call."""
    return cache.function(f"winograd.rows.f{bits}.{tile}", 8, partial(_build_rows, bits, tile))


# The modules of kernels import numba, which only compiling needs.


def _build(bits: int, vl: int, channels_last: bool) -> Callable[..., None]:
    from convjit_numba.winogradkernel import build

    return build(bits, vl, channels_last)


def _build_transform(bits: int, vl: int, kind: int, m: Axes, r: Axes) -> Callable[..., None]:
    from convjit_numba.winogradkernel import build_transform

    return build_transform(bits, vl, kind, m, r)


def _build_rows(bits: int, tile: Tile) -> Callable[..., None]:
    from convjit_numba.winogradkernel import build_rows

    return build_rows(bits, *tile)


def _build_pack(bits: int, vl: int) -> Callable[..., None]:
    from convjit_numba.winogradkernel import build_pack

    return build_pack(bits, vl)


def _packed_shape(p: Problem, b: Blocking) -> tuple[int, int, int, int, int]:
    """(groups, panels, points, channels, nr)."""
    return p.groups, -(-p.kg // b.tile.nr), b.points, p.cg, b.tile.nr


class _Packer:
    """Weights to points, ``G w`` along every axis, in panels."""

    __slots__ = ("_arguments", "_bytes", "_dtype", "_kernel", "_seconds", "_shape")

    def __init__(self, p: Problem, b: Blocking) -> None:
        vl = b.tile.vl
        name = f"winograd.pack.{targets.SHORT[p.dtype]}.{vl}"
        self._kernel = cache.function(name, 14, partial(_build_pack, targets.BITS[p.dtype], vl))
        self._dtype = numpy_dtype(p.dtype)
        self._shape = _packed_shape(p, b)
        vector = vl * p.bytes
        # Transposed taps of a block of channels stay in L1.
        block = max(1, min(p.cg, (16 << 10) // (p.taps * vector)))
        fold = aligned(b.n[1] * b.n[2] * b.r[0] * vector) if b.n[0] > 1 else 0
        self._bytes = fold + aligned(block * p.taps * vector)
        self._arguments = (
            p.groups, p.kg, p.cg, block, p.taps, b.points, b.tile.nr,
            _transform(p, b, "taps", 4), fold,
        )  # fmt: skip
        self._seconds = prod(self._shape) * 0.25e-9

    def __call__(self, weights: Array) -> Array:
        packed = empty(self._shape, self._dtype)
        count = num_threads()
        scratch = np.empty(count * self._bytes, np.uint8)
        places = (address(weights), address(packed))
        arguments = (*places, *self._arguments, address(scratch), self._bytes)
        threads.run(self._kernel, arguments, count, self._seconds)
        return packed

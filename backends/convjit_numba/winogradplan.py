"""Tiles, block sizes and workspace of :mod:`convjit_numba.winograd`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from math import prod

from convjit.algorithms import winograd
from convjit.algorithms.policies import AMPLIFICATION_LIMIT
from convjit.algorithms.workspace import aligned
from convjit.spi import Config
from convjit_numba import problem, targets
from convjit_numba.problem import Axes, Problem
from convjit_numba.targets import Tile

EXPOSED = 0.25  # part of the shorter of computing and streaming that the longer one does not hide
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

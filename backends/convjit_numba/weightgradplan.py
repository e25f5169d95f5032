"""Block sizes and workspace of :mod:`convjit_numba.weight_grad`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from convjit.algorithms.workspace import aligned
from convjit_numba import gemm, problem, targets
from convjit_numba.problem import Problem
from convjit_numba.summedgrad import splits_of
from convjit_numba.targets import Tile

# Cycles of the model: a call of the row tile, a row of its table, a word written to the table, a
# number transposed, a number copied, a number that goes from the sums to the result, a task.
CALL, ROW, ENTRY, TRANSPOSE, COPY, FINISH, TASK = 40.0, 9.0, 1.2, 0.35, 0.15, 0.4, 500.0
# Pixels of a block at least, so that loading and storing the sums does not count.
BLOCK_PIXELS = 192
MERGE_VECTORS = 3  # input channels beyond which taps are not merged


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops; ``cycles`` is the model's for all tasks together.

    Attributes
    ----------
    problem : Problem
        With its planes as one line if that is the same.
    merged : bool
        Whether the lanes are all numbers that the taps of a kernel row meet.
    panels, tail : int
        Panels of lanes, and the vectors of the last one.
    end : int
        Lanes of the last vector, if half of it is enough and stored apart, else 0.
    rows, cols, images : int
        Outputs of a block.
    splits : int
        Sums of which the result is the total.
    in_place : bool
        Whether there is no slab: pixels are read where they lie.
    pitch, width : int
        Numbers from pixel to pixel of the slab, or of x, and from row to row of the sums.
    """

    problem: Problem
    last: bool
    tile: Tile
    merged: bool
    panels: int
    tail: int
    end: int
    rows: int
    cols: int
    images: int
    splits: int
    task_panels: int
    task_rows: int
    in_place: bool
    pitch: int
    width: int
    tasks: int
    cycles: float
    makespan: float

    @property
    def tap_rows(self) -> int:
        """Rows of sums of an output channel."""
        p = self.problem
        return p.kernel[0] * p.kernel[1] * (1 if self.merged else p.kernel[2])

    @property
    def chain(self) -> int:
        """Products that one of the splits sums."""
        p, pixels = self.problem, self.rows * self.cols * self.images
        units = -(-p.batch // self.images) * p.out[0] * -(-p.out[1] // self.rows)
        units *= -(-p.out[2] // self.cols)
        return -(-units // self.splits) * pixels

    @property
    def partial_bytes(self) -> int:
        """Of the sums that are added up."""
        p = self.problem
        if self.splits == 1:
            return 0
        return aligned(self.splits * p.groups * p.kg * self.tap_rows * self.width * p.bytes)


def _merges(p: Problem, lanes: int) -> bool:
    """Whether the lanes are filled better by all taps of a kernel row."""
    if p.kernel[2] == 1 or p.dilation[2] > 1 or p.cg > MERGE_VECTORS * lanes:
        return False
    return -(-p.kernel[2] * p.cg // lanes) < p.kernel[2] * -(-p.cg // lanes)


def _slab_size(p: Problem, rows: int, cols: int) -> tuple[int, int]:
    """Rows and columns of x that a block of outputs meets."""
    high = rows if p.kernel[1] == 1 else _span(p, 1, rows)
    return min(high, p.size[1]), _span(p, 2, cols)


def _span(p: Problem, axis: int, outputs: int) -> int:
    return (outputs - 1) * p.stride[axis] + (p.kernel[axis] - 1) * p.dilation[axis] + 1


def _block(p: Problem, pitch: int, budget: int) -> tuple[int, int, int]:
    """(images, rows, cols) of outputs whose slab takes about ``budget`` bytes.

    Long rows are cut; whole rows are taken as long as they fit, and whole planes of several images
    together.  The number of threads has no part in it.
    """
    _, oh, ow = p.out

    def size(rows: int, cols: int) -> int:
        high, wide = _slab_size(p, rows, cols)
        return high * wide * pitch * p.bytes

    cols = ow
    while cols > BLOCK_PIXELS and size(1, cols) > budget:
        cols = -(-cols // 2)
    cols = -(-ow // -(-ow // cols))
    rows = 1
    if cols == ow:
        fitting = [r for r in range(1, oh + 1) if size(r, ow) <= budget or r * ow <= BLOCK_PIXELS]
        rows = max(fitting, default=1)
        rows = -(-oh // -(-oh // rows))
    images = 1
    if rows == oh and cols == ow:
        plane = size(oh, ow)
        images = max(1, min(budget // plane, 4 * BLOCK_PIXELS // (oh * ow), p.batch))
        images = -(-p.batch // -(-p.batch // images))
    return images, rows, cols


@lru_cache(maxsize=1024)
def blocking(p: Problem, last: bool, isa: str, cores: int, tile: Tile | None = None) -> Blocking:
    """The blocking whose modelled time on ``cores`` threads is least.

    The order of summation depends on the tile, which is therefore the best one for one thread.
    """
    p = gemm.flatten(p)
    tiles = targets.row_tiles(isa, p.dtype) if tile is None else (tile,)
    alone = min((_with_tile(p, last, isa, 1, t) for t in tiles), key=lambda b: b.makespan)
    return alone if cores == 1 else _with_tile(p, last, isa, cores, alone.tile)


def _with_tile(p: Problem, last: bool, isa: str, cores: int, t: Tile) -> Blocking:
    budget = problem.blocks_of(p.dtype).image // 2
    merged = _merges(p, t.vl)
    lanes = p.cg * (p.kernel[2] if merged else 1)
    vectors = -(-lanes // t.vl)
    panels = -(-vectors // t.nv)
    tail = vectors - (panels - 1) * t.nv
    end = targets.stored_lanes(lanes, isa, p.dtype) % t.vl
    computed = targets.computed_vectors(tail, end, isa, p.dtype)
    taps = p.taps if not merged else p.kernel[0] * p.kernel[1]
    # Lanes beyond the last channel would be read beyond the last pixel.
    in_place = last and p.taps == 1 and p.cg % t.vl in (0, end)
    pitch = p.cg if merged else (t.nr if panels > 1 else tail * t.vl)
    images, rows, cols = _block(p, pitch, budget)
    units = -(-p.batch // images) * p.out[0] * -(-p.out[1] // rows) * -(-p.out[2] // cols)
    splits = splits_of(p, units)
    high, wide = _slab_size(p, rows, cols)
    pixels = images * rows * cols
    met = images * high * wide  # pixels of the slab
    tiles = -(-p.kg // t.mr)
    tile_rows = p.kg / tiles

    def step_of(vectors: float) -> float:
        return targets.row_tile_cycles(tile_rows, vectors, isa)

    def unit(share_k: int, share_panels: int, ends: bool) -> float:
        """Cycles of a block: share_k tiles of channels and share_panels panels."""
        last_step = step_of(computed) if ends else step_of(t.nv)
        steps = (share_panels - 1) * step_of(t.nv) + last_step
        calls = share_k * share_panels * taps
        cycles = share_k * taps * pixels * steps + calls * (CALL + ROW * images * rows)
        listed = share_k * share_panels * (1 if merged else p.kernel[2])
        cycles += listed * images * rows * (1 + tile_rows) * ENTRY
        fills = p.kernel[0] * (1 if merged else share_panels)
        if not in_place:
            cycles += fills * met * pitch * (COPY if last else TRANSPOSE)
        return cycles

    best: Blocking | None = None
    most = 1 if merged else panels
    for task_panels in targets.splits(panels, most):
        for share_k in targets.splits(tiles, tiles):
            panel_splits, row_splits = -(-panels // task_panels), -(-tiles // share_k)
            # Tasks that are alike in size: the rows are divided evenly too.
            task_rows = -(-p.kg // row_splits)
            row_splits = -(-p.kg // task_rows)
            tasks = splits * p.groups * panel_splits * row_splits
            sums = share_k * tile_rows * taps * task_panels * t.nr
            one = units / splits * unit(share_k, task_panels, panel_splits == 1)
            one += TASK + sums * (FINISH if splits == 1 else 0.1)
            longest = one * -(-units // splits) / (units / splits)
            total = one * tasks
            makespan = targets.makespan(tasks, total, longest, cores)
            width = (panels - 1) * t.nr + tail * t.vl
            if splits > 1:
                added = p.groups * p.kg * taps * width * (FINISH + 0.2 * splits)
                total += added
                makespan += added / cores
            else:
                width = min(width, task_panels * t.nr)
            if best is None or makespan < best.makespan:
                best = Blocking(
                    p, last, t, merged, panels, tail, end, rows, cols, images, splits, task_panels,
                    task_rows, in_place, p.groups * p.cg if in_place else pitch, width, tasks,
                    total, makespan,
                )  # fmt: skip
    assert best is not None
    return best


@dataclass(frozen=True, slots=True)
class Slot:
    """A thread's part of the workspace, after the sums that are added up: bytes of its regions.

    The table, the slab, and the sums of a task or of an output channel.
    """

    table: int
    slab: int
    sums: int

    @classmethod
    def of(cls, b: Blocking) -> Slot:
        p, size = b.problem, b.problem.bytes
        tiles = -(-b.task_rows // b.tile.mr)
        high, wide = _slab_size(p, b.rows, b.cols)
        # Vectors may be read and written beyond the last number of a region.
        more = b.tile.nr
        sums = (b.task_rows if b.splits == 1 else 1) * b.tap_rows * b.width
        return cls(
            max((tiles + b.task_rows) * b.rows * b.images * 8, 16 * b.splits),
            0 if b.in_place else (b.images * high * wide * b.pitch + more) * size,
            (sums + more) * size,
        )

    def places(self) -> dict[str, int]:
        """Where the regions begin, as fields of the geometry."""
        at, places = 0, {}
        for name in ("table", "slab", "sums"):
            places[f"at_{name}"] = at
            at += aligned(getattr(self, name))
        return places

    @property
    def bytes(self) -> int:
        return self.places()["at_sums"] + aligned(self.sums)

"""Block sizes and workspace of :mod:`convjit_numba.indirect`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod

from convjit.algorithms.workspace import aligned
from convjit.spi import DEFAULT_CONFIG, Config
from convjit_numba import gemm, problem, rowcuts, targets
from convjit_numba.problem import Problem
from convjit_numba.rowtables import table_words
from convjit_numba.targets import LINE, Tile

# Cycles of the model, measured on products of known size: a task; a call of the row tile, a tap of
# it and an address of that; an entry of the table, in tiles that meet the padding, and there of
# merged taps, which may lie across a border; a tap copied, and a number of it; a byte transposed to
# and from channels-last order.
TASK, CALL, TAP, ADDRESS = 500.0, 20.0, 4.0, 0.5
ENTRY, BORDER_ENTRY, MERGED_ENTRY = 0.5, 3.0, 10.0
COPY_TAP, COPY = 4.0, 0.1
TRANSPOSE, TRANSPOSE_BACK = 0.05, 0.125
BACK = 15.0  # a pixel's part of a panel that is copied to the result, its lanes being too many
# Bytes a cycle that come from L3 or memory and are not hidden by the product: pixels and results;
# weights, which are prefetched.
PIXELS, WEIGHTS = 48.0, 64.0
# A pixel whose results several threads write: each core fetches lines ahead that are another's.
CONTESTED = 50.0
# Below so many products a tap the taps of a kernel row are worth merging; below fewer, if every
# merged row has to be copied, or if several groups could share the tables of taps that are not.
MERGE, MERGE_APART = 24, 4


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops; ``cycles`` is the model's for all tasks together.

    Attributes
    ----------
    problem : Problem
        With its planes as one line if that is the same.
    tail : int
        Vectors of the last panel.
    end : int
        Lanes of the last of them, stored as far as they exist; 0 if it is stored whole.
    buffered : bool
        Whether sums go to a buffer, to be transposed or because more of them are stored than exist.
    cblock : int
        Input channels that one pass sums.
    merged : bool
        Whether the taps of a kernel row are one.
    ends : tuple of int
        Columns at which tiles end, see :mod:`convjit_numba.rowcuts`; empty for even ones.
    task_groups : int
        Groups that a task computes by the same tables.  Channels last it is 1 or all: those of a
        pixel are neighbours.
    plane_lines : int
        Lines of outputs in the unit that ``task_pixels`` divide.
    streamed : float
        Bytes of weights read from L3.
    """

    problem: Problem
    last: bool
    tile: Tile
    tail: int
    end: int
    buffered: bool
    cblock: int
    merged: bool
    ends: tuple[int, ...]
    task_groups: int
    plane_lines: int
    task_pixels: int
    task_panels: int
    tasks: int
    streamed: float
    cycles: float
    makespan: float


def _merges(p: Problem) -> bool:
    """Whether the taps of a kernel row are summed as one."""
    adjacent = p.dilation[2] == 1 and p.groups == 1
    return p.kernel[2] > 1 and p.cg <= (MERGE if adjacent else MERGE_APART)


def _entries(p: Problem, merged: bool) -> int:
    """Of a table: the taps, or the kernel's rows."""
    return p.kernel[0] * p.kernel[1] * (1 if merged else p.kernel[2])


def _listing(p: Problem, last: bool, tile: Tile, merged: bool, pixels: int) -> float:
    """Of the tables of a task, and of the task itself."""
    border = MERGED_ENTRY if merged and last else BORDER_ENTRY
    entry = ENTRY + (border - ENTRY) * (1.0 - _inside_tiles(p, tile.mr))
    return TASK + entry * pixels * _entries(p, merged)


def _panel_cycles(
    p: Problem, last: bool, tile: Tile, vectors: float, pixels: int, passes: int, merged: bool,
    buffered: bool, arriving: float, isa: str,
) -> float:  # fmt: skip
    """Of the product of a task's pixels and one panel."""
    tiles, step = _tile_cycles(p, tile, vectors, pixels, merged, isa)
    lanes = vectors * tile.vl
    others = tiles * passes * (CALL + (TAP + ADDRESS * tile.mr) * _entries(p, merged))
    others += lanes * p.bytes * p.depth / WEIGHTS
    if not last:
        others += TRANSPOSE_BACK * pixels * lanes * p.bytes
    elif buffered:
        others += BACK * pixels
    return p.depth * step + targets.lag(isa) * others + pixels * lanes * p.bytes / arriving


def _tile_cycles(
    p: Problem, tile: Tile, vectors: float, pixels: int, merged: bool, isa: str
) -> tuple[float, float]:
    """The tiles of a task's pixels, and their cycles for a product of each."""
    ends = _ends(p, tile, merged, isa)
    if ends:
        lines = pixels / p.out[2]
        step = rowcuts.line_cycles(p, tile.mr, ends, vectors, isa)
        step *= problem.inside_share(p, 0) * problem.inside_share(p, 1)
        return lines * len(rowcuts.line(p, tile.mr, ends)), lines * step
    tiles = -(-pixels // tile.mr)
    rows, more = divmod(pixels, tiles)  # as even as possible
    step = (tiles - more) * targets.row_tile_cycles(rows, vectors, isa)
    step += more * targets.row_tile_cycles(rows + 1, vectors, isa)
    return tiles, _met(p, tile.mr) * step


def _ends(p: Problem, tile: Tile, merged: bool, isa: str) -> tuple[int, ...]:
    """Columns at which tiles end; merged taps, which are met together, gain nothing by it."""
    return () if merged else rowcuts.cuts(p, tile, isa)


def _met(p: Problem, pixels: int) -> float:
    """The part of the taps that a tile sums: the others meet the padding with all its pixels.

    (Taps of a row that are merged are summed or passed over together, which is not counted apart.)
    """
    lines = 1 + (pixels - 1) / p.out[2]
    rows = problem.inside_share(p, 0) * problem.inside_share(p, 1, lines)
    return rows * problem.inside_share(p, 2, pixels)


@lru_cache(maxsize=1024)
def _inside_tiles(p: Problem, pixels: int) -> float:
    """The part of the tiles of so many pixels of a row that meet no padding."""
    return prod(_inside(p, axis, run) for axis, run in enumerate((1, 1, pixels)))


def _inside(p: Problem, axis: int, run: int) -> float:
    """The part of the runs of so many outputs of an axis that meet no padding."""
    first, last = p.outputs_of_tap(axis, 0), p.outputs_of_tap(axis, p.kernel[axis] - 1)
    return max(0, last.stop - first.start - run + 1) / p.out[axis]


def _task_cycles(
    p: Problem, last: bool, tile: Tile, tail: float, plane_lines: int, merged: bool, passes: int,
    image: int, buffered: bool, apart: float | None, isa: str, pixels: int,
) -> tuple[float, float, float]:  # fmt: skip
    """Of a group of a task: what does not depend on its panels, each panel, the last of all panels.

    Of pixels whose groups are computed apart, lines arrive for a part of theirs, and each loses the
    cycles ``apart``.
    """
    lag, arriving = targets.lag(isa), problem.arriving(p, isa, PIXELS)
    window = _window(p, last, plane_lines, pixels)
    fixed = lag * _listing(p, last, tile, merged, pixels) + window * p.cg * p.bytes / arriving
    if apart is not None:
        fixed += LINE * (window + pixels) / arriving + lag * apart * pixels
    if not last:
        slab = window * -(-p.cg // tile.vl) * tile.vl * p.bytes
        fixed += lag * TRANSPOSE * slab
        if slab > image:  # it goes beyond L2
            fixed += slab / problem.stream(slab + sum(p.traffic.values()), isa)
    if merged:
        in_place = p.dilation[2] == 1 and (not last or p.groups == 1)
        share = 1.0 - _inside(p, 2, 1) if in_place else 1.0
        fixed += lag * share * pixels * p.taps * (COPY_TAP + COPY * p.cg)
    # What a pass sums of the pixels is read from L3 once a panel where it does not stay in L2.
    miss = 1.0 if window * -(-p.cg // passes) * p.bytes <= image else 1.15
    whole, end = (
        miss
        * _panel_cycles(p, last, tile, vectors, pixels, passes, merged, buffered, arriving, isa)
        for vectors in (tile.nv, tail)
    )
    return fixed, whole, end


def _tasks(
    planes: int, blocks: int, turns: int, panels: int, task_panels: int,
    cost: tuple[float, float, float], last: tuple[float, float, float],
) -> list[float]:  # fmt: skip
    """Cycles of the tasks in their order: of a block of pixels, and of a plane's last.

    Each block takes as many ``turns`` as there are parts of the groups.
    """
    plane = []
    for fixed, whole, end in [cost] * (blocks - 1) + [last]:
        block = []
        for low in range(0, panels, task_panels):
            count = min(task_panels, panels - low)
            block.append(fixed + count * whole + (end - whole if low + count == panels else 0.0))
        plane += block * turns
    return plane * planes


def _units(
    p: Problem, last: bool, merged: bool, lanes: int, image: int
) -> Iterator[tuple[int, int, int]]:
    """Candidates for the groups of a task, the lines that its pixels divide, and the pixels."""
    lines, width = p.batch * p.out[0] * p.out[1], p.out[2]
    if last:
        # (Merged taps of several groups are copies, which do not move on with a table.)
        for groups in (1,) if p.groups == 1 or merged else (1, p.groups):
            # What the pixels of a task read should stay in L2, and what several groups write.
            reread = p.stride[1] * p.stride[2] if p.taps > 1 else 1
            each = groups * p.bytes * (p.cg * reread + (p.kg if groups > 1 else 0))
            for size in targets.splits(lines * width, lines * width, max(6 * lanes, image // each)):
                yield groups, lines, size
        return
    for size in targets.splits(p.out[1], p.out[1]):
        yield 1, p.out[1], size * width
        # Several groups list their tables once; parts of them keep all threads busy.
        for share in (1, 2, 4, 8) if p.groups > 1 and not merged else ():
            if p.groups % share == 0 and p.groups > share:
                yield p.groups // share, p.out[1], size * width
    if width > 4 * lanes:
        largest = max(6 * lanes, image // (p.cg * p.bytes * p.kernel[1] * p.stride[2]))
        for size in targets.splits(width, width // (2 * lanes), largest):
            yield 1, 1, min(width, -(-size // lanes) * lanes)


@lru_cache(maxsize=1024)
def blocking(
    p: Problem, last: bool, isa: str, cores: int, config: Config = DEFAULT_CONFIG
) -> Blocking:
    """The blocking whose modelled time on ``cores`` threads is least, as far as it is free."""
    tile = targets.tile_of(isa, p.dtype, config)
    wanted = problem.wanted_tasks(config, partial(blocking, p, last, isa, cores))
    p = gemm.flatten(p)
    blocks = problem.blocks_of(p.dtype)
    merged = _merges(p)
    lines = p.batch * p.out[0] * p.out[1]
    # The order of summation is that of the blocks, which must not depend on tile or threads.
    widest = max(t.nr for t in targets.row_tiles(isa, p.dtype))
    parts = 1 if merged else -(-p.depth * widest * p.bytes // blocks.weights)
    cblock = -(-p.cg // min(parts, p.cg))
    cblocks = -(-p.cg // cblock)
    end = targets.stored_lanes(p.kg, isa, p.dtype)
    buffered = not (last and targets.stores_exactly(p.kg, isa, p.dtype))
    best: Blocking | None = None
    apart = CONTESTED if cores > 1 else 0.0
    for t in targets.row_tiles(isa, p.dtype) if tile is None else (tile,):
        vectors = -(-p.kg // t.vl)
        panels = -(-vectors // t.nv)
        tail = vectors - (panels - 1) * t.nv
        computed = targets.computed_vectors(tail, end, isa, p.dtype)
        ends = _ends(p, t, merged, isa)
        for groups, plane_lines, task_pixels in _units(p, last, merged, t.vl, blocks.image):
            plane = plane_lines * p.out[2]
            task_pixels = min(task_pixels, plane)
            blocks_in_plane = -(-plane // task_pixels)
            planes, turns = lines // plane_lines, p.groups // groups
            units = planes * blocks_in_plane * turns
            cycles_of = partial(
                _task_cycles, p, last, t, computed, plane_lines, merged, cblocks, blocks.image,
                buffered, apart if last and groups < p.groups else None, isa,
            )  # fmt: skip
            # The last block of a plane may be smaller.
            costs = [
                cycles_of(task_pixels), cycles_of(plane - (blocks_in_plane - 1) * task_pixels)
            ]  # fmt: skip
            if groups > 1:  # all use the tables of the first
                once = (groups - 1) * targets.lag(isa) * _listing(p, last, t, merged, task_pixels)
                costs = [
                    (groups * (a + (panels - 1) * b + c) - once, 0.0, 0.0) for a, b, c in costs
                ]
            fixed, whole, final = costs[0]
            divided = groups == 1 and units < 4 * cores
            for task_panels in targets.splits(panels, panels if divided else 1):
                parts_k = -(-panels // task_panels)
                tasks = units * parts_k
                if not targets.is_about(tasks, wanted):
                    continue
                longest = fixed + task_panels * whole
                if parts_k == 1:
                    longest += final - whole
                total = sum(
                    planes * turns * count * (parts_k * cost[0] + (panels - 1) * cost[1] + cost[2])
                    for count, cost in zip((blocks_in_plane - 1, 1), costs, strict=True)
                )
                sizes = partial(_tasks, planes, blocks_in_plane, turns, panels, task_panels, *costs)
                makespan = targets.makespan(tasks, total, longest, cores, sizes)
                if best is None or makespan < best.makespan:
                    best = Blocking(
                        p, last, t, tail, end, buffered, cblock, merged, ends, groups, plane_lines,
                        task_pixels, task_panels, tasks,
                        float(units * groups * panels * t.nr * p.depth * p.bytes),
                        total, makespan,
                    )  # fmt: skip
    return blocking(p, last, isa, cores) if best is None else best


def _window(p: Problem, last: bool, plane_lines: int, pixels: int) -> int:
    """Positions that a task reads (of channels-first arrays, that its slab holds)."""
    width = p.out[2]
    rows = 1
    if plane_lines > 1 and p.out[1] > 1:
        rows = 1 + -(-(pixels - 1) // width) if pixels % width else pixels // width
        rows = min(rows, p.out[1] if not last else rows)
    high = (rows - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1
    if last and p.kernel[1] == 1:
        high = rows
    wide = p.size[2]
    if rows == 1:
        wide = min(wide, (pixels - 1) * p.stride[2] + (p.kernel[2] - 1) * p.dilation[2] + 1)
    if last and p.kernel[2] == 1:
        wide = min(pixels, width)
    # Of the channels-last arrays a task may read several images.
    return p.kernel[0] * (high if last else min(high, p.size[1])) * wide


def slab_pitch(p: Problem, merged: bool) -> int:
    """Bytes from pixel to pixel of a slab: a line more where pixels would share few cache sets."""
    size = p.cg * p.bytes
    return size + 64 if size % 256 == 0 and not merged else size


# -------------------------------------------------------------------- the workspace


def table_bytes(b: Blocking) -> int:
    """Of the table of addresses of a row tile."""
    p = b.problem
    return 8 * table_words(_entries(p, b.merged), b.tile.mr)


@dataclass(frozen=True, slots=True)
class Slot:
    """A thread's part of the workspace: bytes of its regions, in their order.

    First the bias of a last panel; then the positions of a tile's pixels, a row of zeros, the sums
    of a panel, the table, copied rows and the slab.
    """

    bias: int
    positions: int
    zeros: int
    sums: int
    table: int
    patches: int
    slab: int

    @classmethod
    def of(cls, p: Problem, b: Blocking) -> Slot:
        p, size = b.problem, b.problem.bytes
        tiles = -(-b.task_pixels // b.tile.mr)
        if b.ends:
            tiles = rowcuts.most_tiles(p, b.tile.mr, b.ends, b.task_pixels)
        # Channels last the tables move on to other groups, and with them the address of the zeros.
        groups = b.task_groups if b.last else 1
        run = p.cg * (p.kernel[2] if b.merged else groups) * size
        window = _window(p, False, b.plane_lines, b.task_pixels)
        return cls(
            b.tile.nr * size,
            4 * 8 * b.tile.mr,
            run,
            b.task_pixels * b.tile.nr * size if b.buffered else 0,
            tiles * table_bytes(b),
            b.task_pixels * p.kernel[0] * p.kernel[1] * run if b.merged else 0,
            0 if b.last else window * slab_pitch(p, b.merged) + b.tile.vl * size,
        )

    def places(self) -> dict[str, int]:
        """Where the regions begin, as fields of the geometry."""
        at, places = aligned(self.bias), {}
        for name in ("positions", "zeros", "sums", "table", "patches", "slab"):
            places[f"at_{name}"] = at
            at += aligned(getattr(self, name))
        return places

    @property
    def bytes(self) -> int:
        return self.places()["at_slab"] + aligned(self.slab)

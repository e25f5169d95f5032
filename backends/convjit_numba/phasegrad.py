"""The weights' gradient with output channels in the lanes and taps in the rows of the product.

    gw[k, (c, t)] = sum over n, o of x[n, c, o * stride - pad + t * dilation] * gy[n, k, o]

:mod:`convjit_numba.weight_grad` has input channels in its lanes, of which first layers have three.
Here the rows of the im2col matrix (Chellapilla, Puri and Simard 2006, "High performance
convolutional neural networks for document processing") are multiplied with the outputs' gradients,
whose channels are the lanes.  The matrix is not made: every ``stride``-th column of a row of x, one
phase of it, is copied once, with its padding; a row of the matrix is a run within a phase, which
the row tile (:mod:`convjit_numba.rowtile`) reads by its address.

A task owns a range of the outputs, which it takes in blocks that stay in L2, with all their
channels: those of channels-first gy are transposed to channels-last order.  Ranges have sums of
their own, added by a second kernel (:mod:`convjit_numba.summedgrad`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from convjit.algorithms.workspace import aligned
from convjit.spec import ConvSpec
from convjit_numba import cache, problem, targets
from convjit_numba.phasegradkernel import build, build_sum
from convjit_numba.problem import Problem
from convjit_numba.summedgrad import SummedGrad, splits_of
from convjit_numba.targets import Tile

# Cycles of the model: a call of the row tile, a row of its table, a word written to the table, a
# number transposed or copied, one of a phase gathered by vectors or apart, a row of a phase, a
# number added, a task.
CALL, ROW, ENTRY, TRANSPOSE, COPY = 40.0, 14.0, 1.2, 0.35, 0.15
GATHERED, PICKED, RUN, ADDED, TASK = 0.25, 1.5, 20.0, 0.4, 500.0


@dataclass(frozen=True, slots=True)
class Blocking:
    """Sizes of the loops; ``cycles`` is the model's for all tasks together.

    Attributes
    ----------
    tail, end : int
        Vectors of the last panel of output channels; lanes of the last of them, if half of it is
        enough, else 0.
    rows, cols : int
        Outputs of a block; ``units`` is the number of blocks.
    splits : int
        Sums of which the result is the total.
    task_rows : int
        Rows of the product, of ``C * taps``, that a task sums.
    pitch : int
        Numbers of a phase of a row of x.
    """

    problem: Problem
    last: bool
    tile: Tile
    panels: int
    tail: int
    end: int
    rows: int
    cols: int
    units: int
    splits: int
    task_rows: int
    pitch: int
    tasks: int
    cycles: float
    makespan: float

    @property
    def width(self) -> int:
        """Numbers of a row of sums."""
        return self.panels * self.tile.nr

    @property
    def chain(self) -> int:
        """Products that one of the splits sums."""
        return -(-self.units // self.splits) * self.rows * self.cols

    @property
    def partial_bytes(self) -> int:
        """Of the sums that are added up."""
        p = self.problem
        if self.splits == 1:
            return 0
        return aligned(self.splits * p.groups * p.depth * self.width * p.bytes)

    @property
    def span(self) -> int:
        """Rows of x that a block meets."""
        p = self.problem
        return (self.rows - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1


@lru_cache(maxsize=1024)
def blocking(p: Problem, last: bool, isa: str, cores: int, tile: Tile | None = None) -> Blocking:
    """The blocking whose modelled time on ``cores`` threads is least.

    The order of summation is that of the blocks, which must not depend on the number of threads.
    """
    tiles = targets.row_tiles(isa, p.dtype) if tile is None else (tile,)
    alone = min((_with_tile(p, last, isa, 1, t) for t in tiles), key=lambda b: b.makespan)
    return alone if cores == 1 else _with_tile(p, last, isa, cores, alone.tile)


def _with_tile(p: Problem, last: bool, isa: str, cores: int, t: Tile) -> Blocking:
    vectors = -(-p.kg // t.vl)
    panels = -(-vectors // t.nv)
    tail = vectors - (panels - 1) * t.nv
    end = targets.stored_lanes(p.kg, isa, p.dtype) % t.vl
    computed = targets.computed_vectors(vectors, end, isa, p.dtype)
    # Numbers that belong to an output: its channels, and those of x that only it begins at.
    numbers = panels * t.nr + p.cg * p.kernel[0] * p.stride[1] * p.stride[2]
    room = max(1, problem.blocks_of(p.dtype).image // (numbers * p.bytes))
    _, oh, ow = p.out
    cols = -(-ow // -(-ow // max(room, t.vl)))
    rows = -(-oh // -(-oh // max(1, room // cols)))
    units = p.batch * p.out[0] * -(-oh // rows) * -(-ow // cols)
    splits = splits_of(p, units)
    reach = ((p.kernel[2] - 1) * p.dilation[2] + p.stride[2] - 1) // p.stride[2]
    pitch = cols + reach + 1
    span = (rows - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1
    gathered = problem.gathered_step(p.stride[2]) > 0 and not last
    phases = p.kernel[0] * span * p.stride[2]
    lag, tiles = targets.lag(isa), -(-p.depth // t.mr)
    channel = phases * (RUN + pitch * (GATHERED if gathered else PICKED))
    outputs = rows * cols * panels * t.nr * (COPY if last else TRANSPOSE)
    best: Blocking | None = None
    for share in targets.splits(tiles, tiles):
        parts = -(-tiles // share)
        # Tasks that are alike in size: the rows are divided evenly too.
        task_rows = -(-p.depth // parts)
        parts = -(-p.depth // task_rows)
        calls = -(-task_rows // t.mr)
        height = task_rows / calls
        step = targets.row_tile_cycles(height, computed, isa, panels)
        one = calls * (rows * cols * step + lag * panels * (CALL + ROW * rows))
        filling = (
            channel * (task_rows / p.taps if parts == 1 else 1 + task_rows // p.taps) + outputs
        )
        one += lag * (calls * rows * (1 + height) * ENTRY + filling)
        tasks = splits * p.groups * parts
        one = TASK + units / splits * one
        longest = one * -(-units // splits) / (units / splits)
        added = lag * p.groups * p.depth * panels * t.nr * ADDED * splits
        total = one * tasks + added
        makespan = targets.makespan(tasks, one * tasks, longest, cores) + added / cores
        if best is None or makespan < best.makespan:
            best = Blocking(
                p, last, t, panels, tail, end, rows, cols, units, splits, task_rows, pitch, tasks,
                total, makespan,
            )  # fmt: skip
    assert best is not None
    return best


class PhaseGrad(SummedGrad[Blocking]):
    """Matrix product of the phases of x with the output's gradient, channels first or last."""

    id = "numba.weight_grad.phases"

    def blocking(
        self, p: Problem, last: bool, isa: str, cores: int, tile: Tile | None = None
    ) -> Blocking:
        return blocking(p, last, isa, cores, tile)

    def places(self, b: Blocking) -> tuple[dict[str, int], int]:
        p, size = b.problem, b.problem.bytes
        pixels = b.rows * b.cols * b.tile.nr
        sums = b.task_rows * b.width if b.splits == 1 else p.depth * b.tile.vl
        regions = {
            "table": 8 * max(b.rows * (1 + b.tile.mr), 2 * b.splits),
            "gy": b.panels * pixels * size,
            "slab": p.cg * p.kernel[0] * b.span * p.stride[2] * b.pitch * size,
            "sums": sums * size,
        }
        places, at = {"gy_pitch": pixels}, 0
        for name, size in regions.items():
            places[f"at_{name}"] = at
            at += aligned(size)
        return places, at

    def product(self, spec: ConvSpec, b: Blocking) -> Any:
        bits, short = targets.BITS[spec.dtype], targets.SHORT[spec.dtype]
        step = 0 if spec.channels_last else problem.gathered_step(b.problem.stride[2])
        name = f"phasegrad.{short}.{b.tile}.{b.tail}.{b.end}.{step}"
        return cache.function(name, 7, partial(build, bits, *b.tile, b.tail, b.end, step))

    def total(self, b: Blocking) -> tuple[Any, int]:
        p, vl = b.problem, b.tile.vl
        name = f"phasegrad.sum.{targets.SHORT[p.dtype]}.{vl}"
        kernel = cache.function(name, 7, partial(build_sum, targets.BITS[p.dtype], vl))
        return kernel, p.groups * -(-p.kg // vl)

    def fields(self, b: Blocking) -> dict[str, int]:
        p = b.problem
        return {
            "panels": b.panels,
            "task_rows": b.task_rows,
            "row_splits": -(-p.depth // b.task_rows),
            "units": b.units,
            "rows": b.rows,
            "cols": b.cols,
            "row_blocks": -(-p.out[1] // b.rows),
            "col_blocks": -(-p.out[2] // b.cols),
            "last": int(b.last),
            "pitch": b.pitch,
            "wide": b.width,
        }

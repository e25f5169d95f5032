"""The weights' gradient with output channels in the lanes and taps in the rows of the product.

    gw[k, (c, t)] = sum over n, o of x[n, c, o * stride - pad + t * dilation] * gy[n, k, o]

:mod:`convjit_numba.weight_grad` has input channels in its lanes, of which first layers have three.
Here the rows of the im2col matrix (Chellapilla, Puri and Simard 2006, "High performance
convolutional neural networks for document processing") are multiplied with the outputs' gradients,
whose channels are the lanes.  The matrix is not made: every ``stride``-th column of a row of x, one
phase of it, is copied once, with its padding; a row of the matrix is a run within a phase, which
the row tile (:mod:`convjit_numba.rowtile`) reads by its address.

A task owns a range of the outputs, which it takes in blocks that stay in L2, with all their
channels: those of channels-first gy are transposed to channels-last order.  Tasks have sums of
their own, added by a second kernel in an order that does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from convjit.algorithms.workspace import aligned
from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import Config, Executable, Feature, Phase, Refusal, Target, Work
from convjit_numba import cache, problem, targets, threads
from convjit_numba.executable import PanelExecutable
from convjit_numba.phasegradkernel import build, build_sum
from convjit_numba.problem import Problem
from convjit_numba.targets import Tile
from convjit_numba.weight_grad import SummedExecutable, as_it_is
from convjit_numba.weightgradplan import MAX_SPLITS, SPLIT_PIXELS

# Cycles of the model: a call of the row tile, a row of its table, a word written to the table, a
# number transposed or copied, one of a phase gathered by vectors or apart, a row of a phase, a
# number added, a task.
CALL, ROW, ENTRY, TRANSPOSE, COPY = 40.0, 14.0, 1.2, 0.35, 0.15
GATHERED, PICKED, RUN, ADDED, TASK = 0.25, 1.5, 20.0, 0.4, 500.0
FMA_LATENCY = 4  # cycles: a tile with few sums waits for each of them


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
    splits = max(1, min(p.batch * p.pixels // SPLIT_PIXELS, MAX_SPLITS, units))
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
        step = max(height * computed / 2, (height + computed) / 2, FMA_LATENCY * panels)
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


def _places(b: Blocking) -> tuple[dict[str, int], int]:
    """Where the regions of a thread's part of the workspace begin, and the bytes of all."""
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


class PhaseGrad:
    """Matrix product of the phases of x with the output's gradient, channels first or last."""

    id = "numba.weight_grad.phases"
    algorithm = "gemm"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if spec.direction is not Direction.WEIGHT_GRAD:
            return Refusal(Feature.OTHER, "computes the weights' gradient alone")
        refusal = problem.refuse(spec.replace(direction=Direction.FORWARD), channels_last=True)
        if refusal is not None:
            return refusal
        b = blocking(Problem.of(spec), spec.channels_last, problem.isa_of(target), target.cores)
        if _places(b)[1] > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the pixels of one block of outputs exceed 1 GiB")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p, isa = Problem.of(spec), problem.isa_of(target)
        b = blocking(p, spec.channels_last, isa, target.cores)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, min(target.cores, b.tasks))
        # The model's cycles as flops of full tiles; threads without a task count as computing.
        flops = b.makespan * target.cores if wakes else b.cycles * target.cores
        rate = f"numba.weight_grad.{p.dtype}"
        moved = p.moved(2.0 * b.partial_bytes)
        return Work(
            (Phase(self.algorithm, flops * 4.0 * b.tile.vl, rate, moved),),
            Numerics("gemm", chain=b.chain),
            launches=int(wakes) * (2 if b.splits > 1 else 1),
            workspace=_workspace(b, target),
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        p, isa = Problem.of(spec), problem.isa_of(target)
        chosen = partial(blocking, p, spec.channels_last, isa, target.cores)
        return problem.configs(
            targets.row_tiles(isa, p.dtype),
            lambda config: chosen(targets.tile_of(isa, p.dtype, config)),
            divided=False,
        )

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p, isa = Problem.of(spec), problem.isa_of(target)
        tile = targets.tile_of(isa, p.dtype, config)
        b = blocking(p, spec.channels_last, isa, target.cores, tile)
        bits, short = targets.BITS[p.dtype], targets.SHORT[p.dtype]
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        slots = min(target.cores, b.tasks)

        def executable(kernel: Any, tasks: int, seconds: float) -> PanelExecutable:
            geometry = _geometry(b, tasks, targets.grain(tasks, slots, seconds))
            return PanelExecutable(
                kernel, as_it_is, geometry, (),
                slots=slots, slot_bytes=_places(b)[1], seconds=seconds,
            )  # fmt: skip

        step = 0 if spec.channels_last else problem.gathered_step(p.stride[2])
        name = f"phasegrad.{short}.{b.tile}.{b.tail}.{b.end}.{step}"
        kernel = cache.function(name, 7, partial(build, bits, *b.tile, b.tail, b.end, step))
        product = executable(kernel, b.tasks, seconds)
        total = None
        if b.splits > 1:
            kernel = cache.function(
                f"phasegrad.sum.{short}.{b.tile.vl}", 7, partial(build_sum, bits, b.tile.vl)
            )
            tasks = p.groups * -(-p.kg // b.tile.vl)
            # A number read costs a quarter of a cycle and more, some tenth of a nanosecond.
            total = executable(kernel, tasks, 1e-10 * b.partial_bytes / p.bytes)
        return SummedExecutable(product, total, _workspace(b, target))


def _workspace(b: Blocking, target: Target) -> int:
    return b.partial_bytes + threads.slots_bytes(min(target.cores, b.tasks), _places(b)[1])


def _geometry(b: Blocking, tasks: int, grain: int) -> Any:
    p = b.problem
    places, slot_bytes = _places(b)
    one = np.array([1.0, 0.0], p.dtype).view(np.int64)[0]
    return problem.pack_geometry(
        p.geometry()
        | places
        | {
            "tasks": tasks,
            "grain": grain,
            "slot_bytes": slot_bytes,
            "panels": b.panels,
            "task_rows": b.task_rows,
            "row_splits": -(-p.depth // b.task_rows),
            "splits": b.splits,
            "units": b.units,
            "rows": b.rows,
            "cols": b.cols,
            "row_blocks": -(-p.out[1] // b.rows),
            "col_blocks": -(-p.out[2] // b.cols),
            "last": int(b.last),
            "pitch": b.pitch,
            "wide": b.width,
            "partial_bytes": b.partial_bytes,
            "slope0": int(one),
        }
    )

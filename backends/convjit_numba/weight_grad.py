"""The weights' gradient as a matrix product whose depth are the pixels of all images.

    gw[k, c, t] = sum over n, o of gy[n, k, o] * x[n, c, o * stride - pad + t * dilation]

For each tap the row tile (:mod:`convjit_numba.rowtile`) multiplies rows of gy, one for each of its
output channels and consecutive in the pixels, with pixels of x whose input channels are the lanes.
Its table, made for the taps of a convolution, lists the rows of outputs here: the sums stay in
registers while all rows of a block pass, and rows and columns in which a tap meets the padding are
left out.  (The three products of forward and gradients and their loops are those of Georganas et
al. 2018, "Anatomy of high-performance deep learning convolutions", section II.J.)

A task owns a range of output channels and of panels of input channels.  It copies the pixels that
a block of outputs meets to a channels-last slab in its workspace, one panel wide (transposing
channels-first ones), and transposes channels-last gy.  Where channels are few, the lanes are the
``kw * C`` numbers that the taps of a kernel row meet, which lie side by side in the slab.

Where the weights are few and the pixels many, tasks share them out as well, each with sums of its
own, which a second kernel adds.  Into how many is decided by the problem alone and the sums are
added in their order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import (
    Array,
    Config,
    Executable,
    Feature,
    Phase,
    Refusal,
    Target,
    Work,
)
from convjit_numba import cache, problem, targets, threads
from convjit_numba.executable import PanelExecutable
from convjit_numba.problem import Problem
from convjit_numba.weightgradkernel import build, build_sum
from convjit_numba.weightgradplan import Blocking, Slot, blocking


class SummedExecutable:
    """The product, and where it was split the addition of its parts."""

    __slots__ = ("_product", "_sum", "workspace")

    def __init__(
        self, product: PanelExecutable, total: PanelExecutable | None, workspace: int
    ) -> None:
        self._product = product
        self._sum = total
        self.workspace = workspace

    def pack(self, rhs: Array) -> Any:
        """The output's gradient as it is."""
        return rhs

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        """Compute into ``out``."""
        self._product.run(lhs, packed, None, out, workspace)
        if self._sum is not None:
            self._sum.run(lhs, packed, None, out, workspace)


class WeightGrad:
    """Matrix product of the output's gradient with the pixels of x, channels first or last."""

    id = "numba.weight_grad"
    algorithm = "gemm"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if spec.direction is not Direction.WEIGHT_GRAD:
            return Refusal(Feature.OTHER, "computes the weights' gradient alone")
        refusal = problem.refuse(spec.replace(direction=Direction.FORWARD), channels_last=True)
        if refusal is not None:
            return refusal
        p = Problem.of(spec)
        b = blocking(p, spec.channels_last, problem.isa_of(target), target.cores)
        if Slot.of(b).bytes > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the pixels of one block of outputs exceed 1 GiB")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(p, spec.channels_last, isa, target.cores)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        # The model's cycles as flops of full tiles; threads without a task count as computing.
        flops = b.makespan * target.cores if wakes else b.cycles * target.cores
        moved = p.moved(2.0 * b.partial_bytes)
        return Work(
            (
                Phase(
                    self.algorithm, flops * 4.0 * b.tile.vl, f"numba.weight_grad.{p.dtype}", moved
                ),
            ),
            Numerics("gemm", chain=b.chain),
            launches=int(wakes) * (2 if b.splits > 1 else 1),
            workspace=_workspace(b, target),
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        p, isa = Problem.of(spec), problem.isa_of(target)
        tiles = targets.row_tiles(isa, p.dtype)
        chosen = partial(blocking, p, spec.channels_last, isa, target.cores)
        return problem.configs(
            tiles, lambda config: chosen(targets.tile_of(isa, p.dtype, config)), divided=False
        )

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(
            p, spec.channels_last, isa, target.cores, targets.tile_of(isa, p.dtype, config)
        )
        bits, short = targets.BITS[p.dtype], targets.SHORT[p.dtype]
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        slots = min(target.cores, b.tasks)

        def executable(kernel: Any, tasks: int, seconds: float) -> PanelExecutable:
            geometry = _geometry(b, tasks, targets.grain(tasks, slots, seconds))
            return PanelExecutable(
                kernel, as_it_is, geometry, (),
                slots=slots, slot_bytes=Slot.of(b).bytes, seconds=seconds,
            )  # fmt: skip

        name = f"weight_grad.{short}.{b.tile}.{b.tail}.{b.end}"
        kernel = cache.function(name, 7, partial(build, bits, *b.tile, b.tail, b.end))
        product = executable(kernel, b.tasks, seconds)
        total = None
        if b.splits > 1:
            name = f"weight_grad.sum.{short}.{b.tile.nv}x{b.tile.vl}"
            kernel = cache.function(name, 7, partial(build_sum, bits, b.tile.nv, b.tile.vl))
            # A number read costs a quarter of a cycle and more, some tenth of a nanosecond.
            total = executable(kernel, p.groups * p.kg, 1e-10 * b.partial_bytes / p.bytes)
        return SummedExecutable(product, total, _workspace(b, target))


def _workspace(b: Blocking, target: Target) -> int:
    return b.partial_bytes + threads.slots_bytes(min(target.cores, b.tasks), Slot.of(b).bytes)


def as_it_is(rhs: Array) -> Array:
    return rhs


def _geometry(b: Blocking, tasks: int, grain: int) -> Any:
    p, slot = b.problem, Slot.of(b)
    one = np.array([1.0, 0.0], p.dtype).view(np.int64)[0]
    return problem.pack_geometry(
        p.geometry()
        | slot.places()
        | {
            "tasks": tasks,
            "grain": grain,
            "slot_bytes": slot.bytes,
            "panels": b.panels,
            "task_panels": b.task_panels,
            "task_splits": -(-b.panels // b.task_panels),
            "task_rows": b.task_rows,
            "row_splits": -(-p.kg // b.task_rows),
            "splits": b.splits,
            "rows": b.rows,
            "cols": b.cols,
            "images": b.images,
            "row_blocks": -(-p.out[1] // b.rows),
            "col_blocks": -(-p.out[2] // b.cols),
            "image_blocks": -(-p.batch // b.images),
            "last": int(b.last),
            "merged": int(b.merged),
            "pitch": b.pitch,
            "wide": b.width,
            "gy_pitch": b.gy_pitch,
            "partial_bytes": b.partial_bytes,
            "slope0": int(one),
        }
    )

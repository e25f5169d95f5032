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
channels-first ones); those of a single tap it reads where they lie, if their channels are last.
Channels-last gy is read across, a pixel's numbers at a time.  Where channels are few, the lanes
are the ``kw * C`` numbers that the taps of a kernel row meet, which lie side by side in the slab.
Where the weights are few, tasks share out the pixels as well (:mod:`convjit_numba.summedgrad`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from convjit.spec import ConvSpec
from convjit_numba import cache, targets
from convjit_numba.problem import Problem
from convjit_numba.summedgrad import SummedGrad
from convjit_numba.targets import Tile
from convjit_numba.weightgradkernel import build, build_sum
from convjit_numba.weightgradplan import Blocking, Slot, blocking


class WeightGrad(SummedGrad[Blocking]):
    """Matrix product of the output's gradient with the pixels of x, channels first or last."""

    id = "numba.weight_grad"

    def blocking(
        self, p: Problem, last: bool, isa: str, cores: int, tile: Tile | None = None
    ) -> Blocking:
        return blocking(p, last, isa, cores, tile)

    def places(self, b: Blocking) -> tuple[dict[str, int], int]:
        slot = Slot.of(b)
        return slot.places(), slot.bytes

    def product(self, spec: ConvSpec, b: Blocking) -> Any:
        bits, short = targets.BITS[spec.dtype], targets.SHORT[spec.dtype]
        name = f"weight_grad.{short}.{b.tile}.{b.tail}.{b.end}.{'last' if b.last else 'first'}"
        return cache.function(name, 7, partial(build, bits, *b.tile, b.tail, b.end, b.last))

    def total(self, b: Blocking) -> tuple[Any, int]:
        p, (_, nv, vl) = b.problem, b.tile
        name = f"weight_grad.sum.{targets.SHORT[p.dtype]}.{nv}x{vl}"
        kernel = cache.function(name, 7, partial(build_sum, targets.BITS[p.dtype], nv, vl))
        return kernel, p.groups * p.kg

    def fields(self, b: Blocking) -> dict[str, int]:
        p = b.problem
        return {
            "panels": b.panels,
            "task_panels": b.task_panels,
            "task_splits": -(-b.panels // b.task_panels),
            "task_rows": b.task_rows,
            "row_splits": -(-p.kg // b.task_rows),
            "rows": b.rows,
            "cols": b.cols,
            "images": b.images,
            "row_blocks": -(-p.out[1] // b.rows),
            "col_blocks": -(-p.out[2] // b.cols),
            "image_blocks": -(-p.batch // b.images),
            "in_place": int(b.in_place),
            "merged": int(b.merged),
            "pitch": b.pitch,
            "wide": b.width,
        }

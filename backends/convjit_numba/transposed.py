"""The transposed convolution and the input's gradient with a stride, by phases, in one kernel.

    x[n, c, q * stride + a] = sum over k and taps t = a + pad (mod stride) of
                              y[n, k, q + (a + pad - t * dilation) / stride] * w[k, c, t]

Samples of the result with the same remainder ``a``, a *phase*, meet the same taps and consecutive
samples of y (see :mod:`convjit.algorithms.adjoint` and Shi et al. 2016, "Is the deconvolution layer
the same as a convolutional layer?", section 2): a matrix product for each phase, whose rows are
pixels of y where they lie and whose lanes are channels of the result, by the row tile and the
tables of addresses of :mod:`convjit_numba.indirect`.

A task owns some periods of the stride and a range of panels of channels.  All its phases read one
copy of y (channels-first) or y itself (channels-last), and phases that alternate along a row write
with the stride between their pixels, so that rows are complete when they leave the cache.  Phases
that no tap meets are sums of nothing, to which bias and activation are applied.

Where y has a single sample along an axis the stride means nothing, and every sample of the result
is a phase of its own: the first layer of a generator, a matrix product with the images as rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import prod

from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import Config, Executable, Feature, Phase, Refusal, Target, Work
from convjit_numba import cache, pack, problem, targets, threads
from convjit_numba.executable import PanelExecutable
from convjit_numba.problem import Problem
from convjit_numba.transposedkernel import build
from convjit_numba.transposedplan import (
    Blocking,
    Slot,
    blocking,
    canonical,
    periods,
    reach,
    slab_pitch,
    table_bytes,
)


class Transposed:
    """Matrix products by phases of the stride, channels first or last."""

    id = "numba.transposed"
    algorithm = "gemm"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if not spec.computes_input:
            return Refusal(Feature.OTHER, "computes transposed convolutions alone")
        refusal = problem.refuse(spec.replace(direction=Direction.FORWARD), channels_last=True)
        if refusal is not None:
            return refusal
        p = Problem.of(spec)
        if canonical(p).stride == (1, 1, 1):
            return Refusal(Feature.OTHER, "with stride 1 it is a forward problem")
        b = blocking(p, spec.channels_last, problem.isa_of(target), target.cores)
        if Slot.of(b).bytes > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "what one block of the result reads exceeds 1 GiB")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(p, spec.channels_last, isa, target.cores)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        # The model's cycles as flops of full tiles; threads without a task count as computing.
        flops = b.makespan * target.cores if wakes else b.cycles * target.cores
        packed = prod(pack.transposed_shape(p, b.tile)) * p.bytes
        moved = p.moved(float(b.streamed))
        return Work(
            (Phase(self.algorithm, flops * 4.0 * b.tile.vl, f"numba.transposed.{p.dtype}", moved),),
            Numerics("gemm"),
            problem.pack_phase(p, packed),
            launches=int(wakes),
            workspace=threads.slots_bytes(slots, Slot.of(b).bytes),
            packed_bytes=packed,
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
        return _executable(spec, b, target, isa)


def _executable(spec: ConvSpec, b: Blocking, target: Target, isa: str) -> PanelExecutable:
    """The kernel of a blocking and its geometry."""
    p = b.problem
    bits = targets.BITS[p.dtype]
    name = f"transposed.{targets.SHORT[p.dtype]}.{b.tile}.{b.tail}.{b.end}"
    kernel = cache.function(name, 7, partial(build, bits, *b.tile, b.tail, b.end))
    slots, slot = min(target.cores, b.tasks), Slot.of(b)
    seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
    panels = -(-p.cg // b.tile.nr)
    _, high, wide = periods(p)
    (first_row, last_row), (first_col, last_col) = reach(p, 1), reach(p, 2)
    geometry = problem.pack_geometry(
        p.geometry()
        | problem.activation_fields(spec)
        | slot.places()
        | {
            "tasks": b.tasks,
            "grain": targets.grain(b.tasks, slots, seconds),
            "slot_bytes": slot.bytes,
            "cblock": b.kblock,
            "panels": panels,
            "task_panels": b.task_panels,
            "task_splits": -(-panels // b.task_panels),
            "images": b.images,
            "rows": b.lines,
            "cols": b.cols,
            "image_blocks": -(-p.batch // b.images),
            "row_blocks": -(-high // b.lines),
            "col_blocks": -(-wide // b.cols),
            "last": int(b.last),
            "in_place": int(b.direct),
            "slab_pitch": slab_pitch(p),
            "table_bytes": table_bytes(b),
            "phases_h": first_row,
            "phases_w": first_col,
            "extra_h": last_row,
            "extra_w": last_col,
        }
    )
    return PanelExecutable(
        kernel, pack.transposed_packer(p, b.tile), geometry, (),
        slots=slots, slot_bytes=slot.bytes, seconds=seconds,
    )  # fmt: skip

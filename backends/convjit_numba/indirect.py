"""Implicit GEMM by indirection: rows of a matrix product are addresses, nothing is unfolded.

A task owns a block of output pixels of one group, or of several, and a range of panels of output
channels.  For every tap and pixel a table holds the address of the input pixel that they meet at,
or of a row of zeros where that lies in the padding; taps that meet nothing but padding are left
out.  Of wide dilations more are where tiles end at the borders of the padding
(:mod:`convjit_numba.rowcuts`).  The row tile (:mod:`convjit_numba.rowtile`) sums over the taps of
the table with its results in registers.
The method is that of Dukhan (2019, "The Indirect Convolution Algorithm", sections 3 and 4), the
loops around it those of Goto and van de Geijn (2008, "Anatomy of high-performance matrix
multiplication", section 4): a block of a panel of weights stays in L2 (in L1 if it is small) while
the pixels of the task pass, and these stay in L2 while the panels pass.

Channels-last arrays are read where they lie.  Of channels-first ones a task first transposes the
part that it needs to a channels-last slab in its workspace; results go through a buffer of one
panel and are transposed back.

Where channels are few, the columns of a kernel are merged into one row of ``kw * C`` products: they
lie side by side in the input already, except at the borders, where such rows are copied.

Integers of 64 bits are summed as they are, those of 8 bits by pairs of channels
(:mod:`convjit_numba.narrow`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from math import prod

from convjit.precision import Numerics
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Phase, Refusal, Target, Work
from convjit_numba import cache, narrow, pack, problem, targets, threads
from convjit_numba.casting import NARROW
from convjit_numba.executable import PanelExecutable
from convjit_numba.indirectkernel import build
from convjit_numba.indirectplan import (
    Blocking,
    Slot,
    blocking,
    slab_pitch,
    table_bytes,
)
from convjit_numba.problem import Problem
from convjit_numba.rowtables import PAIRS, REALS, WHOLES

WHOLE = ("int64", "uint64")  # which wrap modulo 2**64
# Times as long a product of whole numbers takes as one of float64: AVX-512 multiplies 64 bits,
# elsewhere a product takes three of 32 bits and their sums.
WHOLE_FACTOR = {"avx512": 1.5, "avx2": 6.0, "sse2": 5.0, "neon": 6.0, "generic": 6.0}


def _problem(spec: ConvSpec) -> Problem:
    """Whole numbers move as float64 of the same bits, pairs of narrow ones as float32."""
    p = Problem.of(spec)
    if spec.dtype in NARROW:
        return narrow.paired(p)
    return replace(p, dtype="float64") if spec.dtype in WHOLE else p


def _last(spec: ConvSpec) -> bool:
    """Whether the channels of a pixel are neighbours: of images of one pixel they always are."""
    return spec.channels_last or prod(spec.in_size) == prod(spec.out_size) == 1


class Indirect:
    """Matrix product of weights and of input pixels where they lie, channels first or last."""

    id = "numba.indirect"
    algorithm = "gemm"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        refusal = problem.refuse(spec, channels_last=True, also=(*WHOLE, *NARROW))
        if refusal is not None:
            return refusal
        if spec.dtype in WHOLE and spec.activation is not None:
            return Refusal(Feature.EPILOGUE, "has activations of floating-point numbers only")
        if spec.dtype in NARROW:
            if not narrow.fits(spec):
                return Refusal(Feature.DTYPE, "sums pairs of channels, up to 2**31")
            if spec.bias or spec.activation is not None:
                return Refusal(Feature.EPILOGUE, "sums narrow integers without bias or activation")
        p = _problem(spec)
        b = blocking(p, _last(spec), problem.isa_of(target), target.cores)
        if Slot.of(p, b).bytes > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "the input of one block of pixels exceeds 1 GiB")
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = _problem(spec)
        isa = problem.isa_of(target)
        b = blocking(p, _last(spec), isa, target.cores)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        # The model's cycles as flops of full tiles; threads without a task count as computing.
        flops = b.makespan * target.cores if wakes else b.cycles * target.cores
        flops *= 4.0 * b.tile.vl
        if spec.dtype in WHOLE:
            flops *= WHOLE_FACTOR[isa]
        packed = prod(pack.lanes_shape(p, b.tile)) * p.bytes
        workspace = threads.slots_bytes(slots, Slot.of(p, b).bytes)
        phases = [
            Phase(self.algorithm, flops, f"numba.indirect.{p.dtype}", p.moved(float(b.streamed)))
        ]
        if spec.dtype in NARROW:
            phases = narrow.phases(spec, replace(phases[0], flops=flops * narrow.factor(isa)))
            workspace += narrow.workspace(spec)
        return Work(
            tuple(phases),
            Numerics("gemm"),
            problem.pack_phase(p, packed),
            launches=int(wakes),
            workspace=workspace,
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        p, isa = _problem(spec), problem.isa_of(target)
        tiles = targets.row_tiles(isa, p.dtype)
        return problem.configs(tiles, partial(blocking, p, _last(spec), isa, target.cores))

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p = _problem(spec)
        isa = problem.isa_of(target)
        b = blocking(p, _last(spec), isa, target.cores, config)
        return executable(spec, p, b, target)


def executable(spec: ConvSpec, p: Problem, b: Blocking, target: Target) -> Executable:
    """The kernel of a blocking and its geometry."""
    kind, short = REALS, targets.SHORT[p.dtype]
    if spec.dtype in WHOLE:
        kind, short = WHOLES, "i64"
    elif spec.dtype in NARROW:
        kind, short = PAIRS, "i16x2"
    kernel = cache.function(
        f"indirect.{short}.{b.tile}.{b.tail}.{b.end}",
        7,
        partial(build, targets.BITS[p.dtype], *b.tile, b.tail, b.end, kind),
    )
    slots = min(target.cores, b.tasks)
    slot = Slot.of(p, b)
    seconds = b.cycles / problem.cycles_per_second(target, p.dtype, problem.isa_of(target))
    panels = -(-p.kg // b.tile.nr)
    geometry = problem.pack_geometry(
        b.problem.geometry()
        | problem.activation_fields(spec)
        | slot.places()
        | {
            "tasks": b.tasks,
            "grain": targets.grain(b.tasks, slots, seconds),
            "slot_bytes": slot.bytes,
            "cblock": b.cblock,
            "panels": panels,
            "task_panels": b.task_panels,
            "task_splits": -(-panels // b.task_panels),
            "pixels": b.plane_lines * b.problem.out[2],
            "task_pixels": b.task_pixels,
            "pixel_blocks": -(-b.plane_lines * b.problem.out[2] // b.task_pixels),
            "task_groups": b.task_groups,
            "plane_lines": b.plane_lines,
            "last": int(_last(spec)),
            "merged": int(b.merged),
            "zero_bytes": slot.zeros,
            "slab_pitch": slab_pitch(b.problem, b.merged),
            "table_bytes": table_bytes(b),
            "ends": len(b.ends),
        },
        b.ends,
    )
    product = PanelExecutable(
        kernel, pack.lanes_packer(p, b.tile), geometry, (),
        slots=slots, slot_bytes=slot.bytes, seconds=seconds,
    )  # fmt: skip
    return narrow.NarrowExecutable(spec, product) if kind == PAIRS else product

"""Depthwise convolution: every channel by itself, lanes are channels.

A task owns a block of output lines and columns of one image and a range of vectors of channels.
For every line a table lists the kernel rows that meet the image; the tile of
:mod:`convjit_numba.depthwisetile` adds them up for up to ``MR`` outputs of the line and passes over
the columns that lie in the padding.  Taps in the padding are never computed: for the large kernels
of small images they are the greater part (Ding et al. 2022, "Scaling Up Your Kernels to 31x31").
Sums of neighbouring outputs stay in registers, so that pixels and weights are loaded once for many
products (as in Zhang, Lo and Lu 2020, "High Performance Depthwise and Pointwise Convolutions on
Mobile Devices", which blocks likewise on Arm processors).

With a dilation, outputs whose columns are equal modulo ``dilation / gcd(dilation, stride)`` read
inputs of the same class modulo the dilation: each class is a line without dilation.

The last vector of channels ends with the last channel: it overlaps the one before, and what both
hold is computed twice, alike.  With a multiplier m the tile runs m times into a buffer, whose
vectors are then interleaved.

Channels-last arrays are written, and most of them read, where they lie.  Where pixels share few
sets of the caches, their channels being a large power of two, a task copies rows to a ring of as
many as a kernel meets, whose pixels do not.  Of channels-first planes a task transposes what a
vector of channels reads to a slab in its workspace, and its results back: rows narrower than a
vector, and kernels that meet each pixel often, gain more by whole lanes than that costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import prod

from convjit.precision import Numerics
from convjit.spec import ConvSpec
from convjit.spi import DEFAULT_CONFIG, Config, Executable, Feature, Phase, Refusal, Target, Work
from convjit_numba import cache, problem, targets, threads
from convjit_numba.depthwisekernel import build
from convjit_numba.depthwiseplan import Blocking, Slot, blocking, multiplier, packed_shape, packer
from convjit_numba.executable import PanelExecutable
from convjit_numba.problem import Problem

MAX_TAPS = 64  # of a kernel row, which is straight code


class Depthwise:
    """Depthwise convolution, any stride and dilation; channels last with any multiplier."""

    id = "numba.depthwise"
    algorithm = "depthwise"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        refusal = problem.refuse(spec, channels_last=True)
        if refusal is not None:
            return refusal
        if spec.groups != spec.in_channels:
            return Refusal(Feature.GROUPS, "convolves each channel by itself (groups = channels)")
        if not spec.channels_last:
            if spec.groups == 1:
                return Refusal(Feature.LAYOUT, "reads a single channel with channels last")
            if spec.out_channels > spec.groups:
                return Refusal(Feature.LAYOUT, "reads channels-last arrays with a multiplier")
            if spec.ndim == 3:
                return Refusal(Feature.LAYOUT, "reads volumes with channels last")
        if spec.kernel_size[-1] > MAX_TAPS:
            return Refusal(Feature.SIZE, f"takes kernels of up to {MAX_TAPS} columns")
        p = Problem.of(spec)
        b = blocking(p, problem.isa_of(target), target.cores, last=spec.channels_last)
        if self._slot(p, b).bytes > problem.MAX_SLOT:
            return Refusal(Feature.SIZE, "what one block of outputs reads exceeds 1 GiB")
        return None

    @staticmethod
    def _slot(p: Problem, b: Blocking) -> Slot:
        return Slot.of(p, b.mr, b.vl, b.task_vectors, b.slab_bytes, b.sum_pixels)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(p, isa, target.cores, last=spec.channels_last)
        slots = min(target.cores, b.tasks)
        wakes = problem.wakes_helpers(target, p, isa, b.cycles, slots)
        # Threads without a task count as if they computed.
        cycles = b.makespan * target.cores if wakes else b.cycles * target.cores
        lanes_ = targets.tiles(isa, p.dtype)[0].vl
        weights = float(prod(packed_shape(p, b.vl)) * p.bytes)
        family = "depthwise" if spec.channels_last else "depthwise.slab"
        phase = Phase("depthwise", 4.0 * lanes_ * cycles, f"numba.{family}.{p.dtype}", p.traffic)
        return Work(
            (phase,),
            Numerics("direct"),
            problem.pack_phase(p, weights),
            launches=int(wakes),
            workspace=threads.slots_bytes(slots, self._slot(p, b).bytes),
            packed_bytes=int(weights),
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        yield DEFAULT_CONFIG
        most = blocking(
            Problem.of(spec), problem.isa_of(target), target.cores, 64, last=spec.channels_last
        ).mr
        for mr in targets.splits(most, 4):
            yield (("mr", mr),)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        p = Problem.of(spec)
        isa = problem.isa_of(target)
        b = blocking(p, isa, target.cores, dict(config).get("mr"), last=spec.channels_last)
        bits, taps = targets.BITS[p.dtype], p.kernel[2]
        kernel = cache.function(
            b.name(p),
            7,
            partial(
                build, bits, b.mr, taps, b.stride, b.vl, b.kept, multiplier(p), spec.channels_last
            ),
        )
        vectors = -(-p.groups // b.vl)
        slots = min(target.cores, b.tasks)
        slot = self._slot(p, b)
        seconds = b.cycles / problem.cycles_per_second(target, p.dtype, isa)
        geometry = problem.pack_geometry(
            p.geometry()
            | problem.activation_fields(spec)
            | {
                "tasks": b.tasks,
                "grain": targets.grain(b.tasks, slots, seconds),
                "slot_bytes": slot.bytes,
                "rows": b.rows,
                "cols": b.cols,
                "hblocks": -(-p.out[1] // b.rows),
                "wblocks": -(-p.out[2] // b.cols),
                "classes": b.classes,
                "ring": b.ring,
                "pitch": b.pitch,
                # What half of the shared cache holds comes in time by itself; of more, a part comes
                # from memory.  (The lines that a kernel of several planes meets next are not
                # neighbours.)
                "fetches": int(
                    p.kernel[0] == 1 and 2 * sum(p.traffic.values()) > problem.caches()["l3"]
                ),
                "vectors": vectors,
                "task_vectors": b.task_vectors,
                "vector_splits": -(-vectors // b.task_vectors),
                "at_bias": slot.bias,
                "at_buffer": slot.buffer,
                "at_slab": slot.slab,
                "at_sums": slot.sums,
            }
        )
        return PanelExecutable(
            kernel, packer(p, b.vl), geometry, (),
            slots=slots, slot_bytes=slot.bytes, seconds=seconds,
        )  # fmt: skip

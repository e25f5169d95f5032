"""Lowering: from the problem asked for to the one a solver is good at.

A solver refuses what it does not handle and names the feature.  For most features there is a
:class:`~convjit.steps.Step` to a simpler problem with the same answer.  :func:`lower` asks, takes a
step, and asks again, so the chain of steps is exactly what this solver needs and no more.  All
buffers of the chain come out of the one workspace that the core allocates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convjit import layout as layouts
from convjit import precision, profiling
from convjit.algorithms.epilogue import epilogue
from convjit.algorithms.workspace import aligned, carve, nbytes
from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction
from convjit.spi import Array, Config, Executable, Phase, Refusal, Solver, Target, Work
from convjit.steps import Step, next_step

MAX_STEPS = 20


@dataclass(frozen=True, slots=True)
class Lowered:
    """A solver, the problem it gets, and the steps that lead there (outermost first)."""

    solver: Solver
    spec: ConvSpec
    steps: tuple[Step, ...]
    work: Work

    @property
    def label(self) -> str:
        return " + ".join((*(step.name for step in self.steps), self.solver.id))

    def plan(self, target: Target, config: Config) -> Executable:
        """The executable of the outermost problem."""
        executable = self.solver.plan(self.spec, target, config)
        for step in reversed(self.steps):
            kind = _Groups if step.repeats > 1 else _Lowered
            executable = kind(step, executable)
        return executable


def lower(solver: Solver, spec: ConvSpec, target: Target) -> Lowered | Refusal:
    """The chain of steps after which a solver takes a problem, or why there is none."""
    steps = descend(solver, spec, target)
    return steps if isinstance(steps, Refusal) else complete(solver, spec, steps, target)


def complete(solver: Solver, spec: ConvSpec, steps: list[Step], target: Target) -> Lowered:
    """A solver and the steps that lead to it, with the work of them all."""
    inner = steps[-1].inner if steps else spec
    return Lowered(solver, inner, tuple(steps), _work(solver.estimate(inner, target), steps))


def descend(solver: Solver, spec: ConvSpec, target: Target) -> list[Step] | Refusal:
    """The steps after which a solver takes a problem, or why there are none."""
    steps: list[Step] = []
    seen = {spec}
    current = spec
    while (refusal := solver.refuse(current, target)) is not None:
        step = next_step(refusal.feature, current)
        if isinstance(step, Refusal):
            return step
        if step is None or step.inner in seen or len(steps) == MAX_STEPS:
            if steps:
                after = " + ".join(s.name for s in steps)
                return Refusal(refusal.feature, f"{refusal.reason} (after {after})")
            return refusal
        steps.append(step)
        current = step.inner
        seen.add(current)
    return steps


def _work(inner: Work, steps: list[Step]) -> Work:
    """Work of the whole chain, from the innermost problem outwards."""
    phases = list(inner.phases)
    launches, workspace, pack, packed = (
        inner.launches, inner.workspace, inner.pack, inner.packed_bytes,
    )  # fmt: skip
    pack_bytes = 0.0
    numerics = inner.numerics
    for step in reversed(steps):
        before, after = step.phases()
        phases = before + [_times(p, step.repeats) for p in phases] + after
        pack = None if pack is None else _times(pack, step.repeats)
        launches *= step.repeats
        packed *= step.repeats
        workspace = aligned(workspace) + step.workspace
        if step.fill_rhs:
            pack_bytes += 2.0 * nbytes(step.inner.rhs_shape, step.inner.dtype) * step.repeats
        numerics = Numerics(
            "exact" if step.exact and numerics.is_summation else numerics.method,
            numerics.tile,
            numerics.operands,
            numerics.accumulate,
            numerics.spreads_nonfinite or step.spreads_nonfinite,
            numerics.deterministic,
        )
    if pack_bytes:
        base = pack or Phase("pack")
        moved = {**base.bytes, "copy": base.bytes.get("copy", 0.0) + pack_bytes}
        pack = Phase(base.name, base.flops, base.rate, moved)
    return Work(tuple(phases), numerics, pack, launches, workspace, packed)


def _times(phase: Phase, factor: int) -> Phase:
    if factor == 1:
        return phase
    moved = {level: n * factor for level, n in phase.bytes.items()}
    return Phase(phase.name, phase.flops * factor, phase.rate, moved)


# -------------------------------------------------------------------- execution


def _rest(workspace: Array, start: int) -> Array:
    """The workspace that is left for the inner problem."""
    return workspace[start:]


class _Lowered:
    """A step around an executable: fill, run inside, fill back, epilogue."""

    __slots__ = ("_inner", "_inner_start", "_result_start", "_step", "workspace")

    def __init__(self, step: Step, inner: Executable) -> None:
        self._step = step
        self._inner = inner
        self._result_start = aligned(step.lhs_bytes)
        self._inner_start = step.workspace
        self.workspace = step.workspace + inner.workspace

    def pack(self, rhs: Array) -> Any:
        step = self._step
        if step.fill_rhs is not None:
            inner = _like(rhs, step.inner.rhs_shape, step.inner.dtype)
            step.fill_rhs(inner, rhs)
            return self._inner.pack(inner)
        if step.view_rhs is not None:
            return self._inner.pack(step.view_rhs(rhs))
        return self._inner.pack(rhs)

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        step = self._step
        if step.fill_lhs is not None:
            inner_lhs = carve(workspace, 0, step.inner.lhs_shape, step.inner.dtype)
            with profiling.phase(step.name):
                step.fill_lhs(inner_lhs, lhs)
        else:
            inner_lhs = lhs if step.view_lhs is None else step.view_lhs(lhs)
        if step.fill_result is not None:
            shape, dtype = step.inner.result_shape, step.inner.result_dtype
            inner_out = carve(workspace, self._result_start, shape, dtype)
        else:
            inner_out = out if step.view_result is None else step.view_result(out)
        inner_bias = None
        if step.inner.bias and bias is not None:
            inner_bias = bias.astype(precision.numpy_dtype(step.inner.result_dtype), copy=False)
        space = _rest(workspace, self._inner_start) if self._inner.workspace else None
        self._inner.run(inner_lhs, packed, inner_bias, inner_out, space)
        if step.fill_result is not None:
            with profiling.phase(f"{step.name}, back"):
                step.fill_result(out, inner_out)
        if step.epilogue_outside:
            with profiling.phase("bias, activation"):
                epilogue(np, step.outer, out, bias)


class _Groups:
    """One inner problem per group, on slices of channels."""

    __slots__ = ("_channels", "_inner", "_inner_start", "_result_start", "_step", "workspace")

    def __init__(self, step: Step, inner: Executable) -> None:
        self._step = step
        self._inner = inner
        self._result_start = aligned(step.lhs_bytes)
        self._inner_start = step.workspace
        self.workspace = step.workspace + inner.workspace

    def _slices(self, role: str, array: Array) -> list[Array]:
        """The operand ``x``, ``w`` or ``y`` cut into its groups."""
        spec = self._step.outer
        axis = 0 if role == "w" else layouts.channel_axis(spec.layout, spec.ndim)
        size = array.shape[axis] // spec.groups
        before = (slice(None),) * axis
        return [array[(*before, slice(g * size, (g + 1) * size))] for g in range(spec.groups)]

    def pack(self, rhs: Array) -> Any:
        role = "y" if self._step.outer.direction is Direction.WEIGHT_GRAD else "w"
        packed = []
        for part in self._slices(role, rhs):
            inner = _like(rhs, self._step.inner.rhs_shape, self._step.inner.dtype)
            inner[...] = part
            packed.append(self._inner.pack(inner))
        return packed

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        step, outer = self._step, self._step.outer
        inner_lhs = carve(workspace, 0, step.inner.lhs_shape, step.inner.dtype)
        shape, dtype = step.inner.result_shape, step.inner.result_dtype
        inner_out = carve(workspace, self._result_start, shape, dtype)
        space = _rest(workspace, self._inner_start) if self._inner.workspace else None
        lhs_parts = self._slices("y" if outer.computes_input else "x", lhs)
        result_role = {Direction.FORWARD: "y", Direction.WEIGHT_GRAD: "w"}.get(outer.direction, "x")
        channels = step.inner.result_channels
        for g, (source, result) in enumerate(
            zip(lhs_parts, self._slices(result_role, out), strict=True)
        ):
            with profiling.phase(step.name):
                inner_lhs[...] = source
            inner_bias = None if bias is None else bias[g * channels : (g + 1) * channels]
            self._inner.run(inner_lhs, packed[g], inner_bias, inner_out, space)
            with profiling.phase(f"{step.name}, back"):
                result[...] = inner_out


def _like(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """A new array of the same kind (NumPy's, CuPy's) as another."""
    return np.empty_like(array, dtype=precision.numpy_dtype(dtype), order="C", shape=shape)

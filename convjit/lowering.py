"""Lowering: from the problem asked for to the one a solver is good at.

A solver refuses what it does not handle and names the feature.  For most features there is a
:class:`~convjit.steps.Step` to a simpler problem with the same answer.  :func:`lower` asks, takes a
step, and asks again, so the chain of steps is exactly what this solver needs and no more.  All
buffers of the chain come out of the one workspace that the core allocates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from convjit import arena, precision, profiling
from convjit import layout as layouts
from convjit.algorithms.epilogue import epilogue
from convjit.algorithms.fills import Copy, assign, namespace
from convjit.algorithms.workspace import aligned, carve
from convjit.rules import next_step
from convjit.spec import ConvSpec, Direction
from convjit.spi import (
    DEFAULT_CONFIG,
    Array,
    Backend,
    Config,
    Executable,
    Feature,
    Phase,
    Refusal,
    Solver,
    Target,
    Work,
)
from convjit.steps import Split, Step

MAX_STEPS = 20
# Bytes as which one of a filled second operand counts: the taps of a kernel are few, and so copies
# of them go number by number.
NUMBERS = 3.0

# What is removed from a problem before it is split rather than from each of its parts: operands are
# then copied or cast once.  The number of axes is no such feature, since that step splits too.
BEFORE_SPLIT = frozenset(
    {
        Feature.STRIDED, Feature.LAYOUT, Feature.DTYPE, Feature.GROUPS, Feature.EPILOGUE,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Descent:
    """The steps from a problem to one that a solver takes (outermost first).

    After them comes nothing, or a split, with one descent from each part's inner problem.
    """

    steps: tuple[Step, ...]
    split: Split | None = None
    parts: tuple[Descent, ...] = ()


@dataclass(frozen=True, slots=True)
class Lowered:
    """A solver, the problem it gets, and the steps that lead there (outermost first).

    Where the problem is split, ``parts`` has what its parts were lowered to, and ``spec`` is the
    problem of the part that sums most.
    """

    solver: Solver
    spec: ConvSpec
    steps: tuple[Step, ...]
    work: Work
    split: Split | None = None
    parts: tuple[Lowered, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The steps, the split and the steps of the part that sums most, outermost first."""
        names = tuple(step.name for step in self.steps)
        if self.split is None:
            return names
        return (*names, self.split.name, *_largest(self.parts).names)

    @property
    def label(self) -> str:
        return " + ".join((*self.names, self.solver.id))

    @property
    def outer(self) -> ConvSpec:
        """The problem asked for."""
        if self.steps:
            return self.steps[0].outer
        return self.spec if self.split is None else self.split.outer

    def plan(self, target: Target, config: Config, copy: Copy = assign) -> Executable:
        """The executable of the outermost problem; ``copy`` is what its steps move data with."""
        executable: Executable
        if self.split is None:
            executable = self.solver.plan(self.spec, target, config)
        else:
            inner = [part.plan(target, part.offered(config, target), copy) for part in self.parts]
            parts = [_around(*pair, copy) for pair in zip(self.split.parts, inner, strict=True)]
            executable = _Split(self.split, parts)
        for step in reversed(self.steps):
            executable = _around(step, executable, copy)
        return executable

    def offered(self, config: Config, target: Target) -> Config:
        """A config if the solver offers it for its problem, else the default."""
        configs = iter(self.solver.configs(self.spec, target))
        default = next(configs, DEFAULT_CONFIG)  # the others take longer than the rest of planning
        return config if config == default or config in configs else default


def copy_of(backend: Backend) -> Copy:
    """What moves a backend's arrays: its own ``copy``, or assignment."""
    return getattr(backend, "copy", assign)


def _largest(parts: tuple[Lowered, ...]) -> Lowered:
    return max(parts, key=lambda part: (part.spec.reduction, part.spec.macs))


def lower(solver: Solver, spec: ConvSpec, target: Target) -> Lowered | Refusal:
    """The chain of steps after which a solver takes a problem, or why there is none."""
    descent = descend(solver, spec, target)
    return descent if isinstance(descent, Refusal) else complete(solver, spec, descent, target)


def complete(solver: Solver, spec: ConvSpec, descent: Descent, target: Target) -> Lowered:
    """A solver and the steps that lead to it, with the work of them all."""
    steps, split = descent.steps, descent.split
    if split is None:
        inner = steps[-1].inner if steps else spec
        return Lowered(solver, inner, steps, _work(solver.estimate(inner, target), steps))
    parts = tuple(
        complete(solver, step.inner, below, target)
        for step, below in zip(split.parts, descent.parts, strict=True)
    )
    work = _work(_sum_of_parts(split, parts), steps)
    return Lowered(solver, _largest(parts).spec, steps, work, split, parts)


def descend(solver: Solver, spec: ConvSpec, target: Target) -> Descent | Refusal:
    """The steps after which a solver takes a problem, or why there are none."""
    steps: list[Step] = []
    seen = {spec}
    current = spec
    while (refusal := solver.refuse(current, target)) is not None:
        step = next_step(refusal.feature, current)
        if isinstance(step, Split):
            first = solver.refuse(step.parts[0].inner, target)
            before = None
            if first is not None and first.feature in BEFORE_SPLIT:
                before = next_step(first.feature, current)
            if not isinstance(before, Step):
                return _descend_parts(solver, steps, step, target)
            step = before
        if isinstance(step, Refusal):
            return step
        if step is None or step.inner in seen or len(steps) == MAX_STEPS:
            return _after(steps, refusal)
        steps.append(step)
        current = step.inner
        seen.add(current)
    return Descent(tuple(steps))


def _descend_parts(
    solver: Solver, steps: list[Step], split: Split, target: Target
) -> Descent | Refusal:
    parts = []
    for part in split.parts:
        below = descend(solver, part.inner, target)
        if isinstance(below, Refusal):
            return _after([*steps, part], below)
        parts.append(below)
    return Descent(tuple(steps), split, tuple(parts))


def _after(steps: list[Step], refusal: Refusal) -> Refusal:
    """A refusal that says which steps it follows."""
    if not steps:
        return refusal
    names = " + ".join(step.name for step in steps)
    return Refusal(refusal.feature, f"{refusal.reason} (after {names})")


def _work(inner: Work, steps: tuple[Step, ...]) -> Work:
    """Work of the whole chain, from the innermost problem outwards."""
    phases = list(inner.phases)
    launches, workspace, pack, packed = (
        inner.launches, inner.workspace, inner.pack, inner.packed_bytes,
    )  # fmt: skip
    calls, pack_calls = inner.calls, inner.pack_calls
    numerics = inner.numerics
    for step in reversed(steps):
        before, after = step.phases()
        phases = before + [_times(p, step.repeats) for p in phases] + after
        pack = None if pack is None else _times(pack, step.repeats)
        launches *= step.repeats
        packed *= step.repeats
        calls = step.copies + calls * step.repeats
        pack_calls = step.pack_copies + pack_calls * step.repeats
        workspace = aligned(workspace) + step.workspace
        if step.fill_rhs:
            moved = Phase("pack", bytes={step.level: NUMBERS * step.moved("rhs")})
            pack = moved if pack is None else _plus(pack, moved)
        numerics = replace(
            numerics,
            method="exact" if step.exact and numerics.is_summation else numerics.method,
            spreads_nonfinite=numerics.spreads_nonfinite or step.spreads_nonfinite,
        )
    return Work(
        tuple(phases), numerics, pack, launches, workspace, packed, calls, pack_calls
    )  # fmt: skip


def _sum_of_parts(split: Split, parts: tuple[Lowered, ...]) -> Work:
    """Work of the parts, which run one after the other in the same workspace."""
    works = [
        _work(part.work, (step,)) for step, part in zip(split.parts, parts, strict=True)
    ]  # fmt: skip
    packs = [work.pack for work in works if work.pack is not None]
    numerics = _largest(parts).work.numerics
    return Work(
        (*split.phases(), *(phase for work in works for phase in work.phases)),
        replace(
            numerics,
            spreads_nonfinite=any(work.numerics.spreads_nonfinite for work in works),
            deterministic=all(work.numerics.deterministic for work in works),
        ),
        reduce(_plus, packs) if packs else None,
        sum(work.launches for work in works),
        max(work.workspace for work in works),
        sum(work.packed_bytes for work in works),
        sum(work.calls for work in works),
        sum(work.pack_calls for work in works),
    )


def _plus(one: Phase, other: Phase) -> Phase:
    """Two phases of one family as one."""
    moved = dict(one.bytes)
    for level, n in other.bytes.items():
        moved[level] = moved.get(level, 0.0) + n
    flops = one.flops + other.flops
    # So busy that the sum takes as long as both.
    lasts = one.flops / one.busy + other.flops / other.busy
    return Phase(
        one.name, flops, one.rate or other.rate, moved, flops / lasts if flops else one.busy
    )


def _times(phase: Phase, factor: int) -> Phase:
    if factor == 1:
        return phase
    moved = {level: n * factor for level, n in phase.bytes.items()}
    return replace(phase, flops=phase.flops * factor, bytes=moved)


# -------------------------------------------------------------------- execution


def _rest(workspace: Array, start: int) -> Array:
    """The workspace that is left for the inner problem."""
    return workspace[start:]


def _kind(step: Step) -> str:
    """The kind of a step's copies, for profiles."""
    outer, inner = step.outer, step.inner
    changes = outer.layout != inner.layout and outer.ndim == inner.ndim
    return profiling.LAYOUT if changes or (outer.strided and not inner.strided) else ""


class _Lowered:
    """A step around an executable: fill, run inside, fill back, epilogue."""

    __slots__ = ("_copy", "_inner", "_inner_start", "_result_start", "_step", "workspace")

    def __init__(self, step: Step, inner: Executable, copy: Copy) -> None:
        self._step = step
        self._copy = copy
        self._inner = inner
        self._result_start = aligned(step.lhs_bytes)
        self._inner_start = step.workspace
        self.workspace = step.workspace + inner.workspace

    def pack(self, rhs: Array) -> Any:
        step = self._step
        if step.fill_rhs is not None:
            inner = _like(rhs, step.inner.rhs_shape, step.inner.dtype)
            step.fill_rhs(self._copy, inner, rhs)
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
            with profiling.phase(step.name, _kind(step)):
                step.fill_lhs(self._copy, inner_lhs, lhs)
        else:
            inner_lhs = lhs if step.view_lhs is None else step.view_lhs(lhs)
        if step.fill_result is not None:
            shape, dtype = step.inner.result_shape, step.inner.result_dtype
            inner_out = carve(workspace, self._result_start, shape, dtype)
        else:
            inner_out = out if step.view_result is None else step.view_result(out)
        inner_bias = None
        if step.inner.bias and bias is not None:
            inner_bias = bias if step.fill_bias is None else step.fill_bias(bias)
            kind = precision.numpy_dtype(step.inner.result_dtype)
            inner_bias = inner_bias.astype(kind, copy=False)
        space = _rest(workspace, self._inner_start) if self._inner.workspace else None
        self._inner.run(inner_lhs, packed, inner_bias, inner_out, space)
        if step.fill_result is not None:
            with profiling.phase(f"{step.name}, back", _kind(step)):
                step.fill_result(self._copy, out, inner_out)
        if step.epilogue_outside:
            with profiling.phase("bias, activation"):
                epilogue(namespace(out), step.outer, out, bias)


class _Groups:
    """One inner problem per group, on slices of channels."""

    __slots__ = ("_copy", "_inner", "_inner_start", "_result_start", "_step", "workspace")

    def __init__(self, step: Step, inner: Executable, copy: Copy) -> None:
        self._step = step
        self._copy = copy
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
            self._copy(inner, part)
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
                self._copy(inner_lhs, source)
            inner_bias = None if bias is None else bias[g * channels : (g + 1) * channels]
            self._inner.run(inner_lhs, packed[g], inner_bias, inner_out, space)
            with profiling.phase(f"{step.name}, back"):
                self._copy(result, inner_out)


class _Split:
    """The parts one after the other, in the same workspace, after what empty sums give."""

    __slots__ = ("_parts", "_split", "workspace")

    def __init__(self, split: Split, parts: list[Executable]) -> None:
        self._split = split
        self._parts = parts
        self.workspace = max(part.workspace for part in parts)

    def pack(self, rhs: Array) -> Any:
        return [part.pack(rhs) for part in self._parts]

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        if self._split.has_gaps:
            with profiling.phase(f"{self._split.name}, gaps"):
                self._fill_gaps(bias, out)
        for part, weights in zip(self._parts, packed, strict=True):
            part.run(lhs, weights, bias, out, workspace)

    def _fill_gaps(self, bias: Array | None, out: Array) -> None:
        """Write what bias and activation make of an empty sum wherever a part may not write."""
        spec = self._split.outer
        shape = [1] * out.ndim
        shape[layouts.channel_axis(spec.layout, spec.ndim)] = -1
        sums = _like(out, (spec.result_channels,), spec.result_dtype)
        sums[...] = 0
        sums = sums.reshape(shape)
        epilogue(namespace(sums), spec, sums, bias)
        out[...] = sums


def _around(step: Step, inner: Executable, copy: Copy) -> Executable:
    """A step around the executable of its inner problem."""
    return _Groups(step, inner, copy) if step.repeats > 1 else _Lowered(step, inner, copy)


def _like(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """A new array of the same kind (NumPy's, CuPy's) as another."""
    if type(array) is np.ndarray:
        return arena.empty(shape, precision.numpy_dtype(dtype))
    return namespace(array).empty(shape, precision.numpy_dtype(dtype))

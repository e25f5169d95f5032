"""What a separable layer comes to: its two convolutions, or one pass of a backend that has one.

The way that takes less time runs: as it was measured where both ways are remembered in one entry
(:mod:`convjit.tunedb`), else as the model predicts, which also decides between times that are
alike.  With ``deterministic=True`` one pass runs wherever there is one: which way is faster depends
on the number of threads, and their results may differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from convjit import (
    arguments,
    calibration,
    calls,
    config,
    cost,
    dispatch,
    registry,
    revisions,
    tunedb,
)
from convjit.arguments import Problem, Request
from convjit.errors import ConvSpecError
from convjit.ranking import Candidate
from convjit.spec import ConvSpec, Direction
from convjit.spi import DEFAULT_CONFIG, Config, SeparableSolver, Work
from convjit.tunedb import ALIKE, THEN, Remembered


def pointwise_shape(depth: tuple[int, ...], point: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of ``w_point`` with the dimensions of ``w_depth``.

    Raises
    ------
    ConvSpecError
        If the two do not belong together.
    """
    if len(depth) < 3 or depth[1] != 1:
        raise ConvSpecError(
            f"w_depth has shape {depth}; it must be (C * m, 1, *kernel), one input channel per "
            "kernel."
        )
    pointwise = (*point[:1], depth[0], *(1,) * (len(depth) - 2))
    if point not in (pointwise, pointwise[:2]):
        raise ConvSpecError(
            f"w_point has shape {point}; beside w_depth {depth} it must be (K, {depth[0]}) or "
            f"(K, {depth[0]}{', 1' * (len(depth) - 2)})."
        )
    return pointwise


@dataclass(frozen=True, slots=True)
class Offer:
    """What a separable layer comes to: its halves, and one pass for both if a backend has one.

    Attributes
    ----------
    depth, point : Problem
    request : Request
    halves : tuple of Candidate
        What computes the depthwise and the pointwise convolution; fewer where nothing does.
    backend, solver : str
        Of the one pass; empty where there is none.
    target : str
        Its backend's fingerprint.
    work : Work or None
        Of the one pass, if it takes the layer.
    seconds : float or None
        Predicted for it, the packing included where that is paid in each call.
    refusal : str
        Why there is no such pass; empty where there is one.
    remembered, halves_remembered : Remembered or None
        What one pass and two calls took when they were measured.
    """

    depth: Problem
    point: Problem
    request: Request
    halves: tuple[Candidate, ...]
    backend: str = ""
    solver: str = ""
    target: str = ""
    work: Work | None = None
    seconds: float | None = None
    refusal: str = ""
    remembered: Remembered | None = None
    halves_remembered: Remembered | None = None

    @property
    def specs(self) -> tuple[ConvSpec, ConvSpec]:
        return self.depth.spec, self.point.spec

    @property
    def config(self) -> Config:
        """Block sizes of the one pass."""
        return DEFAULT_CONFIG if self.remembered is None else self.remembered.config

    @property
    def halves_label(self) -> str:
        """What two calls run."""
        return THEN.join(half.label for half in self.halves)

    @property
    def halves_seconds(self) -> float | None:
        """Predicted for two calls."""
        if len(self.halves) < 2:
            return None
        return sum(half.total(self.request.packed) for half in self.halves)

    @property
    def is_measured(self) -> bool:
        """Whether measurements decide: both ways have one, and they differ."""
        one, two = self.remembered, self.halves_remembered
        if one is None or two is None:
            return False
        return max(one.seconds, two.seconds) > ALIKE * min(one.seconds, two.seconds)

    @property
    def why_not(self) -> str:
        """Why no single pass runs: there is none, or two calls are faster; empty where it runs."""
        if self.refusal or self.request.policy.deterministic:
            return self.refusal
        one, two = self.remembered, self.halves_remembered
        if self.is_measured and one is not None and two is not None:
            return "" if one.seconds < two.seconds else f"two calls are faster, {two}"
        is_predicted = (self.seconds or 0.0) < (self.halves_seconds or 0.0)
        return "" if is_predicted else "two calls are predicted to be as fast"

    @property
    def ranked_by(self) -> float:
        """Seconds of the one pass by which those of several backends are compared."""
        return self.seconds or 0.0 if self.remembered is None else self.remembered.seconds

    def separable_solver(self) -> SeparableSolver:
        """What plans the one pass."""
        solver: SeparableSolver = cast(Any, registry.get(self.backend)).separable()
        return solver

    def halves_revisions(self) -> tuple[str, ...]:
        """Of the solvers of the two calls."""
        return tuple(revisions.of_id(half.solver_id) or "" for half in self.halves)


def offer(
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], dtype: str,
    biases: tuple[bool, bool], operator: dict[str, Any], activations: tuple[Any, Any],
    choice: dict[str, Any], *, packed: bool,
) -> Offer:  # fmt: skip
    """What a layer comes to; one pass where a backend has it and it is faster.

    Parameters
    ----------
    shapes : (x, w_depth, w_point)
        The last with the dimensions of ``w_depth``.
    dtype : str
    biases : (bool, bool)
        Whether the depthwise and the pointwise convolution have one.
    operator, activations, choice
        As :func:`convjit.separable.find` takes them.
    packed : bool
    """
    depth = arguments.forward_problem(
        shapes[0], shapes[1], direction=Direction.FORWARD, dtype=dtype,
        activation=activations[0], bias=biases[0], **operator,
    )  # fmt: skip
    point = arguments.forward_problem(
        depth.result_shape, shapes[2], direction=Direction.FORWARD, dtype=dtype,
        activation=activations[1], bias=biases[1],
        **{**calls.OPERATOR, "layout": operator["layout"]},
    )  # fmt: skip
    request = calls.make_request(
        {name: choice.get(name) for name in calls.CHOICE},
        is_plain=False, packed=packed, array_type="numpy:ndarray",
    )  # fmt: skip
    asked = [dispatch.candidates(problem.spec, request) for problem in (depth, point)]
    halves = [next((c for c in each if c.refusal is None), None) for each in asked]
    found = Offer(depth, point, request, tuple(half for half in halves if half is not None))
    if request.algorithm is not None:
        return replace(found, refusal=f"algorithm={request.algorithm!r} is of the two calls")
    if len(found.halves) < 2:
        return replace(found, refusal="one of the two convolutions is computed by nothing")
    names = dict.fromkeys(c.backend for each in (found.halves, asked[0]) for c in each)
    passes = list(_passes(found, names))
    if not passes:
        alone = f"the backend {next(iter(names))} has no such pass"
        return replace(found, refusal=alone if len(names) == 1 else "no backend has such a pass")
    able = [one for one in passes if not one.refusal]
    return min(able, key=lambda one: one.ranked_by) if able else passes[0]


def _passes(found: Offer, names: Iterable[str]) -> Iterator[Offer]:
    """The offer with the one pass of each backend that has one, or why it does not take it."""
    for name in names:
        backend = registry.get(name)
        offered = getattr(backend, "separable", None)
        if offered is not None:
            yield _asked(replace(found, backend=name, solver=offered().id))


def _asked(found: Offer) -> Offer:
    """The offer with what the one pass of its backend says."""
    if found.solver in config.current().disable:
        return replace(found, refusal="disabled by disable= or CONVJIT_DISABLE")
    if dispatch.has_failed(found.solver):
        return replace(found, refusal="it failed in this process")
    solver, target = found.separable_solver(), calibration.target(registry.get(found.backend))
    refusal = solver.refuse(*found.specs, target)
    if refusal is not None:
        return replace(found, refusal=refusal.reason)
    work = solver.estimate(*found.specs, target)
    limit = found.request.policy.workspace_limit
    if limit is not None and work.workspace > limit:
        return replace(
            found,
            refusal=f"needs a workspace of {work.workspace} bytes, workspace_limit is {limit}",
        )
    seconds = cost.seconds(work, target)
    seconds += 0.0 if found.request.packed else cost.pack_seconds(work, target)
    found = replace(found, target=target.fingerprint, work=work, seconds=seconds)
    known = tunedb.find(found.backend, found.target, found.specs)
    if known is None or found.request.policy.deterministic:
        return found
    revision, packed = revisions.revision(solver), found.request.packed
    one = tunedb.recall(known, found.solver, revision, solver.configs(*found.specs, target), packed)
    revision = THEN.join(found.halves_revisions())
    two = tunedb.recall(known, found.halves_label, revision, (DEFAULT_CONFIG,), packed)
    return replace(found, remembered=one, halves_remembered=two)

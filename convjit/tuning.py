"""Tuning: candidates and their block sizes measured here, and the times remembered.

Every candidate that the filters admit is measured as :mod:`convjit.turns` says, but for those that
are predicted to take :data:`HOPEFUL` times longer than another.  Whatever was measured when the
budget is spent, or when the user interrupts, is remembered.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from convjit import dispatch, tunedb
from convjit.arguments import Problem, Request
from convjit.dispatch import Trial
from convjit.errors import ConvSpecError
from convjit.explanation import random_operands
from convjit.plans import Plan
from convjit.spec import ConvSpec
from convjit.spi import Config
from convjit.tunedb import Row, sizes
from convjit.turns import BUDGET, KINDS, Calls, Search, Way

HOPEFUL = 6.0  # times the least prediction: up to where the model may be wrong


@dataclass(frozen=True, slots=True)
class Tuning:
    """What tuning a problem found; prints itself.

    Attributes
    ----------
    spec : str
    rows : tuple of (backend, Row)
        What was measured, the fastest with packed weights first.
    planned, plain : str
        What runs from now on, with packed weights and in a plain call.
    before : str
        What the cost model chose, with packed weights.
    gain : float
        Its time over that of what runs now, both measured; 1 if it stays.
    seconds : float
        Spent, compiling included.
    ended : str
        Why it ended: a sentence.
    failures : tuple of (label, reason)
        Candidates that could not be measured.
    skipped : tuple of (label, reason)
        Candidates that were not begun, because compiling their kernels would overrun the budget.
    chosen : Row or None
        The measurement of what runs with packed weights.
    is_finished : bool
        False if the budget was spent before everything that promised a gain was measured.
    is_new : bool
        False if everything was remembered already.
    """

    spec: str
    rows: tuple[tuple[str, Row], ...]
    planned: str
    plain: str
    before: str
    gain: float
    seconds: float
    ended: str
    failures: tuple[tuple[str, str], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    chosen: Row | None = None
    is_finished: bool = True
    is_new: bool = True

    def __str__(self) -> str:
        from convjit.tables import milliseconds, table

        rows = [
            (row.label, backend, sizes(row.config), milliseconds(row.seconds),
             milliseconds(row.plain_seconds))
            for backend, row in self.rows
        ]  # fmt: skip
        lines = [self.spec, ""]
        columns = ["algorithm", "backend", "block sizes", ">packed ms", ">plain ms"]
        lines += [table(columns, rows), ""] if rows else []
        lines += [f"{label} could not be measured: {reason}" for label, reason in self.failures]
        lines += [f"{label} was skipped: {reason}" for label, reason in self.skipped]
        lines += [f"with packed weights: {self.planned}; the cost model: {self.before}"]
        lines += [f"a plain call: {self.plain}", f"{self.ended} ({self.seconds:.1f} s)"]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "spec": self.spec, "planned": self.planned, "plain": self.plain, "before": self.before,
            "gain": self.gain, "seconds": self.seconds, "ended": self.ended, "is_new": self.is_new,
            "is_finished": self.is_finished, "failures": dict(self.failures),
            "skipped": dict(self.skipped),
            "rows": [{"backend": backend, **row.as_dict()} for backend, row in self.rows],
        }  # fmt: skip


class Choice(NamedTuple):
    """What runs, and why."""

    label: str
    config: Config
    reason: str

    def __str__(self) -> str:
        return f"{self.label} ({sizes(self.config)}), {self.reason}"


def remember(search: Search, specs: Sequence[ConvSpec]) -> None:
    """Keep what was measured, under each backend's own key."""
    for backend in dict.fromkeys(c.way.backend for c in search.done):
        own = [c for c in search.done if c.way.backend == backend]
        rows = [c.row for c in own if isfinite(c.taken[False])]
        if rows:
            target = own[0].way.target
            tunedb.remember(backend, target, specs, rows, finished=search.finished)


def recalled(search: Search, specs: Sequence[ConvSpec]) -> list[tuple[str, Row]]:
    """The rows that are remembered of a problem, or of one in its bucket, with their backends."""
    rows: dict[tuple[str, Row], None] = {}
    for way in search.ways:
        found = tunedb.find(way.backend, way.target, specs)
        rows |= dict.fromkeys((way.backend, row) for row in (found.rows if found else ()))
    return list(rows)


def is_remembered(search: Search, specs: Sequence[ConvSpec]) -> bool:
    """Whether all ways were measured, of the problem or of one in its bucket."""
    for way in search.ways:
        found = tunedb.find(way.backend, way.target, specs)
        if found is None or not found.finished:
            return False
        revision = tunedb.THEN.join(way.revisions)
        if (way.label, revision) not in {(r.label, r.revision) for r in found.rows}:
            return False
    return bool(search.ways)


def tuned(
    search: Search, specs: Sequence[ConvSpec], choices: dict[bool, Choice], start: float,
    *, is_new: bool,
) -> Tuning:  # fmt: skip
    """What a search found, or is remembered.

    Parameters
    ----------
    search : Search
    specs : sequence of ConvSpec
    choices : mapping of bool to Choice
        What runs from now on, with packed weights and in a plain call.
    start : float
        When it began, by ``time.perf_counter``.
    is_new : bool
        Whether the search was run.
    """
    if is_new:
        ours = [(c.way.backend, c.row) for c in search.done]
    else:
        ours = recalled(search, specs)
    ours.sort(key=lambda pair: pair[1].seconds)
    rows = {(row.label, row.config): row for _, row in ours}
    defaults = {way.label: way.configs[0] for way in search.ways}
    now = rows.get((choices[True].label, choices[True].config))
    before = rows.get((search.model, defaults.get(search.model, ())))
    gain = before.seconds / now.seconds if before is not None and now is not None else 1.0
    return Tuning(
        tunedb.THEN.join(map(str, specs)), tuple(ours), str(choices[True]), str(choices[False]),
        search.model, gain, time.perf_counter() - start,
        search.ended or "remembered; again=True (--again) measures anew",
        tuple(search.failures.items()), tuple(search.skipped.items()), now,
        search.finished or not is_new, is_new,
    )  # fmt: skip


def worth_measuring(trials: list[Trial]) -> list[Trial]:
    """Those that are not predicted to be hopeless, packed or plain."""
    best = {
        kind: min((t.candidate.total(kind) for t in trials), default=0.0) for kind in KINDS
    }  # fmt: skip
    return [
        trial
        for number, trial in enumerate(trials)
        if number == 0 or any(trial.candidate.total(k) <= HOPEFUL * best[k] for k in KINDS)
    ]


def ways_of(problem: Problem, trials: list[Trial]) -> list[Way]:
    """The candidates as they are measured, on random operands."""
    lhs, rhs, bias = random_operands(problem)

    def way(trial: Trial) -> Way:
        candidate = trial.candidate

        def plan(config: Config) -> Plan | None:
            found = trial.plan(config)
            return found if found.config == config else None

        def calls(plan: Plan) -> Calls:
            packed = plan.pack(rhs)
            found: dict[bool, Any] = {True: lambda: plan(lhs, packed, bias)}
            if candidate.work is not None and candidate.work.pack is not None:
                found[False] = lambda: plan(lhs, rhs, bias)
            return found

        return Way(
            candidate.label, (candidate.solver_id,), (trial.revision,), candidate.backend,
            trial.target, trial.configs, plan, calls,
        )  # fmt: skip

    return [way(trial) for trial in worth_measuring(trials)]


def _choice(problem: Problem, request: Request, search: Search) -> Choice:
    """What runs from now on.  It is planned, unless that would compile what was skipped."""
    admitted = [
        c for c in dispatch.candidates(problem.spec, request) if c.refusal is None
    ]  # fmt: skip
    for way in search.ways if search.skipped and admitted else ():
        if way.label == admitted[0].label:
            remembered = admitted[0].remembered
            config = way.configs[0] if remembered is None else remembered.config
            if search.compiles(way, config):
                return Choice(way.label, config, dispatch.reason(request, admitted))
    plan = dispatch.select(problem, request, np.ndarray)
    return Choice(plan.label, plan.config, plan.reason)


def check(request: Request, budget: float) -> None:
    """Whether something can be tuned so; raises what :func:`tune_problem` says."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise TypeError(f"budget_s={budget!r} is not a number of seconds; give one such as 10.")
    if not budget > 0:
        raise ConvSpecError(f"budget_s={budget!r} must be more than 0: seconds for a problem.")
    if request.policy.deterministic:
        raise ConvSpecError(
            "deterministic=True was given, under which measurements decide nothing, since they "
            "differ between runs and numbers of threads; tune without it."
        )


def tune_problem(
    problem: Problem, request: Request, *, budget: float = BUDGET, again: bool = False
) -> Tuning:
    """Measure a problem and remember what was found (what :func:`convjit.tune` does).

    Parameters
    ----------
    problem : Problem
    request : Request
        What is refused under it is not measured.
    budget : float
        Seconds, after which nothing further is begun.
    again : bool
        Measure what is remembered too.

    Raises
    ------
    ConvSpecError
        For a budget that is not positive, and for ``deterministic=True``.
    TypeError
        For a budget that is no number.
    UnsupportedError, BackendError
        As a plan of the problem raises.
    """
    check(request, budget)
    start = time.perf_counter()
    spec = problem.spec
    if spec.is_empty:
        label = dispatch.select(problem, request, np.ndarray).label
        ended = "no product is summed, so there is nothing to choose"
        return Tuning(str(spec), (), label, label, label, 1.0, 0.0, ended, is_new=False)
    trials = dispatch.trials(problem, request, np.ndarray)
    model = min(trials, key=lambda t: t.candidate.total(request.packed), default=None)
    label = model.candidate.label if model is not None else ""
    search = Search(ways_of(problem, trials), label, budget)
    is_new = again or not is_remembered(search, (spec,))
    if is_new:
        try:
            search.run()
        finally:
            remember(search, (spec,))
    choices = {k: _choice(problem, replace(request, packed=k), search) for k in KINDS}
    return tuned(search, (spec,), choices, start, is_new=is_new)

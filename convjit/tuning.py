"""Tuning: candidates and their block sizes measured here, and the times remembered.

What is measured, and in which order:

1. Every candidate that the filters admit with its default block sizes, the likely ones first;
   what is predicted to take :data:`HOPEFUL` times longer than another is left out.  What is twice
   as slow as another drops out after one short turn.
2. What is left takes turns: each turn is the lower quartile of some calls, and the best turn
   counts.  Turns alternate between the candidates, so that a machine that is busy for a while slows
   all of them down, and between calls with packed and with plain weights.
3. The other block sizes of the fastest solver, then of the next of those that are left; after
   :data:`PATIENCE` solvers in turn whose block sizes gain less than :data:`GAIN` it ends.
4. The fastest once more, beside the model's choice; after the budget, too, but then in one turn.

Whatever was measured when the budget is spent, or when the user interrupts, is remembered.

Compiling counts to the budget, and cannot be broken off.  What it will take is expected from what
it took in this search, with the same solver or else with others; of a candidate whose kernels have
to be compiled first, and will not be in time, nothing is begun.  The first candidate is always
measured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np

from convjit import dispatch, registry, tunedb
from convjit.arguments import Problem, Request
from convjit.dispatch import Trial
from convjit.errors import BackendError, ConvSpecError
from convjit.explanation import low_quartile, random_operands
from convjit.plans import Plan
from convjit.spi import Config
from convjit.tunedb import Row, sizes

BUDGET = 30.0  # seconds for a problem; compiling all its kernels takes most of it, once
COMPILING = 3.0  # seconds of it that a candidate is expected to take before any has told more
GAIN, PATIENCE = 1.03, 2
HOPEFUL = 6.0  # times the least prediction: up to where the model may be wrong
DROP, CONTEND = 2.0, 1.25  # times the fastest: what drops out at once, and what stays after a turn
PROBE, TURN = 0.01, 0.04  # seconds of the first turn, and of each later one
LONG = 0.1  # seconds of a call that is not repeated within a turn
ROUNDS = 3
FINALISTS = 3
_KINDS = (True, False)  # calls with packed weights, and with plain ones

_log = logging.getLogger("convjit")


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


@dataclass(slots=True)
class _Contender:
    """A candidate with one choice of block sizes, and the times that it took so far."""

    trial: Trial
    config: Config
    plan: Plan
    packed: Any
    taken: dict[bool, float] = field(default_factory=lambda: dict.fromkeys(_KINDS, inf))

    @property
    def row(self) -> Row:
        trial = self.trial
        return Row(
            trial.candidate.solver_id, trial.candidate.label, trial.revision, self.config,
            self.taken[True], self.taken[False],
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.trial.candidate.label} ({sizes(self.config)})"


class _Search:
    """The measuring of one problem: what was measured, and the seconds that are left."""

    def __init__(self, problem: Problem, request: Request, budget: float) -> None:
        self.problem, self.request = problem, request
        self.trials = dispatch.trials(problem, request, np.ndarray)
        self.done: list[_Contender] = []
        self.failures: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self._compiled: dict[str, list[float]] = {}  # seconds of beginnings, by solver
        self.ended, self.finished = "", False
        self.model = min(
            self.trials, key=lambda t: t.candidate.total(request.packed), default=None
        )  # what the cost model would choose
        self._end = time.perf_counter() + budget
        self._lhs, self._rhs, self._bias = random_operands(problem)

    # ---------------------------------------------------------------- measuring

    def best(self, packed: bool) -> float:
        """Seconds of the fastest so far."""
        return min((c.taken[packed] for c in self.done), default=inf)

    def is_near(self, contender: _Contender, factor: float) -> bool:
        """Whether it takes less than ``factor`` times the fastest, packed or plain."""
        return any(contender.taken[kind] <= factor * self.best(kind) for kind in _KINDS)

    def is_late(self) -> bool:
        """Whether the budget is spent; says so."""
        if time.perf_counter() < self._end:
            return False
        self.ended = "ended by the budget: tune again to go on"
        return True

    def turn(self, contender: _Contender, seconds: float = TURN, least: int = 3) -> None:
        """Measure once more, both kinds of call; the best turn counts."""
        if LONG < contender.taken[True] < inf:
            least = 1

        def planned() -> object:
            return contender.plan(self._lhs, contender.packed, self._bias)

        def plain() -> object:
            return contender.plan(self._lhs, self._rhs, self._bias)

        taken, work = contender.taken, contender.trial.candidate.work
        taken[True] = min(taken[True], low_quartile(planned, seconds, least))
        if work is None or work.pack is None:
            taken[False] = taken[True]
        else:
            taken[False] = min(taken[False], low_quartile(plain, seconds, least))

    def begin(self, trial: Trial, config: Config) -> _Contender | None:
        """Plan, compile and measure for the first time; None if that fails or is much too slow."""
        label = trial.candidate.label
        compiles = self._compiles(trial, config)
        if compiles and self._is_too_long(trial, config):
            return None
        _log.info("measuring %s (%s)", label, sizes(config))
        start = time.perf_counter()
        try:
            plan = trial.plan(config)
            if plan.config != config:  # they need more than workspace_limit
                return None
            contender = _Contender(trial, config, plan, plan.pack(self._rhs))
            self.turn(contender, PROBE, 1)
        except MemoryError as error:
            self.failures[label] = str(error)
            return None
        except Exception as error:  # whatever a solver raises
            told = (
                str(error)
                if isinstance(error, BackendError)
                else f"{type(error).__name__}: {error}"
            )
            self.failures[label] = told
            if config == trial.configs[0]:  # as where it fails in a call
                dispatch.exclude(trial.candidate.solver_id, told)
            return None
        finally:
            if compiles:
                taken = time.perf_counter() - start
                self._compiled.setdefault(trial.candidate.solver_id, []).append(taken)
        self.done.append(contender)
        if self.is_near(contender, DROP):
            return contender
        contender.packed = None
        return None

    def _compiles(self, trial: Trial, config: Config) -> bool:
        """Whether a kernel has to be compiled first, as far as the backend can tell."""
        ask = getattr(registry.get(trial.candidate.backend), "uncompiled", None)
        return callable(ask) and bool(ask(lambda: trial.plan(config)))

    def _is_too_long(self, trial: Trial, config: Config) -> bool:
        """Whether what it compiles is expected not to be ready in time; says so.

        A solver's kernels take alike: the longest of its own counts, else the mean of the others.
        """
        if not self.done:
            return False
        own = self._compiled.get(trial.candidate.solver_id)
        others = [taken for each in self._compiled.values() for taken in each]
        expected = max(own) if own else sum(others) / len(others) if others else COMPILING
        left = self._end - time.perf_counter()
        if expected <= left:
            return False
        self.skipped[f"{trial.candidate.label} ({sizes(config)})"] = (
            f"compiling it takes some {expected:.1f} s, "
            f"of the budget {max(left, 0.0):.1f} s are left"
        )
        return True

    def rounds(self, contenders: Iterable[_Contender], count: int) -> list[_Contender]:
        """Turns of each in turn; what falls behind drops out.  The rest is left."""
        left = list(contenders)
        for number in range(count + 1):
            near = CONTEND if number else DROP
            for contender in left:
                if not self.is_near(contender, near):
                    contender.packed = None  # it may be large
            left = [contender for contender in left if contender.packed is not None]
            for contender in left if number < count else ():
                if self.is_late():
                    return left
                self.turn(contender)
        return left

    # ---------------------------------------------------------------- the stages

    def run(self) -> None:
        """All stages, or as many as the budget allows; the last one in any case."""
        self._search()
        self._confirm()
        if self.is_late():
            return
        if self.skipped:
            self.ended = "ended by the budget, into which nothing more fits: tune again to go on"
        else:
            self.ended, self.finished = "everything that promised a gain was measured", True

    def _search(self) -> None:
        left = self.rounds(self._defaults(), ROUNDS)
        in_vain = 0
        for contender in sorted(left, key=self._behind):
            if self.is_late() or in_vain == PATIENCE:
                return
            if len(contender.trial.configs) == 1:
                continue
            others = self._other_sizes(contender)
            self.rounds([contender, *others], ROUNDS)
            gain = max(
                contender.taken[kind] / min((c.taken[kind] for c in others), default=inf)
                for kind in _KINDS
            )
            in_vain = 0 if gain >= GAIN else in_vain + 1

    def _behind(self, contender: _Contender) -> float:
        """Its time over the fastest one's, packed or plain, whichever is nearer."""
        return min(contender.taken[kind] / self.best(kind) for kind in _KINDS)

    def _confirm(self) -> None:
        """Turns of the fastest beside the model's choice, which a disturbed turn may have cost."""
        last = [c for c in self.done if c.trial is self.model][:1]
        for kind in _KINDS:
            fastest = sorted(self.done, key=lambda c: c.taken[kind])[:FINALISTS]
            last += [contender for contender in fastest if contender not in last]
        for contender in last:
            if contender.packed is None:
                contender.packed = contender.plan.pack(self._rhs)
        for _ in range(1 if self.is_late() else ROUNDS):
            for contender in last:
                self.turn(contender)

    def _defaults(self) -> list[_Contender]:
        found: list[_Contender] = []
        for trial in worth_measuring(self.trials):
            if self.done and self.is_late():
                break
            begun = self.begin(trial, trial.configs[0])
            found += [begun] if begun is not None else []
        return found

    def _other_sizes(self, contender: _Contender) -> list[_Contender]:
        """The solver's other block sizes that are worth more turns."""
        found: list[_Contender] = []
        for config in contender.trial.configs[1:]:
            if self.is_late():
                break
            begun = self.begin(contender.trial, config)
            found += [begun] if begun is not None else []
        return found

    # ---------------------------------------------------------------- what is remembered

    def is_remembered(self) -> bool:
        """Whether all that is worth it was measured, of the problem or of one in its bucket."""
        for trial in worth_measuring(self.trials):
            candidate = trial.candidate
            found = tunedb.find(candidate.backend, trial.target, self.problem.spec)
            if found is None or not found.finished:
                return False
            if (candidate.label, trial.revision) not in {(r.label, r.revision) for r in found.rows}:
                return False
        return bool(self.trials)

    def remember(self) -> None:
        """Keep what was measured, under each backend's own key."""
        for backend in dict.fromkeys(c.trial.candidate.backend for c in self.done):
            own = [c for c in self.done if c.trial.candidate.backend == backend]
            rows = [c.row for c in own if isfinite(c.taken[False])]
            if rows:
                tunedb.remember(
                    backend, own[0].trial.target, self.problem.spec, rows,
                    finished=self.finished,
                )  # fmt: skip

    def tuning(self, is_new: bool, seconds: float) -> Tuning:
        """What was found, or is remembered, and what runs from now on."""
        choices = {packed: self._choice(packed) for packed in _KINDS}
        chosen, model = choices[True], self.model
        if is_new:
            ours = [(c.trial.candidate.backend, c.row) for c in self.done]
        else:
            ours = self._recalled()
        ours.sort(key=lambda pair: pair[1].seconds)
        rows = {(row.label, row.config): row for _, row in ours}
        label = model.candidate.label if model is not None else ""
        now = rows.get((chosen.label, chosen.config))
        before = rows.get((label, model.configs[0] if model is not None else ()))
        gain = before.seconds / now.seconds if before is not None and now is not None else 1.0
        return Tuning(
            str(self.problem.spec), tuple(ours), str(chosen), str(choices[False]), label, gain,
            seconds, self.ended or "remembered; again=True (--again) measures anew",
            tuple(self.failures.items()), tuple(self.skipped.items()), now,
            self.finished or not is_new, is_new,
        )  # fmt: skip

    def _choice(self, packed: bool) -> _Choice:
        """What runs from now on.  It is planned, unless that would compile what was skipped."""
        request = replace(self.request, packed=packed)
        admitted = [
            c for c in dispatch.candidates(self.problem.spec, request) if c.refusal is None
        ]  # fmt: skip
        for trial in self.trials if self.skipped and admitted else ():
            if trial.candidate.label == admitted[0].label:
                remembered = admitted[0].remembered
                config = trial.configs[0] if remembered is None else remembered.config
                if self._compiles(trial, config):
                    reason = dispatch.reason(request, admitted)
                    return _Choice(trial.candidate.label, config, reason)
        plan = dispatch.select(self.problem, request, np.ndarray)
        return _Choice(plan.label, plan.config, plan.reason)

    def _recalled(self) -> list[tuple[str, Row]]:
        """The rows that are remembered of the problem, or of one in its bucket."""
        rows: dict[tuple[str, Row], None] = {}
        for trial in self.trials:
            backend = trial.candidate.backend
            found = tunedb.find(backend, trial.target, self.problem.spec)
            rows |= dict.fromkeys((backend, row) for row in (found.rows if found else ()))
        return list(rows)


class _Choice(NamedTuple):
    """What runs, and why."""

    label: str
    config: Config
    reason: str

    def __str__(self) -> str:
        return f"{self.label} ({sizes(self.config)}), {self.reason}"


def worth_measuring(trials: list[Trial]) -> list[Trial]:
    """Those that are not predicted to be hopeless, packed or plain."""
    best = {
        kind: min((t.candidate.total(kind) for t in trials), default=0.0) for kind in _KINDS
    }  # fmt: skip
    return [
        trial
        for number, trial in enumerate(trials)
        if number == 0 or any(trial.candidate.total(k) <= HOPEFUL * best[k] for k in _KINDS)
    ]


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
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise TypeError(f"budget_s={budget!r} is not a number of seconds; give one such as 10.")
    if not budget > 0:
        raise ConvSpecError(f"budget_s={budget!r} must be more than 0: seconds for a problem.")
    if request.policy.deterministic:
        raise ConvSpecError(
            "deterministic=True was given, under which measurements decide nothing, since they "
            "differ between runs and numbers of threads; tune without it."
        )
    start = time.perf_counter()
    spec = problem.spec
    if spec.is_empty:
        label = dispatch.select(problem, request, np.ndarray).label
        ended = "no product is summed, so there is nothing to choose"
        return Tuning(str(spec), (), label, label, label, 1.0, 0.0, ended, is_new=False)
    search = _Search(problem, request, budget)
    is_new = again or not search.is_remembered()
    if is_new:
        try:
            search.run()
        finally:
            search.remember()
    return search.tuning(is_new, time.perf_counter() - start)

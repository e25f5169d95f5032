"""Regret: the time of what the cost model chose over that of the best it could have chosen.

Every candidate is timed that is not hopeless by the model's own word, and whose first calls do not
take several times longer than the best one's.  Those in the running, of which the choice always is
one, take turns, so that a disturbance meets all of them; the lower quartile of a candidate's calls
counts.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convjit import calls
from convjit.bench.heldout import Trial
from convjit.errors import ConvSpecError
from convjit.explanation import Explanation, explain_problem, plan_of, random_operands

# Candidates predicted to take this many times longer than the choice are left out, and those that
# take this many times longer than the best in the first calls, of which the least counts.
HOPELESS = 20.0
BEATEN = 3.0
FIRST_CALLS = 3
LONG = 0.03  # seconds, of which one call is enough
ROUNDS = 6
# Of a candidate in one of its turns.
LEAST_CALLS = 2


@dataclass(frozen=True, slots=True)
class Timed:
    """A candidate with its predicted and measured seconds of a call."""

    label: str
    predicted: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """A trial and its candidates in the model's order, the choice first."""

    trial: Trial
    timed: tuple[Timed, ...]

    @property
    def chosen(self) -> Timed:
        return self.timed[0]

    @property
    def best(self) -> Timed:
        return min(self.timed, key=lambda candidate: candidate.seconds)

    @property
    def regret(self) -> float:
        """1 where the choice was right, 1.5 where it takes half as long again as the best."""
        return self.chosen.seconds / self.best.seconds


def explained(trial: Trial) -> Explanation:
    """The choice for a trial, with the policies of the call that it stands for."""
    shapes, options = calls.described(trial.problem)
    options["nonfinite"] = "local" if trial.plain else "spread"
    bias = options.pop("bias")
    problem, request, _ = calls.problem_and_request(
        *shapes, bias, options.pop("direction"), options.pop("dtype"), trial.packed, options
    )
    return explain_problem(problem, request)


def measured(trial: Trial, seconds: float = 0.03) -> Row:
    """Time the candidates of a trial.

    Parameters
    ----------
    trial : Trial
    seconds : float
        To spend on each candidate that is in the running, beside its first two calls.

    Raises
    ------
    BackendError
        If a candidate fails while it runs.
    ConvSpecError
        If there is nothing to choose from.
    """
    found = explained(trial)
    if not found.admitted:
        raise ConvSpecError(
            f"{trial.spec}: {found.reason}; give a problem that something computes."
        )
    lhs, rhs, bias = random_operands(found.problem)
    limit = HOPELESS * found.admitted[0].total(trial.packed)
    running: list[tuple[str, float, Callable[[], object], list[float]]] = []
    for candidate in found.admitted:
        predicted = candidate.total(trial.packed)
        if predicted > limit:
            continue
        plan = plan_of(found.problem, found.request, candidate)
        second = plan.pack(rhs) if trial.packed else rhs

        def run(plan: Any = plan, second: Any = second) -> object:
            return plan(lhs, second, bias)

        run()
        first = [_timed(run) for _ in range(FIRST_CALLS if predicted < LONG else 1)]
        running.append((candidate.label, predicted, run, [min(first)]))
    best = min(times[0] for *_, times in running)
    shuffled = random.Random(0)
    for _ in range(ROUNDS):
        for number in shuffled.sample(range(len(running)), len(running)):
            _, _, call, times = running[number]
            if number == 0 or times[0] <= BEATEN * best:
                end, least = time.perf_counter() + seconds / ROUNDS, LEAST_CALLS
                while least > 0 or time.perf_counter() < end:
                    times.append(_timed(call))
                    least -= 1
    rows = [Timed(label, p, sorted(times)[len(times) // 4]) for label, p, _, times in running]
    return Row(trial, tuple(rows))


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def geometric_mean(rows: Iterable[Row]) -> float:
    """Of the regrets."""
    logs = [math.log(row.regret) for row in rows]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def as_dict(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "geometric_mean": geometric_mean(rows),
        "worst": max((row.regret for row in rows), default=math.nan),
        "rows": [
            {
                "group": row.trial.group, "spec": row.trial.spec, "packed": row.trial.packed,
                "regret": row.regret, "timed": [asdict(one) for one in row.timed],
            }
            for row in rows
        ],
    }  # fmt: skip


def text(rows: Sequence[Row], *, detail: bool = False) -> str:
    """The table: one line for a trial, then one for a group, then the totals.

    Parameters
    ----------
    rows : sequence of Row
    detail : bool
        Whether to list every candidate that was timed, with predicted and measured times.
    """
    from convjit.tables import milliseconds, table

    lines: list[list[object]] = []
    for row in rows:
        best = row.best if row.best is not row.chosen else None
        lines.append([
            f"{row.regret:.2f}", row.trial.title, row.chosen.label,
            milliseconds(row.chosen.predicted), milliseconds(row.chosen.seconds),
            best.label if best else "", milliseconds(best.predicted) if best else "",
            milliseconds(best.seconds) if best else "",
        ])  # fmt: skip
        if detail:
            lines += [
                ["", "", one.label, milliseconds(one.predicted), milliseconds(one.seconds), "", "",
                 ""]
                for one in row.timed[1:]
            ]  # fmt: skip
    columns = [
        ">regret", "problem", "chosen", ">predicted ms", ">ms", "best", ">predicted ms", ">ms",
    ]  # fmt: skip
    groups = dict.fromkeys(row.trial.group for row in rows)
    by_group = {name: [row for row in rows if row.trial.group == name] for name in groups}
    summary = [
        [name, len(part), f"{geometric_mean(part):.3f}", f"{max(r.regret for r in part):.2f}"]
        for name, part in [*by_group.items(), ("all", list(rows))]
    ]
    total = table(["group", ">problems", ">geometric mean", ">worst"], summary)
    return f"{table(columns, lines)}\n\n{total}"

"""Whether this installation computes what it should: the named cases, by every healthy backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from convjit import registry
from convjit.errors import BackendError
from convjit.health import State
from convjit.tables import markdown, table
from convjit.testing.cases import CASES, QUICK, Case
from convjit.testing.check import Outcome, check

# What admits every solver, as the conformance suite forces them.
WIDEST = {"precision": "fast", "nonfinite": "spread"}


@dataclass(slots=True)
class Result:
    """What became of the cases on one backend."""

    backend: str
    device: str
    passed: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    worst: float = 0.0  # the largest error over its bound
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        if outcome.complaint:
            self.failures.append(str(outcome))
        elif outcome.refusal:
            self.refused += 1
        else:
            self.passed += 1
            if outcome.bound > 0:
                self.worst = max(self.worst, outcome.error / outcome.bound)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "backend": self.backend, "device": self.device, "passed": self.passed,
            "refused": self.refused, "failed": len(self.failures), "failures": self.failures,
            "worst_error_over_bound": self.worst, "seconds": self.seconds,
        }  # fmt: skip


def backends_to_test(
    names: Sequence[str], device: str | None
) -> tuple[list[tuple[str, str]], list[str]]:
    """((name, device) of the healthy backends asked for, one line for each other).

    Without names these are all that were found; a backend that is named has to work.

    Raises
    ------
    ConfigError
        For an unknown name.
    BackendError
        For a named backend that is broken or blocked, and for a device that none works on.
    """
    if names:
        chosen = [registry.get(name) for name in dict.fromkeys(names)]
        wrong = [b.name for b in chosen if device is not None and b.device != device]
        if wrong:
            raise BackendError(f"backend {wrong[0]!r} is not on the device {device!r}.")
        return [(b.name, b.device) for b in chosen], []
    rows = registry.status(load=registry.names())
    healthy = [
        (r.name, r.device)
        for r in rows
        if r.state is State.LOADED and (device is None or r.device == device)
    ]
    told = [f"{r.name} is {r.state}: {r.reason}" for r in rows if r.state is not State.LOADED]
    if not healthy:
        what = f"no backend for the device {device!r} works here" if device else "no backend works"
        raise BackendError(f"{what}{''.join(f'; {line}' for line in told)}.")
    return healthy, told


def run(
    chosen: Sequence[tuple[str, str]],
    *,
    full: bool = False,
    each_solver: bool = False,
    told: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Check the quick cases, or all, on each of the backends.

    Parameters
    ----------
    chosen : sequence of (name, device)
    full : bool
    each_solver : bool
        Whether every case is forced on each of a backend's solvers too.
    told : callable
        Given one line for each failure as it is found.
    """
    cases: tuple[Case, ...] = CASES if full else QUICK
    results = []
    for name, device in chosen:
        result = Result(name, device)
        start = time.perf_counter()
        solvers = [solver.id for solver in registry.solvers(name)] if each_solver else []
        for case, algorithm in product(cases, (None, *solvers)):
            choice = WIDEST if algorithm else None
            try:
                result.add(check(case, name, algorithm=algorithm, choice=choice))
            except Exception as error:  # whatever is raised is a failure of the case
                result.failures.append(f"{case}: {type(error).__name__}: {error}")
            if result.failures and result.failures[-1].startswith(str(case)):
                told(f"{name}: {result.failures[-1]}")
        result.seconds = time.perf_counter() - start
        results.append(result)
    return results


def text(results: Sequence[Result]) -> str:
    """The table."""
    return table(
        ["backend", "device", ">passed", ">refused", ">failed", ">worst error / bound", ">s"],
        [
            (r.backend, r.device, r.passed, r.refused, len(r.failures), f"{r.worst:.2f}",
             f"{r.seconds:.1f}")
            for r in results
        ],
    )  # fmt: skip


def report(results: Sequence[Result], measured: str) -> str:
    """What was found of a GPU, in Markdown, for an issue."""
    columns = ["backend", ">passed", ">refused", ">failed", ">worst error / bound", ">s"]
    rows = [
        (r.backend, r.passed, r.refused, len(r.failures), f"{r.worst:.2f}", f"{r.seconds:.1f}")
        for r in results
    ]
    failures = [f"- {r.backend}: {line}" for r in results for line in r.failures]
    parts = ["### convjit selftest", measured, markdown(columns, rows), *failures]
    return "\n\n".join(parts)

"""Many problems tuned one after the other: what ``python -m convjit tune`` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convjit import calls, precision, registry, revisions, tunedb
from convjit.errors import BackendError, ConfigError, UnsupportedError
from convjit.planning import tune, tune_separable
from convjit.spec import ConvSpec
from convjit.tables import milliseconds, table
from convjit.tunedb import Row, sizes
from convjit.tuning import Tuning


@dataclass(frozen=True, slots=True)
class Tuned:
    """What became of one problem.

    Attributes
    ----------
    spec : str
    tuning : Tuning or None
        None if it cannot be computed.
    failure : str
        Why not, else empty.
    """

    spec: str
    tuning: Tuning | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One call of :func:`convjit.tune`, or of :func:`convjit.tune_separable`.

    Attributes
    ----------
    name : str
        For people.
    shapes : tuple of tuples of int
        Two, or three of a separable layer.
    given : mapping
        Its keyword arguments.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    given: Mapping[str, Any]

    @classmethod
    def of_spec(cls, word: str, **choice: Any) -> Job:
        """The job of a spec under what constrains the choice."""
        shapes, given = calls.described(ConvSpec.parse(word))
        given["dtype"] = precision.numpy_dtype(given["dtype"])
        return cls(word, shapes, given | choice)

    @classmethod
    def of_layer(cls, depth: ConvSpec, point: ConvSpec, **choice: Any) -> Job:
        """The job of a separable layer."""
        shapes, given = calls.described(depth)
        operator = {name: given[name] for name in calls.OPERATOR if name != "groups"}
        more = {
            "dtype": precision.numpy_dtype(depth.dtype), "depth_bias": depth.bias,
            "bias": point.bias, "depth_activation": depth.activation,
            "activation": point.activation,
        }  # fmt: skip
        name = tunedb.THEN.join(map(str, (depth, point)))
        return cls(name, (*shapes, point.w_shape), operator | more | choice)


def tune_jobs(
    jobs: Sequence[Job],
    *,
    budget: float,
    again: bool = False,
    began: Callable[[str], None] = lambda spec: None,
) -> Iterator[Tuned]:
    """Tune problems within one budget; what one does not need is left for the others.

    Parameters
    ----------
    jobs : sequence of Job
    budget : float
        Seconds for all of them.
    again : bool
        Measure what is remembered too.
    began : callable
        Called with each name before it is measured.
    """
    end = time.perf_counter() + budget
    for number, job in enumerate(jobs):
        began(job.name)
        left = max(end - time.perf_counter(), 1e-3)  # even then the first candidate is measured
        try:
            share = left / (len(jobs) - number)
            call = tune if len(job.shapes) == 2 else tune_separable
            yield Tuned(job.name, call(*job.shapes, budget_s=share, again=again, **job.given))
        except (UnsupportedError, BackendError, MemoryError) as error:
            yield Tuned(job.name, None, f"{type(error).__name__}: {error}")


# -------------------------------------------------------------------- on the command line


def text(found: Sequence[Tuned]) -> str:
    """One problem in detail; of several a line each, and what tuning gains in all."""
    if len(found) == 1 and found[0].tuning is not None:
        return str(found[0].tuning)
    rows, alone, before, after = [], 0, 0.0, 0.0
    for one in found:
        tuning = one.tuning
        if tuning is None:
            continue
        chosen = tuning.chosen
        rows.append(
            (one.spec, tuning.planned if chosen is None else chosen.label,
             "-" if chosen is None else sizes(chosen.config),
             milliseconds(None if chosen is None else chosen.seconds), f"{tuning.gain:.2f}",
             "measured" if tuning.is_new else "remembered", f"{tuning.seconds:.1f}")
        )  # fmt: skip
        if tunedb.THEN in tuning.spec:  # whose two convolutions are lines of their own
            continue
        alone += 1
        if chosen is not None:
            after += chosen.seconds
            before += chosen.seconds * tuning.gain
    columns = ["spec", "runs", "block sizes", ">packed ms", ">gain", "", ">seconds"]
    lines = [table(columns, rows)] if rows else []
    lines += [f"failed: {one.spec}: {one.failure}" for one in found if one.failure]
    if after:
        lines.append(
            f"{alone} problems with packed weights: {before * 1e3:.4g} ms as the cost model "
            f"chooses, {after * 1e3:.4g} ms from now on"
        )
    late = sum(one.tuning is not None and not one.tuning.is_finished for one in found)
    if late:
        lines.append(f"{late} not finished within the budget; tune again to go on")
    lines.append(f"remembered in {tunedb.DATABASE.path}")
    return "\n".join(lines)


def state(backend: str, target: str, row: Row) -> str:
    """Whether a measurement still counts: ``"in force"``, or why not."""
    try:
        if registry.get(backend).target().fingerprint != target:
            return "another machine"
        now = [revisions.of_id(name) for name in row.solver.split(tunedb.THEN)]
    except (BackendError, ConfigError):
        return "no such backend"
    if None in now:
        return "no such solver"
    return "in force" if now == row.revision.split(tunedb.THEN) else "kernel changed"


def listing() -> str:
    """What is remembered, a line for each problem and backend."""
    rows = []
    for backend, target, found in tunedb.everything():
        best = min(found.rows, key=lambda row: row.seconds, default=None)
        if best is not None:
            rows.append(
                (found.name, best.label, sizes(best.config), milliseconds(best.seconds),
                 backend, target, found.date, state(backend, target, best))
            )  # fmt: skip
    if not rows:
        return f"nothing is remembered in {tunedb.DATABASE.path}"
    columns = ["spec", "fastest", "block sizes", ">packed ms", "backend", "machine", "measured", ""]
    return table(columns, rows)

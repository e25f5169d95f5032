"""Profiling: what every call computed, by what, for how long, and how near to the machine's peak.

For users, ``with convjit.profile() as prof:`` records the calls of every thread while the block
lasts; blocks nest, and each records all that happens inside it.

For the core::

    if profiling.enabled:            # a module global: all that profiling costs when off
        with profiling.call(spec=..., backend=..., solver=..., label=..., flops=..., ...):
            run()

For backends and lowerings, anywhere inside a call::

    with profiling.phase("transform"):        # does nothing when off; nests
        ...

Times are :func:`time.perf_counter_ns` of the host.  A phase belongs to the innermost call of its
own thread; one outside of any call is kept beside the calls.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Self

from convjit.errors import ConvSpecError

# Whether any profiler is active.  Read as ``profiling.enabled``, never imported by name.
enabled = False

_lock = threading.Lock()
_active: tuple[profile, ...] = ()  # replaced as a whole, so that readers need no lock
_local = threading.local()  # .stack: the calls and phases of this thread that are open

SORT_KEYS = ("total", "calls", "ms", "gflops", "peak", "cold", "spec", "label", "first")


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """A stage of a call.

    Attributes
    ----------
    name : str
    start, seconds : float
        When it began, in seconds since the profiler was entered, and how long it took.
    depth : int
        0 for a phase directly inside its call, 1 for one inside that, ...
    thread : int
        Native id.
    """

    name: str
    start: float
    seconds: float
    depth: int
    thread: int


@dataclass(frozen=True, slots=True)
class Record:
    """One call.

    Attributes
    ----------
    spec, backend, solver : str
    label : str
        Lowering and solver, as ``explain`` shows it.
    start, seconds : float
        When it began, in seconds since the profiler was entered, and how long it took.
    flops : float
        Of the direct algorithm, whichever ran: rates are effective ones.
    peak : float
        Flop/s of the machine in the accumulator's dtype, 0 where unknown.
    cold : bool
        Whether the executable ran for the first time in this process, compilation included.
    thread : int
        Native id.
    phases : tuple of PhaseRecord
        In the order in which they began.
    failed : bool
        Whether it raised.
    """

    spec: str
    backend: str
    solver: str
    label: str
    start: float
    seconds: float
    flops: float
    peak: float
    cold: bool
    thread: int
    phases: tuple[PhaseRecord, ...] = ()
    failed: bool = False

    @property
    def gflops(self) -> float:
        """Effective rate, in 10^9 operations of the direct algorithm a second."""
        return self.flops / self.seconds / 1e9 if self.seconds > 0 else 0.0

    @property
    def share_of_peak(self) -> float | None:
        """Effective rate over the peak; above 1 where an algorithm saves arithmetic."""
        return self.gflops * 1e9 / self.peak if self.peak > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "spec": self.spec, "backend": self.backend, "solver": self.solver, "label": self.label,
            "start": self.start, "seconds": self.seconds, "gflops": self.gflops,
            "share_of_peak": self.share_of_peak, "cold": self.cold, "failed": self.failed,
            "thread": self.thread,
            "phases": [
                {"name": p.name, "start": p.start, "seconds": p.seconds, "depth": p.depth}
                for p in self.phases
            ],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the records of a profile.

    Attributes
    ----------
    calls, cold_calls : int
    seconds : float
        Spent inside calls, summed over threads.
    cold_seconds : float
        The part of it in cold calls.
    flops : float
    phases : mapping of name to seconds
        Without what lies in phases inside them; what no phase covers is under ``"(other)"``.
    """

    calls: int
    cold_calls: int
    seconds: float
    cold_seconds: float
    flops: float
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def gflops(self) -> float:
        return self.flops / self.seconds / 1e9 if self.seconds > 0 else 0.0


class profile:
    """Record every call inside a block, on all threads.

    Attributes
    ----------
    records : list of Record
        Calls in the order in which they ended.
    phases : list of PhaseRecord
        Phases outside of any call (a plan's ``pack``, say).

    Examples
    --------
    >>> with convjit.profile() as prof:            # doctest: +SKIP
    ...     convjit.conv(x, w, padding=1)
    >>> print(prof.table(sort_by="total"))         # doctest: +SKIP
    >>> prof.chrome_trace("trace.json")            # open in ui.perfetto.dev  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.phases: list[PhaseRecord] = []
        self._epoch = 0
        self._threads: dict[int, str] = {}

    def __enter__(self) -> Self:
        global _active, enabled
        with _lock:
            if any(p is self for p in _active):
                raise RuntimeError("this profile is already recording; make another profile().")
            if not self._epoch:
                self._epoch = perf_counter_ns()
            _active = (*_active, self)
            enabled = True
        return self

    def __exit__(self, *exception: object) -> None:
        global _active, enabled
        with _lock:
            _active = tuple(p for p in _active if p is not self)
            enabled = bool(_active)

    # ---------------------------------------------------------------- reading

    @property
    def totals(self) -> Totals:
        """Sums over all records."""
        phases: dict[str, float] = {}
        for record in self.records:
            for name, taken in exclusive(record).items():
                phases[name] = phases.get(name, 0.0) + taken
        cold = [r for r in self.records if r.cold]
        return Totals(
            len(self.records),
            len(cold),
            sum(r.seconds for r in self.records),
            sum(r.seconds for r in cold),
            sum(r.flops for r in self.records),
            phases,
        )

    def table(self, sort_by: str = "total", *, group: bool = True) -> str:
        """The records as a table.

        Parameters
        ----------
        sort_by : str
            ``"total"`` (seconds), ``"calls"``, ``"ms"`` (of a warm call), ``"gflops"``,
            ``"peak"``, ``"cold"`` (milliseconds), all from the largest; ``"spec"``, ``"label"``
            by the alphabet; ``"first"`` in the order of calls.
        group : bool
            One row for all calls of one problem by one algorithm, instead of one a call.

        Raises
        ------
        ConvSpecError
            For an unknown ``sort_by``.
        """
        if sort_by not in SORT_KEYS:
            raise ConvSpecError(
                f"sort_by={sort_by!r} is not known; choose one of {', '.join(SORT_KEYS)}."
            )
        from convjit.tables import milliseconds, percent, table

        rows = sorted(_rows(self.records, group), key=lambda row: row.key(sort_by))
        totals = self.totals
        caption = (
            f"{totals.calls} calls, {milliseconds(totals.seconds)} ms, of which cold "
            f"{totals.cold_calls} calls, {milliseconds(totals.cold_seconds)} ms; "
            f"{totals.gflops:.1f} GFLOP/s effective"
        )
        if totals.phases:
            shares = sorted(totals.phases.items(), key=lambda item: -item[1])
            told = ", ".join(f"{name} {milliseconds(s)} ms" for name, s in shares)
            caption += f"\nphases: {told}"
        return table(
            ["spec", "algorithm", "backend", ">calls", ">total ms", ">ms", ">GFLOP/s", ">% peak",
             ">cold ms", "phases, ms"],
            [
                (r.spec, r.label, r.backend, r.calls, milliseconds(r.seconds),
                 milliseconds(r.warm), "-" if r.gflops is None else f"{r.gflops:.1f}",
                 percent(r.share), milliseconds(r.cold), r.phases)
                for r in rows
            ],
            caption=caption,
        )  # fmt: skip

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<convjit.profile: {len(self.records)} calls>"

    def as_dict(self) -> dict[str, Any]:
        """Records and totals, for JSON."""
        totals = self.totals
        return {
            "calls": totals.calls, "seconds": totals.seconds, "cold_calls": totals.cold_calls,
            "cold_seconds": totals.cold_seconds, "gflops": totals.gflops,
            "phases": dict(totals.phases), "records": [r.as_dict() for r in self.records],
        }  # fmt: skip

    def chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the Trace Event Format that Perfetto and ``chrome://tracing`` open.

        A call is a complete event named by its algorithm, with the spec and the rate among its
        arguments; its phases lie inside it.
        """
        import json

        Path(path).write_text(json.dumps(self.trace_events()), encoding="utf-8")

    def trace_events(self) -> dict[str, Any]:
        """What :meth:`chrome_trace` writes."""
        pid = os.getpid()
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": "convjit"}}
        ]
        events += [
            {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
            for tid, name in sorted(self._threads.items())
        ]

        def complete(name: str, kind: str, item: Record | PhaseRecord, args: Any) -> dict[str, Any]:
            start, end = _microseconds(item.start), _microseconds(item.start + item.seconds)
            return {
                "ph": "X", "name": name, "cat": kind, "pid": pid, "tid": item.thread,
                "ts": start, "dur": round(end - start, 3), "args": args,
            }  # fmt: skip

        spans: list[dict[str, Any]] = []
        for record in self.records:
            args = record.as_dict()
            del args["phases"], args["thread"], args["start"]
            spans.append(complete(record.label, "call", record, args))
            spans += [complete(p.name, "phase", p, {"spec": record.spec}) for p in record.phases]
        spans += [complete(p.name, "phase", p, {}) for p in self.phases]
        # Importers nest spans of one thread by time; the enclosing one has to come first.
        spans.sort(key=lambda e: (e["ts"], -e["dur"]))
        return {"traceEvents": events + spans, "displayTimeUnit": "ms"}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


# -------------------------------------------------------------------- rows of the table


def exclusive(record: Record) -> dict[str, float]:
    """Seconds of a call by phase, each without the phases inside it, so that they add up.

    Empty for a call without phases; else the rest of the call is under ``"(other)"``.
    """
    if not record.phases:
        return {}
    found: dict[str, float] = {"(other)": record.seconds}
    enclosing = ["(other)"]
    for phase in record.phases:  # in the order in which they began, so that the stack is right
        del enclosing[phase.depth + 1 :]
        found[phase.name] = found.get(phase.name, 0.0) + phase.seconds
        found[enclosing[-1]] -= phase.seconds
        enclosing.append(phase.name)
    return found


@dataclass(slots=True)
class _Row:
    """Calls of one problem by one algorithm."""

    order: int
    spec: str
    label: str
    backend: str
    calls: int
    seconds: float
    warm: float | None  # of one call, the mean of the warm ones
    gflops: float | None
    share: float | None
    cold: float | None
    phases: str

    def key(self, sort_by: str) -> tuple[Any, int]:
        """What to sort by; rows that lack it come last."""
        values: dict[str, Any] = {
            "total": -self.seconds,
            "calls": -self.calls,
            "ms": -(self.warm or 0.0),
            "gflops": -(self.gflops or 0.0),
            "peak": -(self.share or 0.0),
            "cold": -(self.cold or 0.0),
            "spec": self.spec,
            "label": self.label,
            "first": self.order,
        }
        return values[sort_by], self.order


def _rows(records: Iterable[Record], group: bool) -> list[_Row]:
    number = itertools.count()
    groups: dict[Any, list[Record]] = {}
    for record in records:
        key = (record.spec, record.label, record.backend) if group else next(number)
        groups.setdefault(key, []).append(record)
    return [_row(order, members) for order, members in enumerate(groups.values())]


def _row(order: int, records: list[Record]) -> _Row:
    first = records[0]
    warm = [r for r in records if not r.cold]
    mean = sum(r.seconds for r in warm) / len(warm) if warm else None
    gflops = first.flops / mean / 1e9 if mean else None
    phases: dict[str, float] = {}
    for record in records:
        for name, taken in exclusive(record).items():
            phases[name] = phases.get(name, 0.0) + taken
    ranked = sorted(phases.items(), key=lambda item: -item[1])[:4]
    return _Row(
        order, first.spec, first.label, first.backend, len(records),
        sum(r.seconds for r in records), mean, gflops,
        gflops * 1e9 / first.peak if gflops and first.peak > 0 else None,
        sum(r.seconds for r in records if r.cold) or None,
        ", ".join(f"{name} {seconds * 1e3:.3g}" for name, seconds in ranked),
    )  # fmt: skip


# -------------------------------------------------------------------- recording


def _stack() -> list[_Span]:
    """The open calls and phases of this thread, outermost first."""
    stack: list[_Span] | None = getattr(_local, "stack", None)
    if stack is None:
        stack = _local.stack = []
    return stack


class _Span:
    """An open call or phase; who listens is decided when it begins."""

    __slots__ = ("began", "listeners", "thread")

    def __init__(self) -> None:
        self.listeners: tuple[profile, ...] = ()
        self.began = 0
        self.thread = 0

    def __enter__(self) -> None:
        self.listeners = _active
        self.thread = threading.get_native_id()
        _stack().append(self)
        self.began = perf_counter_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended = perf_counter_ns()
        stack = _stack()
        stack.pop()
        name = threading.current_thread().name
        for listener in self.listeners:
            listener._threads.setdefault(self.thread, name)
        self.finish(stack, ended - self.began, kind is not None)

    def finish(self, stack: list[_Span], duration: int, failed: bool) -> None:
        raise NotImplementedError


class _Phase(_Span):
    """An open phase."""

    __slots__ = ("depth", "name", "owner")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.owner: call | None = None
        self.depth = 0

    def __enter__(self) -> None:
        for span in reversed(_stack()):
            if isinstance(span, call):
                self.owner = span
                break
            self.depth += 1
        super().__enter__()

    def finish(self, stack: list[_Span], duration: int, failed: bool) -> None:
        if self.owner is not None:
            self.owner.phases.append((self.name, self.began, duration, self.depth))
            return
        for listener in self.listeners:
            listener.phases.append(_phase_record(self, listener._epoch, self.thread, duration))


def _phase_record(phase: _Phase, epoch: int, thread: int, duration: int) -> PhaseRecord:
    return PhaseRecord(phase.name, (phase.began - epoch) / 1e9, duration / 1e9, phase.depth, thread)


class call(_Span):
    """Record one call of an executable (the core's; see the module's docstring).

    Parameters
    ----------
    spec, backend, solver, label : str
    flops : float
        Of the direct algorithm.
    peak : float
        Flop/s, 0 where unknown.
    cold : bool
        Whether this is the executable's first run in this process.
    """

    __slots__ = ("backend", "cold", "flops", "label", "peak", "phases", "solver", "spec")

    def __init__(
        self,
        *,
        spec: str,
        backend: str,
        solver: str,
        label: str,
        flops: float,
        peak: float = 0.0,
        cold: bool = False,
    ) -> None:
        super().__init__()
        self.spec, self.backend, self.solver, self.label = spec, backend, solver, label
        self.flops, self.peak, self.cold = float(flops), float(peak), cold
        self.phases: list[tuple[str, int, int, int]] = []

    def finish(self, stack: list[_Span], duration: int, failed: bool) -> None:
        phases = sorted(self.phases, key=lambda p: (p[1], p[3]))
        for listener in self.listeners:
            epoch = listener._epoch
            listener.records.append(
                Record(
                    self.spec, self.backend, self.solver, self.label, (self.began - epoch) / 1e9,
                    duration / 1e9, self.flops, self.peak, self.cold, self.thread,
                    tuple(
                        PhaseRecord(name, (began - epoch) / 1e9, took / 1e9, depth, self.thread)
                        for name, began, took, depth in phases
                    ),
                    failed,
                )
            )  # fmt: skip


class _Nothing:
    """What :func:`phase` gives when nobody records."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        return None


_NOTHING = _Nothing()


def phase(name: str) -> _Phase | _Nothing:
    """A context manager that records a stage of the call around it; nothing when off."""
    return _Phase(name) if enabled else _NOTHING

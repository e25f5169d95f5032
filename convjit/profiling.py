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

While nobody records, a planned call reads ``enabled`` twice, 8 ns each (of 4 us that the smallest
takes, on Zen 4), and a step around a kernel enters a phase that does nothing, 60 ns.

Times are :func:`time.perf_counter_ns` of the host.  A phase belongs to the innermost call of its
own thread; one outside of any call is kept beside the calls.
"""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Self

from convjit.errors import ConvjitWarning
from convjit.records import COMPILE as COMPILE
from convjit.records import LAYOUT as LAYOUT
from convjit.records import PACK as PACK
from convjit.records import PhaseRecord, Record, Totals, exclusive

# Whether any profiler is active.  Read as ``profiling.enabled``, never imported by name.
enabled = False

_lock = threading.Lock()
_active: tuple[profile, ...] = ()  # replaced as a whole, so that readers need no lock
_local = threading.local()  # .stack: the calls and phases of this thread that are open


class profile:
    """Record every call inside a block, on all threads.

    At its end a :class:`~convjit.errors.ConvjitWarning` tells of every considerable waste of time
    and its remedy (:attr:`advice`): weights packed again and again, changes of layout that
    dominate, a fallback that ran because something faster could not.

    Parameters
    ----------
    warn : bool
        Whether to warn at the end of the block.

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

    def __init__(self, *, warn: bool = True) -> None:
        self.records: list[Record] = []
        self.phases: list[PhaseRecord] = []
        self._warn = warn
        self._epoch = 0
        self.threads: dict[int, str] = {}

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
        # An enclosing profile saw the same calls, and will speak of them.
        if self._warn and not enabled and exception[0] is None:
            for sentence in self.advice:
                warnings.warn(sentence, ConvjitWarning, stacklevel=2)

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
        from convjit import profiled

        return profiled.table_of(self, sort_by, group)

    @property
    def advice(self) -> tuple[str, ...]:
        """What wasted time, each with its remedy, the most expensive first."""
        from convjit import profiled

        return profiled.advice_of(self.records)

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
            "phases": dict(totals.phases), "advice": list(self.advice),
            "records": [r.as_dict() for r in self.records],
        }  # fmt: skip

    def trace_events(self) -> dict[str, Any]:
        """What :meth:`chrome_trace` writes."""
        from convjit import profiled

        return profiled.trace_of(self)

    def chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the Trace Event Format that Perfetto and ``chrome://tracing`` open.

        A call is a complete event named by its algorithm, with the spec and the rate among its
        arguments; its phases lie inside it.
        """
        import json

        Path(path).write_text(json.dumps(self.trace_events()), encoding="utf-8")


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
            listener.threads.setdefault(self.thread, name)
        self.finish(stack, ended - self.began, kind is not None)

    def finish(self, stack: list[_Span], duration: int, failed: bool) -> None:
        raise NotImplementedError


class _Phase(_Span):
    """An open phase."""

    __slots__ = ("depth", "kind", "name", "owner", "spec")

    def __init__(self, name: str, kind: str, spec: object) -> None:
        super().__init__()
        self.name, self.kind, self.spec = name, kind, spec
        self.owner: call | None = None
        self.depth = 0

    def __enter__(self) -> None:
        for span in reversed(_stack()):
            if isinstance(span, call):
                self.owner = span
                break
            self.depth += 1
            self.spec = self.spec or getattr(span, "spec", "")
        super().__enter__()

    def finish(self, stack: list[_Span], duration: int, failed: bool) -> None:
        if self.owner is not None:
            self.owner.phases.append((self.name, self.began, duration, self.depth, self.kind))
            return
        for listener in self.listeners:
            listener.phases.append(_phase_record(self, listener._epoch, self.thread, duration))


def _phase_record(phase: _Phase, epoch: int, thread: int, duration: int) -> PhaseRecord:
    return PhaseRecord(
        phase.name, (phase.began - epoch) / 1e9, duration / 1e9, phase.depth, thread, phase.kind,
        str(phase.spec),
    )  # fmt: skip


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
    fallback : str
        What better there would be and why it does not run.
    """

    __slots__ = (
        "backend",
        "cold",
        "fallback",
        "flops",
        "label",
        "peak",
        "phases",
        "solver",
        "spec",
    )

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
        fallback: str = "",
    ) -> None:
        super().__init__()
        self.spec, self.backend, self.solver, self.label = spec, backend, solver, label
        self.flops, self.peak, self.cold = float(flops), float(peak), cold
        self.fallback = fallback
        self.phases: list[tuple[str, int, int, int, str]] = []

    def finish(self, stack: list[_Span], duration: int, failed: bool) -> None:
        phases = sorted(self.phases, key=lambda p: (p[1], p[3]))
        for listener in self.listeners:
            epoch = listener._epoch
            listener.records.append(
                Record(
                    self.spec, self.backend, self.solver, self.label, (self.began - epoch) / 1e9,
                    duration / 1e9, self.flops, self.peak, self.cold, self.thread,
                    tuple(
                        PhaseRecord(
                            name, (began - epoch) / 1e9, took / 1e9, depth, self.thread, kind
                        )
                        for name, began, took, depth, kind in phases
                    ),
                    failed, self.fallback,
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


def phase(name: str, kind: str = "", spec: object = "") -> _Phase | _Nothing:
    """A context manager that records a stage of the call around it; nothing when off.

    Parameters
    ----------
    name : str
    kind : str
        ``PACK``, ``LAYOUT`` or ``COMPILE`` for what is not computing.
    spec : object
        The problem, for phases outside of calls; those inside of such a phase are for it too.
    """
    return _Phase(name, kind, spec) if enabled else _NOTHING

"""Measured figures over the tables of the backends: measuring them, keeping them, laying them over.

Every backend ships a :class:`~convjit.spi.Target` out of a table.  :func:`calibrate` measures what
the backend has :mod:`~convjit.gauges` for; :func:`target` is the table with those figures over it.
They are kept by the target's fingerprint, so that another processor, another number of threads or
another version of the toolchain begins with the table again; and a rate of a solver's kernels with
their revision (:mod:`convjit.revisions`), so that another kernel does, while what was measured of
the machine and of other kernels stays.

A machine that others use at the same time is measured nevertheless: there are several passes over
all the gauges, of each the calls that were disturbed least count, and a figure that passes do not
agree on, or that no machine has, is not kept.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from convjit import cost, health, registry, revisions, staleness
from convjit._version import __version__
from convjit.errors import BackendError, ConvjitWarning
from convjit.gauges import SECONDS, TABLES, Gauge, Run
from convjit.spi import Backend, Target
from convjit.store import Store

Progress = Callable[[int], AbstractContextManager[Callable[[str], None]]]

VERSION = 2  # 1 did not know the kernels of its rates
STORE = Store("calibration.json", VERSION)

PASSES = 3
MOST_PASSES = 5  # over figures that the first ones do not agree on
BUDGET = 8.0  # seconds, after which nothing is measured a second time
TURN = 0.02  # seconds of calls in a pass, beside the first one
CALLS = 3, 200  # in a turn, at least and at most
OWN = 0.1  # of a gauge's time, at least, is its own
TURNS = 20  # until rates that share calls stand: each turn halves the error at least
QUANTILE = 0.1  # of a turn's calls, the least disturbed

# Best pass over the median one.  Above the first the figure is measured again, above the second it
# is not kept.
STEADY, UNSTEADY = 1.15, 1.6
# Measured over the table's: beyond the first it is said, beyond the second it is not believed.
# Rows of processors that nobody measured are off by a factor of two.
TELLING, INCREDIBLE = 3.0, 12.0
# Of a backend's gauges; with more refused than this, the machine is too busy to calibrate it.
REFUSED = 1 / 3


# -------------------------------------------------------------------- what is remembered

_over: dict[str, tuple[Mapping[str, Any], Target, Target]] = {}


def target(backend: Backend) -> Target:
    """A backend's device, with measured figures where this machine was calibrated."""
    shipped = backend.target()
    key = _key(backend.name, shipped.fingerprint)
    entry = STORE.entries().get(key)
    if entry is None:
        return shipped
    known = _over.get(key)
    if known is not None and known[0] is entry and known[1] is shipped:
        return known[2]
    found = _laid_over(shipped, entry, _outdated(backend, entry))
    _over[key] = entry, shipped, found
    return found


def state(backend: Backend) -> str:
    """Where the figures of :func:`target` are from, for people."""
    shipped = backend.target()
    entries = STORE.entries()
    entry = entries.get(_key(backend.name, shipped.fingerprint))
    if entry is not None and target(backend).measured:
        told = f"measured on {str(entry.get('measured', '?'))[:10]}"
        void = _outdated(backend, entry)
        if void:
            told += (
                f", but for {len(void)} rates of kernels that have changed since, which are from "
                "a table; python -m convjit calibrate measures again"
            )
        return told
    if shipped.measured:
        return "measured by the backend"
    others = [e for e in entries.values() if e.get("backend") == backend.name]
    if not others:
        return "from a table"
    last = max(others, key=lambda e: str(e.get("measured", "")))
    return (
        f"from a table (what was measured on {str(last.get('measured', '?'))[:10]} is of "
        f"{last.get('fingerprint', 'another machine')}, not of this processor, number of threads "
        "and toolchain; python -m convjit calibrate measures again)"
    )


def _key(backend: str, fingerprint: str) -> str:
    return f"{backend} on {fingerprint}"


def _outdated(backend: Backend, entry: Mapping[str, Any]) -> set[str]:
    """The rates of an entry that were measured of other kernels than the solvers have now."""
    kernels = entry.get("kernels", {})
    if not isinstance(kernels, dict):
        return set()
    now = {solver.id: solver for solver in registry.solvers(backend)}

    def is_same(solver: object, revision: object) -> bool:
        return solver in now and revisions.revision(now[solver]) == revision

    return {
        key
        for key, of in kernels.items()
        if not (isinstance(of, list) and len(of) == 2 and is_same(*of))
    }


def _laid_over(shipped: Target, entry: Mapping[str, Any], outdated: set[str]) -> Target:
    """The table with an entry's figures over it, but for rates that are ``outdated``.

    The table alone where the entry is of no use.
    """
    figures: dict[str, Any] = {}
    for name in TABLES:
        table = entry.get(name, {})
        if not isinstance(table, dict) or not all(map(_is_figure, table.values())):
            return shipped
        figures[name] = {**getattr(shipped, name), **{str(k): float(v) for k, v in table.items()}}
    figures["rates"] |= {key: shipped.rates[key] for key in outdated & shipped.rates.keys()}
    measured = entry.get("rates", {}).keys() - outdated
    for key in shipped.rates:
        if key not in measured:
            now = replace(shipped, peak=figures["peak"])
            figures["rates"][key] *= cost.peak(key, now) / cost.peak(key, shipped)
    for name in SECONDS:
        value = entry.get(name, getattr(shipped, name))
        if not (_is_figure(value) or value == 0.0):
            return shipped
        figures[name] = float(value)
    return replace(shipped, **figures, measured=True)


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0.0


# -------------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a target as it was measured.

    Attributes
    ----------
    backend, figure, key : str
        As in :class:`~convjit.gauges.Gauge`.
    table : float
        What was shipped, 0 where there is nothing.
    measured : float
        Flop/s, byte/s or seconds.
    spread : float
        The median pass over the best, in time: 1 where all passes agree.
    kept : bool
    note : str
        Why it is not kept, or what is remarkable.
    """

    backend: str
    figure: str
    key: str
    table: float
    measured: float
    spread: float
    kept: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What :func:`calibrate` found; prints itself as a table."""

    figures: tuple[Figure, ...]
    kept: tuple[str, ...]  # backends whose figures are in use from now on
    without: tuple[str, ...]  # backends that offer no gauges
    seconds: float  # of measuring
    compiling: float  # seconds before, of a first call of everything
    path: str

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "kept": list(self.kept), "without_gauges": list(self.without), "path": self.path,
            "seconds": self.seconds, "compiling": self.compiling,
            "figures": [{f: getattr(one, f) for f in Figure.__slots__} for one in self.figures],
        }  # fmt: skip

    def __str__(self) -> str:
        from convjit.tables import table

        def shown(value: float, figure: str) -> str:
            if figure in SECONDS:
                return f"{value * 1e6:.2f} µs"
            unit = "GB/s" if figure == "bandwidth" else "GFLOP/s"
            return f"{value / 1e9:.1f} {unit}"

        rows = [
            [
                one.backend, f"{one.figure} {one.key}".rstrip(),
                shown(one.table, one.figure) if one.table else "-",
                shown(one.measured, one.figure), f"{one.spread:.2f}",
                "yes" if one.kept else "no", one.note,
            ]
            for one in self.figures
        ]  # fmt: skip
        columns = ["backend", "figure", ">table", ">measured", ">spread", "kept", "~note"]
        kept = f"{', '.join(self.kept)}: in use from now on, in {self.path}"
        last = [kept if self.kept else "nothing was kept"]
        last += [f"{name} offers nothing to measure" for name in self.without]
        before = f", after {self.compiling:.1f} s of compiling" if self.compiling >= 1.0 else ""
        last += [f"{self.seconds:.1f} s of measuring{before}"]
        return table(columns, rows, caption="\n" + "\n".join(last))


def calibrate(names: Iterable[str] = (), *, progress: Progress | None = None) -> Calibration:
    """Measure the devices of backends with the threads in force, and use the figures from then on.

    Parameters
    ----------
    names : iterable of str
        Backends; every healthy one that has gauges if not given.
    progress : callable, optional
        From a number of steps to a context manager, which gives what is told each step's name.

    Returns
    -------
    Calibration

    Raises
    ------
    BackendError
        If a backend is unknown or broken, offers no gauges though it was named, or a gauge fails.

    Warns
    -----
    ConvjitWarning
        If figures are not kept because the machine is too busy, or cannot be written.
    """
    start = time.perf_counter()
    names = tuple(names)
    chosen = [registry.get(name) for name in names] or _healthy()
    gauged: list[tuple[Backend, Target, list[_Series]]] = []
    without = []
    for backend in chosen:
        offer = getattr(backend, "gauges", None)
        if not callable(offer):
            if names:
                raise BackendError(f"backend {backend.name!r} has no gauges: nothing to measure.")
            without.append(backend.name)
            continue
        shipped = backend.target()
        gauged.append((backend, shipped, [_Series(backend.name, g) for g in offer(shipped)]))
    steps = (1 + PASSES) * sum(len(series) for *_, series in gauged)
    with progress(steps) if progress is not None else nullcontext(_silent) as began:
        for *_, series in gauged:
            for one in series:
                began(f"{one.name} (compiling)")
                one.rehearse()
        ready = time.perf_counter()
        for number, (*_, series) in enumerate(gauged, 1):
            for name in _measure(series, ready + BUDGET * number / len(gauged)):
                began(name)
    figures: list[Figure] = []
    kept = []
    for backend, shipped, series in gauged:
        found = _judged(series, shipped)
        refused = [one for one in found if not one.kept]
        if found and len(refused) <= REFUSED * len(found):
            kept.append(backend.name)
            _store(backend.name, shipped, found, series)
        elif found:
            warnings.warn(
                f"{len(refused)} of {len(found)} figures of backend {backend.name!r} could not be "
                f"measured ({refused[0].figure} {refused[0].key}: {refused[0].note}), so none is "
                "kept. Calibrate again when the machine is idle.",
                ConvjitWarning,
                stacklevel=2,
            )
            found = [replace(one, kept=False) for one in found]
        figures += found
    if kept:
        staleness.outdate()
    seconds = time.perf_counter() - ready
    return Calibration(
        tuple(figures), tuple(kept), tuple(without), seconds, ready - start, str(STORE.path)
    )


def _silent(name: str) -> None:
    """Nobody is told."""


def measured_now(backend: Backend, figure: str) -> dict[str, float]:
    """The figures of one table as a backend's gauges show them now; nothing is kept.

    Those that are not to be believed, and all of a backend without gauges, are left out.
    """
    offer, shipped = getattr(backend, "gauges", None), backend.target()
    if not callable(offer):
        return {}
    series = [_Series(backend.name, gauge) for gauge in offer(shipped) if gauge.figure == figure]
    for _ in _measure(series, time.perf_counter() + BUDGET):
        pass
    found = _judged(series, shipped)
    return {one.key: one.measured for one in found if one.kept}


def forget(names: Iterable[str] = ()) -> int:
    """Remove what was measured, of some backends or of all; returns how many targets that were."""
    chosen = set(names)
    entries = STORE.entries()
    doomed = [k for k, e in entries.items() if not chosen or e.get("backend") in chosen]
    if doomed:
        STORE.update(dict.fromkeys(doomed))
        staleness.outdate()
    return len(doomed)


def _healthy() -> list[Backend]:
    rows = registry.status(load=registry.names())
    return [registry.get(row.name) for row in rows if row.state is health.State.LOADED]


class _Series:
    """The passes of one gauge."""

    def __init__(self, backend: str, gauge: Gauge) -> None:
        self.backend, self.gauge = backend, gauge
        self.passes: list[float] = []  # seconds for one unit of the amount
        self.beside: dict[str, float] = {}  # flops of other rates, for one of the own

    @property
    def name(self) -> str:
        return f"{self.backend} {self.gauge.name}"

    @property
    def spread(self) -> float:
        """The median pass over the best one."""
        ordered = sorted(self.passes)
        return ordered[len(ordered) // 2] / ordered[0] if ordered[0] > 0.0 else math.inf

    def rehearse(self) -> None:
        """A call that is not timed: what has to be compiled for it is."""
        with self._blamed():
            self.gauge.prepare().call()

    def measure(self) -> None:
        """One more pass."""
        with self._blamed():
            run = self.gauge.prepare()
            self.beside = {key: flops / run.amount for key, flops in run.beside.items()}
            self.passes.append(_seconds(run))

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise BackendError(
                f"backend {self.backend!r}: the gauge of {self.gauge.name} failed: "
                f"{type(error).__name__}: {error}"
            ) from error

    def best(self, rates: Mapping[str, float], shipped: Target) -> float:
        """Seconds for one unit of the amount, without what other rates take of the best pass.

        Flop/s of those are in ``rates``, or else the table's.  However slow they are said to be,
        a tenth of the time is left.
        """
        whole = min(self.passes)
        others = (n / (rates.get(k) or cost.rate(k, shipped)) for k, n in self.beside.items())
        return max(whole - sum(others), OWN * whole)

    def judged(self, shipped: Target, best: float) -> Figure:
        """The figure for so many seconds a unit, and whether it is to be believed."""
        gauge = self.gauge
        seconds = gauge.figure in SECONDS
        if seconds:
            table = float(getattr(shipped, gauge.figure))
        else:
            table = float(getattr(shipped, gauge.figure).get(gauge.key, 0.0))
        value = best if seconds else 1.0 / best if best > 0.0 else math.inf
        kept, note = _verdict(value, table, self.spread)
        return Figure(
            self.backend, gauge.figure, gauge.key, table, value, self.spread, kept, note
        )  # fmt: skip


def _judged(series: Sequence[_Series], shipped: Target) -> list[Figure]:
    """The figures: those of rates that share calls are solved for by turns, from the table on."""
    rates: dict[str, float] = {}
    for _ in range(TURNS if any(one.beside for one in series) else 1):
        best = [one.best(rates, shipped) for one in series]
        rates = {
            one.gauge.key: 1.0 / seconds
            for one, seconds in zip(series, best, strict=True)
            if one.gauge.figure == "rates" and seconds > 0.0
        }
    return [one.judged(shipped, seconds) for one, seconds in zip(series, best, strict=True)]


def _verdict(value: float, table: float, spread: float) -> tuple[bool, str]:
    """(whether a figure is kept, why not or what is remarkable)."""
    if not _is_figure(value):
        return False, "no time passed, or less than without it"
    if spread > UNSTEADY:
        return False, f"passes differ {spread:.1f} times: something else was running"
    if table <= 0.0:
        return True, ""
    ratio = value / table
    if not 1 / INCREDIBLE < ratio < INCREDIBLE:
        return False, f"{ratio:.2g} times the table's, which is not credible"
    if not 1 / TELLING < ratio < TELLING:
        return True, f"{ratio:.2g} times the table's"
    return True, ""


def _measure(series: Sequence[_Series], until: float) -> Iterator[str]:
    """All passes: over everything, then over what the first ones do not agree on.

    On a machine that is too slow for all of them there is one at least, and no more ``until``.

    Yields the name of each gauge before it is measured.
    """
    for number in range(MOST_PASSES):
        for one in series:
            if number > 0 and time.perf_counter() > until:
                return
            if number < PASSES or one.spread > STEADY:
                yield one.name
                one.measure()


def _seconds(run: Run) -> float:
    """Seconds of one unit of a run's amount: those of the least disturbed calls."""
    taken = _least(run.call)
    if run.without is not None:
        taken -= _least(run.without)
    return taken / run.amount


def _least(call: Callable[[], Any]) -> float:
    """A low quantile of a turn's calls, the first of which (compiling, cold) is not counted."""
    call()
    times: list[float] = []
    end = time.perf_counter() + TURN
    least, most = CALLS
    while len(times) < least or (len(times) < most and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[int(QUANTILE * len(times))]


def _store(
    backend: str, shipped: Target, found: Sequence[Figure], series: Sequence[_Series]
) -> None:
    entry: dict[str, Any] = {
        "backend": backend, "fingerprint": shipped.fingerprint,
        "description": shipped.description, "convjit": __version__,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    for one in found:
        if one.kept and one.figure in TABLES:
            entry.setdefault(one.figure, {})[one.key] = float(f"{one.measured:.4g}")
        elif one.kept:
            entry[one.figure] = float(f"{one.measured:.4g}")
    entry["kernels"] = {
        gauge.key: [gauge.solver.id, revisions.revision(gauge.solver)]
        for gauge in (one.gauge for one in series)
        if gauge.figure == "rates" and gauge.solver is not None
    }
    STORE.update({_key(backend, shipped.fingerprint): entry})

"""Measured figures over the tables of the backends: measuring them, keeping them, laying them over.

Every backend ships a :class:`~convjit.spi.Target` out of a table.  :func:`calibrate` measures what
the backend has :mod:`~convjit.gauges` for; :func:`target` is the table with those figures over it.
They are kept by the target's fingerprint, so that another processor, another number of threads or
another version of the toolchain begins with the table again; and a rate of a solver's kernels with
their revision (:mod:`convjit.revisions`), so that another kernel does, while what was measured of
the machine and of other kernels stays.

What has to be compiled first is compiled by several processes at once, where a backend says what
that is and keeps it on disk; each figure is then measured in this one alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from convjit import cost, gauging, health, registry, revisions, staleness, together
from convjit._version import __version__
from convjit.errors import BackendError, ConvjitWarning
from convjit.gauges import SECONDS, TABLES
from convjit.gauging import Figure, Series, is_figure, judged, measure
from convjit.spi import Backend, Target
from convjit.store import Store

Progress = Callable[[int], AbstractContextManager[Callable[[str], None]]]

VERSION = 2  # 1 did not know the kernels of its rates
STORE = Store("calibration.json", VERSION)

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
        if not isinstance(table, dict) or not all(map(is_figure, table.values())):
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
        if not (is_figure(value) or value == 0.0):
            return shipped
        figures[name] = float(value)
    return replace(shipped, **figures, measured=True)


# -------------------------------------------------------------------- measuring


class _Job(NamedTuple):
    """Gauges of a backend, to be prepared by another process."""

    backend: str
    gauges: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.backend} {self.gauges[0]}"


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


def calibrate(
    names: Iterable[str] = (), *, progress: Progress | None = None, processes: int = 1
) -> Calibration:
    """Measure the devices of backends with the threads in force, and use the figures from then on.

    Parameters
    ----------
    names : iterable of str
        Backends; every healthy one that has gauges if not given.
    progress : callable, optional
        From a number of steps to a context manager, which gives what is told each step's name.
    processes : int
        How many compile at once, before anything is measured.

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
    gauged: list[tuple[Backend, Target, list[Series]]] = []
    without = []
    for backend in chosen:
        offer = getattr(backend, "gauges", None)
        if not callable(offer):
            if names:
                raise BackendError(f"backend {backend.name!r} has no gauges: nothing to measure.")
            without.append(backend.name)
            continue
        shipped = backend.target()
        gauged.append((backend, shipped, [Series(backend.name, g) for g in offer(shipped)]))
    jobs = [job for backend, _, series in gauged for job in _uncompiled(backend, series)]
    if min(processes, len(jobs)) < 2:
        jobs = []
    steps = len(jobs) + (1 + gauging.PASSES) * sum(len(series) for *_, series in gauged)
    with progress(steps) if progress is not None else nullcontext(_silent) as began:
        if jobs:
            together.run(_compile, jobs, processes, began=lambda left: _tell(began, left))
        for *_, series in gauged:
            for one in series:
                began(f"{one.name} (compiling)")
                one.rehearse()
        ready = time.perf_counter()
        for number, (*_, series) in enumerate(gauged, 1):
            for name in measure(series, ready + gauging.BUDGET * number / len(gauged)):
                began(name)
    figures: list[Figure] = []
    kept = []
    for backend, shipped, series in gauged:
        found = judged(series, shipped)
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


def _uncompiled(backend: Backend, series: Sequence[Series]) -> list[_Job]:
    """What processes of their own may compile: gauges that begin with the same kernel together."""
    ask = getattr(backend, "uncompiled", None)
    found: dict[str, list[str]] = {}
    if callable(ask):
        for one in series:
            for kernel in ask(one.gauge.prepare)[:1]:
                found.setdefault(kernel, []).append(one.gauge.name)
    return [_Job(backend.name, tuple(names)) for names in found.values()]


def _compile(job: _Job) -> None:
    """What a process does: prepare gauges, and drop what they are prepared with."""
    backend: Any = registry.get(job.backend)
    for gauge in backend.gauges(backend.target()):
        if gauge.name in job.gauges:
            gauge.prepare()


def _tell(began: Callable[[str], None], left: Sequence[_Job]) -> None:
    """What is being compiled, if anything is."""
    if left:
        began(f"{left[0]} (compiling, {len(left)} left)")


def measured_now(backend: Backend, figure: str) -> dict[str, float]:
    """The figures of one table as a backend's gauges show them now; nothing is kept.

    Those that are not to be believed, and all of a backend without gauges, are left out.
    """
    offer, shipped = getattr(backend, "gauges", None), backend.target()
    if not callable(offer):
        return {}
    series = [Series(backend.name, gauge) for gauge in offer(shipped) if gauge.figure == figure]
    for _ in measure(series, time.perf_counter() + gauging.BUDGET):
        pass
    found = judged(series, shipped)
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


def _store(
    backend: str, shipped: Target, found: Sequence[Figure], series: Sequence[Series]
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

"""Gauges read: several passes over all of them, of each the least disturbed calls, and a verdict.

A machine that others use at the same time is measured nevertheless: a figure that passes do not
agree on, or that no machine has, is not kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from convjit import cost
from convjit.errors import BackendError
from convjit.gauges import SECONDS, Gauge, Run
from convjit.spi import Target

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


def is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0.0


class Series:
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


def judged(series: Sequence[Series], shipped: Target) -> list[Figure]:
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
    if not is_figure(value):
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


def measure(series: Sequence[Series], until: float) -> Iterator[str]:
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

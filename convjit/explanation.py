"""Why a convolution runs as it does: every candidate with its estimate, or what rules it out.

An :class:`Explanation` holds what :mod:`convjit.dispatch` saw, so that its first row is what a call
with the same arguments runs.  :meth:`Explanation.compare` measures the candidates on this machine,
:meth:`Explanation.sweep` says where another algorithm takes over as the problem grows,
:meth:`Explanation.plot` draws both, and :meth:`Explanation.repro` writes a test of one candidate.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from convjit import calibration, dispatch, fallback, precision, registry, sweeps
from convjit.algorithms.error import relative_error
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.arguments import Problem, Request
from convjit.dispatch import Candidate
from convjit.errors import BackendError, ConvSpecError
from convjit.plans import Plan
from convjit.spec import ConvSpec, Direction
from convjit.spi import Target
from convjit.sweeps import Sweep

Array = np.ndarray[Any, np.dtype[Any]]

# The oracle walks over the kernel's taps, each a pass over the data and a matrix product; what it
# does in a second was measured on one core of Zen 4.  Beyond so many seconds no error is found.
ORACLE_SECONDS = 3.0
ORACLE_ELEMENTS, ORACLE_MACS = 3e7, 1.5e9
HOPELESS = 30.0  # times slower than the choice: not worth measuring in a sweep
_CALLS = 5  # of a candidate that is measured, the first of which may compile


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a candidate took here.

    Attributes
    ----------
    seconds : float
        Lower quartile of the repeats, weights packed before if the explanation is of a plan.
    error : float or None
        Largest error over the largest sum of magnitudes, None where nobody could tell.
    """

    seconds: float
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A ranked table of what could compute a problem; prints itself.

    Attributes
    ----------
    problem : Problem
    request : Request
        What the caller allowed.
    candidates : tuple of Candidate
        The choice first, the refused last.
    reason : str
        Why the first one won, or why nothing runs.
    peaks : mapping of backend to (flop/s, measured)
        Peak of the device in the accumulator's dtype, and whether it was measured.
    measured : mapping of label to Measurement
        Filled by :meth:`compare`.
    left_out : tuple of str
        Labels of what :meth:`compare` had no time for.
    absent : mapping of backend to reason
        Of our backends, what would be preferred to the choice's and does not work here.
    """

    problem: Problem
    request: Request
    candidates: tuple[Candidate, ...]
    reason: str
    peaks: Mapping[str, tuple[float, bool]] = field(default_factory=dict)
    measured: Mapping[str, Measurement] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> ConvSpec:
        return self.problem.spec

    @property
    def winner(self) -> Candidate | None:
        """What runs, None when nothing does."""
        return next(iter(self.admitted), None)

    @property
    def admitted(self) -> tuple[Candidate, ...]:
        """The candidates that could run, in the order in which they would be chosen."""
        return tuple(c for c in self.candidates if c.refusal is None)

    @property
    def refused(self) -> tuple[Candidate, ...]:
        return tuple(c for c in self.candidates if c.refusal is not None)

    # ---------------------------------------------------------------- measuring

    def compare(
        self,
        *,
        seconds: float = 0.1,
        budget: float = 30.0,
        hopeless: float = math.inf,
        operands: tuple[Array, Array, Array | None] | None = None,
        reference: Callable[[Array], float] | None = None,
    ) -> Explanation:
        """The same explanation with measured times and errors of the candidates that could run.

        Parameters
        ----------
        seconds : float
            To spend on repeats of each candidate, beside its first two calls.
        budget : float
            Seconds in all.  A candidate that is not predicted to be done by then is left out,
            except the choice.
        hopeless : float
            Candidates predicted to take this many times longer than the choice are left out too.
        operands : (lhs, rhs, bias), optional
            In the user's shapes; random numbers if not given.
        reference : callable, optional
            From a result to its error; the oracle, on the first image of a batch, if not given
            (no error is found where that would take longer than ``ORACLE_SECONDS``).

        Raises
        ------
        ConvSpecError, TypeError
            For ``seconds`` and ``budget`` that are below 0 or no numbers.
        BackendError
            If a candidate fails while it runs.
        """
        sweeps.check_seconds(seconds=seconds, budget=budget)
        given = operands if operands is not None else random_operands(self.problem)
        error_of = reference if reference is not None else _oracle_of(self.problem, given)
        measured: dict[str, Measurement] = {}
        left_out = []
        end = time.perf_counter() + budget
        best = self.winner.total(self.request.packed) if self.winner is not None else 0.0
        for candidate in self.admitted:
            predicted = candidate.total(self.request.packed)
            late = time.perf_counter() + _CALLS * predicted > end
            if measured and (late or predicted > hopeless * best):
                left_out.append(candidate.label)
                continue
            measured[candidate.label] = _timed(
                self.problem, self.request, candidate, given, seconds, error_of
            )
        return replace(self, measured=measured, left_out=tuple(left_out))

    def sweep(
        self,
        over: str = "kernel",
        sizes: Sequence[int] | None = None,
        *,
        compare: bool = False,
        seconds: float = 0.05,
        budget: float = 30.0,
    ) -> Sweep:
        """What each family of algorithms takes as the problem grows, and where they cross.

        Parameters
        ----------
        over : {"kernel", "channels"}
            What grows: the kernel along each axis that has more than one tap, with the padding, or
            the input's channels, and the result's with them.
        sizes : sequence of int, optional
        compare : bool
            Whether to measure too, the best candidate of each family at each size.
        seconds, budget : float
            As in :meth:`compare`, for all sizes together.

        Raises
        ------
        ConvSpecError
            For an unknown ``over``, and sizes that leave nothing to compute.
        BackendError
            If a candidate fails while it runs.
        """
        sweeps.check_seconds(seconds=seconds, budget=budget)
        found = sweeps.predicted(self.spec, self.request, over, sizes)
        own = sweeps.own_size(self.spec, over)
        for curve in found.curves.values():
            known = self.measured.get(curve[own].label) if own in curve else None
            if own is not None and known is not None:
                curve[own] = replace(curve[own], seconds=known.seconds)
        if compare:
            self._measure_sweep(found, seconds, time.perf_counter() + budget)
        return found

    def _measure_sweep(self, found: Sweep, seconds: float, end: float) -> None:
        """Times of what is not hopeless, the sizes nearest to the problem's own first."""
        own = sweeps.own_size(self.spec, found.over) or 1
        for size in sorted(found.sizes, key=lambda size: abs(math.log(size / own))):
            spec = found.specs[size]
            shapes = spec.lhs_shape, spec.rhs_shape, spec.result_shape
            problem = Problem(spec, *shapes, is_plain=False)
            operands = None
            best = min(t.predicted or math.inf for t in found.at(size).values())
            for name, candidate in sweeps.best_by_family(spec, self.request).items():
                predicted = candidate.total(self.request.packed)
                late = time.perf_counter() + _CALLS * predicted > end
                if found.curves[name][size].seconds or late or predicted > HOPELESS * best:
                    continue
                operands = operands or random_operands(problem)
                timed = _timed(problem, self.request, candidate, operands, seconds, None)
                found.curves[name][size] = replace(found.curves[name][size], seconds=timed.seconds)

    # ---------------------------------------------------------------- showing

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        label = self.winner.label if self.winner is not None else "nothing"
        return f"<convjit.Explanation of {self.spec}: {label}>"

    def table(self, *, refused: bool = True, most: int | None = None) -> str:
        """The candidates, the problem above them, what is ruled out and the reason below.

        Parameters
        ----------
        refused : bool
            Whether to list the refused candidates with their reasons.
        most : int, optional
            How many of those that could run to list; all if not given.
        """
        from convjit import showing

        return showing.text(self, refused=refused, most=most)

    def share_of_peak(self, candidate: Candidate, seconds: float | None) -> float | None:
        """Effective rate over the device's peak; above 1 where an algorithm saves arithmetic."""
        peak, _ = self.peaks.get(candidate.backend, (0.0, False))
        if not seconds or not peak:
            return None
        return self.spec.flops / seconds / peak

    def plot(
        self,
        path: str | os.PathLike[str],
        *,
        over: Sequence[str] = tuple(sweeps.OVER),
        compare: bool = False,
        budget: float = 30.0,
    ) -> None:
        """Draw the ranking, and where algorithms cross as the problem grows.

        Parameters
        ----------
        path : path
            Of the picture, a PNG or an SVG by its suffix.
        over : sequence of {"kernel", "channels"}
            A panel for each.
        compare : bool
            Whether to measure what the panels show, as :meth:`sweep` does; what :meth:`compare`
            measured is shown in any case.
        budget : float
            Seconds for the measurements of each panel.

        Raises
        ------
        ConvSpecError
            For an unknown ``over``; if there is no candidate to show; if matplotlib is missing or
            the picture cannot be written (:class:`convjit.pictures.PlotError`, which is one).
        """
        from convjit import showing

        found = [self.sweep(name, compare=compare, budget=budget) for name in over]
        showing.draw(self, Path(path), found)

    def repro(self, label: str | None = None, *, seed: int = 0) -> str:
        """A test for pytest: this problem by one candidate, against the oracle.

        Parameters
        ----------
        label : str, optional
            Of the candidate (or its solver's id), admitted or refused by a policy; the choice if
            not given.
        seed : int
            Of the operands.

        Returns
        -------
        str
            Python source that needs convjit and NumPy alone.

        Raises
        ------
        ConvSpecError
            If no candidate that can compute the problem has that label.
        """
        from convjit import repro

        able = [c for c in self.candidates if c.error_bound is not None]
        chosen = able if label is None else [c for c in able if label in (c.label, c.solver_id)]
        if not able:
            raise ConvSpecError(f"there is nothing to test of {self.spec}: {self.reason}.")
        if not chosen:
            raise ConvSpecError(
                f"label={label!r} does not compute {self.spec}; choose one of "
                f"{', '.join(c.label for c in able)}."
            )
        return repro.source(self.problem, self.request, chosen[0], seed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        from convjit import showing

        return showing.as_dict(self)

    def to_json(self, *, indent: int | None = None) -> str:
        """:meth:`as_dict` as JSON text."""
        return json.dumps(self.as_dict(), indent=indent)


def explain_problem(problem: Problem, request: Request) -> Explanation:
    """The explanation of a problem under a request (what :func:`convjit.explain` returns)."""
    spec = problem.spec
    found = tuple(dispatch.candidates(spec, request))
    admitted = [c for c in found if c.refusal is None]
    if spec.is_empty:
        reason = "no product is summed; the result is zeros, bias and activation"
    elif not admitted:
        reason = "every solver considered refuses"
    else:
        reason = dispatch.reason(request, admitted)
        if (passes := dispatch.passes_of(spec, request, admitted[0])) is not None:
            reason += f"; {passes}"
    peaks = {name: peak_of(name, spec.dtype) for name in dict.fromkeys(c.backend for c in admitted)}
    absent = fallback.absent(admitted[0].backend, request) if admitted else {}
    return Explanation(problem, request, found, reason, peaks, absent=absent)


def peak_of(backend: str, dtype: str) -> tuple[float, bool]:
    """(flop/s of a backend's device in a dtype's accumulator, whether it was measured)."""
    target = target_of(backend)
    if target is None:
        return 0.0, False
    name = precision.accumulator_dtype(dtype)
    return target.peak.get(precision.REAL_OF.get(name, name), 0.0), target.measured


def target_of(backend: str) -> Target | None:
    """The machine as a backend sees it, None where it cannot say."""
    try:
        return calibration.target(registry.get(backend))
    except BackendError:
        return None


def plan_of(problem: Problem, request: Request, candidate: Candidate) -> Plan:
    """The plan that runs exactly this candidate."""
    forced = replace(request, backend=candidate.backend, algorithm=candidate.solver_id)
    return dispatch.select(problem, forced, np.ndarray)


def _timed(
    problem: Problem,
    request: Request,
    candidate: Candidate,
    operands: tuple[Array, Array, Array | None],
    seconds: float,
    reference: Callable[[Array], float] | None,
) -> Measurement:
    """What one candidate takes here, and how wrong it is."""
    lhs, rhs, bias = operands
    plan = plan_of(problem, request, candidate)
    second = plan.pack(rhs) if request.packed else rhs

    def run() -> Array:
        result: Array = plan(lhs, second, bias)
        return result

    result = run()
    error = reference(result) if reference is not None else None
    return Measurement(low_quartile(run, seconds), error)


def _oracle_of(
    problem: Problem, operands: tuple[Array, Array, Array | None]
) -> Callable[[Array], float] | None:
    """From a result to its error by the oracle, on the first image; None where that takes long."""
    spec = problem.spec
    lhs, rhs = operands[0].reshape(spec.lhs_shape), operands[1].reshape(spec.rhs_shape)
    images = slice(None)
    if spec.direction is not Direction.WEIGHT_GRAD:  # which sums over the batch
        spec, images = spec.replace(batch=1), slice(1)
        lhs = lhs[images]
    elements = max(math.prod(spec.lhs_shape), math.prod(spec.result_shape))
    taps = math.prod(spec.kernel_size)
    if taps * elements / ORACLE_ELEMENTS + spec.macs / ORACLE_MACS > ORACLE_SECONDS:
        return None
    expected = oracle(spec, lhs, rhs, operands[2])
    scale = magnitudes(spec, lhs, rhs, operands[2])

    def error(result: Array) -> float:
        shaped = result.reshape(problem.spec.result_shape)[images]
        return relative_error(spec, shaped, expected, scale)

    return error


def random_operands(problem: Problem, seed: int = 0) -> tuple[Array, Array, Array | None]:
    """(lhs, rhs, bias) of a problem in the user's shapes, the same for the same seed."""
    rng = np.random.default_rng(seed)
    spec = problem.spec

    def draw(shape: tuple[int, ...], dtype: str) -> Array:
        kind = precision.numpy_dtype(dtype)
        if dtype in precision.INTEGER:
            return rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(kind)
        values = rng.standard_normal(shape, np.float32)
        if dtype in precision.COMPLEX:
            return np.asarray(values + 1j * rng.standard_normal(shape, np.float32)).astype(kind)
        return values.astype(kind)

    bias = draw((spec.result_channels,), spec.result_dtype) if spec.bias else None
    return draw(problem.lhs_shape, spec.dtype), draw(problem.rhs_shape, spec.dtype), bias


def low_quartile(function: Callable[[], object], seconds: float, least: int = 3) -> float:
    """Lower quartile of a call's seconds over about ``seconds``: what it takes undisturbed."""
    function()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 4]

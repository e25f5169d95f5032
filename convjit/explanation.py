"""Why a convolution runs as it does: every candidate with its estimate, or what rules it out.

An :class:`Explanation` holds what :mod:`convjit.dispatch` saw, so that its first row is what a call
with the same arguments runs.  :meth:`Explanation.measure` times the candidates on this machine and
puts the measured times beside the predicted ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from convjit import dispatch, precision, registry
from convjit.arguments import Problem, Request
from convjit.dispatch import Candidate
from convjit.errors import BackendError
from convjit.plans import Plan
from convjit.spec import ConvSpec
from convjit.spi import Refusal, Target

Array = np.ndarray[Any, np.dtype[Any]]

# A candidate predicted to be this many times slower than the choice is not worth measuring.
HOPELESS = 30.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a candidate took here.

    Attributes
    ----------
    seconds : float
        Lower quartile of the repeats, weights packed before if the explanation is of a plan.
    error : float or None
        As the ``reference`` given to :meth:`Explanation.measure` found it.
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
        Filled by :meth:`measure`.
    """

    problem: Problem
    request: Request
    candidates: tuple[Candidate, ...]
    reason: str
    peaks: Mapping[str, tuple[float, bool]] = field(default_factory=dict)
    measured: Mapping[str, Measurement] = field(default_factory=dict)

    @property
    def spec(self) -> ConvSpec:
        return self.problem.spec

    @property
    def winner(self) -> Candidate | None:
        """What runs, None when nothing does."""
        return next(iter(self.admitted), None)

    @property
    def admitted(self) -> tuple[Candidate, ...]:
        """The candidates that could run, by predicted time."""
        return tuple(c for c in self.candidates if c.refusal is None)

    @property
    def refused(self) -> tuple[Candidate, ...]:
        return tuple(c for c in self.candidates if c.refusal is not None)

    # ---------------------------------------------------------------- measuring

    def measure(
        self,
        *,
        seconds: float = 0.1,
        budget: float = 30.0,
        hopeless: float = HOPELESS,
        operands: tuple[Array, Array, Array | None] | None = None,
        reference: Callable[[Array], float] | None = None,
    ) -> Explanation:
        """The same explanation with measured times of the candidates that could run.

        Parameters
        ----------
        seconds : float
            To spend on repeats of each candidate, beside its first two calls.
        budget : float
            Seconds after which no further candidate is begun (the choice always is).
        hopeless : float
            Candidates predicted to take this many times longer than the choice are left out.
        operands : (lhs, rhs, bias), optional
            In the user's shapes; random numbers if not given.
        reference : callable, optional
            From a result to its error.

        Raises
        ------
        BackendError
            If a candidate fails while it runs.
        """
        lhs, rhs, bias = operands if operands is not None else random_operands(self.problem)
        measured: dict[str, Measurement] = {}
        end = time.perf_counter() + budget
        best = self.winner.total(self.request.packed) if self.winner is not None else 0.0
        for candidate in self.admitted:
            late = time.perf_counter() > end
            if measured and (late or candidate.total(self.request.packed) > hopeless * best):
                continue
            plan = plan_of(self.problem, self.request, candidate)
            second = plan.pack(rhs) if self.request.packed else rhs

            def run(plan: Plan = plan, second: Any = second) -> Array:
                result: Array = plan(lhs, second, bias)
                return result

            result = run()
            error = reference(result) if reference is not None else None
            measured[candidate.label] = Measurement(low_quartile(run, seconds), error)
        return replace(self, measured=measured)

    # ---------------------------------------------------------------- showing

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        label = self.winner.label if self.winner is not None else "nothing"
        return f"<convjit.Explanation of {self.spec}: {label}>"

    def table(self, *, refused: bool = True) -> str:
        """The candidates, the problem above them and the reason below.

        Parameters
        ----------
        refused : bool
            Whether to list the refused candidates with their reasons.
        """
        from convjit.tables import milliseconds, percent, size, table

        has_times = bool(self.measured)
        has_errors = any(m.error is not None for m in self.measured.values())
        columns = [">", "algorithm", "backend", ">predicted ms"]
        columns += [">measured ms", ">GFLOP/s", ">% peak"] if has_times else []
        columns += [">pack ms", ">workspace", ">modelled error"]
        columns += [">found error"] if has_errors else []
        if refused and self.refused:
            columns += ["~why not"]
        rows: list[list[object]] = []
        for number, c in enumerate(self.candidates, 1):
            if c.refusal is not None and not refused:
                continue
            row: list[object] = [number if c.refusal is None else "", c.label, c.backend]
            row += [milliseconds(c.seconds)]
            if has_times:
                timed = self.measured.get(c.label)
                taken = timed.seconds if timed is not None else None
                row += [milliseconds(taken)]
                row += [f"{self.spec.flops / taken / 1e9:.1f}" if taken else "-"]
                row += [percent(self.share_of_peak(c, taken))]
            row += [
                milliseconds(c.pack_seconds) if c.work is not None else "-",
                size(c.workspace),
                "-" if c.error_bound is None else f"{c.error_bound:.1e}",
            ]
            if has_errors:
                found = self.measured.get(c.label)
                known = found is not None and found.error is not None
                row += [f"{found.error:.1e}" if found is not None and known else "-"]
            if c.refusal is not None and refused:
                row += [c.refusal.reason]
            rows.append(row + [""] * (len(columns) - len(row)))
        macs = self.spec.macs
        packing = "packed once" if self.request.packed else "packed in each call"
        head = f"{self.spec}\n{2 * macs / 1e9:.3g} G operations directly; weights {packing}"
        return f"{head}\n\n{table(columns, rows)}\n\n{self._ending()}"

    def _ending(self) -> str:
        winner = self.winner
        if winner is None:
            return f"nothing runs: {self.reason}"
        text = f"{winner.label} runs: {self.reason}"
        fastest = min(self.measured.items(), key=lambda m: m[1].seconds, default=None)
        if fastest is not None and winner.label in self.measured:
            regret = self.measured[winner.label].seconds / fastest[1].seconds
            if fastest[0] != winner.label and regret > 1.0:
                text += f"\nmeasured, {fastest[0]} was {regret:.2f} times faster"
            else:
                text += "\nmeasured, nothing was faster"
        return text

    def share_of_peak(self, candidate: Candidate, seconds: float | None) -> float | None:
        """Effective rate over the device's peak; above 1 where an algorithm saves arithmetic."""
        peak, _ = self.peaks.get(candidate.backend, (0.0, False))
        if not seconds or not peak:
            return None
        return self.spec.flops / seconds / peak

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "spec": str(self.spec),
            "flops": self.spec.flops,
            "packed": self.request.packed,
            "winner": self.winner.label if self.winner is not None else None,
            "reason": self.reason,
            "candidates": [self._candidate_dict(c) for c in self.candidates],
        }

    def _candidate_dict(self, candidate: Candidate) -> dict[str, Any]:
        timed = self.measured.get(candidate.label) if candidate.refusal is None else None
        taken = timed.seconds if timed is not None else None
        return {
            "label": candidate.label,
            "backend": candidate.backend,
            "device": candidate.device,
            "solver": candidate.solver_id,
            "algorithm": candidate.algorithm,
            "lowering": list(candidate.steps),
            "spec": str(candidate.spec),
            "predicted_seconds": candidate.seconds,
            "pack_seconds": candidate.pack_seconds if candidate.work is not None else None,
            "measured_seconds": taken,
            "gflops": self.spec.flops / taken / 1e9 if taken else None,
            "share_of_peak": self.share_of_peak(candidate, taken),
            "error": timed.error if timed is not None else None,
            "workspace": candidate.workspace if candidate.work is not None else None,
            "error_bound": candidate.error_bound,
            "refusal": _refusal_dict(candidate.refusal),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """:meth:`as_dict` as JSON text."""
        return json.dumps(self.as_dict(), indent=indent)


def _refusal_dict(refusal: Refusal | None) -> dict[str, str] | None:
    if refusal is None:
        return None
    return {"feature": refusal.feature.value, "reason": refusal.reason}


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
    peaks = {name: peak_of(name, spec.dtype) for name in dict.fromkeys(c.backend for c in admitted)}
    return Explanation(problem, request, found, reason, peaks)


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
        return registry.get(backend).target()
    except BackendError:
        return None


def plan_of(problem: Problem, request: Request, candidate: Candidate) -> Plan:
    """The plan that runs exactly this candidate."""
    forced = replace(request, backend=candidate.backend, algorithm=candidate.solver_id)
    return dispatch.select(problem, forced, np.ndarray)


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

"""Selection: pool, refuse or lower, filter by policy, rank by predicted time, plan.

The order of the rules: a forced choice, else what was measured and is remembered
(:mod:`convjit.tunedb`), else the cost model, else (for solvers that the model predicts alike) the
declared order.  Every candidate is kept with its estimate or its refusal, so that ``explain`` can
show what this module saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from convjit import (
    calibration,
    config,
    cost,
    fallback,
    health,
    precision,
    profiling,
    registry,
    revisions,
    transfers,
)
from convjit.algorithms import error as error_model
from convjit.algorithms.policies import policy_refusal
from convjit.arguments import Problem, Request
from convjit.errors import BackendError, ConvSpecError, UnsupportedError
from convjit.guard import check_phase
from convjit.lowering import complete, descend
from convjit.plans import Fill, Plan
from convjit.precision import Policy
from convjit.rank1 import Passes, RankOne, worthwhile
from convjit.ranking import Candidate, Ranked, by_memory, reason
from convjit.spec import ConvSpec
from convjit.spi import Backend, Config, Feature, Refusal, Solver, Target, Work

__all__ = [
    "FAMILIES", "Candidate", "Trial", "candidates", "error_bound", "exclude", "forget_failures",
    "has_failed", "reason", "select", "trials",
]  # fmt: skip

FAMILIES = ("direct", "gemm", "fft", "winograd", "depthwise")


def error_bound(spec: ConvSpec, inner: ConvSpec, work: Work) -> float:
    """Modelled error of a candidate: the inner problem's, and the rounding of its result.

    The inner problem rounds with its own dtype and kernel; a result narrower than the arithmetic
    is rounded once more, by at most the unit roundoff of each element.  A border that is folded
    back onto x adds sums of the inner problem, each of which rounds.
    """
    bound = error_model.error_bound(inner, work.numerics)
    rounds = work.numerics.method != "exact" and inner.dtype not in precision.INTEGER
    if spec.computes_input and spec.pad_mode != inner.pad_mode and rounds:
        bound += _folds(spec) * precision.UNIT_ROUNDOFF[inner.dtype]
    if spec.dtype in precision.HALF and inner.dtype not in precision.HALF:
        bound += precision.UNIT_ROUNDOFF[spec.dtype]
    return bound


def _folds(spec: ConvSpec) -> int:
    """Additions by which borders are folded onto an element of x, at most."""
    if spec.pad_mode == "replicate":  # a corner collects all that is beyond it
        return sum(lo + hi for lo, hi in spec.padding)
    return sum((lo > 0) + (hi > 0) for lo, hi in spec.padding)


def _consider(
    backend: Backend, solver: Solver, spec: ConvSpec, target: Target, request: Request
) -> Ranked:
    """One solver's answer; what a solver raises is one refusal, reported by the caller."""
    base = Candidate(backend.name, backend.device, solver.id, solver.algorithm, (), spec)

    def refused(refusal: Refusal) -> Ranked:
        return Ranked(replace(base, refusal=refusal), backend, target, None)

    doing = "refused or lowered"
    try:
        descent = descend(solver, spec, target)
        if isinstance(descent, Refusal):
            return refused(descent)
        doing = "estimated"
        lowered = complete(solver, spec, descent, target)
        is_moved = transfers.are_needed(backend, request.array_type)
        work = transfers.with_transfers(lowered.work, spec) if is_moved else lowered.work
        steps_taken = list(lowered.names)
        guarded = request.policy.nonfinite == "local" and work.numerics.spreads_nonfinite
        if guarded:
            steps_taken.insert(0, "finite check")
            work = replace(
                work,
                phases=(*work.phases, check_phase(spec)),
                numerics=replace(work.numerics, spreads_nonfinite=False),
            )
        candidate = replace(
            base,
            steps=tuple(steps_taken),
            spec=lowered.spec,
            work=work,
            seconds=cost.seconds(work, target),
            pack_seconds=cost.pack_seconds(work, target),
            workspace=work.workspace,
            error_bound=error_bound(spec, lowered.spec, work),
        )
        row = Ranked(candidate, backend, target, lowered, guarded, is_moved=is_moved)
        limit = request.policy.workspace_limit
        if limit is not None and candidate.workspace > limit:
            row = row.fitting(limit) or row
    except Exception as error:
        return refused(_broken(backend, solver.id, doing, spec, error, request))
    refusal = _policy_refusal(spec, row.candidate, work, request.policy)
    return replace(row, candidate=replace(row.candidate, refusal=refusal))


def _broken(
    backend: Backend, solver: str, doing: str, spec: ConvSpec, error: Exception, request: Request
) -> Refusal:
    """A solver that raised: an error when it was asked for by name, else a warning."""
    message = (
        f"backend {backend.name!r}: solver {solver!r} failed while it {doing} {spec}: "
        f"{type(error).__name__}: {error}"
    )
    if request.is_forced and (request.algorithm == solver or request.backend == backend.name):
        raise BackendError(message) from error
    health.warn_once(f"{message}. It is not used for such problems.")
    return Refusal(Feature.BROKEN, message)


def _policy_refusal(
    spec: ConvSpec, candidate: Candidate, work: Work, policy: Policy
) -> Refusal | None:
    sentence = policy_refusal(
        spec, work.numerics, policy, inner=candidate.spec, bound=candidate.error_bound
    )
    if sentence is not None:
        return Refusal(Feature.POLICY, sentence)
    limit = policy.workspace_limit
    if limit is not None and candidate.workspace > limit:
        return Refusal(
            Feature.WORKSPACE,
            f"needs a workspace of {candidate.workspace} bytes, workspace_limit is {limit}",
        )
    return None


# Solvers that raised while they ran: solver id -> what happened.
_failed: dict[str, str] = {}


def exclude(solver: str, message: str) -> None:
    """Leave a solver that raised while it ran out of every later choice, warning once."""
    _failed[solver] = message
    health.warn_once(f"{message}. It is not used again in this process.")


def has_failed(solver: str) -> bool:
    """Whether a solver is left out because it raised while it ran."""
    return solver in _failed


def forget_failures() -> None:
    """Give solvers that failed another chance."""
    _failed.clear()


def _pool(request: Request) -> list[Backend]:
    """The backends asked for that take the data's array type."""
    # Without a backend= data stays where it is, so that other devices need not even be probed.
    device = "cpu" if request.array_type == "numpy:ndarray" else "cuda"
    pool = registry.resolve(request.backend, device=device)
    taking = [b for b in pool if request.array_type in b.array_types]
    if taking:
        return taking
    offered = "; ".join(f"{b.name} takes {', '.join(b.array_types)}" for b in pool)
    raise UnsupportedError(
        f"the data is {request.array_type.replace(':', '.')}, which none of the backends takes: "
        f"{offered}. Convert the data, or choose another backend."
    )


def _matches(solver: Solver, algorithm: str | None) -> bool:
    return algorithm is None or algorithm in (solver.algorithm, solver.id)


def _check_algorithm(request: Request, offered: Sequence[Solver]) -> None:
    algorithm = request.algorithm
    if algorithm is None or algorithm in FAMILIES or any(_matches(s, algorithm) for s in offered):
        return
    families = dict.fromkeys((*FAMILIES, *(s.algorithm for s in offered)))
    raise ConvSpecError(
        f"algorithm={algorithm!r} is not known to the backends considered; give a family "
        f"({', '.join(families)}) or a solver's id ({', '.join(s.id for s in offered)})."
    )


def _ranked(spec: ConvSpec, request: Request) -> list[Ranked]:
    """Every solver of the pool: those that can run by predicted time, then the refused ones.

    What spreads a NaN or Inf takes part under ``nonfinite="local"`` behind a finite check, if
    there is a candidate that computes what the check rejects.
    """
    rows = _asked(spec, request)
    price = _Price(spec, request)
    if any(row.is_guarded for row in rows):
        local = _best_local(rows, price)
        if local is None and request.algorithm is not None:
            others = replace(request, algorithm=None)
            local = _best_local(_asked(spec, others), _Price(spec, others))
        rows = [_with_local(row, local) if row.is_guarded else row for row in rows]
    fit = [row for row in rows if row.candidate.refusal is None]
    refused = [row for row in rows if row.candidate.refusal is not None]
    fit.sort(key=lambda row: price(row, request.packed))
    return by_memory(spec, request, fit) + refused


class _Price:
    """What candidates are ranked by: the predicted seconds of a call.

    Results of ``deterministic=True`` are the same for every number of threads, so that the choice
    must be, too: then the seconds are those of one thread on the backend's table, whatever the
    threads in force and whether the machine was calibrated.
    """

    def __init__(self, spec: ConvSpec, request: Request) -> None:
        self._alone: dict[str, Candidate] = {}
        if request.policy.deterministic:
            config.push({"num_threads": 1})
            try:
                rows = _asked(spec, request, calibrated=False)
            finally:
                config.pop()
            self._alone = {row.candidate.label: row.candidate for row in rows}

    def __call__(self, row: Ranked, packed: bool) -> float:
        return self._alone.get(row.candidate.label, row.candidate).total(packed)


def _best_local(rows: list[Ranked], price: _Price) -> Ranked | None:
    """The fastest candidate that keeps a NaN or Inf in its receptive field by itself."""
    fit = [row for row in rows if row.candidate.refusal is None and not row.is_guarded]
    return min(fit, key=lambda row: price(row, packed=False), default=None)


def _with_local(row: Ranked, local: Ranked | None) -> Ranked:
    if local is not None or row.candidate.refusal is not None:
        return replace(row, local=local)
    reason = "it spreads a NaN or Inf, and nothing else is allowed that would keep them local"
    refusal = Refusal(Feature.POLICY, f"nonfinite='local' was asked; {reason}")
    return replace(row, candidate=replace(row.candidate, refusal=refusal))


def _asked(spec: ConvSpec, request: Request, *, calibrated: bool = True) -> list[Ranked]:
    """What every solver of the pool answers, in the declared order."""
    disabled = config.current().disable
    asked: list[tuple[Backend, Solver]] = [
        (backend, solver) for backend in _pool(request) for solver in registry.solvers(backend)
    ]
    _check_algorithm(request, [solver for _, solver in asked])
    rows = []
    targets: dict[str, Target | None] = {}
    for backend, solver in asked:
        if not _matches(solver, request.algorithm):
            continue
        if backend.name not in targets:
            targets[backend.name] = _target(backend, request, calibrated)
        target = targets[backend.name]
        if target is None:
            continue
        excluded = None
        if solver.id in disabled:
            excluded = Refusal(Feature.OTHER, "disabled by disable= or CONVJIT_DISABLE")
        elif solver.id in _failed and request.algorithm != solver.id:
            excluded = Refusal(Feature.BROKEN, _failed[solver.id])
        if excluded is None:
            rows.append(_consider(backend, solver, spec, target, request))
        else:
            base = Candidate(backend.name, backend.device, solver.id, solver.algorithm, (), spec)
            rows.append(Ranked(replace(base, refusal=excluded), backend, target, None))
    return rows


def _target(backend: Backend, request: Request, calibrated: bool) -> Target | None:
    """The machine as a backend sees it; None where it fails at that and was not asked for."""
    try:
        return calibration.target(backend) if calibrated else backend.target()
    except Exception as error:
        named = (request.backend,) if isinstance(request.backend, str) else request.backend or ()
        reason = f"its target() failed: {type(error).__name__}: {error}"
        registry.mark_broken(backend.name, reason, error, raises=backend.name in named)
        if backend.name in named:
            raise registry.broken_error(backend.name) from error
        return None


def candidates(spec: ConvSpec, request: Request) -> list[Candidate]:
    """What every solver of the pool says to a problem, the choice first, the refused last."""
    if spec.is_empty:
        return []
    return [row.candidate for row in _ranked(spec, request)]


def passes_of(spec: ConvSpec, request: Request, best: Candidate) -> Passes | None:
    """What kernels of rank 1 would run as, if that pays (see :mod:`convjit.rank1`)."""
    remembered = best.remembered
    seconds = best.total(request.packed) if remembered is None else remembered.seconds
    return worthwhile(spec, request, seconds, lambda inner: _ranked(inner, request))


def select(problem: Problem, request: Request, array_type: type | None) -> Plan:
    """The plan of the best candidate.

    Raises
    ------
    UnsupportedError
        When every candidate is refused, with all the refusals.
    BackendError
        When a forced backend or solver is broken.
    """
    if problem.spec.is_empty:
        return _fill_plan(problem, request, array_type)
    with profiling.phase("plan", spec=problem.spec):
        return _select(problem, request, array_type)


def _select(problem: Problem, request: Request, array_type: type | None) -> Plan:
    """The plan of the best candidate of a problem that sums products."""
    spec = problem.spec
    rows = _ranked(spec, request)
    admitted = [row for row in rows if row.candidate.refusal is None]
    while admitted:
        row = admitted[0]
        why = reason(request, [row.candidate for row in admitted])
        passes = passes_of(spec, request, row.candidate)
        instead = fallback.of(row.candidate, [r.candidate for r in rows], request)
        try:
            return _plan(
                row, problem, request, array_type, why, fallback=instead, passes=passes
            )  # fmt: skip
        except Exception as error:
            _broken(row.backend, row.candidate.solver_id, "planned", spec, error, request)
            admitted.pop(0)
    raise _unsupported(spec, request, [row.candidate for row in rows])


def _plan(
    row: Ranked, problem: Problem, request: Request, array_type: type | None, why: str,
    config: Config | None = None, *, fallback: str = "", passes: Passes | None = None,
) -> Plan:  # fmt: skip
    """The plan of a candidate that can run, with given block sizes or those that are the best.

    ``passes`` run kernels of rank 1, if they fit into the workspace that is allowed.
    """
    limit = request.policy.workspace_limit
    executable, chosen = row.executable(limit, config)
    candidate = row.candidate
    bound = candidate.error_bound or 0.0
    if passes is not None:
        with_passes = RankOne(executable, passes, limit)
        if limit is None or with_passes.workspace <= limit:
            executable, bound = with_passes, max(bound, passes.error_bound)
            why += f"; {passes}"
    return Plan(
        problem,
        executable,
        request=request,
        namespace=np if row.is_moved else row.backend.array_namespace(),
        array_type=array_type,
        backend=candidate.backend,
        solver=candidate.solver_id,
        algorithm=candidate.algorithm,
        label=candidate.label,
        reason=why,
        work=candidate.work,
        error_bound=bound,
        seconds=candidate.seconds or 0.0,
        peak=row.target.peak.get(precision.accumulator_dtype(problem.spec.dtype), 0.0),
        config=chosen,
        fallback=fallback,
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that can run, as whoever measures it needs it.

    Attributes
    ----------
    candidate : Candidate
    target, revision : str
        The machine's fingerprint, and the revision of the solver.
    configs : tuple of Config
        Block sizes that the solver offers, the default first.
    plan : callable
        From block sizes to the plan that has them; raises whatever the solver raises.
    """

    candidate: Candidate
    target: str
    revision: str
    configs: tuple[Config, ...]
    plan: Callable[[Config], Plan]


def trials(problem: Problem, request: Request, array_type: type | None) -> list[Trial]:
    """The candidates that can run, in the order in which they would be chosen."""
    if problem.spec.is_empty:
        return []
    made = []
    for row in _ranked(problem.spec, request):
        if row.candidate.refusal is None and row.lowered is not None:
            revision = revisions.revision(row.lowered.solver)
            plan = partial(_plan, row, problem, request, array_type, "being measured")
            target = row.target.fingerprint
            made.append(Trial(row.candidate, target, revision, tuple(row.configs()), plan))
    return made


def _fill_plan(problem: Problem, request: Request, array_type: type | None) -> Plan:
    """Nothing is summed: zeros, bias and activation, by the array library of the data."""
    import sys

    module = request.array_type.partition(":")[0].partition(".")[0]
    return Plan(
        problem, Fill(problem.spec), request=request, namespace=sys.modules[module],
        array_type=array_type, backend="convjit", solver="convjit.fill", algorithm="fill",
        label="convjit.fill", reason="no product is summed", work=None, error_bound=0.0,
        seconds=0.0, peak=0.0, config=(),
    )  # fmt: skip


def _unsupported(
    spec: ConvSpec, request: Request, refused: Sequence[Candidate]
) -> UnsupportedError:
    refusals = [(c.solver_id, c.refusal) for c in refused if c.refusal is not None]
    asked = ", ".join(
        f"{name}={value!r}"
        for name, value in (
            ("backend", request.backend),
            ("algorithm", request.algorithm),
            ("precision", request.policy.precision),
            ("nonfinite", request.policy.nonfinite),
            ("deterministic", request.policy.deterministic or None),
            ("workspace_limit", request.policy.workspace_limit),
        )
        if value is not None
    )
    told = "".join(f"\n  {name}: {refusal.reason}" for name, refusal in refusals)
    if not told:
        told = "\n  (no solver of that family in these backends)"
    repair = "Allow more (drop backend= or algorithm=), or relax the policy that refuses."
    large = [c for c in refused if c.refusal and c.refusal.feature is Feature.WORKSPACE]
    if large:
        least = min(large, key=lambda c: c.workspace)
        repair = f"workspace_limit={least.workspace} would admit {least.label}. {repair}"
    return UnsupportedError(
        f"nothing that was allowed ({asked}) computes {spec}:{told}\n{repair}", refusals
    )

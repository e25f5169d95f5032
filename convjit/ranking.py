"""Candidates and their order: by what is remembered of them, else by the cost model.

A remembered measurement ranks the candidates that pass every filter; it lets none of them in.
Where some candidates were measured and others not (another precision was asked for, a kernel is
new), the predictions of the others are scaled by what the measured ones took over what was
predicted for them.  ``deterministic=True`` leaves measurements out of it: they differ between runs
and numbers of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from convjit import revisions, tunedb
from convjit.arguments import Request
from convjit.guard import Guarded
from convjit.lowering import Lowered, copy_of, lower
from convjit.spec import ConvSpec
from convjit.spi import DEFAULT_CONFIG, Backend, Config, Executable, Refusal, Target, Work
from convjit.tables import three_digits
from convjit.transfers import Transferred
from convjit.tunedb import Remembered


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solver's answer to a problem.

    Attributes
    ----------
    backend, device, solver_id, algorithm : str
    steps : tuple of str
        The lowering, outermost step first.
    spec : ConvSpec
        The problem that the solver itself is given.
    work : Work or None
    seconds : float or None
        Predicted time of a call with packed weights.
    pack_seconds : float
        Predicted time of packing, paid by plain calls.
    workspace : int
        Bytes.
    config : tuple, optional
        The block sizes that stand for the solver's default, which needs more than
        ``workspace_limit``.
    error_bound : float or None
        Modelled bound relative to the largest sum of magnitudes.
    refusal : Refusal or None
        Why the candidate cannot be chosen; None if it can.
    remembered : Remembered or None
        What it took when it was measured, and its best block sizes.
    """

    backend: str
    device: str
    solver_id: str
    algorithm: str
    steps: tuple[str, ...]
    spec: ConvSpec
    work: Work | None = None
    seconds: float | None = None
    pack_seconds: float = 0.0
    workspace: int = 0
    config: Config | None = None
    error_bound: float | None = None
    refusal: Refusal | None = None
    remembered: Remembered | None = None

    @property
    def label(self) -> str:
        """``"pad reflect + numba.direct"``."""
        return " + ".join((*self.steps, self.solver_id))

    def total(self, packed: bool) -> float:
        """Predicted seconds of a call, with the packing where it is paid each time."""
        seconds = float("inf") if self.seconds is None else self.seconds
        return seconds if packed else seconds + self.pack_seconds


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with what plans it.

    ``local`` computes what the finite check rejects; ``is_moved`` says that data is copied to the
    backend's device and back.
    """

    candidate: Candidate
    backend: Backend
    target: Target
    lowered: Lowered | None
    is_guarded: bool = False
    local: Ranked | None = None
    is_moved: bool = False

    def configs(self) -> Iterator[Config]:
        """The block sizes that the solver offers, the default first.

        To work out the others may take longer than the rest of planning.
        """
        if self.lowered is not None:
            fitting = self.candidate.config
            offered = iter(self.lowered.solver.configs(self.lowered.spec, self.target))
            yield next(offered, DEFAULT_CONFIG) if fitting is None else fitting
            yield from offered if fitting is None else (c for c in offered if c != fitting)

    def executable(
        self, limit: int | None = None, config: Config | None = None
    ) -> tuple[Executable, Config]:
        """What runs, and its block sizes: the remembered ones, unless others are given.

        Block sizes that need more than ``limit`` bytes give way to the default, which was asked.
        """
        if self.lowered is None:
            raise AssertionError("an admitted candidate has a lowering")
        default = next(self.configs())
        if config is None:
            remembered = self.candidate.remembered
            config = default if remembered is None else remembered.config
        executable = self._planned(self.lowered, config)
        if config != default and limit is not None and executable.workspace > limit:
            config = default
            executable = self._planned(self.lowered, config)
        if self.is_moved:
            chosen = config
            executable = Transferred(
                self.spec, self.backend, executable, lambda part: self._part(part, chosen)
            )
        local = self.local
        if local is not None:
            executable = Guarded(self.spec, executable, lambda: local.executable()[0])
        return executable, config

    def fitting(self, limit: int) -> Ranked | None:
        """The same with the first block sizes that need at most ``limit`` bytes, if any do.

        The default is known to need more.  Solvers that say so have other sizes that need less; a
        problem that is split has a solver for each part, which are not asked.
        """
        lowered = self.lowered
        if lowered is None or lowered.split is not None:
            return None
        workspace_of = getattr(lowered.solver, "workspace_of", None)
        if workspace_of is None:
            return None
        problem = (lowered.spec, self.target)
        steps = self.candidate.workspace - lowered.solver.estimate(*problem).workspace
        for config in islice(self.configs(), 1, None):
            needed = steps + workspace_of(*problem, config)
            if needed <= limit:
                candidate = replace(self.candidate, config=config, workspace=needed)
                return replace(self, candidate=candidate)
        return None

    def _planned(self, lowered: Lowered, config: Config) -> Executable:
        return lowered.plan(self.target, config, copy_of(self.backend))

    def _part(self, spec: ConvSpec, config: Config) -> Executable:
        """What runs a smaller batch, or the same in a wider dtype."""
        assert self.lowered is not None
        lowered = lower(self.lowered.solver, spec, self.target)
        if isinstance(lowered, Refusal):
            raise MemoryError(
                f"{self.spec} does not fit into the device's memory at once, and a part of it, "
                f"{spec}, is refused: {lowered.reason}"
            )
        return self._planned(lowered, lowered.offered(config, self.target))

    @property
    def spec(self) -> ConvSpec:
        """The problem asked for."""
        return self.candidate.spec if self.lowered is None else self.lowered.outer


def by_memory(spec: ConvSpec, request: Request, rows: list[Ranked]) -> list[Ranked]:
    """Candidates that can run, by what is remembered of them, else by the model as they are."""
    if request.policy.deterministic:
        return rows
    found = {
        row.backend.name: tunedb.find(row.backend.name, row.target.fingerprint, (spec,))
        for row in rows
    }
    if not any(found.values()):
        return rows
    rows = [_recalled(row, found[row.backend.name], request) for row in rows]
    known = [row for row in rows if row.candidate.remembered is not None]
    if not known:
        return rows
    # How far off the model is here, on average.
    predicted = [max(row.candidate.total(request.packed), 1e-9) for row in known]
    ratios = [_taken(row, request) / p for row, p in zip(known, predicted, strict=True)]
    scale = math.exp(sum(map(math.log, ratios)) / len(ratios))
    rows = sorted(rows, key=lambda row: _taken(row, request, scale))
    if rows[0].candidate.remembered is not None:
        alike = [
            row for row in known if _taken(row, request) <= tunedb.ALIKE * _taken(rows[0], request)
        ]  # in the order of the model, which decides among them
        rows.remove(alike[0])
        rows.insert(0, alike[0])
    return rows


def _recalled(row: Ranked, found: tunedb.Found | None, request: Request) -> Ranked:
    """A candidate with what is remembered of it, if that still holds."""
    label = row.candidate.label
    if found is None or row.lowered is None or label not in tunedb.labels(found):
        return row
    try:
        remembered = tunedb.recall(
            found, label, revisions.revision(row.lowered.solver), row.configs(), request.packed
        )
    except Exception:  # it is reported where the solver is planned
        return row
    return replace(row, candidate=replace(row.candidate, remembered=remembered))


def _taken(row: Ranked, request: Request, scale: float = 1.0) -> float:
    """Seconds of a call: remembered, or predicted and scaled."""
    remembered = row.candidate.remembered
    if remembered is not None:
        return remembered.seconds
    return scale * row.candidate.total(request.packed)


def reason(request: Request, admitted: Sequence[Candidate]) -> str:
    """One sentence on which rule chose the first of the candidates that were not refused."""
    first = admitted[0]
    forced = [
        f"{name}={value!r}"
        for name, value in (("backend", request.backend), ("algorithm", request.algorithm))
        if value is not None
    ]
    said = f"forced by {' and '.join(forced)}" if forced else ""
    rule = ""
    if first.remembered is not None:
        rule = f"remembered: {_milliseconds(first, request)}, {first.remembered}"
    if len(admitted) == 1:
        return "; ".join(filter(None, (said, rule))) or "the only solver that takes it"
    second = admitted[1]
    if rule:
        rule += f"; next {second.label} {_milliseconds(second, request)}"
    elif request.policy.deterministic:
        rule = (
            "cost model for one thread, so that the choice is the same for every number: before "
            f"{second.label}"
        )
    elif first.total(request.packed) == second.total(request.packed):
        rule = f"declared before {second.label}, which is predicted alike"
    else:
        rule = (
            f"cost model: {_milliseconds(first, request)}, next {second.label} "
            f"{_milliseconds(second, request)}"
        )
    return f"{said}; {rule}" if said else rule


def _milliseconds(candidate: Candidate, request: Request) -> str:
    """Of a call, and where they are from if that is another source than the rule's."""
    if candidate.remembered is not None:
        return f"{three_digits(candidate.remembered.seconds * 1e3)} ms"
    return f"{three_digits(candidate.total(request.packed) * 1e3)} ms"

"""Kernels of rank 1 run axis by axis: found when the weights are packed, never asked for.

Whether a kernel is an outer product shows in its values alone, so the plan of a plane's
convolution carries both: what runs in general, and the passes (see
:mod:`convjit.algorithms.rank1`), if the model says that they save enough to pay for looking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from convjit import profiling
from convjit.algorithms import policies, rank1
from convjit.algorithms.workspace import aligned, carve, nbytes
from convjit.arguments import Request
from convjit.ranking import Ranked
from convjit.spec import ConvSpec
from convjit.spi import Array, Executable

LOOKING, PER_NUMBER = 35e-6, 10e-9  # seconds that looking at kernels takes, and at each weight
WORTH = 3.0  # plain calls look each time: the saving must be so many times what that costs
GAIN = 0.9  # of the general time that the passes may take, where weights are packed once


@dataclass(frozen=True, slots=True)
class Passes:
    """The candidates of the passes, first to last.

    Attributes
    ----------
    axes : tuple of int
    rows : tuple of Ranked
    seconds : float
        Predicted, with the packing where each call packs.
    error_bound : float
    """

    axes: tuple[int, ...]
    rows: tuple[Ranked, ...]
    seconds: float
    error_bound: float

    def __str__(self) -> str:
        names = ", ".join(row.candidate.label for row in self.rows)
        return f"if w has rank 1: {len(self.rows)} passes ({names}), {self.seconds * 1e3:.3g} ms"


def worthwhile(
    spec: ConvSpec, request: Request, general: float, rank: Callable[[ConvSpec], list[Ranked]]
) -> Passes | None:
    """The passes of a problem, if they would pay should its kernels be of rank 1.

    Parameters
    ----------
    spec : ConvSpec
    request : Request
        A forced algorithm, ``precision="exact"`` and arrays other than NumPy's have none.
    general : float
        Predicted seconds of what runs otherwise.
    rank : callable
        From a problem to its candidates, the best first.
    """
    if (
        request.algorithm is not None
        or request.policy.precision == "exact"
        or request.array_type != "numpy:ndarray"
        or not rank1.has_axes(spec)
    ):
        return None
    looking = LOOKING + PER_NUMBER * prod(spec.w_shape)
    if general < looking:
        return None
    axes, rows = [], []
    for axis, inner in rank1.passes(spec):
        best = next(filter(_sums, rank(inner)), None)
        if best is None:
            return None
        axes.append(axis)
        rows.append(best)
    seconds = sum(row.candidate.total(request.packed) for row in rows)
    if request.packed:
        pays = seconds < GAIN * general
    else:
        seconds += looking
        pays = general - seconds > WORTH * looking
    bound = rank1.error_bound([row.candidate.error_bound or 0.0 for row in rows], spec.dtype)
    fast = policies.FAST_FACTOR if request.policy.precision == "fast" else 1.0
    if not pays or bound > fast * policies.limit(spec.dtype):
        return None
    return Passes(tuple(axes), tuple(rows), seconds, bound)


def _sums(row: Ranked) -> bool:
    """Whether a candidate may run a pass.

    The error of a sum is bounded by its own magnitudes, that of a transform by the largest of all:
    what a pass adds to small results, the next one would multiply by as much as its taps.
    """
    candidate = row.candidate
    return (
        candidate.refusal is None
        and candidate.work is not None
        and candidate.work.numerics.is_summation
    )


class RankOne:
    """An executable for any kernel that runs those of rank 1 axis by axis.

    Parameters
    ----------
    general : Executable
    found : Passes
    limit : int, optional
        Of the workspace, in bytes, for the block sizes of the passes.
    """

    def __init__(self, general: Executable, found: Passes, limit: int | None) -> None:
        self._general = general
        self._axes = found.axes
        self._specs = tuple(row.spec for row in found.rows)
        self._passes = tuple(row.executable(limit)[0] for row in found.rows)
        # Results between passes lie in two places in turn.
        between = [nbytes(s.result_shape, s.result_dtype) for s in self._specs[:-1]]
        self._second = aligned(max(between[0::2], default=0))
        self._inner = self._second + aligned(max(between[1::2], default=0))
        inside = max(executable.workspace for executable in self._passes)
        self.workspace = max(general.workspace, self._inner + inside)

    def pack(self, rhs: Array) -> Any:
        with profiling.phase("look for rank 1"):
            factors = rank1.factors(rhs)
        if factors is None:
            return self._general.pack(rhs)
        forms = [
            executable.pack(np.ascontiguousarray(factors[axis]))
            for axis, executable in zip(self._axes, self._passes, strict=True)
        ]
        return _Forms(tuple(forms))

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        if type(packed) is not _Forms:
            space = workspace if self._general.workspace else None
            self._general.run(lhs, packed, bias, out, space)
            return
        for number, (spec, executable) in enumerate(zip(self._specs, self._passes, strict=True)):
            last = number == len(self._passes) - 1
            place = self._second if number % 2 else 0
            result = out if last else carve(workspace, place, spec.result_shape, spec.result_dtype)
            space = None
            if executable.workspace:
                assert workspace is not None
                space = workspace[self._inner :]
            with profiling.phase(f"rank 1, pass {number + 1}"):
                executable.run(lhs, packed.forms[number], bias if last else None, result, space)
            lhs = result


@dataclass(frozen=True, slots=True)
class _Forms:
    """The factors of a kernel, each packed for its pass."""

    forms: tuple[Any, ...]

"""Check one case through the public calls, without pytest.

A case is computed three ways (a plain call, a plan with packed weights into a poisoned ``out``, the
plan with the weights as they are) and each result is held against the oracle: its error, relative
to the largest sum of magnitudes, may not exceed the bound that the error model gives for the
algorithm that ran.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

import convjit
from convjit import precision
from convjit.algorithms import error as error_model
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.errors import UnsupportedError
from convjit.plans import Plan
from convjit.spec import ConvSpec, Direction
from convjit.testing.cases import Array, Case, Operands


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    case : Case
    backend : str
        The name that was forced.
    label : str
        Lowering and solver that ran, empty when refused.
    error, bound : float
        Largest error of the results and what the error model admits, both relative to the largest
        sum of magnitudes.
    refusal : str
        Why nothing ran, empty when something did.
    complaint : str
        What is wrong, empty when nothing is.
    """

    case: Case
    backend: str
    label: str = ""
    error: float = 0.0
    bound: float = 0.0
    refusal: str = ""
    complaint: str = ""

    @property
    def passed(self) -> bool:
        return not self.refusal and not self.complaint

    def __str__(self) -> str:
        if self.refusal:
            return f"{self.case}: refused: {self.refusal}"
        told = f"{self.case}: {self.label}: error {self.error:.2e}, bound {self.bound:.2e}"
        return f"{told}: {self.complaint}" if self.complaint else told


def call(case: Case, operands: Operands, *, out: Array | None = None, **choice: Any) -> Any:
    """The public call that means a case, on operands as the spec describes them."""
    form = case.call()
    lhs = operands.lhs.reshape(form.lhs_shape)
    rhs = operands.rhs.reshape(form.rhs_shape)
    keywords = {**form.keywords, **choice, "out": out}
    direction = case.spec.direction
    if direction is Direction.FORWARD:
        return convjit.conv(lhs, rhs, operands.bias, **keywords)
    if direction is Direction.TRANSPOSED:
        return convjit.conv_transpose(lhs, rhs, operands.bias, **keywords)
    if direction is Direction.INPUT_GRAD:
        return convjit.conv_input_grad(form.result_shape, rhs, lhs, **keywords)
    return convjit.conv_weight_grad(lhs, form.result_shape, rhs, **keywords)


def make_plan(case: Case, **choice: Any) -> Plan:
    """The plan of a case, from shapes alone."""
    spec, form = case.spec, case.call()
    first, second = {
        Direction.FORWARD: (form.lhs_shape, form.rhs_shape),
        Direction.TRANSPOSED: (form.lhs_shape, form.rhs_shape),
        Direction.INPUT_GRAD: (form.result_shape, form.rhs_shape),
        Direction.WEIGHT_GRAD: (form.lhs_shape, form.result_shape),
    }[spec.direction]
    return convjit.plan(
        first,
        second,
        direction=spec.direction.value,
        dtype=precision.numpy_dtype(spec.dtype),
        bias=spec.bias,
        **form.keywords,
        **choice,
    )


@lru_cache(maxsize=16)
def reference(case: Case, seed: int = 0) -> tuple[Array, Array]:
    """(the oracle's result, the sums of magnitudes), kept for the next solver."""
    lhs, rhs, bias = case.operands(seed)
    return oracle(case.spec, lhs, rhs, bias), magnitudes(case.spec, lhs, rhs, bias)


def poison(array: Array) -> Array:
    """Fill an array with what no result is: NaN, or a pattern of bits."""
    if array.dtype.kind in "biu":
        array.view(np.uint8)[...] = 0xA5
    else:
        array[...] = np.nan
    return array


def measured_error(spec: ConvSpec, result: Array, expected: Array, scale: Array) -> float:
    """Error relative to the largest sum of magnitudes; inf for a NaN or a wrong shape or dtype."""
    wanted = precision.numpy_dtype(spec.result_dtype)
    if result.shape != spec.result_shape or result.dtype != wanted:
        return float("inf")
    return error_model.relative_error(spec, result, expected, scale)


def check(
    case: Case,
    backend: str | None = None,
    *,
    algorithm: str | None = None,
    seed: int = 0,
    choice: Mapping[str, Any] | None = None,
) -> Outcome:
    """Compute a case and hold every way of computing it against the oracle.

    Parameters
    ----------
    case : Case
    backend, algorithm : str, optional
        What is forced.
    seed : int
        Of the operands.
    choice : mapping, optional
        Further keywords of the call, such as ``precision``.

    Returns
    -------
    Outcome
        A refusal is told apart from a wrong answer; what raises otherwise is raised.
    """
    forced = {"backend": backend, "algorithm": algorithm, **(choice or {})}
    name = backend or "any"
    try:
        plan = make_plan(case, **forced)
    except UnsupportedError as error:
        return Outcome(case, name, refusal=why(error))
    spec = case.spec
    operands = case.operands(seed)
    expected, scale = reference(case, seed)
    form = case.call()
    lhs, rhs = operands.lhs.reshape(form.lhs_shape), operands.rhs.reshape(form.rhs_shape)
    kept = lhs.copy(), rhs.copy(), None if operands.bias is None else operands.bias.copy()
    # The plain call counts the packing and may prefer another solver; the bound is the plan's.
    exactly = {**forced, "algorithm": plan.solver} if plan.backend != "convjit" else forced
    out = poison(np.empty(form.result_shape, precision.numpy_dtype(spec.result_dtype)))
    ways: dict[str, Callable[[], Any]] = {
        "a plain call": lambda: call(case, operands, **exactly),
        "a plan with packed weights into out": lambda: plan(
            lhs, _packed(plan, rhs.copy()), operands.bias, out=out
        ),
        "a plan": lambda: plan(lhs, rhs, operands.bias),
    }
    bound, worst, complaint = plan.error_bound, 0.0, ""
    for way, compute in ways.items():
        result = compute()
        if result.shape != form.result_shape:
            complaint = f"{way} gave shape {result.shape}, not {form.result_shape}"
            break
        measured = measured_error(spec, result.reshape(spec.result_shape), expected, scale)
        worst = max(worst, measured)
        if not measured <= bound:
            complaint = f"{way} is wrong: error {measured:.2e} above the bound {bound:.2e}"
            break
    same = all(
        before is None or np.array_equal(before, after, equal_nan=before.dtype.kind in "fc")
        for before, after in zip(kept, (lhs, rhs, operands.bias), strict=True)
        if after is not None
    )
    if not same and not complaint:
        complaint = "an operand was modified"
    return Outcome(case, name, plan.label, worst, bound, complaint=complaint)


def _packed(plan: Plan, rhs: Array) -> Any:
    """The packed form of weights that change afterwards."""
    packed = plan.pack(rhs)
    poison(rhs)
    return packed


def why(error: UnsupportedError) -> str:
    """The refusals of an error in one line."""
    told = "; ".join(f"{name}: {refusal.reason}" for name, refusal in error.refusals)
    return told or str(error)

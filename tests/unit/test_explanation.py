"""Explanations: the table, the JSON, the reason, and measuring, on the reference backend."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import convjit
from convjit.explanation import Explanation, low_quartile, random_operands


def explain(**options: Any) -> Explanation:
    given: dict[str, Any] = {"backend": "scipy", "padding": 1, **options}
    return convjit.explain((2, 8, 9, 10), (4, 8, 3, 3), **given)


def test_the_first_row_is_what_a_plan_runs() -> None:
    made = explain(packed=True)
    plan = convjit.plan((2, 8, 9, 10), (4, 8, 3, 3), backend="scipy", padding=1, bias=False)
    assert made.winner is not None
    assert made.winner.label == plan.label
    assert made.reason == plan.reason


def test_candidates_are_ranked_by_predicted_time_and_the_refused_are_last() -> None:
    made = explain(precision="exact")
    assert made.refused
    assert [c.refusal is None for c in made.candidates] == [True] * len(made.admitted) + [
        False
    ] * len(made.refused)
    times = [c.total(packed=False) for c in made.admitted]
    assert times == sorted(times)


def test_the_table_has_a_row_a_candidate_and_says_why() -> None:
    made = explain(precision="exact")
    text = str(made)
    for candidate in made.candidates:
        assert candidate.label in text
    assert made.refused[0].refusal is not None
    assert made.refused[0].refusal.reason.split()[0] in text
    assert text.startswith(str(made.spec))
    assert "forced by backend='scipy'" in text
    assert "why not" in text
    assert "why not" not in made.table(refused=False)


def test_nothing_that_runs_is_told_too() -> None:
    made = explain(algorithm="fft", precision="exact")
    assert made.winner is None
    assert "nothing runs: every solver considered refuses" in str(made)


def test_an_empty_problem_has_no_candidates() -> None:
    made = convjit.explain((0, 8, 9, 10), (4, 8, 3, 3))
    assert made.candidates == ()
    assert "no product is summed" in str(made)


def test_measuring_adds_times_and_errors() -> None:
    seen: list[tuple[int, ...]] = []

    def reference(result: np.ndarray) -> float:
        seen.append(result.shape)
        return 1.25e-7

    made = explain(packed=True).measure(seconds=0.0, hopeless=1e9, reference=reference)
    assert set(made.measured) == {c.label for c in made.admitted}
    assert seen == [(2, 4, 9, 10)] * len(made.admitted)
    text = str(made)
    assert "measured ms" in text
    assert "1.2e-07" in text
    assert "measured, " in text.splitlines()[-1]


def test_the_budget_ends_measuring_after_the_choice() -> None:
    made = explain().measure(seconds=0.0, budget=0.0)
    assert made.winner is not None
    assert list(made.measured) == [made.winner.label]


def test_json_holds_every_candidate() -> None:
    made = explain(precision="exact").measure(seconds=0.0, budget=0.0)
    read = json.loads(made.to_json(indent=1))
    assert read["spec"] == str(made.spec)
    assert made.winner is not None
    assert read["winner"] == made.winner.label
    assert [c["label"] for c in read["candidates"]] == [c.label for c in made.candidates]
    first, last = read["candidates"][0], read["candidates"][-1]
    assert first["measured_seconds"] > 0
    assert first["gflops"] > 0
    assert first["refusal"] is None
    assert last["refusal"]["feature"]
    assert last["refusal"]["reason"]
    assert last["measured_seconds"] is None


@pytest.mark.parametrize("dtype", ["float32", "complex64", "uint8", "bool"])
def test_random_operands_fit_the_problem(dtype: str) -> None:
    made = convjit.explain((2, 8, 9), (4, 8, 3), True, dtype=dtype, backend="scipy")
    lhs, rhs, bias = random_operands(made.problem)
    assert (lhs.shape, rhs.shape) == ((2, 8, 9), (4, 8, 3))
    assert lhs.dtype.name == rhs.dtype.name == dtype
    assert bias is not None
    assert bias.dtype.name == made.spec.result_dtype
    again, *_ = random_operands(made.problem)
    np.testing.assert_array_equal(lhs, again)


def test_the_low_quartile_calls_often_enough() -> None:
    calls: list[int] = []
    taken = low_quartile(lambda: calls.append(1), 0.0, least=5)
    assert len(calls) == 6
    assert taken >= 0

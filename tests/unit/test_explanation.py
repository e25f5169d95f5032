"""Explanations: the table, the JSON, the reason, and measuring, on the reference backend."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convjit
from convjit import calls, explanation
from convjit.errors import ConvSpecError
from convjit.explanation import Explanation, low_quartile, random_operands
from convjit.spec import ConvSpec
from convjit.spi import Feature, Refusal


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
    assert "ruled out" in text
    assert "ruled out" not in made.table(refused=False)


def test_what_is_ruled_out_for_one_reason_is_told_once() -> None:
    made = explain(precision="exact")
    reason = made.refused[0].refusal
    same = tuple(replace(c, refusal=reason, seconds=None) for c in made.candidates)
    lines = str(replace(made, candidates=same)).splitlines()
    assert sum(str(reason) in line for line in lines) == 1
    assert ", ".join(c.label for c in same) in "\n".join(lines)


def test_reasons_that_differ_in_their_tiles_alone_are_told_once() -> None:
    made = explain(precision="exact")
    first, second = made.admitted[:2]
    tiles = tuple(
        replace(c, refusal=Refusal(Feature.OTHER, f"F({n}, 5) takes 5 taps"), seconds=taken)
        for c, n, taken in ((first, 4, 1e-3), (second, 2, None))
    )
    text = str(replace(made, candidates=tiles))
    assert text.count("takes 5 taps") == 1
    assert "F(4, 5)" not in text
    assert "takes 5 taps (they would take 1.00 ms)" in text
    assert "F(4, 5) takes 5 taps (it would take 1.00 ms)" in str(
        replace(made, candidates=tiles[:1])
    )


def test_a_common_layer_is_explained_on_one_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    made = convjit.explain((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    lines = str(made).splitlines()
    assert len(lines) <= 40
    assert all(len(line) <= 80 for line in lines[:-1])
    layer = convjit.explain_separable(
        (1, 56, 56, 64), (64, 1, 3, 3), (128, 64), layout="NHWC", padding=1
    )
    assert len(str(layer).splitlines()) <= 48


def test_a_table_may_be_cut_short_and_says_so() -> None:
    made = explain()
    text = made.table(refused=False, most=1)
    assert made.admitted[1].label not in text.splitlines()[5:-2]
    assert f"and {len(made.admitted) - 1} more: python -m convjit explain {made.spec}" in text


def test_a_prediction_of_what_a_policy_rules_out_is_told() -> None:
    assert "(it would take " in str(explain(precision="exact"))


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

    made = explain(packed=True).compare(seconds=0.0, reference=reference)
    assert set(made.measured) == {c.label for c in made.admitted}
    assert seen == [(2, 4, 9, 10)] * len(made.admitted)
    text = str(made)
    assert "measured ms" in text
    assert "1.2e-07" in text
    assert "measured, " in text.splitlines()[-1]


def test_the_budget_ends_measuring_after_the_choice() -> None:
    made = explain().compare(seconds=0.0, budget=0.0)
    assert made.winner is not None
    assert list(made.measured) == [made.winner.label]
    assert made.left_out == tuple(c.label for c in made.admitted[1:])
    assert f"not measured, for they take too long: {made.left_out[0]}" in str(made)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("budget", "10", TypeError), ("budget", -1, ConvSpecError), ("seconds", True, TypeError)],
)
def test_what_is_no_number_of_seconds_is_named(name: str, value: Any, error: Any) -> None:
    for measure in (explain().compare, explain().sweep):
        with pytest.raises(error, match=f"{name}={value!r} "):
            measure(**{name: value})


@pytest.mark.parametrize("sizes", [3, [], [0], ["3"], [1.5]])
def test_sizes_of_a_sweep_that_are_none_are_told(sizes: Any) -> None:
    with pytest.raises(ConvSpecError, match=r"sizes=.* must be a list of whole numbers"):
        explain().sweep(sizes=sizes)


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(TypeError, match="dtype='float33' is not a dtype; give a NumPy one"):
        explain(dtype="float33")


def test_errors_are_found_by_the_oracle_and_lie_within_the_bound() -> None:
    made = explain(bias=True).compare(seconds=0.0)
    for candidate in made.admitted:
        error = made.measured[candidate.label].error
        assert error is not None
        assert candidate.error_bound is not None
        assert 0 < error <= candidate.error_bound


def test_where_the_oracle_takes_long_no_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "ORACLE_SECONDS", 0.0)
    made = explain(algorithm="gemm").compare(seconds=0.0)
    assert [m.error for m in made.measured.values()] == [None]
    assert "error ≤" in str(made)
    assert "error\n" not in str(made)


def test_json_holds_every_candidate() -> None:
    made = explain(precision="exact").compare(seconds=0.0, budget=0.0)
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


# -------------------------------------------------------------------- sweeps and pictures


def test_a_sweep_is_the_choice_of_every_size() -> None:
    made = explain()
    found = made.sweep("kernel", (1, 3, 5))
    assert found.sizes == [1, 3, 5]
    for size in found.sizes:
        best = convjit.explain(
            (2, 8, 9, 10), (4, 8, size, size), padding=size // 2, backend="scipy"
        ).winner
        assert best is not None
        assert found.chosen(size) == best.algorithm
        time = found.at(size)[best.algorithm]
        assert (time.label, time.seconds) == (best.label, None)
    with pytest.raises(ConvSpecError, match="choose one of kernel, channels"):
        made.sweep("batch")


def test_what_was_compared_and_what_a_sweep_measures_are_in_it() -> None:
    made = explain().compare(seconds=0.0)
    found = made.sweep("channels", (4, 8))
    assert {t.seconds is None for t in found.at(4).values()} == {True}
    measured = {c.algorithm: made.measured[c.label].seconds for c in reversed(made.admitted)}
    assert {name: time.seconds for name, time in found.at(8).items()} == measured
    again = made.sweep("channels", (4, 8), compare=True, seconds=0.0)
    assert again.which == "seconds"
    assert all(time.seconds for time in again.at(4).values())
    late = made.sweep("channels", (4, 8), compare=True, budget=0.0)
    assert {t.seconds is None for t in late.at(4).values()} == {True}


def test_a_picture_of_a_choice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the pictures (extra plot)")
    made = explain(precision="exact").compare(seconds=0.0)
    made.plot(tmp_path / "it.svg", over=("kernel",))
    assert (tmp_path / "it.svg").stat().st_size > 10_000
    made.plot(str(tmp_path / "it.png"), over=())
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConvSpecError, match="end it with"):
        made.plot(tmp_path / "it.doc")
    with pytest.raises(ConvSpecError, match="nothing to draw"):
        convjit.explain((0, 8, 9, 10), (4, 8, 3, 3)).plot(tmp_path / "none.png")


# -------------------------------------------------------------------- repro


WORDS = (
    "conv_f32_NCHW_n2c4k6g2_i9x8_w3x3_p1x1_bias_act=relu",
    "conv_bf16_NLC_n1c4k3g1_i17_w3_p1_flip",
    "convt_c64_NCHW_n1c3k4g1_i10x9_w3x3_s2x2_p1x1",
    "igrad_f64_NCL_n1c3k4g1_i17_w3_p1_reflect",
    "wgrad_f32_NCDHW_n1c2k3g1_i5x6x4_w3x2x3_d1x2x1",
    "conv_u8_NCL_n1c2k3g1_i17_w3",
)


def run_source(source: str) -> None:
    """What pytest does with the one test of a file."""
    scope: dict[str, Any] = {}
    exec(compile(source, "repro", "exec"), scope)
    (test,) = (value for name, value in scope.items() if name.startswith("test_"))
    test()


@pytest.mark.parametrize("word", WORDS)
def test_a_repro_passes(word: str) -> None:
    shapes, given = calls.described(ConvSpec.parse(word))
    made = convjit.explain(*shapes, backend="scipy", **given)
    source = made.repro()
    assert word in source
    assert f"numpy {np.__version__}" in source
    run_source(source)


@pytest.mark.parametrize(
    ("x", "w", "layout"),
    [((20,), (3,), None), ((3, 9, 8), (3, 3), "HW"), ((4, 9, 8), (2, 4, 3, 3), None)],
)
def test_a_repro_of_plain_stacked_and_unbatched_data(
    x: tuple[int, ...], w: tuple[int, ...], layout: str | None
) -> None:
    run_source(convjit.explain(x, w, layout=layout, backend="scipy").repro(seed=3))


def test_a_repro_of_data_that_is_not_contiguous() -> None:
    x = np.zeros((1, 4, 9, 9), np.float32)[..., ::2]
    made = convjit.explain(x, np.zeros((2, 4, 3, 3), np.float32), backend="scipy")
    assert made.spec.strided
    source = made.repro()
    assert "[..., ::2]" in source
    run_source(source)


@pytest.mark.parametrize("policy", [{"precision": "exact"}, {"workspace_limit": 0}], ids=str)
def test_a_repro_of_what_a_policy_rules_out(policy: dict[str, Any]) -> None:
    made = explain(backend="scipy", **policy)
    able = [c for c in made.refused if c.error_bound is not None]
    assert able
    for candidate in able:
        source = made.repro(candidate.label)
        assert "ruled out where it was explained" in source
        assert max(map(len, source.splitlines()[1:])) <= 99
        run_source(source)


def test_a_repro_of_another_candidate_and_one_that_fails() -> None:
    made = explain(precision="fast", deterministic=True)
    other = made.admitted[-1]
    source = made.repro(other.solver_id)
    forced = f'algorithm="{other.solver_id}", precision="fast", deterministic=True'
    assert forced in " ".join(source.split())
    run_source(source)
    with pytest.raises(AssertionError):
        run_source(source.replace(f"error <= {other.error_bound!r}", "error <= 0.0"))
    with pytest.raises(ConvSpecError, match=f"choose one of .*{other.label}"):
        made.repro("numba.nothing")
    with pytest.raises(ConvSpecError, match=r"nothing to test of .*: no product"):
        convjit.explain((0, 8, 9, 10), (4, 8, 3, 3)).repro()

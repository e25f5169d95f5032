"""What better there would be, and why it does not run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import convjit
from convjit import fallback, registry
from convjit.arguments import Request
from convjit.dispatch import Candidate
from convjit.health import State
from convjit.registry import BackendInfo
from convjit.spec import ConvSpec
from convjit.spi import Feature, Refusal

SPEC = ConvSpec.parse("conv_f32_NCHW_n1c4k4g1_i8x8_w3x3")
CHOSEN = Candidate("scipy", "cpu", "scipy.gemm", "gemm", (), SPEC, seconds=3e-3)
QUICK = Candidate("numba", "cpu", "numba.fft", "fft", (), SPEC, seconds=1e-3)


def refused(feature: Feature, reason: str = "because", **changes: Any) -> Candidate:
    return replace(QUICK, refusal=Refusal(feature, reason), **changes)


def test_nothing_is_told_of_the_best_there_is() -> None:
    beaten = replace(CHOSEN, solver_id="scipy.direct", seconds=1.0)
    assert fallback.of(QUICK, [QUICK, CHOSEN, beaten], Request()) == ""
    assert fallback.of(CHOSEN, [CHOSEN, QUICK], Request()) == ""


def test_a_policy_that_rules_out_something_much_faster_is_told() -> None:
    for feature in (Feature.POLICY, Feature.WORKSPACE):
        told = fallback.of(CHOSEN, [CHOSEN, refused(feature), QUICK], Request())
        assert told == "numba.fft would be 3.0 times faster, but because"
    little = refused(Feature.POLICY, seconds=2.5e-3)
    assert fallback.of(CHOSEN, [CHOSEN, little, QUICK], Request()) == ""


def test_a_solver_that_failed_and_a_backend_that_refuses_are_told() -> None:
    broken = refused(Feature.BROKEN, "it raised ValueError")
    told = fallback.of(CHOSEN, [CHOSEN, broken], Request())
    assert told == "numba.fft is left out: it raised ValueError"
    asked = [CHOSEN, refused(Feature.SIZE, "once"), *[refused(Feature.DTYPE, "no int64")] * 2]
    assert fallback.of(CHOSEN, asked, Request()) == "the numba backend refuses it: no int64"
    assert fallback.of(CHOSEN, [*asked, QUICK], Request()) == ""


def test_what_the_caller_forced_is_no_fallback() -> None:
    asked = [CHOSEN, refused(Feature.POLICY)]
    assert fallback.of(CHOSEN, asked, Request(backend="scipy")) == ""
    assert fallback.of(CHOSEN, asked, Request(algorithm="gemm")) == ""


def test_a_preferred_backend_that_is_broken_is_told_by_plans_and_explanations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        BackendInfo("numba", "", State.BROKEN, "convjit", "1", "No module named 'llvmlite'"),
        BackendInfo("scipy", "cpu", State.LOADED, "convjit", "1"),
        BackendInfo("cupy", "cuda", State.UNAVAILABLE, "convjit", "1", "no GPU"),
    ]
    monkeypatch.setattr(registry, "status", lambda: rows)
    monkeypatch.setattr(registry, "default_pool", lambda device: [registry.get("scipy")])
    explained = convjit.explain((1, 4, 8, 8), (4, 4, 3, 3))
    assert explained.absent == {"numba": "No module named 'llvmlite'"}
    assert "all of numba" in str(explained)
    assert explained.as_dict()["absent"] == explained.absent
    plan = convjit.plan((1, 4, 8, 8), (4, 4, 3, 3))
    assert plan.fallback == (
        "backend 'numba' does not work here (No module named 'llvmlite'); convjit.backends() "
        "lists it"
    )

"""Kernels of rank 1 are found, run in passes within their bound, and others are left alone."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import convjit
from convjit import rank1 as passes
from convjit.algorithms import rank1
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.calls import described
from convjit.spec import ConvSpec
from convjit.testing.cases import Case
from convjit.testing.check import measured_error

Array = np.ndarray


def outer(rng: np.random.Generator, kernel: tuple[int, ...], dtype: str) -> Array:
    product = np.ones(kernel, dtype)
    for axis, k in enumerate(kernel):
        line = rng.standard_normal(k).astype(dtype)
        product = product * line.reshape(*(-1 if a == axis else 1 for a in range(len(kernel))))
    return product


# -------------------------------------------------------------------- the factors


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=3), st.sampled_from(["float32", "float64"]),
    st.integers(1, 4), st.integers(-30, 30), st.integers(0, 1000),
)  # fmt: skip
def test_outer_products_are_found(
    kernel: list[int], dtype: str, count: int, decade: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    stack = np.stack([outer(rng, tuple(kernel), dtype) for _ in range(count)])[:, None]
    stack = stack * np.array(10.0**decade, dtype)
    # What has underflowed is rounded otherwise than a product.
    assume(np.abs(stack).min() >= np.finfo(dtype).tiny)
    found = rank1.factors(stack)
    assert found is not None
    assert [f.dtype for f in found] == [stack.dtype] * len(kernel)
    product = np.ones((), np.float64)
    for factor in found:
        product = product * factor.astype(np.float64)
    unit = np.finfo(dtype).eps / 2
    assert (np.abs(product - stack) <= (rank1.TOLERANCE + 4) * unit * np.abs(stack)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_kernels_are_not(dtype: str) -> None:
    rng = np.random.default_rng(0)
    kernel = outer(rng, (5, 7), dtype)[None, None]
    assert rank1.factors(kernel) is not None
    for place in ((0, 0), (4, 6), (2, 3)):
        other = kernel.copy()
        other[(0, 0, *place)] *= 1 + 40 * np.finfo(dtype).eps
        assert rank1.factors(other) is None
    pair = np.concatenate([kernel, rng.standard_normal((1, 1, 5, 7)).astype(dtype)])
    assert rank1.factors(pair) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not(value: float) -> None:
    kernel = np.ones((1, 1, 3, 3), np.float32)
    kernel[0, 0, 1, 2] = value
    assert rank1.factors(kernel) is None


def test_a_factor_that_underflows_is_none() -> None:
    line = np.array([1.0, 3e-43], np.float64)  # the second keeps two bits in float32
    column = np.array([1e10, 1e9], np.float64)
    kernel = np.outer(column, line).astype(np.float32)[None, None]
    assert kernel.all()
    assert np.finfo(np.float32).tiny < np.abs(kernel).min()
    assert rank1.factors(kernel) is None
    assert rank1.factors(np.outer(column, line)[None, None]) is not None


def test_zeros_are_an_outer_product() -> None:
    found = rank1.factors(np.zeros((2, 1, 3, 4), np.float32))
    assert found is not None
    assert not any(factor.any() for factor in found)


# -------------------------------------------------------------------- the passes


SPECS = [
    "conv_f32_NCHW_n2c3k3g3_i40x50_w5x7_p2x3_bias_act=relu",
    "conv_f64_NCHW_n1c1k1g1_i33x65_w9x9_p4_reflect",
    "conv_f32_NCHW_n1c2k2g2_i41x37_w6x3_s2x3_p1x0.2_d1x2_symmetric_bias",
    "conv_f32_NHWC_n1c4k4g4_i30x31_w5x5_s2_p2_bias",
    "conv_f64_NCDHW_n1c2k2g2_i9x11x13_w3x5x4_s1x2x1_p1x2x1_circular",
    "conv_f32_NCDHW_n1c1k1g1_i9x20x13_w1x5x3_s3x1x1_p0x2x1_flip",
    "conv_f32_NCHW_n1c1k1g1_i40x50_w5x7_p9_replicate_flip",
]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes pay for whatever has them."""
    monkeypatch.setattr(passes, "LOOKING", -1.0)
    monkeypatch.setattr(passes, "GAIN", float("inf"))
    convjit.refresh()  # plans are made anew
    yield
    convjit.refresh()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", SPECS)
def test_passes_keep_their_bound(text: str, packed: bool) -> None:
    spec = ConvSpec.parse(text)
    case = Case("rank 1", spec)
    x, w, bias = case.operands()
    rng = np.random.default_rng(1)
    of_rank_one = np.stack([outer(rng, spec.kernel_size, spec.dtype) for _ in range(len(w))])
    for weights in (of_rank_one[:, None], w):
        shapes, options = described(spec)
        plan = convjit.plan(*shapes, **options, backend="scipy")
        assert "if w has rank 1" in plan.reason
        got = plan(x, plan.pack(weights) if packed else weights, bias)
        expected = oracle(spec, x, weights, bias)
        sizes = magnitudes(spec, x, weights, bias)
        assert measured_error(spec, got, expected, sizes) <= plan.error_bound


def phases(profile: convjit.profile) -> str:
    return json.dumps([asdict(record) for record in profile.records], default=str)


@pytest.mark.usefixtures("always")
def test_only_kernels_of_rank_one_run_in_passes() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((40, 40))
    plan = convjit.plan(x, np.ones((5, 5)), bias=False)
    with convjit.profile(warn=False) as profile:
        plan(x, rng.standard_normal((5, 5)))
    assert "look for rank 1" in phases(profile)
    assert "rank 1, pass" not in phases(profile)
    with convjit.profile(warn=False) as profile:
        plan(x, np.ones((5, 5)))
    assert "rank 1, pass 1" in phases(profile)
    assert "rank 1, pass 2" in phases(profile)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "options",
    [
        {"precision": "exact"}, {"algorithm": "direct"}, {"workspace_limit": 0},
    ],
)  # fmt: skip
def test_what_is_forbidden_has_no_passes(options: dict[str, object]) -> None:
    plan = convjit.plan((40, 40), (5, 5), dtype="float32", **options)
    assert "rank 1" not in plan.reason


@pytest.mark.usefixtures("always")
def test_nan_stays_in_its_receptive_field() -> None:
    x = np.zeros((20, 20), np.float32)
    x[10, 10] = np.nan
    with convjit.profile(warn=False) as profile:
        y = convjit.conv(x, np.ones((3, 5), np.float32), padding="same")
    assert "rank 1, pass 2" in phases(profile)
    expected = np.zeros((20, 20), bool)
    expected[9:12, 8:13] = True
    assert np.array_equal(np.isnan(y), expected)


def test_small_images_are_not_looked_at() -> None:
    assert "rank 1" not in convjit.plan((16, 16), (3, 3), dtype="float32").reason


def test_explain_says_it() -> None:
    explained = convjit.explain((1024, 1024), (31, 31), dtype="float32", packed=True)
    assert "if w has rank 1: 2 passes" in str(explained)

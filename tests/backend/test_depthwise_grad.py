"""The gradient of depthwise weights: strides, dilations, borders, widths, threads, NaN."""

from __future__ import annotations

import numpy as np
import pytest
from guarded import BACKEND, check, compute, operands

from convjit.algorithms.oracle import oracle
from convjit.spec import ConvSpec
from convjit.spi import Feature
from convjit_numba.depthwisegrad import DepthwiseWeightGrad, Plan
from convjit_numba.problem import Problem

SOLVER = DepthwiseWeightGrad()


@pytest.mark.parametrize(
    "text",
    [
        "wgrad_f32_NCHW_n2c9k9g9_i7x7_w3x3_p1",
        "wgrad_f32_NCHW_n1c5k10g5_i19x37_w3x3_p1_s2",
        "wgrad_f32_NCHW_n3c2k2g2_i20x41_w5x9_s3x4_p2.1x5.3",
        "wgrad_f64_NCHW_n1c3k3g3_i14x15_w13x17_p6x8",
        "wgrad_f32_NCHW_n1c3k3g3_i23x40_w3x3_d3x2_p3x2",
        "wgrad_f32_NCHW_n1c2k6g2_i23x40_w3x4_d2x3_s3x2_p5x1",
        "wgrad_f32_NCHW_n1c2k2g2_i9x10_w3x3_s5x6",  # strides wider than the kernel
        "wgrad_f32_NCHW_n1c2k2g2_i4x4_w3x3_d6_p9",  # most rows in the padding
        "wgrad_f64_NCL_n2c4k4g4_i300_w31_p15",
        "wgrad_f32_NCDHW_n2c3k3g3_i6x7x18_w3x2x3_p1x1x2_s2x1x2",
        "wgrad_f32_NCHW_n1c1k1g1_i30x33_w3x3",
    ],
)
def test_matches_oracle_and_stays_inside(text: str) -> None:
    spec = ConvSpec.parse(text)
    assert SOLVER.refuse(spec, BACKEND.target()) is None
    x, gy, _ = operands(spec)
    result = compute(SOLVER, spec, x, gy, cores=1)
    check(spec, SOLVER, result, x, gy, None)
    for cores in (2, 3):
        assert np.array_equal(compute(SOLVER, spec, x, gy, cores=cores), result)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 65])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_every_width(width: int, dtype: str) -> None:
    for rest in ("w3x3_p1", "w2x11_p1x5_s1x2"):
        spec = ConvSpec.parse(f"wgrad_{dtype}_NCHW_n1c3k3g3_i6x{width}_{rest}")
        x, gy, _ = operands(spec)
        check(spec, SOLVER, compute(SOLVER, spec, x, gy), x, gy, None)


def test_nan_in_the_data_stays_local() -> None:
    """Lanes beyond a row meet numbers of x that count for other taps."""
    spec = ConvSpec.parse("wgrad_f32_NCHW_n1c3k3g3_i9x21_w3x3_p1")
    x, gy, _ = operands(spec)
    for place in ((0, 0, 0, 0), (0, 1, 8, 20), (0, 2, 3, 20)):
        x[place] = np.nan
    result = compute(SOLVER, spec, x, gy)
    assert np.array_equal(np.isnan(result), np.isnan(oracle(spec, x, gy, None)))
    assert np.isfinite(result).any()


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("conv_f32_NCHW_n1c8k8g8_i8x8_w3x3", Feature.OTHER),
        ("wgrad_f32_NCHW_n1c8k8g4_i8x8_w3x3", Feature.GROUPS),
        ("wgrad_f32_NHWC_n1c8k8g8_i8x8_w3x3", Feature.LAYOUT),
        ("wgrad_f16_NCHW_n1c8k8g8_i8x8_w3x3", Feature.DTYPE),
    ],
)
def test_refuses_with_the_feature_to_lower(text: str, feature: Feature) -> None:
    refusal = SOLVER.refuse(ConvSpec.parse(text), BACKEND.target())
    assert refusal is not None
    assert refusal.feature is feature


def test_passes_cover_a_kernel_row() -> None:
    for kw, passes in ((1, (1, 0)), (3, (3, 0)), (8, (8, 0)), (11, (8, 3)), (16, (8, 0))):
        spec = ConvSpec.parse(f"wgrad_f32_NCHW_n1c2k2g2_i40x40_w3x{kw}")
        assert Plan.of(Problem.of(spec), "avx512").passes == passes

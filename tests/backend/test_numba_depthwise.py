"""Depthwise layers of channels-last arrays beyond L2: tiles that evict nothing, rings of rows."""

from __future__ import annotations

import numpy as np
import pytest
from guarded import BACKEND, check, compute, operands

from convjit.spec import ConvSpec
from convjit_numba import depthwiseplan
from convjit_numba.depthwise import Depthwise
from convjit_numba.problem import Problem, isa_of

SOLVER = Depthwise()


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays too are taken as if they came from beyond L2."""
    monkeypatch.setattr(depthwiseplan, "HELD", 0)
    depthwiseplan.blocking.cache_clear()
    yield
    depthwiseplan.blocking.cache_clear()


def blocking(spec: ConvSpec, cores: int = 2) -> depthwiseplan.Blocking:
    return depthwiseplan.blocking(Problem.of(spec), isa_of(BACKEND.target()), cores)


@pytest.mark.parametrize(
    "text",
    [
        "conv_f32_NHWC_n2c1024k1024g1024_i9x11_w3x3_p1_bias_act=relu",
        "conv_f32_NHWC_n1c512k512g512_i5x30_w3x3_p0x1",
        "conv_f32_NHWC_n1c512k1024g512_i7x8_w3x3_p1_bias",  # a multiplier
        "conv_f64_NHWC_n1c256k256g256_i8x6_w3x3_p2",  # rows that meet nothing but padding
        "conv_f32_NHWC_n1c1024k1024g1024_i12x4_w2x3_p1.0x1",
    ],
)
def test_rows_in_a_ring(text: str) -> None:
    spec = ConvSpec.parse(text)
    x, w, bias = operands(spec)
    results = []
    for cores in (1, 2, 5):
        assert blocking(spec, cores).ring == spec.kernel_size[0]
        results.append(compute(SOLVER, spec, x, w, bias, cores=cores))
        check(spec, SOLVER, results[-1], x, w, bias)
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    "text",
    [
        "conv_f32_NHWC_n1c1024k1024g1024_i9x11_w3x3_p1_s2",
        "conv_f32_NHWC_n1c1024k1024g1024_i9x11_w3x3_p2_d2",
        "conv_f32_NDHWC_n1c1024k1024g1024_i3x5x6_w1x3x3_p1",  # planes of padding
        "conv_f32_NLC_n2c1024k1024g1024_i70_w3_p1",
    ],
)
def test_other_layers_read_in_place_by_small_tiles(text: str) -> None:
    spec = ConvSpec.parse(text)
    found = blocking(spec)
    assert found.ring == 0
    assert found.mr <= depthwiseplan.LEAST_OUTPUTS
    x, w, bias = operands(spec)
    check(spec, SOLVER, compute(SOLVER, spec, x, w, bias), x, w, bias)


def test_a_ring_is_not_larger_than_what_l2_holds() -> None:
    """It has a part of the columns, or of the channels."""
    l2 = depthwiseplan.problem.caches()["l2"]
    for channels, wide in ((1024, l2 // 4096), (l2 // 16, 50)):
        size = f"c{channels}k{channels}g{channels}_i6x{wide}"
        found = blocking(ConvSpec.parse(f"conv_f32_NHWC_n1{size}_w3x3_p1"))
        assert found.ring == 3
        assert found.cols < wide
        assert found.slab_bytes < l2


def test_pixels_of_a_ring_fill_all_sets_alike() -> None:
    for channels in (512, 1024, 1000, 2048):
        p = Problem.of(ConvSpec.parse(f"conv_f32_NHWC_n1c{channels}k{channels}g{channels}_i5_w3"))
        pitch = depthwiseplan.ring_pitch(p, 16, -(-channels // 16))
        assert pitch % 128 == 64
        assert channels * 4 <= pitch <= channels * 4 + 128

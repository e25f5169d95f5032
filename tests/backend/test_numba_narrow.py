"""Integers of 8 bits by pairs of channels: exact up to the bound, and left to others beyond it."""

from __future__ import annotations

import numpy as np
import pytest

import convjit
from convjit.algorithms.oracle import oracle
from convjit.precision import SHORT, numpy_dtype
from convjit.spec import ConvSpec
from convjit.spi import Feature
from convjit_numba import NumbaBackend
from convjit_numba.casting import NARROW
from convjit_numba.indirect import Indirect

TARGET = NumbaBackend().target()
SPECS = [
    "n1c16k24g1_i9x11_w3x3_p1",
    "n2c5k7g1_i8x9_w3x3_s2_p1_bias",
    "n1c6k4g2_i7x8_w2x3_p1_d2x1",
    "n1c9k12g3_i12x13_w1x3_act=relu",
    "n1c70k33g1_i6x5_w1x1_bias",
    "n2c3k16g1_i33x47_w7x7_s2_p3",
    "n1c2k1g1_i70x120_w5x5",  # more pixels than a task pairs at once
    "n1c300k100g1_i7x7_w3x3_p1",
]


def extremes(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> np.ndarray:
    """The least and the largest number as often as all others together."""
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    limits = np.iinfo(dtype)
    some = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    ends = rng.choice(np.array([limits.min, limits.max], dtype), shape)
    return np.where(rng.random(shape) < 0.5, ends, some)


def forward(spec: ConvSpec, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return convjit.conv(
        x, w, bias, stride=spec.stride, padding=spec.padding, dilation=spec.dilation,
        groups=spec.groups, layout=spec.layout, backend="numba", algorithm="numba.indirect",
        activation=spec.activation,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("text", SPECS)
def test_is_exact(text: str, dtype: str, layout: str) -> None:
    spec = ConvSpec.parse(f"conv_{SHORT[dtype]}_{layout}_{text}")
    assert Indirect().refuse(spec.replace(bias=False, activation=None), TARGET) is None
    rng = np.random.default_rng(0)
    x, w = extremes(spec.lhs_shape, dtype, rng), extremes(spec.rhs_shape, dtype, rng)
    bias = None
    if spec.bias:  # beyond what sums of 32 bits hold
        bias = np.full(spec.result_channels, 2**40, numpy_dtype(spec.result_dtype))
    result = forward(spec, x, w, bias)
    assert result.dtype == spec.result_dtype
    assert np.array_equal(result, oracle(spec, x, w, bias))


@pytest.mark.parametrize(
    ("dtype", "value", "least"), [("int8", -128, 131072), ("uint8", 255, 33026)]
)
def test_takes_the_largest_sums_that_int32_holds(dtype: str, value: int, least: int) -> None:
    """``least`` is the first number of products whose sum is 2**31 or more."""
    assert value**2 * (least - 1) < 2**31 <= value**2 * least
    for channels, takes in ((least - 1, True), (least, False)):
        spec = ConvSpec.parse(f"conv_{SHORT[dtype]}_NCL_n1c{channels}k2g1_i3_w1")
        refusal = Indirect().refuse(spec, TARGET)
        assert (refusal is None) is takes
        if refusal is not None:
            assert refusal.feature is Feature.DTYPE
        # Beyond the bound by way of float64 or int64, as exact.
        x, w = np.full(spec.lhs_shape, value, dtype), np.full(spec.rhs_shape, value, dtype)
        assert np.array_equal(forward(spec, x, w, None), np.full((1, 2, 3), value**2 * channels))


def test_a_single_channel_has_no_pairs() -> None:
    spec = ConvSpec.parse("conv_u8_NCHW_n1c4k8g4_i5x5_w3x3")
    refusal = Indirect().refuse(spec, TARGET)
    assert refusal is not None
    assert refusal.feature is Feature.DTYPE


def test_profile_names_what_runs_around_the_product() -> None:
    x, w = np.ones((1, 8, 40, 40), np.int8), np.ones((8, 8, 3, 3), np.int8)
    with convjit.profile() as found:
        convjit.conv(x, w, algorithm="numba.indirect")
    assert "pairs" in str(found)
    assert "sums" in str(found)


def test_any_number_of_threads_agrees() -> None:
    rng = np.random.default_rng(0)
    x, w = (extremes(shape, "int8", rng) for shape in ((2, 37, 30, 31), (41, 37, 3, 3)))
    results = []
    for count in (1, 2, 5):
        with convjit.use(num_threads=count):
            results.append(convjit.conv(x, w, algorithm="numba.indirect"))
    assert all(np.array_equal(results[0], other) for other in results[1:])

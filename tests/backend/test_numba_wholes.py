"""Whole numbers of 64 bits in numba.indirect: exact modulo 2**64, narrower types by widening."""

from __future__ import annotations

import numpy as np
import pytest

import convjit
from convjit.algorithms.oracle import oracle
from convjit.spec import ConvSpec
from convjit.spi import Feature
from convjit_numba import NumbaBackend
from convjit_numba.indirect import Indirect

TARGET = NumbaBackend().target()
SPECS = [
    "n1c16k24g1_i9x11_w3x3_p1",
    "n2c5k7g1_i8x9_w3x3_s2_p1_bias",
    "n1c6k4g2_i7x8_w2x3_p1_d2x1",
    "n1c1k1g1_i12x13_w5x5",
    "n1c70k33g1_i6x5_w1x1_bias",
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["int64", "uint64", "int32", "uint32"])
@pytest.mark.parametrize("text", SPECS)
def test_wraps_modulo_two_to_the_64(text: str, dtype: str, layout: str) -> None:
    short = {"int64": "i64", "uint64": "u64", "int32": "i32", "uint32": "u32"}[dtype]
    spec = ConvSpec.parse(f"conv_{short}_{layout}_{text}")
    rng = np.random.default_rng(0)

    def any_of_the_range(shape: tuple[int, ...], kind: str) -> np.ndarray:
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)

    x, w = any_of_the_range(spec.lhs_shape, dtype), any_of_the_range(spec.rhs_shape, dtype)
    bias = any_of_the_range((spec.result_channels,), spec.result_dtype) if spec.bias else None
    keywords = {
        "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation,
        "groups": spec.groups, "layout": layout, "backend": "numba", "algorithm": "numba.indirect",
    }  # fmt: skip
    result = convjit.conv(x, w, bias, **keywords)
    assert result.dtype == spec.result_dtype
    with np.errstate(over="ignore"):
        assert np.array_equal(result, oracle(spec, x, w, bias))


def test_an_activation_of_whole_numbers_is_left_to_the_core() -> None:
    spec = ConvSpec.parse("conv_i64_NCHW_n1c4k4g1_i5x5_w3x3_act=relu")
    refusal = Indirect().refuse(spec, TARGET)
    assert refusal is not None
    assert refusal.feature is Feature.EPILOGUE

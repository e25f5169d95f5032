"""The gradients are adjoints, and both are the forward problems that adjoint.py says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from convjit import layout as layouts
from convjit.algorithms import adjoint
from convjit.algorithms.oracle import oracle
from convjit.spec import ConvSpec, Direction
from convjit.testing.cases import Case, random_array
from convjit.testing.strategies import specs

Array = np.ndarray[Any, np.dtype[Any]]


@settings(max_examples=150, deadline=None)
@given(specs(("float64", "complex128")))
def test_inner_products(spec: ConvSpec) -> None:
    """<conv(x, w), y> = <x, input_grad(y, w)> = <w, weight_grad(x, y)>, <a, b> = sum conj(a) b."""
    spec = spec.replace(
        direction=Direction.FORWARD, bias=False, activation=None, strided=False,
        out_size=spec.formula_out_size,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x, w, y = (random_array(rng, s, spec.dtype) for s in (spec.x_shape, spec.w_shape, spec.y_shape))
    gx = oracle(spec.replace(direction=Direction.INPUT_GRAD), y, w)
    gw = oracle(spec.replace(direction=Direction.WEIGHT_GRAD), x, y)
    product = np.vdot(oracle(spec, x, w), y)
    scale = np.vdot(np.abs(x), np.abs(gx)) + np.vdot(np.abs(w), np.abs(gw)) + 1.0
    assert abs(np.vdot(x, gx) - product) <= 1e-12 * scale
    assert abs(np.vdot(w, gw) - product) <= 1e-12 * scale


@settings(max_examples=60, deadline=None)
@given(specs(("complex128",)))
def test_transposed_is_the_gradient_without_conjugation(spec: ConvSpec) -> None:
    spec = spec.replace(direction=Direction.TRANSPOSED, bias=False)
    lhs, rhs, _ = Case("conjugate", spec).operands()
    gradient = oracle(spec.replace(direction=Direction.INPUT_GRAD), lhs, rhs.conj())
    assert np.array_equal(oracle(spec, lhs, rhs), gradient)


def adjoint_of(spec: ConvSpec) -> adjoint.AsForward:
    if spec.direction is Direction.WEIGHT_GRAD:
        return adjoint.weight_grad_as_forward(spec)
    return adjoint.input_grad_as_forward(spec)


def filled(fill: adjoint.Fill | None, shape: tuple[int, ...], source: Array) -> Array:
    """What a fill writes into memory full of NaN; every element must be written."""
    if fill is None:
        assert source.shape == shape
        return source
    destination = np.full(shape, np.nan, source.dtype)
    fill(destination, source)
    return destination


def check_recipe(spec: ConvSpec) -> adjoint.AsForward:
    lhs, rhs, bias = Case("recipe", spec).operands()
    recipe = adjoint_of(spec)
    inner = recipe.inner
    assert inner.direction is Direction.FORWARD
    assert inner.out_size == inner.formula_out_size
    assert min(inner.in_size) >= 1
    assert all(lo >= 0 and hi >= 0 for lo, hi in inner.padding)
    result = oracle(
        inner,
        filled(recipe.fill_lhs, inner.lhs_shape, lhs),
        filled(recipe.fill_rhs, inner.rhs_shape, rhs),
        bias,
    )
    result = filled(recipe.fill_result, spec.result_shape, result)
    np.testing.assert_allclose(result, oracle(spec, lhs, rhs, bias), rtol=1e-12, atol=1e-12)
    return recipe


@settings(max_examples=300, deadline=None)
@given(specs(("float64",)))
def test_recipes_are_the_adjoints(spec: ConvSpec) -> None:
    spec = spec.replace(
        layout=layouts.CHANNELS_FIRST[spec.ndim], pad_mode="zeros", strided=False
    )  # fmt: skip
    for direction in (Direction.TRANSPOSED, Direction.INPUT_GRAD, Direction.WEIGHT_GRAD):
        epilogue = direction is Direction.TRANSPOSED
        check_recipe(
            spec.replace(
                direction=direction,
                bias=epilogue and spec.bias,
                activation=spec.activation if epilogue else None,
            )
        )


@pytest.mark.parametrize(
    "text",
    [
        "convt_f64_NCL_n1c1k1g1_i7_w2_s3_p4",  # padding beyond the kernel: y is cropped
        "convt_f64_NCL_n1c1k1g1_i3_w1_s10_p5.0",  # every output reads the border alone
        "convt_f64_NCL_n1c2k3g1_i9_w3_o4_s2",  # output_padding
        "convt_f64_NCL_n2c4k6g2_i9_w3",  # stride 1: y itself
        "wgrad_f64_NCL_n2c2k3g1_i10_w3_s4",  # a remainder of the stride: x is cropped
        "wgrad_f64_NCL_n1c1k1g1_i3_w1_s10_p5.0",  # nothing but border is read
        "wgrad_f64_NCHW_n3c4k2g2_i9x8_w3x2_s2x3_p1x2_d2x1_flip",
        "igrad_f64_NCDHW_n1c2k2g2_i5x4x6_w3x1x2_s2x1x3_p2x0x1",
    ],
)
def test_corners(text: str) -> None:
    check_recipe(ConvSpec.parse(text))


def test_stride_one_takes_y_as_it_is() -> None:
    spec = ConvSpec.parse("convt_f64_NCHW_n2c4k6g2_i9x8_w3x3_p1_d2")
    recipe = adjoint.input_grad_as_forward(spec)
    assert recipe.fill_lhs is None
    assert str(recipe.inner) == "conv_f64_NCHW_n2c6k4g2_i7x6_w3x3_p3x3_d2x2"


def test_the_weights_gradient_exchanges_stride_and_dilation() -> None:
    spec = ConvSpec.parse("wgrad_f64_NCL_n5c4k6g2_i20_w3_s2_p1_d3")
    inner = adjoint.weight_grad_as_forward(spec).inner
    assert (inner.batch, inner.in_channels, inner.out_channels) == (2, 10, 6)
    assert (inner.kernel_size, inner.out_size) == (spec.out_size, spec.kernel_size)
    assert (inner.stride, inner.dilation) == (spec.dilation, spec.stride)


@pytest.mark.parametrize(
    "text",
    [
        "conv_f64_NCL_n1c1k1g1_i7_w3",
        "igrad_f64_NLC_n1c1k1g1_i7_w3",
        "igrad_f64_NCL_n1c1k1g1_i7_w3_p1_reflect",
        "igrad_c128_NCL_n1c1k1g1_i7_w3",
        "wgrad_f64_NCL_n0c1k1g1_i7_w3",
    ],
)
def test_other_problems_are_turned_away(text: str) -> None:
    with pytest.raises(ValueError, match="must be brought to channels-first"):
        adjoint_of(ConvSpec.parse(text))


def test_swap_weights_twice_is_nothing() -> None:
    w = np.arange(6 * 2 * 3 * 2.0).reshape(6, 2, 3, 2)
    swapped, back = np.empty((4, 3, 3, 2)), np.empty_like(w)
    adjoint.swap_weights(2, True, swapped, w)
    adjoint.swap_weights(2, True, back, swapped)
    assert np.array_equal(back, w)
    assert swapped[1, 2, 0, 0] == w[2, 1, 2, 1]  # channel 1 and kernel 2 of the first group


def test_insert_zeros() -> None:
    place = adjoint.insert_zeros(4, 3, (2, 1))
    destination = np.full((1, place.size), np.nan)
    adjoint.place((place,), destination, np.array([[1.0, 2, 3, 4]]))
    # 1 0 0 2 0 0 3 0 0 4 less two at the front and one at the end
    assert destination[0].tolist() == [0, 2, 0, 0, 3, 0, 0]

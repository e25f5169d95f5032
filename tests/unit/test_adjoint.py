"""The gradients are adjoints, and both are the forward problems that adjoint.py says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from convjit import layout as layouts
from convjit.algorithms import adjoint
from convjit.algorithms.fills import assign
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


def parts_of(spec: ConvSpec) -> tuple[list[adjoint.AsForward], bool]:
    if spec.direction is Direction.WEIGHT_GRAD:
        return [adjoint.weight_grad_as_forward(spec)], False
    return adjoint.input_grad_as_forward(spec)


def filled(fill: adjoint.Fill | None, shape: tuple[int, ...], source: Array) -> Array:
    """What a fill writes into memory full of NaN; every element must be written."""
    if fill is None:
        assert source.shape == shape
        return source
    destination = np.full(shape, np.nan, source.dtype)
    fill(assign, destination, source)
    assert not np.isnan(destination).any()
    return destination


def check_recipe(spec: ConvSpec) -> list[adjoint.AsForward]:
    """The parts write what the definition says, each its own samples; the gaps are empty sums."""
    lhs, rhs, bias = Case("recipe", spec).operands()
    parts, has_gaps = parts_of(spec)
    assert len(parts) > 0
    total = np.full(spec.result_shape, np.nan)
    for part in parts:
        inner = part.inner
        assert inner.direction is Direction.FORWARD
        assert inner.out_size == inner.formula_out_size
        assert min(inner.in_size) >= 1
        assert all(lo >= 0 and hi >= 0 for lo, hi in inner.padding)
        sums = oracle(
            inner,
            filled(part.fill_lhs, inner.lhs_shape, lhs),
            filled(part.fill_rhs, inner.rhs_shape, rhs),
            bias if bias is None or part.fill_bias is None else part.fill_bias(bias),
        )
        own = np.full(spec.result_shape, np.nan)
        if part.fill_result is None:
            assert len(parts) == 1
            own = sums
        else:
            part.fill_result(assign, own, sums)
        written = ~np.isnan(own)
        assert np.isnan(total[written]).all()
        total[written] = own[written]
    gaps = np.isnan(total)
    assert gaps.any() <= has_gaps
    expected = oracle(spec, lhs, rhs, bias)
    total[gaps] = oracle(spec, lhs, np.zeros_like(rhs), bias)[gaps]
    np.testing.assert_allclose(total, expected, rtol=1e-12, atol=1e-12)
    return parts


@settings(max_examples=300, deadline=None)
@given(specs(("float64",)))
def test_recipes_are_the_adjoints(spec: ConvSpec) -> None:
    spec = spec.replace(pad_mode="zeros", strided=False)
    for direction in (Direction.TRANSPOSED, Direction.INPUT_GRAD, Direction.WEIGHT_GRAD):
        epilogue = direction is Direction.TRANSPOSED
        wgrad = direction is Direction.WEIGHT_GRAD
        check_recipe(
            spec.replace(
                direction=direction,
                layout=layouts.CHANNELS_FIRST[spec.ndim] if wgrad else spec.layout,
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
        "convt_f64_NCL_n1c2k3g1_i12_w4_s2_p1_bias",  # two phases of two taps
        "convt_f64_NLC_n2c4k6g2_i12_w3_s3_bias",  # three phases of the same size: one problem
        "convt_f64_NCHW_n1c2k4g2_i11x9_w5x1_s3x2_p1x0_d2x3_bias_act=relu",  # gaps in a column
        "igrad_f64_NHWC_n1c4k4g4_i17x16_w3x4_s4x6_d6x4",  # dilations share factors with strides
        "convt_f64_NCHW_n1c2k3g1_i9x8_w2x3_s2_p1_flip",
        "wgrad_f64_NCL_n2c2k3g1_i10_w3_s4",  # a remainder of the stride: x is cropped
        "wgrad_f64_NCL_n1c1k1g1_i3_w1_s10_p5.0",  # nothing but border is read
        "wgrad_f64_NCHW_n3c4k2g2_i9x8_w3x2_s2x3_p1x2_d2x1_flip",
        "igrad_f64_NCDHW_n1c2k2g2_i5x4x6_w3x1x2_s2x1x3_p2x0x1",
    ],
)
def test_corners(text: str) -> None:
    check_recipe(ConvSpec.parse(text))


@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7])
def test_phases_on_a_grid(kernel: int, stride: int, dilation: int) -> None:
    for lo, hi in ((0, 0), (1, 1), (2, 0), (0, 3), (5, 5)):
        for size in (1, 2, 5, 8, 13, 20):
            spec = ConvSpec.forward(
                (1, 2, size), (3, 2, kernel), dtype="float64", stride=stride,
                padding=((lo, hi),), dilation=dilation, direction=Direction.TRANSPOSED,
            )  # fmt: skip
            # Fewer outputs than fit: output_padding.
            for outputs in {spec.out_size[0], max(1, spec.out_size[0] - 1)}:
                if spec.out_size[0] >= 1:
                    check_recipe(spec.replace(out_size=(outputs,)))


def test_phases_sum_the_products_of_the_definition() -> None:
    """Each tap belongs to one phase: the products are those of the forward problem, not more."""
    spec = ConvSpec.parse("convt_f64_NCHW_n1c8k4g1_i64x64_w4x4_s2_p1")
    parts, has_gaps = adjoint.input_grad_as_forward(spec)
    assert [part.inner.kernel_size for part in parts] == [(2, 2)] * 4
    assert not has_gaps
    assert sum(part.inner.macs for part in parts) == spec.macs
    (part,), has_gaps = adjoint.input_grad_as_forward(
        ConvSpec.parse("igrad_f64_NHWC_n1c8k4g1_i64x64_w1x1_s2")
    )
    assert has_gaps
    assert str(part.inner) == "conv_f64_NHWC_n1c4k8g1_i32x32_w1x1"


def test_phases_alike_are_one_problem() -> None:
    """Where kernel and stride agree every sample of y makes a block of its own."""
    spec = ConvSpec.parse("convt_f32_NCHW_n1c3k8g1_i32x32_w4x4_s4")
    (part,), has_gaps = adjoint.input_grad_as_forward(spec)
    assert not has_gaps
    assert str(part.inner) == "conv_f32_NCHW_n1c8k48g1_i8x8_w1x1"


def test_stride_one_takes_y_as_it_is() -> None:
    spec = ConvSpec.parse("convt_f64_NCHW_n2c4k6g2_i9x8_w3x3_p1_d2")
    (part,), has_gaps = adjoint.input_grad_as_forward(spec)
    assert part.fill_lhs is None
    assert part.fill_result is None
    assert not has_gaps
    assert str(part.inner) == "conv_f64_NCHW_n2c6k4g2_i7x6_w3x3_p3x3_d2x2"


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
        "wgrad_f64_NLC_n1c1k1g1_i7_w3",
        "igrad_f64_NCL_n1c1k1g1_i7_w3_p1_reflect",
        "igrad_c128_NCL_n1c1k1g1_i7_w3",
        "wgrad_f64_NCL_n0c1k1g1_i7_w3",
    ],
)
def test_other_problems_are_turned_away(text: str) -> None:
    with pytest.raises(ValueError, match="must be brought to"):
        parts_of(ConvSpec.parse(text))


def test_phases_weights() -> None:
    """Channels are exchanged inside their group; a phase takes every stride-th tap, backwards."""
    w = np.arange(6 * 2 * 5.0).reshape(6, 2, 5)
    spec = ConvSpec.parse("convt_f64_NCL_n1c4k6g2_i21_w5_s2")
    parts, _ = adjoint.input_grad_as_forward(spec)
    even = filled(parts[0].fill_rhs, (4, 3, 3), w)
    odd = filled(parts[1].fill_rhs, (4, 3, 2), w)
    assert even[1, 2].tolist() == w[2, 1, [4, 2, 0]].tolist()
    assert odd[2, 0].tolist() == w[3, 0, [3, 1]].tolist()

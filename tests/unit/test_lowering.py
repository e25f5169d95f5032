"""Every lowering, through the pickiest solver there can be, against the oracle."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from picky import TARGET, Picky

from convjit import lowering, precision, rules
from convjit.algorithms.error import relative_error
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.spec import ConvSpec, Direction
from convjit.spi import Feature, Refusal
from convjit.testing.cases import CASES

# The inner solver sums in float64, so that what is left is the casts: operands and results of
# float32, and the final rounding of the half types.
LIMIT = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def reachable(spec: ConvSpec) -> bool:
    return not spec.is_empty and spec.dtype not in ("float64", "complex128")


def run(spec: ConvSpec, lowered: lowering.Lowered, lhs, rhs, bias):
    executable = lowered.plan(TARGET, ())
    out = np.full(spec.result_shape, 99, precision.numpy_dtype(spec.result_dtype))
    # Poison: whatever a step forgets to write is a NaN (or a large integer) in the result.
    workspace = np.full(executable.workspace, 0xFF, np.uint8)
    before = lhs.copy(), rhs.copy()
    executable.run(lhs, executable.pack(rhs), bias, out, workspace)
    assert np.array_equal(lhs, before[0], equal_nan=True)
    assert np.array_equal(rhs, before[1], equal_nan=True)
    return out


@pytest.mark.parametrize(
    "case", [c for c in CASES if reachable(c.spec) and c.form == "batched"], ids=str
)
def test_a_solver_for_one_thing_is_reached_from_everything(case):
    spec = case.spec
    lowered = lowering.lower(Picky(), spec, TARGET)
    if isinstance(lowered, Refusal):
        # Only sums of wide integers have no exact lowering to float32.
        assert spec.dtype in precision.INTEGER
        largest = precision.LARGEST[spec.dtype] ** 2 * spec.reduction
        assert largest > 2**24
        return
    lhs, rhs, bias = case.operands()
    result = run(spec, lowered, lhs, rhs, bias)
    expected = oracle(spec, lhs, rhs, bias)
    if spec.dtype in precision.INTEGER:
        assert np.array_equal(result, expected)
    else:
        error = relative_error(spec, result, expected, magnitudes(spec, lhs, rhs, bias))
        assert error < LIMIT.get(spec.dtype, 1e-6), lowered.label


@pytest.mark.parametrize("feature", [f for f in Feature if f in rules.RULES], ids=str)
@pytest.mark.parametrize("direction", list(Direction), ids=str)
def test_each_feature_alone(feature, direction):
    """A solver that lacks a single feature gets a problem without it, in every direction."""

    class Lacks(Picky):
        def refuse(self, spec, target):
            if feature is Feature.CONJUGATE:
                return Refusal(feature, "does not conjugate") if spec.conjugates else None
            return super().refuse(spec, target)

    epilogue = direction in (Direction.FORWARD, Direction.TRANSPOSED)
    words = ("reflect", "flip", "strided") + (("bias", "act=relu") if epilogue else ())
    dtype = "complex64" if feature is Feature.CONJUGATE else "float32"
    for layout, number in product(("NCHW", "NHWC"), range(2 ** len(words))):
        chosen = [w for i, w in enumerate(words) if number >> i & 1]
        if dtype == "complex64" and "act=relu" in chosen:
            continue
        word = {"forward": "conv", "transposed": "convt", "input_grad": "igrad"}.get(
            direction, "wgrad"
        )
        text = f"{word}_f32_{layout}_n2c4k6g2_i9x8_w3x2_s2x3_p1.2x1_d1x2"
        spec = ConvSpec.parse("_".join([text, *chosen])).replace(dtype=dtype)
        lowered = lowering.lower(Lacks({feature}), spec, TARGET)
        assert not isinstance(lowered, Refusal), lowered
        assert Lacks({feature}).refuse(lowered.spec, TARGET) is None
        if feature is not Feature.DIRECTION:
            assert len(lowered.steps) <= 3


def test_the_label_shows_the_steps_in_order():
    spec = ConvSpec.parse("conv_f16_NHWC_n2c3k4g1_i9x8_w3x3_p1_reflect_bias")
    lowered = lowering.lower(Picky(), spec, TARGET)
    assert not isinstance(lowered, Refusal)
    assert lowered.label == (
        "half to float32 + NHWC to NCHW + pad reflect + epilogue + picky.valid"
    )


def test_steps_cost_traffic_and_workspace():
    spec = ConvSpec.parse("conv_f32_NCHW_n1c8k8g1_i30x30_w3x3_p1_reflect")
    lowered = lowering.lower(Picky(), spec, TARGET)
    assert not isinstance(lowered, Refusal)
    padded = 8 * 32 * 32 * 4
    assert lowered.work.workspace == padded
    assert lowered.work.phases[0].name == "pad reflect"
    given = 8 * 30 * 30 * 4
    assert lowered.work.phases[0].bytes == {"copy": float(given + padded)}
    assert lowered.work.flops == spec.flops


def test_groups_multiply_the_work_of_one():
    spec = ConvSpec.parse("conv_f32_NCHW_n1c8k8g4_i10x10_w3x3")
    lowered = lowering.lower(Picky(), spec, TARGET)
    assert not isinstance(lowered, Refusal)
    assert lowered.work.launches == 4
    assert lowered.work.flops == spec.flops


def test_a_final_refusal_says_after_which_steps():
    class Small(Picky):
        def refuse(self, spec, target):
            if spec.channels_last:
                return Refusal(Feature.LAYOUT, "channels first")
            return Refusal(Feature.SIZE, "too large")

    spec = ConvSpec.parse("conv_f32_NHWC_n1c8k8g1_i10x10_w3x3")
    refusal = lowering.lower(Small(), spec, TARGET)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "too large (after NHWC to NCHW)"


def test_a_solver_that_refuses_both_layouts_is_refused():
    class Neither(Picky):
        def refuse(self, spec, target):
            return Refusal(Feature.LAYOUT, f"not {spec.layout}")

    spec = ConvSpec.parse("conv_f32_NHWC_n1c8k8g1_i10x10_w3x3")
    assert isinstance(lowering.lower(Neither(), spec, TARGET), Refusal)


def test_integers_are_lowered_only_where_sums_stay_whole():
    inside = ConvSpec.parse("conv_u8_NCHW_n1c2k2g1_i9x9_w3x3")
    assert inside.reduction * 255**2 <= 2**24
    assert not isinstance(lowering.lower(Picky(), inside, TARGET), Refusal)
    outside = ConvSpec.parse("conv_i32_NCHW_n1c2k2g1_i9x9_w3x3")
    refusal = lowering.lower(Picky(), outside, TARGET)
    assert isinstance(refusal, Refusal)
    assert "beyond the whole numbers that float64 holds" in refusal.reason


def test_exactness_is_known_to_the_error_model():
    spec = ConvSpec.parse("conv_u8_NCHW_n1c2k2g1_i9x9_w3x3")
    lowered = lowering.lower(Picky(), spec, TARGET)
    assert not isinstance(lowered, Refusal)
    assert lowered.work.numerics.method == "exact"


def test_zeros_between_taps_spread_a_nan_and_say_so():
    spec = ConvSpec.parse("conv_f32_NCHW_n1c2k2g1_i9x9_w3x3_d2")
    lowered = lowering.lower(Picky(), spec, TARGET)
    assert not isinstance(lowered, Refusal)
    assert lowered.work.numerics.spreads_nonfinite


def test_phases_add_up():
    """Four phases of a transposed convolution: their work is that of the definition."""
    spec = ConvSpec.parse("convt_f32_NCHW_n1c8k4g1_i16x16_w4x4_s2_p1")
    only = {Feature.DIRECTION, Feature.LAYOUT}
    lowered = lowering.lower(Picky(only), spec, TARGET)
    assert not isinstance(lowered, Refusal)
    assert lowered.label == "adjoint by phases + picky.valid"
    assert (len(lowered.parts), lowered.work.launches) == (4, 4)
    assert lowered.work.flops == spec.flops
    assert lowered.outer == spec
    copies = sum(phase.bytes.get("copy", 0.0) for phase in lowered.work.phases)
    # Each phase writes a quarter of the result's samples, and so touches all of its lines.
    assert copies == (4 + 1) * 4 * 8 * 16 * 16
    assert lowered.work.workspace == 4 * 8 * 8 * 8  # the parts share it


def test_what_all_parts_need_is_done_before_they_part():
    spec = ConvSpec.parse("convt_f16_NHWC_n1c8k4g1_i16x16_w4x4_s2_p1_bias")
    lowered = lowering.lower(Picky(), spec, TARGET)
    assert not isinstance(lowered, Refusal)
    assert lowered.names == (
        "half to float32", "NHWC to NCHW", "adjoint by phases", "pad", "epilogue",
    )  # fmt: skip
    taking_both = lowering.lower(Picky({Feature.DIRECTION}), spec, TARGET)
    assert not isinstance(taking_both, Refusal)
    assert taking_both.steps == ()


def test_a_part_that_is_refused_refuses_the_whole():
    class Wide(Picky):
        def refuse(self, spec, target):
            if spec.direction is Direction.FORWARD and spec.kernel_size[0] < 2:
                return Refusal(Feature.SIZE, "one tap is too few")
            return super().refuse(spec, target)

    spec = ConvSpec.parse("igrad_f32_NCHW_n1c8k4g1_i16x16_w3x3_s2_p1")
    refusal = lowering.lower(Wide({Feature.DIRECTION}), spec, TARGET)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "one tap is too few (after adjoint by phases)"

"""A spec has one spelling: ``str`` and ``parse`` are inverses, and nothing else is understood."""

from __future__ import annotations

import dataclasses
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convjit import layout, precision
from convjit.algorithms.geometry import PAD_MODES
from convjit.errors import ConvSpecError
from convjit.spec import ConvSpec, Direction

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    """Any spec whose sizes agree, with a result that may be empty."""
    ndim = draw(st.integers(1, 3))

    def axes(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * ndim))

    groups = draw(st.integers(1, 4))
    spec = ConvSpec(
        direction=draw(st.sampled_from(Direction)),
        dtype=draw(st.sampled_from(sorted(precision.SHORT))),
        layout=draw(st.sampled_from([layout.CHANNELS_FIRST[ndim], layout.CHANNELS_LAST[ndim]])),
        batch=draw(st.integers(0, 5)),
        in_channels=groups * draw(st.integers(0, 5)),
        out_channels=groups * draw(st.integers(0, 5)),
        groups=groups,
        in_size=axes(0, 40),
        kernel_size=axes(1, 9),
        out_size=(0,) * ndim,
        stride=axes(1, 4),
        padding=draw(st.tuples(*[st.tuples(st.integers(0, 12), st.integers(0, 12))] * ndim)),
        dilation=axes(1, 3),
        pad_mode=draw(st.sampled_from(PAD_MODES)),
        flip=draw(st.booleans()),
        bias=draw(st.booleans()),
        activation=draw(
            st.one_of(
                st.none(),
                st.just(("relu",)),
                st.tuples(st.just("leaky_relu"), FINITE),
                st.tuples(st.just("clip"), FINITE, st.floats(allow_nan=False)),
            )
        ),
        strided=draw(st.booleans()),
    )
    sizes = tuple(max(size, 0) for size in spec.formula_out_size)
    shorter = draw(st.tuples(*[st.integers(0, 1)] * ndim))
    return spec.replace(out_size=tuple(max(s - d, 0) for s, d in zip(sizes, shorter, strict=True)))


@given(specs())
def test_parse_inverts_str(spec: ConvSpec) -> None:
    text = str(spec)
    again = ConvSpec.parse(text)
    assert again == spec
    assert hash(again) == hash(spec)
    assert str(again) == text
    assert not re.search(r"\s", text), "a spec is one word"


@given(specs())
def test_a_spec_can_be_pickled(spec: ConvSpec) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec


@given(specs())
def test_a_spec_holds_no_arrays_and_is_frozen(spec: ConvSpec) -> None:
    assert not any(
        isinstance(getattr(spec, f.name), np.ndarray) for f in dataclasses.fields(ConvSpec)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.batch = 1  # type: ignore[misc]


@given(specs())
def test_sizes_agree_with_each_other(spec: ConvSpec) -> None:
    x, w, y = spec.x_shape, spec.w_shape, spec.y_shape
    assert len(x) == len(w) == len(y) == spec.ndim + 2
    operands = {
        Direction.FORWARD: (x, w, y),
        Direction.TRANSPOSED: (y, w, x),
        Direction.INPUT_GRAD: (y, w, x),
        Direction.WEIGHT_GRAD: (x, y, w),
    }
    assert (spec.lhs_shape, spec.rhs_shape, spec.result_shape) == operands[spec.direction]
    assert spec.flops == spec.macs * (8 if "complex" in spec.dtype else 2)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            ConvSpec.forward((1, 64, 56, 56), (64, 64, 3, 3), padding=1),
            "conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1x1",
        ),
        (
            ConvSpec.forward(
                (8, 224, 224, 3), (96, 3, 11, 11), layout="NHWC", stride=4, bias=True,
                activation=("relu",),
            ),
            "conv_f32_NHWC_n8c3k96g1_i224x224_w11x11_s4x4_bias_act=relu",
        ),
        (
            ConvSpec.forward(
                (2, 6, 100), (6, 1, 5), dtype="bfloat16", groups=6, dilation=2,
                padding=((8, 0),), pad_mode="replicate", flip=True,
            ),
            "conv_bf16_NCL_n2c6k6g6_i100_w5_p8.0_d2_replicate_flip",
        ),
        (
            ConvSpec.forward(
                (1, 4, 9, 9), (4, 2, 3, 3), direction=Direction.TRANSPOSED, stride=2, padding=1,
                activation=("clip", 0.0, 6.0),
            ),
            "convt_f32_NCHW_n1c4k4g1_i9x9_w3x3_s2x2_p1x1_act=clip,0.0,6.0",
        ),
    ],
    ids=["plain", "channels_last", "one_axis", "transposed"],
)  # fmt: skip
def test_the_spelling_is_permanent(spec: ConvSpec, text: str) -> None:
    """Databases, benchmark histories and bug reports hold these words."""
    assert str(spec) == text
    assert ConvSpec.parse(text) == spec


def test_one_number_stands_for_every_axis() -> None:
    short = ConvSpec.parse("conv_f32_NCHW_n1c64k64g1_i56_w3_p1")
    assert short == ConvSpec.parse("conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1x1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not understood at ''"),
        ("corr_f32_NCHW_n1c1k1g1_i5x5_w3x3", "is not understood at 'corr'"),
        ("conv_f33_NCHW_n1c1k1g1_i5x5_w3x3", "is not understood at 'f33'"),
        ("conv_f32_NCHW_n1c1k1_i5x5_w3x3", "is not understood at 'n1c1k1'"),
        ("conv_f32_NCHW_n1c1k1g1_i5x5_w3x3_z2", "the word 'z2' has no meaning"),
        ("conv_f32_NCHW_n1c1k1g1_i5x5x5_w3x3", "'i5x5x5' does not give 2 sizes"),
        ("conv_f32_NCHW_n1c1k1g1_i5x5_w3x3_sfast", "'sfast' does not give 2 sizes"),
        ("conv_f32_NCHW_n1c1k1g1_i5x5_w3x3_p1.2.3", "'p1.2.3' does not give 2 sizes"),
        ("conv_f32_NCHW_n1c1k1g1_i5x5_w3x3_act=gelu", "unknown activation 'gelu'"),
        ("conv_f32_NCHW_n1c1k1g1_i5x5_w3x3_act=clip,0", "unknown activation 'clip,0'"),
    ],
)
def test_a_word_that_is_not_understood_is_named(text: str, message: str) -> None:
    with pytest.raises(ConvSpecError, match=re.escape(message)):
        ConvSpec.parse(text)


def test_an_unknown_layout_names_the_choices() -> None:
    with pytest.raises(ConvSpecError, match=r"layout='NCWH' is not known; choose one of NCL, NCHW"):
        ConvSpec.parse("conv_f32_NCWH_n1c1k1g1_i5x5_w3x3")

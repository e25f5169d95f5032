"""Every rule on the arguments, with the message that a user reads."""

from __future__ import annotations

import re

import numpy as np
import pytest

from convjit import arguments
from convjit.errors import ConvSpecError
from convjit.spec import Direction

OPERATOR = {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "pad_mode": "zeros",
    "flip": False,
    "layout": None,
}


def forward(x, w, direction=Direction.FORWARD, dtype="float32", **options):
    return arguments.forward_problem(
        x, w, direction=direction, dtype=dtype, **{**OPERATOR, **options}
    )


def transposed(x, w, dtype="float32", **options):
    extra = {"output_padding": 0, "output_size": None}
    return arguments.transposed_problem(x, w, dtype=dtype, **{**OPERATOR, **extra, **options})


@pytest.mark.parametrize(
    ("x", "w", "options", "result"),
    [
        ((8, 64, 56, 56), (128, 64, 3, 3), {"padding": 1}, (8, 128, 56, 56)),
        ((64, 56, 56), (128, 64, 3, 3), {}, (128, 54, 54)),
        ((2, 9, 9, 6), (4, 6, 3, 3), {"layout": "NHWC", "stride": 2}, (2, 4, 4, 4)),
        ((9, 9, 6), (4, 6, 3, 3), {"layout": "NHWC"}, (7, 7, 4)),
        ((100,), (9,), {"padding": "full"}, (108,)),
        ((100,), (9,), {"padding": "same", "stride": 3}, (34,)),
        ((30, 40), (4, 4), {"padding": "same"}, (30, 40)),
        ((5, 6, 30, 40), (4, 4), {"layout": "HW"}, (5, 6, 27, 37)),
        ((9, 10, 11), (3, 3, 3), {"layout": "DHW"}, (7, 8, 9)),
        ((2, 3, 7, 8, 9), (4, 3, 2, 2, 2), {"padding": ((0, 1), (1, 0), (0, 0))}, (2, 4, 7, 8, 8)),
        ((0, 3, 8, 8), (4, 3, 3, 3), {}, (0, 4, 6, 6)),
        ((2, 0, 8, 8), (4, 0, 3, 3), {}, (2, 4, 6, 6)),
    ],
)
def test_forward_shapes(x, w, options, result):
    assert forward(x, w, **options).result_shape == result


@pytest.mark.parametrize(
    ("x", "w", "options", "result"),
    [
        ((16, 100, 1, 1), (100, 1024, 4, 4), {}, (16, 1024, 4, 4)),
        ((1, 8, 4, 4), (8, 4, 4, 4), {"stride": 2, "padding": 1}, (1, 4, 8, 8)),
        ((1, 8, 4), (8, 4, 3), {"stride": 3, "output_padding": 2}, (1, 4, 14)),
        ((1, 8, 4), (8, 4, 3), {"stride": 3, "output_size": 13}, (1, 4, 13)),
        ((1, 8, 4), (8, 4, 5), {"stride": 3, "padding": "same"}, (1, 4, 12)),
        ((1, 8, 4), (8, 4, 2), {"dilation": 3, "output_padding": 2}, (1, 4, 9)),
        ((6, 4, 4), (6, 2, 3, 3), {"groups": 3}, (6, 6, 6)),
        ((7,), (3,), {"stride": 2}, (15,)),
    ],
)
def test_transposed_shapes(x, w, options, result):
    problem = transposed(x, w, **options)
    assert problem.result_shape == result
    formula = problem.spec.formula_out_size
    assert all(m >= n for m, n in zip(formula, problem.spec.out_size, strict=True))


def test_same_lower_puts_the_odd_element_first():
    assert forward((10,), (4,), padding="same").spec.padding == ((1, 2),)
    assert forward((10,), (4,), padding="same_lower").spec.padding == ((2, 1),)


def test_the_gradients_take_the_shapes_of_the_forward_call():
    problem = forward((2, 6, 9, 9), (4, 3, 3, 3), Direction.INPUT_GRAD, groups=2, stride=2)
    assert (problem.lhs_shape, problem.result_shape) == ((2, 4, 4, 4), (2, 6, 9, 9))
    problem = forward((2, 6, 9, 9), (4, 3, 3, 3), Direction.WEIGHT_GRAD, groups=2, stride=2)
    assert (problem.rhs_shape, problem.result_shape) == ((2, 4, 4, 4), (4, 3, 3, 3))


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        (
            (8, 64, 56, 56),
            (128, 21, 3, 3),
            {"groups": 3},
            "groups=3 does not divide C=64. x is (8, 64, 56, 56) NCHW, w is (128, 21, 3, 3); for "
            "groups=2 w would be (128, 32, 3, 3).",
        ),
        (
            (1, 6, 8, 8),
            (4, 3, 3, 3),
            {},
            "w is (4, 3, 3, 3), its second axis must be C/groups=6. x is (1, 6, 8, 8) NCHW, w is "
            "(4, 3, 3, 3), groups=1; w would be (4, 6, 3, 3), or groups=2.",
        ),
        ((1, 6, 8, 8), (5, 3, 3, 3), {"groups": 2}, "groups=2 does not divide K=5"),
        ((1, 6, 8, 8), (4, 6, 3, 3), {"groups": 0}, "groups=0 must be at least 1"),
        ((1, 6, 8, 8), (4, 6, 3, 3), {"stride": 0}, "stride=0 must be at least 1"),
        ((1, 6, 8, 8), (4, 6, 3, 3), {"stride": (1, 2, 3)}, "the kernel has 2 spatial axes"),
        ((1, 6, 8, 8), (4, 6, 3, 3), {"padding": -1}, "padding=-1 must be at least 0"),
        ((1, 6, 8, 8), (4, 6, 3, 3), {"padding": "some"}, "padding='some' is not known"),
        (
            (1, 6, 8, 8),
            (4, 6, 3, 3),
            {"padding": ((1, 1),)},
            "must have one (lo, hi) pair for each",
        ),
        (
            (1, 6, 4, 8),
            (4, 6, 5, 3),
            {"padding": ((0, 0), (1, 1))},
            "the kernel spans 5 samples on spatial axis 0 (5 taps, dilation 1) but the padded "
            "input has 4 + 0 + 0 = 4; pad by at least 1 more",
        ),
        ((1, 6, 8, 8), (4, 6, 0, 3), {}, "w has 0 taps on spatial axis 0"),
        (
            (1, 6, 4, 4),
            (4, 6, 3, 3),
            {"padding": 4, "pad_mode": "reflect"},
            "padding=(4, 4) on spatial axis 0 is too wide for pad_mode='reflect': 4 samples allow "
            "at most 3",
        ),
        ((1, 6, 8, 8), (4, 6, 3, 3), {"pad_mode": "mirror"}, "pad_mode='mirror' is not known"),
        ((1, 6, 8, 8), (4, 6, 3, 3), {"layout": "CHWN"}, "layout='CHWN' is not known"),
        ((5, 8, 8), (3, 3), {}, 'for a stack of plain ones say layout="L", "HW" or "DHW"'),
        ((8, 8), (3, 3), {"groups": 2}, "groups=2 needs channels"),
        ((1, 1, 6, 8, 8), (4, 6, 3, 3), {}, "beside w (4, 6, 3, 3) it must be NCHW with 4 axes"),
        ((8, 8), (3, 3), {"activation": "gelu"}, "activation='gelu' is not known"),
        ((8, 8), (3, 3), {"activation": ("clip", 2, 1)}, "lo is above hi; swap them"),
        ((8, 8), (3, 3), {"activation": "relu", "dtype": "complex64"}, "needs an order"),
        ((8, 8), (3, 3), {"activation": ("clip", 0, 0.5), "dtype": "int8"}, "results whole"),
    ],
)
def test_messages(x, w, options, message):
    with pytest.raises(ConvSpecError, match=re.escape(message)):
        forward(x, w, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 1.5}, "stride=1.5 is not a whole number"),
        ({"stride": True}, "stride=True is a bool"),
        ({"flip": "yes"}, "flip='yes' is not a bool"),
        ({"activation": 3}, "activation=3 is not an activation"),
        ({"activation": ("leaky_relu", "a")}, "'a' is not a number"),
        ({"layout": 4}, "layout=4 is not a name"),
    ],
)
def test_wrong_types(options, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        forward((1, 6, 8, 8), (4, 6, 3, 3), **options)


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        ((1, 8, 4), (8, 4, 3), {"output_padding": 1}, "must be less than max(stride, dilation)=1"),
        ((1, 8, 4), (8, 4, 3), {"stride": 2, "output_size": 12}, "these arguments give 9 to 10"),
        (
            (1, 8, 4),
            (8, 4, 3),
            {"stride": 2, "output_size": 10, "output_padding": 1},
            "say the same thing twice",
        ),
        ((1, 8, 4), (8, 4, 3), {"padding": 5}, "the result would have -4 samples"),
        ((1, 8, 4), (6, 4, 3), {}, "its first axis must be C_in=8"),
        ((1, 8, 4), (8, 4, 3), {"groups": 3}, "groups=3 does not divide C_in=8"),
        ((1, 8, 0), (8, 4, 3), {}, "x has no sample on spatial axis 0"),
        ((1, 8, 4), (8, 4, 0), {}, "w has 0 taps"),
    ],
)
def test_transposed_messages(x, w, options, message):
    with pytest.raises(ConvSpecError, match=re.escape(message)):
        transposed(x, w, **options)


def test_numpy_integers_are_integers():
    problem = forward(
        (1, 6, 8, 8), (4, 6, 3, 3), stride=np.int64(2), padding=np.array([1, 1]).tolist()
    )
    assert problem.spec.stride == (2, 2)

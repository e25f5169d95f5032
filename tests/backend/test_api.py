"""The public calls as a user makes them: odd arrays, wrong arguments, threads, out=."""

from __future__ import annotations

import re
import threading

import ml_dtypes
import numpy as np
import pytest

import convjit
from convjit.algorithms.oracle import oracle
from convjit.spec import ConvSpec, Direction

RNG = np.random.default_rng(0)


def data(*shape, dtype="float32"):
    return RNG.standard_normal(shape).astype(dtype)


def reference(x, w, **options):
    """The oracle's answer for float64 copies of batched, channels-first operands."""
    spec = ConvSpec.forward(x.shape, w.shape, dtype="float64", **options)
    return oracle(spec, np.asarray(x, np.float64), np.asarray(w, np.float64))


X, W = data(2, 6, 9, 8), data(4, 6, 3, 3)


# -------------------------------------------------------------------- operands


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("negative", lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1]),
        ("every other", lambda a: np.repeat(a, 2, axis=-1)[..., ::2]),
        ("Fortran", np.asfortranarray),
        ("transposed", lambda a: np.ascontiguousarray(a.swapaxes(1, -1)).swapaxes(1, -1)),
        ("byte order", lambda a: a.astype(">f4")),
        ("unaligned", lambda a: unaligned(a)),
        ("read-only", lambda a: read_only(a)),
        ("subclass", lambda a: a.view(Subclass)),
        ("nested lists", lambda a: a.astype(np.float32).tolist()),
    ],
)
@pytest.mark.parametrize("which", ["x", "w", "both"])
def test_any_memory(name, change, which):
    x = change(X) if which in ("x", "both") else X
    w = change(W) if which in ("w", "both") else W
    expected = convjit.conv(X, W, padding=1)
    result = convjit.conv(x, w, padding=1)
    assert type(result) is np.ndarray
    if name != "nested lists":
        assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    plan = convjit.plan(X.shape, W.shape, padding=1)
    np.testing.assert_allclose(plan(x, plan.pack(w)), expected, rtol=1e-4, atol=1e-4)


class Subclass(np.ndarray):
    pass


def unaligned(array):
    block = np.zeros(array.nbytes + 1, np.uint8)[1:]
    result = block.view(array.dtype).reshape(array.shape)
    result[...] = array
    assert not result.flags.aligned
    return result


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def test_broadcast_strides():
    x = np.broadcast_to(data(1, 6, 1, 8), X.shape)
    w = np.broadcast_to(data(1, 6, 3, 1), W.shape)
    np.testing.assert_allclose(convjit.conv(x, w), reference(x, w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "w", "result"),
    [
        ("float32", "float64", "float64"),
        ("float16", "float32", "float32"),
        ("int16", "float32", "float32"),
        ("int32", "float32", "float64"),
        ("int8", "uint8", "int64"),
        ("uint8", "uint16", "uint64"),
        ("bool", "bool", "int64"),
        ("bool", "float16", "float16"),
        ("float32", "complex64", "complex64"),
        ("float64", "complex64", "complex128"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_mixed_dtypes_follow_numpy(x, w, result):
    first = RNG.integers(0, 2, (1, 2, 6, 6)).astype(dtype_of(x))
    second = RNG.integers(0, 2, (3, 2, 3, 3)).astype(dtype_of(w))
    y = convjit.conv(first, second)
    assert y.dtype == dtype_of(result)
    expected = reference(first.real.astype(np.float64), second.real.astype(np.float64))
    # Nothing is negative, so the results are the sums of magnitudes that errors are relative to.
    bound = convjit.plan(first, second).error_bound * expected.max()
    np.testing.assert_allclose(y.astype(np.complex128), expected, rtol=0, atol=bound)


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (np.ones((5,), "uint64"), np.ones((3,), "int8"), "uint64 with int8: no integer type holds"),
        (
            np.ones((5,), ml_dtypes.bfloat16),
            np.ones((3,), "float16"),
            "bfloat16 with float16: NumPy has no common type",
        ),
        (np.ones((5,), ml_dtypes.bfloat16), np.ones((3,), "int8"), "bfloat16 with int8"),
        (np.ma.masked_array([1.0, 2.0]), np.ones(1), "x is a masked array"),
        (np.array([None, 1]), np.ones(1), "x has dtype object"),
        (np.array(["a"]), np.ones(1), "x has dtype str32, which convjit does not"),
        (np.ones(3), np.array(["2020-01-01"], "datetime64[D]"), "w has dtype datetime64[D]"),
        (
            np.ones(3, np.longdouble),
            np.ones(1),
            f"x has dtype {np.dtype(np.longdouble).name}, which convjit does not",
        ),
        (None, np.ones(1), "x has dtype object"),
    ],
)
def test_what_is_not_convolved(x, w, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        convjit.conv(x, w)


def test_integers_wrap_modulo_two_to_the_64():
    x, w = np.full(3, 2**62, np.int64), np.full(3, 2, np.int64)
    expected = np.int64((3 * 2**63) % 2**64 - 2**64 * ((3 * 2**63) % 2**64 >= 2**63))
    assert convjit.conv(x, w)[0] == expected
    y = convjit.conv(np.array([2**64 - 1, 1], np.uint64), np.array([3], np.uint64))
    assert y.tolist() == [(3 * (2**64 - 1)) % 2**64, 3]


def test_plain_calls_match_numpy_and_scipy():
    import scipy.ndimage
    import scipy.signal

    signal, kernel = data(50, dtype="float64"), data(7, dtype="float64")
    full = convjit.conv(signal, kernel, padding="full", flip=True)
    np.testing.assert_allclose(full, np.convolve(signal, kernel), atol=1e-12)
    image, mask = data(20, 30, dtype="float64"), data(4, 5, dtype="float64")
    same = convjit.conv(image, mask, padding="same_lower", flip=True)
    np.testing.assert_allclose(same, scipy.signal.convolve2d(image, mask, mode="same"), atol=1e-12)
    for ours, theirs in (
        ("reflect", "mirror"),
        ("replicate", "nearest"),
        ("circular", "wrap"),
        ("symmetric", "reflect"),
        ("zeros", "constant"),
    ):
        result = convjit.conv(image, mask, padding="same_lower", pad_mode=ours)
        np.testing.assert_allclose(
            result, scipy.ndimage.correlate(image, mask, mode=theirs), atol=1e-12
        )


def test_stacks_and_volumes():
    stack, kernel = data(2, 3, 12, 11), data(3, 3)
    result = convjit.conv(stack, kernel, layout="HW", padding=1)
    assert result.shape == stack.shape
    for i, j in np.ndindex(2, 3):
        one = convjit.conv(stack[i, j], kernel, padding=1)
        np.testing.assert_allclose(result[i, j], one, atol=1e-5)
    volume, cube = data(6, 7, 8), data(3, 2, 3)
    result = convjit.conv(volume, cube, layout="DHW")
    np.testing.assert_allclose(
        result, reference(volume[None, None], cube[None, None])[0, 0], atol=1e-5
    )


def test_unbatched_is_a_batch_of_one():
    np.testing.assert_array_equal(convjit.conv(X[0], W), convjit.conv(X[:1], W)[0])


# -------------------------------------------------------------------- bias and out


def test_bias_is_cast_within_its_kind():
    y = convjit.conv(X, W, np.arange(4, dtype=np.float64))
    assert y.dtype == np.float32
    np.testing.assert_allclose(
        y, convjit.conv(X, W) + np.arange(4, dtype=np.float32)[:, None, None], atol=1e-5
    )
    with pytest.raises(TypeError, match="bias has dtype complex128, which does not cast"):
        convjit.conv(X, W, np.zeros(4, complex))
    with pytest.raises(convjit.ConvSpecError, match=re.escape("bias has shape (3,), it must be")):
        convjit.conv(X, W, np.zeros(3, np.float32))


def test_a_plain_bias_is_a_number():
    x, w = data(9), data(3)
    np.testing.assert_allclose(convjit.conv(x, w, 2.0), convjit.conv(x, w) + 2, atol=1e-6)


def test_a_plan_takes_a_bias_or_none():
    plan = convjit.plan(X.shape, W.shape)
    bias = data(4)
    np.testing.assert_allclose(plan(X, W), convjit.conv(X, W), atol=1e-5)
    np.testing.assert_allclose(plan(X, W, bias), convjit.conv(X, W, bias), atol=1e-5)
    without = convjit.plan(X.shape, W.shape, bias=False)
    with pytest.raises(convjit.ConvSpecError, match="bias was given to a plan made without one"):
        without(X, W, bias)


@pytest.mark.parametrize("call", [convjit.plan, convjit.explain, convjit.tune])
@pytest.mark.parametrize("direction", ["input_grad", "weight_grad"])
@pytest.mark.parametrize("bias", [True, data(4)], ids=["said", "given"])
def test_the_gradients_have_no_bias(bias, direction, call):
    with pytest.raises(convjit.ConvSpecError, match=rf"bias belongs .*'{direction}', leave it out"):
        call(X.shape, W.shape, bias=bias, direction=direction)


@pytest.mark.parametrize(
    ("bias", "error", "told"),
    [(data(3), convjit.ConvSpecError, r"bias has shape \(3,\), it must be \(4,\)"),
     (np.zeros(4, complex), TypeError, "does not cast"), (3, TypeError, "bias=3 is not a bool")],
    ids=["shape", "dtype", "number"],
)  # fmt: skip
def test_a_bias_that_only_explains_is_checked_as_any(bias, error, told):
    with pytest.raises(error, match=told):
        convjit.explain(X, W, bias)


@pytest.mark.parametrize("kind", ["contiguous", "strided", "overlapping"])
def test_out_is_what_is_returned(kind):
    x, w = data(1, 3, 8, 8), data(3, 3, 3, 3)
    expected = convjit.conv(x, w, padding=1)
    out = {
        "contiguous": np.full(x.shape, np.nan, np.float32),
        "strided": np.full((*x.shape[:3], 16), np.nan, np.float32)[..., ::2],
        "overlapping": x,
    }[kind]
    assert convjit.conv(x, w, padding=1, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_out_may_be_the_weights():
    x, w = data(5, 5), data(5, 5)
    expected = convjit.conv(x, w, padding=2)
    convjit.conv(x, w, padding=2, out=w)
    np.testing.assert_array_equal(w, expected)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((2, 4, 7, 6)), convjit.ConvSpecError, "float64; it must be exactly (2, 4, 7, 6)"),
        (np.zeros((2, 4, 7, 7), "f4"), convjit.ConvSpecError, "out is (2, 4, 7, 7) float32"),
        (read_only(np.zeros((2, 4, 7, 6), "f4")), convjit.ConvSpecError, "out is read-only"),
        ([1, 2], TypeError, "out is a list"),
    ],
)
def test_a_wrong_out(out, error, message):
    with pytest.raises(error, match=re.escape(message)):
        convjit.conv(X, W, out=out)


def test_every_call_returns_fresh_memory():
    plan = convjit.plan(X.shape, W.shape)
    packed = plan.pack(W)
    results = [plan(X, packed) for _ in range(3)] + [convjit.conv(X, W) for _ in range(3)]
    for i, one in enumerate(results):
        assert not any(np.shares_memory(one, other) for other in results[:i])


# -------------------------------------------------------------------- the other calls


def test_the_gradients_agree_with_numerical_differentiation():
    x, w = data(1, 4, 6, 5, dtype="float64"), data(6, 2, 3, 2, dtype="float64")
    options = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "groups": 2, "pad_mode": "reflect"}
    gy = data(*convjit.conv(x, w, **options).shape, dtype="float64")
    gx = convjit.conv_input_grad(x.shape, w, gy, **options)
    gw = convjit.conv_weight_grad(x, w.shape, gy, **options)
    step = 1e-5
    for array, gradient in ((x, gx), (w, gw)):
        for index in list(np.ndindex(*array.shape))[::7]:
            kept = array[index]
            array[index] = kept + step
            above = (convjit.conv(x, w, **options) * gy).sum()
            array[index] = kept - step
            below = (convjit.conv(x, w, **options) * gy).sum()
            array[index] = kept
            assert gradient[index] == pytest.approx((above - below) / (2 * step), abs=1e-6)


def test_gradient_shapes_are_checked():
    with pytest.raises(convjit.ConvSpecError, match=r"gy has shape \(2, 4, 7, 7\), it must be"):
        convjit.conv_input_grad(X.shape, W, data(2, 4, 7, 7))
    with pytest.raises(TypeError, match="x_shape=5 is not a shape"):
        convjit.conv_input_grad(5, W, data(2, 4, 7, 6))


def test_plans_in_every_direction():
    gy = convjit.conv(X, W)
    for direction, operands, expected in (
        ("forward", (X, W), gy),
        ("input_grad", (gy, W), convjit.conv_input_grad(X.shape, W, gy)),
        ("weight_grad", (X, gy), convjit.conv_weight_grad(X, W.shape, gy)),
    ):
        plan = convjit.plan(X.shape, W.shape, direction=direction)
        assert plan.spec.direction is Direction(direction)
        packed = plan.pack(operands[1])
        np.testing.assert_allclose(plan(operands[0], packed), expected, atol=1e-4)
    plan = convjit.plan(gy.shape, W.shape, direction="transposed", stride=2)
    expected = convjit.conv_transpose(gy, W, stride=2)
    np.testing.assert_allclose(plan(gy, plan.pack(W)), expected, atol=1e-4)


def test_a_plan_says_what_does_not_fit():
    plan = convjit.plan(X.shape, W.shape)
    with pytest.raises(convjit.ConvSpecError, match=r"x has shape \(2, 6, 9, 9\), this plan takes"):
        plan(data(2, 6, 9, 9), W)
    with pytest.raises(TypeError, match="x has dtype complex128, this plan takes float32"):
        plan(X.astype(complex), W)
    with pytest.raises(convjit.ConvSpecError, match="direction='sideways' is not known"):
        convjit.plan(X, W, direction="sideways")
    with pytest.raises(TypeError, match="do not take 'strides'"):
        convjit.plan(X, W, strides=2)
    with pytest.raises(convjit.ConvSpecError, match="output_padding belongs to"):
        convjit.plan(X, W, output_padding=1)


def test_depthwise_separable_is_its_two_halves():
    x, depth, point = data(2, 4, 9, 9), data(8, 1, 3, 3), data(5, 8)
    depth_bias, bias = data(8), data(5)
    result = convjit.depthwise_separable(
        x, depth, point, bias, depth_bias=depth_bias, depth_activation="relu",
        activation=("clip", -1.0, 1.0), stride=2, padding=1,
    )  # fmt: skip
    middle = convjit.conv(x, depth, depth_bias, groups=4, stride=2, padding=1, activation="relu")
    expected = convjit.conv(middle, point[:, :, None, None], bias, activation=("clip", -1.0, 1.0))
    np.testing.assert_allclose(result, expected, atol=1e-5)
    with pytest.raises(convjit.ConvSpecError, match=r"it must be \(K, 8\) or \(K, 8, 1, 1\)"):
        convjit.depthwise_separable(x, depth, data(5, 7))
    with pytest.raises(TypeError, match="unknown argument 'strides'"):
        convjit.depthwise_separable(x, depth, point, strides=2)


def test_nan_passes_the_activations():
    x, w = np.array([1.0, np.nan, -1.0]), np.array([1.0])
    for activation in ("relu", ("leaky_relu", 0.5), ("clip", -0.5, 0.5)):
        assert np.isnan(convjit.conv(x, w, activation=activation)[1])


def test_plain_data_keeps_a_nan_in_its_receptive_field():
    x = data(64, 64)
    x[30, 30] = np.nan
    bad = np.isnan(convjit.conv(x, data(9, 9), padding=4))
    assert bad[26:35, 26:35].all()
    assert bad.sum() == 81


def test_workspace_that_cannot_be_had_is_a_memory_error():
    x = np.broadcast_to(np.float32(0), (1, 1, 2**20, 2**20))
    with pytest.raises(MemoryError, match=r"\d+ bytes were wanted for"):
        convjit.conv(x, np.ones((4096, 1, 1, 1), np.float32))


def test_eight_threads_at_once():
    expected = convjit.conv(X, W, padding=1)
    failures = []

    def work(number):
        rng = np.random.default_rng(number)
        for _ in range(20):
            n = int(rng.integers(5, 20))
            x = rng.standard_normal((1, 6, n, n)).astype(np.float32)
            ours = convjit.conv(x, W, padding=1)
            if not np.allclose(ours, reference(x, W, padding=1), atol=1e-3):
                failures.append(n)
            if not np.allclose(convjit.conv(X, W, padding=1), expected, atol=1e-4):
                failures.append("shared")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures

"""The oracle against loops written out by hand, NumPy, scipy.signal and scipy.ndimage."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from scipy import ndimage, signal

from convjit import precision
from convjit.algorithms import geometry
from convjit.algorithms import oracle as module
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.spec import ConvSpec, Direction
from convjit.testing.cases import Case, random_array
from convjit.testing.strategies import specs

Array = np.ndarray[Any, np.dtype[Any]]
EXACT = ("int32", "uint8", "int64", "uint64")


def by_hand(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The definition in Python's own whole numbers, one product at a time; channels-first."""
    result = np.zeros(spec.result_shape, dtype=object)
    c, k = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    for n, g, i, j in product(range(spec.batch), range(spec.groups), range(c), range(k)):
        for o in product(*map(range, spec.out_size)):
            for t in product(*map(range, spec.kernel_size)):
                source = tuple(
                    geometry.source_index(
                        o[a] * spec.stride[a] - spec.padding[a][0] + t[a] * spec.dilation[a],
                        spec.in_size[a],
                        spec.pad_mode,
                    )
                    for a in range(spec.ndim)
                )
                if None in source:
                    continue
                tap = (
                    tuple(m - 1 - a for m, a in zip(spec.kernel_size, t, strict=True))
                    if spec.flip
                    else t
                )
                x, w, y = (n, g * c + i, *source), (g * k + j, i, *tap), (n, g * k + j, *o)
                if spec.direction is Direction.FORWARD:
                    result[y] += int(lhs[x]) * int(rhs[w])
                elif spec.direction is Direction.WEIGHT_GRAD:
                    result[w] += int(lhs[x]) * int(rhs[y])
                else:
                    result[x] += int(lhs[y]) * int(rhs[w])
    return result


@settings(max_examples=60, deadline=None)
@given(specs(EXACT, most=2))
def test_every_problem_is_the_written_out_sum_modulo_2_to_the_64(spec: ConvSpec) -> None:
    spec = spec.replace(layout={1: "NCL", 2: "NCHW"}[spec.ndim], bias=False, activation=None)
    spec = spec.replace(batch=1, in_size=tuple(min(n, 6) for n in spec.in_size))
    if any(lo > 4 or hi > 4 for lo, hi in spec.padding) or min(spec.formula_out_size) < 1:
        return
    for n, (lo, hi) in zip(spec.in_size, spec.padding, strict=True):
        limit = geometry.border_limit(spec.pad_mode, n)
        if limit is not None and max(lo, hi) > limit:
            return
    spec = spec.replace(out_size=spec.formula_out_size)
    lhs, rhs, _ = Case("hand", spec).operands()
    expected = by_hand(spec, lhs, rhs) % 2**64
    result = oracle(spec, lhs, rhs)
    assert result.dtype == spec.result_dtype
    assert np.array_equal(result.astype(np.uint64), expected.astype(np.uint64))


def forward(x: Array, w: Array, **geometry_of: Any) -> Array:
    spec = ConvSpec.forward((1, 1, *x.shape), (1, 1, *w.shape), dtype=x.dtype.name, **geometry_of)
    return oracle(spec, x[None, None], w[None, None])[0, 0]


@pytest.mark.parametrize(("mode", "padding"), [("valid", 0), ("full", 4), ("same", 2)])
def test_signals_as_numpy(mode: str, padding: int, rng: np.random.Generator) -> None:
    x, w = rng.standard_normal(20), rng.standard_normal(5)
    np.testing.assert_allclose(
        forward(x, w, padding=padding, flip=True), np.convolve(x, w, mode), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(
        forward(x, w, padding=padding), np.correlate(x, w, mode), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_images_as_scipy_signal(dtype: str, rng: np.random.Generator) -> None:
    x, w = random_array(rng, (9, 11), dtype), random_array(rng, (4, 3), dtype)
    for padding, mode in ((0, "valid"), (((3, 3), (2, 2)), "full")):
        expected = signal.convolve2d(x, w, mode)
        np.testing.assert_allclose(
            forward(x, w, padding=padding, flip=True), expected, rtol=1e-12, atol=1e-12
        )


NDIMAGE_MODE = {
    "zeros": "constant", "reflect": "mirror", "replicate": "nearest", "circular": "grid-wrap",
    "symmetric": "reflect",
}  # fmt: skip


@pytest.mark.parametrize("mode", geometry.PAD_MODES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_borders_as_scipy_ndimage(mode: str, ndim: int, rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((7, 6, 5)[:ndim]), rng.standard_normal((5, 3, 3)[:ndim])
    padding = tuple((k // 2, k // 2) for k in w.shape)
    expected = ndimage.correlate(x, w, mode=NDIMAGE_MODE[mode])
    found = forward(x, w, padding=padding, pad_mode=mode)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_channels_groups_and_batch_are_sums_of_planes(rng: np.random.Generator) -> None:
    spec = ConvSpec.forward((2, 4, 8, 7), (6, 2, 3, 2), groups=2, dtype="float64", stride=(2, 1))
    x, w = rng.standard_normal(spec.x_shape), rng.standard_normal(spec.w_shape)
    y = oracle(spec, x, w)
    for n, k in product(range(2), range(6)):
        group = k // 3
        expected = sum(signal.correlate2d(x[n, 2 * group + c], w[k, c], "valid") for c in range(2))
        np.testing.assert_allclose(y[n, k], expected[::2], rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(specs(("float32", "complex64", "float16")))
def test_layout_permutes_and_nothing_else(spec: ConvSpec) -> None:
    first = spec.replace(layout={1: "NCL", 2: "NCHW", 3: "NCDHW"}[spec.ndim])
    last = spec.replace(layout={1: "NLC", 2: "NHWC", 3: "NDHWC"}[spec.ndim])
    lhs, rhs, bias = Case("layout", first).operands()
    swap = lambda a: np.moveaxis(a, 1, -1)  # noqa: E731
    weight_grad = spec.direction is Direction.WEIGHT_GRAD
    expected = oracle(first, lhs, rhs, bias)
    found = oracle(last, swap(lhs), swap(rhs) if weight_grad else rhs, bias)
    assert np.array_equal(found, expected if weight_grad else swap(expected))


@settings(max_examples=60, deadline=None)
@given(specs())
def test_magnitudes_bound_the_result(spec: ConvSpec) -> None:
    lhs, rhs, bias = Case("magnitudes", spec).operands()
    scale = magnitudes(spec, lhs, rhs, bias)
    assert scale.dtype == np.float64
    assert scale.shape == spec.result_shape
    if spec.dtype not in precision.INTEGER:  # they wrap
        linear = oracle(spec.replace(activation=None), lhs, rhs, bias)
        assert np.all(np.abs(linear) <= scale * (1 + 1e-12) + 1e-300)


def test_magnitude_of_the_most_negative_integer() -> None:
    spec = ConvSpec.forward((1, 1, 1), (1, 1, 1), dtype="int8")
    x, w = np.full((1, 1, 1), -128, np.int8), np.ones((1, 1, 1), np.int8)
    assert magnitudes(spec, x, w).item() == 128.0


def test_float64_is_summed_in_long_double() -> None:
    if np.finfo(np.longdouble).nmant <= 52:
        pytest.skip("long double is float64 here")
    spec = ConvSpec.forward((1, 3, 1), (1, 3, 1), dtype="float64")
    x = np.array([1.0, 2.0**-53, 2.0**-53]).reshape(1, 3, 1)
    w = np.ones((1, 3, 1))
    assert oracle(spec, x, w).item() == 1.0 + 2.0**-52


def test_the_limit_of_long_double_is_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGDOUBLE_MACS", 0)
    spec = ConvSpec.forward((1, 2, 4), (3, 2, 2), dtype="complex128")
    lhs, rhs, _ = Case("wide", spec).operands()
    assert oracle(spec, lhs, rhs).dtype == np.complex128


def test_an_infinity_stays_in_its_receptive_field() -> None:
    spec = ConvSpec.forward((1, 1, 9), (1, 1, 3), padding=1)
    x = np.zeros((1, 1, 9), np.float32)
    x[0, 0, 4] = np.inf
    y = oracle(spec, x, np.ones((1, 1, 3), np.float32))[0, 0]
    assert np.isinf(y[3:6]).all()
    assert np.isfinite(np.delete(y, [3, 4, 5])).all()
    # A tap of the kernel that reads only zeros of the border contributes nothing, not inf * 0.
    w = np.array([np.inf, 1, 1], np.float32).reshape(1, 1, 3)
    assert np.isfinite(oracle(spec, np.ones((1, 1, 9), np.float32), w)[0, 0, 0])


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (("relu",), [0.0, 0.0, 2.0, np.nan]),
        (("leaky_relu", 0.5), [-1.0, 0.0, 2.0, np.nan]),
        (("clip", -1.0, 1.5), [-1.0, 0.0, 1.5, np.nan]),
    ],
)
def test_activations_pass_nan_on(activation: Any, expected: list[float]) -> None:
    spec = ConvSpec.forward((1, 1, 4), (1, 1, 1), activation=activation, bias=True)
    x = np.array([-3.0, -1.0, 1.0, np.nan], np.float32).reshape(1, 1, 4)
    y = oracle(spec, x, np.ones((1, 1, 1), np.float32), np.ones(1, np.float32))
    np.testing.assert_array_equal(y.ravel(), expected)


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [(-1.0, 2.0, [-1, 0, 2]), (-np.inf, 1e30, [-5, 0, 5]), (1e30, 1e31, [2**63 - 1] * 3)],
)
def test_integers_are_clipped_by_whole_bounds(lo: float, hi: float, expected: list[int]) -> None:
    spec = ConvSpec.forward((1, 1, 3), (1, 1, 1), dtype="int8", activation=("clip", lo, hi))
    x = np.array([-5, 0, 5], np.int8).reshape(1, 1, 3)
    y = oracle(spec, x, np.ones((1, 1, 1), np.int8))
    assert y.ravel().tolist() == expected


def test_nothing_to_sum_is_bias_and_activation() -> None:
    spec = ConvSpec.forward((2, 0, 5), (3, 0, 2), bias=True, activation=("relu",))
    bias = np.array([1, -1, 2], np.float32)
    y = oracle(spec, np.empty((2, 0, 5), np.float32), np.empty((3, 0, 2), np.float32), bias)
    assert np.array_equal(y, np.broadcast_to(np.array([1, 0, 2])[:, None], (2, 3, 4)))


def test_a_wrong_shape_is_an_error() -> None:
    spec = ConvSpec.forward((1, 1, 5), (1, 1, 2))
    with pytest.raises(ValueError, match=r"has shape \(1, 1, 4\), not \(1, 1, 5\)"):
        oracle(spec, np.zeros((1, 1, 4)), np.zeros((1, 1, 2)))
    with pytest.raises(ValueError, match=r"have shape \(1, 1, 3\), not \(1, 1, 2\)"):
        oracle(spec, np.zeros((1, 1, 5)), np.zeros((1, 1, 3)))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)

"""The error model against measurements: it bounds what random data show, by a factor under 10."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convjit import precision
from convjit.algorithms import error, fit_error, policies
from convjit.algorithms.composed import OverlapSave
from convjit.algorithms.composed_winograd import ComposedWinograd, tile_of
from convjit.algorithms.fft import tiling
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.precision import Numerics, Policy
from convjit.spec import ConvSpec, Direction

DIRECT = Numerics("direct")
U = precision.UNIT_ROUNDOFF["float32"]


def sequential(spec: ConvSpec, x: Any, w: Any) -> Any:
    """Direct summation in the dtype of x, term after term; padding 0."""
    y = np.zeros(spec.y_shape, x.dtype)
    for c in range(spec.in_channels):
        for tap in np.ndindex(*spec.kernel_size):
            part = x[
                (
                    slice(None),
                    slice(c, c + 1),
                    *(slice(t, t + m) for t, m in zip(tap, spec.out_size, strict=True)),
                )
            ]
            y += w[(slice(None), c, *tap)].reshape(1, -1, *(1,) * spec.ndim) * part
    return y


def execute(executable: Any, spec: ConvSpec, x: Any, w: Any) -> Any:
    out = np.empty(spec.result_shape, x.dtype)
    executable.run(x, executable.pack(w), None, out, np.empty(executable.workspace, np.uint8))
    return out


def winograd_2d(spec: ConvSpec, x: Any, w: Any, m: int) -> tuple[Any, Numerics]:
    return execute(ComposedWinograd(np, spec, m), spec, x, w), Numerics(
        "winograd", tile_of(spec, m)
    )


def fourier(spec: ConvSpec, x: Any, w: Any) -> tuple[Any, Numerics]:
    fft = pytest.importorskip("scipy.fft")
    return execute(OverlapSave(np, fft, spec), spec, x, w), Numerics("fft", tiling(spec).lengths)


def compute(method: str, spec: ConvSpec, x: Any, w: Any) -> tuple[Any, Numerics]:
    if method == "direct":
        return sequential(spec, x, w), DIRECT
    if method == "fft":
        return fourier(spec, x, w)
    return winograd_2d(spec, x, w, int(method[1:]))


def measure(spec: ConvSpec, result: Any, x: Any, w: Any) -> float:
    return error.relative_error(spec, result, oracle(spec, x, w), magnitudes(spec, x, w))


def layer(channels: int, kernel: int, ndim: int = 2, dtype: str = "float32") -> ConvSpec:
    size = {1: 400, 2: 30, 3: 14}[ndim]
    return ConvSpec.forward(
        (1, channels, *(size,) * ndim), (4, channels, *(kernel,) * ndim), dtype=dtype
    )


def normal(spec: ConvSpec, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x, w = (rng.standard_normal(shape).astype(spec.dtype) for shape in (spec.x_shape, spec.w_shape))
    return x, w


CASES = [
    *[("direct", c, k, 2, "float32") for c, k in ((1, 3), (16, 3), (256, 3), (4, 11), (128, 1))],
    *[("f2", c, 3, d, "float32") for c, d in ((1, 1), (1, 2), (16, 2), (256, 2), (4, 3))],
    *[("f4", c, 3, d, "float32") for c, d in ((1, 1), (1, 2), (16, 2), (256, 2), (4, 3))],
    *[("f6", c, 3, d, "float32") for c, d in ((1, 1), (1, 2), (16, 2), (256, 2), (4, 3))],
    *[(f, c, 5, 2, "float32") for f in ("f2", "f4") for c in (1, 64)],
    *[("fft", c, k, 2, "float32") for c, k in ((1, 3), (1, 11), (16, 5), (256, 3))],
    *[("fft", 3, 31, 1, "float32"), ("fft", 2, 5, 3, "float32")],
    *[(f, 8, 3, 2, "float64") for f in ("direct", "f2", "f4", "fft")],
]


@pytest.mark.parametrize(("method", "channels", "kernel", "ndim", "dtype"), CASES)
def test_bound_is_near_what_normal_data_show(
    method: str, channels: int, kernel: int, ndim: int, dtype: str
) -> None:
    spec = layer(channels, kernel, ndim, dtype)
    measured = []
    for seed in range(3):
        x, w = normal(spec, seed)
        result, numerics = compute(method, spec, x, w)
        measured.append(measure(spec, result, x, w))
    bound = error.error_bound(spec, numerics)
    assert max(measured) <= bound
    assert bound <= 10 * float(np.median(measured))
    assert bound <= error.error_bound(spec, numerics, worst_case=True)


@pytest.mark.parametrize("terms", [64, 1000, 20000])
@pytest.mark.parametrize("chain", [1, 16, 384, 5000])
def test_sums_of_sums_err_less_and_the_bound_knows(terms: int, chain: int) -> None:
    """Chains of products, whose sums are summed: the bound stays near what they show."""
    spec = ConvSpec.forward((1, terms, 16, 16), (2, terms, 1, 1))
    x, w = normal(spec)
    products = w[:, :, 0, 0, None, None] * x[0]
    starts = range(0, terms, chain)
    sums = [fit_error.sequential_sum(products[:, i : i + chain].swapaxes(0, 1)) for i in starts]
    result = fit_error.sequential_sum(np.stack(sums))[None]
    numerics = Numerics("direct", chain=chain)
    bound, measured = error.error_bound(spec, numerics), measure(spec, result, x, w)
    assert measured <= bound <= 10 * measured
    assert bound <= error.error_bound(spec, DIRECT) * (1 + 1e-12)
    if chain >= terms:
        assert bound == error.error_bound(spec, DIRECT)
    # No chain is an excuse where errors may all have one sign.
    assert error.error_bound(spec, numerics, worst_case=True) == error.error_bound(
        spec, DIRECT, worst_case=True
    )


def hostile(kind: str, spec: ConvSpec) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    x, w = normal(spec)
    if kind == "constant":
        return np.full_like(x, 1 / 3), np.full_like(w, 1 / 3)
    if kind == "positive":
        return np.abs(x), np.abs(w)
    if kind == "scaled":
        return x * np.float32(1e30), w * np.float32(1e-30)
    if kind == "mixed":  # every element has a scale of its own
        x = x * 10.0 ** rng.uniform(-15, 15, x.shape)
        return x.astype(np.float32), (w * 10.0 ** rng.uniform(-15, 15, w.shape)).astype(np.float32)
    if kind == "cancelling":  # the sum over channels and taps is nearly zero
        w[:, 1::2] = -w[:, ::2]
        x[:, 1::2] = x[:, ::2] * np.float32(1 + 2**-20)
        return x, w
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["constant", "positive", "scaled", "mixed", "cancelling"])
@pytest.mark.parametrize("method", ["direct", "f2", "f4", "f6", "fft"])
@pytest.mark.parametrize("channels", [2, 256])
def test_worst_case_bound(method: str, kind: str, channels: int) -> None:
    spec = layer(channels, 3)
    x, w = hostile(kind, spec)
    result, numerics = compute(method, spec, x, w)
    assert measure(spec, result, x, w) <= error.error_bound(spec, numerics, worst_case=True)


def test_worst_case_covers_sequential_sums_of_constants() -> None:
    """20000 equal terms drift by far more than the statistical bound, never by R u."""
    spec = ConvSpec.forward((1, 20000, 1), (1, 20000, 1))
    x, w = np.full(spec.x_shape, 1 / 3, np.float32), np.ones(spec.w_shape, np.float32)
    measured = measure(spec, sequential(spec, x, w), x, w)
    assert error.error_bound(spec, DIRECT) < measured
    assert measured <= error.error_bound(spec, DIRECT, worst_case=True) == 20000 * U


def test_scale_of_operands_does_not_matter() -> None:
    spec = layer(16, 3)
    x, w = hostile("scaled", spec)
    for method in ("direct", "f4", "fft"):
        result, numerics = compute(method, spec, x, w)
        assert measure(spec, result, x, w) <= error.error_bound(spec, numerics)


@pytest.mark.parametrize("channels", [1, 16, 512])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_results(dtype: str, channels: int) -> None:
    """Summed in float32, rounded once."""
    spec = ConvSpec.forward((1, channels, 30, 30), (8, channels, 1, 1), dtype=dtype)
    half = precision.numpy_dtype(dtype)
    x, w = normal(spec.replace(dtype="float32"))
    x, w = x.astype(half), w.astype(half)
    y = sequential(spec, x.astype(np.float32), w.astype(np.float32)).astype(half)
    measured = measure(spec, y, x, w)
    assert measured <= error.error_bound(spec, DIRECT) <= 10 * measured
    assert error.error_bound(spec, DIRECT) <= error.error_bound(spec, DIRECT, worst_case=True)


def as_tf32(a: Any, added: int) -> Any:
    """10 bits after the leading one: cut off, or rounded, ties away from zero, by adding 2**12."""
    return ((a.view(np.uint32) + np.uint32(added)) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("channels", [1, 64, 1024])
def test_operands_rounded_to_tf32(channels: int) -> None:
    spec = ConvSpec.forward((1, channels, 30, 30), (8, channels, 1, 1))
    numerics = Numerics("gemm", operands="tf32")
    x, w = normal(spec)
    y = sequential(spec, as_tf32(x, 1 << 12), as_tf32(w, 1 << 12))
    measured = measure(spec, y, x, w)
    assert measured <= error.error_bound(spec, numerics) <= 10 * measured
    assert error.error_bound(spec, numerics) > error.error_bound(spec, Numerics("gemm"))


@pytest.mark.parametrize("channels", [1, 64, 1024])
def test_the_first_operand_cut_off_to_tf32(channels: int) -> None:
    """As tensor cores read it; the second is rounded when it is packed."""
    spec = ConvSpec.forward((1, channels, 30, 30), (8, channels, 1, 1))
    x, w = normal(spec)
    measured = measure(spec, sequential(spec, as_tf32(x, 0), as_tf32(w, 1 << 12)), x, w)
    numerics = Numerics("gemm", operands="tf32", cut=4)
    rounded = error.error_bound(spec, Numerics("gemm", operands="tf32"))
    for worst in (False, True):
        assert measured <= error.error_bound(spec, numerics, worst_case=worst)
    assert rounded < error.error_bound(spec, numerics) <= 10 * measured


def cut_sum(products: Any, step: int) -> Any:
    """Sums along the first axis as tensor cores make them, in float64 but for what they cut off."""
    total = np.zeros(products.shape[1:])
    for first in range(0, len(products), step):
        terms = np.concatenate([total[None], products[first : first + step]]).astype(np.float64)
        unit = np.ldexp(1.0, np.frexp(np.abs(terms).max(axis=0))[1] - 24)
        total = (np.trunc(terms / unit) * unit).sum(axis=0)
        unit = np.ldexp(1.0, np.frexp(total)[1] - 24)
        total = np.trunc(total / unit) * unit
    return total.astype(np.float32)


@pytest.mark.parametrize("terms", [24, 64, 1000, 8192])
@pytest.mark.parametrize("step", [4, 8])
def test_sums_that_are_cut_off(terms: int, step: int) -> None:
    """The bound of tensor cores' sums, before a result is rounded to 16 bits."""
    spec = ConvSpec.forward((1, terms, 16, 16), (2, terms, 1, 1))
    numerics, measured = Numerics("gemm", cut=step), []
    for seed in range(3):
        x, w = (a.astype(np.float16).astype(np.float32) for a in normal(spec, seed))
        products = w[:, :, 0, 0, None, None].astype(np.float64) * x[0]
        result = cut_sum(products.swapaxes(0, 1), step)[None]
        measured.append(measure(spec, result, x, w))
    bound = error.error_bound(spec, numerics)
    assert max(measured) <= bound <= 10 * float(np.median(measured))
    assert bound <= error.error_bound(spec, numerics, worst_case=True)
    if terms > step:
        assert bound > error.error_bound(spec, DIRECT)


@pytest.mark.parametrize("constant", [1 / 3, -1 / 3, 1.0])
def test_sums_that_are_cut_off_of_one_sign(constant: float) -> None:
    spec = ConvSpec.forward((1, 4096, 4, 4), (1, 4096, 1, 1))
    x, w = np.full(spec.x_shape, constant, np.float32), np.full(spec.w_shape, 1 / 3, np.float32)
    products = w[:, :, 0, 0, None, None].astype(np.float64) * x[0]
    result = cut_sum(products.swapaxes(0, 1), 8)[None]
    bound = error.error_bound(spec, Numerics("gemm", cut=8), worst_case=True)
    assert 0 < measure(spec, result, x, w) <= bound


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_complex(method: str) -> None:
    spec = layer(8, 3, dtype="complex64")
    rng = np.random.default_rng(0)
    x, w = (
        (rng.standard_normal(s) + 1j * rng.standard_normal(s)).astype(np.complex64)
        for s in (spec.x_shape, spec.w_shape)
    )
    result, numerics = compute(method, spec, x, w)
    measured = measure(spec, result, x, w)
    assert measured <= error.error_bound(spec, numerics) <= 20 * measured


def test_constants_reproduce() -> None:
    """The fit gives the constants in use: measured values within them, and not far below."""
    assert fit_error.fit_rho(1024, 256) == pytest.approx(error.RHO, rel=0.1)
    data = [fit_error.fit_data_roundings(m, 3, 2, 1) for m in (2, 4, 6)]
    assert min(data) > error.DATA_ROUNDINGS / 2.5
    assert max(data) < 1.2 * error.DATA_ROUNDINGS
    transforms = [fit_error.fit_fft_roundings(lengths) for lengths in ((1024,), (64, 64))]
    assert min(transforms) > error.FFT_ROUNDINGS / 1.5
    assert max(transforms) < 1.2 * error.FFT_ROUNDINGS


def test_exact_methods_and_integers_have_no_error() -> None:
    spec = layer(4, 3, dtype="int8")
    assert error.error_bound(spec, DIRECT) == 0
    assert error.error_bound(layer(4, 3), Numerics("exact")) == 0
    assert error.error_bound(layer(0, 3), DIRECT) == 0
    assert policies.limit("int32") == 0


def test_reduction_leaves_the_border_out() -> None:
    """A 31x31 kernel on a padded 7x7 image sums 49 products, not 961."""
    spec = ConvSpec.forward((1, 4, 7, 7), (8, 4, 31, 31), padding=15)
    assert error.reduction(spec) == 4 * 49
    assert error.reduction(spec.replace(pad_mode="circular")) == 4 * 31 * 31
    assert error.reduction(spec.replace(direction=Direction.INPUT_GRAD)) == 8 * 49
    assert error.reduction(spec.replace(direction=Direction.WEIGHT_GRAD)) == 49
    strided = ConvSpec.forward((1, 4, 64, 64), (8, 4, 3, 3), stride=2)
    assert error.reduction(strided.replace(direction=Direction.TRANSPOSED)) == 8 * 4


def test_reduction_counts_a_border_that_folds_back() -> None:
    """The adjoint of replicate padding sums all of the border into the edge sample."""
    spec = ConvSpec.forward((1, 1, 2), (1, 1, 1), padding=1, pad_mode="replicate")
    assert error.reduction(spec.replace(direction=Direction.INPUT_GRAD)) == 2
    wide = ConvSpec.forward((1, 1, 9), (1, 1, 3), padding=4, direction=Direction.INPUT_GRAD)
    # Outputs 0 to 14 read positions -4 to 12 in threes, fewer at the ends.
    assert error.reduction(wide) == 3
    assert error.reduction(wide.replace(pad_mode="replicate")) == 1 + 2 + 3 + 3 + 3
    assert error.reduction(wide.replace(pad_mode="reflect")) == 3 + 3
    assert error.reduction(wide.replace(pad_mode="circular")) == 3 + 3


def test_reductions_bound_what_is_summed() -> None:
    """Against the oracle on ones, in every padding mode; the spec's own is the coarser one."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        mode = str(rng.choice(["zeros", "reflect", "replicate", "circular", "symmetric"]))
        n, k, d, s = (int(rng.integers(1, top)) for top in (13, 6, 4, 4))
        most = {"zeros": 9, "replicate": 9, "reflect": n - 1}.get(mode, n)
        pads = ((int(rng.integers(0, most + 1)), int(rng.integers(0, most + 1))),)
        if n + sum(pads[0]) < d * (k - 1) + 1:
            continue
        spec = ConvSpec.forward(
            (2, 3, n), (2, 3, k), stride=s, dilation=d, padding=pads, pad_mode=mode
        )
        for direction in Direction:
            posed = spec.replace(direction=direction)
            summed = oracle(posed, np.ones(posed.lhs_shape), np.ones(posed.rhs_shape)).max()
            assert summed <= error.reduction(posed) <= max(posed.reduction, 1), str(posed)


def test_slope_of_leaky_relu_scales_errors() -> None:
    spec = layer(4, 3)
    steep = spec.replace(activation=("leaky_relu", -3.0))
    assert error.error_bound(steep, DIRECT) == 3 * error.error_bound(spec, DIRECT)
    flat = spec.replace(activation=("leaky_relu", 0.1))
    assert error.error_bound(flat, DIRECT) == error.error_bound(spec, DIRECT)


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="method='magic' has no error model"):
        error.error_bound(layer(1, 3), Numerics("magic"))


# ------------------------------------------------------------------------------- policies

F23, F43, F63 = (Numerics("winograd", (m, m), spreads_nonfinite=True) for m in (2, 4, 6))
FFT = Numerics("fft", (64, 64), spreads_nonfinite=True)
TF32 = Numerics("gemm", operands="tf32")


@pytest.mark.parametrize("channels", [1, 3, 16, 64, 512, 4096])
def test_default_admits_summation_and_f43(channels: int) -> None:
    spec = ConvSpec.forward((8, channels, 112, 112), (64, channels, 3, 3), padding=1)
    for numerics in (DIRECT, Numerics("gemm"), F23, F43, FFT):
        assert policies.policy_refusal(spec, numerics, Policy()) is None
    assert error.error_bound(spec, F43) <= policies.limit("float32") == pytest.approx(1e-5)


def test_default_leaves_f63_to_fast() -> None:
    """Errors of many channels average below the bound, but results keep few good digits."""
    many = ConvSpec.forward((8, 64, 112, 112), (64, 64, 3, 3), padding=1)
    assert error.error_bound(many, F63) <= policies.limit("float32")
    refusal = policies.policy_refusal(many, F63, Policy())
    assert refusal is not None
    assert "amplifies rounding errors 139 times; precision='default' admits 64" in refusal
    assert policies.policy_refusal(many, F63, Policy("fast")) is None
    # In one dimension it amplifies them 12 times.
    signal = ConvSpec.forward((8, 64, 1000), (64, 64, 3), padding=1)
    assert policies.policy_refusal(signal, Numerics("winograd", (6,)), Policy()) is None


@pytest.mark.parametrize(
    ("numerics", "policy", "sentence"),
    [
        (F23, Policy("exact"), "admits sums of products only, and winograd transforms"),
        (FFT, Policy("exact"), "admits sums of products only, and fft transforms"),
        (TF32, Policy("exact"), "gemm rounds operands to tf32"),
        (TF32, Policy(), "gemm rounds operands to tf32, which takes precision='fast'"),
        (F23, Policy(nonfinite="local"), "winograd spreads a NaN or Inf"),
        (
            Numerics("gemm", deterministic=False),
            Policy(deterministic=True),
            "order of its sums varies",
        ),
    ],
)
def test_refusals(numerics: Numerics, policy: Policy, sentence: str) -> None:
    refusal = policies.policy_refusal(layer(16, 3), numerics, policy)
    assert refusal is not None
    assert sentence in refusal


def test_fast_admits_tf32_and_everything_admits_sums() -> None:
    spec = layer(1, 1)
    assert policies.policy_refusal(spec, TF32, Policy("fast")) is None
    for name in precision.PRECISIONS:
        policy = Policy(name, nonfinite="local", deterministic=True)
        assert policies.policy_refusal(layer(4096, 11), DIRECT, policy) is None
    # TF32 keeps every bit of a half number.
    assert policies.policy_refusal(layer(4, 3, dtype="float16"), TF32, Policy()) is None


def test_integers_take_sums_only() -> None:
    spec = layer(4, 3, dtype="int16")
    assert policies.policy_refusal(spec, DIRECT, Policy()) is None
    refusal = policies.policy_refusal(spec, FFT, Policy("fast"))
    assert refusal == "integers are summed exactly, and fft transforms"


def test_bound_of_the_lowered_problem_decides() -> None:
    refusal = policies.policy_refusal(layer(64, 3), F43, Policy(), bound=2e-5)
    assert refusal is not None
    assert "2.0e-05" in refusal


# --------------------------------------------------------------------------- relative_error


def relative(result: Any, expected: Any, scale: Any, dtype: str = "float32") -> float:
    spec = layer(1, 1, 1, dtype)
    arrays = (np.asarray(a) for a in (expected, scale))
    return error.relative_error(
        spec, np.asarray(result, precision.numpy_dtype(spec.result_dtype)), *arrays
    )


def test_relative_error() -> None:
    nan, inf = np.nan, np.inf
    assert relative([1.0, 2.0], [1.0, 2.5], [4.0, 2.0]) == 0.125
    assert relative([], [], []) == 0
    assert relative([0.0], [0.0], [0.0]) == 0
    assert relative([1e-30], [0.0], [0.0]) == inf
    assert relative([1.0, 1.0], [1.0], [1.0]) == inf
    # What is not finite must be so where, and as, it was expected.
    assert relative([nan, inf, 1.0], [nan, inf, 1.0], [nan, inf, 1.0]) == 0
    assert relative([nan, 1.0], [1.0, 1.0], [1.0, 1.0]) == inf
    assert relative([1.0, 1.0], [nan, 1.0], [nan, 1.0]) == inf
    assert relative([inf], [-inf], [inf]) == inf
    # A float16 result overflows where the exact one is beyond its range.
    assert relative([inf, 1.0], [1e5, 1.0], [1e5, 1.0], "float16") == 0
    assert relative([inf, 1.0], [1e4, 1.0], [1e4, 1.0], "float16") == inf


def test_relative_error_of_integers() -> None:
    big = 2**60
    assert relative([big], [big], [float(big)], "int64") == 0
    assert relative([big + 1], [big], [float(big)], "int64") > 0  # one float64, two integers

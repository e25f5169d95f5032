"""Errors within their model on data of all kinds, and what the policies on accuracy promise.

Register tiles and blocks do not change an order of summation (``test_numba_solvers`` compares their
results bit by bit), so what is tried here is each solver, and each tile of those that transform:
every F(m, r) on one, two and three axes, every length of an FFT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import scipy.fft

import convjit
from convjit import dispatch
from convjit.algorithms.error import error_bound, relative_error
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.arguments import Request
from convjit.precision import Policy
from convjit.spec import ConvSpec, Direction
from convjit.spi import Solver, Target
from convjit.testing.cases import CASES
from convjit_numba import NumbaBackend, fft, fftplan, problem, targets
from convjit_scipy import ScipyBackend

BACKEND = NumbaBackend()
SOLVERS: dict[str, Solver] = {solver.id: solver for solver in BACKEND.solvers()}
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]

SPECS = [
    "conv_f32_NCHW_n1c20k12g1_i14x19_w3x3_p1_bias",
    "conv_f32_NHWC_n2c20k12g1_i14x19_w3x3_p1",
    "conv_f64_NCHW_n1c17k5g1_i10x11_w3x3_p1",
    "conv_f64_NHWC_n1c17k5g1_i10x11_w3x3",
    "conv_f32_NCHW_n1c300k7g1_i9x8_w1x1",
    "conv_f32_NCHW_n1c512k6g1_i9x10_w3x3_p1",
    "wgrad_f32_NCHW_n1c4k4g1_i120x120_w3x3_p1",
    "conv_f32_NCHW_n1c8k6g2_i15x13_w5x5_p2",
    "conv_f64_NHWC_n1c8k6g1_i15x13_w5x5_p2",
    "conv_f32_NCHW_n1c8k5g1_i13x15_w2x3",
    "conv_f32_NCHW_n1c9k9g9_i20x23_w3x3_p1",
    "conv_f32_NHWC_n1c18k18g18_i20x23_w5x5_p2",
    "conv_f32_NCL_n2c16k12g1_i101_w3_p1",
    "conv_f32_NLC_n2c16k12g1_i101_w5_p2",
    "conv_f32_NCDHW_n1c6k5g1_i7x6x8_w3x3x3_p1",
    "conv_f64_NDHWC_n1c6k5g1_i7x6x8_w3x3x3_p1",
    "conv_f32_NCDHW_n1c3k2g1_i7x8x9_w4x5x4_p2",
    "conv_f32_NCHW_n1c1k1g1_i40x45_w13x11_p5",
    "conv_f64_NCHW_n2c3k2g1_i30x31_w7x7_p4_d2",
    "conv_f32_NCL_n1c1k1g1_i2000_w301",
    "conv_f64_NCL_n1c2k2g1_i500_w64_p10",
    "convt_f32_NCHW_n2c8k6g1_i14x19_w4x4_s2_p1",
    "convt_f32_NHWC_n2c8k6g1_i14x19_w3x3_s2_p1",
    "convt_f64_NCHW_n3c9k7g1_i12x11_w3x2_s2",
    "wgrad_f32_NCHW_n2c8k6g1_i14x19_w3x3_p1",
    "wgrad_f32_NHWC_n2c8k6g1_i14x19_w3x3_s2_p1",
    "wgrad_f64_NCHW_n3c7k9g1_i12x11_w3x2",
    "wgrad_f32_NCHW_n2c9k18g9_i20x23_w3x3_p1",
    "wgrad_f64_NCHW_n1c5k5g5_i17x19_w5x3_s2_p1",
]


# A bound that is further above what random data err says too little about an algorithm.
SHARP = 10.0


def taken(
    specs: list[str], solvers: Mapping[str, Solver] = SOLVERS, target: Target | None = None
) -> list[tuple[str, str]]:
    target = target or BACKEND.target()
    return [
        (text, name)
        for text in specs
        for name, solver in solvers.items()
        if solver.refuse(ConvSpec.parse(text), target) is None
    ]


def compute(solver: Solver, spec: ConvSpec, x: Any, w: Any, bias: Any) -> Any:
    """Planned, packed and run as the core does."""
    executable = solver.plan(spec, BACKEND.target(), ())
    out = np.full(spec.result_shape, np.nan, spec.dtype)
    workspace = np.full(executable.workspace, 0xFF, np.uint8)
    executable.run(x, executable.pack(w), bias, out, workspace)
    return out


# -------------------------------------------------------------------- data


def _random(rng: np.random.Generator, spec: ConvSpec) -> Arrays:
    return rng.standard_normal(spec.lhs_shape), rng.standard_normal(spec.rhs_shape)


def _constant(rng: np.random.Generator, spec: ConvSpec) -> Arrays:
    """Every partial sum has the same mantissa's neighbours: errors do not cancel."""
    return np.full(spec.lhs_shape, 1.1), np.full(spec.rhs_shape, 0.7)


def _positive(rng: np.random.Generator, spec: ConvSpec) -> Arrays:
    return rng.random(spec.lhs_shape), rng.random(spec.rhs_shape)


def _large(rng: np.random.Generator, spec: ConvSpec) -> Arrays:
    x, w = _random(rng, spec)
    return x * (1e30 if spec.dtype == "float32" else 1e300), w


def _small(rng: np.random.Generator, spec: ConvSpec) -> Arrays:
    x, w = _random(rng, spec)
    return x * (1e-30 if spec.dtype == "float32" else 1e-290), w


def _opposite(rng: np.random.Generator, spec: ConvSpec) -> Arrays:
    """A large operand and a small one."""
    x, w = _random(rng, spec)
    return (x * 1e30, w * 1e-30) if spec.dtype == "float32" else (x * 1e300, w * 1e-300)


def _samples(rng: np.random.Generator, spec: ConvSpec) -> Arrays:
    """Thirty decades among neighbouring samples.  No weight is small: the model leaves that out."""
    x = rng.standard_normal(spec.lhs_shape) * 10 ** rng.uniform(-15, 15, spec.lhs_shape)
    w = rng.uniform(0.5, 1, spec.rhs_shape) * rng.choice([-1, 1], spec.rhs_shape)
    return x, w


def _cancelling(rng: np.random.Generator, spec: ConvSpec) -> Arrays:
    """Differences of nearly equal samples: results are errors, but for the border."""
    x = 1000 + 1e-3 * rng.standard_normal(spec.lhs_shape)
    w = rng.standard_normal(spec.rhs_shape)
    if spec.direction is Direction.WEIGHT_GRAD:
        return x, w - w.mean()
    return x, w - w.mean(axis=tuple(range(1, w.ndim)), keepdims=True)


def _alternating(rng: np.random.Generator, spec: ConvSpec) -> Arrays:
    """Signs of a chessboard against equal weights."""
    signs = 1.0 - 2.0 * (np.indices(spec.lhs_shape).sum(axis=0) % 2)
    return signs * 1.1, np.full(spec.rhs_shape, 0.7)


KINDS: dict[str, Callable[[np.random.Generator, ConvSpec], Arrays]] = {
    build.__name__[1:]: build
    for build in (
        _random, _constant, _positive, _large, _small, _opposite, _samples, _cancelling,
        _alternating,
    )
}  # fmt: skip


@lru_cache(maxsize=2 * len(KINDS))  # of one problem, for the next solver
def posed(spec: ConvSpec, kind: str) -> tuple[Any, ...]:
    """Operands of a kind, with the exact results and the sums of magnitudes."""
    rng = np.random.default_rng(0)
    x, w = (np.ascontiguousarray(a, dtype=spec.dtype) for a in KINDS[kind](rng, spec))
    bias = None
    if spec.bias:
        scale = np.abs(x).max() * np.abs(w).max()
        bias = (scale * rng.standard_normal(spec.result_channels)).astype(spec.dtype)
    expected, sizes = oracle(spec, x, w, bias), magnitudes(spec, x, w, bias)
    assert np.isfinite(x).all()
    assert np.isfinite(sizes.astype(spec.dtype)).all()
    return x, w, bias, expected, sizes


def check(spec: ConvSpec, solver: Solver) -> None:
    """The errors of all kinds of data; what fails is told together."""
    numerics = solver.estimate(spec, BACKEND.target()).numerics
    wrong = []
    for kind in KINDS:
        x, w, bias, expected, sizes = posed(spec, kind)
        error = relative_error(spec, compute(solver, spec, x, w, bias), expected, sizes)
        bound = error_bound(spec, numerics, worst_case=kind != "random")
        if not error <= bound:
            wrong.append(f"{kind}: error {error:.2e} above {bound:.2e}")
        if kind == "random" and not error >= bound / SHARP:
            wrong.append(f"{kind}: error {error:.2e} far below {bound:.2e}")
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize(("text", "name"), taken(SPECS))
def test_errors_are_within_their_model(text: str, name: str) -> None:
    check(ConvSpec.parse(text), SOLVERS[name])


# Problems of few and of many products, results and columns of a library's matrix products.
REFERENCE_SPECS = [
    *SPECS,
    "conv_f32_NCHW_n1c512k512g1_i1x1_w1x1",
    "conv_f32_NCL_n1c256k1g1_i50_w1",
    "conv_f32_NCL_n1c256k1g1_i52_w1",
    "conv_f32_NCHW_n1c20k12g1_i14x19_w3x3_p1",
    "wgrad_f32_NCHW_n1c4k4g1_i120x120_w3x3_p1",
    "wgrad_f32_NCHW_n2c9k18g9_i20x23_w3x3_p1",
    "wgrad_f64_NCHW_n1c5k5g5_i17x19_w5x3_s2_p1",
    "conv_f32_NCHW_n1c256k1g1_i9x7_w1x1",
    "conv_f32_NHWC_n1c20k8g1_i14x19_w3x3_p1",
    "conv_f32_NCHW_n1c300k20g1_i14x19_w3x3_p1",
    "conv_f64_NHWC_n1c300k4g1_i14x19_w3x3_p1",
    "conv_f64_NCHW_n1c128k12g1_i21x20_w5x5_p2",
    "conv_f32_NCL_n1c1024k8g1_i101_w3_p1",
    "conv_f32_NLC_n1c128k20g1_i101_w3_p1",
    "wgrad_f32_NCHW_n2c2k8g1_i14x19_w3x3_p1",
]
# A product of one row, whose columns a BLAS sums in lanes but for the last: its bound is theirs,
# which are summed one by one.
BLUNT = {("conv_f32_NCL_n1c256k1g1_i50_w1", "scipy.gemm"): 4 * SHARP}
REFERENCE: dict[str, Solver] = {solver.id: solver for solver in ScipyBackend().solvers()}


@pytest.mark.parametrize(
    ("text", "name"), taken(REFERENCE_SPECS, REFERENCE, ScipyBackend().target())
)
def test_the_reference_is_within_its_model_too(text: str, name: str) -> None:
    spec, target, solver = ConvSpec.parse(text), ScipyBackend().target(), REFERENCE[name]
    x, w, bias, *exact = posed(spec, "random")
    executable = solver.plan(spec, target, next(iter(solver.configs(spec, target)), ()))
    out = np.empty(spec.result_shape, spec.dtype)
    workspace = np.empty(executable.workspace, np.uint8) if executable.workspace else None
    executable.run(x, executable.pack(w), bias, out, workspace)
    error = relative_error(spec, out, *exact)
    bound = error_bound(spec, solver.estimate(spec, target).numerics)
    assert bound / BLUNT.get((text, name), SHARP) <= error <= bound


def test_every_solver_and_tile_is_tried() -> None:
    assert {name for _, name in taken(SPECS)} == set(SOLVERS)
    for name, solver in SOLVERS.items():
        if solver.algorithm == "winograd":
            tried = {ConvSpec.parse(text).ndim for text, other in taken(SPECS) if other == name}
            assert tried == {1, 2, 3}, name


def _lanes(dtype: str) -> int:
    return targets.tiles(targets.codegen().isa, dtype)[0].vl


def _shapes(dtype: str) -> list[fftplan.Shape]:
    """A narrow tile of every length on either axis, and the matrices that lines are folded to."""
    lanes, l1 = _lanes(dtype), problem.caches()["l1"]
    lengths = fftplan.lengths(lanes)
    high = [fftplan.Shape(n, lengths[0], False) for n in lengths]
    wide = [fftplan.Shape(lengths[0], n, False) for n in lengths[1:]]
    deep = [fftplan.Shape(lengths[0], lengths[0], False, n) for n in fftplan.lengths(1) if n < 200]
    lines = fftplan.lines(lanes, l1, targets.BITS[dtype] // 8)
    return [*deep, *high, *wide, *(shape for shape in lines if shape.points <= 1 << 13)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_length_of_a_transform(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fft, "tiling", fftplan.tiling.__wrapped__)
    short = targets.SHORT[dtype]
    solver = SOLVERS["numba.fft"]
    rng = np.random.default_rng(0)
    wrong = []
    for shape in _shapes(dtype):
        monkeypatch.setattr(fftplan, "_shapes", lambda s, lanes, l1, shape=shape: [shape])
        if shape.line:
            text = f"conv_{short}_NCL_n1c2k1g1_i{shape.points + 7}_w{shape.points // 4}"
        else:
            taps = "x".join(str(max(2, n // 4)) for n in shape.lengths)
            size = "x".join(str(n + 5 + i) for i, n in enumerate(shape.lengths))
            layout = "NCHW" if shape.depth == 1 else "NCDHW"
            text = f"conv_{short}_{layout}_n1c2k1g1_i{size}_w{taps}"
        spec = ConvSpec.parse(text)
        numerics = solver.estimate(spec, BACKEND.target()).numerics
        assert numerics.tile == shape.lengths
        for kind in ("random", "constant"):
            x, w = (np.ascontiguousarray(a, dtype=dtype) for a in KINDS[kind](rng, spec))
            exact = _exact(spec, x, w)
            error = relative_error(spec, compute(solver, spec, x, w, None), *exact)
            bound = error_bound(spec, numerics, worst_case=kind != "random")
            if not error <= bound:
                wrong.append(f"{shape}, {kind}: error {error:.2e} above {bound:.2e}")
    assert not wrong, "\n".join(wrong)


def _exact(spec: ConvSpec, x: Any, w: Any) -> Arrays:
    """As the oracle gives it, by a transform in extended precision: long sums take it too long."""

    def correlate(x: Any, w: Any) -> Any:
        axes = tuple(range(2, x.ndim))
        spectrum = scipy.fft.rfftn(x.astype(np.longdouble), axes=axes)
        other = scipy.fft.rfftn(w.astype(np.longdouble), s=x.shape[2:], axes=axes)
        product = (spectrum * other.conj()).sum(axis=1, keepdims=True)
        whole = scipy.fft.irfftn(product, s=x.shape[2:], axes=axes)
        return whole[(..., *(slice(n) for n in spec.out_size))].astype(np.float64)

    return correlate(x, w), correlate(np.abs(x), np.abs(w))


def test_the_reference_of_long_sums() -> None:
    spec = ConvSpec.parse("conv_f64_NCHW_n1c2k1g1_i17x19_w5x3")
    x, w = _random(np.random.default_rng(0), spec)
    for ours, theirs in zip(_exact(spec, x, w), (oracle, magnitudes), strict=True):
        np.testing.assert_allclose(ours, np.asarray(theirs(spec, x, w), np.float64), rtol=1e-12)


# -------------------------------------------------------------------- precision=

# Problems for which a transform is predicted to be much faster.
LAYERS = [
    f"{direction}_{dtype}_{layout}"
    for direction in ("conv", "igrad", "wgrad", "convt")
    for dtype in ("f32", "f64", "f16", "c64")
    for layout in (
        "NCHW_n1c128k128g1_i28x28_w3x3_p1",
        "NHWC_n1c128k128g1_i28x28_w3x3_p1",
        "NCHW_n1c64k64g1_i56x56_w5x5_p2",
        "NCHW_n1c1k1g1_i512x512_w31x31_p15",
        "NCL_n1c1k1g1_i100000_w5000",
        "NCDHW_n1c64k64g1_i16x16x16_w3x3x3_p1",
    )
]


def _chosen(spec: ConvSpec, **policy: str) -> list[dispatch.Candidate]:
    request = Request(backend="numba", policy=Policy(**policy))
    return [c for c in dispatch.candidates(spec, request) if c.refusal is None]


def test_exact_admits_sums_of_products_alone() -> None:
    specs = [ConvSpec.parse(text) for text in LAYERS] + [case.spec for case in CASES]
    for spec in specs:
        for candidate in _chosen(spec, precision="exact"):
            assert candidate.algorithm not in ("winograd", "fft"), (str(spec), candidate.label)
            assert candidate.work is not None
            assert candidate.work.numerics.is_summation, (str(spec), candidate.label)


def test_other_precisions_do_choose_transforms() -> None:
    """The grid above has what "exact" must rule out."""
    chosen = {
        (precision, _chosen(ConvSpec.parse(text), precision=precision)[0].algorithm)
        for text in LAYERS
        for precision in ("default", "fast")
    }
    assert {(p, a) for p in ("default", "fast") for a in ("winograd", "fft")} <= chosen


@pytest.mark.parametrize("algorithm", ["winograd", "fft"])
def test_exact_refuses_a_transform_that_is_asked_for(algorithm: str) -> None:
    x, w = np.ones((1, 8, 20, 20), np.float32), np.ones((8, 8, 3, 3), np.float32)
    with pytest.raises(convjit.UnsupportedError, match="exact"):
        convjit.conv(x, w, algorithm=algorithm, backend="numba", precision="exact")


# -------------------------------------------------------------------- nonfinite=

NONFINITE = [
    "conv_f32_NCHW_n2c3k4g1_i21x25_w3x3_p1_bias",
    "conv_f64_NHWC_n2c3k4g1_i21x25_w5x5_p2",
    "conv_f32_NCHW_n2c4k4g4_i21x25_w3x3_p1",
    "conv_f32_NHWC_n2c4k4g4_i21x25_w3x3_p1",
    "conv_f32_NCL_n2c1k1g1_i400_w31",
]
VALUES = [(np.nan,), (np.inf,), (-np.inf,), (np.inf, -np.inf)]


def _marked(spec: ConvSpec, values: tuple[float, ...]) -> Any:
    """Operands, with values in neighbouring samples of the first image, and where they are."""
    rng = np.random.default_rng(0)
    x, w = (a.astype(spec.dtype) for a in _random(rng, spec))
    bias = rng.standard_normal(spec.result_channels).astype(spec.dtype) if spec.bias else None
    image = x[0] if not spec.channels_last else np.moveaxis(x[0], -1, 0)
    for i, value in enumerate(values):
        image[(0, *[4] * (spec.ndim - 1), 7 + i)] = value
    return x, w, bias


def _call(spec: ConvSpec, x: Any, w: Any, bias: Any, solver: str, nonfinite: str) -> Any:
    return convjit.conv(
        x, w, bias, padding=spec.padding, groups=spec.groups, layout=spec.layout,
        activation=spec.activation, backend="numba", algorithm=solver, precision="fast",
        nonfinite=nonfinite,
    )  # fmt: skip


@pytest.mark.parametrize("values", VALUES, ids=str)
@pytest.mark.parametrize(("text", "name"), taken(NONFINITE))
def test_in_the_data(text: str, name: str, values: tuple[float, ...]) -> None:
    """What the definition reaches is not finite; under "local" all else is, and right."""
    spec = ConvSpec.parse(text)
    x, w, bias = _marked(spec, values)
    expected, sizes = oracle(spec, x, w, bias), magnitudes(spec, x, w, bias)
    reached = ~np.isfinite(expected)
    assert reached.any()
    assert not reached.all()
    spreads = SOLVERS[name].estimate(spec, BACKEND.target()).numerics.spreads_nonfinite

    local = _call(spec, x, w, bias, name, "local")
    # Infinities keep their signs, and opposite ones meet in a NaN.
    bound = error_bound(spec, SOLVERS[name].estimate(spec, BACKEND.target()).numerics)
    assert relative_error(spec, local, expected, sizes) <= bound

    spread = _call(spec, x, w, bias, name, "spread")
    assert not np.isfinite(spread[reached]).any()
    if not spreads:
        assert np.array_equal(spread, local, equal_nan=True)


@pytest.mark.parametrize("nonfinite", ["local", "spread"])
@pytest.mark.parametrize(("text", "name"), taken(NONFINITE[:4]))
def test_in_the_weights(text: str, name: str, nonfinite: str) -> None:
    """A NaN of one output channel stays in it; it may reach the zeros of the border there."""
    spec = ConvSpec.parse(text)
    x, w, bias = _marked(spec, ())
    w[1, 0, 0, 2] = np.nan
    result, expected = _call(spec, x, w, bias, name, nonfinite), oracle(spec, x, w, bias)
    assert np.isnan(result[np.isnan(expected)]).all()
    others = np.arange(spec.out_channels) != 1
    kept = result[:, others] if not spec.channels_last else result[..., others]
    if nonfinite == "local":
        assert np.isfinite(kept).all()


@pytest.mark.parametrize(
    "activation", [("relu",), ("leaky_relu", 0.5), ("clip", -1.0, 1.0)], ids=str
)
@pytest.mark.parametrize(("text", "name"), taken(NONFINITE))
def test_a_nan_passes_the_activation(text: str, name: str, activation: tuple[Any, ...]) -> None:
    spec = ConvSpec.parse(text).replace(activation=activation)
    x, w, bias = _marked(spec, (np.nan,))
    reached = np.isnan(oracle(spec, x, w, bias))
    assert np.array_equal(np.isnan(_call(spec, x, w, bias, name, "local")), reached)
    assert np.isnan(_call(spec, x, w, bias, name, "spread")[reached]).all()


TRANSFORMS = [name for name, s in SOLVERS.items() if s.algorithm in ("winograd", "fft")]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_local_mends_what_overflows_in_a_transform(name: str) -> None:
    """Finite data whose transform is not: under "local" the results are those of a sum."""
    taps = 5 if name.endswith("x5") else 3
    x = np.full((1, 1, 40, 40), 3e38, np.float32) * (-1) ** np.indices((40, 40)).sum(0)
    x = x.astype(np.float32)
    w = np.zeros((1, 1, taps, taps), np.float32)
    w[0, 0, 1, 1] = 0.25
    spec = ConvSpec.parse(f"conv_f32_NCHW_n1c1k1g1_i40x40_w{taps}x{taps}")
    result = _call(spec, x, w, None, name, "local")
    assert np.array_equal(result, x[:, :, 1 : 42 - taps, 1 : 42 - taps] * np.float32(0.25))


def test_a_guarded_problem_is_the_problem_asked_for() -> None:
    """What keeps values local beside a transform is chosen under the same policy."""
    request = Request(backend="numba", policy=Policy(nonfinite="local"))
    for text in LAYERS[:6]:
        first = dispatch.candidates(ConvSpec.parse(text), request)[0]
        assert first.refusal is None
        assert first.work is not None
        assert not first.work.numerics.spreads_nonfinite
        assert first.error_bound is not None
        exact = replace(request, policy=replace(request.policy, precision="exact"))
        assert dispatch.candidates(ConvSpec.parse(text), exact)[0].refusal is None

"""The scipy backend's solvers by themselves: refuse, estimate, plan, pack and run on specs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from convjit import precision
from convjit.algorithms import error as error_model
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.spec import ConvSpec, Direction
from convjit.spi import SPI_VERSION, Backend, Executable, Feature, Solver, Work
from convjit.testing.cases import Case, Operands
from convjit.testing.strategies import specs
from convjit_scipy import ScipyBackend

BACKEND = ScipyBackend()
TARGET = BACKEND.target()
SOLVERS = {solver.id: solver for solver in BACKEND.solvers()}


def run(executable: Executable, spec: ConvSpec, operands: Operands) -> Any:
    """The result, computed in poisoned memory that ends where the workspace does."""
    out = np.empty(spec.result_shape, precision.numpy_dtype(spec.result_dtype))
    out.view(np.uint8)[...] = 0xFF
    size = executable.workspace
    room = np.full(size + 128, 0xFF, np.uint8)
    start = -room.ctypes.data % 64
    workspace = room[start : start + size] if size else None
    packed = executable.pack(operands.rhs)
    executable.run(operands.lhs, packed, operands.bias, out, workspace)
    assert (room[start + size :] == 0xFF).all()
    return out


def check(solver: Solver, spec: ConvSpec, every_config: bool = False) -> None:
    assert solver.refuse(spec, TARGET) is None
    work = solver.estimate(spec, TARGET)
    operands = Case("solver", spec).operands()
    lhs, rhs, bias = operands
    expected, scale = oracle(spec, lhs, rhs, bias), magnitudes(spec, lhs, rhs, bias)
    bound = error_model.error_bound(spec, work.numerics)
    configs = list(solver.configs(spec, TARGET))
    for config in configs if every_config else configs[:1]:
        executable = solver.plan(spec, TARGET, config)
        if config == configs[0]:
            assert executable.workspace == work.workspace
        out = run(executable, spec, operands)
        assert error_model.relative_error(spec, out, expected, scale) <= bound
    check_work(work)


def check_work(work: Work) -> None:
    pack = () if work.pack is None else (work.pack,)
    for phase in (*work.phases, *pack):
        assert phase.flops >= 0
        assert all(moved >= 0 for moved in phase.bytes.values())
        assert not phase.flops or phase.rate in TARGET.rates
    assert work.launches >= 1


def test_the_backend_is_one() -> None:
    assert isinstance(BACKEND, Backend)
    assert BACKEND.spi_version == SPI_VERSION
    assert BACKEND.probe() is None
    assert BACKEND.array_namespace() is np
    assert set(SOLVERS) >= {"scipy.gemm", "scipy.fft", "scipy.direct"}
    assert all(isinstance(solver, Solver) for solver in SOLVERS.values())


def test_the_target_has_the_threads_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    from convjit import spi

    monkeypatch.setattr(spi, "num_threads", lambda: 3)
    more = BACKEND.target()
    monkeypatch.setattr(spi, "num_threads", lambda: 1)
    one = BACKEND.target()
    assert (more.cores, one.cores) == (3, 1)
    assert more.fingerprint != one.fingerprint
    assert more.rates["scipy.gemm.float32"] == 3 * one.rates["scipy.gemm.float32"]
    assert more.rates["scipy.direct.int64"] == one.rates["scipy.direct.int64"]  # NumPy's loops


@settings(max_examples=150, deadline=None)
@given(specs())
def test_direct_takes_everything(spec: ConvSpec) -> None:
    check(SOLVERS["scipy.direct"], spec)


@settings(max_examples=150, deadline=None)
@given(specs(("float32", "float64", "complex64", "complex128")))
def test_every_solver_is_right_or_refuses(spec: ConvSpec) -> None:
    for solver in BACKEND.solvers():
        refusal = solver.refuse(spec, TARGET)
        if refusal is None:
            check(solver, spec, every_config=True)
        else:
            assert solver.id != "scipy.direct"
            assert len(refusal.reason) > 20


@pytest.mark.parametrize("solver", ["scipy.gemm", "scipy.fft", "scipy.direct"])
@pytest.mark.parametrize(
    "text",
    [
        "conv_f32_NCHW_n2c32k32g1_i28x28_w3x3_p1_bias_act=relu",
        "conv_f32_NCHW_n1c32k32g32_i40x40_w5x5_p2",
        "conv_f32_NCHW_n1c1k1g1_i300x200_w11x11_p5",
        "conv_f64_NCL_n2c3k5g1_i5000_w33_s2",
        "conv_c64_NCDHW_n1c2k3g1_i12x13x14_w3x4x5_p1x2x0",
    ],
)
def test_larger_problems(solver: str, text: str) -> None:
    check(SOLVERS[solver], ConvSpec.parse(text), every_config=True)


def test_gemm_is_native_in_every_direction() -> None:
    for direction in Direction:
        spec = ConvSpec.parse("conv_f32_NCHW_n3c8k6g2_i20x19_w3x3_s2_p1_d2")
        check(SOLVERS["scipy.gemm"], spec.replace(direction=direction), every_config=True)


@pytest.mark.parametrize("direction", Direction)
def test_direct_takes_empty_operands(direction: Direction) -> None:
    solver = SOLVERS["scipy.direct"]
    for n, c, k in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        spec = ConvSpec.forward((n, c, 5), (k, c, 2), direction=direction)
        out = run(solver.plan(spec, TARGET, ()), spec, Case("empty", spec).operands())
        assert not out.any()
        check_work(solver.estimate(spec, TARGET))


def test_direct_reads_foreign_byte_orders() -> None:
    spec = ConvSpec.parse("conv_f64_NCHW_n1c2k3g1_i8x7_w3x3_p1_strided")
    lhs, rhs, bias = Case("swapped", spec).operands()
    foreign = lhs.astype(lhs.dtype.newbyteorder())
    executable = SOLVERS["scipy.direct"].plan(spec, TARGET, ())
    result = run(executable, spec, Operands(foreign, rhs, bias))
    np.testing.assert_allclose(result, oracle(spec, lhs, rhs), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_overflow_and_nan_are_data(dtype: str) -> None:
    """No warning (they are errors here), and nothing outside the receptive field."""
    spec = ConvSpec.forward((1, 1, 9), (1, 1, 3), dtype=dtype)
    x = np.ones(9, dtype)
    x[0], x[8] = np.finfo(dtype).max, np.nan
    operands = Operands(x.reshape(1, 1, 9), np.full((1, 1, 3), 2, dtype), None)
    for name in ("scipy.direct", "scipy.gemm"):
        if SOLVERS[name].refuse(spec, TARGET) is None:
            out = run(SOLVERS[name].plan(spec, TARGET, ()), spec, operands).ravel()
            assert np.isposinf(out[0])
            assert np.isnan(out[6])
            assert (out[1:6] == 6).all()


REFUSALS = [
    ("scipy.gemm", "conv_f16_NCHW_n1c1k1g1_i5x5_w3x3", Feature.DTYPE, "multiplies float32"),
    ("scipy.gemm", "conv_f32_NCHW_n1c1k1g1_i5x5_w3x3_p1_reflect", Feature.PAD_MODE, "not reflect"),
    ("scipy.gemm", "igrad_f32_NHWC_n1c1k1g1_i5x5_w3x3", Feature.LAYOUT, "not NHWC"),
    ("scipy.gemm", "igrad_f32_NCHW_n1c1k1g1_i5x5_w3x3_strided", Feature.STRIDED, "contiguous"),
    ("scipy.gemm", "conv_f32_NCHW_n0c1k1g1_i5x5_w3x3", Feature.SIZE, "empty"),
    ("scipy.fft", "conv_i32_NCHW_n1c1k1g1_i5x5_w3x3", Feature.DTYPE, "this is int32"),
    ("scipy.fft", "convt_f32_NCHW_n1c1k1g1_i5x5_w3x3", Feature.DIRECTION, "not transposed"),
    ("scipy.fft", "conv_f32_NCHW_n1c1k1g1_i5x5_w1x1", Feature.SIZE, "one tap"),
    ("scipy.fft", "conv_f32_NCHW_n1c1k1g1_i5x5_w3x3_p1_circular", Feature.PAD_MODE, "circular"),
    ("scipy.fft", "conv_f32_NHWC_n1c1k1g1_i5x5_w3x3", Feature.LAYOUT, "not NHWC"),
    ("scipy.fft", "conv_f32_NCHW_n1c0k1g1_i5x5_w3x3", Feature.SIZE, "empty"),
]


@pytest.mark.parametrize(("solver", "text", "feature", "words"), REFUSALS)
def test_refusals_name_the_feature(solver: str, text: str, feature: Feature, words: str) -> None:
    refusal = SOLVERS[solver].refuse(ConvSpec.parse(text), TARGET)
    assert refusal is not None
    assert refusal.feature is feature
    assert words in str(refusal)


def test_skipped_taps_are_not_counted() -> None:
    """Half of the taps of a 31-wide kernel on a 31-wide image read the border."""
    spec = ConvSpec.parse("conv_f32_NCL_n1c1k1g1_i31_w31_p15")
    flops = SOLVERS["scipy.direct"].estimate(spec, TARGET).flops
    assert flops == 2 * (31 * 31 - 15 * 16)
    bordered = spec.replace(pad_mode="circular")
    assert SOLVERS["scipy.direct"].estimate(bordered, TARGET).flops == spec.flops


@pytest.mark.parametrize("solver", ["scipy.gemm", "scipy.fft", "scipy.direct"])
def test_an_executable_runs_in_several_threads_at_once(solver: str) -> None:
    spec = ConvSpec.parse("conv_f64_NCHW_n2c3k4g1_i40x40_w5x5_p2_bias")
    executable = SOLVERS[solver].plan(spec, TARGET, ())
    operands = [Case("threads", spec).operands(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda o: run(executable, spec, o), operands))
    for given_, result in zip(operands, results, strict=True):
        np.testing.assert_allclose(result, oracle(spec, *given_), rtol=0, atol=1e-11)


def test_half_the_spectrum_and_packing_once() -> None:
    spec = ConvSpec.parse("conv_f32_NCHW_n1c1k1g1_i256x256_w15x15")
    work = SOLVERS["scipy.fft"].estimate(spec, TARGET)
    packed = SOLVERS["scipy.fft"].plan(spec, TARGET, ()).pack(np.ones((1, 1, 15, 15), np.float32))
    assert packed.nbytes == work.packed_bytes
    assert work.pack is not None
    assert work.numerics.spreads_nonfinite


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "symmetric"])
@pytest.mark.parametrize("direction", [Direction.TRANSPOSED, Direction.INPUT_GRAD])
def test_the_border_folds_back_within_the_bound(mode: str, direction: Direction) -> None:
    """Where the border folds back more products meet in a sample than the kernel has taps."""
    for text in ("conv_f64_NCL_n2c1k1g1_i2_w2_s2_p1", "conv_f32_NCHW_n1c2k3g1_i4x3_w3x3_p2x1"):
        spec = ConvSpec.parse(text).replace(direction=direction, pad_mode=mode)
        check(SOLVERS["scipy.direct"], spec)

"""numba.fft by itself: codelets against numpy.fft, awkward sizes and scales, memory, threads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from convjit.algorithms import cooley_tukey as ct
from convjit.algorithms.error import error_bound, relative_error
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.algorithms.workspace import aligned
from convjit.precision import COMPLEX
from convjit.spec import ConvSpec
from convjit.spi import Feature
from convjit_numba import NumbaBackend, cache, fft, fftplan, targets
from convjit_numba.executable import address

TARGET = NumbaBackend().target()
SOLVER = fft.Fft()
CANARY = 0xA5

SPECS = [
    "conv_f32_NCL_n1c1k1g1_i1_w2_p1",
    "conv_f32_NCL_n1c1k1g1_i3_w3",
    "conv_f64_NCL_n1c1k1g1_i7_w300_p299",  # the kernel is longer than the signal
    "conv_f32_NCL_n1c1k1g1_i4001_w509_p508",
    "conv_f64_NCL_n1c1k1g1_i2503_w251_p125_bias_act=relu",
    "conv_f32_NCL_n3c1k1g1_i701_w33_p0.7",
    "conv_f32_NCL_n2c4k6g2_i301_w5_p8.0_d4",
    "conv_f32_NCHW_n1c1k1g1_i1x1_w2x2_p1",
    "conv_f32_NCHW_n1c1k1g1_i111x157_w31x17_p15x3.9",
    "conv_f64_NCHW_n1c1k1g1_i20x20_w19x17_p9x8",
    "conv_f32_NCHW_n1c1k1g1_i5x7_w21x23_p20x22",
    "conv_f32_NCHW_n3c1k1g1_i37x41_w11x11_p5",
    "conv_f32_NCHW_n1c7k7g7_i33x29_w9x9_p4_bias",
    "conv_f64_NCHW_n2c6k12g3_i23x19_w7x5_p3x2_d2x3_act=leaky_relu,0.25",
    "conv_f32_NCHW_n1c5k1g1_i40x50_w9x9_p4",
    "conv_f32_NCHW_n1c1k5g1_i40x50_w9x9_p4",
    "conv_f32_NCHW_n5c9k7g1_i30x31_w5x5_p2_bias_act=clip,-1.0,2.5",
    "conv_f32_NCDHW_n1c1k1g1_i23x37x41_w9x5x7_p4x2x3",
    "conv_f64_NCDHW_n1c1k1g1_i40x9x11_w3x7x5_p2.0x3x2_bias_act=relu",
    "conv_f32_NCDHW_n2c4k6g2_i7x12x9_w3x3x3_p1_d2x1x2",
    "conv_c64_NCL_n1c1k1g1_i1_w2_p1",
    "conv_c64_NCL_n3c1k1g1_i701_w333_p0.7",
    "conv_c128_NCL_n2c4k6g2_i301_w5_p8.0_d4_bias",
    "conv_c64_NCHW_n1c1k1g1_i111x57_w31x17_p15x3.9",
    "conv_c64_NCHW_n3c3k5g1_i37x41_w11x11_p5_bias",
    "conv_c128_NCHW_n1c1k1g1_i20x20_w19x17_p9x8",
    "conv_c64_NCDHW_n1c1k1g1_i17x18x19_w9x3x5_p4x1x2",
    "conv_c128_NCDHW_n1c2k1g1_i9x8x7_w3x3x3_p1_bias",
]


def guarded(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(memory full of canaries, ``size`` aligned bytes in its middle)."""
    memory = np.full(size + 1088, CANARY, np.uint8)
    start = 512 + -(memory.ctypes.data + 512) % 64
    return memory, memory[start : start + size]


def compute(spec: ConvSpec, x, w, bias, *, cores: int = 2, config=()):
    """Plan, pack and run; nothing but the result and the workspace is written."""
    executable = SOLVER.plan(spec, replace(TARGET, cores=cores), config)
    packed = executable.pack(w)
    size = int(np.prod(spec.result_shape)) * x.itemsize
    memory, inside = guarded(size)
    scratch, workspace = guarded(executable.workspace)
    out = inside.view(spec.dtype).reshape(spec.result_shape)
    before = x.tobytes()
    executable.run(x, packed, bias, out, workspace)
    result = out.copy()
    inside[...] = CANARY
    workspace[...] = CANARY
    assert (memory == CANARY).all()
    assert (scratch == CANARY).all()
    assert x.tobytes() == before
    return result


def operands(spec: ConvSpec):
    rng = np.random.default_rng(3)

    def normal(shape):
        parts = rng.standard_normal((*shape, 2))
        is_complex = spec.dtype in COMPLEX
        return (parts @ [1, 1j] if is_complex else parts[..., 0]).astype(spec.dtype)

    x, w = normal(spec.lhs_shape), normal(spec.rhs_shape)
    return x, w, normal((spec.result_channels,)) if spec.bias else None


def check(spec: ConvSpec, result, x, w, bias) -> None:
    bound = error_bound(spec, SOLVER.estimate(spec, TARGET).numerics)
    expected, sizes = oracle(spec, x, w, bias), magnitudes(spec, x, w, bias)
    assert relative_error(spec, result, expected, sizes) <= bound


# -------------------------------------------------------------------- codelets


def _build_transform(bits: int, lanes: int):
    from convjit_numba.fftstages import build_stages
    from convjit_numba.memory import load_int

    forward, backward, through = build_stages(bits, lanes)

    def kernel(arguments, which):
        base, table = load_int(arguments), load_int(arguments + 8)
        count, spectrum = load_int(arguments + 16), load_int(arguments + 24)
        step, twist = load_int(arguments + 32), load_int(arguments + 40)
        twist_step = load_int(arguments + 48)
        if which == 0:
            forward(base, step, table, count, twist, twist_step)
        elif which == 1:
            backward(base, step, table, count, twist, twist_step)
        else:
            through(base, table, count, spectrum)

    return kernel


def _run(which: int, z: np.ndarray, dtype: str, *, spectrum=None, twist=None, gap: int = 0):
    """Stages of compiled code on (n, lanes) numbers, vectors ``gap`` cache lines apart."""
    n, lanes = z.shape
    bits = targets.BITS[dtype]
    name = f"test.fft.{bits}.{lanes}"
    kernel = cache.function(name, 2, partial(_build_transform, bits, lanes))
    step = aligned(2 * lanes * bits // 8) + 64 * gap
    memory, inside = guarded(n * step)
    data = np.lib.stride_tricks.as_strided(
        inside.view(dtype), (n, 2, lanes), (step, lanes * bits // 8, bits // 8)
    )
    data[:, 0], data[:, 1] = z.real, z.imag
    table = fft._stage_table(n, dtype)

    def planes(values):
        return np.ascontiguousarray(np.stack((values.real, values.imag), 1).astype(dtype))

    extra = [None if v is None else planes(v) for v in (spectrum, twist)]
    places = [0 if v is None else address(v) for v in extra]
    arguments = np.array(
        [
            inside.ctypes.data, address(table[0]), len(table[0]), places[0], step, places[1],
            2 * lanes * bits // 8,
        ],
        np.int64,
    )  # fmt: skip
    kernel(address(arguments), which)
    result = data[:, 0].astype(complex) + 1j * data[:, 1]
    data[...] = np.frombuffer(bytes([CANARY] * (bits // 8)), dtype)[0]
    assert (memory == CANARY).all()
    return result


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [*ct.LAST_RADICES, 12, 20, 24, 32, 40, 48, 64, 120, 240, 512])
def test_compiled_transforms(n: int, dtype: str) -> None:
    lanes = targets.tiles(targets.codegen().isa, dtype)[0].vl
    rng = np.random.default_rng(n)
    z, h, t = (rng.standard_normal((3, n, lanes, 2)) @ [1, 1j]).astype(
        "complex64" if dtype == "float32" else complex
    )
    order = ct.frequencies(ct.factors(n))
    tolerance = 4e-7 * n**0.5 if dtype == "float32" else 8e-16 * n**0.5
    spectrum = np.fft.fft(z, axis=0)[order]
    near = partial(np.testing.assert_allclose, rtol=0)
    near(_run(0, z, dtype), spectrum, atol=tolerance * 4)
    near(_run(0, z, dtype, gap=1, twist=t), spectrum * t, atol=tolerance * 16)
    back = np.empty_like(z, complex)
    back[order] = z
    near(_run(1, z, dtype, gap=3), np.fft.ifft(back, axis=0) * n, atol=tolerance * 4)
    back[order] = z * t.conj()
    near(_run(1, z, dtype, twist=t), np.fft.ifft(back, axis=0) * n, atol=tolerance * 16)
    back[order] = spectrum * h
    near(_run(2, z, dtype, spectrum=h), np.fft.ifft(back, axis=0) * n, atol=tolerance * n * 8)


# -------------------------------------------------------------------- the solver


@pytest.mark.parametrize("text", SPECS)
def test_matches_the_oracle_and_stays_inside(text: str) -> None:
    spec = ConvSpec.parse(text)
    assert SOLVER.refuse(spec, TARGET) is None
    x, w, bias = operands(spec)
    result = compute(spec, x, w, bias)
    check(spec, result, x, w, bias)
    for cores in (1, 3):
        assert np.array_equal(compute(spec, x, w, bias, cores=cores), result)
    for config in list(SOLVER.configs(spec, TARGET))[1:]:
        assert np.array_equal(compute(spec, x, w, bias, config=config), result)


@pytest.mark.parametrize("scales", [(1e30, 1e-30), (1e-30, 1e30), (1e-30, 1.0), (1e30, 1.0)])
def test_badly_scaled_operands(scales: tuple[float, float]) -> None:
    spec = ConvSpec.parse("conv_f32_NCHW_n1c1k1g1_i70x80_w13x13_p6")
    x, w, _ = operands(spec)
    x, w = x * np.float32(scales[0]), w * np.float32(scales[1])
    check(spec, compute(spec, x, w, None), x, w, None)


def test_estimate_is_what_is_planned() -> None:
    for text in SPECS:
        spec = ConvSpec.parse(text)
        work, executable = SOLVER.estimate(spec, TARGET), SOLVER.plan(spec, TARGET, ())
        assert work.workspace == executable.workspace
        assert work.packed_bytes == executable.pack(operands(spec)[1]).nbytes
        assert work.flops > 0


def test_tiles_cover_every_output() -> None:
    for text in SPECS:
        signal = fftplan.Signal.of(ConvSpec.parse(text))
        for isa in targets.MACHINES:
            t = fftplan.tiling(signal, isa, 2)
            assert t is not None
            for outputs, count, wanted in zip(t.outputs, t.counts, signal.p.out, strict=True):
                assert wanted <= outputs * count < wanted + outputs


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("conv_f32_NCHW_n1c1k1g1_i30x30_w1x1", Feature.SIZE),
        ("conv_f32_NCHW_n1c1k1g1_i30x30_w3x3_s2", Feature.STRIDE),
        ("conv_f32_NCDHW_n1c1k1g1_i9x9x9_w1x3x3", Feature.NDIM),
        ("conv_i16_NCHW_n1c1k1g1_i30x30_w3x3", Feature.DTYPE),
        ("conv_f32_NCHW_n1c1k1g1_i5000x9_w4000x3", Feature.SIZE),
        ("conv_f64_NCL_n1c1k1g1_i9000000_w8000000", Feature.SIZE),
    ],
)
def test_refuses(text: str, feature: Feature) -> None:
    refusal = SOLVER.refuse(ConvSpec.parse(text), TARGET)
    assert refusal is not None
    assert refusal.feature is feature

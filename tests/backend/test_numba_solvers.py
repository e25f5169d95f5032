"""The numba solvers by themselves: right, within bounds, independent of blocking and threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

from convjit.algorithms.error import error_bound, relative_error
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.spec import ConvSpec
from convjit.spi import Backend, Feature, Solver
from convjit_numba import NumbaBackend, problem, targets

BACKEND = NumbaBackend()
SOLVERS = {solver.id: solver for solver in BACKEND.solvers()}
PANELS = ("numba.direct", "numba.gemm")  # what they refuse and count is alike

SPECS = [
    "conv_f32_NCHW_n1c1k1g1_i1x1_w1x1",
    "conv_f32_NCHW_n2c3k5g1_i9x11_w3x3_p1",
    "conv_f32_NCHW_n1c64k64g1_i28x28_w3x3_p1_bias_act=relu",
    "conv_f32_NCHW_n1c37k29g1_i7x7_w3x3_p1_bias_act=leaky_relu,0.25",
    "conv_f32_NCHW_n1c130k67g1_i13x9_w1x1_bias_act=clip,-1.0,2.5",
    "conv_f32_NCHW_n3c8k12g1_i15x14_w1x1_s2",
    "conv_f32_NCHW_n2c5k7g1_i13x17_w3x2_s2x3_p1x0.2_d2x1",
    "conv_f32_NCHW_n1c3k16g1_i31x33_w7x7_s2_p3",
    "conv_f32_NCHW_n1c1k1g1_i70x600_w11x11_p5",
    "conv_f32_NCHW_n1c1k3g1_i20x20_w19x17_p9x8",
    "conv_f32_NCHW_n1c4k4g1_i6x6_w3x3_p5x4_d3",
    "conv_f32_NCHW_n2c24k24g24_i19x21_w3x3_p1_bias",
    "conv_f32_NCHW_n1c6k18g6_i14x14_w5x5_s2_p2",
    "conv_f32_NCHW_n2c12k20g4_i8x9_w3x3_p1",
    "conv_f32_NCHW_n1c700k13g1_i5x6_w3x3_p1_bias_act=relu",
    "conv_f32_NCL_n2c4k6g2_i3001_w5_p8.0_d4",
    "conv_f32_NCL_n1c1k1g1_i400_w300_p3",
    "conv_f32_NCDHW_n1c5k9g1_i6x7x8_w3x3x3_p1_s1x2x1",
    "conv_f64_NCHW_n1c33k20g1_i17x12_w3x3_p1_bias",
    "conv_f64_NCHW_n1c300k11g1_i9x9_w1x1",
    "conv_f64_NCDHW_n2c4k6g2_i5x6x7_w3x2x3_p1_d1x2x1_act=relu",
    "conv_f64_NCL_n3c2k2g2_i50_w3_s3",
    "conv_f32_NCHW_n3c33k65g1_i13x30_w3x3_p1_bias_act=relu",
    "conv_f32_NCHW_n1c18k34g2_i25x7_w5x5_p2_bias_act=leaky_relu,0.25",
    "conv_f32_NCHW_n2c20k40g1_i9x21_w1x3_p0x1",
    "conv_f32_NCHW_n2c16k16g1_i9x21_w2x2_p1",
    "conv_f32_NCL_n2c16k24g1_i101_w5_p2",
    "conv_f32_NCDHW_n1c17k18g1_i5x9x7_w3x3x3_p1_bias",
    "conv_f64_NCHW_n1c9k17g1_i11x19_w3x3_p2x0_act=relu",
    # channels-first planes by vectors of channels: too few for one, in classes of columns
    # and blocks of them, and volumes that are flat but for their padding
    "conv_f32_NCHW_n2c37k37g37_i9x23_w7x5_s2x1_p3x6_d1x2_bias_act=relu",
    "conv_f64_NCHW_n1c5k5g5_i6x7_w9x9_p8_bias",
    "conv_f32_NCL_n1c21k21g21_i3000_w9_p4_d3",
    "conv_f32_NCDHW_n1c18k18g18_i1x7x8_w1x3x3_p1",
    # dilated: tiles whose outputs alternate, fewer outputs than that, rows served in parts
    "conv_f32_NCHW_n2c18k20g2_i19x37_w3x3_p2_d2_bias_act=relu",
    "conv_f32_NCHW_n1c17k18g1_i23x50_w3x3_p6x5_d6x5",
    "conv_f32_NCHW_n1c5k6g1_i9x8_w3x3_p12x7_d12x7",
    "conv_f32_NCHW_n2c7k9g1_i30x1_w3x1_p4x0_d4x1_bias",
    "conv_f32_NCL_n2c17k24g1_i701_w2_p96.0_d96",
    "conv_f64_NCL_n1c17k5g1_i1500_w3_p67_d67",
    "conv_f32_NCDHW_n1c3k5g1_i9x7x11_w3x3x3_p2x2x3_d2x1x3_bias",
    "conv_f32_NHWC_n2c18k20g2_i19x37_w3x3_p2_d2_bias_act=relu",
    "conv_f32_NHWC_n1c33k18g1_i23x50_w3x3_p6x5_d6x5",
    # dilated so far that tiles end where taps begin to meet the image
    "conv_f32_NCHW_n1c70k40g1_i21x25_w3x3_p9_d9_bias_act=relu",
    "conv_f32_NHWC_n2c70k83g1_i21x25_w3x3_p9x8_d9x8_bias",
    "conv_f64_NHWC_n1c33k20g1_i14x28_w3x3_s1x2_p10_d10",
    # a task computes all groups of its pixels, or some of them
    "conv_f32_NHWC_n2c27k84g3_i40x29_w3x3_p1_bias",
    # images of one pixel, whose channels are neighbours in either layout
    "conv_f32_NCHW_n3c70k33g1_i1x1_w1x1_bias_act=relu",
    "conv_f32_NCHW_n2c20k36g2_i1x1_w3x3_p1_bias",
    "conv_f64_NCHW_n2c20k36g2_i3x3_w3x3",  # one pixel of many
    "conv_f32_NCHW_n2c84k144g12_i13x21_w3x3_p1_bias_act=relu",
    "conv_f64_NCDHW_n1c64k64g8_i3x9x14_w3x3x3_s1x2x2_p1",
    "conv_f32_NCHW_n1c1600k24g8_i5x6_w3x3_p1",  # their channels in several passes besides
    "conv_f32_NLC_n2c17k24g1_i701_w2_p96.0_d96_bias",
    "conv_f64_NDHWC_n1c3k5g1_i9x7x11_w3x3x3_p2x2x3_d2x1x3",
    "conv_f32_NHWC_n3c33k65g1_i13x30_w3x3_p1_bias_act=relu",
    "conv_f32_NHWC_n1c18k34g2_i25x7_w5x5_p2_bias_act=leaky_relu,0.25",
    "conv_f32_NHWC_n2c3k40g1_i9x21_w3x3_s2_p1_d2",
    "conv_f32_NHWC_n1c70k100g1_i7x7_w1x1_bias",
    "conv_f32_NLC_n2c16k24g1_i101_w5_p2",
    "conv_f32_NDHWC_n1c17k18g1_i5x9x7_w3x3x3_p1_bias",
    "conv_f64_NHWC_n1c9k17g1_i11x19_w3x3_p2x0_act=relu",
    "conv_f32_NHWC_n2c24k24g24_i19x21_w3x3_p1_bias",
    "conv_f32_NHWC_n2c1k1g1_i9x30_w3x3_p1_bias_act=relu",
    "conv_f32_NHWC_n1c1k7g1_i9x8_w2x3_p1_bias",
    "conv_f32_NHWC_n2c3k3g3_i11x31_w5x5_p2_act=clip,-1.0,2.5",
    "conv_f32_NHWC_n1c15k15g15_i12x17_w3x3_s2_p1_bias_act=leaky_relu,0.25",
    "conv_f32_NHWC_n1c16k32g16_i14x9_w3x3_p1_bias",
    "conv_f32_NHWC_n2c17k51g17_i8x13_w3x2_s1x3_p1_bias_act=relu",
    "conv_f32_NHWC_n1c33k330g33_i5x9_w3x3_p1_bias",
    "conv_f32_NHWC_n1c33k33g33_i20x33_w3x5_s2x3_p1x6.0_d3x2",
    "conv_f32_NHWC_n1c40k40g40_i7x7_w3x3_p9x8_d6x4",
    "conv_f32_NHWC_n1c20k20g20_i14x14_w27x27_p13_bias",
    "conv_f32_NHWC_n1c20k20g20_i40x37_w31x31_p15",
    "conv_f32_NLC_n2c24k24g24_i301_w9_p8.0_d4",
    "conv_f32_NDHWC_n2c18k18g18_i6x7x8_w3x3x3_p1_s1x2x1_bias",
    "conv_f64_NHWC_n1c33k66g33_i9x17_w3x3_p1_bias_act=relu",
    "conv_f64_NHWC_n1c9k9g9_i9x17_w7x7_s2_p3",
    "convt_f32_NCHW_n1c1k1g1_i2x2_w1x1_s2",
    "convt_f32_NCHW_n1c70k40g1_i56x30_w2x2_s2_bias_act=relu",
    "convt_f32_NCHW_n3c18k34g2_i15x31_w4x3_s2x3_p1x0.2_d1x2_bias",
    "convt_f32_NCHW_n2c5k130g1_i33x130_w3x3_s2_p1",
    "convt_f32_NCHW_n5c67k20g1_i4x4_w4x4",
    "convt_f32_NCHW_n2c33k700g1_i9x8_w4x4_s2_p1_bias_act=leaky_relu,0.25",
    "convt_f32_NCL_n2c20k24g1_i3001_w9_s4_p4",
    "convt_f64_NCDHW_n2c9k7g1_i5x7x6_w3x2x3_s2x1x2_p1_d1x2x1_bias",
    "convt_f32_NHWC_n1c64k40g1_i56x30_w2x2_s2_bias_act=relu",
    "convt_f32_NHWC_n3c18k34g2_i15x31_w4x3_s2x3_p1x0.2_d1x2_bias",
    "convt_f32_NHWC_n2c160k33g1_i13x29_w3x3_s2_p1",
    "convt_f32_NHWC_n5c67k20g1_i4x4_w4x4",
    "convt_f64_NDHWC_n2c16k7g1_i5x7x60_w3x2x3_s2x1x2_p1_d1x2x1_bias",
    "igrad_f32_NCHW_n2c70k64g1_i14x15_w1x1_s2",
    "igrad_f32_NHWC_n2c64k70g1_i14x15_w1x1_s2",
    "wgrad_f32_NCHW_n1c1k1g1_i1x1_w1x1",
    "wgrad_f32_NCHW_n2c20k10g1_i9x8_w3x3_p1",
    "wgrad_f64_NCHW_n3c70k13g1_i9x8_w3x2_s2x3_p1.2x1_d1x2",
    "wgrad_f32_NCHW_n2c6k10g2_i30x31_w7x7_s2_p3",
    "wgrad_f32_NCHW_n1c100k130g1_i56x56_w1x1",
    "wgrad_f32_NCHW_n2c64k70g1_i14x14_w1x1_s2",
    "wgrad_f32_NCHW_n2c20k10g1_i9x8_w1x3_p9_s4",
    "wgrad_f32_NCHW_n1c1k1g1_i60x600_w5x5",
    "wgrad_f32_NCHW_n2c8k16g8_i12x12_w3x3_p1",
    "wgrad_f32_NCL_n1c17k9g1_i3000_w9_p4",
    "wgrad_f64_NCDHW_n2c20k7g1_i5x7x6_w3x2x3_s2x1x1_p1_d1x2x1",
    "wgrad_f32_NHWC_n2c20k10g1_i9x8_w3x3_p9_d6",
    "wgrad_f64_NHWC_n3c70k13g1_i9x8_w3x2_s2x3_p1.2x1_d1x2",
    "wgrad_f32_NHWC_n2c6k10g2_i30x31_w7x7_s2_p3",
    "wgrad_f32_NHWC_n1c64k20g1_i60x60_w3x3_p1",
    "wgrad_f32_NHWC_n2c8k16g8_i12x12_w3x3_p1",
    "wgrad_f32_NHWC_n3c96k14g2_i21x19_w1x1",  # x in place: groups, strides, padding, planes
    "wgrad_f32_NHWC_n2c32k40g1_i21x19_w1x1_s2x3_p1x2",
    "wgrad_f64_NDHWC_n2c24k7g1_i5x7x6_w1x1x1_s2x1x2_p1",
    "wgrad_f32_NHWC_n1c8k19g1_i40x31_w1x1",
    "wgrad_f32_NLC_n1c17k9g1_i3000_w9_p4",
    "wgrad_f64_NDHWC_n2c20k7g1_i5x7x6_w3x2x3_s2x1x1_p1_d1x2x1",
]


def taken(specs: list[str]) -> list[tuple[str, str]]:
    """Every spec with every solver that does not refuse it."""
    target = BACKEND.target()
    return [
        (text, name)
        for text in specs
        for name, solver in SOLVERS.items()
        if solver.refuse(ConvSpec.parse(text), target) is None
    ]


class Guarded:
    """An array between canaries, which say whether anything was written beside it."""

    CANARY = 0xA5
    MARGIN = 512

    def __init__(self, shape: tuple[int, ...], dtype: object) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.memory = np.full(size + 2 * self.MARGIN + 64, self.CANARY, np.uint8)
        start = self.MARGIN + -(self.memory.ctypes.data + self.MARGIN) % 64
        self.inside = slice(start, start + size)
        self.array = self.memory[self.inside].view(dtype).reshape(shape)

    def fill(self, values: np.ndarray) -> Guarded:
        self.array[...] = values
        self.before = self.array.copy()
        return self

    def intact(self) -> bool:
        outside = np.delete(self.memory, self.inside)
        return bool((outside == self.CANARY).all())

    def unchanged(self) -> bool:
        return self.intact() and self.array.tobytes() == self.before.tobytes()


def operands(spec: ConvSpec, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(spec.lhs_shape).astype(spec.dtype)
    w = rng.standard_normal(spec.rhs_shape).astype(spec.dtype)
    bias = rng.standard_normal(spec.result_channels).astype(spec.dtype) if spec.bias else None
    return x, w, bias


def compute(solver: Solver, spec: ConvSpec, x, w, bias=None, *, cores=None, config=()):
    """Plan, pack and run as the core does, with canaries around everything."""
    target = BACKEND.target()
    if cores is not None:
        target = replace(target, cores=cores)
    executable = solver.plan(spec, target, config)
    gx = Guarded(spec.lhs_shape, spec.dtype).fill(x)
    gw = Guarded(spec.rhs_shape, spec.dtype).fill(w)
    packed = executable.pack(gw.array)
    assert gw.unchanged()
    if packed is not gw.array:
        gw.array[...] = np.nan  # the packed form is a copy
    gb = None if bias is None else Guarded(bias.shape, spec.dtype).fill(bias)
    out = Guarded(spec.result_shape, spec.result_dtype).fill(np.full(spec.result_shape, np.nan))
    workspace = Guarded((executable.workspace,), np.uint8)
    executable.run(gx.array, packed, None if gb is None else gb.array, out.array, workspace.array)
    assert gx.unchanged()
    assert gb is None or gb.unchanged()
    assert out.intact()
    assert workspace.intact()
    return out.array.copy()


def check(spec: ConvSpec, solver: Solver, result, x, w, bias) -> None:
    numerics = solver.estimate(spec, BACKEND.target()).numerics
    expected, sizes = oracle(spec, x, w, bias), magnitudes(spec, x, w, bias)
    assert result.dtype == spec.result_dtype
    assert relative_error(spec, result, expected, sizes) <= error_bound(spec, numerics)


def test_protocol() -> None:
    assert isinstance(BACKEND, Backend)
    assert BACKEND.probe() is None
    for solver in SOLVERS.values():
        assert isinstance(solver, Solver)


def test_every_solver_is_tested() -> None:
    assert {name for _, name in taken(SPECS)} >= set(SOLVERS)


@pytest.mark.parametrize(("text", "name"), taken(SPECS))
def test_matches_oracle_and_stays_inside(text: str, name: str) -> None:
    spec, solver = ConvSpec.parse(text), SOLVERS[name]
    x, w, bias = operands(spec)
    check(spec, solver, compute(solver, spec, x, w, bias), x, w, bias)


BLOCKED = [
    f"conv_{dtype}_{layout}_n1{channels}_i17x29_w{taps}_bias_act=relu"
    for dtype in ("f32", "f64")
    for layout in ("NCHW", "NHWC")
    for channels, taps in (
        ("c90k26g2", "3x3_p1"),
        ("c16k20g1", "5x5_p1"),
        ("c40k40g40", "3x3_p1"),
        ("c16k20g1", "3x2_p1_d3x5"),
        ("c50k40g1", "3x3_p9_d9"),
        ("c96k64g8", "3x3_p1"),
    )
] + [
    f"convt_{dtype}_{layout}_n3{problem}_bias_act=relu"
    for dtype in ("f32", "f64")
    for layout in ("NCHW", "NHWC")
    for problem in ("c64k900g1_i17x29_w4x4_s2_p1", "c26k90g2_i34x58_w2x2_s2")
]


@pytest.mark.parametrize(
    "step",
    [pytest.param(2, id="half"), pytest.param(1, id="all", marks=pytest.mark.exhaustive)],
)
@pytest.mark.parametrize(("text", "name"), taken(BLOCKED))
def test_every_tile_and_any_thread_count_agree_bit_by_bit(text: str, name: str, step: int) -> None:
    """The order of summation is the blocking of the channels, which nothing else changes.

    What half of the tiles do to a problem, the other half do to the next.
    """
    spec, solver = ConvSpec.parse(text), SOLVERS[name]
    x, w, bias = operands(spec)
    reference = compute(solver, spec, x, w, bias, cores=1)
    check(spec, solver, reference, x, w, bias)
    for cores in (2, 3, 7):
        assert np.array_equal(compute(solver, spec, x, w, bias, cores=cores), reference)
    first = 1 + [taking for taking, other in taken(BLOCKED) if other == name].index(text) % step
    for config in list(solver.configs(spec, BACKEND.target()))[first::step]:
        assert np.array_equal(compute(solver, spec, x, w, bias, config=config), reference)


@pytest.mark.parametrize(
    "text",
    [
        "wgrad_f32_NCHW_n1c64k26g1_i60x60_w3x3_p1",  # the sums of several parts are added
        "wgrad_f32_NHWC_n3c24k12g2_i40x41_w3x3_s2_p1",
        "wgrad_f64_NCHW_n2c150k90g1_i9x9_w3x3_p1",
        "wgrad_f32_NHWC_n2c150k90g1_i9x9_w1x1",
    ],
)
@pytest.mark.parametrize("name", ["numba.weight_grad", "numba.weight_grad.phases"])
def test_weights_gradients_do_not_depend_on_the_threads(text: str, name: str) -> None:
    spec, solver = ConvSpec.parse(text), SOLVERS[name]
    x, y, _ = operands(spec)
    reference = compute(solver, spec, x, y, cores=1)
    for cores in (2, 3, 7, 64):
        assert np.array_equal(compute(solver, spec, x, y, cores=cores), reference)
    for config in list(solver.configs(spec, BACKEND.target()))[1:]:
        check(spec, solver, compute(solver, spec, x, y, config=config), x, y, None)


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("conv_f16_NCHW_n1c1k1g1_i8x8_w3x3", Feature.DTYPE),
        ("conv_c64_NCHW_n1c1k1g1_i8x8_w3x3", Feature.DTYPE),
        ("conv_i32_NCHW_n1c1k1g1_i8x8_w3x3", Feature.DTYPE),
        ("convt_f32_NCHW_n1c1k1g1_i8x8_w3x3", Feature.DIRECTION),
        ("igrad_f32_NCHW_n1c1k1g1_i8x8_w3x3", Feature.DIRECTION),
        ("wgrad_f32_NCHW_n1c1k1g1_i8x8_w3x3", Feature.DIRECTION),
        ("conv_f32_NCHW_n1c1k1g1_i8x8_w3x3_strided", Feature.STRIDED),
        ("conv_f32_NHWC_n1c1k1g1_i8x8_w3x3", Feature.LAYOUT),
        ("conv_f32_NCHW_n1c1k1g1_i8x8_w3x3_p1_reflect", Feature.PAD_MODE),
        ("conv_f32_NCHW_n1c1k1g1_i8x8_w3x3_flip", Feature.FLIP),
    ],
)
def test_refuses_with_the_feature_to_lower(name: str, text: str, feature: Feature) -> None:
    refusal = SOLVERS[name].refuse(ConvSpec.parse(text), BACKEND.target())
    assert refusal is not None
    assert refusal.feature is feature
    assert refusal.reason


@pytest.mark.parametrize(
    ("text", "name"),
    taken(
        [
            f"conv_f32_{layout}_n1{channels}_i12x30_w3x3_p1_bias"
            for layout in ("NCHW", "NHWC")
            for channels in ("c2k7g1", "c5k5g5")
        ]
    ),
)
def test_nan_passes_activations_and_stays_local(text: str, name: str) -> None:
    spec, solver = ConvSpec.parse(text), SOLVERS[name]
    spreads = solver.estimate(spec, BACKEND.target()).numerics.spreads_nonfinite
    for activation in (("relu",), ("leaky_relu", 0.5), ("clip", -1.0, 1.0)):
        spec = spec.replace(activation=activation)
        x, w, bias = operands(spec)
        image = x[0] if spec.layout == "NCHW" else np.moveaxis(x[0], -1, 0)
        image[1, 5, 0] = image[0, 0, 29] = np.nan
        result = compute(solver, spec, x, w, bias)
        if spreads:  # to whole tiles: at least those are there
            assert np.isnan(result[np.isnan(oracle(spec, x, w, bias))]).all()
            continue
        assert np.array_equal(np.isnan(result), np.isnan(oracle(spec, x, w, bias)))


@pytest.mark.parametrize("name", PANELS)
def test_work_counts_what_is_executed(name: str) -> None:
    spec = ConvSpec.parse("conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1")
    target = replace(BACKEND.target(), cores=2)
    work = SOLVERS[name].estimate(spec, target)
    executable = SOLVERS[name].plan(spec, target, ())
    assert work.workspace == executable.workspace
    assert work.packed_bytes == executable.pack(np.zeros(spec.w_shape, np.float32)).nbytes
    assert spec.flops <= work.flops <= 2.0 * spec.flops  # in cycles of the model
    assert work.phases[-1].rate in target.rates
    # Nothing like the 7 MB of all columns.
    assert work.workspace < 2**21


def test_tiles_fit_the_registers() -> None:
    registers = {"avx512": 32, "avx2": 16, "sse2": 16, "neon": 32, "generic": 16}
    for isa, machine in targets.MACHINES.items():
        for mr, nv in machine.shapes:
            vectors = nv if mr > 2 else 0  # with one or two rows pixels are memory operands
            assert mr * nv + vectors + 1 <= registers[isa]


def test_splits_cover() -> None:
    for n in (1, 2, 7, 56, 1000):
        for size in targets.splits(n, n):
            assert 1 <= size <= n
        assert max(targets.splits(n, n, 3)) <= 3


def test_geometry_names_are_checked() -> None:
    with pytest.raises(KeyError, match="no geometry fields"):
        problem.pack_geometry({"colour": 1})


# -------------------------------------------------------------------- in processes of their own


def run_script(body: str, **environment: str) -> str:
    """Output of a script in a fresh process; it must succeed without a warning."""
    script = "import warnings\nwarnings.simplefilter('error')\n" + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.subprocess
def test_imports_neither_numba_nor_llvmlite() -> None:
    run_script(
        """
        import sys
        from convjit_numba import NumbaBackend
        backend = NumbaBackend()
        assert backend.probe() is None
        assert not {"numba", "llvmlite"} & set(sys.modules)
        backend.solvers()
        assert "numba" not in sys.modules
        """
    )


CONVOLVE = """
import numpy as np
from convjit.algorithms.oracle import oracle
from convjit.spec import ConvSpec
from convjit_numba import NumbaBackend
backend = NumbaBackend()

def convolve(text, solver):
    spec = ConvSpec.parse(text)
    if solver.refuse(spec, backend.target()) is not None:
        return None
    rng = np.random.default_rng(0)
    x = rng.standard_normal(spec.x_shape).astype(spec.dtype)
    w = rng.standard_normal(spec.w_shape).astype(spec.dtype)
    executable = solver.plan(spec, backend.target(), ())
    out = np.empty(spec.result_shape, spec.dtype)
    workspace = np.empty(executable.workspace, np.uint8)
    executable.run(x, executable.pack(w), None, out, workspace)
    np.testing.assert_allclose(out, oracle(spec, x, w), rtol=1e-3, atol=1e-3)
    return out
"""


@pytest.mark.subprocess
def test_warm_process_needs_no_numba() -> None:
    body = CONVOLVE + textwrap.dedent(
        """
        import sys
        for solver in backend.solvers():
            convolve("conv_f32_NCHW_n1c64k64g1_i28x28_w3x3_p1", solver)
        print("numba" in sys.modules)
        """
    )
    run_script(body)
    assert run_script(body).strip() == "False"


def test_codegen_is_numbas() -> None:
    from numba.core.registry import cpu_target

    assert tuple(targets.codegen()) == tuple(cpu_target.target_context.codegen().magic_tuple())


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect by its Linux numbers")
@pytest.mark.subprocess
def test_reads_nothing_beyond_the_arrays() -> None:
    """Each array ends at, or begins after, a page that must not be touched."""
    body = CONVOLVE + textwrap.dedent(
        """
        import ctypes, mmap
        PAGE = mmap.PAGESIZE
        libc = ctypes.CDLL(None, use_errno=True)

        def fenced(shape, dtype, at_end):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            pages = -(-size // PAGE) + 2
            area = mmap.mmap(-1, pages * PAGE)
            base = ctypes.addressof(ctypes.c_char.from_buffer(area))
            for page in (0, pages - 1):
                address = ctypes.c_void_p(base + page * PAGE)
                assert libc.mprotect(address, ctypes.c_size_t(PAGE), 0) == 0
            start = (pages - 1) * PAGE - size if at_end else PAGE
            return np.frombuffer(area, np.uint8)[start : start + size].view(dtype).reshape(shape)

        for text in SPECS:
            spec = ConvSpec.parse(text)
            for solver in backend.solvers():
                if solver.refuse(spec, backend.target()) is not None:
                    continue
                executable = solver.plan(spec, backend.target(), ())
                for at_end in (True, False):
                    arrays = [fenced(s, spec.dtype, at_end) for s in
                              (spec.lhs_shape, spec.rhs_shape, (spec.result_channels,),
                               spec.result_shape)]
                    x, w, bias, out = arrays
                    x[...], w[...], bias[...] = 1, 2, 3
                    workspace = fenced((executable.workspace,), np.uint8, at_end)
                    packed = executable.pack(w)
                    copy = fenced(packed.shape, packed.dtype, at_end)
                    copy[...] = packed
                    executable.run(x, copy, bias if spec.bias else None, out, workspace)
        """
    )
    run_script(f"SPECS = {SPECS!r}\n" + body)


@pytest.mark.subprocess
def test_forked_child_and_concurrent_callers() -> None:
    run_script(
        CONVOLVE
        + textwrap.dedent(
            """
            import os, threading
            warnings.simplefilter("default")  # later Pythons warn of forks beside threads
            text = "conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1"
            solver = backend.solvers()[0]
            first = convolve(text, solver)
            child = os.fork()
            if child == 0:
                os._exit(0 if np.array_equal(convolve(text, solver), first) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            results = []
            workers = [
                threading.Thread(target=lambda: results.append(convolve(text, solver)))
                for _ in range(4)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert len(results) == 4
            assert all(np.array_equal(r, first) for r in results)
            """
        ),
        CONVJIT_NUM_THREADS="3",
    )


@pytest.mark.parametrize("isa", ["avx512", "avx2", "sse2", "neon"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_tiles_are_chosen_within_the_amplification_admitted(isa: str, channels_last: bool) -> None:
    from convjit.algorithms import winograd as transforms
    from convjit.algorithms.policies import AMPLIFICATION_LIMIT
    from convjit_numba.problem import Problem
    from convjit_numba.winogradplan import best_tile

    layout = "NHWC" if channels_last else "NCHW"
    for size in (5, 6, 7, 13, 14, 28, 55, 224):
        for taps in (2, 3, 5):
            spec = ConvSpec.parse(
                f"conv_f32_{layout}_n1c64k96g1_i{size}x{size}_w{taps}x{taps}_p{taps // 2}"
            )
            tile = best_tile(Problem.of(spec), channels_last, isa)
            assert tile[0] == 1
            amplified = 1.0
            for m, out in zip(tile[1:], spec.out_size, strict=True):
                amplified *= transforms.amplification(m, taps)
                # No smaller tile covers the image as often.
                assert m == 2 or -(-out // (m - 1)) > -(-out // m)
            assert amplified <= AMPLIFICATION_LIMIT

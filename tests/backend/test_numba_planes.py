"""Convolution of planes: every width, view and border, in every tile, inside its memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from guarded import BACKEND, check, compute, operands

from convjit.algorithms.oracle import oracle
from convjit.spec import ConvSpec
from convjit.spi import Feature
from convjit_numba import planeplan, planes
from convjit_numba.planes import DepthwisePlanes, Planes
from convjit_numba.problem import Problem

WIDTHS = (1, 2, 7, 15, 16, 17, 31, 33, 63, 65, 130)
MODES = ("reflect", "symmetric", "replicate", "circular")

SPECS = [
    "conv_f32_NCHW_n1c1k1g1_i1x1_w1x1",
    "conv_f32_NCHW_n2c1k1g1_i5x40_w1x1_bias_act=relu",
    # many planes, multipliers, strides
    "conv_f32_NCHW_n2c9k9g9_i7x7_w3x3_p1_bias_act=relu",
    "conv_f32_NCHW_n2c6k18g6_i14x14_w3x3_p1_bias_act=leaky_relu,0.25",
    "conv_f32_NCHW_n1c5k5g5_i28x29_w3x3_p1_s2_act=clip,-0.5,0.75",
    "conv_f32_NCHW_n1c4k4g4_i19x70_w5x5_p2_s2",
    "conv_f32_NCHW_n1c3k3g3_i23x41_w3x3_s3_p0.2x2.0",
    "conv_f32_NCHW_n1c3k3g3_i40x41_w11x9_s2x3_p5x4",
    "conv_f32_NCHW_n1c2k2g2_i20x50_w9x2_s1x2_p4x1",
    "conv_f32_NCHW_n1c2k2g2_i30x21_w1x7_s2_p0x3",
    # few input planes of an output plane
    "conv_f32_NCHW_n2c3k4g1_i17x35_w3x3_p1_bias",
    "conv_f64_NCHW_n1c8k6g2_i9x18_w7x7_p3",
    # dilation, with and without stride
    "conv_f32_NCHW_n1c2k2g2_i33x37_w3x3_p2_d2",
    "conv_f32_NCHW_n1c1k1g1_i40x70_w7x7_p18x9_d6x3",
    "conv_f32_NCHW_n1c1k1g1_i41x70_w3x5_p2x4_d4x2_s2",
    "conv_f32_NCHW_n1c1k1g1_i41x70_w9x9_p4_d2x3_s3x2",
    "conv_f32_NCHW_n1c1k2g1_i6x6_w3x3_p5x4_d3",
    # kernels larger than the image, whose roles are swapped, and asymmetric padding
    "conv_f32_NCHW_n2c6k6g6_i14x14_w27x27_p13_bias",
    "conv_f32_NCHW_n2c3k6g3_i7x9_w13x11_p6x5",
    "conv_f32_NCHW_n1c2k2g2_i6x7_w9x12_p3.8x11.9",
    "conv_f64_NCHW_n1c1k1g1_i5x5_w31x31_p40_flip",
    "conv_f32_NCHW_n1c1k1g1_i30x30_w17x16_p16x15_flip",
    # padding wider than the kernel: rows of tiles that meet nothing, above and below the image
    "conv_f32_NCHW_n2c1k1g1_i5x5_w3x3_p7",
    "conv_f64_NCHW_n2c3k3g3_i4x6_w5x3_p80x2_bias",
    "conv_f32_NCHW_n2c2k2g2_i5x9_w3x3_p70x3_s2",
    # signals, folded or not
    "conv_f64_NCL_n1c1k1g1_i1000_w9_p8",
    "conv_f32_NCL_n1c1k1g1_i1000_w64_flip",
    "conv_f32_NCL_n1c1k1g1_i3001_w200_p8.0_bias",
    "conv_f64_NCL_n3c2k2g2_i777_w100_p99_flip",
    "conv_f64_NCL_n1c1k1g1_i400_w300_p3",
    "conv_f32_NCL_n1c1k1g1_i30_w300_p299",
    "conv_f64_NCL_n3c2k2g2_i50_w3_s3",
    "conv_f32_NCL_n1c1k1g1_i500_w31_d7_p11",
    "conv_f32_NCHW_n1c1k2g1_i9x300_w1x130_p0x65",
    "conv_f32_NCHW_n1c1k1g1_i300x9_w50x1_p20x0",
    # volumes
    "conv_f32_NCDHW_n1c2k4g2_i6x7x18_w3x3x3_p1_s1x2x1",
    "conv_f64_NCDHW_n2c1k1g1_i9x12x20_w3x6x7_p2x3x3_d2x1x1",
    "conv_f32_NCDHW_n1c2k2g1_i5x6x20_w3x3x3_p4_s2x1x2",
    "conv_f32_NCDHW_n1c1k1g1_i6x7x40_w1x1x5_p0x0x2",
]  # fmt: skip


def solver(spec: ConvSpec) -> Planes:
    layer = spec.is_depthwise and spec.groups > 1
    found = DepthwisePlanes() if layer else Planes()
    assert found.refuse(spec, BACKEND.target()) is None
    return found


def verify(spec: ConvSpec, **choice: object) -> np.ndarray:
    x, w, bias = operands(spec)
    chosen = solver(spec)
    result = compute(chosen, spec, x, w, bias, **choice)
    check(spec, chosen, result, x, w, bias)
    return result


@pytest.mark.parametrize("text", SPECS)
def test_matches_oracle_and_stays_inside(text: str) -> None:
    verify(ConvSpec.parse(text))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "text",
    [
        "conv_f32_NCHW_n1c2k2g2_i9x40_w3x3_p1",
        "conv_f64_NCHW_n1c1k1g1_i12x13_w7x9_p3.4x5.4_flip",
        "conv_f32_NCHW_n1c1k1g1_i20x21_w5x5_p3_s2x3_d2",
        "conv_f32_NCL_n1c1k1g1_i900_w150_p80.60",
        "conv_f32_NCDHW_n1c1k1g1_i5x6x7_w3x3x3_p2_s1x2x1",
        # columns without a border, which fill whole tiles
        "conv_f32_NCHW_n2c1k1g1_i20x128_w7x1_p3x0",
        "conv_f64_NCDHW_n1c1k1g1_i6x12x128_w3x1x1_p1x0x0",
    ],
)
def test_pads_natively(text: str, mode: str) -> None:
    verify(ConvSpec.parse(text).replace(pad_mode=mode))


@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        *(("f32", width) for width in WIDTHS),
        *(("f64", width) for width in WIDTHS[2::4]),
        *(
            pytest.param("f64", width, marks=pytest.mark.exhaustive)
            for number, width in enumerate(WIDTHS)
            if number % 4 != 2
        ),
    ],
)
def test_every_width(dtype: str, width: int) -> None:
    for rest in ("w3x3_p1", "w3x1", "w3x3_p1_s2", "w9x9_p4", "w1x3_p0x2"):
        if width == 1 and rest == "w3x1":
            continue
        verify(ConvSpec.parse(f"conv_{dtype}_NCHW_n1c3k3g3_i11x{width}_{rest}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [pytest.param(3, id="some"), pytest.param(1, id="all", marks=pytest.mark.exhaustive)],
)
@pytest.mark.parametrize(
    "text",
    [
        "conv_f32_NCHW_n1c3k3g3_i29x150_w3x3_p1_bias",
        pytest.param("conv_f64_NCHW_n1c2k2g2_i31x70_w3x3_p1_s2", marks=pytest.mark.exhaustive),
        pytest.param("conv_f32_NCHW_n1c2k2g2_i37x150_w9x8_p4x3", marks=pytest.mark.exhaustive),
        "conv_f32_NCHW_n1c1k1g1_i41x70_w9x9_p4_d2x3_s3x2",
        "conv_f32_NCHW_n1c2k2g2_i28x28_w29x29_p14",
        "conv_f32_NCHW_n2c1k1g1_i5x18_w3x3_p71x1",
        pytest.param("conv_f64_NCL_n1c1k1g1_i2500_w200_p17", marks=pytest.mark.exhaustive),
    ],
)
def test_tiles_and_any_thread_count_agree_bit_by_bit(
    text: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ConvSpec.parse(text)
    reference = verify(spec, cores=1)
    chosen, arrays = solver(spec), operands(spec)
    for cores in (2, 3, 7):
        assert np.array_equal(compute(chosen, spec, *arrays, cores=cores), reference)
    monkeypatch.setattr(planes, "OFFERED", 99)  # those too that the model has no hope for
    monkeypatch.setattr(planes, "HOPEFUL", 1e9)
    for config in islice(chosen.configs(spec, BACKEND.target()), 0, None, step):
        assert np.array_equal(compute(chosen, spec, *arrays, config=config), reference), config


def test_nan_stays_local() -> None:
    for text in (
        "conv_f32_NCHW_n1c2k2g2_i12x30_w3x3_p1_bias_act=relu",
        "conv_f32_NCHW_n1c1k1g1_i30x41_w9x7_p4x3",
        "conv_f32_NCHW_n1c1k1g1_i14x14_w27x27_p13",
        "conv_f32_NCL_n1c1k1g1_i3000_w150_p30",
    ):
        spec = ConvSpec.parse(text)
        x, w, bias = operands(spec)
        x.reshape(-1)[[3, -1]] = np.nan, np.inf
        result = compute(solver(spec), spec, x, w, bias)
        expected = oracle(spec, x, w, bias)
        assert np.array_equal(np.isfinite(result), np.isfinite(expected))


@pytest.mark.parametrize("text", SPECS[::2])
def test_machines_without_masked_loads_copy_their_borders(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    isa = BACKEND.target().features["isa"]
    machine = planeplan.MACHINES[isa]._replace(masks=False)
    monkeypatch.setitem(planeplan.MACHINES, isa, machine)
    planned = (planeplan.blocking, planeplan.choose_swap, planeplan.candidates)
    try:
        for function in planned:
            function.cache_clear()
        verify(ConvSpec.parse(text))
    finally:
        for function in planned:
            function.cache_clear()


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("conv_f16_NCHW_n1c1k1g1_i8x8_w3x3", Feature.DTYPE),
        ("convt_f32_NCHW_n1c1k1g1_i8x8_w3x3", Feature.DIRECTION),
        ("conv_f32_NCHW_n1c1k1g1_i8x8_w3x3_strided", Feature.STRIDED),
        ("conv_f32_NHWC_n1c1k1g1_i8x8_w3x3", Feature.LAYOUT),
        ("conv_f32_NCHW_n1c64k64g1_i8x8_w3x3", Feature.OTHER),
    ],
)
def test_refuses_with_the_feature_to_lower(text: str, feature: Feature) -> None:
    for found in (Planes(), DepthwisePlanes()):
        refusal = found.refuse(ConvSpec.parse(text), BACKEND.target())
        assert refusal is not None
        assert refusal.feature is feature


def test_a_depthwise_layer_has_one_solver() -> None:
    target = replace(BACKEND.target(), cores=2)
    for text, layer in (
        ("conv_f32_NCHW_n1c8k8g8_i8x8_w3x3", True),
        ("conv_f32_NCHW_n1c1k1g1_i8x8_w3x3", False),
        ("conv_f32_NCHW_n1c4k4g2_i8x8_w3x3", False),
    ):
        spec = ConvSpec.parse(text)
        assert (DepthwisePlanes().refuse(spec, target) is None) is layer
        assert (Planes().refuse(spec, target) is None) is not layer


def test_kernels_as_large_as_the_image_swap_the_roles() -> None:
    for text, swapped in (
        ("conv_f32_NCHW_n1c8k8g8_i14x14_w27x27_p13", True),
        ("conv_f32_NCHW_n1c8k8g8_i56x56_w7x7_p3", False),
    ):
        p = Problem.of(ConvSpec.parse(text))
        assert planeplan.blocking(p, 0, "avx512").view.swapped is swapped


def test_tiles_fit_the_registers() -> None:
    p = Problem.of(ConvSpec.parse("conv_f32_NCHW_n1c8k8g8_i100x300_w3x3_p1"))
    for isa, machine in planeplan.MACHINES.items():
        for b in planeplan.candidates(planeplan.views(p, 0)[0], isa):
            taps = b.code.kh * b.code.kw if b.code.held else 1
            assert b.code.rows * b.code.nv + b.code.nv + taps <= machine.registers

"""Algorithms over ``(xp, fft)`` with NumPy, against the oracle, in every size of block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from convjit import layout as layouts
from convjit.algorithms import composed
from convjit.algorithms.epilogue import epilogue
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.algorithms.workspace import Carver, aligned
from convjit.spec import ConvSpec, Direction
from convjit.testing.cases import Case
from convjit.testing.strategies import specs

BUDGETS = st.sampled_from([1, 500, 5_000, 2**22])


def check(executable: Any, spec: ConvSpec, tolerance: float = 1e-13) -> None:
    """Run in a workspace and a result full of NaN; operands stay as they were."""
    lhs, rhs, bias = Case("composed", spec).operands()
    before = lhs.copy(), rhs.copy()
    out = np.full(spec.result_shape, np.nan, spec.dtype)
    workspace = np.full(executable.workspace, 255, np.uint8)
    executable.run(lhs, executable.pack(rhs), bias, out, workspace)
    scale = magnitudes(spec, lhs, rhs, bias).max() or 1.0
    assert np.abs(out - oracle(spec, lhs, rhs, bias)).max() <= tolerance * scale
    assert np.array_equal(lhs, before[0])
    assert np.array_equal(rhs, before[1])


@settings(max_examples=200, deadline=None)
@given(specs(("float64", "complex128")), BUDGETS)
def test_im2col_gemm(spec: ConvSpec, budget: int) -> None:
    spec = spec.replace(pad_mode="zeros", strided=False)
    if spec.direction is not Direction.FORWARD:
        spec = spec.replace(layout=layouts.CHANNELS_FIRST[spec.ndim])
    check(composed.Im2colGemm(np, spec, budget), spec)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("groups", [1, 2])
def test_one_tap_copies_nothing(direction: Direction, groups: int) -> None:
    spec = ConvSpec.forward(
        (3, 4, 5, 6), (6, 4 // groups, 1, 1), groups=groups, dtype="float64", direction=direction
    )
    executable = composed.Im2colGemm(np, spec)
    if direction is not Direction.WEIGHT_GRAD:
        assert executable.workspace == 0
    check(executable, spec)


@settings(max_examples=200, deadline=None)
@given(specs(("float64", "complex128")), BUDGETS)
def test_overlap_save(spec: ConvSpec, budget: int) -> None:
    spec = spec.replace(
        direction=Direction.FORWARD,
        pad_mode="zeros",
        layout=layouts.CHANNELS_FIRST[spec.ndim],
        out_size=spec.formula_out_size,
    )
    check(composed.OverlapSave(np, scipy.fft, spec, {"workers": 1}, budget), spec)


@pytest.mark.parametrize(
    "text",
    [
        "conv_f64_NCL_n2c2k3g1_i3000_w50_s2_p7",
        "conv_f64_NCHW_n3c3k4g1_i90x70_w9x11_p4x5",
        "conv_f64_NCHW_n2c4k4g4_i64x64_w15x15_p7",
        "conv_c128_NCHW_n1c1k1g1_i100x90_w20x20_flip",
    ],
)
@pytest.mark.parametrize("budget", [1, 2**18, 2**26])
def test_overlap_save_of_many_tiles(text: str, budget: int) -> None:
    spec = ConvSpec.parse(text)
    check(composed.OverlapSave(np, scipy.fft, spec, None, budget), spec)


def test_numpys_own_transforms_do_too() -> None:
    spec = ConvSpec.parse("conv_f64_NCHW_n1c2k3g1_i20x18_w5x4_p2")
    check(composed.OverlapSave(np, np.fft, spec), spec)


def test_workspaces_shrink_with_the_budget() -> None:
    spec = ConvSpec.parse("conv_f32_NCHW_n8c16k16g1_i128x128_w7x7_p3")
    for size in (composed.gemm_workspace, lambda s, b: composed.fft_counts(s, b).workspace):
        sizes = [size(spec, budget) for budget in (2**18, 2**22, 2**26)]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1] <= 2**26 + 2**12


def test_a_carver_hands_out_aligned_pieces() -> None:
    workspace = np.zeros(1024, np.uint8)
    carver = Carver(workspace)
    first, second = carver.take((3, 5), np.float32), carver.take((2,), np.complex128)
    assert first.shape == (3, 5)
    assert second.ctypes.data - first.ctypes.data == aligned(60) == 64
    assert carver.used == 128
    first[...] = second[...] = 1
    assert workspace[:60].any()
    assert not workspace[60:64].any()


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
def test_epilogue(layout: str) -> None:
    spec = ConvSpec.forward(
        (1, 2, 3) if layout == "NCL" else (1, 3, 2), (2, 2, 1), layout=layout, bias=True,
        activation=("leaky_relu", 0.5),
    )  # fmt: skip
    out = np.full(spec.y_shape, -1, np.float32)
    out.flat[0] = np.nan
    epilogue(np, spec, out, np.array([3, -1], np.float32))
    rows = out[0] if layout == "NCL" else out[0].T
    np.testing.assert_array_equal(rows, [[np.nan, 2, 2], [-1, -1, -1]])


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [(-1.0, 2.0, [-1, 0, 2]), (-np.inf, 1e30, [-5, 0, 5]), (1e30, 1e31, [2**63 - 1] * 3)],
)
def test_clip_of_integers(lo: float, hi: float, expected: list[int]) -> None:
    spec = ConvSpec.forward((1, 1, 3), (1, 1, 1), dtype="int64", activation=("clip", lo, hi))
    out = np.array([-5, 0, 5]).reshape(1, 1, 3)
    epilogue(np, spec, out, None)
    assert out.ravel().tolist() == expected

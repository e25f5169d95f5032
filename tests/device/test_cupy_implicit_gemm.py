"""Implicit GEMM in CUDA C++: every tile at its edges, with bits for taps and without."""

from __future__ import annotations

from collections.abc import Iterator

import edges
import pytest
import standin_cupy
from emulated_cupy import EmulatedCupy, missing, registered

from convjit.spec import ConvSpec
from convjit.spi import Feature
from convjit.testing.cases import Case
from convjit.testing.check import check
from convjit_cupy import implicit_gemm

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

BACKEND = EmulatedCupy("cupy_implicit")
# More than 32 taps, and sizes that the larger tiles divide.
EDGES = (
    *edges.GEMM,
    "NCHW_n1c3k70g1_i20x20_w7x7_s2_p3",
    "NCL_n2c2k5g1_i130_w33_p16_d2",
    "NCHW_n1c2k129g1_i12x11_w3x3_p1_bias_act=relu",
)
TILES = [(dtype, tile) for dtype in ("f32", "f64")
         for tile in implicit_gemm.TILES[{"f32": "float32", "f64": "float64"}[dtype]]]  # fmt: skip


@pytest.fixture(autouse=True)
def backend() -> Iterator[None]:
    with registered(BACKEND):
        yield


def verify(dtype: str, tile: tuple[int, int], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse(f"conv_{dtype}_{text}")
    monkeypatch.setitem(implicit_gemm.TILES, spec.dtype, (tile,))
    outcome = check(
        Case("edge", spec), BACKEND.name, algorithm=f"{BACKEND.name}.implicit_gemm",
        choice={"precision": "fast"},
    )  # fmt: skip
    assert outcome.passed, str(outcome)


@pytest.mark.parametrize(("dtype", "tile"), TILES)
@pytest.mark.parametrize("text", EDGES)
def test_edges(
    dtype: str, tile: tuple[int, int], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify(dtype, tile, text, monkeypatch)


@pytest.mark.parametrize(("dtype", "tile"), TILES)
@pytest.mark.parametrize(
    "text", ["NCHW_n2c10k70g2_i9x8_w3x3_p1_bias_act=relu", "NCHW_n1c1k3g1_i9x12_w7x7_s2_p3"]
)
def test_checked_mode_finds_nothing(
    dtype: str, tile: tuple[int, int], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)
    verify(dtype, tile, text, monkeypatch)


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("conv_f16_NCHW_n1c2k2g1_i8x8_w3x3", Feature.DTYPE),
        ("conv_f32_NHWC_n1c2k2g1_i8x8_w3x3", Feature.LAYOUT),
        ("conv_f32_NCDHW_n1c2k2g1_i8x8x8_w3x3x3", Feature.NDIM),
        ("convt_f32_NCHW_n1c2k2g1_i8x8_w3x3", Feature.DIRECTION),
        ("conv_f32_NCHW_n65536c64k2g1_i32x32_w3x3", Feature.SIZE),
    ],
)
def test_refuses_with_the_feature_to_lower(text: str, feature: Feature) -> None:
    solver = implicit_gemm.ImplicitGemmSolver("cupy", standin_cupy)
    refusal = solver.refuse(ConvSpec.parse(text), BACKEND.target())
    assert refusal is not None
    assert refusal.feature is feature

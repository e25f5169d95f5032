"""The fused Winograd kernel, at the edges of its blocks, in checked mode, and with faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import edges
import gates
import pytest
import standin_cupy
from emulated_cupy import EmulatedCupy, missing, registered

from convjit.spec import ConvSpec
from convjit.spi import Feature
from convjit.testing.cases import Case
from convjit.testing.check import check
from convjit_cupy import winograd

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

BACKEND = EmulatedCupy("cupy_winograd")
# Tiles and channels of a block and a step, one less and one more; several groups and images.
EDGES = (
    *(text for text in edges.WINOGRAD if not text.startswith("NCL")),
    "NCHW_n1c4k32g1_i16x16_w3x3_p1",
    "NCHW_n1c5k33g1_i17x18_w3x3_p1_bias",
    "NCHW_n3c3k31g1_i13x11_w3x3_p2",
    "NCHW_n2c10k6g2_i25x7_w3x3_p1_bias_act=clip,-0.5,0.5",
    "NCHW_n2c5k3g1_i37x1_w3x3_p1",  # tiles that share no columns
    "NCHW_n1c3k4g1_i6x91_w3x3_p0x2",  # rows of tiles longer than a block
)


@pytest.fixture(autouse=True)
def backend() -> Iterator[None]:
    with registered(BACKEND):
        yield


def verify(m: int, text: str, dtype: str = "f32") -> None:
    case = Case("edge", ConvSpec.parse(f"conv_{dtype}_{text}"))
    solver = f"{BACKEND.name}.winograd.f{m}x3"
    outcome = check(
        case, BACKEND.name, algorithm=solver, choice={"precision": "fast", "nonfinite": "spread"}
    )
    assert outcome.passed, str(outcome)
    assert outcome.label == solver  # no step before it


@pytest.mark.parametrize("m", winograd.SHAPES)
@pytest.mark.parametrize("text", EDGES)
def test_edges(m: int, text: str) -> None:
    verify(m, text)


@pytest.mark.parametrize("m", winograd.SHAPES)
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_types_are_widened_and_rounded_once(m: int, dtype: str) -> None:
    verify(m, "NCHW_n2c9k33g1_i9x13_w3x3_p1_bias_act=leaky_relu,0.1", dtype)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("capability", gates.GENERATIONS)
def test_no_instance_spills(
    dtype: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"conv_{dtype}_NCHW_n1c16k64g1_i48x48_w3x3_p1"
    every = tuple((f"winograd.f{m}x3", text) for m in winograd.SHAPES)
    monkeypatch.setitem(gates.CUPY, "cupy", every)
    found = gates.static("cupy", capability)
    assert len(found) == len(every)
    for kernel, figures in found.items():
        assert (figures["spilled_bytes"], figures["local"]) == (0, 0), kernel


@pytest.mark.parametrize("solver", ["winograd.f2x3", "winograd.batched.f2x3"])
def test_five_taps_of_stride_2_are_three_of_phases(solver: str) -> None:
    case = Case("strided", ConvSpec.parse("conv_f32_NCHW_n1c3k5g1_i13x14_w5x6_s2_p2_bias"))
    choice = {"precision": "fast", "nonfinite": "spread"}
    outcome = check(case, BACKEND.name, algorithm=f"{BACKEND.name}.{solver}", choice=choice)
    assert outcome.passed, str(outcome)
    assert outcome.label.startswith("space to depth"), outcome.label


@pytest.mark.parametrize("m", winograd.SHAPES)
def test_checked_mode_finds_nothing(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)
    verify(m, "NCHW_n2c9k33g1_i9x13_w3x3_p1_bias_act=relu")


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("conv_f64_NCHW_n1c2k2g1_i8x8_w3x3", Feature.OTHER),
        ("conv_c64_NCHW_n1c2k2g1_i8x8_w3x3", Feature.DTYPE),
        ("conv_f32_NCHW_n1c2k2g1_i8x8_w3x1", Feature.SIZE),
        ("conv_f32_NCL_n1c2k2g1_i8_w3", Feature.SIZE),
        ("conv_f32_NCHW_n1c2k2g1_i8x8_w3x3_s2", Feature.STRIDE),
        ("conv_f32_NCHW_n1c2k2g1_i8x8_w5x5_s2", Feature.STRIDE),
        ("conv_f32_NCHW_n1c2k2g1_i8x8_w3x3_d2", Feature.DILATION),
        ("conv_f32_NHWC_n1c2k2g1_i8x8_w3x3", Feature.LAYOUT),
        ("conv_f32_NCHW_n1c60000k40000g1_i8x8_w3x3", Feature.SIZE),
    ],
)
def test_refuses_with_the_feature_to_lower(text: str, feature: Feature) -> None:
    solver = winograd.WinogradSolver("cupy", standin_cupy, 4)
    refusal = solver.refuse(ConvSpec.parse(text), BACKEND.target())
    assert refusal is not None
    assert refusal.feature is feature


def test_the_largest_tile_needs_more_shared_memory_than_turing_has() -> None:
    spec = ConvSpec.parse("conv_f32_NCHW_n1c2k2g1_i8x8_w3x3")
    turing = replace(BACKEND.target(), features={"sm": "75"})
    solvers = {m: winograd.WinogradSolver("cupy", standin_cupy, m) for m in winograd.SHAPES}
    refusals = {m: solver.refuse(spec, turing) for m, solver in solvers.items()}
    assert [m for m, refusal in refusals.items() if refusal] == [6]
    assert "96 KiB of shared memory" in refusals[6].reason

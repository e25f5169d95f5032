"""The fused Winograd kernel, at the edges of its blocks, in checked mode, and with faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import edges
import pytest
import standin_cupy
from emulated_cupy import EmulatedCupy, missing, registered

from convjit.errors import BackendError
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
)


@pytest.fixture(autouse=True)
def backend() -> Iterator[None]:
    with registered(BACKEND):
        yield


def verify(m: int, text: str) -> None:
    case = Case("edge", ConvSpec.parse(f"conv_f32_{text}"))
    solver = f"{BACKEND.name}.winograd.f{m}x3"
    outcome = check(
        case, BACKEND.name, algorithm=solver, choice={"precision": "fast", "nonfinite": "spread"}
    )
    assert outcome.passed, str(outcome)


@pytest.mark.parametrize("m", winograd.SHAPES)
@pytest.mark.parametrize("text", EDGES)
def test_edges(m: int, text: str) -> None:
    verify(m, text)


@pytest.mark.parametrize("m", winograd.SHAPES)
def test_checked_mode_finds_nothing(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)
    verify(m, "NCHW_n2c9k33g1_i9x13_w3x3_p1_bias_act=relu")


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("conv_f64_NCHW_n1c2k2g1_i8x8_w3x3", Feature.OTHER),
        ("conv_f32_NCHW_n1c2k2g1_i8x8_w3x1", Feature.SIZE),
        ("conv_f32_NCL_n1c2k2g1_i8_w3", Feature.SIZE),
        ("conv_f32_NCHW_n1c2k2g1_i8x8_w3x3_s2", Feature.STRIDE),
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
    assert "80 KiB of shared memory" in refusals[6].reason


FAULTS = {
    "no wait for the weights": (
        "        wait_for_copies();\n", "", "uninitialised|wrong",
    ),
    "no barrier between rows and columns": (
        "        wait_for_copies();\n        __syncthreads();\n", "        wait_for_copies();\n",
        "race|uninitialised",
    ),
    "no barrier before the products": (
        "        __syncthreads();\n        if (step + 1 < steps)", "        if (step + 1 < steps)",
        "race|uninitialised",
    ),
    "no barrier after the products": (
        "        __syncthreads();\n    }\n\n    // PASS", "    }\n\n    // PASS", "race",
    ),
    "no barrier after a pass": (
        "            }\n        }\n        __syncthreads();\n    }\n}\n",
        "            }\n        }\n    }\n}\n", "race",
    ),
    "a sample beyond the image": (
        "left[r] + j < width ?", "left[r] + j <= width ?", "wrong|out of bounds",
    ),
    "a short step of weights": (
        "i < POINTS * WEIGHTS;", "i + 4 < POINTS * WEIGHTS;", "uninitialised|wrong",
    ),
    "rows of tiles swapped with columns": (
        "tile_x = rest - tile_y * tiles_x;\n        const u32 top",
        "tile_x = tile_y;\n        const u32 top", "wrong",
    ),
    "an output too many": ("k < outputs &&", "k <= outputs &&", "wrong|out of bounds"),
    "a point of another warp": (
        "+ warp * WARP_POINTS * WEIGHTS", "+ warp / 2 * WARP_POINTS * WEIGHTS", "wrong",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, found = FAULTS[fault]
    whole = winograd.source(4)
    assert whole.count(before) == 1, fault
    monkeypatch.setattr(winograd, "source", lambda m: whole.replace(before, after))
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)
    with pytest.raises((AssertionError, BackendError, RuntimeError)) as caught:
        verify(4, "NCHW_n1c9k33g1_i9x13_w3x3_p1")
    told = str(caught.value)
    kinds = [kind for kind in found.split("|") if kind != "wrong"]
    wrong = "wrong" in found and isinstance(caught.value, AssertionError)
    assert wrong or any(kind in told for kind in kinds), told

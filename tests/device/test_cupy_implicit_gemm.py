"""The implicit GEMM in CUDA C++: at the edges of both kinds of tile, and in checked mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import gates
import numpy as np
import pytest
import standin_cupy
from edges import DIVIDED_GEMM, IMPLICIT_GEMM, LARGE_IMPLICIT_GEMM
from emulated_cupy import EmulatedCupy, missing, registered

import convjit
from convjit.spec import ConvSpec
from convjit.spi import Target
from convjit.testing.cases import Case
from convjit.testing.check import check
from convjit_cupy import implicit_gemm
from convjit_cupy.implicit_gemm import tiling
from convjit_cupy.kernels import load
from convjit_cupy.split import parts_for, steps_of_a_part

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def divides(text: str, dtype: str, parts: int, **choice: Any) -> None:
    """A problem is right whose depth is divided into so many parts."""
    identity, spec = f"{BACKEND.name}.implicit_gemm", ConvSpec.parse(f"conv_{dtype}_{text}")
    case = Case("divided", spec)
    outcome = check(case, BACKEND.name, algorithm=identity, choice={"precision": "fast", **choice})
    assert outcome.passed, str(outcome)
    names, grids, _ = zip(*standin_cupy.RawModule.launches[-2:], strict=True)
    assert names[-1] == ("sum_parts" if parts > 1 else "implicit_gemm")
    assert grids[-2 if parts > 1 else -1] == (tiling(spec, (2, 1)).blocks * parts,)


class OfCapability(EmulatedCupy):
    """A GPU of another compute capability."""

    def __init__(self, capability: int) -> None:
        super().__init__(f"cupy_gemm_{capability}")
        self._capability = str(capability)

    def target(self, device_id: int | None = None) -> Target:
        features = {**super().target(device_id).features, "sm": self._capability}
        return replace(super().target(device_id), features=features)


BACKEND = EmulatedCupy("cupy_gemm_edges")
LARGE = EmulatedCupy("cupy_large_gemm_edges")
SLOW = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered(BACKEND), registered(LARGE):
        yield


def passes(backend: EmulatedCupy, text: str, dtype: str) -> None:
    """A problem is right in tiles of the kind that the backend is for."""
    identity, spec = f"{backend.name}.implicit_gemm", ConvSpec.parse(f"conv_{dtype}_{text}")
    large, small = implicit_gemm.TILES[spec.dtype]
    warps = large if backend is LARGE else small
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(implicit_gemm.TILES, spec.dtype, (warps,))
        case = Case("edge", spec)
        outcome = check(case, backend.name, algorithm=identity, choice={"precision": "fast"})
    assert outcome.passed, str(outcome)
    assert outcome.label == identity
    _, _, block = standin_cupy.RawModule.launches[-1]
    assert block == (prod(warps) * 32,)


def each(texts: tuple[str, ...], quick: slice) -> list[Any]:
    """The problems, and whether in the quick tier: those of single precision."""
    return [
        pytest.param(text, dtype, marks=() if dtype == "f32" and text in texts[quick] else SLOW)
        for dtype in ("f32", "f64")
        for text in texts
    ]


@pytest.mark.parametrize(("text", "dtype"), each(IMPLICIT_GEMM, slice(None)))
def test_tiles_are_cut_at_their_edges(text: str, dtype: str) -> None:
    passes(BACKEND, text, dtype)


@pytest.mark.parametrize(("text", "dtype"), each(LARGE_IMPLICIT_GEMM, slice(2, 3)))
def test_large_tiles_are_cut_at_their_edges(text: str, dtype: str) -> None:
    passes(LARGE, text, dtype)


@pytest.mark.parametrize(("text", "dtype"), each(tuple(DIVIDED_GEMM), slice(None)))
def test_depths_are_divided(text: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)
    single, double = DIVIDED_GEMM[text]
    divides(text, dtype, single if dtype == "f32" else double)


def test_depths_are_not_divided_without_room_for_the_parts() -> None:
    text = next(iter(DIVIDED_GEMM))
    divides(text, "f32", 1, workspace_limit=0)
    divides(text, "f32", DIVIDED_GEMM[text][0], workspace_limit=4 * 4 * 64 * 64)


@pytest.mark.parametrize(("blocks", "cores"), [(1, 108), (8, 108), (100, 108), (300, 108), (1, 1)])
def test_parts_are_none_of_them_empty(blocks: int, cores: int) -> None:
    for steps in range(1, 400):
        parts = parts_for(steps, blocks, cores)
        each = steps_of_a_part(steps, parts)
        assert (parts - 1) * each < steps <= parts * each
        assert parts == 1 or parts * blocks <= 2 * cores
        assert parts == 1 or each >= 4


@pytest.mark.parametrize(
    ("backend", "text", "dtype"),
    [
        (BACKEND, IMPLICIT_GEMM[3], "f32"),
        pytest.param(BACKEND, IMPLICIT_GEMM[2], "f32", marks=SLOW),
        pytest.param(BACKEND, IMPLICIT_GEMM[3], "f64", marks=SLOW),
        pytest.param(LARGE, LARGE_IMPLICIT_GEMM[1], "f32", marks=SLOW),
        pytest.param(LARGE, LARGE_IMPLICIT_GEMM[3], "f64", marks=SLOW),
    ],
)
def test_the_kernel_is_clean_in_checked_mode(
    backend: EmulatedCupy, text: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)
    passes(backend, text, dtype)


@pytest.fixture
def _compiled_anew() -> Iterator[None]:
    load.cache_clear()
    yield
    load.cache_clear()


@pytest.mark.usefixtures("_compiled_anew")
@pytest.mark.parametrize(("capability", "tensor"), [(75, 0), (90, 1)])
def test_double_precision_is_multiplied_by_what_a_generation_has(
    capability: int, tensor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin_cupy, "CAPABILITY", divmod(capability, 10))
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)
    monkeypatch.setattr(standin_cupy.RawModule, "used", {})
    backend = OfCapability(capability)
    with registered(backend):
        passes(backend, IMPLICIT_GEMM[2], "f64")
    (kernel,) = standin_cupy.RawModule.used
    assert f"-DTENSOR={tensor}" in kernel


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("conv_f32_NCL_n1c4k4g1_i80_w63_p1", "the 63 taps along the padded axes exceed a mask"),
        ("conv_f32_NCHW_n1c65536k32768g1_i2x2_w1x1", "offsets of 32 bits"),
        ("conv_c64_NCHW_n1c4k4g1_i8x8_w3x3", "the kernels compute float32"),
        ("conv_f32_NHWC_n1c4k4g1_i8x8_w3x3", "channels-first"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    solver = next(s for s in BACKEND.solvers() if s.id.endswith(".implicit_gemm"))
    refusal = solver.refuse(ConvSpec.parse(text), BACKEND.target())
    assert refusal is not None
    assert reason in refusal.reason


@SLOW
@pytest.mark.exhaustive
@pytest.mark.parametrize("capability", gates.GENERATIONS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("taps", ["w1x1", "w3x3_p1"])
def test_large_tiles_multiply_most_of_the_time(
    taps: str, dtype: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"conv_{dtype}_NCHW_n32c64k256g1_i56x56_{taps}"
    monkeypatch.setitem(gates.CUPY, "cupy", (("implicit_gemm", text),))
    with gates.largest_tiles("implicit_gemm"):  # by the waves of some GPUs smaller ones are faster
        ((kernel, figures),) = gates.static("cupy", capability).items()
    assert "-DWARPS_K=4" in kernel
    assert (figures["spilled_bytes"], figures["local"]) == (0, 0)
    assert figures["blocks"] >= 2
    assert figures["share"] >= gates.limit_of("cupy", kernel).share


def test_many_taps_of_an_axis_without_padding_need_no_bits() -> None:
    passes(BACKEND, "NCL_n1c2k3g1_i80_w33", "f32")


def test_a_view_that_is_not_aligned_is_copied_element_by_element() -> None:
    memory = standin_cupy.asarray(np.arange(1 + 5 * 8 * 8, dtype=np.float32))
    x = memory[1:].reshape(1, 5, 8, 8)
    w = standin_cupy.full((3, 5, 1, 1), 1, "float32")
    y = convjit.conv(x, w, backend=BACKEND.name, algorithm=f"{BACKEND.name}.implicit_gemm")
    expected = np.broadcast_to(x.get().sum(1, keepdims=True), (1, 3, 8, 8))
    np.testing.assert_allclose(y.get(), expected, rtol=1e-6)

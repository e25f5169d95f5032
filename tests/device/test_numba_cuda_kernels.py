"""Every kernel of ``convjit_numba_cuda`` at the edges of its tiles, and in checked mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from edges import DEPTHWISE, DIRECT, EDGES, GEMM, LARGE_GEMM, WINOGRAD
from emulated import (
    GPU,
    EmulatedBackend,
    EmulatedDevice,
    missing,
    registered,
)

import convjit
from convjit import registry
from convjit.errors import UnsupportedError
from convjit.spec import ConvSpec
from convjit.testing.cases import Case
from convjit.testing.check import Outcome, check
from convjit_numba_cuda import gemm

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

BACKENDS = {
    "plain": EmulatedBackend(EmulatedDevice(GPU), "emulated"),
    "large tiles": EmulatedBackend(EmulatedDevice(GPU), "emulated_large"),
    "checked": EmulatedBackend(EmulatedDevice(GPU, checked=True), "emulated_checked"),
    "large tiles, checked": EmulatedBackend(
        EmulatedDevice(GPU, checked=True), "emulated_large_checked"
    ),
}

ALL_EDGES = [
    *(("plain", solver, text) for solver, text in EDGES),
    *(("large tiles", "gemm", text) for text in LARGE_GEMM),
]
# A size for each kernel whose tiles are cut at every edge.
CHECKED = (
    ("checked", "gemm", GEMM[2]),
    ("checked", "gemm", GEMM[6]),
    ("large tiles, checked", "gemm", "NCHW_n2c9k130g1_i9x15_w1x1_bias"),
    ("checked", "direct", "NCHW_n2c10k33g1_i9x33_w3x3_p1_bias"),
    ("checked", "direct", DIRECT[6]),
    ("checked", "depthwise", DEPTHWISE[2]),
    ("checked", "depthwise", DEPTHWISE[3]),
    ("checked", "winograd.f4x3", "NCHW_n1c9k65g1_i9x7_w3x3_p1_bias"),
    ("checked", "winograd.f2x3", "NCHW_n1c9k65g1_i5x7_w3x3_p1_bias"),
)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with ExitStack() as stack:
        for backend in BACKENDS.values():
            stack.enter_context(registered(backend))
        yield


def compute(which: str, solver: str, text: str, dtype: str = "f32") -> Outcome:
    name = BACKENDS[which].name
    case = Case("edge", ConvSpec.parse(f"conv_{dtype}_{text}"))
    with pytest.MonkeyPatch.context() as patch:
        if which.startswith("large tiles"):
            patch.setitem(gemm.TILES, "float32", (128,))
        return check(case, name, algorithm=f"{name}.{solver}", choice={"precision": "fast"})


@pytest.mark.parametrize(("which", "solver", "text"), ALL_EDGES)
def test_tiles_are_cut_at_their_edges(which: str, solver: str, text: str) -> None:
    outcome = compute(which, solver, text)
    assert outcome.passed, str(outcome)
    if which == "large tiles":
        assert BACKENDS[which].gpu.launches[-1][0].name == "gemm.float32.128"


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "text"), EDGES)
def test_tiles_are_cut_at_their_edges_in_float64(solver: str, text: str) -> None:
    outcome = compute("plain", solver, text, "f64")
    assert outcome.passed, str(outcome)


@pytest.mark.parametrize(("which", "solver", "text"), CHECKED)
def test_a_kernel_is_clean_in_checked_mode(which: str, solver: str, text: str) -> None:
    outcome = compute(which, solver, text)
    assert outcome.passed, str(outcome)


@pytest.mark.parametrize("solver", ["gemm", "direct", "winograd.f4x3"])
def test_sums_live_in_registers(solver: str) -> None:
    compute("plain", solver, WINOGRAD[0])
    for module in BACKENDS["plain"].gpu.modules.values():
        assert not [site for site in module.sites if "local" in site.modifiers]


def generations() -> list[Any]:
    """PTX of each kernel for each generation of GPUs; of each of both one in the slow tier."""
    found = []
    for k, solver in enumerate(("gemm", "direct", "depthwise", "winograd.f4x3")):
        for g, capability in enumerate(((7, 5), (9, 0), (10, 0), (12, 0))):
            marks = [pytest.mark.slow, *[pytest.mark.exhaustive] * (k != g)]
            found.append(pytest.param(capability, solver, marks=marks))
    return found


@pytest.mark.parametrize(("capability", "solver"), generations())
def test_other_generations_compute_alike(capability: tuple[int, int], solver: str) -> None:
    gpu = EmulatedDevice(replace(GPU, capability=capability))
    case = Case("generation", ConvSpec.parse(f"conv_f32_{DEPTHWISE[2]}"))
    with registered(EmulatedBackend(gpu, "emulated_other")):
        choice = {"precision": "fast"}
        outcome = check(case, "emulated_other", algorithm=f"emulated_other.{solver}", choice=choice)
    assert outcome.passed, str(outcome)
    assert gpu.launches


def test_a_batch_that_does_not_fit_goes_in_parts() -> None:
    gpu = EmulatedDevice(GPU, memory_bytes=2 * 4 * 4 * (3 + 5) * 8 * 8)
    text = "NCHW_n11c3k5g1_i8x8_w3x3_p1_bias"
    with registered(EmulatedBackend(gpu, "emulated_full")):
        case = Case("parts", ConvSpec.parse(f"conv_f32_{text}"))
        outcome = check(case, "emulated_full", algorithm="emulated_full.gemm")
    assert outcome.passed, str(outcome)
    assert len(gpu.launches) == 3 * 3  # parts of 4, 4 and 3 images, in each of check's three ways


def test_copies_to_the_device_are_seen_in_the_profile() -> None:
    x, w = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    with convjit.profile() as prof:
        convjit.conv(x, w, backend="emulated")
    phases = {name for record in prof.records for name in (p.name for p in record.phases)}
    assert {"to device", "from device"} <= phases


def test_a_call_that_names_no_backend_stays_on_the_cpu() -> None:
    x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    names = tuple(backend.name for backend in BACKENDS.values())
    with convjit.use(priority=names):
        assert not {b.name for b in registry.default_pool("cpu")} & set(names)
        assert convjit.plan(x, w).backend not in names
    assert convjit.plan(x, w, backend="emulated").backend == "emulated"


def test_transforms_are_refused_with_a_reason() -> None:
    x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    with pytest.raises(UnsupportedError, match=r"numba\.cuda has no Fourier transforms"):
        convjit.conv(x, w, backend="emulated", algorithm="fft")


def test_what_32_bits_do_not_reach_is_refused() -> None:
    for algorithm, shape, channels in (
        ("gemm", (2**19, 8, 16, 32), 8),
        ("winograd", (2**16, 8, 48, 48), 8),  # x would do, the transformed tiles do not
        ("gemm", (1, 2**21, 2, 2), 1),  # neither operand, but the weights packed in panels
    ):
        with pytest.raises(UnsupportedError, match="too large for offsets of 32 bits"):
            convjit.plan(shape, (channels, shape[1], 3, 3), backend="emulated",
                         algorithm=algorithm, padding=1)  # fmt: skip


def test_samples_that_exceed_shared_memory_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="exceed the 48 KiB of shared memory"):
        convjit.plan((1, 1, 400, 400), (1, 1, 3, 3), dilation=100, backend="emulated",
                     algorithm="direct")  # fmt: skip

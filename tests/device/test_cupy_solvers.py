"""Every CUDA C++ kernel of ``convjit_cupy`` at the edges of its tiles, and in checked mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gates
import pytest
import standin_cupy
from edges import CUPY_CHANNELS_LAST, CUPY_DEPTHWISE, CUPY_DIRECT, CUPY_EDGES
from emulated_cupy import EmulatedCupy, missing, registered

import convjit
from convjit.errors import UnsupportedError
from convjit.spec import ConvSpec
from convjit.testing import cases
from convjit.testing.cases import Case
from convjit.testing.check import Outcome, check
from convjit_cupy import kernels

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

BACKEND = EmulatedCupy("cupy_edges")

QUICK = (
    *(("depthwise", text) for text in CUPY_DEPTHWISE),
    *(("depthwise.channels_last", text) for text in CUPY_CHANNELS_LAST),
    *(("direct", text) for text in (CUPY_DIRECT[2], CUPY_DIRECT[12])),
)
# Of each kernel two problems whose tiles are cut at every edge; the second is slow.
CHECKED = (
    ("depthwise", CUPY_DEPTHWISE[3]),
    ("depthwise", CUPY_DEPTHWISE[6]),
    ("depthwise.channels_last", CUPY_CHANNELS_LAST[1]),
    ("depthwise.channels_last", CUPY_CHANNELS_LAST[0]),
    ("direct", CUPY_DIRECT[6]),
    ("direct", "NCHW_n1c19k33g1_i9x36_w3x3_p1_bias"),
)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered(BACKEND):
        yield


def compute(solver: str, text: str, dtype: str = "f32") -> Outcome:
    case = Case("edge", ConvSpec.parse(f"conv_{dtype}_{text}"))
    identity = f"{BACKEND.name}.{solver}"
    return check(case, BACKEND.name, algorithm=identity, choice={"precision": "fast"})


def edges() -> list[Any]:
    """Every edge, those whose kernels are large in the slow tier: each is compiled for its taps."""
    return [
        pytest.param(solver, text, marks=() if (solver, text) in QUICK else (pytest.mark.slow,))
        for solver, text in CUPY_EDGES
    ]


@pytest.mark.parametrize(("solver", "text"), edges())
def test_tiles_are_cut_at_their_edges(solver: str, text: str) -> None:
    outcome = compute(solver, text)
    assert outcome.passed, str(outcome)
    assert outcome.label == f"{BACKEND.name}.{solver}"


def in_other_dtypes() -> list[Any]:
    """Every edge in every dtype; each in one of them in the slow tier."""
    found = []
    for place, (solver, text) in enumerate(CUPY_EDGES):
        for which, dtype in enumerate(("f64", "f16", "bf16")):
            marks = [pytest.mark.slow]
            if place % 3 != which or (solver == "direct" and place % 2):
                marks.append(pytest.mark.exhaustive)
            found.append(pytest.param(solver, text, dtype, marks=marks))
    return found


def of_the_suite() -> list[Any]:
    """The quick cases of the conformance suite, a few of them in the slow tier."""
    more = [pytest.mark.slow, pytest.mark.exhaustive]
    return [
        pytest.param(case, marks=more if place % 36 else [pytest.mark.slow], id=str(case))
        for place, case in enumerate(cases.QUICK)
    ]


@pytest.mark.parametrize("case", of_the_suite())
def test_direct_takes_the_cases_of_the_suite(case: Case) -> None:
    identity = f"{BACKEND.name}.direct"
    outcome = check(case, BACKEND.name, algorithm=identity, choice={"precision": "fast"})
    assert outcome.refusal or outcome.passed, str(outcome)


@pytest.mark.parametrize(("solver", "text", "dtype"), in_other_dtypes())
def test_tiles_are_cut_at_their_edges_in_other_dtypes(solver: str, text: str, dtype: str) -> None:
    outcome = compute(solver, text, dtype)
    assert outcome.passed, str(outcome)
    assert outcome.label == f"{BACKEND.name}.{solver}"


@pytest.mark.parametrize(
    ("solver", "text"),
    [pytest.param(*one, marks=(pytest.mark.slow,) * (one in CHECKED[1::2])) for one in CHECKED],
)
def test_a_kernel_is_clean_in_checked_mode(
    solver: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)
    outcome = compute(solver, text)
    assert outcome.passed, str(outcome)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "text"),
    [
        ("implicit_gemm", "NCHW_n1c9k65g1_i13x5_w3x3_p1_bias_act=relu"),
        ("implicit_gemm", "NCHW_n1c16k64g1_i8x8_w1x1_bias"),
        ("winograd.f4x3", "NCHW_n2c9k33g1_i9x13_w3x3_p1_bias"),
    ],
)
def test_turing_has_no_asynchronous_copies(
    solver: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin_cupy, "CAPABILITY", (7, 5))
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)
    standin_cupy.RawModule.used.clear()
    kernels.load.cache_clear()  # those compiled for another generation
    try:
        outcome = compute(solver, text)
    finally:
        kernels.load.cache_clear()
    assert outcome.passed, str(outcome)
    (module,) = standin_cupy.RawModule.used.values()
    assert not [site for site in module.sites if site.opcode == "cp"]


@pytest.mark.parametrize(
    ("solver", "text", "reason"),
    [
        ("depthwise", "conv_f32_NCHW_n1c4k4g1_i8x8_w3x3", "takes depthwise layers"),
        ("depthwise", "conv_f32_NCL_n1c4k4g4_i80_w33", "taps of a row are unrolled, 32 at most"),
        ("depthwise", "conv_f32_NCHW_n1c4k4g4_i1000x9_w3x3_d490x1", "exceed the 48 KiB"),
        ("depthwise", "conv_f32_NCHW_n65536c16k16g16_i64x64_w3x3", "offsets of 32 bits"),
        ("depthwise", "conv_f32_NCL_n1c4k4g4_i900_w3_d300", "taps of a row reach over 600 columns"),
        ("depthwise.channels_last", "conv_f32_NHWC_n1c4k8g4_i8x8_w3x3", "one output for each"),
        ("depthwise.channels_last", "conv_f32_NCHW_n1c4k4g4_i8x8_w3x3", "is for channels-last"),
        ("depthwise.channels_last", "conv_f32_NLC_n1c4k4g4_i80_w16_s8", "meets 40 samples"),
        ("direct", "conv_f32_NCL_n1c4k4g1_i80_w17", "taps of a row are unrolled, 16 at most"),
        ("direct", "conv_f32_NCHW_n1c4k4g1_i80x80_w3x3_s9", "strides above 8"),
        ("direct", "conv_f32_NCHW_n1c4k4g1_i1000x9_w3x3_d490x1", "exceed the 48 KiB"),
        ("direct", "conv_f32_NCHW_n1c8388608k1g1_i2x2_w3x3_p1", "offsets of 32 bits"),
        ("depthwise", "conv_c64_NCHW_n1c4k4g4_i8x8_w3x3", "the kernels compute float32"),
    ],
)
def test_what_a_solver_refuses(solver: str, text: str, reason: str) -> None:
    one = next(s for s in BACKEND.solvers() if s.id == f"{BACKEND.name}.{solver}")
    refusal = one.refuse(ConvSpec.parse(text), BACKEND.target())
    assert refusal is not None
    assert reason in refusal.reason


TAPS = (
    "w3x1", "w3x2", "w3x7", "w3x7_s2", "w3x11_s4", "w3x16", "w3x9_s8", "w3x3_d1x2", "w3x3_d1x12",
    "w3x3_s3", "w3x5_s3", "w3x4_s5",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize(("solver", "sizes"), [
    ("direct", "NCHW_n1c4k32g1"), ("depthwise", "NCHW_n1c4k4g4"),
    ("depthwise.channels_last", "NHWC_n1c8k8g8"),
])  # fmt: skip
def test_no_instance_spills(
    solver: str, sizes: str, taps: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"conv_{dtype}_{sizes}_i8x64_{taps}"
    monkeypatch.setitem(gates.CUPY, "cupy", ((solver, text),))
    for kernel, figures in gates.static("cupy", (8, 0)).items():
        assert (figures["spilled_bytes"], figures["local"]) == (0, 0), kernel


def test_a_view_that_is_not_aligned_is_loaded_element_by_element() -> None:
    memory = standin_cupy.full((1 + 5 * 8 * 32,), 1, "float32")
    x = memory[1:].reshape(1, 5, 8, 32)
    w = standin_cupy.full((5, 1, 3, 3), 1, "float32")
    y = convjit.conv(x, w, groups=5, padding=1, backend=BACKEND.name,
                     algorithm=f"{BACKEND.name}.depthwise")  # fmt: skip
    assert (y.get()[0, :, 1:-1, 1:-1] == 9).all()
    with pytest.raises(UnsupportedError, match="depthwise"):
        convjit.conv(x, standin_cupy.full((5, 5, 3, 3), 1, "float32"), backend=BACKEND.name,
                     algorithm=f"{BACKEND.name}.depthwise")  # fmt: skip

"""Every kernel of ``convjit_numba_cuda`` at the edges of its tiles, and in checked mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from emulated import (
    GPU,
    SMALL_GPU,
    EmulatedBackend,
    EmulatedDevice,
    missing,
    ptx_of,
    registered,
)
from ptxcpu.parser import Instruction, Label, parse

import convjit
from convjit import registry
from convjit.errors import UnsupportedError
from convjit.spec import ConvSpec
from convjit.testing.cases import Case
from convjit.testing.check import Outcome, check

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

BACKENDS = {
    "plain": EmulatedBackend(EmulatedDevice(GPU), "emulated"),
    "large tiles": EmulatedBackend(EmulatedDevice(SMALL_GPU), "emulated_small"),
    "checked": EmulatedBackend(EmulatedDevice(GPU, checked=True), "emulated_checked"),
    "large tiles, checked": EmulatedBackend(
        EmulatedDevice(SMALL_GPU, checked=True), "emulated_small_checked"
    ),
}

# Sizes at the edges of what a kernel divides: one less, exactly, and one more.
GEMM = (
    "NCHW_n1c7k63g1_i9x7_w1x1",  # 63 outputs, 63 positions, 7 depths
    "NCHW_n1c8k64g1_i8x8_w1x1_bias",
    "NCHW_n1c9k65g1_i13x5_w1x1_bias_act=leaky_relu,0.1",
    "NCHW_n1c3k127g1_i127x1_w1x1",
    "NCHW_n1c16k128g1_i16x8_w1x1",
    "NCHW_n1c17k129g1_i3x43_w1x1",
    "NCHW_n3c3k5g1_i11x13_w3x3_s2x1_p1.2x2.0_d1x2_flip",
    "NCHW_n2c6k10g2_i6x5_w3x2_p1",
    "NCL_n2c3k4g1_i67_w5_s2_p2",
)
DIRECT = (
    "NCHW_n1c3k31g1_i7x31_w3x3_p1",
    "NCHW_n1c2k32g1_i8x32_w3x3_p1_bias",
    "NCHW_n2c2k33g1_i9x33_w3x3_p1_bias_act=relu",
    "NCHW_n1c9k2g1_i8x32_w3x3_p1",  # channels of a step
    "NCHW_n1c10k2g1_i8x32_w3x3_p1",
    "NCHW_n1c19k2g1_i5x5_w3x3_p1",
    "NCHW_n1c2k3g1_i17x70_w3x2_s2x3_p1.2x2.0_d1x2_flip",
    "NCHW_n2c6k70g2_i3x3_w3x3_p2",
    "NCL_n1c2k3g1_i255_w3_p1",
    "NCL_n1c2k3g1_i256_w3_p1",
    "NCL_n2c2k3g1_i257_w3_p1_act=clip,-1.0,1.0",
)
DEPTHWISE = (
    "NCHW_n1c3k3g3_i8x31_w3x3_p1",  # a plane less than a block takes
    "NCHW_n1c4k4g4_i8x32_w3x3_p1_bias",
    "NCHW_n1c5k5g5_i9x33_w3x3_p1_bias_act=relu",
    "NCHW_n3c3k6g3_i17x70_w3x2_s2x3_p1.2x2.0_d1x2_flip",
    "NCHW_n2c2k2g2_i7x7_w5x5_p2",
    "NCL_n1c3k3g3_i257_w7_p3",
)
WINOGRAD = (
    "NCHW_n1c3k4g1_i8x8_w3x3_p1",
    "NCHW_n2c9k65g1_i9x7_w3x3_p1_bias_act=relu",
    "NCHW_n1c6k4g2_i13x6_w3x3_p1.2x0.1_flip",
    "NCHW_n1c2k3g1_i3x3_w3x3",
    "NCL_n2c3k5g1_i63_w3_p1",
    "NCL_n1c3k5g1_i64_w3_p1_bias",
    "NCL_n1c3k5g1_i65_w3_p1",
)
EDGES = [
    *(("plain", "gemm", text) for text in GEMM),
    *(("large tiles", "gemm", text) for text in GEMM),
    *(("plain", "direct", text) for text in DIRECT),
    *(("plain", "depthwise", text) for text in DEPTHWISE),
    *(("plain", f"winograd.f{m}x3", text) for m in (2, 4) for text in WINOGRAD),
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
    return check(case, name, algorithm=f"{name}.{solver}", choice={"precision": "fast"})


@pytest.mark.parametrize(("which", "solver", "text"), EDGES)
def test_tiles_are_cut_at_their_edges(which: str, solver: str, text: str) -> None:
    outcome = compute(which, solver, text)
    assert outcome.passed, str(outcome)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "text"), [(s, t) for which, s, t in EDGES if which == "plain"]
)  # fmt: skip
def test_tiles_are_cut_at_their_edges_in_float64(solver: str, text: str) -> None:
    outcome = compute("plain", solver, text, "f64")
    assert outcome.passed, str(outcome)


@pytest.mark.parametrize(("which", "solver", "text"), CHECKED)
def test_a_kernel_is_clean_in_checked_mode(which: str, solver: str, text: str) -> None:
    outcome = compute(which, solver, text)
    assert outcome.passed, str(outcome)


# Wavefronts of shared memory and sectors of other memory, over the fewest there could be, for full
# tiles.  Winograd's transforms read and write the image at strides of a tile, which the cache makes
# good, and which is counted here as if it did not.
@pytest.mark.parametrize(
    ("which", "solver", "text", "wavefronts", "sectors"),
    [
        ("checked", "gemm", "NCHW_n1c16k64g1_i8x16_w1x1", 1.0, 1.0),
        ("large tiles, checked", "gemm", "NCHW_n1c16k128g1_i16x8_w1x1", 1.0, 1.0),
        ("checked", "direct", "NCHW_n1c8k32g1_i16x64_w3x3_p1", 1.1, 1.2),
        ("checked", "depthwise", "NCHW_n1c4k4g4_i16x64_w3x3_p1", 1.1, 1.2),
        ("checked", "winograd.f4x3", "NCHW_n1c8k64g1_i32x32_w3x3_p1", 1.0, 2.7),
    ],
)
def test_memory_is_read_in_whole_lines(
    which: str, solver: str, text: str, wavefronts: float, sectors: float
) -> None:
    compute(which, solver, text)  # compiles
    device = BACKENDS[which].gpu
    for module in device.modules.values():
        module.take_counts()
    compute(which, solver, text)
    counts = [c for module in device.modules.values() for c in module.take_counts() if c.requests]
    shared = [c for c in counts if "shared" in c.instruction.modifiers]
    other = [c for c in counts if "global" in c.instruction.modifiers]
    if shared:
        assert sum(c.actual for c in shared) <= wavefronts * sum(c.ideal for c in shared)
    assert other
    assert sum(c.actual for c in other) <= sectors * sum(c.ideal for c in other)


@pytest.mark.parametrize("solver", ["gemm", "direct", "winograd.f4x3"])
def test_sums_live_in_registers(solver: str) -> None:
    compute("plain", solver, WINOGRAD[0])
    for module in BACKENDS["plain"].gpu.modules.values():
        assert not [site for site in module.sites if "local" in site.modifiers]


def hottest_block(sites: Sequence[Instruction | Label]) -> list[Instruction]:
    """The run of instructions without a label or a branch that has most multiply-adds."""
    blocks: list[list[Instruction]] = [[]]
    for site in sites:
        if isinstance(site, Label):
            blocks.append([])
        else:
            blocks[-1].append(site)
            if site.opcode == "bra":
                blocks.append([])
    return max(blocks, key=lambda block: sum(site.opcode == "fma" for site in block))


@pytest.mark.parametrize(
    ("which", "solver", "share"),
    [("plain", "gemm", 0.6), ("large tiles", "gemm", 0.7), ("plain", "direct", 0.45)],
)
def test_the_innermost_loop_multiplies(which: str, solver: str, share: float) -> None:
    """Multiply-adds among its PTX instructions, of which machine code has no more."""
    compute(which, solver, GEMM[5])
    texts = [
        ptx_of(kernel, kinds, GPU.capability)
        for kernel, kinds in BACKENDS[which].gpu.modules
        if kernel.name.startswith(solver)
    ]
    assert texts
    shares = []
    for text in texts:
        (kernel,) = parse(text).kernels.values()
        block = hottest_block(kernel.body)
        shares.append(sum(site.opcode == "fma" for site in block) / len(block))
    assert max(shares) >= share


# PTX for each generation of GPUs that the toolkit compiles for.
@pytest.mark.slow
@pytest.mark.parametrize("capability", [(7, 5), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("solver", ["gemm", "direct", "depthwise", "winograd.f4x3"])
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
    ):
        kind = prod(shape)
        assert (kind >= 2**31) == (algorithm == "gemm")
        with pytest.raises(UnsupportedError, match="too large for offsets of 32 bits"):
            convjit.plan(shape, (channels, 8, 3, 3), backend="emulated", algorithm=algorithm,
                         padding=1)  # fmt: skip


def test_samples_that_exceed_shared_memory_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="exceed the 48 KiB of shared memory"):
        convjit.plan((1, 1, 400, 400), (1, 1, 3, 3), dilation=100, backend="emulated",
                     algorithm="direct")  # fmt: skip

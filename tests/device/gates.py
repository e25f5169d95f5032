"""Figures of GPU kernels that may not become worse: what they are, and what is recorded of them.

``kernels.json`` beside this file has, of every kernel, what the assembler makes of it for each
generation of GPUs (:mod:`convjit.machinecode`), and what the emulator counted: wavefronts of shared
memory and sectors of other memory over the fewest there could be.  After a change that is meant to
change them::

    python tests/device/gates.py                     # all, or a part of it:
    python tests/device/gates.py "cupy variants"

writes the file anew; what became worse stands in the difference.  A new kernel of numba's needs a
problem in PROBLEMS that launches it and a line in COUNTED, one in CUDA C++ a line in CUPY, and
either a limit by its name's beginning; CUDA C++ kernels are to reach shares of 0.85 of
multiply-adds or 0.5 of matrix products, numba's 0.6.  One that is held to less says why.

Kernels are compiled for types, tiles and taps.  Every run compares each as it is launched most;
``-m exhaustive`` compares their variants too, of every tile, mask and way to copy, and of types and
taps some.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import emulated_cupy
import ptxcpu
import standin_cupy
from emulated import GPU, SMALL_GPU, EmulatedBackend, EmulatedDevice, registered

from convjit import gpus, machinecode, registry
from convjit.spec import ConvSpec
from convjit.spi import DeviceCode
from convjit.testing.cases import Case
from convjit.testing.check import check
from convjit_cupy import CupyBackend, code, implicit_gemm, tensor_core

FILE = Path(__file__).with_name("kernels.json")
GENERATIONS = ((8, 0), (9, 0), (10, 0))

VARIANTS = " variants"  # after a backend's name

# Problems whose solvers, or one of them, launch every kernel, in the sizes that choose each tile.
PROBLEMS = {
    "numba_cuda": (
        ("", "conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1x1_bias"),
        ("", "conv_f32_NCHW_n32c64k256g1_i56x56_w1x1"),
        ("", "conv_f32_NCHW_n8c64k64g64_i56x56_w3x3_p1x1"),
        ("", "conv_f64_NCHW_n1c64k64g1_i56x56_w5x5_p2x2"),
    ),
    "numba_cuda" + VARIANTS: (
        ("depthwise", "conv_f64_NCHW_n8c64k64g64_i56x56_w3x3_p1"),
        ("winograd", "conv_f64_NCHW_n1c64k64g1_i56x56_w3x3_p1"),
        ("winograd", "conv_f64_NCL_n1c64k64g1_i500_w3_p1"),
    ),
}

# Solvers of cupy and problems, small and of full tiles: what each launches is measured, and counted
# in the emulator.
CUPY: dict[str, tuple[tuple[str, str], ...]] = {
    "cupy": (
        ("winograd.f2x3", "conv_f32_NCHW_n1c16k64g1_i32x32_w3x3_p1"),
        ("winograd.f4x3", "conv_f32_NCHW_n1c16k64g1_i32x32_w3x3_p1"),
        ("winograd.f6x3", "conv_f32_NCHW_n1c16k64g1_i48x48_w3x3_p1"),
        ("winograd.f6x3", "conv_f16_NCHW_n1c16k64g1_i48x48_w3x3_p1"),
        ("depthwise", "conv_f32_NCHW_n1c4k4g4_i16x64_w3x3_p1"),
        ("depthwise", "conv_f32_NCHW_n1c4k4g4_i32x64_w3x3_s2_p1"),
        ("depthwise", "conv_f64_NCHW_n1c4k4g4_i16x64_w3x3_p1"),
        ("depthwise", "conv_f16_NCHW_n1c4k4g4_i16x64_w3x3_p1"),
        # Each tile once; types of operands change no more than the instruction that multiplies.
        ("tensor_core", "conv_f16_NHWC_n1c64k128g1_i8x8_w1x1_bias"),
        ("tensor_core", "conv_f16_NHWC_n1c64k64g1_i16x32_w1x1_bias"),
        ("tensor_core", "conv_f32_NHWC_n1c32k128g1_i8x16_w1x1_bias"),
        ("tensor_core", "conv_f16_NHWC_n1c1024k128g1_i8x8_w1x1_bias"),  # the depth divided
        # Copies of one position (of a depth that is divided) and of neighbours.
        ("implicit_gemm", "conv_f32_NCHW_n1c64k64g1_i8x8_w1x2_p0x0.1"),
        ("implicit_gemm", "conv_f32_NCHW_n1c32k64g1_i8x8_w1x1"),
        ("implicit_gemm", "conv_f64_NCHW_n1c16k64g1_i8x8_w1x2_p0x0.1"),
        ("implicit_gemm", "conv_f64_NCHW_n1c32k64g1_i8x8_w1x1"),
        ("depthwise.channels_last", "conv_f32_NHWC_n1c64k64g64_i8x8_w3x3_p1"),
        ("depthwise.channels_last", "conv_f16_NHWC_n1c64k64g64_i8x8_w3x3_p1"),
        ("direct", "conv_f32_NCHW_n1c4k32g1_i8x64_w3x3_p1"),
        ("direct", "conv_f32_NCHW_n1c4k32g1_i8x64_w5x5_p2"),
        ("direct", "conv_f32_NCHW_n1c4k32g1_i16x64_w3x3_s2_p1"),
        ("direct", "conv_f64_NCHW_n1c4k32g1_i8x64_w3x3_p1"),
        ("direct", "conv_f16_NCHW_n1c4k32g1_i8x64_w3x3_p1"),
        # Least to multiply for what is loaded: few taps, or those whose windows lie across vectors.
        ("direct", "conv_f64_NCHW_n1c6k32g1_i8x64_w1x1"),
        ("direct", "conv_f64_NCHW_n1c4k32g1_i8x64_w3x1_p1x0"),
        ("direct", "conv_f64_NCHW_n1c4k32g1_i8x64_w2x2_d3"),
        ("direct", "conv_f64_NCHW_n1c4k32g1_i8x64_w3x3_p3_d3"),
    ),
    "cupy" + VARIANTS: (
        ("winograd.f2x3", "conv_f32_NCHW_n2c16k32g1_i7x7_w3x3_p1"),  # rows within sectors
        ("winograd.f2x3", "conv_bf16_NCHW_n1c16k64g1_i32x32_w3x3_p1"),
        ("winograd.f4x3", "conv_f16_NCHW_n1c16k64g1_i32x32_w3x3_p1"),
        ("depthwise", "conv_f32_NCHW_n1c4k4g4_i16x64_w7x7_p3"),
        ("depthwise", "conv_f16_NCHW_n1c4k4g4_i32x64_w3x3_s2_p1"),
        ("depthwise", "conv_f64_NCHW_n1c4k4g4_i16x64_w5x5_p2"),
        ("depthwise", "conv_f64_NCHW_n1c4k4g4_i16x64_w3x3"),  # windows at whole vectors
        ("depthwise", "conv_f64_NCHW_n1c4k4g4_i16x64_w3x3_p1x2_d1x2"),
        ("depthwise", "conv_f32_NCL_n1c4k4g4_i512_w9_p4"),
        ("depthwise", "conv_f32_NCHW_n2c5k5g5_i13x31_w3x3_p1"),  # rows that are no vectors
        ("depthwise.channels_last", "conv_f64_NHWC_n1c64k64g64_i8x8_w3x3_p1"),
        ("depthwise.channels_last", "conv_f32_NHWC_n1c64k64g64_i16x16_w5x5_s2_p2"),
        ("tensor_core", "conv_f32_NHWC_n1c32k64g1_i16x32_w1x1_bias"),
        ("tensor_core", "conv_bf16_NHWC_n1c64k128g1_i8x8_w3x3_p1_bias"),
        ("tensor_core", "conv_f16_NHWC_n1c64k124g1_i8x8_w1x1"),  # no vectors of results
        ("tensor_core", "conv_f32_NHWC_n1c512k128g1_i8x8_w1x1_bias"),
        ("tensor_core", "conv_f16_NHWC_n1c1024k64g1_i16x16_w1x1"),
        # More than 30 taps that are padded.
        ("tensor_core", "conv_f16_NLC_n1c16k128g1_i64_w33_p16"),
        ("tensor_core", "conv_f16_NLC_n1c8k64g1_i512_w33_p16"),
        ("tensor_core", "conv_f32_NLC_n1c8k128g1_i128_w33_p16"),
        ("implicit_gemm", "conv_f32_NCL_n1c4k64g1_i128_w33_p16"),
        ("implicit_gemm", "conv_f64_NCL_n1c4k64g1_i128_w33_p16"),
        ("direct", "conv_bf16_NCHW_n1c4k32g1_i8x64_w3x3_p1"),
        ("direct", "conv_f32_NCHW_n1c6k32g1_i8x64_w1x1"),
        ("direct", "conv_f32_NCHW_n1c4k32g1_i8x64_w7x7_p3"),
        ("direct", "conv_f32_NCL_n1c8k32g1_i512_w3_p1"),
        ("direct", "conv_f64_NCHW_n1c4k32g1_i16x64_w3x3_s2_p1"),
        ("direct", "conv_f64_NCHW_n1c4k32g1_i8x64_w5x5_p2"),
    ),
}
# Tiles that these sizes are too small for: rates and multiprocessors of a GPU choose them.
LARGEST = (
    ("tensor_core", "conv_f16_NHWC_n1c64k128g1_i16x8_w1x1_bias"),
    ("tensor_core", "conv_f16_NLC_n1c16k128g1_i128_w33_p16"),
    ("implicit_gemm", "conv_f32_NCHW_n1c64k128g1_i16x8_w1x2_p0x0.1"),
    ("implicit_gemm", "conv_f32_NCHW_n1c64k128g1_i16x8_w1x1"),
    ("implicit_gemm", "conv_f32_NCL_n1c4k128g1_i128_w33_p16"),
    ("implicit_gemm", "conv_f64_NCHW_n1c32k128g1_i8x8_w1x2_p0x0.1"),
    ("implicit_gemm", "conv_f64_NCHW_n1c32k128g1_i8x8_w1x1"),
    ("implicit_gemm", "conv_f64_NCL_n1c4k128g1_i64_w33_p16"),
)


@contextmanager
def largest_tiles(solver: str) -> Iterator[None]:
    """The largest of a solver's tiles as its only one."""
    tiles = {"tensor_core": tensor_core.TILES, "implicit_gemm": implicit_gemm.TILES}[solver]
    with patch.dict(tiles, {key: sizes[:1] for key, sizes in tiles.items()}):
        yield


class Limit(NamedTuple):
    """What a kernel is held to whatever was recorded.

    Attributes
    ----------
    share : float
        Least share of multiply-adds, or of matrix products, in the hottest loop; 0 for kernels
        that memory bounds.
    wavefronts, sectors : float
        Most, over the fewest there could be.
    reason : str
        Why it is held to less than others, for the file.
    """

    share: float
    wavefronts: float = 1.1
    sectors: float = 1.2
    reason: str = ""


MOVES = "memory bounds it: it is held to its bytes"
DOUBLE = (
    "a product takes the unit for double precision 16 cycles of a warp scheduler's (an A100 "
    "multiplies and adds 64 times a cycle and multiprocessor, an H100 128 times, in products twice "
    "as large), so that one in 16 instructions keeps it busy; from 9.0 on the assembler adds a NOP "
    "or more to each"
)
# By the beginning of a kernel's name.
LIMITS = {
    "numba_cuda": {
        "gemm": Limit(0.6),
        "direct": Limit(0.6),
        "depthwise": Limit(0.0, reason=MOVES),
        "winograd": Limit(0.0, reason=MOVES),
    },
    "cupy": {
        "tensor_core: sum_parts": Limit(0.0, reason=MOVES),
        "tensor_core": Limit(0.5),
        "winograd": Limit(0.85),
        "depthwise": Limit(0.0, reason=MOVES),
        "implicit_gemm: sum_parts": Limit(0.0, reason=MOVES),
        "implicit_gemm: implicit_gemm -DREAL=double": Limit(0.25, reason=DOUBLE),
        "implicit_gemm": Limit(0.85),
        "direct": Limit(0.85),
    },
    "cupy" + VARIANTS: {
        # Two words of a mask a tap, beside the fewest products.
        "implicit_gemm: implicit_gemm -DREAL=double -DWARPS_K=2 -DWARPS_P=1 -DDEPTH=16 -DTENSOR=1 "
        "-DMASK=64": Limit(0.23, reason=DOUBLE),
    },
}  # fmt: skip
# How much worse than recorded a figure may be: compilers of one toolkit differ by patch releases.
SLACK = 0.02


def limit_of(backend: str, kernel: str) -> Limit:
    """The limit of a kernel; a new kernel needs one."""
    of_all = LIMITS[backend.removesuffix(VARIANTS)]
    limits = {**LIMITS.get(backend, {}), **of_all}
    return next(v for begins, v in limits.items() if kernel.startswith(begins))


# -------------------------------------------------------------------- measuring


def offered(backend: str, capability: tuple[int, int]) -> Iterator[DeviceCode]:
    """A backend's kernels, or the variants of them, for a generation.

    Those of cupy are chosen for the multiprocessors and rates of one GPU, the same for all.
    """
    if backend in PROBLEMS:
        device = registry.without_device(backend.removesuffix(VARIANTS))
        for solver, text in PROBLEMS[backend]:
            every = device.device_code(ConvSpec.parse(text), capability)
            yield from (one for one in every if solver in one.solver)
        return
    for solver, text in CUPY[backend]:
        yield from launched(solver, text, capability)
    if backend.endswith(VARIANTS):
        for solver, text in LARGEST:
            with largest_tiles(solver):
                yield from launched(solver, text, capability)


def launched(solver: str, text: str, capability: tuple[int, int]) -> Iterator[DeviceCode]:
    """The kernels that a solver of cupy launches for a problem."""
    notebook = code.Notebook()
    one = [s for s in CupyBackend(notebook).solvers() if s.id == f"cupy.{solver}"]
    spec, model = ConvSpec.parse(text), replace(gpus.model((8, 0)), capability=capability)
    yield from code.device_code(one, notebook, "cupy", spec, model)


def static(backend: str, capability: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Figures of a backend's kernels for a generation, by kernel."""
    found = {one.name: one for one in offered(backend, capability)}
    return {
        name: {
            **machinecode.measure(one, capability).as_dict(),
            "reason": limit_of(backend, name).reason,
        }
        for name, one in found.items()
    }


# Solvers and problems with full tiles; "small" is a GPU for which a small problem is a large one.
COUNTED = {
    "numba_cuda": (
        (GPU, "gemm", "conv_f32_NCHW_n1c16k64g1_i8x16_w1x1"),
        (SMALL_GPU, "gemm", "conv_f32_NCHW_n1c16k256g1_i16x8_w1x1"),
        (GPU, "gemm", "conv_f64_NCHW_n1c16k64g1_i8x16_w1x1"),
        (GPU, "direct", "conv_f32_NCHW_n1c8k32g1_i16x64_w3x3_p1"),
        (GPU, "direct", "conv_f64_NCHW_n1c8k32g1_i16x64_w3x3_p1"),
        (GPU, "depthwise", "conv_f32_NCHW_n1c4k4g4_i16x64_w3x3_p1"),
        (GPU, "winograd.f4x3", "conv_f32_NCHW_n1c8k64g1_i32x32_w3x3_p1"),
        (GPU, "winograd.f2x3", "conv_f32_NCHW_n1c8k64g1_i32x32_w3x3_p1"),
    ),
    "numba_cuda" + VARIANTS: (
        (GPU, "depthwise", "conv_f64_NCHW_n1c4k4g4_i16x64_w3x3_p1"),
        (GPU, "winograd.f4x3", "conv_f64_NCHW_n1c8k64g1_i32x32_w3x3_p1"),
        (GPU, "winograd.f2x3", "conv_f64_NCHW_n1c8k64g1_i32x32_w3x3_p1"),
        (GPU, "winograd.f4x3", "conv_f64_NCL_n1c8k64g1_i512_w3_p1"),
        (GPU, "winograd.f2x3", "conv_f64_NCL_n1c8k64g1_i512_w3_p1"),
    ),
}


def ratios(module: ptxcpu.Module) -> dict[str, float]:
    """Wavefronts and sectors of a module's kernels over the fewest there could be."""
    counts = [c for c in module.take_counts() if c.requests]
    found = {}
    for figure, space in (("wavefronts", "shared"), ("sectors", "global")):
        those = [c for c in counts if space in c.instruction.modifiers]
        if those:
            found[figure] = sum(c.actual for c in those) / sum(c.ideal for c in those)
    return {figure: round(value, 3) for figure, value in found.items()}


def compute(backend: str, solver: str, text: str) -> None:
    """A problem by one solver of a backend, which has to be right."""
    case = Case("counted", ConvSpec.parse(text))
    ptxcpu.forget_counts()
    outcome = check(case, backend, algorithm=f"{backend}.{solver}", choice={"precision": "fast"})
    assert outcome.passed, str(outcome)


def counted_of_numba_cuda(
    problems: Iterable[tuple[Any, str, str]],
) -> dict[str, dict[str, float]]:
    """The ratios of each kernel, in the emulator."""
    found: dict[str, dict[str, float]] = {}
    for gpu, solver, text in problems:
        backend = EmulatedBackend(EmulatedDevice(gpu, checked=True), "emulated_counting")
        with registered(backend):
            compute(backend.name, solver, text)
        for (kernel, _), module in backend.gpu.modules.items():
            found.setdefault(kernel.name, ratios(module))
    return found


def counted_of_cupy(
    backend: emulated_cupy.EmulatedCupy, problems: Iterable[tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """The same of CUDA C++ kernels; ``problems`` are solvers, without the backend, and specs."""
    used, found = standin_cupy.RawModule.used, {}
    standin_cupy.RawModule.checked = True
    try:
        for solver, text in problems:
            used.clear()
            with emulated_cupy.registered(backend):
                compute(backend.name, solver, text)
            found |= {f"{solver}: {kernel}": ratios(module) for kernel, module in used.items()}
    finally:
        standin_cupy.RawModule.checked = False
    return found


def counted(backend: str) -> dict[str, dict[str, float]]:
    """What the emulator counts of a backend's kernels, or of their variants, by kernel."""
    if backend in COUNTED:
        return counted_of_numba_cuda(COUNTED[backend])
    emulated = emulated_cupy.EmulatedCupy("cupy_counted")
    found = counted_of_cupy(emulated, CUPY[backend])
    if backend.endswith(VARIANTS):
        for solver, text in LARGEST:
            with largest_tiles(solver):
                found |= counted_of_cupy(emulated, [(solver, text)])
    return found


BACKENDS = (*PROBLEMS, *CUPY)

# -------------------------------------------------------------------- comparing


def recorded() -> dict[str, dict[str, dict[str, Any]]]:
    """What the file says: by backend, by ``"sm_80"`` or ``"counts"``, by kernel."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def _bits(loads: Mapping[str, int]) -> float:
    """Bits of a load on average."""
    count = sum(loads.values())
    return sum(int(bits) * n for bits, n in loads.items()) / count if count else 0.0


def worse(now: Mapping[str, Any], then: Mapping[str, Any], limit: Limit) -> Iterator[str]:
    """What is worse of a kernel's machine code than was recorded, or than it may be."""
    if now["spilled_bytes"] or now["local"]:
        yield (f"{now['spilled_bytes']} bytes of registers are spilled, {now['local']} "
               "instructions reach local memory")  # fmt: skip
    if now["share"] < limit.share:
        yield f"{now['share']:.0%} of the hottest loop multiplies, less than {limit.share:.0%}"
    if limit.share and now["share"] < then["share"] - SLACK:
        yield f"{now['share']:.1%} of the hottest loop multiplies, {then['share']:.1%} recorded"
    if now["blocks"] < then["blocks"]:
        yield (f"{now['blocks']} blocks fit a multiprocessor ({now['registers']} registers, "
               f"{now['shared_bytes']} bytes), {then['blocks']} recorded")  # fmt: skip
    for loads in ("shared_loads", "global_loads"):
        if _bits(now[loads]) < (1 - SLACK) * _bits(then[loads]):
            yield f"{loads} of {now[loads]}, {then[loads]} recorded"


def costlier(now: Mapping[str, float], then: Mapping[str, float], limit: Limit) -> Iterator[str]:
    """What the emulator counts more of than was recorded, or than may be."""
    for figure, value in now.items():
        most = getattr(limit, figure)
        if value > most:
            yield f"{value:.2f} times the fewest {figure}, more than {most}"
        if value > then.get(figure, 0.0) + SLACK:
            yield f"{value:.3f} times the fewest {figure}, {then.get(figure)} recorded"


def main(backends: Sequence[str]) -> None:
    """Write the file anew, or what it has of some backends or variants."""
    found = recorded() if backends else {}
    for backend in backends or BACKENDS:
        found[backend] = {f"sm_{a}{b}": static(backend, (a, b)) for a, b in GENERATIONS}
        found[backend]["counts"] = counted(backend)
    lines = json.dumps(found, indent=1, sort_keys=True)
    FILE.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

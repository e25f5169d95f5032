"""Figures of GPU kernels that may not become worse: what they are, and what is recorded of them.

``kernels.json`` beside this file has, of every kernel, what the assembler makes of it for each
generation of GPUs (:mod:`convjit.machinecode`), and what the emulator counted: wavefronts of shared
memory and sectors of other memory over the fewest there could be.  After a change that is meant to
change them::

    python tests/device/gates.py

writes the file anew; what became worse stands in the difference.  A new kernel of numba's needs a
problem in PROBLEMS that launches it and a line in COUNTED, one in CUDA C++ a line in CUPY, and
either a limit by its name's beginning; CUDA C++ kernels are to reach shares of 0.85 of
multiply-adds or 0.5 of matrix products, numba's 0.6.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import emulated_cupy
import ptxcpu
import standin_cupy
from emulated import GPU, SMALL_GPU, EmulatedBackend, EmulatedDevice, registered

from convjit import gpus, machinecode, registry
from convjit.spec import ConvSpec
from convjit.spi import DeviceCode
from convjit.testing.cases import Case
from convjit.testing.check import check
from convjit_cupy import CupyBackend, code

FILE = Path(__file__).with_name("kernels.json")
GENERATIONS = ((8, 0), (9, 0), (10, 0))

# Problems whose solvers launch every kernel, in the sizes that choose each kind of tile.
PROBLEMS = {
    "numba_cuda": (
        "conv_f32_NCHW_n1c64k64g1_i56x56_w3x3_p1x1_bias",
        "conv_f32_NCHW_n32c64k256g1_i56x56_w1x1",
        "conv_f32_NCHW_n8c64k64g64_i56x56_w3x3_p1x1",
        "conv_f64_NCHW_n1c64k64g1_i56x56_w5x5_p2x2",
    ),
}

# Solvers of cupy and problems, small and of full tiles: what each launches is measured, and counted
# in the emulator.
CUPY = (
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
)


class Limit(NamedTuple):
    """What a kernel is held to whatever was recorded.

    Attributes
    ----------
    share : float
        Least share of multiply-adds, or of matrix products, in the hottest loop; 0 for kernels
        that memory bounds.
    wavefronts, sectors : float
        Most, over the fewest there could be.
    """

    share: float
    wavefronts: float = 1.1
    sectors: float = 1.2


# By the beginning of a kernel's name.  numba's transforms of Winograd read and write the image at
# strides of a tile; all of a sector is used, by the next loads, which the cache has it for, but
# each request is counted by itself.
LIMITS = {
    "numba_cuda": {
        "gemm": Limit(0.6),
        "direct": Limit(0.6),
        "depthwise": Limit(0.0),
        "winograd.data": Limit(0.0, sectors=4.0),
        "winograd.output": Limit(0.0, sectors=4.0),
    },
    "cupy": {
        "tensor_core: sum_parts": Limit(0.0),
        # Two stores write the halves of a sector, which the cache puts together.
        "tensor_core: tensor_core -DDIVIDED=1": Limit(0.5, sectors=1.3),
        "tensor_core": Limit(0.5),
        "winograd": Limit(0.85),
        "depthwise": Limit(0.0),
        "implicit_gemm: sum_parts": Limit(0.0),
        # A product in double precision takes its unit 16 cycles (an A100 multiplies and adds 64
        # times a cycle, an H100 128 times); later assemblers wait after each by NOPs.
        "implicit_gemm: implicit_gemm -DREAL=double": Limit(0.25),
        "implicit_gemm": Limit(0.85),
        "direct": Limit(0.85),
    },
}
# How much worse than recorded a figure may be: compilers of one toolkit differ by patch releases.
SLACK = 0.02


def limit_of(backend: str, kernel: str) -> Limit:
    """The limit of a kernel; a new kernel needs one."""
    return next(v for begins, v in LIMITS[backend].items() if kernel.startswith(begins))


# -------------------------------------------------------------------- measuring


def offered(backend: str, capability: tuple[int, int]) -> Iterator[DeviceCode]:
    """A backend's kernels for a generation.

    Those of cupy are chosen for the multiprocessors and rates of one GPU, the same for all.
    """
    if backend == "cupy":
        for solver, text in CUPY:
            notebook = code.Notebook()
            every = CupyBackend(notebook).solvers()
            one = [s for s in every if s.id == f"{backend}.{solver}"]
            spec, model = ConvSpec.parse(text), replace(gpus.model((8, 0)), capability=capability)
            yield from code.device_code(one, notebook, backend, spec, model)
        return
    for text in PROBLEMS[backend]:
        yield from registry.without_device(backend).device_code(ConvSpec.parse(text), capability)


def static(backend: str, capability: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Figures of a backend's kernels for a generation, by kernel."""
    found = {one.name: one for one in offered(backend, capability)}
    return {name: machinecode.measure(one, capability).as_dict() for name, one in found.items()}


# Solvers and problems with full tiles; "small" is a GPU for which a small problem is a large one.
COUNTED = (
    (GPU, "gemm", "conv_f32_NCHW_n1c16k64g1_i8x16_w1x1"),
    (SMALL_GPU, "gemm", "conv_f32_NCHW_n1c16k256g1_i16x8_w1x1"),
    (GPU, "gemm", "conv_f64_NCHW_n1c16k64g1_i8x16_w1x1"),
    (GPU, "direct", "conv_f32_NCHW_n1c8k32g1_i16x64_w3x3_p1"),
    (GPU, "direct", "conv_f64_NCHW_n1c8k32g1_i16x64_w3x3_p1"),
    (GPU, "depthwise", "conv_f32_NCHW_n1c4k4g4_i16x64_w3x3_p1"),
    (GPU, "winograd.f4x3", "conv_f32_NCHW_n1c8k64g1_i32x32_w3x3_p1"),
    (GPU, "winograd.f2x3", "conv_f32_NCHW_n1c8k64g1_i32x32_w3x3_p1"),
)


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


def counted_of_numba_cuda() -> dict[str, dict[str, float]]:
    """The ratios of each kernel, in the emulator."""
    found: dict[str, dict[str, float]] = {}
    for gpu, solver, text in COUNTED:
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


COUNTS: dict[str, Callable[[], dict[str, dict[str, float]]]] = {
    "numba_cuda": counted_of_numba_cuda,
    "cupy": lambda: counted_of_cupy(emulated_cupy.EmulatedCupy("cupy_counted"), CUPY),
}

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


def main() -> None:
    """Write the file anew."""
    found = {}
    for backend in COUNTS:
        found[backend] = {f"sm_{a}{b}": static(backend, (a, b)) for a, b in GENERATIONS}
        found[backend]["counts"] = COUNTS[backend]()
    lines = json.dumps(found, indent=1, sort_keys=True)
    FILE.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

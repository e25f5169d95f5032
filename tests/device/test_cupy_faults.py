"""Faults planted in the CUDA C++ kernels are found: by checked mode, or by the oracle.

Each row changes one place of a kernel's source, or of the module that launches it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import standin_cupy
from emulated_cupy import EmulatedCupy, missing, registered
from faults import changed, told_of

from convjit.spi import Solver
from convjit_cupy import (
    depthwise,
    depthwise_channels_last,
    direct,
    implicit_gemm,
    tensor_core,
    winograd,
)

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SOLVERS = {
    depthwise: lambda m, *args: m.DepthwiseSolver(*args),
    depthwise_channels_last: lambda m, *args: m.ChannelsLastDepthwiseSolver(*args),
    direct: lambda m, *args: m.DirectSolver(*args),
    implicit_gemm: lambda m, *args: m.ImplicitGemmSolver(*args),
    tensor_core: lambda m, *args: m.TensorCoreSolver(*args),
    winograd: lambda m, *args: m.WinogradSolver(*args, 4),
}
SHAPES = {
    depthwise: "NCHW_n1c5k5g5_i9x36_w3x3_p1",
    depthwise_channels_last: "NHWC_n2c5k5g5_i4x9_w3x3_p1",
    direct: "NCHW_n1c19k33g1_i9x33_w3x3_p1",
    implicit_gemm: "NCHW_n1c9k65g1_i13x5_w3x3_p1",
    tensor_core: "NHWC_n1c40k136g1_i9x8_w3x2_p1_bias",
    winograd: "NCHW_n1c9k33g1_i9x13_w3x3_p1",
}


class Planted(NamedTuple):
    """A fault.

    Attributes
    ----------
    module : module
        The kernel's.
    before, after : str
        What stands in the kernel's ``SOURCE`` or else in the module, and what in its place.
    found : str
        Pattern of what checked mode says; ``"wrong"`` where only the numbers tell.
    shape : str
        The problem, if not the module's.
    dtype : str
    """

    module: ModuleType
    before: str
    after: str
    found: str
    shape: str = ""
    dtype: str = "f32"


FAULTS: dict[str, Planted] = {
    "depthwise, no barrier": Planted(
        depthwise, "    __syncwarp();\n\n    Sum sums", "\n    Sum sums",
        "race: read|uninitialised",
    ),
    "depthwise, no barrier before the patch becomes a stage": Planted(
        depthwise, "    __syncwarp();\n#pragma unroll\n    for (unsigned g", "#pragma unroll\n"
        "    for (unsigned g", "race", "NCHW_n1c5k5g5_i9x33_w3x3_p1",
    ),
    "depthwise, tiles beyond the last": Planted(
        depthwise, "if (tile >= tiles) return;", "", "out of bounds",
    ),
    "depthwise, a short patch": Planted(
        depthwise, "sheet < sheets) {", "sheet + 1 < sheets + (line + 1 < LINES)) {",
        "uninitialised",
    ),
    "depthwise, few weights": Planted(
        depthwise, "i < taps * ROWS * COLUMNS; i", "i + 1 < taps * ROWS * COLUMNS; i",
        "uninitialised",
    ),
    "depthwise, weights of another channel": Planted(
        depthwise, "w[k * taps * ROWS * COLUMNS + i]", "w[i]", "wrong",
    ),
    "depthwise, no right edge of the image": Planted(
        depthwise, "y < p.height && column < p.width", "y < p.height", "out of bounds|wrong",
    ),
    "depthwise, no lower edge of the outputs": Planted(
        depthwise, "            if (y < height && x < width)\n", "            if (x < width)\n",
        "out of bounds|wrong",
    ),
    "depthwise, wide loads of rows that are not aligned": Planted(
        depthwise, "p.left % VECTOR == 0 && is_wide(x, p.width)", "true",
        "misaligned|wrong|out of bounds", "NCHW_n1c5k5g5_i9x33_w3x3",
    ),
    "depthwise, the sample beside": Planted(
        depthwise, "window.at[at % STRIDE][at / STRIDE + output]",
        "window.at[at % STRIDE][(at + 1) / STRIDE + output]", "wrong",
        "NCHW_n1c5k5g5_i9x36_w3x2_p1",
    ),
    "depthwise, rows and columns of taps swapped": Planted(
        depthwise, "into[...] = taps", "into[...] = taps.swapaxes(3, 4)", "wrong",
    ),
    "channels last, threads beyond the last": Planted(
        depthwise_channels_last, "if (at >= total) return;", "", "out of bounds|wrong",
    ),
    "channels last, channels beyond the last": Planted(
        depthwise_channels_last, "if (c < count) to", "to", "out of bounds|wrong",
    ),
    "channels last, no left edge of the image": Planted(
        depthwise_channels_last, "if (in_x < width)", "if (in_x <= width)", "out of bounds|wrong",
    ),
    "channels last, wide loads that are not aligned": Planted(
        depthwise_channels_last, "if (wide) sum_up", "if (true) sum_up",
        "misaligned|out of bounds|wrong",
    ),
    "channels last, rows and columns of taps swapped": Planted(
        depthwise_channels_last, "taps.transpose(1, 2, 3, 0)", "taps.transpose(1, 3, 2, 0)",
        "wrong",
    ),
    "direct, no barrier after a chunk was read": Planted(
        direct, "        __syncthreads();\n        load_patch", "        load_patch", "race",
    ),
    "direct, no barrier before a chunk is read": Planted(
        direct, "        __syncthreads();\n        const Sum *weight ",
        "        const Sum *weight ", "race: read|uninitialised",
    ),
    "direct, no barrier before the patch becomes a stage": Planted(
        direct, "    __syncthreads();  // the patch", "    // the patch", "race",
    ),
    "direct, few weights": Planted(
        direct, "i < count * OF_A_SHEET;", "i + 128 < count * OF_A_SHEET;",
        "uninitialised|wrong",
    ),
    "direct, a step left out": Planted(
        direct, "done < sheets; done", "done + chunk < sheets; done", "wrong",
    ),
    "direct, weights of another panel": Planted(
        direct, "w + (panel * sheets + done)", "w + done", "wrong",
    ),
    "direct, outputs beyond the last": Planted(
        direct, "if (k >= outputs) break;", "", "out of bounds",
    ),
    "direct, groups of positions swapped": Planted(
        direct, "window_of(line + (row_of(0, g)", "window_of(line + (row_of(0, GROUPS - 1 - g)",
        "wrong",
    ),
    "direct, rows and columns of taps swapped": Planted(
        direct, "some.transpose(0, 2, 3, 4, 1)", "some.transpose(0, 2, 4, 3, 1)", "wrong",
    ),
    "implicit gemm, no barrier": Planted(
        implicit_gemm, "        __syncthreads();  // also", "        // also", "race|uninitialised",
    ),
    "implicit gemm, copies are not waited for": Planted(
        implicit_gemm, "        wait_for_copies();\n", "        commit_copies();\n",
        "uninitialised",
    ),
    "implicit gemm, the last copies are not waited for": Planted(
        implicit_gemm, "        wait_for_copies();\n",
        "        commit_copies();\n        wait_for_all_but<1>();\n", "uninitialised|race",
    ),
    "implicit gemm, copies into the stage that is read": Planted(
        implicit_gemm, "fetch(STAGE - stage);", "fetch(stage);", "uninitialised|race|wrong",
    ),
    "implicit gemm, a step left out": Planted(
        implicit_gemm, "steps > 0; steps--", "steps > 1; steps--", "wrong",
    ),
    "implicit gemm, a step too many": Planted(
        implicit_gemm, "if (steps > 1) fetch", "if (steps > 0) fetch",
        "load out of bounds",
    ),
    "implicit gemm, few depths": Planted(
        implicit_gemm, "i < OWN; i += TOGETHER", "i + 4 < OWN; i += TOGETHER", "uninitialised",
    ),
    "implicit gemm, the sample beside": Planted(
        implicit_gemm, "corner + int(offsets", "corner + 1 + int(offsets",
        "load out of bounds|wrong",
    ),
    "implicit gemm, no zeros outside the image": Planted(
        implicit_gemm, "!(mask & bits)", "true", "out of bounds|wrong",
    ),
    "implicit gemm, the lower half of a mask": Planted(
        implicit_gemm, "!(mask & bits)", "!unsigned(mask & bits)",
        "out of bounds|wrong", "NCL_n1c3k5g1_i40_w33_p16",
    ),
    "implicit gemm, a mask of the taps of another axis": Planted(
        implicit_gemm, "outside(axes[2], at_x, bits_z + bits_y)", "outside(axes[2], at_x, bits_z)",
        "out of bounds|wrong",
    ),
    "implicit gemm, positions beyond the last": Planted(
        implicit_gemm, "                    if (p + e < positions) {", "                    {",
        "store out of bounds|wrong",
    ),
    "implicit gemm, outputs beyond the last": Planted(
        implicit_gemm, "if (k >= outputs) break;", "", "out of bounds",
    ),
    "implicit gemm, wide results of planes that are no whole vectors": Planted(
        implicit_gemm, "pixels % VECTOR == 0 && reinterpret", "reinterpret",
        "misaligned|out of bounds|wrong",
    ),
    "implicit gemm, neighbours of planes that are no whole vectors": Planted(
        implicit_gemm, "one_tap and pixels % self._vector == 0", "one_tap",
        "misaligned|out of bounds|wrong", "NCHW_n2c17k65g1_i3x5_w1x1",
    ),
    "implicit gemm, offsets of taps without dilation": Planted(
        implicit_gemm, "offsets_and_bits(axes, ",
        "offsets_and_bits(axes_of(spec.replace(dilation=(1, 1))), ", "wrong",
        "NCHW_n1c9k65g1_i13x7_w3x3_p1_d2",
    ),
    "implicit gemm, samples of four depths where they would lie without the others": Planted(
        implicit_gemm, "(n / 2 ^ t) * VECTOR", "n / 2 * VECTOR", "wrong", dtype="f64",
    ),
    "implicit gemm, positions in the order of the products": Planted(
        implicit_gemm, "return v * 8 + lane % 4 * 2;",
        "return v / 2 * 16 + lane % 4 * 4 + v % 2 * 2;", "wrong", dtype="f64",
    ),
    "implicit gemm, weights in the order of the outputs": Planted(
        implicit_gemm, "transpose(0, 1, 2, 4, 5, 7, 3, 6)", "transpose(0, 1, 2, 3, 4, 5, 6, 7)",
        "wrong", dtype="f64",
    ),
    "implicit gemm, samples of the first part for every part": Planted(
        implicit_gemm, "(part * each * DEPTH + row) / 4", "row / 4", "wrong",
        "NCHW_n1c33k65g1_i5x7_w3x3_p1",
    ),
    "implicit gemm, parts over each other": Planted(
        implicit_gemm, "y += size_t(part) * positions", "y += size_t(part % 2) * positions",
        "wrong", "NCHW_n1c33k65g1_i5x7_w3x3_p1",
    ),
    "implicit gemm, weights of another depth": Planted(
        implicit_gemm, "transpose(0, 1, 3, 2)", "transpose(0, 1, 3, 2)[:, :, ::-1]", "wrong",
    ),
    "winograd, no wait for the weights": Planted(
        winograd, "        wait_for_copies();\n", "", "uninitialised|wrong",
    ),
    "winograd, no barrier between rows and columns": Planted(
        winograd, "        wait_for_copies();\n        __syncthreads();\n",
        "        wait_for_copies();\n", "race|uninitialised",
    ),
    "winograd, no barrier before the products": Planted(
        winograd, "        __syncthreads();\n        if (step + 1 < steps)",
        "        if (step + 1 < steps)", "race|uninitialised",
    ),
    "winograd, no barrier after the products": Planted(
        winograd, "    }\n    __syncthreads();\n\n    // PASS", "    }\n\n    // PASS", "race",
    ),
    "winograd, no barrier before a pass is transformed": Planted(
        winograd, "        __syncthreads();\n#pragma unroll 1\n        for (u32 row",
        "#pragma unroll 1\n        for (u32 row", "race",
    ),
    "winograd, no barrier between rows and columns of a pass": Planted(
        winograd, "        __syncthreads();  // the points", "        // the points",
        "race|uninitialised",
    ),
    "winograd, a column beyond the image": Planted(
        winograd, "column < width;", "column <= width;", "wrong|out of bounds",
    ),
    "winograd, a line beyond the image": Planted(
        winograd, "top + i < height", "top + i <= height", "wrong|out of bounds",
    ),
    "winograd, a column too few of the last tile": Planted(
        winograd, "column_of(TILES - 1) + N,", "column_of(TILES - 1) + N - 1,",
        "uninitialised|wrong", "NCHW_n1c9k33g1_i13x17_w3x3_p1",
    ),
    "winograd, columns of the row of tiles before": Planted(
        winograd, "(first_x + tile) / tiles_x * (N - M)", "tile / tiles_x * (N - M)",
        "uninitialised|wrong", "NCHW_n1c9k33g1_i17x25_w3x3_p1",
    ),
    "winograd, a short step of weights": Planted(
        winograd, "i < POINTS * WEIGHTS;", "i + 4 < POINTS * WEIGHTS;", "uninitialised|wrong",
    ),
    "winograd, an output too many": Planted(
        winograd, "k < outputs &&", "k <= outputs &&", "wrong|out of bounds",
    ),
    "winograd, points of another warp": Planted(
        winograd, "+ warp * WARP_POINTS * WEIGHTS", "+ warp / 2 * WARP_POINTS * WEIGHTS", "wrong",
    ),
    "tensor core, no wait for copies": Planted(
        tensor_core, "            wait_for_all_but<STAGES - 2>();\n", "", "uninitialised|wrong",
    ),
    "tensor core, a wait for too few copies": Planted(
        tensor_core, "wait_for_all_but<STAGES - 2>", "wait_for_all_but<STAGES - 1>",
        "uninitialised|race|wrong",
    ),
    "tensor core, no barrier": Planted(
        tensor_core, "            __syncthreads();  //", "            //", "uninitialised|race",
    ),
    "tensor core, copies into the stage that is read": Planted(
        tensor_core, "(stage + STAGES - 1) % STAGES", "stage", "race|uninitialised|wrong",
    ),
    "tensor core, no right edge of the image": Planted(
        tensor_core, "(u32)(first + tap * axis.dilation) < (u32)axis.size",
        "first + tap * axis.dilation >= 0", "wrong|out of bounds",
    ),
    "tensor core, positions beyond the last are read": Planted(
        tensor_core, "if (position >= positions) continue;\n            const int x0",
        "const int x0", "out of bounds|wrong",
    ),
    "tensor core, positions beyond the last are written": Planted(
        tensor_core, "lane / 4 < positions && first_k + k", "lane / 4 < ROWS && first_k + k",
        "out of bounds|wrong",
    ),
    "tensor core, outputs beyond the last are written": Planted(
        tensor_core, "positions && first_k + k < outputs)\n                *(uint4*)",
        "positions)\n                *(uint4*)", "out of bounds|wrong",
    ),
    "tensor core, no swizzle of what is loaded": Planted(
        tensor_core, "(matrix / 2 ^ swizzle)", "(matrix / 2)", "wrong",
    ),
    "tensor core, halves of the depth swapped": Planted(
        tensor_core, "{from_a ^ 2 * CHUNK, from_b ^ 2 * CHUNK}",
        "{from_a ^ 2 * CHUNK, from_b}", "wrong",
    ),
    "tensor core, rows of a product swapped": Planted(
        tensor_core, "matrix % 2 * 8 + in_matrix", "matrix / 2 * 8 + in_matrix", "wrong",
    ),
    "tensor core, weights of the tile beside": Planted(
        tensor_core, "(group * tiles_k + tile_k) * all_steps", "group * all_steps", "wrong",
    ),
    "tensor core, samples of the first part for every part": Planted(
        tensor_core, "table + (first_step * CHUNKS + chunk)", "table + chunk", "wrong",
        "NHWC_n1c64k72g1_i7x7_w3x3_p1_bias",
    ),
    "tensor core, a row left out": Planted(
        tensor_core, "i < PARTS_P; i++)\n            copy",
        "i + 1 < PARTS_P; i++)\n            copy", "uninitialised|wrong",
    ),
    "tensor core, the last step left out": Planted(
        tensor_core, "int left = steps;", "int left = steps - 1;", "wrong",
    ),
    "tensor core, columns in the order of the products": Planted(
        tensor_core, "own = lane % 4 * NEIGHBOURS", "own = lane % 4 * 2", "wrong|misaligned",
    ),
    "tensor core, results over stages that are read": Planted(
        tensor_core, "__syncthreads();  // all have read the stages", "// all have read the stages",
        "race", "NHWC_n1c40k134g1_i9x8_w3x2_p1",
    ),
    "tensor core, no wait for the rows of results": Planted(
        tensor_core, "        __syncwarp();\n#pragma unroll\n        for (int row",
        "#pragma unroll\n        for (int row", "race|uninitialised",
        "NHWC_n1c40k134g1_i9x8_w3x2_p1",
    ),
    "tensor core, bias of other outputs": Planted(
        tensor_core, "bias[group * outputs + k]", "bias[k - e]", "wrong",
        "NHWC_n1c16k136g1_i9x8_w3x2_p1_bias",
    ),
}  # fmt: skip
# One of each kind in the quick tier.
QUICK = (
    "depthwise, no barrier",
    "direct, no barrier before a chunk is read",
    "implicit gemm, copies are not waited for",
    "tensor core, no barrier",
    "winograd, no barrier before the products",
)


class FaultyBackend(EmulatedCupy):
    """A backend with one solver, that of a changed module."""

    def __init__(self, fault: Planted) -> None:
        super().__init__("cupy_faulty")
        in_source = fault.before in fault.module.SOURCE
        before, after = ("", "") if in_source else (fault.before, fault.after)
        module = changed(fault.module, before, after)
        if in_source and fault.before:
            assert module.SOURCE.count(fault.before) == 1
            module.__dict__["SOURCE"] = module.SOURCE.replace(fault.before, fault.after)
        self._solver = SOLVERS[fault.module](module, self.name, standin_cupy)

    def solvers(self) -> Sequence[Solver]:
        return (self._solver,)


@pytest.fixture(autouse=True)
def _in_checked_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin_cupy.RawModule, "checked", True)


def parameters() -> list[Any]:
    """A few in the quick tier, every seventh in the slow one: each is compiled for itself."""
    found = []
    for place, name in enumerate(FAULTS):
        marks = [] if name in QUICK else [pytest.mark.slow]
        if name not in QUICK and place % 7:
            marks.append(pytest.mark.exhaustive)
        found.append(pytest.param(name, marks=marks, id=name))
    return found


@pytest.mark.parametrize("name", parameters())
def test_a_planted_fault_is_found(name: str) -> None:
    fault = FAULTS[name]
    with registered(FaultyBackend(fault)):
        shape = fault.shape or SHAPES[fault.module]
        told = told_of("cupy_faulty", f"conv_{fault.dtype}_{shape}")
    assert re.search(fault.found, told), f"told {told!r}"


@pytest.mark.slow
@pytest.mark.parametrize("module", SHAPES, ids=lambda m: m.__name__)
def test_a_kernel_without_a_fault_passes(module: ModuleType) -> None:
    with registered(FaultyBackend(Planted(module, "", "", ""))):
        assert told_of("cupy_faulty", f"conv_f32_{SHAPES[module]}") == "nothing"

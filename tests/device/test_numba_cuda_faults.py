"""Faults planted in the kernels are found: by checked mode, or by the oracle.

Each row changes one line of a kernel's source; the changed kernel is compiled and run in checked
mode on a small problem.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from emulated import EmulatedBackend, EmulatedDevice, missing, registered
from faults import changed, told_of

from convjit.spec import ConvSpec
from convjit.spi import Solver
from convjit.testing.cases import Case
from convjit.testing.check import check

if missing() is not None:
    pytest.skip(str(missing()), allow_module_level=True)

from convjit_numba_cuda import depthwise, direct, gemm, tiles, winograd

SOLVERS = {
    gemm: lambda m, *args: m.GemmSolver(*args),
    direct: lambda m, *args: m.DirectSolver(*args),
    depthwise: lambda m, *args: m.DepthwiseSolver(*args),
    winograd: lambda m, *args: m.WinogradSolver(*args, 4),
}
SHAPES = {
    gemm: "NCHW_n1c9k65g1_i13x5_w3x3_p1",
    direct: "NCHW_n1c12k33g1_i9x33_w3x3_p1",
    depthwise: "NCHW_n1c5k5g5_i9x33_w3x3_p1",
    winograd: "NCHW_n1c17k65g1_i9x12_w3x3_p1",  # a block ends within a row of tiles
}


class Planted(NamedTuple):
    """A fault: a line and what stands in its place.

    Attributes
    ----------
    module : module
        The kernel's.
    before, after : str
    found : str
        Pattern of what checked mode says; ``"wrong"`` where only the numbers tell.
    at : module
        Where the line is, if not in the kernel's module.
    """

    module: ModuleType
    before: str
    after: str
    found: str
    at: ModuleType | None = None


BARRIER = "            cuda.syncthreads()\n"
FAULTS = {
    "gemm, no barrier after the step was read": Planted(
        gemm, f"{BARRIER}            for i in range(loads):", "            for i in range(loads):",
        "race",
    ),
    "gemm, no barrier before the step is read": Planted(
        gemm, f"{BARRIER}            done =", "            done =", "race: read|uninitialised",
    ),
    "direct, no barrier after a chunk was read": Planted(
        direct, f"{BARRIER}            load_patch(", "            load_patch(",
        "race",
    ),
    "direct, no barrier before a chunk is read": Planted(
        direct, f"{BARRIER}            at_weights =", "            at_weights =",
        "race: read|uninitialised",
    ),
    "depthwise, no barrier": Planted(
        depthwise, "        cuda.syncthreads()\n", "", "race: read|uninitialised",
    ),
    "gemm, wrong index of a sample": Planted(
        gemm, "samples[at_column + uint64(COLUMNS * j)]",
        "samples[at_column + uint64(COLUMNS * j + 1)]", "out of bounds|wrong",
    ),
    "gemm, wrong index of x": Planted(
        gemm, "corner + table[entry])", "corner + table[entry] + uint32(1))",
        "load out of bounds|wrong",
    ),
    "direct, wrong index of a sample": Planted(
        direct, "shared[uint32(at + places[j])]", "shared[uint32(at + places[j] + uint32(1))]",
        "uninitialised|race|wrong|out of bounds",
    ),
    "winograd, wrong index of a point": Planted(
        winograd, "v[uint32((uint32(i) * channels + channel) * tiles + place)]",
        "v[uint32((uint32(i) * channels + channel + uint32(1)) * tiles + place)]",
        "store out of bounds",
    ),
    "winograd, no barrier before columns of other threads": Planted(
        winograd, "            cuda.syncthreads()  # the other", "            # the other",
        "race|uninitialised",
    ),
    "winograd, one buffer of lines": Planted(
        winograd, "uint32(i % 2 * line + r", "uint32(r", "race|uninitialised|wrong",
    ),
    "winograd, no barrier before results of other threads": Planted(
        winograd, "        cuda.syncthreads()\n        # Columns", "        # Columns",
        "race|uninitialised",
    ),
    "winograd, a row's last tile with columns of the next row": Planted(
        winograd, " or own % run == uint32(run - uint32(mx))", "", "wrong",
    ),
    "winograd, a block's last tile with columns of the next block": Planted(
        winograd, "thread == uint32(THREADS - 1) or ", "", "uninitialised",
    ),
    "a short patch": Planted(
        direct, "while column < patch_width:", "while column + uint32(1) < patch_width:",
        "uninitialised", at=tiles,
    ),
    "direct, a short tile of weights": Planted(
        direct, "while tap < uint32(count * taps):",
        "while tap + uint32(1) < uint32(count * taps):",
        "uninitialised",
    ),
    "gemm, a short tile": Planted(
        gemm, "            for i in range(loads):\n                weights",
        "            for i in range(loads - 1):\n                weights", "uninitialised",
    ),
    "gemm, a step left out": Planted(
        gemm, "if done >= depth:", "if done + uint32(DEPTH) >= depth:", "wrong",
    ),
    "direct, rows and columns of taps swapped": Planted(
        direct, "taps.transpose(0, 2, 3, 4, 1)", "taps.transpose(0, 2, 4, 3, 1)", "wrong",
    ),
    "gemm, taps reversed": Planted(
        gemm, "planes.grouped_taps(self.spec, rhs)",
        "planes.grouped_taps(self.spec, rhs)[..., ::-1]",
        "wrong",
    ),
    "winograd, taps swapped": Planted(
        winograd, "taps.transpose(3, 4, 0, 1, 2)", "taps.transpose(4, 3, 0, 1, 2)", "wrong",
    ),
    "direct, outputs beyond the edge": Planted(
        direct, "if out_y >= out_height or out_x >= out_width:", "if out_x >= out_width:",
        "store out of bounds|wrong",
    ),
    "gemm, positions beyond the edge": Planted(
        gemm, "if position < positions:", "if position >= uint32(0):",
        "store out of bounds|wrong",
    ),
    "gemm, no right edge of the image": Planted(
        gemm, "(y_at < height) & (x_at < width)", "(y_at < height) & (x_at <= width)",
        "wrong|load out of bounds",
    ),
    "gemm, weights of the panel beside": Planted(
        gemm, "panels + k // uint32(PANEL)", "panels + uint32(0)", "wrong",
    ),
    "depthwise, planes beyond the last": Planted(
        depthwise, "if own < count and", "if", "out of bounds|uninitialised|wrong",
    ),
}  # fmt: skip
# One of each kind in the quick tier.
QUICK = (
    "gemm, no barrier before the step is read", "winograd, wrong index of a point",
    "a short patch", "direct, rows and columns of taps swapped",
)  # fmt: skip


class FaultyBackend(EmulatedBackend):
    """A backend with one solver, that of a changed module."""

    def __init__(self, fault: Planted) -> None:
        super().__init__(EmulatedDevice(checked=True), "emulated_faulty")
        if fault.at is None:
            module = changed(fault.module, fault.before, fault.after)
        else:
            helper = changed(fault.at, fault.before, fault.after)
            module = changed(fault.module, load_patch=helper.load_patch)
        self._solver = SOLVERS[fault.module](module, self.name, self.gpu)

    def solvers(self) -> Sequence[Solver]:
        return (self._solver,)


def parameters() -> list[Any]:
    """A few in the quick tier, every second in the slow one: each is compiled for itself."""
    found = []
    for place, name in enumerate(FAULTS):
        marks = [] if name in QUICK else [pytest.mark.slow]
        if name not in QUICK and place % 2:
            marks.append(pytest.mark.exhaustive)
        found.append(pytest.param(name, marks=marks, id=name))
    return found


@pytest.mark.parametrize("name", parameters())
def test_a_planted_fault_is_found(name: str) -> None:
    fault = FAULTS[name]
    with registered(FaultyBackend(fault)):
        told = told_of("emulated_faulty", f"conv_f32_{SHAPES[fault.module]}")
    assert re.search(fault.found, told), f"told {told!r}"


@pytest.mark.slow
@pytest.mark.parametrize("module", SHAPES, ids=lambda m: m.__name__)
def test_a_kernel_without_a_fault_passes(module: ModuleType) -> None:
    case = Case("whole", ConvSpec.parse(f"conv_f32_{SHAPES[module]}"))
    with registered(FaultyBackend(Planted(module, "", "", ""))):
        outcome = check(case, "emulated_faulty", choice={"precision": "fast"})
    assert outcome.passed, str(outcome)

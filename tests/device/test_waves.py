"""What the solvers of GPUs choose and predict by how many blocks there are for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gates
import pytest
from emulated import missing
from emulated_cupy import missing as missing_cupy

from convjit import cost, gpus, occupancy, registry
from convjit.gauges import resident_call
from convjit.spec import ConvSpec
from convjit.spi import Config, Solver, Target
from convjit_cupy import CupyBackend, code, targets

pytestmark = pytest.mark.skipif(
    (missing() or missing_cupy()) is not None, reason=str(missing() or missing_cupy())
)

A100 = targets.target("cupy", gpus.model((8, 0)))


def cupy_solver(name: str) -> Solver:
    every = CupyBackend(code.Notebook()).solvers()
    return next(s for s in every if s.id == f"cupy.{name}")


def chosen(solver: str, text: str) -> dict[str, Any]:
    configs: list[Config] = list(cupy_solver(solver).configs(ConvSpec.parse(text), A100))
    return dict(configs[0])


@pytest.mark.parametrize(
    ("solver", "text", "parts"),
    [
        ("implicit_gemm", "conv_f32_NCHW_n1c512k512g1_i7x7_w3x3_p1", (2, 100)),
        ("implicit_gemm", "conv_f32_NCHW_n64c512k512g1_i28x28_w3x3_p1", (1, 1)),
        ("implicit_gemm", "conv_f64_NCHW_n1c512k64g1_i7x7_w3x3_p1", (2, 100)),
        ("implicit_gemm", "conv_f32_NCHW_n1c16k64g1_i7x7_w1x1", (1, 1)),  # nothing to divide
        ("tensor_core", "conv_f16_NHWC_n1c512k512g1_i7x7_w3x3_p1", (2, 100)),
        ("tensor_core", "conv_f16_NHWC_n64c512k512g1_i28x28_w3x3_p1", (1, 1)),
    ],
)
def test_the_depth_is_divided_where_blocks_are_few(
    solver: str, text: str, parts: tuple[int, int]
) -> None:
    assert parts[0] <= chosen(solver, text)["parts"] <= parts[1]


def test_a_tile_is_as_large_as_blocks_remain_for_all() -> None:
    # Of either tile a whole number of blocks for each multiprocessor.
    assert chosen("implicit_gemm", "conv_f32_NCHW_n27c64k512g1_i64x64_w3x3_p1")["warps_k"] == 4
    assert chosen("implicit_gemm", "conv_f32_NCHW_n2c16k64g1_i56x56_w1x1")["warps_k"] == 2


@pytest.mark.parametrize("solver", ["direct", "implicit_gemm", "gemm", "winograd.f4x3"])
def test_a_few_blocks_are_predicted_to_take_what_one_does(solver: str) -> None:
    """An eighth of the images of a batch that fills the GPU takes more than an eighth of it."""
    one = cupy_solver(solver)

    def lasts(images: int) -> float:
        spec = ConvSpec.parse(f"conv_f32_NCHW_n{images}c16k32g1_i56x56_w3x3_p1")
        phases = one.estimate(spec, A100).phases
        return max(cost.phase_seconds(p, A100) for p in phases if p.flops)

    assert lasts(512) == pytest.approx(8 * lasts(64), rel=0.3)
    assert lasts(1) > 1.5 * lasts(64) / 64


def launched_by_cupy() -> Iterator[tuple[Solver, ConvSpec, set[str]]]:
    for name, text in gates.CUPY["cupy"]:
        notebook, spec = code.Notebook(), ConvSpec.parse(text)
        (solver,) = (s for s in CupyBackend(notebook).solvers() if s.id == f"cupy.{name}")
        resident_call(solver, spec, A100, notebook)()
        kernels = {code.called(kernel, m.options) for m, kernel, _, _ in notebook.launches}
        yield solver, spec, {f"{name}: {kernel}" for kernel in kernels}


def launched_by_numba_cuda() -> Iterator[tuple[Solver, ConvSpec, set[str]]]:
    recorded = gates.recorded()["numba_cuda"]["sm_80"]
    for _, text in gates.PROBLEMS["numba_cuda"]:
        spec = ConvSpec.parse(text)
        for solver in registry.without_device("numba_cuda").solvers():
            if solver.refuse(spec, A100) is None:
                families = ("gemm", "winograd") if "winograd" in solver.id else (solver.algorithm,)
                yield solver, spec, {kernel for kernel in recorded if kernel.startswith(families)}


LAUNCHED = {"cupy": launched_by_cupy, "numba_cuda": launched_by_numba_cuda}


@pytest.mark.parametrize("backend", LAUNCHED)
def test_as_many_blocks_are_held_as_the_assembler_has_registers_for(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the solvers say of their blocks is what was recorded of the kernels they launch."""
    real: Callable[[occupancy.Block, Target], int] = occupancy.held
    held: set[int] = set()

    def noting(block: occupancy.Block, target: Target) -> int:
        blocks = real(block, target)
        held.add(blocks)
        return blocks

    monkeypatch.setattr(occupancy, "held", noting)
    recorded = gates.recorded()[backend]["sm_80"]
    for solver, spec, kernels in LAUNCHED[backend]():
        configs = list(solver.configs(spec, A100))
        monkeypatch.setattr(type(solver), "configs", lambda *_, first=configs[0]: [first])
        held.clear()
        solver.estimate(spec, A100)
        monkeypatch.undo()
        monkeypatch.setattr(occupancy, "held", noting)
        assert held
        # Dtypes and taps of one kernel differ by a register or two, which may be a block of many.
        blocks = {recorded[kernel]["blocks"] for kernel in kernels}
        assert all(any(6 * abs(n - b) <= b for b in blocks) for n in held), solver.id

"""What there is to measure of a GPU through CuPy: cuBLAS, bandwidths, launches, calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from convjit.cupyarrays import bandwidth_gauges, waiting
from convjit.gauges import Gauge, Run, flops_of, lasting, of_solver, resident_call
from convjit.precision import SHORT
from convjit.spec import ConvSpec
from convjit.spi import Solver, Target

# One image of a product of matrices without columns, and one in which nearly nothing is work.
PRODUCT = "conv_{}_NCHW_n1c256k256g1_i28x28_w1x1"
TINY = "conv_f32_NCHW_n1c8k8g1_i8x8_w1x1"

LAUNCHES = 32


def _launch(cupy: Any) -> Run:
    """Launches one after the other, less the wait at their end."""
    one = cupy.full((1,), 1, "float32")
    wait = waiting(cupy)

    def call() -> None:
        for _ in range(LAUNCHES):
            cupy.add(one, one, out=one)
        wait()

    return Run(call, float(LAUNCHES), without=wait)


def _call(cupy: Any, solver: Solver, target: Target) -> Run:
    return Run(resident_call(solver, ConvSpec.parse(TINY), target, cupy, waiting(cupy)), 1.0)


def gauges(cupy: Any, name: str, solvers: Sequence[Solver], target: Target) -> Iterator[Gauge]:
    """One gauge for each figure that is measured by itself; other rates keep the table's."""
    gemm = next(solver for solver in solvers if solver.id == f"{name}.gemm")
    for dtype in ("float32", "float64"):
        key, one = f"{name}.gemm.{dtype}", ConvSpec.parse(PRODUCT.format(SHORT[dtype]))
        spec = lasting(one, flops_of(gemm, one, target, key), target.rates[key])
        yield of_solver(gemm, spec, target, key, cupy, waiting(cupy))
    yield from bandwidth_gauges(cupy, target)
    yield Gauge("launch", "", partial(_launch, cupy))
    yield Gauge("call", "", partial(_call, cupy, gemm, target))

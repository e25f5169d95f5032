"""What there is to measure of a GPU: rates of the kernels, bandwidths, launches, calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from convjit.cupyarrays import bandwidth_gauges, waiting
from convjit.gauges import Gauge, Run, flops_of, lasting, of_solver, resident_call
from convjit.precision import SHORT
from convjit.spec import ConvSpec
from convjit.spi import Solver, Target

# One image of a problem in which the phases of a rate take nearly all of the time.
SUMS = "conv_{}_NCHW_n1c32k128g1_i14x14_w3x3_p1x1"
PLANES = "conv_{}_NCHW_n1c32k32g32_i28x28_w3x3_p1x1"
TINY = "conv_f32_NCHW_n1c8k8g1_i8x8_w1x1_bias"  # of which nearly nothing is work

LAUNCHES = 32


def _launch(cupy: Any, solver: Solver, target: Target) -> Run:
    """Launches one after the other, less the wait at their end."""
    launch = resident_call(solver, ConvSpec.parse(TINY), target, cupy)
    wait = waiting(cupy)

    def call() -> None:
        for _ in range(LAUNCHES):
            launch()
        wait()

    return Run(call, float(LAUNCHES), without=wait)


def _call(cupy: Any, solver: Solver, target: Target) -> Run:
    return Run(resident_call(solver, ConvSpec.parse(TINY), target, cupy, waiting(cupy)), 1.0)


def gauges(cupy: Any, solvers: Sequence[Solver], target: Target) -> Iterator[Gauge]:
    """One gauge for each figure that kernels of this backend show."""
    by_family = {solver.algorithm: solver for solver in solvers}
    for dtype in ("float32", "float64"):
        for family, text in (("gemm", SUMS), ("direct", SUMS), ("depthwise", PLANES)):
            key, solver = f"numba_cuda.{family}.{dtype}", by_family[family]
            one = ConvSpec.parse(text.format(SHORT[dtype]))
            spec = lasting(one, flops_of(solver, one, target, key), target.rates[key])
            yield of_solver(solver, spec, target, key, cupy, waiting(cupy))
    yield from bandwidth_gauges(cupy, target)
    yield Gauge("launch", "", partial(_launch, cupy, by_family["gemm"], target))
    yield Gauge("call", "", partial(_call, cupy, by_family["gemm"], target))

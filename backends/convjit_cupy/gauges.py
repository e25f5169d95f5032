"""What there is to measure of a GPU through CuPy: rates, bandwidths, launches, calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from convjit.cupyarrays import bandwidth_gauges, waiting
from convjit.gauges import Gauge, Run, flops_of, lasting, of_solver, resident_call
from convjit.precision import SHORT
from convjit.spec import ConvSpec
from convjit.spi import Solver, Target
from convjit_cupy import tiles

# One image of a product of matrices without columns, in either layout, of what is summed tap by
# tap, and of one in which nearly nothing is work.
PRODUCT = "conv_{}_NCHW_n1c256k256g1_i28x28_w1x1"
CHANNELS_LAST = "conv_{}_NHWC_n1c256k256g1_i28x28_w1x1"
SUMS = "conv_{}_NCHW_n1c32k64g1_i32x32_w3x3_p1x1"
PLANES = "conv_{}_NCHW_n1c32k32g32_i32x32_w3x3_p1x1"
TINY = "conv_f32_NCHW_n1c8k8g1_i8x8_w1x1"

MEASURED = (
    ("gemm", PRODUCT, ("float32", "float64")),
    ("tensor_core", CHANNELS_LAST, ("float16",)),
    ("implicit_gemm", PRODUCT, ("float32", "float64")),
    ("direct", SUMS, tiles.DTYPES),
    ("depthwise", PLANES, tiles.DTYPES),
    # The tile of most products saved that the default precision admits; one rate stands for all.
    ("winograd", SUMS, ("float32",)),
)
SOLVERS = {"winograd": "winograd.f4x3"}  # of a family whose name is none's


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
    by_name = {solver.id.removeprefix(f"{name}."): solver for solver in solvers}
    for family, text, dtypes in MEASURED:
        solver = by_name[SOLVERS.get(family, family)]
        for dtype in dtypes:
            key, one = f"{name}.{family}.{dtype}", ConvSpec.parse(text.format(SHORT[dtype]))
            if solver.refuse(one, target) is not None:
                continue  # an older GPU
            spec = lasting(one, flops_of(solver, one, target, key), target.rates[key])
            yield of_solver(solver, spec, target, key, cupy, waiting(cupy))
    yield from bandwidth_gauges(cupy, target)
    yield Gauge("launch", "", partial(_launch, cupy))
    yield Gauge("call", "", partial(_call, cupy, by_name["gemm"], target))

"""What there is to measure of a GPU through CuPy: cuBLAS, bandwidths, launches, calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from convjit.gauges import Gauge, Run, flops_of, lasting, of_solver, resident_call
from convjit.precision import SHORT
from convjit.spec import ConvSpec
from convjit.spi import Solver, Target

# One image of a product of matrices without columns, and one in which nearly nothing is work.
PRODUCT = "conv_{}_NCHW_n1c256k256g1_i28x28_w1x1"
TINY = "conv_f32_NCHW_n1c8k8g1_i8x8_w1x1"

LAUNCHES = 32
BUS_BYTES = 1 << 25
COPIED_BYTES = 1 << 28  # beyond any L2; less where that would take longer than milliseconds


def waiting(cupy: Any) -> Callable[[], None]:
    """What waits for the current stream."""
    return lambda: cupy.cuda.get_current_stream().synchronize()


def _copy(cupy: Any, target: Target) -> Run:
    count = int(min(COPIED_BYTES, 2e-3 * target.bandwidth["memory"])) // 8
    source, out = cupy.full((count,), 1, "float32"), cupy.empty((count,), "float32")
    wait = waiting(cupy)

    def call() -> None:
        out[...] = source
        wait()

    return Run(call, 2.0 * source.nbytes)


def _bus(cupy: Any) -> Run:
    host = np.ones(BUS_BYTES // 4, np.float32)
    wait = waiting(cupy)

    def call() -> None:
        cupy.asarray(host)
        wait()

    return Run(call, float(BUS_BYTES))


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
    yield Gauge("bandwidth", "memory", partial(_copy, cupy, target))
    yield Gauge("bandwidth", "bus", partial(_bus, cupy))
    yield Gauge("launch", "", partial(_launch, cupy))
    yield Gauge("call", "", partial(_call, cupy, gemm, target))

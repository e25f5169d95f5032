"""What there is to measure of a GPU: rates of the kernels, bandwidths, launches.

Operands lie on the device, but for the bus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod

import numpy as np

from convjit.gauges import Gauge, Run, flops_of, lasting
from convjit.precision import SHORT
from convjit.spec import ConvSpec
from convjit.spi import DEFAULT_CONFIG, Solver, Target
from convjit_numba_cuda.device import Device
from convjit_numba_cuda.problem import OnDevice

# One image of a problem in which the phases of a rate take nearly all of the time.
SUMS = "conv_{}_NCHW_n1c32k128g1_i14x14_w3x3_p1x1"
PLANES = "conv_{}_NCHW_n1c32k32g32_i28x28_w3x3_p1x1"
# One that copies, bound by memory: a channel's sum has one product.
COPIES = "conv_f32_NCHW_n1c32k32g32_i64x64_w1x1"
TINY = "conv_f32_NCHW_n1c8k8g1_i8x8_w1x1"

LAUNCHES = 32
BUS_BYTES = 1 << 25


def _launcher(solver: Solver, spec: ConvSpec, target: Target) -> Callable[[], None]:
    config = next(iter(solver.configs(spec, target)), DEFAULT_CONFIG)
    executable = solver.plan(spec, target, config)
    assert isinstance(executable, OnDevice)
    return executable.launcher()


def resident(device: Device, solver: Solver, spec: ConvSpec, target: Target) -> Callable[[], None]:
    """A call of a solver on operands that lie on the device, which returns when it is done."""
    launch = _launcher(solver, spec, target)

    def call() -> None:
        launch()
        device.wait()

    return call


def _rate(device: Device, solver: Solver, text: str, key: str, target: Target) -> Run:
    one = ConvSpec.parse(text)
    spec = lasting(one, flops_of(solver, one, target, key), target.rates[key])
    call = resident(device, solver, spec, target)
    return Run(call, flops_of(solver, spec, target, key))


def _memory(device: Device, solver: Solver, target: Target) -> Run:
    one = ConvSpec.parse(COPIES)
    moved = 4.0 * (prod(one.x_shape) + prod(one.y_shape))
    spec = lasting(one, moved, target.bandwidth["memory"])
    return Run(resident(device, solver, spec, target), moved * spec.batch)


def _bus(device: Device) -> Run:
    host = np.ones(BUS_BYTES // 4, np.float32)

    def call() -> None:
        device.upload(host)
        device.wait()

    return Run(call, float(BUS_BYTES))


def _launch(device: Device, solver: Solver, target: Target) -> Run:
    """Launches one after the other, less the wait at their end."""
    launch = _launcher(solver, ConvSpec.parse(TINY), target)

    def call() -> None:
        for _ in range(LAUNCHES):
            launch()
        device.wait()

    return Run(call, float(LAUNCHES), without=device.wait)


def _call(solver: Solver, target: Target) -> Run:
    """A whole call on arrays of the host, of which nearly nothing is work."""
    spec = ConvSpec.parse(TINY)
    executable = solver.plan(spec, target, next(iter(solver.configs(spec, target))))
    x, w = np.ones(spec.x_shape, np.float32), np.ones(spec.w_shape, np.float32)
    out, packed = np.empty(spec.y_shape, np.float32), executable.pack(w)
    return Run(lambda: executable.run(x, packed, None, out, None), 1.0)


def gauges(device: Device, solvers: Sequence[Solver], target: Target) -> Iterator[Gauge]:
    """One gauge for each figure that kernels of this backend show."""
    by_family = {solver.algorithm: solver for solver in solvers}
    gemm, depthwise = by_family["gemm"], by_family["depthwise"]
    for dtype in ("float32", "float64"):
        for family, text in (("gemm", SUMS), ("direct", SUMS), ("depthwise", PLANES)):
            key = f"numba_cuda.{family}.{dtype}"
            problem = text.format(SHORT[dtype])
            solver = by_family[family]
            yield Gauge("rates", key, partial(_rate, device, solver, problem, key, target))
    yield Gauge("bandwidth", "memory", partial(_memory, device, depthwise, target))
    yield Gauge("bandwidth", "bus", partial(_bus, device))
    yield Gauge("launch", "", partial(_launch, device, gemm, target))
    yield Gauge("call", "", partial(_call, gemm, target))

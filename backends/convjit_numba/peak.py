"""What this machine can do: peak, bandwidth and rates from the table, and how to measure them.

:func:`gauges` are what the core calibrates a machine by.  Its figures belong to the fingerprint of
:func:`target`: processor, instruction set, number of threads and toolchain.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from importlib import metadata

import numpy as np

from convjit.cost import COPIES
from convjit.gauges import Gauge, Run, casts, of_solver, strided_copies
from convjit.spec import ConvSpec
from convjit.spi import Solver, Target, num_threads
from convjit_numba import cache, copying, microarchitectures, targets, taskloop, threads
from convjit_numba.executable import address

CHAINS = {"avx512": 20, "neon": 20}  # independent FMAs in flight; 10 elsewhere
LAUNCH = 2e-6  # seconds that handing a call to helpers costs, where nothing was measured
CALL = 4e-6  # geometry, addresses and a ctypes call
# By rate key without the dtype: a problem by whose time the rate is measured.  Winograd and FFT
# have two, for products and for transforms, and one problem with much of each.
RATES = {
    "direct": "conv_{dtype}_NCHW_n1c64k96g1_i56x56_w3x3_p1",
    "gemm": "conv_{dtype}_NCHW_n1c64k96g1_i56x56_w3x3_p1",
    "indirect": "conv_{dtype}_NHWC_n1c128k128g1_i28x28_w3x3_p1",
    "transposed": "convt_{dtype}_NHWC_n1c128k128g1_i56x56_w2x2_s2x2",
    "subpixel": "convt_{dtype}_NCHW_n1c128k128g1_i56x56_w2x2_s2x2",
    "winograd": "conv_{dtype}_NCHW_n1c128k128g1_i28x28_w3x3_p1",
    "winograd.transform": "conv_{dtype}_NCHW_n1c16k16g1_i112x112_w3x3_p1",
    "fft": "conv_{dtype}_NCHW_n1c1k1g1_i512x512_w31x31_p15",
    "fft.multiply": "conv_{dtype}_NCHW_n1c64k64g1_i28x28_w5x5_p2",
    "depthwise": "conv_{dtype}_NHWC_n1c96k96g96_i28x28_w3x3_p1",
    "depthwise.slab": "conv_{dtype}_NCHW_n1c96k96g96_i28x28_w7x7_p3",
    "planes": "conv_{dtype}_NCHW_n1c1k1g1_i512x512_w7x7_p3",
    "weight_grad": "wgrad_{dtype}_NCHW_n1c128k128g1_i28x28_w3x3_p1",
}


@lru_cache(maxsize=16)
def _target(cores: int) -> Target:
    code = targets.codegen()
    isa = code.isa
    row, name = targets.machine(isa), microarchitectures.named(code.cpu, code.features)
    peak = {
        dtype: cores * row.flops_per_cycle * row.clock * 32 / bits
        for dtype, bits in targets.BITS.items()
    }
    rates = {
        f"numba.{family}.{dtype}": row.shares.get(family, microarchitectures.OTHER_SHARE)
        * peak[dtype]
        for family in RATES
        for dtype in targets.BITS
    }
    toolchain = [f"{name} {metadata.version(name)}" for name in ("numba", "llvmlite")]
    digest = hashlib.sha256("\0".join((*code, *toolchain)).encode()).hexdigest()[:8]
    return Target(
        fingerprint=f"{code.cpu}-{isa}-{digest}-{cores}t",
        device="cpu",
        description=f"{_model()} ({name}, {isa}), {cores} threads",
        cores=cores,
        peak=peak,
        rates=rates,
        bandwidth={
            level: rate * (1 if level in ("memory", *COPIES) else cores)
            for level, rate in row.bandwidth.items()
        },
        caches=targets.cache_sizes(),
        launch=LAUNCH if cores > 1 else 0.0,
        call=CALL,
        features={"isa": isa},
    )


@lru_cache(maxsize=1)
def _model() -> str:
    """The processor's name, for people."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def target() -> Target:
    """This machine with the threads in force, as the table has it."""
    return _target(num_threads())


# -------------------------------------------------------------------- measuring


def _build_fma(bits: int, chains: int, vl: int) -> Callable[..., None]:
    from convjit_numba.microkernel import fma_loop

    _, take = taskloop.sharing()

    def kernel(factors, tasks, steps, control):
        first, last, turn = take(control, tasks, 1, 0)
        while first < last:
            for task in range(first, last):
                fma_loop(bits, chains, vl, steps, factors + task * 64)
            first, last, turn = take(control, tasks, 1, turn)

    return kernel


def _build_copy() -> Callable[..., None]:
    from convjit_numba.memory import copy_bytes

    _, take = taskloop.sharing()

    def kernel(target, source, tasks, size, span, control):
        # Task i copies block i modulo span / size: a span that fits a cache stays there.
        first, last, turn = take(control, tasks, 1, 0)
        while first < last:
            for task in range(first, last):
                place = task * size % span
                copy_bytes(target + place, source + place, size)
            first, last, turn = take(control, tasks, 1, turn)

    return kernel


def _fma(dtype: str, count: int) -> Run:
    """``count`` threads that multiply and add on registers alone."""
    isa = targets.codegen().isa
    chains, vl = CHAINS.get(isa, 10), targets.tiles(isa, dtype)[0].vl
    bits = targets.BITS[dtype]
    kernel = cache.function(
        f"peak.{targets.SHORT[dtype]}.{chains}x{vl}", 4, partial(_build_fma, bits, chains, vl)
    )
    tasks, steps = 8 * count, 40_000
    factors = np.full(tasks * 64 // (bits // 8), 1e-3, dtype)
    arguments = (address(factors), tasks, steps)

    def call() -> None:
        threads.run(kernel, arguments, count, 1.0)
        factors[0] = factors[0]  # keeps the array alive as long as its address is used

    return Run(call, float(tasks * steps * chains * vl * 2))


def fma_peak(dtype: str, count: int, seconds: float = 0.5) -> float:
    """Flop/s of ``count`` threads that multiply and add on registers alone, the best of many.

    A call takes a millisecond or two.  Half a second of them, as the matrix product beside it has,
    outlasts what a neighbour on the machine is busy with (in 30 ms a peak came out 15 % low).
    """
    run = _fma(dtype, count)
    run.call()
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        run.call()
        best = min(best, time.perf_counter() - start)
    return run.amount / best


def _copy(span: int, count: int, times: int = 1) -> Run:
    """``count`` threads that copy ``span`` bytes in blocks; counted ``times`` over."""
    kernel = cache.function("peak.copy", 6, _build_copy)
    block = min(span, 32 << 10)
    span -= span % block
    tasks = max(span // block, (16 << 20) // block)
    source, destination = np.ones(span, np.uint8), np.ones(span, np.uint8)
    arguments = (address(destination), address(source), tasks, block, span)

    def call() -> None:
        threads.run(kernel, arguments, count, 1.0)
        destination[0] = source[0]  # keeps both arrays alive

    return Run(call, 2.0 * times * tasks * block)


def _wake(count: int) -> Run:
    """What waking helpers adds to a call that does nothing."""
    kernel = cache.function("peak.copy", 6, _build_copy)
    nothing = (0, 0, 0, 1, 1)
    return Run(
        lambda: threads.run(kernel, nothing, count, 1.0), 1.0,
        without=lambda: threads.run(kernel, nothing, 1, 1.0),
    )  # fmt: skip


def gauges(solvers: Sequence[Solver], found: Target) -> Iterator[Gauge]:
    """What there is to measure with the threads of a target.

    ``"call"`` is not: most of it is the core's own work around a kernel.
    """
    cores, caches = found.cores, found.caches
    for dtype in targets.BITS:
        yield Gauge("peak", dtype, partial(_fma, dtype, cores))
    shared = min(caches["l3"] // 4, 8 << 20)
    beyond = min(max(2 * caches["l3"], 64 << 20), 256 << 20)
    yield Gauge("bandwidth", "l1", partial(_copy, caches["l1"] // 4, 1, cores))
    yield Gauge("bandwidth", "l2", partial(_copy, caches["l2"] // 4, 1, cores))
    yield Gauge("bandwidth", "l3", partial(_copy, shared, cores))
    yield Gauge("bandwidth", "memory", partial(_copy, beyond, cores))
    yield Gauge("bandwidth", "copy", partial(strided_copies, np, copying.copy))
    yield Gauge("bandwidth", "cast", partial(casts, np, copying.copy))
    yield Gauge("bandwidth", "elementwise", partial(casts, np))
    if cores > 1:
        yield Gauge("launch", "", partial(_wake, cores))
    for family, problem in RATES.items():
        for dtype, short in targets.SHORT.items():
            spec = ConvSpec.parse(problem.format(dtype=short))
            # numba.winograd.f4x3 and its like share their rates; the family is the second word.
            solver = next(s for s in solvers if s.id.split(".")[1] == family.partition(".")[0])
            yield of_solver(solver, spec, found, f"numba.{family}.{dtype}")

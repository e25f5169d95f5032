"""What this machine can do: peak, bandwidth and rates, from a table or measured once.

:func:`measure` takes under a second (besides compiling) and stores its figures as JSON in the cache
directory; :func:`target` returns them from then on, for the same processor, instruction set and
number of threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from convjit.spec import ConvSpec
from convjit.spi import Target, cache_dir, num_threads
from convjit_numba import cache, microarchitectures, targets, threads
from convjit_numba.problem import address

CHAINS = {"avx512": 20, "neon": 20}  # independent FMAs in flight; 10 elsewhere
LAUNCH = 2e-6  # seconds that handing a call to helpers costs, where nothing was measured
CALL = 4e-6  # geometry, addresses and a ctypes call
# By rate key's family: a problem that suits it, by whose time its rate is measured.
RATES = {
    "direct": "conv_{dtype}_NCHW_n1c64k96g1_i56x56_w3x3_p1",
    "gemm": "conv_{dtype}_NCHW_n1c64k96g1_i56x56_w3x3_p1",
    "indirect": "conv_{dtype}_NHWC_n1c128k128g1_i28x28_w3x3_p1",
    "transposed": "convt_{dtype}_NHWC_n1c128k128g1_i56x56_w2x2_s2x2",
    "winograd": "conv_{dtype}_NCHW_n1c128k128g1_i28x28_w3x3_p1",
    "fft": "conv_{dtype}_NCHW_n1c1k1g1_i512x512_w31x31_p15",
    "depthwise": "conv_{dtype}_NHWC_n1c384k384g384_i28x28_w3x3_p1",
    "planes": "conv_{dtype}_NCHW_n1c1k1g1_i512x512_w7x7_p3",
    "weight_grad": "wgrad_{dtype}_NCHW_n1c128k128g1_i28x28_w3x3_p1",
}
VERSION = 2


@lru_cache(maxsize=16)
def _default(cores: int) -> Target:
    """The target from the tables alone."""
    code = targets.codegen()
    isa = code.isa
    row = microarchitectures.row(code.cpu, isa)
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
    digest = hashlib.sha256("\0".join(code).encode()).hexdigest()[:8]
    return Target(
        fingerprint=f"{code.cpu}-{isa}-{digest}-{cores}t",
        device="cpu",
        description=f"{_model()} ({code.cpu}, {isa}), {cores} threads",
        cores=cores,
        peak=peak,
        rates=rates,
        bandwidth={
            level: rate * (1 if level in ("memory", "copy") else cores)
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


# -------------------------------------------------------------------- remembered figures

_remembered: dict[tuple[Path, str], tuple[int, Target]] = {}


def _path(fingerprint: str) -> Path:
    return cache_dir() / "numba" / f"target-{fingerprint}.json"


def target() -> Target:
    """This machine with the threads in force: measured figures if there are any."""
    default = _default(num_threads())
    path = _path(default.fingerprint)
    try:
        modified = path.stat().st_mtime_ns
    except OSError:
        return default
    known = _remembered.get((path, default.fingerprint))
    if known is not None and known[0] == modified:
        return known[1]
    found = _parse(path, default) or default
    _remembered[path, default.fingerprint] = (modified, found)
    return found


def _parse(path: Path, default: Target) -> Target | None:
    """Measured figures of a file over the default ones, None if the file is of no use."""
    try:
        data = json.loads(path.read_text())
        if data["version"] != VERSION or data["fingerprint"] != default.fingerprint:
            return None
        figures: dict[str, dict[str, float]] = {
            name: {str(k): float(v) for k, v in data[name].items()}
            for name in ("peak", "rates", "bandwidth")
        }
        launch = float(data["launch"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not all(v > 0 for table in figures.values() for v in table.values()):
        return None
    if not set(default.rates) <= set(figures["rates"]):
        return None  # before a kernel family that is new: guesses would compete with measurements
    return _with(default, figures, launch)


def _with(default: Target, figures: Mapping[str, Mapping[str, float]], launch: float) -> Target:
    values: dict[str, Any] = {f: getattr(default, f) for f in default.__dataclass_fields__}
    values["peak"] = {**default.peak, **figures["peak"]}
    values["rates"] = {**default.rates, **figures["rates"]}
    values["bandwidth"] = {**default.bandwidth, **figures["bandwidth"]}
    values.update(launch=launch, measured=True)
    return Target(**values)


def _store(found: Target) -> None:
    """Write atomically; a directory that cannot be written only means measuring again."""
    figures = {name: dict(getattr(found, name)) for name in ("peak", "rates", "bandwidth")}
    data = {"version": VERSION, "fingerprint": found.fingerprint, "launch": found.launch} | figures
    path = _path(found.fingerprint)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w") as file:
            json.dump(data, file, indent=1)
        os.replace(temporary, path)


# -------------------------------------------------------------------- measuring


def _build_fma(bits: int, chains: int, vl: int) -> Callable[..., None]:
    from convjit_numba.microkernel import atomic_add, fma_loop

    def kernel(factors, tasks, steps, control):
        task = 0
        while True:
            if control != 0:
                task = atomic_add(control, 1)
            if task >= tasks:
                break
            fma_loop(bits, chains, vl, steps, factors + task * 64)
            if control == 0:
                task += 1

    return kernel


def _build_copy() -> Callable[..., None]:
    from convjit_numba.microkernel import atomic_add, copy_bytes

    def kernel(target, source, tasks, size, span, control):
        # Task i copies block i modulo span / size: a span that fits a cache stays there.
        task = 0
        while True:
            if control != 0:
                task = atomic_add(control, 1)
            if task >= tasks:
                break
            place = task * size % span
            copy_bytes(target + place, source + place, size)
            if control == 0:
                task += 1

    return kernel


def _best(call: Callable[[], Any], repeats: int = 20) -> float:
    """Least seconds of several calls; the first call is not counted."""
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def fma_peak(dtype: str, count: int) -> float:
    """Flop/s of ``count`` threads that multiply and add on registers alone."""
    isa = targets.codegen().isa
    chains, vl = CHAINS.get(isa, 10), targets.tiles(isa, dtype)[0].vl
    bits = targets.BITS[dtype]
    kernel = cache.function(
        f"peak.{targets.SHORT[dtype]}.{chains}x{vl}", 4, partial(_build_fma, bits, chains, vl)
    )
    tasks, steps = 8 * count, 40_000
    factors = np.full(tasks * 64 // (bits // 8), 1e-3, dtype)
    arguments = (address(factors), tasks, steps)
    seconds = _best(lambda: threads.run(kernel, arguments, count, 1.0))
    return tasks * steps * chains * vl * 2 / seconds


def copy_bandwidth(span: int, count: int) -> float:
    """Bytes read and written per second by ``count`` threads that copy ``span`` bytes in blocks."""
    kernel = cache.function("peak.copy", 6, _build_copy)
    block = min(span, 32 << 10)
    span -= span % block
    tasks = max(span // block, (16 << 20) // block)
    source, destination = np.ones(span, np.uint8), np.ones(span, np.uint8)
    arguments = (address(destination), address(source), tasks, block, span)
    seconds = _best(lambda: threads.run(kernel, arguments, count, 1.0), 8)
    return 2.0 * tasks * block / seconds


def strided_copy_bandwidth() -> float:
    """Bytes read and written per second by NumPy's copies that lowering makes: the mean of two.

    One goes into the middle of a padded array, the other changes the layout; both are larger than
    a second-level cache.
    """
    source = np.ones((1, 128, 96, 96), np.float32)
    padded = np.zeros((1, 128, 98, 98), np.float32)
    inner = padded[:, :, 1:-1, 1:-1]
    last = np.empty((1, 96, 96, 128), np.float32)
    seconds = _best(lambda: np.copyto(inner, source), 5)
    seconds += _best(lambda: np.copyto(last, source.transpose(0, 2, 3, 1)), 5)
    return 4.0 * source.nbytes / seconds


def launch_seconds(count: int) -> float:
    """What waking helpers adds to a call."""
    if count == 1:
        return 0.0
    kernel = cache.function("peak.copy", 6, _build_copy)
    nothing = (0, 0, 0, 1, 1)
    woken = _best(lambda: threads.run(kernel, nothing, count, 1.0), 50)
    return max(1e-6, woken - _best(lambda: threads.run(kernel, nothing, 1, 1.0), 50))


def family_rates(found: Target) -> dict[str, float]:
    """Flop/s, as the solvers count them, of each kernel family on a problem that suits it."""
    from convjit_numba import NumbaBackend

    rates: dict[str, float] = {}
    for solver in NumbaBackend().solvers():
        for dtype, short in targets.SHORT.items():
            # numba.winograd.f4x3 and its like share a rate: the family is the second word.
            family = solver.id.split(".")[1]
            spec = ConvSpec.parse(RATES[family].format(dtype=short))
            key = f"numba.{family}.{dtype}"
            if key in rates or solver.refuse(spec, found) is not None:
                continue
            executable = solver.plan(spec, found, ())
            x, w = np.ones(spec.lhs_shape, dtype), np.ones(spec.rhs_shape, dtype)
            out = np.empty(spec.result_shape, dtype)
            workspace = np.empty(executable.workspace, np.uint8)
            packed = executable.pack(w)
            seconds = _best(partial(executable.run, x, packed, None, out, workspace), 7)
            phases = solver.estimate(spec, found).phases
            rates[key] = sum(phase.flops for phase in phases if phase.rate == key) / seconds
    return rates


def measure() -> Target:
    """Measure this machine with the threads in force, store the figures and return them."""
    cores = num_threads()
    default = _default(cores)
    caches = default.caches
    peak = {dtype: fma_peak(dtype, cores) for dtype in targets.BITS}
    bandwidth = {
        "l2": copy_bandwidth(caches["l2"] // 4, 1) * cores,
        "l3": copy_bandwidth(min(caches["l3"] // 4, 8 << 20), cores),
        "memory": copy_bandwidth(64 << 20, cores),
        "copy": strided_copy_bandwidth(),
    }
    figures: dict[str, dict[str, float]] = {"peak": peak, "rates": {}, "bandwidth": bandwidth}
    found = _with(default, figures, launch_seconds(cores))
    figures["rates"] = family_rates(found)
    found = _with(default, figures, found.launch)
    _store(found)
    return found

"""What the machine can do: its measured peak, of which every rate is a share, and bandwidths."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from convjit import calibration, precision, registry
from convjit.explanation import target_of


def measured_peak(dtype: str) -> dict[str, Any]:
    """``{"peak": flop/s, "how": text}`` of the processor in a dtype's accumulator.

    Every measurement is a lower bound, so the best counts: what backends measure (``peak(dtype)``,
    where they have it) or remember of measuring their target, and the best rate of NumPy's matrix
    product, which is near the peak by its nature.
    """
    kind = precision.accumulator_dtype(dtype)
    kind = precision.REAL_OF.get(kind, kind)
    best, how = 0.0, ""
    for backend in registry.default_pool("cpu"):
        target = target_of(backend.name)
        rate = target.peak.get(kind, 0.0) if target is not None and target.measured else 0.0
        measure = getattr(backend, "peak", None)
        if callable(measure):
            rate = max(rate, float(measure(kind)))
        if rate > best:
            best, how = rate, f"measured by {backend.name}"
    # Last, because the BLAS's idle threads go on spinning for a while and take a core from others.
    rate = _matrix_product(kind)
    if rate > best:
        best, how = rate, "the best rate of NumPy's matrix product"
    return {"peak": best, "how": how}


def measured_bandwidth() -> dict[str, Any]:
    """``{"bandwidth": {level: byte/s}, "how": text}`` of the processor's caches and memory.

    The first backend counts that is calibrated or can be measured now; where none is, the first
    one's table.
    """
    known = []
    for backend in registry.default_pool("cpu"):
        target = target_of(backend.name)
        if target is None:
            continue
        found, is_measured = target.bandwidth, target.measured
        if not is_measured and (now := calibration.measured_now(backend, "bandwidth")):
            found, is_measured = {**found, **now}, True
        if found:
            how = "measured by" if is_measured else "from the table of"
            known.append((not is_measured, found, f"{how} {backend.name}"))
    if not known:
        return {"bandwidth": {}, "how": "unknown"}
    _, bandwidth, how = min(known, key=lambda found: found[0])
    return {"bandwidth": dict(bandwidth), "how": how}


def _matrix_product(dtype: str, n: int = 512, seconds: float = 0.5) -> float:
    """Best flop/s of ``a @ b``, 2 n^3 operations, in a floating-point dtype.

    A product of a millisecond or two leaves room for many tries, of which a busy machine spoils
    the less.
    """
    kind = np.dtype(dtype if dtype in ("float32", "float64") else "float64")
    a = np.random.default_rng(0).standard_normal((n, n)).astype(kind)
    out = np.empty_like(a)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(a, a, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best

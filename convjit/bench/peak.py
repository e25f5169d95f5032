"""The machine's measured peak, of which every rate is a share."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from convjit import precision, registry
from convjit.explanation import target_of


def measured_peak(dtype: str) -> dict[str, Any]:
    """``{"peak": flop/s, "how": text}`` of the processor in a dtype's accumulator.

    A backend that measures its target (``measure()``) is believed; without one, the best rate of
    a square matrix product by NumPy's BLAS stands in, which is near the peak by its nature.
    """
    kind = precision.accumulator_dtype(dtype)
    kind = precision.REAL_OF.get(kind, kind)
    best, how = 0.0, ""
    for backend in registry.default_pool("cpu"):
        measure = getattr(backend, "measure", None)
        target = measure() if callable(measure) else target_of(backend.name)
        rate = target.peak.get(kind, 0.0) if target is not None and target.measured else 0.0
        if rate > best:
            best, how = rate, f"measured by {backend.name}"
    if not best:
        best, how = _matrix_product(kind), "the best rate of NumPy's matrix product"
    return {"peak": best, "how": how}


def _matrix_product(dtype: str, n: int = 1024, seconds: float = 0.3) -> float:
    """Best flop/s of ``a @ b``, 2 n^3 operations, in a floating-point dtype."""
    kind = np.dtype(dtype if dtype in ("float32", "float64") else "float64")
    a = np.random.default_rng(0).standard_normal((n, n)).astype(kind)
    out = np.empty_like(a)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(a, a, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best

"""What this machine achieves with NumPy: two rates, measured once in a few milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import perf_counter

import numpy as np

from convjit.spi import Target

MATMUL = "example.matmul"  # the rate key that our solver's phases name
SIDE = 384  # of the matrices: large enough for the best rate, small enough for a millisecond
STREAM = 8 * 2**20  # bytes copied to measure the memory: more than most caches hold


def _best(run: Callable[[], object], times: int = 5) -> float:
    """Shortest of a few timings, in seconds; the first call warms up."""
    run()
    shortest = float("inf")
    for _ in range(times):
        start = perf_counter()
        run()
        shortest = min(shortest, perf_counter() - start)
    return shortest


@cache
def measured() -> Target:
    """The target, with the rate of a matrix product and of a copy."""
    a = np.ones((SIDE, SIDE), np.float32)
    product = np.empty_like(a)
    flops = 2 * SIDE**3 / _best(lambda: np.matmul(a, a, out=product))
    source = np.ones(STREAM, np.uint8)
    destination = np.empty_like(source)
    # A copy reads and writes each byte.
    traffic = 2 * STREAM / _best(lambda: np.copyto(destination, source))
    return Target(
        fingerprint=f"numpy-{np.__version__}",
        device="cpu",
        description="NumPy on this machine's CPU",
        cores=1,
        peak={"float32": flops},
        rates={MATMUL: flops},
        bandwidth={"memory": traffic, "copy": traffic / 2},
        caches={},
        launch=2e-6,
        measured=True,
    )

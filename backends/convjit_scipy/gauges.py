"""What there is to measure of NumPy, BLAS and scipy.fft: the rates of :mod:`convjit_scipy.targets`.

Each is measured on arrays as the solvers cut them: in a cache, a few hundred KiB to a few MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import scipy.fft

from convjit.algorithms.fft import transform_flops
from convjit.gauges import Gauge, Run, of_solver, strided_copies
from convjit.precision import REAL_OF, SHORT
from convjit.spec import ConvSpec
from convjit.spi import Target, num_threads
from convjit_scipy.direct import DirectSolver

REAL = ("float32", "float64")
COMPLEX = {real: pair for pair, real in REAL_OF.items()}
# Whose sums over channels take nearly all of the time.
SUMS = "conv_{short}_NCHW_n1c64k64g1_i14x14_w3x3"
# Bytes at most that stand for the shared cache: a guest sees all of its host's.
SHARED = 16 << 20
# Numbers of an array that is in none of a core's own caches.
BLOCK = 1 << 18


def _product(shape: tuple[int, int, int, int], dtype: str) -> Run:
    """A batch of matrix products (batch, m, n, k)."""
    batch, m, n, k = shape
    a, b = np.ones((batch, m, k), dtype), np.ones((batch, k, n), dtype)
    out = np.empty((batch, m, n), dtype)
    flops = (8.0 if dtype in REAL_OF else 2.0) * batch * m * n * k
    return Run(lambda: np.matmul(a, b, out=out), flops)


def _transforms(dtype: str) -> Run:
    """A batch of transforms of 256 x 256, forth."""
    x = np.ones((8, 256, 256), dtype)
    function = scipy.fft.fft2 if dtype in REAL_OF else scipy.fft.rfft2
    flops = len(x) * transform_flops((256, 256), dtype in REAL_OF)
    return Run(lambda: function(x, workers=num_threads()), flops)


def _elements(dtype: str) -> Run:
    """Products of spectra, element by element: a block of them is a few MiB."""
    a, b = np.ones(BLOCK, dtype), np.ones(BLOCK, dtype)
    out = np.empty_like(a)
    return Run(lambda: np.multiply(a, b, out=out), 8.0 * a.size)


def _additions(dtype: str) -> Run:
    """Sums of arrays, as transforms by additions make them."""
    a, b = np.ones(BLOCK, dtype), np.ones(BLOCK, dtype)
    out = np.empty_like(a)
    return Run(lambda: np.add(a, b, out=out), float(a.size))


def _copy(size: int) -> Run:
    """A contiguous copy, bytes read and written."""
    source, out = np.ones(size // 2, np.uint8), np.empty(size // 2, np.uint8)
    return Run(lambda: np.copyto(out, source), 2.0 * source.size)


def gauges(target: Target) -> Iterator[Gauge]:
    """Bandwidths, and the rates by dtype.

    The table's cost of a step and its bandwidth of L2 stay: they stand for copies of windows and
    for steps of several calls, which no loop over one copy or one call shows (contiguous copies in
    L2 are twice as fast, and made im2col look three times as fast as it is).
    BLAS comes last: its idle threads go on spinning for a while, and take a core from others.
    """
    yield Gauge("bandwidth", "l3", partial(_copy, min(target.caches["l3"] // 2, SHARED)))
    yield Gauge("bandwidth", "memory", partial(_copy, 128 << 20))
    yield Gauge("bandwidth", "copy", partial(strided_copies, np))
    for dtype in (*REAL, *COMPLEX.values(), "int64", "uint64"):
        spec = ConvSpec.parse(SUMS.format(short=SHORT[dtype]))
        yield of_solver(DirectSolver(), spec, target, f"scipy.direct.{dtype}")
    for dtype in (*REAL, *COMPLEX.values()):
        yield Gauge("rates", f"scipy.fft.{dtype}", partial(_transforms, dtype))
    for real in REAL:
        pair = COMPLEX[real]
        for dtype in (real, pair):  # the spectra of either are complex
            yield Gauge("rates", f"scipy.fft.multiply.{dtype}", partial(_elements, pair))
        yield Gauge("rates", f"scipy.winograd.transform.{real}", partial(_additions, real))
    for real in REAL:
        pair = COMPLEX[real]
        for dtype in (real, pair):
            shape = (1024, 16, 8, 16)
            yield Gauge("rates", f"scipy.fft.matmul.{dtype}", partial(_product, shape, pair))
        shape = (16, 256, 64, 64)
        yield Gauge("rates", f"scipy.winograd.matmul.{real}", partial(_product, shape, real))
        for dtype in (real, pair):
            shape = (1, 512, 512, 512)
            yield Gauge("rates", f"scipy.gemm.{dtype}", partial(_product, shape, dtype))

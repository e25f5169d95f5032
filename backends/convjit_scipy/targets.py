"""The CPU as SciPy's kernels see it: a table of rates per core, by instruction set.

The rows give flop/s of one core at 3 GHz.  GEMM is OpenBLAS on square matrices of 768, transforms
are batches of 256 x 256 in scipy.fft, the products of spectra and the direct loops are NumPy's;
the avx2 row was measured on an AMD Zen 3, the others follow from it by the vectors' width where
the library is compiled for it (OpenBLAS is; NumPy's loops and pocketfft gain about a quarter).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from convjit import precision, spi
from convjit.spi import Target

CLOCK = 3.0e9  # Hz, to which the table refers

# flop per cycle and core in float32; half of it in float64.  Zen 4 (AMD's family 25) has AVX-512
# but splits its vectors, and keeps a clock of 3.67 GHz.
VECTORS = {
    "avx512": 64.0,
    "avx512_split": 32.0 * 3.67e9 / CLOCK,
    "avx2": 32.0,
    "sse2": 8.0,
    "neon": 16.0,
    "generic": 4.0,
}

# Share of that peak which OpenBLAS reaches.
GEMM_SHARE = 0.8

# 10^9 flop/s of one core with AVX2.  A complex multiply-add is 8 flops.
AVX2_RATES = {
    "scipy.direct.float32": 8.0,
    "scipy.direct.float64": 4.0,
    "scipy.direct.complex64": 2.5,
    "scipy.direct.complex128": 2.5,
    "scipy.direct.int64": 2.5,
    "scipy.direct.uint64": 2.5,
    "scipy.fft.float32": 9.0,
    "scipy.fft.float64": 5.5,
    "scipy.fft.complex64": 11.0,
    "scipy.fft.complex128": 6.0,
    # Products of spectra: element by element, and as a batch of small matrices.
    "scipy.fft.multiply.float32": 6.0,
    "scipy.fft.multiply.float64": 2.5,
    "scipy.fft.multiply.complex64": 5.0,
    "scipy.fft.multiply.complex128": 2.3,
    "scipy.fft.matmul.float32": 20.0,
    "scipy.fft.matmul.float64": 9.0,
    "scipy.fft.matmul.complex64": 20.0,
    "scipy.fft.matmul.complex128": 9.0,
    # Additions of whole arrays in cache, and a batch of matrices of a few hundred rows.
    "scipy.winograd.transform.float32": 1.5,
    "scipy.winograd.transform.float64": 0.8,
    "scipy.winograd.matmul.float32": 35.0,
    "scipy.winograd.matmul.float64": 17.0,
}
LOOPS = {"avx512": 1.25, "avx512_split": 1.4, "avx2": 1.0, "sse2": 0.6, "neon": 0.8, "generic": 0.4}

# NumPy runs its loops, and hence these rates, on one core; only these families use all of them.
THREADED = ("scipy.fft.float", "scipy.fft.complex", "scipy.gemm", "scipy.winograd.matmul")

# Seconds that a step of a few NumPy calls takes beside its arithmetic.
STEP = 14e-6

BANDWIDTH = {"l1": 1.0e11, "l2": 5.0e10, "l3": 2.5e10, "memory": 1.0e10, "copy": 1.0e10}
CACHES = {"l1": 32 * 2**10, "l2": 2**20, "l3": 8 * 2**20}


@lru_cache(maxsize=1)
def _processor() -> tuple[str, str]:
    """(model, widest instruction set) of this machine."""
    machine = platform.machine().lower()
    model, family, flags = machine or "unknown CPU", "", set[str]()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "cpu family":
            family = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    if machine in ("aarch64", "arm64"):
        return model, "neon"
    if machine not in ("x86_64", "amd64"):
        return model, "generic"
    if "avx512f" in flags:
        return model, "avx512_split" if "AMD" in model and family == "25" else "avx512"
    # Without /proc/cpuinfo (macOS, Windows): what every x86-64 of the last ten years has.
    return model, "avx2" if "avx2" in flags or not flags else "sse2"


def target() -> Target:
    """This machine with the number of threads in force."""
    return _target(spi.num_threads())


@lru_cache(maxsize=16)
def _target(cores: int) -> Target:
    model, isa = _processor()
    peak = {"float32": VECTORS[isa] * CLOCK * cores, "float64": VECTORS[isa] / 2 * CLOCK * cores}
    rates = {key: rate * 1e9 * LOOPS[isa] for key, rate in AVX2_RATES.items()}
    for real, pair in (("float32", "complex64"), ("float64", "complex128")):
        rates[f"scipy.gemm.{real}"] = rates[f"scipy.gemm.{pair}"] = GEMM_SHARE * peak[real] / cores
    for key in rates:
        if key.startswith(THREADED):
            rates[key] *= cores
    import numpy
    import scipy

    return Target(
        fingerprint=f"{model}|{isa}|{cores}|numpy {numpy.__version__}|scipy {scipy.__version__}",
        device="cpu",
        description=f"{model}, {cores} cores, {isa}, NumPy {numpy.__version__}",
        cores=cores,
        peak=peak,
        rates=rates,
        bandwidth=BANDWIDTH,
        caches=CACHES,
        launch=STEP,
        call=STEP,
        features={"isa": isa},
    )


# Products that a BLAS sums in one block before it adds the sum to the result: 256 to 640 in the
# libraries that are tuned (OpenBLAS's GEMM_DEFAULT_Q by processor, BLIS's kc, MKL's alike).  The
# reference implementation, and whatever is not known, sums in sequence; so do all of them where the
# product is small (OpenBLAS: up to 10^6) or one of a vector, unless the numbers that are summed lie
# side by side in both matrices.
BLAS_CHAIN = 768
BLOCKED = ("openblas", "mkl", "blis", "accelerate")

# Sums that are kept apart in the lanes of vectors, of so many bytes.  Variances of the partial sums
# over those of a sequence, OpenBLAS 0.3.31, 512 products (4, 8 and 16 lanes: 0.27, 0.15, 0.10):
#   a matrix times a vector: float32 0.13, of its last rows 0.26; float64 0.26, of them 0.5;
#   a vector times a matrix: as much, but one to three last columns are summed in sequence;
#   AVX-512's kernels for small products, of rows with rows and of few columns: float32 0.08-0.10,
#   float64 0.14-0.16; of 64x64 rows and 9 columns (float64: 5) 1.0; with AVX2 0.5-1.0.
LANE_BYTES, SMALL_LANE_BYTES = 16, 64
COLUMNS = 4
SMALL_RESULT, SMALL_PRODUCT = 1 << 10, 10**6
FEW_COLUMN_BYTES = 32


@lru_cache(maxsize=1)
def _blocks_sums() -> bool:
    """Whether NumPy's matrix products are those of a library that is known to block."""
    import numpy

    try:
        name = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"].lower()
    except (KeyError, TypeError, AttributeError):
        return False
    return any(known in name for known in BLOCKED)


def lane_chain(m: int, n: int, k: int, dtype: str, isa: str, *, rows: bool = False) -> int:
    """Products that a lane sums of a matrix product (m, k) by (k, n), 0 if there are no lanes.

    Parameters
    ----------
    m, n, k : int
        The matrices in C order.  What holds for them holds for fewer rows, but for a single one.
    dtype : str
    isa : str
        Instruction set.
    rows : bool
        Whether the numbers that are summed lie side by side in both matrices.
    """
    if not _blocks_sums():
        return 0
    itemsize = precision.numpy_dtype(dtype).itemsize
    if n == 1 or (m == 1 and (rows or n % COLUMNS == 0)):
        return -(-k * itemsize // LANE_BYTES)
    few = m * n <= SMALL_RESULT if rows else m > 1 and n * itemsize <= FEW_COLUMN_BYTES
    if few and isa.startswith("avx512") and m * n * k <= SMALL_PRODUCT:
        return -(-k * itemsize // SMALL_LANE_BYTES)
    return 0


def blas_chain(m: int, n: int, k: int, dtype: str, isa: str, *, rows: bool = False) -> int:
    """:attr:`~convjit.precision.Numerics.chain` of a matrix product, as in :func:`lane_chain`."""
    if (chain := lane_chain(m, n, k, dtype, isa, rows=rows)) or not _blocks_sums():
        return chain
    large = min(m, n) > 1 and m * n * k > SMALL_PRODUCT
    return BLAS_CHAIN if rows or large else 0


def longest(chains: Iterable[int]) -> int:
    """The chain that holds for all; 0, a sequence of any length, if it is among them."""
    known = list(chains)
    return max(known) if all(known) else 0

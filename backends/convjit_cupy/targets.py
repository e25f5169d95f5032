"""GPUs as CuPy's libraries and kernels see them: the peaks of :mod:`convjit.gpus` and shares."""

from __future__ import annotations

from convjit import gpus
from convjit.gpus import Description
from convjit.spi import Target

# Share of the ordinary cores' peak that a family reaches on matrices and images that fill a GPU:
# cuBLAS four fifths, cuFFT (bound by memory nearly always) a quarter, additions of whole arrays by
# the bytes they move.  Modelled from what their makers publish; no GPU was at hand to measure.
SHARES = {
    "gemm": 0.8,
    "fft": 0.25,
    "winograd.matmul": 0.7,
    "direct": 0.5,
    "implicit_gemm": 0.6,
    "depthwise": 0.25,
    "winograd": 0.4,
}
INTEGER_SHARE = 0.05  # of float32: a product of 64-bit integers is several instructions
TENSOR_SHARE = 0.5  # of the tensor cores' peak, which caches rarely feed

# What a call takes on the host: a CuPy operation is several microseconds of Python.
CALL = 30e-6


def target(name: str, description: Description) -> Target:
    """The target of a device, for the backend of a name."""
    found = gpus.figures(description)
    ordinary = {
        "float32": found.float32, "float64": found.float64,
        "complex64": found.float32, "complex128": found.float64,
    }  # fmt: skip
    # float16 and bfloat16 are multiplied by tensor cores; where there are none, and by kernels that
    # sum tap by tap, as float32.
    half = {"float16": found.half or found.float32, "bfloat16": found.half or found.float32}
    tensor = {**half, "tf32": found.tf32 or found.float32}
    rates = {
        f"{name}.{family}.{dtype}": share * peak
        for family, share in SHARES.items()
        for dtype, peak in ordinary.items()
    }
    rates |= {
        f"{name}.{family}.{kind}": SHARES[family] * found.float32
        for family in ("direct", "depthwise")
        for kind in half
    }
    # Matrices of float64 have tensor cores of their own on some generations, which cuBLAS uses too.
    rates |= {
        f"{name}.{family}.{dtype}": SHARES[family] * found.matrices64
        for family in ("gemm", "implicit_gemm", "winograd.matmul")
        for dtype in ("float64", "complex128")
    }
    rates |= {f"{name}.gemm.{kind}": INTEGER_SHARE * found.float32 for kind in ("int64", "uint64")}
    rates |= {
        f"{name}.{family}.{dtype}": TENSOR_SHARE * peak
        for family in ("gemm", "implicit_gemm", "winograd.matmul")
        for dtype, peak in tensor.items()
    }
    # The kernel for tensor cores multiplies float32 as TF32.
    rates |= {
        f"{name}.tensor_core.{dtype}": TENSOR_SHARE * peak
        for dtype, peak in {**half, "float32": tensor["tf32"]}.items()
    }
    peak = {"float32": found.float32, "float64": found.matrices64, **half}
    return gpus.target(description, found, rates, peak=peak, call=CALL)

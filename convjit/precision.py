"""Data types (what goes in, what is accumulated, what comes out) and the policies on accuracy.

Policies are not part of a :class:`~convjit.spec.ConvSpec`: they do not change what is computed,
only which algorithms may compute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from convjit.errors import ConvSpecError

DTYPES = {
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "c64": "complex64",
    "c128": "complex128",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "b1": "bool",
}
SHORT = {name: short for short, name in DTYPES.items()}

HALF = frozenset({"float16", "bfloat16"})
COMPLEX = frozenset({"complex64", "complex128"})
INTEGER = frozenset(n for n in SHORT if n == "bool" or n.startswith(("int", "uint")))
LARGEST = {  # magnitudes
    "bool": 1, "int8": 2**7, "uint8": 2**8 - 1, "int16": 2**15, "uint16": 2**16 - 1,
    "int32": 2**31, "uint32": 2**32 - 1, "int64": 2**63, "uint64": 2**64 - 1,
}  # fmt: skip
REAL_OF = {"complex64": "float32", "complex128": "float64"}

# Unit roundoff u of round-to-nearest: half the distance from 1 to the next number.
UNIT_ROUNDOFF = {
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "tf32": 2.0**-11,
    "float32": 2.0**-24,
    "float64": 2.0**-53,
    "complex64": 2.0**-24,
    "complex128": 2.0**-53,
}

# The default policy's promise, 1e-5 of the sum of magnitudes in float32, as a multiple of u;
# the other dtypes are held to the same multiple of their own u.
DEFAULT_LIMIT_IN_U = 1e-5 / UNIT_ROUNDOFF["float32"]


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name in ``DTYPES`` (ml_dtypes is imported for bfloat16 alone)."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


@lru_cache(maxsize=256)
def promote(x: np.dtype[Any], w: np.dtype[Any]) -> str:
    """Name of the dtype in which two operands are convolved, by NumPy's promotion.

    Raises
    ------
    TypeError
        For a dtype outside ``DTYPES``, uint64 with a signed integer, and bfloat16 with float16
        or with an integer: NumPy would round integers or has no rule.
    """
    for argument, dtype in (("the first operand", x), ("the second operand", w)):
        if dtype.name not in SHORT:
            raise TypeError(
                f"{argument} has dtype {dtype.name}, which convjit does not convolve; cast it to "
                f"one of {', '.join(SHORT)}."
            )
    names = {x.name, w.name}
    signed = {"int8", "int16", "int32", "int64"}
    if "uint64" in names and names & signed:
        raise TypeError(
            f"{x.name} with {w.name}: no integer type holds both; cast one of them "
            "(to int64 if the values fit, or to float64)."
        )
    if "bfloat16" in names and ("float16" in names or names & INTEGER):
        raise TypeError(
            f"{x.name} with {w.name}: NumPy has no common type for them; cast one of them "
            "(to float32, or to bfloat16)."
        )
    return np.promote_types(x, w).name


def result_dtype(dtype: str) -> str:
    """dtype of the result: integers sum in 64 bits as :func:`numpy.sum` does, others stay."""
    if dtype in INTEGER:
        return "uint64" if dtype.startswith("uint") else "int64"
    return dtype


def accumulator_dtype(dtype: str) -> str:
    """dtype in which products are summed: float32 for the half types, else the result's."""
    return "float32" if dtype in HALF else result_dtype(dtype)


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a solver rounds: what the error model needs to know about it.

    Attributes
    ----------
    method : {"exact", "direct", "gemm", "winograd", "fft"}
        ``"exact"`` makes no rounding error beyond the result's own (integers, proven bounds);
        ``"direct"`` and ``"gemm"`` sum products in any order; the others transform.
    tile : tuple of int
        Winograd: outputs per axis of a tile (1 on an axis that is not transformed).
        FFT: transform length per axis.
    operands : str
        dtype to which operands are rounded before they are multiplied (``"tf32"``,
        ``"bfloat16"``), empty when they are multiplied as given.
    accumulate : str
        dtype of the arithmetic, empty for :func:`accumulator_dtype` of the spec's dtype.
    spreads_nonfinite : bool
        Whether a NaN or Inf reaches outputs outside its receptive field.
    deterministic : bool
        Whether results are bitwise equal across runs and thread counts.
    chain : int
        Products that one accumulator sums at most, before sums are summed in their turn; 0 where
        all of a result's may be summed in sequence.
    cut : int
        Products that are added to a sum at once where that cuts off what is below the last place
        instead of rounding, as tensor cores do, with the first operand too (``operands``); 0
        where sums are rounded to nearest.
    """

    method: str
    tile: tuple[int, ...] = ()
    operands: str = ""
    accumulate: str = ""
    spreads_nonfinite: bool = False
    deterministic: bool = True
    chain: int = 0
    cut: int = 0

    @property
    def is_summation(self) -> bool:
        """Whether only products of the operands as given are summed (what "exact" admits)."""
        return self.method in ("exact", "direct", "gemm") and not self.operands


PRECISIONS = ("exact", "default", "fast")
NONFINITE = ("local", "spread")


@dataclass(frozen=True, slots=True)
class Policy:
    """Hard filters on the candidates of a call.

    Attributes
    ----------
    precision : {"exact", "default", "fast"}
    nonfinite : {"local", "spread"}
    workspace_limit : int or None
        Bytes; None for no limit.
    deterministic : bool
    """

    precision: str = "default"
    nonfinite: str = "spread"
    workspace_limit: int | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConvSpecError(
                f"precision={self.precision!r} is not known; choose one of {', '.join(PRECISIONS)}."
            )
        if self.nonfinite not in NONFINITE:
            raise ConvSpecError(
                f"nonfinite={self.nonfinite!r} is not known; choose one of {', '.join(NONFINITE)}."
            )
        limit = self.workspace_limit
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise TypeError(f"workspace_limit={limit!r} must be a number of bytes or None.")
        if limit is not None and limit < 0:
            raise ConvSpecError(f"workspace_limit={limit} is negative; give bytes, or None.")

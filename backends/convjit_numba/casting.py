"""Casts between contiguous arrays: integers to real numbers and back, wider ones, half precision.

NumPy casts on one thread, float16 number by number.  Here vectors are converted, by one or two
instructions each, and threads take runs of neighbours one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from convjit.precision import numpy_dtype
from convjit.spi import Array, num_threads
from convjit_numba import cache, targets, taskloop, threads
from convjit_numba.executable import address

LEAST = 1024  # elements below which NumPy is done before a kernel is found
RUN_BYTES = 32 << 10  # of the wider side of the elements that are taken at once
SECONDS_PER_BYTE = 0.05e-9  # read and written

NARROW = ("bool", "int8", "uint8")
INTEGERS = (*NARROW, "int16", "uint16", "int32", "uint32")
WIDE = ("int64", "uint64")
HALVES = ("float16", "bfloat16")
KINDS = (*INTEGERS, *WIDE, *HALVES, "float32", "float64")  # literals of the kernels are places here


def is_supported(target: str, source: str) -> bool:
    """Whether there is a kernel for a cast, by the names of the dtypes.

    Of those to integers only the ones that lowering makes: of whole numbers that fit.
    """
    if source in HALVES or target in HALVES:
        half = source if source in HALVES else target
        return {source, target} == {half, "float32"} and (half != "float16" or _converts_float16())
    if source in INTEGERS:
        widened = target == "int16" and source in NARROW
        return target in ("float32", "float64", *WIDE) or widened
    return source in ("float32", "float64") and target in ("float32", "float64", *WIDE)


@lru_cache(maxsize=1)
def _converts_float16() -> bool:
    """Whether the processor does: elsewhere LLVM calls functions that kernels do not have."""
    code = targets.codegen()
    return code.isa in ("avx512", "neon") or "+f16c" in code.features.split(",")


def cast(destination: Array, source: Array) -> bool:
    """``destination[...] = source`` where a kernel can do it, and whether it did.

    Parameters
    ----------
    destination, source : numpy.ndarray
        Of one shape; what is not C-contiguous and aligned, or too small to be worth it, is not
        taken.  Numbers cast to integers are whole and fit.
    """
    if (
        source.size < LEAST
        or destination.shape != source.shape
        or not (destination.flags.c_contiguous and source.flags.c_contiguous)
        or not (destination.flags.aligned and source.flags.aligned)
    ):
        return False
    found = _kernel(destination.dtype, source.dtype)
    if found is None:
        return False
    kernel, run, bytes_each = found
    count = source.size
    arguments = (count, run, address(destination), address(source))
    threads.run(kernel, arguments, num_threads(), count * bytes_each * SECONDS_PER_BYTE)
    return True


@lru_cache(maxsize=64)
def _kernel(target: np.dtype[Any], source: np.dtype[Any]) -> tuple[Any, int, int] | None:
    """(kernel, elements taken at once, bytes of an element on both sides); None for NumPy."""
    pair = target.name, source.name
    if not (target.isnative and source.isnative and is_supported(*pair)):
        return None
    sizes = target.itemsize, source.itemsize
    lanes = targets.MACHINES[targets.codegen().isa].vector_bytes // max(sizes)
    to, of = map(KINDS.index, pair)
    kernel = cache.function(f"cast.{pair[1]}.{pair[0]}", 5, partial(_build, to, of, lanes))
    return kernel, RUN_BYTES // max(sizes), sum(sizes)


def _build(to: int, of: int, lanes: int) -> Callable[..., None]:
    from numba import njit

    from convjit_numba.conversions import convert_vector
    from convjit_numba.vectorcode import OPTIONS

    _, take = taskloop.sharing()
    into, out_of = (numpy_dtype(KINDS[kind]).itemsize for kind in (to, of))

    @njit(**OPTIONS)
    def convert(target, source, count):
        if count < lanes:
            for i in range(count):
                convert_vector(to, of, 1, target + i * into, source + i * out_of)
        else:
            for i in range(0, count - lanes, lanes):
                convert_vector(to, of, lanes, target + i * into, source + i * out_of)
            i = count - lanes  # some of the vector before once more
            convert_vector(to, of, lanes, target + i * into, source + i * out_of)

    def kernel(count, run, target, source, control):
        first, last, turn = take(control, (count + run - 1) // run, 1, 0)
        while first < last:
            begin = first * run
            convert(target + begin * into, source + begin * out_of, min(last * run, count) - begin)
            first, last, turn = take(control, (count + run - 1) // run, 1, turn)

    return kernel

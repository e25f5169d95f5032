"""CUDA C++ kernels: compiled by nvrtc when they are launched first, run on CuPy's current stream.

CuPy compiles for the current device, adds ``-ftz=true``, keeps the machine code on disk
(``CUPY_CACHE_DIR``) and loads it once into each device.  A kernel is written as
``extern "C" __global__ void name(...)`` in a string, or as a template whose instance the source
names, and is used like this::

    kernel = load(cupy, SOURCE, "direct", ("-DTILE=8",))
    kernel((blocks,), (128,), (x, w, y, np.int32(channels)), shared_bytes=4096)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from convjit.planes import SHARED_BYTES

# Of every kernel.  No --use_fast_math: the error model knows of no approximate divisions.
OPTIONS = ("--std=c++17",)

# For the sources of kernels: the activation of a number.  A NaN passes, since it compares with
# nothing.
ACTIVATION = r"""
template <typename T>
__device__ __forceinline__ T finish(T value, T slope, T lowest, T highest) {
    if (value < T(0)) value *= slope;
    if (value < lowest) value = lowest;
    return value > highest ? highest : value;
}
"""

# For the sources of kernels: copies of 4, 8 or 16 bytes from global to shared memory, which run
# beside what follows; those of 16 pass the L1 cache by.  Generations before 8.0 have none: there a
# copy is done when the call returns, and waits are nothing.
COPIES = r"""
__device__ __forceinline__ unsigned shared_address(const void *place) {
    return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

// Where `is_there` is false nothing is read, and zeros are written.
template <unsigned BYTES>
__device__ __forceinline__ void copy_async(unsigned to, const void *from, bool is_there) {
#if __CUDA_ARCH__ >= 800
    const unsigned given = is_there ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :: "r"(to), "l"(from), "r"(given) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     :: "r"(to), "l"(from), "n"(BYTES), "r"(given) : "memory");
#else
    struct alignas(BYTES) Copied { unsigned at[BYTES / 4]; } copied = {};
    if (is_there) copied = *static_cast<const Copied *>(from);
    *static_cast<Copied *>(__cvta_shared_to_generic(to)) = copied;
#endif
}
template <unsigned BYTES>
__device__ __forceinline__ void copy_async(unsigned to, const void *from) {
#if __CUDA_ARCH__ >= 800
    if constexpr (BYTES == 16)  // saves the register that says how much is there
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
    else
#endif
        copy_async<BYTES>(to, from, true);
}

// Closes a group of copies; waits for all groups but the last so many, or for every copy.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <unsigned GROUPS> __device__ __forceinline__ void wait_for_all_but() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS) : "memory");
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
"""

MOST_BLOCKS = (2**31 - 1, 65535, 65535)


def is_aligned(array: Any, nbytes: int) -> bool:
    """Whether an array begins at a multiple of so many bytes: another library's may do so anywhere.

    NumPy's, which stand for CuPy's where launches are noted, count as memory of CuPy's pool.
    """
    return isinstance(array, np.ndarray) or int(array.data.ptr) % nbytes == 0


class Launchable:
    """A kernel: callable, for any device, from several threads."""

    def __init__(self, function: Any, name: str) -> None:
        self._function = function
        self.name = name

    def __call__(
        self,
        blocks: Sequence[int],
        threads: Sequence[int],
        arguments: Sequence[Any],
        *,
        shared_bytes: int = 0,
    ) -> None:
        """Start the kernel on the current stream; returns at once.

        Parameters
        ----------
        blocks, threads : up to three numbers
            Of the grid, and of a block.
        arguments : CuPy arrays and NumPy scalars
            Exactly as the kernel declares them.
        shared_bytes : int
            Dynamic shared memory of a block.

        Raises
        ------
        TypeError
            For a Python number, whose width would be a guess.
        ValueError
            For a grid that CUDA does not launch.
        """
        for position, argument in enumerate(arguments):
            if isinstance(argument, (bool, int, float)) and not isinstance(argument, np.generic):
                raise TypeError(
                    f"argument {position} of {self.name} is the Python number {argument!r}; give "
                    "a NumPy scalar of the width that the kernel declares."
                )
        if not all(0 < n <= most for n, most in zip(blocks, MOST_BLOCKS, strict=False)):
            raise ValueError(f"{self.name}: a grid of {tuple(blocks)} blocks cannot be launched.")
        if shared_bytes > SHARED_BYTES:
            self._function.max_dynamic_shared_size_bytes = shared_bytes
        self._function(tuple(blocks), tuple(threads), tuple(arguments), shared_mem=shared_bytes)


@lru_cache(maxsize=512)
def load(cupy: Any, source: str, name: str, options: tuple[str, ...] = ()) -> Launchable:
    """The kernel of a name in a source, compiled with :data:`OPTIONS` and ``options``.

    Parameters
    ----------
    cupy : module
        The solver's, which is a stand-in in tests.
    source : str
        CUDA C++; may include ``cuda_fp16.h``, ``cuda_bf16.h`` and ``mma.h``.
    name : str
        Of an ``extern "C"`` function, or an instance of a template such as ``"gemm<64, 128>"``.
    options : tuple of str
        Macros, mostly: ``("-DTILE=8",)``.
    """
    expressions = (name,) if "<" in name else None
    module = cupy.RawModule(code=source, options=(*OPTIONS, *options), name_expressions=expressions)
    return Launchable(module.get_function(name), name)

"""The GPU behind a seam: memory, copies and launches, and nothing else of CUDA.

The solvers see a :class:`Device` and its buffers alone, so that tests can put another in its place.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from convjit.gpus import Description

Buffer = Any  # a flat array on the device
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Kernel:
    """A function that numba.cuda compiles when it is launched first.

    Attributes
    ----------
    name : str
    function : callable
        Takes flat buffers and NumPy scalars, whose types are its signature.
    threads : int
        Of a block.
    """

    name: str
    function: Callable[..., None]
    threads: int


# How numba's warning begins that a grid does not fill a GPU.
SMALL_GRID = "Grid size"


class Device(Protocol):
    """Where kernels run."""

    def describe(self) -> Description:
        """The device's own figures."""
        ...

    def free_bytes(self) -> int:
        """Memory that could be allocated now."""
        ...

    def allocate(self, count: int, dtype: Any) -> Buffer:
        """A flat uninitialised buffer.

        Raises
        ------
        MemoryError
            Saying how many bytes were wanted.
        """
        ...

    def upload(self, array: Array) -> Buffer:
        """A copy of a host's array, flat."""
        ...

    def download(self, buffer: Buffer, array: Array) -> None:
        """Copy a buffer into a C-contiguous host array, after the kernels before it."""
        ...

    def launch(
        self, kernel: Kernel, blocks: int, shared_bytes: int, arguments: Sequence[Any]
    ) -> None:
        """Start a kernel on a row of blocks, with so much dynamic shared memory."""
        ...

    def wait(self) -> None:
        """Return when all that was started is done."""
        ...


def unavailable() -> str | None:
    """Why numba.cuda cannot be used here, in a sentence; None if it can."""
    from importlib.util import find_spec

    if find_spec("numba_cuda") is None:
        return "numba-cuda is not installed: pip install 'convjit[cuda13]' (or [cuda12])"
    from numba import config, cuda

    if config.ENABLE_CUDASIM:
        return "NUMBA_ENABLE_CUDASIM is set, and the simulator is no GPU"
    if cuda.is_available():
        return None
    error = cuda.cuda_error()
    cause = str(error).strip().splitlines()[0].rstrip(".") if error else "no device is found"
    return f"no CUDA GPU can be used: {cause}"


class CudaDevice:
    """The current device of numba.cuda, on its default stream."""

    def __init__(self) -> None:
        self._compiled: dict[Kernel, Any] = {}
        self._configured = lru_cache(maxsize=1024)(self._configure)
        self._lock = threading.Lock()

    def describe(self) -> Description:
        from numba import cuda

        gpu = cuda.get_current_device()
        name = gpu.name.decode() if isinstance(gpu.name, bytes) else str(gpu.name)
        return Description(
            name,
            tuple(gpu.compute_capability),
            gpu.MULTIPROCESSOR_COUNT,
            gpu.CLOCK_RATE * 1e3,
            gpu.MEMORY_CLOCK_RATE * 1e3,
            gpu.GLOBAL_MEMORY_BUS_WIDTH,
            gpu.L2_CACHE_SIZE,
            cuda.current_context().get_memory_info().total,
        )

    def free_bytes(self) -> int:
        from numba import cuda

        return int(cuda.current_context().get_memory_info().free)

    def allocate(self, count: int, dtype: Any) -> Buffer:
        from numba import cuda

        try:
            return cuda.device_array(count, dtype)
        except Exception as error:
            if "MEMORY" not in str(error).upper():
                raise
            wanted = count * np.dtype(dtype).itemsize
            raise MemoryError(
                f"{wanted} bytes were wanted on the GPU and could not be had; use a smaller batch."
            ) from error

    def upload(self, array: Array) -> Buffer:
        flat = np.ascontiguousarray(array).reshape(-1)
        buffer = self.allocate(flat.size, flat.dtype)
        buffer.copy_to_device(flat)
        return buffer

    def download(self, buffer: Buffer, array: Array) -> None:
        buffer.copy_to_host(array.reshape(-1))

    def launch(
        self, kernel: Kernel, blocks: int, shared_bytes: int, arguments: Sequence[Any]
    ) -> None:
        self._configured(kernel, blocks, shared_bytes)(*arguments)

    def _configure(self, kernel: Kernel, blocks: int, shared_bytes: int) -> Any:
        """A kernel and its grid, ready to be launched."""
        from numba import cuda

        with self._lock:
            if kernel not in self._compiled:
                self._compiled[kernel] = cuda.jit(kernel.function)
            with warnings.catch_warnings():
                # A small problem has a small grid, which nobody can help.
                warnings.filterwarnings("ignore", message=SMALL_GRID)
                return self._compiled[kernel][blocks, kernel.threads, 0, shared_bytes]

    def wait(self) -> None:
        from numba import cuda

        cuda.synchronize()

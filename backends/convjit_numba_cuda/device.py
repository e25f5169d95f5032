"""Launches behind a seam: the kernels, and how they are started on a GPU's arrays.

Arrays are CuPy's.  The solvers see a :class:`Device` alone, so that tests can put another in its
place.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from convjit import cupyarrays

Array = Any  # CuPy's


@dataclass(frozen=True, eq=False, slots=True)
class Kernel:
    """A function that numba.cuda compiles when it is launched first.

    Attributes
    ----------
    name : str
    function : callable
        Takes flat arrays and NumPy scalars, whose types are its signature.
    threads : int
        Of a block.
    """

    name: str
    function: Callable[..., None]
    threads: int


# How numba's warning begins that a grid does not fill a GPU.
SMALL_GRID = "Grid size"


class Device(Protocol):
    """Where arrays lie and kernels run."""

    @property
    def cupy(self) -> Any:
        """The array library."""
        ...

    def launch(
        self, kernel: Kernel, blocks: int, shared_bytes: int, arguments: Sequence[Any]
    ) -> None:
        """Start a kernel on a row of blocks, with so much dynamic shared memory; returns at once.

        Arguments are contiguous arrays of one axis, and NumPy scalars.
        """
        ...


def unavailable() -> str | None:
    """Why numba.cuda cannot be used here, in a sentence; None if it can."""
    from importlib.util import find_spec

    if find_spec("numba_cuda") is None:
        return "numba-cuda is not installed: pip install 'convjit[cuda13]' (or [cuda12])"
    from numba import config, cuda

    if config.ENABLE_CUDASIM:
        return "NUMBA_ENABLE_CUDASIM is set, and the simulator is no GPU"
    if (reason := cupyarrays.unavailable()) is not None:
        return reason
    if cuda.is_available():
        return None
    error = cuda.cuda_error()
    cause = str(error).strip().splitlines()[0].rstrip(".") if error else "no device is found"
    return f"no CUDA GPU can be used: {cause}"


class CudaDevice:
    """numba.cuda on CuPy's current device and stream."""

    def __init__(self) -> None:
        self._compiled: dict[Kernel, Any] = {}
        self._configured = lru_cache(maxsize=1024)(self._configure)
        self._lock = threading.Lock()

    @property
    def cupy(self) -> Any:
        import cupy

        return cupy

    def stream(self) -> int:
        """The handle of the current stream, 0 for the default one."""
        return int(self.cupy.cuda.get_current_stream().ptr)

    def launch(
        self, kernel: Kernel, blocks: int, shared_bytes: int, arguments: Sequence[Any]
    ) -> None:
        configured = self._configured(kernel, blocks, shared_bytes, self.stream())
        configured(*map(_on_device, arguments))

    def _configure(self, kernel: Kernel, blocks: int, shared_bytes: int, stream: int) -> Any:
        """A kernel and its grid, ready to be launched."""
        from numba import cuda

        with self._lock:
            if kernel not in self._compiled:
                self._compiled[kernel] = cuda.jit(kernel.function)
            on = cuda.external_stream(stream) if stream else 0
            with warnings.catch_warnings():
                # A small problem has a small grid, which nobody can help.
                warnings.filterwarnings("ignore", message=SMALL_GRID)
                return self._compiled[kernel][blocks, kernel.threads, on, shared_bytes]


def _on_device(argument: Any) -> Any:
    """An array as numba's own, which would wait on the host for the stream that the array names."""
    if not hasattr(argument, "__cuda_array_interface__"):
        return argument
    from numba import cuda

    return cuda.as_cuda_array(argument, sync=False)

"""A device of ``convjit_numba_cuda`` that is the CPU: real kernels, compiled to real PTX, run here.

numba.cuda compiles a kernel with the options that it has on a GPU, ``ptxcpu`` runs the PTX.  Arrays
are those of the stand-in for CuPy, which never mix with the host's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import ptxcpu
import standin_cupy

from convjit import registry, spi
from convjit.gpus import Description
from convjit.spi import Target
from convjit_numba_cuda import NumbaCudaBackend
from convjit_numba_cuda.code import ptx_of
from convjit_numba_cuda.device import Kernel
from convjit_numba_cuda.targets import target

CAPABILITY = (8, 0)
GPU = Description("NVIDIA A100-SXM4-80GB", CAPABILITY, 108, 1.41e9, 1.6e9, 5120, 40 << 20, 80 << 30)

# A GPU that is full at once gets the large tiles for small problems too.
SMALL_GPU = Description("a small GPU", CAPABILITY, 1, 1e9, 1e9, 64, 1 << 20, 1 << 30)


@cache
def missing() -> str | None:
    """Why numba.cuda's kernels cannot be compiled and run here, in a sentence; None if they can."""
    if find_spec("numba_cuda") is None:
        return "numba-cuda is not installed (the extra gpu-test)"
    for module in ("nvidia", "cuda.bindings.nvrtc"):
        if find_spec(module.partition(".")[0]) is None:
            return "the compilers of the extra gpu-test are not installed"
    return ptxcpu.missing()


def kind_of(argument: Any) -> str:
    """How :func:`ptx_of` calls an argument."""
    if isinstance(argument, standin_cupy.ndarray):
        return f"{argument.dtype.name}[]"
    return str(argument.dtype.name)


def flattened(argument: Any) -> list[Any]:
    """An argument as numba passes it: of an array its owner, size, item, address, shape, stride."""
    if not isinstance(argument, standin_cupy.ndarray):
        assert isinstance(argument, np.generic), f"{type(argument).__name__} is not the device's"
        return [argument]
    words = argument._host
    assert words.ndim == 1
    assert words.flags.c_contiguous
    size, item = np.int64(words.size), np.int64(words.itemsize)
    return [np.uint64(0), np.uint64(0), size, item, words, size, item]


@dataclass(eq=False)
class EmulatedDevice:
    """The device.

    Attributes
    ----------
    description : Description
    checked : bool
        Whether kernels run in checked mode.
    memory_bytes : int
        What the backend says is free.
    launches : list of (Kernel, int)
        What was launched, and on how many blocks.
    modules : dict
        The modules that were compiled, by kernel and kinds of arguments.
    """

    description: Description = GPU
    checked: bool = False
    memory_bytes: int = 1 << 40
    cupy: Any = standin_cupy
    launches: list[tuple[Kernel, int]] = field(default_factory=list)
    modules: dict[tuple[Kernel, tuple[str, ...]], ptxcpu.Module] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def module(self, kernel: Kernel, kinds: tuple[str, ...]) -> ptxcpu.Module:
        """The compiled kernel for arguments of such kinds."""
        with self._lock:  # numba's compiler is not for two threads
            key = (kernel, kinds)
            if key not in self.modules:
                text = ptx_of(kernel, kinds, self.description.capability)
                folder = Path(spi.cache_dir()) / "ptxcpu"
                self.modules[key] = ptxcpu.Module(text, folder, checked=self.checked)
            return self.modules[key]

    def launch(
        self, kernel: Kernel, blocks: int, shared_bytes: int, arguments: Sequence[Any]
    ) -> None:
        assert 0 < blocks < 2**31, f"{blocks} blocks"
        assert shared_bytes <= 48 << 10, f"{shared_bytes} bytes of shared memory"
        module = self.module(kernel, tuple(map(kind_of, arguments)))
        (name,) = module.entries
        assert module.entries[name].shared_bytes + shared_bytes <= 48 << 10
        values = [part for argument in arguments for part in flattened(argument)]
        module.launch(name, (blocks,), (kernel.threads,), values, dynamic_bytes=shared_bytes)
        self.launches.append((kernel, blocks))


class EmulatedBackend(NumbaCudaBackend):
    """The backend on that device, under a name of its own: never the one that is installed."""

    name = "numba_cuda_emulated"
    array_types = ("standin_cupy:ndarray", "numpy:ndarray")

    def __init__(self, gpu: EmulatedDevice, name: str = name) -> None:
        super().__init__(gpu)
        self.gpu = gpu
        self.name = name

    def probe(self) -> str | None:
        return missing()

    def target(self, device_id: int | None = None) -> Target:
        return target(self.gpu.description)

    def free_bytes(self) -> int:
        return self.gpu.memory_bytes


@contextmanager
def registered(backend: EmulatedBackend) -> Iterator[None]:
    """The backend among those that convjit knows."""
    registry.register(backend)
    try:
        yield
    finally:
        registry.unregister(backend.name)

"""GPU arrays through CuPy: whether there is a GPU, what it is, whose arrays lie on it.

CuPy's arrays are those of every built-in backend for GPUs, whatever compiles its kernels: memory
comes from CuPy's pool, work goes to CuPy's current stream, and lowerings are operations of CuPy's.
Functions take ``cupy`` as an argument, so that tests can put another module in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from convjit.gauges import Gauge, Run, resident_call
from convjit.gpus import Description
from convjit.spec import ConvSpec
from convjit.spi import SPI_VERSION, Solver, Target

Array = Any

BUS_BYTES = 1 << 25
COPIED_BYTES = 1 << 28  # beyond any L2; less where that would take longer than milliseconds

DLPACK_CUDA = (2, 13)  # kDLCUDA and kDLCUDAManaged of DLPack's DLDeviceType


def unavailable() -> str | None:
    """Why CuPy cannot be used here, in a sentence; None if it can."""
    from importlib.util import find_spec

    if find_spec("cupy") is None:
        return "CuPy is not installed: pip install 'convjit[cuda13]' (or [cuda12])"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported: {_sentence(error)}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CUDARuntimeError, or what a missing library raises
        return f"CuPy finds no CUDA GPU: {_sentence(error)}"
    return None if count else "CuPy finds no CUDA GPU: no device is there"


def _sentence(error: Exception) -> str:
    """The first line of an error that says something; CuPy frames some by lines of signs."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line.strip("=- ")), type(error).__name__)


def describe(cupy: Any) -> Description:
    """The current device's own figures."""
    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    name, capability = properties["name"], device.compute_capability
    return Description(
        name.decode() if isinstance(name, bytes) else str(name),
        (int(capability[:-1]), int(capability[-1])),  # "80", "120"
        properties["multiProcessorCount"],
        # Later drivers may stop to tell clocks, which GPUs that the table knows do not need.
        properties.get("clockRate", 0) * 1e3,
        properties.get("memoryClockRate", 0) * 1e3,
        properties["memoryBusWidth"],
        properties["l2CacheSize"],
        device.mem_info[1],
    )


def free_bytes(cupy: Any) -> int:
    """What could be allocated now: the device's free memory, and what the pool keeps for it."""
    return int(cupy.cuda.Device().mem_info[0] + cupy.get_default_memory_pool().free_bytes())


def identity(cupy: Any, array: Array) -> str | None:
    """``"cuda:1"`` for an array that lies on another device than the current one, else None."""
    current = cupy.cuda.Device().id
    return None if array.device.id == current else f"cuda:{array.device.id}"


def adopt(cupy: Any, value: Any) -> Array | None:
    """A device array as CuPy's, over the same memory; None for what does not lie on a GPU.

    DLPack comes first, which knows bfloat16: its producer is handed the current stream, and makes
    it wait.  The CUDA array interface (version 3) may name the stream on which the array is still
    being written; then the current stream is told to wait for it.  The host waits for neither.
    """
    if isinstance(value, cupy.ndarray):
        return value
    device = getattr(value, "__dlpack_device__", None)
    if device is not None and device()[0] in DLPACK_CUDA:
        return cupy.from_dlpack(value)
    interface = getattr(value, "__cuda_array_interface__", None)
    return None if interface is None else _from_interface(cupy, value, interface)


def _from_interface(cupy: Any, owner: Any, interface: dict[str, Any]) -> Array:
    shape = tuple(interface["shape"])
    dtype = np.dtype(interface["typestr"])
    if interface.get("mask") is not None:
        raise TypeError("a masked device array is not convolved; fill it first.")
    if 0 in shape:  # whose address may be none
        return cupy.empty(shape, dtype)
    strides = interface.get("strides")
    first, last = _reach(shape, strides, dtype.itemsize)
    address = interface["data"][0]
    memory = cupy.cuda.UnownedMemory(address + first, last - first, owner)
    array = cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, -first), strides)
    stream = interface.get("stream")
    if stream is not None and interface.get("version", 0) >= 3:
        # 1 is the legacy default stream, which CuPy calls 0, and 2 that of each thread.
        producer = cupy.cuda.ExternalStream(0 if stream == 1 else stream)
        cupy.cuda.get_current_stream().wait_event(producer.record())
    return array


def _reach(
    shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int
) -> tuple[int, int]:
    """First and one beyond the last byte of an array, counted from its first element."""
    if strides is None:
        return 0, int(np.prod(shape, dtype=np.int64)) * itemsize
    steps = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
    return sum(min(s, 0) for s in steps), sum(max(s, 0) for s in steps) + itemsize


# -------------------------------------------------------------------- backends and their gauges


class CupyBackendBase:
    """What a backend whose arrays are CuPy's answers the core (:class:`convjit.spi.Backend`).

    A derived class has a name, ``probe``, ``target`` and ``solvers``.

    Parameters
    ----------
    cupy : module, optional
        What stands for ``cupy``, for tests.
    """

    device = "cuda"
    spi_version = SPI_VERSION
    array_types: tuple[str, ...] = ("cupy:ndarray", "numpy:ndarray")

    def __init__(self, cupy: Any = None) -> None:
        self._cupy = cupy

    def array_namespace(self) -> Any:
        if self._cupy is None:
            import cupy

            self._cupy = cupy
        return self._cupy

    def target(self, device_id: int | None = None) -> Target:
        raise NotImplementedError

    def adopt(self, value: Any) -> Array | None:
        """A device array of another library as CuPy's, over the same memory; None if it is none."""
        return adopt(self.array_namespace(), value)

    def device_of(self, array: Array) -> str | None:
        """The device on which an array lies, if it is not the current one."""
        return identity(self.array_namespace(), array)

    def upload(self, array: Array) -> Array:
        """A NumPy array's copy on the device."""
        return self.array_namespace().asarray(array)

    def download(self, array: Array, out: Array) -> None:
        """Copy into a C-contiguous NumPy array, once the kernels before are done."""
        self.array_namespace().asnumpy(array, out=out)

    def free_bytes(self) -> int:
        """Memory of the device that could be allocated now."""
        return free_bytes(self.array_namespace())

    def release_memory(self) -> None:
        """Return the blocks that CuPy's pool keeps to the device."""
        self.array_namespace().get_default_memory_pool().free_all_blocks()

    def resident(self, solver: Solver, spec: ConvSpec) -> Callable[[], None]:
        """A call of a solver on operands that lie on the device, which returns when it is done."""
        cupy = self.array_namespace()
        return resident_call(solver, spec, self.target(), cupy, waiting(cupy))


def waiting(cupy: Any) -> Callable[[], None]:
    """What waits for the current stream."""
    return lambda: cupy.cuda.get_current_stream().synchronize()


def bandwidth_gauges(cupy: Any, target: Target) -> Iterator[Gauge]:
    """Of the device's memory and of the bus, which no kernel of a backend decides."""
    yield Gauge("bandwidth", "memory", partial(_copy, cupy, target))
    yield Gauge("bandwidth", "bus", partial(_bus, cupy))


def _copy(cupy: Any, target: Target) -> Run:
    count = int(min(COPIED_BYTES, 2e-3 * target.bandwidth["memory"])) // 8
    source, out = cupy.full((count,), 1, "float32"), cupy.empty((count,), "float32")
    wait = waiting(cupy)

    def call() -> None:
        out[...] = source
        wait()

    return Run(call, 2.0 * source.nbytes)


def _bus(cupy: Any) -> Run:
    host = np.ones(BUS_BYTES // 4, np.float32)
    wait = waiting(cupy)

    def call() -> None:
        cupy.asarray(host)
        wait()

    return Run(call, float(BUS_BYTES))

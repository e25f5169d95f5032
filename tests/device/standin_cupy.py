"""A stand-in for ``cupy`` without a GPU: NumPy computes, kernels are compiled and run on the CPU.

It is stricter than CuPy.  Host and device arrays never mix: NumPy's functions refuse these arrays,
and these functions refuse NumPy's.  Fresh memory is no number.  What is not written here does not
exist; that it exists in CuPy, with the keywords that are used, is what ``test_cupy_names`` checks.
``RawModule`` hands its source to nvrtc with the options that CuPy gives it, and runs the PTX by
``ptxcpu``; Python numbers among a kernel's arguments become 64 bits wide, as CuPy makes them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ptxcpu

from convjit import spi
from convjit_cupy.code import called, ptx_of

Host = np.ndarray[Any, np.dtype[Any]]
CAPABILITY = (8, 0)
MOST_SHARED_BYTES = 163 << 10  # that a block of compute capability 8.0 may ask for


# -------------------------------------------------------------------- arrays


class Flags:
    """What CuPy knows of an array's memory: nothing of alignment or of being writable."""

    def __init__(self, host: Host) -> None:
        self.c_contiguous = host.flags.c_contiguous
        self.f_contiguous = host.flags.f_contiguous
        self.owndata = host.flags.owndata


class ndarray:
    """An array in the memory of the device."""

    __array_ufunc__ = None  # NumPy's functions raise

    def __init__(
        self, shape: Any = (), dtype: Any = float, memptr: Any = None, strides: Any = None
    ) -> None:
        kind = np.dtype(dtype)
        if memptr is None:
            self._host = ptxcpu.empty(shape, kind)
        else:
            block, offset = memptr.mem.block, memptr.offset
            self._host = np.ndarray(shape, kind, block, offset, strides)

    def __array__(self, *args: Any, **keywords: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __repr__(self) -> str:
        return f"standin_cupy.{self._host!r}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host))
    device = property(lambda self: SimpleNamespace(id=0))
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))

    @property
    def real(self) -> ndarray:
        return _view(self._host.real)

    @real.setter
    def real(self, value: Any) -> None:
        self._host.real = _host(value)

    @property
    def imag(self) -> ndarray:
        return _view(self._host.imag)

    @imag.setter
    def imag(self, value: Any) -> None:
        self._host.imag = _host(value)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "typestr": self.dtype.str, "strides": self.strides,
            "data": (self.data.ptr, False), "version": 3, "stream": 1,
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self._host)

    def __getitem__(self, index: Any) -> ndarray:
        return _view(self._host[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        with np.errstate(all="ignore"):
            self._host[index] = _host(value)

    def get(self) -> Host:
        return self._host.copy()

    def item(self) -> Any:
        return self._host.item()

    def reshape(self, *shape: Any) -> ndarray:
        return _new_or_view(self._host.reshape(*shape), self._host)

    def transpose(self, *axes: Any) -> ndarray:
        return _view(self._host.transpose(*axes))

    def swapaxes(self, one: int, other: int) -> ndarray:
        return _view(self._host.swapaxes(one, other))

    def view(self, dtype: Any) -> ndarray:
        return _view(self._host.view(dtype))

    def copy(self) -> ndarray:
        return _new(self._host)

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        if not copy and self.dtype == np.dtype(dtype):
            return self
        with np.errstate(all="ignore"):
            return _new(self._host.astype(dtype))

    def all(self) -> ndarray:
        return _new(self._host.all())

    def sum(self, axis: Any = None, keepdims: bool = False) -> ndarray:
        with np.errstate(all="ignore"):
            return _new(self._host.sum(axis=axis, keepdims=keepdims, dtype=self.dtype))


def _operator(name: str, in_place: bool = False) -> Callable[[ndarray, Any], Any]:
    def operate(self: ndarray, other: Any) -> Any:
        with np.errstate(all="ignore"):  # a GPU has no warnings
            result = getattr(self._host, name)(_host(other))
        return self if in_place else _new(result)

    return operate


for _name in ("add", "sub", "mul", "truediv"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", _operator(f"__r{_name}__"))
    setattr(ndarray, f"__i{_name}__", _operator(f"__i{_name}__", in_place=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _view(host: Any) -> ndarray:
    """A device array over memory that is the device's already."""
    array = ndarray.__new__(ndarray)
    array._host = np.asarray(host)
    return array


def _new(host: Any) -> ndarray:
    """A device array of its own with a host array's numbers."""
    host = np.asarray(host)
    array = ndarray(host.shape, host.dtype)
    array._host[...] = host
    return array


def _new_or_view(result: Host, of: Host) -> ndarray:
    return _view(result) if np.may_share_memory(result, of) else _new(result)


def _host(value: Any) -> Any:
    """What NumPy computes with: of a device array its memory, and numbers as they are."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array among the device's: Unsupported type numpy.ndarray")
    return value


# -------------------------------------------------------------------- functions


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    array = ndarray(shape, dtype)
    array._host[...] = fill_value
    return array


def asarray(a: Any, dtype: Any = None, order: Any = None) -> ndarray:
    """From the host too, which is how data is uploaded."""
    if isinstance(a, ndarray) and dtype in (None, a.dtype) and order in (None, "K"):
        return a
    source = a._host if isinstance(a, ndarray) else a
    if isinstance(a, ndarray) and dtype in (None, a.dtype) and a.flags.c_contiguous:
        return a
    return _new(np.ascontiguousarray(np.asarray(source, dtype)).reshape(np.shape(source)))


def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    return _new(np.ascontiguousarray(_host(a), dtype))


def asnumpy(a: ndarray, stream: Any = None, order: str = "C", out: Host | None = None) -> Host:
    if out is None:
        return a.get()
    assert isinstance(out, np.ndarray)
    assert out.flags.c_contiguous
    assert out.dtype == a.dtype
    out[...] = a._host
    return out


def moveaxis(a: ndarray, source: Any, destination: Any) -> ndarray:
    return _view(np.moveaxis(_host(a), source, destination))


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    return bool(np.may_share_memory(a._host, b._host))


def _ufunc(compute: Any) -> Callable[..., ndarray]:
    def call(*operands: Any, out: ndarray | None = None) -> ndarray:
        given = [_host(o) for o in operands]
        with np.errstate(all="ignore"):
            if out is None:
                return _new(compute(*given))
            compute(*given, out=_host(out))
        return out

    return call


add, subtract, multiply = map(_ufunc, (np.add, np.subtract, np.multiply))
maximum, minimum = map(_ufunc, (np.maximum, np.minimum))
negative, conjugate, isfinite = map(_ufunc, (np.negative, np.conjugate, np.isfinite))


def where(condition: Any, x: Any, y: Any) -> ndarray:
    return _new(np.where(_host(condition), _host(x), _host(y)))


def clip(a: ndarray, a_min: Any, a_max: Any, out: ndarray | None = None) -> ndarray:
    assert a.dtype.kind in "iufb"  # of what CuPy has a loop for
    return _ufunc(np.clip)(a, a_min, a_max, out=out)


def matmul(a: ndarray, b: ndarray, out: ndarray | None = None) -> ndarray:
    if a.dtype.char not in "fdFDlLqQ":
        # float16 is cast there and back, bfloat16 goes to a kernel for integers.
        raise TypeError(f"cuBLAS would not multiply {a.dtype} as it is")
    return _ufunc(np.matmul)(a, b, out=out)


def tensordot(a: ndarray, b: ndarray, axes: Any = 2) -> ndarray:
    return _new(np.tensordot(_host(a), _host(b), axes))


def _as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> ndarray:
    return _view(np.lib.stride_tricks.as_strided(_host(x), shape, strides))


lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=_as_strided))


def _transform(name: str) -> Callable[..., ndarray]:
    compute = getattr(np.fft, name)

    def call(a: ndarray, s: Any = None, axes: Any = None, norm: Any = None) -> ndarray:
        if not a.flags.c_contiguous:
            raise AssertionError("cuFFT has its input copied first")
        with np.errstate(all="ignore"):
            return _new(compute(_host(a), s=s, axes=axes, norm=norm))

    return call


fft = SimpleNamespace(**{n: _transform(n) for n in ("fftn", "ifftn", "rfftn", "irfftn")})


# -------------------------------------------------------------------- kernels


class RawModule:
    """CUDA C++, compiled when a kernel of it runs first."""

    checked = False  # whether kernels run in checked mode, for tests to set
    launches: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []  # noqa: RUF012
    used: dict[str, ptxcpu.Module] = {}  # noqa: RUF012  (by kernel and macros)

    def __init__(
        self, *, code: str, options: tuple[str, ...] = (), name_expressions: Any = None
    ) -> None:
        assert isinstance(options, tuple)
        self._code, self._options = code, options
        self._expressions = tuple(name_expressions or ())
        self._lock = threading.Lock()
        self._modules: dict[bool, tuple[ptxcpu.Module, dict[str, str]]] = {}

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self, name)

    def loaded(self) -> tuple[ptxcpu.Module, dict[str, str]]:
        with self._lock:
            checked = RawModule.checked
            if checked not in self._modules:
                text, mangled = ptx_of(self._code, self._options, self._expressions, CAPABILITY)
                folder = Path(spi.cache_dir()) / "ptxcpu"
                self._modules[checked] = ptxcpu.Module(text, folder, checked=checked), mangled
            return self._modules[checked]


class RawKernel:
    """A kernel of a module."""

    def __init__(self, module: RawModule, name: str) -> None:
        self._module, self.name = module, name
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        assert 0 < np.prod(block) <= 1024, f"{self.name}: a block of {block} threads"
        assert shared_mem <= self.max_dynamic_shared_size_bytes <= MOST_SHARED_BYTES
        module, mangled = self._module.loaded()
        name = mangled.get(self.name, self.name)
        assert module.entries[name].shared_bytes + shared_mem <= MOST_SHARED_BYTES
        values = [_argument(value) for value in args]
        module.launch(name, grid, block, values, dynamic_bytes=shared_mem)
        RawModule.launches.append((self.name, tuple(grid), tuple(block)))
        RawModule.used[called(self.name, self._module._options)] = module


def _argument(value: Any) -> Any:
    """As CuPy passes it: Python's numbers are 64 bits wide."""
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.generic):
        return value
    return {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}[type(value)](
        value
    )


# -------------------------------------------------------------------- the device


class Device:
    """The one device."""

    id = 0
    free = 1 << 40  # what mem_info says, for tests to set
    compute_capability = "80"

    @property
    def mem_info(self) -> tuple[int, int]:
        return Device.free, 80 << 30


class UnownedMemory:
    """Memory of another library: here, at an address of the host's."""

    def __init__(self, ptr: int, size: int, owner: Any) -> None:
        import ctypes

        if ptr == 0:
            raise RuntimeError("UnownedMemory requires explicit device ID for a null pointer.")
        self.owner = owner
        self.block = (ctypes.c_char * max(size, 1)).from_address(ptr)


class MemoryPointer:
    def __init__(self, mem: UnownedMemory, offset: int) -> None:
        self.mem, self.offset = mem, offset


class Stream:
    """A stream that remembers for whose events it was told to wait."""

    waited: list[int] = []  # noqa: RUF012

    def __init__(self, ptr: int = 0) -> None:
        self.ptr = ptr

    def record(self) -> int:
        return self.ptr

    def synchronize(self) -> None:
        """At once: everything here is done when it returns."""

    def wait_event(self, event: int) -> None:
        Stream.waited.append(event)


PROPERTIES = {
    "name": b"NVIDIA A100-SXM4-80GB", "multiProcessorCount": 108, "clockRate": 1_410_000,
    "memoryClockRate": 1_593_000, "memoryBusWidth": 5120, "l2CacheSize": 40 << 20,
}  # fmt: skip

cuda = SimpleNamespace(
    Device=Device,
    UnownedMemory=UnownedMemory,
    MemoryPointer=MemoryPointer,
    ExternalStream=Stream,
    get_current_stream=Stream,
    runtime=SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda device: PROPERTIES,
    ),
)


def from_dlpack(array: Any) -> ndarray:
    """Of what stands for another library's array: the memory that its capsule names."""
    return _view(array.__dlpack__(stream=0)._host)


def get_default_memory_pool() -> Any:
    return SimpleNamespace(free_bytes=lambda: 0, free_all_blocks=lambda: None)

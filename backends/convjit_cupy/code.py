"""The CUDA C++ kernels as PTX, on a machine without a GPU: what a solver would launch, and what of.

A problem is planned and run on a module in CuPy's place, whose arrays are NumPy's, whose libraries
compute nothing and whose kernels are noted instead of launched; nvrtc then compiles each with the
options that it has on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from convjit.gauges import resident_call
from convjit.gpus import Description
from convjit.spec import ConvSpec
from convjit.spi import DeviceCode, Solver
from convjit_cupy.targets import target

Array = np.ndarray[Any, np.dtype[Any]]


@cache
def ptx_of(
    source: str,
    options: tuple[str, ...],
    expressions: tuple[str, ...] = (),
    capability: tuple[int, int] = (8, 0),
) -> tuple[str, dict[str, str]]:
    """(PTX, the name in it of each expression) by nvrtc, with what CuPy adds to the options.

    Raises
    ------
    RuntimeError
        With nvrtc's log, for a source that does not compile.
    """
    from cuda.bindings import nvrtc

    def checked(answer: Any) -> Any:
        if answer[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(str(answer[0]))
        return answer[1] if len(answer) == 2 else None

    given = [
        *options, "-ftz=true", f"-arch=compute_{capability[0]}{capability[1]}",
        "--device-as-default-execution-space", *(f"-I{folder}" for folder in headers()),
    ]  # fmt: skip
    program = checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, None, None))
    for expression in expressions:
        checked(nvrtc.nvrtcAddNameExpression(program, expression.encode()))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(given), [o.encode() for o in given])
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.decode().rstrip("\0 "))
    text = b" " * checked(nvrtc.nvrtcGetPTXSize(program))
    checked(nvrtc.nvrtcGetPTX(program, text))
    mangled = {
        e: checked(nvrtc.nvrtcGetLoweredName(program, e.encode())).decode() for e in expressions
    }
    return text.decode().rstrip("\0 "), mangled


@cache
def headers() -> tuple[str, ...]:
    """Where cuda_fp16.h and its like are: in the wheels of the toolkit."""
    import nvidia

    found = (p for root in nvidia.__path__ for p in Path(root).glob("*/include/cuda_fp16.h"))
    return tuple(sorted(str(p.parent) for p in found))


def called(kernel: str, options: Sequence[str]) -> str:
    """What an instance of a kernel is called: by its name and macros."""
    return " ".join([kernel, *(option for option in options if option.startswith("-D"))])


class Notebook:
    """A module in CuPy's place: arrays are NumPy's, and launches are noted.

    Attributes
    ----------
    launches : list of (Module, name, threads, shared bytes)
    """

    def __init__(self) -> None:
        self.launches: list[tuple[_Module, str, int, int]] = []
        self.fft = SimpleNamespace(
            fftn=_transform, ifftn=_transform, rfftn=_transform_of_reals, irfftn=_transform_to_reals
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    # What no kernel has written is zero here: NumPy computes with it beside the launches, and
    # memory as it is found overflows now and then.
    def empty(self, shape: int | tuple[int, ...], dtype: Any = float) -> Array:
        return np.zeros(shape, dtype)

    def empty_like(self, prototype: Array, dtype: Any = None) -> Array:
        return np.zeros_like(prototype, dtype)

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """An array of the product's shape."""
        if out is not None:
            return out
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return np.zeros((*batch, a.shape[-2], b.shape[-1]), np.result_type(a, b))

    def RawModule(
        self, *, code: str, options: tuple[str, ...] = (), name_expressions: Any = None
    ) -> _Module:
        return _Module(self, code, options, tuple(name_expressions or ()))


def _transform(
    a: Array, s: Any = None, axes: Any = None, norm: Any = None, last: int | None = None,
    dtype: Any = None,
) -> Array:  # fmt: skip
    """An array of a transform's shape."""
    places = range(-a.ndim, 0) if axes is None else axes
    shape = list(a.shape)
    for place, size in zip(places, s or [a.shape[p] for p in places], strict=True):
        shape[place] = size
    if last is not None:
        shape[places[-1]] = last
    return np.zeros(shape, dtype or a.dtype)


def _transform_of_reals(a: Array, s: Any = None, axes: Any = None, norm: Any = None) -> Array:
    last = (s or a.shape)[-1] // 2 + 1
    return _transform(a, s, axes, last=last, dtype=np.result_type(a, np.complex64))


def _transform_to_reals(a: Array, s: Any = None, axes: Any = None, norm: Any = None) -> Array:
    last = s[-1] if s else 2 * (a.shape[-1] - 1)
    return _transform(a, s, axes, last=last, dtype=a.real.dtype)


class _Module:
    def __init__(
        self, notebook: Notebook, code: str, options: tuple[str, ...], expressions: tuple[str, ...]
    ) -> None:
        self.notebook, self.code, self.options = notebook, code, options
        self.expressions = expressions

    def get_function(self, name: str) -> _Function:
        return _Function(self, name)


class _Function:
    max_dynamic_shared_size_bytes = 0

    def __init__(self, module: _Module, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        threads = int(np.prod(block))
        self._module.notebook.launches.append((self._module, self._name, threads, shared_mem))


def device_code(
    solvers: Sequence[Solver], notebook: Notebook, name: str, spec: ConvSpec, device: Description
) -> Iterator[DeviceCode]:
    """The kernels of the solvers that take a problem as it is, in the order of their launches."""
    machine = target(name, device)
    for solver in solvers:
        if solver.refuse(spec, machine) is not None:
            continue
        notebook.launches.clear()
        resident_call(solver, spec, machine, notebook)()
        for module, kernel, threads, shared_bytes in dict.fromkeys(notebook.launches):
            text, mangled = ptx_of(
                module.code, module.options, module.expressions, device.capability
            )
            shown = f"{solver.id.partition('.')[2]}: {called(kernel, module.options)}"
            yield DeviceCode(
                shown, text, threads, shared_bytes, mangled.get(kernel, kernel), solver.id
            )

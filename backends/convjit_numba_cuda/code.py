"""The kernels as PTX, on a machine without a GPU: what a solver would launch, and what of.

A problem is planned and run on a device that keeps no data and only notes the launches; numba.cuda
then compiles each kernel for the types of the arguments that it was launched with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from convjit.gauges import resident_call
from convjit.gpus import Description
from convjit.spec import ConvSpec
from convjit.spi import DeviceCode, Solver
from convjit_numba_cuda.device import Kernel
from convjit_numba_cuda.targets import target


@cache
def ptx_of(kernel: Kernel, kinds: tuple[str, ...], capability: tuple[int, int]) -> str:
    """A kernel as PTX for arguments of kinds: ``"float32[]"`` is a flat array."""
    import numba
    from numba import cuda

    signature = tuple(
        getattr(numba, kind.removesuffix("[]"))[::1]
        if kind.endswith("[]")
        else getattr(numba, kind)
        for kind in kinds
    )
    text, _ = cuda.compile(
        kernel.function, signature, output="ptx", cc=capability, device=False, abi="numba"
    )
    return str(text)


@dataclass(eq=False)
class Notebook:
    """A :class:`~convjit_numba_cuda.device.Device` that notes launches and computes nothing.

    NumPy stands in for the array library.
    """

    description: Description
    launches: list[tuple[Kernel, tuple[str, ...], int]] = field(default_factory=list)
    cupy: Any = np

    def launch(
        self, kernel: Kernel, blocks: int, shared_bytes: int, arguments: Sequence[Any]
    ) -> None:
        kinds = tuple(
            f"{argument.dtype.name}[]" if isinstance(argument, np.ndarray) else argument.dtype.name
            for argument in arguments
        )
        self.launches.append((kernel, kinds, shared_bytes))


def device_code(
    solvers: Sequence[Solver], notebook: Notebook, spec: ConvSpec
) -> Iterator[DeviceCode]:
    """The kernels of the solvers that take a problem as it is, in the order of their launches."""
    machine = target(notebook.description)
    for solver in solvers:
        if solver.refuse(spec, machine) is not None:
            continue
        call = resident_call(solver, spec, machine, notebook.cupy)
        notebook.launches.clear()
        call()
        for kernel, kinds, shared_bytes in dict.fromkeys(notebook.launches):
            text = ptx_of(kernel, kinds, notebook.description.capability)
            yield DeviceCode(kernel.name, text, kernel.threads, shared_bytes, solver=solver.id)

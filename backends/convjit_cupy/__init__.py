"""convjit's CuPy backend: cuBLAS, cuFFT and CUDA C++ kernels on NVIDIA GPUs.

It takes CuPy's arrays, those of other libraries that lie on the device (by the CUDA array interface
or DLPack, without a copy), and NumPy's, which convjit copies there and back.  Everything runs on
CuPy's current device and stream, and memory comes from CuPy's pool.  Importing this package imports
neither CuPy nor CUDA.

To add a CUDA C++ kernel, write the solver's file as CONTRIBUTING.md says; its executable takes its
kernel from :func:`convjit_cupy.kernels.load` and calls it with CuPy arrays and NumPy scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from convjit import gpus
from convjit.gauges import Gauge, resident_call
from convjit.spec import ConvSpec
from convjit.spi import SPI_VERSION, Array, DeviceCode, Solver, Target
from convjit_cupy.device import adopt, describe, free_bytes, identity, unavailable


class CupyBackend:
    """CuPy arrays on a GPU.

    Parameters
    ----------
    cupy : module, optional
        What stands for ``cupy``, for tests.
    """

    name = "cupy"
    device = "cuda"
    spi_version = SPI_VERSION
    array_types = ("cupy:ndarray", "numpy:ndarray")

    def __init__(self, cupy: Any = None) -> None:
        self._cupy = cupy

    def probe(self) -> str | None:
        """Whether CuPy is installed and finds a GPU and its driver."""
        return unavailable()

    def array_namespace(self) -> Any:
        if self._cupy is None:
            import cupy

            self._cupy = cupy
        return self._cupy

    def target(self, device_id: int | None = None) -> Target:
        from convjit_cupy.targets import target

        return target(self.name, describe(self.array_namespace()))

    def solvers(self) -> Sequence[Solver]:
        from convjit_cupy.fft import FftSolver
        from convjit_cupy.gemm import GemmSolver
        from convjit_cupy.winograd_batched import BatchedWinogradSolver

        name, cupy = self.name, self.array_namespace()
        return (
            GemmSolver(name, cupy), FftSolver(name, cupy),
            *(BatchedWinogradSolver(name, cupy, m) for m in (4, 2, 6)),
        )  # fmt: skip

    # What the core asks of a backend whose arrays lie on a device.

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

    # What measures a device, and what shows its kernels where there is none.

    def gauges(self, target: Target) -> Iterable[Gauge]:
        """The rate of cuBLAS, bandwidths, launches and calls (see :mod:`.gauges`)."""
        from convjit_cupy.gauges import gauges

        return gauges(self.array_namespace(), self.name, self.solvers(), target)

    def resident(self, solver: Solver, spec: ConvSpec) -> Callable[[], None]:
        """A call of a solver on operands that lie on the device, which returns when it is done."""
        from convjit_cupy.gauges import waiting

        cupy = self.array_namespace()
        return resident_call(solver, spec, self.target(), cupy, waiting(cupy))

    def device_code(self, spec: ConvSpec, capability: tuple[int, int]) -> Iterator[DeviceCode]:
        """PTX of the kernels that the solvers would launch; needs no GPU (see :mod:`.code`)."""
        from convjit_cupy import code

        notebook = code.Notebook()
        solvers = CupyBackend(notebook).solvers()
        return code.device_code(solvers, notebook, self.name, spec, gpus.model(capability))

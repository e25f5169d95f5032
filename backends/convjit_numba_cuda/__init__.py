"""convjit's kernels for NVIDIA GPUs by numba.cuda: direct, implicit GEMM, Winograd, depthwise.

NumPy arrays go to the device and come back, visibly in the profile; packed weights stay there.
Importing this package imports neither numba nor CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from convjit import gpus
from convjit.gauges import Gauge
from convjit.spec import ConvSpec
from convjit.spi import SPI_VERSION, DeviceCode, Solver, Target
from convjit_numba_cuda.device import CudaDevice, Device, unavailable


class NumbaCudaBackend:
    """NumPy arrays on a GPU, by kernels that numba.cuda compiles.

    Parameters
    ----------
    gpu : Device, optional
        What runs the kernels, for tests; numba.cuda's current device by default.
    """

    name = "numba_cuda"
    device = "cuda"
    spi_version = SPI_VERSION
    array_types = ("numpy:ndarray",)

    def __init__(self, gpu: Device | None = None) -> None:
        self._gpu: Device = CudaDevice() if gpu is None else gpu

    def probe(self) -> str | None:
        """Whether numba.cuda finds a GPU and its driver."""
        return unavailable()

    def array_namespace(self) -> Any:
        import numpy

        return numpy

    def target(self, device_id: int = 0) -> Target:
        from convjit_numba_cuda.targets import target

        return target(self._gpu.describe())

    def solvers(self) -> Sequence[Solver]:
        from convjit_numba_cuda.depthwise import DepthwiseSolver
        from convjit_numba_cuda.direct import DirectSolver
        from convjit_numba_cuda.fft import FftSolver
        from convjit_numba_cuda.gemm import GemmSolver
        from convjit_numba_cuda.winograd import WinogradSolver

        name, gpu = self.name, self._gpu
        return (
            GemmSolver(name, gpu), DirectSolver(name, gpu), DepthwiseSolver(name, gpu),
            WinogradSolver(name, gpu, 4), WinogradSolver(name, gpu, 2), FftSolver(name),
        )  # fmt: skip

    def gauges(self, target: Target) -> Iterable[Gauge]:
        """Rates of the kernels, bandwidths and launches (see :mod:`.gauges`)."""
        from convjit_numba_cuda.gauges import gauges

        return gauges(self._gpu, self.solvers(), target)

    def resident(self, solver: Solver, spec: ConvSpec) -> Callable[[], None]:
        """A call of a solver on operands that lie on the device, which returns when it is done."""
        from convjit_numba_cuda.gauges import resident

        return resident(self._gpu, solver, spec, self.target())

    def device_code(self, spec: ConvSpec, capability: tuple[int, int]) -> Iterator[DeviceCode]:
        """PTX of the kernels that the solvers would launch; needs no GPU (see :mod:`.code`)."""
        from convjit_numba_cuda import code

        notebook = code.Notebook(gpus.model(capability))
        return code.device_code(NumbaCudaBackend(notebook).solvers(), notebook, spec)

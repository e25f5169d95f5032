"""convjit's kernels for NVIDIA GPUs by numba.cuda: direct, implicit GEMM, Winograd, depthwise.

It takes what :mod:`convjit_cupy` takes, on CuPy's current device and stream: CuPy's arrays, those
of other libraries that lie on the device, and NumPy's, which convjit copies there and back.
Importing this package imports neither numba nor CuPy nor CUDA.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from convjit import gpus
from convjit.cupyarrays import CupyBackendBase, describe
from convjit.gauges import Gauge
from convjit.spec import ConvSpec
from convjit.spi import DeviceCode, Solver, Target
from convjit_numba_cuda.device import CudaDevice, Device, unavailable


class NumbaCudaBackend(CupyBackendBase):
    """CuPy arrays on a GPU, by kernels that numba.cuda compiles.

    Parameters
    ----------
    gpu : Device, optional
        Whose arrays there are and what runs the kernels, for tests.
    """

    name = "numba_cuda"

    def __init__(self, gpu: Device | None = None) -> None:
        super().__init__()
        self._gpu: Device = CudaDevice() if gpu is None else gpu

    def probe(self) -> str | None:
        """Whether numba.cuda and CuPy find a GPU and its driver."""
        return unavailable()

    def array_namespace(self) -> Any:
        return self._gpu.cupy

    def target(self, device_id: int | None = None) -> Target:
        from convjit_numba_cuda.targets import target

        return target(describe(self.array_namespace()))

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

        return gauges(self.array_namespace(), self.solvers(), target)

    def device_code(self, spec: ConvSpec, capability: tuple[int, int]) -> Iterator[DeviceCode]:
        """PTX of the kernels that the solvers would launch; needs no GPU (see :mod:`.code`)."""
        from convjit_numba_cuda import code

        notebook = code.Notebook(gpus.model(capability))
        return code.device_code(NumbaCudaBackend(notebook).solvers(), notebook, spec)

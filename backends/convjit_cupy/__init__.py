"""convjit's CuPy backend: cuBLAS, cuFFT and CUDA C++ kernels on NVIDIA GPUs.

It takes CuPy's arrays, those of other libraries that lie on the device (by the CUDA array interface
or DLPack, without a copy), and NumPy's, which convjit copies there and back.  Everything runs on
CuPy's current device and stream, and memory comes from CuPy's pool.  Importing this package imports
neither CuPy nor CUDA.

To add a CUDA C++ kernel, write the solver's file as CONTRIBUTING.md says; its executable takes its
kernel from :func:`convjit_cupy.kernels.load` and calls it with CuPy arrays and NumPy scalars.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from convjit import gpus
from convjit.cupyarrays import CupyBackendBase, describe, unavailable
from convjit.gauges import Gauge
from convjit.spec import ConvSpec
from convjit.spi import DeviceCode, Solver, Target


class CupyBackend(CupyBackendBase):
    """CuPy arrays on a GPU, by CUDA C++ kernels and NVIDIA's libraries."""

    name = "cupy"

    def probe(self) -> str | None:
        """Whether CuPy is installed and finds a GPU and its driver."""
        return unavailable()

    def target(self, device_id: int | None = None) -> Target:
        from convjit_cupy.targets import target

        return target(self.name, describe(self.array_namespace()))

    def solvers(self) -> Sequence[Solver]:
        from convjit_cupy.depthwise import DepthwiseSolver
        from convjit_cupy.depthwise_channels_last import ChannelsLastDepthwiseSolver
        from convjit_cupy.direct import DirectSolver
        from convjit_cupy.fft import FftSolver
        from convjit_cupy.gemm import GemmSolver
        from convjit_cupy.implicit_gemm import ImplicitGemmSolver
        from convjit_cupy.tensor_core import TensorCoreSolver
        from convjit_cupy.winograd import WinogradSolver
        from convjit_cupy.winograd_batched import BatchedWinogradSolver

        name, cupy = self.name, self.array_namespace()
        return (
            GemmSolver(name, cupy), FftSolver(name, cupy), DepthwiseSolver(name, cupy),
            ChannelsLastDepthwiseSolver(name, cupy), DirectSolver(name, cupy),
            ImplicitGemmSolver(name, cupy),
            TensorCoreSolver(name, cupy),
            *(WinogradSolver(name, cupy, m) for m in (4, 2, 6)),
            *(BatchedWinogradSolver(name, cupy, m) for m in (4, 2, 6)),
        )  # fmt: skip

    # What measures a device, and what shows its kernels where there is none.

    def gauges(self, target: Target) -> Iterable[Gauge]:
        """The rate of cuBLAS, bandwidths, launches and calls (see :mod:`.gauges`)."""
        from convjit_cupy.gauges import gauges

        return gauges(self.array_namespace(), self.name, self.solvers(), target)

    def device_code(self, spec: ConvSpec, capability: tuple[int, int]) -> Iterator[DeviceCode]:
        """PTX of the kernels that the solvers would launch; needs no GPU (see :mod:`.code`)."""
        from convjit_cupy import code

        notebook = code.Notebook()
        solvers = CupyBackend(notebook).solvers()
        return code.device_code(solvers, notebook, self.name, spec, gpus.model(capability))

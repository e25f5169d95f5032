"""Kernels for CPUs, compiled by numba: register tiles as vector code, threads of our own.

Importing this package imports neither numba nor llvmlite; :meth:`NumbaBackend.solvers` imports
llvmlite, and numba itself is imported only to compile a kernel that is not in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from convjit.gauges import Gauge
from convjit.spi import SPI_VERSION, Array, SeparableSolver, Solver, Target

__all__ = ["NumbaBackend"]


class NumbaBackend:
    """The backend ``"numba"``."""

    name = "numba"
    device = "cpu"
    spi_version = SPI_VERSION
    array_types = ("numpy:ndarray",)

    def __init__(self) -> None:
        self._solvers: tuple[Solver, ...] | None = None

    def probe(self) -> str | None:
        """None when numba and llvmlite are installed."""
        for module in ("numba", "llvmlite"):
            if find_spec(module) is None:
                return f"{module} is not installed; pip install {module}."
        return None

    def array_namespace(self) -> Any:
        """NumPy."""
        import numpy

        return numpy

    def target(self, device_id: int = 0) -> Target:
        """This machine as the table has it."""
        from convjit_numba import peak

        return peak.target()

    def gauges(self, target: Target) -> Iterable[Gauge]:
        """Peak, rates of the kernel families, bandwidths and what helpers cost."""
        from convjit_numba import peak

        return peak.gauges(self.solvers(), target)

    def peak(self, dtype: str) -> float:
        """Flop/s in float32 or float64 of the threads in force, measured now; 0 for others."""
        from convjit.spi import num_threads
        from convjit_numba import peak, targets

        return peak.fma_peak(dtype, num_threads()) if dtype in targets.BITS else 0.0

    def copy(self, destination: Array, source: Array) -> None:
        """``destination[...] = source`` on the threads in force, for arrays without overlap."""
        from convjit_numba import copying

        copying.copy(destination, source)

    def compiled(self) -> Sequence[str]:
        """Names of the kernels that this process compiled, in order."""
        from convjit_numba import cache

        return tuple(cache.compiled)

    def uncompiled(self, make: Callable[[], object]) -> Sequence[str]:
        """The first kernel that planning would have to compile, which it does not; or none."""
        from convjit_numba import cache

        return cache.lacking(make)

    def solvers(self) -> Sequence[Solver]:
        """One or more for each algorithm, in the order preferred where times are equal."""
        if self._solvers is None:
            from convjit_numba import targets
            from convjit_numba.depthwise import Depthwise
            from convjit_numba.depthwisegrad import DepthwiseWeightGrad
            from convjit_numba.direct import Direct
            from convjit_numba.fft import Fft
            from convjit_numba.gemm import Gemm
            from convjit_numba.indirect import Indirect
            from convjit_numba.phasegrad import PhaseGrad
            from convjit_numba.planes import DepthwisePlanes, Planes
            from convjit_numba.subpixel import Subpixel
            from convjit_numba.transposed import Transposed
            from convjit_numba.weight_grad import WeightGrad
            from convjit_numba.winograd import Winograd

            targets.codegen()
            self._solvers = (
                Gemm(),
                Direct(),
                Depthwise(),
                Planes(),
                DepthwisePlanes(),
                WeightGrad(),
                PhaseGrad(),
                DepthwiseWeightGrad(),
                Fft(),
                Indirect(),
                Transposed(),
                Subpixel(),
                Winograd(None, 3),
                Winograd(None, 5),
                Winograd(4, 3),
                Winograd(2, 3),
                Winograd(6, 3),
                Winograd(4, 5),
                Winograd(2, 5),
            )
        return self._solvers

    def separable(self) -> SeparableSolver:
        """Depthwise and pointwise convolution in one pass."""
        from convjit_numba.separable import SeparableLayer

        return SeparableLayer()

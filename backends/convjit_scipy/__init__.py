"""convjit's reference backend: NumPy, BLAS and scipy.fft.

It takes every problem: ``scipy.direct`` accepts all there is, ``scipy.gemm`` and ``scipy.fft`` are
fast where BLAS and SciPy's transforms are.  Importing this package imports neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from convjit.gauges import Gauge
from convjit.spi import SPI_VERSION, Solver, Target


class ScipyBackend:
    """NumPy arrays on the CPU, by whole-array operations."""

    name = "scipy"
    device = "cpu"
    spi_version = SPI_VERSION
    array_types = ("numpy:ndarray",)

    def probe(self) -> str | None:
        """Whether SciPy is there; found, not imported."""
        from importlib.util import find_spec

        return None if find_spec("scipy") else "scipy is not installed: pip install scipy"

    def array_namespace(self) -> Any:
        import numpy

        return numpy

    def target(self, device_id: int = 0) -> Target:
        from convjit_scipy.targets import target

        return target()

    def gauges(self, target: Target) -> Iterable[Gauge]:
        """Rates of NumPy's loops, BLAS and scipy.fft, and bandwidths."""
        from convjit_scipy.gauges import gauges

        return gauges(target)

    def solvers(self) -> Sequence[Solver]:
        from convjit_scipy.direct import DirectSolver
        from convjit_scipy.fft import FftSolver
        from convjit_scipy.gemm import GemmSolver
        from convjit_scipy.winograd import WinogradSolver

        return (
            GemmSolver(), FftSolver(), WinogradSolver(4), WinogradSolver(2), DirectSolver(),
        )  # fmt: skip

"""The backend ``example`` of convjit: what a third party writes, in plain NumPy.

This module is imported when a call first needs the backend.  It has to be cheap: whatever is heavy
(a compiler, a GPU runtime) is imported by :meth:`ExampleBackend.solvers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from convjit.spi import SPI_VERSION, Solver, Target

__all__ = ["ExampleBackend"]


class ExampleBackend:
    """One toolchain (NumPy) on one device (the CPU)."""

    name = "example"  # the entry point's name
    device = "cpu"
    spi_version = SPI_VERSION
    array_types = ("numpy:ndarray",)

    def probe(self) -> str | None:
        """None: NumPy is always there.  A GPU's backend would look for its driver here."""
        return None

    def array_namespace(self) -> ModuleType:
        """The module whose ``empty`` allocates results and workspaces."""
        import numpy

        return numpy

    def target(self, device_id: int = 0) -> Target:
        """The machine as the cost model sees it."""
        from convjit_example.machine import measured

        return measured()

    def solvers(self) -> Sequence[Solver]:
        """The solvers, the preferred ones first."""
        from convjit_example.shift_matmul import ShiftMatmul

        return (ShiftMatmul(),)

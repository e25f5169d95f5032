"""What all kernels share: the problems they take, and how they are run on arrays."""

from __future__ import annotations

from typing import Any

import numba
from numba import config, cuda

from convjit import planes, precision
from convjit.spec import ConvSpec
from convjit.spi import Refusal
from convjit_numba_cuda.device import Array, Device

DTYPES = ("float32", "float64")

# Alignment of shared memory of which a thread loads 128 bits at once; the simulator knows none.
WIDE = None if config.ENABLE_CUDASIM else 16


def refuse(spec: ConvSpec) -> Refusal | None:
    """What no kernel here does."""
    return planes.refuse(spec, DTYPES, "the kernels index x as one run of memory")


def real(dtype: str) -> Any:
    """numba's type of a dtype."""
    return getattr(numba, dtype)


@cuda.jit(device=True, inline="always")
def finish(value, slope, lowest, highest):
    """The activation of a number; a NaN passes, since it compares with nothing."""
    if value < 0:
        value = value * slope
    if value < lowest:
        value = lowest
    if value > highest:
        value = highest
    return value


class OnPlanes:
    """An executable on CuPy's arrays.  Derived classes pack, and launch kernels on flat arrays.

    Attributes
    ----------
    workspace : int
    """

    workspace = 0

    def __init__(self, spec: ConvSpec, device: Device) -> None:
        self.spec = spec
        self.plane = planes.plane(spec)
        self.device = device
        self._kind = precision.numpy_dtype(spec.dtype)

    def pack(self, rhs: Array) -> Any:
        raise NotImplementedError

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        """Launch the kernels; x, bias and y are flat."""
        raise NotImplementedError

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        cupy = self.device.cupy
        if bias is None:
            added = cupy.zeros(self.spec.out_channels, self._kind)
        else:
            added = cupy.ascontiguousarray(bias)
        self.compute(lhs.reshape(-1), packed, added, out.reshape(-1), workspace)

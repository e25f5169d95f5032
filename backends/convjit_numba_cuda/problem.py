"""What all kernels share: the problems they take, and how they are run on arrays."""

from __future__ import annotations

from typing import Any

import numba
from numba import config, cuda

from convjit import planes
from convjit.spec import ConvSpec
from convjit.spi import Refusal
from convjit_numba_cuda.device import Device

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


class OnPlanes(planes.OnPlanes):
    """An executable whose kernels a device launches."""

    def __init__(self, spec: ConvSpec, device: Device) -> None:
        super().__init__(spec, device.cupy)
        self.device = device

"""What all kernels share: the problems they take, and how data gets to the device."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numba
import numpy as np
from numba import config, cuda

from convjit import planes, precision, profiling
from convjit.spec import ConvSpec
from convjit.spi import Phase, Refusal
from convjit_numba_cuda.device import Array, Buffer, Device

DTYPES = ("float32", "float64")

# Alignment of shared memory of which a thread loads 128 bits at once; the simulator knows none.
WIDE = None if config.ENABLE_CUDASIM else 16

# Share of the free memory that one batch may take up.
MEMORY_SHARE = 0.5


def refuse(spec: ConvSpec) -> Refusal | None:
    """What no kernel here does."""
    return planes.refuse(spec, DTYPES, "the first operand is copied to the device as a whole")


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


def transfers(spec: ConvSpec) -> list[Phase]:
    """What NumPy's arrays cost on their way to the device and back."""
    size = precision.numpy_dtype(spec.dtype).itemsize
    return [
        Phase("to device", bytes={"bus": float(size * prod(spec.x_shape))}),
        Phase("from device", bytes={"bus": float(size * prod(spec.y_shape))}),
    ]


class OnDevice:
    """An executable: packed weights live on the device, x goes there and y comes back.

    A batch that the device cannot hold goes in parts.  Derived classes pack and launch.

    Attributes
    ----------
    workspace : int
        None of the host's memory.
    """

    workspace = 0

    def __init__(self, spec: ConvSpec, device: Device) -> None:
        self.spec = spec
        self.plane = planes.plane(spec)
        self.device = device
        self._kind = precision.numpy_dtype(spec.dtype)

    def pack(self, rhs: Array) -> Any:
        raise NotImplementedError

    def scratch(self, images: int) -> int:
        """Elements of scratch memory for a batch."""
        return 0

    def compute(self, images: int, x: Buffer, packed: Any, bias: Buffer, y: Buffer) -> None:
        """Launch the kernels for a batch on the device."""
        raise NotImplementedError

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        spec, device = self.spec, self.device
        given = np.zeros(spec.out_channels, self._kind) if bias is None else bias
        added = device.upload(given)
        step = self.images_at_once()
        for first in range(0, spec.batch, step):
            part = slice(first, min(first + step, spec.batch))
            images = part.stop - part.start
            with profiling.phase("to device"):
                x = device.upload(lhs[part])
            y = device.allocate(out[part].size, self._kind)
            self.compute(images, x, packed, added, y)
            # Launches return at once: the time of the kernels is waited for here.
            with profiling.phase("from device"):
                device.download(y, out[part])

    def launcher(self) -> Callable[[], None]:
        """A call on operands that lie on the device already; returns when it is launched."""
        spec, device = self.spec, self.device
        packed = self.pack(np.ones(spec.rhs_shape, self._kind))
        x = device.upload(np.ones(spec.lhs_shape, self._kind))
        bias = device.upload(np.zeros(spec.out_channels, self._kind))
        y = device.allocate(prod(spec.result_shape), self._kind)
        return lambda: self.compute(spec.batch, x, packed, bias, y)

    def images_at_once(self) -> int:
        """Images of one batch on the device."""
        spec = self.spec
        one = prod(spec.x_shape[1:]) + prod(spec.y_shape[1:]) + self.scratch(1)
        room = int(self.device.free_bytes() * MEMORY_SHARE) // (one * self._kind.itemsize)
        return max(1, min(spec.batch, room))

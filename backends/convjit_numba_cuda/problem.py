"""What all kernels share: the problems they take, as numbers, and how data gets to the device.

A kernel sees planes: a 1-D problem is one row.  Arrays are flat and indexed by 32 bits, which is
what a GPU computes in one instruction; a problem that needs more is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod
from typing import Any

import numba
import numpy as np
from numba import cuda

from convjit import precision, profiling
from convjit.spec import ConvSpec, Direction
from convjit.spi import Feature, Phase, Refusal
from convjit_numba_cuda.device import Array, Buffer, Device

DTYPES = ("float32", "float64")

# Elements of the largest array: offsets, and what is added to them, stay below 2**32.
MOST_ELEMENTS = 2**31

# Bytes of shared memory that every GPU gives a block without being asked.
SHARED_BYTES = 48 * 2**10

# Share of the free memory that one batch may take up.
MEMORY_SHARE = 0.5


def refuse(spec: ConvSpec, largest: int = 0) -> Refusal | None:
    """What no kernel here does; ``largest`` is the largest scratch buffer's number of elements."""
    if spec.is_empty:
        return Refusal(Feature.SIZE, "an operand is empty, there is nothing to multiply")
    if spec.dtype not in DTYPES:
        return Refusal(
            Feature.DTYPE, f"the kernels compute {' and '.join(DTYPES)}; this is {spec.dtype}"
        )
    if spec.strided:
        return Refusal(Feature.STRIDED, "the first operand is copied to the device as a whole")
    if spec.pad_mode != "zeros":
        return Refusal(Feature.PAD_MODE, f"the kernels pad with zeros, not {spec.pad_mode}")
    if spec.direction is not Direction.FORWARD:
        return Refusal(
            Feature.DIRECTION, f"only the forward direction is taken, not {spec.direction}"
        )
    if spec.channels_last:
        return Refusal(Feature.LAYOUT, f"the kernels are for channels-first, not {spec.layout}")
    if spec.ndim > 2:
        return Refusal(Feature.NDIM, f"the kernels are for 1 and 2 axes, not {spec.ndim}")
    return refuse_size(max(largest, *map(prod, (spec.x_shape, spec.w_shape, spec.y_shape))))


def refuse_size(elements: int) -> Refusal | None:
    """The refusal of an array that 32-bit offsets do not reach."""
    if elements < MOST_ELEMENTS:
        return None
    return Refusal(
        Feature.SIZE,
        f"an array of {elements} elements is too large for offsets of 32 bits (2**31)",
    )


def refuse_patch(spec: ConvSpec) -> Refusal:
    """The refusal of taps that reach too far for one tile of outputs."""
    taps = "x".join(map(str, spec.kernel_size))
    return Refusal(
        Feature.SIZE,
        f"the samples beneath one tile of outputs, for {taps} taps, exceed the "
        f"{SHARED_BYTES // 2**10} KiB of shared memory",
    )


@dataclass(frozen=True, slots=True)
class Plane:
    """A spec's sizes in two dimensions.

    Attributes
    ----------
    channels, outputs : int
        Of one group.
    height, width, out_height, out_width, rows, columns : int
        Of the image, of the result and of the kernel's taps.
    stride, padding, dilation : (int, int)
        Padding before the first row and column.
    """

    groups: int
    channels: int
    outputs: int
    height: int
    width: int
    out_height: int
    out_width: int
    rows: int
    columns: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def taps(self) -> int:
        return self.rows * self.columns

    @property
    def pixels(self) -> int:
        return self.out_height * self.out_width


@lru_cache(maxsize=1024)
def plane(spec: ConvSpec) -> Plane:
    """The sizes of a problem with one or two axes."""

    def two(values: tuple[int, ...], first: int) -> tuple[int, int]:
        return (first, *values) if len(values) == 1 else (values[0], values[1])

    return Plane(
        spec.groups,
        spec.in_channels // spec.groups,
        spec.out_channels // spec.groups,
        *two(spec.in_size, 1),
        *two(spec.out_size, 1),
        *two(spec.kernel_size, 1),
        stride=two(spec.stride, 1),
        padding=two(tuple(lo for lo, _ in spec.padding), 0),
        dilation=two(spec.dilation, 1),
    )


def grouped_taps(spec: ConvSpec, w: Array) -> Array:
    """Weights as (groups, outputs, channels, rows, columns), the taps reversed under ``flip``."""
    p = plane(spec)
    taps = w.reshape(p.groups, p.outputs, p.channels, p.rows, p.columns)
    return taps[..., ::-1, ::-1] if spec.flip else taps


def unsigned(*values: int) -> tuple[np.uint32, ...]:
    """Kernel arguments that are sizes and offsets."""
    return tuple(np.uint32(v) for v in values)


def activation(spec: ConvSpec) -> tuple[Any, Any, Any]:
    """(slope below zero, lowest, highest) of the activation, in the spec's dtype."""
    name, *numbers = spec.activation or ("none",)
    slope, lowest, highest = {
        "none": (1.0, -inf, inf),
        "relu": (1.0, 0.0, inf),
        "leaky_relu": (*numbers[:1], -inf, inf),
        "clip": (1.0, *numbers),
    }[name]
    kind = precision.numpy_dtype(spec.dtype).type
    return kind(slope), kind(lowest), kind(highest)


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
        self.plane = plane(spec)
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

    def images_at_once(self) -> int:
        """Images of one batch on the device."""
        spec = self.spec
        one = prod(spec.x_shape[1:]) + prod(spec.y_shape[1:]) + self.scratch(1)
        room = int(self.device.free_bytes() * MEMORY_SHARE) // (one * self._kind.itemsize)
        return max(1, min(spec.batch, room))

"""Convolutions as GPU kernels see them: planes, tiles of outputs, offsets of 32 bits.

A 1-D problem is a plane of one row, a 3-D one is planes that are summed over the taps of its depth.
Arrays are flat and indexed by 32 bits, which is what a GPU computes in one instruction; a problem
that needs more is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod
from typing import Any, NamedTuple

import numpy as np

from convjit import precision
from convjit.spec import ConvSpec, Direction
from convjit.spi import Feature, Refusal

Array = Any

# Elements of the largest array: offsets, and what is added to them, stay below 2**32.
MOST_ELEMENTS = 2**31

# Bytes of shared memory that every GPU gives a block without being asked.
SHARED_BYTES = 48 * 2**10

LANES = 32  # of a warp

# A row that lies outside every image, also twice and with any padding: of the depths that fill up
# the last step, and of positions beyond the last.
NOWHERE = 2**30


def refuse(
    spec: ConvSpec, dtypes: Sequence[str], strided: str, largest: int = 0, axes: int = 2
) -> Refusal | None:
    """What no kernel for planes does.

    Parameters
    ----------
    spec : ConvSpec
    dtypes : sequence of str
        That the kernels compute.
    strided : str
        Why the first operand has to be contiguous.
    largest : int
        Elements of the largest array beside the operands.
    axes : int
        Most that the kernels take, 2 or 3.
    """
    if spec.is_empty:
        return Refusal(Feature.SIZE, "an operand is empty, there is nothing to multiply")
    if spec.dtype not in dtypes:
        return Refusal(
            Feature.DTYPE, f"the kernels compute {', '.join(dtypes)}; this is {spec.dtype}"
        )
    if spec.strided:
        return Refusal(Feature.STRIDED, strided)
    if spec.pad_mode != "zeros":
        return Refusal(Feature.PAD_MODE, f"the kernels pad with zeros, not {spec.pad_mode}")
    if spec.direction is not Direction.FORWARD:
        return Refusal(
            Feature.DIRECTION, f"only the forward direction is taken, not {spec.direction}"
        )
    if spec.channels_last:
        return Refusal(Feature.LAYOUT, f"the kernels are for channels-first, not {spec.layout}")
    if spec.ndim > axes:
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
    """The sizes of a problem along its last two axes."""

    def two(values: tuple[int, ...], first: int) -> tuple[int, int]:
        return (first, *values) if len(values) == 1 else (values[-2], values[-1])

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


class Depth(NamedTuple):
    """Sizes along the first of three axes; of fewer, those of a single plane."""

    size: int = 1
    out: int = 1
    taps: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1


def depth(spec: ConvSpec) -> Depth:
    """The sizes that :func:`plane` does not have."""
    if spec.ndim < 3:
        return Depth()
    return Depth(
        spec.in_size[0], spec.out_size[0], spec.kernel_size[0], spec.stride[0], spec.padding[0][0],
        spec.dilation[0],
    )  # fmt: skip


def grouped_taps(spec: ConvSpec, w: Array) -> Array:
    """Weights as (groups, outputs, channels, rows, columns), the taps reversed under ``flip``.

    Of a 3-D problem a plane's taps for one channel and one tap of the depth count as a channel.
    """
    p, taps = plane(spec), depth(spec).taps
    grouped = w.reshape(p.groups, p.outputs, p.channels, taps, p.rows, p.columns)
    if spec.flip:
        grouped = grouped[..., ::-1, ::-1, ::-1]
    return grouped.reshape(p.groups, p.outputs, p.channels * taps, p.rows, p.columns)


def unsigned(*values: int) -> tuple[np.uint32, ...]:
    """Kernel arguments that are sizes and offsets."""
    return tuple(np.uint32(v) for v in values)


def activation(spec: ConvSpec) -> tuple[Any, Any, Any]:
    """(slope below zero, lowest, highest) of the activation, in the dtype of the sums."""
    name, *numbers = spec.activation or ("none",)
    slope, lowest, highest = {
        "none": (1.0, -inf, inf),
        "relu": (1.0, 0.0, inf),
        "leaky_relu": (*numbers[:1], -inf, inf),
        "clip": (1.0, *numbers),
    }[name]
    kind = precision.numpy_dtype(precision.accumulator_dtype(spec.dtype)).type
    return kind(slope), kind(lowest), kind(highest)


class OnPlanes:
    """An executable on CuPy's arrays.  Derived classes pack, and launch kernels on flat arrays.

    Attributes
    ----------
    workspace : int
    """

    workspace = 0

    def __init__(self, spec: ConvSpec, cupy: Any) -> None:
        self.spec = spec
        self.plane = plane(spec)
        self.cupy = cupy
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
        if bias is None:
            added = self.cupy.zeros(self.spec.out_channels, self._kind)
        else:
            added = self.cupy.ascontiguousarray(bias)
        self.compute(lhs.reshape(-1), packed, added, out.reshape(-1), workspace)


def depth_table(p: Plane, step: int) -> Array:
    """Offset, row and column of each depth (channel and tap) relative to a position's first sample.

    Returns
    -------
    array of uint32, (depths, 3)
        ``depths`` are channels times taps, filled up to a multiple of ``step`` with samples that
        lie nowhere.
    """
    c, r, s = (index.reshape(-1) for index in np.indices((p.channels, p.rows, p.columns)))
    depth = c.size
    table = np.full((-(-depth // step) * step, 3), NOWHERE, np.uint32)
    table[:depth, 0] = c * p.height * p.width + r * p.dilation[0] * p.width + s * p.dilation[1]
    table[:depth, 1] = r * p.dilation[0]
    table[:depth, 2] = s * p.dilation[1]
    return table


# -------------------------------------------------------------------- tiles of outputs

# For kernels that sum tap by tap.  A strip is 32 neighbouring outputs of a row, one for each lane
# of a warp.  A tile is a number of strips side by side and below each other: eight rows of one
# strip suit a picture, one row of eight a signal.


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of a plane.

    Attributes
    ----------
    across, rows : int
        Strips side by side, and rows of strips.
    patch_height, patch_width : int
        Samples that its outputs read.
    tiles_y, tiles_x : int
        Tiles of the plane.
    """

    across: int
    rows: int
    patch_height: int
    patch_width: int
    tiles_y: int
    tiles_x: int

    @property
    def patch(self) -> int:
        return self.patch_height * self.patch_width

    @property
    def count(self) -> int:
        return self.tiles_y * self.tiles_x


def tile_of(p: Plane, strips: int) -> Tile:
    """``strips`` (a power of two) arranged for the fewest tiles, then for the least patch."""

    def arranged(across: int) -> Tile:
        rows = strips // across
        return Tile(
            across,
            rows,
            (rows - 1) * p.stride[0] + (p.rows - 1) * p.dilation[0] + 1,
            (across * LANES - 1) * p.stride[1] + (p.columns - 1) * p.dilation[1] + 1,
            -(-p.out_height // rows),
            -(-p.out_width // (across * LANES)),
        )

    choices = [arranged(1 << k) for k in range(strips.bit_length())]
    return min(choices, key=lambda tile: (tile.count, tile.patch))


def refuse_patch(spec: ConvSpec) -> Refusal:
    """The refusal of taps that reach too far for a tile's samples to fit shared memory."""
    taps = "x".join(map(str, spec.kernel_size))
    return Refusal(
        Feature.SIZE,
        f"the samples beneath one tile of outputs, for {taps} taps, exceed the "
        f"{SHARED_BYTES // 2**10} KiB of shared memory",
    )


def tile_sizes(p: Plane, tile: Tile) -> tuple[np.uint32, ...]:
    """The arguments of a kernel that describe planes, taps and tiles.

    height, width, out_height, out_width, rows, columns, stride_y, stride_x, pad_y, pad_x,
    dilation_y, dilation_x, across, tile_rows, patch_height, patch_width, tiles_y, tiles_x.
    """
    return unsigned(
        p.height, p.width, p.out_height, p.out_width, p.rows, p.columns, *p.stride, *p.padding,
        *p.dilation, tile.across, tile.rows, tile.patch_height, tile.patch_width, tile.tiles_y,
        tile.tiles_x,
    )  # fmt: skip

"""Depthwise layers: one input channel for each output channel, bound by memory.

A block loads the patches beneath the tiles of some planes, and their taps, into shared memory; each
thread sums 4 positions.  A plane that is smaller than a block leaves room for its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any

from numba import cuda, uint32

from convjit import planes, precision
from convjit.occupancy import Block, busy
from convjit.planes import LANES, tile_of, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_numba_cuda import problem, tiles
from convjit_numba_cuda.device import Array, Device, Kernel
from convjit_numba_cuda.problem import OnPlanes, finish
from convjit_numba_cuda.tiles import load_patch

WARPS = 8
POSITIONS = 4  # strips of a thread
STRIPS = WARPS * POSITIONS  # of a block
REGISTERS = 32  # of a thread

# Strips of a plane's tile: with fewer a block takes several planes.
STRIPS_OF_A_PLANE = (8, 32, 4)


@lru_cache(maxsize=4)
def kernel(dtype: str) -> Kernel:
    """The kernel of a dtype."""
    real = problem.real(dtype)

    def depthwise(
        x, w, bias, y, height, width, out_height, out_width, rows, columns, stride_y, stride_x,
        pad_y, pad_x, dilation_y, dilation_x, across, tile_rows, patch_height, patch_width, tiles_y,
        tiles_x, total, outputs, multiplier, planes_at_once, slope, lowest, highest,
    ):  # fmt: skip
        shared = cuda.shared.array(0, real)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread % uint32(32))
        warp = uint32(thread // uint32(32))
        block = uint32(cuda.blockIdx.x)
        origin_y, origin_x = tiles.corner(block, across, tile_rows, tiles_y, tiles_x)
        first_plane = uint32(block // (tiles_y * tiles_x) * planes_at_once)
        count = uint32(min(planes_at_once, uint32(total - first_plane)))
        patch = uint32(patch_height * patch_width)
        taps = uint32(rows * columns)
        weights_at = uint32(planes_at_once * patch)
        # A plane of the result is one output channel of one image; its plane of x is found anew,
        # since several outputs may share an input.
        own = uint32(0)
        while own < count:
            image = uint32((first_plane + own) // multiplier * height * width)
            load_patch(
                shared, uint32(own * patch), real(0), x, image, warp, uint32(WARPS), lane,
                uint32(1), height, width, patch_height, patch_width,
                uint32(origin_y * stride_y - pad_y), uint32(origin_x * stride_x - pad_x),
            )  # fmt: skip
            own = uint32(own + uint32(1))
        at = thread
        while at < uint32(count * taps):
            plane = uint32(first_plane + at // taps)
            shared[uint32(weights_at + at)] = w[uint32(plane % outputs * taps + at % taps)]
            at = uint32(at + uint32(256))
        cuda.syncthreads()
        strips = uint32(across * tile_rows)
        for j in range(POSITIONS):
            strip = uint32(warp * uint32(POSITIONS) + uint32(j))
            own = uint32(strip // strips)
            strip = uint32(strip - own * strips)
            row, column = tiles.place(strip, across, lane)
            out_y, out_x = uint32(origin_y + row), uint32(origin_x + column)
            if own < count and out_y < out_height and out_x < out_width:
                total = real(0)
                at_weights = uint32(weights_at + own * taps)
                from_row = uint32(own * patch + row * stride_y * patch_width + column * stride_x)
                r = uint32(0)
                while r < rows:
                    at = from_row
                    s = uint32(0)
                    while s < columns:
                        total += shared[at] * shared[at_weights]
                        at_weights = uint32(at_weights + uint32(1))
                        at = uint32(at + dilation_x)
                        s = uint32(s + uint32(1))
                    from_row = uint32(from_row + dilation_y * patch_width)
                    r = uint32(r + uint32(1))
                plane = uint32(first_plane + own)
                to = uint32((plane * out_height + out_y) * out_width + out_x)
                y[to] = finish(total + bias[uint32(plane % outputs)], slope, lowest, highest)

    return Kernel(f"depthwise.{dtype}", depthwise, WARPS * LANES)


def planes_at_once(p: planes.Plane, strips: int, itemsize: int) -> int:
    """Planes of a block, each with so many strips, that fit shared memory; 0 if none does."""
    one = (tile_of(p, strips).patch + p.taps) * itemsize
    return min(STRIPS // strips, planes.SHARED_BYTES // one)


class DepthwiseSolver:
    """``numba_cuda.depthwise``."""

    algorithm = "depthwise"

    def __init__(self, backend: str, device: Device) -> None:
        self.id = f"{backend}.depthwise"
        self._device = device

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if not spec.is_depthwise or spec.groups == 1:
            return Refusal(
                Feature.SIZE,
                "takes depthwise layers: as many groups as channels, and more than one",
            )
        if (refusal := problem.refuse(spec)) is not None:
            return refusal
        return None if self._fitting(spec) else planes.refuse_patch(spec)

    def _fitting(self, spec: ConvSpec) -> list[int]:
        """Strips of a plane that fit, those first that keep most threads at work."""
        p = planes.plane(spec)
        size = precision.numpy_dtype(spec.dtype).itemsize
        busy = {strips: strips * planes_at_once(p, strips, size) for strips in STRIPS_OF_A_PLANE}
        return sorted((s for s in STRIPS_OF_A_PLANE if busy[s]), key=lambda s: -busy[s])

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = planes.plane(spec)
        strips = self._fitting(spec)[0]
        tile = tile_of(p, strips)
        size = precision.numpy_dtype(spec.dtype).itemsize
        at_once = planes_at_once(p, strips, size)
        block = Block(WARPS * LANES, REGISTERS, at_once * (tile.patch + p.taps) * size)
        total = spec.batch * spec.out_channels
        loaded = total * tile.count * tile.patch
        sum_up = Phase(
            "depthwise",
            2.0 * total * tile.count * tile.across * tile.rows * LANES * p.taps,
            f"numba_cuda.depthwise.{spec.dtype}",
            {"memory": float(size * (loaded + prod(spec.y_shape)))},
            busy(-(-total // at_once) * tile.count, block, target),
        )
        packed = size * prod(spec.w_shape)
        return Work(
            (sum_up,),
            Numerics("direct"),
            Phase("pack", bytes={"memory": 2.0 * packed}),
            launches=1,
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return [(("strips", strips),) for strips in self._fitting(spec)]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return DepthwiseSum(spec, self._device, dict(config)["strips"])


class DepthwiseSum(OnPlanes):
    """The executable; packed weights are w itself, the taps reversed under ``flip``."""

    def __init__(self, spec: ConvSpec, device: Device, strips: int) -> None:
        super().__init__(spec, device)
        p = self.plane
        self._tile = tile = tile_of(p, strips)
        self._planes_at_once = planes_at_once(p, strips, self._kind.itemsize)
        self._shared = self._planes_at_once * (tile.patch + p.taps) * self._kind.itemsize
        self._kernel = kernel(spec.dtype)
        self._sizes = planes.tile_sizes(p, tile)
        self._activation = planes.activation(spec)

    def pack(self, rhs: Array) -> Array:
        taps = planes.grouped_taps(self.spec, rhs)
        into = self.cupy.empty(taps.shape, self._kind)
        into[...] = taps
        return into.reshape(-1)

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        total = self.spec.batch * self.spec.out_channels
        blocks = -(-total // self._planes_at_once) * self._tile.count
        p = self.plane
        counts = unsigned(total, self.spec.out_channels, p.outputs, self._planes_at_once)
        arguments = (x, packed, bias, y, *self._sizes, *counts, *self._activation)
        self.device.launch(self._kernel, blocks, self._shared, arguments)

"""Direct sums: a tile of outputs for 32 channels at once, tap by tap, out of shared memory.

A block loads the patch of some input channels that its tile reads, and their weights; each thread
then holds 8 positions by 8 output channels in registers, for which every tap costs 10 loads from
shared memory and 64 multiply-adds.  Neighbouring lanes read neighbouring samples, and all lanes of
a warp the same weights, 128 bits at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any

from numba import cuda, uint32, uint64

from convjit import planes, precision
from convjit.occupancy import Block, busy
from convjit.planes import LANES, Tile, tile_of, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Numerics, Phase, Refusal, Target, Work
from convjit_numba_cuda import problem, tiles
from convjit_numba_cuda.device import Array, Device, Kernel
from convjit_numba_cuda.problem import WIDE, OnPlanes, finish
from convjit_numba_cuda.tiles import load_patch

WARPS = 4
STRIPS = 8  # of a tile, each a position of every thread
OUTPUTS = 8  # output channels of a thread
SUMS = STRIPS * OUTPUTS
BLOCK_OUTPUTS = WARPS * OUTPUTS
OUTSIDE = 2**32 - 1  # in the place of an output's index

# KiB of shared memory for patch and weights: two blocks fit beside each other everywhere, or one
# that reads longer runs of channels, or four.
BUDGETS = (24, 48, 12)
REGISTERS = {"float32": 110, "float64": 190}  # of a thread


@lru_cache(maxsize=4)
def kernel(dtype: str) -> Kernel:
    """The kernel of a dtype."""
    real = problem.real(dtype)

    def direct(
        x, w, bias, y, height, width, out_height, out_width, rows, columns, stride_y, stride_x,
        pad_y, pad_x, dilation_y, dilation_x, across, tile_rows, patch_height, patch_width, tiles_y,
        tiles_x, channels, outputs, groups, blocks_k, chunk, slope, lowest, highest,
    ):  # fmt: skip
        shared = cuda.shared.array(0, real, alignment=WIDE)  # weights, then the patch
        places = cuda.local.array(STRIPS, uint32)
        sums = cuda.local.array(SUMS, real)
        own_weights = cuda.local.array(OUTPUTS, real)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread % uint32(32))
        warp = uint32(thread // uint32(32))
        first_output = uint32(warp * uint32(OUTPUTS))
        block = uint32(cuda.blockIdx.x)
        origin_y, origin_x = tiles.corner(block, across, tile_rows, tiles_y, tiles_x)
        block = uint32(block // (tiles_y * tiles_x))
        block_k = uint32(block % blocks_k)
        block = uint32(block // blocks_k)
        group = uint32(block % groups)
        n = uint32(block // groups)
        for j in range(STRIPS):
            row, column = tiles.place(uint32(j), across, lane)
            places[j] = uint32(row * stride_y * patch_width + column * stride_x)
        for i in range(SUMS):
            sums[i] = real(0)
        patch = uint32(patch_height * patch_width)
        taps = uint32(rows * columns)
        patch_at = uint32(chunk * taps * uint32(BLOCK_OUTPUTS))
        done = uint32(0)
        while done < channels:
            count = uint32(min(chunk, uint32(channels - done)))
            first = uint32((n * groups + group) * channels + done)
            cuda.syncthreads()
            load_patch(
                shared, patch_at, real(0), x, uint32(first * height * width), warp, uint32(WARPS),
                lane, count, height, width, patch_height, patch_width,
                uint32(origin_y * stride_y - pad_y), uint32(origin_x * stride_x - pad_x),
            )  # fmt: skip
            tap = uint32(warp)
            while tap < uint32(count * taps):
                at = uint32(((group * channels + done) * taps + tap) * blocks_k + block_k)
                shared[uint32(tap * uint32(32) + lane)] = w[
                    uint32(at * uint32(BLOCK_OUTPUTS) + lane)
                ]
                tap = uint32(tap + uint32(WARPS))
            cuda.syncthreads()
            at_weights = first_output
            channel = uint32(0)
            while channel < count:
                r = uint32(0)
                while r < rows:
                    at = uint32(patch_at + channel * patch + r * dilation_y * patch_width)
                    s = uint32(0)
                    while s < columns:
                        for i in range(OUTPUTS):
                            own_weights[i] = shared[uint64(at_weights) + uint64(i)]
                        for j in range(STRIPS):
                            sample = shared[uint32(at + places[j])]
                            for i in range(OUTPUTS):
                                sums[j * OUTPUTS + i] += own_weights[i] * sample
                        at_weights = uint32(at_weights + uint32(BLOCK_OUTPUTS))
                        at = uint32(at + dilation_x)
                        s = uint32(s + uint32(1))
                    r = uint32(r + uint32(1))
                channel = uint32(channel + uint32(1))
            done = uint32(done + count)
        for j in range(STRIPS):
            row, column = tiles.place(uint32(j), across, lane)
            out_y, out_x = uint32(origin_y + row), uint32(origin_x + column)
            places[j] = uint32(out_y * out_width + out_x)
            if out_y >= out_height or out_x >= out_width:
                places[j] = uint32(OUTSIDE)
        first_k = uint32(block_k * uint32(BLOCK_OUTPUTS) + first_output)
        for i in range(OUTPUTS):
            k = uint32(min(uint32(first_k + uint32(i)), uint32(outputs - uint32(1))))
            added = bias[uint32(group * outputs + k)]
            for j in range(STRIPS):
                total = sums[j * OUTPUTS + i] + added
                sums[j * OUTPUTS + i] = finish(total, slope, lowest, highest)
        for i in range(OUTPUTS):
            k = uint32(first_k + uint32(i))
            to = uint32(((n * groups + group) * outputs + k) * out_height * out_width)
            if k < outputs:
                for j in range(STRIPS):
                    if places[j] != uint32(OUTSIDE):
                        y[uint32(to + places[j])] = sums[j * OUTPUTS + i]

    return Kernel(f"direct.{dtype}", direct, WARPS * LANES)


def chunk_of(p: planes.Plane, tile: Tile, budget: int) -> int:
    """Input channels whose patch and weights fit ``budget`` elements; 0 if none does."""
    return min(p.channels, budget // (tile.patch + p.taps * BLOCK_OUTPUTS))


def _elements(config: Config, dtype: str) -> int:
    kib = dict(config).get("shared_kib", BUDGETS[0])
    return kib * 2**10 // precision.numpy_dtype(dtype).itemsize


class DirectSolver:
    """``numba_cuda.direct``."""

    algorithm = "direct"

    def __init__(self, backend: str, device: Device) -> None:
        self.id = f"{backend}.direct"
        self._device = device

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if (refusal := problem.refuse(spec)) is not None:
            return refusal
        p = planes.plane(spec)
        packed = p.groups * p.channels * p.taps * -(-p.outputs // BLOCK_OUTPUTS) * BLOCK_OUTPUTS
        if (refusal := planes.refuse_size(packed)) is not None:
            return refusal
        return None if self._fitting(spec) else planes.refuse_patch(spec)

    def _fitting(self, spec: ConvSpec) -> list[int]:
        p = planes.plane(spec)
        tile = tile_of(p, STRIPS)
        kind = precision.numpy_dtype(spec.dtype).itemsize
        return [kib for kib in BUDGETS if chunk_of(p, tile, kib * 2**10 // kind)]

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p = planes.plane(spec)
        tile = tile_of(p, STRIPS)
        size = precision.numpy_dtype(spec.dtype).itemsize
        blocks_k = -(-p.outputs // BLOCK_OUTPUTS)
        blocks = spec.batch * p.groups * blocks_k * tile.count
        products = blocks * STRIPS * LANES * BLOCK_OUTPUTS * p.channels * p.taps
        packed = size * p.groups * p.channels * p.taps * blocks_k * BLOCK_OUTPUTS
        one = tile.patch + p.taps * BLOCK_OUTPUTS
        budget = self._fitting(spec)[0] * 2**10 // size
        shared = chunk_of(p, tile, budget) * one * size
        block = Block(WARPS * LANES, REGISTERS[spec.dtype], shared)
        read = blocks * p.channels * (tile.patch + p.taps * BLOCK_OUTPUTS)
        multiply = Phase(
            "direct",
            2.0 * products,
            f"numba_cuda.direct.{spec.dtype}",
            {"l2": float(size * read), "memory": float(size * prod(spec.y_shape))},
            busy(blocks, block, target),
        )
        return Work(
            (multiply,),
            Numerics("direct"),
            Phase("pack", bytes={"memory": 2.0 * packed}),
            launches=1,
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return [(("shared_kib", kib),) for kib in self._fitting(spec)]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return DirectSum(spec, self._device, _elements(config, spec.dtype))


class DirectSum(OnPlanes):
    """The executable; packed weights are (groups, channels, taps, outputs), outputs filled up."""

    def __init__(self, spec: ConvSpec, device: Device, budget: int) -> None:
        super().__init__(spec, device)
        p = self.plane
        tile = tile_of(p, STRIPS)
        chunk = chunk_of(p, tile, budget)
        self._blocks_k = -(-p.outputs // BLOCK_OUTPUTS)
        self._blocks = p.groups * self._blocks_k * tile.count
        self._shared = chunk * (tile.patch + p.taps * BLOCK_OUTPUTS) * self._kind.itemsize
        self._kernel = kernel(spec.dtype)
        self._arguments = (
            *planes.tile_sizes(p, tile),
            *unsigned(p.channels, p.outputs, p.groups, self._blocks_k, chunk),
            *planes.activation(spec),
        )

    def pack(self, rhs: Array) -> Array:
        p = self.plane
        taps = planes.grouped_taps(self.spec, rhs)
        into = self.cupy.zeros(
            (p.groups, p.channels, p.rows, p.columns, self._blocks_k * BLOCK_OUTPUTS), self._kind
        )
        into[..., : p.outputs] = taps.transpose(0, 2, 3, 4, 1)
        return into.reshape(-1)

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        arguments = (x, packed, bias, y, *self._arguments)
        self.device.launch(self._kernel, self.spec.batch * self._blocks, self._shared, arguments)

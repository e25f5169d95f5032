"""Implicit GEMM: outputs (K) by positions (batch and pixels), summed over channels and taps.

The columns are never built.  Each thread gathers one position's samples for several depths, by a
table with the offset, row and column of every depth (channel and tap), so that no division stands
in the loop.  A block multiplies tiles in shared memory, each thread a square of sums in registers
(S. Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014, sec. 3; the tiling is
that of V. Volkov and J. Demmel, "Benchmarking GPUs to Tune Dense Linear Algebra", SC 2008).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numba import cuda, uint32, uint64

from convjit import precision
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Numerics, Phase, Refusal, Target, Work
from convjit_numba_cuda import problem
from convjit_numba_cuda.device import Array, Buffer, Device, Kernel
from convjit_numba_cuda.problem import OnDevice, finish, unsigned

THREADS = 256
SIDE = 16  # threads along either edge of a tile
DEPTH = 8  # channels and taps of a step

# Edges of a tile.  8 x 8 sums a thread need 16 loads from shared memory for 64 multiply-adds; with
# 4 x 4 it is 8 for 16, but a small problem gives four times as many blocks.
TILES = {"float32": (64, 128), "float64": (64,)}

# A row that lies outside every image: of the depths that fill up the last step.
NOWHERE = 2**30


@lru_cache(maxsize=16)
def kernel(dtype: str, tile: int) -> Kernel:
    """The kernel for tiles of ``tile`` outputs by ``tile`` positions."""
    real = problem.real(dtype)
    each = tile // SIDE
    loads = tile * DEPTH // THREADS
    rows_at_once = THREADS // tile
    words = tile * DEPTH
    square = each * each

    def implicit_gemm(
        x, w, table, bias, y, positions, depth, outputs, outputs_padded, groups, image, height,
        width, pixels, out_width, stride_y, stride_x, pad_y, pad_x, tiles_p, tiles_k, slope, lowest,
        highest,
    ):  # fmt: skip
        weights = cuda.shared.array(words, real)
        samples = cuda.shared.array(words, real)
        sums = cuda.local.array(square, real)
        next_weights = cuda.local.array(loads, real)
        next_samples = cuda.local.array(loads, real)
        own_weights = cuda.local.array(each, real)
        thread = uint32(cuda.threadIdx.x)
        block = uint32(cuda.blockIdx.x)
        tile_p = uint32(block % tiles_p)
        block = uint32(block // tiles_p)
        tile_k = uint32(block % tiles_k)
        group = uint32(block // tiles_k)
        # The position whose samples this thread gathers, and its first row of the step.
        column = uint32(thread % uint32(tile))
        first = uint32(thread // uint32(tile))
        position = uint32(tile_p * uint32(tile) + column)
        is_inside = position < positions
        n = uint32(position // pixels)
        pixel = uint32(position - n * pixels)
        row = uint32(pixel // out_width)
        top = uint32(row * stride_y - pad_y)
        left = uint32((pixel - row * out_width) * stride_x - pad_x)
        corner = uint32((n * groups + group) * image + top * width + left)
        from_weights = uint32((group * depth + first) * outputs_padded
                              + tile_k * uint32(tile) + column)  # fmt: skip
        for i in range(square):
            sums[i] = real(0)
        own_row = uint32(thread // uint32(SIDE))
        own_column = uint32(thread % uint32(SIDE))
        done = uint32(0)
        while True:
            # The next step is fetched while the one in shared memory is multiplied.
            if done < depth:
                for i in range(loads):
                    d = uint32(done + first + uint32(i * rows_at_once))
                    at = uint32(from_weights + (done + uint32(i * rows_at_once)) * outputs_padded)
                    next_weights[i] = w[at]
                    value = real(0)
                    if (
                        is_inside
                        and uint32(top + table[uint32(depth + d)]) < height
                        and uint32(left + table[uint32(depth + depth + d)]) < width
                    ):
                        value = x[uint32(corner + table[d])]
                    next_samples[i] = value
            if done > 0:
                # A counter of its own: numba's range costs as much as two loads, where the
                # compiler does not unroll it.
                at = uint32(0)
                while at < uint32(words):
                    at_row = uint64(uint32(at + own_row))
                    at_column = uint64(uint32(at + own_column))
                    for i in range(each):
                        own_weights[i] = weights[at_row + uint64(SIDE * i)]
                    for j in range(each):
                        sample = samples[at_column + uint64(SIDE * j)]
                        for i in range(each):
                            sums[i * each + j] += own_weights[i] * sample
                    at = uint32(at + uint32(tile))
            if done >= depth:
                break
            cuda.syncthreads()
            for i in range(loads):
                weights[uint64(thread) + uint64(i * THREADS)] = next_weights[i]
                samples[uint64(thread) + uint64(i * THREADS)] = next_samples[i]
            cuda.syncthreads()
            done = uint32(done + uint32(DEPTH))
        for j in range(each):
            position = uint32(tile_p * uint32(tile) + own_column + uint32(SIDE * j))
            if position < positions:
                n = uint32(position // pixels)
                pixel = uint32(position - n * pixels)
                for i in range(each):
                    k = uint32(tile_k * uint32(tile) + own_row + uint32(SIDE * i))
                    if k < outputs:
                        value = sums[i * each + j] + bias[uint32(group * outputs + k)]
                        to = uint32(((n * groups + group) * outputs + k) * pixels + pixel)
                        y[to] = finish(value, slope, lowest, highest)

    return Kernel(f"gemm.{dtype}.{tile}", implicit_gemm, THREADS)


def padded(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


def arranged(taps: Array) -> Array:
    """(groups, depth, outputs) weights from (groups, outputs, depth), filled up with zeros."""
    groups, outputs, depth = taps.shape
    most = max(tile for tiles in TILES.values() for tile in tiles)
    into = np.zeros((groups, padded(depth, DEPTH), padded(outputs, most)), taps.dtype)
    into[:, :depth, :outputs] = taps.swapaxes(1, 2)
    return into


def depth_table(
    channels: int, rows: int, columns: int, image: tuple[int, int], dilation: tuple[int, int]
) -> Array:
    """Offset, row and column of each depth relative to a position's first sample."""
    depth = channels * rows * columns
    c, r, s = (index.reshape(-1) for index in np.indices((channels, rows, columns)))
    height, width = image
    table = np.full((3, padded(depth, DEPTH)), NOWHERE, np.uint32)
    table[0, :depth] = c * height * width + r * dilation[0] * width + s * dilation[1]
    table[1, :depth] = r * dilation[0]
    table[2, :depth] = s * dilation[1]
    return table


class Product:
    """One launch: the sizes of an implicit GEMM, as the kernel is told them."""

    def __init__(
        self,
        device: Device,
        dtype: str,
        tile: int,
        p: problem.Plane,
        images: int,
    ) -> None:
        self._device = device
        self._kernel = kernel(dtype, tile)
        positions = images * p.pixels
        depth = padded(p.channels * p.taps, DEPTH)
        tiles_p, tiles_k = -(-positions // tile), -(-p.outputs // tile)
        most = max(t for tiles in TILES.values() for t in tiles)
        self.blocks = tiles_p * tiles_k * p.groups
        self._sizes = unsigned(
            positions, depth, p.outputs, padded(p.outputs, most), p.groups,
            p.channels * p.height * p.width, p.height, p.width, p.pixels, p.out_width, *p.stride,
            *p.padding, tiles_p, tiles_k,
        )  # fmt: skip
        self.flops = 2.0 * self.blocks * tile * tile * depth

    def launch(
        self, x: Buffer, w: Buffer, table: Buffer, bias: Buffer, y: Buffer, act: Sequence[Any]
    ) -> None:
        arguments = (x, w, table, bias, y, *self._sizes, *act)
        self._device.launch(self._kernel, self.blocks, 0, arguments)


class GemmSolver:
    """``numba_cuda.gemm``."""

    algorithm = "gemm"

    def __init__(self, backend: str, device: Device) -> None:
        self.id = f"{backend}.gemm"
        self._device = device

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        return problem.refuse(spec)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        tile = dict(next(iter(self.configs(spec, target))))["tile"]
        p = problem.plane(spec)
        product = Product(self._device, spec.dtype, tile, p, spec.batch)
        size = precision.numpy_dtype(spec.dtype).itemsize
        # Each block reads its weights and samples once for every tile beside it.
        columns = product.flops / tile / 2.0
        packed = size * p.groups * padded(p.channels * p.taps, DEPTH) * padded(p.outputs, 128)
        come, go = problem.transfers(spec)
        multiply = Phase(
            "gemm",
            product.flops,
            f"numba_cuda.gemm.{spec.dtype}",
            {"l2": 2.0 * size * columns, "memory": float(size * prod(spec.y_shape))},
        )
        return Work(
            (come, multiply, go),
            Numerics("gemm"),
            Phase("pack", bytes={"bus": float(packed)}),
            launches=1,
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        p = problem.plane(spec)
        tiles = TILES[spec.dtype]
        # The largest tile of which every multiprocessor gets two blocks, else the smallest.
        positions = spec.batch * p.pixels
        fitting = [
            t for t in tiles
            if -(-positions // t) * -(-p.outputs // t) * p.groups >= 2 * target.cores
        ]  # fmt: skip
        best = max(fitting, default=min(tiles))
        return [(("tile", t),) for t in (best, *(t for t in tiles if t != best))]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return ImplicitGemm(spec, self._device, dict(config)["tile"])


class ImplicitGemm(OnDevice):
    """The executable; packed are the weights and the table of depths."""

    def __init__(self, spec: ConvSpec, device: Device, tile: int) -> None:
        super().__init__(spec, device)
        self._tile = tile
        self._activation = problem.activation(spec)

    def pack(self, rhs: Array) -> tuple[Buffer, Buffer]:
        p = self.plane
        taps = problem.grouped_taps(self.spec, rhs).reshape(p.groups, p.outputs, -1)
        table = depth_table(p.channels, p.rows, p.columns, (p.height, p.width), p.dilation)
        return self.device.upload(arranged(taps)), self.device.upload(table)

    def compute(self, images: int, x: Buffer, packed: Any, bias: Buffer, y: Buffer) -> None:
        product = Product(self.device, self.spec.dtype, self._tile, self.plane, images)
        weights, table = packed
        product.launch(x, weights, table, bias, y, self._activation)

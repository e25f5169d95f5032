"""Implicit GEMM: outputs (K) by positions (batch and pixels), summed over channels and taps.

The columns are never built.  Each thread gathers one position's samples for several depths, by a
table with the offset, row and column of every depth (channel and tap), so that no division stands
in the loop.  A block multiplies tiles in shared memory, each thread has 8 x 8 or 8 x 4 of the sums
(S. Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014, sec. 3; the tiling is
that of V. Volkov and J. Demmel, "Benchmarking GPUs to Tune Dense Linear Algebra", SC 2008).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import Any

from numba import cuda, uint32, uint64

from convjit import cost, planes, precision
from convjit.occupancy import Block, busy
from convjit.planes import NOWHERE, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_numba_cuda import problem
from convjit_numba_cuda.device import Array, Device, Kernel
from convjit_numba_cuda.panels import DEPTH, PANEL, arranged, packed_elements, packed_shape, padded
from convjit_numba_cuda.problem import WIDE, OnPlanes, finish

COLUMNS = 16  # threads along a row of a tile: neighbours, whose results are written together
EACH = 8  # outputs of a thread, which it loads 128 bits at once

# Edges of a tile, largest first.  8 x 8 sums a thread need 10 loads from shared memory for 64
# multiply-adds; with 8 x 4 it is 6 for 32, but a small problem gives four times as many blocks.
TILES = {"float32": (128, 64), "float64": (64,)}
REGISTERS = {("float32", 64): 70, ("float32", 128): 108, ("float64", 64): 130}  # of a thread
# Multiply-adds among a loop's instructions beside those of the largest tile, by a block's threads
# (``explain --ptx``: 66 and 81 %).
MULTIPLIES = {128: 0.82, 256: 1.0}


def block_of(dtype: str, tile: int) -> Block:
    """The block of a tile, as a multiprocessor has to hold it."""
    shared = 2 * tile * DEPTH * precision.numpy_dtype(dtype).itemsize
    return Block(COLUMNS * tile // EACH, REGISTERS[dtype, tile], shared)


@lru_cache(maxsize=16)
def kernel(dtype: str, tile: int) -> Kernel:
    """The kernel for tiles of ``tile`` outputs by ``tile`` positions."""
    real = problem.real(dtype)
    across = tile // COLUMNS  # positions of a thread
    threads = block_of(dtype, tile).threads
    loads = tile * DEPTH // threads
    rows_at_once = threads // tile
    words = tile * DEPTH
    held = EACH * across

    def implicit_gemm(
        x, w, table, bias, y, positions, depth, outputs, panels, groups, image, height, width,
        pixels, out_width, stride_y, stride_x, pad_y, pad_x, tiles_p, tiles_k, slope, lowest,
        highest,
    ):  # fmt: skip
        weights = cuda.shared.array(words, real, alignment=WIDE)
        samples = cuda.shared.array(words, real, alignment=WIDE)
        sums = cuda.local.array(held, real)
        next_weights = cuda.local.array(loads, real)
        next_samples = cuda.local.array(loads, real)
        own_weights = cuda.local.array(EACH, real)
        places = cuda.local.array(across, uint32)
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
        n = uint32(position // pixels)
        pixel = uint32(position - n * pixels)
        row = uint32(pixel // out_width)
        top = uint32(row * stride_y - pad_y)
        left = uint32((pixel - row * out_width) * stride_x - pad_x)
        if position >= positions:
            top = uint32(NOWHERE)
        corner = uint32((n * groups + group) * image + top * width + left)
        k = uint32(tile_k * uint32(tile) + column)
        panel = uint32(group * panels + k // uint32(PANEL))
        at_weights = uint64(uint32((panel * depth + first) * uint32(PANEL) + k % uint32(PANEL)))
        at_entry = uint64(uint32(first * uint32(3)))
        for i in range(held):
            sums[i] = real(0)
        own_row = uint32(thread // uint32(COLUMNS) * uint32(EACH))
        own_column = uint32(thread % uint32(COLUMNS))
        done = uint32(0)
        while True:
            # The next step is fetched while the one in shared memory is multiplied.
            if done < depth:
                for i in range(loads):
                    next_weights[i] = w[at_weights + uint64(rows_at_once * PANEL * i)]
                    entry = at_entry + uint64(rows_at_once * 3 * i)
                    sample = uint32(corner + table[entry])
                    y_at = uint32(top + table[entry + uint64(1)])
                    x_at = uint32(left + table[entry + uint64(2)])
                    # Loaded in any case, that no load waits for a branch.
                    is_there = (y_at < height) & (x_at < width)
                    value = x[sample if is_there else uint32(0)]
                    next_samples[i] = value if is_there else real(0)
                at_weights += uint64(DEPTH * PANEL)
                at_entry += uint64(DEPTH * 3)
            if done > 0:
                # A counter of its own: numba's range costs as much as two loads, where the
                # compiler does not unroll it.
                at = uint32(0)
                while at < uint32(words):
                    at_row = uint64(uint32(at + own_row))
                    at_column = uint64(uint32(at + own_column))
                    for i in range(EACH):
                        own_weights[i] = weights[at_row + uint64(i)]
                    for j in range(across):
                        sample = samples[at_column + uint64(COLUMNS * j)]
                        for i in range(EACH):
                            sums[i * across + j] += own_weights[i] * sample
                    at = uint32(at + uint32(tile))
            if done >= depth:
                break
            cuda.syncthreads()
            for i in range(loads):
                weights[uint64(thread) + uint64(i * threads)] = next_weights[i]
                samples[uint64(thread) + uint64(i * threads)] = next_samples[i]
            cuda.syncthreads()
            done = uint32(done + uint32(DEPTH))
        for j in range(across):
            position = uint32(tile_p * uint32(tile) + own_column + uint32(COLUMNS * j))
            n = uint32(position // pixels)
            first_plane = uint32((n * groups + group) * outputs)
            places[j] = uint32(first_plane * pixels + position - n * pixels)
        for i in range(EACH):
            k = uint32(tile_k * uint32(tile) + own_row + uint32(i))
            added = bias[uint32(group * outputs + min(k, uint32(outputs - uint32(1))))]
            for j in range(across):
                sums[i * across + j] = finish(sums[i * across + j] + added, slope, lowest, highest)
        for i in range(EACH):
            k = uint32(tile_k * uint32(tile) + own_row + uint32(i))
            if k < outputs:
                for j in range(across):
                    position = uint32(tile_p * uint32(tile) + own_column + uint32(COLUMNS * j))
                    if position < positions:
                        y[uint32(places[j] + k * pixels)] = sums[i * across + j]

    return Kernel(f"gemm.{dtype}.{tile}", implicit_gemm, threads)


class Product:
    """One launch: the sizes of an implicit GEMM, as the kernel is told them."""

    def __init__(
        self,
        device: Device,
        dtype: str,
        tile: int,
        p: planes.Plane,
        images: int,
    ) -> None:
        self._device = device
        self._kernel, self._block = kernel(dtype, tile), block_of(dtype, tile)
        positions = images * p.pixels
        depth = padded(p.channels * p.taps, DEPTH)
        tiles_p, tiles_k = -(-positions // tile), -(-p.outputs // tile)
        self.blocks = tiles_p * tiles_k * p.groups
        self._sizes = unsigned(
            positions, depth, p.outputs, packed_shape(p.groups, p.outputs, depth)[1], p.groups,
            p.channels * p.height * p.width, p.height, p.width, p.pixels, p.out_width, *p.stride,
            *p.padding, tiles_p, tiles_k,
        )  # fmt: skip
        self.flops = 2.0 * self.blocks * tile * tile * depth

    def busy(self, target: Target) -> float:
        """The share of the multiprocessors' time that is work, and what else a small tile loads."""
        return MULTIPLIES[self._block.threads] * busy(self.blocks, self._block, target)

    def launch(
        self, x: Array, w: Array, table: Array, bias: Array, y: Array, act: Sequence[Any]
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
        if (refusal := problem.refuse(spec)) is not None:
            return refusal
        p = planes.plane(spec)
        if p.height > NOWHERE // 2:
            return Refusal(Feature.SIZE, f"an image of {p.height} rows is too high for the table")
        return planes.refuse_size(packed_elements(p))

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        return self._work(spec, target, next(iter(self.configs(spec, target))))

    def _work(self, spec: ConvSpec, target: Target, config: Config) -> Work:
        tile = dict(config)["tile"]
        p = planes.plane(spec)
        product = Product(self._device, spec.dtype, tile, p, spec.batch)
        size = precision.numpy_dtype(spec.dtype).itemsize
        # Each block reads its weights and samples once for every tile beside it.
        columns = product.flops / tile / 2.0
        packed = size * packed_elements(p)
        multiply = Phase(
            "gemm",
            product.flops,
            f"numba_cuda.gemm.{spec.dtype}",
            {"l2": 2.0 * size * columns, "memory": float(size * prod(spec.y_shape))},
            product.busy(target),
        )
        return Work(
            (multiply,),
            Numerics("gemm"),
            Phase("pack", bytes={"memory": 2.0 * packed}),
            launches=1,
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        configs = ((("tile", tile),) for tile in TILES[spec.dtype])
        return cost.fastest(((c, self._work(spec, target, c)) for c in configs), target)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return ImplicitGemm(spec, self._device, dict(config)["tile"])


class ImplicitGemm(OnPlanes):
    """The executable; packed are the weights and the table of depths."""

    def __init__(self, spec: ConvSpec, device: Device, tile: int) -> None:
        super().__init__(spec, device)
        self._tile = tile
        self._activation = planes.activation(spec)

    def pack(self, rhs: Array) -> tuple[Array, Array]:
        p = self.plane
        taps = planes.grouped_taps(self.spec, rhs).reshape(p.groups, p.outputs, -1)
        table = planes.depth_table(p, DEPTH)
        cupy = self.cupy
        return arranged(cupy, taps), cupy.asarray(table.reshape(-1))

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        product = Product(self.device, self.spec.dtype, self._tile, self.plane, self.spec.batch)
        weights, table = packed
        product.launch(x, weights, table, bias, y, self._activation)

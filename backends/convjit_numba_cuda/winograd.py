"""Winograd F(2, 3) and F(4, 3): transform tiles, multiply point by point, transform back.

Three launches (A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016, sec. 4).  The transforms keep a tile in registers, one thread for each, as straight-line code
from :mod:`convjit.algorithms.winograd`; lines of the image go through shared memory, that
neighbouring threads read and write neighbours.  The products of all points are one implicit GEMM
with a single tap, whose groups are the points and whose positions are the tiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numba import cuda, uint32

from convjit import cost, planes, precision
from convjit.algorithms import winograd
from convjit.algorithms.composed_winograd import tile_of, winograd_counts
from convjit.algorithms.workspace import Carver, aligned, nbytes
from convjit.occupancy import Block, busy
from convjit.planes import Plane, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_numba_cuda import gemm, panels, problem
from convjit_numba_cuda.device import Array, Device, Kernel
from convjit_numba_cuda.problem import OnPlanes, finish
from convjit_numba_cuda.winogradcode import along_axis

TAPS = 3
THREADS = 128
REGISTERS = 64  # of a thread of the transforms, at most in float32


def _line(dtype: str, m: int) -> tuple[int, int]:
    """(pitch, numbers) of a line of m columns for each tile of a block, in shared memory.

    Column c lies at ``c % m * pitch + c // m``: one column of all tiles in one run, which the
    tiles' threads find in banks beside each other, and the m runs that neighbouring columns lie in
    begin in banks of their own, for the threads to which those belong.
    """
    banks = 32 * 4 // precision.numpy_dtype(dtype).itemsize
    pitch = THREADS + banks // m
    return pitch, m * pitch


@lru_cache(maxsize=32)
def data_kernel(dtype: str, my: int, mx: int, ry: int, rx: int) -> Kernel:
    """x to V (points, channels, tiles), for tiles of my by mx outputs of ry by rx taps.

    The first mx columns of each tile go through shared memory; a block goes on from row to row. The
    others are the first of the next tile. A row's last tile, and a block's, has no next one: its
    thread reads them from x. In shared memory they would lie between those of two rows, and the
    same column of 32 tiles in 33 banks.
    """
    real = problem.real(dtype)
    vertical, horizontal = winograd.transforms(my, ry), winograd.transforms(mx, rx)
    ny, nx = vertical.n, horizontal.n
    points, beyond = ny * nx, nx - mx
    assert beyond <= mx
    pitch, line = _line(dtype, mx)
    lines = 2 * line
    down = along_axis(vertical.data_program(), dtype)
    across = along_axis(horizontal.data_program(), dtype)

    def transform_data(x, v, total, channels, height, width, tiles_y, tiles_x, tiles, pad_y, pad_x):
        shared = cuda.shared.array(lines, real)
        tile = cuda.local.array(points, real)
        starts = cuda.local.array(nx, uint32)
        tops = cuda.local.array(nx, uint32)
        thread = uint32(cuda.threadIdx.x)
        first = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS))
        first_row = uint32(first // tiles_x)
        first_column = uint32((first - first_row * tiles_x) * uint32(mx))
        run = uint32(tiles_x * uint32(mx))
        images = uint32(tiles // (tiles_y * tiles_x))
        own = uint32(first_column + thread * uint32(mx))
        last = thread == uint32(THREADS - 1) or own % run == uint32(run - uint32(mx))
        # The columns that this thread reads of each line, mx of the block's and those beyond its
        # own tile: where they begin in x, and their row, or one below the image for none.
        for r in range(nx):
            in_run = uint32(first_column + thread + uint32(r * THREADS))
            column = uint32(in_run % run)
            if r >= mx:
                in_run = own
                column = uint32(own % run + uint32(r))
            row = uint32(first_row + in_run // run)
            column = uint32(column - pad_x)
            plane = uint32(row // tiles_y)
            channel = uint32(plane // images)
            n = uint32(plane - channel * images)
            starts[r] = uint32((n * channels + channel) * height * width + column)
            tops[r] = height
            if (r < mx or last) and column < width and uint32(row * tiles_x) < total:
                tops[r] = uint32((row - plane * tiles_y) * uint32(my) - pad_y)
        into = uint32(thread % uint32(mx) * uint32(pitch) + thread // uint32(mx))
        for i in range(ny):
            for r in range(nx):
                y = uint32(tops[r] + uint32(i))
                value = real(0)
                if y < height:
                    value = x[uint32(starts[r] + y * width)]
                if r < mx:
                    shared[uint32(into + uint32(i % 2 * line + r * THREADS // mx))] = value
                else:
                    tile[i * nx + r] = value
            cuda.syncthreads()  # the other line's buffer has been read by all, too
            for j in range(mx):
                tile[i * nx + j] = shared[uint32(thread + uint32(i % 2 * line + j * pitch))]
            if not last:
                for j in range(beyond):
                    at = uint32(thread + uint32(i % 2 * line + j * pitch + 1))
                    tile[i * nx + mx + j] = shared[at]
        index = uint32(first + thread)
        if index >= total:
            return
        for i in range(ny):
            across(tile, i * nx, 1, tile, i * nx, 1)
        for j in range(nx):
            down(tile, j, nx, tile, j, nx)
        channel = uint32(index // tiles)
        place = uint32(index - channel * tiles)
        for i in range(points):
            v[uint32((uint32(i) * channels + channel) * tiles + place)] = tile[i]

    return Kernel(f"winograd.data.{dtype}.{my}x{mx}", transform_data, THREADS)


@lru_cache(maxsize=32)
def output_kernel(dtype: str, my: int, mx: int, ry: int, rx: int) -> Kernel:
    """M (points, output channels, tiles) to y, with bias and activation."""
    real = problem.real(dtype)
    vertical, horizontal = winograd.transforms(my, ry), winograd.transforms(mx, rx)
    ny, nx = vertical.n, horizontal.n
    points, middle, inside = ny * nx, ny * mx, my * mx
    pitch, line = _line(dtype, mx)
    lines = my * line
    down = along_axis(vertical.output_program(), dtype)
    across = along_axis(horizontal.output_program(), dtype)

    def transform_output(
        m, bias, y, total, outputs, out_height, out_width, tiles_y, tiles_x, tiles, slope, lowest,
        highest,
    ):  # fmt: skip
        shared = cuda.shared.array(lines, real)
        tile = cuda.local.array(points, real)
        half = cuda.local.array(middle, real)
        done = cuda.local.array(inside, real)
        thread = uint32(cuda.threadIdx.x)
        first = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS))
        index = uint32(first + thread)
        channel = uint32(index // tiles)
        place = uint32(index - channel * tiles)
        for i in range(points):
            value = real(0)
            if index < total:
                value = m[uint32((uint32(i) * outputs + channel) * tiles + place)]
            tile[i] = value
        for i in range(ny):
            across(tile, i * nx, 1, half, i * mx, 1)
        for j in range(mx):
            down(half, j, mx, done, j, mx)
        for i in range(my):
            for j in range(mx):
                shared[uint32(thread + uint32(i * line + j * pitch))] = done[i * mx + j]
        cuda.syncthreads()
        # Columns of the results, beside each other those of neighbouring threads.
        first_row = uint32(first // tiles_x)
        first_column = uint32((first - first_row * tiles_x) * uint32(mx))
        run = uint32(tiles_x * uint32(mx))
        images = uint32(tiles // (tiles_y * tiles_x))
        own = uint32(thread % uint32(mx) * uint32(pitch) + thread // uint32(mx))
        for r in range(mx):
            in_run = uint32(first_column + thread + uint32(r * THREADS))
            row = uint32(first_row + in_run // run)
            column = uint32(in_run % run)
            if column < out_width and uint32(row * tiles_x) < total:
                plane = uint32(row // tiles_y)
                k = uint32(plane // images)
                n = uint32(plane - k * images)
                top = uint32((row - plane * tiles_y) * uint32(my))
                to = uint32((n * outputs + k) * out_height * out_width + column)
                added = bias[k]
                for i in range(my):
                    value = shared[uint32(own + uint32(i * line + r * THREADS // mx))]
                    out_y = uint32(top + uint32(i))
                    if out_y < out_height:
                        y[uint32(to + out_y * out_width)] = finish(
                            value + added, slope, lowest, highest
                        )

    return Kernel(f"winograd.output.{dtype}.{my}x{mx}", transform_output, THREADS)


class WinogradSolver:
    """``numba_cuda.winograd.f2x3`` and ``numba_cuda.winograd.f4x3``."""

    algorithm = "winograd"

    def __init__(self, backend: str, device: Device, m: int) -> None:
        self.id = f"{backend}.winograd.f{m}x{TAPS}"
        self._device = device
        self._m = m

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if (refusal := problem.refuse(spec)) is not None:
            return refusal
        if not set(spec.kernel_size) <= {1, TAPS} or set(spec.kernel_size) == {1}:
            taps = "x".join(map(str, spec.kernel_size))
            return Refusal(
                Feature.SIZE,
                f"F({self._m}, {TAPS}) takes {TAPS} taps per axis (or 1 on some), not {taps}",
            )
        if set(spec.stride) != {1}:
            return Refusal(Feature.STRIDE, f"winograd needs stride 1, got {spec.stride}")
        if set(spec.dilation) != {1}:
            return Refusal(Feature.DILATION, f"winograd needs dilation 1, got {spec.dilation}")
        inner = _product(spec, self._m, spec.batch)
        packed = prod(panels.packed_shape(inner.groups, inner.outputs, inner.channels))
        return planes.refuse_size(max(packed, *_buffers(spec, self._m, spec.batch)))

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        return self._work(spec, target, next(iter(self.configs(spec, target))))

    def _work(self, spec: ConvSpec, target: Target, config: Config) -> Work:
        counts = winograd_counts(spec, self._m)
        size = precision.numpy_dtype(spec.dtype).itemsize
        v, m = (float(size * n) for n in _buffers(spec, self._m, spec.batch))
        x, y = (float(size * prod(shape)) for shape in (spec.x_shape, spec.y_shape))
        rate = f"numba_cuda.winograd.{spec.dtype}"
        tile = dict(config)["tile"]
        product = gemm.Product(
            self._device, spec.dtype, tile, _product(spec, self._m, spec.batch), 1
        )
        block = Block(THREADS, REGISTERS)
        tiles = spec.batch * prod(_tiles(spec, self._m))
        into, onto = (
            busy(-(-channels * tiles // THREADS), block, target)
            for channels in (spec.in_channels, spec.out_channels)
        )
        phases = (
            Phase("data transform", counts.data, rate, {"memory": x + v}, into),
            Phase(
                "gemm", product.flops, f"numba_cuda.gemm.{spec.dtype}", {"memory": v + m},
                product.busy(target),
            ),
            Phase("output transform", counts.output, rate, {"memory": m + y}, onto),
        )  # fmt: skip
        return Work(
            phases,
            Numerics("winograd", tile=tile_of(spec, self._m), spreads_nonfinite=True),
            Phase("pack", bytes={"memory": 2.0 * counts.packed_bytes}),
            launches=3,
            workspace=_workspace(spec, self._m),
            packed_bytes=counts.packed_bytes,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        configs = ((("tile", tile),) for tile in gemm.TILES[spec.dtype])
        return cost.fastest(((c, self._work(spec, target, c)) for c in configs), target)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return Winograd(spec, self._device, self._m, dict(config)["tile"])


def _axes(spec: ConvSpec, m: int) -> tuple[winograd.Transforms, winograd.Transforms]:
    """The transforms of rows and columns; F(1, 1), which changes nothing, for one tap."""
    p = planes.plane(spec)
    vertical, horizontal = (
        winograd.transforms(m if r == TAPS else 1, r) for r in (p.rows, p.columns)
    )
    return vertical, horizontal


def _tiles(spec: ConvSpec, m: int) -> tuple[int, int]:
    p = planes.plane(spec)
    vertical, horizontal = _axes(spec, m)
    return -(-p.out_height // vertical.m), -(-p.out_width // horizontal.m)


def _buffers(spec: ConvSpec, m: int, images: int) -> tuple[int, int]:
    """Elements of the transformed data and of the products."""
    points = prod(axis.n for axis in _axes(spec, m))
    tiles = images * prod(_tiles(spec, m))
    return points * spec.in_channels * tiles, points * spec.out_channels * tiles


def _workspace(spec: ConvSpec, m: int) -> int:
    """Bytes of both."""
    return sum(aligned(nbytes((n,), spec.dtype)) for n in _buffers(spec, m, spec.batch))


def _product(spec: ConvSpec, m: int, images: int) -> Plane:
    """The products of all points as a convolution with one tap of an image of one row."""
    p = planes.plane(spec)
    tiles = images * prod(_tiles(spec, m))
    points = prod(axis.n for axis in _axes(spec, m))
    return Plane(
        points * p.groups, p.channels, p.outputs, 1, tiles, 1, tiles, 1, 1, (1, 1), (0, 0), (1, 1)
    )


class Winograd(OnPlanes):
    """The executable; packed are the transformed weights and what the products' kernel wants."""

    def __init__(self, spec: ConvSpec, device: Device, m: int, tile: int) -> None:
        super().__init__(spec, device)
        self._m, self._tile = m, tile
        self._axes = _axes(spec, m)
        vertical, horizontal = self._axes
        sizes = (spec.dtype, vertical.m, horizontal.m, vertical.r, horizontal.r)
        self._data, self._output = data_kernel(*sizes), output_kernel(*sizes)
        self._activation = planes.activation(spec)
        one = self._kind.type(1)
        self._passes = (one, self._kind.type(-np.inf), self._kind.type(np.inf))
        self.workspace = _workspace(spec, m)

    def pack(self, rhs: Array) -> tuple[Array, Array, Array]:
        """Transformed weights, computed in float64, zeros in the place of a bias, the table."""
        spec, p, cupy = self.spec, self.plane, self.cupy
        taps = planes.grouped_taps(spec, rhs).astype(np.float64)
        # Each product takes the first axis of the taps, and puts that of the points at the end.
        for axis in self._axes:
            taps = cupy.tensordot(taps, cupy.asarray(np.array(axis.G, np.float64)), ((3,), (1,)))
        points = taps.transpose(3, 4, 0, 1, 2).reshape(-1, p.outputs, p.channels)
        flat = points.astype(self._kind)
        zeros = cupy.zeros(len(flat) * p.outputs, self._kind)
        table = planes.depth_table(_product(spec, self._m, spec.batch), panels.DEPTH)
        return panels.arranged(cupy, flat), zeros, cupy.asarray(table.reshape(-1))

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        spec, p, device = self.spec, self.plane, self.device
        tiles_y, tiles_x = _tiles(spec, self._m)
        tiles = spec.batch * tiles_y * tiles_x
        carver = Carver(workspace)
        v, m = (carver.take((n,), self._kind) for n in _buffers(spec, self._m, spec.batch))
        total = spec.in_channels * tiles
        sizes = unsigned(
            total, spec.in_channels, p.height, p.width, tiles_y, tiles_x, tiles, *p.padding
        )
        device.launch(self._data, -(-total // THREADS), 0, (x, v, *sizes))
        weights, zeros, table = packed
        inner = _product(spec, self._m, spec.batch)
        product = gemm.Product(device, spec.dtype, self._tile, inner, 1)
        product.launch(v, weights, table, zeros, m, self._passes)
        total = spec.out_channels * tiles
        sizes = unsigned(
            total, spec.out_channels, p.out_height, p.out_width, tiles_y, tiles_x, tiles
        )
        device.launch(
            self._output, -(-total // THREADS), 0, (m, bias, y, *sizes, *self._activation)
        )

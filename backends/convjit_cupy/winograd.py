"""Winograd F(2, 3), F(4, 3) and F(6, 3), fused: one kernel transforms, multiplies, transforms back.

A block owns some tiles of the image and 32 output channels.  Step by step it takes a few input
channels: their samples, neighbours by neighbouring threads, go through the data transform down the
columns, which tiles share, and from shared memory along the rows of each tile; the weights,
transformed when they were packed, come beside them by asynchronous copies; each warp multiplies
four or two of the tile's points, with 64 sums a thread in registers.  At the end the sums go
through shared memory to the output transform, some outputs at a time (A. Lavin and S. Gray, "Fast
Algorithms for Convolutional Neural Networks", CVPR 2016, sec. 5, whose points are also those of one
block).  Nothing but x, the weights and y touches memory.  x, bias and y may be of a half type;
weights and arithmetic are float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from convjit import planes, precision
from convjit.algorithms import winograd
from convjit.algorithms.straightline import cuda_source
from convjit.occupancy import Block, busy
from convjit.planes import Plane, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_cupy import kernels
from convjit_cupy.tiles import C_TYPES

Array = Any

DTYPES = ("float32", "float16", "bfloat16")
TAPS = 3
OUTPUTS = 32  # of a block
TURING_BYTES = 64 * 2**10  # of shared memory, which a block there is given when it asks
ADDITIONS = 0.25  # share of the peak that straight-line additions on data from memory reach


class Shape(NamedTuple):
    """How a block divides its points, tiles and outputs.

    Attributes
    ----------
    tiles : int
        Of a block.
    channels : int
        Of a step.
    warp_points : int
        Points that a warp multiplies.
    lane_outputs, lane_tiles : int
        Outputs and tiles of a lane, for each of those: together 64 sums.
    pass_outputs : int
        Outputs of a lane that go through the output transform at a time.
    blocks : int
        Of a multiprocessor, for which registers suffice without spilling.
    registers : int
        Of a thread.
    """

    tiles: int
    channels: int
    warp_points: int
    lane_outputs: int
    lane_tiles: int
    pass_outputs: int
    blocks: int
    registers: int


SHAPES = {
    2: Shape(32, 4, 2, 8, 4, 2, 2, 122),
    4: Shape(16, 4, 4, 4, 4, 1, 1, 156),
    6: Shape(16, 4, 4, 4, 4, 1, 1, 128),
}


def threads_of(m: int) -> int:
    return (m + TAPS - 1) ** 2 // SHAPES[m].warp_points * 32


def shared_bytes(m: int) -> int:
    """Of a block: a step's columns and data, two steps' weights, or a pass of the outputs."""
    shape, points = SHAPES[m], (m + TAPS - 1) ** 2
    steps = points * shape.channels * (shape.tiles + 2 * OUTPUTS)
    steps += (m + TAPS - 1) * shape.channels * shape.tiles * (m + TAPS - 1)
    passed = shape.pass_outputs * OUTPUTS // shape.lane_outputs * shape.tiles
    passes = passed * (points + (m + TAPS - 1) * m)
    return 4 * max(steps, passes)


# M, REAL and what source() defines are macros.
SOURCE = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>

typedef unsigned int u32;
typedef REAL Real;                               // of x, bias and y
constexpr int N = M + 2, POINTS = N * N, OUTPUTS = 32;
constexpr int THREADS = POINTS / WARP_POINTS * 32;
constexpr int LANES_X = TILES / LANE_TILES;      // lanes side by side over tiles, then over outputs
constexpr int LANES_Y = OUTPUTS / LANE_OUTPUTS;
static_assert(LANES_X * LANES_Y == 32 && LANE_TILES == 4, "a warp covers its points");
constexpr int DATA = CHANNELS * TILES;           // numbers of a point: data, weights, a pass
constexpr int WEIGHTS = CHANNELS * OUTPUTS;
constexpr int PASSED = PASS * LANES_Y * TILES;
constexpr int COLUMNS = TILES * N;               // of a channel, at most: where no two tiles share
constexpr int ROUNDS = (COLUMNS * CHANNELS + THREADS - 1) / THREADS;
static_assert(THREADS % TILES == 0 && COLUMNS % 32 == 0 && N % 2 == 0, "lanes have whole tiles");
// Rows of tiles of a small image lie M lines apart, and no two share a sector.  With M = 2 every
// second row of tiles reads the last of its lines first, and writes its second one first: then a
// request is of pairs of lines beside each other.
constexpr bool TURNS = M == 2;

template <int COUNT> __device__ __forceinline__ void load_vector(float (&to)[COUNT],
                                                                 const float *from) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4)
        *reinterpret_cast<float4 *>(to + i) = *reinterpret_cast<const float4 *>(from + i);
}

// By one instruction, which the compiler makes four of in places.
__device__ __forceinline__ void store_vector(float *to, const float (&from)[4]) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                 :: "r"(shared_address(to)), "f"(from[0]), "f"(from[1]), "f"(from[2]), "f"(from[3])
                 : "memory");
}

__device__ __forceinline__ void load_pair(float *to, const float *from) {
    const float2 pair = *reinterpret_cast<const float2 *>(from);
    to[0] = pair.x, to[1] = pair.y;
}

// What a block computes: worked out again where it is needed again, since registers are for sums.
struct Place { u32 block_k, group, first_tile; };
__device__ __forceinline__ Place place_of_block(u32 blocks_k, u32 groups) {
    u32 block;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
    const u32 rest = block / blocks_k;
    return {block - rest * blocks_k, rest % groups, rest / groups * TILES};
}

extern "C" __global__ void __launch_bounds__(BOUNDS)
winograd(const Real *__restrict__ x, const float *__restrict__ w, const Real *__restrict__ bias,
         Real *__restrict__ y, u32 tiles, u32 channels, u32 outputs, u32 groups, u32 height,
         u32 width, u32 out_height, u32 out_width, u32 tiles_y, u32 tiles_x, u32 pad_y, u32 pad_x,
         u32 blocks_k, float slope, float lowest, float highest) {
    extern __shared__ __align__(16) float shared[];
    float *const data = shared, *const weights = data + POINTS * DATA;
    float *const stage = weights + 2 * POINTS * WEIGHTS;
    const u32 thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const u32 lane_x = lane % LANES_X, lane_y = lane / LANES_X;
    const Place begin = place_of_block(blocks_k, groups);
    const u32 first_tile = begin.first_tile, group = begin.group;
    const u32 steps = (channels + CHANNELS - 1) / CHANNELS;
    const size_t before = (size_t)(group * blocks_k + begin.block_k) * steps;
    const float *from_w = w + before * (POINTS * WEIGHTS);

    // Tiles beside each other share columns.  Those of a row of tiles are numbered in one run,
    // which is N - M longer than the tiles' outputs, and a block's go on from row to row.  The
    // columns that this thread reads in each step: where they begin in x, and a bit for each line
    // inside the image, and whether it turns; a number would be kept in a register, of which the
    // sums leave too few.
    const u32 first_row = first_tile / tiles_x, first_x = first_tile - first_row * tiles_x;
    auto column_of = [&](u32 tile) { return tile * M + (first_x + tile) / tiles_x * (N - M); };
    const u32 columns = column_of(TILES - 1) + N, run = tiles_x * M + (N - M);
    u32 at[ROUNDS], lines[ROUNDS];
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
        const u32 task = thread + r * THREADS, in_run = first_x * M + task % COLUMNS;
        const u32 row = first_row + in_run / run, column = in_run % run - pad_x;
        const u32 n = row / tiles_y, top = (row - n * tiles_y) * M - pad_y;
        const bool inside = row * tiles_x < tiles && task % COLUMNS < columns && column < width;
        const u32 turn = TURNS ? (row - n * tiles_y) % 2 : 0;
        lines[r] = turn << N;
#pragma unroll
        for (int i = 0; i < N; i++)
            lines[r] |= u32(inside && top + i < height) << (i + turn) % N;
        const u32 plane = (n * groups + group) * channels + task / COLUMNS;
        at[r] = (plane * height + top - turn) * width + column;
    }
    auto turned = [&](int r) { return TURNS && lines[r] >> N; };
    Real next[ROUNDS][N];
    auto fetch = [&](u32 step) {
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const u32 channel = step * CHANNELS + (thread + r * THREADS) / COLUMNS;
            const u32 inside = channel < channels ? lines[r] : 0;
#pragma unroll
            for (int i = 0; i < N; i++) {
                const u32 line = i == 0 && turned(r) ? N : i;
                next[r][i] = inside >> i & 1 ? x[at[r] + line * width] : Real(0.f);
            }
            at[r] += CHANNELS * height * width;
        }
        float *to = weights + step % 2 * (POINTS * WEIGHTS);
        for (u32 i = thread * 4; i < POINTS * WEIGHTS; i += THREADS * 4)
            copy_async<16>(shared_address(to + i), from_w + i);
        from_w += POINTS * WEIGHTS;
    };
    const u32 own_tile = thread % TILES, own_column = column_of(own_tile);

    float sums[WARP_POINTS][LANE_OUTPUTS][LANE_TILES] = {};
    fetch(0);
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        // Down the columns, out of registers.
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const u32 task = thread + r * THREADS;
            if (task < COLUMNS * CHANNELS) {
                float read[N], samples[N], down[N];
#pragma unroll
                for (int i = 0; i < N; i++) read[i] = float(next[r][i]);
#pragma unroll
                for (int i = 0; i < N; i++) samples[i] = turned(r) ? read[(i + 1) % N] : read[i];
                data_transform(samples, down);
#pragma unroll
                for (int i = 0; i < N; i++) stage[i * CHANNELS * COLUMNS + task] = down[i];
            }
        }
        wait_for_copies();
        __syncthreads();
        // Along the rows, where each tile takes its columns.
        for (u32 row = thread / TILES; row < N * CHANNELS; row += THREADS / TILES) {
            float across[N], points[N];
            const float *const from = stage + row * COLUMNS;
#pragma unroll
            for (int j = 0; j < N; j += 2) load_pair(across + j, from + own_column + j);
            data_transform(across, points);
            float *const to = data + row / CHANNELS * N * DATA + row % CHANNELS * TILES + own_tile;
#pragma unroll
            for (int j = 0; j < N; j++) to[j * DATA] = points[j];
        }
        __syncthreads();
        if (step + 1 < steps) fetch(step + 1);
        const float *a = weights + step % 2 * (POINTS * WEIGHTS)
                         + warp * WARP_POINTS * WEIGHTS + lane_y * LANE_OUTPUTS;
        const float *b = data + warp * WARP_POINTS * DATA + lane_x * LANE_TILES;
#pragma unroll 2
        for (int c = 0; c < CHANNELS; c++, a += OUTPUTS, b += TILES) {
#pragma unroll
            for (int p = 0; p < WARP_POINTS; p++) {
                float own_weights[LANE_OUTPUTS], samples[LANE_TILES];
                load_vector(own_weights, a + p * WEIGHTS);
                load_vector(samples, b + p * DATA);
#pragma unroll
                for (int i = 0; i < LANE_OUTPUTS; i++)
#pragma unroll
                    for (int j = 0; j < LANE_TILES; j++)
                        sums[p][i][j] = fmaf(own_weights[i], samples[j], sums[p][i][j]);
            }
        }
    }
    __syncthreads();

    // PASS outputs of each lane at a time: their points to shared memory, transformed along the
    // rows of each tile to neighbours in a row of the result, then down its columns into y.
    float *const across = shared + POINTS * PASSED;
    const Place end = place_of_block(blocks_k, groups);
#pragma unroll
    for (int first = 0; first < LANE_OUTPUTS; first += PASS) {
#pragma unroll
        for (int p = 0; p < WARP_POINTS; p++)
#pragma unroll
            for (int i = 0; i < PASS; i++) {
                float *const to = shared + (warp * WARP_POINTS + p) * PASSED
                                  + (i * LANES_Y + lane_y) * TILES + lane_x * LANE_TILES;
                store_vector(to, sums[p][first + i]);
            }
        __syncthreads();
#pragma unroll 1
        for (u32 row = thread; row < PASSED * N; row += THREADS) {
            float points[N], results[M];
            const float *const from = shared + row / PASSED * N * PASSED + row % PASSED;
#pragma unroll
            for (int j = 0; j < N; j++) points[j] = from[j * PASSED];
            output_transform(points, results);
#pragma unroll
            for (int j = 0; j < M; j += 2)
                *reinterpret_cast<float2 *>(across + row * M + j)
                    = make_float2(results[j], results[j + 1]);
        }
        __syncthreads();  // the points of the next pass may be written beside what follows
#pragma unroll 1
        for (u32 column = thread; column < PASSED * M; column += THREADS) {
            const u32 j = column % M, place = column / M;
            float points[N], down[M];
#pragma unroll
            for (int i = 0; i < N; i++) points[i] = across[i * PASSED * M + column];
            output_transform(points, down);
            const u32 own = place / TILES, tile = end.first_tile + place % TILES;
            const u32 of_block = own % LANES_Y * LANE_OUTPUTS + first + own / LANES_Y;
            const u32 k = end.block_k * OUTPUTS + of_block;
            const u32 n = tile / (tiles_y * tiles_x), rest = tile - n * (tiles_y * tiles_x);
            const u32 tile_y = rest / tiles_x, column_x = (rest - tile_y * tiles_x) * M + j;
            if (tile < tiles && k < outputs && column_x < out_width) {
                const float added = float(bias[end.group * outputs + k]);
                const u32 plane = (n * groups + end.group) * outputs + k;
#pragma unroll
                for (int i = 0; i < M; i++) {
                    const u32 turn = TURNS ? tile_y % 2 : 0;
                    const u32 row_y = tile_y * M + (i ^ turn);
                    if (row_y < out_height) {
                        const float sum = turn ? down[i ^ 1] : down[i];
                        y[(plane * out_height + row_y) * out_width + column_x]
                            = Real(finish(sum + added, slope, lowest, highest));
                    }
                }
            }
        }
    }
}
"""


@lru_cache(maxsize=8)
def source(m: int) -> str:
    """The kernel of F(m, 3), with its transforms."""
    axis, shape = winograd.transforms(m, TAPS), SHAPES[m]
    macros = {
        "TILES": shape.tiles, "CHANNELS": shape.channels, "WARP_POINTS": shape.warp_points,
        "LANE_OUTPUTS": shape.lane_outputs, "LANE_TILES": shape.lane_tiles,
        "PASS": shape.pass_outputs,
        # A bound of one block is not said: the compiler spills less without.
        "BOUNDS": "THREADS" if shape.blocks == 1 else f"THREADS, {shape.blocks}",
    }  # fmt: skip
    return (
        "".join(f"#define {name} {value}\n" for name, value in macros.items())
        + cuda_source(axis.data_program(), "data_transform")
        + cuda_source(axis.output_program(), "output_transform")
        + kernels.ACTIVATION
        + kernels.COPIES
        + SOURCE
    )


def packed_shape(p: Plane, m: int) -> tuple[int, ...]:
    """(groups, blocks of outputs, steps, points, channels of a step, outputs of a block)."""
    channels = SHAPES[m].channels
    return (
        p.groups, -(-p.outputs // OUTPUTS), -(-p.channels // channels), (m + TAPS - 1) ** 2,
        channels, OUTPUTS,
    )  # fmt: skip


class WinogradSolver:
    """``cupy.winograd.f2x3``, ``.f4x3`` and ``.f6x3``."""

    algorithm = "winograd"

    def __init__(self, backend: str, cupy: Any, m: int) -> None:
        self.id = f"{backend}.winograd.f{m}x{TAPS}"
        self._backend = backend
        self._cupy = cupy
        self._m = m

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        # Before the taps, of which the phases of a strided problem have fewer.
        if set(spec.stride) != {1}:
            return Refusal(Feature.STRIDE, f"winograd needs stride 1, got {spec.stride}")
        if set(spec.kernel_size) != {TAPS} or spec.ndim != 2:
            taps = "x".join(map(str, spec.kernel_size))
            return Refusal(
                Feature.SIZE,
                f"the fused kernel takes {TAPS}x{TAPS} taps, not {taps}; {self._backend}"
                f".winograd.batched has an axis with one tap, too",
            )
        if set(spec.dilation) != {1}:
            return Refusal(Feature.DILATION, f"winograd needs dilation 1, got {spec.dilation}")
        if spec.dtype == "float64":
            return Refusal(
                Feature.OTHER,
                "64 sums of float64 a thread leave no registers for a tile; "
                f"{self._backend}.winograd.batched computes them",
            )
        sm = int(target.features["sm"])
        if sm < 80 and shared_bytes(self._m) > (TURING_BYTES if sm >= 75 else planes.SHARED_BYTES):
            told = f"needs {shared_bytes(self._m) >> 10} KiB of shared memory, more than there is"
            return Refusal(Feature.OTHER, told)
        packed = prod(packed_shape(planes.plane(spec), self._m))
        return planes.refuse(spec, DTYPES, "the kernel indexes x as one run", packed)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p, m = planes.plane(spec), self._m
        shape, lines = SHAPES[m], m + TAPS - 1
        points = lines**2
        tile_blocks = -(-_tiles(spec, m) // shape.tiles)
        groups, blocks_k, steps, *_ = packed_shape(p, m)
        blocks = tile_blocks * groups * blocks_k
        products = 2.0 * blocks * steps * shape.channels * points * shape.tiles * OUTPUTS
        axis = winograd.transforms(m, TAPS)
        each = 2 * lines
        data = blocks * steps * shape.channels * shape.tiles * each * axis.data_program().flops
        back = blocks * OUTPUTS * shape.tiles * each * axis.output_program().flops
        columns = shape.tiles * m + (TAPS - 1) * (1 + shape.tiles // -(-p.out_width // m))
        packed = 4 * prod(packed_shape(p, m))
        itemsize = precision.numpy_dtype(spec.dtype).itemsize
        of_a_channel = itemsize * lines * columns + 4 * points * OUTPUTS
        loaded = blocks * steps * shape.channels * of_a_channel
        operands = itemsize * (prod(spec.x_shape) + prod(spec.y_shape))
        return Work(
            (
                Phase(
                    "products and transforms",
                    products + (data + back) / ADDITIONS,
                    f"{self._backend}.winograd.float32",
                    {"l2": float(loaded), "memory": float(operands)},
                    busy(blocks, Block(threads_of(m), shape.registers, shared_bytes(m)), target),
                ),
            ),
            Numerics("winograd", tile=(m, m), spreads_nonfinite=True),
            Phase("pack", bytes={"copy": 6.0 * packed}),
            launches=1,
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return [()]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return FusedWinograd(spec, self._cupy, self._m)


def _tiles(spec: ConvSpec, m: int) -> int:
    """Tiles of all images."""
    return spec.batch * prod(-(-n // m) for n in spec.out_size)


class FusedWinograd(planes.OnPlanes):
    """The executable; packed are the transformed weights, a step of a block in one piece."""

    def __init__(self, spec: ConvSpec, cupy: Any, m: int) -> None:
        super().__init__(spec, cupy)
        self._m = m
        macros = (f"-DM={m}", f"-DREAL={C_TYPES[spec.dtype]}")
        self._kernel = kernels.load(cupy, source(m), "winograd", macros)
        self._activation = planes.activation(spec)

    def pack(self, rhs: Array) -> Array:
        """Transformed weights, computed in float64."""
        p, cupy = self.plane, self.cupy
        g = cupy.asarray(np.array(winograd.transforms(self._m, TAPS).G, np.float64))
        points = planes.grouped_taps(self.spec, rhs).astype(np.float64)
        # Each product takes the first axis of the taps, and puts that of the points at the end.
        for _ in range(2):
            points = cupy.tensordot(points, g, ((3,), (1,)))
        groups, blocks, steps, count, channels, outputs = packed_shape(p, self._m)
        into = cupy.zeros((groups, blocks * outputs, steps * channels, count), np.float32)
        into[:, : p.outputs, : p.channels] = points.reshape(p.groups, p.outputs, p.channels, count)
        split = into.reshape(groups, blocks, outputs, steps, channels, count)
        arranged = cupy.ascontiguousarray(split.transpose(0, 1, 3, 5, 4, 2))
        return arranged.reshape(-1)

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        p, m = self.plane, self._m
        tiles_y, tiles_x = (-(-n // m) for n in (p.out_height, p.out_width))
        tiles = self.spec.batch * tiles_y * tiles_x
        groups, blocks_k, *_ = packed_shape(p, m)
        blocks = -(-tiles // SHAPES[m].tiles) * groups * blocks_k
        sizes = unsigned(
            tiles, p.channels, p.outputs, p.groups, p.height, p.width, p.out_height, p.out_width,
            tiles_y, tiles_x, *p.padding, blocks_k,
        )  # fmt: skip
        self._kernel(
            (blocks,), (threads_of(m),), (x, packed, bias, y, *sizes, *self._activation),
            shared_bytes=shared_bytes(m),
        )  # fmt: skip

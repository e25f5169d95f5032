"""Winograd F(2, 3), F(4, 3) and F(6, 3), fused: one kernel transforms, multiplies, transforms back.

A block owns some tiles of the image and 32 output channels.  Step by step it takes a few input
channels: their samples go through the data transform into shared memory, rows first, then columns;
the weights, transformed when they were packed, come beside them by asynchronous copies; each warp
multiplies four or two of the tile's points, with 64 sums a thread in registers.  At the end the
sums go through shared memory to the output transform, some outputs at a time (A. Lavin and S. Gray,
"Fast Algorithms for Convolutional Neural Networks", CVPR 2016, sec. 5, whose points are also those
of one block).  Nothing but x, the weights and y touches memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from convjit import planes
from convjit.algorithms import winograd
from convjit.algorithms.straightline import cuda_source
from convjit.planes import Plane, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_cupy import kernels

Array = Any

TAPS = 3
OUTPUTS = 32  # of a block
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
    """

    tiles: int
    channels: int
    warp_points: int
    lane_outputs: int
    lane_tiles: int
    pass_outputs: int
    blocks: int


SHAPES = {
    2: Shape(32, 4, 2, 8, 4, 2, 2),
    4: Shape(16, 4, 4, 4, 4, 1, 1),
    6: Shape(16, 4, 4, 4, 4, 1, 1),
}


def threads_of(m: int) -> int:
    return (m + TAPS - 1) ** 2 // SHAPES[m].warp_points * 32


def shared_bytes(m: int) -> int:
    """Of a block: one step's data and two steps' weights, or a pass of the output transform."""
    shape, points = SHAPES[m], (m + TAPS - 1) ** 2
    steps = points * shape.channels * (shape.tiles + 2 * OUTPUTS)
    passes = points * (shape.pass_outputs * OUTPUTS // shape.lane_outputs * shape.tiles + pad(m))
    return 4 * max(steps, passes)


def pad(m: int) -> int:
    """Numbers between the points of a pass: rows of outputs are written by lanes that read down
    their columns, which then lie in different banks."""
    return {2: 16, 4: 8, 6: 8}[m]


# M and what source() defines are macros.
SOURCE = r"""
typedef unsigned int u32;
constexpr int N = M + 2, POINTS = N * N, OUTPUTS = 32;
constexpr int THREADS = POINTS / WARP_POINTS * 32;
constexpr int LANES_X = TILES / LANE_TILES;      // lanes side by side over tiles, then over outputs
constexpr int LANES_Y = OUTPUTS / LANE_OUTPUTS;
static_assert(LANES_X * LANES_Y == 32 && LANE_TILES == 4, "a warp covers its points");
constexpr int DATA = CHANNELS * TILES;           // numbers of a point: data, weights, a pass
constexpr int WEIGHTS = CHANNELS * OUTPUTS;
constexpr int PASSED = PASS * LANES_Y * TILES;
constexpr int ROWS = DATA * N;                   // rows of all tiles of a step
constexpr int ROUNDS = (ROWS + THREADS - 1) / THREADS;

__device__ __forceinline__ void copy_128(float *to, const float *from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n"
                 ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from) : "memory");
#else
    *reinterpret_cast<float4 *>(to) = *reinterpret_cast<const float4 *>(from);
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
}
template <int COUNT> __device__ __forceinline__ void load_vector(float (&to)[COUNT],
                                                                 const float *from) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4)
        *reinterpret_cast<float4 *>(to + i) = *reinterpret_cast<const float4 *>(from + i);
}

extern "C" __global__ void __launch_bounds__(BOUNDS)
winograd(const float *__restrict__ x, const float *__restrict__ w, const float *__restrict__ bias,
         float *__restrict__ y, u32 tiles, u32 channels, u32 outputs, u32 groups, u32 height,
         u32 width, u32 out_height, u32 out_width, u32 tiles_y, u32 tiles_x, u32 pad_y, u32 pad_x,
         u32 blocks_k, float slope, float lowest, float highest) {
    extern __shared__ __align__(16) float shared[];
    float *const data = shared;
    float *weights = shared + POINTS * DATA;
    const u32 thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const u32 lane_x = lane % LANES_X, lane_y = lane / LANES_X;
    u32 block = blockIdx.x;
    const u32 block_k = block % blocks_k;
    block /= blocks_k;
    const u32 group = block % groups, first_tile = block / groups * TILES;
    const u32 steps = (channels + CHANNELS - 1) / CHANNELS;
    const float *from_w = w + (size_t)(group * blocks_k + block_k) * steps * (POINTS * WEIGHTS);

    // The rows of tiles that this thread reads in each step: where they begin in x, and at which
    // column; NOWHERE for those that lie outside the image.
    u32 at[ROUNDS], left[ROUNDS];
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
        const u32 row = thread + r * THREADS, tile = first_tile + row % TILES;
        const u32 n = tile / (tiles_y * tiles_x), rest = tile - n * (tiles_y * tiles_x);
        const u32 tile_y = rest / tiles_x, tile_x = rest - tile_y * tiles_x;
        const u32 top = tile_y * M - pad_y + row / DATA;
        const u32 channel = row / TILES % CHANNELS;
        left[r] = row < ROWS && tile < tiles && top < height ? tile_x * M - pad_x : NOWHERE;
        at[r] = (((n * groups + group) * channels + channel) * height + top) * width + left[r];
    }
    float next[ROUNDS][N];
    auto fetch = [&](u32 step) {
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const u32 channel = step * CHANNELS + (thread + r * THREADS) / TILES % CHANNELS;
            const bool exists = channel < channels;
#pragma unroll
            for (int j = 0; j < N; j++)
                next[r][j] = exists && left[r] + j < width ? x[at[r] + j] : 0.f;
            at[r] += CHANNELS * height * width;
        }
        float *to = weights + step % 2 * (POINTS * WEIGHTS);
        for (u32 i = thread * 4; i < POINTS * WEIGHTS; i += THREADS * 4)
            copy_128(to + i, from_w + i);
        from_w += POINTS * WEIGHTS;
    };

    float sums[WARP_POINTS][LANE_OUTPUTS][LANE_TILES] = {};
    fetch(0);
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        // Along the rows, out of registers.
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const u32 row = thread + r * THREADS;
            if (row < ROWS) {
                float across[N];
                data_transform(next[r], across);
#pragma unroll
                for (int j = 0; j < N; j++)
                    data[(row / DATA * N + j) * DATA + row % DATA] = across[j];
            }
        }
        wait_for_copies();
        __syncthreads();
        // Along the columns, in place.
        for (u32 column = thread; column < ROWS; column += THREADS) {
            float down[N], points[N];
            float *const from = data + column / DATA * DATA + column % DATA;
#pragma unroll
            for (int i = 0; i < N; i++) down[i] = from[i * N * DATA];
            data_transform(down, points);
#pragma unroll
            for (int i = 0; i < N; i++) from[i * N * DATA] = points[i];
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
        __syncthreads();
    }

    // PASS outputs of each lane at a time: their points to shared memory, transformed along the
    // rows in place, then along the columns into y.
    constexpr int POINT = PASSED + PAD;
#pragma unroll
    for (int first = 0; first < LANE_OUTPUTS; first += PASS) {
#pragma unroll
        for (int p = 0; p < WARP_POINTS; p++)
#pragma unroll
            for (int i = 0; i < PASS; i++) {
                const float *const s = sums[p][first + i];
                float *const to = shared + (warp * WARP_POINTS + p) * POINT
                                  + (i * LANES_Y + lane_y) * TILES + lane_x * LANE_TILES;
                *reinterpret_cast<float4 *>(to) = make_float4(s[0], s[1], s[2], s[3]);
            }
        __syncthreads();
        for (u32 row = thread; row < PASSED * N; row += THREADS) {
            float points[N], across[M];
            float *const from = shared + row / PASSED * N * POINT + row % PASSED;
#pragma unroll
            for (int j = 0; j < N; j++) points[j] = from[j * POINT];
            output_transform(points, across);
#pragma unroll
            for (int j = 0; j < M; j++) from[j * POINT] = across[j];
        }
        __syncthreads();
        for (u32 column = thread; column < PASSED * M; column += THREADS) {
            const u32 j = column % M, place = column / M;
            float points[N], down[M];
#pragma unroll
            for (int i = 0; i < N; i++) points[i] = shared[(i * N + j) * POINT + place];
            output_transform(points, down);
            const u32 own = place / TILES, tile = first_tile + place % TILES;
            const u32 k = block_k * OUTPUTS + own % LANES_Y * LANE_OUTPUTS + first + own / LANES_Y;
            const u32 n = tile / (tiles_y * tiles_x), rest = tile - n * (tiles_y * tiles_x);
            const u32 tile_y = rest / tiles_x, column_x = (rest - tile_y * tiles_x) * M + j;
            if (tile < tiles && k < outputs && column_x < out_width) {
                const float added = bias[group * outputs + k];
                const u32 plane = (n * groups + group) * outputs + k;
#pragma unroll
                for (int i = 0; i < M; i++) {
                    const u32 row_y = tile_y * M + i;
                    if (row_y < out_height) {
                        y[(plane * out_height + row_y) * out_width + column_x]
                            = finish(down[i] + added, slope, lowest, highest);
                    }
                }
            }
        }
        __syncthreads();
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
        "PASS": shape.pass_outputs, "PAD": pad(m),
        # A bound of one block is not said: the compiler spills less without.
        "BOUNDS": "THREADS" if shape.blocks == 1 else f"THREADS, {shape.blocks}",
        "NOWHERE": f"{planes.NOWHERE}u",
    }  # fmt: skip
    return (
        "".join(f"#define {name} {value}\n" for name, value in macros.items())
        + cuda_source(axis.data_program(), "data_transform")
        + cuda_source(axis.output_program(), "output_transform")
        + kernels.ACTIVATION
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
        if set(spec.kernel_size) != {TAPS} or spec.ndim != 2:
            taps = "x".join(map(str, spec.kernel_size))
            return Refusal(
                Feature.SIZE,
                f"the fused kernel takes {TAPS}x{TAPS} taps, not {taps}; {self._backend}"
                f".winograd.batched has an axis with one tap, too",
            )
        if set(spec.stride) != {1}:
            return Refusal(Feature.STRIDE, f"winograd needs stride 1, got {spec.stride}")
        if set(spec.dilation) != {1}:
            return Refusal(Feature.DILATION, f"winograd needs dilation 1, got {spec.dilation}")
        if spec.dtype == "float64":
            return Refusal(
                Feature.OTHER,
                "64 sums of float64 a thread leave no registers for a tile; "
                f"{self._backend}.winograd.batched computes them",
            )
        if shared_bytes(self._m) > planes.SHARED_BYTES and int(target.features["sm"]) < 80:
            told = f"needs {shared_bytes(self._m) >> 10} KiB of shared memory, more than there is"
            return Refusal(Feature.OTHER, told)
        packed = prod(packed_shape(planes.plane(spec), self._m))
        return planes.refuse(spec, ("float32",), "the kernel indexes x as one run", packed)

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        p, m = planes.plane(spec), self._m
        shape, points = SHAPES[m], (m + TAPS - 1) ** 2
        tile_blocks = -(-_tiles(spec, m) // shape.tiles)
        groups, blocks_k, steps, *_ = packed_shape(p, m)
        blocks = tile_blocks * groups * blocks_k
        products = 2.0 * blocks * steps * shape.channels * points * shape.tiles * OUTPUTS
        axis = winograd.transforms(m, TAPS)
        each = 2 * (m + TAPS - 1)
        data = blocks * steps * shape.channels * shape.tiles * each * axis.data_program().flops
        back = blocks * OUTPUTS * shape.tiles * each * axis.output_program().flops
        read = blocks * steps * shape.channels * points * (shape.tiles + OUTPUTS)
        packed = 4 * prod(packed_shape(p, m))
        operands = 4 * (prod(spec.x_shape) + prod(spec.y_shape))
        return Work(
            (
                Phase(
                    "products and transforms",
                    products + (data + back) / ADDITIONS,
                    f"{self._backend}.winograd.float32",
                    {"l2": 4.0 * read, "memory": float(operands)},
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
        self._kernel = kernels.load(cupy, source(m), "winograd", (f"-DM={m}",))
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
        into = cupy.zeros((groups, blocks * outputs, steps * channels, count), self._kind)
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

"""Implicit GEMM: outputs (K) by positions (batch and pixels), summed over channels and taps.

The columns are never built: each thread gathers one position's samples, by a table with the offset
of every depth (channel and tap), and knows by one bit for each tap, or by a row and a column where
there are many, whether the tap meets the image.  Weights and samples of the next step come into
shared memory by asynchronous copies, which write zeros for what lies outside, while each thread
multiplies 8 x 8 sums of this one; results leave through shared memory, so that neighbours are
written together (S. Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014, sec. 3;
the tiling is that of V. Volkov and J. Demmel, "Benchmarking GPUs to Tune Dense Linear Algebra", SC
2008).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from convjit import panels, planes, precision
from convjit.panels import DEPTH
from convjit.planes import NOWHERE, Plane, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_cupy import kernels

Array = Any

REALS = {"float32": "float", "float64": "double"}
SUMS = 8  # of a thread, along outputs and along positions

# (outputs, positions) of a tile, the largest first.
TILES = {"float32": ((128, 128), (64, 64)), "float64": ((128, 64), (64, 64))}

BITS = 32  # taps of which one word says whether they meet the image

# REAL, TILE_K, TILE_P and MASKED are macros.
SOURCE = (
    f"#define DEPTH {DEPTH}\n#define PANEL {panels.PANEL}\n#define NOWHERE {NOWHERE}u\n"
    + r"""
typedef unsigned int u32;
#if MASKED
typedef uint2 Entry;  // of the table: an offset, the tap's bit
#else
typedef uint4 Entry;  // an offset, a row, a column
#endif
constexpr int THREADS = TILE_K * TILE_P / 64;
constexpr int VECTOR = 16 / sizeof(REAL);        // numbers of a load of 128 bits
constexpr int THREADS_X = TILE_P / 8, THREADS_Y = TILE_K / 8;
constexpr int ROWS_AT_ONCE = THREADS / TILE_P;   // depths whose samples are gathered together
constexpr int SAMPLES = DEPTH / ROWS_AT_ONCE;    // of a thread, in a step
constexpr int ROWS_COPIED = THREADS * VECTOR / PANEL;  // of panels, together
constexpr int COPIES = DEPTH * TILE_K / VECTOR / THREADS;
constexpr int STAGE = DEPTH * (TILE_K + TILE_P);
struct alignas(16) Vector { REAL of[VECTOR]; };

extern __shared__ __align__(16) char shared[];

// One number, or zero, to a place in shared memory.  What does not exist is not read.
__device__ __forceinline__ void copy_number(u32 to, const REAL *from, bool exists) {
#if __CUDA_ARCH__ >= 800
    asm volatile("{ .reg .pred p; setp.eq.u32 p, %2, 0;\n"
                 "cp.async.ca.shared.global [%0], [%1], %3, p; }\n"
                 ::"r"(to), "l"(from), "r"((u32)exists), "n"(sizeof(REAL)) : "memory");
#else
    *static_cast<REAL *>(__cvta_shared_to_generic(to)) = exists ? *from : REAL(0);
#endif
}
__device__ __forceinline__ void copy_vector(u32 to, const REAL *from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(from) : "memory");
#else
    *static_cast<float4 *>(__cvta_shared_to_generic(to)) = *reinterpret_cast<const float4 *>(from);
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
}
// from + count, in one instruction, which the compiler does not always find.
__device__ __forceinline__ const REAL *beyond(const REAL *from, u32 count) {
    const REAL *to;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(to) : "r"(count), "n"(sizeof(REAL)), "l"(from));
    return to;
}
// Eight numbers, a vector of each of the chunks that the threads of a row or column share.
template <int APART> __device__ __forceinline__ void load(REAL (&to)[8], const REAL *from) {
#pragma unroll
    for (int i = 0; i < 8; i += VECTOR) {
        const Vector vector = *reinterpret_cast<const Vector *>(from + i / VECTOR * APART);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) to[i + j] = vector.of[j];
    }
}
__device__ __forceinline__ void multiply(REAL (&sums)[8][8], const REAL *a, const REAL *b) {
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
        REAL weights[8], samples[8];
        load<THREADS_Y * VECTOR>(weights, a + d * TILE_K);
        load<THREADS_X * VECTOR>(samples, b + d * TILE_P);
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) sums[i][j] = fma(weights[i], samples[j], sums[i][j]);
    }
}

// A block of 64 threads gathers most for each: so few blocks leave it enough registers.
#if TILE_P == 64
#define BOUNDS THREADS, (sizeof(REAL) == 4 ? 6 : 1)
#else
#define BOUNDS THREADS
#endif

extern "C" __global__ void __launch_bounds__(BOUNDS)
implicit_gemm(const REAL *__restrict__ x, const REAL *__restrict__ w,
              const Entry *__restrict__ table, const REAL *__restrict__ bias, REAL *__restrict__ y,
              u32 positions, u32 steps, u32 outputs, u32 panels, u32 groups, u32 image, u32 height,
              u32 width, u32 pixels, u32 out_width, u32 rows, u32 columns, u32 stride_y,
              u32 stride_x, u32 pad_y, u32 pad_x, u32 dilation_y, u32 dilation_x, u32 tiles_p,
              u32 tiles_k, REAL slope, REAL lowest, REAL highest) {
    const u32 thread = threadIdx.x;
    u32 block = blockIdx.x;
    const u32 tile_k = block % tiles_k;  // blocks beside each other read the same samples
    block /= tiles_k;
    const u32 tile_p = block % tiles_p, group = block / tiles_p;

    // The position whose samples this thread gathers, and whose results it writes.
    const u32 column = thread % TILE_P, first = thread / TILE_P;
    const u32 position = tile_p * TILE_P + column;
    const u32 n = position / pixels, pixel = position - n * pixels;
    const u32 row = pixel / out_width;
    const u32 top = row * stride_y - pad_y, left = (pixel - row * out_width) * stride_x - pad_x;
    // Where its first tap is, before x begins if that lies in the padding.
    const REAL *const corner
        = x + (long long)(int)((n * groups + group) * image + top * width + left);
#if MASKED
    u32 met = 0;
    if (position < positions)
        for (u32 r = 0, bit = 1; r < rows; r++)
            for (u32 s = 0; s < columns; s++, bit <<= 1)
                if (top + r * dilation_y < height && left + s * dilation_x < width) met |= bit;
#else
    const u32 upper = position < positions ? top : NOWHERE;
#endif
    // The weights that it copies: from a row of a panel on, and from those ROWS_COPIED below.
    const u32 copied = thread * VECTOR % PANEL, panel_row = thread * VECTOR / PANEL;
    const u32 panel = panel_row / DEPTH, depth = panel_row % DEPTH;
    const size_t panel_size = (size_t)steps * DEPTH * PANEL;
    const REAL *from_w = w + (group * panels + tile_k * (TILE_K / PANEL) + panel) * panel_size
                         + depth * PANEL + copied;
    const Entry *entry = table + first;
    const u32 base = (u32)__cvta_generic_to_shared(shared);
    const u32 to_weights = base + (depth * TILE_K + panel * PANEL + copied) * sizeof(REAL);
    const u32 to_samples
        = base + (DEPTH * TILE_K + first * TILE_P + column) * sizeof(REAL);

    auto fetch = [&](u32 stage) {
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            const int down = i * ROWS_COPIED % DEPTH, right = i * ROWS_COPIED / DEPTH;
            copy_vector(to_weights + (stage * STAGE + down * TILE_K + right * PANEL) * sizeof(REAL),
                        from_w + right * panel_size + down * PANEL);
        }
#pragma unroll
        for (int i = 0; i < SAMPLES; i++) {
            const Entry tap = entry[i * ROWS_AT_ONCE];
#if MASKED
            const bool exists = met & tap.y;
#else
            const bool exists = upper + tap.y < height && left + tap.z < width;
#endif
            copy_number(to_samples + (stage * STAGE + i * ROWS_AT_ONCE * TILE_P) * sizeof(REAL),
                        beyond(corner, tap.x), exists);
        }
        from_w += DEPTH * PANEL;
        entry += DEPTH;
    };

    const u32 thread_x = thread % THREADS_X, thread_y = thread / THREADS_X;
    REAL *const numbers = reinterpret_cast<REAL *>(shared);
    const REAL *const a = numbers + thread_y * VECTOR;
    const REAL *const b = numbers + DEPTH * TILE_K + thread_x * VECTOR;
    REAL sums[8][8] = {};
    fetch(0);
    // Two steps at a time, so that the addresses of both stages are constants.
    u32 left_over = steps;
#pragma unroll 1
    while (true) {
#pragma unroll
        for (int stage = 0; stage < 2; stage++) {
            wait_for_copies();
            __syncthreads();
            left_over--;
            if (left_over) fetch(1 - stage);
            multiply(sums, a + stage * STAGE, b + stage * STAGE);
            if (left_over == 0) goto done;
        }
    }
done:

    // Output i of every thread at a time, a row of positions for each row of threads.
    const size_t place = (size_t)(n * groups + group) * outputs * pixels + pixel;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 8; j += VECTOR) {
            Vector vector;
#pragma unroll
            for (int v = 0; v < VECTOR; v++) vector.of[v] = sums[i][j + v];
            *reinterpret_cast<Vector *>(numbers + thread_y * TILE_P
                                        + (j / VECTOR * THREADS_X + thread_x) * VECTOR) = vector;
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < THREADS_Y; r += ROWS_AT_ONCE) {
            const u32 k = tile_k * TILE_K + i / VECTOR * (THREADS_Y * VECTOR)
                          + (r + first) * VECTOR + i % VECTOR;
            if (position < positions && k < outputs) {
                REAL value = numbers[(r + first) * TILE_P + column] + bias[group * outputs + k];
                if (value < REAL(0)) value *= slope;
                if (value < lowest) value = lowest;
                if (value > highest) value = highest;
                y[place + (size_t)k * pixels] = value;
            }
        }
    }
}
"""
)


def shared_bytes(dtype: str, tile: tuple[int, int]) -> int:
    """Of a block: two steps of weights and samples."""
    return 2 * DEPTH * sum(tile) * precision.numpy_dtype(dtype).itemsize


def options(dtype: str, tile: tuple[int, int], masked: bool) -> tuple[str, ...]:
    """The macros of a dtype and a tile of (outputs, positions)."""
    return (
        f"-DREAL={REALS[dtype]}", f"-DTILE_K={tile[0]}", f"-DTILE_P={tile[1]}",
        f"-DMASKED={int(masked)}",
    )  # fmt: skip


def masked(p: Plane) -> bool:
    """Whether one word has a bit for every tap."""
    return p.taps <= BITS


def depth_table(p: Plane) -> Array:
    """Of every depth the offset, and the tap's bit, or its row and column (and a number unused)."""
    table = planes.depth_table(p, DEPTH)
    if not masked(p):
        return np.pad(table, ((0, 0), (0, 1)))
    # What fills up the last step meets nothing.
    bits = np.zeros(len(table), np.uint32)
    each = np.uint32(1) << np.arange(p.taps, dtype=np.uint32)
    bits[: p.channels * p.taps] = np.tile(each, p.channels)
    return np.stack([table[:, 0], bits], axis=1)


class ImplicitGemmSolver:
    """``cupy.implicit_gemm``."""

    algorithm = "gemm"

    def __init__(self, backend: str, cupy: Any) -> None:
        self.id = f"{backend}.implicit_gemm"
        self._cupy = cupy

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if refusal := planes.refuse(spec, tuple(REALS), "the kernel indexes x as one run"):
            return refusal
        p = planes.plane(spec)
        if p.height > NOWHERE // 2:
            return Refusal(Feature.SIZE, f"an image of {p.height} rows is too high for the table")
        return planes.refuse_size(panels.packed_elements(p))

    def _counts(self, spec: ConvSpec, tile: tuple[int, int]) -> tuple[int, int]:
        """Tiles of outputs and of positions."""
        p = planes.plane(spec)
        return -(-p.outputs // tile[0]), -(-spec.batch * p.pixels // tile[1])

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        outputs, positions = self._best(spec, target)
        p = planes.plane(spec)
        size = precision.numpy_dtype(spec.dtype).itemsize
        blocks = p.groups * prod(self._counts(spec, (outputs, positions)))
        depth = panels.padded(p.channels * p.taps, DEPTH)
        packed = size * panels.packed_elements(p)
        multiply = Phase(
            "gemm",
            2.0 * blocks * outputs * positions * depth,
            f"{self.id}.{spec.dtype}",
            # Each block reads its weights and samples for itself.
            {
                "l2": float(size * blocks * depth * (outputs + positions)),
                "memory": float(size * (prod(spec.x_shape) + prod(spec.y_shape))),
            },
        )
        return Work(
            (multiply,),
            Numerics("gemm"),
            Phase("pack", bytes={"copy": 4.0 * packed}),
            launches=1,
            packed_bytes=packed,
        )

    def _best(self, spec: ConvSpec, target: Target) -> tuple[int, int]:
        """The largest tile of which every multiprocessor gets two blocks, else the smallest."""
        tiles, groups = TILES[spec.dtype], planes.plane(spec).groups
        blocks = {tile: groups * prod(self._counts(spec, tile)) for tile in tiles}
        return next((t for t in tiles if blocks[t] >= 2 * target.cores), tiles[-1])

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        best = self._best(spec, target)
        others = (t for t in TILES[spec.dtype] if t != best)
        return [(("tile_k", k), ("tile_p", p)) for k, p in (best, *others)]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        sizes = dict(config)
        return ImplicitGemm(spec, self._cupy, (sizes["tile_k"], sizes["tile_p"]))


class ImplicitGemm(planes.OnPlanes):
    """The executable; packed are the weights and the table of depths."""

    def __init__(self, spec: ConvSpec, cupy: Any, tile: tuple[int, int]) -> None:
        super().__init__(spec, cupy)
        p = self.plane
        macros = options(spec.dtype, tile, masked(p))
        self._kernel = kernels.load(cupy, SOURCE, "implicit_gemm", macros)
        self._threads = prod(tile) // SUMS**2
        self._shared_bytes = shared_bytes(spec.dtype, tile)
        positions = spec.batch * p.pixels
        tiles_k, tiles_p = -(-p.outputs // tile[0]), -(-positions // tile[1])
        self._blocks = tiles_k * tiles_p * p.groups
        _, count, depths, _ = panels.packed_shape(p.groups, p.outputs, p.channels * p.taps)
        self._arguments = (
            *unsigned(
                positions, depths // DEPTH, p.outputs, count, p.groups,
                p.channels * p.height * p.width, p.height, p.width, p.pixels, p.out_width, p.rows,
                p.columns, *p.stride, *p.padding, *p.dilation, tiles_p, tiles_k,
            ),
            *planes.activation(spec),
        )  # fmt: skip

    def pack(self, rhs: Array) -> tuple[Array, Array]:
        p = self.plane
        taps = planes.grouped_taps(self.spec, rhs).reshape(p.groups, p.outputs, -1)
        return panels.arranged(self.cupy, taps), self.cupy.asarray(depth_table(p).reshape(-1))

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        weights, table = packed
        arguments = (x, weights, table, bias, y, *self._arguments)
        self._kernel((self._blocks,), (self._threads,), arguments, shared_bytes=self._shared_bytes)

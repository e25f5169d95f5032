"""Implicit GEMM in CUDA C++: outputs by positions (of all images), summed over channels and taps.

The columns are never built: copies to shared memory gather them.  A table has, for every depth
(channel and tap), the offset of its sample from a position's first one, and the bits that say along
which axes it could lie outside; each position has a mask of the bits of which it does.  So a copy
costs one ``and``, which fills with zeros where it is not zero, and no division.

Copies of one step run while the step before is multiplied, asynchronously on compute capability 8.0
and later.  A thread has 8 x 8 sums, a warp 32 outputs by 64 positions: its lanes read eight
neighbouring vectors of samples and share the weights, which no bank is asked for twice (S. Chetlur
et al., "cuDNN: Efficient Primitives for Deep Learning", 2014, sec. 3; V. Volkov and J. Demmel,
"Benchmarking GPUs to Tune Dense Linear Algebra", SC 2008).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from convjit import planes, precision
from convjit.planes import LANES, OnPlanes, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Numerics, Phase, Refusal, Target, Work
from convjit_cupy.axes import MOST_BITS, axes_of, offsets_and_bits, refuse_bits
from convjit_cupy.kernels import ACTIVATION, load

Array = Any

REALS = {"float32": "float", "float64": "double"}
WIDE = 16  # bytes of the widest copy
EACH_K, EACH_P = 32, 64  # outputs and positions of a warp

# Warps of a block by (outputs, positions), largest first, and depths of a step.
TILES = {"float32": ((4, 2), (2, 1)), "float64": ((4, 1), (2, 1))}
DEPTH = 16

# Bits of a depth: a real one's, one beyond the last; those below are of taps.
EXISTS, NOWHERE = 1 << MOST_BITS, 1 << (MOST_BITS + 1)

SOURCE = (
    ACTIVATION
    + r"""
using Real = REAL;

constexpr unsigned VECTOR = 16 / sizeof(Real);  // of the widest copy
constexpr unsigned GROUPS = 8 / VECTOR;         // vectors of a thread's positions
constexpr unsigned THREADS = 32 * WARPS_K * WARPS_P;
constexpr unsigned TILE_K = 32 * WARPS_K, TILE_P = 64 * WARPS_P;
constexpr unsigned STAGE = DEPTH * (TILE_K + TILE_P);
constexpr unsigned PIECES = TILE_P / PIECE;         // of the positions of a tile
constexpr unsigned AT_ONCE = THREADS / PIECES;      // depths that the block copies at once
constexpr unsigned OWN = DEPTH / AT_ONCE;           // neighbouring depths of a thread
constexpr unsigned WEIGHTS = DEPTH * TILE_K / VECTOR / THREADS;

struct alignas(16) Vector { Real at[VECTOR]; };

// Zeros where `given` is 0, and then nothing is read.
template <unsigned BYTES>
__device__ __forceinline__ void copy(Real *to, const Real *from, unsigned given) {
#if __CUDA_ARCH__ >= 800
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :: "r"(at), "l"(from), "r"(given) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     :: "r"(at), "l"(from), "n"(BYTES), "r"(given) : "memory");
#else
    for (unsigned i = 0; i < BYTES / sizeof(Real); i++) to[i] = given ? from[i] : Real(0);
#endif
}

__device__ __forceinline__ void arrived() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    __syncthreads();
}

struct Axis { unsigned bits, size, out, stride, pad, dilation; };

// The bits of the taps that lie outside for an output's place on an axis.
__device__ __forceinline__ unsigned outside(const Axis axis, unsigned place, unsigned first) {
    unsigned mask = 0;
#pragma unroll 1
    for (unsigned tap = 0; tap < axis.bits; tap++)
        if (place * axis.stride - axis.pad + tap * axis.dilation >= axis.size)
            mask |= 1u << (first + tap);
    return mask;
}

#define AXIS(z) unsigned bits_##z, unsigned size_##z, unsigned out_##z, unsigned stride_##z, \
                unsigned pad_##z, unsigned dilation_##z
#define OF(z) {bits_##z, size_##z, out_##z, stride_##z, pad_##z, dilation_##z}

extern "C" __global__ void __launch_bounds__(THREADS) implicit_gemm(
    const Real *__restrict__ x, const Real *__restrict__ w, const uint4 *__restrict__ table,
    const Real *__restrict__ bias, Real *__restrict__ y, unsigned positions, unsigned steps,
    unsigned outputs, unsigned groups, unsigned image, unsigned pixels, unsigned tiles_p,
    unsigned tiles_k, AXIS(z), AXIS(y), AXIS(x), Real slope, Real lowest, Real highest
) {
    __shared__ __align__(16) Real memory[2 * STAGE];  // of a stage: weights, samples
    const unsigned thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    unsigned block = blockIdx.x;
    const unsigned first_p = block % tiles_p * TILE_P;
    block /= tiles_p;
    const unsigned tile_k = block % tiles_k, group = block / tiles_k;

    // What this thread copies: weights one after the other, samples of one position (of several
    // neighbours where PIECE is more than 1).
    const Real *weight = w + size_t(group * tiles_k + tile_k) * steps * DEPTH * TILE_K
                           + thread * VECTOR;
    const unsigned column = thread % PIECES * PIECE, row = thread / PIECES * OWN;
    const uint4 *entry = table + row / 2;  // of two depths each
    unsigned mask = 0xffffffffu;
    const Real *corner = x;
    if (first_p + column < positions) {
        const Axis axes[3] = {OF(z), OF(y), OF(x)};
        const unsigned n = (first_p + column) / pixels;
        unsigned pixel = (first_p + column) % pixels;
        const unsigned at_x = pixel % out_x;
        pixel /= out_x;
        const unsigned at_y = pixel % out_y, at_z = pixel / out_y;
        mask = 1u << 31 | outside(axes[0], at_z, 0) | outside(axes[1], at_y, bits_z)
             | outside(axes[2], at_x, bits_z + bits_y);
        corner += int((n * groups + group) * image
                      + ((at_z * stride_z - pad_z) * size_y + at_y * stride_y - pad_y) * size_x
                      + at_x * stride_x - pad_x);
    }
    auto fetch = [&](unsigned stage) {
        Real *const to = memory + stage + thread * VECTOR;
#pragma unroll
        for (unsigned i = 0; i < WEIGHTS; i++)
            copy<16>(to + i * THREADS * VECTOR, weight + i * THREADS * VECTOR, 16);
        Real *const samples = memory + stage + DEPTH * TILE_K + row * TILE_P + column;
#pragma unroll
        for (unsigned i = 0; i < OWN; i += 2) {
            const uint4 two = entry[i / 2];
            constexpr unsigned BYTES = PIECE * sizeof(Real);
            Real *const place = samples + i * TILE_P;
            copy<BYTES>(place, corner + int(two.x), mask & two.y ? 0 : BYTES);
            copy<BYTES>(place + TILE_P, corner + int(two.z), mask & two.w ? 0 : BYTES);
        }
        weight += DEPTH * TILE_K;
        entry += DEPTH / 2;
    };

    Real sums[8][8];
#pragma unroll
    for (unsigned i = 0; i < 8; i++)
#pragma unroll
        for (unsigned j = 0; j < 8; j++) sums[i][j] = 0;
    const unsigned own_k = warp / WARPS_P * 32 + lane / 8 * 8;
    const unsigned own_p = warp % WARPS_P * 64 + lane % 8 * VECTOR;
    unsigned stage = 0;
    fetch(0);
#pragma unroll 1
    for (unsigned step = 1; step <= steps; step++) {
        arrived();  // also: the stage that is filled next has been read by all
        if (step < steps) fetch(STAGE - stage);
        const Real *const weights = memory + stage + own_k;
        const Real *const samples = memory + stage + DEPTH * TILE_K + own_p;
#pragma unroll
        for (unsigned depth = 0; depth < DEPTH; depth++) {
            Vector a[GROUPS], b[GROUPS];
#pragma unroll
            for (unsigned g = 0; g < GROUPS; g++) {
                a[g] = *reinterpret_cast<const Vector *>(weights + depth * TILE_K + g * VECTOR);
                b[g] = *reinterpret_cast<const Vector *>(samples + depth * TILE_P + g * 8 * VECTOR);
            }
#pragma unroll
            for (unsigned i = 0; i < 8; i++)
#pragma unroll
                for (unsigned j = 0; j < 8; j++)
                    sums[i][j] += a[i / VECTOR].at[i % VECTOR] * b[j / VECTOR].at[j % VECTOR];
        }
        stage = STAGE - stage;
    }

    // Vectors of results lie in one plane where planes are whole vectors.
    const bool wide = pixels % VECTOR == 0 && reinterpret_cast<size_t>(y) % 16 == 0;
#pragma unroll
    for (unsigned i = 0; i < 8; i++) {
        const unsigned k = tile_k * TILE_K + own_k + i;
        if (k >= outputs) break;
        const Real added = bias[group * outputs + k];
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++) {
            Vector results;
#pragma unroll
            for (unsigned e = 0; e < VECTOR; e++) {
                const Real value = sums[i][g * VECTOR + e] + added;
                results.at[e] = finish(value, slope, lowest, highest);
            }
            const unsigned p = first_p + own_p + g * 8 * VECTOR;
            if (wide && p < positions) {
                const size_t plane = p / pixels * groups + group;
                *reinterpret_cast<Vector *>(y + (plane * outputs + k) * pixels + p % pixels) =
                    results;
            }
            if (!wide)
#pragma unroll
                for (unsigned e = 0; e < VECTOR; e++)
                    if (p + e < positions) {
                        const size_t plane = (p + e) / pixels * groups + group;
                        y[(plane * outputs + k) * pixels + (p + e) % pixels] = results.at[e];
                    }
        }
    }
}
"""
)


def _depths(spec: ConvSpec) -> int:
    """Channels times taps, filled up to whole steps."""
    return -(-(spec.in_channels // spec.groups) * prod(spec.kernel_size) // DEPTH) * DEPTH


def depth_table(spec: ConvSpec) -> Array:
    """Of each depth its offset, and the bits that no position may have that is to read it.

    Offsets wrap at 2^32; one that is read lies in x.

    Returns
    -------
    array of uint32, (depths, 2)
    """
    z, y, x = axes_of(spec)
    channels = spec.in_channels // spec.groups
    index = np.indices((channels, z.taps, y.taps, x.taps)).reshape(4, -1)
    strides = (z.size * y.size * x.size, y.size * x.size, x.size, 1)
    table = np.full((_depths(spec), 2), NOWHERE, np.uint32)
    offset, bits = offsets_and_bits((z, y, x), tuple(index[1:]), strides[1:])
    table[: offset.size, 0] = offset + index[0] * strides[0] & 0xFFFFFFFF
    table[: offset.size, 1] = bits | EXISTS
    return table


@dataclass(frozen=True, slots=True)
class Tiling:
    """A problem in tiles of (outputs, positions)."""

    outputs: int
    positions: int
    tiles_k: int
    tiles_p: int
    blocks: int


def tiling(spec: ConvSpec, warps: tuple[int, int]) -> Tiling:
    """The tiles of a problem for blocks of so many warps."""
    outputs, positions = warps[0] * EACH_K, warps[1] * EACH_P
    tiles_k = -(-spec.out_channels // spec.groups // outputs)
    tiles_p = -(-spec.batch * prod(spec.out_size) // positions)
    return Tiling(outputs, positions, tiles_k, tiles_p, spec.groups * tiles_k * tiles_p)


def _packed_elements(spec: ConvSpec, tile: Tiling) -> int:
    return spec.groups * tile.tiles_k * _depths(spec) * tile.outputs


def _warps(config: Config) -> tuple[int, int]:
    chosen = dict(config)
    return chosen["warps_k"], chosen["warps_p"]


class ImplicitGemmSolver:
    """``cupy.implicit_gemm``."""

    algorithm = "gemm"

    def __init__(self, backend: str, cupy: Any) -> None:
        self.id = f"{backend}.implicit_gemm"
        self._cupy = cupy

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        strided = "the kernel indexes x as one run of memory"
        if (refusal := planes.refuse(spec, tuple(REALS), strided, axes=3)) is not None:
            return refusal
        if (refusal := refuse_bits(spec)) is not None:
            return refusal
        tiles = (tiling(spec, warps) for warps in TILES[spec.dtype])
        return planes.refuse_size(max(_packed_elements(spec, tile) for tile in tiles))

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        tile = tiling(spec, _warps(next(iter(self.configs(spec, target)))))
        size = precision.numpy_dtype(spec.dtype).itemsize
        columns = float(tile.blocks * _depths(spec))
        packed = size * _packed_elements(spec, tile)
        multiply = Phase(
            "gemm",
            2.0 * columns * tile.outputs * tile.positions,
            f"{self.id}.{spec.dtype}",
            # A block reads weights and samples once; most of them lie in the cache.
            {
                "l2": columns * size * (tile.outputs + tile.positions),
                "memory": float(size * (prod(spec.x_shape) + prod(spec.y_shape))),
            },
        )
        return Work(
            (multiply,),
            Numerics("gemm"),
            Phase("pack", bytes={"memory": 4.0 * packed}),
            launches=1,
            packed_bytes=packed + 8 * _depths(spec),
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        kinds = TILES[spec.dtype]
        # The largest tile of which every multiprocessor gets two blocks, else the smallest.
        enough = (t for t in kinds if tiling(spec, t).blocks >= 2 * target.cores)
        best = next(enough, kinds[-1])
        ordered = (best, *(t for t in kinds if t != best))
        return [(("warps_k", k), ("warps_p", p)) for k, p in ordered]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return ImplicitGemm(spec, self._cupy, _warps(config))


class ImplicitGemm(OnPlanes):
    """The executable; packed are the weights, tile by tile and depth by depth, and the table."""

    def __init__(self, spec: ConvSpec, cupy: Any, warps: tuple[int, int]) -> None:
        super().__init__(spec, cupy)
        self._warps = warps
        self._tile = tile = tiling(spec, warps)
        axes = axes_of(spec)
        pixels = prod(spec.out_size)
        self._arguments = (
            *unsigned(
                spec.batch * pixels, _depths(spec) // DEPTH, self.plane.outputs, spec.groups,
                self.plane.channels * prod(spec.in_size), pixels, tile.tiles_p, tile.tiles_k,
            ),
            *unsigned(*(number for axis in axes for number in axis.numbers)),
            *planes.activation(spec),
        )  # fmt: skip
        # Where the positions of an image are its samples, neighbours are copied together.
        self._vector = WIDE // self._kind.itemsize
        one_tap = all(a.taps == a.stride == 1 and a.size == a.out for a in axes)
        self._neighbours = one_tap and pixels % self._vector == 0

    def pack(self, rhs: Array) -> tuple[Array, Array]:
        p, tile = self.plane, self._tile
        taps = planes.grouped_taps(self.spec, rhs).reshape(p.groups, p.outputs, -1)
        depths = _depths(self.spec)
        filled = self.cupy.zeros((p.groups, tile.tiles_k * tile.outputs, depths), self._kind)
        filled[:, : p.outputs, : taps.shape[2]] = taps
        tiles = filled.reshape(p.groups, tile.tiles_k, tile.outputs, depths).transpose(0, 1, 3, 2)
        table = self.cupy.asarray(depth_table(self.spec).reshape(-1))
        into = self.cupy.empty(tiles.shape, self._kind)
        into[...] = tiles
        return into.reshape(-1), table

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        # An array of another library's may begin anywhere.
        aligned = int(getattr(x.data, "ptr", 0)) % WIDE == 0
        macros = {
            "REAL": REALS[self.spec.dtype], "WARPS_K": self._warps[0], "WARPS_P": self._warps[1],
            "DEPTH": DEPTH, "PIECE": self._vector if self._neighbours and aligned else 1,
        }  # fmt: skip
        options = tuple(f"-D{name}={value}" for name, value in macros.items())
        kernel = load(self.cupy, SOURCE, "implicit_gemm", options)
        weights, table = packed
        kernel(
            (self._tile.blocks,), (prod(self._warps) * LANES,),
            (x, weights, table, bias, y, *self._arguments),
        )  # fmt: skip

"""Implicit GEMM in CUDA C++: outputs by positions (of all images), summed over channels and taps.

The columns are never built: copies to shared memory gather them.  A table has, for every depth
(channel and tap), the offset of its sample from a position's first one, and the bits that say along
which axes it could lie outside; each position has a mask of the bits of which it does.  So a copy
costs one ``and``, which fills with zeros where it is not zero, and no division.

Where tiles are too few for the GPU, the depth is divided over blocks too (:mod:`.split`).

Copies of one step run while the step before is multiplied, asynchronously on compute capability 8.0
and later.  A thread has 64 sums, a warp 32 outputs by 64 positions.  Where it multiplies and adds,
they are 8 x 8: its lanes read eight neighbouring vectors of samples and share the weights, which no
bank is asked for twice (S. Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014,
sec. 3; V. Volkov and J. Demmel, "Benchmarking GPUs to Tune Dense Linear Algebra", SC 2008).

In double precision that takes eight loads for 64 multiply-adds; so from compute capability 8.0 on,
tensor cores multiply matrices of 8 x 4 by 4 x 8, or from 9.0 on of 16 x 4 (PTX ISA, "Matrix
Fragments for mma.m8n8k4 with .f64 floating point type"), in the same tiles, and rounded as
multiply-adds are.  Chips with two units of double precision a multiprocessor (8.6, 8.9, 12.0) are
bound by those either way: a product, of 256 multiply-adds, keeps a scheduler's half a unit busy
for 512 cycles.  For 12.0 the assembler fills them with NOPs, 38 a product, so that products are
2.5 % of the hottest loop's instructions, and 59 % of those that are no NOP; to each multiply-add of
32 lanes it adds 4, which would be 19 %.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from convjit import cost, planes, precision
from convjit.algorithms.workspace import carve
from convjit.occupancy import Block
from convjit.planes import LANES, OnPlanes, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Numerics, Phase, Refusal, Target, Work
from convjit_cupy import split
from convjit_cupy.axes import (
    MASKS,
    axes_of,
    entry_words,
    mask_bits,
    offsets_and_bits,
    refuse_bits,
    table,
)
from convjit_cupy.kernels import ACTIVATION, COPIES, is_aligned, load

Array = Any

REALS = {"float32": "float", "float64": "double"}
WIDE = 16  # bytes of the widest copy
EACH_K, EACH_P = 32, 64  # outputs and positions of a warp

# Warps of a block by (outputs, positions), largest first, and depths of a step.
TILES = {"float32": ((4, 2), (2, 1)), "float64": ((4, 1), (2, 1))}
DEPTH, STAGES = 16, 2
REGISTERS = {"float32": 124, "float64": 194}  # of a thread
LEAST_CAPABILITY = 80  # of tensor cores that multiply in double precision

SOURCE = (
    ACTIVATION
    + COPIES
    + MASKS
    + r"""
using Real = REAL;

constexpr unsigned VECTOR = 16 / sizeof(Real);  // of the widest copy
constexpr unsigned THREADS = 32 * WARPS_K * WARPS_P;
constexpr unsigned TILE_K = 32 * WARPS_K, TILE_P = 64 * WARPS_P;
constexpr unsigned STAGE = DEPTH * (TILE_K + TILE_P);
constexpr unsigned PIECES = TILE_P / PIECE;         // of the positions of a tile
constexpr unsigned AT_ONCE = THREADS / PIECES;      // depths that the block copies at once
constexpr unsigned OWN = DEPTH / AT_ONCE;           // neighbouring depths of a thread
constexpr unsigned WEIGHTS = DEPTH * TILE_K / VECTOR / THREADS;

struct alignas(16) Vector { Real at[VECTOR]; };

// The table has of four depths their offsets, then the lower words of their bits, then the upper
// ones.  The two highest bits are that of a real depth, and of one beyond the last.
constexpr unsigned WORDS = 1 + MASK / 32;
constexpr unsigned TOGETHER = OWN < 4 ? OWN : 4;
struct alignas(4 * TOGETHER) Several { unsigned at[TOGETHER]; };
__device__ __forceinline__ Several several_at(const unsigned *from) {
    return *reinterpret_cast<const Several *>(from);
}

__device__ __forceinline__ Vector vector_at(const Real *from) {
    return *reinterpret_cast<const Vector *>(from);
}

// A thread's sums: OUTS outputs by vectors of neighbouring positions, where in the warp's tile they
// are, and what a step adds to them out of its weights and samples.
#if TENSOR
// Lane 4 n + t has of a product the weights of output n and the samples of position n, both at the
// depth t, and the sums of output n at the positions 2 t and 2 t + 1; one of 16 outputs is two.
// Positions of two products are put in such an order that what a lane loads for both is a vector,
// and what lanes write of an output are neighbours: position 2 t + e of product h is 8 e + 2 t + h
// of the sixteen.  Weights are packed in the order of the lanes; four depths of samples would lie
// in the same banks, and so are moved to columns that differ by 2 t bitwise.
constexpr unsigned OUTS = 4, VECTORS = 8;
__device__ __forceinline__ unsigned out_of(unsigned lane, unsigned i) { return lane / 4 + 8 * i; }
__device__ __forceinline__ unsigned place_of(unsigned lane, unsigned v) {
    return v * 8 + lane % 4 * 2;
}
__device__ __forceinline__ unsigned moved(unsigned place, unsigned depth) {
    return place ^ depth % 4 * VECTOR * sizeof(Real);
}
__device__ __forceinline__ void multiply(
    Real (&sums)[OUTS][VECTORS * VECTOR], const Real *weights, const Real *samples, unsigned warp,
    unsigned lane
) {
    weights += warp / WARPS_P * 128 + lane * VECTOR;
    const unsigned n = lane / 4, t = lane % 4;
    samples += t * TILE_P + warp % WARPS_P * 64 + (n % 2 * 8 + (n / 2 ^ t) * VECTOR);
#pragma unroll
    for (unsigned depth = 0; depth < DEPTH; depth += 4) {
        Vector a[OUTS / 2], b[VECTORS / 2];
#pragma unroll
        for (unsigned i = 0; i < OUTS / 2; i++)
            a[i] = vector_at(weights + depth * TILE_K + i * 64);
#pragma unroll
        for (unsigned j = 0; j < VECTORS / 2; j++)
            b[j] = vector_at(samples + depth * TILE_P + j * 16);
#pragma unroll
        for (unsigned i = 0; i < OUTS; i += __CUDA_ARCH__ >= 900 ? 2 : 1)
#pragma unroll
            for (unsigned j = 0; j < VECTORS; j++) {
                Real *const sum = sums[i] + j / 2 * 4 + j % 2;
                const Real by = b[j / 2].at[j % 2];
#if __CUDA_ARCH__ >= 900
                Real *const below = sums[i + 1] + j / 2 * 4 + j % 2;
                asm("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 "
                    "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                    : "+d"(sum[0]), "+d"(sum[2]), "+d"(below[0]), "+d"(below[2])
                    : "d"(a[i / 2].at[0]), "d"(a[i / 2].at[1]), "d"(by));
#else
                asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 "
                    "{%0, %1}, {%2}, {%3}, {%0, %1};"
                    : "+d"(sum[0]), "+d"(sum[2]) : "d"(a[i / 2].at[i % 2]), "d"(by));
#endif
            }
    }
}
#else
constexpr unsigned OUTS = 8, VECTORS = 8 / VECTOR;
__device__ __forceinline__ unsigned out_of(unsigned lane, unsigned i) { return lane / 8 * 8 + i; }
__device__ __forceinline__ unsigned place_of(unsigned lane, unsigned v) {
    return (v * 8 + lane % 8) * VECTOR;
}
__device__ __forceinline__ unsigned moved(unsigned place, unsigned) { return place; }
__device__ __forceinline__ void multiply(
    Real (&sums)[OUTS][VECTORS * VECTOR], const Real *weights, const Real *samples, unsigned warp,
    unsigned lane
) {
    weights += warp / WARPS_P * 32 + out_of(lane, 0);
    samples += warp % WARPS_P * 64 + place_of(lane, 0);
#pragma unroll
    for (unsigned depth = 0; depth < DEPTH; depth++) {
        Vector a[VECTORS], b[VECTORS];
#pragma unroll
        for (unsigned g = 0; g < VECTORS; g++) {
            a[g] = vector_at(weights + depth * TILE_K + g * VECTOR);
            b[g] = vector_at(samples + depth * TILE_P + g * 8 * VECTOR);
        }
#pragma unroll
        for (unsigned i = 0; i < 8; i++)
#pragma unroll
            for (unsigned j = 0; j < 8; j++)
                sums[i][j] += a[i / VECTOR].at[i % VECTOR] * b[j / VECTOR].at[j % VECTOR];
    }
}
#endif

struct Axis { unsigned bits, size, out, stride, pad, dilation; };

// The bits of the taps that lie outside for an output's place on an axis.
__device__ __forceinline__ Mask outside(const Axis axis, unsigned place, unsigned first) {
    Mask mask = 0;
#pragma unroll 1
    for (unsigned tap = 0; tap < axis.bits; tap++)
        if (place * axis.stride - axis.pad + tap * axis.dilation >= axis.size)
            mask |= Mask(1) << (first + tap);
    return mask;
}

#define AXIS(z) unsigned bits_##z, unsigned size_##z, unsigned out_##z, unsigned stride_##z, \
                unsigned pad_##z, unsigned dilation_##z
#define OF(z) {bits_##z, size_##z, out_##z, stride_##z, pad_##z, dilation_##z}

// A multiprocessor holds 512 threads at least, in double precision 256; as many as it may where
// copies take registers.
#if __CUDA_ARCH__ >= 800
#define BOUNDS THREADS, 2048 / sizeof(Real) / THREADS
#else
#define BOUNDS THREADS
#endif
extern "C" __global__ void __launch_bounds__(BOUNDS) implicit_gemm(
    const Real *__restrict__ x, const Real *__restrict__ w, const unsigned *__restrict__ table,
    const Real *__restrict__ bias, Real *__restrict__ y, unsigned positions,
    unsigned all_steps, unsigned each, unsigned outputs, unsigned groups, unsigned image,
    unsigned pixels, unsigned tiles_p, unsigned tiles_k, AXIS(z), AXIS(y), AXIS(x), Real slope,
    Real lowest, Real highest
) {
    __shared__ __align__(128) Real memory[2 * STAGE];  // of a stage: weights, samples
    const unsigned thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    unsigned block = blockIdx.x;
    const unsigned first_p = block % tiles_p * TILE_P;
    block /= tiles_p;
    const unsigned tile_k = block % tiles_k;
    block /= tiles_k;
    const unsigned group = block % groups, part = block / groups;
    unsigned steps = min(each, all_steps - part * each);

    // What this thread copies: weights one after the other, samples of one position (of several
    // neighbours where PIECE is more than 1).
    const unsigned panel = group * tiles_k + tile_k;
    const Real *weight = w + (size_t(panel) * all_steps + part * each) * (DEPTH * TILE_K)
                           + thread * VECTOR;
    const unsigned column = thread % PIECES * PIECE, row = thread / PIECES * OWN;
    const unsigned *entry = table + (part * each * DEPTH + row) / 4 * 4 * WORDS + row % 4;
    Mask mask = ~Mask(0);
    const Real *corner = x;
    if (first_p + column < positions) {
        const Axis axes[3] = {OF(z), OF(y), OF(x)};
        const unsigned n = (first_p + column) / pixels;
        unsigned pixel = (first_p + column) % pixels;
        const unsigned at_x = pixel % out_x;
        pixel /= out_x;
        const unsigned at_y = pixel % out_y, at_z = pixel / out_y;
        mask = Mask(1) << (MASK - 1) | outside(axes[0], at_z, 0) | outside(axes[1], at_y, bits_z)
             | outside(axes[2], at_x, bits_z + bits_y);
        corner += int((n * groups + group) * image
                      + ((at_z * stride_z - pad_z) * size_y + at_y * stride_y - pad_y) * size_x
                      + at_x * stride_x - pad_x);
    }
    const unsigned shared = shared_address(memory);
    const unsigned weights_at = shared + thread * VECTOR * sizeof(Real);
    const unsigned samples_at = shared + (DEPTH * TILE_K + row * TILE_P + column) * sizeof(Real);
    auto fetch = [&](unsigned stage) {
        const unsigned weights = weights_at + stage * sizeof(Real);
#pragma unroll
        for (unsigned i = 0; i < WEIGHTS; i++)
            copy_async<16>(weights + i * THREADS * 16, weight + i * THREADS * VECTOR);
        const unsigned samples = samples_at + stage * sizeof(Real);
#pragma unroll
        for (unsigned i = 0; i < OWN; i += TOGETHER) {
            const Several offsets = several_at(entry + i * WORDS);
            const Several lower = several_at(entry + i * WORDS + 4);
            const Several upper = several_at(entry + i * WORDS + (WORDS - 1) * 4);
            constexpr unsigned BYTES = PIECE * sizeof(Real), ROW = TILE_P * sizeof(Real);
#pragma unroll
            for (unsigned e = 0; e < TOGETHER; e++) {
                const Mask bits = MASK == 64 ? Mask(upper.at[e]) << MASK / 2 | lower.at[e]
                                             : lower.at[e];
                copy_async<BYTES>(moved(samples, i + e) + (i + e) * ROW,
                                  corner + int(offsets.at[e]), !(mask & bits));
            }
        }
        weight += DEPTH * TILE_K;
        entry += DEPTH * WORDS;
    };

    Real sums[OUTS][VECTORS * VECTOR];
#pragma unroll
    for (unsigned i = 0; i < OUTS; i++)
#pragma unroll
        for (unsigned j = 0; j < VECTORS * VECTOR; j++) sums[i][j] = 0;
    unsigned stage = 0;
    fetch(0);
#pragma unroll 1
    for (; steps > 0; steps--) {
        wait_for_copies();
        __syncthreads();  // also: the stage that is filled next has been read by all
        if (steps > 1) fetch(STAGE - stage);
        const Real *const weights = memory + stage;
        multiply(sums, weights, weights + DEPTH * TILE_K, warp, lane);
        stage = STAGE - stage;
    }

    const bool whole = each == all_steps;  // else the sums alone are written, part by part
    y += size_t(part) * positions * groups * outputs;
    // Vectors of results lie in one plane where planes are whole vectors.
    const bool wide = pixels % VECTOR == 0 && reinterpret_cast<size_t>(y) % 16 == 0;
#pragma unroll
    for (unsigned i = 0; i < OUTS; i++) {
        const unsigned k = tile_k * TILE_K + warp / WARPS_P * 32 + out_of(lane, i);
        if (k >= outputs) break;
        const Real added = whole ? bias[group * outputs + k] : Real(0);
#pragma unroll
        for (unsigned v = 0; v < VECTORS; v++) {
            Vector results;
#pragma unroll
            for (unsigned e = 0; e < VECTOR; e++) {
                const Real value = sums[i][v * VECTOR + e] + added;
                results.at[e] = whole ? finish(value, slope, lowest, highest) : value;
            }
            const unsigned p = first_p + warp % WARPS_P * 64 + place_of(lane, v);
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

    Offsets wrap at 2^32; one that is read lies in x.  Words of four depths stand beside each other.
    """
    axes = z, y, x = axes_of(spec)
    mask = mask_bits(axes)
    exists, nowhere = np.uint64(1 << (mask - 2)), 1 << (mask - 1)
    channels = spec.in_channels // spec.groups
    index = np.indices((channels, z.taps, y.taps, x.taps)).reshape(4, -1)
    strides = (z.size * y.size * x.size, y.size * x.size, x.size, 1)
    offset, bits = offsets_and_bits(axes, tuple(index[1:]), strides[1:])
    offset += index[0] * strides[0]
    entries = table(offset, bits | exists, mask, _depths(spec), nowhere)
    return entries.reshape(-1, 4, entries.shape[1]).transpose(0, 2, 1)


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


def block_of(spec: ConvSpec, warps: tuple[int, int]) -> Block:
    """A block of so many warps, as a multiprocessor has to hold it."""
    itemsize = precision.numpy_dtype(spec.dtype).itemsize
    stage = DEPTH * (warps[0] * EACH_K + warps[1] * EACH_P) * itemsize
    return Block(prod(warps) * LANES, REGISTERS[spec.dtype], STAGES * stage)


def _packed_elements(spec: ConvSpec, tile: Tiling) -> int:
    return spec.groups * tile.tiles_k * _depths(spec) * tile.outputs


def _steps(spec: ConvSpec) -> int:
    return _depths(spec) // DEPTH


def _chosen(config: Config) -> tuple[tuple[int, int], int]:
    """(warps, parts of the depth)."""
    chosen = dict(config)
    return (chosen["warps_k"], chosen["warps_p"]), chosen["parts"]


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
        return self._work(spec, target, next(iter(self.configs(spec, target))))

    def _work(self, spec: ConvSpec, target: Target, config: Config) -> Work:
        warps, parts = _chosen(config)
        tile, block = tiling(spec, warps), block_of(spec, warps)
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
            split.phases(spec, target, multiply, tile.blocks, block, parts),
            Numerics("gemm"),
            Phase("pack", bytes={"memory": 4.0 * packed}),
            launches=2 if parts > 1 else 1,
            workspace=split.workspace_bytes(spec, parts),
            packed_bytes=packed + 4 * entry_words(mask_bits(axes_of(spec))) * _depths(spec),
        )

    def workspace_of(self, spec: ConvSpec, target: Target, config: Config) -> int:
        return split.workspace_bytes(spec, _chosen(config)[1])

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        configs = (
            (("warps_k", k), ("warps_p", p), ("parts", parts))
            for k, p in TILES[spec.dtype]
            for parts in split.choices(
                _steps(spec), tiling(spec, (k, p)).blocks, block_of(spec, (k, p)), target
            )
        )
        return cost.fastest(((c, self._work(spec, target, c)) for c in configs), target)

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        tensor = spec.dtype == "float64" and int(target.features.get("sm", 0)) >= LEAST_CAPABILITY
        warps, parts = _chosen(config)
        return ImplicitGemm(spec, self._cupy, warps, parts, tensor)


class ImplicitGemm(OnPlanes):
    """The executable; packed are the weights, tile by tile and depth by depth, and the table."""

    def __init__(
        self, spec: ConvSpec, cupy: Any, warps: tuple[int, int], parts: int, tensor: bool
    ) -> None:
        super().__init__(spec, cupy)
        self._warps, self._parts, self._tensor = warps, parts, tensor
        self.workspace = split.workspace_bytes(spec, parts)
        self._tile = tile = tiling(spec, warps)
        axes = axes_of(spec)
        pixels = prod(spec.out_size)
        self._arguments = (
            *unsigned(
                spec.batch * pixels, _steps(spec), split.steps_of_a_part(_steps(spec), parts),
                self.plane.outputs, spec.groups, self.plane.channels * prod(spec.in_size), pixels,
                tile.tiles_p, tile.tiles_k,
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
        if self._tensor:
            # By four depths and warps, in the order of lanes 4 n + t and of what each loads:
            # (depths, t) and (warps, loads, products, n) become (depths, warps, loads, n, t,
            # products).
            split = (p.groups, tile.tiles_k, depths // 4, 4, self._warps[0], 2, 2, 8)
            tiles = tiles.reshape(split).transpose(0, 1, 2, 4, 5, 7, 3, 6)
        entries = self.cupy.asarray(depth_table(self.spec).reshape(-1))
        into = self.cupy.empty(tiles.shape, self._kind)
        into[...] = tiles
        return into.reshape(-1), entries

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        together = self._neighbours and is_aligned(x, WIDE)
        macros = {
            "REAL": REALS[self.spec.dtype], "WARPS_K": self._warps[0], "WARPS_P": self._warps[1],
            "DEPTH": DEPTH, "TENSOR": int(self._tensor), "MASK": mask_bits(axes_of(self.spec)),
            "PIECE": self._vector if together else 1,
        }  # fmt: skip
        options = tuple(f"-D{name}={value}" for name, value in macros.items())
        kernel = load(self.cupy, SOURCE, "implicit_gemm", options)
        weights, entries = packed
        divided = self._parts > 1
        sums = carve(workspace, 0, (self._parts * y.size,), self._kind) if divided else y
        kernel(
            (self._tile.blocks * self._parts,), (prod(self._warps) * LANES,),
            (x, weights, entries, bias, sums, *self._arguments),
        )  # fmt: skip
        if divided:
            split.sum_up(self.cupy, self.spec, self._parts, sums, bias, y)

"""Kernels that sum tap by tap: the tile of outputs of a warp, and the patch of samples beneath it.

A lane holds outputs that are neighbours in a row, as many as 128 bits of sums (:func:`vector`), in
several groups.  So one wide load from shared memory brings the samples of all of a group's outputs
for one tap, and with the vector beside it those of the taps to come: a *window*.  What a kernel is
compiled for (macros) is all that decides where in its window a tap finds its samples: columns of
taps, their stride and dilation.

The lines of a patch are kept by residues of the stride, so that neighbouring outputs always read
neighbours, and at a pitch for which the rows that eight lanes read at once lie in different banks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from convjit import planes, precision
from convjit.planes import LANES, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Feature, Refusal
from convjit_cupy.kernels import ACTIVATION

DTYPES = ("float32", "float64", "float16", "bfloat16")
C_TYPES = {
    "float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16",
}  # fmt: skip

LAYOUTS = ("NCL", "NCHW", "NCDHW")

WIDE_BYTES = 16  # of the widest load
MOST_STRIDE = 8  # of columns
MOST_REACH = 256  # columns from the first to the last tap of a row, whose window is unrolled
BANKS_BYTES = 128  # of shared memory, that a quarter of a warp reads at once


def vector(dtype: str) -> int:
    """Sums in 128 bits."""
    return WIDE_BYTES // _sum_dtype(dtype).itemsize


def _sum_dtype(dtype: str) -> np.dtype[Any]:
    return precision.numpy_dtype(precision.accumulator_dtype(dtype))


def sum_bytes(dtype: str) -> int:
    """Bytes of a sum, and of a sample in shared memory."""
    return _sum_dtype(dtype).itemsize


# ------------------------------------------------------------------------------ CUDA C++

# Of every kernel: types, the activation.  Macros: REAL, SUM, VECTOR.
TYPES = (
    r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>

using Real = REAL;  // of the arrays
using Sum = SUM;    // of the arithmetic

template <typename T> struct alignas(VECTOR * sizeof(T)) Vector { T at[VECTOR]; };

__device__ __forceinline__ bool is_wide(const void *array, unsigned width) {
    return width % VECTOR == 0 && reinterpret_cast<size_t>(array) % sizeof(Vector<Real>) == 0;
}
"""
    + ACTIVATION
)

# The patch in shared memory.  Further macros: STRIDE, RESIDUE, PITCH and LINES.
PATCH = r"""
// Vectors in shared memory.  Left to itself the compiler splits them, or loads only the parts that
// are used; neighbouring lanes are a vector apart, so that a part costs what the whole does.
__device__ __forceinline__ void load_wide(const Sum *from, Sum *to) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(from));
#if VECTOR == 4
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3]) : "r"(at) : "memory");
#else
    asm volatile("ld.shared.v2.f64 {%0, %1}, [%2];"
                 : "=d"(to[0]), "=d"(to[1]) : "r"(at) : "memory");
#endif
}

__device__ __forceinline__ void store_wide(Sum *to, const Sum *from) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
#if VECTOR == 4
    asm volatile("st.shared.v4.f32 [%4], {%0, %1, %2, %3};"
                 :: "f"(from[0]), "f"(from[1]), "f"(from[2]), "f"(from[3]), "r"(at) : "memory");
#else
    asm volatile("st.shared.v2.f64 [%2], {%0, %1};"
                 :: "d"(from[0]), "d"(from[1]), "r"(at) : "memory");
#endif
}

// An image, the taps of its depth, the patch's first line and column (below zero by wrapping).
struct Patch {
    unsigned depth, height, width, taps, dilation, top, left, z;
};

constexpr unsigned power_of_two(unsigned n) { return n > 1 ? 2 * power_of_two((n + 1) / 2) : 1; }

// The patch of some sheets, zeros outside the image; a sheet is one channel and one tap of the
// depth.  Threads share a line in teams, each loads several pieces before it stores the first.
template <unsigned PIECE>
__device__ __forceinline__ void load_pieces(
    Sum *__restrict__ to, const Real *__restrict__ x, const Patch p, unsigned channel,
    unsigned first, unsigned sheets, unsigned thread, unsigned threads
) {
    constexpr unsigned PIECES = STRIDE * RESIDUE / PIECE;  // of a line
    constexpr unsigned TEAM = PIECES > 32 ? 32 : power_of_two(PIECES);
    constexpr unsigned ROUNDS = (PIECES + TEAM - 1) / TEAM;
    constexpr unsigned TOGETHER = ROUNDS < 4 ? 4 / ROUNDS : 1;
    struct alignas(PIECE * sizeof(Real)) Loaded { Real at[PIECE]; };
    const unsigned member = thread % TEAM, teams = threads / TEAM;
    unsigned sheet = 0, line = thread / TEAM;
    while (line >= LINES) line -= LINES, sheet++;
    while (sheet < sheets) {
        Loaded loaded[TOGETHER][ROUNDS];
        unsigned place[TOGETHER];
        bool is[TOGETHER];
#pragma unroll
        for (unsigned i = 0; i < TOGETHER; i++) {
            const unsigned plane = (first + sheet) / p.taps, tap = first + sheet - plane * p.taps;
            const unsigned z = p.z + tap * p.dilation, y = p.top + line;
            const unsigned from = (((channel + plane) * p.depth + z) * p.height + y) * p.width;
            is[i] = sheet < sheets;
            place[i] = (sheet * LINES + line) * PITCH;
#pragma unroll
            for (unsigned round = 0; round < ROUNDS; round++) {
                const unsigned piece = member + round * TEAM, column = p.left + piece * PIECE;
#pragma unroll
                for (unsigned e = 0; e < PIECE; e++) loaded[i][round].at[e] = Real(0.f);
                if (is[i] && z < p.depth && y < p.height && column < p.width && piece < PIECES)
                    loaded[i][round] = *reinterpret_cast<const Loaded *>(x + (from + column));
            }
            line += teams;
            while (line >= LINES) line -= LINES, sheet++;
        }
#pragma unroll
        for (unsigned i = 0; i < TOGETHER; i++)
#pragma unroll
            for (unsigned round = 0; round < ROUNDS; round++) {
                const unsigned piece = member + round * TEAM;
                if (!is[i] || piece >= PIECES) continue;
                if constexpr (PIECE == VECTOR) {
                    Sum samples[VECTOR];
#pragma unroll
                    for (unsigned e = 0; e < VECTOR; e++)
                        samples[e] = Sum(loaded[i][round].at[e]);
                    store_wide(to + place[i] + piece * VECTOR, samples);
                } else {
                    to[place[i] + piece % STRIDE * RESIDUE + piece / STRIDE]
                        = Sum(loaded[i][round].at[0]);
                }
            }
    }
}

__device__ __forceinline__ void load_patch(
    Sum *to, const Real *x, const Patch &p, unsigned channel, unsigned first, unsigned sheets,
    unsigned thread, unsigned threads
) {
    if (STRIDE == 1 && p.left % VECTOR == 0 && is_wide(x, p.width))
        load_pieces<STRIDE == 1 ? VECTOR : 1>(to, x, p, channel, first, sheets, thread, threads);
    else
        load_pieces<1>(to, x, p, channel, first, sheets, thread, threads);
}
"""

# Of kernels whose lanes hold windows.  Further macros: ROWS and COLUMNS of taps, their DILATION,
# PHASE, and DILATION_Y, STRIDE_Y; WINDOW; ACROSS, GROUPS and SIDE_BY_SIDE of
# the tile.  So all that is loaded of a sheet lies at offsets that the instructions hold.
TILE = r"""
#define SIZES                                                                                   \
    unsigned depth, unsigned height, unsigned width, unsigned out_depth, unsigned out_height,   \
    unsigned out_width, unsigned taps, unsigned stride_z, unsigned pad_z, unsigned pad_y,       \
    unsigned pad_x, unsigned dilation_z, unsigned tiles_y, unsigned tiles_x

constexpr unsigned DOWN = 32 / ACROSS;  // rows of a group
constexpr unsigned TILE_WIDTH = ACROSS * VECTOR * SIDE_BY_SIDE;
constexpr unsigned TILE_HEIGHT = DOWN * GROUPS / SIDE_BY_SIDE;

__device__ __forceinline__ unsigned row_of(unsigned lane, unsigned group) {
    return lane / ACROSS + group / SIDE_BY_SIDE * DOWN;
}
__device__ __forceinline__ unsigned column_of(unsigned lane, unsigned group) {
    return (lane % ACROSS + group % SIDE_BY_SIDE * ACROSS) * VECTOR;
}

struct Window { Sum at[STRIDE][WINDOW]; };

// Whether any tap reads the vector at ``i`` of a residue.
constexpr bool is_read(unsigned residue, unsigned i) {
    for (unsigned s = 0; s < COLUMNS; s++)
        for (unsigned e = 0; e < VECTOR; e++) {
            const unsigned at = PHASE + s * DILATION;
            if (at % STRIDE == residue && (at / STRIDE + e) / VECTOR == i / VECTOR) return true;
        }
    return false;
}

__device__ __forceinline__ Window window_of(const Sum *line) {
    Window window;
#pragma unroll
    for (unsigned q = 0; q < STRIDE; q++)
#pragma unroll
        for (unsigned i = 0; i < WINDOW; i += VECTOR)
            if (is_read(q, i)) load_wide(line + q * RESIDUE + i, &window.at[q][i]);
    return window;
}

// The sample of an output of the group for a tap; all of it is known to the compiler.
__device__ __forceinline__ Sum sample(const Window &window, unsigned tap, unsigned output) {
    const unsigned at = PHASE + tap * DILATION;
    return window.at[at % STRIDE][at / STRIDE + output];
}

// A warp's tile of one plane, by wide stores where rows are aligned, else by way of ``stage``,
// from which neighbouring lanes write neighbours.
__device__ __forceinline__ void store_tile(
    Real *plane, Sum *stage, const Sum (&values)[GROUPS][VECTOR], unsigned top, unsigned left,
    unsigned height, unsigned width, unsigned lane, bool wide
) {
    if (wide) {
#pragma unroll
        for (unsigned g = 0; g < GROUPS; g++) {
            const unsigned y = top + row_of(lane, g), x = left + column_of(lane, g);
            Vector<Real> v;
#pragma unroll
            for (unsigned e = 0; e < VECTOR; e++) v.at[e] = Real(values[g][e]);
            if (y < height && x < width)
                *reinterpret_cast<Vector<Real> *>(plane + (y * width + x)) = v;
        }
        return;
    }
    __syncwarp();
#pragma unroll
    for (unsigned g = 0; g < GROUPS; g++) {
        store_wide(stage + row_of(lane, g) * TILE_WIDTH + column_of(lane, g), values[g]);
    }
    __syncwarp();
    for (unsigned i = lane; i < TILE_HEIGHT * TILE_WIDTH; i += 32) {
        const unsigned y = top + i / TILE_WIDTH, x = left + i % TILE_WIDTH;
        if (y < height && x < width) plane[y * width + x] = Real(stage[i]);
    }
}
"""


# ------------------------------------------------------------------------------ the host's side


@dataclass(frozen=True, slots=True)
class Tile:
    """The tile of outputs of a warp.

    Attributes
    ----------
    across, groups, side_by_side : int
        Lanes of a row, groups of a lane's outputs, and how many of them lie beside each other
        rather than below.
    height, width : int
        Outputs.
    lines, residue, pitch : int
        Lines of the patch; elements of a line for each residue of the stride, and between lines.
    phase, window : int
        Where the first tap finds the first sample of a lane's window, and the window's elements.
    tiles_y, tiles_x : int
        Tiles of a plane.
    """

    across: int
    groups: int
    side_by_side: int
    height: int
    width: int
    lines: int
    residue: int
    pitch: int
    phase: int
    window: int
    tiles_y: int
    tiles_x: int

    @property
    def patch(self) -> int:
        """Elements of a sheet in shared memory."""
        return self.lines * self.pitch

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def count(self) -> int:
        return self.tiles_y * self.tiles_x


def pitch(least: int, vector: int, row_bytes: int, itemsize: int, stride_y: int) -> int:
    """The least pitch, or the next for which the rows that eight lanes read lie in other banks.

    Eight lanes read 128 bytes, which are ``128 / row_bytes`` rows; they are free of conflicts if
    the rows begin at different multiples of ``row_bytes`` modulo 128.  Where no pitch is, as for a
    stride of 8 rows, the least is taken.
    """
    together = BANKS_BYTES // row_bytes if row_bytes < BANKS_BYTES else 1
    for p in range(least, least + BANKS_BYTES // itemsize, vector):
        begins = {i * stride_y * p * itemsize % BANKS_BYTES // row_bytes for i in range(together)}
        aligned = stride_y * p * itemsize % row_bytes == 0
        if len(begins) == together and (aligned or together == 1):
            return p
    return least


def residue(least: int, vector: int, itemsize: int, stride: int) -> int:
    """Elements of a line for each residue: at least so many, and free of conflicts when stored.

    A warp stores neighbouring columns, of which every ``stride``-th goes to the same residue.
    """
    banks = BANKS_BYTES // itemsize

    def conflicts(elements: int) -> int:
        places = (c % stride * elements + c // stride for c in range(banks))
        return max(Counter(place % banks for place in places).values())

    return min(range(least, least + banks, vector), key=conflicts)


def _phase(p: planes.Plane, v: int) -> int:
    """Where windows begin before a lane's first sample.

    Whole vectors of a row are loaded from a column that is a multiple of one, unless a lane then
    loads more of them than three for two taps, and would load fewer without: dilated taps all lie
    across two vectors, or hardly any.
    """
    if p.stride[1] != 1 or p.width % v:
        return 0
    aligned = -p.padding[1] % v
    begins = range(0, p.columns * p.dilation[1], p.dilation[1])

    def loaded(phase: int) -> int:
        return len({(phase + begin + e) // v for begin in begins for e in (0, v - 1)})

    most = max(loaded(0), 1.5 * p.columns)
    return 0 if loaded(aligned) > most else aligned


@lru_cache(maxsize=1024)
def tile_of(spec: ConvSpec, groups: int) -> Tile:
    """The tile of ``groups`` groups with the fewest warps on a plane, then of the least patch."""
    p = planes.plane(spec)
    v, itemsize = vector(spec.dtype), sum_bytes(spec.dtype)

    def arranged(across: int, side_by_side: int) -> Tile:
        width = across * v * side_by_side
        height = LANES // across * groups // side_by_side
        phase = _phase(p, v)
        last = (phase + (p.columns - 1) * p.dilation[1]) // p.stride[1]
        window = -(-(last + v) // v) * v
        own = residue(width - v + window, v, itemsize, p.stride[1])
        return Tile(
            across, groups, side_by_side, height, width,
            (height - 1) * p.stride[0] + (p.rows - 1) * p.dilation[0] + 1,
            own,
            pitch(own * p.stride[1], v, across * v * itemsize, itemsize, p.stride[0]),
            phase, window, -(-p.out_height // height), -(-p.out_width // width),
        )  # fmt: skip

    shapes = [(width // v, 1) for width in (32, 16, 8)] + [(LANES, groups)]
    return min((arranged(*shape) for shape in shapes), key=lambda t: (t.count, t.patch))


def refuse(spec: ConvSpec, most_columns: int, largest: int = 0) -> Refusal | None:
    """What no kernel here does; ``most_columns`` of taps are unrolled."""
    strided = "the kernels index x as one run of memory"
    if (refusal := planes.refuse(spec, DTYPES, strided, largest, axes=3)) is not None:
        return refusal
    if spec.kernel_size[-1] > most_columns:
        return Refusal(
            Feature.SIZE,
            f"the taps of a row are unrolled, {most_columns} at most, not {spec.kernel_size[-1]}",
        )
    reach = (spec.kernel_size[-1] - 1) * spec.dilation[-1]
    if reach > MOST_REACH:
        return Refusal(
            Feature.SIZE,
            f"the taps of a row reach over {reach} columns, more than the {MOST_REACH} of a window",
        )
    if spec.stride[-1] > MOST_STRIDE:
        return Refusal(
            Feature.STRIDE, f"strides above {MOST_STRIDE} leave most of what is loaded unread"
        )
    return None


def macros(spec: ConvSpec, **more: int) -> tuple[str, ...]:
    """What a kernel is compiled for: types, columns of taps, and ``more``."""
    p = planes.plane(spec)
    values = {
        "REAL": C_TYPES[spec.dtype], "SUM": C_TYPES[precision.accumulator_dtype(spec.dtype)],
        "VECTOR": vector(spec.dtype), "COLUMNS": p.columns, "STRIDE": p.stride[1],
        "DILATION": p.dilation[1], **more,
    }  # fmt: skip
    return tuple(f"-D{name}={value}" for name, value in values.items())


def tile_macros(spec: ConvSpec, tile: Tile, **more: int) -> tuple[str, ...]:
    """What a kernel with windows is compiled for, and ``more``."""
    p = planes.plane(spec)
    return macros(
        spec, ROWS=p.rows, STRIDE_Y=p.stride[0], DILATION_Y=p.dilation[0], LINES=tile.lines,
        PHASE=tile.phase, ACROSS=tile.across, GROUPS=tile.groups, SIDE_BY_SIDE=tile.side_by_side,
        WINDOW=tile.window, RESIDUE=tile.residue, PITCH=tile.pitch, **more,
    )  # fmt: skip


def sizes(spec: ConvSpec, tile: Tile) -> tuple[np.uint32, ...]:
    """The arguments that the source calls SIZES."""
    p, d = planes.plane(spec), planes.depth(spec)
    return unsigned(
        d.size, p.height, p.width, d.out, p.out_height, p.out_width, d.taps, d.stride, d.padding,
        *p.padding, d.dilation, tile.tiles_y, tile.tiles_x,
    )  # fmt: skip

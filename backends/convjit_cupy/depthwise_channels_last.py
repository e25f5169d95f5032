"""Depthwise layers in CUDA C++, channels last: neighbouring lanes take neighbouring channels.

A thread sums 4 neighbouring outputs of a row for as many channels as 128 bits of sums.  It reads
each sample beneath them once for a row of taps, all lanes of a warp together in whole sectors; what
rows and neighbouring threads read again comes from the cache, so that no shared memory is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod
from typing import Any

from convjit import layout as layouts
from convjit import planes, precision
from convjit.occupancy import Block, busy
from convjit.planes import OnPlanes, unsigned
from convjit.spec import ConvSpec
from convjit.spi import Config, Executable, Feature, Numerics, Phase, Refusal, Target, Work
from convjit_cupy import tiles
from convjit_cupy.kernels import load

Array = Any

THREADS = 128
BLOCK = Block(THREADS, registers=80)
POSITIONS = 4  # of a thread, neighbours in a row
MOST_COLUMNS = 16  # of taps, which are unrolled
MOST_SAMPLES = 32  # that a thread reads for a row of taps, each a vector in registers

# Macros: those of tiles.TYPES; COLUMNS, STRIDE and DILATION of the taps; POSITIONS.
SOURCE = (
    tiles.TYPES
    + r"""
constexpr unsigned WINDOW = (POSITIONS - 1) * STRIDE + (COLUMNS - 1) * DILATION + 1;

// Whether any tap of any output reads a column of the window.
constexpr bool is_read(unsigned column) {
    for (unsigned e = 0; e < POSITIONS; e++)
        for (unsigned s = 0; s < COLUMNS; s++)
            if (e * STRIDE + s * DILATION == column) return true;
    return false;
}

struct Sums { Sum at[VECTOR]; };

struct Whole { static constexpr bool value = true; };  // vectors of channels, aligned
struct Parts { static constexpr bool value = false; };

// The vector of some channels, of which ``count`` exist.
template <typename Kind> __device__ __forceinline__ Sums load(const Real *from, unsigned count) {
    Sums sums;
    if constexpr (Kind::value) {
        const Vector<Real> v = *reinterpret_cast<const Vector<Real> *>(from);
#pragma unroll
        for (unsigned e = 0; e < VECTOR; e++) sums.at[e] = Sum(v.at[e]);
    } else {
#pragma unroll
        for (unsigned e = 0; e < VECTOR; e++) sums.at[e] = e < count ? Sum(from[e]) : Sum(0);
    }
    return sums;
}

extern "C" __global__ void __launch_bounds__(128, 2) depthwise_channels_last(
    const Real *__restrict__ x, const Real *__restrict__ w, const Real *__restrict__ bias,
    Real *__restrict__ y, unsigned total, unsigned channels, unsigned vectors, unsigned strips,
    unsigned depth, unsigned height, unsigned width, unsigned out_depth, unsigned out_height,
    unsigned out_width, unsigned taps, unsigned rows, unsigned stride_z, unsigned stride_y,
    unsigned pad_z, unsigned pad_y, unsigned pad_x, unsigned dilation_z, unsigned dilation_y,
    Sum slope, Sum lowest, Sum highest
) {
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= total) return;
    const unsigned channel = at % vectors * VECTOR, count = channels - channel;
    at /= vectors;
    const unsigned out_x = at % strips * POSITIONS;
    at /= strips;
    const unsigned out_y = at % out_height;
    at /= out_height;
    const unsigned out_z = at % out_depth, image = at / out_depth;
    const bool wide = is_wide(x, channels) && is_wide(w, channels);
    const unsigned left = out_x * STRIDE - pad_x;

    Sums sums[POSITIONS];
#pragma unroll
    for (unsigned e = 0; e < POSITIONS; e++)
#pragma unroll
        for (unsigned c = 0; c < VECTOR; c++) sums[e].at[c] = 0;
    auto sum_up = [&](auto kind) {
        for (unsigned tap = 0; tap < taps; tap++)
#pragma unroll 1
            for (unsigned r = 0; r < rows; r++) {
                const unsigned in_z = out_z * stride_z - pad_z + tap * dilation_z;
                const unsigned in_y = out_y * stride_y - pad_y + r * dilation_y;
                if (in_z >= depth || in_y >= height) continue;
                const unsigned line = ((image * depth + in_z) * height + in_y) * width;
                Sums window[WINDOW];
#pragma unroll
                for (unsigned i = 0; i < WINDOW; i++) {
                    if (!is_read(i)) continue;
                    const unsigned in_x = left + i;
#pragma unroll
                    for (unsigned c = 0; c < VECTOR; c++) window[i].at[c] = 0;
                    if (in_x < width)
                        window[i] = load<decltype(kind)>(
                            x + ((line + in_x) * channels + channel), count);
                }
                const Real *weights = w + ((tap * rows + r) * COLUMNS * channels + channel);
#pragma unroll
                for (unsigned s = 0; s < COLUMNS; s++) {
                    const Sums by = load<decltype(kind)>(weights + s * channels, count);
#pragma unroll
                    for (unsigned e = 0; e < POSITIONS; e++)
#pragma unroll
                        for (unsigned c = 0; c < VECTOR; c++)
                            sums[e].at[c] += by.at[c] * window[e * STRIDE + s * DILATION].at[c];
                }
            }
    };
    if (wide) sum_up(Whole()); else sum_up(Parts());

    const Sums added = load<Parts>(bias + channel, count);
    const bool wide_y = is_wide(y, channels);
    const unsigned first = ((image * out_depth + out_z) * out_height + out_y) * out_width + out_x;
#pragma unroll
    for (unsigned e = 0; e < POSITIONS; e++) {
        if (out_x + e >= out_width) break;
        Real *to = y + ((first + e) * channels + channel);
        Vector<Real> v;
#pragma unroll
        for (unsigned c = 0; c < VECTOR; c++)
            v.at[c] = Real(finish(sums[e].at[c] + added.at[c], slope, lowest, highest));
        if (wide_y) {
            *reinterpret_cast<Vector<Real> *>(to) = v;
        } else {
#pragma unroll
            for (unsigned c = 0; c < VECTOR; c++)
                if (c < count) to[c] = v.at[c];
        }
    }
}
"""
)


def channels_first(spec: ConvSpec) -> ConvSpec:
    """The same sizes, channels first."""
    (layout,) = (name for name in tiles.LAYOUTS if layouts.spatial_ndim(name) == spec.ndim)
    return replace(spec, layout=layout)


def threads_of(spec: ConvSpec) -> int:
    """Threads that have outputs."""
    strips, vectors = _counts(spec)
    return spec.batch * prod(spec.out_size[:-1]) * strips * vectors


def _counts(spec: ConvSpec) -> tuple[int, int]:
    """(strips of a row, vectors of channels)."""
    return -(-spec.out_size[-1] // POSITIONS), -(-spec.in_channels // tiles.vector(spec.dtype))


def samples_of(spec: ConvSpec) -> int:
    """Samples that a thread reads for one row of taps."""
    p = planes.plane(spec)
    stride, dilation = p.stride[1], p.dilation[1]
    return len({e * stride + s * dilation for e in range(POSITIONS) for s in range(p.columns)})


class ChannelsLastDepthwiseSolver:
    """``cupy.depthwise.channels_last``."""

    algorithm = "depthwise"

    def __init__(self, backend: str, cupy: Any) -> None:
        self.id = f"{backend}.depthwise.channels_last"
        self._backend, self._cupy = backend, cupy

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        if not spec.is_depthwise or spec.groups == 1 or spec.out_channels != spec.in_channels:
            return Refusal(
                Feature.SIZE,
                "takes depthwise layers, as many groups as channels and one output for each; "
                f"{self._backend}.depthwise has several",
            )
        if not spec.channels_last:
            return Refusal(Feature.LAYOUT, f"the kernel is for channels-last, not {spec.layout}")
        if (refusal := tiles.refuse(channels_first(spec), MOST_COLUMNS)) is not None:
            return refusal
        if samples_of(spec) > MOST_SAMPLES:
            return Refusal(
                Feature.SIZE,
                f"a row of taps meets {samples_of(spec)} samples of a thread's outputs, more than "
                f"the {MOST_SAMPLES} that registers hold",
            )
        return None

    def estimate(self, spec: ConvSpec, target: Target) -> Work:
        size = precision.numpy_dtype(spec.dtype).itemsize
        p, d = planes.plane(spec), planes.depth(spec)
        threads, lanes = threads_of(spec), tiles.vector(spec.dtype)
        vectors = threads * d.taps * p.rows * (samples_of(spec) + p.columns)
        read = float(vectors * lanes * size)
        operands = float(size * (prod(spec.x_shape) + prod(spec.y_shape)))
        sum_up = Phase(
            "depthwise",
            2.0 * threads * POSITIONS * lanes * d.taps * p.taps,
            f"{self._backend}.depthwise.{spec.dtype}",
            {"l2": read, "memory": operands},
            busy(-(-threads // THREADS), BLOCK, target),
        )
        packed = size * prod(spec.w_shape)
        return Work(
            (sum_up,),
            Numerics("direct"),
            Phase("pack", bytes={"memory": 2.0 * packed}),
            launches=1,
            packed_bytes=packed,
        )

    def configs(self, spec: ConvSpec, target: Target) -> Iterable[Config]:
        return [()]

    def plan(self, spec: ConvSpec, target: Target, config: Config) -> Executable:
        return ChannelsLastDepthwise(spec, self._cupy)


class ChannelsLastDepthwise(OnPlanes):
    """The executable; packed weights are (taps of the depth, rows, columns, channels)."""

    def __init__(self, spec: ConvSpec, cupy: Any) -> None:
        super().__init__(spec, cupy)
        p, d = self.plane, planes.depth(spec)
        strips, vectors = _counts(spec)
        total = threads_of(spec)
        self._blocks = -(-total // THREADS)
        options = tiles.macros(spec, POSITIONS=POSITIONS)
        self._kernel = load(cupy, SOURCE, "depthwise_channels_last", options)
        self._arguments = (
            *unsigned(
                total, spec.in_channels, vectors, strips, d.size, p.height, p.width, d.out,
                p.out_height, p.out_width, d.taps, p.rows, d.stride, p.stride[0], d.padding,
                *p.padding, d.dilation, p.dilation[0],
            ),
            *planes.activation(spec),
        )  # fmt: skip

    def pack(self, rhs: Array) -> Array:
        taps = planes.grouped_taps(self.spec, rhs)[:, 0]  # (channels, depth, rows, columns)
        into = self.cupy.empty((*taps.shape[1:], taps.shape[0]), self._kind)
        into[...] = taps.transpose(1, 2, 3, 0)
        return into.reshape(-1)

    def compute(
        self, x: Array, packed: Any, bias: Array, y: Array, workspace: Array | None
    ) -> None:
        self._kernel((self._blocks,), (THREADS,), (x, packed, bias, y, *self._arguments))

"""Convolution by fast Fourier transforms: overlap-save tiles and fast lengths.

Overlap-save (Stockham 1966, "High-speed convolution and correlation"; Oppenheim & Schafer,
"Discrete-Time Signal Processing", section 8.7.3): a circular correlation of length L with a kernel
that spans e samples is right at its first ``L - e + 1`` positions.  Tiles of L input samples that
start ``V = L - e + 1`` apart therefore give every output once.  With a stride only every s-th
position is wanted, so V is rounded down to whole strides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import log2, prod

from convjit.algorithms import geometry
from convjit.spec import ConvSpec

RADICES = (2, 3, 5, 7, 11)

# What a transform costs per point and level: 5 real operations for complex data, half for real
# (Cooley & Tukey 1965; the split between radices is within 20 % of it).
COMPLEX_FLOPS = 5.0
REAL_FLOPS = 2.5

# Transforms that leave the cache wait for memory at every pass.  The factor is that between one
# 4096 x 4096 transform and tiles of 256 x 256 on the same image.
CACHED_BYTES = 2**20
UNCACHED_FACTOR = 1.6

# Lengths tried per axis.
CANDIDATES = {1: 48, 2: 16, 3: 8}


@lru_cache(maxsize=4096)
def fast_length(n: int) -> int:
    """Smallest length of at least ``n`` whose only prime factors are 2, 3, 5, 7 and 11."""
    if n <= 1:
        return 1
    best = 1 << (n - 1).bit_length()

    def search(value: int, radices: tuple[int, ...]) -> None:
        """The best multiple of ``value`` by powers of the radices, the last one 2."""
        nonlocal best
        radix, *rest = radices
        while value < best:
            if rest:
                search(value, tuple(rest))
                value *= radix
            else:
                reached = value << max(0, (-(-n // value) - 1).bit_length())
                best = min(best, reached)
                return
        return

    search(1, RADICES[::-1])
    return best


def transform_flops(lengths: tuple[int, ...], is_complex: bool) -> float:
    """Operations of one transform."""
    points = prod(lengths)
    return (COMPLEX_FLOPS if is_complex else REAL_FLOPS) * points * log2(max(points, 2))


def spectrum_shape(lengths: tuple[int, ...], is_complex: bool) -> tuple[int, ...]:
    """Shape of a tile's spectrum; of real data half of the last axis is kept."""
    return lengths if is_complex else (*lengths[:-1], lengths[-1] // 2 + 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile along one axis.

    Attributes
    ----------
    output, outputs : int
        First output and how many the tile gives.
    skip, first, count : int
        The tile's samples: ``count`` of x from ``first`` on, after ``skip`` zeros; zeros follow.
    """

    output: int
    outputs: int
    skip: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Tiling:
    """Overlap-save along every axis.

    Attributes
    ----------
    lengths : tuple of int
        Transform length per axis.
    outputs : tuple of int
        Outputs (after the stride) that one tile gives per axis.
    counts : tuple of int
        Tiles per axis.
    """

    lengths: tuple[int, ...]
    outputs: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def tiles(self) -> int:
        """Tiles of one image."""
        return prod(self.counts)

    def along(self, spec: ConvSpec, axis: int) -> list[Tile]:
        """The tiles of one axis, in order; their outputs cover the axis exactly once."""
        n, m, s = spec.in_size[axis], spec.out_size[axis], spec.stride[axis]
        lo, length, step = spec.padding[axis][0], self.lengths[axis], self.outputs[axis]
        tiles = []
        for output in range(0, m, step):
            start = output * s - lo
            first = min(max(start, 0), n)
            stop = max(first, min(start + length, n))
            skip = first - start if stop > first else 0
            tiles.append(Tile(output, min(step, m - output), skip, first, stop - first))
        return tiles


@lru_cache(maxsize=1024)
def tiling(spec: ConvSpec) -> Tiling:
    """The tile with the least modelled cost, for ``pad_mode="zeros"``.

    What one image costs with T tiles of lengths L, F points of a spectrum:

        T * (C + K) * transform(L)  +  T * K * C/groups * 8 F

    and the candidates of an axis are fast lengths from that of the kernel's extent to that of the
    whole padded axis.
    """
    is_complex = spec.dtype.startswith("complex")
    itemsize = {"float64": 8, "complex64": 8, "complex128": 16}.get(spec.dtype, 4)
    axes = [_candidates(spec, axis) for axis in range(spec.ndim)]
    pairs = spec.out_channels * (spec.in_channels // spec.groups)
    channels = spec.in_channels + spec.out_channels

    def cost(tiles: Tiling) -> float:
        points = prod(spectrum_shape(tiles.lengths, is_complex))
        flops = channels * transform_flops(tiles.lengths, is_complex) + pairs * 8.0 * points
        if prod(tiles.lengths) * itemsize > CACHED_BYTES:
            flops *= UNCACHED_FACTOR
        return flops * tiles.tiles

    return min((_tiling_of(spec, lengths) for lengths in product(*axes)), key=cost)


def _tiling_of(spec: ConvSpec, lengths: tuple[int, ...]) -> Tiling:
    outputs = tuple(_outputs_of_tile(spec, axis, length) for axis, length in enumerate(lengths))
    counts = tuple(-(-m // v) for m, v in zip(spec.out_size, outputs, strict=True))
    return Tiling(lengths, outputs, counts)


def _outputs_of_tile(spec: ConvSpec, axis: int, length: int) -> int:
    extent = geometry.extent(spec.kernel_size[axis], spec.dilation[axis])
    return min((length - extent) // spec.stride[axis] + 1, spec.out_size[axis])


def _candidates(spec: ConvSpec, axis: int) -> list[int]:
    """Fast lengths to try, the one of a single tile among them, evenly spread in logarithm."""
    extent = geometry.extent(spec.kernel_size[axis], spec.dilation[axis])
    whole = fast_length((spec.out_size[axis] - 1) * spec.stride[axis] + extent)
    # A tile gives at least one output, and less than half an extent of them never pays.
    smallest = fast_length(min(whole, extent + extent // 2))
    limit = CANDIDATES[spec.ndim]
    if smallest >= whole:
        return [whole]
    ratio = (whole / smallest) ** (1.0 / (limit - 1))
    spread = {fast_length(round(smallest * ratio**i)) for i in range(limit)}
    return sorted({length for length in spread if length <= whole} | {whole})

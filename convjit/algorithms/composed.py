"""Whole algorithms as array operations, written once over ``(xp, fft)``.

``xp`` is an array module (``numpy``, ``cupy``) and ``fft`` one of its Fourier modules
(``scipy.fft``, ``cupyx.scipy.fft``); a library's own GEMM, FFT and element-wise loops do the work.
Each class here is an executable of the protocol (``workspace``, ``pack``, ``run``): planned once,
immutable, callable from several threads.  Arrays live in the workspace that ``run`` is given; what
a library allocates inside (the results of its transforms) is bounded by the same blocks, and
counted in ``workspace`` too, so that the number is the honest peak.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from convjit import precision
from convjit.algorithms import fft as tiles
from convjit.algorithms import im2col
from convjit.algorithms.epilogue import epilogue
from convjit.algorithms.workspace import ALIGNMENT, Carver, aligned
from convjit.spec import ConvSpec, Direction

Array = Any

# Arrays of one block of FFT tiles together.
FFT_BLOCK_BYTES = 16 * 2**20
# Channel pairs per group up to which spectra are multiplied element by element; beyond, frequency
# by frequency as matrices, which costs two transpositions of the spectra.
ELEMENTWISE_PAIRS = 4


# -------------------------------------------------------------------- im2col and matmul


def gemm_workspace(spec: ConvSpec, budget: int = im2col.BLOCK_BYTES) -> int:
    """Bytes of :class:`Im2colGemm`: one block's columns, and one product to be added to w."""
    itemsize = precision.numpy_dtype(spec.dtype).itemsize
    blocking = im2col.blocking(spec, itemsize, budget)
    total = 0
    if im2col.needs_columns(spec):
        total += aligned(blocking.columns(spec) * itemsize)
    if spec.direction is Direction.WEIGHT_GRAD and blocking.count(spec) > 1:
        total += aligned(prod(spec.w_shape) * itemsize)
    return total


class Im2colGemm:
    """im2col and one matrix product a block (:mod:`convjit.algorithms.im2col`).

    Takes every direction channels-first, and the forward one channels-last; ``pad_mode="zeros"``;
    dtypes that ``xp.matmul`` multiplies.  Where x is its own matrix of columns nothing is copied
    (then the first operand must be contiguous).
    """

    def __init__(self, xp: Any, spec: ConvSpec, budget: int = im2col.BLOCK_BYTES) -> None:
        self._xp = xp
        self._spec = spec
        self._dtype = precision.numpy_dtype(spec.dtype)
        blocking = im2col.blocking(spec, self._dtype.itemsize, budget)
        self._has_columns = im2col.needs_columns(spec)
        self._blocks = list(blocking.blocks(spec))
        self._taps = im2col.taps_of_blocks(spec, (block for _, block in self._blocks))
        self.workspace = gemm_workspace(spec, budget)

    def pack(self, rhs: Array) -> Array:
        """The second operand itself; channels-last, w as (groups, D, M).

        The gradients of complex problems conjugate here, w or y.
        """
        spec = self._spec
        if spec.conjugates:
            return self._xp.conjugate(rhs)
        if spec.direction is Direction.FORWARD and spec.channels_last:
            g, (k, c, *kernel) = spec.groups, spec.w_shape
            order = (0, *range(3, 3 + spec.ndim), 2, 1)
            packed = self._xp.empty((g, *kernel, c, k // g), self._dtype)
            packed[...] = rhs.reshape(g, k // g, c, *kernel).transpose(order)
            return packed.reshape(g, -1, k // g)
        return rhs

    def run(
        self, lhs: Array, packed: Array, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        with np.errstate(all="ignore"):  # Inf and NaN are data here
            if self._spec.direction is Direction.WEIGHT_GRAD:
                self._weight_grad(lhs, packed, out, workspace)
            elif self._spec.computes_input:
                self._input(lhs, packed, out, workspace)
            elif self._spec.channels_last:
                self._forward_last(lhs, packed, out, workspace)
            else:
                self._forward(lhs, packed, out, workspace)
            epilogue(self._xp, self._spec, out, bias)

    def _matrix(self, data: Array, channels: int) -> Array:
        """(images, C, *outputs) as (images, groups, C/groups, P): a view of a block's outputs."""
        g = self._spec.groups
        return data.reshape(data.shape[0], g, channels // g, -1)

    def _columns(self, x: Array, part: Any, carver: Carver) -> Array:
        """The columns (images, groups, D, P) of one block."""
        spec, (images, block) = self._spec, part
        if not self._has_columns:
            return self._matrix(_of_block(x, images, block), spec.in_channels)
        sizes = tuple(map(len, block))
        shape = (len(images), spec.in_channels, *spec.kernel_size, *sizes)
        columns = carver.take(shape, self._dtype)
        source = x[slice(*images)]
        if not spec.flip and im2col.is_interior(spec, block):
            starts = (
                slice(r.start * s - lo, None)
                for r, s, (lo, _) in zip(block, spec.stride, spec.padding, strict=True)
            )
            source = source[(slice(None), slice(None), *starts)]
            strides = im2col.window_strides(spec, source.strides)
            columns[...] = self._xp.lib.stride_tricks.as_strided(source, shape, strides)
        else:
            for tap in self._taps(block):
                row = columns[(slice(None), slice(None), *tap.tap)]
                if not tap.covers:
                    row[...] = 0
                if not tap.is_empty:
                    row[(..., *tap.outputs)] = source[(..., *tap.inputs)]
        return columns.reshape(len(images), spec.groups, -1, prod(sizes))

    def _matrices(self, w: Array) -> Array:
        """w as (groups, M, D), as it lies in memory."""
        return w.reshape(self._spec.groups, self._spec.out_channels // self._spec.groups, -1)

    def _forward(self, x: Array, w: Array, y: Array, workspace: Array | None) -> None:
        matrices = self._matrices(w)
        for part in self._blocks:
            columns = self._columns(x, part, Carver(workspace))
            result = self._matrix(_of_block(y, part[0], part[1]), self._spec.out_channels)
            self._xp.matmul(matrices, columns, out=result)

    def _forward_last(self, x: Array, w: Array, y: Array, workspace: Array | None) -> None:
        spec, g = self._spec, self._spec.groups
        c, k = spec.in_channels // g, spec.out_channels // g
        x = self._xp.moveaxis(x.reshape(*x.shape[:-1], g, c), -2, 1)  # (N, groups, *spatial, C/g)
        for images, block in self._blocks:
            sizes = tuple(map(len, block))
            source = x[slice(*images)]
            if self._has_columns:
                shape = (len(images), g, *sizes, *spec.kernel_size, c)
                columns = Carver(workspace).take(shape, self._dtype)
                for tap in self._taps(block):
                    place = columns[(..., *tap.tap, slice(None))]
                    if not tap.covers:
                        place[...] = 0
                    if not tap.is_empty:
                        place[(..., *tap.outputs, slice(None))] = source[
                            (..., *tap.inputs, slice(None))
                        ]
            else:
                columns = source[(..., *(slice(*r) for r in block), slice(None))]
            matrix = columns.reshape(len(images), g, prod(sizes), -1)
            result = y[(slice(*images), *(slice(*r) for r in block))]
            result = result.reshape(len(images), prod(sizes), g, k).transpose(0, 2, 1, 3)
            self._xp.matmul(matrix, w, out=result)

    def _input(self, y: Array, w: Array, x: Array, workspace: Array | None) -> None:
        spec = self._spec
        back = self._matrices(w).transpose(0, 2, 1)  # (groups, D, M)
        if self._has_columns:
            x[...] = 0
        for images, block in self._blocks:
            source = self._matrix(_of_block(y, images, block), spec.out_channels)
            if not self._has_columns:
                result = self._matrix(_of_block(x, images, block), spec.in_channels)
                self._xp.matmul(back, source, out=result)
                continue
            sizes = tuple(map(len, block))
            shape = (len(images), spec.in_channels, *spec.kernel_size, *sizes)
            columns = Carver(workspace).take(shape, self._dtype)
            matrix = columns.reshape(len(images), spec.groups, -1, prod(sizes))
            self._xp.matmul(back, source, out=matrix)
            result = x[slice(*images)]
            for tap in self._taps(block):
                if not tap.is_empty:
                    row = columns[(slice(None), slice(None), *tap.tap)]
                    result[(..., *tap.inputs)] += row[(..., *tap.outputs)]

    def _weight_grad(self, x: Array, y: Array, w: Array, workspace: Array | None) -> None:
        spec = self._spec
        gradient = self._matrices(w)
        # A library multiplies two matrices as they lie; of a stack CuPy copies what is transposed.
        pair: Any = 0 if spec.groups == 1 else slice(None)
        for i, part in enumerate(self._blocks):
            carver = Carver(workspace)
            columns = self._columns(x, part, carver)[0]
            source = self._matrix(_of_block(y, part[0], part[1]), spec.out_channels)[0]
            share = gradient if i == 0 else carver.take(gradient.shape, self._dtype)
            self._xp.matmul(source[pair], columns.transpose(0, 2, 1)[pair], out=share[pair])
            if i > 0:
                gradient += share
        if spec.conjugates:  # conj(x) y = conj(x conj(y)), and pack conjugated y
            self._xp.conjugate(w, out=w)


def _of_block(data: Array, images: Any, block: Any) -> Array:
    """The part of a channels-first operand with the outputs of a block."""
    return data[(slice(*images), slice(None), *(slice(*r) for r in block))]


# -------------------------------------------------------------------- FFT, overlap-save


@dataclass(frozen=True, slots=True)
class FftCounts:
    """What overlap-save costs on a problem.

    Attributes
    ----------
    tiling : Tiling
    transform, multiply, pack : float
        Operations: of all transforms of both data operands, of the products of spectra, and of the
        transforms of the weights.
    moved : float
        Bytes copied beside: tiles in and out, and spectra transposed for products as matrices.
    images, tiles : int
        Images and tiles of one block.
    workspace, packed_bytes : int
    """

    tiling: tiles.Tiling
    transform: float
    multiply: float
    pack: float
    moved: float
    images: int
    tiles: int
    workspace: int
    packed_bytes: int


@lru_cache(maxsize=1024)
def fft_counts(spec: ConvSpec, budget: int = FFT_BLOCK_BYTES) -> FftCounts:
    """Operations, bytes and blocks of :class:`OverlapSave` on a problem."""
    tiling = tiles.tiling(spec)
    is_complex = spec.dtype in precision.COMPLEX
    real = precision.numpy_dtype(spec.dtype).itemsize
    pair = real if is_complex else 2 * real
    points, spectrum = prod(tiling.lengths), prod(tiles.spectrum_shape(tiling.lengths, is_complex))
    c, k, g = spec.in_channels, spec.out_channels, spec.groups
    as_matrices = spectra_as_matrices(spec)

    # Alive at once: the tiles and their spectrum, the product's spectrum (twice: inverse transforms
    # along several axes copy it), the result; and both spectra again, transposed, for matrices.
    one = points * real * (c + k) + spectrum * pair * (c + 2 * k)
    if as_matrices:
        one += spectrum * pair * (c + k)
    block = max(1, budget // one)
    images = min(spec.batch, block)
    count = min(tiling.tiles, max(1, block // images))
    total = spec.batch * tiling.tiles
    one_transform = tiles.transform_flops(tiling.lengths, is_complex)
    moved = 2.0 * total * points * real * (c + k)
    if as_matrices:
        moved += 2.0 * total * spectrum * pair * (c + k)
    return FftCounts(
        tiling,
        transform=total * (c + k) * one_transform,
        multiply=8.0 * total * spectrum * k * (c // g),
        pack=k * (c // g) * one_transform,
        moved=moved,
        images=images,
        tiles=count,
        workspace=images * count * one + 8 * ALIGNMENT,
        packed_bytes=k * (c // g) * spectrum * pair,
    )


def spectra_as_matrices(spec: ConvSpec) -> bool:
    """Whether spectra are multiplied as a batch of matrices, one for each frequency."""
    pairs = (spec.out_channels // spec.groups) * (spec.in_channels // spec.groups)
    return pairs > ELEMENTWISE_PAIRS


class OverlapSave:
    """Convolution by tiles of Fourier transforms (:mod:`convjit.algorithms.fft`).

    Forward, channels-first, ``pad_mode="zeros"``; float32, float64 and complex; any stride (which
    selects among the outputs), dilation, groups, flip, and memory layout of x.

    The sum ``y[o] = sum_t x[o + t] w[t]`` is a correlation without conjugation: its spectrum is
    X[f] W[-f], and W[-f] is the unscaled *inverse* transform of w, for real data conj(W[f]).

    Parameters
    ----------
    fft : module
        With rfftn, irfftn, fftn and ifftn.
    options : mapping
        Keywords that every transform is given, e.g. ``{"workers": 2}``.
    """

    def __init__(
        self,
        xp: Any,
        fft: Any,
        spec: ConvSpec,
        options: Mapping[str, Any] | None = None,
        budget: int = FFT_BLOCK_BYTES,
    ) -> None:
        self._xp, self._fft, self._spec = xp, fft, spec
        self._options = dict(options or {})
        self._counts = fft_counts(spec, budget)
        self._budget = budget
        tiling = self._counts.tiling
        self._is_complex = spec.dtype in precision.COMPLEX
        self._lengths = tiling.lengths
        self._spectrum = tiles.spectrum_shape(tiling.lengths, self._is_complex)
        self._dtype = precision.numpy_dtype(spec.dtype)
        self._pair = np.result_type(self._dtype, np.complex64)
        self._tiles = list(product(*(tiling.along(spec, axis) for axis in range(spec.ndim))))
        self.workspace = self._counts.workspace

    def _forward_transform(self, data: Array) -> Array:
        axes = tuple(range(data.ndim - self._spec.ndim, data.ndim))
        transform = self._fft.fftn if self._is_complex else self._fft.rfftn
        return transform(data, axes=axes, **self._options)

    def _inverse_transform(self, data: Array) -> Array:
        axes = tuple(range(data.ndim - self._spec.ndim, data.ndim))
        if self._is_complex:
            return self._fft.ifftn(data, axes=axes, **self._options)
        return self._fft.irfftn(data, s=self._lengths, axes=axes, **self._options)

    def pack(self, rhs: Array) -> Array:
        """Spectra of the weights: (groups, K/g, C/g, *spectrum), or (points, groups, K/g, C/g)."""
        spec, xp, g = self._spec, self._xp, self._spec.groups
        k, c = spec.out_channels, spec.in_channels // spec.groups
        points = prod(self._spectrum)
        matrices = spectra_as_matrices(spec)
        shape = (points, k, c) if matrices else (k, c, *self._spectrum)
        packed = xp.empty(shape, self._pair)
        place = tuple(
            slice(None, d * (n - 1) + 1, d)
            for n, d in zip(spec.kernel_size, spec.dilation, strict=True)
        )
        if spec.flip:
            rhs = rhs[(..., *(slice(None, None, -1),) * spec.ndim)]
        rows = max(1, self._budget // (3 * c * points * self._pair.itemsize))
        for start in range(0, k, rows):
            part = rhs[start : start + rows]
            padded = xp.zeros((*part.shape[:2], *self._lengths), self._dtype)
            padded[(..., *place)] = part
            if self._is_complex:
                axes = tuple(range(2, 2 + spec.ndim))
                spectra = self._fft.ifftn(padded, axes=axes, norm="forward", **self._options)
            else:
                spectra = xp.conjugate(self._forward_transform(padded))
            if matrices:
                spectra = spectra.reshape(*part.shape[:2], points)
                packed[:, start : start + rows] = spectra.transpose(2, 0, 1)
            else:
                packed[start : start + rows] = spectra
        if matrices:
            return packed.reshape(points, g, k // g, c)
        return packed.reshape(g, k // g, c, *self._spectrum)

    def _parts(self) -> Iterator[tuple[slice, list[tuple[tiles.Tile, ...]]]]:
        """Blocks: some images, some tiles."""
        counts = self._counts
        for first in range(0, self._spec.batch, counts.images):
            images = slice(first, min(first + counts.images, self._spec.batch))
            for start in range(0, len(self._tiles), counts.tiles):
                yield images, self._tiles[start : start + counts.tiles]

    def run(
        self, lhs: Array, packed: Array, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        with np.errstate(all="ignore"):  # Inf and NaN are data here
            self._run(lhs, packed, out, workspace)
            epilogue(self._xp, self._spec, out, bias)

    def _run(self, lhs: Array, packed: Array, out: Array, workspace: Array | None) -> None:
        spec = self._spec
        for images, block in self._parts():
            carver = Carver(workspace)
            count = images.stop - images.start
            padded = carver.take((len(block), count, spec.in_channels, *self._lengths), self._dtype)
            for place, tile in zip(padded, block, strict=True):
                self._load(place, lhs[images], tile)
            rows = padded.reshape(-1, spec.in_channels, *self._lengths)
            spectra = self._multiply(self._forward_transform(rows), packed, carver)
            result = self._inverse_transform(spectra).reshape(
                len(block), count, spec.out_channels, *self._lengths
            )
            for values, tile in zip(result, block, strict=True):
                to = tuple(slice(t.output, t.output + t.outputs) for t in tile)
                of = tuple(
                    slice(0, (t.outputs - 1) * s + 1, s)
                    for t, s in zip(tile, spec.stride, strict=True)
                )
                out[(images, slice(None), *to)] = values[(..., *of)]

    def _load(self, place: Array, source: Array, tile: tuple[tiles.Tile, ...]) -> None:
        """The samples of one tile, zeros around them."""
        if any(t.count < length for t, length in zip(tile, self._lengths, strict=True)):
            place[...] = 0
        to = tuple(slice(t.skip, t.skip + t.count) for t in tile)
        of = tuple(slice(t.first, t.first + t.count) for t in tile)
        place[(..., *to)] = source[(..., *of)]

    def _multiply(self, x: Array, w: Array, carver: Carver) -> Array:
        """The product's spectra (rows, K, *spectrum)."""
        spec, xp, g = self._spec, self._xp, self._spec.groups
        rows, c, k = x.shape[0], spec.in_channels // g, spec.out_channels // g
        shape = (rows, g * k, *self._spectrum)
        if spectra_as_matrices(spec):
            points = prod(self._spectrum)
            columns = carver.take((points, g, c, rows), self._pair)
            columns[...] = x.reshape(rows, g, c, points).transpose(3, 1, 2, 0)
            products = carver.take((points, g, k, rows), self._pair)
            xp.matmul(w, columns, out=products)
            result = carver.take((rows, g, k, points), self._pair)
            result[...] = products.transpose(3, 1, 2, 0)
            return result.reshape(shape)
        x = x.reshape(rows, g, 1, c, *self._spectrum)
        result = carver.take((rows, g, k, *self._spectrum), self._pair)
        xp.multiply(x[:, :, :, 0], w[:, :, 0], out=result)
        for i in range(1, c):
            result += x[:, :, :, i] * w[:, :, i]
        return result.reshape(shape)

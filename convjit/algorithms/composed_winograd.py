"""Winograd convolution as array operations, written once over ``xp``.

Three phases a block of tiles: the data transform (a straight-line program of additions of whole
arrays along each axis), one matrix product for each of the tile's points, and the output transform.
Channels are the innermost axis throughout, so that additions run over long contiguous rows and the
products are ``(tiles, C) @ (C, K)``; a channels-first image is transposed on its way in and out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from convjit import layout as layouts
from convjit import precision
from convjit.algorithms import straightline, winograd
from convjit.algorithms.epilogue import epilogue
from convjit.algorithms.straightline import Program
from convjit.algorithms.winograd import Transforms
from convjit.algorithms.workspace import Array, Carver, aligned
from convjit.spec import ConvSpec

# Bytes of a block's transformed tiles and products: within a last-level cache, so that the three
# phases hand them on without touching memory, and enough rows for a library's GEMM.
BLOCK_BYTES = 4 * 2**20


def tile_of(spec: ConvSpec, m: int) -> tuple[int, ...]:
    """Outputs of a tile per axis: ``m``, and 1 on axes with one tap, which are not transformed."""
    return tuple(m if r > 1 else 1 for r in spec.kernel_size)


@dataclass(frozen=True, slots=True)
class Blocking:
    """How images and tiles are walked.

    Attributes
    ----------
    axes : tuple of Transforms
        F(m, r) of each axis; F(1, 1) where nothing is transformed.
    counts : tuple of int
        Tiles of an image per axis; the last may reach beyond the outputs.
    images : int
        Images of one block.
    tiles : tuple of int
        Tiles of one block per axis.
    """

    axes: tuple[Transforms, ...]
    counts: tuple[int, ...]
    images: int
    tiles: tuple[int, ...]

    @property
    def points(self) -> int:
        """Products of one tile."""
        return prod(t.n for t in self.axes)

    @property
    def rows(self) -> int:
        """Tiles of one block."""
        return self.images * prod(self.tiles)

    def least_rows(self, spec: ConvSpec) -> int:
        """Tiles of the smallest block, the last of every axis."""
        walked = ((spec.batch, self.images), *zip(self.counts, self.tiles, strict=True))
        return prod((n - 1) % b + 1 for n, b in walked)

    def count(self, spec: ConvSpec) -> int:
        """Number of blocks."""
        along = (-(-n // b) for n, b in zip(self.counts, self.tiles, strict=True))
        return -(-spec.batch // self.images) * prod(along)

    def blocks(self, spec: ConvSpec) -> Iterator[tuple[slice, tuple[slice, ...]]]:
        """(images, tiles per axis) of every block; each tile of each image once."""
        for first in range(0, spec.batch, self.images):
            images = slice(first, min(first + self.images, spec.batch))
            for starts in product(
                *(range(0, n, b) for n, b in zip(self.counts, self.tiles, strict=True))
            ):
                yield (
                    images,
                    tuple(
                        slice(t, min(t + b, n))
                        for t, b, n in zip(starts, self.tiles, self.counts, strict=True)
                    ),
                )


@lru_cache(maxsize=1024)
def blocking(spec: ConvSpec, m: int, budget: int = BLOCK_BYTES) -> Blocking:
    """The largest blocks whose transformed tiles and products fit a budget (at least one tile)."""
    axes = tuple(
        winograd.transforms(size, r)
        for size, r in zip(tile_of(spec, m), spec.kernel_size, strict=True)
    )
    counts = tuple(-(-o // t.m) for o, t in zip(spec.out_size, axes, strict=True))
    itemsize = precision.numpy_dtype(spec.dtype).itemsize
    one = prod(t.n for t in axes) * (spec.in_channels + spec.out_channels) * itemsize
    room = max(1, budget // one)
    if room >= prod(counts):
        images = min(spec.batch, room // prod(counts))
        return Blocking(axes, counts, _even(spec.batch, images), counts)
    tiles = [1] * spec.ndim
    for axis in range(spec.ndim):
        inner = prod(counts[axis + 1 :])
        if room >= inner:
            tiles[axis] = _even(counts[axis], room // inner)
            tiles[axis + 1 :] = counts[axis + 1 :]
            break
    return Blocking(axes, counts, 1, tuple(tiles))


def _even(total: int, most: int) -> int:
    """Size of equal shares of at most ``most``: 5 by 4 would leave a block of 4 and one of 1."""
    shares = -(-total // min(most, total))
    return -(-total // shares)


@dataclass(frozen=True, slots=True)
class WinogradCounts:
    """What :class:`ComposedWinograd` costs on a problem.

    Attributes
    ----------
    data, multiply, output, pack : float
        Operations of the data transform, the products, the output transform and the weights'
        transform, tiles at the edges in full.
    copied : float
        Bytes of the strided copies of x into tiles and of tiles into the result.
    calls : int
        Array operations of one block.
    blocks, workspace, packed_bytes : int
    """

    data: float
    multiply: float
    output: float
    pack: float
    copied: float
    calls: int
    blocks: int
    workspace: int
    packed_bytes: int


@lru_cache(maxsize=1024)
def winograd_counts(spec: ConvSpec, m: int, budget: int = BLOCK_BYTES) -> WinogradCounts:
    """Operations, bytes and blocks of :class:`ComposedWinograd`."""
    plan = blocking(spec, m, budget)
    itemsize = precision.numpy_dtype(spec.dtype).itemsize
    tiles = spec.batch * prod(plan.counts)
    c, k, g = spec.in_channels, spec.out_channels, spec.groups
    data = output = pack = 0.0
    calls = plan.points + prod(t.m for t in plan.axes)  # products, copies out
    # Axis by axis: the axes before are transformed already, those after are not yet.  Counted for
    # one tile and one channel, the samples that neighbouring tiles share with the first tile.
    for axis, t in enumerate(plan.axes):
        if t.r == 1:
            continue
        before = prod(a.n for a in plan.axes[:axis])
        pack += 2.0 * k * (c // g) * before * t.n * prod(a.r for a in plan.axes[axis:])
        into, onto = t.data_program(), t.output_program()
        times_in = tiles * c * before * prod(a.m for a in plan.axes[axis + 1 :])
        times_out = tiles * k * before * prod(a.m for a in plan.axes[axis + 1 :])
        data += times_in * into.flops
        output += times_out * onto.flops
        calls += before * (into.flops + onto.flops)
    return WinogradCounts(
        data,
        multiply=2.0 * tiles * plan.points * k * (c // g),
        output=output,
        pack=pack,
        copied=2.0 * itemsize * spec.batch * (c * prod(spec.in_size) + k * prod(spec.out_size)),
        calls=calls,
        blocks=plan.count(spec),
        workspace=_arrays(plan.axes, plan.images, plan.tiles, c, k).nbytes(itemsize)[1],
        packed_bytes=plan.points * k * (c // g) * itemsize,
    )


@dataclass(frozen=True, slots=True)
class _Arrays:
    """Shapes of the arrays of one block.

    ``tiles`` (transformed) and ``products`` live side by side.  What the data transform needs is
    dead when the output transform starts, and shares its bytes.

    Attributes
    ----------
    tiles, products : tuple of int
        (points, tiles, channels).
    inward : list of tuple of int
        The patch of x, and what the transform of each axis but the last gives: the points of the
        axes transformed, images, per axis tiles or samples, channels.
    outward : list of tuple of int
        What the output transform of each axis gives, the last axis first: points of the axes to
        come and outputs of those done, images, tiles per axis, channels.
    scratch_in, scratch_out : int
        Elements of temporaries.
    """

    tiles: tuple[int, ...]
    products: tuple[int, ...]
    inward: list[tuple[int, ...]]
    outward: list[tuple[int, ...]]
    scratch_in: int
    scratch_out: int

    def nbytes(self, itemsize: int) -> tuple[int, int]:
        """Bytes of the arrays that are kept, and of all."""

        def total(shapes: Iterable[tuple[int, ...]]) -> int:
            return sum(aligned(prod(shape) * itemsize) for shape in shapes)

        kept = total([self.tiles, self.products])
        inward = total([*self.inward, (self.scratch_in,)])
        return kept, kept + max(inward, total([*self.outward, (self.scratch_out,)]))


def _arrays(
    axes: Sequence[Transforms], images: int, tiles: Sequence[int], inputs: int, outputs: int
) -> _Arrays:
    transformed = [i for i, t in enumerate(axes) if t.r > 1]
    sizes = [b * t.m + t.r - 1 for b, t in zip(tiles, axes, strict=True)]
    inward: list[tuple[int, ...]] = [(images, *sizes, inputs)]
    scratch_in = scratch_out = 0
    points: list[int] = []
    for axis in transformed:
        points.append(axes[axis].n)
        sizes[axis] = tiles[axis]
        one = (images, *sizes, inputs)
        inward.append((*points, *one))
        count = straightline.scratch_count(axes[axis].data_program())
        scratch_in = max(scratch_in, count * prod(one))
    outward: list[tuple[int, ...]] = []
    for place in reversed(range(len(points))):
        t = axes[transformed[place]]
        points[place] = t.m
        outward.append((*points, images, *tiles, outputs))
        count = straightline.scratch_count(t.output_program())
        scratch_out = max(
            scratch_out, count * prod(points[place + 1 :] + [*tiles]) * images * outputs
        )
    rows = images * prod(tiles)
    each = prod(t.n for t in axes)
    return _Arrays(
        (each, rows, inputs), (each, rows, outputs), inward[:-1], outward, scratch_in, scratch_out
    )


class ComposedWinograd:
    """F(m, r) along every axis that has more than one tap (:mod:`convjit.algorithms.winograd`).

    Forward, stride 1, dilation 1, ``pad_mode="zeros"``; floating and complex dtypes that
    ``xp.matmul`` multiplies; either layout, any memory layout of x, groups, flip; at least one axis
    with more than one tap.  An executable of the protocol.

    Parameters
    ----------
    xp : module
        ``numpy`` or ``cupy``.
    spec : ConvSpec
    m : int
        Outputs of a tile per axis.
    budget : int
        Bytes of the transformed tiles and products of one block.
    """

    def __init__(self, xp: Any, spec: ConvSpec, m: int, budget: int = BLOCK_BYTES) -> None:
        self._xp, self._spec = xp, spec
        self._dtype = precision.numpy_dtype(spec.dtype)
        self._plan = blocking(spec, m, budget)
        self._blocks = list(self._plan.blocks(spec))
        # The axes that are transformed, and where they stand among the tiles' axes.
        self._transformed = [(i, t) for i, t in enumerate(self._plan.axes) if t.r > 1]
        arrays = self._arrays(self._plan.images, self._plan.tiles)
        self._kept, self.workspace = arrays.nbytes(self._dtype.itemsize)

    def _arrays(self, images: int, tiles: Sequence[int]) -> _Arrays:
        spec = self._spec
        return _arrays(self._plan.axes, images, tiles, spec.in_channels, spec.out_channels)

    def pack(self, rhs: Array) -> Array:
        """Transformed weights, (points, groups, C/g, K/g), rounded once from float64."""
        spec, xp, g = self._spec, self._xp, self._spec.groups
        wide = np.complex128 if spec.dtype in precision.COMPLEX else np.float64
        u = rhs.astype(wide)
        if spec.flip:
            u = u[(..., *(slice(None, None, -1),) * spec.ndim)]
        for t in self._plan.axes:
            # The first axis after the channels is contracted, its points go to the end: when all
            # are done they stand in order.
            matrix = xp.asarray([[float(v) for v in row] for row in t.G], dtype=wide)
            u = xp.tensordot(u, matrix, axes=((2,), (1,)))
        u = u.reshape(g, spec.out_channels // g, spec.in_channels // g, self._plan.points)
        return xp.ascontiguousarray(u.transpose(3, 0, 2, 1), dtype=self._dtype)

    def run(
        self, lhs: Array, packed: Array, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        assert workspace is not None
        x, y = lhs, out
        if not self._spec.channels_last:
            x = lhs.transpose(layouts.to_channels_last(self._spec.ndim))
            y = out.transpose(layouts.to_channels_last(self._spec.ndim))
        for images, tiles in self._blocks:
            shape = [t.stop - t.start for t in tiles]
            arrays = self._arrays(images.stop - images.start, shape)
            carver = Carver(workspace)
            v = carver.take(arrays.tiles, self._dtype)
            products = carver.take(arrays.products, self._dtype)
            self._data_transform(x[images], v, tiles, arrays, Carver(workspace[self._kept :]))
            self._multiply(v, packed, products)
            values = self._output_transform(products, arrays, Carver(workspace[self._kept :]))
            self._store(values, y[images], tiles)
        epilogue(self._xp, self._spec, out, bias)

    def _patch(self, x: Array, tiles: Sequence[slice], patch: Array) -> None:
        """The samples that the block's tiles read, zeros around the image."""
        to, of = [], []
        for t, tile, n, (lo, _), size in zip(
            self._plan.axes, tiles, self._spec.in_size, self._spec.padding, patch.shape[1:-1],
            strict=True,
        ):  # fmt: skip
            start = tile.start * t.m - lo
            first = min(max(start, 0), n)
            stop = max(first, min(start + size, n))
            of.append(slice(first, stop))
            to.append(slice(first - start, stop - start) if stop > first else slice(0, 0))
        if any(s.stop - s.start < size for s, size in zip(to, patch.shape[1:-1], strict=True)):
            patch[...] = 0
        patch[(slice(None), *to)] = x[(slice(None), *of)]

    def _data_transform(
        self, x: Array, v: Array, tiles: Sequence[slice], arrays: _Arrays, carver: Carver
    ) -> None:
        source = carver.take(arrays.inward[0], self._dtype)
        self._patch(x, tiles, source)
        stages = [carver.take(shape, self._dtype) for shape in arrays.inward[1:]]
        scratch = carver.take((arrays.scratch_in,), self._dtype)
        counts = [t.stop - t.start for t in tiles]
        axes = [t.n for _, t in self._transformed]
        stages.append(v.reshape(*axes, x.shape[0], *counts, x.shape[-1]))
        for done, ((axis, t), target) in enumerate(zip(self._transformed, stages, strict=True)):
            reach = (counts[axis] - 1) * t.m + 1
            before = (slice(None),) * (1 + axis)
            taps = [(*before, slice(j, j + reach, t.m)) for j in range(t.n)]
            for point in np.ndindex(*axes[:done]):
                inputs = [source[point][tap] for tap in taps]
                self._apply(t.data_program(), inputs, target[point], scratch)
            source = target

    def _multiply(self, v: Array, packed: Array, products: Array) -> None:
        """One product (tiles, C/g) @ (C/g, K/g) for each point and group."""
        g = self._spec.groups
        points, rows, c = v.shape
        left = v.reshape(points, rows, g, c // g).transpose(0, 2, 1, 3)
        result = products.reshape(points, rows, g, -1).transpose(0, 2, 1, 3)
        self._xp.matmul(left, packed, out=result)

    def _output_transform(self, products: Array, arrays: _Arrays, carver: Carver) -> Array:
        stages = [carver.take(shape, self._dtype) for shape in arrays.outward]
        scratch = carver.take((arrays.scratch_out,), self._dtype)
        axes = [t.n for _, t in self._transformed]
        source = products.reshape(*axes, *arrays.outward[0][len(axes) :])
        for place, target in zip(reversed(range(len(axes))), stages, strict=True):
            program = self._transformed[place][1].output_program()
            for point in np.ndindex(*axes[:place]):
                self._apply(program, source[point], target[point], scratch)
            source = target
        return source

    def _apply(self, program: Program, inputs: Sequence[Array], target: Array, flat: Array) -> None:
        """The program along the first axis of ``target``, with temporaries cut from ``flat``."""
        one = target.shape[1:]
        size = prod(one)
        scratch = [
            flat[i * size : (i + 1) * size].reshape(one)
            for i in range(straightline.scratch_count(program))
        ]
        outputs = [target[i] for i in range(len(program.outputs))]
        straightline.apply(program, inputs, outputs, scratch, self._xp)

    def _store(self, values: Array, y: Array, tiles: Sequence[slice]) -> None:
        """Write outputs (m per transformed axis, images, tiles per axis, K), those that exist."""
        for point in np.ndindex(*(t.m for _, t in self._transformed)):
            offsets = [0] * self._spec.ndim
            for (axis, _), offset in zip(self._transformed, point, strict=True):
                offsets[axis] = offset
            to, of = [], []
            for t, tile, offset, m in zip(
                self._plan.axes, tiles, offsets, self._spec.out_size, strict=True
            ):
                first = tile.start * t.m + offset
                count = min(tile.stop - tile.start, max(0, -(-(m - first) // t.m)))
                to.append(
                    slice(first, first + max(count - 1, 0) * t.m + 1, t.m) if count else slice(0, 0)
                )
                of.append(slice(0, count))
            y[(slice(None), *to)] = values[point][(slice(None), *of)]

"""Convolution as a matrix product: shapes, blocks of columns, and the two index maps.

For each image and group, with M = K/groups, depth D = C/groups * taps and P outputs,

    forward       y  (M, P)  =  w (M, D) @ columns (D, P)
    input's       columns (D, P)  =  w^T (D, M) @ y (M, P), then columns are added into x
    weights'      w  (M, D) +=  y (M, P) @ columns^T (P, D)

where ``columns[c, t, o] = x[c, o*stride - lo + t*dilation]`` (Chellapilla, Puri & Simard 2006,
"High performance convolutional neural networks for document processing", section 4).  P is walked
in blocks, so that the columns of a block stay within a budget of bytes whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from math import prod

from convjit.algorithms import geometry
from convjit.algorithms.geometry import Range
from convjit.spec import ConvSpec, Direction

# Columns of one block: large enough that a library's GEMM runs at full speed on them, small enough
# to stay in a last-level cache, so that they are written and read without touching memory.
BLOCK_BYTES = 4 * 2**20

# Slices that a plan keeps; beyond, they are computed at each run, which then is long enough.
KEPT_TAPS = 4096


@dataclass(frozen=True, slots=True)
class Blocking:
    """How images and outputs are walked.

    Attributes
    ----------
    images : int
        Images of one block.
    outputs : tuple of int
        Outputs of one block per spatial axis; the last block of an axis may be shorter.
    """

    images: int
    outputs: tuple[int, ...]

    def blocks(self, spec: ConvSpec) -> Iterator[tuple[Range, tuple[Range, ...]]]:
        """(images, outputs per axis) of every block; each output of each image once."""
        for start in range(0, spec.batch, self.images):
            images = Range(start, min(start + self.images, spec.batch))
            for starts in product(
                *(range(0, m, b) for m, b in zip(spec.out_size, self.outputs, strict=True))
            ):
                yield (
                    images,
                    tuple(
                        Range(o, min(o + b, m))
                        for o, b, m in zip(starts, self.outputs, spec.out_size, strict=True)
                    ),
                )

    def least_outputs(self, spec: ConvSpec) -> int:
        """Outputs of the smallest block of an image, the last of every axis."""
        return prod((m - 1) % b + 1 for m, b in zip(spec.out_size, self.outputs, strict=True))

    def count(self, spec: ConvSpec) -> int:
        """Number of blocks."""
        along = (-(-m // b) for m, b in zip(spec.out_size, self.outputs, strict=True))
        return -(-spec.batch // self.images) * prod(along)

    def columns(self, spec: ConvSpec) -> int:
        """Elements of the columns of one block, of all groups."""
        return self.images * prod(self.outputs) * depth(spec) * spec.groups


def depth(spec: ConvSpec) -> int:
    """Rows of the columns of one group: products summed for one output."""
    return spec.in_channels // spec.groups * prod(spec.kernel_size)


def gemm_shape(spec: ConvSpec) -> tuple[int, int, int]:
    """(M, P, D) of the product of one image and one group."""
    return spec.out_channels // spec.groups, prod(spec.out_size), depth(spec)


def needs_columns(spec: ConvSpec) -> bool:
    """Whether the columns are anything but x itself.

    Channels-last, the channels of one group are not one matrix in memory.
    """
    return not (
        set(spec.kernel_size) == {1}
        and set(spec.stride) == {1}
        and set(spec.padding) == {(0, 0)}
        and spec.out_size == spec.in_size
        and (spec.groups == 1 or not spec.channels_last)
    )


@lru_cache(maxsize=1024)
def blocking(spec: ConvSpec, itemsize: int, budget: int = BLOCK_BYTES) -> Blocking:
    """Largest blocks whose columns fit a budget of bytes (at least one output).

    An axis is cut only when one index of the axis before it is already too much, so that the
    outputs of a block are one run of memory in either layout.  For the weights' gradient a block is
    one image: its products are summed, and there is one to add instead of one for each image.
    """
    room = max(1, budget // max(1, itemsize * depth(spec) * spec.groups))
    sizes = list(spec.out_size)
    whole = prod(sizes)
    if room >= whole:
        if spec.direction is Direction.WEIGHT_GRAD:
            return Blocking(1, spec.out_size)
        images = min(spec.batch, room // whole)
        # Even shares: 5 images by 4 would make a block of 4 and a block of 1.
        images = -(-spec.batch // -(-spec.batch // images))
        return Blocking(images, tuple(sizes))
    outputs = [1] * spec.ndim
    for axis in range(spec.ndim):
        inner = prod(sizes[axis + 1 :])
        if room >= inner:
            count = min(sizes[axis], room // inner)
            outputs[axis] = -(-sizes[axis] // -(-sizes[axis] // count))
            outputs[axis + 1 :] = sizes[axis + 1 :]
            break
    return Blocking(1, tuple(outputs))


@dataclass(frozen=True, slots=True)
class TapSlice:
    """What one tap contributes to a block: paired slices, one for each spatial axis.

    Attributes
    ----------
    tap : tuple of int
        The tap's place in w (reversed already when the kernel is flipped).
    outputs : tuple of slice
        Outputs relative to the block's first for which the tap reads inside the image.
    inputs : tuple of slice
        The samples they read.
    covers : bool
        Whether all outputs of the block are among them.
    """

    tap: tuple[int, ...]
    outputs: tuple[slice, ...]
    inputs: tuple[slice, ...]
    covers: bool

    @property
    def is_empty(self) -> bool:
        return any(s.stop <= s.start for s in self.outputs)


def tap_slices(spec: ConvSpec, block: tuple[Range, ...]) -> list[TapSlice]:
    """Every tap of the kernel on a block of outputs, for ``pad_mode="zeros"``."""
    axes = []
    for axis, (start, stop) in enumerate(block):
        n, k, s = spec.in_size[axis], spec.kernel_size[axis], spec.stride[axis]
        lo, d = spec.padding[axis][0], spec.dilation[axis]
        taps = []
        for t in range(k):
            # The block is an axis of its own, whose padding is lo - start*s (negative is fine).
            first, last = geometry.outputs_of_tap(t, n, stop - start, s, lo - start * s, d)
            origin = (start + first) * s - lo + t * d
            taps.append(
                (
                    k - 1 - t if spec.flip else t,
                    slice(first, last),
                    slice(origin, origin + max(last - first - 1, 0) * s + 1, s),
                    last - first == stop - start,
                )
            )
        axes.append(taps)
    result = []
    for combination in product(*axes):
        tap, outputs, inputs, covers = zip(*combination, strict=True)
        result.append(TapSlice(tap, outputs, inputs, all(covers)))
    return result


def taps_of_blocks(
    spec: ConvSpec, blocks: Iterable[tuple[Range, ...]]
) -> Callable[[tuple[Range, ...]], list[TapSlice]]:
    """:func:`tap_slices` by block: a table where that is small, else computed when asked for."""
    distinct = set(blocks)
    if len(distinct) * prod(spec.kernel_size) <= KEPT_TAPS:
        return {block: tap_slices(spec, block) for block in distinct}.__getitem__
    return partial(tap_slices, spec)


def is_interior(spec: ConvSpec, block: tuple[Range, ...]) -> bool:
    """Whether no tap of any output of a block reads the border."""
    return all(
        start * s >= lo and (stop - 1) * s - lo + geometry.extent(k, d) <= n
        for (start, stop), n, k, s, (lo, _), d in zip(
            block, spec.in_size, spec.kernel_size, spec.stride, spec.padding, spec.dilation,
            strict=True,
        )
    )  # fmt: skip


def window_strides(spec: ConvSpec, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of the view ``(N, C, *kernel, *outputs)`` of x.

    With it the columns of an interior block are one assignment, for ``flip=False``.

    Parameters
    ----------
    strides : tuple of int
        Of x as (N, C, *spatial).
    """
    n, c, *spatial = strides
    taps = (s * d for s, d in zip(spatial, spec.dilation, strict=True))
    outputs = (s * d for s, d in zip(spatial, spec.stride, strict=True))
    return (n, c, *taps, *outputs)

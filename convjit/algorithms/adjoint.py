"""Both gradients and the transposed convolution as forward problems.

One axis of the forward operator is ``y[o] = sum_t x[o*s - lo + t*d] * w[t]`` with n samples, m
outputs and k taps.

*With respect to x.*  Sample i collects every (o, t) with ``i = o*s - lo + t*d``.  Let z be y with
s - 1 zeros between its elements, ``z[o*s] = y[o]``, and let ``t' = k - 1 - t``.  Then

    gx[i] = sum_t' z[i - ((k-1)*d - lo) + t'*d] * w[k-1-t'],

a forward problem of stride 1 on z with the reversed kernel, whose channels are exchanged, and with
``(k-1)*d - lo`` in front of it.  The padding at the end is whatever makes n outputs, so that
``output_padding`` needs no case of its own.  Where a padding comes out negative, z is cropped.

*With respect to w.*  Tap t collects every (n, o): ``gw[t] = sum_o x[t*d - lo + o*s] * y[o]``, a
forward problem on x with the kernel y, in which stride and dilation are exchanged and so are the
batch and the channels.

The transposed convolution of Dumoulin & Visin (2016), "A guide to convolution arithmetic for deep
learning", section 4, is the first of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from convjit.algorithms import geometry
from convjit.spec import ConvSpec, Direction

Array = Any  # of any library: only reshape, transpose, slices and assignment are used
Fill = Callable[[Array, Array], None]  # fill(destination, source): writes every element


@dataclass(frozen=True, slots=True)
class AsForward:
    """A problem as a forward one, and what becomes of the arrays.

    Attributes
    ----------
    inner : ConvSpec
        Forward, channels-first, zeros in the border, no flip.
    fill_lhs, fill_rhs : callable or None
        Writes the inner operand (``inner.lhs_shape``, ``inner.rhs_shape``) from the outer one;
        None where they are the same array.
    fill_result : callable or None
        Writes the outer result from the inner one; None where they are the same array.
    """

    inner: ConvSpec
    fill_lhs: Fill | None
    fill_rhs: Fill | None
    fill_result: Fill | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where samples of one axis go: ``destination[offset + i * step] = source[first + i]``.

    Attributes
    ----------
    size : int
        Length of the destination; what no sample reaches is zero.
    first, count : int
        The samples that are placed.
    offset, step : int
    """

    size: int
    first: int
    count: int
    offset: int
    step: int

    def is_identity(self, length: int) -> bool:
        """Whether the destination is the source, ``length`` samples long."""
        return self.size == self.count == length and (self.step == 1 or length == 1)


def place(placements: tuple[Placement, ...], destination: Array, source: Array) -> None:
    """Write the samples of the last ``len(placements)`` axes to their places among zeros."""
    if any(p.count < p.size for p in placements):
        destination[...] = 0
    if all(p.count for p in placements):
        to = tuple(
            slice(p.offset, p.offset + (p.count - 1) * p.step + 1, p.step) for p in placements
        )
        of = tuple(slice(p.first, p.first + p.count) for p in placements)
        destination[(..., *to)] = source[(..., *of)]


def insert_zeros(size: int, stride: int, crop: tuple[int, int] = (0, 0)) -> Placement:
    """``size`` samples with ``stride - 1`` zeros between them, less what is cropped at the ends.

    ``count`` is 0 when no sample is left; the size then has no meaning.
    """
    low, high = crop
    total = (size - 1) * stride + 1
    first = -(-low // stride)
    last = (total - 1 - high) // stride  # the last sample kept
    count = max(0, min(last, size - 1) - first + 1)
    if count == 0:
        return Placement(0, 0, 0, 0, 1)
    return Placement(total - low - high, first, count, first * stride - low, stride)


def swap_weights(groups: int, reverse: bool, destination: Array, source: Array) -> None:
    """``(K, C/groups, *kernel)`` to ``(C, K/groups, *kernel)``, group by group.

    ``reverse`` reads the taps backwards as well.
    """
    k, c, *taps = source.shape
    order = (0, 2, 1, *range(3, 3 + len(taps)))
    source = source.reshape(groups, k // groups, c, *taps).transpose(order)
    if reverse:
        source = source[(..., *(slice(None, None, -1),) * len(taps))]
    destination.reshape(groups, c, k // groups, *taps)[...] = source


def exchange(destination: Array, source: Array) -> None:
    """``(A, B, ...)`` to ``(B, A, ...)``."""
    destination[...] = source.transpose((1, 0, *range(2, source.ndim)))


def input_grad_as_forward(spec: ConvSpec) -> AsForward:
    """The transposed convolution, or the gradient with respect to x, as a forward problem.

    Parameters
    ----------
    spec : ConvSpec
        Transposed or input_grad, channels-first, ``pad_mode="zeros"``, not empty, and not
        conjugating (conjugate w before).

    Returns
    -------
    AsForward
        Its inner problem has stride 1 and keeps groups, dilation, bias and activation.
    """
    _check(spec, spec.computes_input)
    placements, paddings = [], []
    for axis in range(spec.ndim):
        n, m, s = spec.in_size[axis], spec.out_size[axis], spec.stride[axis]
        reach = geometry.extent(spec.kernel_size[axis], spec.dilation[axis]) - 1
        lo = reach - spec.padding[axis][0]
        # n = size + lo + hi - reach
        hi = n + reach - ((m - 1) * s + 1) - lo
        placement = insert_zeros(m, s, (max(0, -lo), max(0, -hi)))
        if placement.count:
            paddings.append((max(0, lo), max(0, hi)))
        else:  # every output reads the border alone: zeros that make n samples
            placement = Placement(n + reach, 0, 0, 0, 1)
            paddings.append((0, 0))
        placements.append(placement)
    inner = spec.replace(
        direction=Direction.FORWARD,
        in_channels=spec.out_channels,
        out_channels=spec.in_channels,
        in_size=tuple(p.size for p in placements),
        out_size=spec.in_size,
        stride=(1,) * spec.ndim,
        padding=tuple(paddings),
        flip=False,
        strided=False,
    )
    same = all(p.is_identity(m) for p, m in zip(placements, spec.out_size, strict=True))
    return AsForward(
        inner.replace(strided=spec.strided) if same else inner,
        None if same else partial(place, tuple(placements)),
        partial(swap_weights, spec.groups, not spec.flip),
        None,
    )


def weight_grad_as_forward(spec: ConvSpec) -> AsForward:
    """The gradient with respect to w as a forward problem.

    Group j of the inner problem has the N images' channels of group j as its N channels, one inner
    image for each channel of the group, and y of its K/groups channels as its kernels:

        x  (N, groups * C/groups, *in)  ->  (C/groups, groups * N, *in)
        y  (N, K, *out)                 ->  (K, N, *out), the weights
        gw (K, C/groups, *kernel)       <-  (C/groups, K, *kernel)

    Samples at the end of x that no tap reads (where the stride leaves a remainder) are cropped, so
    that the inner problem has exactly as many outputs as w has taps.

    Parameters
    ----------
    spec : ConvSpec
        weight_grad, channels-first, ``pad_mode="zeros"``, not empty, and not conjugating.
    """
    _check(spec, spec.direction is Direction.WEIGHT_GRAD)
    placements, paddings = [], []
    for axis in range(spec.ndim):
        n, (lo, _) = spec.in_size[axis], spec.padding[axis]
        read = geometry.extent(spec.out_size[axis], spec.stride[axis])
        read += spec.dilation[axis] * (spec.kernel_size[axis] - 1)  # samples that are read
        if lo >= read:
            placements.append(Placement(read, 0, 0, 0, 1))  # nothing but zeros of the border
            paddings.append((0, 0))
            continue
        kept = min(n, read - lo)
        placements.append(Placement(kept, 0, kept, 0, 1))
        paddings.append((lo, read - lo - kept))
    channels = spec.in_channels // spec.groups
    inner = spec.replace(
        direction=Direction.FORWARD,
        batch=channels,
        in_channels=spec.groups * spec.batch,
        in_size=tuple(p.size for p in placements),
        kernel_size=spec.out_size,
        out_size=spec.kernel_size,
        stride=spec.dilation,
        dilation=spec.stride,
        padding=tuple(paddings),
        flip=False,
        bias=False,
        activation=None,
        strided=False,
    )
    return AsForward(
        inner,
        partial(_images_of_channels, spec.groups, tuple(placements)),
        exchange,
        partial(_taps_of_outputs, spec.flip),
    )


def _images_of_channels(
    groups: int, placements: tuple[Placement, ...], destination: Array, source: Array
) -> None:
    n, c, *size = source.shape
    order = (2, 1, 0, *range(3, 3 + len(size)))
    source = source.reshape(n, groups, c // groups, *size).transpose(order)
    inner = destination.shape[2:]
    place(placements, destination.reshape(c // groups, groups, n, *inner), source)


def _taps_of_outputs(flip: bool, destination: Array, source: Array) -> None:
    if flip:
        source = source[(..., *(slice(None, None, -1),) * (source.ndim - 2))]
    exchange(destination, source)


def _check(spec: ConvSpec, direction_fits: bool) -> None:
    wanted = (
        direction_fits
        and not spec.channels_last
        and spec.pad_mode == "zeros"
        and not spec.conjugates
        and not spec.is_empty
    )
    if not wanted:
        raise ValueError(
            f"{spec} must be brought to channels-first, pad_mode='zeros', without conjugation, "
            "before it is expressed as a forward problem"
        )

"""Both gradients and the transposed convolution as forward problems.

One axis of the forward operator is ``y[o] = sum_t x[o*s - lo + t*d] * w[t]`` with n samples, m
outputs and k taps.

*With respect to x.*  Sample i collects every (o, t) with ``i + lo = o*s + t*d``.  The samples
``i = a + q*s`` with the same residue of ``i + lo`` modulo the stride, a *phase*, meet the same
taps: with ``g = gcd(d, s)`` those that are ``s/g`` apart, ``t = t0 + j*(s/g)`` for j from 0 to
J - 1.  A phase whose residue no tap has is zero.  In the others

    gx[a + q*s] = sum_j y[q + e - j*(d/g)] * w[t0 + j*(s/g)],   e = (a + lo - t0*d) / s,

which is, with ``j' = J - 1 - j``, a forward problem of stride 1 and dilation d/g on y itself, with
``(J-1)*(d/g) - e`` in front of it.  The padding at the end is whatever makes the phase's samples,
so that ``output_padding`` needs no case of its own; where a padding comes out negative, y is
cropped.  The weights' channels are exchanged.  Phases with the same taps and paddings are one
problem with as many times the channels.  No zeros are inserted between samples of y, as Dumoulin
& Visin (2016, "A guide to convolution arithmetic for deep learning", section 4) do: only the
products of the definition are computed (Shi et al. 2016, "Is the deconvolution layer the same as a
convolutional layer?", section 2).

*With respect to w.*  Tap t collects every (n, o): ``gw[t] = sum_o x[t*d - lo + o*s] * y[o]``, a
forward problem on x with the kernel y, in which stride and dilation are exchanged and so are the
batch and the channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd
from typing import Any, NamedTuple

from convjit import layout as layouts
from convjit.algorithms import geometry
from convjit.algorithms.fills import Array, Copy, Fill
from convjit.spec import ConvSpec, Direction


@dataclass(frozen=True, slots=True)
class AsForward:
    """A problem, or a part of its result, as a forward problem, and what becomes of the arrays.

    Attributes
    ----------
    inner : ConvSpec
        Forward, zeros in the border, no flip.
    fill_lhs, fill_rhs : callable or None
        Writes the inner operand (``inner.lhs_shape``, ``inner.rhs_shape``) from the outer one;
        None where they are the same array.
    fill_result : callable or None
        Writes the outer result, or its part, from the inner one; None where they are the same
        array.
    fill_bias : callable or None
        The inner bias from the outer one; None where they are the same array.
    """

    inner: ConvSpec
    fill_lhs: Fill | None
    fill_rhs: Fill | None
    fill_result: Fill | None
    fill_bias: Callable[[Array], Array] | None = None


class Crop(NamedTuple):
    """The samples of one axis that are read: ``destination[i] = source[first + i]``.

    ``kept`` is ``size``, or 0 where nothing but zeros of the border is read.
    """

    size: int
    first: int
    kept: int


def crop(crops: tuple[Crop, ...], axis: int, copy: Copy, destination: Array, source: Array) -> None:
    """Copy what is read of the axes from ``axis`` on."""
    if all(c.kept for c in crops):
        window = tuple(slice(c.first, c.first + c.kept) for c in crops)
        copy(destination, source[(*(slice(None),) * axis, *window)])
    else:
        destination[...] = 0


class Phase(NamedTuple):
    """What the samples of one residue meet along one axis (see the head of this file).

    Attributes
    ----------
    first, outputs : int
        The samples are ``first + q * stride`` for q below ``outputs``.
    taps : range
        Empty where they meet none.
    dilation, low, high : int
        Of the forward problem, whose paddings are not negative.
    crop : Crop
        What it reads of y.
    """

    first: int
    outputs: int
    taps: range
    dilation: int
    low: int
    high: int
    crop: Crop

    @property
    def shape(self) -> tuple[Any, ...]:
        """What phases that are computed together have in common."""
        return (self.outputs, len(self.taps), *self[3:])


def phases(n: int, m: int, k: int, stride: int, lo: int, dilation: int) -> list[Phase]:
    """The phases of one axis, in the order of their first samples."""
    common = gcd(dilation, stride)
    step = stride // common  # from tap to tap of one residue
    found = []
    for first in range(min(stride, n)):
        outputs = -(-(n - first) // stride)
        residue = (first + lo) % stride
        start = next((t for t in range(step) if (t * dilation - residue) % stride == 0), k)
        taps = range(start, k, step)
        spacing = dilation // common if len(taps) > 1 else 1
        reach = (len(taps) - 1) * spacing
        low = reach - (first + lo - start * dilation) // stride
        high = outputs + reach - m - low
        begin = max(0, -low)
        count = m - begin - max(0, -high)
        if not taps or count <= 0:  # no tap, or every one reads the border alone
            nothing = Crop(outputs, 0, 0)
            found.append(Phase(first, outputs, range(0), 1, 0, 0, nothing))
        else:
            read = Crop(count, begin, count)
            found.append(Phase(first, outputs, taps, spacing, max(0, low), max(0, high), read))
    return found


Phases = tuple[Phase, ...]  # one of each axis


def swap_weights(
    spec: ConvSpec, members: list[Phases], copy: Copy, destination: Array, source: Array
) -> None:
    """``(K, C/groups, *kernel)`` to ``(members * C, K/groups, *taps)``, group by group.

    Each member takes its own taps, backwards.
    """
    k, c = source.shape[:2]
    if spec.flip:
        source = source[(..., *(slice(None, None, -1),) * spec.ndim)]
    order = (0, 2, 1, *range(3, 3 + spec.ndim))
    split = source.reshape(spec.groups, k // spec.groups, c, *spec.kernel_size).transpose(order)
    inner = (spec.groups, len(members), c, k // spec.groups, *destination.shape[2:])
    target = destination.reshape(inner)
    for place, member in enumerate(members):
        copy(target[:, place], split[(..., *(_backwards(phase.taps) for phase in member))])


def _backwards(taps: range) -> slice:
    last, end = taps[-1], taps.start - taps.step
    return slice(last, None if end < 0 else end, -taps.step)


def interleave(
    spec: ConvSpec, members: list[Phases], copy: Copy, destination: Array, source: Array
) -> None:
    """Put what the members' channels hold to the members' samples."""
    axis = layouts.channel_axis(spec.layout, spec.ndim)
    channels = spec.in_channels // spec.groups

    def split(array: Array, *parts: int) -> Array:
        return array.reshape(*array.shape[:axis], *parts, *array.shape[axis + 1 :])

    # The channels of both as (group, member, channel); splitting an axis never copies.
    source = split(source, spec.groups, len(members), channels)
    destination = split(destination, spec.groups, channels)
    for place, member in enumerate(members):
        samples = tuple(slice(phase.first, None, stride)
                        for phase, stride in zip(member, spec.stride, strict=True))  # fmt: skip
        if spec.channels_last:
            copy(destination[(slice(None), *samples)], source[..., place, :])
        else:
            copy(destination[(slice(None),) * 3 + samples], source[:, :, place])


def _repeat_bias(groups: int, times: int, bias: Array) -> Array:
    return bias.reshape(groups, 1, -1).repeat(times, axis=1).reshape(-1)


def exchange(copy: Copy, destination: Array, source: Array) -> None:
    """``(A, B, ...)`` to ``(B, A, ...)``."""
    copy(destination, source.transpose((1, 0, *range(2, source.ndim))))


def input_grad_as_forward(spec: ConvSpec) -> tuple[list[AsForward], bool]:
    """The transposed convolution, or the gradient with respect to x, as forward problems.

    Parameters
    ----------
    spec : ConvSpec
        Transposed or input_grad, ``pad_mode="zeros"``, not empty, and not conjugating (conjugate w
        before).

    Returns
    -------
    parts : list of AsForward
        At least one; their inner problems have stride 1 and keep layout, groups, bias and
        activation.  Each writes its own samples of the result; with stride 1 there is one.
    has_gaps : bool
        Whether there are samples that no part writes: their sums are empty.
    """
    _check(spec, spec.computes_input)
    together: dict[tuple[Any, ...], list[Phases]] = {}
    has_gaps = False
    axes = [
        phases(n, m, k, s, lo, d)
        for n, m, k, s, (lo, _), d in zip(
            spec.in_size, spec.out_size, spec.kernel_size, spec.stride, spec.padding,
            spec.dilation, strict=True,
        )
    ]  # fmt: skip
    for member in product(*axes):
        if all(phase.taps for phase in member):
            together.setdefault(tuple(phase.shape for phase in member), []).append(member)
        else:
            has_gaps = True
    if not together:  # nothing but zeros is summed: one product with zero of the first samples
        firsts = (axis[0].outputs for axis in axes)
        together[()] = [tuple(Phase(0, q, range(1), 1, 0, 0, Crop(q, 0, 0)) for q in firsts)]
    return [_part(spec, members) for members in together.values()], has_gaps


def _part(spec: ConvSpec, members: list[Phases]) -> AsForward:
    """The problem of phases that differ only in their samples and taps."""
    one = members[0]
    inner = spec.replace(
        direction=Direction.FORWARD,
        in_channels=spec.out_channels,
        out_channels=spec.in_channels * len(members),
        in_size=tuple(phase.crop.size for phase in one),
        kernel_size=tuple(len(phase.taps) for phase in one),
        out_size=tuple(phase.outputs for phase in one),
        stride=(1,) * spec.ndim,
        padding=tuple((phase.low, phase.high) for phase in one),
        dilation=tuple(phase.dilation for phase in one),
        flip=False,
        strided=False,
    )
    crops = tuple(phase.crop for phase in one)
    same = all(c.kept == m for c, m in zip(crops, spec.out_size, strict=True))
    axis = layouts.spatial_axes(spec.layout, spec.ndim)[0]
    return AsForward(
        inner.replace(strided=spec.strided) if same else inner,
        None if same else partial(crop, crops, axis),
        partial(swap_weights, spec, members),
        None if spec.in_size == inner.out_size else partial(interleave, spec, members),
        partial(_repeat_bias, spec.groups, len(members)) if len(members) > 1 else None,
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
    if spec.channels_last:
        raise ValueError(f"{spec} must be brought to channels-first before")
    crops, paddings = [], []
    for axis in range(spec.ndim):
        n, (lo, _) = spec.in_size[axis], spec.padding[axis]
        read = geometry.extent(spec.out_size[axis], spec.stride[axis])
        read += spec.dilation[axis] * (spec.kernel_size[axis] - 1)  # samples that are read
        if lo >= read:
            crops.append(Crop(read, 0, 0))  # nothing but zeros of the border
            paddings.append((0, 0))
            continue
        kept = min(n, read - lo)
        crops.append(Crop(kept, 0, kept))
        paddings.append((lo, read - lo - kept))
    channels = spec.in_channels // spec.groups
    inner = spec.replace(
        direction=Direction.FORWARD,
        batch=channels,
        in_channels=spec.groups * spec.batch,
        in_size=tuple(c.size for c in crops),
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
        partial(_images_of_channels, spec.groups, tuple(crops)),
        exchange,
        partial(_taps_of_outputs, spec.flip),
    )


def _images_of_channels(
    groups: int, crops: tuple[Crop, ...], copy: Copy, destination: Array, source: Array
) -> None:
    n, c, *size = source.shape
    order = (2, 1, 0, *range(3, 3 + len(size)))
    source = source.reshape(n, groups, c // groups, *size).transpose(order)
    inner = destination.shape[2:]
    crop(crops, 3, copy, destination.reshape(c // groups, groups, n, *inner), source)


def _taps_of_outputs(flip: bool, copy: Copy, destination: Array, source: Array) -> None:
    if flip:
        source = source[(..., *(slice(None, None, -1),) * (source.ndim - 2))]
    exchange(copy, destination, source)


def _check(spec: ConvSpec, direction_fits: bool) -> None:
    wanted = (
        direction_fits and spec.pad_mode == "zeros" and not spec.conjugates and not spec.is_empty
    )
    if not wanted:
        raise ValueError(
            f"{spec} must be brought to pad_mode='zeros', without conjugation, before it is "
            "expressed as forward problems"
        )

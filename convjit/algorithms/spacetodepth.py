"""A convolution with a stride as one of stride 1 over more channels: phases of x.

Every ``stride``-th sample of an axis, from one of its first few on, is a *phase*.  Since an output
reads at multiples of the stride from its own place on, the taps that read one phase are a
convolution of stride 1 over it, and the phases are channels: "space to depth", the polyphase
decomposition (P. P. Vaidyanathan, *Multirate Systems and Filter Banks*, 1993, section 4.3).
It costs a copy of x, and opens the strided problem to algorithms for stride 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import gcd, prod
from typing import NamedTuple

from convjit.algorithms.fills import Array, Copy
from convjit.algorithms.geometry import Range, extent, outputs_of_tap
from convjit.spec import ConvSpec

_Index = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis.

    With ``g = gcd(stride, dilation)``, tap ``u * stride/g + v`` of output ``o`` reads
    ``x[o * stride - lo + (u * stride/g + v) * dilation]``, which is
    ``x[(o + u * dilation/g) * stride + v * dilation - lo]``: tap ``u``, dilated by ``dilation/g``,
    of phase ``v``, whose sample ``m`` is ``x[m * stride + v * dilation - lo]``.

    Attributes
    ----------
    n, stride, lo, step : int
        Samples of x, its stride, padding before it and dilation.
    count : int
        Phases that any tap reads.
    taps, dilation : int
        Of each phase; ``count * taps`` is the kernel's size or more.
    samples : int
        Of each phase, those that stand for padding included.
    """

    n: int
    stride: int
    lo: int
    step: int
    count: int
    taps: int
    dilation: int
    samples: int

    @classmethod
    def of(cls, n: int, outputs: int, kernel: int, stride: int, dilation: int, lo: int) -> Axis:
        common = gcd(stride, dilation)
        taps = -(-kernel // (stride // common))
        inner = dilation // common
        return cls(
            n, stride, lo, dilation, min(stride // common, kernel), taps, inner,
            outputs + extent(taps, inner) - 1,
        )  # fmt: skip

    def _inside(self) -> list[Range]:
        """The samples of each phase that are x's."""
        place = self.n, self.samples, self.stride, self.lo, self.step
        return [outputs_of_tap(phase, *place) for phase in range(self.count)]

    def moves(self) -> list[Move]:
        """What fills the phases from x, in parts that do not overlap.

        Phases whose taps are neighbours are filled at once as far as all are x's: there, samples
        and phases of them are a view of x.
        """
        inside = self._inside()
        start = max(part.start for part in inside)
        # Behind the last of these, x has a whole stride.
        stop = min(*(part.stop for part in inside), (self.n + self.lo) // self.stride)
        moves = []
        if self.step == 1 and start < stop:
            first = start * self.stride - self.lo
            chosen = slice(first, first + (stop - start) * self.stride)
            every = slice(0, self.count)
            moves.append(Move(slice(start, stop), every, chosen, (stop - start, self.stride)))
        else:
            start = stop = 0
        for phase, part in enumerate(inside):
            edges = (
                Range(part.start, min(part.stop, start)),
                Range(max(part.start, stop), part.stop),
            )
            for edge in filter(len, edges):
                first = edge.start * self.stride - self.lo + phase * self.step
                chosen = slice(first, first + (len(edge) - 1) * self.stride + 1, self.stride)
                moves.append(
                    Move(slice(*edge), slice(phase, phase + 1), chosen, (len(edge), 1))
                )  # fmt: skip
        return moves

    def borders(self) -> list[slice]:
        """Samples that are not x's in all phases: some are zeros."""
        inside = self._inside()
        start, stop = max(part.start for part in inside), min(part.stop for part in inside)
        parts = (Range(0, min(start, self.samples)), Range(max(start, stop), self.samples))
        return [slice(*part) for part in parts if len(part)]


class Move(NamedTuple):
    """Samples of some phases, where in x they lie, and as (samples, phases or more of them)."""

    samples: slice
    phases: slice
    of_x: slice
    shape: tuple[int, int]


class _Filling(NamedTuple):
    """Shapes and indices by which the phases are filled.

    Among them x has an axis of groups, and behind each spatial axis, which is one of samples, one
    of phases; the inner x has axes of groups and of each spatial axis's phases.
    """

    x_shape: tuple[int, ...]
    inner_shape: tuple[int, ...]
    order: tuple[int, ...]
    borders: list[_Index]
    # Of the inner x, of x, what shape that takes, and which of its phases are read.
    moves: list[tuple[_Index, _Index, tuple[int, ...], _Index]]


class SpaceToDepth:
    """The phases of a problem without padding modes: the inner problem, and how its data is filled.

    Channels are, within each group, those of the first phase, then those of the second, the last
    axis's phases changing fastest.

    Attributes
    ----------
    inner : ConvSpec
        Of stride 1 and without padding.
    is_filled : bool
        Whether the inner kernel has taps that are none of the outer's; they are zeros.
    phases, copies : int
        How many phases there are, and how many assignments fill them from x.
    """

    def __init__(self, spec: ConvSpec) -> None:
        lows = tuple(lo for lo, _ in spec.padding)
        sizes = (spec.in_size, spec.out_size, spec.kernel_size, spec.stride, spec.dilation, lows)
        self._axes = axes = tuple(Axis.of(*size) for size in zip(*sizes, strict=True))
        self._counts = tuple(axis.count for axis in axes)
        self._each = spec.in_channels // spec.groups
        self.phases = prod(self._counts)
        self.copies = prod(len(axis.moves()) for axis in axes)
        self.is_filled = any(
            axis.count * axis.taps > k for axis, k in zip(axes, spec.kernel_size, strict=True)
        )
        self.inner = spec.replace(
            in_channels=spec.in_channels * prod(self._counts),
            in_size=tuple(axis.samples for axis in axes),
            kernel_size=tuple(axis.taps for axis in axes),
            stride=(1,) * spec.ndim,
            dilation=tuple(axis.dilation for axis in axes),
            padding=((0, 0),) * spec.ndim,
            strided=False,
        )
        self._spec = spec

    # ---------------------------------------------------------------- x

    @cached_property
    def _filling(self) -> _Filling:
        """Found when x is first filled: most steps are only asked what they would cost."""
        spec, ndim, data = self._spec, self._spec.ndim, (self._spec.groups, self._each)
        whole, every = slice(None), (slice(None),) * self._spec.ndim
        samples, phases = range(0, 2 * ndim, 2), range(1, 2 * ndim, 2)
        size = self.inner.in_size
        before: tuple[int, ...]
        behind: tuple[int, ...]
        if spec.channels_last:
            before, behind = (spec.batch,), data
            inner_shape = (spec.batch, *size, spec.groups, *self._counts, self._each)
            order = (
                0, *(1 + i for i in samples), 2 * ndim + 1, *(1 + i for i in phases), 2 * ndim + 2,
            )  # fmt: skip
        else:
            before, behind = (spec.batch, *data), ()
            inner_shape = (spec.batch, spec.groups, *self._counts, self._each, *size)
            order = (0, 1, *(3 + i for i in phases), 2, *(3 + i for i in samples))

        def inside(window: Sequence[slice], chosen: Sequence[slice]) -> _Index:
            if spec.channels_last:
                return (whole, *window, whole, *chosen)
            return (whole, whole, *chosen, whole, *window)

        borders = [
            inside((*every[:number], border, *every[number + 1 :]), every)
            for number, axis in enumerate(self._axes)
            for border in axis.borders()
        ]
        outer, found = (whole,) * len(before), []
        for moves in product(*(axis.moves() for axis in self._axes)):
            into = inside([move.samples for move in moves], [move.phases for move in moves])
            out_of = (*outer, *(move.of_x for move in moves))
            shape = (*before, *(n for move in moves for n in move.shape), *behind)
            counts = (move.phases.stop - move.phases.start for move in moves)
            read = (*outer, *(s for n in counts for s in (whole, slice(0, n))))
            found.append((into, out_of, shape, read))
        return _Filling((*before, *spec.in_size, *behind), inner_shape, order, borders, found)

    def fill_x(self, copy: Copy, destination: Array, source: Array) -> None:
        """The phases of x, and zeros for its padding."""
        filling = self._filling
        source = source.reshape(filling.x_shape)
        destination = destination.reshape(filling.inner_shape)
        for border in filling.borders:
            destination[border] = 0
        for into, out_of, shape, read in filling.moves:
            part = source[out_of].reshape(shape)[read]
            copy(destination[into], part.transpose(filling.order))

    # ---------------------------------------------------------------- w

    def _taps(self, outer: Array, inner: Array) -> Iterator[tuple[Array, Array]]:
        """Each phase's taps, outside and inside, without those that fill it up."""
        shape = inner.shape
        inner = inner.reshape(shape[0], *self._counts, self._each, *shape[2:])
        for phases in product(*map(range, self._counts)):
            steps = [slice(v, None, n) for v, n in zip(phases, self._counts, strict=True)]
            part = outer[(slice(None), slice(None), *steps)]
            held = [slice(0, k) for k in part.shape[2:]]
            yield part, inner[(slice(None), *phases, slice(None), *held)]

    def fill_w(self, copy: Copy, destination: Array, source: Array) -> None:
        """The inner kernel from the outer one."""
        if self.is_filled:
            destination[...] = 0
        for part, held in self._taps(source, destination):
            copy(held, part)

    def fill_from_w(self, copy: Copy, destination: Array, source: Array) -> None:
        """The outer kernel from the inner one."""
        for part, held in self._taps(destination, source):
            copy(part, held)

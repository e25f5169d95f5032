"""Padding made explicit: x and its border in one array, and the adjoint, the border folded back.

A mode other than zeros says which sample of x stands at each place of the border.  Forward, the
border is copied from there; where x is the result, what reaches the border is added there.
"""

from __future__ import annotations

from convjit import layout as layouts
from convjit.algorithms.fills import Array, Copy
from convjit.spec import ConvSpec

_Index = tuple[slice, ...]


def border_and_origin(
    mode: str, axis: int, n: int, lo: int, hi: int
) -> list[tuple[_Index, _Index]]:
    """(border, origin) along one axis of the padded array; one slice each, by the limits.

    In padded coordinates the image is ``lo .. lo + n``.  The origin of a border runs backwards for
    the mirrored modes; replicate has one sample for all of it.
    """
    first, end = lo, lo + n

    def index(start: int, stop: int, step: int = 1) -> _Index:
        # A reversed slice that ends at position 0 has no non-negative stop.
        return (slice(None),) * axis + (slice(start, None if stop < 0 else stop, step),)

    origins = {
        "replicate": ((first, first + 1, 1), (end - 1, end, 1)),
        "circular": ((end - lo, end, 1), (first, first + hi, 1)),
        "reflect": ((first + lo, first, -1), (end - 2, end - 2 - hi, -1)),
        "symmetric": ((first + lo - 1, first - 1, -1), (end - 1, end - 1 - hi, -1)),
    }[mode]
    pairs = []
    if lo:
        pairs.append((index(0, lo), index(*origins[0])))
    if hi:
        pairs.append((index(end, end + hi), index(*origins[1])))
    return pairs


class Border:
    """The border of a problem's x.

    Attributes
    ----------
    inner : ConvSpec
        The problem of the padded x, without padding.
    """

    def __init__(self, spec: ConvSpec) -> None:
        self._mode = spec.pad_mode
        size = tuple(n + lo + hi for n, (lo, hi) in zip(spec.in_size, spec.padding, strict=True))
        self.inner = spec.replace(
            in_size=size, padding=((0, 0),) * spec.ndim, pad_mode="zeros"
        )  # fmt: skip
        axes = layouts.spatial_axes(spec.layout, spec.ndim)
        index = [slice(None)] * (spec.ndim + 2)
        self._pairs: list[tuple[int, _Index, _Index]] = []
        for axis, n, (lo, hi) in zip(axes, spec.in_size, spec.padding, strict=True):
            index[axis] = slice(lo, lo + n)
            if self._mode != "zeros":
                pairs = border_and_origin(self._mode, axis, n, lo, hi)
                self._pairs += [(axis, *pair) for pair in pairs]
        self._image = tuple(index)

    def pad(self, copy: Copy, destination: Array, source: Array) -> None:
        """The padded x from x; later axes copy what earlier ones have filled: the corners."""
        if self._mode == "zeros":
            destination[...] = 0
        copy(destination[self._image], source)
        for _, border, origin in self._pairs:
            destination[border] = destination[origin]

    def fold(self, copy: Copy, destination: Array, source: Array) -> None:
        """x from the padded x, which is changed: the adjoint of :meth:`pad`."""
        for axis, border, origin in reversed(self._pairs):
            if self._mode == "replicate":
                source[origin] += source[border].sum(axis=axis, keepdims=True)
            else:
                source[origin] += source[border]
        copy(destination, source[self._image])

"""The axes of an image as the implicit GEMMs gather from them: sizes, and bits for their taps.

A sample lies outside the image where one of its coordinates does.  A position therefore has a mask
with one bit for each tap of each axis that is padded, a depth of the product has the bits of its
own taps, and whether to copy is one ``and``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from convjit.spec import ConvSpec
from convjit.spi import Feature, Refusal

Array = Any

MOST_BITS = 30  # of taps; the kernels use the two above for what has no tap


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of the image: as many bits of a mask as taps may lie outside, or 0.

    The fields are those of the sources' ``Axis``, and the taps.
    """

    bits: int = 0
    size: int = 1
    out: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    taps: int = 1

    @property
    def numbers(self) -> tuple[int, ...]:
        """As a kernel is told them."""
        return self.bits, self.size, self.out, self.stride, self.padding, self.dilation


@lru_cache(maxsize=1024)
def axes_of(spec: ConvSpec) -> tuple[Axis, Axis, Axis]:
    """The three axes of a problem; the first of fewer have one sample and one tap."""
    axes = [Axis()] * (3 - spec.ndim)
    for n, out, taps, s, (lo, _), d in zip(
        spec.in_size, spec.out_size, spec.kernel_size, spec.stride, spec.padding, spec.dilation,
        strict=True,
    ):  # fmt: skip
        all_inside = lo == 0 and (out - 1) * s + (taps - 1) * d < n
        axes.append(Axis(0 if all_inside else taps, n, out, s, lo, d, taps))
    z, y, x = axes
    return z, y, x


def refuse_bits(spec: ConvSpec) -> Refusal | None:
    """The refusal of more taps than a mask has bits."""
    bits = sum(axis.bits for axis in axes_of(spec))
    if bits <= MOST_BITS:
        return None
    return Refusal(
        Feature.SIZE, f"the {bits} taps along the padded axes exceed a mask of {MOST_BITS} bits"
    )


def offsets_and_bits(
    axes: Sequence[Axis], taps: Sequence[Array], strides: Sequence[int]
) -> tuple[Array, Array]:
    """Of taps, given along each axis, the offset from a position's first one, and the bits.

    ``strides`` are elements from a sample to the next along each axis.
    """
    offset, bits, first = np.zeros_like(taps[0]), np.zeros_like(taps[0]), 0
    for axis, tap, stride in zip(axes, taps, strides, strict=True):
        offset += tap * axis.dilation * stride
        if axis.bits:
            bits |= 1 << (first + tap)
        first += axis.bits
    return offset, bits

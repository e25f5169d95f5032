"""The axes of an image as the implicit GEMMs gather from them: sizes, and bits for their taps.

A sample lies outside the image where one of its coordinates does.  A position therefore has a mask
with one bit for each tap of each axis that is padded, a depth of the product has the bits of its
own taps, and whether to copy is one ``and``, or two where the taps of the axes are many together.
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

# Of taps, in masks of 32 and 64 bits; the kernels use the two above for what has no tap.
BITS = {32: 30, 64: 62}
MOST_BITS = BITS[64]

# For the sources of kernels, with the macro MASK.
MASKS = r"""
#if MASK == 64
using Mask = unsigned long long;
#else
using Mask = unsigned;
#endif
"""


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


def _bits(axes: Sequence[Axis]) -> int:
    return sum(axis.bits for axis in axes)


def refuse_bits(spec: ConvSpec) -> Refusal | None:
    """The refusal of more taps than a mask has bits."""
    bits = _bits(axes_of(spec))
    if bits <= MOST_BITS:
        return None
    return Refusal(
        Feature.SIZE, f"the {bits} taps along the padded axes exceed a mask of {MOST_BITS} bits"
    )


def mask_bits(axes: Sequence[Axis]) -> int:
    """Bits of the masks that a problem needs which is not refused."""
    return next((width for width, most in BITS.items() if _bits(axes) <= most), max(BITS))


def entry_words(mask: int) -> int:
    """Words of an entry of :func:`table` for masks of so many bits."""
    return 1 + mask // 32


def table(offset: Array, bits: Array, mask: int, count: int, beyond: int) -> Array:
    """Of each tap the offset, modulo 2^32, and the bits, lower word first.

    The last of ``count``, for which nothing is given, have the bits ``beyond``.

    Returns
    -------
    array of uint32, (count, 2) for masks of 32 bits, (count, 3) for those of 64
    """
    entries = np.zeros((count, entry_words(mask)), np.uint32)
    entries[: offset.size, 0] = offset & 0xFFFFFFFF
    every = np.full(count, beyond, np.uint64)
    every[: bits.size] = bits
    for word in range(mask // 32):
        entries[:, 1 + word] = every >> np.uint64(32 * word) & np.uint64(0xFFFFFFFF)
    return entries


def offsets_and_bits(
    axes: Sequence[Axis], taps: Sequence[Array], strides: Sequence[int]
) -> tuple[Array, Array]:
    """Of taps, given along each axis, the offset from a position's first one, and the bits.

    ``strides`` are elements from a sample to the next along each axis.
    """
    offset, bits, first = np.zeros_like(taps[0]), np.zeros(taps[0].shape, np.uint64), 0
    for axis, tap, stride in zip(axes, taps, strides, strict=True):
        offset += tap * axis.dilation * stride
        if axis.bits:
            bits |= np.uint64(1) << (first + tap).astype(np.uint64)
        first += axis.bits
    return offset, bits

"""Kernels of rank 1: an outer product of one factor per axis, as which they run axis by axis.

A sum over ``k**2`` taps becomes two sums over k (S. Treitel and J. Shanks, "The design of
multistage separable planar filters", IEEE Trans. Geoscience Electronics 9, 1971).  Blurs, gradients
and box filters are of this kind.  The factors are the lines of the kernel through its largest
element, which for an outer product is exact but for rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from convjit import precision
from convjit.spec import ConvSpec, Direction

Array = npt.NDArray[Any]

# Unit roundoffs by which an element may differ from the product of the factors, relative to it.  An
# outer product in working precision has a relative error of one, its scaling (to a sum of 1) one
# more, and each of the ndim lines and the division by the largest element repeats both.
TOLERANCE = 8.0


def has_axes(spec: ConvSpec) -> bool:
    """Whether a problem's kernels could be outer products: planes with two taps on two axes."""
    return (
        spec.direction is Direction.FORWARD
        and spec.dtype in ("float32", "float64")
        and spec.in_channels == spec.out_channels == spec.groups
        and sum(k > 1 for k in spec.kernel_size) > 1
    )


def factors(weights: Array) -> list[Array] | None:
    """One factor per axis, or None if any of the kernels is no outer product.

    Parameters
    ----------
    weights : (K, 1, *kernel)

    Returns
    -------
    list of array, or None
        Of shapes ``(K, 1, 1, .., k, .., 1)``, whose product is the kernel to within
        :data:`TOLERANCE` unit roundoffs of each element.  Where an element is not finite, None.
    """
    count, _, *kernel = weights.shape
    if count > 1 and factors(weights[:1]) is None:  # learnt kernels are seen through at the first
        return None
    axes = range(2, weights.ndim)
    exact = weights.astype(np.float64)
    flat = exact.reshape(count, -1)
    place = np.abs(flat).argmax(axis=1)
    largest = flat[np.arange(count), place]
    if not np.isfinite(largest).all():
        return None
    # A kernel of zeros is the product of zeros.
    scale = np.where(largest == 0.0, 1.0, largest)
    where = np.unravel_index(place, kernel)
    images = np.arange(count)
    found = []
    # One factor holds the scale: that of an axis which has a pass.
    first = next((axis for axis in axes if weights.shape[axis] > 1), 2)
    for axis in axes:
        index: list[Any] = [images, np.zeros(count, int), *where]
        index[axis] = slice(None)
        # Advanced indices around a slice come first: (K, k).
        line = exact[tuple(index)].reshape(count, -1)
        if axis != first:
            line = line / scale[:, None]
        found.append(line.reshape(count, 1, *(-1 if a == axis else 1 for a in axes)))
    product = found[0]
    for factor in found[1:]:
        product = product * factor
    unit = precision.UNIT_ROUNDOFF[weights.dtype.name]
    if not (np.abs(product - exact) <= TOLERANCE * unit * np.abs(product)).all():
        return None
    rounded = [factor.astype(weights.dtype) for factor in found]
    # A factor that underflows is off by more than the one rounding that error_bound counts.
    for factor, kept in zip(found, rounded, strict=True):
        if not (np.abs(kept - factor) <= unit * np.abs(factor)).all():
            return None
    return rounded


def passes(spec: ConvSpec) -> list[tuple[int, ConvSpec]]:
    """(axis, problem) of each pass, in order; bias and activation are the last one's.

    Axes with the largest stride come first, since the others then have less to do.
    """
    axes = [axis for axis, k in enumerate(spec.kernel_size) if k > 1]
    axes.sort(key=lambda axis: -spec.stride[axis])
    # Strides of axes with a single tap are taken with the first pass.
    alone = [axis for axis, k in enumerate(spec.kernel_size) if k == 1]
    found = []
    size = spec.in_size
    for number, axis in enumerate(axes):
        active = {axis, *(alone if number == 0 else ())}

        def only(values: Any, rest: Any, active: set[int] = active) -> tuple[Any, ...]:
            return tuple(v if i in active else rest for i, v in enumerate(values))

        last = number == len(axes) - 1
        out = tuple(spec.out_size[i] if i in active else n for i, n in enumerate(size))
        inner = spec.replace(
            in_size=size, out_size=out, kernel_size=only(spec.kernel_size, 1),
            stride=only(spec.stride, 1), padding=only(spec.padding, (0, 0)),
            dilation=only(spec.dilation, 1), bias=spec.bias and last,
            activation=spec.activation if last else None,
            strided=spec.strided and number == 0,
        )  # fmt: skip
        found.append((axis, inner))
        size = out
    return found


def error_bound(bounds: list[float], dtype: str) -> float:
    """Bound of all passes together, relative to the largest sum of magnitudes.

    The magnitudes of one pass are the operands of the next, and the product of the factors'
    magnitudes is that of the kernel: relative errors add up, but for their products.
    """
    relative = 1.0 + TOLERANCE * precision.UNIT_ROUNDOFF[dtype]
    for bound in bounds:
        # One more rounding for the factor itself.
        relative *= 1.0 + bound + precision.UNIT_ROUNDOFF[dtype]
    return relative - 1.0

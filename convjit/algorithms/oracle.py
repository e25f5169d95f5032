"""The one oracle: the plain loop nest, in the widest arithmetic there is.

For every group and every tap of the kernel the outputs that read a sample are paired with that
sample, one axis at a time, by :func:`convjit.algorithms.geometry.source_index`; the rest is the sum
in the definition.  Nothing here is shared with the lowerings or with any solver, so that a mistake
in one cannot hide in the other.

Padding is never materialised: a tap that reads a zero of the border contributes nothing, not
``0 * w``, so that an Inf or NaN in either operand reaches exactly the outputs that the definition
names.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from convjit import layout as layouts
from convjit import precision
from convjit.algorithms import geometry
from convjit.spec import ConvSpec, Direction

Array = npt.NDArray[Any]
Taps = Iterator[tuple[tuple[int, ...], tuple[Array, ...], tuple[Array, ...]]]

# NumPy sums long doubles by a scalar loop of some 10^8 multiply-adds a second.  Beyond this many a
# float64 problem is summed in float64 itself, and the oracle's own rounding is part of the error.
LONGDOUBLE_MACS = 2 * 10**7


def oracle(spec: ConvSpec, lhs: Array, rhs: Array, bias: Array | None = None) -> Array:
    """The result of a problem, summed in wide arithmetic.

    Parameters
    ----------
    spec : ConvSpec
    lhs : array, spec.lhs_shape
        x; y where x is the result.
    rhs : array, spec.rhs_shape
        w; y for the weights' gradient.
    bias : array, (spec.result_channels,), optional

    Returns
    -------
    array, spec.result_shape
        float64 (complex128) for every floating (complex) dtype, not rounded to the problem's own;
        int64 or uint64, wrapped modulo 2**64, for integers and bool.  Problems in float64 and
        complex128 are summed in long double up to ``LONGDOUBLE_MACS`` multiply-adds, then rounded
        once.
    """
    wide = _wide_dtype(spec)
    total = _sum(spec, _channels_first(spec, lhs, True, wide), _second(spec, rhs, wide), wide)
    if bias is not None:
        total += _along_channels(bias.astype(wide), spec.ndim)
    if total.dtype.kind == "c":
        total = total.astype(np.complex128)
    elif total.dtype.kind == "f":
        total = total.astype(np.float64)
    return _in_layout(spec, _activate(spec, total))


def magnitudes(spec: ConvSpec, lhs: Array, rhs: Array, bias: Array | None = None) -> Array:
    """The same sum with every factor replaced by its magnitude: what errors are measured against.

    Parameters are those of :func:`oracle`; the activation is not applied.

    Returns
    -------
    array of float64, spec.result_shape
    """
    wide = np.dtype(np.float64)
    left = _channels_first(spec, _magnitude(lhs), True, wide)
    right = _second(spec, _magnitude(rhs), wide)
    total = _sum(spec, left, right, wide)
    if bias is not None:
        total += _along_channels(_magnitude(bias), spec.ndim)
    return _in_layout(spec, total)


def _wide_dtype(spec: ConvSpec) -> np.dtype[Any]:
    if spec.dtype in precision.INTEGER:
        return np.dtype(precision.result_dtype(spec.dtype))
    longer = spec.dtype in ("float64", "complex128") and spec.macs <= LONGDOUBLE_MACS
    if spec.dtype in precision.COMPLEX:
        return np.dtype(np.clongdouble if longer else np.complex128)
    return np.dtype(np.longdouble if longer else np.float64)


def _magnitude(array: Array) -> Array:
    """|a| in float64, also of the integer whose magnitude its own type does not hold."""
    wide = np.complex128 if array.dtype.kind == "c" else np.float64
    return np.asarray(np.abs(array.astype(wide)), dtype=np.float64)


def _channels_first(spec: ConvSpec, array: Array, check_lhs: bool, dtype: np.dtype[Any]) -> Array:
    """A data operand as (N, C, *spatial) in the wide dtype."""
    wanted = spec.lhs_shape if check_lhs else spec.rhs_shape
    if array.shape != wanted:
        raise ValueError(f"operand of {spec} has shape {array.shape}, not {wanted}")
    if spec.channels_last:
        array = array.transpose(layouts.to_channels_first(spec.ndim))
    return np.ascontiguousarray(array, dtype=dtype)


def _second(spec: ConvSpec, array: Array, dtype: np.dtype[Any]) -> Array:
    if spec.direction is Direction.WEIGHT_GRAD:
        return _channels_first(spec, array, False, dtype)
    if array.shape != spec.rhs_shape:
        raise ValueError(f"weights of {spec} have shape {array.shape}, not {spec.rhs_shape}")
    return np.ascontiguousarray(array, dtype=dtype)


def _in_layout(spec: ConvSpec, result: Array) -> Array:
    if spec.channels_last and spec.direction is not Direction.WEIGHT_GRAD:
        result = result.transpose(layouts.to_channels_last(spec.ndim))
    return np.ascontiguousarray(result)


def _along_channels(bias: Array, ndim: int) -> Array:
    return bias.reshape((-1,) + (1,) * ndim)


def _taps(spec: ConvSpec) -> Taps:
    """Every tap with the outputs it serves and the samples they read.

    Yields ``(position in w, outputs per axis, samples per axis)``; the two index arrays of an axis
    are paired, and outputs that read a zero of the border are left out.
    """
    axes: list[list[tuple[int, Array, Array]]] = []
    for axis in range(spec.ndim):
        n, k = spec.in_size[axis], spec.kernel_size[axis]
        stride, dilation, (lo, _) = spec.stride[axis], spec.dilation[axis], spec.padding[axis]
        taps = []
        for t in range(k):
            reads = [
                (o, geometry.source_index(o * stride - lo + t * dilation, n, spec.pad_mode))
                for o in range(spec.out_size[axis])
            ]
            pairs = [(o, source) for o, source in reads if source is not None]
            outputs = np.array([o for o, _ in pairs], dtype=np.intp)
            samples = np.array([s for _, s in pairs], dtype=np.intp)
            taps.append((k - 1 - t if spec.flip else t, outputs, samples))
        axes.append(taps)
    for combination in product(*axes):
        places, outputs_of, samples_of = zip(*combination, strict=True)
        if all(len(o) for o in outputs_of):
            yield places, outputs_of, samples_of


def _sum(spec: ConvSpec, lhs: Array, rhs: Array, dtype: np.dtype[Any]) -> Array:
    """The sum of products, channels-first, in ``dtype``."""
    n, groups = spec.batch, max(spec.groups, 1)
    c, k = spec.in_channels // groups, spec.out_channels // groups
    result_shape = {
        Direction.FORWARD: (n, spec.out_channels, *spec.out_size),
        Direction.WEIGHT_GRAD: spec.w_shape,
    }.get(spec.direction, (n, spec.in_channels, *spec.in_size))
    result = np.zeros(result_shape, dtype)
    if spec.is_empty:
        return result
    with np.errstate(all="ignore"):  # Inf and NaN are data here
        for place, outputs, samples in _taps(spec):
            count = int(np.prod([len(o) for o in outputs]))
            for g in range(groups):
                xs = (np.arange(n), np.arange(g * c, (g + 1) * c), *samples)
                ys = (np.arange(n), np.arange(g * k, (g + 1) * k), *outputs)
                ks: Any = (slice(g * k, (g + 1) * k), slice(None), *place)
                if spec.direction is Direction.FORWARD:
                    x = lhs[np.ix_(*xs)].reshape(n, c, count)
                    y = np.matmul(rhs[ks], x)
                    result[np.ix_(*ys)] += y.reshape(n, k, *map(len, outputs))
                elif spec.direction is Direction.WEIGHT_GRAD:
                    x = lhs[np.ix_(*xs)].reshape(n, c, count).conj()
                    y = rhs[np.ix_(*ys)].reshape(n, k, count)
                    result[ks] += np.matmul(y, x.transpose(0, 2, 1)).sum(axis=0)
                else:
                    w = rhs[ks].conj() if spec.conjugates else rhs[ks]
                    y = lhs[np.ix_(*ys)].reshape(n, k, count)
                    x = np.matmul(w.T, y)
                    # Several outputs may read one sample through the border: add.at sums them all.
                    np.add.at(result, np.ix_(*xs), x.reshape(n, c, *map(len, outputs)))
    return result


def _activate(spec: ConvSpec, y: Array) -> Array:
    if spec.activation is None:
        return y
    name, *numbers = spec.activation
    if name == "relu":
        return np.asarray(np.where(y < 0, y.dtype.type(0), y))  # NaN < 0 is false: passed on
    if name == "leaky_relu":
        return np.asarray(np.where(y < 0, y * numbers[0], y))
    lo, hi = numbers
    if y.dtype.kind in "iu":
        return np.asarray(np.clip(y, _whole(lo, y.dtype), _whole(hi, y.dtype)))
    return np.asarray(np.clip(y, lo, hi))


def _whole(bound: float, dtype: np.dtype[Any]) -> Any:
    """A clipping bound as an integer of a type; outside its range, the end on that side."""
    info = np.iinfo(dtype)
    if not info.min <= bound <= info.max:
        return dtype.type(info.max if bound > 0 else info.min)
    # float(2**63 - 1) is 2**63: the comparison in floating point lets it pass.
    return dtype.type(min(int(bound), int(info.max)))

"""Results checked at random points, each by the definition in float64.

The check shares nothing with a library's arithmetic: for every axis of a point it lists the taps
that reach data and the sample that each reads, and sums the products.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convjit import precision
from convjit.errors import BackendError, ConvSpecError
from convjit.explanation import Array
from convjit.spec import ConvSpec, Direction

POINTS = 48

# Errors are compared with the root of the sum of squared products, the scale on which rounding
# errors of independent terms add up.  Half precision or TF32 inside would show 3e-4 and more.
LIMITS = {"float32": 4e-5, "float64": 1e-12, "float16": 2e-2, "bfloat16": 1e-1}


def operands(spec: ConvSpec, seed: int = 0) -> tuple[Array, Array, Array | None]:
    """(lhs, rhs, bias) from a standard normal distribution, contiguous, channels first."""
    rng = np.random.default_rng(seed)
    kind = precision.numpy_dtype(spec.dtype)
    first = spec.replace(layout={1: "NCL", 2: "NCHW", 3: "NCDHW"}[spec.ndim])
    lhs = rng.standard_normal(first.lhs_shape, np.float32).astype(kind)
    rhs = rng.standard_normal(first.rhs_shape, np.float32).astype(kind)
    bias = rng.standard_normal(spec.result_channels).astype(kind) if spec.bias else None
    return lhs, rhs, bias


def check_supported(spec: ConvSpec) -> None:
    """Refuse what the check does not define.

    Raises
    ------
    ConvSpecError
        For borders other than zeros, and dtypes that are not floating point.
    """
    if spec.pad_mode != "zeros" or spec.activation is not None:
        raise ConvSpecError(f"bench times zero padding without an activation, not {spec}.")
    if spec.dtype not in LIMITS:
        raise ConvSpecError(f"bench times {', '.join(LIMITS)}, not {spec.dtype}.")


def _met(spec: ConvSpec, axis: int, position: int) -> tuple[list[int], list[int]]:
    """Along one axis of one point of the result: the positions that count in w and in the data.

    For the weights' gradient, whose point is a tap: those in y and in x.
    """
    lo, _ = spec.padding[axis]
    stride, dilation, size = spec.stride[axis], spec.dilation[axis], spec.kernel_size[axis]
    wgrad, limit = spec.direction is Direction.WEIGHT_GRAD, spec.in_size[axis]
    others = range(spec.out_size[axis] if wgrad else size)
    found = []
    for other in others:
        tap = position if wgrad else other
        # flip: the tap's place on the grid runs backwards, the padding stays.
        place = (size - 1 - tap if spec.flip else tap) * dilation
        if spec.computes_input:
            sample, rest = divmod(position + lo - place, stride)
            if not rest and 0 <= sample < spec.out_size[axis]:
                found.append((other, sample))
        else:
            sample = (other if wgrad else position) * stride - lo + place
            if 0 <= sample < limit:
                found.append((other, sample))
    return [other for other, _ in found], [sample for _, sample in found]


def point(
    spec: ConvSpec, lhs: Array, rhs: Array, bias: Array | None, index: tuple[int, ...]
) -> tuple[float, float]:
    """(value, root of the sum of squared products) of one point ``(n, channel, *position)``.

    Of the weights' gradient: ``(k, c, *tap)``.  All arrays are channels-first.
    """
    n, channel, *position = index
    axes = [_met(spec, axis, place) for axis, place in enumerate(position)]
    per_group_in = spec.in_channels // spec.groups
    per_group_out = spec.out_channels // spec.groups
    everything = slice(None)
    taps: Any = (everything, *np.ix_(*(np.array(t, dtype=np.intp) for t, _ in axes)))
    samples: Any = (everything, *np.ix_(*(np.array(s, dtype=np.intp) for _, s in axes)))
    if spec.direction is Direction.WEIGHT_GRAD:
        # n is a channel of y, channel one of x within its group; every image counts.
        group = n // per_group_out
        pixels = lhs[:, group * per_group_in + channel][samples]
        return _total(pixels, rhs[:, n][taps])
    if spec.computes_input:
        group, inside = divmod(channel, per_group_in)
        chosen = slice(group * per_group_out, (group + 1) * per_group_out)
        weights = rhs[chosen, inside]
    else:
        group = channel // per_group_out
        chosen = slice(group * per_group_in, (group + 1) * per_group_in)
        weights = rhs[channel]
    total, scale = _total(lhs[n, chosen][samples], weights[taps])
    return total if bias is None else total + float(bias[channel]), scale


def _total(one: Array, other: Array) -> tuple[float, float]:
    """Sum of the products, and the root of the sum of their squares."""
    products: Array = one.astype(np.float64) * other.astype(np.float64)
    return float(products.sum()), float(np.sqrt((products * products).sum()))


def check(
    spec: ConvSpec, lhs: Array, rhs: Array, bias: Array | None, result: Any, points: int = POINTS
) -> float:
    """Largest error over random points of a result (channels-first), relative as ``LIMITS`` says.

    Raises
    ------
    BackendError
        For a wrong shape, dtype or value.
    """
    first = spec.replace(layout={1: "NCL", 2: "NCHW", 3: "NCDHW"}[spec.ndim])
    result = np.asarray(result)
    if result.shape != first.result_shape or result.dtype.name != spec.result_dtype:
        raise BackendError(
            f"wrong result: {result.shape} {result.dtype}, wanted {first.result_shape} "
            f"{spec.result_dtype}"
        )
    rng = np.random.default_rng(1)
    worst = 0.0
    for _ in range(points):
        index = tuple(int(rng.integers(n)) for n in result.shape)
        expected, scale = point(first, lhs, rhs, bias, index)
        error = abs(float(result[index]) - expected) / (scale + 1e-3)
        if not error <= LIMITS[spec.dtype]:
            raise BackendError(
                f"wrong result: {float(result[index])!r} at {index}, wanted {expected!r} "
                f"(error {error:.1e}, limit {LIMITS[spec.dtype]:.0e})"
            )
        worst = max(worst, error)
    return worst

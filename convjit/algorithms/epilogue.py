"""Bias and activation on a whole array, in place: what fused kernels do in registers."""

from __future__ import annotations

from typing import Any

import numpy as np

from convjit import layout as layouts
from convjit.spec import ConvSpec

Array = Any


def epilogue(xp: Any, spec: ConvSpec, out: Array, bias: Array | None) -> None:
    """Add the bias and apply the activation in place; relu and clip pass NaN on.

    Parameters
    ----------
    xp : module
        ``numpy``, or a library with its names.
    out : array, spec.result_shape
    bias : array, (spec.result_channels,), optional
    """
    if bias is not None:
        shape = [1] * out.ndim
        shape[layouts.channel_axis(spec.layout, spec.ndim)] = -1
        out += bias.reshape(shape)
    if spec.activation is None:
        return
    name, *numbers = spec.activation
    if name == "relu":
        xp.maximum(out, 0, out=out)
    elif name == "leaky_relu":
        # Not multiply(where=): CuPy's functions have no such keyword.
        kind = out.dtype.type
        out *= xp.where(out < 0, kind(numbers[0]), kind(1))
    else:
        xp.clip(out, *(_bound(v, out.dtype) for v in numbers), out=out)


def _bound(value: float, dtype: Any) -> Any:
    """A clipping bound in a dtype; outside an integer type's range, the end on that side."""
    if dtype.kind not in "iu":
        return dtype.type(value)
    info = np.iinfo(dtype)
    if not info.min <= value <= info.max:
        return dtype.type(info.max if value > 0 else info.min)
    return dtype.type(min(int(value), int(info.max)))

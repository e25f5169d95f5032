"""The arguments of the public calls one by one: what each may be, and what is wrong with another.

Raised are TypeErrors for what is of another kind, and ConvSpecErrors for what has no meaning; they
name the argument, what was given, and what would be right.
"""

from __future__ import annotations

import operator
from math import inf, isnan
from typing import Any

from convjit import precision
from convjit.algorithms import geometry
from convjit.errors import ConvSpecError
from convjit.spec import Activation, Padding

PADDING_NAMES = ("valid", "same", "same_lower", "full")
Shape = tuple[int, ...]


def integer(name: str, value: Any, least: int) -> int:
    """A whole number of at least ``least``."""
    if isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a bool; give a whole number of at least {least}.")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}={value!r} is not a whole number; give an int of at least {least}."
        ) from None
    if number < least:
        raise ConvSpecError(f"{name}={value!r} must be at least {least}.")
    return number


def flag(name: str, value: Any) -> bool:
    """A bool; 0 and 1 are taken for one, as Python does."""
    if not isinstance(value, (bool, int)) or value not in (0, 1):
        raise TypeError(f"{name}={value!r} is not a bool; give True or False.")
    return bool(value)


def per_axis(name: str, value: Any, ndim: int, least: int) -> Shape:
    """One integer for every spatial axis, or one per axis, as a tuple."""
    if isinstance(value, (tuple, list)):
        if len(value) != ndim:
            raise ConvSpecError(
                f"{name}={value!r} has {len(value)} numbers, the kernel has {ndim} spatial axes; "
                f"give one number, or {ndim}."
            )
        return tuple(integer(f"{name}[{i}]", v, least) for i, v in enumerate(value))
    return (integer(name, value, least),) * ndim


def explicit_padding(
    padding: Any, in_size: Shape, kernel: Shape, stride: Shape, dilation: Shape
) -> Padding:
    """(lo, hi) per axis from any of the forms that ``padding=`` takes."""
    ndim = len(kernel)
    if isinstance(padding, str):
        if padding not in PADDING_NAMES:
            raise ConvSpecError(
                f"padding={padding!r} is not known; give an int, one per axis, (lo, hi) pairs, or "
                f"one of {', '.join(PADDING_NAMES)}."
            )
        if padding == "valid":
            return ((0, 0),) * ndim
        if padding == "full":
            return tuple(
                (geometry.extent(k, d) - 1,) * 2 for k, d in zip(kernel, dilation, strict=True)
            )
        lower = padding == "same_lower"
        return tuple(
            geometry.same_padding(n, k, s, d, lower=lower)
            for n, k, s, d in zip(in_size, kernel, stride, dilation, strict=True)
        )
    if isinstance(padding, (tuple, list)) and any(isinstance(p, (tuple, list)) for p in padding):
        if len(padding) != ndim or any(
            not isinstance(p, (tuple, list)) or len(p) != 2 for p in padding
        ):
            raise ConvSpecError(
                f"padding={padding!r} must have one (lo, hi) pair for each of the {ndim} spatial "
                "axes."
            )
        return tuple(
            (integer(f"padding[{i}][0]", lo, 0), integer(f"padding[{i}][1]", hi, 0))
            for i, (lo, hi) in enumerate(padding)
        )
    return tuple((p, p) for p in per_axis("padding", padding, ndim, 0))


def parse_activation(activation: Any, dtype: str) -> Activation | None:
    """The activation as a tuple; complex results have none, integers no slope."""
    if activation is None:
        return None
    parts = (activation,) if isinstance(activation, str) else activation
    forms = "None, 'relu', ('leaky_relu', slope) or ('clip', lo, hi)"
    if not isinstance(parts, tuple) or not parts or not isinstance(parts[0], str):
        raise TypeError(f"activation={activation!r} is not an activation; give {forms}.")
    name, *arguments = parts
    if {"relu": 0, "leaky_relu": 1, "clip": 2}.get(name) != len(arguments):
        raise ConvSpecError(f"activation={activation!r} is not known; give {forms}.")
    numbers = []
    for value in arguments:
        try:
            numbers.append(float(value))
        except (TypeError, ValueError):
            raise TypeError(f"activation={activation!r}: {value!r} is not a number.") from None
    if any(isnan(v) for v in numbers):
        raise ConvSpecError(f"activation={activation!r} has a NaN.")
    if name == "clip" and numbers[0] > numbers[1]:
        raise ConvSpecError(f"activation={activation!r}: lo is above hi; swap them.")
    if dtype in precision.COMPLEX:
        raise ConvSpecError(
            f"activation={activation!r} needs an order, {dtype} has none; convolve without it."
        )
    if dtype in precision.INTEGER and (
        name == "leaky_relu" or any(abs(v) != inf and v != int(v) for v in numbers)
    ):
        raise ConvSpecError(
            f"activation={activation!r} does not keep {precision.result_dtype(dtype)} results "
            "whole; convert the inputs to float64, or use whole bounds."
        )
    return (name, *numbers)


def parse_pad_mode(pad_mode: Any) -> str:
    """One of :data:`convjit.algorithms.geometry.PAD_MODES`."""
    if pad_mode not in geometry.PAD_MODES:
        raise ConvSpecError(
            f"pad_mode={pad_mode!r} is not known; choose one of {', '.join(geometry.PAD_MODES)}."
        )
    return str(pad_mode)


def as_shape(name: str, value: Any) -> Shape:
    """A shape given as a tuple (or a list) of sizes."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name}={value!r} is not a shape; give a tuple of sizes.")
    return tuple(integer(f"{name}[{i}]", v, 0) for i, v in enumerate(value))

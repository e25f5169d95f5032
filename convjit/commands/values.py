"""Values on the command line, each from its spelling."""

from __future__ import annotations

import argparse
import math
from typing import Any

from convjit import config
from convjit.errors import ConfigError


def shape(text: str) -> tuple[int, ...]:
    """``1,64,56,56`` or ``1x64x56x56``."""
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a shape; write it as 1,64,56,56"
        ) from None


def sizes(text: str) -> int | tuple[int, ...]:
    """``2`` or ``2,1``: one number for every axis, or one for each."""
    try:
        values = shape(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write 2 for every axis, or 2,1 for one after the other"
        ) from None
    return values[0] if len(values) == 1 else values


def padding(text: str) -> Any:
    """``1``, ``1,2``, ``0:1,2:2`` (lo:hi for each axis), or a name such as ``same``."""
    if text.replace("_", "").isalpha():
        return text
    try:
        if ":" in text:
            pairs = [part.split(":") for part in text.split(",")]
            return tuple((int(lo), int(hi)) for lo, hi in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a padding; write 1, or 1,2, or 0:1,2:2 for lo:hi, or a name"
        ) from None
    return sizes(text)


def activation(text: str) -> Any:
    """``relu``, ``leaky_relu,0.1`` or ``clip,0,6``."""
    name, *arguments = text.split(",")
    try:
        return (name, *(float(argument) for argument in arguments)) if arguments else name
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an activation; write relu, or leaky_relu,0.1, or clip,0,6"
        ) from None


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """A number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds; write 10")
    return value


def size_in_bytes(text: str) -> int:
    """``1048576``, ``512MiB`` or ``2G``."""
    try:
        return config.size_in_bytes("--workspace-limit", text)
    except ConfigError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write bytes, or a number with one of KiB, MiB, GiB"
        ) from None


def capabilities(text: str) -> tuple[tuple[int, int], ...]:
    """``8.0,9.0``: compute capabilities."""
    try:
        pairs = [part.split(".") for part in text.split(",")]
        return tuple((int(major), int(minor)) for major, minor in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a compute capability; write 8.0, or 8.0,9.0"
        ) from None


def words(text: str) -> list[str]:
    """Names separated by commas."""
    return [part for part in text.split(",") if part]


def one_or_more(names: list[str] | None) -> str | tuple[str, ...] | None:
    """Of :func:`words`, as ``backend=`` takes them."""
    if not names:
        return None
    return names[0] if len(names) == 1 else tuple(names)

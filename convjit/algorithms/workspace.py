"""Arrays cut out of one block of bytes, each aligned to a cache line.

The core allocates a call's workspace as a whole; lowerings and algorithms lay their buffers out in
it with the same arithmetic with which they told its size.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from convjit import precision

Array = Any  # of any library whose arrays have slices, view and reshape

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def _kind(dtype: Any) -> np.dtype[Any]:
    """A dtype, given as one or by convjit's name of it."""
    return precision.numpy_dtype(dtype) if isinstance(dtype, str) else np.dtype(dtype)


def nbytes(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array."""
    return prod(shape) * _kind(dtype).itemsize


def aligned(size: int) -> int:
    """Bytes that a buffer of ``size`` bytes takes up."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def carve(workspace: Array, start: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """The array that begins ``start`` bytes into a workspace."""
    kind = _kind(dtype)
    return workspace[start : start + nbytes(shape, kind)].view(kind).reshape(shape)


class Carver:
    """Arrays cut from a workspace, one after the other."""

    __slots__ = ("_workspace", "used")

    def __init__(self, workspace: Array) -> None:
        self._workspace = workspace
        self.used = 0

    def take(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """The next array; its bytes are whatever was there."""
        array = carve(self._workspace, self.used, shape, dtype)
        self.used += aligned(nbytes(shape, dtype))
        return array

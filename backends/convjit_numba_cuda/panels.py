"""Weights for implicit GEMM on GPUs: panels of outputs, depth after depth.

A depth is a channel and a tap.  The weights of 64 outputs stand together for each depth, so that a
block reads those of a step in one piece; outputs and depths are filled up with zeros to what every
kind of tile divides.
"""

from __future__ import annotations

from math import prod
from typing import Any

from convjit.planes import Plane

Array = Any

DEPTH = 8  # depths of a step
PANEL = 64  # outputs whose weights stand together
WIDEST = 128  # outputs of the widest tile


def padded(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


def packed_shape(groups: int, outputs: int, depth: int) -> tuple[int, int, int, int]:
    """(groups, panels, depth, outputs of a panel), for every kind of tile."""
    return groups, padded(outputs, WIDEST) // PANEL, padded(depth, DEPTH), PANEL


def packed_elements(p: Plane) -> int:
    """Of a problem's packed weights."""
    return prod(packed_shape(p.groups, p.outputs, p.channels * p.taps))


def arranged(cupy: Any, taps: Array) -> Array:
    """Packed weights, flat, from (groups, outputs, depth), filled up with zeros."""
    groups, outputs, depth = taps.shape
    _, panels, depths, _ = packed_shape(groups, outputs, depth)
    into = cupy.zeros((groups, panels * PANEL, depths), taps.dtype)
    into[:, :outputs, :depth] = taps
    panelled = into.reshape(groups, panels, PANEL, depths).transpose(0, 1, 3, 2)
    return cupy.ascontiguousarray(panelled).reshape(-1)

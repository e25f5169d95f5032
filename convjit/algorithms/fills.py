"""Fills, of which lowering is made: each writes one array from another through a given copy.

The copy is the backend's where it has one (see :class:`convjit.spi.Backend`), else
:func:`assign`.  It moves numbers between views; fills do arithmetic on what they have moved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # of any library: only views, assignment and arithmetic in place are used
Copy = Callable[[Array, Array], None]  # copy(destination, source): writes every element
Fill = Callable[[Copy, Array, Array], None]  # fill(copy, destination, source)
View = Callable[[Array], Array]


def namespace(array: Array) -> ModuleType:
    """The library of an array: NumPy, or the package that its type comes from."""
    if isinstance(array, np.ndarray):
        return np
    return sys.modules[type(array).__module__.partition(".")[0]]


def assign(destination: Array, source: Array) -> None:
    """The copy of the array library; casts, as assignment does."""
    destination[...] = source


def move(copy: Copy, destination: Array, source: Array) -> None:
    """The fill that only copies."""
    copy(destination, source)

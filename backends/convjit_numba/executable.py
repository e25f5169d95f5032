"""How kernels are called: the addresses of arrays, one ctypes call, and the executable of a plan.

A kernel takes addresses.  Reading an array's ``data`` takes ctypes 0.2 microseconds, handing over
seven numbers 0.9, and as much again for the pool of helpers, where whole layers take ten.  So there
is a compiled entry (:mod:`convjit_numba.entry`), which is handed one object, a tuple of the arrays,
in 0.2 microseconds and reads the addresses itself.  Where objects do not lie in memory as supposed,
and where helpers cannot wait in compiled code, Python does the same step by step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from convjit.spi import Array, num_threads
from convjit_numba import cache, threads
from convjit_numba.threads import CompiledPool

# -------------------------------------------------------------------- addresses


_DATA = object.__basicsize__  # PyArrayObject's first field after the object's header is ``data``
_ITEMS = tuple.__basicsize__  # where PyTupleObject's items begin


def _address_by_field(array: Array) -> int:
    return ctypes.c_size_t.from_address(id(array) + _DATA).value


def _address_by_name(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _choose_address() -> Callable[[Array], int]:
    """The cheap way (0.2 µs instead of 1.5) where it gives what NumPy says."""
    trials = [np.empty(3), np.empty((2, 5), np.float32)[1:, 2:], np.empty((), np.uint8)]
    if all(_address_by_field(a) == _address_by_name(a) for a in trials):
        return _address_by_field
    return _address_by_name


address = _choose_address()


def _items_follow() -> bool:
    """Whether a tuple's items lie where its type says that its fixed part ends."""
    trial = (object(), None, address)
    items = (ctypes.c_size_t * len(trial)).from_address(id(trial) + _ITEMS)
    return list(items) == [id(item) for item in trial]


# -------------------------------------------------------------------- calls


def _build_entry(arrays: int) -> Callable[..., None]:
    from convjit_numba.entry import build

    return build(arrays, int(_ITEMS), int(_DATA))


@lru_cache(maxsize=8)
def _entry(arrays: int, brief: bool) -> Callable[[tuple[Any, ...]], None] | None:
    """What calls a kernel on so many arrays; None if objects do not lie in memory as supposed.

    It takes a tuple of a head (:attr:`Launch.head`) and of the arrays, any of which may be None.

    Parameters
    ----------
    arrays : int
    brief : bool
        Whether the kernel takes so few microseconds that other threads can wait for the
        interpreter's lock meanwhile.
    """
    if address is not _address_by_field or not _items_follow():
        return None
    name = f"entry.{arrays}.{_ITEMS}.{_DATA}"
    code = cache.function(name, 1, partial(_build_entry, arrays)).address
    prototype = ctypes.PYFUNCTYPE if brief else ctypes.CFUNCTYPE
    entry: Callable[[tuple[Any, ...]], None] = prototype(None, ctypes.py_object)(code)
    return entry


class Launch:
    """A kernel and its geometry, to be called on arrays; safe from several threads.

    Parameters
    ----------
    kernel : compiled function
        Of the addresses of the geometry and of ``arrays`` arrays, and a control block.
    geometry : ndarray of int64
    arrays : int
    slots : int
        Threads that find work and workspace.
    seconds : float
        What one thread is expected to need.

    Attributes
    ----------
    enter, head
        Of a kernel that runs alone, what calls it and the first item of the tuple to give it; else,
        and where there is no compiled entry, ``enter`` is None.
    """

    __slots__ = (
        "_alone", "_enter", "_geometry", "_kernel", "_last", "_seconds", "_slots", "enter", "head",
    )  # fmt: skip

    def __init__(
        self, kernel: Any, geometry: np.ndarray[Any, Any], arrays: int, slots: int, seconds: float
    ) -> None:
        self._kernel = kernel
        self._geometry = geometry
        self._slots = slots
        self._seconds = seconds
        brief = seconds < threads.WORTH_WAKING
        self._alone = brief or slots == 1
        self._enter = _entry(arrays, brief)
        self.enter = self._enter if self._alone else None
        self.head = self._head_for(None, 1)
        # The last head, and the pool and the threads that it is for.
        self._last: tuple[Any, int, Any] = (None, 1, self.head)

    def __call__(self, *arrays: Array | None) -> None:
        """Call the kernel on as many threads as are in force and had been at planning."""
        count = 1 if self._alone else min(num_threads(), self._slots)
        pool = threads.pool() if count > 1 else None
        if self._enter is None or (pool is None and count > 1):
            places = (0 if array is None else address(array) for array in arrays)
            arguments = (address(self._geometry), *places)
            threads.run(self._kernel, arguments, count, self._seconds)
            return
        kept, threads_of, head = self._last
        if kept is not pool or threads_of != count:
            head = self._head_for(pool, count)
            self._last = (pool, count, head)
        self._enter((head, *arrays))

    def _head_for(self, pool: CompiledPool | None, count: int) -> Any:
        """What the entry calls, with which geometry, what None looks like, and the helpers."""
        words = [self._kernel.address, address(self._geometry), id(None), count - 1]
        if pool is not None:
            wake = self._seconds >= threads.WORTH_ROUSING
            words += [pool.address, pool.place_for(count - 1), wake]
        return np.array(words, np.int64)


def as_it_is(rhs: Array) -> Any:
    """What packs a weights' gradient's second operand, data that each call has anew."""
    return rhs


class PanelExecutable:
    """A planned problem: kernel, geometry and packer; immutable."""

    shapeless = True

    __slots__ = ("_enter", "_head", "_keep", "_launch", "pack", "workspace")

    def __init__(
        self,
        kernel: Any,
        pack: Callable[[Array], Any],
        geometry: np.ndarray[Any, Any],
        keep: tuple[Any, ...],
        *,
        slots: int,
        slot_bytes: int,
        seconds: float,
    ) -> None:
        self._launch = Launch(kernel, geometry, 5, slots, seconds)
        self._enter, self._head = self._launch.enter, self._launch.head
        self.pack = pack  # panels of weights, see convjit_numba.pack
        self._keep = keep  # what the geometry has addresses of
        self.workspace = threads.slots_bytes(slots, slot_bytes)

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        """Compute into ``out`` on as many threads as are in force and had been at planning."""
        # In a call of microseconds each look at an attribute counts.
        if self._enter is not None:
            self._enter((self._head, lhs, packed, bias, out, workspace))
        else:
            self._launch(lhs, packed, bias, out, workspace)

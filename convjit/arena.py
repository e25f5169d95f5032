"""Workspaces, results and packed operands whose memory is used again, given up on request.

A fresh block costs the operating system's page faults, a quarter of a microsecond for each 4 KiB,
which for a Winograd layer is a good part of the call.  So each thread keeps the largest workspace
that it used, up to :data:`MOST_KEPT`; a call takes the block and gives it back, so that one that
is nested in another (or interrupted) finds none and makes its own.  Blocks go with their threads.

Packed operands and large results live as long as somebody holds them.  :func:`empty` lends memory,
which has come back when the array and all its views are gone, from whatever thread; no more than
:data:`MOST_SPARE` bytes are lent and kept together.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from convjit.algorithms.workspace import ALIGNMENT

Block = npt.NDArray[np.uint8]

MOST_KEPT = 64 << 20  # bytes that a thread keeps
MOST_SPARE = 128 << 20  # bytes of memory that is lent, or came back and is kept
LEAST_LENT = 1 << 20  # bytes below which the C library has no page faults either
# Bytes from which it has them in every call, for it gives larger blocks back at once (glibc's
# DEFAULT_MMAP_THRESHOLD_MAX).  Smaller results it lends as well, and sooner.
LEAST_RESULT = 32 << 20


class _Spare:
    """The block that a thread keeps: none or one."""

    __slots__ = ("__weakref__", "blocks")

    def __init__(self) -> None:
        # Each step on this list is atomic: another thread may empty it.
        self.blocks: list[Block] = []


class _Thread(threading.local):
    def __init__(self) -> None:
        self.spare = _Spare()
        _threads.add(self.spare)


_threads: weakref.WeakSet[_Spare] = weakref.WeakSet()
_thread = _Thread()


def take(size: int, allocate: Callable[[int], Block]) -> Block:
    """A block of at least ``size`` bytes that begins on a cache line, to be given back.

    Parameters
    ----------
    size : int
        Bytes.
    allocate : callable
        Gives a new array of so many bytes, called if the thread has none that is large enough.
    """
    try:
        block = _thread.spare.blocks.pop()
    except IndexError:
        pass
    else:
        if block.size >= size:
            return block
        del block  # before another is allocated
    return fresh(size, allocate)


def fresh(size: int, allocate: Callable[[int], Block]) -> Block:
    """A new block of ``size`` bytes that begins on a cache line."""
    memory = allocate(size + ALIGNMENT)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def give_back(block: Block) -> None:
    """Keep a block for the next call of the thread, unless it is too large or there is a larger."""
    if block.size > MOST_KEPT:
        return
    blocks = _thread.spare.blocks
    try:
        other = blocks.pop()
    except IndexError:
        other = block
    blocks.append(block if block.size >= other.size else other)


# -------------------------------------------------------------------- lent memory


# By size, the size first whose blocks are oldest: (memory, where its first cache line begins).
# Memory is lent as the base of an array, of which every view holds a reference too; it has come
# back when the tuple's is the only one.  Who looks takes the tuple off its list meanwhile, a step
# that is atomic, so nobody waits and none is lent twice.
_lent: dict[int, list[tuple[Block, int]]] = {}
_references: Callable[[object], int] | None = getattr(sys, "getrefcount", None)  # CPython's
_TRIED = 4  # blocks of a size that are looked at, the one used last first
_forgetting = threading.Lock()


def _count(lent: tuple[Block, int]) -> int:
    assert _references is not None
    return _references(lent[0])


# Of memory that nobody uses: what the asking adds depends on the interpreter.
_IDLE = _count((np.empty(0, np.uint8), 0)) if _references is not None else -1


@lru_cache(maxsize=4096)
def _room(shape: tuple[int, ...], itemsize: int, least: int) -> int:
    """Bytes to lend, rounded up by an eighth at most so that similar sizes share; 0 for none."""
    size = prod(shape) * itemsize
    step = 1 << max(0, size.bit_length() - 4)
    room = -(-size // step) * step
    return room if _references is not None and least <= size and room <= MOST_SPARE else 0


def empty(
    shape: tuple[int, ...], dtype: npt.DTypeLike, least: int = LEAST_LENT
) -> npt.NDArray[Any]:
    """An uninitialised array; if it is large its memory is lent and begins on a cache line.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
        Not of objects.
    least : int
        From how many bytes on.
    """
    kind = np.dtype(dtype)
    room = _room(shape, kind.itemsize, least)
    if room == 0:
        return np.empty(shape, kind)
    blocks = _lent.get(room)
    lent = _taken(blocks) if blocks else None
    if blocks is None or lent is None:
        memory = np.empty(room + ALIGNMENT, np.uint8)
        lent = (memory, -memory.ctypes.data % ALIGNMENT)
        # All that was lent counts, for when it comes back nobody is told.
        _forget(MOST_SPARE - room)
        blocks = _lent[room] = _lent.pop(room, [])
    array = np.ndarray(shape, kind, *lent)
    blocks.append(lent)
    return array


def allocator(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Callable[..., npt.NDArray[Any]]:
    """What results of a shape are allocated by: lent memory, or NumPy, which is quicker."""
    lent = _room(shape, np.dtype(dtype).itemsize, LEAST_RESULT) > 0
    return empty if lent else np.empty


def _taken(blocks: list[tuple[Block, int]]) -> tuple[Block, int] | None:
    """A block that has come back, off its list."""
    found = None
    busy: list[tuple[Block, int]] = []
    while len(busy) < _TRIED:
        try:
            lent = blocks.pop()
        except IndexError:
            break
        if _count(lent) == _IDLE:
            found = lent
            break
        busy.append(lent)
    if busy:
        blocks.extend(reversed(busy))
    return found


def _forget(most: int) -> None:
    """Forget the oldest sizes, lent or not, until ``most`` bytes are left."""
    if not _forgetting.acquire(blocking=False):
        return  # another thread is at it, or a collection of garbage in the middle of this
    try:
        excess = sum(size * len(blocks) for size, blocks in list(_lent.items())) - most
        for size in list(_lent):
            blocks = _lent.get(size, [])
            while blocks and excess > 0:
                del blocks[:1]
                excess -= size
            if excess <= 0:
                break
            _lent.pop(size, None)
    finally:
        _forgetting.release()


def _came_back() -> int:
    """Bytes of lent memory that nobody uses."""
    return sum(
        size * sum(_count(lent) == _IDLE for lent in list(blocks))
        for size, blocks in list(_lent.items())
    )


# -------------------------------------------------------------------- both


def kept() -> int:
    """Bytes that are kept: by all threads together, and of lent memory that came back."""
    return _came_back() + sum(
        block.size for spare in list(_threads) for block in list(spare.blocks)
    )


def release() -> int:
    """Give up what is kept and not in use; how many bytes that were."""
    freed = _came_back()
    _lent.clear()
    for spare in list(_threads):
        while spare.blocks:
            try:
                freed += spare.blocks.pop().size
            except IndexError:  # its thread was quicker
                break
    return freed

"""Workspaces and packed operands whose memory is used again, given up on request.

A fresh block costs the operating system's page faults, a quarter of a microsecond for each 4 KiB,
which for a Winograd layer is a good part of the call.  So each thread keeps the largest workspace
that it used, up to :data:`MOST_KEPT`; a call takes the block and gives it back, so that one that
is nested in another (or interrupted) finds none and makes its own.  Blocks go with their threads.

Packed operands live as long as somebody holds them: a call, or a plan's user.  :func:`empty` lends
memory that comes back when the array and all its views are gone, from whatever thread, and of
which :data:`MOST_SPARE` bytes are kept.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from convjit.algorithms.workspace import ALIGNMENT

Block = npt.NDArray[np.uint8]

MOST_KEPT = 64 << 20  # bytes that a thread keeps
MOST_SPARE = 128 << 20  # bytes of lent memory that came back and is kept
LEAST_LENT = 1 << 20  # bytes below which the C library has no page faults either


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


# By size, the least recently used size first.  Whoever finds the lock held (another thread, or a
# collection of garbage in the middle of its own work) does without: nobody ever waits.
_spare: dict[int, list[Block]] = {}
_spare_lock = threading.Lock()


def _come_back(block: Block) -> None:
    if block.size > MOST_SPARE or not _spare_lock.acquire(blocking=False):
        return
    try:
        # The size that was used last is the last to go.
        blocks = _spare.pop(block.size, [])
        _spare[block.size] = [*blocks, block]
        excess = sum(size * len(kept) for size, kept in _spare.items()) - MOST_SPARE
        while excess > 0:
            oldest = next(iter(_spare))
            if _spare[oldest]:
                _spare[oldest].pop()
                excess -= oldest
            else:  # all of it is lent
                del _spare[oldest]
    finally:
        _spare_lock.release()


class _Lease:
    """Memory under an array, which knows it as its base; comes back when that is collected."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.block = block
        at = block.ctypes.data
        self.__array_interface__ = {
            "version": 3, "shape": shape, "typestr": dtype.str,
            "data": (at + -at % ALIGNMENT, False),
        }  # fmt: skip

    def __del__(self, come_back: Callable[[Block], None] = _come_back) -> None:
        come_back(self.block)  # bound early: the module may be gone at the interpreter's end


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised array that begins on a cache line, its memory lent if it is large.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
        Not of objects.
    """
    kind = np.dtype(dtype)
    size = prod(shape) * kind.itemsize
    if size < LEAST_LENT:
        return np.empty(shape, kind)
    # Sizes are rounded up by an eighth at most, so that similar ones share their memory.
    step = 1 << (size.bit_length() - 4)
    room = -(-size // step) * step + ALIGNMENT
    block: Block | None = None
    if _spare_lock.acquire(blocking=False):
        try:
            blocks = _spare.get(room)
            block = blocks.pop() if blocks else None
        finally:
            _spare_lock.release()
    if block is None:
        block = np.empty(room, np.uint8)
    plain = np.dtype((np.void, kind.itemsize)) if kind.kind == "V" else kind
    return np.asarray(_Lease(block, shape, plain)).view(kind)


# -------------------------------------------------------------------- both


def kept() -> int:
    """Bytes that are kept: by all threads together, and of lent memory that came back."""
    lent = sum(size * len(blocks) for size, blocks in list(_spare.items()))
    return lent + sum(block.size for spare in list(_threads) for block in list(spare.blocks))


def release() -> int:
    """Give up what is kept and not in use; how many bytes that were."""
    freed = 0
    while _spare:
        try:
            size, blocks = _spare.popitem()
        except KeyError:  # another thread was quicker
            break
        freed += size * len(blocks)
    for spare in list(_threads):
        while spare.blocks:
            try:
                freed += spare.blocks.pop().size
            except IndexError:  # its thread was quicker
                break
    return freed

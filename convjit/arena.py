"""Workspaces that are used again: one block per thread, given up on request.

A fresh block costs the operating system's page faults, a quarter of a microsecond for each 4 KiB,
which for a Winograd layer is a good part of the call.  So each thread keeps the largest workspace
that it used, up to :data:`MOST_KEPT`; a call takes the block and gives it back, so that one that
is nested in another (or interrupted) finds none and makes its own.  Blocks go with their threads.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from convjit.algorithms.workspace import ALIGNMENT

Block = npt.NDArray[np.uint8]

MOST_KEPT = 64 << 20  # bytes that a thread keeps


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


def kept() -> int:
    """Bytes that all threads together keep."""
    return sum(block.size for spare in list(_threads) for block in list(spare.blocks))


def release() -> int:
    """Give up the blocks of all threads that are not in use; how many bytes that were."""
    freed = 0
    for spare in list(_threads):
        while spare.blocks:
            try:
                freed += spare.blocks.pop().size
            except IndexError:  # its thread was quicker
                break
    return freed

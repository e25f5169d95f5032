"""Blocks on multiprocessors: how many of them one holds, and how busy a grid keeps them all.

NVIDIA, "CUDA C++ Programming Guide", compute capabilities (what a multiprocessor holds).

A grid lasts as long as the multiprocessor that has most of its blocks: nine blocks for eight
multiprocessors take the time of sixteen (M. Osama et al., "Stream-K: Work-Centric Parallel
Decomposition for Dense Matrix-Matrix Multiplication on the GPU", PPoPP 2023, sec. 1).  Those that
it holds at once share its rate, of which a block of few warps reaches only a part by itself: its
warps wait for each other at barriers, while nobody multiplies (V. Volkov, "Better Performance at
Lower Occupancy", GTC 2010).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from convjit.errors import BackendError
from convjit.spi import Target

Capability = tuple[int, int]


class Multiprocessor(NamedTuple):
    """What one multiprocessor holds at most."""

    threads: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int  # of shared memory, by the system for each block


MULTIPROCESSORS = {
    (7, 5): Multiprocessor(1024, 16, 64 << 10, 0),
    (8, 0): Multiprocessor(2048, 32, 164 << 10, 1 << 10),
    (8, 6): Multiprocessor(1536, 16, 100 << 10, 1 << 10),
    (8, 7): Multiprocessor(1536, 16, 164 << 10, 1 << 10),
    (8, 9): Multiprocessor(1536, 24, 100 << 10, 1 << 10),
    (9, 0): Multiprocessor(2048, 32, 228 << 10, 1 << 10),
    (10, 0): Multiprocessor(2048, 32, 228 << 10, 1 << 10),
    (10, 3): Multiprocessor(2048, 32, 228 << 10, 1 << 10),
    (12, 0): Multiprocessor(1536, 24, 100 << 10, 1 << 10),
}
WARP = 32
REGISTERS = 65536  # of a multiprocessor, given to warps in units of 256
REGISTER_UNIT = 256
QUARTERS = 4  # schedulers, which registers are divided among
SHARED_UNIT = 128


def occupancy(
    capability: Capability, threads: int, registers: int, shared_bytes: int
) -> tuple[int, float]:
    """(blocks of a multiprocessor, its share of threads that they are).

    Raises
    ------
    BackendError
        For a compute capability that is not known.
    """
    limit = MULTIPROCESSORS.get(capability)
    if limit is None:
        known = ", ".join(f"{major}.{minor}" for major, minor in MULTIPROCESSORS)
        raise BackendError(
            f"compute capability {capability[0]}.{capability[1]} is not known; known are {known}."
        )
    warps = _over(threads, WARP)
    of_a_warp = _over(registers * WARP, REGISTER_UNIT) * REGISTER_UNIT
    by_registers = QUARTERS * (REGISTERS // QUARTERS // max(of_a_warp, 1)) // warps
    of_a_block = _over(shared_bytes + limit.reserved_bytes, SHARED_UNIT) * SHARED_UNIT
    by_shared = limit.shared_bytes // of_a_block if of_a_block else limit.blocks
    blocks = min(limit.blocks, limit.threads // (warps * WARP), by_registers, by_shared)
    return blocks, blocks * warps * WARP / limit.threads


def _over(count: int, unit: int) -> int:
    return -(-count // unit)


# Warps that keep a multiprocessor busy: one for each of its schedulers, and half as many again for
# those that wait.  A warp alone has multiply-adds enough that do not wait for each other.
BUSY_WARPS = 1.5 * QUARTERS


@dataclass(frozen=True, slots=True)
class Block:
    """A block of threads as a multiprocessor has to hold it.

    Attributes
    ----------
    threads : int
    registers : int
        Of a thread.  The assembler decides; of an estimate, what it took of compute capability 8.0
        (``tests/device/kernels.json``).
    shared_bytes : int
        Static and dynamic.
    """

    threads: int
    registers: int
    shared_bytes: int = 0


def held(block: Block, target: Target) -> int:
    """Blocks that a multiprocessor of a target holds at once, one at least.

    A generation that is not known holds what the nearest one before it does.
    """
    sm = int(target.features.get("sm", 0))
    capability = max((c for c in MULTIPROCESSORS if c <= divmod(sm, 10)), default=(7, 5))
    blocks, _ = occupancy(capability, block.threads, block.registers, block.shared_bytes)
    return max(blocks, 1)


def busy(blocks: int, block: Block, target: Target) -> float:
    """The share of the multiprocessors' time that is work while a grid runs, of equal blocks.

    Let 1 be the time of a block that has the whole rate of a multiprocessor, and ``alone`` the part
    of that rate that one block reaches.  ``n`` blocks at once take ``max(n, 1 / alone)``, and a
    multiprocessor takes its blocks as many at once as it holds.
    """
    at_once = held(block, target)
    longest = 1.0 / min(1.0, block.threads / (WARP * BUSY_WARPS))
    rounds, rest = divmod(_over(blocks, target.cores), at_once)
    lasts = rounds * max(at_once, longest) + (max(rest, longest) if rest else 0.0)
    return blocks / (target.cores * lasts)

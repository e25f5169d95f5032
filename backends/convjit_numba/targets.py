"""What the kernels know about machines: instruction sets, register tiles, block sizes, rates.

Every size that a kernel is built or called with comes out of the tables in this file.  They are
keyed by instruction set and dtype; the instruction set is the one that numba's code generator
targets, which is not always the processor's (``NUMBA_CPU_NAME``, ``NUMBA_CPU_FEATURES``).
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from convjit_numba import microarchitectures
from convjit_numba.microarchitectures import Microarchitecture

LINE = 64  # bytes of a cache line
FMA_LATENCY = 4  # cycles: a tile with few sums waits for each of them
LATE = 0.1  # of a task: threads do not start at once, and are held up
MOST_LATE = 6e5  # cycles of the models, a third of a millisecond: of a longer one no more
FEW_TASKS = 64
BITS = {"float32": 32, "float64": 64}
SHORT = {"float32": "f32", "float64": "f64"}


class CodeGen(NamedTuple):
    """For which machine code is generated."""

    triple: str
    cpu: str
    features: str

    @property
    def isa(self) -> str:
        """Key into the tables: the widest vectors in force."""
        arch = self.triple.partition("-")[0].lower()
        if arch in ("aarch64", "arm64"):
            return "neon"
        on = {f[1:] for f in self.features.split(",") if f.startswith("+")}
        if {"avx512f", "avx512vl", "avx512dq"} <= on:
            return "avx512"
        if {"avx2", "fma"} <= on:
            return "avx2"
        return "sse2" if arch in ("x86_64", "amd64") else "generic"


@lru_cache(maxsize=1)
def codegen() -> CodeGen:
    """The machine that numba generates code for in this process.

    numba derives it from two environment variables and from LLVM's idea of the host, which
    llvmlite tells without the half second that importing numba costs.  Where numba may have been
    configured otherwise (a configuration file, AVX switched off), numba itself is asked.
    """
    special = ("NUMBA_ENABLE_AVX", "NUMBA_CPU_FEATURES_GENERIC")
    if Path(".numba_config.yaml").exists() or any(name in os.environ for name in special):
        return _codegen_of_numba()
    import llvmlite.binding as llvm

    cpu = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        if cpu == "generic":
            features = ""
        else:
            features = llvm.get_host_cpu_features().flatten()
    return CodeGen(llvm.get_process_triple(), cpu, features)


def _codegen_of_numba() -> CodeGen:
    from numba.core.registry import cpu_target

    return CodeGen(*cpu_target.target_context.codegen().magic_tuple())


class Tile(NamedTuple):
    """A register tile: rows (channels) by vectors (pixels) of ``vl`` lanes."""

    mr: int
    nv: int
    vl: int

    @property
    def nr(self) -> int:
        """Pixels of a tile."""
        return self.nv * self.vl

    def __str__(self) -> str:
        return f"{self.mr}x{self.nv}x{self.vl}"


@dataclass(frozen=True, slots=True)
class Machine:
    """A row of the table of instruction sets.

    Attributes
    ----------
    vector_bytes : int
    shapes : tuple of (rows, vectors)
        Register tiles offered, for many channels first.  ``rows * vectors`` accumulators, the
        vectors and one broadcast have to fit the registers.
    masks : bool
        Whether vectors can be loaded by lanes in one instruction.
    """

    vector_bytes: int
    shapes: tuple[tuple[int, int], ...]
    masks: bool = False


# 16 registers: 6x2 needs 12 + 2 + 1; with one row the pixels are memory operands, 12 + 1.
# 32 registers: 6x4 needs 24 + 4 + 1 (7x4 was measured to spill).
# Without FMA a product needs a register of its own, hence 5x2.
MACHINES = {
    "avx512": Machine(64, ((6, 4), (8, 3), (4, 6), (2, 12), (1, 16)), True),
    "avx2": Machine(32, ((6, 2), (4, 3), (2, 5), (1, 10)), True),
    "sse2": Machine(16, ((5, 2), (3, 3), (1, 8))),
    "neon": Machine(16, ((6, 4), (8, 3), (4, 5), (2, 8), (1, 16))),
    "generic": Machine(16, ((4, 2), (1, 8))),
}
# Row tiles (rows are pixels, vectors are channels): as many accumulators, and as many loads or more
# of weights as broadcasts of pixels.  Fewer vectors waste less where channels are few.
ROW_SHAPES = {
    "avx512": ((6, 4), (8, 3), (12, 2)),
    "avx2": ((6, 2), (4, 3), (12, 1)),
    "sse2": ((5, 2), (3, 3), (8, 1)),
    "neon": ((6, 4), (8, 3), (12, 2)),
    "generic": ((4, 2), (8, 1)),
}
# Pixel tiles (rows are channels, vectors are pixels), divided evenly: the largest that fit.
PIXEL_SHAPES = {
    "avx512": ((6, 4), (8, 3), (12, 2), (4, 6), (2, 12), (1, 16)),
    "avx2": ((6, 2), (4, 3), (12, 1), (2, 5), (1, 10)),
    "sse2": ((5, 2), (3, 3), (8, 1), (1, 8)),
    "neon": ((6, 4), (8, 3), (12, 2), (4, 5), (2, 8), (1, 16)),
    "generic": ((4, 2), (8, 1), (1, 8)),
}
REGISTERS = {"avx512": 32, "avx2": 16, "sse2": 16, "neon": 32, "generic": 16}  # of vectors


@dataclass(frozen=True, slots=True)
class Blocks:
    """Block sizes of one dtype.

    Attributes
    ----------
    depth : int
        Products that one pass over a tile sums (kc): a panel of weights (``mr * kc``) and one of
        pixels (``nr * kc``) share L1.
    image : int
        Bytes of pixels that a task prepares, which stay in L2 while the weights pass.
    weights : int
        Bytes of weights that pass over the pixels of a task at a time, the other part of L2.
    strip : int
        Bytes of pixels that stay in L1 while weights and results pass.
    tasks : int
        Tasks per thread to aim for, so that a thread that is interrupted does not hold the
        others up.
    """

    depth: int
    image: int
    weights: int
    strip: int
    tasks: int = 3


def blocks(dtype: str, l1: int, l2: int) -> Blocks:
    """Block sizes from the sizes of the caches (Low et al. 2016, "Analytical modeling ...").

    Three quarters of L1 hold the two panels of at most 6 and 16 numbers a step (float32, AVX2);
    of L2 two fifths hold pixels, two fifths weights, the rest results in flight.
    """
    size = BITS[dtype] // 8
    depth = max(64, (l1 * 3 // 4) // (22 * size) // 32 * 32)
    return Blocks(depth, l2 * 2 // 5, l2 * 2 // 5, l1 * 3 // 4)


def tiles(isa: str, dtype: str) -> tuple[Tile, ...]:
    """Register tiles of an instruction set."""
    machine = MACHINES[isa]
    lanes = machine.vector_bytes * 8 // BITS[dtype]
    return tuple(Tile(mr, nv, lanes) for mr, nv in machine.shapes)


def row_tiles(isa: str, dtype: str) -> tuple[Tile, ...]:
    """Row tiles of an instruction set."""
    lanes = MACHINES[isa].vector_bytes * 8 // BITS[dtype]
    return tuple(Tile(mr, nv, lanes) for mr, nv in ROW_SHAPES[isa])


def pixel_tiles(isa: str, dtype: str) -> tuple[Tile, ...]:
    """Pixel tiles of an instruction set."""
    lanes = MACHINES[isa].vector_bytes * 8 // BITS[dtype]
    return tuple(Tile(mr, nv, lanes) for mr, nv in PIXEL_SHAPES[isa])


def tail_lanes(count: int, isa: str, dtype: str) -> int:
    """Lanes of the last vector of ``count`` numbers: 0 if all exist, half if that is enough."""
    lanes = MACHINES[isa].vector_bytes * 8 // BITS[dtype]
    rest = count % lanes
    if rest == 0:
        return 0
    halves = MACHINES[isa].vector_bytes >= 32
    return lanes // 2 if halves and rest <= lanes // 2 else lanes


def stored_lanes(count: int, isa: str, dtype: str) -> int:
    """:func:`tail_lanes` where vectors can be stored by lanes, else 0: they are stored whole."""
    return tail_lanes(count, isa, dtype) if MACHINES[isa].masks else 0


def stores_exactly(count: int, isa: str, dtype: str) -> bool:
    """Whether the vectors of ``count`` numbers are stored with no lane beyond them."""
    return stored_lanes(count, isa, dtype) == tail_lanes(count, isa, dtype)


def computed_vectors(vectors: int, end: int, isa: str, dtype: str) -> float:
    """What ``vectors`` cost whose last has ``end`` lanes (0: all), in whole ones."""
    return vectors - 1 + vector_cost(end, isa, dtype)


def vector_cost(lanes: int, isa: str, dtype: str) -> float:
    """What a vector of so many lanes (0: all) costs, in whole ones.

    Half a vector takes half the time where two of them are computed at once but one whole one
    (Zen 4, vectors of 64 bytes); where two whole ones are, it takes all of it.
    """
    whole = MACHINES[isa].vector_bytes * 8 // BITS[dtype]
    return 0.5 if lag(isa) < 2 and 0 < lanes < whole else 1.0


def machine(isa: str) -> Microarchitecture:
    """What a core of this machine does with the vectors of an instruction set."""
    code = codegen()
    return microarchitectures.row(microarchitectures.named(code.cpu, code.features), isa)


def model_clock(isa: str) -> float:
    """Cycles of the kernels' models a second: in each there are two multiply-adds of vectors.

    A processor that takes them one by one, or by halves, has less than its clock of them.
    """
    row, lanes = machine(isa), MACHINES[isa].vector_bytes // 4
    return row.flops_per_cycle * row.clock / (4 * lanes)


def streams(isa: str) -> tuple[float, float]:
    """Bytes a cycle of the models that a core reads from the shared cache and from memory."""
    shared, memory = machine(isa).stream
    clock = model_clock(isa)
    return shared / clock, memory / clock


def lag(isa: str) -> float:
    """Cycles of the models that pass in one of a core's.

    What is neither a multiply-add of vectors nor waits for one (shuffles, stores, addresses) takes
    so many times longer by the models' clock, whose constants are of a core with one multiply-add a
    cycle: Zen 4, vectors of 64 bytes.
    """
    return machine(isa).flops_per_cycle / (MACHINES[isa].vector_bytes // 2)


def row_tile_cycles(rows: float, vectors: float, isa: str, waits: int = 1) -> float:
    """Of one step of a row tile in the models: FMAs, or loads, or ``waits`` for the sums.

    Two loads a cycle of the core's, of which half as many pass as of the models' where a vector is
    computed by halves.
    """
    others = max((rows + vectors) / 2, FMA_LATENCY * waits)
    return max(rows * vectors / 2, others * min(1.0, lag(isa) / 2))


def tile_cycles(tile: Tile, isa: str) -> float:
    """Relative cost of one step of a tile: FMAs or loads, two a cycle each.

    A vector of pixels at any address crosses a cache line every other time (32 of 64 bytes), a
    broadcast never does.  One of a whole line nearly always does: where it is loaded by halves
    anyway (Zen 4) that costs little more (tiles of 1x16 took 14 cycles a product); where a line is
    one access (two of them a cycle, Intel's servers) a crossing costs three times a load: tiles of
    2x12 took 1.5 to 2 times as long a product as those of 6x4.
    """
    crossing = 1.5
    if MACHINES[isa].vector_bytes == LINE:
        crossing = 3.0 if lag(isa) > 1 else 1.75
    loads = tile.mr + crossing * tile.nv
    return max(tile.mr * tile.nv, loads) / 2


def cache_sizes() -> dict[str, int]:
    """Bytes of each cache level of one core, from the system where it tells."""
    sizes = {"l1": 32 << 10, "l2": 512 << 10, "l3": 8 << 20}
    base = Path("/sys/devices/system/cpu/cpu0/cache")
    try:
        for index in base.glob("index*"):
            if (index / "type").read_text().strip() == "Instruction":
                continue
            level = (index / "level").read_text().strip()
            text = (index / "size").read_text().strip()
            unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
            sizes[f"l{level}"] = int(text.rstrip("KMG")) * unit
    except (OSError, ValueError):
        return sizes
    return sizes


def tile_of(isa: str, dtype: str, config: tuple[tuple[str, int], ...]) -> Tile | None:
    """The tile that a configuration names (``mr``, ``nv``), None for the default choice."""
    sizes = dict(config)
    if "mr" not in sizes:
        return None
    return Tile(sizes["mr"], sizes["nv"], tiles(isa, dtype)[0].vl)


def is_about(tasks: int, wanted: float | None) -> bool:
    """Whether a division into tasks is one of those asked for: within a factor of 1.4."""
    return wanted is None or 1.0 / 1.4 <= tasks / wanted <= 1.4


def grain(tasks: int, threads: int, seconds: float) -> int:
    """Tasks to take at a time: some 5 microseconds' worth, but not more than balances."""
    fair = max(1, tasks // (8 * threads))
    return max(1, min(fair, int(5e-6 * tasks / max(seconds, 1e-9))))


def makespan(
    tasks: int,
    cycles: float,
    longest: float,
    cores: int,
    sizes: Callable[[], Iterable[float]] | None = None,
) -> float:
    """Cycles until the last of ``cores`` threads is done, which begin with ranges of the tasks.

    Few tasks are followed one by one.  For many it is the smaller of two bounds: those of one size
    run in rounds, and while the last runs no thread was idle before (Graham 1966, "Bounds for
    certain multiprocessing anomalies", theorem 2).

    Parameters
    ----------
    tasks : int
    cycles : float
        Of all tasks together.
    longest : float
        Of the longest task.
    cores : int
    sizes : callable, optional
        The cycles of each in their order, if they differ.
    """
    if cores == 1:
        return cycles
    late = min(LATE * longest, MOST_LATE)
    if sizes is not None and tasks <= min(4 * cores, FEW_TASKS):
        return _last_end(list(sizes()), cores) + late
    rounds = longest * -(-tasks // cores)
    return min(rounds, cycles / cores + longest * (cores - 1) / cores) + late


def _last_end(sizes: list[float], cores: int) -> float:
    """When the last thread is done that takes tasks as :mod:`convjit_numba.taskloop` does."""
    count = len(sizes)
    ranges = [(place * count // cores, (place + 1) * count // cores) for place in range(cores)]
    begun, end = [first for first, _ in ranges], 0.0
    free = [(0.0, place) for place in range(cores)]
    while free:
        now, own = heapq.heappop(free)
        end = max(end, now)
        for turn in range(cores):
            place = (own + turn) % cores
            if begun[place] < ranges[place][1]:
                heapq.heappush(free, (now + sizes[begun[place]], own))
                begun[place] += 1
                break
    return end


def splits(n: int, most: int, largest: int | None = None) -> list[int]:
    """Block sizes that divide ``n`` into 1, 2, 3, 4, 6, 9, ... parts as evenly as possible.

    At most ``most`` parts, none above ``largest``, and never fewer than one size.
    """
    parts = 1 if largest is None else -(-n // max(1, largest))
    sizes = [-(-n // parts)]
    while len(sizes) < 12:
        parts = parts + 1 if parts < 4 else parts * 3 // 2
        if parts > most:
            break
        size = -(-n // parts)
        if size < sizes[-1]:
            sizes.append(size)
    return sizes

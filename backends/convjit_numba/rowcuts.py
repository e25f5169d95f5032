"""Where the row tiles of a line end, so that they sum fewer taps that meet the padding.

A row tile of :mod:`convjit_numba.indirect` sums a tap for all of its pixels if one of them meets
the image there.  Between two *borders*, columns at which a tap begins or ceases to meet the image,
all pixels of a line meet the same taps.  With the wide dilations of a pyramid (Chen et al. 2017,
"Rethinking Atrous Convolution for Semantic Image Segmentation", section 3.3: a dilation of 18 on 33
columns) the parts between borders are long, and tiles that end there sum nothing in vain.  A common
3x3 kernel has a border after the first pixel: tiles as even as possible cost less.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from convjit_numba import problem, targets
from convjit_numba.problem import Problem
from convjit_numba.targets import Tile

# Kernels with more borders have them too close together for tiles to end there.
MOST_BORDERS = 8
# Cycles of the model that a vector of weights takes on its way from L2: it holds up tiles of few
# pixels (measured on those of one and two).
WEIGHTS = 2.25
# Cutting has to gain so much by the model, which does not know what more tiles cost otherwise.
GAIN = 0.96


class Run(NamedTuple):
    """A tile of a line: its pixels, and the part of the taps of a kernel row that it sums."""

    pixels: int
    met: float


def _runs(p: Problem, mr: int, first: int, end: int) -> tuple[Run, ...]:
    """The tiles of columns ``first`` to ``end``, as the kernel divides them."""
    found = []
    while first < end:
        tiles = -(-(end - first) // mr)
        rows = -(-(end - first) // tiles)
        met = 0
        for tap in range(p.kernel[2]):
            there = p.outputs_of_tap(2, tap)
            met += max(there.start, first) < min(there.stop, first + rows)
        found.append(Run(rows, met / p.kernel[2]))
        first += rows
    return tuple(found)


def _cycles(runs: tuple[Run, ...], vectors: float, isa: str) -> float:
    least = WEIGHTS * vectors
    return sum(
        max(least, targets.row_tile_cycles(run.pixels, vectors, isa)) * run.met for run in runs
    )


@lru_cache(maxsize=1024)
def cuts(p: Problem, tile: Tile, isa: str) -> tuple[int, ...]:
    """The columns at which tiles end, the last of them that of the line.

    Empty where tiles that are as even as possible, whatever they meet, cost less.
    """
    width = p.out[2]
    ranges = [p.outputs_of_tap(2, tap) for tap in range(p.kernel[2])]
    borders = {end for r in ranges if len(r) for end in (r.start, r.stop) if 0 < end < width}
    if not borders or len(borders) > MOST_BORDERS:
        return ()
    # The cheapest way to each border, from left to right.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for end in (*sorted(borders), width):
        best[end] = min(
            (cycles + _cycles(_runs(p, tile.mr, first, end), tile.nv, isa), (*ends, end))
            for first, (cycles, ends) in best.items()
        )
    cycles, ends = best[width]
    even = width / tile.mr * _cycles((Run(tile.mr, 1.0),), tile.nv, isa)
    even *= problem.inside_share(p, 2, tile.mr)
    even *= problem.inside_share(p, 1, 1 + (tile.mr - 1) / width)
    return ends if cycles * problem.inside_share(p, 1) < GAIN * even else ()


@lru_cache(maxsize=1024)
def line(p: Problem, mr: int, ends: tuple[int, ...]) -> tuple[Run, ...]:
    """All tiles of a line that are cut there."""
    pairs = pairwise((0, *ends))
    return tuple(run for first, end in pairs for run in _runs(p, mr, first, end))


def line_cycles(p: Problem, mr: int, ends: tuple[int, ...], vectors: float, isa: str) -> float:
    """Cycles of a line's tiles for a channel, a part of the taps of a kernel row that they sum."""
    return _cycles(line(p, mr, ends), vectors, isa)


def most_tiles(p: Problem, mr: int, ends: tuple[int, ...], pixels: int) -> int:
    """The most tiles that so many consecutive pixels have, wherever in a line they begin.

    A part of a line has no more tiles between two cuts than all of it.
    """
    lines = 1 + -(-(pixels - 1) // p.out[2])
    return lines * len(line(p, mr, ends))

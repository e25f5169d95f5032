"""Copies between arrays of different strides: transposed, reversed, interleaved, cropped.

Lowering moves data by assignments between views.  NumPy runs those on one thread, with an inner
loop over one axis, which the two or three taps of a kernel are too few for.  Here the axes are
sorted into *tiny* ones, which the innermost loops walk, two *tile* axes, along which the
destination and the source are most nearly contiguous, and *outer* ones.  Tiles of both axes are as
large as the first-level cache, so that every line that is read or written is used whole (the
blocked transposition, e.g. M. Lam, E. Rothberg and M. Wolf, "The cache performance and
optimizations of blocked algorithms", ASPLOS 1991, section 2), and threads take them one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np

from convjit.spi import Array, num_threads
from convjit_numba import cache, casting, targets, taskloop, threads
from convjit_numba.executable import address

LEAST = 4096  # elements below which NumPy is done before a plan is found
LONG = 16  # elements of an axis from which on it is a tile's
RUN_BYTES = 8  # contiguous on both sides from which on bytes are copied
MOST_PICKED = 4  # a source's step up to which whole vectors of it are loaded
TILE_BYTES = 16 << 10  # of either side of a tile
WIDEST = 64  # elements of a tile along the source's axis, where both are long
MOST_OUTER, MOST_TINY = 4, 3
GRAIN_BYTES = 64 << 10  # of the tiles that are taken at once
MOST_TASKS = 16  # from which on several are
SECONDS_PER_BYTE = 0.15e-9

# What a tile's innermost loop moves; PICKED + n is every n-th of neighbours in the source.
ELEMENTS, RUNS, SQUARES, PICKED = range(4)
# Numbers and lanes as which an element of a size is moved, whatever its dtype.
MOVED_AS = {4: ("float32", 1), 8: ("float64", 1), 16: ("float64", 2)}

Axis = tuple[int, int, int]  # elements, and bytes to the next one in destination and source
NO_AXIS: Axis = (1, 0, 0)


def copy(destination: Array, source: Array) -> None:
    """``destination[...] = source`` for arrays that do not overlap.

    Parameters
    ----------
    destination, source : numpy.ndarray
        Of shapes that broadcast; what the kernels do not take (few elements, elements of one, two
        or more than sixteen bytes, unaligned ones, casts but those of
        :mod:`convjit_numba.casting`) is assigned by NumPy.
    """
    if destination.dtype != source.dtype:
        if not casting.cast(destination, source):
            destination[...] = source
        return
    if (
        destination.size < LEAST
        or destination.shape != source.shape
        or destination.itemsize not in (4, 8, 16)
        or destination.dtype.hasobject
        or not (destination.flags.aligned and source.flags.aligned)
    ):
        destination[...] = source
        return
    plan = _plan(destination.shape, destination.strides, source.strides, destination.itemsize)
    if plan is None:
        destination[...] = source
        return
    geometry, at, of, seconds, kernel = plan
    arguments = (address(geometry), address(destination) + at, address(source) + of)
    threads.run(kernel, arguments, num_threads(), seconds)


@lru_cache(maxsize=512)
def _plan(
    shape: tuple[int, ...], into: tuple[int, ...], out_of: tuple[int, ...], size: int
) -> tuple[np.ndarray[Any, Any], int, int, float, Any] | None:
    """(geometry, offsets of both sides, seconds, kernel), or None where NumPy does as well."""
    axes, at, of = _axes(shape, into, out_of)
    if len(axes) < 2 and axes[0][1:] == (size, size):
        return None
    unit, kind = size, ELEMENTS
    if axes[-1][1:] == (size, size) and axes[-1][0] * size >= RUN_BYTES:
        unit, kind = axes.pop()[0] * size, RUNS
    across = _tile_axis(axes, 1)
    along = _tile_axis([axis for axis in axes if axis != across], 2)
    rest = [axis for axis in axes if axis not in (across, along)]
    tiny: list[Axis] = []
    if kind == ELEMENTS:
        reach = max((a[1] for a in (across, along) if a is not None), default=0)
        tiny = [a for a in rest if a[0] < LONG and (a[1] < reach or not reach)][-MOST_TINY:]
        rest = [a for a in rest if a not in tiny]
    if len(rest) > MOST_OUTER:
        return None
    first, second = across or NO_AXIS, along or NO_AXIS
    if kind == ELEMENTS and not tiny and first[1] == size and second[2] == size and size < 16:
        kind = SQUARES
    step = first[2] // size
    if kind == ELEMENTS and not tiny and first[1:] == (size, step * size) and size < 16:
        kind = PICKED + step if 1 < step <= MOST_PICKED else kind
    inside = unit * prod(n for n, _, _ in tiny)
    if across is not None and along is not None and abs(across[2]) <= abs(along[2]):
        deep, wide = _tile(second[0], first[0], inside, first[0])  # the same axis is both sides'
    else:
        wide, deep = _tile(first[0], second[0], inside, WIDEST)
    tasks = prod(n for n, _, _ in rest) * -(-first[0] // wide) * -(-second[0] // deep)
    grain = max(1, min(tasks // MOST_TASKS, GRAIN_BYTES // (wide * deep * inside)))
    geometry = np.zeros(3 * (MOST_OUTER + 2 + MOST_TINY) + 4, np.int64)
    filled = [NO_AXIS] * (MOST_OUTER - len(rest)) + rest + [second, first]
    filled += [NO_AXIS] * (MOST_TINY - len(tiny)) + tiny
    geometry[:-4] = np.array(filled).ravel()
    geometry[-4:] = wide, deep, unit, grain
    return geometry, at, of, prod(shape) * size * SECONDS_PER_BYTE, _kernel(size, kind)


def _axes(
    shape: tuple[int, ...], into: tuple[int, ...], out_of: tuple[int, ...]
) -> tuple[list[Axis], int, int]:
    """The axes longer than 1 from the destination's longest stride to its shortest.

    The destination's strides become positive, and neighbours that are one axis on both sides are
    merged; the offsets lead from the first elements of the arrays to those of the axes.
    """
    at = of = 0
    axes: list[Axis] = []
    for n, d, s in zip(shape, into, out_of, strict=True):
        if d < 0:
            at, of, d, s = at + (n - 1) * d, of + (n - 1) * s, -d, -s
        if n > 1:
            axes.append((n, d, s))
    axes.sort(key=lambda axis: -axis[1])
    merged: list[Axis] = []
    for n, d, s in axes:
        if merged and merged[-1][1:] == (n * d, n * s):
            merged[-1] = (merged[-1][0] * n, d, s)
        else:
            merged.append((n, d, s))
    return merged or [NO_AXIS], at, of


def _tile_axis(axes: list[Axis], side: int) -> Axis | None:
    """The axis with the shortest strides of a side among those that are long enough."""
    long = [axis for axis in axes if axis[0] >= LONG]
    return min(long, key=lambda axis: abs(axis[side]), default=None)


def _tile(first: int, second: int, unit: int, most: int) -> tuple[int, int]:
    """Elements of a tile along two axes, of the second up to ``most`` before any of the first."""
    room = max(1, TILE_BYTES // unit)
    deep = min(second, most, room)
    return max(1, min(first, room // deep)), deep


def _kernel(size: int, kind: int) -> Any:
    dtype, numbers = MOVED_AS[size]
    lanes = targets.row_tiles(targets.codegen().isa, dtype)[0].vl
    names = ("elements", "runs", "squares")
    name = f"copy.{size}.{names[kind] if kind < PICKED else f'every{kind - PICKED}'}"
    return cache.function(name, 4, partial(_build, targets.BITS[dtype], numbers, kind, lanes))


def _build(bits: int, numbers: int, kind: int, lanes: int) -> Callable[..., None]:
    from numba import njit

    from convjit_numba.memory import copy_bytes, load_int, move_vectors, pick_vector
    from convjit_numba.transpose import from_lanes
    from convjit_numba.vectorcode import OPTIONS

    _, take = taskloop.sharing()
    step, size = kind - PICKED, bits // 8 * numbers

    @njit(**OPTIONS)
    def elements(tiny, target, into, source, out_of, count):
        # The tiny axes of each element of a line, the last innermost.  Their geometry is read
        # once: the compiler cannot know that the stores leave it alone.
        n0, n1, n2 = load_int(tiny), load_int(tiny + 24), load_int(tiny + 48)
        d0, d1, d2 = load_int(tiny + 8), load_int(tiny + 32), load_int(tiny + 56)
        s0, s1, s2 = load_int(tiny + 16), load_int(tiny + 40), load_int(tiny + 64)
        if n0 * n1 * n2 == 1:
            for i in range(count):
                move_vectors(bits, numbers, 1, target + i * into, source + i * out_of)
        elif n0 == 1:
            for i in range(count):
                for j in range(n1):
                    to = target + i * into + j * d1
                    of = source + i * out_of + j * s1
                    for k in range(n2):
                        move_vectors(bits, numbers, 1, to + k * d2, of + k * s2)
        else:
            for i in range(count):
                for h in range(n0):
                    for j in range(n1):
                        to = target + i * into + h * d0 + j * d1
                        of = source + i * out_of + h * s0 + j * s1
                        for k in range(n2):
                            move_vectors(bits, numbers, 1, to + k * d2, of + k * s2)

    def mover(lanes):
        # Runs of one to two such vectors: the second overlaps.  (A call to copy some ten bytes
        # takes longer than to move them.)
        @njit(**OPTIONS)
        def move(target, into, source, out_of, count, unit):
            last = unit - lanes * 4
            for _ in range(count):
                move_vectors(32, lanes, 1, target, source)
                move_vectors(32, lanes, 1, target + last, source + last)
                target += into
                source += out_of

        return move

    move_2, move_4, move_8, move_16 = mover(2), mover(4), mover(8), mover(16)

    @njit(**OPTIONS)
    def runs(target, into, source, out_of, count, unit):
        if unit <= 16:
            move_2(target, into, source, out_of, count, unit)
        elif unit <= 32:
            move_4(target, into, source, out_of, count, unit)
        elif unit <= 64:
            move_8(target, into, source, out_of, count, unit)
        elif unit <= 128:
            move_16(target, into, source, out_of, count, unit)
        else:
            for i in range(count):
                copy_bytes(target + i * into, source + i * out_of, unit)

    @njit(**OPTIONS)
    def tile(g, target, source, count, second):
        across = g + 24 * (MOST_OUTER + 1)
        into, out_of = load_int(across + 8), load_int(across + 16)
        down, from_ = load_int(across - 16), load_int(across - 8)
        tiny = across + 24
        unit = load_int(tiny + 24 * MOST_TINY + 16)
        if kind == SQUARES:
            # Whole vectors of the source; what is left of it has nothing behind it to be read.
            whole = second // lanes * lanes
            for j in range(0, whole, lanes):
                from_lanes(bits, lanes, source + j * from_, out_of, count,
                           target + j * down, down, lanes)  # fmt: skip
            for j in range(whole, second):
                elements(tiny, target + j * down, into, source + j * from_, out_of, count)
        elif kind == RUNS:
            for j in range(second):
                runs(target + j * down, into, source + j * from_, out_of, count, unit)
        elif kind > PICKED:
            for j in range(second):
                to, of = target + j * down, source + j * from_
                if count < lanes:
                    elements(tiny, to, into, of, out_of, count)
                else:
                    for i in range(0, count - lanes + 1, lanes):
                        pick_vector(bits, lanes, step, to + i * size, of + i * size * step)
                    if count % lanes != 0:  # some of the vector before once more
                        i = count - lanes
                        pick_vector(bits, lanes, step, to + i * size, of + i * size * step)
        else:
            for j in range(second):
                elements(tiny, target + j * down, into, source + j * from_, out_of, count)

    @njit(**OPTIONS)
    def task(g, target, source, left):
        deep, across = g + 24 * MOST_OUTER, g + 24 * (MOST_OUTER + 1)
        sizes = g + 24 * (MOST_OUTER + 2 + MOST_TINY)
        wide, tall = load_int(sizes), load_int(sizes + 8)
        columns = (load_int(across) + wide - 1) // wide
        rows = (load_int(deep) + tall - 1) // tall
        column, left = left % columns * wide, left // columns
        row, left = left % rows * tall, left // rows
        to = target + column * load_int(across + 8) + row * load_int(deep + 8)
        of = source + column * load_int(across + 16) + row * load_int(deep + 16)
        for back in range(MOST_OUTER):
            axis = g + 24 * (MOST_OUTER - 1 - back)
            place, left = left % load_int(axis), left // load_int(axis)
            to += place * load_int(axis + 8)
            of += place * load_int(axis + 16)
        tile(g, to, of, min(wide, load_int(across) - column), min(tall, load_int(deep) - row))

    def kernel(g, target, source, control):
        deep, across = g + 24 * MOST_OUTER, g + 24 * (MOST_OUTER + 1)
        sizes = g + 24 * (MOST_OUTER + 2 + MOST_TINY)
        wide, tall, grain = load_int(sizes), load_int(sizes + 8), load_int(sizes + 24)
        tasks = (load_int(across) + wide - 1) // wide * ((load_int(deep) + tall - 1) // tall)
        for axis in range(MOST_OUTER):
            tasks *= load_int(g + 24 * axis)
        first, last, turn = take(control, tasks, grain, 0)
        while first < last:
            for i in range(first, last):
                task(g, target, source, i)
            first, last, turn = take(control, tasks, grain, turn)

    return kernel

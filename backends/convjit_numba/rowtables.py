"""Tables of the addresses that row tiles read, and the product of what they list by a panel.

A table belongs to one row tile (:mod:`convjit_numba.rowtile`).  First comes its head: how many
taps, how many rows, and the place of the first row's results; then for each tap the offset of its
weights in bytes and the addresses of the rows.  Where channels are more than one pass sums, tables
move on by the channels of a pass, and the offsets of weights with them, which ``b`` makes up for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HEAD = 3  # words before the entries: taps, rows, place
# What is summed: real numbers; whole ones of 64 bits, modulo 2**64; products of pairs of int16 that
# are numbers of 32 bits, as int32.  Whole ones move as real ones of the same bits.
REALS, WHOLES, PAIRS = range(3)


def table_words(taps: int, rows: int) -> int:
    """Of the table of a tile of ``rows`` rows that meet at most ``taps`` taps."""
    return HEAD + taps * (1 + rows)


def build(
    bits: int, mr: int, nv: int, vl: int, tail: int, end: int, kind: int = REALS
) -> tuple[Callable[..., Any], ...]:
    """``(fill_slab, copy_run, addends, sum_panel)`` for one row tile (imports numba).

    The last panel has ``tail`` vectors, the last of them ``end`` lanes, of which those that exist
    are stored; 0 says that it is a vector like the others, all of which is stored.  ``kind`` says
    what is summed, ``REALS``, ``WHOLES`` or ``PAIRS``.
    """
    from numba import njit

    from convjit_numba.memory import copy_bytes, load_int, move_vectors, store_int
    from convjit_numba.rowtile import row_tiles
    from convjit_numba.transpose import to_lanes
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8
    nr = nv * vl
    walk = nr * size
    head = 8 * HEAD

    @njit(**OPTIONS)
    def fill_slab(slab, pixel, source, channel, channels, count):
        """``count`` pixels of channels that lie ``channel`` bytes apart, as rows of ``pixel``."""
        # Vectors reach beyond the last channel into the next pixel: the last channels are written
        # first.
        c = (channels - 1) // vl * vl
        while c >= 0:
            to_lanes(
                bits, vl, source + c * channel, channel, min(vl, channels - c),
                slab + c * size, pixel, count,
            )  # fmt: skip
            c -= vl

    @njit(**OPTIONS)
    def copy_run(target, source, count):
        """Copy ``count`` numbers by vectors, the last of which overlaps."""
        if count < vl:
            copy_bytes(target, source, count * size)
        else:
            for c in range(0, count - vl, vl):
                move_vectors(bits, vl, 1, target + c * size, source + c * size)
            c = (count - vl) * size
            move_vectors(bits, vl, 1, target + c, source + c)

    @njit(**OPTIONS)
    def addends(bias, first, count, spare):
        """The address of a panel's addends: in the bias, or a copy with room for all its lanes."""
        place = 0
        if bias != 0:
            place = bias + first * size
            if count % vl != 0:
                copy_bytes(spare, place, count * size)
                place = spare
        return place

    @njit(**OPTIONS)
    def move_tables(table, tiles, step, move):
        """Other channels of the rows: their addresses move, and the offsets of weights."""
        for _ in range(tiles):
            for e in range(load_int(table) * (1 + load_int(table + 8))):
                entry = table + head + 8 * e
                store_int(entry, load_int(entry) + move)
            table += step

    @njit(**OPTIONS)
    def multiply(table, tiles, step, count, kc, b, c, unit, ldc, accumulate, add, act, slopes):
        """The product of ``tiles`` tables, ``step`` bytes apart, and ``kc`` rows of each tap."""
        for _ in range(tiles):
            taps, rows = load_int(table), load_int(table + 8)
            to, entries = c + load_int(table + 16) * unit, table + head
            if count == nr:
                row_tiles(
                    bits, mr, nv, vl, 0, kind, rows, taps, entries, kc, b, walk, to, ldc,
                    accumulate, add, act, slopes, 0,
                )  # fmt: skip
            else:
                row_tiles(
                    bits, mr, tail, vl, end, kind, rows, taps, entries, kc, b, walk, to, ldc,
                    accumulate, add, act, slopes, count - (tail - 1) * vl,
                )  # fmt: skip
            table += step

    @njit(**OPTIONS)
    def sum_panel(table, tiles, step, shift, count, channels, block, b, c, unit, ldc, add, act,
                  slopes):  # fmt: skip
        """All channels of a panel's taps, ``block`` at a time, for ``tiles`` tables.

        ``count`` are the numbers of the panel, as many as exist.  Row 0 of a table's results is
        ``place * unit`` bytes after ``c``.  ``shift`` says how many bytes the tables have moved so
        far; returned is how many they have then.
        """
        for begin in range(0, channels, block):
            move = begin * size - shift
            if move != 0:
                move_tables(table, tiles, step, move)
                shift = begin * size
            now, bias = 0, 0
            if begin + block >= channels:
                now, bias = act, add
            multiply(
                table, tiles, step, count, min(block, channels - begin), b + begin * walk - shift,
                c, unit, ldc, 1 if begin > 0 else 0, bias, now, slopes,
            )  # fmt: skip
        return shift

    return fill_slab, copy_run, addends, sum_panel

"""Packing of the weights, for the solvers that multiply matrices.

The numbers that one step of a register tile takes lie side by side, and the steps lie in the order
in which they are taken.  Weights are ``(G * Kg, Cg, taps)``, of the forward operator always, and
become

- ``(G, panels, Cg * taps, MR)`` for the register tile: ``MR`` output channels are broadcast,
- the same with panels as even as possible for the pixel tile, without padding,
- ``(G, panels, taps, Cg, NR)`` for the row tile: ``NR`` output channels are lanes,
- ``(G, panels, taps, Kg, NR)`` for the row tile of the transposed operator, whose lanes are the
  channels of its result, the forward operator's input,
- for each phase of the stride ``(G, panels, Kg * taps of the phase, MR)`` for its register tile,
  where ``MR`` channels of the result are broadcast.

Channels beyond the last are zeros, whose results are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from convjit.precision import numpy_dtype
from convjit.spi import Array, empty, num_threads
from convjit_numba import cache, targets, taskloop, threads
from convjit_numba.executable import address
from convjit_numba.problem import Problem
from convjit_numba.targets import Tile

LINE = 64  # bytes; vectors of packed weights do not cross cache lines
SECONDS_PER_NUMBER = 1.5e-9
VECTOR_SECONDS_PER_NUMBER = 0.5e-9  # by vectors


def _loop(run: Callable[..., None]) -> Callable[..., None]:
    """The kernel whose tasks are ``run(source, target, scratch, ..., task)`` (imports numba)."""

    slot_of, take = taskloop.sharing()

    def kernel(tasks, spare, source, target, scratch, groups, kg, cg, taps, panels, control):
        mine = scratch + slot_of(control) * spare
        first, last, turn = take(control, tasks, 1, 0)
        while first < last:
            for task in range(first, last):
                run(source, target, mine, groups, kg, cg, taps, panels, task)
            first, last, turn = take(control, tasks, 1, turn)

    return kernel


def _packer(
    p: Problem, name: str, build: Callable[..., Any], shape: tuple[int, ...], tasks: int,
    seconds: float, *, panels: int = 0, spare: int = 0, table: np.ndarray[Any, Any] | None = None,
) -> Callable[[Array], Any]:  # fmt: skip
    """The function that packs weights of a problem into ``shape``.

    ``build`` makes the function of one task; ``spare`` are the bytes that a thread needs beside, or
    else there is a ``table`` that all read.
    """
    dtype, count = numpy_dtype(p.dtype), prod(shape)
    kernel = cache.function(f"pack.{name}", 11, lambda: _loop(build()))

    def pack(weights: Array) -> Any:
        memory = empty((count + LINE // p.bytes,), dtype)
        first = -address(memory) % LINE // p.bytes
        packed = memory[first : first + count].reshape(shape)
        size = num_threads()
        scratch = np.empty(size * spare, np.uint8) if table is None else table
        arguments = (
            tasks, spare, address(weights), address(packed), address(scratch),
            p.groups, p.kg, p.cg, p.taps, panels,
        )  # fmt: skip
        threads.run(kernel, arguments, size, count * seconds)
        return packed

    return pack


# -------------------------------------------------------------------- panels of the register tile


def packed_shape(p: Problem, mr: int) -> tuple[int, int, int, int]:
    """(groups, panels, depth, mr)."""
    return p.groups, -(-p.kg // mr), p.depth, mr


def _build(bits: int, mr: int) -> Callable[..., None]:
    from numba import njit

    from convjit_numba.memory import move_real, zero_real
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8

    @njit(**OPTIONS)
    def run(source, target, mine, groups, kg, cg, taps, panels, task):
        depth = cg * taps
        group = task // panels
        first = (task - group * panels) * mr
        rows = min(mr, kg - first)
        source += (group * kg + first) * depth * size
        target += task * depth * mr * size
        # MR streams are read side by side, one is written.
        if rows == mr:
            for k in range(depth):
                for i in range(mr):
                    move_real(bits, target + (k * mr + i) * size, source + (i * depth + k) * size)
        else:
            for k in range(depth):
                for i in range(rows):
                    move_real(bits, target + (k * mr + i) * size, source + (i * depth + k) * size)
                for i in range(rows, mr):
                    zero_real(bits, target + (k * mr + i) * size)

    return run


def packer(p: Problem, mr: int) -> Callable[[Array], Any]:
    """The function that packs weights of one problem for the register tile."""
    shape = packed_shape(p, mr)
    name, build = f"{targets.SHORT[p.dtype]}.{mr}", partial(_build, targets.BITS[p.dtype], mr)
    tasks = p.groups * shape[1]
    return _packer(p, name, build, shape, tasks, SECONDS_PER_NUMBER, panels=shape[1])


# -------------------------------------------------------------------- panels as even as possible


def _build_even(bits: int, vl: int) -> Callable[..., None]:
    from numba import njit

    from convjit_numba.memory import move_real
    from convjit_numba.transpose import to_lanes
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8

    @njit(**OPTIONS)
    def run(source, target, mine, groups, kg, cg, taps, panels, task):
        depth = cg * taps
        group = task // panels
        panel = task - group * panels
        begin = panel * kg // panels
        rows = (panel + 1) * kg // panels - begin
        begin = (group * kg + begin) * depth * size
        source += begin
        target += begin
        # Vectors reach beyond the last row into the next step: the last rows are written first,
        # and the last steps number by number.
        beyond = (vl + rows - 1) // rows
        whole = max(0, depth - beyond)
        i = (rows - 1) // vl * vl
        while i >= 0 and whole > 0:
            to_lanes(
                bits, vl, source + i * depth * size, depth * size, min(vl, rows - i),
                target + i * size, rows * size, whole,
            )  # fmt: skip
            i -= vl
        for k in range(whole, depth):
            for r in range(rows):
                move_real(bits, target + (k * rows + r) * size, source + (r * depth + k) * size)

    return run


def even_packer(p: Problem, panels: int, vl: int) -> Callable[[Array], Any]:
    """The function that packs weights in ``panels`` panels a group, for the pixel tile.

    Panel i has the output channels from ``i * Kg // panels`` to ``(i + 1) * Kg // panels``, as
    ``(Cg * taps, rows)``.
    """
    name = f"even.{targets.SHORT[p.dtype]}.{vl}"
    build = partial(_build_even, targets.BITS[p.dtype], vl)
    shape, tasks = (p.groups * p.kg * p.depth,), p.groups * panels
    return _packer(p, name, build, shape, tasks, VECTOR_SECONDS_PER_NUMBER, panels=panels)


# -------------------------------------------------------------------- panels of the row tile


def lanes_shape(p: Problem, tile: Tile) -> tuple[int, int, int, int]:
    """(groups, panels, depth, lanes)."""
    return p.groups, -(-p.kg // tile.nr), p.depth, tile.nr


def _build_lanes(bits: int, nv: int, vl: int) -> Callable[..., None]:
    from numba import njit

    from convjit_numba.memory import move_vectors, zero_bytes
    from convjit_numba.transpose import to_lanes
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8
    nr = nv * vl

    @njit(**OPTIONS)
    def pack_lanes(source, target, scratch, rows, cg, taps):
        """``rows`` output channels become the lanes of a vector in each row of a panel."""
        depth = cg * taps
        if taps == 1:
            to_lanes(bits, vl, source, depth * size, rows, target, nr * size, depth)
            return
        for first in range(0, depth, vl):
            count = min(vl, depth - first)
            to_lanes(bits, vl, source + first * size, depth * size, rows, scratch, vl * size, count)
            c = first // taps
            t = first - c * taps
            for i in range(count):
                place = target + (t * cg + c) * nr * size
                move_vectors(bits, vl, 1, place, scratch + i * vl * size)
                t += 1
                if t == taps:
                    t = 0
                    c += 1

    @njit(**OPTIONS)
    def run(source, target, mine, groups, kg, cg, taps, panels, task):
        depth = cg * taps
        unit = task // nv
        vector = task - unit * nv
        group = unit // panels
        k = (unit - group * panels) * nr + vector * vl
        into = target + (unit * depth * nr + vector * vl) * size
        if k < kg:
            start = source + (group * kg + k) * depth * size
            pack_lanes(start, into, mine, min(vl, kg - k), cg, taps)
        else:
            for i in range(depth):
                zero_bytes(into + i * nr * size, vl * size)

    return run


def lanes_packer(p: Problem, tile: Tile) -> Callable[[Array], Any]:
    """The function that packs weights of one problem for the row tile."""
    shape, bits = lanes_shape(p, tile), targets.BITS[p.dtype]
    name = f"lanes.{targets.SHORT[p.dtype]}.{tile.nv}x{tile.vl}"
    return _packer(
        p, name, partial(_build_lanes, bits, tile.nv, tile.vl), shape, prod(shape[:2]) * tile.nv,
        VECTOR_SECONDS_PER_NUMBER, panels=shape[1], spare=tile.vl**2 * p.bytes,
    )  # fmt: skip


# -------------------------------------------------------------------- panels of the transposed


def transposed_shape(p: Problem, tile: Tile) -> tuple[int, int, int, int, int]:
    """(groups, panels, taps, channels of y, lanes)."""
    return p.groups, -(-p.cg // tile.nr), p.taps, p.kg, tile.nr


def _build_transposed(bits: int, nv: int, vl: int) -> Callable[..., None]:
    from numba import njit

    from convjit_numba.memory import copy_bytes, zero_bytes
    from convjit_numba.transpose import to_lanes
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8
    nr = nv * vl

    @njit(**OPTIONS)
    def pack_row(source, target, count, taps, step):
        """``count`` channels of the result become lanes, for each tap."""
        for v in range(0, nr, vl):
            some = max(0, min(vl, count - v))
            into = target + v * size
            if some == 0:
                for t in range(taps):
                    zero_bytes(into + t * step, vl * size)
            elif taps == 1:
                copy_bytes(into, source + v * size, some * size)
                zero_bytes(into + some * size, (vl - some) * size)
            else:
                to_lanes(
                    bits, vl, source + v * taps * size, taps * size, some, into, step, taps
                )  # fmt: skip

    @njit(**OPTIONS)
    def run(source, target, mine, groups, kg, cg, taps, panels, task):
        group = task // kg
        k = task - group * kg
        for panel in range(panels):
            into = target + ((group * panels + panel) * taps * kg + k) * nr * size
            begin = source + (task * cg + panel * nr) * taps * size
            pack_row(begin, into, min(nr, cg - panel * nr), taps, kg * nr * size)

    return run


def transposed_packer(p: Problem, tile: Tile) -> Callable[[Array], Any]:
    """The function that packs weights of one problem for the transposed operator's row tile."""
    shape, bits = transposed_shape(p, tile), targets.BITS[p.dtype]
    name = f"transposed.{targets.SHORT[p.dtype]}.{tile.nv}x{tile.vl}"
    build = partial(_build_transposed, bits, tile.nv, tile.vl)
    tasks = p.groups * p.kg
    return _packer(p, name, build, shape, tasks, VECTOR_SECONDS_PER_NUMBER, panels=shape[1])


# -------------------------------------------------------------------- panels of phases

PHASE_WORDS = 3  # of a tap: where its phase begins, taps of the phase, its place among them


def phase_shape(p: Problem, mr: int) -> tuple[int]:
    """Of all phases, one after the other: each tap belongs to one."""
    return (p.groups * -(-p.cg // mr) * p.kg * p.taps * mr,)


def phase_places(p: Problem, mr: int, phases: Sequence[Sequence[int]]) -> list[int]:
    """Where the panels of each phase begin, in numbers; ``phases`` lists the taps of each."""
    places, begin = [], 0
    for taps in phases:
        places.append(begin)
        begin += p.groups * -(-p.cg // mr) * p.kg * len(taps) * mr
    return places


def _build_phases(bits: int, mr: int) -> Callable[..., None]:
    from numba import njit

    from convjit_numba.memory import load_int, move_real, zero_real
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8

    @njit(**OPTIONS)
    def run(source, target, table, groups, kg, cg, taps, panels, task):
        group = task // panels
        first = (task - group * panels) * mr
        rows = min(mr, cg - first)
        for t in range(taps):
            entry = table + t * 24
            step = load_int(entry + 8) * mr * size  # from channel to channel of y
            into = target + (load_int(entry) + load_int(entry + 16) * mr) * size
            into += task * kg * step
            start = source + ((group * kg * cg + first) * taps + t) * size
            for _ in range(kg):
                for i in range(rows):
                    move_real(bits, into + i * size, start + i * taps * size)
                for i in range(rows, mr):
                    zero_real(bits, into + i * size)
                into += step
                start += cg * taps * size

    return run


def phase_packer(p: Problem, mr: int, phases: Sequence[Sequence[int]]) -> Callable[[Array], Any]:
    """The function that packs weights of one problem for the register tile of each phase."""
    table = np.zeros((p.taps, PHASE_WORDS), np.int64)
    for begin, taps in zip(phase_places(p, mr, phases), phases, strict=True):
        for place, tap in enumerate(taps):
            table[tap] = begin, len(taps), place
    name = f"phases.{targets.SHORT[p.dtype]}.{mr}"
    build = partial(_build_phases, targets.BITS[p.dtype], mr)
    panels = -(-p.cg // mr)
    return _packer(
        p, name, build, phase_shape(p, mr), p.groups * panels, SECONDS_PER_NUMBER,
        panels=panels, table=table,
    )  # fmt: skip

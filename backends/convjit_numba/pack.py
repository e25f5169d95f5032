"""Packing of the weights, for the direct and the GEMM solver alike.

``(G * Kg, Cg, taps)`` becomes ``(G, panels, Cg * taps, MR)``: per group and panel of ``MR`` output
channels the numbers that one step of the register tile broadcasts lie side by side, and the steps
lie in the order in which they are taken.  Rows beyond ``Kg`` are zeros, whose results are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from convjit.precision import numpy_dtype
from convjit.spi import Array, empty, num_threads
from convjit_numba import cache, targets, threads
from convjit_numba.problem import Problem, address

SECONDS_PER_NUMBER = 1.5e-9
EVEN_SECONDS_PER_NUMBER = 0.5e-9  # by vectors


def packed_shape(problem: Problem, mr: int) -> tuple[int, int, int, int]:
    """(groups, panels, depth, mr)."""
    return problem.groups, -(-problem.kg // mr), problem.depth, mr


def _build(bits: int, mr: int) -> Callable[..., None]:
    from numba import njit

    from convjit_numba.microkernel import OPTIONS, atomic_add, move_real, zero_real

    size = bits // 8

    @njit(**OPTIONS)
    def pack_panel(source, target, rows, depth):
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

    def kernel(source, target, groups, kg, depth, control):
        panels = (kg + mr - 1) // mr
        tasks = groups * panels
        task = 0
        while True:
            if control != 0:
                task = atomic_add(control, 1)
            if task >= tasks:
                break
            group = task // panels
            first = (task - group * panels) * mr
            rows = min(mr, kg - first)
            begin = source + (group * kg + first) * depth * size
            pack_panel(begin, target + task * depth * mr * size, rows, depth)
            if control == 0:
                task += 1

    return kernel


def packer(problem: Problem, mr: int) -> Callable[[Array], Any]:
    """The function that packs weights of one problem."""
    dtype = numpy_dtype(problem.dtype)
    bits = targets.BITS[problem.dtype]
    shape = packed_shape(problem, mr)
    name = f"pack.{targets.SHORT[problem.dtype]}.{mr}"
    kernel = cache.function(name, 6, partial(_build, bits, mr))
    seconds = problem.groups * shape[1] * mr * problem.depth * SECONDS_PER_NUMBER

    def pack(weights: Array) -> Any:
        panels = empty(shape, dtype)
        arguments = (address(weights), address(panels), problem.groups, problem.kg, problem.depth)
        threads.run(kernel, arguments, num_threads(), seconds)
        return panels

    return pack


# -------------------------------------------------------------------- panels as even as possible


def _build_even(bits: int, vl: int) -> Callable[..., None]:
    from numba import njit

    from convjit_numba.microkernel import OPTIONS, atomic_add, move_real
    from convjit_numba.transpose import to_lanes

    size = bits // 8

    @njit(**OPTIONS)
    def pack_panel(source, target, rows, depth):
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

    def kernel(source, target, groups, kg, depth, panels, control):
        tasks = groups * panels
        task = 0
        while True:
            if control != 0:
                task = atomic_add(control, 1)
            if task >= tasks:
                break
            group = task // panels
            panel = task - group * panels
            first = panel * kg // panels
            rows = (panel + 1) * kg // panels - first
            begin = (group * kg + first) * depth * size
            pack_panel(source + begin, target + begin, rows, depth)
            if control == 0:
                task += 1

    return kernel


def even_packer(problem: Problem, panels: int, vl: int) -> Callable[[Array], Any]:
    """The function that packs weights in ``panels`` panels a group, without padding.

    Panel i has the output channels from ``i * Kg // panels`` to ``(i + 1) * Kg // panels``, as
    ``(Cg * taps, rows)``.
    """
    dtype = numpy_dtype(problem.dtype)
    name = f"pack.even.{targets.SHORT[problem.dtype]}.{vl}"
    kernel = cache.function(name, 7, partial(_build_even, targets.BITS[problem.dtype], vl))
    count = problem.groups * problem.kg * problem.depth
    seconds = count * EVEN_SECONDS_PER_NUMBER

    def pack(weights: Array) -> Any:
        packed = empty((count,), dtype)
        arguments = (
            address(weights), address(packed), problem.groups, problem.kg, problem.depth, panels,
        )  # fmt: skip
        threads.run(kernel, arguments, num_threads(), seconds)
        return packed

    return pack

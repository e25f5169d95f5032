"""Packing of the weights, for the direct and the GEMM solver alike.

``(G * Kg, Cg, taps)`` becomes ``(G, panels, Cg * taps, MR)``: per group and panel of ``MR`` output
channels the numbers that one step of the register tile broadcasts lie side by side, and the steps
lie in the order in which they are taken.  Rows beyond ``Kg`` are zeros, whose results are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from convjit.precision import numpy_dtype
from convjit.spi import Array, num_threads
from convjit_numba import cache, targets, threads
from convjit_numba.problem import Problem, address

SECONDS_PER_NUMBER = 1.5e-9


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
        panels = np.empty(shape, dtype)
        arguments = (address(weights), address(panels), problem.groups, problem.kg, problem.depth)
        threads.run(kernel, arguments, num_threads(), seconds)
        return panels

    return pack

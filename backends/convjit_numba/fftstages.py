"""Whole transforms from tables of stages, as helpers of the kernels.

Importing this module does not import numba; calling its function does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convjit_numba.problem import FIELD

STAGE_BYTES = 32  # of a stage in a table: radix, sub, blocks, address of factors


def build_stages(bits: int, lanes: int) -> tuple[Callable[..., Any], ...]:
    """(forward, backward, through) for transforms in the lanes of complex vectors (imports numba).

    ``table`` is the address of ``count`` stages (:func:`convjit.algorithms.cooley_tukey.stages`),
    which run in this order forward and in the other backward.

    ``forward(base, step, table, count, twist, twist_step)`` and ``backward`` transform vectors
    ``step`` bytes apart.  If ``twist`` is not 0, it is the address of the first of as many complex
    vectors, ``twist_step`` bytes apart, that the result is multiplied by (backward: the data, by
    their conjugates).

    ``through(base, table, count, spectrum)`` transforms consecutive vectors forward, multiplies
    them by a spectrum and transforms them backward.
    """
    from numba import njit

    from convjit_numba.fftcode import run_products, run_stage
    from convjit_numba.memory import load_int
    from convjit_numba.vectorcode import OPTIONS

    vector = 2 * lanes * (bits // 8)

    @njit(**OPTIONS)
    def forward(base, step, table, count, twist, twist_step):
        for s in range(count):
            entry = table + s * STAGE_BYTES
            radix, sub, blocks = load_int(entry), load_int(entry + 8), load_int(entry + 16)
            if sub > 1:
                factors = load_int(entry + 24)
                run_stage(bits, lanes, 0, 1, radix, base, step, sub, blocks, factors, 0)
            elif twist != 0:
                run_stage(bits, lanes, 0, 2, radix, base, step, 1, blocks, twist, twist_step)
            else:
                run_stage(bits, lanes, 0, 0, radix, base, step, 1, blocks, 0, 0)

    @njit(**OPTIONS)
    def backward(base, step, table, count, twist, twist_step):
        for s in range(count):
            entry = table + (count - 1 - s) * STAGE_BYTES
            radix, sub, blocks = load_int(entry), load_int(entry + 8), load_int(entry + 16)
            if sub > 1:
                factors = load_int(entry + 24)
                run_stage(bits, lanes, 1, 1, radix, base, step, sub, blocks, factors, 0)
            elif twist != 0:
                run_stage(bits, lanes, 1, 2, radix, base, step, 1, blocks, twist, twist_step)
            else:
                run_stage(bits, lanes, 1, 0, radix, base, step, 1, blocks, 0, 0)

    @njit(**OPTIONS)
    def through(base, table, count, spectrum):
        for s in range(count - 1):
            entry = table + s * STAGE_BYTES
            radix, sub, blocks = load_int(entry), load_int(entry + 8), load_int(entry + 16)
            run_stage(bits, lanes, 0, 1, radix, base, vector, sub, blocks, load_int(entry + 24), 0)
        middle = table + (count - 1) * STAGE_BYTES
        run_products(bits, lanes, load_int(middle), base, load_int(middle + 16), spectrum)
        for s in range(count - 1):
            entry = table + (count - 2 - s) * STAGE_BYTES
            radix, sub, blocks = load_int(entry), load_int(entry + 8), load_int(entry + 16)
            run_stage(bits, lanes, 1, 1, radix, base, vector, sub, blocks, load_int(entry + 24), 0)

    return forward, backward, through


def build_columns(bits: int, lanes: int) -> Callable[..., Any]:
    """``columns(g, tile, inverse)`` for tiles as the geometry ``g`` says (imports numba).

    It transforms the columns of every matrix, ``lanes`` at a time, and then the lines through the
    matrices, or in the other order back.
    """
    from numba import njit

    from convjit_numba.memory import load_int
    from convjit_numba.vectorcode import OPTIONS

    size = bits // 8
    vector = 2 * lanes * size
    forward, backward, _ = build_stages(bits, lanes)
    f = dict(FIELD)
    PLANES, ROWS, COLS, PITCH, PLANE_BYTES, TWIST = (
        f["planes"], f["rows"], f["cols"], f["pitch"], f["plane_bytes"], f["twist"],
    )  # fmt: skip
    COLUMN_STAGES, COLUMN_COUNT = f["column_stages"], f["column_count"]
    DEPTH_STAGES, DEPTH_COUNT = f["depth_stages"], f["depth_count"]

    @njit(**OPTIONS)
    def down(g, tile, inverse):
        cols, pitch, twist = load_int(g + COLS), load_int(g + PITCH), load_int(g + TWIST)
        table, count = load_int(g + COLUMN_STAGES), load_int(g + COLUMN_COUNT)
        for z in range(load_int(g + PLANES)):
            for b in range(cols // lanes):
                factors = 0
                if twist != 0:
                    factors = twist + b * vector
                here = tile + z * load_int(g + PLANE_BYTES) + b * vector
                if inverse:
                    backward(here, pitch, table, count, factors, cols * 2 * size)
                else:
                    forward(here, pitch, table, count, factors, cols * 2 * size)

    @njit(**OPTIONS)
    def deep(g, tile, inverse):
        table, count = load_int(g + DEPTH_STAGES), load_int(g + DEPTH_COUNT)
        for r in range(load_int(g + ROWS)):
            for b in range(load_int(g + COLS) // lanes):
                here = tile + r * load_int(g + PITCH) + b * vector
                if inverse:
                    backward(here, load_int(g + PLANE_BYTES), table, count, 0, 0)
                else:
                    forward(here, load_int(g + PLANE_BYTES), table, count, 0, 0)

    @njit(**OPTIONS)
    def columns(g, tile, inverse):
        volume = load_int(g + PLANES) > 1
        if inverse and volume:
            deep(g, tile, inverse)
        down(g, tile, inverse)
        if volume and not inverse:
            deep(g, tile, inverse)

    return columns

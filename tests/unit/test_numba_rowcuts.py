"""Where row tiles of a line end: what they cover and sum, and how many a task has at most."""

from __future__ import annotations

import pytest

from convjit.spec import ConvSpec
from convjit_numba import rowcuts, targets
from convjit_numba.indirectplan import Slot, blocking, table_bytes
from convjit_numba.problem import Problem

PYRAMID = "conv_f32_NHWC_n1c64k256g1_i33x33_w3x3_p18_d18"
CUT = {
    PYRAMID: (15, 18, 33),
    "conv_f32_NHWC_n1c64k64g1_i14x14_w3x3_p4_d4": (4, 10, 14),
    "conv_f64_NLC_n1c64k64g1_i50_w2_p20.0_d20": (20, 50),
}
EVEN = [
    "conv_f32_NHWC_n1c64k64g1_i56x56_w3x3_p1",  # one pixel beyond each border
    "conv_f32_NHWC_n1c64k64g1_i56x56_w3x3",  # no padding
    "conv_f32_NHWC_n1c64k64g1_i40x40_w15x15_p7",  # many borders
]


def problem(text: str) -> Problem:
    return Problem.of(ConvSpec.parse(text))


def tiles(p: Problem, isa: str) -> list[tuple[tuple[int, ...], int]]:
    return [(rowcuts.cuts(p, t, isa), t.mr) for t in targets.row_tiles(isa, p.dtype)]


@pytest.mark.parametrize("isa", ["avx512", "avx2", "sse2", "neon"])
@pytest.mark.parametrize("text", CUT)
def test_tiles_end_at_the_borders_of_long_parts(text: str, isa: str) -> None:
    assert CUT[text] in [ends for ends, _ in tiles(problem(text), isa)]


@pytest.mark.parametrize("isa", ["avx512", "avx2", "sse2", "neon"])
@pytest.mark.parametrize("text", EVEN)
def test_tiles_are_even_where_parts_are_short(text: str, isa: str) -> None:
    assert not any(ends for ends, _ in tiles(problem(text), isa))


@pytest.mark.parametrize("mr", [1, 4, 6, 14])
@pytest.mark.parametrize("text", CUT)
def test_a_line_is_covered_and_sums_what_its_pixels_meet(text: str, mr: int) -> None:
    p, ends = problem(text), CUT[text]
    runs = rowcuts.line(p, mr, ends)
    assert sum(run.pixels for run in runs) == p.out[2]
    assert all(1 <= run.pixels <= mr for run in runs)
    taps = p.kernel[2]
    met = sum(len(p.outputs_of_tap(2, tap)) for tap in range(taps))
    assert sum(run.pixels * run.met for run in runs) * taps == pytest.approx(met)


@pytest.mark.parametrize("mr", [1, 4, 6, 14])
@pytest.mark.parametrize("text", CUT)
def test_no_task_has_more_tiles(text: str, mr: int) -> None:
    p, ends = problem(text), CUT[text]
    width = p.out[2]
    for first in range(width):
        for pixels in range(1, 3 * width):
            col, left, count = first, pixels, 0
            while left:  # as the kernel goes
                run = min(left, next(end for end in ends if end > col) - col)
                rows = -(-run // -(-run // mr))
                col, left, count = (col + rows) % width, left - rows, count + 1
            assert count <= rowcuts.most_tiles(p, mr, ends, pixels)


def test_the_blocking_has_room_for_their_tables() -> None:
    p = problem(PYRAMID)
    b = blocking(p, True, "avx512", 2)
    assert b.ends == CUT[PYRAMID]
    most = rowcuts.most_tiles(p, b.tile.mr, b.ends, b.task_pixels)
    assert most > -(-b.task_pixels // b.tile.mr)
    assert Slot.of(p, b).table == most * table_bytes(b)

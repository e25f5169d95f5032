"""The row tile: every number of rows, taps from tables, epilogues, nothing else touched."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

from convjit_numba import cache, targets
from convjit_numba.executable import address

ISA = targets.codegen().isa

# With the lanes that exist of the last vector.
TILES = [
    (dtype, tile._replace(nv=nv), tile.vl)
    for dtype in targets.BITS
    for tile in targets.row_tiles(ISA, dtype)
    for nv in {1, tile.nv}
]
if targets.MACHINES[ISA].masks:
    TILES += [
        (dtype, targets.row_tiles(ISA, dtype)[0]._replace(mr=2, nv=2), count)
        for dtype, count in (("float32", 1), ("float64", 1), ("float32", 7), ("float64", 3))
    ]


def _build(bits: int, mr: int, nv: int, vl: int, end: int) -> Any:
    from convjit_numba.rowtile import row_tiles

    def kernel(rows, taps, table, kc, b, walk, c, ldc, accumulate, bias, activation, slopes, count):
        row_tiles(
            bits, mr, nv, vl, end, 0, rows, taps, table, kc, b, walk, c, ldc, accumulate,
            bias, activation, slopes, count,
        )  # fmt: skip

    return kernel


@pytest.mark.parametrize(("dtype", "tile", "count"), TILES, ids=lambda value: str(value))
def test_matches_numpy(dtype: str, tile: targets.Tile, count: int) -> None:
    lanes = tile.nr - tile.vl + count
    end = targets.stored_lanes(lanes, ISA, dtype)
    name = f"test.rowtile.{dtype}.{tile}.{end}"
    run = cache.function(name, 13, partial(_build, targets.BITS[dtype], *tile, end))
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    tolerance = 1e-4 if dtype == "float32" else 1e-12
    for rows, (taps, kc) in product(range(1, tile.mr + 1), ((1, 1), (3, 5), (0, 3), (2, 8))):
        a, b, bias = random(7, 40), random(4, 8, tile.nr + 3), random(tile.nr)
        where = rng.integers(0, 7 * 40 - kc, (taps, rows))
        which = rng.integers(0, 4, taps)
        # Per tap the offset of its weights, then the addresses of its rows.
        table = np.zeros((max(1, taps), 1 + rows), np.int64)
        table[:taps, 0] = which * b.strides[0]
        table[:taps, 1:] = address(a) + where * a.itemsize
        sums = np.zeros((rows, lanes), dtype)
        for t, i in product(range(taps), range(rows)):
            sums[i] += a.reshape(-1)[where[t, i] :][:kc] @ b[which[t], :kc, :lanes]
        for accumulate, biased, activation in product((0, 1), (0, 1), (0, 1, 2)):
            before = random(rows + 1, tile.nr + 5)
            c, slopes = before.copy(), np.array([-0.5, 0.5], dtype)
            run(
                rows, taps, address(table), kc, address(b), b.strides[1], address(c),
                c.strides[0], accumulate, address(bias) if biased else 0, activation,
                address(slopes), count,
            )  # fmt: skip
            expected = sums + before[:rows, :lanes] * accumulate + bias[:lanes] * biased
            if activation == 1:
                expected = np.where(expected < 0, expected * slopes[0], expected)
            elif activation == 2:
                expected = np.clip(expected, *slopes)
            assert np.abs(c[:rows, :lanes] - expected).max() < tolerance
            assert np.array_equal(c[rows:], before[rows:])
            assert np.array_equal(c[:, lanes:], before[:, lanes:])


def _build_across(bits: int, mr: int, nv: int, vl: int) -> Any:
    from convjit_numba.rowtile import row_tiles_across

    def kernel(rows, taps, table, kc, b, walk, c, ldc, step):
        row_tiles_across(
            bits, mr, nv, vl, 0, rows, taps, table, kc, b, walk, c, ldc, 1, 0, 0, 0, 0, step
        )

    return kernel


@pytest.mark.parametrize("dtype", targets.BITS)
def test_rows_across_pixels(dtype: str) -> None:
    tile = targets.row_tiles(ISA, dtype)[0]
    build = partial(_build_across, targets.BITS[dtype], *tile)
    run = cache.function(f"test.rowtile.across.{dtype}.{tile}", 9, build)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((9, 11)).astype(dtype)  # of eleven channels, the rows
    b = rng.standard_normal((9, tile.nr)).astype(dtype)
    for rows, kc, first in product(range(1, min(tile.mr, 9) + 1), (1, 4, 9), (0, 2)):
        table = np.zeros((1, 1 + rows), np.int64)
        table[0, 1:] = address(pixels) + (first + np.arange(rows)) * pixels.itemsize
        c = np.ones((rows, tile.nr), dtype)
        run(
            rows, 1, address(table), kc, address(b), b.strides[0], address(c), c.strides[0],
            pixels.strides[0],
        )  # fmt: skip
        expected = 1 + pixels[:kc, first : first + rows].T.astype(np.float64) @ b[:kc]
        assert np.allclose(c, expected, rtol=0, atol=1e-5 if dtype == "float32" else 1e-13)


def test_row_tiles_fit_the_registers() -> None:
    registers = {"avx512": 32, "avx2": 16, "sse2": 16, "neon": 32, "generic": 16}
    for isa, shapes in targets.ROW_SHAPES.items():
        for mr, nv in shapes:
            assert mr * nv + nv + 1 <= registers[isa]

"""The pixel tile and its gathering: every size and tail, epilogues, nothing else touched."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

from convjit_numba import cache, targets
from convjit_numba.executable import address

ISA = targets.codegen().isa
OUTSIDE = 1 << 44  # bytes beyond an array: what is fetched ahead need not exist
TILES = [
    (dtype, tile, tail)
    for dtype in targets.BITS
    for tile in targets.pixel_tiles(ISA, dtype)[:2]
    for tail in (0, tile.vl, tile.vl // 2)
]


def _build(bits: int, mr: int, nv: int, vl: int, tail: int) -> Any:
    from convjit_numba.pixeltile import pixel_tile

    def kernel(
        masked, kc, a, b, walk, c, ldc, accumulate, bias, activation, slopes, count, ahead, stride
    ):  # fmt: skip
        if masked != 0:
            pixel_tile(bits, mr, nv, vl, tail, 1, 1, kc, a, b, walk, c, ldc, accumulate, bias,
                       activation, slopes, count, ahead, stride)  # fmt: skip
        else:
            pixel_tile(bits, mr, nv, vl, tail, 0, 1, kc, a, b, walk, c, ldc, accumulate, bias,
                       activation, slopes, count, ahead, stride)  # fmt: skip

    return kernel


@pytest.mark.parametrize(("dtype", "tile", "tail"), TILES, ids=lambda value: str(value))
def test_matches_numpy(dtype: str, tile: targets.Tile, tail: int) -> None:
    name = f"test.pixeltile.{dtype}.{tile}.{tail}"
    run = cache.function(name, 14, partial(_build, targets.BITS[dtype], *tile, tail))
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    tolerance = 1e-4 if dtype == "float32" else 1e-12
    for count, kc in product({1, tail - 1, tail} if tail > 1 else {tail or tile.vl}, (1, 7)):
        pixels = (tile.nv - 1) * tile.vl + count
        a, bias = random(kc, tile.mr), random(tile.mr)
        b = np.full((kc, tile.nr + 3), np.nan, dtype)
        b[:, :pixels] = random(kc, pixels)
        sums = a.T @ b[:, :pixels]
        for masked, accumulate, biased, kind in product((0, 1), (0, 1), (0, 1), (0, 1, 2)):
            before = random(tile.mr + 1, tile.nr + 5)
            c, slopes = before.copy(), np.array([-0.5, 0.5], dtype)
            run(
                masked, kc, address(a), address(b), b.strides[0], address(c), c.strides[0],
                accumulate, address(bias) if biased else 0, kind, address(slopes), count,
                address(a) + OUTSIDE, 4096,
            )  # fmt: skip
            expected = sums + before[:-1, :pixels] * accumulate + bias[:, None] * biased
            if kind == 1:
                expected = np.where(expected < 0, expected * slopes[0], expected)
            elif kind == 2:
                expected = np.clip(expected, *slopes)
            assert np.abs(c[:-1, :pixels] - expected).max() < tolerance
            assert np.array_equal(c[-1], before[-1])
            assert np.array_equal(c[:, pixels:], before[:, pixels:])


def _build_gather(bits: int, vl: int, step: int) -> Any:
    from convjit_numba.pixeltile import gather_pixels

    def kernel(target, row, first, width, count):
        gather_pixels(bits, vl, step, target, row, first, width, count)

    return kernel


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", targets.BITS)
def test_gathers_what_exists(dtype: str, step: int) -> None:
    vl = targets.pixel_tiles(ISA, dtype)[0].vl
    name = f"test.gather.{dtype}.{vl}.{step}"
    run = cache.function(name, 5, partial(_build_gather, targets.BITS[dtype], vl, step))
    for width, count in product((1, vl, step * vl + 5), (1, vl - 1, vl)):
        row = np.arange(1, width + 1, dtype=dtype)
        for first in range(-step * vl, width + 2):
            target = np.full(vl + 1, -1, dtype)
            run(address(target), address(row), first, width, count)
            places = first + step * np.arange(count)
            inside = (places >= 0) & (places < width)
            assert np.array_equal(target[:count], np.where(inside, places + 1, 0))
            assert (target[count:] == -1).all()


def test_pixel_tiles_fit_the_registers() -> None:
    for isa, shapes in targets.PIXEL_SHAPES.items():
        for mr, nv in shapes:
            assert mr * nv + min(mr, nv) + 1 <= targets.REGISTERS[isa]

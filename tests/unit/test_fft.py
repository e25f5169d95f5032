"""Fast lengths and overlap-save tilings."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from convjit.algorithms import fft, geometry
from convjit.spec import ConvSpec, Direction
from convjit.testing.strategies import specs


def is_fast(n: int) -> bool:
    for radix in fft.RADICES:
        while n % radix == 0:
            n //= radix
    return n == 1


def test_fast_lengths_are_the_next_products_of_small_primes() -> None:
    fast = [n for n in range(1, 2500) if is_fast(n)]
    for n in range(1, 2400):
        assert fft.fast_length(n) == next(length for length in fast if length >= n)


@given(st.integers(1, 10**8))
def test_fast_lengths_as_pocketfft(n: int) -> None:
    assert fft.fast_length(n) == scipy.fft.next_fast_len(n)


def check_tiling(spec: ConvSpec, tiling: fft.Tiling) -> None:
    """Every output once, and every sample that an output reads at its place in the tile."""
    for axis in range(spec.ndim):
        n, m, s = spec.in_size[axis], spec.out_size[axis], spec.stride[axis]
        extent = geometry.extent(spec.kernel_size[axis], spec.dilation[axis])
        length = tiling.lengths[axis]
        assert is_fast(length)
        tiles = tiling.along(spec, axis)
        assert len(tiles) == tiling.counts[axis]
        count = np.zeros(m, int)
        for tile in tiles:
            count[tile.output : tile.output + tile.outputs] += 1
            held = {
                tile.skip + i: tile.first + i for i in range(tile.count)
            }  # position in the tile -> sample
            assert all(0 <= place < length for place in held)
            for o in range(tile.outputs):
                for place in range(o * s, o * s + extent):
                    assert place < length  # nothing wraps around
                    sample = (tile.output * s - spec.padding[axis][0]) + place
                    assert held.get(place) == (sample if 0 <= sample < n else None)
        assert (count == 1).all()


@settings(max_examples=150, deadline=None)
@given(specs(("float32", "complex64")))
def test_tiles_cover_every_output_exactly_once(spec: ConvSpec) -> None:
    spec = spec.replace(
        direction=Direction.FORWARD, pad_mode="zeros", out_size=spec.formula_out_size
    )
    check_tiling(spec, fft.tiling(spec))


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("padding", [0, 7])
def test_long_axes_are_tiled(stride: int, padding: int) -> None:
    spec = ConvSpec.forward((1, 1, 20_000), (1, 1, 40), stride=stride, padding=padding)
    tiling = fft.tiling(spec)
    assert tiling.tiles > 1
    check_tiling(spec, tiling)


def test_any_candidate_is_a_tiling() -> None:
    spec = ConvSpec.forward((1, 1, 50, 37), (1, 1, 7, 5), padding=((3, 2), (40, 1)), stride=(1, 2))
    for lengths in product(*(fft._candidates(spec, axis) for axis in range(2))):
        check_tiling(spec, fft._tiling_of(spec, lengths))


def test_the_choice_is_no_worse_than_one_tile() -> None:
    image = ConvSpec.forward((1, 1, 4096, 4096), (1, 1, 31, 31))
    tiling = fft.tiling(image)
    cost = tiling.tiles * fft.transform_flops(tiling.lengths, False)
    whole = fft.transform_flops((fft.fast_length(4096),) * 2, False)
    assert cost < whole
    assert tiling.lengths[0] * tiling.lengths[1] * 4 <= fft.CACHED_BYTES


def test_a_kernel_as_large_as_the_image_is_one_tile() -> None:
    spec = ConvSpec.forward((1, 3, 32, 32), (2, 3, 31, 31), padding=15)
    assert fft.tiling(spec).counts == (1, 1)


def test_spectra_of_real_data_are_halved() -> None:
    assert fft.spectrum_shape((6, 8), False) == (6, 5)
    assert fft.spectrum_shape((6, 8), True) == (6, 8)
    assert fft.transform_flops((64, 64), True) == 2 * fft.transform_flops((64, 64), False)

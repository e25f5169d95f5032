"""Sizes and index ranges of one axis, against counting."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from convjit.algorithms import geometry


def axes(n: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(kernel, stride, lo, hi, dilation) of axes of n samples on which the kernel fits."""
    for k, s, lo, hi, d in product((1, 2, 3), (1, 2, 3), (0, 1, 4), (0, 3), (1, 2)):
        if n + lo + hi >= geometry.extent(k, d):
            yield k, s, lo, hi, d


SAMPLES = pytest.mark.parametrize("n", [1, 2, 5, 8])


def places(n: int, k: int, s: int, lo: int, hi: int, d: int) -> list[int]:
    """First positions, counted from the image's first sample, at which the kernel fits."""
    return [p for p in range(-lo, n + hi, s) if p + d * (k - 1) < n + hi]


@SAMPLES
def test_output_size_counts_the_places(n: int) -> None:
    for k, s, lo, hi, d in axes(n):
        assert geometry.output_size(n, k, s, lo, hi, d) == len(places(n, k, s, lo, hi, d))


@SAMPLES
def test_outputs_of_tap_are_those_that_read_inside(n: int) -> None:
    for k, s, lo, hi, d in axes(n):
        firsts = places(n, k, s, lo, hi, d)
        total = 0
        for tap in range(k):
            inside = [o for o, first in enumerate(firsts) if 0 <= first + tap * d < n]
            found = geometry.outputs_of_tap(tap, n, len(firsts), s, lo, d)
            assert list(range(*found)) == inside
            assert len(found) == len(inside)
            total += len(inside)
        assert geometry.inside_taps(n, len(firsts), k, s, lo, d) == total


@SAMPLES
def test_transposed_size_inverts_output_size(n: int) -> None:
    for k, s, lo, hi, d in axes(n):
        outputs = geometry.output_size(n, k, s, lo, hi, d)
        rest = (n + lo + hi - geometry.extent(k, d)) % s
        assert geometry.transposed_size(outputs, k, s, lo, hi, d, rest) == n


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("k", "d"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 3)])
def test_same_padding_gives_ceil(n: int, stride: int, k: int, d: int) -> None:
    lo, hi = geometry.same_padding(n, k, stride, d)
    assert geometry.output_size(n, k, stride, lo, hi, d) == -(-n // stride)
    assert 0 <= hi - lo <= 1
    assert geometry.same_padding(n, k, stride, d, lower=True) == (hi, lo)


NUMPY_MODE = {
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
    "symmetric": "symmetric",
}


@pytest.mark.parametrize("mode", geometry.PAD_MODES)
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_source_index_is_what_numpy_pads(mode: str, n: int) -> None:
    limit = geometry.border_limit(mode, n)
    most = 5 if limit is None else limit
    samples = np.arange(1, n + 1)
    expected = np.pad(samples, most, mode=NUMPY_MODE.get(mode, "constant"))
    sources = [geometry.source_index(p, n, mode) for p in range(-most, n + most)]
    assert [0 if s is None else samples[s] for s in sources] == expected.tolist()


@pytest.mark.parametrize(
    ("mode", "n", "limit"),
    [("zeros", 3, None), ("replicate", 3, None), ("replicate", 0, 0), ("reflect", 3, 2),
     ("reflect", 0, 0), ("circular", 3, 3), ("symmetric", 3, 3)],
)  # fmt: skip
def test_border_limit(mode: str, n: int, limit: int | None) -> None:
    assert geometry.border_limit(mode, n) == limit


def test_unknown_pad_mode_is_named() -> None:
    with pytest.raises(ValueError, match="pad_mode='mirror' is not one of zeros, reflect"):
        geometry.source_index(-1, 3, "mirror")


def test_an_empty_range_has_no_length() -> None:
    assert len(geometry.Range(4, 2)) == 0

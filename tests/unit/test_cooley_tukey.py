"""Butterflies, the order of stages, and twiddle factors, as plain Python computes them."""

from __future__ import annotations

from math import prod

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convjit.algorithms import cooley_tukey as ct

LENGTHS = [n for n in range(4, 520, 4) if ct.factors(n) is not None]


def transform(n: int, z: np.ndarray, sign: int) -> np.ndarray:
    out = np.empty_like(z)

    def store(q: int, value: ct.Complex) -> None:
        out[q] = value[0] + 1j * value[1]

    ct.butterfly(n, lambda i: (z[i].real, z[i].imag), store, sign)
    return out


@pytest.mark.parametrize("n", [1, 2, *ct.RADICES, 10, 12, 16, 20])
def test_butterflies_are_transforms(n: int) -> None:
    z = np.random.default_rng(n).standard_normal((n, 2)) @ [1, 1j]
    np.testing.assert_allclose(transform(n, z, -1), np.fft.fft(z), rtol=0, atol=1e-14 * n)
    np.testing.assert_allclose(transform(n, z, 1), np.fft.ifft(z) * n, rtol=0, atol=1e-14 * n)


@pytest.mark.parametrize("n", [7, 9, 25, 32])
def test_other_sizes_have_no_butterfly(n: int) -> None:
    with pytest.raises(ValueError, match="no butterfly"):
        transform(n, np.zeros(n, complex), 1)


@pytest.mark.parametrize("n", LENGTHS)
def test_stages_transform_into_the_order_of_frequencies(n: int) -> None:
    radices = ct.factors(n)
    assert prod(radices) == n
    assert radices[-1] in ct.LAST_RADICES
    z = np.random.default_rng(n).standard_normal((n, 2)) @ [1, 1j]
    data = z.copy()
    for stage in ct.stages(radices):
        radix, sub, blocks = stage
        factors = np.c_[np.ones(sub), ct.twiddles(stage)].T
        runs = data.reshape(blocks, radix, sub)
        for run in runs:
            run[...] = transform(radix, run, -1) * factors
    expected = np.fft.fft(z)[ct.frequencies(radices)]
    np.testing.assert_allclose(data, expected, rtol=0, atol=1e-13 * n**0.5)
    # The same stages backwards, with conjugate factors, take it back.
    for stage in reversed(ct.stages(radices)):
        radix, sub, blocks = stage
        factors = np.c_[np.ones(sub), ct.twiddles(stage)].T
        for run in data.reshape(blocks, radix, sub):
            run[...] = transform(radix, run * factors.conj(), 1)
    np.testing.assert_allclose(data / n, z, rtol=0, atol=1e-14)


@given(st.integers(1, 2**26 - 1), st.integers(-(10**9), 10**9))
def test_roots_are_rounded_almost_correctly(n: int, j: int) -> None:
    with mpmath.workdps(40):
        angle = -2 * mpmath.pi * mpmath.mpf(j % n) / n
        exact = mpmath.cos(angle), mpmath.sin(angle)
    root = ct.roots(np.array([j]), n)[0]
    for value, wanted in zip((root.real, root.imag), exact, strict=True):
        assert abs(mpmath.mpf(float(value)) - wanted) <= 2.0**-53


def test_roots_of_eighths_are_symmetric() -> None:
    half = 0.5**0.5
    eighths = [1, half - 1j * half, -1j, -half - 1j * half]
    expected = eighths + [-z for z in eighths]
    assert ct.roots(np.arange(8), 8).tolist() == expected

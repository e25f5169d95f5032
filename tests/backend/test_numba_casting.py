"""Casts of the numba backend: NumPy's, number for number, and left to NumPy where there is none."""

from __future__ import annotations

import numpy as np
import pytest

import convjit
from convjit.precision import numpy_dtype
from convjit_numba import casting

PAIRS = [(to, of) for to in casting.KINDS for of in casting.KINDS if casting.is_supported(to, of)]
REALS = (*casting.HALVES, "float32", "float64")


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays too go through the kernels, in short runs and on two threads."""
    monkeypatch.setattr(casting, "LEAST", 1)
    monkeypatch.setattr(casting, "RUN_BYTES", 1 << 9)
    monkeypatch.setattr(casting, "SECONDS_PER_BYTE", 1.0)
    casting._kernel.cache_clear()
    yield
    casting._kernel.cache_clear()


def values(of: str, to: str, count: int) -> np.ndarray:
    """Numbers of all sizes; for a cast to integers whole ones that fit."""
    rng = np.random.default_rng(count)
    if of not in REALS:
        limits = (0, 1) if of == "bool" else (np.iinfo(of).min, np.iinfo(of).max)
        found = rng.integers(*limits, count, dtype="uint8" if of == "bool" else of, endpoint=True)
        found = found.astype(of)
        found[: len(limits)] = limits[:count]
        return found
    if to in casting.WIDE:
        most = 2.0 ** (24 if of == "float32" else 53)
        return np.trunc(rng.uniform(0 if to == "uint64" else -most, most, count)).astype(of)
    kind = numpy_dtype(of)
    bits = rng.integers(0, 256, count * kind.itemsize, dtype=np.uint8)  # NaN, Inf, subnormals
    found = bits.view(kind)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 65519.0, 65520.0, 1 + 2**-8, 1e-8]
    found[: len(special)] = np.array(special[:count]).astype(kind)
    return found


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("count", [1, 7, 65, 1001])
@pytest.mark.parametrize(("to", "of"), PAIRS)
def test_is_numpys(to: str, of: str, count: int) -> None:
    source = values(of, to, count)
    expected = source.astype(numpy_dtype(to))
    around = np.full(count + 64, 0x5A, np.uint8).astype(numpy_dtype(to))
    result = around[32 : 32 + count]
    with convjit.use(num_threads=2):
        assert casting.cast(result, source)
    # NaN by NaN: which of them a cast gives is the processor's to say.
    assert np.array_equal(result, expected, equal_nan=to in REALS)
    if to in REALS:
        number = ~np.isnan(expected)
        assert np.array_equal(np.signbit(result)[number], np.signbit(expected)[number])
    ends = np.concatenate([around[:32], around[32 + count :]])
    assert np.array_equal(ends, np.full(64, 0x5A, np.uint8).astype(numpy_dtype(to)))


def test_arrays_of_any_shape_but_contiguous() -> None:
    source = np.arange(2 * 3 * 5, dtype=np.int8).reshape(2, 3, 5)
    result = np.empty((2, 3, 5), np.float32)
    assert casting.cast(result, source)
    assert np.array_equal(result, source)
    for other in (source[:, ::2], source.transpose(2, 1, 0), source[:1]):
        assert not casting.cast(np.empty(other.shape, np.float32)[::1], other[..., ::-1])
    assert not casting.cast(np.empty((3, 5), np.float32), source[:1])  # it would broadcast


@pytest.mark.parametrize(
    ("to", "of"),
    [("int8", "int16"), ("complex64", "float32"), ("float32", "int64"), ("float16", "float64")],
)
def test_leaves_others_to_numpy(to: str, of: str) -> None:
    assert not casting.cast(np.empty(5000, to), np.zeros(5000, of))


def test_leaves_foreign_bytes_and_unaligned_numbers_to_numpy() -> None:
    assert not casting.cast(np.empty(100, np.float64), np.zeros(100, ">f4"))
    raw = np.zeros(401, np.uint8)[1:].view(np.float32)
    assert not raw.flags.aligned
    assert not casting.cast(np.empty(100, np.float64), raw)

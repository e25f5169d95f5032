"""The strided copy of the numba backend is assignment, whatever the strides, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convjit
from convjit_numba import copying

DTYPES = ["float32", "float64", "complex64", "complex128", "int32", "uint64"]


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays too go through the kernels, in small tiles and on two threads."""
    monkeypatch.setattr(copying, "LEAST", 1)
    monkeypatch.setattr(copying, "TILE_BYTES", 1 << 10)
    monkeypatch.setattr(copying, "SECONDS_PER_BYTE", 1.0)
    copying._plan.cache_clear()
    yield
    copying._plan.cache_clear()


@st.composite
def views(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(memory, destination, source): views of random order, steps and direction; no overlap."""
    dtype = draw(st.sampled_from(DTYPES))
    ndim = draw(st.integers(1, 5))
    long = draw(st.lists(st.sampled_from([1, 2, 3, 5, 16, 17, 40]), min_size=ndim, max_size=ndim))
    shape = tuple(n if i < 3 else min(n, 3) for i, n in enumerate(long))

    def view() -> tuple[np.ndarray, np.ndarray]:
        order = draw(st.permutations(range(ndim)))
        step = st.sampled_from([1, 1, 2, 3, 4, -1, -2])
        steps = draw(st.lists(step, min_size=ndim, max_size=ndim))
        sizes = [shape[axis] * abs(steps[axis]) + 1 for axis in order]
        memory = np.zeros(sizes, dtype)
        back = memory.transpose(np.argsort(order))
        index = []
        for n, step in zip(shape, steps, strict=True):
            last = (n - 1) * abs(step)
            index.append(slice(0, last + 1, step) if step > 0 else slice(last, None, step))
        return memory, back[tuple(index)]

    memory, destination = view()
    values, source = view()
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values.view(np.uint8)[...] = rng.integers(0, 256, values.view(np.uint8).shape)
    assert destination.shape == source.shape == shape
    return memory, destination, source


@settings(max_examples=300, deadline=None)
@given(views())
def test_is_assignment(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    memory, destination, source = case
    before = source.tobytes()
    destination[...] = source
    expected = memory.tobytes()
    memory.view(np.uint8)[...] = 0
    copying.copy(destination, source)
    # Bit by bit, NaNs with it; what lies between the elements of the view is untouched.
    assert memory.tobytes() == expected
    assert source.tobytes() == before


@pytest.mark.parametrize(
    ("into", "out_of"), [("float64", "float32"), ("float32", "float16"), ("int16", "int16")]
)
def test_leaves_other_types_to_numpy(into: str, out_of: str) -> None:
    source = np.arange(80, dtype=out_of).reshape(20, 4).T
    destination = np.zeros((4, 20), into)
    copying.copy(destination, source)
    assert np.array_equal(destination, source)


def test_leaves_unaligned_and_foreign_bytes_to_numpy() -> None:
    raw = np.zeros(401, np.uint8)[1:].view(np.float32)
    assert not raw.flags.aligned
    destination = np.zeros(100, np.float32)
    copying.copy(destination, np.arange(100, dtype=">f4"))
    assert np.array_equal(destination, np.arange(100))
    copying.copy(raw, destination)
    assert np.array_equal(raw, destination)


def test_broadcasts_as_assignment_does() -> None:
    destination = np.zeros((30, 40), np.float32)
    copying.copy(destination, np.arange(40, dtype=np.float32))
    assert np.array_equal(destination, np.broadcast_to(np.arange(40), (30, 40)))
    stretched = np.broadcast_to(np.arange(30, dtype=np.float32)[:, None], (30, 40))
    copying.copy(destination, stretched)
    assert np.array_equal(destination, stretched)


def test_lowering_moves_data_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    original = copying.copy

    def counted(destination: np.ndarray, source: np.ndarray) -> None:
        moved.append(destination.shape)
        original(destination, source)

    monkeypatch.setattr(copying, "copy", counted)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 9, 9), dtype=np.float32)
    w = rng.standard_normal((8, 6, 4, 4), dtype=np.float32)
    with convjit.use(backend="numba", algorithm="winograd"):
        got = convjit.conv_transpose(x, w, stride=2, padding=1)
    assert moved
    expected = convjit.conv_transpose(x, w, stride=2, padding=1, backend="scipy")
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


FENCED = textwrap.dedent(
    """
    import ctypes, mmap
    import numpy as np
    from convjit_numba import copying

    copying.LEAST = 1
    area = mmap.mmap(-1, 5 * mmap.PAGESIZE)
    fence = ctypes.addressof(ctypes.c_char.from_buffer(area)) + 4 * mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    size, none = ctypes.c_size_t(mmap.PAGESIZE), 0
    assert libc.mprotect(ctypes.c_void_p(fence), size, none) == 0, ctypes.get_errno()
    readable = np.frombuffer(area, np.uint8)[: 4 * mmap.PAGESIZE]
    for dtype in (np.float32, np.float64):
        for step in (2, 3, 4):
            for count in (16, 17, 31, 32, 40, 100):
                last = readable.view(dtype)[-((count - 1) * step + 1) :]
                last[...] = np.arange(last.size)
                # Two rows, of which the second ends before what cannot be read.
                rows = readable.view(dtype)[-last.size - 5 :]
                source = np.lib.stride_tricks.as_strided(
                    rows, (2, count), (5 * rows.itemsize, step * rows.itemsize)
                )
                destination = np.zeros((2, count), dtype)
                _, _, _, _, kernel = copying._plan(
                    destination.shape, destination.strides, source.strides, rows.itemsize
                )
                assert kernel is copying._kernel(rows.itemsize, copying.PICKED + step)
                copying.copy(destination, source)
                assert (destination == source).all(), (dtype, step, count)
    print("done")
    """
)


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform != "linux", reason="mprotect by its Linux numbers")
def test_picks_read_nothing_behind_the_last() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FENCED], env=dict(os.environ), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"

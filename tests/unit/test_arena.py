"""Workspaces are used again, by their thread alone, and given up on request."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import convjit
from convjit import arena, precision, registry
from convjit.algorithms.workspace import ALIGNMENT


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    arena.release()
    yield
    arena.release()


def block(size: int) -> arena.Block:
    return arena.take(size, lambda size: np.empty(size, np.uint8))


def refuse(size: int) -> arena.Block:
    raise AssertionError(f"{size} bytes were allocated although there are some")


@pytest.mark.parametrize("size", [1, 63, 64, 100_001])
def test_blocks_begin_on_a_cache_line(size: int) -> None:
    taken = block(size)
    assert taken.ctypes.data % ALIGNMENT == 0
    assert taken.size == size


def test_a_block_is_used_again() -> None:
    first = block(1000)
    arena.give_back(first)
    assert arena.kept() == 1000
    assert arena.take(600, refuse) is first
    assert arena.kept() == 0


def test_a_block_in_use_is_nobody_elses() -> None:
    arena.give_back(block(1000))
    outer, inner = block(1000), block(500)
    assert not np.shares_memory(outer, inner)
    arena.give_back(inner)
    arena.give_back(outer)
    assert arena.kept() == 1000  # the larger one


def test_a_smaller_one_makes_way() -> None:
    arena.give_back(block(500))
    larger = block(1000)
    assert arena.kept() == 0
    arena.give_back(larger)
    assert arena.kept() == 1000


def test_too_large_a_block_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "MOST_KEPT", 999)
    arena.give_back(block(1000))
    assert arena.kept() == 0


def test_blocks_belong_to_threads_and_go_with_them() -> None:
    used, ends = threading.Event(), threading.Event()

    def caller() -> None:
        arena.give_back(block(2000))
        used.set()
        assert ends.wait(10)

    arena.give_back(block(1000))
    thread = threading.Thread(target=caller)
    thread.start()
    assert used.wait(10)
    assert arena.kept() == 3000
    assert not np.shares_memory(arena.take(1000, refuse), block(2000))
    ends.set()
    thread.join()
    assert arena.kept() == 0


def test_another_threads_block_is_given_up() -> None:
    used, ends = threading.Event(), threading.Event()

    def caller() -> None:
        arena.give_back(block(2000))
        used.set()
        assert ends.wait(10)

    thread = threading.Thread(target=caller)
    thread.start()
    assert used.wait(10)
    assert arena.release() == 2000
    assert arena.kept() == 0
    ends.set()
    thread.join()


def test_calls_keep_their_workspace_until_it_is_released() -> None:
    x, w = np.ones((1, 16, 40, 40), np.float32), np.ones((16, 16, 3, 3), np.float32)
    plan = convjit.plan(x, w, backend="scipy", algorithm="gemm")
    first = plan(x, w)
    assert arena.kept() == plan.workspace > 0
    np.testing.assert_array_equal(plan(x, w), first)
    assert convjit.release_memory() == plan.workspace
    assert arena.kept() == 0


def test_a_workspace_survives_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = np.ones((1, 16, 40, 40), np.float32), np.ones((16, 16, 3, 3), np.float32)
    plan = convjit.plan(x, w, backend="scipy", algorithm="gemm")
    monkeypatch.setattr(type(plan.executable), "run", lambda *_: 1 / 0)
    with pytest.raises(convjit.BackendError, match="ZeroDivisionError"):
        plan(x, w)
    assert arena.kept() == plan.workspace


def test_backends_give_up_what_they_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    convjit.conv(np.ones(5), np.ones(2), backend="scipy")
    backend = registry.get("scipy")
    monkeypatch.setattr(
        type(backend), "release_memory", lambda self: asked.append(self.name), raising=False
    )
    convjit.release_memory()
    assert asked == ["scipy"]


# -------------------------------------------------------------------- lent memory

LARGE = (arena.LEAST_LENT // 4 + 5003, 1)


def where(array: np.ndarray) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize("dtype", ["float32", "complex128", "int8", "bfloat16"])
@pytest.mark.parametrize("count", [0, 5, arena.LEAST_LENT + 1])
def test_lent_arrays_are_arrays(dtype: str, count: int) -> None:
    kind = precision.numpy_dtype(dtype)
    array = arena.empty((count, 3), kind)
    assert type(array) is np.ndarray
    assert array.shape == (count, 3)
    assert array.dtype == kind
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    if count > 5:
        assert where(array) % ALIGNMENT == 0
    array[...] = 1
    assert (array == 1).all()


def test_lent_memory_comes_back_with_the_last_view() -> None:
    array = arena.empty(LARGE, np.float32)
    at = where(array)
    view = array[1:].T
    del array
    assert arena.kept() == 0
    other = arena.empty(LARGE, np.float32)
    assert not np.shares_memory(other, view)
    del view
    assert arena.kept() >= arena.LEAST_LENT
    again = arena.empty((LARGE[0] - 10, 1), np.int32)  # nearly as large
    assert where(again) == at
    assert arena.kept() == 0


def test_no_more_than_the_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "MOST_SPARE", 5 * arena.LEAST_LENT)
    arrays = [arena.empty((size * arena.LEAST_LENT,), np.uint8) for size in (1, 2, 3, 2, 1, 9)]
    while arrays:
        arrays.pop(0)
        assert arena.kept() <= arena.MOST_SPARE
    assert arena.kept() > 0  # the last that fitted
    assert arena.release() > 0
    assert arena.kept() == 0


def test_sizes_that_are_all_lent_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (arena.LEAST_LENT,), (3 * arena.LEAST_LENT,)
    del_me = arena.empty(small, np.uint8)
    del del_me
    lent = arena.empty(small, np.uint8)  # leaves its size without a block
    monkeypatch.setattr(arena, "MOST_SPARE", 4 * arena.LEAST_LENT)
    pair = [arena.empty(large, np.uint8) for _ in range(2)]
    pair.clear()  # one more than is kept; what the collector may not raise is a warning, an error
    gc.collect()
    assert arena.LEAST_LENT < arena.kept() <= arena.MOST_SPARE
    del lent


def test_threads_lend_and_return(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(seed: int) -> bool:
        right = True
        for turn in range(200):
            array = arena.empty(LARGE, np.float32)
            array[::1024] = seed * 1000 + turn
            right &= bool((array[::1024] == seed * 1000 + turn).all())
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert 0 < arena.kept() <= 4 * 2 * arena.LEAST_LENT


def test_a_lock_that_is_held_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "MOST_SPARE", 2 * arena.LEAST_LENT)
    sizes = [arena.LEAST_LENT + (count << 14) for count in range(4)]
    with arena._forgetting:  # as where the collector runs in the middle of the arena's own work
        arrays = [arena.empty((size,), np.uint8) for size in sizes]
    arrays.clear()
    assert arena.kept() > arena.MOST_SPARE
    assert arena.empty((2 * arena.LEAST_LENT,), np.uint8) is not None
    assert arena.kept() <= arena.MOST_SPARE


def test_plain_calls_pack_into_memory_that_came_back() -> None:
    x = np.ones((1, 256, 8, 8), np.float32)
    w = np.ones((256, 256, 3, 3), np.float32)
    with convjit.use(backend="numba"):
        convjit.conv(x, w, padding=1)
        kept = arena.kept()
        assert kept >= w.nbytes
        convjit.conv(x, w, padding=1)
    assert arena.kept() == kept
    assert convjit.release_memory() >= kept


def test_large_results_use_memory_that_came_back() -> None:
    side = 1 + int((arena.LEAST_RESULT // 4) ** 0.5)
    image, kernel = np.ones((side, side), np.float32), np.ones((1, 1), np.float32)
    plan = convjit.plan(image, kernel)
    first = plan(image, kernel)
    assert first.nbytes >= arena.LEAST_RESULT
    part, at = first[3:5], where(first)
    second = plan(image, kernel)  # a part of the first is in use
    assert not np.shares_memory(second, part)
    del first, part
    assert where(plan(image, kernel)) == at
    assert convjit.release_memory() >= arena.LEAST_RESULT
    assert (second == 1).all()

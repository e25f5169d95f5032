"""Workspaces are used again, by their thread alone, and given up on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import convjit
from convjit import arena, registry
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

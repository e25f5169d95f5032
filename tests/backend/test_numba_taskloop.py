"""How threads share the tasks of a kernel call: each is computed once, whoever comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numba import njit

import convjit
from convjit.spec import ConvSpec
from convjit_numba import NumbaBackend, cache, taskloop, threads

ROOM = threads.LINE // 8  # numbers from task to task


def _build() -> Callable[..., None]:
    from convjit_numba.memory import atomic_add

    slot_of, take = taskloop.sharing()

    def kernel(counts, slots, tasks, grain, control):
        mine = slot_of(control)
        atomic_add(slots + 8 * mine, 1)
        first, last, turn = take(control, tasks, grain, 0)
        while first < last:
            for task in range(first, last):
                atomic_add(counts + 64 * task, 1)
            first, last, turn = take(control, tasks, grain, turn)

    return kernel


@pytest.fixture(scope="module")
def kernel() -> Any:
    return cache.function("test.taskloop", 5, _build)


@pytest.mark.parametrize("pool", ["compiled", "locks"])
@pytest.mark.parametrize("count", [1, 2, 3, threads.MOST_RANGES + 5])
def test_every_task_is_done_once(
    monkeypatch: pytest.MonkeyPatch, kernel: Any, pool: str, count: int
) -> None:
    if pool == "locks":
        monkeypatch.setattr(threads, "_compiled", None)
        monkeypatch.setattr(threads, "_may_compile", False)
    for tasks, grain in ((0, 1), (1, 1), (2, 5), (7, 2), (64, 1), (1000, 1), (1001, 7)):
        counts = np.zeros((max(tasks, 1), ROOM), np.int64)
        slots = np.zeros(count, np.int64)
        arguments = (counts.ctypes.data, slots.ctypes.data, tasks, grain)
        threads.run(kernel, arguments, count, 1.0)
        assert (counts[:tasks, 0] == 1).all(), (tasks, grain)
        assert not counts[:, 1:].any()
        # Each thread that came had a workspace of its own.
        came = int(slots.sum())
        np.testing.assert_array_equal(slots, np.arange(count) < came)


def test_a_thread_begins_with_its_own_range_and_helps_with_the_others() -> None:
    _, compiled = taskloop.sharing()

    @njit
    def take(control, tasks, grain, turn):  # as Python calls it
        return compiled(control, tasks, grain, turn)

    memory = np.zeros((threads.CONTROL_BYTES + threads.LINE) // 8, np.int64)
    base = memory.ctypes.data
    control = base + -base % threads.LINE
    memory[(control - base + threads.RANGES) // 8] = 3

    def taken(own: int, grain: int, most: int) -> list[int]:
        tasks, turn = [], 0
        while len(tasks) < most:
            first, last, turn = take(control + own, 10, grain, turn)
            if first == last:
                break
            tasks += range(first, last)
        return tasks

    assert taken(1, 1, 2) == [3, 4]  # of 0 1 2, 3 4 5, 6 7 8 9
    assert taken(0, 2, 3) == [0, 1, 2]
    assert taken(2, 2, 99) == [6, 7, 8, 9, 5]
    assert taken(1, 1, 99) == []


@pytest.mark.parametrize(
    "solver", ["numba.indirect", "numba.fft", "numba.winograd.f4x3", "numba.weight_grad.phases"]
)
def test_parts_of_the_workspace_lie_apart(solver: str) -> None:
    """What lies between two threads' parts of the workspace is never touched."""
    direction = "wgrad" if "weight_grad" in solver else "conv"
    spec = ConvSpec.parse(f"{direction}_f32_NCHW_n1c24k40g1_i24x24_w3x3_p1x1")
    backend = NumbaBackend()
    chosen = next(each for each in backend.solvers() if each.id == solver)
    target = replace(backend.target(None), cores=2)
    work, executable = chosen.estimate(spec, target), chosen.plan(spec, target, ())
    assert executable.workspace == work.workspace
    slot = (work.workspace - threads.APART) // 2
    assert slot > threads.APART
    rng = np.random.default_rng(0)
    lhs = rng.standard_normal(spec.lhs_shape, np.float32)
    packed = executable.pack(rng.standard_normal(spec.rhs_shape, np.float32))
    result = np.empty(spec.result_shape, np.float32)
    memory = np.full(work.workspace + threads.LINE, 0x5A, np.uint8)
    first = -memory.ctypes.data % threads.LINE
    workspace = memory[first : first + work.workspace]
    with convjit.use(num_threads=2):
        executable.run(lhs, packed, None, result, workspace)
    between = workspace[slot : slot + threads.APART]
    assert (between == 0x5A).all()
    assert (workspace[:slot] != 0x5A).any()

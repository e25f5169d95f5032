"""The pool of helpers: every task once, cancelled rather than waited for, unbreakable."""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from convjit_numba import cache, threads

_take = threading.Lock()


def take(control: int) -> int:
    """The next task, as a kernel's atomic addition to the first range gives it."""
    counter = ctypes.c_int64.from_address((control & -threads.LINE) + threads.TAKEN)
    with _take:
        task = counter.value
        counter.value += 1
    return task


def drain(tasks: int, done: list[int], control: int) -> None:
    """A kernel: records the tasks that it takes."""
    while (task := take(control)) < tasks:
        done.append(task)
        time.sleep(0.001)


def test_every_task_once() -> None:
    for count in (2, 3, 5):
        done: list[int] = []
        threads.run(drain, (60, done), count, 1.0)
        assert sorted(done) == list(range(60))


def test_alone_without_a_control_block() -> None:
    calls: list[tuple[int, ...]] = []
    threads.run(lambda *arguments: calls.append(arguments), (1, 2), 1, 1.0)
    threads.run(lambda *arguments: calls.append(arguments), (3, 4), 8, threads.WORTH_WAKING / 2)
    assert calls == [(1, 2, 0), (3, 4, 0)]


def test_concurrent_callers() -> None:
    results: list[list[int]] = []

    def caller() -> None:
        done: list[int] = []
        threads.run(drain, (30, done), 3, 1.0)
        results.append(sorted(done))

    callers = [threading.Thread(target=caller) for _ in range(6)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert results == [list(range(30))] * 6


def test_nested_calls() -> None:
    inner: list[list[int]] = []

    def outer(control: int) -> None:
        while take(control) < 6:
            done: list[int] = []
            threads.run(drain, (5, done), 2, 1.0)
            inner.append(sorted(done))

    threads.run(outer, (), 2, 1.0)
    assert inner == [list(range(5))] * 6


def test_a_helper_that_has_not_started_is_not_waited_for() -> None:
    """All helpers are busy in a call that ends only after the second call returned."""
    release = threading.Event()
    entered = threading.Barrier(3)

    def busy(control: int) -> None:
        entered.wait()
        release.wait()

    first = threading.Thread(target=threads.run, args=(busy, (), 2, 1.0))
    first.start()
    entered.wait()
    done: list[int] = []
    threads.run(drain, (3, done), 2, 1.0)
    assert sorted(done) == [0, 1, 2]
    assert first.is_alive()
    release.set()
    first.join()


@pytest.mark.skipif(not threads._may_compile, reason="helpers wait in compiled code on Linux only")
def test_a_caller_cancels_no_other_callers_job() -> None:
    """Its helper has finished, and was given to another caller before it came to cancel."""
    from convjit_numba import futex

    call = cache.function("futex.call", 6, threads._build_call)
    memory = (ctypes.c_int64 * 128)()  # a pool with one box, whose helper is this test
    pool = ctypes.addressof(memory) + -ctypes.addressof(memory) % 64
    box = pool + threads.FIRST_BOX
    ctypes.c_int64.from_address(pool + threads.HELPERS).value = 1
    state = ctypes.c_int64.from_address(box + futex.STATE)
    finished = ctypes.c_int64.from_address(box + futex.FINISHED)
    second_runs, first_returned = threading.Event(), threading.Event()

    @ctypes.CFUNCTYPE(None, ctypes.c_int64)
    def first(control: int) -> None:
        state.value, finished.value = futex.SPINNING, finished.value + 1
        other.start()
        assert second_runs.wait(10)

    @ctypes.CFUNCTYPE(None, ctypes.c_int64)
    def second(control: int) -> None:
        second_runs.set()
        assert first_returned.wait(10)

    def share(kernel: object) -> None:
        call(pool, 1, 1, ctypes.cast(kernel, ctypes.c_void_p).value, 0, 0)  # type: ignore[arg-type]

    other = threading.Thread(target=share, args=(second,), daemon=True)
    share(first)
    assert state.value >= futex.POSTED
    first_returned.set()
    other.join(10)
    assert not other.is_alive()
    assert state.value == futex.SPINNING


@pytest.mark.skipif(not threads._may_compile, reason="helpers wait in compiled code on Linux only")
def test_a_call_clears_no_memory_number_by_number() -> None:
    """Compiling the store of an array of thousands of zeros takes seconds."""
    from convjit_numba import frontend

    code = frontend.llvm_code(6, threads._build_call)
    assert "alloca" in code
    assert "] zeroinitializer, ptr" not in code


@pytest.mark.skipif(not threads._may_compile, reason="helpers wait in compiled code on Linux only")
def test_short_calls_wake_a_sleeping_helper_now_and_then() -> None:
    from convjit_numba import futex

    call = cache.function("futex.call", 6, threads._build_call)
    memory = (ctypes.c_int64 * 128)()  # a pool with one box, whose helper is this test
    pool = ctypes.addressof(memory) + -ctypes.addressof(memory) % 64
    ctypes.c_int64.from_address(pool + threads.HELPERS).value = 1
    state = ctypes.c_int64.from_address(pool + threads.FIRST_BOX + futex.STATE)
    posted: list[bool] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_int64)
    def kernel(control: int) -> None:
        posted.append(state.value >= futex.POSTED)

    code = ctypes.cast(kernel, ctypes.c_void_p).value
    for _ in range(2 * threads.MISSES):
        state.value = futex.PARKED
        call(pool, 1, 0, code, 0, 0)
    assert posted == ([False] * (threads.MISSES - 1) + [True]) * 2
    state.value = futex.SPINNING  # one that is awake always joins
    call(pool, 1, 0, code, 0, 0)
    assert posted[-1]


def test_an_error_in_a_helper_reaches_the_caller() -> None:
    caller = threading.get_ident()
    helper_failed = threading.Event()

    def kernel(control: int) -> None:
        if threading.get_ident() != caller:
            helper_failed.set()
            raise ValueError("from the helper")
        assert helper_failed.wait(10)

    with pytest.raises(ValueError, match="from the helper"):
        threads.run(kernel, (), 2, 1.0)
    test_every_task_once()


def test_an_error_in_the_caller_stops_the_tasks() -> None:
    caller = threading.get_ident()
    taken: list[int] = []

    def kernel(control: int) -> None:
        if threading.get_ident() == caller:
            raise ValueError("from the caller")
        drain(10**9, taken, control)

    with pytest.raises(ValueError, match="from the caller"):
        threads.run(kernel, (), 2, 1.0)
    assert len(taken) < 10**6
    test_every_task_once()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_helper_and_leaves_the_pool_usable() -> None:
    caller = threading.get_ident()
    helper_runs, finished = threading.Event(), threading.Event()

    def kernel(control: int) -> None:
        if threading.get_ident() == caller:
            assert helper_runs.wait(10)
            return
        helper_runs.set()
        time.sleep(0.05)
        _thread.interrupt_main()
        time.sleep(0.1)
        finished.set()

    with pytest.raises(KeyboardInterrupt):
        threads.run(kernel, (), 2, 1.0)
    assert finished.is_set()
    test_every_task_once()


@pytest.mark.subprocess
def test_interrupts_at_any_time() -> None:
    """Signals in a busy loop of calls: each ends in KeyboardInterrupt or the right answer."""
    script = textwrap.dedent(
        """
        import signal, threading, sys
        sys.path[:0] = %r
        from test_numba_threads import drain, threads
        interrupted = 0
        for delay in [i * 2e-4 for i in range(60)]:
            try:
                # Again and again: Python drops what is raised in a callback or a finaliser, and
                # pause() sleeps on when the signal came just before it.
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + delay, 1.0)
                for _ in range(5):
                    done = []
                    threads.run(drain, (4, done), 2, 1.0)
                signal.pause()
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                interrupted += 1
        assert interrupted == 60, interrupted
        done = []
        threads.run(drain, (40, done), 3, 1.0)
        assert sorted(done) == list(range(40))
        """
        % [os.path.dirname(__file__)]
    )
    prologue = "import signal\nsignal.signal(signal.SIGALRM, signal.default_int_handler)\n"
    done = subprocess.run(
        [sys.executable, "-c", prologue + script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.subprocess
def test_a_forked_child_starts_its_own_helpers() -> None:
    script = textwrap.dedent(
        """
        import os, sys, threading
        sys.path[:0] = %r
        from test_numba_threads import drain, threads
        done = []
        threads.run(drain, (20, done), 3, 1.0)
        # Fork while another thread holds the pool's lock, as it may at any time.
        threads._pool().lock.acquire()
        child = os.fork()
        if child == 0:
            done = []
            threads.run(drain, (20, done), 3, 1.0)
            helpers = [t for t in threading.enumerate() if t.name == "convjit-helper"]
            os._exit(0 if sorted(done) == list(range(20)) and len(helpers) == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
        % [os.path.dirname(__file__)]
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.subprocess
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processors of a thread on Linux")
def test_calls_leave_the_callers_processors_alone() -> None:
    """Helpers are sent to other processors, the caller never: not even by the very first call."""
    script = """
import os
import numpy as np, convjit
before = os.sched_getaffinity(0)
x, w = np.ones((1, 32, 56, 56), np.float32), np.ones((64, 32, 3, 3), np.float32)
for _ in range(20):
    convjit.conv(x, w, padding=1)
assert os.sched_getaffinity(0) == before, (before, os.sched_getaffinity(0))
"""
    for _ in range(8):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

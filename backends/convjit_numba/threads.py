"""A pool of parked Python threads that help the calling thread with the tasks of one kernel call.

A compiled kernel takes task numbers from an atomic counter until none is left, so it does not
matter how many threads run it or when they arrive.  The calling thread always runs the kernel
itself; helpers are woken, and one that has not started when the caller is done is cancelled, never
waited for.  A ctypes call gives up the interpreter's lock, so kernels run side by side.

numba's threading layers are not used: ``workqueue`` aborts the process on concurrent calls, and
GNU OpenMP kills a child that was forked after use.  This pool serves concurrent callers (each has
a counter of its own), nested ones (an idle helper or none is found) and forked children (which
start a pool of their own).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

# Below this many seconds waking a helper (some 20 us until it runs) costs more than it brings.
WORTH_WAKING = 50e-6

# A call's control block: the next task at 0, the next slot of workspace at 64, on lines of their
# own because every thread writes them.
SLOT_COUNTER = 64
_CONTROL = ctypes.c_int64 * 40
_STOP = 1 << 62


class _Job:
    """One kernel call that helpers may join."""

    __slots__ = ("arguments", "control", "done", "error", "function", "running", "waiting")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.control = _CONTROL()
        base = ctypes.addressof(self.control)
        self.function = function
        self.arguments = (*arguments, base + -base % 64)
        self.running = 0
        self.waiting = False
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def run(self) -> None:
        self.function(*self.arguments)

    def stop(self) -> None:
        """Leave no tasks to take."""
        offset = (self.arguments[-1] - ctypes.addressof(self.control)) // 8
        self.control[offset] = _STOP


class _Helper:
    """A parked thread; ``job`` is what it was woken for, None if that was cancelled."""

    __slots__ = ("gate", "job", "pool", "started")

    def __init__(self, pool: _Pool) -> None:
        self.pool = pool
        self.gate = threading.Lock()
        self.gate.acquire()
        self.job: _Job | None = None
        self.started = False
        threading.Thread(target=self._loop, name="convjit-helper", daemon=True).start()

    def _loop(self) -> None:
        pool = self.pool
        while True:
            self.gate.acquire()
            with pool.lock:
                job = self.job
                if job is None:
                    pool.idle.append(self)
                    continue
                self.started = True
                job.running += 1
            try:
                job.run()
            except BaseException as error:  # handed to the caller
                job.error = error
                job.stop()
            with pool.lock:
                self.job = None
                self.started = False
                job.running -= 1
                if job.waiting and job.running == 0:
                    job.done.release()
                pool.idle.append(self)
            del job


class _Pool:
    """The helpers of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[_Helper] = []
        self.helpers = 0

    def call(self, job: _Job, threads: int) -> None:
        woken: list[_Helper] = []
        try:
            try:
                self._wake(job, threads - 1, woken)
            except BaseException:
                # Interrupted between taking a helper and waking it: that helper is lost to this
                # pool, so the next call starts another pool.
                _pools.pop(os.getpid(), None)
                raise
            job.run()
        except BaseException:
            job.stop()
            raise
        finally:
            # Whatever interrupts the caller, its arrays stay in use until the helpers are done.
            interrupt: BaseException | None = None
            while True:
                try:
                    self._settle(job, woken)
                    break
                except KeyboardInterrupt as error:
                    interrupt = error
                    job.stop()
            if interrupt is not None:
                raise interrupt
        if job.error is not None:
            raise job.error

    def _wake(self, job: _Job, count: int, woken: list[_Helper]) -> None:
        with self.lock:
            while len(woken) < count:
                if self.idle:
                    helper = self.idle.pop()
                elif self.helpers < count:
                    try:
                        helper = _Helper(self)
                    except RuntimeError:  # no more threads, or the interpreter is shutting down
                        return
                    self.helpers += 1
                else:
                    return
                helper.job = job
                woken.append(helper)
                helper.gate.release()

    def _settle(self, job: _Job, woken: list[_Helper]) -> None:
        """Cancel the helpers that have not started; wait for the others."""
        with self.lock:
            for helper in woken:
                if helper.job is job and not helper.started:
                    helper.job = None  # it parks itself when it wakes
            if job.running == 0:
                return
            job.waiting = True
        job.done.acquire()


_pools: dict[int, _Pool] = {}


def _pool() -> _Pool:
    """The pool of this process: a forked child has copies of no threads, and starts anew."""
    pid = os.getpid()
    pool = _pools.get(pid)
    if pool is None:
        for other in list(_pools):
            _pools.pop(other, None)
        pool = _pools.setdefault(pid, _Pool())
    return pool


def run(
    function: Callable[..., Any], arguments: tuple[Any, ...], threads: int, seconds: float
) -> None:
    """Call a kernel on this thread and, if it is worth it, on ``threads - 1`` helpers.

    Parameters
    ----------
    function : callable
        Takes ``arguments`` and the address of a control block, 0 if it runs alone.  It takes tasks
        until none is left.
    arguments : tuple
    threads : int
        Threads in force, at least 1.
    seconds : float
        What one thread is expected to need.
    """
    if threads <= 1 or seconds < WORTH_WAKING:
        function(*arguments, 0)
    else:
        _pool().call(_Job(function, arguments), threads)

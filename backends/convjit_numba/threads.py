"""A pool of parked threads that help the calling thread with the tasks of one kernel call.

A compiled kernel takes task numbers from atomic counters until none is left
(:mod:`convjit_numba.taskloop`), so it does not matter how many threads run it or when they arrive.
The calling thread always runs the kernel itself; helpers are woken, and one that has not started
when the caller is done is cancelled, never waited for.  A ctypes call gives up the interpreter's
lock, so kernels run side by side; only those of a few microseconds keep it
(:class:`convjit_numba.executable.Launch`).

numba's threading layers are not used: ``workqueue`` aborts the process on concurrent calls, and
GNU OpenMP kills a child that was forked after use.  There are two pools, which both serve
concurrent callers (each has counters of its own), nested ones (an idle helper or none is found),
forked children (which start helpers of their own) and interrupts:

- On Linux helpers wait in compiled code (:mod:`convjit_numba.futex`), and a call of a kernel is one
  ctypes call, which nothing can interrupt half-way.  It costs a microsecond or two, and some
  twenty more until a helper wakes that has slept.
- Elsewhere, or if that cannot be compiled, helpers wait for locks of Python's.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

# A kernel expected to run for fewer seconds runs alone; for fewer than the second figure it is
# joined only by helpers that are awake.  (Measured: two threads do 10 us of work in 6.6 us when the
# helper is awake; when it sleeps, 30 us of work in 33 us, 100 us in 69.)
WORTH_WAKING = 8e-6
WORTH_ROUSING = 40e-6
# Of the calls between the two that find a helper asleep, each so many-th wakes it all the same: a
# program that calls again at once keeps it awake from then on, and for any other the cost of waking
# (some 5 us) is spread over that many calls.
MISSES = 8

# A call's control block (:mod:`convjit_numba.taskloop`): the next slot of workspace, the number of
# ranges of tasks, and how many of each are taken, on lines of their own because every thread
# writes them.  Its address has the number of a thread's own range in the bits that alignment leaves
# free, so there are as many ranges as bytes in a line; where threads are more, some share one.
LINE = 64
SLOT, RANGES, TAKEN, MOST_RANGES = 0, LINE, 2 * LINE, LINE
CONTROL_BYTES = TAKEN + LINE * MOST_RANGES
_CONTROL = ctypes.c_int64 * ((CONTROL_BYTES + LINE) // 8)
_STOP = 1 << 62

# Bytes between what two threads have of the workspace, or as many as each has if these are fewer.
# A processor fetches ahead of a thread that reads with a stride, beyond the end of what is the
# thread's own: lines that another has just written, and will write again.  (Transforms of 31x31 for
# each of 96 channels 263 us, 16 KiB apart 225; a weights' gradient 166 us, 16 KiB apart 155, 64 KiB
# apart 124, 128 KiB apart 118.)
APART = 64 << 10

# The compiled pool: offsets in its head, and its size.
HELPERS, SPINS, MISSED, ALLOWED, FIRST_BOX, BOX_BYTES = 0, 8, 64, 128, 256, 256
MASK_BYTES = 128  # sets of processors: 1024 of them
MOST_HELPERS = 256
MOST_ARGUMENTS = 15  # beside the control block
# Looks at a box before a helper sleeps, 0.2 to 0.4 ms, in which a program calls again that calls
# often: x86 pauses for 40 to 140 cycles between two of them, others hardly at all.
PATIENCE = {"x86_64": 8000}
PATIENCE_ELSEWHERE = 100_000


def slot_step(size: int) -> int:
    """Bytes from a thread's part of the workspace, of ``size`` bytes, to the next thread's."""
    return size + min(size, APART)


def slots_bytes(count: int, size: int) -> int:
    """Of the parts of ``count`` threads, of ``size`` bytes each."""
    return (count - 1) * slot_step(size) + size


class Syscalls(NamedTuple):
    """Numbers of the system calls of Linux that helpers need."""

    futex: int
    sched_setaffinity: int
    gettid: int


SYSCALLS = {
    "x86_64": Syscalls(202, 203, 186),
    "aarch64": Syscalls(98, 122, 178),
    "riscv64": Syscalls(98, 122, 178),
}


# -------------------------------------------------------------------- helpers in compiled code


class CompiledPool:
    """Threads that never leave compiled code, and the call that they help with.

    Attributes
    ----------
    address : int
        Of the compiled :func:`convjit_numba.futex.build_call`.
    """

    def __init__(self) -> None:
        from convjit_numba import cache

        self._serve = cache.function("futex.serve", 2, _build_serve)
        self._call = cache.function("futex.call", 6, _build_call)
        self.address: int = self._call.address
        size = FIRST_BOX + MOST_HELPERS * BOX_BYTES  # of which what is used is touched
        memory = (ctypes.c_int64 * (size // 8 + 8))()
        # Helpers are in this memory, and in this code, for as long as the process lives.
        for kept in (memory, self._serve, cache.alive):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        base = ctypes.addressof(memory)
        self._place = base + -base % 64
        words = (ctypes.c_uint64 * (MASK_BYTES // 8)).from_address(self._place + ALLOWED)
        for processor in os.sched_getaffinity(0):
            if processor < 8 * MASK_BYTES:
                words[processor // 64] |= 1 << processor % 64
        self._helpers = ctypes.c_int64.from_address(self._place + HELPERS)
        self._spins = ctypes.c_int64.from_address(self._place + SPINS)
        self._patience = PATIENCE.get(platform.machine(), PATIENCE_ELSEWHERE)
        self._lock = threading.Lock()
        self._most = MOST_HELPERS

    def call(self, code: int, arguments: tuple[int, ...], threads: int, wake: bool) -> None:
        helpers = threads - 1
        place = self.place_for(helpers)
        count = len(arguments)
        numbers = _NUMBERS[count](*arguments)
        self._call(place, helpers, wake, code, count, ctypes.addressof(numbers))

    def place_for(self, helpers: int) -> int:
        """The address of the pool, for calls that so many helpers may join."""
        if self._helpers.value < helpers and self._helpers.value < self._most:
            self._start(helpers)
        return self._place

    def _start(self, helpers: int) -> None:
        with self._lock:
            # A helper that has to share a core must not keep others from it while it waits.
            awake = min(helpers, self._most) < len(os.sched_getaffinity(0))
            self._spins.value = self._patience if awake else 0
            while self._helpers.value < min(helpers, self._most):
                box = self._place + FIRST_BOX + self._helpers.value * BOX_BYTES
                # Counted first: nobody minds a box without a thread, but two must not share one.
                self._helpers.value += 1
                try:
                    threading.Thread(
                        target=self._serve, args=(self._place, box), name=NAME, daemon=True
                    ).start()
                except RuntimeError:  # no more threads, or the interpreter is shutting down
                    self._most = self._helpers.value = self._helpers.value - 1


def _build_serve() -> Callable[..., None]:
    from convjit_numba import futex

    return futex.build_serve(platform.machine())


def _build_call() -> Callable[..., None]:
    from convjit_numba import futex

    return futex.build_call(platform.machine())


_NUMBERS = [ctypes.c_int64 * n for n in range(MOST_ARGUMENTS + 1)]
NAME = "convjit-helper"
_compiled: CompiledPool | None = None
_may_compile = sys.platform == "linux" and sys.byteorder == "little"
_may_compile = _may_compile and platform.machine() in SYSCALLS
_starting = threading.Lock()


def pool() -> CompiledPool | None:
    """The compiled pool of this process, None where there cannot be one."""
    global _compiled, _may_compile
    if _compiled is not None:
        return _compiled
    with _starting:
        if _compiled is None and _may_compile:
            try:
                _compiled = CompiledPool()
            except Exception:  # whatever a toolchain lacks: the other pool lacks nothing
                _may_compile = False
    return _compiled


def _after_fork() -> None:
    """A child has copies of no threads; locks may have been held by one of them."""
    global _compiled, _starting
    _compiled = None
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# -------------------------------------------------------------------- helpers that wait for locks


class _Job:
    """One kernel call that helpers may join."""

    __slots__ = (
        "arguments", "control", "done", "error", "function", "joined", "memory", "running",
        "waiting",
    )  # fmt: skip

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], threads: int
    ) -> None:
        self.memory = _CONTROL()
        base = ctypes.addressof(self.memory)
        self.control = base + -base % LINE
        self._word(RANGES).value = min(threads, MOST_RANGES)
        self.function = function
        self.arguments = arguments
        self.joined = 0
        self.running = 0
        self.waiting = False
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def _word(self, offset: int) -> Any:
        return ctypes.c_int64.from_address(self.control + offset)

    def run(self, own: int) -> None:
        """Take tasks, first those of range ``own``."""
        self.function(*self.arguments, self.control + min(own, MOST_RANGES - 1))

    def stop(self) -> None:
        """Leave no tasks to take."""
        for place in range(MOST_RANGES):
            self._word(TAKEN + LINE * place).value = _STOP


class _Helper:
    """A parked thread; ``job`` is what it was woken for, None if that was cancelled."""

    __slots__ = ("gate", "job", "pool", "started")

    def __init__(self, pool: _Pool) -> None:
        self.pool = pool
        self.gate = threading.Lock()
        self.gate.acquire()
        self.job: _Job | None = None
        self.started = False
        threading.Thread(target=self._loop, name=NAME, daemon=True).start()

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
                job.joined += 1
                own = job.joined
            try:
                job.run(own)
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
            job.run(0)
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
        until none is left.  A compiled kernel has its address as an attribute.
    arguments : tuple
    threads : int
        Threads in force, at least 1.
    seconds : float
        What one thread is expected to need.
    """
    if threads <= 1 or seconds < WORTH_WAKING:
        function(*arguments, 0)
        return
    code = getattr(function, "address", None)
    if code is not None and len(arguments) <= MOST_ARGUMENTS:
        compiled = pool()
        if compiled is not None:
            compiled.call(code, arguments, threads, seconds >= WORTH_ROUSING)
            return
    _pool().call(_Job(function, arguments, threads), threads)

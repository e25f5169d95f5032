"""Threads, forks, signals and short supplies, seen from outside: in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from convjit_numba import threads

pytestmark = pytest.mark.subprocess

# A layer of which a single thread makes some milliseconds, and the right answer.
PROLOGUE = """
import os, signal, sys, threading, time
import numpy as np
import convjit
from convjit_numba import threads

rng = np.random.default_rng(0)
x = rng.integers(-3, 4, (2, 32, 40, 40)).astype(np.float32)
w = rng.integers(-3, 4, (48, 32, 3, 3)).astype(np.float32)

def conv(**more):
    return convjit.conv(x, w, padding=1, backend="numba", algorithm="direct", **more)

with convjit.use(num_threads=1):
    right = conv()

def check(**more):
    assert np.array_equal(conv(**more), right)

def helpers():
    return [t.name for t in threading.enumerate()].count(threads.NAME)
"""
PYTHON_POOL = "threads._may_compile = False\n"
POOLS = pytest.mark.parametrize("pool", ["", PYTHON_POOL], ids=["compiled", "python"])
COMPILED = threads._may_compile


def run(body: str, **environment: str) -> str:
    """Output of a script in a fresh process; it must end well and complain of nothing."""
    variables = {"CONVJIT_NUM_THREADS": "2"} | environment
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROLOGUE + textwrap.dedent(body)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@POOLS
def test_eight_callers_at_once(pool: str) -> None:
    run(
        pool
        + """
failed = []
def caller():
    try:
        for _ in range(40):
            check()
    except BaseException as error:
        failed.append(error)
callers = [threading.Thread(target=caller) for _ in range(8)]
for thread in callers: thread.start()
for thread in callers: thread.join()
assert not failed, failed
assert helpers() <= 2
""",
    )


@POOLS
@pytest.mark.parametrize("used", [False, True])
def test_calls_after_a_fork(pool: str, used: bool) -> None:
    run(
        pool
        + f"""
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
if {used}:
    check()
    assert helpers() == 1
for _ in range(3):
    child = os.fork()
    if child == 0:
        for _ in range(20): check()
        grandchild = os.fork()
        if grandchild == 0:
            check()
            os._exit(helpers() - 1)
        status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
        os._exit(status or helpers() - 1)
    check()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    )


@POOLS
def test_a_fork_while_other_threads_convolve(pool: str) -> None:
    run(
        pool
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
done = threading.Event()
def caller():
    while not done.is_set(): check()
signal.alarm(50)  # ends a child that waits for a lock of its parent's
callers = [threading.Thread(target=caller, daemon=True) for _ in range(2)]
for thread in callers: thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        check()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
done.set()
for thread in callers: thread.join()
"""
    )


def test_multiprocessing_by_fork() -> None:
    run(
        """
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)
check()
with multiprocessing.get_context("fork").Pool(2) as pool:
    for result in pool.starmap(conv, [()] * 6):
        assert np.array_equal(result, right)
"""
    )


def test_calls_within_executors() -> None:
    """A caller that is itself one of many threads finds an idle helper or none."""
    run(
        """
from concurrent.futures import ThreadPoolExecutor
def outer(_):
    with ThreadPoolExecutor(2) as inner:
        return [np.array_equal(y, right) for y in inner.map(lambda _: conv(), range(3))]
with ThreadPoolExecutor(3) as executor:
    assert all(all(row) for row in executor.map(outer, range(6)))
"""
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_number_of_threads(count: int) -> None:
    """By ``use`` and by the environment; more than there are processors too."""
    run(f"for _ in range(20): check()\nassert helpers() == {count - 1}",
        CONVJIT_NUM_THREADS=str(count))  # fmt: skip
    run(
        f"""
with convjit.use(num_threads={count}):
    for _ in range(20): check()
assert helpers() == {count - 1}
""",
        CONVJIT_NUM_THREADS="1",
    )


def test_without_openmp_and_tbb() -> None:
    """numba's layers play no part: neither libgomp nor TBB is loaded, and none is asked for."""
    out = run(
        """
check()
with open("/proc/self/maps") as file: maps = file.read()
print([name for name in ("libgomp", "libtbb", "omppool", "tbbpool") if name in maps])
""",
        NUMBA_THREADING_LAYER="workqueue",
    )
    assert out.strip() == "[]"


@POOLS
def test_threads_that_cannot_be_started(pool: str) -> None:
    run(
        pool
        + """
start = threading.Thread.start
def refuse(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
for _ in range(3): check()
threading.Thread.start = start
for _ in range(3): check()
"""
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root has no limit of threads")
def test_a_limit_of_threads() -> None:
    run(
        """
import resource
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
for _ in range(3): check()
assert helpers() == 0
"""
    )


@POOLS
def test_ctrl_c_during_a_long_call(pool: str) -> None:
    run(
        pool
        + """
big = np.repeat(x, 24, axis=0)
plan = convjit.plan(big, w, padding=1, backend="numba", algorithm="direct", bias=False)
packed = plan.pack(w)
expected = np.repeat(right, 24, axis=0)
assert np.array_equal(plan(big, packed), expected)
signal.signal(signal.SIGALRM, signal.default_int_handler)
interrupted = 0
for i in range(40):
    try:
        # Again and again, for Python drops what is raised in a callback or a finaliser.
        signal.setitimer(signal.ITIMER_REAL, 1e-4 + i * 2e-4, 1.0)
        while True:
            plan(big, packed)
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        interrupted += 1
    assert np.array_equal(plan(big, packed), expected)
assert interrupted == 40
"""
    )


@POOLS
def test_the_interpreter_ends_cleanly(pool: str) -> None:
    run(pool + "check()")
    run(pool + "import atexit\natexit.register(check)\ncheck()")
    run(
        pool
        + """
# Other threads still convolve when the interpreter ends.
for _ in range(2):
    threading.Thread(target=lambda: [conv() for _ in range(10**9)], daemon=True).start()
time.sleep(0.05)
"""
    )


@pytest.mark.skipif(not COMPILED, reason="helpers wait in Python here")
def test_helpers_sleep_when_nothing_comes() -> None:
    """No processor time while idle, whatever the number of helpers."""
    run(
        """
check()
time.sleep(0.05)
before = time.process_time()
time.sleep(0.3)
assert time.process_time() - before < 0.02
check()
""",
        CONVJIT_NUM_THREADS="4",
    )


@pytest.mark.skipif(not COMPILED, reason="helpers wait in Python here")
def test_calls_at_every_distance() -> None:
    """Helpers that spin, fall asleep and wake: no call is lost, no task is done twice."""
    run(
        """
plan = convjit.plan(x[:1], w, padding=1, backend="numba", algorithm="direct", bias=False)
packed = plan.pack(w)
for i in range(3000):
    assert np.array_equal(plan(x[:1], packed), right[:1])
    start, distance = time.perf_counter(), (i % 100) * 1e-5
    while time.perf_counter() - start < distance:
        pass
"""
    )


@pytest.mark.skipif(not COMPILED, reason="helpers wait in Python here")
def test_helpers_keep_to_the_processors_allowed() -> None:
    run(
        """
allowed = os.sched_getaffinity(0)
for processor in sorted(allowed)[:2] * 2:
    os.sched_setaffinity(0, {processor})
    for _ in range(20):
        check()
        time.sleep(0.001)
for thread in threading.enumerate():
    if thread.name == threads.NAME:
        assert os.sched_getaffinity(thread.native_id) <= allowed
"""
    )

"""Object code kept between processes: first calls, concurrent and interrupted ones, full disks."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from convjit_numba import cache

pytestmark = pytest.mark.subprocess

TRIVIAL = """
import warnings
warnings.simplefilter("error")
import ctypes, logging, os, signal, sys, time
from pathlib import Path
from convjit_numba import cache

def build():
    from convjit_numba.memory import (zero_bytes)
    def kernel(address, count):
        zero_bytes(address, count)
    return kernel

def use(name="trivial", build=build):
    place = (ctypes.c_char * 8)(*b"12345678")
    cache.function(name, 2, build)(ctypes.addressof(place), 4)
    assert bytes(place) == b"\\0\\0\\0\\x005678"
"""
LAYER = """
import sys
import numpy as np
import convjit
x, w = np.ones((1, 16, 20, 20), np.float32), np.ones((16, 16, 3, 3), np.float32)
y = convjit.conv(x, w, padding=1, algorithm="direct", backend="numba")
assert (y[:, :, 1:-1, 1:-1] == 144).all()
"""


def start(body: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRIVIAL + textwrap.dedent(body)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Output of a script, which must end with a code."""
    out, error = process.communicate(timeout=120)
    assert process.returncode == code, out + error
    return out.strip()


def run(body: str, **environment: str) -> str:
    return finish(start(body, **environment))


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, str]:
    """A cache directory of its own."""
    return {"CONVJIT_CACHE_DIR": str(tmp_path)}


def test_kernels_are_kept_and_damage_is_noticed(tmp_path: Path, kept: dict[str, str]) -> None:
    body = "use(); print(cache.compiled)"
    assert run(body, **kept) == "['trivial']"
    assert run(body, **kept) == "[]"
    (stored,) = tmp_path.rglob("trivial.o")
    data = stored.read_bytes()
    for damaged in (data[: len(data) // 2], data[:20], b"", data[:-1] + b"?"):
        stored.write_bytes(damaged)
        assert run(body, **kept) == "['trivial']"
        assert stored.read_bytes() == data
    # Code for another machine is other code.
    assert run(body, **kept, NUMBA_CPU_NAME="generic") == "['trivial']"
    assert len(list(tmp_path.rglob("trivial.o"))) == 2


# -------------------------------------------------------------------- first calls


def test_a_warm_first_call_imports_what_it_needs_alone(kept: dict[str, str]) -> None:
    told = "from convjit_numba import cache; print(cache.compiled)\n"
    compiled = eval(run(LAYER + told, **kept))
    assert {name.partition(".")[0] for name in compiled} <= {"direct", "entry", "pack", "futex"}
    heavy = "{'numba', 'scipy.fft', 'scipy.special', 'logging', 'matplotlib', 'rich', 'filelock'}"
    script = f"import numpy, sys; before = set(sys.modules)\n{LAYER}{told}"
    script += f"assert not (set(sys.modules) - before) & {heavy}, set(sys.modules) & {heavy}\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | kept,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def slow(seconds: float) -> str:
    return f"def slow_build():\n    time.sleep({seconds})\n    return build()\n"


def test_a_person_at_a_terminal_is_told_what_takes_long(kept: dict[str, str]) -> None:
    script = TRIVIAL + slow(cache.TELL_AFTER + 0.3)
    script += "use('one', slow_build); use('two', slow_build)"
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | kept, stderr=theirs)
    assert process.wait(60) == 0
    os.close(theirs)
    told = os.read(ours, 4096).decode().splitlines()
    os.close(ours)
    assert len(told) == 1
    assert told[0].startswith("convjit: compiling kernels for this processor (one), kept in ")


def test_nobody_else_is_told_but_the_log(kept: dict[str, str]) -> None:
    process = start(slow(cache.TELL_AFTER + 0.3) + "use('one', slow_build)", **kept)
    assert process.communicate(timeout=60) == ("", "")
    process = start(
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(name)s %(message)s')"
        "\nlogging.getLogger('numba').setLevel(logging.WARNING)\nuse('two')",
        **kept,
    )
    first, second = finish(process).splitlines()
    assert first == "convjit compiling two"
    assert second.startswith("convjit compiled two in ")


# -------------------------------------------------------------------- concurrent and interrupted


def test_processes_that_compile_at_once(tmp_path: Path, kept: dict[str, str]) -> None:
    go = tmp_path / "go"
    body = f"""
        import numba
        while not Path({str(go)!r}).exists():
            time.sleep(0.001)
        for name in "abc":
            use(name)
        print(cache.compiled)
        """
    processes = [start(body, **kept) for _ in range(3)]
    time.sleep(1.0)
    go.touch()
    names = [eval(finish(process)) for process in processes]
    assert set().union(*names) == set("abc")
    assert run("for name in 'abc': use(name)\nprint(cache.compiled)", **kept) == "[]"
    assert not list(tmp_path.rglob("*.part"))


def test_a_process_killed_while_it_compiles(tmp_path: Path, kept: dict[str, str]) -> None:
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    finish(start(f"use('trivial', lambda: {kill})", **kept), -signal.SIGKILL)
    finish(start(f"os.replace = lambda *names: {kill}\nuse()", **kept), -signal.SIGKILL)
    (part,) = tmp_path.rglob("*.part")
    assert run("use(); print(cache.compiled)", **kept) == "['trivial']"
    assert part.exists()  # its writer might be alive
    long_ago = time.time() - 2 * cache.ABANDONED
    os.utime(part, (long_ago, long_ago))
    assert run("use(); use('other'); print(cache.compiled)", **kept) == "['other']"
    assert not part.exists()


def test_an_interrupt_while_it_compiles(kept: dict[str, str]) -> None:
    run(
        """
        # What numba loads once, it does not load again when that was interrupted.
        from numba.core.registry import cpu_target
        cpu_target.typing_context.refresh()
        cpu_target.target_context.refresh()
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        interrupted = 0
        for delay in (0.001, 0.02, 0.05, 0.1, 0.2, 0.3):
            try:
                # Again and again, for Python drops what is raised in a callback or a finaliser.
                signal.setitimer(signal.ITIMER_REAL, delay, 1.0)
                use(f"after {delay}")
                signal.pause()
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                interrupted += 1
        assert interrupted == 6
        for delay in (0.001, 0.02, 0.05, 0.1, 0.2, 0.3):
            use(f"after {delay}")
        """,
        **kept,
    )
    run("use('after 0.001'); assert not cache.compiled", **kept)


# -------------------------------------------------------------------- directories


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("os.environ['CONVJIT_CACHE_DIR'] = '/proc/convjit'", "No such file"),  # no one may write
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))", "File too large"),
        ("os.replace = full", "No space left"),
    ],
)
def test_a_directory_that_cannot_be_written_warns_once(
    tmp_path: Path, kept: dict[str, str], trouble: str, said: str
) -> None:
    body = f"""
        import errno, resource
        from convjit.errors import ConvjitWarning
        def full(*names):
            raise OSError(errno.ENOSPC, "No space left on device")
        {trouble}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            use()
            use("again")
        assert [w.category for w in caught] == [ConvjitWarning], caught
        assert "CONVJIT_CACHE_DIR" in str(caught[0].message)
        assert {said!r} in str(caught[0].message), caught[0].message
        assert cache.compiled == ["trivial", "again"]
        """
    run(body, **kept)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_directories_used_last_are_kept(tmp_path: Path, kept: dict[str, str]) -> None:
    run("use()", **kept)
    (mine,) = (tmp_path / "numba").iterdir()
    assert mine.name.partition("-")[0] == cache.__version__
    foreign = tmp_path / "numba" / "of-somebody-else"
    foreign.mkdir()
    made = []
    for age in range(12):
        old = tmp_path / "numba" / f"0.0.{age}-{age:024x}"
        old.mkdir()
        (old / "kernel.o").write_bytes(b"code")
        os.utime(old, (1e9 - age, 1e9 - age))
        made.append(old)
    os.utime(mine, (1e8, 1e8))
    run("use()", **kept)  # found, which counts as use
    assert all(path.exists() for path in made)
    run("use('another')", **kept)
    assert mine.exists()
    assert foreign.exists()
    assert [path.exists() for path in made] == [True] * (cache.STAMPS_KEPT - 1) + [False] * 5


def test_what_would_have_to_be_compiled_is_told_and_not_compiled(kept: dict[str, str]) -> None:
    run(
        """
        import convjit
        from convjit import registry

        backend = registry.get("numba")
        def plan():
            return convjit.plan((1, 16, 20, 20), (16, 16, 3, 3), algorithm="numba.direct")
        (first,) = backend.uncompiled(plan)
        assert first.startswith("direct.f32."), first
        assert cache.compiled == [] and "numba" not in sys.modules
        plan()
        assert first in cache.compiled
        assert backend.uncompiled(plan) == ()
        assert backend.uncompiled(lambda: 1 / 0) == ()
        """,
        **kept,
    )

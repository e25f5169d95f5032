"""C++ to a shared library, by g++, kept by the hash of all that it depends on."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

RUNTIME = Path(__file__).parent / "runtime"
FLAGS = (
    "-std=c++20", "-O1", "-march=native", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing",
    "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-w",
)  # fmt: skip


@cache
def missing() -> str | None:
    """Why kernels cannot be run on this machine, in a sentence; None if they can."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"fibers are switched in x86-64 assembly, and this is {platform.machine()}"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    answer = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=False)
    if answer.returncode or int(answer.stdout.split(".")[0] or 0) < 12:
        return f"g++ 12 or later is needed, for _Float16; this is {answer.stdout.strip()!r}"
    return None


@cache
def _machine() -> str:
    """What -march=native depends on."""
    answer = subprocess.run(
        ["g++", "-march=native", "-Q", "--help=target"], capture_output=True, text=True, check=True
    )
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return version.stdout + answer.stdout


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


@cache
def _headers(folder: Path, checked: bool) -> Path:
    """The runtime's headers with the first of them compiled, in a folder of their own."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(RUNTIME.glob("*.hpp"))}
    into = folder / f"runtime-{_digest(_machine(), str(_flags(checked)), *texts.values())}"
    if not into.exists():
        made = Path(tempfile.mkdtemp(prefix="runtime-", dir=folder))
        for name, text in texts.items():
            (made / name).write_text(text, encoding="utf-8")
        header = made / "runtime.hpp"
        _gcc([*_flags(checked), "-x", "c++-header", str(header), "-o", f"{header}.gch"])
        try:
            made.rename(into)
        except OSError:  # another process was quicker
            shutil.rmtree(made, ignore_errors=True)
    return into


def _flags(checked: bool) -> tuple[str, ...]:
    return (*FLAGS, "-DCHECKED") if checked else FLAGS


def _gcc(arguments: list[str]) -> None:
    answer = subprocess.run(["g++", *arguments], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"g++ failed, which is a fault of the translation:\n{answer.stderr}")


def library(source: str, folder: Path, *, checked: bool) -> Path:
    """The library of a translated module, compiled if ``folder`` does not have it yet."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = _headers(folder, checked)
    target = folder / f"{_digest(headers.name, source)}.so"
    if not target.exists():
        text = target.with_suffix(f".{os.getpid()}.cpp")
        made = target.with_suffix(f".{os.getpid()}.so")
        text.write_text(source, encoding="utf-8")
        _gcc([*_flags(checked), f"-I{headers}", "-shared", str(text), "-o", str(made)])
        made.replace(target)
        text.replace(target.with_suffix(".cpp"))
    return target

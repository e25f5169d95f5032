"""Compiled kernels: built by numba once, kept as object code, loaded by llvmlite alone.

A kernel is a Python function on int64 arguments.  numba's front end makes an LLVM module of it
(:mod:`convjit_numba.frontend`), which is optimised and turned into object code through llvmlite's
public interface, stored, and loaded.  A later process finds the object code and needs no numba at
all: tens of milliseconds instead of half a second for the import and seconds for compiling.

numba's own cache would not do: its stamp covers the file of the cached function, not the modules
that the function's intrinsics come from, so that an edit of :mod:`convjit_numba.memory` would
leave stale machine code in use.  Here the directory's name is, after the version of convjit, a hash
of every source of the package and of :mod:`convjit.algorithms`, the versions of numba and llvmlite
and the machine that code is generated for.  The directories used last are kept, the others removed.

Files are written under a name of their own and renamed, and carry their own hash: concurrent
processes may both compile, one may be killed while it does, and a truncated file is ignored.

Compiling takes a second or more.  Whoever listens to the logger ``"convjit"`` at level INFO is told
of every kernel; otherwise a person at a terminal is told once, in one line, while it goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from convjit import algorithms, profiling
from convjit._version import __version__
from convjit.errors import ConvjitWarning
from convjit.locks import lock_held_over_forks
from convjit.spi import cache_dir
from convjit.store import write_whole
from convjit_numba import targets

# Kernels may call nothing but these (the last two for :mod:`convjit_numba.futex`); all else is
# numba's run time, which another process lacks.
LIBC = frozenset({"memset", "memcpy", "memmove", "syscall", "sched_getcpu"})
SYMBOL = "convjit_kernel"
# Directories kept: several environments and instruction sets on one machine, a few MiB each.
STAMPS_KEPT = 8
ABANDONED = 3600.0  # seconds after which nobody is still writing a file
TELL_AFTER = 1.0  # seconds of compiling after which a person wants to know

# A fork waits for a thread that compiles or loads: numba and llvmlite have locks of their own, and
# a child must not find those held.
_lock = lock_held_over_forks()
_functions: dict[tuple[str, int], Any] = {}
alive: list[Any] = []  # machine code lives as long as its engine
_warned = False


compiled: list[str] = []  # names of the kernels that this process compiled, in order
_withheld = threading.local()  # .names: of kernels not to be compiled in this thread now


class _Withheld(Exception):
    """A kernel that is not kept, where none is to be compiled."""


def lacking(make: Callable[[], object]) -> tuple[str, ...]:
    """The kernel at which ``make()`` would begin to compile, by name; empty if it need not.

    ``make`` ends there.  What else it raises says nothing here: whoever calls it will meet that.
    """
    names: list[str] = []
    _withheld.names = names
    try:
        make()
    except Exception:
        return tuple(names)
    finally:
        del _withheld.names
    return ()


def function(name: str, arguments: int, build: Callable[[], Callable[..., None]]) -> Any:
    """The compiled kernel of a name: a ctypes function of ``arguments`` int64.

    Its attribute ``address`` is where its code begins.

    Parameters
    ----------
    name : str
        Distinguishes the kernels of this package, e.g. ``"direct.f32.6x2x8"``.
    arguments : int
    build : callable
        Gives the Python function to compile; called (and numba imported) only if the object code
        is not in the cache.
    """
    found = _functions.get((name, arguments))
    if found is not None:
        return found
    with _lock:
        if (name, arguments) not in _functions:
            address = _address(name, arguments, build)
            prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
            kernel = prototype(address)
            kernel.address = address  # type: ignore[attr-defined]
            _functions[name, arguments] = kernel
        return _functions[name, arguments]


def _address(name: str, arguments: int, build: Callable[[], Callable[..., None]]) -> int:
    path = directory() / f"{name}.o"
    stored = _read(path)
    if stored is not None:
        _mark_used(path.parent)
        return _load(stored)
    names = getattr(_withheld, "names", None)
    if names is not None:
        names.append(name)
        raise _Withheld(name)
    with profiling.phase(f"compile {name}", profiling.COMPILE), _telling(name, path.parent):
        code, address = _compile(arguments, build)
    compiled.append(name)
    if code is None:
        return address
    _write(path, code)
    return _load(code)


# -------------------------------------------------------------------- saying so

_told = False


@contextlib.contextmanager
def _telling(name: str, where: Path) -> Iterator[None]:
    """Say what is being compiled: to the log if anybody listens, else to a person who waits."""
    import logging

    logger = logging.getLogger("convjit")
    if logger.isEnabledFor(logging.INFO):
        logger.info("compiling %s", name)
        start = time.perf_counter()
        yield
        logger.info("compiled %s in %.1f s", name, time.perf_counter() - start)
        return
    timer = threading.Timer(TELL_AFTER, _tell, (name, where))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tell(name: str, where: Path) -> None:
    """One line a process, where a person reads it: a terminal, or an interactive interpreter."""
    global _told
    stream = sys.stderr
    if _told or stream is None or not (hasattr(sys, "ps1") or stream.isatty()):
        return
    _told = True
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"convjit: compiling kernels for this processor ({name}), kept in {where}\n")
        stream.flush()


# -------------------------------------------------------------------- compile, emit, load


def _compile(arguments: int, build: Callable[[], Callable[..., None]]) -> tuple[bytes | None, int]:
    """(object code, 0); or, if it needs numba's run time, (None, the address of numba's code)."""
    from convjit_numba import frontend

    code = _emit(frontend.llvm_code(arguments, build), arguments)
    if code is not None:
        return code, 0
    import numba

    signature = numba.void(*[numba.int64] * arguments)
    kernel = numba.cfunc(signature, error_model="numpy")(build())
    alive.append(kernel)
    return None, int(kernel.address)


def _emit(text: str, arguments: int) -> bytes | None:
    """Object code with one function, ``SYMBOL``, from the module of a ``numba.cfunc``.

    The module holds the kernel in numba's calling convention (status returned; places for result
    and exception come first) and, named ``cfunc.`` and the kernel's name, a C function that reports
    the kernel's exceptions through the interpreter.  Kernels raise none, so a plain C function
    takes its place, everything else goes, and what is left is optimised as numba does it: at level
    3, vectorising loops but not straight-line code.
    """
    import llvmlite.binding as llvm

    with llvm.parse_assembly(text) as module:
        names = [f.name for f in module.functions if not f.is_declaration]
    natives = [name for name in names if "cfunc." + name in names]
    if len(natives) != 1:
        return None
    numbers = ", ".join(f"i64 %a{i}" for i in range(arguments))
    text += f"""
define void @{SYMBOL}({numbers}) {{
  %result = alloca ptr
  %exception = alloca ptr
  %status = call i32 @"{natives[0]}"(ptr %result, ptr %exception, {numbers})
  ret void
}}
"""
    machine = _machine()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization, options.slp_vectorization = True, False
    with llvm.parse_assembly(text) as module:
        for item in module.functions:
            if item.name != SYMBOL and not item.is_declaration:
                item.linkage = "internal"
        for variable in module.global_variables:
            if not variable.is_declaration:
                variable.linkage = "internal"
        with llvm.create_pass_builder(machine, options) as builder:
            with llvm.create_new_module_pass_manager() as passes:
                passes.add_global_dead_code_eliminate_pass()
                passes.run(module, builder)
            with builder.getModulePassManager() as passes:
                passes.run(module, builder)
        outside = [f.name for f in module.functions if f.is_declaration]
        outside += [g.name for g in module.global_variables if g.is_declaration]
        if not all(name.startswith("llvm.") or name in LIBC for name in outside):
            return None
        return bytes(machine.emit_object(module))


@lru_cache(maxsize=1)
def _initialise() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _machine() -> Any:
    """A code generator for exactly the machine that numba generates code for."""
    import llvmlite.binding as llvm

    _initialise()
    triple, cpu, features = targets.codegen()
    target = llvm.Target.from_triple(triple)
    return target.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


def _load(code: bytes) -> int:
    import llvmlite.binding as llvm

    machine = _machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(SYMBOL)
    alive.append(engine)
    return int(address)


# -------------------------------------------------------------------- the files


@lru_cache(maxsize=1)
def stamp() -> str:
    """Hash of everything that the object code depends on."""
    from importlib import metadata

    digest = hashlib.sha256()
    # The transforms that some kernels are generated from are the core's.
    packages = (Path(__file__).parent, Path(algorithms.__file__).parent)
    for source in (file for package in packages for file in sorted(package.glob("*.py"))):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for distribution in ("numba", "llvmlite"):
        digest.update(metadata.version(distribution).encode() + b"\0")
    digest.update("\0".join(targets.codegen()).encode())
    digest.update(platform.python_version().encode())
    return digest.hexdigest()[:24]


def directory() -> Path:
    """Where the kernels of this version, on this machine, are kept."""
    return cache_dir() / "numba" / f"{__version__}-{stamp()}"


@lru_cache(maxsize=8)
def _mark_used(where: Path) -> None:
    """Once a process, so that the directories used last are known."""
    with contextlib.suppress(OSError):
        os.utime(where)


@lru_cache(maxsize=8)
def _prune(where: Path) -> None:
    """Remove the directories beside ``where`` that were used longest ago, and abandoned files.

    A process that still uses one of them compiles again.
    """
    with contextlib.suppress(OSError, ValueError):
        ours = re.compile(r".+-[0-9a-f]{24}")
        others = [path for path in where.parent.iterdir() if ours.fullmatch(path.name)]
        others.remove(where)
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[STAMPS_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)
        for path in where.glob("*.part"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)


def _read(path: Path) -> bytes | None:
    """The object code in a file, or None if there is none or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, code = data[:32], data[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Store a kernel atomically; where that is not possible, warn once and go on without."""
    global _warned
    data = hashlib.sha256(code).digest() + code
    try:
        try:
            write_whole(path, data)
        except FileNotFoundError:  # another process pruned the directory just now
            write_whole(path, data)
        _prune(path.parent)
    except OSError as error:
        if not _warned:
            _warned = True
            warnings.warn(
                f"Compiled kernels cannot be kept in {path.parent} ({error}); every process will "
                "compile them anew. Set CONVJIT_CACHE_DIR to a writable directory.",
                ConvjitWarning,
                stacklevel=2,
            )

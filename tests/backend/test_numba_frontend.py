"""Kernels by numba's front end alone: numba itself works as before, whatever it did for us."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numba.core.registry import cpu_target

from convjit_numba import cache, memory, planetile, vectorcode


def build_mirror():
    """A kernel with a helper that itself has helpers."""
    load, store, index = memory.load_int, memory.store_int, planetile.border_index

    @numba.njit(**vectorcode.OPTIONS)
    def mirrored(source, i, n):
        return load(source + 8 * index(1, i, n))

    def kernel(target, source, n):
        for i in range(n):
            store(target + 8 * i, mirrored(source, i - n // 2, n))

    return kernel


def run(name: str, build, *, n: int = 7) -> np.ndarray:
    source, target = np.arange(n) ** 2, np.zeros(n, np.int64)
    cache.function(name, 3, build)(target.ctypes.data, source.ctypes.data, n)
    return target


def test_a_kernel_is_compiled_and_numba_works_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_read", lambda path: None)
    before = cpu_target.target_context.codegen()
    assert run("test.frontend.mirror", build_mirror).tolist() == [9, 4, 1, 0, 1, 4, 9]
    assert cpu_target.target_context.codegen() is before

    # Helpers that were compiled for a kernel, and numba's own for them, serve other code.
    index = planetile.border_index
    assert index.overloads

    @numba.njit
    def mine(i):
        return index(1, i, 9) + len(np.zeros(max(i * i, min(i, 4))))

    assert mine(-3) == 3 + 9
    with pytest.raises(ZeroDivisionError):
        numba.njit(lambda a, b: a // b)(1, 0)


def test_what_needs_numbas_run_time_is_compiled_by_numba() -> None:
    def build():
        load, store = memory.load_int, memory.store_int

        def kernel(target, source, n):
            copy = np.empty(n, np.int64)
            for i in range(n):
                copy[i] = load(source + 8 * i)
            for i in range(n):
                store(target + 8 * i, copy[n - 1 - i])

        return kernel

    assert run("test.frontend.allocates", build, n=4).tolist() == [9, 4, 1, 0]
    assert not (cache.directory() / "test.frontend.allocates.o").exists()


def test_a_kernel_that_cannot_be_compiled_changes_nothing() -> None:
    before = cpu_target.target_context.codegen()

    def build():
        def kernel(a):
            a.nothing()

        return kernel

    with pytest.raises(numba.TypingError):
        cache.function("test.frontend.wrong", 1, build)
    with pytest.raises(KeyboardInterrupt):
        cache.function("test.frontend.interrupted", 1, interrupted)
    assert cpu_target.target_context.codegen() is before
    assert numba.cfunc("int64(int64)")(lambda i: i + 1).ctypes(4) == 5
    assert isinstance(run("test.frontend.mirror", build_mirror), np.ndarray)


def interrupted():
    raise KeyboardInterrupt

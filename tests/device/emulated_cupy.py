"""``convjit_cupy`` on the stand-in for CuPy, under a name of its own: never what is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import ptxcpu
import standin_cupy

from convjit import registry
from convjit.spi import Solver
from convjit_cupy import CupyBackend


@cache
def missing() -> str | None:
    """Why CUDA C++ cannot be compiled and run here, in a sentence; None if it can."""
    for module in ("nvidia", "cuda"):
        if find_spec(module) is None:
            return "the compilers of the extra gpu-test are not installed"
    if find_spec("cuda.bindings") is None:
        return "cuda-bindings is not installed (the extra gpu-test)"
    return ptxcpu.missing()


class EmulatedCupy(CupyBackend):
    """The backend on arrays of ``standin_cupy``."""

    name = "cupy_emulated"
    array_types = ("standin_cupy:ndarray", "numpy:ndarray")

    def __init__(self, name: str = name, without: tuple[str, ...] = ()) -> None:
        super().__init__(standin_cupy)
        self.name = name
        self._without = without

    def solvers(self) -> Sequence[Solver]:
        """The backend's, but for those of the algorithms that it is to do without."""
        return tuple(s for s in super().solvers() if s.algorithm not in self._without)

    def probe(self) -> str | None:
        return missing()


@contextmanager
def registered(backend: Any) -> Iterator[None]:
    """The backend among those that convjit knows."""
    registry.register(backend)
    try:
        yield
    finally:
        registry.unregister(backend.name)

"""A kernel's LLVM code by numba's front end alone, neither optimised nor turned into machine code.

``numba.cfunc`` optimises every helper by itself, then the kernel with its helpers twice, and has
machine code made of each; none of that machine code is ever run, for the kernel is stripped of
numba's wrapper and compiled again (:mod:`convjit_numba.cache`).  Here numba types and lowers, and
what it links is left as it is: compiling takes some 40 % less.

numba has no setting for this.  What its target lends to code generation is therefore exchanged
while a kernel is built, under numba's own lock, so that no other thread compiles meanwhile.  A
helper that another numba function calls later is linked into that as LLVM code, as helpers always
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


def llvm_code(arguments: int, build: Callable[[], Callable[..., None]]) -> str:
    """The module of a kernel, its helpers and numba's wrapper around it.

    Parameters
    ----------
    arguments : int
        How many int64 the kernel takes.
    build : callable
        Gives the kernel as a Python function.
    """
    import numba

    signature = numba.void(*[numba.int64] * arguments)
    with _code_alone():
        kernel = numba.cfunc(signature, error_model="numpy")(build())
        return str(kernel.inspect_llvm())


@contextmanager
def _code_alone() -> Iterator[None]:
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    context = cpu_target.target_context
    with global_compiler_lock:
        # numba's run time, which this may compile, shall be machine code.
        cpu_target.typing_context.refresh()
        context.refresh()
        kept, context._internal_codegen = context._internal_codegen, _code_generator()
        try:
            yield
        finally:
            context._internal_codegen = kept


@cache
def _code_generator() -> Any:
    from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
    from numba.core.runtime.nrt import rtsys

    class Library(JITCodeLibrary):
        """Modules that are linked, and that is all."""

        def add_linking_library(self, library: Any) -> None:
            if library is not rtsys.library:  # kernels have no use for numba's run time
                super().add_linking_library(library)

        def _optimize_functions(self, ll_module: Any) -> None:
            ll_module.data_layout = self._codegen._data_layout

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_specific(self) -> None:
            pass

        def get_pointer_to_function(self, name: str) -> int:
            self._ensure_finalized()
            return 0

    class Generator(JITCPUCodegen):
        _library_class = Library

        def _add_module(self, module: Any) -> None:
            pass

        def set_env(self, env_name: str, env: Any) -> None:
            pass

    return Generator("convjit")

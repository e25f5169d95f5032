"""Winograd's transforms as numba.cuda device functions, printed from straight-line programs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from numba import cuda

from convjit.algorithms.straightline import Program, python_source
from convjit_numba_cuda.problem import real


@lru_cache(maxsize=64)
def along_axis(program: Program, dtype: str) -> Any:
    """A device function that applies a program to one line of a tile in registers.

    ``apply(source, at, step, target, to, stride)`` reads inputs at ``source[at + i * step]`` and
    writes outputs to ``target[to + k * stride]``; the two may be one array, since all inputs are
    read first.
    """
    inputs = ", ".join(f"source[at + {i} * step]" for i in range(program.inputs))
    names = [f"y{k}" for k in range(len(program.outputs))]
    lines = [
        "def apply(source, at, step, target, to, stride):",
        f"    {', '.join(names)}, = program({inputs})",
        *(f"    target[to + {k} * stride] = {name}" for k, name in enumerate(names)),
    ]
    space: dict[str, Any] = {"real": real(dtype)}
    exec(python_source(program, "program", cast="real"), space)
    space["program"] = cuda.jit(device=True, inline="always")(space["program"])
    exec("\n".join(lines), space)
    return cuda.jit(device=True, inline="always")(space["apply"])

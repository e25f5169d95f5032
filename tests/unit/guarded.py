"""Running one numba solver as the core does, with canaries around everything it is handed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convjit.algorithms.error import error_bound, relative_error
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.spec import ConvSpec
from convjit.spi import Solver
from convjit_numba import NumbaBackend

BACKEND = NumbaBackend()


class Guarded:
    """An array between canaries, which say whether anything was written beside it."""

    CANARY = 0xA5
    MARGIN = 512

    def __init__(self, shape: tuple[int, ...], dtype: object) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.memory = np.full(size + 2 * self.MARGIN + 64, self.CANARY, np.uint8)
        start = self.MARGIN + -(self.memory.ctypes.data + self.MARGIN) % 64
        self.inside = slice(start, start + size)
        self.array = self.memory[self.inside].view(dtype).reshape(shape)

    def fill(self, values: np.ndarray) -> Guarded:
        self.array[...] = values
        self.before = self.array.copy()
        return self

    def intact(self) -> bool:
        outside = np.delete(self.memory, self.inside)
        return bool((outside == self.CANARY).all())

    def unchanged(self) -> bool:
        return self.intact() and self.array.tobytes() == self.before.tobytes()


def operands(spec: ConvSpec, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(spec.lhs_shape).astype(spec.dtype)
    w = rng.standard_normal(spec.rhs_shape).astype(spec.dtype)
    bias = rng.standard_normal(spec.result_channels).astype(spec.dtype) if spec.bias else None
    return x, w, bias


def compute(solver: Solver, spec: ConvSpec, x, w, bias=None, *, cores=None, config=()):
    """Plan, pack and run as the core does, with canaries around everything."""
    target = BACKEND.target()
    if cores is not None:
        target = replace(target, cores=cores)
    executable = solver.plan(spec, target, config)
    gx = Guarded(spec.lhs_shape, spec.dtype).fill(x)
    gw = Guarded(spec.rhs_shape, spec.dtype).fill(w)
    packed = executable.pack(gw.array)
    assert gw.unchanged()
    if packed is not gw.array:
        gw.array[...] = np.nan  # the packed form is a copy
    gb = None if bias is None else Guarded(bias.shape, spec.dtype).fill(bias)
    out = Guarded(spec.result_shape, spec.result_dtype).fill(np.full(spec.result_shape, np.nan))
    workspace = Guarded((executable.workspace,), np.uint8)
    executable.run(gx.array, packed, None if gb is None else gb.array, out.array, workspace.array)
    assert gx.unchanged()
    assert gb is None or gb.unchanged()
    assert out.intact()
    assert workspace.intact()
    return out.array.copy()


def check(spec: ConvSpec, solver: Solver, result, x, w, bias) -> None:
    numerics = solver.estimate(spec, BACKEND.target()).numerics
    expected, sizes = oracle(spec, x, w, bias), magnitudes(spec, x, w, bias)
    assert result.dtype == spec.result_dtype
    assert relative_error(spec, result, expected, sizes) <= error_bound(spec, numerics)

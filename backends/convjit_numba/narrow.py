"""Integers of 8 bits by pairs of channels, for :mod:`convjit_numba.indirect`.

Two neighbouring channels become a number of 32 bits, two int16.  One instruction multiplies two
such vectors and adds the products of a pair, a second one (or the same, by VNNI) adds them to sums
of int32: twice or four times the products that the same vectors of float32 or float64 have, and
exact, since a problem is taken only where no sum can reach 2**31.  An odd last channel is paired
with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from convjit import profiling
from convjit.algorithms.workspace import aligned, carve, nbytes
from convjit.precision import LARGEST
from convjit.spec import ConvSpec
from convjit.spi import Array, Executable, Phase, empty, num_threads
from convjit_numba import cache, casting, targets, taskloop, threads
from convjit_numba.casting import KINDS
from convjit_numba.executable import address
from convjit_numba.problem import Problem

RUN = 4096  # elements of a channel that are taken at once
SECONDS_PER_PAIR = 0.2e-9

# Times as long a step of pairs takes as one of float32.  Where VNNI does not add to the sums, two
# instructions take the place of one (1.3 measured); SSE2 has as many for float32, NEON four.
FACTOR = {"avx512": 1.3, "avx2": 1.3, "sse2": 1.0, "neon": 4.0, "generic": 4.0}
VNNI = {"avx512": "+avx512vnni", "avx2": "+avxvnni"}


def fits(spec: ConvSpec) -> bool:
    """Whether a problem of narrow integers has pairs, and sums that int32 holds."""
    largest = LARGEST[spec.dtype] ** 2 * spec.reduction
    return spec.in_channels > spec.groups and largest < 2**31


def factor(isa: str) -> float:
    """Times as long a step of pairs takes as one of float32."""
    return 1.0 if VNNI.get(isa) in targets.codegen().features.split(",") else FACTOR[isa]


def paired(p: Problem) -> Problem:
    """The problem of the pairs, which move as float32."""
    return replace(p, dtype="float32", cg=-(-p.cg // 2))


def _pairs(spec: ConvSpec) -> int:
    """Of the first operand."""
    channels = spec.in_channels // spec.groups
    return prod(spec.lhs_shape) // channels * -(-channels // 2)


def phases(spec: ConvSpec, product: Phase) -> list[Phase]:
    """The product between what runs before and after it."""
    before = nbytes(spec.lhs_shape, spec.dtype) + 4 * _pairs(spec)
    after = 12 * prod(spec.result_shape)
    return [
        Phase("pairs", bytes={"cast": float(before)}),
        product,
        Phase("sums", bytes={"cast": float(after)}),
    ]


def workspace(spec: ConvSpec) -> int:
    """Bytes of the pairs and of the sums."""
    return aligned(4 * _pairs(spec)) + aligned(4 * prod(spec.result_shape))


def pair(target: Array, source: Array, units: int, channels: int, run: int) -> None:
    """Pairs of channels, ``(units, ceil(channels / 2), run)``, of ``(units, channels, run)``."""
    if run == 1 and channels % 2 == 0:
        if not casting.cast(target.view(np.int16), source.reshape(-1)):
            target.view(np.int16)[...] = source.reshape(-1)
        return
    kind = source.dtype.name
    lanes = targets.MACHINES[targets.codegen().isa].vector_bytes // 4
    kernel = cache.function(f"pairs.{kind}", 7, partial(_build, KINDS.index(kind), lanes))
    arguments = (units, channels, run, max(1, RUN // run), address(target), address(source))
    threads.run(kernel, arguments, num_threads(), source.size * SECONDS_PER_PAIR)


def _build(kind: int, lanes: int) -> Callable[..., None]:
    from numba import njit

    from convjit_numba.conversions import pair_vectors
    from convjit_numba.vectorcode import OPTIONS

    _, take = taskloop.sharing()

    @njit(**OPTIONS)
    def pair_run(target, first, second, count, keep):
        if count < lanes:
            for i in range(count):
                pair_vectors(kind, 1, target + 4 * i, first + i, second + i, keep)
        else:
            for i in range(0, count - lanes, lanes):
                pair_vectors(kind, lanes, target + 4 * i, first + i, second + i, keep)
            i = count - lanes  # some of the vector before once more
            pair_vectors(kind, lanes, target + 4 * i, first + i, second + i, keep)

    @njit(**OPTIONS)
    def task(target, source, units, channels, run, block, parts, number):
        half = (channels + 1) // 2
        place = number // parts
        begin = (number - place * parts) * RUN
        count = min(RUN, run - begin)
        row, end = place * block, min((place + 1) * block, units * half)
        into = target + 4 * (row * run + begin)
        unit = row // half
        channel = 2 * (row - unit * half)
        first = source + (unit * channels + channel) * run + begin
        for _ in range(row, end):
            if channel + 1 < channels:
                pair_run(into, first, first + run, count, -1)
                channel += 2
                first += 2 * run
            else:
                pair_run(into, first, first, count, 0)
                channel += 1
                first += run
            if channel == channels:
                channel = 0
            into += 4 * run

    def kernel(units, channels, run, block, target, source, control):
        parts = (run + RUN - 1) // RUN
        tasks = (units * ((channels + 1) // 2) + block - 1) // block * parts
        first, last, turn = take(control, tasks, 1, 0)
        while first < last:
            for i in range(first, last):
                task(target, source, units, channels, run, block, parts, i)
            first, last, turn = take(control, tasks, 1, turn)

    return kernel


class NarrowExecutable:
    """Pairs of the first operand, their product, and its sums as integers of 64 bits."""

    shapeless = True

    __slots__ = ("_half", "_inner", "_problem", "_spec", "_start", "workspace")

    def __init__(self, spec: ConvSpec, inner: Executable) -> None:
        self._spec, self._problem, self._inner = spec, Problem.of(spec), inner
        self._half = _pairs(spec)
        self._start = workspace(spec)
        self.workspace = self._start + inner.workspace

    def pack(self, rhs: Array) -> Any:
        """Pairs of the weights' input channels, packed as other weights are."""
        p = self._problem
        rows = p.groups * p.kg
        pairs = empty((rows * -(-p.cg // 2) * p.taps,), np.dtype(np.int32))
        pair(pairs, rhs, rows, p.cg, p.taps)
        return self._inner.pack(pairs)

    def run(
        self, lhs: Array, packed: Any, bias: Array | None, out: Array, workspace: Array | None
    ) -> None:
        """Compute into ``out``; bias and activation are left to the core."""
        p = self._problem
        pairs = carve(workspace, 0, (self._half,), np.int32)
        pixels = p.size[0] * p.size[1] * p.size[2]
        with profiling.phase("pairs"):
            if self._spec.channels_last:
                pair(pairs, lhs, p.batch * pixels * p.groups, p.cg, 1)
            else:
                pair(pairs, lhs, p.batch * p.groups, p.cg, pixels)
        sums = carve(workspace, aligned(pairs.nbytes), out.shape, np.int32)
        space = carve(workspace, self._start, (self._inner.workspace,), np.uint8)
        self._inner.run(pairs, packed, None, sums, space)
        with profiling.phase("sums"):
            if not casting.cast(out, sums):
                out[...] = sums

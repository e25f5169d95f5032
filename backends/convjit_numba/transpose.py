"""Between channels-first rows of pixels and vectors of channels: transposes in registers.

Importing this module imports numba, so only the functions that build kernels import it.

``lanes`` rows of ``lanes`` numbers are loaded as vectors and transposed by two networks of shuffles
that every vector instruction set has in one instruction each: interleaving of pairs inside 128-bit
parts, then exchange of whole parts (the idea is Eklundh's, "A fast computer method for matrix
transposing", IEEE Trans. Computers C-21, 1972: log2 of the size stages of pairwise exchanges).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from convjit_numba.vectorcode import (
    I1,
    I32,
    I64,
    OPTIONS,
    POINTER,
    _int,
    _literals,
    _load,
    _real,
    _store,
)

Pick = Callable[[list[tuple[int, int]]], tuple[list[int], list[int]]]


def network(lanes: int, part: int) -> list[list[tuple[int, int, list[int]]]]:
    """Stages of shuffles that transpose a square of ``lanes`` by ``lanes`` numbers.

    A stage makes vector number i of the next one from the vectors ``a`` and ``b`` of the last with
    an LLVM shuffle mask (``lanes`` and above index into ``b``).  ``part`` is the number of lanes in
    128 bits.  The masks are found by following which element each lane holds.
    """
    vectors = [[(row, column) for column in range(lanes)] for row in range(lanes)]
    stages = []

    def apply(picks: list[tuple[int, int, list[int]]]) -> None:
        nonlocal vectors
        vectors = [[(vectors[a] + vectors[b])[i] for i in mask] for a, b, mask in picks]
        stages.append(picks)

    # Interleave numbers, then pairs of numbers, ... inside each part: part by part squares.
    group = min(part, lanes)
    width = 1
    while width < group:
        low: list[int] = []
        high: list[int] = []
        for start in range(0, lanes, group):
            for half, into in ((0, low), (group // 2, high)):
                for i in range(half, half + group // 2, width):
                    into += range(start + i, start + i + width)
                    into += range(lanes + start + i, lanes + start + i + width)
        picks = []
        for row in range(0, lanes, 2 * width):
            for i in range(width):
                a, b = row + i, row + i + width
                picks += [(a, b, low), (a, b, high)]
        apply(picks)
        width *= 2
    # Whole parts: gather the even and the odd ones of two vectors, until none is foreign.
    parts = lanes // group
    distance = group
    while distance < lanes:
        even = [p * group + i for p in range(0, 2 * parts, 2) for i in range(group)]
        odd = [p * group + i for p in range(1, 2 * parts, 2) for i in range(group)]
        picks = []
        for row in range(0, lanes, 2 * distance):
            for i in range(distance):
                a, b = row + i, row + i + distance
                picks += [(a, b, even), (a, b, odd)]
        apply(picks)
        distance *= 2
    order = {vector[0][1]: place for place, vector in enumerate(vectors)}
    if sorted(order) != list(range(lanes)) or any(
        vectors[order[j]] != [(i, j) for i in range(lanes)] for j in range(lanes)
    ):
        raise AssertionError(f"the shuffles do not transpose {lanes} lanes")
    stages[-1] = [stages[-1][order[j]] for j in range(lanes)]
    return stages


def _transposed(builder: Any, rows: list[Any], bits: int) -> list[Any]:
    lanes = len(rows)
    for stage in network(lanes, 128 // bits):
        rows = [
            builder.shuffle_vector(
                rows[a], rows[b], ir.Constant(ir.VectorType(I32, lanes), list(mask))
            )
            for a, b, mask in stage
        ]
    return rows


def first_lanes(builder: Any, lanes: int, count: Any) -> Any:
    """The first ``count`` lanes."""
    wide = ir.VectorType(I64, lanes)
    first = builder.insert_element(ir.Constant(wide, ir.Undefined), count, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    counts = builder.shuffle_vector(first, ir.Constant(wide, ir.Undefined), zeros)
    return builder.icmp_signed("<", ir.Constant(wide, list(range(lanes))), counts)


def masked_load(builder: Any, address: Any, bits: int, lanes: int, mask: Any) -> Any:
    """The lanes of a vector that a mask names, zeros in the others; nothing else is read."""
    vector = ir.VectorType(_real(bits), lanes)
    kind = ir.FunctionType(vector, [POINTER, I32, ir.VectorType(I1, lanes), vector])
    name = f"llvm.masked.load.v{lanes}f{bits}.p0"
    load = cgutils.get_or_insert_function(builder.module, kind, name)
    zero = ir.Constant(vector, [0.0] * lanes)
    pointer = builder.inttoptr(address, POINTER)
    return builder.call(load, [pointer, ir.Constant(I32, bits // 8), mask, zero])


def masked_store(builder: Any, value: Any, address: Any, bits: int, lanes: int, mask: Any) -> None:
    """Write the lanes that a mask names."""
    vector = ir.VectorType(_real(bits), lanes)
    kind = ir.FunctionType(ir.VoidType(), [vector, POINTER, I32, ir.VectorType(I1, lanes)])
    name = f"llvm.masked.store.v{lanes}f{bits}.p0"
    store = cgutils.get_or_insert_function(builder.module, kind, name)
    pointer = builder.inttoptr(address, POINTER)
    builder.call(store, [value, pointer, ir.Constant(I32, bits // 8), mask])


@intrinsic(prefer_literal=True)
def _square_in(
    typingctx: Any, bits: Any, lanes: Any, source: Any, step: Any, channels: Any,
    target: Any, pixel_step: Any, pixels: Any,
) -> Any:  # fmt: skip
    """``target[p][c] = source[c][p]`` for ``pixels`` and ``channels`` of 1 to ``lanes``."""
    literals = _literals(bits, lanes)
    if literals is None:
        return None
    signature = types.void(bits, lanes, *([types.int64] * 6))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, vl = literals
        size = width // 8
        vector = ir.VectorType(_real(width), vl)
        source, step, channels, target, pixel_step, pixels = arguments[2:]
        full = builder.icmp_signed("==", pixels, _int(vl))
        full = builder.and_(full, builder.icmp_signed("==", channels, _int(vl)))
        with builder.if_else(full) as (whole, partly):
            with whole:
                rows = [
                    _load(builder, builder.add(source, builder.mul(step, _int(i))), vector, size)
                    for i in range(vl)
                ]
                for j, value in enumerate(_transposed(builder, rows, width)):
                    place = builder.add(target, builder.mul(pixel_step, _int(j)))
                    _store(builder, value, place, size)
            with partly:
                nothing = first_lanes(builder, vl, _int(0))
                mask = first_lanes(builder, vl, pixels)
                rows = []
                for i in range(vl):
                    exists = builder.icmp_signed("<", _int(i), channels)
                    # Loads without lanes read nothing, but are slow where no memory is.
                    which = builder.select(exists, _int(i), _int(0))
                    here = builder.add(source, builder.mul(step, which))
                    rows.append(
                        masked_load(builder, here, width, vl, builder.select(exists, mask, nothing))
                    )
                for j, value in enumerate(_transposed(builder, rows, width)):
                    with builder.if_then(builder.icmp_signed("<", _int(j), pixels)):
                        place = builder.add(target, builder.mul(pixel_step, _int(j)))
                        _store(builder, value, place, size)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def _square_out(
    typingctx: Any, bits: Any, lanes: Any, source: Any, pixel_step: Any, pixels: Any,
    target: Any, step: Any, channels: Any,
) -> Any:  # fmt: skip
    """``target[c][p] = source[p][c]`` for ``pixels`` and ``channels`` of 1 to ``lanes``."""
    literals = _literals(bits, lanes)
    if literals is None:
        return None
    signature = types.void(bits, lanes, *([types.int64] * 6))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, vl = literals
        size = width // 8
        vector = ir.VectorType(_real(width), vl)
        source, pixel_step, pixels, target, step, channels = arguments[2:]
        full = builder.icmp_signed("==", pixels, _int(vl))
        full = builder.and_(full, builder.icmp_signed("==", channels, _int(vl)))
        with builder.if_else(full) as (whole, partly):
            with whole:
                rows = [
                    _load(
                        builder, builder.add(source, builder.mul(pixel_step, _int(j))), vector, size
                    )
                    for j in range(vl)
                ]
                for i, value in enumerate(_transposed(builder, rows, width)):
                    place = builder.add(target, builder.mul(step, _int(i)))
                    _store(builder, value, place, size)
            with partly:
                # A pixel that does not exist is read as the last one, and not written.
                last = builder.sub(pixels, _int(1))
                rows = []
                for j in range(vl):
                    inside = builder.icmp_signed("<", _int(j), pixels)
                    which = builder.select(inside, _int(j), last)
                    here = builder.add(source, builder.mul(pixel_step, which))
                    rows.append(_load(builder, here, vector, size))
                mask = first_lanes(builder, vl, pixels)
                for i, value in enumerate(_transposed(builder, rows, width)):
                    with builder.if_then(builder.icmp_signed("<", _int(i), channels)):
                        place = builder.add(target, builder.mul(step, _int(i)))
                        masked_store(builder, value, place, width, vl, mask)
        return context.get_dummy_value()

    return signature, codegen


@njit(**OPTIONS)
def to_lanes(bits, lanes, source, step, channels, target, pixel_step, pixels):
    """Transpose ``channels`` rows of ``pixels`` numbers to pixels of ``lanes`` numbers.

    ``source`` and ``step`` (bytes from row to row) describe at most ``lanes`` rows, whose
    numbers are consecutive; pixel p goes to ``target + p * pixel_step`` as a vector whose lanes
    beyond ``channels`` are zeros.  Nothing outside the rows is read.
    """
    size = bits // 8
    for p in range(0, pixels, lanes):
        count = min(lanes, pixels - p)
        _square_in(
            bits, lanes, source + p * size, step, channels,
            target + p * pixel_step, pixel_step, count,
        )  # fmt: skip


@njit(**OPTIONS)
def from_lanes(bits, lanes, source, pixel_step, pixels, target, step, channels):
    """The inverse of :func:`to_lanes`: write ``channels`` rows of ``pixels`` numbers, no more."""
    size = bits // 8
    for p in range(0, pixels, lanes):
        count = min(lanes, pixels - p)
        _square_out(
            bits, lanes, source + p * pixel_step, pixel_step, count,
            target + p * size, step, channels,
        )  # fmt: skip

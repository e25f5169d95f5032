"""Vector code of :mod:`convjit_numba.depthwisegrad`: dot products of rows, and the sum of lanes.

Importing this module imports numba, see :mod:`convjit_numba.vectorcode`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from convjit_numba.memory import move_real, move_vectors
from convjit_numba.planetile import _loop
from convjit_numba.vectorcode import (
    I32,
    I64,
    OPTIONS,
    _int,
    _literals,
    _load,
    _real,
    _store,
    declare_fma,
)


@intrinsic(prefer_literal=True)
def tap_sums(
    typingctx: Any, bits: Any, vl: Any, taps: Any,
    x: Any, ldx: Any, offsets: Any, gy: Any, ldgy: Any, rows: Any, cols: Any, sums: Any,
) -> Any:  # fmt: skip
    """``sums[t, :] += sum over r, j of gy[r, j] * x[r, j at t]``, lane j modulo ``vl`` of it.

    Parameters
    ----------
    bits, vl, taps : literal int
    x, ldx : address, bytes from row to row
    offsets : address
        Of ``taps`` int64: bytes from a row of x to what each tap meets first.
    gy, ldgy : address, bytes from row to row
    rows, cols : int
        Whole vectors are read of x and gy; numbers beyond ``cols`` do not count, whatever they are.
    sums : address
        Of ``taps`` vectors.
    """
    literals = _literals(bits, vl, taps)
    if literals is None:
        return None
    signature = types.void(bits, vl, taps, *([types.int64] * 8))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit(builder, *literals, *arguments[3:])
        return context.get_dummy_value()

    return signature, codegen


def _emit(
    builder: Any, bits: int, vl: int, taps: int,
    x: Any, ldx: Any, offsets: Any, gy: Any, ldgy: Any, rows: Any, cols: Any, sums: Any,
) -> None:  # fmt: skip
    size = bits // 8
    vector, lanes = ir.VectorType(_real(bits), vl), ir.VectorType(I32, vl)
    fma = declare_fma(builder, bits, vl)
    zero = ir.Constant(vector, [0.0] * vl)
    places = [builder.add(sums, _int(t * vl * size)) for t in range(taps)]
    starts = [
        builder.add(x, _load(builder, builder.add(offsets, _int(8 * t)), I64, 8))
        for t in range(taps)
    ]
    # Stack slots, which LLVM turns into registers.
    totals = [cgutils.alloca_once(builder, vector) for _ in range(taps)]
    for total, place in zip(totals, places, strict=True):
        builder.store(_load(builder, place, vector, size), total)
    whole = builder.udiv(cols, _int(vl))
    left = builder.sub(cols, builder.mul(whole, _int(vl)))
    undefined = ir.Constant(lanes, ir.Undefined)
    lane = builder.insert_element(undefined, builder.trunc(left, I32), ir.Constant(I32, 0))
    ends = builder.shuffle_vector(lane, undefined, ir.Constant(lanes, [0] * vl))
    counted = builder.icmp_unsigned("<", ir.Constant(lanes, list(range(vl))), ends)

    def add(row: Any, given: Any, mask: Any) -> None:
        factor = _load(builder, builder.add(gy, given), vector, size)
        if mask is not None:
            factor = builder.select(mask, factor, zero)
        for start, total in zip(starts, totals, strict=True):
            value = _load(builder, builder.add(start, row), vector, size)
            if mask is not None:
                value = builder.select(mask, value, zero)
            before = builder.load(total, typ=vector)
            builder.store(builder.call(fma, [factor, value, before]), total)

    with _loop(builder, _int(0), rows) as r:
        row, given = builder.mul(r, ldx), builder.mul(r, ldgy)
        with _loop(builder, _int(0), whole) as j:
            at = builder.mul(j, _int(vl * size))
            add(builder.add(row, at), builder.add(given, at), None)
        with builder.if_then(builder.icmp_unsigned("!=", left, _int(0))):
            at = builder.mul(whole, _int(vl * size))
            add(builder.add(row, at), builder.add(given, at), counted)
    for total, place in zip(totals, places, strict=True):
        _store(builder, builder.load(total, typ=vector), place, size)


@njit(**OPTIONS)
def copy_row(bits, vl, half, target, source, count):
    """Copy ``count`` numbers by vectors (or halves), the last of which ends with the last one."""
    size = bits // 8
    if count >= vl:
        for i in range(0, count - vl, vl):
            move_vectors(bits, vl, 1, target + i * size, source + i * size)
        last = (count - vl) * size
        move_vectors(bits, vl, 1, target + last, source + last)
    elif count >= half:
        last = (count - half) * size
        move_vectors(bits, half, 1, target, source)
        move_vectors(bits, half, 1, target + last, source + last)
    else:
        for i in range(count):
            move_real(bits, target + i * size, source + i * size)


@njit(**OPTIONS)
def split_row(bits, vl, evens, odds, source, count):
    """Copy numbers 0, 2, ... of ``count`` to ``evens`` and numbers 1, 3, ... to ``odds``."""
    size = bits // 8
    pairs = count // 2
    done = 0
    if pairs >= vl:
        for i in range(0, pairs - vl, vl):
            split_vectors(bits, vl, evens + i * size, odds + i * size, source + 2 * i * size)
        last = (pairs - vl) * size
        split_vectors(bits, vl, evens + last, odds + last, source + 2 * last)
        done = pairs
    for i in range(done, pairs):
        move_real(bits, evens + i * size, source + 2 * i * size)
        move_real(bits, odds + i * size, source + (2 * i + 1) * size)
    if count % 2 != 0:
        move_real(bits, evens + pairs * size, source + 2 * pairs * size)


@intrinsic(prefer_literal=True)
def split_vectors(typingctx: Any, bits: Any, vl: Any, evens: Any, odds: Any, source: Any) -> Any:
    """:func:`split_row` of two vectors."""
    literals = _literals(bits, vl)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, count = literals
        size = width // 8
        vector, lanes = ir.VectorType(_real(width), count), ir.VectorType(I32, count)
        _, _, evens, odds, source = arguments
        low = _load(builder, source, vector, size)
        high = _load(builder, builder.add(source, _int(count * size)), vector, size)
        for first, target in ((0, evens), (1, odds)):
            order = ir.Constant(lanes, list(range(first, 2 * count, 2)))
            _store(builder, builder.shuffle_vector(low, high, order), target, size)
        return context.get_dummy_value()

    return types.void(bits, vl, types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def lane_sum(typingctx: Any, bits: Any, vl: Any, target: Any, source: Any) -> Any:
    """Store the sum of the lanes of the vector at ``source``, added by halves."""
    literals = _literals(bits, vl)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, count = literals
        size = width // 8
        value = _load(builder, arguments[3], ir.VectorType(_real(width), count), size)
        while count > 1:
            count //= 2
            halves = [
                builder.shuffle_vector(
                    value,
                    value,
                    ir.Constant(ir.VectorType(I32, count), list(range(at, at + count))),
                )
                for at in (0, count)
            ]
            value = builder.fadd(*halves)
        number = builder.extract_element(value, ir.Constant(I32, 0))
        _store(builder, number, arguments[2], size)
        return context.get_dummy_value()

    return types.void(bits, vl, types.int64, types.int64), codegen

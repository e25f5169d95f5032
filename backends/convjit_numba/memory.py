"""Memory by address: what kernels read, write, copy and clear.

A kernel sees no arrays, only addresses (int64), so that it can neither allocate nor raise and its
object code depends on nothing of numba's at run time (see :mod:`convjit_numba.cache`).  Everything
whose code depends on a size takes it as a literal int.

Importing this module imports numba, as :mod:`convjit_numba.vectorcode` does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from convjit_numba.vectorcode import (
    I1,
    I64,
    OPTIONS,
    POINTER,
    _int,
    _literals,
    _load,
    _real,
    _store,
    prefetch,
)


@intrinsic
def load_int(typingctx: Any, address: Any) -> Any:
    """The int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _load(builder, arguments[0], I64, 8)

    return types.int64(types.int64), codegen


@intrinsic
def store_int(typingctx: Any, address: Any, value: Any) -> Any:
    """Store an int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _store(builder, arguments[1], arguments[0], 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address that other threads use too; the value before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], POINTER)
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def move_real(typingctx: Any, bits: Any, target: Any, source: Any) -> Any:
    """Copy one number from address to address."""
    literals = _literals(bits)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size = literals[0] // 8
        _store(builder, _load(builder, arguments[2], _real(literals[0]), size), arguments[1], size)
        return context.get_dummy_value()

    return types.void(bits, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def zero_real(typingctx: Any, bits: Any, target: Any) -> Any:
    """Store 0 at an address."""
    literals = _literals(bits)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _store(builder, ir.Constant(_real(literals[0]), 0.0), arguments[1], literals[0] // 8)
        return context.get_dummy_value()

    return types.void(bits, types.int64), codegen


@intrinsic(prefer_literal=True)
def move_vectors(
    typingctx: Any, bits: Any, lanes: Any, count: Any, target: Any, source: Any
) -> Any:
    """Copy ``count`` vectors of ``lanes`` numbers, all loaded before the first is stored."""
    literals = _literals(bits, lanes, count)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, vl, n = literals
        size = width // 8
        vector = ir.VectorType(_real(width), vl)
        offsets = [_int(j * vl * size) for j in range(n)]
        values = [_load(builder, builder.add(arguments[4], o), vector, size) for o in offsets]
        for value, offset in zip(values, offsets, strict=True):
            _store(builder, value, builder.add(arguments[3], offset), size)
        return context.get_dummy_value()

    return types.void(bits, lanes, count, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def pick_vector(typingctx: Any, bits: Any, lanes: Any, step: Any, target: Any, source: Any) -> Any:
    """Store a vector of every ``step``-th number from an address on; none behind the last is read.

    ``step`` vectors are loaded, the last so that it ends with the last number wanted, and each is
    merged into the result by one permutation.
    """
    literals = _literals(bits, lanes, step)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, vl, every = literals
        size = width // 8
        kind = ir.VectorType(_real(width), vl)
        result = ir.Constant(kind, ir.Undefined)
        for number in range(every):
            first = min(number * vl, (every - 1) * (vl - 1))
            place = builder.add(arguments[4], _int(first * size))
            held = range(number * vl, (number + 1) * vl)
            lanes_of = [
                vl + lane * every - first if lane * every in held else lane for lane in range(vl)
            ]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), vl), lanes_of)
            result = builder.shuffle_vector(result, _load(builder, place, kind, size), mask)
        _store(builder, result, arguments[3], size)
        return context.get_dummy_value()

    return types.void(bits, lanes, step, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def interleave_vectors(
    typingctx: Any, bits: Any, lanes: Any, step: Any, target: Any, source: Any, apart: Any
) -> Any:
    """Store ``step`` vectors of which number ``n`` is number ``n // step`` of source ``n % step``.

    The sources, of ``lanes`` numbers each, lie ``apart`` bytes from each other.  All are loaded
    before the first vector is stored; each of these takes ``step - 1`` permutations.
    """
    literals = _literals(bits, lanes, step)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, vl, every = literals
        size = width // 8
        kind = ir.VectorType(_real(width), vl)
        target, source, apart = arguments[3:]
        parts = [
            _load(builder, builder.add(source, builder.mul(apart, _int(i))), kind, size)
            for i in range(every)
        ]
        for m in range(every):
            numbers = range(m * vl, (m + 1) * vl)
            # Lanes of later sources are any until these are merged.
            result = parts[0]
            places = [n // every for n in numbers]
            for i in range(1, every):
                lanes_of = [
                    vl + n // every if n % every == i else place
                    for n, place in zip(numbers, places, strict=True)
                ]
                mask = ir.Constant(ir.VectorType(ir.IntType(32), vl), lanes_of)
                result = builder.shuffle_vector(result, parts[i], mask)
                places = list(range(vl))
            _store(builder, result, builder.add(target, _int(m * vl * size)), size)
        return context.get_dummy_value()

    signature = types.void(bits, lanes, step, types.int64, types.int64, types.int64)
    return signature, codegen


@intrinsic
def zero_bytes(typingctx: Any, target: Any, count: Any) -> Any:
    """Store ``count`` bytes of 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [POINTER, ir.IntType(8), I64, I1])
        memset = cgutils.get_or_insert_function(builder.module, kind, "llvm.memset.p0.i64")
        target, count = arguments
        zero = ir.Constant(ir.IntType(8), 0)
        builder.call(memset, [builder.inttoptr(target, POINTER), zero, count, ir.Constant(I1, 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def copy_bytes(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy ``count`` bytes between places that do not overlap."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, I64, I1])
        memcpy = cgutils.get_or_insert_function(builder.module, kind, "llvm.memcpy.p0.p0.i64")
        target, source = (builder.inttoptr(a, POINTER) for a in arguments[:2])
        builder.call(memcpy, [target, source, arguments[2], ir.Constant(I1, 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@njit(**OPTIONS)
def padded_row(bits, target, source, width, first, step, count):
    """``count`` samples of a zero-padded row, ``step`` apart, from position ``first`` on.

    ``source`` is the address of position 0 of the row, whose positions 0 to ``width - 1`` exist.
    ``0 <= first + j * step < width`` holds for ``j`` from ``lo`` to ``hi - 1``.
    """
    size = bits // 8
    lo = 0
    if first < 0:
        lo = min(count, (-first + step - 1) // step)
    hi = lo
    if first < width:
        hi = max(lo, min(count, (width - first + step - 1) // step))
    if lo > 0:
        zero_bytes(target, lo * size)
    if step == 1:
        copy_bytes(target + lo * size, source + (first + lo) * size, (hi - lo) * size)
    else:
        for j in range(lo, hi):
            move_real(bits, target + j * size, source + (first + j * step) * size)
    if hi < count:
        zero_bytes(target + hi * size, (count - hi) * size)


@intrinsic(prefer_literal=True)
def fetch_line(typingctx: Any, write: Any, address: Any) -> Any:
    """:func:`prefetch` for kernels; ``write`` is a literal 0 or 1."""
    literals = _literals(write)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        prefetch(builder, arguments[1], literals[0])
        return context.get_dummy_value()

    return types.void(write, types.int64), codegen


@intrinsic
def call_code(typingctx: Any, address: Any, numbers: Any) -> Any:
    """Call the kernel at an address (:func:`convjit_numba.cache.function`) on a tuple of int64."""
    signature = types.void(address, numbers)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = [
            context.cast(builder, value, kind, types.int64)
            for value, kind in zip(
                cgutils.unpack_tuple(builder, arguments[1]), signature.args[1], strict=True
            )
        ]
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(values))
        place = context.cast(builder, arguments[0], signature.args[0], types.int64)
        builder.call(builder.inttoptr(place, kind.as_pointer()), values)
        return context.get_dummy_value()

    return signature, codegen

"""Conversions of vectors, as LLVM code: what :mod:`convjit_numba.casting` and pairs are made of.

Importing this module imports numba, as :mod:`convjit_numba.vectorcode` does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from convjit.precision import numpy_dtype
from convjit_numba.casting import KINDS
from convjit_numba.vectorcode import I32, _literals, _load, _real, _store

_I16 = ir.IntType(16)


def _is_real(kind: str) -> bool:
    return kind in ("float16", "float32", "float64")


def _type(kind: str) -> ir.Type:
    """Of an element in memory; bool is a byte, bfloat16 the upper half of a float32."""
    if kind == "float16":
        return ir.HalfType()
    bits = 8 * numpy_dtype(kind).itemsize
    return _real(bits) if _is_real(kind) else ir.IntType(bits)


@intrinsic(prefer_literal=True)
def convert_vector(typingctx: Any, to: Any, of: Any, lanes: Any, target: Any, source: Any) -> Any:
    """Store ``lanes`` elements of one kind as another, both by their places in ``KINDS``."""
    literals = _literals(to, of, lanes)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        into, out_of = KINDS[literals[0]], KINDS[literals[1]]
        vector = ir.VectorType(_type(out_of), literals[2])
        value = _load(builder, arguments[4], vector, numpy_dtype(out_of).itemsize)
        result = _converted(builder, value, into, out_of)
        _store(builder, result, arguments[3], numpy_dtype(into).itemsize)
        return context.get_dummy_value()

    return types.void(to, of, lanes, types.int64, types.int64), codegen


def _converted(builder: Any, value: Any, into: str, out_of: str) -> Any:
    lanes = value.type.count
    if out_of == "bfloat16":
        return _from_bfloat16(builder, value)
    if into == "bfloat16":
        return _to_bfloat16(builder, value)
    kind = ir.VectorType(_type(into), lanes)
    if _is_real(into) and _is_real(out_of):
        wider = numpy_dtype(into).itemsize > numpy_dtype(out_of).itemsize
        return builder.fpext(value, kind) if wider else builder.fptrunc(value, kind)
    if _is_real(out_of):
        return builder.fptosi(value, kind)  # of uint64 too: the numbers are below 2**53
    unsigned = out_of == "bool" or out_of.startswith("uint")
    if _is_real(into):
        return builder.uitofp(value, kind) if unsigned else builder.sitofp(value, kind)
    return builder.zext(value, kind) if unsigned else builder.sext(value, kind)


def _constants(kind: ir.Type, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _from_bfloat16(builder: Any, value: Any) -> Any:
    wide = ir.VectorType(I32, value.type.count)
    bits = builder.shl(builder.zext(value, wide), _constants(wide, 16))
    return builder.bitcast(bits, ir.VectorType(_real(32), wide.count))


def _to_bfloat16(builder: Any, value: Any) -> Any:
    """The upper half, rounded to nearest with ties to even; of NaN the quiet one of its sign."""
    wide = ir.VectorType(I32, value.type.count)
    bits = builder.bitcast(value, wide)
    high = builder.lshr(bits, _constants(wide, 16))
    # 0x7fff and the last bit that stays: a carry exactly where it rounds up.
    odd = builder.and_(high, _constants(wide, 1))
    bias = builder.add(odd, _constants(wide, 0x7FFF))
    rounded = builder.lshr(builder.add(bits, bias), _constants(wide, 16))
    sign = builder.and_(high, _constants(wide, 0x8000))
    quiet = builder.or_(sign, _constants(wide, 0x7FC0))
    unordered = builder.fcmp_unordered("uno", value, value)
    result = builder.select(unordered, quiet, rounded)
    return builder.trunc(result, ir.VectorType(_I16, wide.count))


@intrinsic(prefer_literal=True)
def pair_vectors(
    typingctx: Any, of: Any, lanes: Any, target: Any, first: Any, second: Any, keep: Any
) -> Any:
    """Store ``lanes`` pairs of int16 of two vectors of narrow integers.

    ``keep`` is -1, or 0 where zeros take the place of the second vector, which is read all the
    same.
    """
    literals = _literals(of, lanes)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, vl = KINDS[literals[0]], literals[1]
        vector, pairs = ir.VectorType(_type(kind), vl), ir.VectorType(I32, vl)
        low, high = (
            _converted(builder, _load(builder, place, vector, 1), "int16", kind)
            for place in arguments[3:5]
        )
        # The first channel is the lower half of a pair, whose bytes then lie in the order of the
        # channels where bytes of numbers are in ascending order, as on all that is compiled for.
        high = builder.shl(builder.zext(high, pairs), _constants(pairs, 16))
        undefined = ir.Constant(pairs, ir.Undefined)
        kept = builder.insert_element(
            undefined, builder.trunc(arguments[5], I32), ir.Constant(I32, 0)
        )
        kept = builder.shuffle_vector(kept, undefined, _constants(pairs, 0))
        result = builder.or_(builder.zext(low, pairs), builder.and_(high, kept))
        _store(builder, result, arguments[2], 4)
        return context.get_dummy_value()

    return types.void(of, lanes, *([types.int64] * 4)), codegen

"""LLVM code that every kernel is made of: numbers, vectors and addresses.

Importing this module imports llvmlite and numba, so only the functions that build kernels import
it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()

# Kernels and helpers: no exceptions, no reassociation (results must not depend on the blocking).
# Helpers are only called by kernels, so they need no entry points of their own.
OPTIONS = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def _int(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _real(bits: int) -> ir.Type:
    return ir.FloatType() if bits == 32 else ir.DoubleType()


def _literals(*arguments: Any) -> list[int] | None:
    if all(isinstance(a, types.IntegerLiteral) for a in arguments):
        return [a.literal_value for a in arguments]
    return None


def _load(builder: Any, address: Any, kind: ir.Type, align: int) -> Any:
    return builder.load(builder.inttoptr(address, POINTER), typ=kind, align=align)


def _store(builder: Any, value: Any, address: Any, align: int) -> None:
    builder.store(value, builder.inttoptr(address, POINTER), align=align)


def reserve(builder: Any, size: int) -> Any:
    """The address of so many bytes of the stack, aligned to 8, for as long as the function runs.

    numba's ``alloca_once`` would fill them with zeros, number by number.
    """
    with builder.goto_entry_block():
        place = builder.alloca(ir.ArrayType(I64, -(-size // 8)))
    return builder.ptrtoint(place, I64)


def broadcast_real(builder: Any, bits: int, vl: int, address: Any) -> Any:
    """A vector whose lanes are all the number at an address."""
    undefined = ir.Constant(ir.VectorType(_real(bits), vl), ir.Undefined)
    number = _load(builder, address, _real(bits), bits // 8)
    lane = builder.insert_element(undefined, number, ir.Constant(I32, 0))
    lanes0 = ir.Constant(ir.VectorType(I32, vl), [0] * vl)
    return builder.shuffle_vector(lane, undefined, lanes0)


def declare_fma(builder: Any, bits: int, vl: int) -> Any:
    """``a * b + c`` of vectors.

    fmuladd, unlike fma, is no library call on machines without FMA, and the same elsewhere.
    """
    vector = ir.VectorType(_real(bits), vl)
    kind = ir.FunctionType(vector, [vector] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{vl}f{bits}")


def prefetch(builder: Any, address: Any, write: int = 0) -> None:
    """Fetch a line into the second level of the caches, to be read or written.

    The address may lie outside of any array.
    """
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    flags = [ir.Constant(I32, value) for value in (write, 2, 1)]  # moderate locality, data
    builder.call(fetch, [builder.inttoptr(address, POINTER), *flags])


def add_wholes(builder: Any, a: Any, b: Any) -> Any:
    """``a + b`` of whole numbers that are handled as vectors of real ones of as many bits."""
    total = builder.add(_as_wholes(builder, a), _as_wholes(builder, b))
    return builder.bitcast(total, a.type)


def multiply_add_wholes(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` modulo 2**64, of such numbers of 64 bits with or without a sign."""
    product = builder.mul(_as_wholes(builder, a), _as_wholes(builder, b))
    return builder.bitcast(builder.add(product, _as_wholes(builder, c)), c.type)


def multiply_add_pairs(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a[0] * b[0] + a[1] * b[1] + c`` where numbers of 32 bits are pairs of int16, c int32.

    Written so that LLVM finds the instruction for it: pmaddwd and an addition, one by VNNI.
    """
    lanes = c.type.count
    narrow = ir.VectorType(ir.IntType(16), 2 * lanes)
    wide = ir.VectorType(I32, 2 * lanes)
    products = builder.mul(
        *(builder.sext(builder.bitcast(v, narrow), wide) for v in (a, b)), flags=["nsw"]
    )
    undefined = ir.Constant(wide, ir.Undefined)
    first, second = (
        builder.shuffle_vector(
            products, undefined,
            ir.Constant(ir.VectorType(I32, lanes), list(range(start, 2 * lanes, 2))),
        )
        for start in (0, 1)
    )  # fmt: skip
    total = builder.add(_as_wholes(builder, c), builder.add(first, second))
    return builder.bitcast(total, c.type)


def _as_wholes(builder: Any, value: Any) -> Any:
    bits = 32 if isinstance(value.type.element, ir.FloatType) else 64
    return builder.bitcast(value, ir.VectorType(ir.IntType(bits), value.type.count))

"""Samples into tiles of complex vectors and results out of them, see :mod:`convjit_numba.fftcode`.

Importing this module imports numba, so only the functions that build kernels import it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from convjit_numba.fftcode import Emitter, Lanes
from convjit_numba.microkernel import emit_epilogue
from convjit_numba.transpose import first_lanes, masked_load, masked_store
from convjit_numba.vectorcode import I1, I32, _int, _literals, _load, _store, broadcast_real


def _inside(emit: Emitter, source: Any, lo: Any, hi: Any) -> Any:
    """A vector of the numbers ``lo`` to ``hi - 1`` from ``source`` on, zeros in other lanes."""
    builder, vl = emit.builder, emit.lanes
    zero = ir.Constant(emit.vector, [0.0] * vl)
    entry = builder.block
    full, partly, done = (builder.append_basic_block(n) for n in ("full", "partly", "filled"))
    some = builder.append_basic_block("some")
    outside = builder.or_(
        builder.icmp_signed(">=", lo, _int(vl)), builder.icmp_signed("<=", hi, _int(0))
    )
    builder.cbranch(outside, done, some)
    builder.position_at_end(some)
    inside = builder.and_(
        builder.icmp_signed("<=", lo, _int(0)), builder.icmp_signed(">=", hi, _int(vl))
    )
    builder.cbranch(inside, full, partly)
    builder.position_at_end(full)
    whole = _load(builder, source, emit.vector, emit.size)
    builder.branch(done)
    builder.position_at_end(partly)
    ones = ir.Constant(ir.VectorType(I1, vl), [1] * vl)
    after = builder.xor(first_lanes(builder, vl, lo), ones)
    mask = builder.and_(first_lanes(builder, vl, hi), after)
    part = masked_load(builder, source, emit.bits, vl, mask)
    builder.branch(done)
    builder.position_at_end(done)
    value = builder.phi(emit.vector)
    for incoming, block in ((zero, entry), (whole, full), (part, partly)):
        value.add_incoming(incoming, block)
    return value


def _store_first(emit: Emitter, value: Any, target: Any, count: Any) -> None:
    """Write the first ``count`` lanes, which may be none or all."""
    builder, vl = emit.builder, emit.lanes
    full = builder.icmp_signed(">=", count, _int(vl))
    with builder.if_else(full) as (whole, part):
        with whole:
            _store(builder, value, target, emit.size)
        with part:
            mask = first_lanes(builder, vl, count)
            masked_store(builder, value, target, emit.bits, vl, mask)


def _shuffle(builder: Any, pair: list[Any], order: list[int]) -> Any:
    return builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, len(order)), order))


@intrinsic(prefer_literal=True)
def fill_vector(
    typingctx: Any, bits: Any, lanes: Any, target: Any, source: Any, lo: Any, hi: Any
) -> Any:
    """A vector of the numbers ``lo`` to ``hi - 1`` from ``source`` on, zeros in other lanes."""
    literals = _literals(bits, lanes)
    if literals is None:
        return None
    signature = types.void(bits, lanes, *([types.int64] * 4))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, lo, hi = arguments[2:]
        emit = Emitter(builder, *literals)
        _store(builder, _inside(emit, source, lo, hi), target, emit.size)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def fill_complex(
    typingctx: Any, bits: Any, lanes: Any, target: Any, source: Any, lo: Any, hi: Any
) -> Any:
    """:func:`fill_vector` of complex numbers, whose parts are neighbours, to a complex vector."""
    literals = _literals(bits, lanes)
    if literals is None:
        return None
    signature = types.void(bits, lanes, *([types.int64] * 4))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, lo, hi = arguments[2:]
        emit = Emitter(builder, *literals)
        vl = emit.lanes
        low, high = builder.mul(lo, _int(2)), builder.mul(hi, _int(2))
        halves = []
        for half in range(2):
            skip = _int(half * vl)
            place = builder.add(source, _int(half * emit.bytes))
            halves.append(_inside(emit, place, builder.sub(low, skip), builder.sub(high, skip)))
        re, im = (_shuffle(builder, halves, [2 * i + part for i in range(vl)]) for part in (0, 1))
        emit.store((Lanes(builder, re), Lanes(builder, im)), target)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def finish_vector(
    typingctx: Any, bits: Any, lanes: Any, target: Any, source: Any, count: Any,
    bias: Any, activation: Any, slopes: Any,
) -> Any:  # fmt: skip
    """The first ``count`` lanes of a vector, after bias (the address of one number, or 0) and
    activation, as in :func:`convjit_numba.microkernel.register_tile`."""
    literals = _literals(bits, lanes)
    if literals is None:
        return None
    signature = types.void(bits, lanes, *([types.int64] * 6))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, vl = literals
        target, source, count, bias, activation, slopes = arguments[2:]
        emit = Emitter(builder, width, vl)
        value = _load(builder, source, emit.vector, emit.size)
        (value,) = emit_epilogue(
            builder, width, vl, [value], lambda: [broadcast_real(builder, width, vl, bias)],
            bias, activation, slopes,
        )  # fmt: skip
        _store_first(emit, value, target, count)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def finish_complex(
    typingctx: Any, bits: Any, lanes: Any, target: Any, source: Any, count: Any, bias: Any
) -> Any:
    """:func:`finish_vector` of a complex vector to complex numbers, which have no activation."""
    literals = _literals(bits, lanes)
    if literals is None:
        return None
    signature = types.void(bits, lanes, *([types.int64] * 4))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, count, bias = arguments[2:]
        emit = Emitter(builder, *literals)
        vl = emit.lanes
        z = emit.load(source)
        entry = builder.block
        with builder.if_then(builder.icmp_signed("!=", bias, _int(0))):
            number = emit.number(bias)
            shifted = [(a + b).value for a, b in zip(z, number, strict=True)]
            biased = builder.block
        values = []
        for before, after in zip(z, shifted, strict=True):
            phi = builder.phi(emit.vector)
            phi.add_incoming(before.value, entry)
            phi.add_incoming(after, biased)
            values.append(phi)
        numbers = builder.mul(count, _int(2))
        for half in range(2):
            first = half * vl
            order = [i // 2 + i % 2 * vl for i in range(first, first + vl)]
            place = builder.add(target, _int(half * emit.bytes))
            left = builder.sub(numbers, _int(first))
            _store_first(emit, _shuffle(builder, values, order), place, left)
        return context.get_dummy_value()

    return signature, codegen

"""The depthwise tile: one vector of channels by ``MR`` outputs of a line, lanes are channels.

A channel is multiplied by its own weights only, so lanes never meet and nothing is broadcast.  The
tile walks over the inputs of a line, not over the taps: the input at position ``u`` contributes to
output ``i`` by tap ``u - i * stride``, so that each vector of pixels is loaded once for all outputs
that it reaches, and pixels that lie in the padding are passed over by beginning and ending the walk
where the line does.  With the number of taps a literal the walk is one chain of straight code, and
the sums of ``MR`` outputs stay in registers over all kernel rows.

Importing this module imports numba, see :mod:`convjit_numba.vectorcode`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from convjit_numba.microkernel import emit_epilogue
from convjit_numba.vectorcode import I32, I64, _int, _literals, _load, _real, _store, declare_fma

_INTEGERS = 13  # arguments of a depthwise tile that are not literals


@intrinsic(prefer_literal=True)
def depthwise_tile(
    typingctx: Any, bits: Any, mr: Any, taps: Any, stride: Any, vl: Any, kept: Any,
    rows: Any, table: Any, x: Any, pixel: Any, low: Any, high: Any, w: Any, y: Any, ldy: Any,
    count: Any, bias: Any, activation: Any, slopes: Any,
) -> Any:  # fmt: skip
    """``y[i] = act(bias + sum over r, t of w[r, t] * x[r, i * stride + t])`` for ``count`` outputs.

    Parameters
    ----------
    bits, mr, taps, stride, vl : literal int
        Width of the numbers, most outputs, taps and stride of a line, lanes of a vector.
    kept : literal int
        Whether the weights of a row are kept in registers (1) or read where they are used (0).
    rows, table : int, address
        Of two int64 for each row: bytes from ``x`` to the row, bytes from ``w`` to its weights.
    x, pixel : address, bytes
        Where position 0 of a row would lie, and from position to position.
    low, high : int
        The positions that exist, ``0 <= low < high <= (mr - 1) * stride + taps``.
    w : address
        Packed weights, ``(rows, taps, vl)``.
    y, ldy : address, bytes from output to output
    count : int
        Outputs to store, 1 to ``mr``.
    bias : address
        Of ``vl`` numbers, or 0.
    activation, slopes
        As for :func:`convjit_numba.microkernel.register_tile`.
    """
    literals = _literals(bits, mr, taps, stride, vl, kept)
    if literals is None:
        return None
    signature = types.void(bits, mr, taps, stride, vl, kept, *([types.int64] * _INTEGERS))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.call(_function(builder.module, *literals), arguments[6:])
        return context.get_dummy_value()

    return signature, codegen


def _function(module: Any, bits: int, mr: int, taps: int, stride: int, vl: int, kept: int) -> Any:
    """The tile as a function of the module that is not inlined: all registers are its own."""
    name = f"convjit.depthwise_tile.{bits}.{mr}x{taps}x{stride}x{vl}"
    if name in module.globals:
        return module.globals[name]
    kind = ir.FunctionType(ir.VoidType(), [I64] * _INTEGERS)
    function = ir.Function(module, kind, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    _emit_tile(builder, bits, mr, taps, stride, vl, kept, *function.args)
    builder.ret_void()
    return function


def _emit_tile(
    builder: Any, bits: int, mr: int, taps: int, stride: int, vl: int, kept: int,
    rows: Any, table: Any, x: Any, pixel: Any, low: Any, high: Any, w: Any, y: Any, ldy: Any,
    count: Any, bias: Any, activation: Any, slopes: Any,
) -> None:  # fmt: skip
    size = bits // 8
    vector = ir.VectorType(_real(bits), vl)
    fma = declare_fma(builder, bits, vl)
    zero = ir.Constant(vector, [0.0] * vl)
    positions = (mr - 1) * stride + taps

    def weight(base: Any, t: int) -> Any:
        return _load(builder, builder.add(base, _int(t * vl * size)), vector, size)

    def products(sums: list[Any], u: int, here: Any, weights: Any) -> list[Any]:
        """The sums with the input at position ``u``, which lies at ``here``, added."""
        reached = [(i, u - i * stride) for i in range(mr) if 0 <= u - i * stride < taps]
        if not reached:
            return sums
        new = list(sums)
        value = _load(builder, here, vector, size)
        for i, t in reached:
            factor = weights[t] if kept else weight(weights, t)
            new[i] = builder.call(fma, [factor, value, new[i]])
        return new

    entry = builder.block
    head = builder.append_basic_block("row")
    clipped = builder.append_basic_block("clipped")
    whole = builder.append_basic_block("whole")
    joined = builder.append_basic_block("joined")
    epilogue = builder.append_basic_block("epilogue")
    start = builder.mul(low, pixel)
    inside = builder.and_(
        builder.icmp_signed("==", low, _int(0)), builder.icmp_signed("==", high, _int(positions))
    )
    builder.cbranch(builder.icmp_signed(">", rows, _int(0)), head, epilogue)

    builder.position_at_end(head)
    left, place = builder.phi(I64), builder.phi(I64)
    left.add_incoming(rows, entry)
    place.add_incoming(table, entry)
    sums = [builder.phi(vector) for _ in range(mr)]
    for phi in sums:
        phi.add_incoming(zero, entry)
    row = builder.add(x, _load(builder, place, I64, 8))
    base = builder.add(w, _load(builder, builder.add(place, _int(8)), I64, 8))
    weights = [weight(base, t) for t in range(taps)] if kept else base
    builder.cbranch(inside, whole, clipped)

    # No position is missing: straight code.
    builder.position_at_end(whole)
    results, here = list(sums), row
    for u in range(positions):
        results = products(results, u, here, weights)
        here = builder.add(here, pixel)
    ends = [(whole, results)]
    builder.branch(joined)

    # The walk begins at ``low`` and ends before ``high``.
    chain = [builder.append_basic_block(f"position{u}") for u in range(positions)]
    builder.position_at_end(clipped)
    first = builder.add(row, start)
    switch = builder.switch(low, chain[0])
    for u in range(1, positions):
        switch.add_case(_int(u), chain[u])
    results, here = [], first
    for u, block in enumerate(chain):
        builder.position_at_end(block)
        if u == 0:
            results, here = list(sums), first
        else:
            merged = builder.phi(I64)
            merged.add_incoming(here, chain[u - 1])
            merged.add_incoming(first, clipped)
            phis = [builder.phi(vector) for _ in range(mr)]
            for phi, before, fresh in zip(phis, results, sums, strict=True):
                phi.add_incoming(before, chain[u - 1])
                phi.add_incoming(fresh, clipped)
            results, here = phis, merged
        results = products(results, u, here, weights)
        here = builder.add(here, pixel)
        ends.append((block, results))
        if u + 1 == positions:
            builder.branch(joined)
        else:
            done = builder.icmp_signed("==", high, _int(u + 1))
            builder.cbranch(done, joined, chain[u + 1])

    builder.position_at_end(joined)
    totals = [builder.phi(vector) for _ in range(mr)]
    for block, values in ends:
        for phi, value in zip(totals, values, strict=True):
            phi.add_incoming(value, block)
    next_left, next_place = builder.sub(left, _int(1)), builder.add(place, _int(16))
    left.add_incoming(next_left, joined)
    place.add_incoming(next_place, joined)
    for phi, total in zip(sums, totals, strict=True):
        phi.add_incoming(total, joined)
    builder.cbranch(builder.icmp_signed(">", next_left, _int(0)), head, epilogue)

    builder.position_at_end(epilogue)
    final = []
    for total in totals:
        phi = builder.phi(vector)
        phi.add_incoming(zero, entry)
        phi.add_incoming(total, joined)
        final.append(phi)

    def addends() -> list[Any]:
        return [_load(builder, bias, vector, size)] * mr

    final = emit_epilogue(builder, bits, vl, final, addends, bias, activation, slopes)
    full = builder.append_basic_block("full")
    partial = builder.append_basic_block("partial")
    stored = builder.append_basic_block("stored")
    builder.cbranch(builder.icmp_signed("==", count, _int(mr)), full, partial)
    for block in (full, partial):
        builder.position_at_end(block)
        here = y
        for i, result in enumerate(final):
            if i:
                here = builder.add(here, ldy)
                if block is partial:
                    more = builder.append_basic_block(f"store{i}")
                    builder.cbranch(builder.icmp_signed(">", count, _int(i)), more, stored)
                    builder.position_at_end(more)
            _store(builder, result, here, size)
        builder.branch(stored)
    builder.position_at_end(stored)


@intrinsic(prefer_literal=True)
def interleave(
    typingctx: Any, bits: Any, vl: Any, multiplier: Any, target: Any, source: Any
) -> Any:
    """``target[l * multiplier + j] = source[j, l]`` for ``multiplier`` vectors of ``vl`` lanes."""
    literals = _literals(bits, vl, multiplier)
    if literals is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, lanes, count = literals
        size = width // 8
        vector = ir.VectorType(_real(width), lanes)
        offsets = [_int(j * lanes * size) for j in range(count)]
        sources = [_load(builder, builder.add(arguments[4], o), vector, size) for o in offsets]
        for q, offset in enumerate(offsets):
            # Lane l of vector q is number q * lanes + l of the result.
            wanted = [divmod(q * lanes + lane, count) for lane in range(lanes)]
            value = ir.Constant(vector, ir.Undefined)
            for j, source in enumerate(sources):
                mask = [
                    lanes + lane if which == j else here
                    for here, (lane, which) in enumerate(wanted)
                ]
                pattern = ir.Constant(ir.VectorType(I32, lanes), mask)
                value = builder.shuffle_vector(value, source, pattern)
            _store(builder, value, builder.add(arguments[3], offset), size)
        return context.get_dummy_value()

    return types.void(bits, vl, multiplier, types.int64, types.int64), codegen

"""The row tile: a register tile whose lanes are output channels and whose rows are pixels.

``MR`` pixels by ``NV`` vectors of channels are summed in registers.  A step loads ``NV`` vectors of
packed weights and broadcasts one number from each of ``MR`` rows, so that rows are read where they
lie, without packing: all that the tile needs to know of them is their addresses.  A table of
addresses per tap makes a convolution of it (Dukhan 2019, "The Indirect Convolution Algorithm",
section 3): the sums stay in registers while the taps pass.

Importing this module imports numba, see :mod:`convjit_numba.vectorcode`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from convjit_numba.microkernel import emit_epilogue
from convjit_numba.rowtables import PAIRS, REALS
from convjit_numba.transpose import first_lanes, masked_load, masked_store
from convjit_numba.vectorcode import (
    I64,
    _int,
    _literals,
    _load,
    _real,
    _store,
    add_wholes,
    broadcast_real,
    declare_fma,
    multiply_add_pairs,
    multiply_add_wholes,
    prefetch,
)

_INTEGERS = 10  # arguments of every row tile that are not literals


class _Code(NamedTuple):
    """What the code of a row tile depends on."""

    bits: int
    mr: int
    nv: int
    vl: int
    end: int = 0
    kind: int = REALS
    ahead: int = 0  # whether ``extra`` is an address to fetch, else the lanes that exist
    across: int = 0  # whether numbers of a row are ``step`` bytes apart, else neighbours


@intrinsic(prefer_literal=True)
def row_tile(
    typingctx: Any, bits: Any, mr: Any, nv: Any, vl: Any,
    taps: Any, table: Any, kc: Any, b: Any, walk: Any, c: Any, ldc: Any, accumulate: Any,
    bias: Any, activation: Any, slopes: Any,
) -> Any:  # fmt: skip
    """``c[i, :] (+)= sum over t < taps, k < kc of a[t, i][k] * b[t][k, :]`` for ``mr`` rows.

    Parameters
    ----------
    bits, mr, nv, vl : literal int
        Width of the numbers, rows, vectors, lanes of a vector.
    taps : int
        May be 0: then there is nothing to sum.
    table : address
        Of int64: for each tap how many bytes after ``b`` its weights begin, then the addresses
        ``a[t, i]`` of ``mr`` rows of ``kc`` consecutive numbers.
    kc : int
        Products to add for each tap, at least 1.
    b, walk : address, bytes from row to row
        Packed weights; the ``nv * vl`` numbers of a row are consecutive.
    c, ldc : address, bytes from row to row
        The result; ``nv * vl`` numbers of each row are written.
    accumulate : int
        Whether ``c`` is added to (1) or overwritten (0).
    bias : address
        Of ``nv * vl`` numbers that are added to every row, or 0.
    activation, slopes
        As for :func:`convjit_numba.microkernel.register_tile`.
    """
    literals = _literals(bits, mr, nv, vl)
    if literals is None:
        return None
    signature = types.void(bits, mr, nv, vl, *([types.int64] * (_INTEGERS + 1)))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        call = [*arguments[4:], _int(0), _int(0)]
        builder.call(_function(builder.module, _Code(*literals)), call)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def row_tiles(
    typingctx: Any, bits: Any, mr: Any, nv: Any, vl: Any, end: Any, kind: Any, rows: Any,
    taps: Any, table: Any, kc: Any, b: Any, walk: Any, c: Any, ldc: Any, accumulate: Any,
    bias: Any, activation: Any, slopes: Any, count: Any,
) -> Any:  # fmt: skip
    """:func:`row_tile` of ``rows`` rows, 1 to ``mr``, a number known at run time only.

    The table has ``1 + rows`` entries a tap.  Every number of rows has code of its own, so that
    the last rows of a block cost no more than they compute.

    Parameters
    ----------
    end : literal int
        Lanes of the last vector, of which ``count`` exist in ``c``: no other is read or written
        there.  0 says that the last vector is like the others.
    kind : literal int
        What is summed (:mod:`convjit_numba.rowtables`); whole numbers have no activation.
    """
    literals = _literals(bits, mr, nv, vl, end, kind)
    if literals is None:
        return None
    code = _Code(*literals)
    signature = types.void(bits, mr, nv, vl, end, kind, *([types.int64] * (_INTEGERS + 3)))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit_row_tiles(builder, code, arguments[6], [*arguments[7:], _int(0)])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def row_tiles_ahead(
    typingctx: Any, bits: Any, mr: Any, nv: Any, vl: Any, rows: Any,
    taps: Any, table: Any, kc: Any, b: Any, walk: Any, c: Any, ldc: Any, accumulate: Any,
    bias: Any, activation: Any, slopes: Any, ahead: Any,
) -> Any:  # fmt: skip
    """:func:`row_tiles` that meanwhile fetches the bytes from ``ahead`` on into the second level.

    64 of them for each of the ``kc`` products of a tap: what a later call will read comes from
    memory while this one computes.  The address may lie outside of any array.
    """
    literals = _literals(bits, mr, nv, vl)
    if literals is None:
        return None
    signature = types.void(bits, mr, nv, vl, *([types.int64] * (_INTEGERS + 3)))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(*literals)._replace(ahead=1)
        _emit_row_tiles(builder, code, arguments[4], [*arguments[5:], _int(0)])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def row_tiles_across(
    typingctx: Any, bits: Any, mr: Any, nv: Any, vl: Any, end: Any, rows: Any,
    taps: Any, table: Any, kc: Any, b: Any, walk: Any, c: Any, ldc: Any, accumulate: Any,
    bias: Any, activation: Any, slopes: Any, count: Any, step: Any,
) -> Any:  # fmt: skip
    """:func:`row_tiles` whose rows' numbers are ``step`` bytes apart.

    So are the pixels of a channel in channels-last arrays.
    """
    literals = _literals(bits, mr, nv, vl, end)
    if literals is None:
        return None
    signature = types.void(bits, mr, nv, vl, end, *([types.int64] * (_INTEGERS + 4)))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(*literals)._replace(across=1)
        _emit_row_tiles(builder, code, arguments[5], arguments[6:])
        return context.get_dummy_value()

    return signature, codegen


def _emit_row_tiles(builder: Any, code: _Code, rows: Any, arguments: Any) -> None:
    done = builder.append_basic_block("tiled")
    switch = builder.switch(rows, done)
    for count in range(1, code.mr + 1):
        block = builder.append_basic_block(f"rows{count}")
        switch.add_case(_int(count), block)
        builder.position_at_end(block)
        builder.call(_function(builder.module, code._replace(mr=count)), arguments)
        builder.branch(done)
    builder.position_at_end(done)


def _function(module: Any, code: _Code) -> Any:
    """The row tile as a function of the module, defined where it is first asked for.

    It is not inlined: the registers of its loop are its own, whatever the caller keeps alive.
    """
    name = "convjit.row_tile." + ".".join(map(str, code))
    if name in module.globals:
        return module.globals[name]
    kind = ir.FunctionType(ir.VoidType(), [I64] * (_INTEGERS + 3))
    function = ir.Function(module, kind, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    _emit_row_tile(builder, code, *function.args)
    builder.ret_void()
    return function


def _emit_row_tile(
    builder: Any, code: _Code,
    taps: Any, table: Any, kc: Any, b: Any, walk: Any, c: Any, ldc: Any, accumulate: Any,
    bias: Any, activation: Any, slopes: Any, extra: Any, step: Any,
) -> None:  # fmt: skip
    bits, mr, nv, vl, end, kind, ahead, across = code
    size = bits // 8
    if not across:
        step = _int(size)
    lanes = [vl] * (nv - 1) + [end or vl]
    vectors = [ir.VectorType(_real(bits), n) for n in lanes]
    mask = first_lanes(builder, end, extra) if end else None
    if kind != REALS:
        # The bits of whole numbers, in registers of real ones: only arithmetic differs.
        add: Any = partial(add_wholes, builder)
        products = multiply_add_pairs if kind == PAIRS else multiply_add_wholes
        multiply_add: Any = partial(products, builder)
        activation = _int(0)
    else:
        add, fmas = builder.fadd, {n: declare_fma(builder, bits, n) for n in lanes}

        def multiply_add(a: Any, b: Any, c: Any) -> Any:
            return builder.call(fmas[c.type.count], [a, b, c])

    places = [(i, j) for i in range(mr) for j in range(nv)]

    def column(address: Any, j: int) -> Any:
        return builder.add(address, _int(j * vl * size))

    def load(address: Any, j: int) -> Any:
        return _load(builder, column(address, j), vectors[j], size)

    def is_masked(j: int) -> bool:
        return mask is not None and j == nv - 1

    rows = [builder.add(c, builder.mul(ldc, _int(i))) for i in range(mr)]
    last = builder.mul(kc, step)
    fresh = builder.block
    reload = builder.append_basic_block("reload")
    more = builder.append_basic_block("more")
    tap = builder.append_basic_block("tap")
    loop = builder.append_basic_block("products")
    epilogue = builder.append_basic_block("epilogue")
    builder.cbranch(builder.icmp_signed("!=", accumulate, _int(0)), reload, more)

    builder.position_at_end(reload)
    before = [
        masked_load(builder, column(rows[i], j), bits, end, mask)
        if is_masked(j)
        else load(rows[i], j)
        for i, j in places
    ]
    builder.branch(more)

    # All mr * nv sums stay in registers over all taps; only the addresses change.
    builder.position_at_end(more)
    left, entry = builder.phi(I64), builder.phi(I64)
    totals = [builder.phi(vectors[j]) for _, j in places]
    zeros = [ir.Constant(vectors[j], [0.0] * lanes[j]) for _, j in places]
    for block, values in ((fresh, zeros), (reload, before)):
        left.add_incoming(taps, block)
        entry.add_incoming(table, block)
        for phi, value in zip(totals, values, strict=True):
            phi.add_incoming(value, block)
    builder.cbranch(builder.icmp_signed(">", left, _int(0)), tap, epilogue)

    builder.position_at_end(tap)
    start = builder.add(b, _load(builder, entry, I64, 8))
    pixels = [_load(builder, builder.add(entry, _int(8 * (1 + i))), I64, 8) for i in range(mr)]
    next_entry = builder.add(entry, _int(8 * (1 + mr)))
    next_left = builder.sub(left, _int(1))
    builder.branch(loop)

    # One counter serves all rows: [pixels + offset] is an addressing mode.
    builder.position_at_end(loop)
    offset, weights = builder.phi(I64), builder.phi(I64)
    sums = [builder.phi(vectors[j]) for _, j in places]
    offset.add_incoming(_int(0), tap)
    weights.add_incoming(start, tap)
    for phi, total in zip(sums, totals, strict=True):
        phi.add_incoming(total, tap)
    if ahead:
        prefetch(builder, builder.add(extra, builder.mul(offset, _int(64 // size))))
    values = [load(weights, j) for j in range(nv)]
    new = []
    for i in range(mr):
        place = builder.add(pixels[i], offset)
        factors = {n: broadcast_real(builder, bits, n, place) for n in dict.fromkeys(lanes)}
        for j in range(nv):
            new.append(multiply_add(factors[lanes[j]], values[j], sums[i * nv + j]))
    next_offset = builder.add(offset, step)
    offset.add_incoming(next_offset, loop)
    weights.add_incoming(builder.add(weights, walk), loop)
    for phi, value in zip(sums, new, strict=True):
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", next_offset, last), loop, more)
    left.add_incoming(next_left, loop)
    entry.add_incoming(next_entry, loop)
    for phi, value in zip(totals, new, strict=True):
        phi.add_incoming(value, loop)

    builder.position_at_end(epilogue)
    for n in dict.fromkeys(lanes):
        mine = [place for place, (_, j) in enumerate(places) if lanes[j] == n]

        def addends(mine: list[int] = mine) -> list[Any]:
            columns = sorted({places[place][1] for place in mine})
            shifts = {j: load(bias, j) for j in columns}
            return [shifts[places[place][1]] for place in mine]

        group = [totals[place] for place in mine]
        group = emit_epilogue(builder, bits, n, group, addends, bias, activation, slopes, add)
        for place, value in zip(mine, group, strict=True):
            i, j = places[place]
            if is_masked(j):
                masked_store(builder, value, column(rows[i], j), bits, end, mask)
            else:
                _store(builder, value, column(rows[i], j), size)

"""The pixel tile: a register tile whose lanes are pixels and whose rows are output channels.

It is the register tile of :mod:`convjit_numba.microkernel` for tiles of any size up to the
registers': a matrix of ``K`` channels and ``V`` vectors of pixels is divided into tiles as evenly
as possible, so that no tile is much smaller than another, and only the last vector of all has lanes
that do not exist.  These are neither written nor, in a panel padded to whole vectors, a case of
their own while products are summed.  Where half of the last vector is enough, half of it is
computed: processors that split their widest vectors take half the time.

Importing this module imports numba, see :mod:`convjit_numba.vectorcode`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from convjit_numba.memory import padded_row
from convjit_numba.microkernel import emit_epilogue
from convjit_numba.targets import LINE
from convjit_numba.transpose import masked_load, masked_store
from convjit_numba.vectorcode import (
    I32,
    I64,
    OPTIONS,
    _int,
    _literals,
    _load,
    _real,
    _store,
    broadcast_real,
    declare_fma,
    prefetch,
)

_INTEGERS = 13  # arguments of a pixel tile that are not literals


@intrinsic(prefer_literal=True)
def pixel_tile(
    typingctx: Any, bits: Any, rows: Any, nv: Any, vl: Any, tail: Any, masked: Any, fetches: Any,
    kc: Any, a: Any, b: Any, walk: Any, c: Any, ldc: Any, accumulate: Any,
    bias: Any, activation: Any, slopes: Any, count: Any, ahead: Any, stride: Any,
) -> Any:  # fmt: skip
    """``c[i, :] (+)= sum over k < kc of a[k, i] * b[k, :]`` for ``rows`` rows of pixels.

    Parameters
    ----------
    bits, rows, nv, vl : literal int
        Width of the numbers, rows, vectors, lanes of a vector.
    tail : literal int
        0, or the lanes of the last vector, of which ``count`` exist.
    masked : literal int
        Whether lanes that do not exist must not be read from ``b`` either.
    fetches : literal int
        Lines to fetch with every product.
    kc : int
        Products to add, at least 1.
    a : address
        Packed weights, ``(kc, rows)``.
    b, walk : address, bytes from row to row
        The pixels; those of a row are consecutive.
    c, ldc : address, bytes from row to row
        The result.
    accumulate, bias, activation, slopes
        As for :func:`convjit_numba.microkernel.register_tile`.
    count : int
        Lanes of the last vector that exist, if ``tail`` is not 0.
    ahead, stride : address, bytes
        With every product ``fetches`` consecutive lines are fetched into the second level, the
        first at ``ahead``, those of the next product ``stride`` bytes on: what a later call will
        read comes from memory while this one computes.  They may lie outside of any array.
    """
    literals = _literals(bits, rows, nv, vl, tail, masked, fetches)
    if literals is None:
        return None
    integers = [types.int64] * _INTEGERS
    signature = types.void(bits, rows, nv, vl, tail, masked, fetches, *integers)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.call(_function(builder.module, *literals), arguments[7:])
        return context.get_dummy_value()

    return signature, codegen


def _function(
    module: Any, bits: int, rows: int, nv: int, vl: int, tail: int, masked: int, fetches: int
) -> Any:
    """The tile as a function of the module, whose registers are its own."""
    masked = masked if tail else 0
    name = f"convjit.pixel_tile.{bits}.{rows}x{nv}x{vl}.{tail}.{masked}.{fetches}"
    if name in module.globals:
        return module.globals[name]
    kind = ir.FunctionType(ir.VoidType(), [I64] * _INTEGERS)
    function = ir.Function(module, kind, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    _emit(builder, bits, rows, nv, vl, tail, masked, fetches, *function.args)
    builder.ret_void()
    return function


def lanes_below(builder: Any, lanes: int, first: Any, end: Any) -> Any:
    """Mask of the lanes i with ``0 <= first + i < end``."""
    wide = ir.VectorType(I32, lanes)
    undefined = ir.Constant(wide, ir.Undefined)
    zeros = ir.Constant(wide, [0] * lanes)

    def spread(value: Any) -> Any:
        lane = builder.insert_element(undefined, builder.trunc(value, I32), ir.Constant(I32, 0))
        return builder.shuffle_vector(lane, undefined, zeros)

    numbers = builder.add(spread(first), ir.Constant(wide, list(range(lanes))))
    # Numbers below 0 are large without a sign.
    return builder.icmp_unsigned("<", numbers, spread(end))


def _emit(
    builder: Any, bits: int, rows: int, nv: int, vl: int, tail: int, masked: int, fetches: int,
    kc: Any, a: Any, b: Any, walk: Any, c: Any, ldc: Any, accumulate: Any,
    bias: Any, activation: Any, slopes: Any, count: Any, ahead: Any, stride: Any,
) -> None:  # fmt: skip
    size = bits // 8
    lanes = [vl] * (nv - 1) + [tail or vl]
    vectors = [ir.VectorType(_real(bits), n) for n in lanes]
    fmas = {n: declare_fma(builder, bits, n) for n in set(lanes)}
    mask = lanes_below(builder, tail, _int(0), count) if tail else None
    places = [(i, j) for i in range(rows) for j in range(nv)]

    def load(address: Any, j: int, exact: bool) -> Any:
        at = builder.add(address, _int(j * vl * size))
        if exact and mask is not None and j == nv - 1:
            return masked_load(builder, at, bits, tail, mask)
        return _load(builder, at, vectors[j], size)

    results = [builder.add(c, builder.mul(ldc, _int(i))) for i in range(rows)]
    fresh = builder.block
    reload = builder.append_basic_block("reload")
    loop = builder.append_basic_block("products")
    epilogue = builder.append_basic_block("epilogue")
    builder.cbranch(builder.icmp_signed("!=", accumulate, _int(0)), reload, loop)

    builder.position_at_end(reload)
    before = [load(results[i], j, True) for i, j in places]
    reloaded = builder.block
    builder.branch(loop)

    builder.position_at_end(loop)
    step, weights, pixels, line = (builder.phi(I64) for _ in range(4))
    sums = [builder.phi(vectors[j]) for _, j in places]
    for block, values in (
        (fresh, [ir.Constant(vectors[j], [0.0] * lanes[j]) for _, j in places]),
        (reloaded, before),
    ):
        step.add_incoming(kc, block)
        weights.add_incoming(a, block)
        pixels.add_incoming(b, block)
        line.add_incoming(ahead, block)
        for phi, value in zip(sums, values, strict=True):
            phi.add_incoming(value, block)
    for number in range(fetches):
        prefetch(builder, builder.add(line, _int(number * LINE)))
    new: list[Any] = [None] * len(places)
    at = [builder.add(weights, _int(i * size)) for i in range(rows)]

    def factors(i: int) -> dict[int, Any]:
        return {n: broadcast_real(builder, bits, n, at[i]) for n in dict.fromkeys(lanes)}

    def product(i: int, j: int, factor: dict[int, Any], value: Any) -> None:
        n, place = lanes[j], i * nv + j
        new[place] = builder.call(fmas[n], [factor[n], value, sums[place]])

    # The fewer of the two kinds of operand stay in registers, the others pass.
    if rows < nv:
        kept = [factors(i) for i in range(rows)]
        for j in range(nv):
            value = load(pixels, j, bool(masked))
            for i in range(rows):
                product(i, j, kept[i], value)
    else:
        values = [load(pixels, j, bool(masked)) for j in range(nv)]
        for i in range(rows):
            factor = factors(i)
            for j in range(nv):
                product(i, j, factor, values[j])
    left = builder.sub(step, _int(1))
    done = builder.block
    step.add_incoming(left, done)
    weights.add_incoming(builder.add(weights, _int(rows * size)), done)
    pixels.add_incoming(builder.add(pixels, walk), done)
    line.add_incoming(builder.add(line, stride), done)
    for phi, value in zip(sums, new, strict=True):
        phi.add_incoming(value, done)
    builder.cbranch(builder.icmp_signed(">", left, _int(0)), loop, epilogue)

    builder.position_at_end(epilogue)
    for n in dict.fromkeys(lanes):
        mine = [place for place, (_, j) in enumerate(places) if lanes[j] == n]

        def addends(n: int = n, mine: list[int] = mine) -> list[Any]:
            shifts = [
                broadcast_real(builder, bits, n, builder.add(bias, _int(i * size)))
                for i in range(rows)
            ]
            return [shifts[places[place][0]] for place in mine]

        group = [new[place] for place in mine]
        group = emit_epilogue(builder, bits, n, group, addends, bias, activation, slopes)
        for place, value in zip(mine, group, strict=True):
            i, j = places[place]
            to = builder.add(results[i], _int(j * vl * size))
            if mask is not None and j == nv - 1:
                masked_store(builder, value, to, bits, tail, mask)
            else:
                _store(builder, value, to, size)


# -------------------------------------------------------------------- gathering


@intrinsic(prefer_literal=True)
def gather_pixels(
    typingctx: Any, bits: Any, vl: Any, step: Any,
    target: Any, row: Any, first: Any, width: Any, count: Any,
) -> Any:  # fmt: skip
    """One vector of a panel: ``target[i] = row[first + i * step]`` for the lanes ``i < count``.

    Parameters
    ----------
    bits, vl, step : literal int
        Width of the numbers, lanes, and numbers from lane to lane, at least 1.
    target : address
        At most ``vl`` lanes of it are written.
    row : address
        Of number 0 of a row, whose numbers 0 to ``width - 1`` exist; others are taken as zeros.
    first, width, count : int
    """
    literals = _literals(bits, vl, step)
    if literals is None:
        return None
    signature = types.void(bits, vl, step, *([types.int64] * 5))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width_of, lanes, stride = literals
        size = width_of // 8
        target, row, first, width, count = arguments[3:]
        vector = ir.VectorType(_real(width_of), lanes)
        source = builder.add(row, builder.mul(first, _int(size)))
        end = builder.add(first, _int(stride * lanes))
        whole = builder.icmp_signed(">=", first, _int(0))
        whole = builder.and_(whole, builder.icmp_signed("<=", end, width))
        whole = builder.and_(whole, builder.icmp_signed(">=", count, _int(lanes)))
        with builder.if_else(whole) as (inside, partly):
            with inside:
                parts = [
                    _load(builder, builder.add(source, _int(m * lanes * size)), vector, size)
                    for m in range(stride)
                ]
                _store(builder, _every(builder, parts, stride), target, size)
            with partly:
                parts = []
                for m in range(stride):
                    start = builder.add(first, _int(m * lanes))
                    mask = lanes_below(builder, lanes, start, width)
                    at = builder.add(source, _int(m * lanes * size))
                    parts.append(masked_load(builder, at, width_of, lanes, mask))
                mask = lanes_below(builder, lanes, _int(0), count)
                value = _every(builder, parts, stride)
                masked_store(builder, value, target, width_of, lanes, mask)
        return context.get_dummy_value()

    return signature, codegen


def row_gatherer(bits: int, vl: int, step: int) -> Any:
    """A function that copies a zero-padded row, ``step`` numbers apart.

    Parameters
    ----------
    bits, vl : int
    step : int
        Vectors are gathered by shuffles; 0 for any step, number by number.

    Returns
    -------
    njit function
        ``gather_row(target, row, first, width, stride, count)``, as
        :func:`convjit_numba.memory.padded_row`; ``stride`` is ``step`` unless that is 0.
    """
    size, vector_step = bits // 8, max(step, 1)

    @njit(**OPTIONS)
    def gather_row(target, row, first, width, stride, count):
        if step == 0:
            padded_row(bits, target, row, width, first, stride, count)
        else:
            for j in range(0, count, vl):
                gather_pixels(
                    bits, vl, vector_step, target + j * size, row, first + j * vector_step, width,
                    count - j,
                )  # fmt: skip

    return gather_row


def _every(builder: Any, parts: list[Any], step: int) -> Any:
    """Every ``step``-th number of ``step`` consecutive vectors."""
    result = parts[0]
    if step == 1:
        return result
    lanes = result.type.count
    for m in range(1, step):
        # Lane i is number i * step; those of part m are not there yet, the later ones any.
        mask = []
        for i in range(lanes):
            part, place = divmod(i * step, lanes)
            taken = place if m == 1 else i
            mask.append(lanes + place if part == m else taken)
        result = builder.shuffle_vector(
            result, parts[m], ir.Constant(ir.VectorType(I32, lanes), mask)
        )
    return result

"""The register tile, its epilogue, and the loop that measures a peak.

The register tile follows the "BLIS" design (Van Zee and van de Geijn 2015, section 3): ``MR`` rows
(output channels) by ``NV`` vectors (output pixels) of accumulators live in registers while ``kc``
products are added to each, every step loading ``NV`` vectors of pixels and broadcasting ``MR``
packed weights.

Importing this module imports numba, as :mod:`convjit_numba.vectorcode` does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from convjit_numba.memory import copy_bytes
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
)

ACTIVATION_NONE, ACTIVATION_LEAKY, ACTIVATION_CLIP = range(3)


@intrinsic(prefer_literal=True)
def register_tile(
    typingctx: Any, bits: Any, mr: Any, nv: Any, vl: Any, indirect: Any,
    kc: Any, a: Any, b: Any, walk: Any, c: Any, ldc: Any, accumulate: Any,
    bias: Any, activation: Any, slopes: Any,
) -> Any:  # fmt: skip
    """``c[i, :] (+)= sum over k < kc of a[k, i] * b[k, :]`` for ``mr`` rows of ``nv * vl`` numbers.

    Parameters
    ----------
    bits, mr, nv, vl, indirect : literal int
        Width of the numbers, rows, vectors, lanes of a vector, and how ``b`` is walked.
    kc : int
        Products to add, at least 1.
    a : address
        Packed weights, ``(kc, mr)``.
    b : address
        Of row 0, whose ``nv * vl`` numbers are consecutive.
    walk : int
        Bytes from row to row of ``b``; if ``indirect`` the address of ``kc`` int32, the offset in
        bytes of each row.
    c, ldc : address, bytes from row to row
    accumulate : int
        Whether ``c`` is added to (1) or overwritten (0).
    bias : address
        Of ``mr`` numbers that are added to the rows, or 0.
    activation : int
        ``ACTIVATION_NONE``; ``_LEAKY``: ``v < 0 ? v * slope : v``; ``_CLIP`` to ``[lo, hi]``
        (relu is ``[0, inf]``).  Comparisons are false for NaN, so NaN passes through each.
    slopes : address
        Of two numbers: (slope, -) or (lo, hi).
    """
    literals = _literals(bits, mr, nv, vl, indirect)
    if literals is None:
        return None
    signature = types.void(bits, mr, nv, vl, indirect, *([types.int64] * 10))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit_register_tile(builder, *literals, *arguments[5:])
        return context.get_dummy_value()

    return signature, codegen


def _emit_register_tile(
    builder: Any, bits: int, mr: int, nv: int, vl: int, indirect: int,
    kc: Any, a: Any, b: Any, walk: Any, c: Any, ldc: Any, accumulate: Any,
    bias: Any, activation: Any, slopes: Any,
) -> None:  # fmt: skip
    size = bits // 8
    vector = ir.VectorType(_real(bits), vl)
    fma = declare_fma(builder, bits, vl)
    broadcast = partial(broadcast_real, builder, bits, vl)

    def column(j: int) -> ir.Constant:
        return _int(j * vl * size)

    places = [(i, j) for i in range(mr) for j in range(nv)]
    zero = ir.Constant(vector, [0.0] * vl)
    rows = [builder.add(c, builder.mul(ldc, _int(i))) for i in range(mr)]
    fresh = builder.block
    reload = builder.append_basic_block("reload")
    loop = builder.append_basic_block("products")
    epilogue = builder.append_basic_block("epilogue")
    builder.cbranch(builder.icmp_signed("!=", accumulate, _int(0)), reload, loop)

    builder.position_at_end(reload)
    before = [_load(builder, builder.add(rows[i], column(j)), vector, size) for i, j in places]
    builder.branch(loop)

    # All mr * nv sums stay in registers for the whole loop; a and b stream from L1 or L2.
    builder.position_at_end(loop)
    step, weights, pixels = builder.phi(I64), builder.phi(I64), builder.phi(I64)
    sums = [builder.phi(vector) for _ in places]
    for block, values in ((fresh, [zero] * len(places)), (reload, before)):
        step.add_incoming(_int(0), block)
        weights.add_incoming(a, block)
        pixels.add_incoming(walk if indirect else b, block)
        for phi, value in zip(sums, values, strict=True):
            phi.add_incoming(value, block)
    row = pixels
    if indirect:
        row = builder.add(b, builder.sext(_load(builder, pixels, I32, 4), I64))

    def weight(i: int) -> Any:
        return broadcast(builder.add(weights, _int(i * size)))

    def pixel(j: int) -> Any:
        return _load(builder, builder.add(row, column(j)), vector, size)

    def product(i: int, j: int, a: Any, b: Any) -> None:
        new[i * nv + j] = builder.call(fma, [a, b, sums[i * nv + j]])

    # The fewer of the two kinds of operand stay in registers, the others pass.
    new: list[Any] = [None] * len(places)
    if mr < nv:
        kept = [weight(i) for i in range(mr)]
        for j in range(nv):
            passing = pixel(j)
            for i in range(mr):
                product(i, j, kept[i], passing)
    else:
        kept = [pixel(j) for j in range(nv)]
        for i in range(mr):
            passing = weight(i)
            for j in range(nv):
                product(i, j, passing, kept[j])
    next_step = builder.add(step, _int(1))
    step.add_incoming(next_step, loop)
    weights.add_incoming(builder.add(weights, _int(mr * size)), loop)
    pixels.add_incoming(builder.add(pixels, _int(4) if indirect else walk), loop)
    for phi, value in zip(sums, new, strict=True):
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", next_step, kc), loop, epilogue)

    builder.position_at_end(epilogue)

    def addends() -> list[Any]:
        shifts = [broadcast(builder.add(bias, _int(i * size))) for i in range(mr)]
        return [shifts[i] for i, _ in places]

    results = emit_epilogue(builder, bits, vl, new, addends, bias, activation, slopes)
    for place, (i, j) in enumerate(places):
        _store(builder, results[place], builder.add(rows[i], column(j)), size)


def emit_epilogue(
    builder: Any, bits: int, vl: int, sums: list[Any], addends: Callable[[], list[Any]],
    bias: Any, activation: Any, slopes: Any, add: Callable[..., Any] | None = None,
) -> list[Any]:  # fmt: skip
    """``activation(sums + addends())``, the second summand only where ``bias`` is not 0.

    ``add`` emits a sum of two vectors where they are no floating-point numbers.

    ``addends`` emits the vectors to add, one for each of ``sums``; ``activation`` and ``slopes``
    are those of :func:`register_tile`.  The builder is left in the block that has the results.
    """
    size = bits // 8
    vector = ir.VectorType(_real(bits), vl)
    zero = ir.Constant(vector, [0.0] * vl)
    epilogue = builder.block
    biased = builder.append_basic_block("biased")
    activate = builder.append_basic_block("activate")
    builder.cbranch(builder.icmp_signed("!=", bias, _int(0)), biased, activate)
    builder.position_at_end(biased)
    add = add or builder.fadd
    shifted = [add(v, shift) for v, shift in zip(sums, addends(), strict=True)]
    builder.branch(activate)

    builder.position_at_end(activate)
    results = []
    for old, moved in zip(sums, shifted, strict=True):
        phi = builder.phi(vector)
        phi.add_incoming(old, epilogue)
        phi.add_incoming(moved, biased)
        results.append(phi)
    leaky = builder.append_basic_block("leaky")
    clip = builder.append_basic_block("clip")
    store = builder.append_basic_block("store")
    switch = builder.switch(activation, store)
    switch.add_case(_int(ACTIVATION_LEAKY), leaky)
    switch.add_case(_int(ACTIVATION_CLIP), clip)

    builder.position_at_end(leaky)
    slope = broadcast_real(builder, bits, vl, slopes)
    leaked = [
        builder.select(builder.fcmp_ordered("<", v, zero), builder.fmul(v, slope), v)
        for v in results
    ]
    builder.branch(store)

    builder.position_at_end(clip)
    lo = broadcast_real(builder, bits, vl, slopes)
    hi = broadcast_real(builder, bits, vl, builder.add(slopes, _int(size)))
    raised = [builder.select(builder.fcmp_ordered("<", v, lo), lo, v) for v in results]
    clipped = [builder.select(builder.fcmp_ordered(">", v, hi), hi, v) for v in raised]
    builder.branch(store)

    builder.position_at_end(store)
    for place in range(len(results)):
        phi = builder.phi(vector)
        phi.add_incoming(results[place], activate)
        phi.add_incoming(leaked[place], leaky)
        phi.add_incoming(clipped[place], clip)
        results[place] = phi
    return results


@njit(**OPTIONS)
def edge(bits, nr, load, tile, y, ldc, rows, row, col, row_end, col_end, pitch, width):
    """Move the pixels of a register tile that exist between a buffer and the result.

    The ``nr`` pixels lie side by side in a run of rows of ``pitch`` places, from (``row``, ``col``)
    on; those with ``row < row_end`` and ``col < col_end`` exist, at ``row * width + col`` of each
    of the ``rows`` channels, which are ``ldc`` bytes apart from ``y`` on.
    """
    size = bits // 8
    done = 0
    while done < nr and row < row_end:
        count = min(nr - done, col_end - col)
        if count > 0:
            for i in range(rows):
                here = tile + (i * nr + done) * size
                there = y + i * ldc + (row * width + col) * size
                if load != 0:
                    copy_bytes(here, there, count * size)
                else:
                    copy_bytes(there, here, count * size)
        done += pitch - col
        row += 1
        col = 0


@intrinsic(prefer_literal=True)
def fma_loop(typingctx: Any, bits: Any, chains: Any, vl: Any, steps: Any, address: Any) -> Any:
    """``steps`` times ``chains`` independent vector FMAs on registers alone; the sum is stored.

    The factors are loaded from ``address`` (``vl`` numbers) so that nothing folds.
    """
    literals = _literals(bits, chains, vl)
    if literals is None:
        return None
    signature = types.void(bits, chains, vl, types.int64, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, count, lanes = literals
        size = width // 8
        vector = ir.VectorType(_real(width), lanes)
        fma = declare_fma(builder, width, lanes)
        factor = _load(builder, arguments[4], vector, size)
        entry, loop = builder.block, builder.append_basic_block("chains")
        done = builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(I64)
        step.add_incoming(_int(0), entry)
        sums = [builder.phi(vector) for _ in range(count)]
        for i, phi in enumerate(sums):
            start = ir.Constant(vector, [float(i)] * lanes)
            phi.add_incoming(start, entry)
            phi.add_incoming(builder.call(fma, [phi, factor, factor]), loop)
        after = builder.add(step, _int(1))
        step.add_incoming(after, loop)
        builder.cbranch(builder.icmp_signed("<", after, arguments[3]), loop, done)
        builder.position_at_end(done)
        total = factor
        for phi in sums:
            total = builder.fadd(total, next(v for v, block in phi.incomings if block is loop))
        _store(builder, total, arguments[4], size)
        return context.get_dummy_value()

    return signature, codegen

"""Building blocks of the kernels: the register tile, and memory by address.

Importing this module imports numba, so only the functions that build kernels import it.

A kernel sees no arrays, only addresses (int64), so that it can neither allocate nor raise and its
object code depends on nothing of numba's at run time (see :mod:`convjit_numba.cache`).  Everything
whose code depends on a size takes it as a literal int.

The register tile follows the "BLIS" design (Van Zee and van de Geijn 2015, section 3): ``MR`` rows
(output channels) by ``NV`` vectors (output pixels) of accumulators live in registers while ``kc``
products are added to each, every step loading ``NV`` vectors of pixels and broadcasting ``MR``
packed weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
ACTIVATION_NONE, ACTIVATION_LEAKY, ACTIVATION_CLIP = range(3)

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


# -------------------------------------------------------------------- memory by address


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


# -------------------------------------------------------------------- the register tile


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


def prefetch(builder: Any, address: Any, write: int = 0) -> None:
    """Fetch a line into the second level of the caches, to be read or written.

    The address may lie outside of any array.
    """
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    flags = [ir.Constant(I32, value) for value in (write, 2, 1)]  # moderate locality, data
    builder.call(fetch, [builder.inttoptr(address, POINTER), *flags])


def add_wholes(builder: Any, a: Any, b: Any) -> Any:
    """``a + b`` of whole numbers of 64 bits that are handled as vectors of float64."""
    return _as_reals(builder, builder.add(_as_wholes(builder, a), _as_wholes(builder, b)))


def multiply_add_wholes(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` modulo 2**64, of such numbers with or without a sign."""
    a, b, c = (_as_wholes(builder, v) for v in (a, b, c))
    return _as_reals(builder, builder.add(builder.mul(a, b), c))


def _as_wholes(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, ir.VectorType(I64, value.type.count))


def _as_reals(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, ir.VectorType(_real(64), value.type.count))


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

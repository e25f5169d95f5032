"""Fourier transforms as vector code: butterflies, transposes, products of spectra.

Importing this module imports numba, so only the functions that build kernels import it.

A complex number is two vectors, real parts and then imaginary parts of as many independent
transforms as there are lanes, so that the butterflies of :mod:`convjit.algorithms.cooley_tukey` are
whole vectors' arithmetic, without a shuffle.  Products and sums may be contracted to fused ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from convjit.algorithms.cooley_tukey import (
    LAST_RADICES,
    RADICES,
    Complex,
    butterfly,
    multiply,
    multiply_conjugate,
)
from convjit_numba.transpose import _transposed
from convjit_numba.vectorcode import I64, _int, _literals, _load, _real, _store, broadcast_real

NO_FACTORS, FACTORS, FACTOR_VECTORS = range(3)
CONTRACT = ("contract",)


class Lanes:
    """A vector of generated code with the arithmetic of a number."""

    __slots__ = ("_builder", "value")

    def __init__(self, builder: Any, value: Any) -> None:
        self._builder = builder
        self.value = value

    def _of(self, other: Any) -> Any:
        if isinstance(other, Lanes):
            return other.value
        kind = self.value.type
        return ir.Constant(kind, [float(other)] * kind.count)

    def __add__(self, other: Any) -> Lanes:
        return Lanes(self._builder, self._builder.fadd(self.value, self._of(other), flags=CONTRACT))

    def __sub__(self, other: Any) -> Lanes:
        return Lanes(self._builder, self._builder.fsub(self.value, self._of(other), flags=CONTRACT))

    def __mul__(self, other: Any) -> Lanes:
        return Lanes(self._builder, self._builder.fmul(self.value, self._of(other), flags=CONTRACT))

    def __neg__(self) -> Lanes:
        return Lanes(self._builder, self._builder.fneg(self.value))


class Emitter:
    """Loads and stores of complex vectors."""

    def __init__(self, builder: Any, bits: int, lanes: int) -> None:
        self.builder, self.bits, self.lanes = builder, bits, lanes
        self.size = bits // 8
        self.vector = ir.VectorType(_real(bits), lanes)
        self.bytes = lanes * self.size

    def at(self, base: Any, step: Any, index: int) -> Any:
        if index == 0:
            return base
        return self.builder.add(base, self.builder.mul(step, _int(index)))

    def load(self, place: Any) -> tuple[Lanes, Lanes]:
        second = self.builder.add(place, _int(self.bytes))
        return tuple(  # type: ignore[return-value]
            Lanes(self.builder, _load(self.builder, p, self.vector, self.size))
            for p in (place, second)
        )

    def store(self, z: tuple[Lanes, Lanes], place: Any) -> None:
        _store(self.builder, z[0].value, place, self.size)
        _store(self.builder, z[1].value, self.builder.add(place, _int(self.bytes)), self.size)

    def number(self, place: Any) -> tuple[Lanes, Lanes]:
        """A complex number in every lane."""
        second = self.builder.add(place, _int(self.size))
        return tuple(  # type: ignore[return-value]
            Lanes(self.builder, broadcast_real(self.builder, self.bits, self.lanes, p))
            for p in (place, second)
        )


# -------------------------------------------------------------------- stages


def _shared(
    builder: Any, name: str, arguments: int, define: Callable[[Any, list[Any]], None]
) -> Any:
    """A function of int64 that every kernel of a module calls, defined where it is first used."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * arguments)
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    if function.is_declaration:
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block("entry"))
        define(inside, list(function.args))
        inside.ret_void()
    return function


def _by_radix(
    builder: Any, radix: Any, radices: tuple[int, ...], code: Callable[[int], None]
) -> None:
    """Branch to the code for a radix that is known at run time."""
    done = ir.Block(builder.function, "done")
    switch = builder.switch(radix, done)
    for n in radices:
        block = builder.append_basic_block(f"radix{n}")
        switch.add_case(_int(n), block)
        builder.position_at_end(block)
        code(n)
        builder.branch(done)
    builder.function.blocks.append(done)
    builder.position_at_end(done)


@intrinsic(prefer_literal=True)
def run_stage(
    typingctx: Any, bits: Any, lanes: Any, inverse: Any, mode: Any,
    radix: Any, base: Any, step: Any, sub: Any, blocks: Any, factors: Any, factor_step: Any,
) -> Any:  # fmt: skip
    """All butterflies of a stage in place, see :class:`convjit.algorithms.cooley_tukey.Stage`.

    Parameters
    ----------
    bits, lanes, inverse, mode : literal int
        The outputs of a forward butterfly are multiplied by factors, the inputs of an ``inverse``
        one by their conjugates: by none (``NO_FACTORS``), by ``radix - 1`` complex numbers for
        each of ``sub`` butterflies (``FACTORS``), or each vector by one of its own
        (``FACTOR_VECTORS``).  The first and the last are for stages with ``sub`` 1.
    radix, base, step, sub, blocks : int
        Complex vectors from ``base`` on, ``step`` bytes apart.
    factors, factor_step : address, bytes
        ``factor_step`` from vector to vector of factors.
    """
    literals = _literals(bits, lanes, inverse, mode)
    if literals is None:
        return None
    signature = types.void(bits, lanes, inverse, mode, *([types.int64] * 7))
    width, vl, backward, kind = literals

    def define(builder: Any, arguments: list[Any]) -> None:
        radix, base, step, sub, blocks, factors, factor_step = arguments
        emit = Emitter(builder, width, vl)

        def butterflies(n: int) -> None:
            apart = builder.mul(sub, step)
            run = builder.mul(apart, _int(n))

            def one(j: Any, block: Any) -> None:
                place = builder.add(base, builder.mul(j, step))
                place = builder.add(place, builder.mul(block, run))
                if kind == FACTOR_VECTORS:
                    table = builder.mul(block, builder.mul(factor_step, _int(n)))
                else:
                    table = builder.mul(j, _int((n - 1) * 2 * emit.size))
                table = builder.add(factors, table)

                def turned(z: Complex, q: int) -> Complex:
                    if kind == NO_FACTORS or (kind == FACTORS and q == 0):
                        return z
                    if kind == FACTOR_VECTORS:
                        factor = emit.load(emit.at(table, factor_step, q))
                    else:
                        factor = emit.number(builder.add(table, _int((q - 1) * 2 * emit.size)))
                    return (multiply_conjugate if backward else multiply)(z, factor)

                def load(i: int) -> Complex:
                    z = emit.load(emit.at(place, apart, i))
                    return turned(z, i) if backward else z

                def store(q: int, z: Complex) -> None:
                    emit.store(z if backward else turned(z, q), emit.at(place, apart, q))

                butterfly(n, load, store, 1 if backward else -1)

            with cgutils.for_range(builder, blocks) as outer:
                if kind == FACTORS:
                    with cgutils.for_range(builder, sub) as inner:
                        one(inner.index, outer.index)
                else:
                    one(_int(0), outer.index)

        _by_radix(builder, radix, RADICES if kind == FACTORS else LAST_RADICES, butterflies)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = f"convjit.fft.stage.{width}.{vl}.{backward}.{kind}"
        builder.call(_shared(builder, name, 7, define), arguments[4:])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def run_products(
    typingctx: Any, bits: Any, lanes: Any, radix: Any, base: Any, blocks: Any, spectrum: Any
) -> Any:
    """The last stage of a transform, products with a spectrum, and the first stage back.

    The complex vectors of data and spectrum are consecutive.
    """
    literals = _literals(bits, lanes)
    if literals is None:
        return None
    signature = types.void(bits, lanes, *([types.int64] * 4))
    width, vl = literals

    def define(builder: Any, arguments: list[Any]) -> None:
        radix, base, blocks, spectrum = arguments
        emit = Emitter(builder, width, vl)

        def butterflies(n: int) -> None:
            with cgutils.for_range(builder, blocks) as loop:
                skip = builder.mul(loop.index, _int(n * 2 * emit.bytes))
                data, weights = builder.add(base, skip), builder.add(spectrum, skip)
                step = _int(2 * emit.bytes)
                values: dict[int, Complex] = {}

                def keep(q: int, z: Complex) -> None:
                    values[q] = multiply(z, emit.load(emit.at(weights, step, q)))

                def store(i: int, z: Complex) -> None:
                    emit.store(z, emit.at(data, step, i))

                butterfly(n, lambda i: emit.load(emit.at(data, step, i)), keep, -1)
                butterfly(n, values.__getitem__, store, 1)

        _by_radix(builder, radix, LAST_RADICES, butterflies)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = f"convjit.fft.products.{width}.{vl}"
        builder.call(_shared(builder, name, 4, define), arguments[2:])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def spectrum_products(
    typingctx: Any, bits: Any, lanes: Any, rows: Any, columns: Any,
    count: Any, w: Any, x: Any, x_channel: Any, x_column: Any, y: Any, y_row: Any, y_column: Any,
) -> Any:  # fmt: skip
    """``y[i, j] = sum over c < count of w[c, i] x[c, j]`` for one complex vector of each.

    ``w`` has ``rows`` consecutive vectors for each c; those of x are ``x_channel`` and
    ``x_column`` bytes apart, those of y ``y_row`` and ``y_column``.
    """
    literals = _literals(bits, lanes, rows, columns)
    if literals is None:
        return None
    signature = types.void(bits, lanes, rows, columns, *([types.int64] * 8))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, vl, height, wide = literals
        count, w, x, x_channel, x_column, y, y_row, y_column = arguments[4:]
        emit = Emitter(builder, width, vl)
        stride = _int(2 * emit.bytes)
        zero = ir.Constant(emit.vector, [0.0] * vl)
        entry, loop = builder.block, builder.append_basic_block("channels")
        done = builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        step, weights, data = builder.phi(I64), builder.phi(I64), builder.phi(I64)
        places = [(i, j) for i in range(height) for j in range(wide)]
        sums = [(builder.phi(emit.vector), builder.phi(emit.vector)) for _ in places]
        for phi, start in ((step, _int(0)), (weights, w), (data, x)):
            phi.add_incoming(start, entry)
        columns = [emit.load(emit.at(data, x_column, j)) for j in range(wide)]
        new = []
        for i in range(height):
            a = emit.load(emit.at(weights, stride, i))
            for j in range(wide):
                re, im = (Lanes(builder, phi) for phi in sums[i * wide + j])
                b = columns[j]
                new.append((re + a[0] * b[0] - a[1] * b[1], im + a[0] * b[1] + a[1] * b[0]))
        after = builder.add(step, _int(1))
        step.add_incoming(after, loop)
        weights.add_incoming(builder.add(weights, _int(2 * emit.bytes * height)), loop)
        data.add_incoming(builder.add(data, x_channel), loop)
        for phis, values in zip(sums, new, strict=True):
            for phi, value in zip(phis, values, strict=True):
                phi.add_incoming(zero, entry)
                phi.add_incoming(value.value, loop)
        builder.cbranch(builder.icmp_signed("<", after, count), loop, done)
        builder.position_at_end(done)
        for (i, j), z in zip(places, new, strict=True):
            emit.store(z, emit.at(emit.at(y, y_row, i), y_column, j))
        return context.get_dummy_value()

    return signature, codegen


# -------------------------------------------------------------------- rows into lanes and back


@intrinsic(prefer_literal=True)
def turn_squares(
    typingctx: Any, bits: Any, lanes: Any, count: Any,
    source: Any, source_step: Any, source_next: Any,
    target: Any, target_step: Any, target_next: Any,
) -> Any:  # fmt: skip
    """Transpose ``count`` squares of ``lanes`` complex vectors, real and imaginary parts each.

    Steps are bytes from one complex vector to the next and from one square to the next.
    """
    literals = _literals(bits, lanes)
    if literals is None:
        return None
    signature = types.void(bits, lanes, *([types.int64] * 7))
    width, vl = literals

    def define(builder: Any, arguments: list[Any]) -> None:
        count, source, source_step, source_next, target, target_step, target_next = arguments
        emit = Emitter(builder, width, vl)
        with cgutils.for_range(builder, count) as loop:
            of = builder.add(source, builder.mul(loop.index, source_next))
            to = builder.add(target, builder.mul(loop.index, target_next))
            for part in (_int(0), _int(emit.bytes)):
                rows = [
                    _load(
                        builder, builder.add(emit.at(of, source_step, i), part), emit.vector,
                        emit.size,
                    )
                    for i in range(vl)
                ]  # fmt: skip
                for j, value in enumerate(_transposed(builder, rows, width)):
                    place = builder.add(emit.at(to, target_step, j), part)
                    _store(builder, value, place, emit.size)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = f"convjit.fft.turn.{width}.{vl}"
        builder.call(_shared(builder, name, 7, define), arguments[2:])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def scale_complex(
    typingctx: Any, bits: Any, lanes: Any, target: Any, source: Any, factor: Any
) -> Any:
    """A complex vector times the number at ``factor``."""
    literals = _literals(bits, lanes)
    if literals is None:
        return None
    signature = types.void(bits, lanes, *([types.int64] * 3))

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, vl = literals
        emit = Emitter(builder, width, vl)
        target, source, factor = arguments[2:]
        number = Lanes(builder, broadcast_real(builder, width, vl, factor))
        re, im = emit.load(source)
        emit.store((re * number, im * number), target)
        return context.get_dummy_value()

    return signature, codegen

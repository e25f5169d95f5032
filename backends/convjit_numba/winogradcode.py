"""Winograd's transforms as vector code, and moves of vectors at the border of an image.

Importing this module imports numba, so only the functions that build kernels import it.

Lanes are channels throughout, so that a transform is the straight-line program of
:mod:`convjit.algorithms.winograd` on whole vectors, without a shuffle.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from convjit.algorithms.straightline import Program
from convjit.algorithms.winograd import transforms
from convjit_numba.microkernel import emit_epilogue
from convjit_numba.transpose import first_lanes, masked_load, masked_store
from convjit_numba.vectorcode import OPTIONS, _int, _literals, _load, _real, _store, declare_fma

DATA, OUTPUT, TAPS = range(3)


def program(kind: int, m: int, r: int) -> Program:
    """BT, AT or G of F(m, r) as straight-line code."""
    t = transforms(m, r)
    return (t.data_program, t.output_program, t.taps_program)[kind]()


def _run(builder: Any, code: Program, values: list[Any], bits: int) -> list[Any]:
    """The outputs of a program on vectors."""
    vector = values[0].type
    lanes = vector.count
    fma = declare_fma(builder, bits, lanes)

    def splat(number: Any) -> ir.Constant:
        return ir.Constant(vector, [float(number)] * lanes)

    state = list(values)
    for op in code.ops:
        a = state[op.a]
        if op.kind == "add":
            state.append(builder.fadd(a, state[op.b]))
        elif op.kind == "sub":
            state.append(builder.fsub(a, state[op.b]))
        elif op.kind == "mul":
            state.append(builder.fmul(a, splat(op.constant)))
        else:
            state.append(builder.call(fma, [a, splat(op.constant), state[op.b]]))
    return [splat(0) if v is None else state[v] for v in code.outputs]


@intrinsic(prefer_literal=True)
def plane_transform(
    typingctx: Any, bits: Any, lanes: Any, kind: Any, mh: Any, rh: Any, mw: Any, rw: Any,
    source: Any, sh: Any, sw: Any, target: Any, th: Any, tw: Any,
    epilogue: Any, bias: Any, activation: Any, slopes: Any,
) -> Any:  # fmt: skip
    """``target = P_h source P_w^T`` on vectors, P being BT, AT or G of F(mh, rh) and F(mw, rw).

    Parameters
    ----------
    bits, lanes, kind, mh, rh, mw, rw : literal int
        ``kind`` is ``DATA``, ``OUTPUT`` or ``TAPS``.
    source, sh, sw : address, bytes from row to row and from column to column
    target, th, tw : the same of the result
    epilogue : literal int
        Whether bias and activation follow: ``bias`` is the address of a vector or 0, the others
        as in :func:`convjit_numba.microkernel.register_tile`.
    """
    literals = _literals(bits, lanes, kind, mh, rh, mw, rw, epilogue)
    if literals is None:
        return None
    signature = types.void(
        bits, lanes, kind, mh, rh, mw, rw, *([types.int64] * 6), epilogue, *([types.int64] * 3)
    )

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, vl, which, m1, r1, m2, r2, finished = literals
        size = width // 8
        vector = ir.VectorType(_real(width), vl)
        source, sh, sw, target, th, tw = arguments[7:13]
        bias, activation, slopes = arguments[14:]
        rows, columns = program(which, m1, r1), program(which, m2, r2)

        def place(base: Any, first: Any, i: int, second: Any, j: int) -> Any:
            down = builder.add(base, builder.mul(first, _int(i)))
            return builder.add(down, builder.mul(second, _int(j)))

        half = []
        for j in range(columns.inputs):
            loaded = [
                _load(builder, place(source, sh, i, sw, j), vector, size)
                for i in range(rows.inputs)
            ]
            half.append(_run(builder, rows, loaded, width))
        results, places = [], []
        for i in range(len(rows.outputs)):
            across = _run(builder, columns, [column[i] for column in half], width)
            if not finished:
                for j, value in enumerate(across):
                    _store(builder, value, place(target, th, i, tw, j), size)
            results += across
            places += [place(target, th, i, tw, j) for j in range(len(across))]
        if finished:

            def addends() -> list[Any]:
                return [_load(builder, bias, vector, size)] * len(results)

            results = emit_epilogue(builder, width, vl, results, addends, bias, activation, slopes)
            for value, where in zip(results, places, strict=True):
                _store(builder, value, where, size)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def move_lanes(
    typingctx: Any, bits: Any, lanes: Any, target: Any, source: Any, count: Any, whole: Any
) -> Any:
    """Move the first ``count`` lanes of a vector; if ``whole``, the others become zeros."""
    literals = _literals(bits, lanes, whole)
    if literals is None:
        return None
    signature = types.void(bits, lanes, types.int64, types.int64, types.int64, whole)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width, vl, fill = literals
        vector = ir.VectorType(_real(width), vl)
        target, source, count = arguments[2:5]
        full = builder.icmp_signed("==", count, _int(vl))
        with builder.if_else(full) as (all_of_it, part):
            with all_of_it:
                _store(builder, _load(builder, source, vector, width // 8), target, width // 8)
            with part:
                mask = first_lanes(builder, vl, count)
                value = masked_load(builder, source, width, vl, mask)
                if fill:
                    _store(builder, value, target, width // 8)
                else:
                    masked_store(builder, value, target, width, vl, mask)
        return context.get_dummy_value()

    return signature, codegen


@njit(**OPTIONS)
def read_pixels(bits, lanes, target, source, step, pixels, count):
    """Vectors of ``count`` channels each from pixels ``step`` bytes apart to consecutive ones."""
    for p in range(pixels):
        move_lanes(bits, lanes, target + p * lanes * (bits // 8), source + p * step, count, 1)


@njit(**OPTIONS)
def write_pixels(bits, lanes, target, step, source, pixels, count):
    """The first ``count`` channels of consecutive vectors to pixels ``step`` bytes apart."""
    for p in range(pixels):
        move_lanes(bits, lanes, target + p * step, source + p * lanes * (bits // 8), count, 0)

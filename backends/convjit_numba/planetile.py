"""Vector code for convolutions of planes: the tile, and the padded copy of a tile's input.

A tile is ``rows`` output rows by ``nv`` vectors of ``vl`` output pixels, whose sums stay in
registers.  The code walks down the *input* rows: a vector that was loaded once serves every output
row that it meets a tap of, up to ``rows`` products for one load (the "shift-and-add" order of
Georganas et al. 2018, section II-D, without channels).  Rows of input that lie in the padding are
skipped, so that they cost nothing; columns in the padding are lanes that are masked off.

With ``u`` counting input rows and ``t = u - down * r`` the row of the kernel that output row ``r``
meets there, the rows that are active at ``u`` are those with ``0 <= t < kh``: first one, then more,
then all, then fewer again.  Which they are is known when code is generated, so each such stretch
has code of its own.

Importing this module imports numba, as :mod:`convjit_numba.vectorcode` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from convjit_numba.memory import copy_bytes, move_real, padded_row
from convjit_numba.microkernel import emit_epilogue
from convjit_numba.vectorcode import (
    I32,
    I64,
    OPTIONS,
    POINTER,
    _int,
    _literals,
    _load,
    _real,
    _store,
    broadcast_real,
    declare_fma,
)

SEGMENT = 32  # bytes of an entry of the table of segments


class _Tile(NamedTuple):
    """What the code of a tile depends on."""

    bits: int
    rows: int
    nv: int
    vl: int
    kh: int
    kw: int
    down: int
    across: int
    held: int
    masked: int


@intrinsic(prefer_literal=True)
def plane_tile(
    typingctx: Any, bits: Any, rows: Any, nv: Any, vl: Any, kh: Any, kw: Any, down: Any,
    across: Any, held: Any, masked: Any,
    x: Any, pitch: Any, step: Any, table: Any, count: Any, w: Any, wrow: Any, wcol: Any,
    first: Any, end: Any, col: Any, dilation: Any, width: Any, valid: Any, y: Any, ldy: Any,
    bias: Any, activation: Any, slopes: Any,
) -> Any:  # fmt: skip
    """``rows`` output rows by ``nv * vl`` output columns of the sum of one or more correlations.

    Parameters
    ----------
    bits, rows, nv, vl : literal int
        Width of the numbers, and the tile.
    kh, kw : literal int
        The kernel where the code is unrolled over its taps; 0 where it loops and takes the sizes
        from the table.
    down, across : literal int
        Input rows and columns from output to output; 1 where the code loops, ``across`` 1 or 2.
    held : literal int
        Whether the weights of an unrolled kernel are held in registers.
    masked : literal int
        Whether columns outside ``0 .. width - 1`` count as 0, unread, and only ``valid`` columns
        are stored.  Otherwise every column is read and stored.
    x : address
        Of the number that input row 0, tap column 0 and lane 0 meet.
    pitch, step : int
        Bytes from input row to input row, and from tap column to tap column (used where the code
        loops; one number otherwise).
    table, count : address, int
        Of ``count`` segments, each four int64: what is added to ``x`` and to ``w`` in bytes, and
        the kernel's rows and columns.  The segments' correlations are summed, in that order.
    w, wrow, wcol : address, bytes
        Of the first weight, and from row to row and column to column (where the code loops;
        consecutive otherwise).
    first, end : int
        The input rows that exist: ``first <= u < end``.
    col, dilation, width, valid : int
        For ``masked``: the column that lane 0 and tap column 0 meet, columns from tap column to
        tap column, columns that exist, and columns to store.
    y, ldy : address, bytes from row to row
    bias : address
        Of one number, or 0.
    activation, slopes
        See :func:`convjit_numba.microkernel.register_tile`.
    """
    literals = _literals(bits, rows, nv, vl, kh, kw, down, across, held, masked)
    if literals is None:
        return None
    tile = _Tile(*literals)
    places = (bits, rows, nv, vl, kh, kw, down, across, held, masked)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        names = (
            "x", "pitch", "step", "table", "count", "w", "wrow", "wcol", "first", "end", "col",
            "dilation", "width", "valid", "y", "ldy", "bias", "activation", "slopes",
        )  # fmt: skip
        given = dict(zip(names, arguments[len(places) :], strict=True))
        _Emitter(builder, tile, given).emit()
        return context.get_dummy_value()

    return types.void(*places, *([types.int64] * 19)), codegen


@contextmanager
def _loop(builder: Any, first: Any, end: Any) -> Iterator[Any]:
    """``for i in range(first, end)``."""
    entry = builder.block
    head, body, done = (builder.append_basic_block(n) for n in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(I64)
    i.add_incoming(first, entry)
    builder.cbranch(builder.icmp_signed("<", i, end), body, done)
    builder.position_at_end(body)
    yield i
    i.add_incoming(builder.add(i, _int(1)), builder.block)
    builder.branch(head).set_metadata("llvm.loop", _not_unrolled(builder.module))
    builder.position_at_end(done)


def _not_unrolled(module: Any) -> Any:
    """Metadata of a loop that LLVM shall leave as it is: its bodies are as long as they should be.

    Such a node has itself as its first operand.
    """
    node = module.add_metadata([module.add_metadata(["llvm.loop.unroll.disable"])] * 2)
    node.operands = (node, node.operands[1])
    return node


class _Emitter:
    """Emits one tile.  The sums are stack slots, which LLVM turns into registers."""

    def __init__(self, builder: Any, tile: _Tile, given: dict[str, Any]) -> None:
        self.builder = builder
        self.tile = tile
        self.given = given
        self.size = tile.bits // 8
        self.vector = ir.VectorType(_real(tile.bits), tile.vl)
        self.zero = ir.Constant(self.vector, [0.0] * tile.vl)
        self.fma = declare_fma(builder, tile.bits, tile.vl)
        self.lanes = ir.VectorType(I32, tile.vl)
        self.sums = [cgutils.alloca_once(builder, self.vector) for _ in range(tile.rows * tile.nv)]

    # ---------------------------------------------------------------- whole tile

    def emit(self) -> None:
        b, t, given = self.builder, self.tile, self.given
        for place in self.sums:
            b.store(self.zero, place)
        masks = self._unrolled_masks() if t.kh else {}
        with _loop(b, _int(0), given["count"]) as i:
            entry = b.add(given["table"], b.mul(i, _int(SEGMENT)))
            x_at, w_at, kh, kw = (_load(b, b.add(entry, _int(8 * j)), I64, 8) for j in range(4))
            x, w = b.add(given["x"], x_at), b.add(given["w"], w_at)
            if t.kh:
                self._unrolled(x, w, masks)
            else:
                self._looped(x, w, kh, kw)
        self._finish()

    def _finish(self) -> None:
        """Bias, activation, store."""
        b, t, given = self.builder, self.tile, self.given
        sums = [b.load(place, typ=self.vector) for place in self.sums]

        def addends() -> list[Any]:
            return [broadcast_real(b, t.bits, t.vl, given["bias"])] * len(sums)

        results = emit_epilogue(
            b, t.bits, t.vl, sums, addends, given["bias"], given["activation"], given["slopes"]
        )
        masks = [None] * t.nv
        if t.masked:
            masks = [
                self._below(self._columns(_int(j * t.vl)), given["valid"]) for j in range(t.nv)
            ]
        for r in range(t.rows):
            row = b.add(given["y"], b.mul(given["ldy"], _int(r)))
            for j in range(t.nv):
                place = b.add(row, _int(j * t.vl * self.size))
                value = results[r * t.nv + j]
                if masks[j] is None:
                    _store(b, value, place, self.size)
                else:
                    self._masked_store(value, place, masks[j])

    # ---------------------------------------------------------------- unrolled over the taps

    def _unrolled(self, x: Any, w: Any, masks: dict[tuple[int, int], Any]) -> None:
        b, t, given = self.builder, self.tile, self.given

        def weight(at: int, s: int) -> Any:
            place = b.add(w, _int((at * t.kw + s) * self.size))
            return broadcast_real(b, t.bits, t.vl, place)

        present = self._present()
        held = {}
        if t.held:
            held = {(at, s): weight(at, s) for at in range(t.kh) for s in range(t.kw)}
        for u in range(t.down * (t.rows - 1) + t.kh):
            active = [r for r in range(t.rows) if 0 <= u - t.down * r < t.kh]
            if not active:
                continue
            exists = b.icmp_unsigned("!=", b.and_(present, _int(1 << u)), _int(0))
            with b.if_then(exists):
                row = b.add(x, b.mul(given["pitch"], _int(u)))
                for s in range(t.kw):
                    values = self._unrolled_vectors(row, s, masks)
                    for r in active:
                        at = u - t.down * r
                        factor = held[at, s] if t.held else weight(at, s)
                        self._add(r, factor, values)

    def _unrolled_vectors(self, row: Any, s: int, masks: dict[tuple[int, int], Any]) -> list[Any]:
        """The vectors that tap column ``s`` meets.

        Where ``across`` is 2 they are every other number of two vectors; the numbers between are
        the next tap column's, so that two columns share their loads.
        """
        b, t = self.builder, self.tile
        if t.across == 1:
            return [self._vector(row, s + j * t.vl, masks.get((s, j))) for j in range(t.nv)]
        pair = s - s % 2
        # A last column without a partner reads up to its own last number and no further.
        gap = t.vl if pair + 1 < t.kw else t.vl - 1
        order = [2 * i + s % 2 for i in range(t.vl)]
        if gap < t.vl:
            order = [i if i < t.vl else i + 1 for i in order]
        chosen = ir.Constant(self.lanes, order)
        values = []
        for j in range(t.nv):
            start = pair + 2 * j * t.vl
            low = self._vector(row, start, masks.get((pair, 2 * j)))
            high = self._vector(row, start + gap, masks.get((pair, 2 * j + 1)))
            values.append(b.shuffle_vector(low, high, chosen))
        return values

    def _unrolled_masks(self) -> dict[tuple[int, int], Any]:
        """The lanes that exist, by tap column and vector."""
        t, given = self.tile, self.given
        if not t.masked:
            return {}
        masks = {}
        for s in range(0, t.kw, t.across):
            for j in range(t.nv * t.across):
                place = s + j * t.vl
                if t.across == 2 and s + 1 == t.kw:
                    place -= j % 2
                columns = self._columns(self.builder.add(given["col"], _int(place)))
                masks[s, j] = self._below(columns, given["width"])
        return masks

    # ---------------------------------------------------------------- looping over the taps

    def _looped(self, x: Any, w: Any, kh: Any, kw: Any) -> None:
        b, t = self.builder, self.tile
        if t.rows == 1:
            with _loop(b, self._largest(_int(0), self.given["first"]), self._least(kh)) as u:
                self._row(x, w, u, kw, [0])
            return
        shared = b.icmp_signed(">=", kh, _int(t.rows))
        with b.if_else(shared) as (then, otherwise):
            with then:
                self._shared(x, w, kh, kw)
            with otherwise:
                self._unshared(x, w, kh, kw)

    def _shared(self, x: Any, w: Any, kh: Any, kw: Any) -> None:
        """At least as many kernel rows as output rows: loads serve all active rows."""
        b, t = self.builder, self.tile
        for u in range(t.rows - 1):
            with b.if_then(self._exists(_int(u))):
                self._row(x, w, _int(u), kw, range(u + 1))
        low = self._largest(_int(t.rows - 1), self.given["first"])
        with _loop(b, low, self._least(kh)) as u:
            self._row(x, w, u, kw, range(t.rows))
        for r in range(1, t.rows):
            u = b.add(kh, _int(r - 1))
            with b.if_then(self._exists(u)):
                self._row(x, w, u, kw, range(r, t.rows))

    def _unshared(self, x: Any, w: Any, kh: Any, kw: Any) -> None:
        """Fewer kernel rows than output rows: every row loads its own."""
        b, t = self.builder, self.tile
        with _loop(b, _int(0), kh) as at:
            for r in range(t.rows):
                u = b.add(at, _int(r))
                with b.if_then(self._exists(u)):
                    self._row(x, w, u, kw, [r])

    def _row(self, x: Any, w: Any, u: Any, kw: Any, active: Sequence[int]) -> None:
        """Input row ``u``: its products with all tap columns, for the ``active`` output rows."""
        b, t, given = self.builder, self.tile, self.given
        row = b.add(x, b.mul(given["pitch"], u))
        weights = [b.add(w, b.mul(given["wrow"], b.sub(u, _int(r)))) for r in active]
        with _loop(b, _int(0), kw) as s:
            start = b.add(row, b.mul(given["step"], s))
            col = b.add(given["col"], b.mul(given["dilation"], s)) if t.masked else None
            values = []
            for j in range(t.nv):
                mask = None
                if col is not None:
                    columns = self._columns(b.add(col, _int(j * t.vl)))
                    mask = self._below(columns, given["width"])
                values.append(self._vector(start, j * t.vl, mask))
            shift = b.mul(given["wcol"], s)
            for r, base in zip(active, weights, strict=True):
                self._add(r, broadcast_real(b, t.bits, t.vl, b.add(base, shift)), values)

    # ---------------------------------------------------------------- pieces

    def _add(self, r: int, factor: Any, values: list[Any]) -> None:
        b, t = self.builder, self.tile
        for j, value in enumerate(values):
            place = self.sums[r * t.nv + j]
            before = b.load(place, typ=self.vector)
            b.store(b.call(self.fma, [factor, value, before]), place)

    def _exists(self, u: Any) -> Any:
        b, given = self.builder, self.given
        below = b.icmp_signed("<", u, given["end"])
        return b.and_(b.icmp_signed(">=", u, given["first"]), below)

    def _present(self) -> Any:
        """The input rows that exist as bits of one number, quicker to ask than two bounds."""
        b, given = self.builder, self.given
        end = self._least(_int(63))
        below = b.sub(b.shl(_int(1), end), _int(1))
        first = b.shl(_int(-1), given["first"])
        return b.and_(below, first)

    def _largest(self, one: Any, other: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed(">", one, other), one, other)

    def _least(self, kh: Any) -> Any:
        end = self.given["end"]
        return self.builder.select(self.builder.icmp_signed("<", kh, end), kh, end)

    def _columns(self, start: Any) -> Any:
        """``start``, ``start + 1``, ... as int32 lanes."""
        b, t = self.builder, self.tile
        undefined = ir.Constant(self.lanes, ir.Undefined)
        lane = b.insert_element(undefined, b.trunc(start, I32), ir.Constant(I32, 0))
        same = b.shuffle_vector(lane, undefined, ir.Constant(self.lanes, [0] * t.vl))
        return b.add(same, ir.Constant(self.lanes, list(range(t.vl))))

    def _below(self, columns: Any, end: Any) -> Any:
        """Lanes with ``0 <= column < end``, negative ones being large as unsigned numbers."""
        b, t = self.builder, self.tile
        undefined = ir.Constant(self.lanes, ir.Undefined)
        lane = b.insert_element(undefined, b.trunc(end, I32), ir.Constant(I32, 0))
        ends = b.shuffle_vector(lane, undefined, ir.Constant(self.lanes, [0] * t.vl))
        return b.icmp_unsigned("<", columns, ends)

    def _vector(self, base: Any, offset: int, mask: Any) -> Any:
        b, t = self.builder, self.tile
        place = b.add(base, _int(offset * self.size))
        if mask is None:
            return _load(b, place, self.vector, self.size)
        flags = ir.VectorType(ir.IntType(1), t.vl)
        kind = ir.FunctionType(self.vector, [POINTER, I32, flags, self.vector])
        name = f"llvm.masked.load.v{t.vl}f{t.bits}.p0"
        load = cgutils.get_or_insert_function(b.module, kind, name)
        align = ir.Constant(I32, self.size)
        return b.call(load, [b.inttoptr(place, POINTER), align, mask, self.zero])

    def _masked_store(self, value: Any, place: Any, mask: Any) -> None:
        b, t = self.builder, self.tile
        flags = ir.VectorType(ir.IntType(1), t.vl)
        kind = ir.FunctionType(ir.VoidType(), [self.vector, POINTER, I32, flags])
        name = f"llvm.masked.store.v{t.vl}f{t.bits}.p0"
        store = cgutils.get_or_insert_function(b.module, kind, name)
        b.call(store, [value, b.inttoptr(place, POINTER), ir.Constant(I32, self.size), mask])


# -------------------------------------------------------------------- borders


@njit(**OPTIONS)
def border_index(mode, i, n):
    """The sample that stands at position ``i`` beside a row of ``n``.

    ``mode`` is a place in :data:`convjit_numba.planeplan.PAD_MODES`.

    Positions further out than padding may reach (lanes whose results are dropped meet them) give
    some sample of the row.
    """
    if mode == 1:
        i = -i if i < 0 else 2 * (n - 1) - i if i >= n else i
    elif mode == 2:
        i = -1 - i if i < 0 else 2 * n - 1 - i if i >= n else i
    elif mode == 4:
        i = i + n if i < 0 else i - n if i >= n else i
    return max(0, min(i, n - 1))


@njit(**OPTIONS)
def bordered_row(bits, mode, target, source, width, first, step, count):
    """As :func:`convjit_numba.memory.padded_row`, with any kind of padding."""
    size = bits // 8
    padded_row(bits, target, source, width, first, step, count)
    if mode == 0:
        return
    j = 0
    while j < count and first + j * step < 0:
        origin = source + border_index(mode, first + j * step, width) * size
        move_real(bits, target + j * size, origin)
        j += 1
    j = count - 1
    while j >= 0 and first + j * step >= width:
        origin = source + border_index(mode, first + j * step, width) * size
        move_real(bits, target + j * size, origin)
        j -= 1


@njit(**OPTIONS)
def store_rows(bits, target, ldt, source, lds, rows, count):
    """Copy ``rows`` rows of ``count`` numbers."""
    size = bits // 8
    for r in range(rows):
        copy_bytes(target + r * ldt, source + r * lds, count * size)

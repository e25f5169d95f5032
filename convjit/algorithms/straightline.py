"""Small linear maps as straight-line programs: synthesis, exact evaluation, emitters.

A program computes ``y = M x`` for a fixed matrix of rationals by a list of additions,
subtractions, multiplications by constants and fused multiply-adds, each naming its result once
(static single assignment).  The list is what every target prints: as vector IR, as Python source
(:func:`python_source`), as CUDA C++ (:func:`cuda_source`), or as operations on arrays
(:func:`apply`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import combinations
from typing import Any

Matrix = tuple[tuple[Fraction, ...], ...]

ONE = Fraction(1)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation; values are numbered, the inputs first.

    ``add``: a + b.  ``sub``: a - b.  ``mul``: constant * a.  ``fma``: constant * a + b, which a
    target without fused arithmetic may round twice.
    """

    kind: str
    result: int
    a: int
    b: int = -1
    constant: Fraction = ONE


@dataclass(frozen=True)
class Program:
    """Straight-line code of a linear map.

    Attributes
    ----------
    inputs : int
        Values 0 to inputs - 1 are the inputs.
    ops : tuple of Op
        Operation number i defines the value ``inputs + i``.
    outputs : tuple of int or None
        The value of each output (it may be an input), None for an output that is always zero.
    """

    inputs: int
    ops: tuple[Op, ...]
    outputs: tuple[int | None, ...]

    @cached_property
    def counts(self) -> Counter[str]:
        """Number of operations of each kind."""
        return Counter(op.kind for op in self.ops)

    @property
    def flops(self) -> int:
        """Arithmetic operations, a fused multiply-add being 2."""
        return len(self.ops) + self.counts["fma"]

    def operands(self, op: Op) -> tuple[int, ...]:
        """The values that an operation reads."""
        return (op.a,) if op.kind == "mul" else (op.a, op.b)

    @cached_property
    def last_use(self) -> dict[int, int]:
        """Index of the last operation that reads each value (outputs: beyond every operation)."""
        last = {v: i for i, op in enumerate(self.ops) for v in self.operands(op)}
        last.update({v: len(self.ops) for v in self.outputs if v is not None})
        return last

    @cached_property
    def placement(self) -> tuple[dict[int, int], int]:
        """Where array code keeps each value, and how many temporaries it needs.

        -1 - k stands for output k, s >= 1 for temporary s; temporary 0 holds the product of a
        multiply-add.  A temporary is reused after the last operation that reads it.
        """
        place: dict[int, int] = {}
        for k, v in enumerate(self.outputs):
            if v is not None and v >= self.inputs:
                place.setdefault(v, -1 - k)
        free: list[int] = []
        used = 1
        for i, op in enumerate(self.ops):
            if op.result not in place:
                if not free:
                    free.append(used)
                    used += 1
                place[op.result] = free.pop()
            for v in set(self.operands(op)):
                if place.get(v, -1) > 0 and self.last_use[v] == i:
                    free.append(place[v])
        return place, used

    def evaluate(self, values: Sequence[Any]) -> list[Any]:
        """The outputs for given inputs, in the inputs' own arithmetic (exact for fractions)."""
        state = list(values)
        if len(state) != self.inputs:
            raise ValueError(f"the program has {self.inputs} inputs, got {len(state)} values.")
        for op in self.ops:
            a = state[op.a]
            if op.kind == "add":
                state.append(a + state[op.b])
            elif op.kind == "sub":
                state.append(a - state[op.b])
            elif op.kind == "mul":
                state.append(op.constant * a)
            else:
                state.append(op.constant * a + state[op.b])
        return [state[0] * 0 if v is None else state[v] for v in self.outputs]

    def matrix(self) -> Matrix:
        """The map that the program computes, by evaluating it on the unit vectors."""
        columns = [
            self.evaluate([Fraction(int(i == j)) for i in range(self.inputs)])
            for j in range(self.inputs)
        ]
        return tuple(zip(*columns, strict=True))


# ------------------------------------------------------------------------------ synthesis


def synthesize(matrix: Matrix) -> Program:
    """Straight-line code for ``matrix``, with greedy elimination of common subexpressions.

    While some pair of values occurs with the same ratio of coefficients in two rows or more, the
    pair that occurs most often becomes a value of its own (R. Hartley, "Subexpression sharing in
    filters using canonic signed digit multipliers", IEEE TCAS II 43(10), 1996, with ratios in the
    place of shifts).  For points +-p this finds the even and odd parts of each polynomial.
    """
    inputs = len(matrix[0])
    rows = [{j: c for j, c in enumerate(row) if c} for row in matrix]
    only_dyadic = all(_is_dyadic(c) for row in matrix for c in row)
    ops: list[Op] = []

    def emit(kind: str, a: int, b: int = -1, constant: Fraction = ONE) -> int:
        ops.append(Op(kind, inputs + len(ops), a, b, constant))
        return ops[-1].result

    def multiply_add(constant: Fraction, a: int, b: int) -> int:
        """The value ``constant * a + b``."""
        if constant == 1:
            return emit("add", b, a)
        return emit("sub", b, a) if constant == -1 else emit("fma", a, b, constant)

    while True:
        uses: Counter[tuple[int, int, Fraction]] = Counter(
            (i, j, row[j] / row[i]) for row in rows for i, j in combinations(sorted(row), 2)
        )
        shared = [
            (count, key)
            for key, count in uses.items()
            if count > 1 and (not only_dyadic or _is_dyadic(key[2]) or _is_dyadic(1 / key[2]))
        ]
        if not shared:
            break
        # Ties: plain additions first, then the pair that was met first.
        _, (i, j, ratio) = max(
            shared, key=lambda s: (s[0], abs(s[1][2]) == 1, -s[1][1], -s[1][0], s[1][2])
        )
        users = [row for row in rows if i in row and j in row and row[j] / row[i] == ratio]
        # t = x_i + ratio x_j, or x_j + x_i / ratio: the one whose constant is exact, then the one
        # that leaves more coefficients +-1, then the one whose constant has fewer digits.
        first = (_is_dyadic(ratio), sum(abs(row[i]) == 1 for row in users), -_digits(ratio))
        inverse = 1 / ratio
        second = (_is_dyadic(inverse), sum(abs(row[j]) == 1 for row in users), -_digits(inverse))
        if first >= second:
            value, base = multiply_add(ratio, j, i), i
        else:
            value, base = multiply_add(inverse, i, j), j
        for row in users:
            row[value] = row[base]
            del row[i], row[j]

    outputs = tuple(_emit_row(row, emit, multiply_add) for row in rows)
    return Program(inputs, tuple(ops), outputs)


def _is_dyadic(value: Fraction) -> bool:
    return value.denominator & (value.denominator - 1) == 0


def _digits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _emit_row(row: dict[int, Fraction], emit: Any, multiply_add: Any) -> int | None:
    """One row as a chain: start at a term with coefficient 1 (or -1, or any), add the rest."""
    if not row:
        return None
    terms = sorted(row.items(), key=lambda t: (t[1] != 1, t[1] != -1, -_digits(t[1]), t[0]))
    start, constant = terms.pop(0)
    value = start
    if constant == -1 and any(abs(c) != 1 for _, c in terms):
        # c x - start in one operation needs the negated start; begin with the product instead.
        index = next(k for k, (_, c) in enumerate(terms) if abs(c) != 1)
        other, factor = terms.pop(index)
        value = emit("sub", emit("mul", other, constant=factor), start)
    elif constant != 1:
        value = emit("mul", start, constant=constant)
    for other, factor in terms:
        value = multiply_add(factor, other, value)
    return int(value)


# ------------------------------------------------------------------------------- emitters


def python_source(program: Program, name: str, cast: str = "") -> str:
    """The program as the source of a Python function ``name(x0, x1, ...) -> tuple``.

    Parameters
    ----------
    program : Program
    name : str
    cast : str
        Name of a function that each constant is wrapped in (``"float32"`` in a numba kernel, so
        that arithmetic is not promoted), empty for none.
    """
    lines = [f"def {name}({', '.join(f'x{i}' for i in range(program.inputs))}):"]

    def value(v: int | None) -> str:
        if v is None:
            return f"{cast}(0.0)" if cast else "0.0"
        return f"x{v}" if v < program.inputs else f"t{v}"

    for op in program.ops:
        constant = f"{cast}({float(op.constant)!r})" if cast else repr(float(op.constant))
        a, b = value(op.a), value(op.b) if op.b >= 0 else ""
        expression = {
            "add": f"{a} + {b}",
            "sub": f"{a} - {b}",
            "mul": f"{constant} * {a}",
            "fma": f"{constant} * {a} + {b}",
        }[op.kind]
        lines.append(f"    t{op.result} = {expression}")
    lines.append(f"    return ({', '.join(value(v) for v in program.outputs)},)")
    return "\n".join(lines) + "\n"


def cuda_source(program: Program, name: str, real: str = "float") -> str:
    """The program as a device function in CUDA C++.

    ``name(x, y)`` reads ``x[0], x[1], ...`` and writes ``y[0], y[1], ...``, arrays of exactly so
    many, which stay in registers where their indices are known.
    """
    suffix = "f" if real == "float" else ""

    def value(v: int | None) -> str:
        if v is None:
            return f"0.0{suffix}"
        return f"x[{v}]" if v < program.inputs else f"t{v}"

    lines = [
        f"__device__ __forceinline__ void {name}(const {real} (&x)[{program.inputs}], "
        f"{real} (&y)[{len(program.outputs)}]) {{"
    ]
    for op in program.ops:
        constant = f"{float(op.constant)!r}{suffix}"
        a, b = value(op.a), value(op.b) if op.b >= 0 else ""
        expression = {
            "add": f"{a} + {b}",
            "sub": f"{a} - {b}",
            "mul": f"{constant} * {a}",
            "fma": f"fma({constant}, {a}, {b})",
        }[op.kind]
        lines.append(f"    const {real} t{op.result} = {expression};")
    lines += [f"    y[{k}] = {value(v)};" for k, v in enumerate(program.outputs)]
    return "\n".join([*lines, "}"]) + "\n"


def scratch_count(program: Program) -> int:
    """Temporaries that :func:`apply` uses at once, one of them for products."""
    return program.placement[1]


def apply(
    program: Program,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    scratch: Sequence[Any],
    xp: Any,
) -> None:
    """Run the program on arrays of one shape, writing into ``outputs``.

    Parameters
    ----------
    program : Program
    inputs, outputs : sequences of arrays
        Views with any strides; no output may overlap an input or another output.
    scratch : sequence of at least ``scratch_count(program)`` arrays
        Of the same shape and dtype as the outputs.
    xp : module
        ``numpy`` or ``cupy``.
    """
    place, _ = program.placement
    values: list[Any] = list(inputs)
    product = scratch[0]
    scalar = outputs[0].dtype.type
    for op in program.ops:
        at = place[op.result]
        into = outputs[-1 - at] if at < 0 else scratch[at]
        a = values[op.a]
        if op.kind == "add":
            xp.add(a, values[op.b], out=into)
        elif op.kind == "sub":
            xp.subtract(a, values[op.b], out=into)
        elif op.kind == "mul":
            xp.multiply(a, scalar(float(op.constant)), out=into)
        else:
            xp.multiply(a, scalar(float(op.constant)), out=product)
            xp.add(product, values[op.b], out=into)
        values.append(into)
    for k, v in enumerate(program.outputs):
        if v is None:
            outputs[k][...] = 0
        elif place.get(v) != -1 - k:
            outputs[k][...] = values[v]

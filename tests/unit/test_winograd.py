"""Cook-Toom matrices and their programs, exactly: every comparison of fractions is ``==``."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import product
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convjit.algorithms import straightline, winograd
from convjit.algorithms.straightline import Matrix, synthesize

SIZES = [(2, 3), (4, 3), (6, 3), (2, 5), (4, 5), (1, 3), (3, 1), (2, 2), (3, 2), (5, 3), (8, 3)]


def multiply(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_bilinear_identity(m: int, r: int) -> None:
    """sum over f of AT[i,f] G[f,t] BT[f,j] is 1 where j = i + t and 0 elsewhere: all there is."""
    at, g, bt = winograd.matrices(m, r)
    n = m + r - 1
    assert (len(at), len(g), len(bt)) == (m, n, n)
    for i, t, j in product(range(m), range(r), range(n)):
        assert sum(at[i][f] * g[f][t] * bt[f][j] for f in range(n)) == (j == i + t)


@pytest.mark.parametrize("points", [(0, 1, -1, 2, -2), ("1/3", "-5/7", 11, "2/9", -4)])
def test_any_points(points: tuple[int | str, ...]) -> None:
    at, g, bt = winograd.matrices(4, 3, points)
    random.seed(0)
    w = [Fraction(random.randint(-9, 9)) for _ in range(3)]
    d = [Fraction(random.randint(-9, 9)) for _ in range(6)]
    products = [a * b for a, b in zip(multiply(g, w), multiply(bt, d), strict=True)]
    assert multiply(at, products) == [sum(w[t] * d[i + t] for t in range(3)) for i in range(4)]


def test_lavins_f23() -> None:
    """F(2, 3) of Lavin & Gray 2016, sec. 4.1, up to the scale of rows."""
    at, g, bt = winograd.matrices(2, 3)
    assert at == ((1, 1, 1, 0), (0, 1, -1, 1))
    for row, expected in zip(
        bt, ((1, 0, -1, 0), (0, 1, 1, 0), (0, 1, -1, 0), (0, 1, 0, -1)), strict=True
    ):
        assert row in (expected, tuple(-v for v in expected))
    assert {abs(v) for row in g for v in row} == {0, 1, Fraction(1, 2)}


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_adjoint(m: int, r: int) -> None:
    """gw = GT [(A gy) * (BT d)] is the gradient of the taps."""
    at, g, bt = winograd.matrices(m, r)
    random.seed(1)
    gy = [Fraction(random.randint(-9, 9)) for _ in range(m)]
    d = [Fraction(random.randint(-9, 9)) for _ in range(m + r - 1)]
    a = tuple(zip(*at, strict=True))
    products = [u * v for u, v in zip(multiply(a, gy), multiply(bt, d), strict=True)]
    got = multiply(tuple(zip(*g, strict=True)), products)
    assert got == [sum(gy[i] * d[i + t] for i in range(m)) for t in range(r)]


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_programs_compute_their_matrices(m: int, r: int) -> None:
    t = winograd.transforms(m, r)
    assert t.data_program().matrix() == t.BT
    assert t.taps_program().matrix() == t.G
    assert t.output_program().matrix() == t.AT


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_constants_are_dyadic(m: int, r: int) -> None:
    """BT and AT, and the constants of their programs, are exact in every binary format."""
    t = winograd.transforms(m, r)
    values = [v for matrix in (t.BT, t.AT) for row in matrix for v in row]
    values += [op.constant for p in (t.data_program(), t.output_program()) for op in p.ops]
    for value in values:
        assert value.denominator & (value.denominator - 1) == 0
        assert float(np.float32(float(value))) == value


# (operations, of which fused multiply-adds) of BT and of AT; fewer is progress, more a regression.
COUNTS = {
    (2, 3): ((4, 0), (4, 0)),
    (4, 3): ((12, 12), (12, 4)),
    (6, 3): ((24, 18), (20, 10)),
    (2, 5): ((12, 12), (8, 4)),
    (4, 5): ((24, 18), (16, 6)),
}


@pytest.mark.parametrize(("m", "r"), list(COUNTS))
def test_operation_counts(m: int, r: int) -> None:
    t = winograd.transforms(m, r)
    counted = tuple((len(p.ops), p.counts["fma"]) for p in (t.data_program(), t.output_program()))
    assert counted == COUNTS[m, r]
    assert t.data_program().flops == sum(counted[0])


def test_two_dimensions_nest() -> None:
    """F(4x2, 3x3): rows, then columns, exactly."""
    rows, columns = winograd.transforms(4, 3), winograd.transforms(2, 3)
    random.seed(2)
    d = [[Fraction(random.randint(-9, 9)) for _ in range(columns.n)] for _ in range(rows.n)]
    w = [[Fraction(random.randint(-9, 9)) for _ in range(3)] for _ in range(3)]

    def nest(
        image: list[list[Fraction]], down: straightline.Program, along: straightline.Program
    ) -> list[list[Fraction]]:
        across = [along.evaluate(row) for row in image]
        return [
            list(v)
            for v in zip(*(down.evaluate(c) for c in zip(*across, strict=True)), strict=True)
        ]

    v = nest(d, rows.data_program(), columns.data_program())
    u = nest(w, rows.taps_program(), columns.taps_program())
    products = [[a * b for a, b in zip(p, q, strict=True)] for p, q in zip(u, v, strict=True)]
    y = nest(products, rows.output_program(), columns.output_program())
    assert y == [
        [sum(w[s][t] * d[i + s][j + t] for s in range(3) for t in range(3)) for j in range(2)]
        for i in range(4)
    ]


def test_amplification() -> None:
    # F(2,3), by hand: |G||BT| is (1, sqrt(3)/2, sqrt(3)/2, 1) * sqrt(2), weights 1.
    assert winograd.amplification(2, 3) == pytest.approx(sqrt(2 + 1.5 + 1.5))
    assert winograd.amplification(1, 1) == 1
    assert winograd.adjoint_amplification(3, 2) == pytest.approx(winograd.amplification(2, 3))
    # Larger tiles err more, and the default points less than small integers.
    growing = [winograd.amplification(m, 3) for m in (2, 4, 6, 8)]
    assert growing == sorted(growing)
    small = winograd.transforms(4, 3, (0, 1, -1, 2, -2))
    assert winograd.amplification(4, 3) < 0.55 * winograd._amplification(
        small.AT, small.G, small.BT
    )


def test_bad_points() -> None:
    with pytest.raises(
        ValueError, match=r"F\(4, 3\) needs 5 different finite points, got \(0, 1, 1"
    ):
        winograd.matrices(4, 3, (0, 1, 1, 2, 3))
    with pytest.raises(ValueError, match=r"F\(12, 3\) needs 13 finite points; at most 9"):
        winograd.matrices(12, 3)
    with pytest.raises(ValueError, match="at least 1"):
        winograd.default_points(0, 3)


# ------------------------------------------------------------------------------- programs

small_fractions = st.sampled_from([Fraction(v, 2) for v in (-4, -2, -1, 0, 0, 1, 2, 3, 4)])


@st.composite
def small_matrices(draw: st.DrawFn) -> Matrix:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return tuple(tuple(draw(small_fractions) for _ in range(columns)) for _ in range(rows))


@given(small_matrices())
@settings(max_examples=150, deadline=None)
def test_synthesis_is_exact_and_never_worse(matrix: Matrix) -> None:
    program = synthesize(matrix)
    assert program.matrix() == matrix
    naive = sum(max(sum(1 for c in row if c), 1) for row in matrix)  # a product per row's start
    assert len(program.ops) <= naive


@given(small_matrices(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_apply_agrees_with_evaluation(matrix: Matrix, strided: bool) -> None:
    """Array operations on dyadic data are exact, so the comparison is too."""
    program = synthesize(matrix)
    rng = np.random.default_rng(0)
    data = rng.integers(-8, 8, (program.inputs, 4, 6)).astype(np.float64)
    source = data[:, ::2, ::-1] if strided else data
    kept = data.copy()
    out = np.full((len(matrix), *source.shape[1:]), np.nan)
    target = out.transpose(0, 2, 1).copy().transpose(0, 2, 1) if strided else out
    scratch = list(np.full((straightline.scratch_count(program), *source.shape[1:]), np.nan))
    straightline.apply(program, list(source), list(target), scratch, np)
    expected = np.tensordot(np.array(matrix, dtype=np.float64), source, 1)
    assert np.array_equal(target, expected)
    assert np.array_equal(data, kept)


@pytest.mark.parametrize("cast", ["", "float32"])
def test_python_source(cast: str) -> None:
    program = winograd.transforms(4, 3).data_program()
    text = straightline.python_source(program, "transform", cast)
    assert text.startswith("def transform(x0, x1, x2, x3, x4, x5):\n")
    space = {"float32": np.float32}
    exec(text, space)
    values = [Fraction(v) for v in (3, -1, 4, 1, -5, 9)]
    got = space["transform"](*(np.float32(float(v)) for v in values))
    assert [Fraction(float(v)) for v in got] == program.evaluate(values)


def test_evaluate_counts_its_inputs() -> None:
    with pytest.raises(ValueError, match="6 inputs, got 2"):
        winograd.transforms(4, 3).data_program().evaluate([1, 2])

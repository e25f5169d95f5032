"""Minimal convolution (Cook-Toom, Winograd): matrices from points, transforms as programs.

F(m, r) computes ``m`` outputs of a correlation with ``r`` taps from ``n = m + r - 1`` inputs with
``n`` multiplications,

    y = AT [ (G w) * (BT d) ],        y_i = sum over t of w_t d_{i+t}.

Derivation (S. Winograd, "Arithmetic Complexity of Computations", 1980, ch. III; A. Lavin and S.
Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, sec. 4).  The product of a
polynomial with ``m`` coefficients and one with ``r`` has degree ``n - 1``; its values at ``n - 1``
finite points and its leading coefficient (the point at infinity) determine it, by Lagrange's
interpolation.  Evaluation of the two factors and interpolation are linear; the correlation above is
the transpose of that product in one factor, so evaluation of the outputs' factor becomes ``AT`` and
interpolation becomes ``BT``.

Everything is exact (:class:`fractions.Fraction`); floating-point numbers appear where a target's
emitter prints them.  Several axes nest: each axis is transformed in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import prod, sqrt

from convjit.algorithms.straightline import Matrix, Program, synthesize

# Finite points by their number, m + r - 2; the point at infinity is always added.
#
# The rounding error grows with :func:`amplification`.  The rows have the smallest one, or are
# within 5 % of it and have fewer significant bits, among sets drawn from 0 and +-{1/4, 3/8, 1/2,
# 5/8, 3/4, 1, 5/4, 3/2, 2, 5/2, 3, 4}, for F(m, 3) and F(m, 5): all symmetric sets +-p, which
# share half of their additions, and all sets of up to 6 (``python -m
# convjit.algorithms.fit_error points``).  They follow B. Barabasz, A. Anderson, K. Soodhalter, D.
# Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural
# Networks", ACM TOMS 46(4), 2020, sec. 6: few significant bits, reciprocal pairs, alternating
# signs.  (0, +-3/4, +-3/2) is (0, +-1, +-2) scaled: as many operations, half the amplification.
# All points are dyadic, so that BT and AT hold numbers which every binary format represents.
_POINTS: dict[int, tuple[str, ...]] = {
    0: (),
    1: ("0",),
    2: ("0", "1"),
    3: ("0", "1", "-1"),
    4: ("0", "1", "-1/2", "-2"),
    5: ("0", "3/4", "-3/4", "3/2", "-3/2"),
    6: ("0", "1", "1/2", "-3/4", "-3/2", "2"),
    7: ("0", "1", "-1", "1/2", "-1/2", "2", "-2"),
    8: ("0", "1", "-1", "1/2", "-1/2", "2", "-3/2", "-3"),
    9: ("0", "1/2", "-1/2", "3/4", "-3/4", "5/4", "-5/4", "5/2", "-5/2"),
}
MAX_TILE = max(_POINTS) + 1


def default_points(m: int, r: int) -> tuple[Fraction, ...]:
    """The finite points used for F(m, r).

    Raises
    ------
    ValueError
        If ``m + r - 1`` exceeds :data:`MAX_TILE`: the error would not be useful in any format.
    """
    count = m + r - 2
    if m < 1 or r < 1:
        raise ValueError(f"F({m}, {r}): m and r are counts of outputs and taps, at least 1.")
    if count not in _POINTS:
        raise ValueError(
            f"F({m}, {r}) needs {count} finite points; at most {MAX_TILE - 1} are set."
        )
    return tuple(Fraction(point) for point in _POINTS[count])


@dataclass(frozen=True, slots=True)
class Transforms:
    """F(m, r): its matrices, exactly.

    Attributes
    ----------
    m, r : int
        Outputs and taps.
    AT : (m, n) tuple of rows of Fraction
        Output transform.
    G : (n, r)
        Transform of the taps.
    BT : (n, n)
        Transform of the data.
    """

    m: int
    r: int
    AT: Matrix
    G: Matrix
    BT: Matrix

    @property
    def n(self) -> int:
        """Inputs, and multiplications, of one tile along the axis."""
        return self.m + self.r - 1

    def data_program(self) -> Program:
        """``BT`` as straight-line code."""
        return _program(self.BT)

    def taps_program(self) -> Program:
        """``G`` as straight-line code."""
        return _program(self.G)

    def output_program(self) -> Program:
        """``AT`` as straight-line code."""
        return _program(self.AT)


@lru_cache(maxsize=256)
def _program(matrix: Matrix) -> Program:
    return synthesize(matrix)


def matrices(
    m: int, r: int, points: Sequence[Fraction | int | str] | None = None
) -> tuple[Matrix, Matrix, Matrix]:
    """``(AT, G, BT)`` of F(m, r) as tuples of rows of exact fractions.

    Parameters
    ----------
    m, r : int
        Outputs and taps.
    points : sequence of m + r - 2 different rationals, optional
        Finite interpolation points; :func:`default_points` if not given.
    """
    t = transforms(m, r, points)
    return t.AT, t.G, t.BT


def transforms(m: int, r: int, points: Sequence[Fraction | int | str] | None = None) -> Transforms:
    """The :class:`Transforms` of F(m, r); see :func:`matrices`."""
    chosen = default_points(m, r) if points is None else tuple(Fraction(p) for p in points)
    return _transforms(m, r, chosen)


@lru_cache(maxsize=256)
def _transforms(m: int, r: int, points: tuple[Fraction, ...]) -> Transforms:
    n = m + r - 1
    if len(points) != n - 1 or len(set(points)) != n - 1:
        raise ValueError(
            f"F({m}, {r}) needs {n - 1} different finite points, got "
            f"({', '.join(map(str, points))})."
        )
    outputs, taps, data = [], [], []
    for i, p in enumerate(points):
        others = points[:i] + points[i + 1 :]
        # Lagrange's basis polynomial of p is prod (x - q) / prod (p - q) over the other points q:
        # the numerator's coefficients go to BT, the denominator to G, which is prepared once.
        outputs.append([p**j for j in range(m)])
        taps.append([p**j / prod((p - q for q in others), start=Fraction(1)) for j in range(r)])
        data.append(_from_roots(others, n))
    outputs.append([Fraction(int(j == m - 1)) for j in range(m)])
    taps.append([Fraction(int(j == r - 1)) for j in range(r)])
    data.append(_from_roots(points, n))
    for i in range(n):
        scale = _balance(data[i], taps[i])
        data[i] = [scale * b for b in data[i]]
        taps[i] = [g / scale for g in taps[i]]
    transposed = tuple(tuple(row[j] for row in outputs) for j in range(m))
    return Transforms(m, r, transposed, tuple(map(tuple, taps)), tuple(map(tuple, data)))


def _from_roots(roots: Sequence[Fraction], size: int) -> list[Fraction]:
    """Coefficients of ``prod (x - root)``, lowest first, padded with zeros to ``size``."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [root * c for c in coefficients] + [Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients + [Fraction(0)] * (size - len(coefficients))


def _balance(data: Sequence[Fraction], taps: Sequence[Fraction]) -> Fraction:
    """Power of two, with a sign, by which a row of BT is multiplied, and the same row of G divided.

    Exact in binary arithmetic, hence without effect on relative errors; it keeps the two factors
    alike in size, which matters in formats of small range.  A coefficient 1 saves a
    multiplication, so only scales that leave one are considered.
    """
    square_ratio = sum((g * g for g in taps), Fraction(0)) / sum(b * b for b in data)
    scales = {1 / b for b in data if b and _is_power_of_two(abs(b))}

    def imbalance(scale: Fraction) -> Fraction:
        ratio = (
            scale * scale * scale * scale / square_ratio
        )  # 1 where |scale * data| = |taps / scale|
        return max(ratio, 1 / ratio)

    return min(sorted(scales), key=imbalance, default=Fraction(1))


def _is_power_of_two(value: Fraction) -> bool:
    return all(part & (part - 1) == 0 for part in (value.numerator, value.denominator))


@lru_cache(maxsize=256)
def amplification(m: int, r: int) -> float:
    """How much larger the products of F(m, r) are than what they add up to, in the mean square.

    For independent data and taps of unit variance the product at point ``f`` has the standard
    deviation ``|G_f| |BT_f|`` (Euclidean norms of rows) and output ``i`` sums them with weights
    ``AT_if``.  Relative errors of the products that are independent of each other and of size e
    leave in output ``i`` the error ``e * sqrt(sum over f of (AT_if |G_f| |BT_f|)**2)``; the
    largest over ``i`` is returned.  Scaling the rows does not change it.  This is the statistical
    counterpart of the norm bound of Barabasz et al. 2020, sec. 3.
    """
    t = transforms(m, r)
    return _amplification(t.AT, t.G, t.BT)


@lru_cache(maxsize=256)
def adjoint_amplification(m: int, r: int) -> float:
    """:func:`amplification` of the transposed algorithm, ``gw = GT [(A gy) * (BT d)]``.

    It computes the gradient of ``r`` taps from tiles of ``m`` output gradients.
    """
    t = transforms(m, r)
    return _amplification(tuple(zip(*t.G, strict=True)), tuple(zip(*t.AT, strict=True)), t.BT)


def _amplification(outer: Matrix, left: Matrix, right: Matrix) -> float:
    energy = [
        sum(a * a for a in u) * sum(b * b for b in v) for u, v in zip(left, right, strict=True)
    ]
    worst = max(sum(a * a * e for a, e in zip(row, energy, strict=True)) for row in outer)
    return sqrt(worst)

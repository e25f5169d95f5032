"""Fast Fourier transforms in place: butterflies, the order of stages, twiddle factors.

A transform of length ``n = r m`` splits into r transforms of length m (J. Cooley and J. Tukey, "An
algorithm for the machine calculation of complex Fourier series", Math. Comp. 19, 1965).  Decimation
in frequency (W. Gentleman and G. Sande, "Fast Fourier transforms: for fun and profit", AFIPS 29,
1966) takes, for every ``j < m``, the r samples j, j + m, j + 2 m, ... through a butterfly,

    y[j + q m] = W(n)^(j q)  sum over i < r of x[j + i m] W(r)^(i q),      W(n) = exp(-2 pi i / n),

and then transforms each run of m samples, number q of which holds the frequencies q modulo r.
Everything stays in place, so the frequencies end in the digit-reversed order that
:func:`frequencies` gives (C. Van Loan, "Computational Frameworks for the Fast Fourier Transform",
1992, sections 1.9 and 2.1).  Run backwards with conjugate factors (decimation in time), the same
stages take that order back to samples in their own, ``n`` times too large: a convolution, which
multiplies spectra in any order, needs no permutation at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import pi, prod, sqrt
from typing import Any, NamedTuple

import numpy as np

Complex = tuple[Any, Any]  # real and imaginary part: numbers, arrays or vectors of generated code

# Butterflies that code is generated for.  A larger one passes over the data less often, and holds
# more of it in registers.
RADICES = (3, 4, 5, 6, 8)
# Those of the last stage, in whose butterflies products with a spectrum or with factors take place.
LAST_RADICES = (8, 4)


# -------------------------------------------------------------------- butterflies


def butterfly(
    n: int, load: Callable[[int], Complex], store: Callable[[int, Complex], None], sign: int
) -> None:
    """``store(q, sum over i < n of load(i) exp(sign 2 pi i q / n))`` for every q.

    Sizes are 1 to 5, and the double and fourfold of 2 to 5, which are split by Cooley and Tukey's
    algorithm with the factors as constants; the order of loads and stores keeps few values alive.
    """
    if n <= 5:
        for q, value in enumerate(_prime([load(i) for i in range(n)], sign)):
            store(q, value)
        return
    a = 4 if n % 4 == 0 else 2
    # i = i1 b + i2 and q = q1 + a q2: columns of length a, factors W(n)^(i2 q1), rows of length b.
    b = n // a
    if a * b != n or b > 5:
        raise ValueError(f"there is no butterfly of {n} samples.")
    columns = []
    for i2 in range(b):
        column = _prime([load(i1 * b + i2) for i1 in range(a)], sign)
        columns.append([rotate(z, i2 * q1, n, sign) for q1, z in enumerate(column)])
    for q1 in range(a):
        for q2, value in enumerate(_prime([column[q1] for column in columns], sign)):
            store(q1 + a * q2, value)


def _prime(z: Sequence[Complex], sign: int) -> list[Complex]:
    """Transforms of 1 to 5 numbers, 3 and 5 by their symmetry (S. Winograd 1978)."""
    n = len(z)
    if n == 1:
        return list(z)
    if n == 2:
        return [_add(z[0], z[1]), _sub(z[0], z[1])]
    if n == 4:
        even, odd = _add(z[0], z[2]), _add(z[1], z[3])
        less, more = _sub(z[0], z[2]), _times_i(_sub(z[1], z[3]), sign)
        return [_add(even, odd), _add(less, more), _sub(even, odd), _sub(less, more)]
    # Odd lengths: sums carry the cosines, differences the sines.
    half = range(1, n // 2 + 1)
    sums = [_add(z[i], z[n - i]) for i in half]
    differences = [_sub(z[i], z[n - i]) for i in half]
    total = z[0]
    for value in sums:
        total = _add(total, value)
    results: list[Complex] = [total] * n
    for q in half:
        turned = z[0]
        across = None
        for i, plus, minus in zip(half, sums, differences, strict=True):
            turned = _add(turned, _scale(plus, _root(i * q, n)[0]))
            part = _scale(minus, _root(i * q, n)[1])
            across = part if across is None else _add(across, part)
        assert across is not None
        sideways = _times_i(across, sign)
        results[q], results[n - q] = _add(turned, sideways), _sub(turned, sideways)
    return results


def rotate(z: Complex, j: int, n: int, sign: int) -> Complex:
    """``z exp(sign 2 pi i j / n)``, without products where the factor has none."""
    j = j * sign % n
    if 8 * j % n == 0:
        eighth = 8 * j // n
        for _ in range(eighth // 2):
            z = _times_i(z, 1)
        if eighth % 2:
            re, im = z
            z = _scale((re - im, re + im), sqrt(0.5))
        return z
    return multiply(z, _root(j, n))


def multiply(z: Complex, w: Complex) -> Complex:
    """The product."""
    return z[0] * w[0] - z[1] * w[1], z[0] * w[1] + z[1] * w[0]


def multiply_conjugate(z: Complex, w: Complex) -> Complex:
    """The product with the conjugate of ``w``."""
    return z[0] * w[0] + z[1] * w[1], z[1] * w[0] - z[0] * w[1]


def _add(a: Complex, b: Complex) -> Complex:
    return a[0] + b[0], a[1] + b[1]


def _sub(a: Complex, b: Complex) -> Complex:
    return a[0] - b[0], a[1] - b[1]


def _scale(z: Complex, factor: float) -> Complex:
    return z[0] * factor, z[1] * factor


def _times_i(z: Complex, sign: int) -> Complex:
    return (-z[1], z[0]) if sign > 0 else (z[1], -z[0])


# -------------------------------------------------------------------- stages


class Stage(NamedTuple):
    """``blocks`` runs of ``radix * sub`` samples, each with ``sub`` butterflies."""

    radix: int
    sub: int
    blocks: int


@lru_cache(maxsize=1024)
def factors(n: int) -> tuple[int, ...] | None:
    """The fewest radices whose product is n, the most alike of those; None if there are none.

    The last is of ``LAST_RADICES``, the first of these if there is a choice.
    """
    best: tuple[tuple[int, int, int], tuple[int, ...]] | None = None
    for place, last in enumerate(LAST_RADICES):
        rest = _fewest(n // last, max(RADICES)) if n % last == 0 else None
        if rest is not None:
            rank = (len(rest), sum(rest) + last, place)
            if best is None or rank < best[0]:
                best = rank, (*rest, last)
    return best[1] if best is not None else None


@lru_cache(maxsize=4096)
def _fewest(n: int, largest: int) -> tuple[int, ...] | None:
    if n == 1:
        return ()
    best: tuple[int, ...] | None = None
    for radix in RADICES:
        if radix <= largest and n % radix == 0:
            rest = _fewest(n // radix, radix)
            if rest is not None:
                found = (radix, *rest)
                if best is None or (len(found), sum(found)) < (len(best), sum(best)):
                    best = found
    return best


def stages(radices: Sequence[int]) -> list[Stage]:
    """The stages of a transform of ``prod(radices)`` samples, in forward order."""
    found, blocks = [], 1
    for place, radix in enumerate(radices):
        found.append(Stage(radix, prod(radices[place + 1 :]), blocks))
        blocks *= radix
    return found


def frequencies(radices: Sequence[int]) -> np.ndarray[Any, Any]:
    """The frequency that each place holds after the forward stages."""
    order = np.zeros(1, np.int64)
    for radix in reversed(radices):
        order = (np.arange(radix)[:, None] + radix * order).reshape(-1)
    return order


# -------------------------------------------------------------------- factors


def roots(numerators: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    """``exp(-2 pi i j / n)`` in float64 for integers j and n < 2**26, rounded almost correctly.

    Angles are reduced exactly, in integers, to the first octant.  What is lost in rounding them is
    computed beside (T. Dekker, "A floating-point technique for extending the available precision",
    Numer. Math. 18, 1971) and added to first order.
    """
    j = np.asarray(numerators, np.int64) % n
    octant, rest = np.divmod(8 * j, n)
    part = np.where(octant % 2, n - rest, rest).astype(np.float64)
    ratio = part / n
    head = _head(ratio)
    missing = (part - head * n - (ratio - head) * n) / n
    angle = ratio * QUARTER[0]
    error = head * _HEAD_OF_QUARTER - angle + (ratio - head) * _HEAD_OF_QUARTER
    error = error + ratio * (QUARTER[0] - _HEAD_OF_QUARTER)
    error = error + missing * QUARTER[0] + ratio * QUARTER[1]
    c, s = np.cos(angle), np.sin(angle)
    c, s = c - error * s, s + error * c
    diagonal = part == n  # where both parts are the same number
    c, s = np.where(diagonal, sqrt(0.5), c), np.where(diagonal, sqrt(0.5), s)
    swap = (octant % 4 == 1) | (octant % 4 == 2)
    re, im = np.where(swap, s, c), np.where(swap, c, s)
    re = np.where((octant >= 2) & (octant < 6), -re, re)
    im = np.where(octant >= 4, im, -im)
    return re + 1j * im


def _head(values: Any) -> Any:
    """The upper 26 bits of each number, so that products of two heads are exact."""
    large = values * (2.0**27 + 1)
    return large - (large - values)


# A quarter of pi to 106 bits: float64 and what it leaves.
QUARTER = (pi / 4, 1.2246467991473532e-16 / 4)
_HEAD_OF_QUARTER = _head(QUARTER[0])


@lru_cache(maxsize=256)
def _root(j: int, n: int) -> tuple[float, float]:
    """Cosine and sine of ``2 pi j / n``."""
    root = roots(np.array(j), n)
    return float(root.real), -float(root.imag)


def twiddles(stage: Stage) -> np.ndarray[Any, Any]:
    """``W(radix sub)^(j q)`` for the butterflies j and the outputs q = 1 ... radix - 1."""
    j, q = np.arange(stage.sub)[:, None], np.arange(1, stage.radix)[None, :]
    return roots(j * q, stage.radix * stage.sub)

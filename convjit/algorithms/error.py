"""The error model: what the dispatcher filters on, and what the tests assert.

The error of a result is measured as

    max |computed - exact|  /  max (|x| * |w|),

the largest error over the largest *sum of magnitudes*: against the result itself not even direct
summation has a bound where terms cancel.  ``u`` is the unit roundoff of the arithmetic, ``R`` the
number of products summed for one result, ``C`` those of them that one frequency or Winograd point
sums.

The bound is statistical (N. Higham and T. Mary, "A new approach to probabilistic rounding error
analysis", SIAM J. Sci. Comput. 41(5), 2019): rounding errors are independent, of mean zero and of
root mean square ``RHO * u`` relative to what is rounded; operands are independent, of mean zero
and of one scale, like the normal data of the tests.  Then, with products of unit variance and a
mean magnitude of 2/pi (:data:`MEAN_MAGNITUDE`):

*Summation* in sequence rounds partial sums of variance 1, 2, ... R: the error's variance is
``(RHO u)**2 R**2 / 2``, so the relative error does not grow with R; but it varies with the walk
that the partial sums take (:func:`wandering`).  Where no accumulator sums more than b products
(``Numerics.chain``), and the ``R / b`` sums are then summed, it is ``R (b + R / b) / 2``.

*Summation by tensor cores* (``Numerics.cut``) adds b products to the sum at once: all are aligned
to the largest, what is below its last place is cut off, and from the result too (M. Fasi,
N. Higham, M. Mikaitis, S. Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Comput.
Sci. 7:e330, 2021, sec. 3; as if no extra bits were kept, which is the least accurate of what they
found).  Each of the b + 2 cuts has :data:`CUT_RMS` times the root mean square of a rounding,
relative to a sum of variance ``b k`` or to a product that exceeds it.  They are towards zero, but
of products, which have either sign: the sum itself, a multiple of its last place, is cut only where
it grows beyond a power of 2, so that no bias grows with R.  Of operands that have fewer digits
(``Numerics.operands``) the first is cut off too, the second, which is packed before, is rounded.

*Winograd*: every product is an intermediate whose relative error is that of the transforms
(``DATA_ROUNDINGS`` per axis), of the packed weights (one) and of its own sum (``C / 2``); the
output transform amplifies them by :func:`convjit.algorithms.winograd.amplification` per axis.

*FFT*: each of three transforms of L points errs by ``sqrt(FFT_ROUNDINGS log2 L)`` roundings in the
Euclidean norm (J. Schatzman, "Accuracy of the discrete Fourier transform and the fast Fourier
transform", SIAM J. Sci. Comput. 17(5), 1996), and more with factors of 3
(``FFT_ROUNDINGS_OF_THREES``), spread evenly over the tile, so that an output errs by that times
``|x_tile| |w| / sqrt(L)``.

The bound is the root mean square times :func:`deviations` (the quantile that all the results
together exceed with probability :data:`FAILURE`) times :data:`SAFETY`.

``worst_case=True`` drops the assumptions on the operands: any scales, signs and constants, where
every error of a sum may have the same sign (``R u``, N. Higham, "Accuracy and Stability of
Numerical Algorithms", 2nd ed. 2002, sec. 3.1).  For the transforms it uses, over a tile and the N
positions in which the kernel meets it, ``max (|x| * |w|) >= |x_tile| |w| / sqrt(N)`` (the largest
is at least the mean square; squares of sums of magnitudes exceed sums of squares).  One thing is
left out, because a transform has no such bound: a large sample that meets only small weights (at
the image's edge, or between the steps of a stride) spreads an error over its tile that the sum of
magnitudes does not know.
"""

from __future__ import annotations

from functools import lru_cache
from math import log, log2, pi, prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from convjit import precision
from convjit.algorithms import geometry, winograd
from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction

# Root mean square of the relative error of one rounding, in units of u: uniform on half a unit in
# the last place, mantissas distributed as 1/m on [1, 2): sqrt(1/3 * E[m**-2]), E = 3 / (8 ln 2).
RHO = sqrt(1 / (8 * log(2)))

# E|x| E|w| of independent normal operands of unit variance.
MEAN_MAGNITUDE = 2 / pi

# Fitted by ``python -m convjit.algorithms.fit_error`` (which prints them beside these) on normal
# float32 data, NumPy 2.4: roundings that act like independent ones, in mean square.
#
#   data and output transform together, per transformed axis, 2-D:
#       F(2,3) 2.1   F(4,3) 2.7   F(6,3) 3.8   F(2,5) 1.9   F(4,5) 3.4   (1-D: less, F(6,3) 3.2)
#   one real FFT (pocketfft), per factor of 2 in the length:
#       64: 0.89   1024: 0.97   4096: 1.0   15360: 1.3   256x256: 1.0   32x32x32: 1.1
DATA_ROUNDINGS = 3.5
FFT_ROUNDINGS = 1.1

# A factor of 3 in the length multiplies by sin(60 degrees), whose rounding error is the same in
# every butterfly, so that those of b factors add up instead of cancelling.  It is 0.52 u in float64
# (0.30 u in float32).  A stage of butterflies of 3 triples the squared norm; the error is in two of
# three outputs, times a difference of two inputs: relative to the output
# (2 * 0.52**2 * sin(60)**2 * 2 / 9) u**2 = 0.09 u**2 = 0.5 (RHO u)**2, and b**2 of them together.
FFT_ROUNDINGS_OF_THREES = 0.5

# Chance that any of the results of one call exceeds the bound, under the model's assumptions, and
# the factor for what the model leaves out (the spread of the sum of magnitudes, of the weights'
# norms over the channels, dependence between roundings).
FAILURE = 1e-4
SAFETY = 1.5

# Root mean square of what is cut off over that of a rounding: uniform on a unit in the last place
# instead of half a one to either side.
CUT_RMS = 2.0

# Square of the largest of a few normal products, which decides the last place of the first sums.
FIRST_PRODUCTS = 4.0


def error_bound(spec: ConvSpec, numerics: Numerics, *, worst_case: bool = False) -> float:
    """Bound on ``max |error| / max (|x| * |w|)`` of a solver's result.

    Parameters
    ----------
    spec : ConvSpec
        The problem as the solver gets it.
    numerics : Numerics
        How the solver rounds.
    worst_case : bool
        Hold for operands of any sign and scale, not for random ones alone (see the module).

    Returns
    -------
    float
        0 for exact methods and for sums of integers.
    """
    return _error_bound(spec.replace(strided=False), numerics, worst_case)


@lru_cache(maxsize=4096)
def _error_bound(spec: ConvSpec, numerics: Numerics, worst_case: bool) -> float:
    arithmetic = numerics.accumulate or precision.accumulator_dtype(spec.dtype)
    if numerics.method == "exact" or arithmetic in precision.INTEGER or spec.is_empty:
        return 0.0
    u = precision.UNIT_ROUNDOFF[arithmetic]
    u_operands = precision.UNIT_ROUNDOFF[numerics.operands] if numerics.operands else 0.0
    if numerics.method in ("direct", "gemm"):
        bound = _summation(spec, numerics, u, u_operands, worst_case)
    elif numerics.method == "winograd":
        bound = _winograd(spec, numerics, u, u_operands, worst_case)
    elif numerics.method == "fft":
        bound = _fft(spec, numerics, u, u_operands, worst_case)
    else:
        raise ValueError(f"method={numerics.method!r} has no error model.")
    if spec.dtype in precision.COMPLEX:
        bound *= COMPLEX_FACTOR
    bound += _final_rounding(spec, arithmetic, worst_case)
    if spec.activation is not None and spec.activation[0] == "leaky_relu":
        _, *slope = spec.activation
        bound *= max(1.0, *map(abs, slope))  # the other activations never increase errors
    return bound


# |fl(z w) - z w| <= sqrt(5) u |z w| for complex factors (R. Brent, C. Percival, P. Zimmermann,
# "Error bounds on complex floating-point multiplication", Math. Comp. 76, 2007).
COMPLEX_FACTOR = sqrt(5)


def deviations(results: int) -> float:
    """Standard deviations that none of ``results`` normal errors exceeds, but for FAILURE."""
    return sqrt(2 * log(2 * max(results, 1) / FAILURE))


def reduction(spec: ConvSpec) -> int:
    """Products summed for the result that sums most, those with a zero border left out."""
    taps = _taps(spec)
    if spec.direction is Direction.WEIGHT_GRAD:
        return spec.batch * prod(taps)
    channels = spec.out_channels if spec.computes_input else spec.in_channels
    return channels // max(spec.groups, 1) * prod(taps)


def _taps(spec: ConvSpec) -> tuple[int, ...]:
    """Per axis, how many products meet in the result that sums most."""
    return tuple(max(1, _taps_along(spec, axis)) for axis in range(spec.ndim))


def _taps_along(spec: ConvSpec, axis: int) -> int:
    n, m, k = spec.in_size[axis], spec.out_size[axis], spec.kernel_size[axis]
    s, d = spec.stride[axis], spec.dilation[axis]
    zeros = spec.pad_mode == "zeros"
    if spec.direction is Direction.FORWARD:
        return min(k, -(-n // d)) if zeros else k
    if spec.direction is Direction.WEIGHT_GRAD:
        return min(m, n) if zeros else m
    if zeros:
        return min(m, k if d > 1 else -(-k // s))
    # The border folds back: samples near it also collect what belongs to the positions beyond.
    lo = spec.padding[axis][0]
    reads = np.add.outer(np.arange(m) * s, np.arange(k) * d).ravel()
    collected = np.zeros(n, np.int64)
    for position, count in enumerate(np.bincount(reads)):
        source = geometry.source_index(position - lo, n, spec.pad_mode)
        if source is not None:
            collected[source] += count
    return int(collected.max())


def _summation(
    spec: ConvSpec, numerics: Numerics, u: float, u_operands: float, worst_case: bool
) -> float:
    terms = reduction(spec)
    additions = terms - 1 + spec.bias
    rigorous = (additions + 1) * u + 2 * u_operands
    first = CUT_RMS if numerics.cut else 1.0  # of the first operand, over a rounding
    steps = -(-terms // numerics.cut) if numerics.cut else 0
    if numerics.cut:
        # To cut off loses a unit in the last place, twice what rounding does.
        rigorous = 2 * u * (steps * (numerics.cut + 2) + spec.bias) + (2 + 1) * u_operands
    if worst_case:
        return rigorous
    # One rounding of each product, and of the partial sums.
    partial = _partial_sums(terms, numerics.chain)
    variance = (RHO * u) ** 2 * (terms + partial + spec.bias * terms)
    if numerics.cut:
        sums = numerics.cut * _triangle(steps) + FIRST_PRODUCTS * steps
        cuts = CUT_RMS**2 * (numerics.cut + 2) * sums
        variance = (RHO * u) ** 2 * (cuts + spec.bias * terms)
    variance += (first**2 + 1) * (RHO * u_operands) ** 2 * terms
    rms = sqrt(variance) / terms
    tail = wandering(_results(spec)) * rms / MEAN_MAGNITUDE
    return min(rigorous, max(tail, _quantile(spec, rms)))


def wandering(results: int) -> float:
    """Root mean squares that no error of ``results`` sequential sums exceeds, but for FAILURE.

    The partial sums that are rounded are a random walk W, so that the error's own variance is
    random: in units of ``RHO u R`` it is the integral of ``W**2`` over [0, 1], of mean 1/2.  As
    ``E exp(a**2 / 2 * integral) = cos(a) ** (-1/2)`` (R. Cameron and W. Martin, "Transformations
    of Wiener integrals under a general class of linear transformations", Trans. AMS 58, 1945), the
    error exceeds t of those units with a probability below ``exp(-pi t / 2)`` (the factor before
    it is ``(4 / pi**1.5) / sqrt(t) < 1``): a heavier tail than a normal error's.
    """
    return sqrt(2) * 2 / pi * log(max(results, 1) / FAILURE)


def _partial_sums(terms: float, chain: int = 0) -> float:
    """The summed variances of all partial sums that are rounded, of ``terms`` unit variances.

    They are 2, 3, ... b in each of the chains, then 2 b, 3 b, ... R of the chains' sums.
    """
    b = min(chain or terms, terms)
    chains = terms / b
    return chains * (_triangle(b) - 1) + b * (_triangle(chains) - 1)


def _triangle(terms: float) -> float:
    """1 + 2 + ... + terms: the summed variances of the partial sums of unit variances."""
    return terms * (terms + 1) / 2


def amplification(spec: ConvSpec, numerics: Numerics) -> float:
    """How much larger than their sum a solver's products are, in the mean square (1: not at all).

    Of all axes together, see :func:`convjit.algorithms.winograd.amplification`.
    """
    if numerics.method != "winograd":
        return 1.0
    adjoint = spec.direction is Direction.WEIGHT_GRAD
    amplify = winograd.adjoint_amplification if adjoint else winograd.amplification
    return prod(amplify(m, r) for m, r in _transformed(spec, numerics))


def _transformed(spec: ConvSpec, numerics: Numerics) -> list[tuple[int, int]]:
    """(m, r) of the axes that are transformed."""
    tiles = (1,) * (spec.ndim - len(numerics.tile)) + numerics.tile[-spec.ndim :]
    return [(m, r) for m, r in zip(tiles, spec.kernel_size, strict=True) if m > 1 and r > 1]


def _winograd(
    spec: ConvSpec, numerics: Numerics, u: float, u_operands: float, worst_case: bool
) -> float:
    """``R`` products in ``C = R / taps`` per point, of which each axis makes n from m and r."""
    axes = _transformed(spec, numerics)
    adjoint = spec.direction is Direction.WEIGHT_GRAD
    amplified = amplification(spec, numerics)
    # Products that one result sums through the tile: its taps, or in the weights' gradient the
    # outputs of the tile.
    inside = prod(m if adjoint else r for m, r in axes)
    terms = reduction(spec)
    channels = max(1.0, terms / inside)
    roundings = 1 + DATA_ROUNDINGS * len(axes)
    if worst_case:
        meets = prod(m + 2 * (r - 1) for m, r in axes)
        transforms = deviations(_results(spec)) * RHO * sqrt(roundings) * SAFETY
        sums = (channels + spec.bias) * u + 2 * u_operands
        return (transforms * u + sums) * amplified * sqrt(meets)
    sums = (1 + _partial_sums(channels, numerics.chain)) / channels
    variance = (RHO * u) ** 2 * (roundings + sums + spec.bias)
    variance += 2 * (RHO * u_operands) ** 2
    rms = amplified * sqrt(channels * variance)
    return _quantile(spec, rms / terms) * _few_products(spec, terms)


def _fft(
    spec: ConvSpec, numerics: Numerics, u: float, u_operands: float, worst_case: bool
) -> float:
    """Errors of the spectra, even over the tile; ``C`` products are summed per frequency."""
    points = max(prod(numerics.tile), 2)
    terms = reduction(spec)
    channels = max(1.0, terms / prod(_taps(spec)))
    roundings = 1 + 3 * _transform_roundings(points)
    if worst_case:
        transforms = deviations(_results(spec)) * RHO * sqrt(roundings) * SAFETY
        return transforms * u + (channels + spec.bias) * u + 2 * u_operands
    variance = (RHO * u) ** 2 * (roundings + _triangle(channels) / channels + spec.bias)
    variance += 2 * (RHO * u_operands) ** 2
    return _quantile(spec, sqrt(terms * variance) / terms) * _few_products(spec, terms)


def _transform_roundings(points: int) -> float:
    """Roundings that act like the errors of one transform, in mean square."""
    threes, rest = 0, points
    while rest % 3 == 0:
        threes, rest = threes + 1, rest // 3
    return FFT_ROUNDINGS * log2(points) + FFT_ROUNDINGS_OF_THREES * float(threes**2)


def _results(spec: ConvSpec) -> int:
    return prod(spec.result_shape)


def _quantile(spec: ConvSpec, rms_per_term: float) -> float:
    """The bound that belongs to a root mean square error of ``R * rms_per_term``."""
    return SAFETY * deviations(_results(spec)) * rms_per_term / MEAN_MAGNITUDE


def _few_products(spec: ConvSpec, terms: int) -> float:
    """Allowance for few products, whose sum of magnitudes may lie far below its mean.

    A transform's error follows the tile, not the products that count.  The exponent and the factor
    follow the 1e-3 quantile of the mean of ``products`` magnitudes ``|x w|`` of normal numbers:
    2e-4, 0.02, 0.1 and 0.4 of the mean for 1, 2, 4 and 10 of them.
    """
    products = float(terms * _results(spec))
    return 1.0 + 5000.0 / float(products**4.5)


def _final_rounding(spec: ConvSpec, arithmetic: str, worst_case: bool) -> float:
    """Rounding to a result narrower than the arithmetic.

    It is relative to the result, whose largest deviation is that of R products of unit variance.
    """
    u = precision.UNIT_ROUNDOFF.get(spec.dtype, 0.0)
    if u <= precision.UNIT_ROUNDOFF[arithmetic]:
        return 0.0
    if worst_case:
        return u
    terms = reduction(spec) + spec.bias
    return u * min(1.0, _quantile(spec, 1 / sqrt(terms)))


# ------------------------------------------------------------------------------ measurement


def relative_error(
    spec: ConvSpec,
    result: npt.NDArray[Any],
    expected: npt.NDArray[Any],
    magnitudes: npt.NDArray[Any],
) -> float:
    """The measured counterpart of :func:`error_bound`.

    Parameters
    ----------
    spec : ConvSpec
    result : array, spec.result_shape
    expected, magnitudes : arrays, spec.result_shape
        What :mod:`convjit.algorithms.oracle` gives.

    Returns
    -------
    float
        0 for equal results; inf for a wrong shape, for a NaN or an Inf that is not expected or is
        missing, and for any difference where all magnitudes are zero.
    """
    if result.shape != expected.shape:
        return float("inf")
    if result.size == 0:
        return 0.0
    if spec.dtype in precision.INTEGER:
        if np.array_equal(result, expected):
            return 0.0
        difference = np.abs(result.astype(np.float64) - expected.astype(np.float64))
        # Two int64 that differ may be one float64.
        return _ratio(max(float(difference.max()), 1.0), magnitudes)
    wide = np.complex128 if spec.dtype in precision.COMPLEX else np.float64
    with np.errstate(all="ignore"):
        rounded = np.asarray(expected).astype(result.dtype).astype(wide)  # may overflow, rightly
        result, expected = result.astype(wide), np.asarray(expected).astype(wide)
        finite = np.isfinite(result) & np.isfinite(expected)
        agree = (result == rounded) | (np.isnan(result) & np.isnan(rounded))
        if wide is np.complex128:
            # Products of infinities give any mixture of Inf and NaN parts: both stand for "not
            # finite".
            agree |= ~np.isfinite(result) & ~np.isfinite(rounded)
        if not np.all(finite | agree):
            return float("inf")
        difference = np.abs(np.where(finite, result - expected, 0))
    largest = float(difference.max())
    return 0.0 if largest == 0 else _ratio(largest, magnitudes)


def _ratio(difference: float, magnitudes: npt.NDArray[Any]) -> float:
    finite = magnitudes[np.isfinite(magnitudes)]
    scale = float(finite.max()) if finite.size else 0.0
    return difference / scale if scale > 0 else float("inf")

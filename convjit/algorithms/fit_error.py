"""Fit the constants of the error model, and search Winograd points.

Run ``python -m convjit.algorithms.fit_error`` for the constants of
:mod:`convjit.algorithms.error` beside what normal float32 data measure, and
``python -m convjit.algorithms.fit_error points`` for the search behind the default points of
:mod:`convjit.algorithms.winograd`.  Both take under a minute, and are seeded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations
from math import log2, prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from convjit.algorithms import error, winograd
from convjit.algorithms.composed_winograd import ComposedWinograd
from convjit.algorithms.oracle import oracle
from convjit.precision import UNIT_ROUNDOFF
from convjit.spec import ConvSpec

Array = npt.NDArray[Any]

UNIT = UNIT_ROUNDOFF["float32"]
# Magnitudes of the points tried, of few significant bits: their powers are exact.
CANDIDATES = tuple(
    map(Fraction, ("1/4", "3/8", "1/2", "5/8", "3/4", "1", "5/4", "3/2", "2", "5/2", "3", "4"))
)
# Asymmetric sets are searched among these, with either sign.
FEW_CANDIDATES = tuple(map(Fraction, ("1/4", "1/2", "3/4", "1", "3/2", "2", "3", "4")))


# ------------------------------------------------------------------------------ constants


def sequential_sum(products: Array) -> Array:
    """Sums along axis 0 in the order of the axis, rounded at every addition."""
    total = np.zeros(products.shape[1:], products.dtype)
    for row in products:
        total += row
    return total


def fit_rho(terms: int = 4096, samples: int = 512, seed: int = 0) -> float:
    """RHO from the error of sequential sums: variance ``(RHO u)**2 (R + R**2 / 2)`` of R terms."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((2, terms, samples)).astype(np.float32)
    exact = (x.astype(np.float64) * w).sum(axis=0)
    errors = sequential_sum(x * w) - exact
    return float(sqrt(np.mean(errors**2) / (terms + terms**2 / 2))) / UNIT


def fit_data_roundings(m: int, r: int, ndim: int, channels: int, seed: int = 0) -> float:
    """DATA_ROUNDINGS from the outputs of a tile that err most.

    Their error has the variance ``(RHO u A)**2 C (1 + DATA_ROUNDINGS ndim + C / 2)``.
    """
    rng = np.random.default_rng(seed)
    tiles = {1: 200, 2: 10, 3: 3}[ndim]
    size = (m * tiles + r - 1,) * ndim
    taps = (r,) * ndim
    spec = ConvSpec.forward((8, channels, *size), (8, channels, *taps))
    x = rng.standard_normal(spec.x_shape).astype(np.float32)
    w = rng.standard_normal(spec.w_shape).astype(np.float32)
    result = _run(ComposedWinograd(np, spec, m), spec, x, w)
    square = (result - oracle(spec, x, w)) ** 2
    tiled = square.reshape(spec.batch, spec.out_channels, *(s for _ in taps for s in (tiles, m)))
    within = tuple(3 + 2 * axis for axis in range(ndim))
    mean = tiled.mean(axis=tuple(a for a in range(tiled.ndim) if a not in within))
    amplified = (error.RHO * UNIT * winograd.amplification(m, r) ** ndim) ** 2 * channels
    return float((mean.max() / amplified - 1 - (channels + 1) / 2) / ndim)


def fit_fft_roundings(lengths: tuple[int, ...], seed: int = 0) -> float:
    """FFT_ROUNDINGS from one transform of normal data and its inverse."""
    rng = np.random.default_rng(seed)
    count = max(1, 2**18 // prod(lengths))
    x = rng.standard_normal((count, *lengths)).astype(np.float32)
    axes = tuple(range(1, 1 + len(lengths)))
    spectrum = np.fft.rfftn(x, axes=axes)
    back = np.fft.irfftn(spectrum, s=lengths, axes=axes)
    square = float(np.mean((back - x.astype(np.float64)) ** 2))
    return square / (error.RHO * UNIT) ** 2 / (2 * log2(prod(lengths)))


def _run(executable: ComposedWinograd, spec: ConvSpec, x: Array, w: Array) -> Array:
    out = np.empty(spec.result_shape, x.dtype)
    workspace = np.empty(executable.workspace, np.uint8)
    executable.run(x, executable.pack(w), None, out, workspace)
    return out


def report() -> Iterator[str]:
    """What is measured beside what the model uses, line by line."""
    yield f"RHO                   derived {error.RHO:.3f}   measured {fit_rho():.3f}"
    for m, r, ndim, channels in (
        (2, 3, 1, 1), (2, 3, 2, 1), (2, 3, 2, 4), (4, 3, 1, 1), (4, 3, 2, 1), (4, 3, 2, 4),
        (4, 3, 3, 1), (6, 3, 1, 1), (6, 3, 2, 1), (6, 3, 2, 4), (2, 5, 2, 1), (4, 5, 2, 1),
    ):  # fmt: skip
        measured = fit_data_roundings(m, r, ndim, channels)
        name = f"F({m},{r}) {ndim}-D C={channels}"
        yield f"DATA_ROUNDINGS        used {error.DATA_ROUNDINGS:.2f}   {name:<16} {measured:.2f}"
    for lengths in ((64,), (1024,), (4096,), (15360,), (64, 64), (256, 256), (32, 32, 32)):
        measured = fit_fft_roundings(lengths)
        name = "x".join(map(str, lengths))
        yield f"FFT_ROUNDINGS         used {error.FFT_ROUNDINGS:.2f}   {name:<16} {measured:.2f}"


# --------------------------------------------------------------------------------- points


def amplification_of(m: int, r: int, points: Sequence[Fraction]) -> float:
    """The amplification of F(m, r) for given points, in floating point for the search's sake."""
    p = [float(q) for q in points]
    rows: list[list[float]] = []
    for i, at in enumerate(p):
        others = p[:i] + p[i + 1 :]
        data = np.poly(others)
        taps = sum(at ** (2 * j) for j in range(r)) / prod(at - q for q in others) ** 2
        energy = float(data @ data) * taps
        rows.append([at ** (2 * j) * energy for j in range(m)])
    last = np.poly(p)
    rows.append([0.0] * (m - 1) + [float(last @ last)])
    return sqrt(max(map(sum, zip(*rows, strict=True))))


def search_points(m: int, r: int, keep: int = 3) -> list[tuple[float, tuple[Fraction, ...]]]:
    """The sets of points with the least amplification: symmetric ones, or (if few) all."""
    count = m + r - 2
    sets: list[tuple[Fraction, ...]] = []
    if count % 2:
        for chosen in combinations(CANDIDATES, count // 2):
            sets.append((Fraction(0), *(s * q for q in chosen for s in (1, -1))))
    if count <= 6:
        signed = [s * q for q in FEW_CANDIDATES for s in (1, -1)]
        sets += [(Fraction(0), *chosen) for chosen in combinations(signed, count - 1)]
    ranked = sorted((amplification_of(m, r, points), points) for points in sets)
    return ranked[:keep]


def points_report() -> Iterator[str]:
    """The default points of each size beside the best found."""
    for m, r in ((2, 2), (2, 3), (3, 3), (4, 3), (5, 3), (6, 3), (8, 3), (2, 5), (3, 5), (4, 5)):
        default = winograd.default_points(m, r)
        yield f"F({m},{r})  default {_text(default)}: {winograd.amplification(m, r):.2f}"
        for value, points in search_points(m, r) if (m + r) % 2 or m + r <= 8 else ():
            yield f"        {value:7.2f}  {_text(points)}"


def _text(points: Sequence[Fraction]) -> str:
    return "(" + ", ".join(map(str, points)) + ")"


def main(arguments: Sequence[str]) -> None:
    """Print the report that the arguments ask for."""
    for line in points_report() if "points" in arguments else report():
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The layers of real networks, every element, for each compiled solver.

Block sizes grow with the problem, so that only problems of real size take every path of a kernel:
several blocks of channels, of rows and of columns, with edges in each.  Of layers that differ in
sizes alone the one with most to compute and the one with most channels are tried, all of them by
``-m exhaustive``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import convjit
from convjit.algorithms.error import error_bound, relative_error
from convjit.bench.cases import layer_spec, networks
from convjit.bench.verify import operands
from convjit.precision import Numerics
from convjit.spec import ConvSpec, Direction

SOLVERS = ("numba.direct", "numba.gemm")
LAYERS = sorted({str(layer_spec(layer)) for layers in networks().values() for layer in layers})


def tiers() -> Iterator[Any]:
    """Every layer, most of them for the exhaustive tier."""
    kinds: dict[tuple[Any, ...], list[ConvSpec]] = {}
    for spec in map(ConvSpec.parse, LAYERS):
        kind = spec.direction, spec.w_shape[2:], spec.stride, spec.dilation, spec.is_depthwise
        kinds.setdefault(kind, []).append(spec)
    for alike in kinds.values():
        tried = {max(alike, key=lambda s: s.macs), max(alike, key=lambda s: s.x_shape[1])}
        for spec in alike:
            marks = () if spec in tried else (pytest.mark.exhaustive,)
            yield pytest.param(str(spec), marks=marks)


def by_scipy(spec: ConvSpec, lhs, rhs, bias):
    """The result in float64, by matrix products or, where those are slivers, tap by tap."""
    solver = "scipy.direct" if spec.groups > 8 else "scipy.gemm"
    wide = [None if a is None else a.astype(np.float64) for a in (lhs, rhs, bias)]
    return call(spec.replace(dtype="float64"), *wide, algorithm=solver)


def call(spec: ConvSpec, lhs, rhs, bias, **choice):
    options = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "nonfinite": "spread",
    }
    if spec.direction is Direction.TRANSPOSED:
        options["output_size"] = spec.in_size
        return convjit.conv_transpose(lhs, rhs, bias, **options, **choice)
    return convjit.conv(lhs, rhs, bias, **options, **choice)


def compare(spec: ConvSpec, solvers=SOLVERS) -> None:
    lhs, rhs, bias = operands(spec)
    expected = by_scipy(spec, lhs, rhs, bias)
    magnitudes = by_scipy(spec, *(None if a is None else np.abs(a) for a in (lhs, rhs, bias)))
    for solver in solvers:
        result = call(spec, lhs, rhs, bias, algorithm=solver)
        error = relative_error(spec, result, expected, magnitudes)
        assert error <= error_bound(spec, Numerics("direct")), solver


@pytest.mark.slow
@pytest.mark.parametrize("word", list(tiers()))
def test_every_layer(word):
    compare(ConvSpec.parse(word))


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        *((kernel, stride) for kernel in (1, 3) for stride in (1, 2)),
        *((2, 1), (5, 3)),
        *(
            pytest.param(kernel, stride, marks=pytest.mark.exhaustive)
            for kernel, stride in ((1, 3), (2, 2), (2, 3), (3, 3), (5, 1), (5, 2))
        ),
    ],
)
def test_every_width_with_several_blocks_of_channels(kernel, stride):
    """Rows shorter and longer than a tile, whose lanes reach into the padding or the next row."""
    for width in (*range(1, 20), 23, 31, 33, 47, 65):
        size = (width - 1) * stride + 1
        spec = ConvSpec.forward(
            (1, 150, 5 + kernel, size),
            (13, 150, kernel, kernel),
            stride=stride,
            padding=((0, 1), (kernel // 2, (kernel - 1) // 2)),
        )
        compare(spec)

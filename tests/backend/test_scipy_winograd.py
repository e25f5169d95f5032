"""scipy.winograd: what it takes, what it refuses and why, what it counts, and that it is right."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from convjit.algorithms import error
from convjit.algorithms.composed_winograd import ComposedWinograd, blocking, winograd_counts
from convjit.algorithms.oracle import magnitudes, oracle
from convjit.spec import ConvSpec, Direction
from convjit.spi import Feature, Work
from convjit_scipy import ScipyBackend
from convjit_scipy.winograd import WinogradSolver

BACKEND = ScipyBackend()
F = ConvSpec.forward


def solver(m: int) -> Any:
    return next(s for s in BACKEND.solvers() if s.id == f"scipy.winograd.f{m}x3")


def run(executable: Any, spec: ConvSpec, x: Any, w: Any, bias: Any) -> Any:
    """Into memory that is full of NaN, with guarded bytes after the workspace."""
    out = np.full(spec.result_shape, np.nan, spec.dtype)
    workspace = np.full(executable.workspace + 64, 0xFF, np.uint8)
    executable.run(x, executable.pack(w), bias, out, workspace[: executable.workspace])
    assert (workspace[executable.workspace :] == 0xFF).all()
    return out


def operands(spec: ConvSpec) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(spec.dtype) for s in (spec.lhs_shape, spec.rhs_shape))
    bias = rng.standard_normal(spec.result_channels).astype(spec.dtype) if spec.bias else None
    return x, w, bias


SPECS = [
    F((2, 5, 17, 19), (6, 5, 3, 3), padding=1),
    F((2, 6, 17, 19), (4, 3, 3, 3), padding=((1, 0), (0, 2)), groups=2, bias=True),
    F((2, 17, 19, 6), (4, 3, 3, 1), padding=((1, 0), (3, 2)), groups=2, layout="NHWC", flip=True),
    F((3, 4, 1, 1), (4, 4, 3, 3), padding=1, activation=("relu",)),
    F((2, 3, 9, 9), (4, 3, 3, 3), padding=5),
    F((2, 3, 30), (4, 3, 3), padding=1, dtype="float64", activation=("clip", -0.5, 0.5)),
    F((1, 30, 3), (4, 3, 3), layout="NLC", bias=True),
    F((1, 3, 9, 10, 11), (4, 3, 3, 3, 3), padding=1),
    F((1, 3, 9, 10, 11), (4, 3, 3, 1, 3), padding=1, dtype="float64"),
    F((2, 4, 9, 10), (4, 1, 1, 3), groups=4),
]


@pytest.mark.parametrize("kib", [1, 64, 4096])
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_right_in_blocks_of_any_size(spec: ConvSpec, m: int, kib: int) -> None:
    x, w, bias = operands(spec)
    chosen = solver(m)
    assert chosen.refuse(spec, BACKEND.target()) is None
    executable = chosen.plan(spec, BACKEND.target(), (("block_kib", kib),))
    result = run(executable, spec, x, w, bias)
    numerics = chosen.estimate(spec, BACKEND.target()).numerics
    measured = error.relative_error(
        spec, result, oracle(spec, x, w, bias), magnitudes(spec, x, w, bias)
    )
    assert measured <= error.error_bound(spec, numerics)


def test_any_memory_layout_of_x() -> None:
    spec = F((2, 5, 17, 19), (6, 5, 3, 3), padding=1)
    x, w, _ = operands(spec)
    executable = ComposedWinograd(np, spec, 4)
    plain = run(executable, spec, x, w, None)
    reversed_twice = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    assert np.array_equal(run(executable, spec, reversed_twice, w, None), plain)
    broadcast = np.broadcast_to(x[:1], x.shape)
    assert np.array_equal(run(executable, spec, broadcast, w, None)[1], plain[0])


@pytest.mark.parametrize("m", [2, 4, 6])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("kib", [1, 32, 4096])
def test_blocks_cover_every_tile_once(spec: ConvSpec, m: int, kib: int) -> None:
    plan = blocking(spec, m, kib * 2**10)
    seen = np.zeros((spec.batch, *plan.counts), int)
    for images, tiles in plan.blocks(spec):
        assert images.stop - images.start <= plan.images
        assert all(t.stop - t.start <= b for t, b in zip(tiles, plan.tiles, strict=True))
        seen[(images, *tiles)] += 1
    assert (seen == 1).all()
    assert plan.count(spec) == sum(1 for _ in plan.blocks(spec))
    for count, t, outputs in zip(plan.counts, plan.axes, spec.out_size, strict=True):
        assert (count - 1) * t.m < outputs <= count * t.m


def test_workspace_follows_the_budget() -> None:
    """A block's tiles and products fit the budget, what surrounds them is of the same order."""
    spec = F((8, 64, 224, 224), (64, 64, 3, 3), padding=1)
    for kib in (1024, 4096, 16384):
        workspace = ComposedWinograd(np, spec, 4, kib * 2**10).workspace
        assert workspace <= 3 * kib * 2**10
        assert workspace == winograd_counts(spec, 4, kib * 2**10).workspace


def test_counts() -> None:
    """56x56, 64 channels, F(4, 3): 14x14 tiles of 36 products."""
    spec = F((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    counts = winograd_counts(spec, 4)
    assert counts.multiply == 2 * 14 * 14 * 36 * 64 * 64
    assert counts.multiply == spec.flops / 4
    # BT is 24 flops: along H on 4 (+ 2 shared) columns, along W on 6 rows of points.
    assert counts.data == 14 * 14 * 64 * 24 * (4 + 6)
    assert counts.packed_bytes == 36 * 64 * 64 * 4
    work = solver(4).estimate(spec, BACKEND.target())
    assert isinstance(work, Work)
    assert work.numerics.tile == (4, 4)
    assert work.numerics.spreads_nonfinite
    assert [phase.name for phase in work.phases] == [
        "tiles", "data transform", "gemm", "output transform",
    ]  # fmt: skip


def test_axes_with_one_tap_are_not_transformed() -> None:
    spec = F((1, 8, 10, 30), (8, 8, 1, 3))
    work = solver(4).estimate(spec, BACKEND.target())
    assert work.numerics.tile == (1, 4)
    assert winograd_counts(spec, 4).multiply == 2 * 10 * 7 * 6 * 8 * 8


@pytest.mark.parametrize(
    ("change", "feature", "sentence"),
    [
        ({"stride": (2, 1)}, Feature.STRIDE, "winograd needs stride 1, got 2x1"),
        ({"dilation": (2, 2)}, Feature.DILATION, "winograd needs dilation 1, got 2x2"),
        ({"pad_mode": "reflect"}, Feature.PAD_MODE, "padded with zeros, not reflect"),
        ({"dtype": "complex64"}, Feature.DTYPE, "this is complex64"),
        ({"dtype": "float16"}, Feature.DTYPE, "this is float16"),
        ({"kernel_size": (5, 5)}, Feature.SIZE, r"takes 3 taps per axis \(or 1 on some\), not 5x5"),
        ({"kernel_size": (1, 1)}, Feature.SIZE, "not 1x1"),
        ({"direction": Direction.INPUT_GRAD}, Feature.DIRECTION, "only the forward direction"),
        ({"direction": Direction.WEIGHT_GRAD}, Feature.SIZE, "as many taps as outputs"),
        ({"batch": 0}, Feature.SIZE, "an operand is empty"),
    ],
)
def test_refusals(change: dict[str, Any], feature: Feature, sentence: str) -> None:
    spec = F((1, 8, 16, 16), (8, 8, 3, 3), padding=1).replace(**change)
    refusal = WinogradSolver(4).refuse(spec, BACKEND.target())
    assert refusal is not None
    assert refusal.feature is feature
    assert re.search(sentence, refusal.reason)

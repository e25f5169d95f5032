"""Phases of x as channels: the strided problem's numbers, whatever the sizes."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest

import convjit
from convjit.algorithms.fills import assign
from convjit.algorithms.oracle import oracle
from convjit.algorithms.spacetodepth import SpaceToDepth
from convjit.rules import next_step
from convjit.spec import ConvSpec
from convjit.spi import Feature
from convjit.steps import Step

LAST = {1: "NLC", 2: "NHWC", 3: "NDHWC"}


def strided(seed: int) -> ConvSpec | None:
    """A random problem with a stride; None where the kernel does not fit."""
    rng = np.random.default_rng(seed)
    ndim, groups = int(rng.integers(1, 4)), int(rng.integers(1, 4))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.integers(low, high, ndim))

    kernel, stride, dilation = sizes(1, 8), sizes(1, 5), sizes(1, 4)
    padding, size = tuple(zip(sizes(0, 4), sizes(0, 4), strict=True)), sizes(1, 13)
    last = bool(rng.integers(2))
    x_shape = (2, *size, 2 * groups) if last else (2, 2 * groups, *size)
    try:
        plan = convjit.plan(
            x_shape, (3 * groups, 2, *kernel), stride=stride, dilation=dilation, padding=padding,
            groups=groups, layout=LAST[ndim] if last else None, dtype="float64",
            algorithm="scipy.direct",
        )  # fmt: skip
    except convjit.ConvSpecError:
        return None
    return plan.spec if max(stride) > 1 else None


@pytest.mark.parametrize("first", range(0, 400, 40))
def test_phases_give_the_same(first: int) -> None:
    specs = [spec for spec in map(strided, range(first, first + 40)) if spec is not None]
    assert specs
    for spec in specs:
        split = SpaceToDepth(spec)
        inner = split.inner
        rng = np.random.default_rng(first)
        x, w = rng.standard_normal(spec.x_shape), rng.standard_normal(spec.w_shape)
        inner_x, inner_w = np.full(inner.x_shape, np.nan), np.full(inner.w_shape, np.nan)
        copy = Mock(side_effect=assign)
        split.fill_x(copy, inner_x, x)
        assert copy.call_count == split.copies
        split.fill_w(copy, inner_w, w)
        assert copy.call_count == split.copies + split.phases
        assert inner.y_shape == spec.y_shape
        np.testing.assert_allclose(
            oracle(inner, inner_x, inner_w), oracle(spec, x, w), rtol=1e-10, atol=1e-10
        )
        back = np.full(spec.w_shape, np.nan)
        split.fill_from_w(assign, back, inner_w)
        assert (back == w).all()


@pytest.mark.parametrize(
    ("kernel", "stride", "spreads"), [(4, 2, False), (1, 2, False), (3, 4, False), (3, 2, True)]
)
def test_filled_taps_spread_what_is_not_finite(kernel: int, stride: int, spreads: bool) -> None:
    spec = convjit.plan(
        (1, 3, 9, 9), (4, 3, kernel, kernel), stride=stride, algorithm="scipy.direct"
    ).spec
    step = next_step(Feature.STRIDE, spec)
    assert isinstance(step, Step)
    assert step.name == "space to depth"
    assert step.spreads_nonfinite is spreads
    x = np.zeros(spec.x_shape, np.float32)
    x[0, 0, 3, 3] = np.nan
    inner_x, inner_w = (np.empty(s, np.float32) for s in (step.inner.x_shape, step.inner.w_shape))
    step.fill_lhs(assign, inner_x, x)
    step.fill_rhs(assign, inner_w, np.ones(spec.w_shape, np.float32))
    reached = np.isnan(oracle(step.inner, inner_x, inner_w))
    wanted = np.isnan(oracle(spec, x, np.ones(spec.w_shape, np.float32)))
    assert (reached != wanted).any() == spreads


def test_depthwise_layers_stay_depthwise() -> None:
    spec = convjit.plan((1, 4, 9, 9), (4, 1, 3, 3), stride=2, groups=4).spec
    step = next_step(Feature.STRIDE, spec)
    assert isinstance(step, Step)
    assert step.inner.is_depthwise
    assert step.name == "subsample"


def test_winograd_takes_strided_layers() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 40, 41)).astype(np.float32)
    w = rng.standard_normal((8, 3, 7, 7)).astype(np.float32)
    plan = convjit.plan(x, w, stride=2, padding=3, algorithm="numba.winograd.fmx5")
    assert plan.label == "space to depth + numba.winograd.fmx5"
    exact = convjit.conv(x, w, stride=2, padding=3, precision="exact")
    np.testing.assert_allclose(plan(x, w), exact, atol=2e-4)


@pytest.mark.parametrize(("kernel", "stride"), [(5, 2), (6, 2), (7, 3)])
@pytest.mark.parametrize("flip", [False, True])
def test_flipped_kernels_are_turned_before_their_taps_are_dealt_out(
    kernel: int, stride: int, flip: bool
) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, 9, 11)), rng.standard_normal((3, 2, kernel, kernel))

    def conv(algorithm: str) -> object:
        return convjit.conv(x, w, stride=stride, padding=2, flip=flip, algorithm=algorithm)

    offered = convjit.explain(x, w, stride=stride, padding=2, flip=flip).admitted
    split = {c.solver_id for c in offered if "space to depth" in c.label}
    assert split
    for solver in split:
        np.testing.assert_allclose(conv(solver), conv("scipy.direct"), rtol=1e-9, atol=1e-9)

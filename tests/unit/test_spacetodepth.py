"""Phases of x as channels: the strided problem's numbers, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest

import convjit
from convjit.algorithms.fills import assign
from convjit.algorithms.oracle import oracle
from convjit.algorithms.spacetodepth import SpaceToDepth
from convjit.spec import ConvSpec

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
        split.fill_x(assign, inner_x, x)
        split.fill_w(assign, inner_w, w)
        assert inner.y_shape == spec.y_shape
        np.testing.assert_allclose(
            oracle(inner, inner_x, inner_w), oracle(spec, x, w), rtol=1e-10, atol=1e-10
        )
        back = np.full(spec.w_shape, np.nan)
        split.fill_from_w(assign, back, inner_w)
        assert (back == w).all()

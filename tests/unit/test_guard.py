"""The finite check: the fast algorithm for finite data, a local one for the rest."""

from __future__ import annotations

import numpy as np
import pytest

from convjit.guard import BLOCK, Guarded, is_finite
from convjit.spec import ConvSpec


class Fake:
    """An executable that writes a number and counts what it was asked."""

    def __init__(self, value, workspace=0):
        self.value, self.workspace = value, workspace
        self.packed = self.ran = 0

    def pack(self, rhs):
        self.packed += 1
        return rhs

    def run(self, lhs, packed, bias, out, workspace):
        self.ran += 1
        assert (0 if workspace is None else workspace.nbytes) == self.workspace
        out[...] = self.value


SPEC = ConvSpec.parse("conv_f32_NCHW_n1c1k1g1_i8x8_w3x3")


def guarded(fast, local, spec=SPEC):
    planned = []

    def plan():
        planned.append(1)
        return local

    return Guarded(spec, fast, plan), planned


def run(executable, x, w, spec=SPEC):
    out = np.zeros(spec.result_shape, np.float32)
    executable.run(x, executable.pack(w), None, out, None)
    return out


def test_finite_data_never_plans_the_other():
    fast, local = Fake(1.0), Fake(2.0)
    executable, planned = guarded(fast, local)
    out = run(executable, np.zeros(SPEC.x_shape, np.float32), np.ones(SPEC.w_shape, np.float32))
    assert (out == 1).all()
    assert not planned
    assert local.packed == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_sample_takes_the_other(value):
    fast, local = Fake(1.0), Fake(2.0, workspace=128)
    executable, planned = guarded(fast, local)
    x = np.zeros(SPEC.x_shape, np.float32)
    x[0, 0, 5, 2] = value
    w = np.ones(SPEC.w_shape, np.float32)
    packed = executable.pack(w)
    w[...] = 7  # the caller's memory is not looked at again
    for _ in range(2):
        out = np.zeros(SPEC.result_shape, np.float32)
        executable.run(x, packed, None, out, None)
        assert (out == 2).all()
    assert planned == [1]
    assert fast.ran == 0
    assert local.packed == 1
    assert (packed._given == 1).all()


def test_a_result_that_is_not_finite_is_computed_again():
    executable, _ = guarded(Fake(np.inf), Fake(2.0))
    out = run(executable, np.zeros(SPEC.x_shape, np.float32), np.ones(SPEC.w_shape, np.float32))
    assert (out == 2).all()


def test_an_activation_could_hide_it_so_that_the_weights_are_looked_at():
    spec = SPEC.replace(activation=("clip", 0.0, 1.0))
    w = np.ones(SPEC.w_shape, np.float32)
    w[0, 0, 0, 0] = np.inf
    executable, _ = guarded(Fake(1.0), Fake(2.0), spec)
    assert (run(executable, np.zeros(SPEC.x_shape, np.float32), w, spec) == 2).all()


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 4])
def test_every_block_is_looked_at(place):
    array = np.zeros(2 * BLOCK + 5, np.float32)
    assert is_finite(array)
    array[place] = np.nan
    assert not is_finite(array)
    assert not is_finite(np.repeat(array, 2)[::2])

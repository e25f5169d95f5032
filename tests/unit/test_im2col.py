"""Blocks and index maps of im2col, against the definition of a column."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convjit.algorithms import im2col
from convjit.algorithms.geometry import Range
from convjit.spec import ConvSpec, Direction
from convjit.testing.strategies import specs

SPECS = [
    "conv_f32_NCHW_n5c4k6g2_i9x8_w3x3_p1",
    "conv_f32_NCL_n2c3k2g1_i100_w7_s2",
    "conv_f32_NCDHW_n1c2k2g1_i6x7x8_w2x3x2_p1x0x1",
    "wgrad_f64_NCHW_n4c4k6g1_i9x8_w3x3",
    "conv_f32_NCHW_n3c4k6g1_i5x5_w1x1",
]


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("budget", [1, 1000, 10_000, 2**30])
def test_blocks_cover_every_output_once(text: str, budget: int) -> None:
    spec = ConvSpec.parse(text)
    blocking = im2col.blocking(spec, 4, budget)
    count = np.zeros((spec.batch, *spec.out_size), int)
    blocks = list(blocking.blocks(spec))
    for images, block in blocks:
        assert len(images) <= blocking.images
        count[(slice(*images), *(slice(*r) for r in block))] += 1
    assert (count == 1).all()
    assert len(blocks) == blocking.count(spec)


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("budget", [1, 1000, 10_000, 2**30])
def test_columns_stay_within_the_budget(text: str, budget: int) -> None:
    spec = ConvSpec.parse(text)
    one_output = 4 * im2col.depth(spec) * spec.groups
    assert 4 * im2col.blocking(spec, 4, budget).columns(spec) <= max(budget, one_output)


def test_an_axis_is_cut_only_when_those_after_it_are_whole() -> None:
    spec = ConvSpec.parse("conv_f32_NCHW_n2c1k1g1_i32x32_w1x1_s2")
    assert im2col.blocking(spec, 4, 4 * 64) == im2col.Blocking(1, (4, 16))
    assert im2col.blocking(spec, 4, 4 * 8) == im2col.Blocking(1, (1, 8))
    # 5 rows fit, and 16 are shared out as 4 + 4 + 4 + 4, not as 5 + 5 + 5 + 1.
    assert im2col.blocking(spec, 4, 4 * 80) == im2col.Blocking(1, (4, 16))


def test_images_are_shared_out_evenly() -> None:
    spec = ConvSpec.parse("conv_f32_NCL_n5c1k1g1_i10_w1_s2")
    assert im2col.blocking(spec, 4, 4 * 5 * 4).images == 3
    assert im2col.blocking(spec.replace(direction=Direction.WEIGHT_GRAD), 4, 4 * 5 * 4).images == 1


def test_gemm_shape() -> None:
    spec = ConvSpec.parse("conv_f32_NCHW_n5c4k6g2_i9x8_w3x2_s2x1")
    assert im2col.gemm_shape(spec) == (3, 4 * 7, 2 * 6)
    assert spec.macs == spec.batch * spec.groups * prod(im2col.gemm_shape(spec))


@settings(max_examples=100, deadline=None)
@given(specs(("float32",)), st.data())
def test_slices_of_taps_are_the_index_map(spec: ConvSpec, data: st.DataObject) -> None:
    spec = spec.replace(pad_mode="zeros")
    block = []
    for m in spec.out_size:
        start = data.draw(st.integers(0, m - 1))
        block.append(Range(start, data.draw(st.integers(start + 1, m))))
    taps = im2col.tap_slices(spec, tuple(block))
    assert [t.tap for t in taps] == [
        tuple(k - 1 - t if spec.flip else t for k, t in zip(spec.kernel_size, tap, strict=True))
        for tap in product(*map(range, spec.kernel_size))
    ]
    for place, tap in zip(product(*map(range, spec.kernel_size)), taps, strict=True):
        everywhere = True
        for axis, (start, stop) in enumerate(block):
            n, s, d = spec.in_size[axis], spec.stride[axis], spec.dilation[axis]
            reads = [o * s - spec.padding[axis][0] + place[axis] * d for o in range(start, stop)]
            inside = [(i, r) for i, r in enumerate(reads) if 0 <= r < n]
            everywhere &= len(inside) == len(reads)
            if tap.is_empty:
                continue
            outputs = range(stop - start)[tap.outputs[axis]]
            inputs = range(n)[tap.inputs[axis]]
            assert list(zip(outputs, inputs, strict=True)) == inside
        assert tap.covers == everywhere
    assert im2col.is_interior(spec, tuple(block)) == all(t.covers for t in taps)


def test_a_table_of_taps_and_taps_on_demand_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse("conv_f32_NCHW_n1c1k1g1_i9x8_w3x3_p1")
    blocks = [block for _, block in im2col.blocking(spec, 4, 100).blocks(spec)]
    table = im2col.taps_of_blocks(spec, blocks)
    monkeypatch.setattr(im2col, "KEPT_TAPS", 0)
    computed = im2col.taps_of_blocks(spec, blocks)
    assert [table(b) for b in blocks] == [computed(b) for b in blocks]


def test_window_strides_view_the_columns() -> None:
    spec = ConvSpec.parse("conv_f32_NCHW_n2c3k1g1_i9x8_w3x2_s2x1_d1x3")
    x = np.arange(prod(spec.x_shape), dtype=np.float32).reshape(spec.x_shape)
    shape = (2, 3, *spec.kernel_size, *spec.out_size)
    view = np.lib.stride_tricks.as_strided(x, shape, im2col.window_strides(spec, x.strides))
    for r, s, i, j in product(*map(range, shape[2:])):
        assert np.array_equal(view[:, :, r, s, i, j], x[:, :, 2 * i + r, j + 3 * s])


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("conv_f32_NCHW_n1c4k4g2_i5x5_w1x1", False),
        ("conv_f32_NHWC_n1c4k4g1_i5x5_w1x1", False),
        ("conv_f32_NHWC_n1c4k4g2_i5x5_w1x1", True),
        ("conv_f32_NCHW_n1c4k4g1_i5x5_w1x1_p1", True),
        ("conv_f32_NCHW_n1c4k4g1_i5x5_w1x1_s2", True),
        ("convt_f32_NCHW_n1c4k4g1_i5x5_w1x1_o4x5", True),
    ],
)
def test_needs_columns(text: str, needs: bool) -> None:
    assert im2col.needs_columns(ConvSpec.parse(text)) == needs

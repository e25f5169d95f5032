"""The demo's parts: kernels, pictures, and the comparison with the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import convjit
from convjit import demo
from convjit.algorithms.oracle import oracle
from convjit.spec import ConvSpec


@pytest.mark.parametrize(
    "kernel", [demo.gaussian(13, 2.2), demo.disc(31), demo.streak(31), demo.SHARPEN]
)
def test_kernels_keep_the_brightness(kernel: np.ndarray) -> None:
    assert kernel.dtype == np.float32
    assert kernel.sum() == pytest.approx(1.0, abs=1e-5)


def test_the_sobel_kernel_is_blind_to_flat_regions() -> None:
    assert demo.SOBEL.sum() == 0


@pytest.mark.parametrize(
    "word",
    [
        "conv_f32_NCHW_n2c3k4g1_i9x8_w3x3_p1",
        "conv_f32_NCHW_n1c4k6g2_i19x18_w3x2_s2x1_p1.2x0_d1x2_bias",
        "conv_f32_NCHW_n3c1k1g1_i60x51_w5x5_p2_replicate",
        "conv_f32_NCL_n1c1k1g1_i50_w7_p3_circular_flip",
    ],
)
def test_the_reference_sees_no_error_in_the_oracle_and_finds_a_wrong_corner(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "WINDOW_MACS", 3000.0)
    spec = ConvSpec.parse(word)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(spec.x_shape).astype(np.float32)
    w = rng.standard_normal(spec.w_shape).astype(np.float32)
    bias = rng.standard_normal(spec.out_channels).astype(np.float32) if spec.bias else None
    right = oracle(spec, x, w, bias).astype(np.float32)
    reference = demo.Reference(spec, x, w, bias)
    assert reference.error(right) < 1e-6
    for corner in (0, -1):
        wrong = right.copy()
        wrong[(0, 0, *(corner,) * spec.ndim)] += 1
        assert reference.error(wrong) > 1e-3


def test_windows_stay_inside_and_reach_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WINDOW_MACS", 1000.0)
    spec = ConvSpec.parse("conv_f32_NCHW_n1c1k1g1_i40x30_w3x3_p1")
    windows = list(demo._windows(spec))
    assert {(w[0].start, w[1].start) for w in windows} >= {(0, 0)}
    assert any((w[0].stop, w[1].stop) == (40, 30) for w in windows)
    assert all(0 <= s.start < s.stop for w in windows for s in w)


def test_a_missing_photograph_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(demo.MissingError, match=r"install convjit\[demo\], or give --image FILE"):
        demo.find_photo()
    with pytest.raises(demo.MissingError, match=r"needs Pillow for pictures; install convjit"):
        demo.read_photo(Path("x.jpg"))


def test_a_picture_survives_the_way_there_and_back(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 9)).astype(np.float32) / 255
    path = tmp_path / "x.png"
    demo.to_picture(pixels).save(path)
    np.testing.assert_allclose(demo.read_photo(path), pixels, atol=1e-6)


def test_a_contact_sheet_holds_every_picture() -> None:
    pytest.importorskip("PIL")
    pixels = np.ones((3, 20, 30), np.float32)
    sheet = demo.contact_sheet([(f"{n}", pixels) for n in range(4)], columns=3)
    assert sheet.size[0] > 3 * 30
    assert sheet.size[1] > 2 * 20


def test_the_filters_run_on_a_small_picture(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    photo = np.random.default_rng(0).random((3, 40, 36)).astype(np.float32)
    show = demo.Show({"peak": 1e11, "how": "told"})
    lines: list[str] = []
    with convjit.use(backend="scipy"):
        demo.show_filters(photo, tmp_path / "out", show, 0.0, lines.append)
    assert {Path(p).name for p in show.pictures} == {
        "before.png", "gaussian.png", "edges.png", "sharpen.png", "motion.png", "bokeh.png",
        "before-after.png",
    }  # fmt: skip
    assert all(Path(p).is_file() for p in show.pictures)
    assert len(show.filters) == len(lines) == len(demo.FILTERS)
    for told in show.filters:
        ran = [c for c in told["candidates"] if c["measured_seconds"]]
        assert ran
        assert all(c["error"] < 1e-5 for c in ran)

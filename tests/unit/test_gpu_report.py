"""The report of a GPU, as far as it needs none; the rest is in ``tests/device``."""

from __future__ import annotations

import pytest

from convjit.bench import gpu
from convjit.spec import ConvSpec


def test_torch_computes_the_layer_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(gpu, "TURN", 0.0)
    spec = ConvSpec.parse("conv_f32_NCHW_n1c4k8g2_i9x9_w3x3_s2x2_p1x1")
    shapes = []
    conv2d = torch.nn.functional.conv2d

    def noted(*arguments: object) -> object:
        y = conv2d(*arguments)
        shapes.append(tuple(y.shape))
        return y

    monkeypatch.setattr(torch.nn.functional, "conv2d", noted)
    seconds = gpu.torch_seconds(spec, device="cpu")
    assert seconds is not None
    assert seconds > 0
    assert set(shapes) == {spec.y_shape}
    if not torch.cuda.is_available():
        assert gpu.torch_seconds(spec) is None


def test_facts_name_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    known = gpu.facts([])
    assert known["nvidia-smi"] == "not found"
    assert "numpy " in known["packages"]
    assert gpu.text(known, []).startswith("- convjit: ")

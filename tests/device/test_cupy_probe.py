"""``convjit_cupy`` where CuPy, or a GPU, is missing: what it says, and that nothing else minds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import convjit
from convjit import registry
from convjit.cupyarrays import unavailable
from convjit.errors import BackendError
from convjit_cupy import CupyBackend

X, W = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)

BROKEN = """raise ImportError('''
================================================================
Failed to import CuPy.

Original error: libcublas.so.13 is missing.
''')
"""
NO_DRIVER = """
class cuda:
    class runtime:
        @staticmethod
        def getDeviceCount():
            raise RuntimeError("cudaErrorInsufficientDriver: the driver is too old.")
"""
NO_DEVICE = NO_DRIVER.replace("raise RuntimeError", "return 0 and ")


def test_the_backend_is_one_of_convjits_own() -> None:
    assert registry.is_builtin("cupy")
    assert CupyBackend().name == "cupy"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (BROKEN, "CuPy cannot be imported: Failed to import CuPy"),
        (NO_DRIVER, "CuPy finds no CUDA GPU: cudaErrorInsufficientDriver: the driver is too old"),
        (NO_DEVICE, "CuPy finds no CUDA GPU: no device is there"),
    ],
)
def test_the_probe_says_why_in_a_sentence(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cupy.py").write_text(source)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert unavailable() == reason
    sys.modules.pop("cupy", None)


def test_without_cupy_the_probe_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert unavailable() == "CuPy is not installed: pip install 'convjit[cuda13]' (or [cuda12])"


@pytest.mark.skipif(unavailable() is None, reason="a GPU is here")
@pytest.mark.parametrize("name", ["cupy", "cuda"])
def test_without_a_gpu_a_call_tells_the_reason(name: str) -> None:
    reason = unavailable()
    assert reason is not None
    with pytest.raises(BackendError) as caught:
        convjit.conv(X, W, backend=name)
    assert reason in str(caught.value)
    convjit.conv(X, W)  # everything else works

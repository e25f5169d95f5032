"""``convjit_numba_cuda`` on arrays that lie on the device: nothing of them goes to the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import standin_cupy as cupy
from emulated import EmulatedBackend, EmulatedDevice, missing, registered

import convjit

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

BACKEND = EmulatedBackend(EmulatedDevice(), "numba_cuda_arrays")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4, 9, 11), np.float32)
W = RNG.standard_normal((6, 4, 3, 3), np.float32)
BIAS = RNG.standard_normal(6, np.float32)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered(BACKEND):
        yield


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array is downloaded, and no operand uploaded."""

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("copied between host and device")

    monkeypatch.setattr(cupy.ndarray, "get", refuse)
    monkeypatch.setattr(cupy, "asnumpy", refuse)


def same(found: Any, expected: Any) -> None:
    assert isinstance(found, cupy.ndarray)
    np.testing.assert_allclose(found._host, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("no_copies")
@pytest.mark.parametrize("algorithm", ["gemm", "direct", "winograd"])
def test_arrays_stay_on_the_device(algorithm: str) -> None:
    expected = convjit.conv(X, W, BIAS, padding=1, activation="relu", backend="scipy")
    before = len(BACKEND.gpu.launches)
    found = convjit.conv(
        cupy.asarray(X), cupy.asarray(W), cupy.asarray(BIAS), padding=1, activation="relu",
        backend=BACKEND.name, algorithm=algorithm,
    )  # fmt: skip
    same(found, expected)
    assert len(BACKEND.gpu.launches) > before


@pytest.mark.usefixtures("no_copies")
def test_a_plan_writes_into_an_array_of_the_device() -> None:
    plan = convjit.plan(cupy.asarray(X), cupy.asarray(W), padding=1, backend=BACKEND.name)
    packed = plan.pack(cupy.asarray(W))
    out = cupy.empty((3, 6, 9, 11), np.float32)
    assert plan(cupy.asarray(X), packed, out=out) is out
    same(out, convjit.conv(X, W, padding=1, backend="scipy"))


@pytest.mark.usefixtures("no_copies")
def test_a_lowering_stays_on_the_device() -> None:
    """Channels-last, a border that is mirrored, and half precision."""
    x, w = np.moveaxis(X, 1, -1).astype(np.float16), W.astype(np.float16)
    options = {"padding": 1, "pad_mode": "reflect", "layout": "NHWC"}
    expected = convjit.conv(x, w, backend="scipy", **options)
    found = convjit.conv(cupy.asarray(x), cupy.asarray(w), backend=BACKEND.name, **options)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found._host, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("no_copies")
def test_a_view_and_a_strided_bias() -> None:
    big, wide = np.zeros((3, 4, 18, 11), np.float32), np.zeros(12, np.float32)
    big[:, :, ::2], wide[::2] = X, BIAS
    expected = convjit.conv(X, W, BIAS, padding=1, backend="scipy")
    for algorithm in ("gemm", "direct"):
        found = convjit.conv(
            cupy.asarray(big)[:, :, ::2], cupy.asarray(W), cupy.asarray(wide)[::2], padding=1,
            backend=BACKEND.name, algorithm=algorithm,
        )  # fmt: skip
        same(found, expected)


def test_an_array_of_another_library_is_taken_where_it_lies() -> None:
    class Foreign:
        """As numba's device arrays: the CUDA array interface and no more."""

        def __init__(self, array: Any) -> None:
            self._kept = cupy.asarray(array)
            self.__cuda_array_interface__ = self._kept.__cuda_array_interface__

    found = convjit.conv(Foreign(X), Foreign(W), padding=1, backend=BACKEND.name)
    same(found, convjit.conv(X, W, padding=1, backend="scipy"))

"""Arrays on a device: whose are taken, where results are, what is refused; and NumPy data there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import standin_cupy as cupy
from emulated_cupy import EmulatedCupy, missing, registered

import convjit
from convjit import registry
from convjit.algorithms.oracle import oracle
from convjit.errors import BackendError, UnsupportedError
from convjit.spec import ConvSpec
from convjit.testing.cases import CASES, Case
from convjit.testing.check import call, measured_error, reference

compiles = pytest.mark.skipif(missing() is not None, reason=str(missing()))


class Healthy(EmulatedCupy):
    """Without compilers too: what only asks and refuses is tested there as well."""

    def __init__(self) -> None:
        super().__init__("cupy_arrays")

    def probe(self) -> str | None:
        return None


@pytest.fixture(scope="module", autouse=True)
def backend() -> Iterator[str]:
    healthy = Healthy()
    with registered(healthy):
        yield healthy.name


RNG = np.random.default_rng(7)
X = RNG.standard_normal((3, 4, 9, 8), np.float32)
W = RNG.standard_normal((6, 4, 3, 3), np.float32)
EXPECTED = convjit.conv(X, W, padding=1, backend="scipy")


class Interface:
    """A device array of another library, by the CUDA array interface."""

    def __init__(self, array: Any, stream: int | None, version: int = 3) -> None:
        described = dict(array.__cuda_array_interface__)
        self.array = array
        self.__cuda_array_interface__ = {**described, "stream": stream, "version": version}


@compiles
@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_device_arrays_are_convolved_where_they_lie(case: Case, backend: str) -> None:
    """Every direction, layout, dtype and padding mode: NumPy would raise at a device's array."""
    operands = case.operands()
    there = type(operands)(*(None if a is None else cupy.asarray(a) for a in operands))
    result = call(case, there, backend=backend)
    assert type(result) is cupy.ndarray
    expected, scale = reference(case)
    plan = convjit.testing.check.make_plan(case, backend=backend)
    error = measured_error(case.spec, result.get().reshape(case.spec.result_shape), expected, scale)
    assert error <= plan.error_bound


def test_a_strided_device_array_is_right(backend: str) -> None:
    wide = cupy.asarray(np.repeat(X[:, :, ::-1], 2, axis=-1))
    view = wide[:, :, ::-1, ::2]
    result = convjit.conv(view, cupy.asarray(W), padding=1, backend=backend)
    np.testing.assert_allclose(result.get(), EXPECTED, atol=1e-4)


@pytest.mark.parametrize(("stream", "version", "waited"), [(None, 3, []), (7, 2, []), (7, 3, [7])])
def test_the_interface_is_taken_over_without_a_copy(
    stream: int | None, version: int, waited: list[int], backend: str
) -> None:
    x = Interface(cupy.asarray(X)[::-1], stream, version)
    cupy.Stream.waited.clear()
    adopted = registry.get(backend).adopt(x)  # type: ignore[attr-defined]
    assert cupy.Stream.waited == waited  # the stream waits, the host does not
    assert adopted.data.ptr == x.array.data.ptr
    assert adopted.strides == x.array.strides
    result = convjit.conv(x, Interface(cupy.asarray(W), None), padding=1, backend=backend)
    np.testing.assert_allclose(result.get(), EXPECTED[::-1], atol=1e-4)


def test_an_empty_array_has_no_address(backend: str) -> None:
    x = Interface(cupy.empty((0, 4, 9, 8), np.float32), None)
    x.__cuda_array_interface__["data"] = (0, False)
    assert convjit.conv(x, cupy.asarray(W), backend=backend).shape == (0, 6, 7, 6)


class Dlpack:
    """A device array of another library that has DLPack alone."""

    def __init__(self, array: Any, device: int) -> None:
        self.array, self.device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, stream: int) -> Any:
        return self.array

    def __array__(self, *args: Any, **keywords: Any) -> Any:
        return self.array.get()


@compiles
def test_dlpack_is_taken_from_the_device_and_from_the_host(backend: str) -> None:
    x, w = cupy.asarray(X), cupy.asarray(W)
    there = convjit.conv(Dlpack(x, 2), Dlpack(w, 2), padding=1, backend=backend)
    assert type(there) is cupy.ndarray
    np.testing.assert_allclose(there.get(), EXPECTED, atol=1e-4)
    here = convjit.conv(Dlpack(x, 1), Dlpack(w, 1), padding=1, backend="scipy")
    assert type(here) is np.ndarray


@compiles
def test_a_call_on_the_device_does_not_wait_for_it(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read back, but by the finite check, which a label tells of."""
    x, w, bias = cupy.asarray(X), cupy.asarray(W), cupy.zeros(6, np.float32)
    choice: dict[str, Any] = {"padding": 1, "backend": backend, "activation": "relu"}
    plan = convjit.plan(x, w, precision="fast", nonfinite="local", algorithm="fft", **choice)
    assert "finite check" in plan.label

    def read(*args: Any) -> None:
        raise AssertionError("the host waited for the device")

    for name in ("get", "item", "__bool__"):
        monkeypatch.setattr(cupy.ndarray, name, read)
    monkeypatch.setattr(cupy, "asnumpy", read)
    monkeypatch.setattr(cupy.Stream, "synchronize", read)
    for algorithm in ("gemm", "fft", "winograd"):
        for mode in ("zeros", "reflect"):
            convjit.conv(x, w, bias, pad_mode=mode, algorithm=algorithm, **choice)
    with pytest.raises(BackendError, match="the host waited"):
        plan(x, w)


@compiles
def test_repeated_calls_on_the_device_plan_once(backend: str) -> None:
    with convjit.use(backend=backend):
        x, w = cupy.asarray(X), convjit.weights(Interface(cupy.asarray(W), None))
        with convjit.profile() as prof:
            for _ in range(3):
                convjit.conv(x, w, padding=1)
    assert len(prof.records) == 3
    assert [p.name for p in prof.phases].count("plan") <= 1
    assert [r.backend for r in prof.records] == [backend] * 3
    packed = [p.name for r in prof.records for p in r.phases if p.name == "pack"]
    assert len(packed) == 1


@compiles
@pytest.mark.parametrize("place", ["w", "bias", "out", "x"])
def test_operands_on_two_devices_are_told(place: str, backend: str) -> None:
    given: dict[str, Any] = {
        "x": cupy.asarray(X), "w": cupy.asarray(W), "bias": cupy.zeros(6, np.float32),
        "out": cupy.empty(EXPECTED.shape, np.float32),
    }  # fmt: skip
    convjit.conv(**given, padding=1, backend=backend)
    given[place] = given[place].get()
    with pytest.raises(TypeError) as caught:
        convjit.conv(**given, padding=1, backend=backend)
    assert place in str(caught.value)
    assert "no operand to another device" in str(caught.value)


@compiles
def test_a_plan_for_the_host_refuses_the_devices(backend: str) -> None:
    x, w = cupy.asarray(X), cupy.asarray(W)
    plan = convjit.plan(X, W, padding=1, bias=False)
    with pytest.raises(TypeError, match="host"):
        plan(x, W)
    there = convjit.plan(x, w, padding=1, bias=False, backend=backend)
    with pytest.raises(TypeError, match="moves no operand"):
        there(X, w)
    np.testing.assert_allclose(there(x, there.pack(w)).get(), EXPECTED, atol=1e-4)


def test_data_on_another_device_than_the_current_one(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = cupy.asarray(X), cupy.asarray(W)
    monkeypatch.setattr(cupy.Device, "id", 1)
    with pytest.raises(TypeError, match="x lies on cuda:0"):
        convjit.conv(x, w, backend=backend)


@compiles
def test_a_result_may_overlap_the_data(backend: str) -> None:
    x, w = cupy.asarray(X), cupy.asarray(W[:4])
    expected = convjit.conv(x, w, padding=1, backend=backend).get()
    assert convjit.conv(x, w, padding=1, out=x, backend=backend) is x
    np.testing.assert_array_equal(x.get(), expected)


def test_without_a_backend_a_device_array_says_what_is_missing() -> None:
    if not any(b.device == "cuda" for b in registry.default_pool()):
        with pytest.raises(BackendError, match="the data lies on a GPU"):
            convjit.conv(cupy.asarray(X), cupy.asarray(W))
    with pytest.raises(TypeError, match="copy it to the host"):
        convjit.conv(cupy.asarray(X), cupy.asarray(W), backend="scipy")


def test_nothing_moves_by_itself(backend: str) -> None:
    assert convjit.plan(X, W).backend != backend
    with pytest.raises(UnsupportedError):
        convjit.conv(X, W, backend=backend, algorithm="depthwise", groups=1)


def test_matrices_of_more_rows_than_cublas_counts_are_refused(backend: str) -> None:
    plain = f"conv_f32_NCL_n1c{2**31}k1g1_i1_w1"
    refused = convjit.explain(*convjit.calls.described(ConvSpec.parse(plain))[0], backend=backend)
    assert "cupy_arrays.gemm" in {c.solver_id for c in refused.refused}


def test_between_two_backends_on_gpus_the_cost_decides(backend: str) -> None:
    """Whichever is named first; a plain call considers neither."""
    other = Healthy()
    other.name = "cupy_slower"
    slow = replace(Healthy().target(), rates={}, peak={"float32": 1e6}, fingerprint="slower")
    other.target = lambda device_id=None: slow  # type: ignore[method-assign]
    with registered(other):
        for pool in ((backend, other.name), (other.name, backend)):
            assert convjit.plan(X, W, backend=pool).backend == backend
        assert convjit.plan(X, W).backend not in (backend, other.name)


# -------------------------------------------------------------------- NumPy data on the device


BATCHED = (
    "conv_f32_NCHW_n5c4k6g2_i9x8_w3x3_p1_bias_act=relu",
    "convt_f64_NCHW_n5c4k6g1_i9x8_w3x3_s2_p1",
    "igrad_f16_NCL_n5c4k6g1_i19_w3_p1",
    "wgrad_f32_NHWC_n5c4k6g1_i9x8_w3x3_p1",
    "wgrad_f16_NCHW_n5c4k6g1_i9x8_w3x3_p1",
)


@compiles
@pytest.mark.parametrize("text", BATCHED)
def test_what_does_not_fit_goes_in_batches(
    text: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("batches", ConvSpec.parse(text))
    spec = case.spec
    plan = convjit.testing.check.make_plan(case, backend=backend)
    expected, scale = reference(case)
    monkeypatch.setattr(cupy.Device, "free", 0)  # one image at a time
    with convjit.profile() as prof:
        result = call(case, case.operands(), backend=backend)
    assert type(result) is np.ndarray
    assert measured_error(spec, result, expected, scale) <= plan.error_bound
    (record,) = prof.records
    names = [phase.name for phase in record.phases]
    back = 1 if text.startswith("wgrad") else 5
    assert names.count("from device") == back
    assert names.count("to device") >= 5


@compiles
def test_half_gradients_of_many_batches_are_summed_in_float32(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed in float16, 4096 ones would stop at 2048."""
    spec = ConvSpec.parse("wgrad_f16_NCL_n4096c1k1g1_i1_w1")
    ones = np.ones((4096, 1, 1), np.float16)
    monkeypatch.setattr(cupy.Device, "free", 0)
    result = convjit.conv_weight_grad(ones, spec.w_shape, ones, backend=backend)
    np.testing.assert_array_equal(result, oracle(spec, ones, ones).astype(np.float16))


def test_the_way_to_the_device_is_predicted(backend: str) -> None:
    there = convjit.explain(cupy.asarray(X), cupy.asarray(W), backend=backend).admitted[0]
    moved = convjit.explain(X, W, backend=backend, algorithm=there.solver_id).admitted[0]
    assert there.seconds is not None
    assert moved.seconds is not None
    assert moved.seconds > there.seconds
    assert moved.work is not None
    names = [phase.name for phase in moved.work.phases]
    assert names[0] == "to device"
    assert names[-1] == "from device"

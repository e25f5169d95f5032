"""CUDA C++ kernels of the CuPy backend as PTX, where there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gates
import numpy as np
import pytest
import standin_cupy
from emulated_cupy import EmulatedCupy, missing

from convjit import gpus, machinecode
from convjit.spec import ConvSpec
from convjit.spi import Refusal
from convjit_cupy import CupyBackend
from convjit_cupy.code import Notebook, device_code, ptx_of
from convjit_cupy.kernels import load

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SOURCE = """
template <int N> __global__ void sums(const float *x, float *y) {
    __shared__ float4 row[64];
    row[threadIdx.x] = reinterpret_cast<const float4 *>(x)[threadIdx.x];
    __syncthreads();
    float total = 0.f;
#pragma unroll 1
    for (int i = 0; i < N; i++) {
        float4 v = row[i];
        total = fmaf(v.x, v.y, total), total = fmaf(v.z, v.w, total);
        total = fmaf(v.y, v.z, total), total = fmaf(v.x, v.w, total);
    }
    y[threadIdx.x] = total;
}
"""


class Solver:
    """One that launches the kernel twice."""

    algorithm = "direct"

    def __init__(self, cupy: Any, backend: str = "cupy") -> None:
        self.id = f"{backend}.sums"
        self._cupy = cupy

    def refuse(self, spec: ConvSpec, target: Any) -> Refusal | None:
        return None

    def configs(self, spec: ConvSpec, target: Any) -> list[Any]:
        return [()]

    def plan(self, spec: ConvSpec, target: Any, config: Any) -> Any:
        kernel = load(self._cupy, SOURCE, "sums<64>", ("-DUNUSED=1",))

        def run(x: Any, packed: Any, bias: Any, out: Any, workspace: Any) -> None:
            for _ in range(2):
                kernel((1,), (64,), (x, out), shared_bytes=512)

        return SimpleNamespace(workspace=0, pack=lambda w: w, run=run)


def test_kernels_are_compiled_as_they_would_be_launched() -> None:
    notebook = Notebook()
    spec = ConvSpec.parse("conv_f32_NCHW_n1c1k1g1_i16x16_w1x1")
    for capability in ((8, 0), (9, 0)):
        model = gpus.model(capability)
        (code,) = device_code([Solver(notebook)], notebook, "cupy", spec, model)
        assert code.name == "sums: sums<64> -DUNUSED=1"
        assert (code.threads, code.shared_bytes, code.solver) == (64, 512, "cupy.sums")
        figures = machinecode.measure(code, capability)
        assert figures.capability == capability
        assert set(figures.shared_loads) == {128}
        assert figures.global_loads == {128: 1}
        assert figures.shared_bytes == 1024 + 512
        assert figures.share > 0.3


def test_the_backend_offers_its_kernels() -> None:
    spec = ConvSpec.parse("conv_f32_NCHW_n1c4k4g1_i8x8_w3x3_p1x1")
    for code in CupyBackend().device_code(spec, (8, 0)):
        assert machinecode.measure(code, (8, 0)).spilled_bytes == 0


def test_what_numpy_has_no_buffers_of_is_offered_too() -> None:
    spec = ConvSpec.parse("conv_bf16_NHWC_n1c8k64g1_i16x16_w1x1")
    (code,) = CupyBackend().device_code(spec, (8, 0))
    assert code.solver == "cupy.tensor_core"


def test_what_kernels_read_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(backend: str, solver: str, text: str) -> None:
        x = standin_cupy.full((256,), 1, "float32")
        y = standin_cupy.empty((64,), "float32")
        (one,) = gpu.solvers()
        one.plan(ConvSpec.parse(text), None, ()).run(x, None, None, y, None)

    gpu = EmulatedCupy("cupy_counted")
    monkeypatch.setattr(gpu, "solvers", lambda: (Solver(standin_cupy, gpu.name),))
    monkeypatch.setattr(gates, "compute", run)
    counted = gates.counted_of_cupy(gpu, [("sums", "conv_f32_NCHW_n1c1k1g1_i16x16_w1x1")])
    assert counted == {"sums: sums<64> -DUNUSED=1": {"wavefronts": 1.0, "sectors": 1.0}}
    assert not standin_cupy.RawModule.checked


@pytest.mark.parametrize("name", ["fftn", "ifftn", "rfftn", "irfftn"])
def test_libraries_give_arrays_of_their_shapes(name: str) -> None:
    kind = np.complex64 if name != "rfftn" else np.float32
    x = np.ones((2, 3, 8, 5), kind)
    cupy = Notebook()
    found = getattr(cupy.fft, name)(x, s=(10, 6), axes=(-2, -1))
    right = getattr(np.fft, name)(x, s=(10, 6), axes=(-2, -1))
    assert (found.shape, found.dtype) == (right.shape, right.dtype)
    a, b = np.ones((4, 1, 2, 3), np.float32), np.ones((5, 3, 7), np.float32)
    assert cupy.matmul(a, b).shape == (4, 5, 2, 7)


def test_what_does_not_compile_is_told() -> None:
    with pytest.raises(RuntimeError, match='identifier "nothing" is undefined'):
        ptx_of('extern "C" __global__ void f() { nothing(); }', ("--std=c++17",))


def test_arrays_of_a_notebook_are_numpys() -> None:
    assert isinstance(Notebook().full((2, 3), 1, "float32"), np.ndarray)


def test_arrays_of_a_notebook_hold_nothing_that_overflows() -> None:
    notebook = Notebook()
    for made in (notebook.empty(4096, "uint8"), notebook.empty_like(np.full(4096, 1e38))):
        assert not made.any()

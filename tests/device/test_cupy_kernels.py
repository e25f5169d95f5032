"""The seam for CUDA C++ kernels: compiled by nvrtc as CuPy does, launched, run on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import standin_cupy as cupy
from emulated_cupy import missing

from convjit_cupy.kernels import load

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SCALE = """
#include <cuda_fp16.h>
extern "C" __global__ void scale(const float* x, float* y, int count, float by) {
    extern __shared__ float tile[];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    tile[threadIdx.x] = i < count ? x[i] : 0.f;
#ifdef BARRIER
    __syncthreads();
#endif
    if (i < count) y[i] = by * tile[blockDim.x - 1 - threadIdx.x] * OFFSET;
}
extern "C" __global__ void wide(long long* y, long long value) { y[0] = value; }
template <typename T, int N> __global__ void fill(T* y) {
    if (threadIdx.x < N) y[threadIdx.x] = T(N);
}
"""
OPTIONS = ("-DOFFSET=2", "-DBARRIER")


@pytest.fixture
def in_checked_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy.RawModule, "checked", True)


def scaled(options: tuple[str, ...] = OPTIONS) -> np.ndarray:
    x = cupy.asarray(np.arange(64, dtype=np.float32))
    y = cupy.empty(64, np.float32)
    kernel = load(cupy, SCALE, "scale", options)
    kernel((2,), (32,), (x, y, np.int32(64), np.float32(0.5)), shared_bytes=128)
    return y.get()


def test_a_kernel_is_compiled_and_run() -> None:
    expected = np.arange(64, dtype=np.float32).reshape(2, 32)[:, ::-1].reshape(-1)
    np.testing.assert_array_equal(scaled(), expected)
    assert load(cupy, SCALE, "scale", OPTIONS) is load(cupy, SCALE, "scale", OPTIONS)


def test_checked_mode_finds_a_missing_barrier(in_checked_mode: None) -> None:
    scaled()
    with pytest.raises(RuntimeError, match="uninitialised"):
        scaled(("-DOFFSET=2",))


def test_an_instance_of_a_template() -> None:
    y = cupy.empty(8, np.float64)
    load(cupy, SCALE, "fill<double, 7>", OPTIONS)((1,), (32,), (y,))
    assert (y.get()[:7] == 7).all()
    assert np.isnan(y.get()[7])


def test_a_python_number_among_the_arguments() -> None:
    y = cupy.empty(1, np.int64)
    kernel = load(cupy, SCALE, "wide", OPTIONS)
    with pytest.raises(TypeError, match="argument 1 of wide"):
        kernel((1,), (1,), (y, 3))
    kernel._function((1,), (1,), (y, 3))  # as CuPy takes it: 64 bits wide
    assert y.get()[0] == 3


def test_what_cuda_does_not_launch() -> None:
    y = cupy.empty(1, np.int64)
    kernel = load(cupy, SCALE, "wide", OPTIONS)
    for grid in ((0,), (1, 65536), (2**31,)):
        with pytest.raises(ValueError, match="cannot be launched"):
            kernel(grid, (1,), (y, np.int64(3)))
    with pytest.raises(TypeError):
        kernel((1,), (1,), (np.zeros(1, np.int64), np.int64(3)))  # an array of the host's


def test_what_does_not_compile_tells_the_line() -> None:
    with pytest.raises(RuntimeError, match="undefined"):
        load(cupy, "__global__ void f() { undefined = 1; }", "f")((1,), (1,), ())

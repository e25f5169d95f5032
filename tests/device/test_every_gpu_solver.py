"""What every solver of both GPU backends keeps to.

No call on the device waits for it.  Arrays that offsets of 32 bits do not reach are refused, or
indexed by more.  A file's name says the algorithm, the same one in every backend.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin_cupy as cupy
from emulated import EmulatedBackend, EmulatedDevice, missing, registered
from emulated_cupy import EmulatedCupy
from emulated_cupy import missing as missing_for_cupy

import convjit
from convjit import registry
from convjit.spec import ConvSpec
from convjit.spi import Feature
from convjit.testing.cases import Case
from convjit.testing.check import call, make_plan, measured_error, reference

NUMBA_CUDA = EmulatedBackend(EmulatedDevice(), "numba_cuda_every")
CUPY = EmulatedCupy("cupy_every")
BACKENDS = {"numba_cuda": NUMBA_CUDA, "cupy": CUPY}
SOLVERS = {
    f"{name}.{solver.id.partition('.')[2]}": (backend, solver)
    for name, backend in BACKENDS.items()
    for solver in backend.solvers()
}
ABSENT = {"numba_cuda.fft"}  # refuses everything, with its reason


# -------------------------------------------------------------------- nobody waits

# Of each, a problem whose kernels the other tests of a run compile too.
SMALL = {
    "numba_cuda.gemm": "f32_NCHW_n1c9k65g1_i13x5_w1x1_bias_act=leaky_relu,0.1",
    "numba_cuda.direct": "f32_NCHW_n2c2k33g1_i9x33_w3x3_p1_bias_act=relu",
    "numba_cuda.depthwise": "f32_NCHW_n1c5k5g5_i9x33_w3x3_p1_bias_act=relu",
    "numba_cuda.winograd.f2x3": "f32_NCHW_n1c3k4g1_i8x8_w3x3_p1",
    "numba_cuda.winograd.f4x3": "f32_NCHW_n1c3k4g1_i8x8_w3x3_p1",
    "cupy.gemm": "f32_NCHW_n2c4k6g2_i9x8_w3x3_s2_p1_bias_act=relu",
    "cupy.fft": "f32_NCHW_n2c4k6g1_i9x8_w5x5_p2_bias",
    "cupy.depthwise": "f32_NCHW_n1c5k5g5_i9x33_w3x3_p1_bias_act=relu",
    "cupy.depthwise.channels_last": "f32_NHWC_n2c5k5g5_i4x9_w3x3_p1_bias_act=relu",
    "cupy.direct": "f32_NCHW_n2c2k33g1_i9x33_w3x3_p1_bias_act=relu",
    "cupy.implicit_gemm": "f32_NCHW_n1c9k65g1_i13x5_w3x3_p1_bias_act=relu",
    "cupy.tensor_core": "f16_NHWC_n2c24k72g1_i9x7_w3x3_p1_bias_act=relu",
    **{f"cupy.winograd.f{m}x3": "f32_NCHW_n2c9k65g1_i9x7_w3x3_p1_bias_act=relu" for m in (2, 4, 6)},
    **{f"cupy.winograd.batched.f{m}x3": "f32_NCHW_n2c3k4g1_i9x7_w3x3_p1_bias" for m in (2, 4, 6)},
}  # fmt: skip


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read back, and no stream waited for."""

    def wait(*arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("the host waited for the device")

    for name in ("get", "item", "__bool__"):
        monkeypatch.setattr(cupy.ndarray, name, wait)
    monkeypatch.setattr(cupy, "asnumpy", wait)
    monkeypatch.setattr(cupy.Stream, "synchronize", wait)


@pytest.mark.skipif(
    (missing() or missing_for_cupy()) is not None, reason=f"{missing() or missing_for_cupy()}"
)
@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("solver", sorted(SOLVERS.keys() - ABSENT))
def test_a_call_on_the_device_waits_for_nothing(solver: str) -> None:
    backend, one = SOLVERS[solver]
    case = Case("resident", ConvSpec.parse(f"conv_{SMALL[solver]}"))
    operands = case.operands()
    there = type(operands)(*(None if a is None else cupy.asarray(a) for a in operands))
    choice: dict[str, Any] = {"backend": backend.name, "algorithm": one.id, "precision": "fast"}
    with registered(backend):
        plan = make_plan(case, **choice)
        result = call(case, there, **choice)
    assert plan.label.startswith(one.id)
    assert "finite check" not in plan.label
    assert type(result) is cupy.ndarray
    expected, scale = reference(case)
    assert measured_error(case.spec, result._host, expected, scale) <= plan.error_bound


# -------------------------------------------------------------------- 2**31 elements

# Of kernels whose offsets have 32 bits: problems in which x alone, or y alone, has 2**32 elements
# when n is 2**14, and which are taken when n is 1.
DENSE = ("NCHW_n{n}c64k1g1_i64x64_w3x3_p1", "NCHW_n{n}c1k64g1_i64x64_w3x3_p1")
PLANES = ("NCHW_n{n}c64k64g64_i64x64_w3x3_s2_p1", "NCHW_n{n}c16k64g16_i64x64_w3x3_p1")
NARROW = {
    "numba_cuda.gemm": DENSE,
    "numba_cuda.direct": DENSE,
    "numba_cuda.depthwise": PLANES,
    "numba_cuda.winograd.f2x3": DENSE,
    "numba_cuda.winograd.f4x3": DENSE,
    "cupy.depthwise": PLANES,
    "cupy.depthwise.channels_last": ("NHWC_n{n}c64k64g64_i64x64_w3x3_p1",),
    "cupy.direct": DENSE,
    "cupy.implicit_gemm": DENSE,
    **{f"cupy.winograd.f{m}x3": DENSE for m in (2, 4, 6)},
}
# CuPy's own operations, and a kernel that adds offsets of 64 bits.
BROAD = {
    "cupy.gemm": DENSE,
    "cupy.fft": DENSE,
    **{f"cupy.winograd.batched.f{m}x3": DENSE for m in (2, 4, 6)},
    "cupy.tensor_core": ("NHWC_n{n}c64k64g1_i64x64_w3x3_p1",),
}


def test_of_every_solver_it_is_said_what_it_does_with_large_arrays() -> None:
    assert SOLVERS.keys() - ABSENT == NARROW.keys() | BROAD.keys() == SMALL.keys()
    assert not NARROW.keys() & BROAD.keys()


@pytest.mark.parametrize("solver", NARROW)
def test_what_32_bits_do_not_reach_is_refused(solver: str) -> None:
    backend, one = SOLVERS[solver]
    for text in NARROW[solver]:
        assert one.refuse(ConvSpec.parse(f"conv_f32_{text.format(n=1)}"), backend.target()) is None
        large = ConvSpec.parse(f"conv_f32_{text.format(n=2**14)}")
        assert max(np.prod(large.x_shape), np.prod(large.y_shape)) == 2**32
        refusal = one.refuse(large, backend.target())
        assert refusal is not None
        assert refusal.feature is Feature.SIZE
        assert "too large for offsets of 32 bits" in refusal.reason


@pytest.mark.parametrize("solver", BROAD)
def test_what_64_bits_reach_is_taken(solver: str) -> None:
    backend, one = SOLVERS[solver]
    for text in BROAD[solver]:
        large = ConvSpec.parse(f"conv_f32_{text.format(n=2**14)}")
        assert one.refuse(large, backend.target()) is None


@pytest.mark.skipif(missing_for_cupy() is not None, reason=str(missing_for_cupy()))
@pytest.mark.parametrize(("images", "positions"), [(3, 2), (1, 4)])
def test_samples_beyond_2_31_elements_are_read_where_they_lie(images: int, positions: int) -> None:
    """Of 4.5 GiB only the pages of some positions are there: the ends of images, and thirds."""
    stride, channels = 3 * 2**25, 8
    memory = np.zeros((images, (positions - 1) * stride + 1, channels), np.float16)
    assert memory.size - channels > 2**31  # where the last sample lies
    ends = np.arange(1, 1 + images * positions * channels).reshape(images, positions, channels)
    memory[:, ::stride] = ends
    w = np.eye(channels, dtype=np.float16).repeat(16, axis=0)[:, :, None]
    choice = {"layout": "NLC", "stride": stride, "algorithm": f"{CUPY.name}.tensor_core"}
    with registered(CUPY):
        y = convjit.conv(cupy._view(memory), cupy.asarray(w), backend=CUPY.name, **choice)
    np.testing.assert_array_equal(y.get(), ends.repeat(16, axis=2))


# -------------------------------------------------------------------- one name, one algorithm


def files() -> Iterator[tuple[str, str, str]]:
    """(file, backend, algorithm) of every solver of convjit's own backends."""
    own = {name: registry.get(name) for name in ("numba", "scipy")}
    for name, backend in {**own, **BACKENDS}.items():
        for solver in backend.solvers():
            yield Path(inspect.getfile(type(solver))).stem, name, solver.algorithm


def test_a_file_of_one_name_is_one_algorithm_in_every_backend() -> None:
    algorithms, backends = defaultdict(set), defaultdict(set)
    for file, backend, algorithm in files():
        algorithms[file].add(algorithm)
        backends[file].add(backend)
    shared = {file for file, names in backends.items() if len(names) > 1}
    assert shared == {"direct", "gemm", "fft", "winograd", "depthwise"}
    assert {file: algorithms[file] for file in shared} == {file: {file} for file in shared}

"""``convjit_numba_cuda`` where it is installed: how it is found, and what it says without a GPU."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

import convjit
from convjit import registry
from convjit.errors import BackendError
from convjit.gpus import LANES, MODELS, ROWS, Description, Row, model, row_of
from convjit_numba_cuda import NumbaCudaBackend, device
from convjit_numba_cuda.device import unavailable
from convjit_numba_cuda.targets import target

X, W = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)


def test_the_backend_is_one_of_convjits_own() -> None:
    assert registry.is_builtin("numba_cuda")
    assert NumbaCudaBackend().name == "numba_cuda"


@pytest.mark.skipif(unavailable() is None, reason="a GPU is here")
@pytest.mark.parametrize("name", ["numba_cuda", "cuda"])
def test_without_a_gpu_a_call_tells_the_reason(name: str) -> None:
    reason = unavailable()
    assert reason is not None
    assert "\n" not in reason
    with pytest.raises(BackendError) as caught:
        convjit.conv(X, W, backend=name)
    assert reason.rstrip(".") in str(caught.value)
    convjit.conv(X, W)  # everything else works


def test_numpy_data_stays_on_the_cpu() -> None:
    with convjit.use(priority="numba_cuda"):
        assert all(backend.device == "cpu" for backend in registry.default_pool("cpu"))


def test_a_gpu_is_known_by_its_name_or_by_its_clocks() -> None:
    known = target(Description("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98e9, 2.6e9, 5120, 1, 1))
    assert known.peak == {"float32": 67e12, "float64": 34e12}
    assert known.bandwidth["memory"] == 3350e9
    assert "published rates" in known.description
    unknown = target(Description("NVIDIA Novelty 1", (8, 0), 100, 1e9, 1e9, 4096, 1, 1))
    assert unknown.peak == {"float32": 2 * 64 * 100 * 1e9, "float64": 2 * 32 * 100 * 1e9}
    assert unknown.bandwidth["memory"] == 2 * 1e9 * 512
    assert known.fingerprint != unknown.fingerprint


@pytest.mark.parametrize("capability", MODELS)
def test_a_model_of_each_generation_is_in_the_table(capability: tuple[int, int]) -> None:
    described = model(capability)
    assert described.capability == capability
    assert row_of(described.name) is not None
    assert capability in LANES


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_reached(row: Row) -> None:
    assert row_of(f"NVIDIA {row.name}") is row


@pytest.mark.parametrize(
    ("name", "row"),
    [("Tesla V100-SXM2-16GB", "V100"), ("Tesla V100-PCIE-32GB", "V100-PCIE"), ("Tesla T4", "T4"),
     ("NVIDIA A100-PCIE-40GB", "A100"), ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
     ("NVIDIA H100 NVL", "H100 NVL"), ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
     ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"), ("NVIDIA H100 80GB HBM3", "H100")],
)  # fmt: skip
def test_the_names_that_drivers_give(name: str, row: str) -> None:
    found = row_of(name)
    assert found is not None
    assert found.name == row


@pytest.mark.parametrize("name", ["NVIDIA T400", "NVIDIA GeForce RTX 4070 Ti", "NVIDIA A1000"])
def test_a_gpu_of_a_similar_name_is_another(name: str) -> None:
    assert row_of(name) is None


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_a_small_grid_is_no_reason_to_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import cuda
    from numba.cuda import dispatcher

    assert f'"{device.SMALL_GRID} {{grid_size}}' in inspect.getsource(dispatcher)
    configured, launched = [], []

    class Compiled:
        def __getitem__(self, grid: object) -> object:
            warning = dispatcher.errors.NumbaPerformanceWarning("Grid size 1 will ...")
            warnings.warn(warning, stacklevel=2)
            configured.append(grid)
            return lambda *arguments: launched.append(arguments)

    class OnDefaultStream(device.CudaDevice):
        current = 0

        def stream(self) -> int:
            return self.current

    monkeypatch.setattr(cuda, "jit", lambda function: Compiled())
    monkeypatch.setattr(cuda, "external_stream", lambda handle: f"stream {handle}")
    gpu, kernel = OnDefaultStream(), device.Kernel("none", lambda: None, 32)
    gpu.launch(kernel, 1, 64, (1, 2))
    gpu.launch(kernel, 1, 64, (3,))
    gpu.launch(kernel, 2, 64, ())
    gpu.current = 77
    gpu.launch(kernel, 2, 64, (4,))
    assert configured == [(1, 32, 0, 64), (2, 32, 0, 64), (2, 32, "stream 77", 64)]
    assert launched == [(1, 2), (3,), (), (4,)]


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_arrays_are_handed_over_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import cuda

    taken = []
    monkeypatch.setattr(cuda, "as_cuda_array", lambda array, sync=True: taken.append(sync))
    assert "sync" in inspect.signature(cuda.api.from_cuda_array_interface).parameters
    device._on_device(np.float32(1))
    device._on_device(SimpleNamespace(__cuda_array_interface__={}))
    assert taken == [False]


# The host's side, which the emulated device stands in for: copies, launches, the arguments' types.
SIMULATED = """
import warnings
import numpy as np
import convjit
from convjit import registry
from convjit.spec import ConvSpec
from convjit_numba_cuda import NumbaCudaBackend
from convjit.gpus import Description
from convjit_numba_cuda.device import CudaDevice, unavailable
from convjit_numba_cuda.targets import target
from convjit.gauges import resident_call

assert "the simulator is no GPU" in unavailable()
assert not registry.default_pool("cuda")  # what backend="cuda" would mean
try:
    convjit.conv(np.ones((4, 4)), np.ones((3, 3)), backend="cuda")
except convjit.BackendError as error:
    assert "the simulator is no GPU" in str(error)
else:
    raise AssertionError("the simulator was taken for a GPU")

class Simulated(CudaDevice):
    cupy = np  # the simulator's arrays are NumPy's
    def stream(self):
        return 0

class Backend(NumbaCudaBackend):
    name = "simulated"
    array_types = ("numpy:ndarray",)
    def probe(self):
        return None
    def target(self, device_id=None):
        return target(Description("simulator", (8, 0), 1, 1e9, 1e9, 64, 1 << 20, 1 << 30))

backend = Backend(Simulated())
registry.register(backend)
warnings.simplefilter("ignore", RuntimeWarning)  # offsets wrap
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 2, 3, 4), np.float32)
for algorithm, groups in (("direct", 1), ("gemm", 1), ("depthwise", 2), ("winograd.f2x3", 1)):
    w = rng.standard_normal((2, 2 // groups, 3, 3), np.float32)
    choice = {"groups": groups, "padding": 1}
    y = convjit.conv(x, w, backend="simulated", algorithm=f"simulated.{algorithm}", **choice)
    np.testing.assert_allclose(y, convjit.conv(x, w, backend="scipy", **choice), atol=1e-5)
    solver = next(s for s in backend.solvers() if s.id == f"simulated.{algorithm}")
    spec = ConvSpec.parse(f"conv_f32_NCHW_n1c2k2g{groups}_i3x4_w3x3_p1x1")
    resident_call(solver, spec, backend.target())()
print("computed")
"""


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_every_launch_path_runs_in_the_simulator() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", SIMULATED],
        capture_output=True,
        text=True,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        check=False,
    )
    assert answer.stdout.strip() == "computed", answer.stderr[-2000:]

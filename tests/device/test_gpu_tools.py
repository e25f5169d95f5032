"""What the owner of a GPU runs, on the emulated device: selftest's report, and calibrate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import emulated_cupy
import pytest
from emulated import GPU, EmulatedBackend, EmulatedDevice, missing, registered

import convjit
from convjit import calibration, cli, gauging, gpus, registry, selftest
from convjit.bench import gpu
from convjit.spec import ConvSpec
from convjit.store import Store
from convjit_cupy import gauges

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

NAME = "emulated_gpu"
# As fast as the emulator is, more or less: one multiprocessor of some MHz.
SLOW = replace(
    GPU, name="an emulated GPU", multiprocessors=1, clock=5e6, memory_clock=1e6, bus_bits=4096
)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedBackend]:
    made = EmulatedBackend(EmulatedDevice(SLOW), NAME)
    with registered(made):
        rows = [row for row in registry.status(load=[NAME]) if row.name == NAME]
        monkeypatch.setattr(selftest.registry, "status", lambda load=(): rows)
        yield made


def test_selftest_prints_a_report(
    backend: EmulatedBackend,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(selftest, "CASES", selftest.QUICK[:2])
    monkeypatch.setattr(gpu, "TURN", 0.0)
    layer = "conv_f32_NCHW_n1c8k8g1_i9x9_w3x3_p1x1"
    monkeypatch.setattr(gpu.measure, "__kwdefaults__", {**gpu.measure.__kwdefaults__,
                                                        "layers": (layer,)})  # fmt: skip
    monkeypatch.setattr(gpu, "torch_seconds", lambda spec: 0.5)
    assert cli.main(["selftest", "--device", "cuda"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("### convjit selftest\n")
    assert f"- {NAME}: an emulated GPU, sm_80, 1 multiprocessors, rates from its clocks" in shown
    assert "- nvidia-smi: " in shown
    for solver in ("gemm", "direct", "winograd.f2x3", "winograd.f4x3"):
        assert f"| {layer} | {NAME}.{solver} | " in shown
    assert shown.count("| 500 |") == 4  # milliseconds of torch
    assert f"| {NAME} | " in shown
    assert shown.rstrip().endswith("all is well")
    assert {kernel.name for kernel, _ in backend.gpu.launches} > {"direct.float32"}


def test_selftest_of_a_gpu_forces_each_solver(
    backend: EmulatedBackend,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forced = []

    def noted(case: object, name: str, **choice: object) -> object:
        forced.append(choice.get("algorithm"))
        raise ValueError("boom")

    monkeypatch.setattr(selftest, "CASES", selftest.QUICK[:1])
    monkeypatch.setattr(selftest, "check", noted)
    monkeypatch.setattr(gpu, "measure", lambda names, told: [])
    assert cli.main(["selftest", "--device", "cuda", "--json"]) == 1
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["failed"] == len(forced)
    assert forced == [None, *(solver.id for solver in registry.solvers(NAME))]


def test_a_solver_that_fails_is_told_and_the_rest_timed(
    backend: EmulatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "TURN", 0.0)
    resident = backend.resident

    def fails(solver: object, spec: ConvSpec) -> object:
        if getattr(solver, "algorithm", "") == "direct":
            raise MemoryError("no room")
        return resident(solver, spec)

    monkeypatch.setattr(backend, "resident", fails)
    rows = gpu.measure([NAME], layers=("conv_f32_NCHW_n1c8k8g1_i9x9_w1x1",))
    assert [row.solver for row in rows] == [f"{NAME}.gemm", f"{NAME}.direct"]
    assert rows[1].note == "MemoryError: no room"
    assert gpu.as_dicts(rows)[1]["seconds"] is None
    assert "MemoryError: no room" in gpu.text({}, rows)


def test_a_gpu_is_calibrated(
    backend: EmulatedBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "calibration.json"), 1)
    monkeypatch.setattr(calibration, "STORE", store)
    monkeypatch.setattr(gauging, "PASSES", 1)
    monkeypatch.setattr(gauging, "MOST_PASSES", 1)
    monkeypatch.setattr(gauging, "TURN", 0.0)
    monkeypatch.setattr(gauging, "INCREDIBLE", math.inf)  # the emulator is no GPU
    monkeypatch.setattr(calibration, "REFUSED", 1.0)
    found = calibration.calibrate([NAME])
    keys = {one.key for one in found.figures if one.figure == "rates"}
    assert keys == {
        f"numba_cuda.{family}.{dtype}"
        for family in ("gemm", "direct", "depthwise")
        for dtype in ("float32", "float64")
    }
    assert {one.key for one in found.figures if one.figure == "bandwidth"} == {"memory", "bus"}
    assert {one.figure for one in found.figures} == {"rates", "bandwidth", "launch", "call"}
    assert all(one.measured > 0 for one in found.figures if one.kept)
    # What was measured is in force, over the published rates.
    assert found.kept == (NAME,)
    target = calibration.target(backend)
    assert target.measured
    for one in found.figures:
        if one.kept and one.figure == "rates":
            assert target.rates[one.key] == pytest.approx(one.measured, rel=1e-3)  # four digits
    x, w = (1, 8, 9, 9), (8, 8, 3, 3)
    assert convjit.plan(x, w, backend=NAME).backend == NAME


def test_a_gpu_is_calibrated_through_cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibration, "STORE", Store(str(tmp_path / "calibration.json"), 1))
    monkeypatch.setattr(gauging, "PASSES", 1)
    monkeypatch.setattr(gauging, "MOST_PASSES", 1)
    monkeypatch.setattr(gauging, "TURN", 0.0)
    monkeypatch.setattr(gauging, "INCREDIBLE", math.inf)
    monkeypatch.setattr(calibration, "REFUSED", 1.0)
    # As slow as the processor that stands for it.
    monkeypatch.setattr(gpus, "figures", lambda device: gpus.Figures(
        1e9, 5e8, 1e9, 1e9, 5e8, 1e9, "the processor's"))  # fmt: skip
    with emulated_cupy.registered(emulated_cupy.EmulatedCupy()):
        found = calibration.calibrate(["cupy_emulated"])
        (kept,) = found.kept
        assert calibration.target(registry.get(kept)).measured
        rows = gpu.measure([kept], layers=("conv_f32_NCHW_n1c8k8g1_i9x9_w3x3_p1x1_bias",))
    assert {f"{one.figure} {one.key}".strip() for one in found.figures} == {
        *(f"rates cupy_emulated.{family}.{dtype}" for family, _, dtypes in gauges.MEASURED
          for dtype in dtypes),
        "bandwidth memory", "bandwidth bus", "launch", "call",
    }  # fmt: skip
    assert "cupy_emulated.gemm" in {row.solver for row in rows}
    assert not [row.note for row in rows if row.note]

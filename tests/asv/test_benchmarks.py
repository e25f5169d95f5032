"""Every benchmark of ``asv_bench`` runs once, with the first of its parameters that it takes."""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated import EmulatedBackend, EmulatedDevice, missing

from convjit import registry

BENCHMARKS = Path(__file__).resolve().parents[2] / "asv_bench"
MODULES = sorted(
    path.stem
    for path in (BENCHMARKS / "benchmarks").glob("*.py")
    if path.stem not in ("__init__", "common")
)
KINDS = ("time_", "timeraw_", "track_", "peakmem_")


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def parameter_sets(owner: Any) -> list[tuple[Any, ...]]:
    """The combinations that asv would run, in its order."""
    params = getattr(owner, "params", [])
    if not params:
        return [()]
    lists = params if isinstance(params[0], (list, tuple)) and is_product(owner) else [params]
    return list(itertools.product(*lists))


def is_product(owner: Any) -> bool:
    return len(getattr(owner, "param_names", ())) > 1


def benchmarks(module: Any) -> Iterator[tuple[str, Callable[[], Callable[[], Any]]]]:
    """(name, prepare) of each; ``prepare()`` sets up and returns what asv would measure."""
    for name, item in vars(module).items():
        if inspect.isfunction(item) and name.startswith(KINDS):
            yield name, lambda item=item: item
        if not inspect.isclass(item) or item.__module__ != module.__name__:
            continue
        for method in [m for m in dir(item) if m.startswith(KINDS)]:
            yield f"{name}.{method}", lambda item=item, method=method: prepared(item, method)


def prepared(benchmark: type, method: str) -> Callable[[], Any]:
    """An instance set up with the first parameters that its ``setup`` takes."""
    for parameters in parameter_sets(benchmark):
        instance = benchmark()
        try:
            getattr(instance, "setup", lambda *_: None)(*parameters)
        except NotImplementedError:
            continue

        def run() -> Any:
            try:
                return getattr(instance, method)(*parameters)  # noqa: B023
            finally:
                getattr(instance, "teardown", lambda *_: None)(*parameters)  # noqa: B023

        return run
    raise AssertionError(f"{benchmark.__name__} skips all of its parameters")


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("name", [name for name in MODULES if name != "gpu"])
def test_every_benchmark_of_a_module_runs(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    found = list(benchmarks(module))
    assert found, f"{name} has no benchmarks"
    for title, prepare in found:
        result = prepare()()
        method = title.rpartition(".")[2]
        if method.startswith("track_"):
            assert math.isfinite(result), f"{title} gave {result}"
        if method.startswith("timeraw_"):
            subprocess.run([sys.executable, "-c", result], check=True, timeout=120)


def test_without_a_gpu_its_benchmarks_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("benchmarks.gpu")
    monkeypatch.setattr(registry, "probe_answer", lambda name: "there is no GPU")
    ((_, prepare),) = benchmarks(module)
    with pytest.raises(AssertionError, match="skips all of its parameters"):
        prepare()


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_with_a_gpu_its_benchmarks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("benchmarks.gpu")
    gpu = EmulatedBackend(EmulatedDevice(), "numba_cuda")
    monkeypatch.setattr(registry, "probe_answer", lambda name: None)
    monkeypatch.setattr(registry, "get", lambda name: gpu)
    monkeypatch.setattr(registry, "solvers", lambda backend: gpu.solvers())
    layer = "conv_f32_NCHW_n1c8k8g1_i9x9_w3x3_p1x1"
    monkeypatch.setattr(module.Resident, "params", (module.SOLVERS, [layer]))
    ((_, prepare),) = benchmarks(module)
    prepare()()
    assert len(gpu.gpu.launches) == 3  # two to warm up


@pytest.mark.parametrize("name", MODULES)
def test_parameters_have_names_and_are_constant(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    for item in vars(module).values():
        if inspect.isclass(item) and hasattr(item, "params"):
            sets = parameter_sets(item)
            assert {len(s) for s in sets} == {len(item.param_names)}
            assert len(set(map(repr, sets))) == len(sets), f"{item.__name__} repeats parameters"

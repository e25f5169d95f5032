"""Fixtures of every ring: the header that tells which backends work here, and clean settings."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from emulated import missing

from convjit import calibration, registry, staleness, tunedb
from convjit.store import Store
from convjit.testing import plugin

# Variables that a developer may have set must not decide what the tests test.
for variable in [name for name in os.environ if name.startswith("CONVJIT_")]:
    if variable != "CONVJIT_CACHE_DIR":
        del os.environ[variable]
os.environ.pop("COLUMNS", None)  # tables are as wide as a terminal that says so


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Each backend with its probe's answer, so that a ring that is skipped is seen."""
    ours = [name for name in registry.names() if registry.is_builtin(name)]
    return [*plugin.header([*ours, *plugin.chosen(config)]), *rings(ours)]


def rings(names: Sequence[str]) -> list[str]:
    """Where kernels for GPUs run: PTX in the emulator, numba's simulator, a GPU."""
    kernels = missing()
    on_gpu = [name for name in names if registry.without_device(name).device == "cuda"]
    works = [name for name in on_gpu if registry.probe_answer(name) is None]
    simulator = "one launch of each path" if find_spec("numba_cuda") else "numba-cuda is missing"
    return [
        "GPU kernels",
        f"  emulator   {'their PTX, on the CPU' if kernels is None else f'skipped: {kernels}'}",
        f"  simulator  {simulator}",
        f"  GPU        {', '.join(works) or 'skipped: no backend finds one (see above)'}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first: distributed over several cores, no long test is left for the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Collected tests are no garbage: compiling, which makes much, shall not look through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def nothing_was_measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a developer tuned or calibrated on this machine must not decide either."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("calibrated") / "calibration.json"
        figures = Store(str(path), calibration.VERSION)
        patch.setattr(calibration, "STORE", figures)
        patch.setattr(tunedb, "DATABASE", empty_database(tmp_path_factory.mktemp("tuned")))
        yield


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A tuning database of the test's own, which the plan cache forgets afterwards."""
    with monkeypatch.context() as patch:
        patch.setattr(tunedb, "DATABASE", empty_database(tmp_path))
        yield tunedb.DATABASE
    staleness.outdate()


def empty_database(directory: Path) -> Store:
    """One that has nothing to do with the user's directory."""
    return Store("tuning.json", tunedb.VERSION, directory=directory)

"""Fake distributions: metadata and modules written into a directory on ``sys.path``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import convjit
from convjit import health
from convjit.discovery import GROUP

# A healthy plugin.  Its solver is the oracle, and predicts that it costs nothing, so that it is the
# first choice wherever it takes part.
HEALTHY = """
from convjit.precision import Numerics
from convjit.spi import Phase, Work
from convjit.testing.loopback import (
    WORKSPACE, LoopbackBackend, LoopbackExecutable, LoopbackSolver,
)


class Executable(LoopbackExecutable):
    pass


class Solver(LoopbackSolver):
    id = "{name}.oracle"

    def estimate(self, spec, target):
        numerics = super().estimate(spec, target).numerics
        return Work((Phase("nothing"),), numerics, launches=0, workspace=WORKSPACE)

    def plan(self, spec, target, config):
        return Executable(spec, self._counter)


class Backend(LoopbackBackend):
    name = "{name}"

    def __init__(self):
        super().__init__()
        self._solvers = (Solver(self.counter),)
"""


class Site:
    """A directory of installed distributions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: list[str] = []

    def install(
        self,
        distribution: str,
        module: str,
        source: str,
        *,
        entries: dict[str, str],
        version: str = "1.2",
    ) -> None:
        """Write a distribution of one module; ``entries`` are name -> "module:attribute"."""
        folder = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (folder / "METADATA").write_text(metadata)
        lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
        (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
        self.write(module, source)

    def write(self, module: str, source: str) -> None:
        (self.path / f"{module}.py").write_text(source)
        self.modules.append(module)

    def backend(
        self, name: str, extra: str = "", *, distribution: str = "", version: str = "1.2"
    ) -> str:
        """Install a backend, healthy but for what ``extra`` redefines; the name of its module."""
        distribution = distribution or f"convjit-{name}"
        module = distribution.replace("-", "_") + "_module"
        self.install(
            distribution,
            module,
            HEALTHY.format(name=name) + extra,
            entries={name: f"{module}:Backend"},
            version=version,
        )
        convjit.refresh()
        return module


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty :class:`Site` on ``sys.path``; nothing of it is left behind."""
    made = Site(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(health, "_warned", set())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    convjit.refresh()
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)
    monkeypatch.undo()
    convjit.refresh()

"""The tutorial's backend, in the checkout: what its README says is what happens.

The conformance suite runs on it in an environment of its own, where it is installed (.ci/run).
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import convjit
from convjit import registry
from convjit.testing.cases import QUICK
from convjit.testing.check import check

EXAMPLE = Path(__file__).resolve().parents[2] / "backends" / "example"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]


@pytest.fixture
def example(site, monkeypatch):
    """The example as its own pyproject.toml installs it."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    entries = PROJECT["entry-points"]["convjit.backends"]
    site.install(PROJECT["name"], "unused", "", entries=entries, version=PROJECT["version"])
    convjit.refresh()
    yield "example"
    for name in [m for m in sys.modules if m.partition(".")[0] == "convjit_example"]:
        del sys.modules[name]


def test_installing_it_changes_nothing(example):
    x, w = np.ones((1, 4, 9, 9), np.float32), np.ones((4, 4, 3, 3), np.float32)
    convjit.conv(x, w)
    assert "convjit_example" not in sys.modules
    with convjit.use(priority=example):
        assert example in [b.name for b in registry.default_pool()]


@pytest.mark.parametrize("case", [c for c in QUICK if c.spec.dtype == "float32"][::3], ids=str)
def test_one_narrow_solver_is_reached_from_every_float32_call(example, case):
    outcome = check(case, example, choice={"nonfinite": "spread"})
    assert outcome.passed, str(outcome)


def test_readme(example, capsys):
    """The python blocks run, and the table shows the lowering."""
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    runnable = [b for b in blocks if "Requirements" not in b]
    assert len(runnable) == 2
    names: dict[str, object] = {}
    for block in runnable:
        exec(compile(block, "README.md", "exec"), names)
    assert names["y"].shape == (2, 30, 30, 16)
    shown = capsys.readouterr().out
    for step in ("pad reflect", "one group at a time", "NHWC to NCHW", "float32"):
        assert step in shown, f"{step!r} is not in:\n{shown}"
    assert "example.shift_matmul" in shown


def test_the_readme_shows_the_files():
    """The entry point and the test file in the text are those of the distribution."""
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    shown = tomllib.loads(re.sub(r"^ +", "", toml, flags=re.MULTILINE))
    assert shown["project"]["entry-points"] == PROJECT["entry-points"]
    tests = (EXAMPLE / "tests" / "test_conformance.py").read_text(encoding="utf-8")
    for line in ("from convjit.testing.suite import *", "class Requirements(Base):"):
        assert line in text
        assert line in tests

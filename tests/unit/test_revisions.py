"""Revisions: which change of which file makes a measurement void."""

from __future__ import annotations

import importlib
import sys

import pytest

from convjit import revisions

FILES = {
    "__init__": "from kernels import one, two",
    "one": "from kernels import shared\n\ndef build():\n    from kernels.inner import x\n",
    "two": "import json\nfrom kernels.shared import (  # a comment\n    a,\n    b as c,\n)\n",
    "shared": "import numpy\n",
    "inner": "import kernels.deeper as d, os\n",
    "deeper": "x = 1\n",
    "other": "",
}


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A package, and what gives the revision of one of its modules after a change of a file."""
    package = tmp_path / "kernels"
    package.mkdir()
    for name, text in FILES.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("kernels", None)
    monkeypatch.setitem(FILES, "two", FILES["two"])

    def after(module, changed=None):
        for name, text in FILES.items():
            more = "# changed\n" if name == changed else ""
            (package / f"{name}.py").write_text(text + more)
        revisions.of_module.cache_clear()
        revisions._source.cache_clear()
        return revisions.of_module(f"kernels.{module}")

    spec = importlib.util.spec_from_file_location("kernels", package / "__init__.py")
    monkeypatch.setitem(sys.modules, "kernels", importlib.util.module_from_spec(spec))
    yield after
    revisions.of_module.cache_clear()
    revisions._source.cache_clear()


@pytest.mark.parametrize(
    ("module", "depends_on"),
    [("one", {"one", "shared", "inner", "deeper"}), ("two", {"two", "shared"})],
)
def test_a_change_reaches_those_that_import_it(module, depends_on, kernels):
    before = kernels(module)
    assert kernels(module) == before
    assert {name for name in FILES if kernels(module, name) != before} == depends_on


def test_another_version_of_a_library_reaches_those_that_import_it(kernels, monkeypatch):
    before = {name: kernels(name) for name in FILES}
    monkeypatch.setattr(revisions, "_version", lambda library: f"new {library}")
    changed = {name for name in FILES if kernels(name) != before[name]}
    assert changed == {"__init__", "one", "two", "shared"}


def test_the_solvers_of_one_backend_differ():
    from convjit import registry

    found = {s.id: revisions.revision(s) for s in registry.solvers("scipy")}
    assert found["scipy.winograd.f4x3"] == found["scipy.winograd.f2x3"]
    assert len({found["scipy.gemm"], found["scipy.fft"], found["scipy.direct"]}) == 3


def test_a_version_of_what_is_no_distribution():
    assert revisions._version("convjit_numba_of_nobody") == ""

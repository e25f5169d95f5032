"""What ``import convjit`` brings in, seen from a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.subprocess

# Each of these costs more than all of convjit, or belongs to one backend or one command.
HEAVY = (
    "cupy",
    "filelock",
    "importlib.metadata",
    "llvmlite",
    "matplotlib",
    "ml_dtypes",
    "numba",
    "packaging",
    "platformdirs",
    "rich",
    "scipy",
)


def modules_after(code: str) -> set[str]:
    """Names in ``sys.modules`` after a program ran in a fresh interpreter."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def baseline() -> set[str]:
    """What the interpreter (an editable install's hooks included) and NumPy bring on their own."""
    return modules_after("import numpy")


@pytest.fixture(scope="module")
def after_import() -> set[str]:
    return modules_after("import convjit")


@pytest.mark.parametrize("name", HEAVY)
def test_import_convjit_does_not_import(
    name: str, after_import: set[str], baseline: set[str]
) -> None:
    assert name not in after_import - baseline


def test_import_convjit_imports_no_backend(after_import: set[str]) -> None:
    assert not {m for m in after_import if m.startswith("convjit_")}


def test_every_public_name_can_be_had_and_is_listed() -> None:
    program = (
        "import convjit\n"
        "missing = set(convjit.__all__) - set(dir(convjit))\n"
        "assert not missing, missing\n"
        "for name in convjit.__all__: getattr(convjit, name)\n"
    )
    found = modules_after(program)
    assert not found & {"numba", "llvmlite", "cupy", "importlib.metadata"}


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    import convjit

    with pytest.raises(AttributeError, match="convolve"):
        convjit.convolve  # noqa: B018


def test_a_bad_environment_variable_does_not_break_the_import() -> None:
    found = modules_after("import os; os.environ['CONVJIT_NUM_THREADS'] = 'many'\nimport convjit")
    assert "convjit" in found

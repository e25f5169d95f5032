"""``pytest -m gpu`` would run on a GPU: it does on the emulator that pretends to be one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import missing

HERE = Path(__file__).parent


def run(*arguments: str) -> str:
    """What a pytest of its own prints at the end."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", str(HERE / "test_on_gpu.py"), "-m", "gpu", "-q",
               "-p", "no:cacheprovider", "-rs", *arguments]  # fmt: skip
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=HERE.parents[1],
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-1000:]
    return answer.stdout


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_tests_of_a_gpu_run_on_a_gpu() -> None:
    told = run("-p", "pretended_gpu", "-k", "here or works or w1x1_bias")
    assert " passed" in told
    assert "numba_cuda: " not in told

"""The tutorials run to the end as a user would run them, and show what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


def run(script: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_network_learns_to_read_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's (extra bench)")
    done = run("train_digits.py", tmp_path)
    assert done.returncode == 0, done.stderr
    reached = re.search(r"([\d.]+)% of \d+ test digits are read correctly", done.stdout)
    assert reached is not None, done.stdout
    assert float(reached[1]) >= 97


def test_training_that_falls_short_fails(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's (extra bench)")
    done = run("train_digits.py", tmp_path, "--epochs", "1", "--rate", "1e-6")
    assert done.returncode == 1
    assert "97% wanted" in done.stderr


def test_upsampling_shows_the_checkerboards(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the pictures are drawn with matplotlib (extra demo)")
    image = pytest.importorskip("PIL.Image", reason="the pictures are read with pillow")
    done = run("upsampling.py", tmp_path, "--output", "out.png")
    assert done.returncode == 0, done.stderr
    with image.open(tmp_path / "out.png") as picture:
        assert picture.size == (1100, 580)
        assert len(picture.convert("L").getcolors()) > 100, "the picture is not empty"

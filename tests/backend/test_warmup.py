"""``python -m convjit warmup``: afterwards no call of those problems compiles anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import convjit
from convjit import warmup
from convjit.bench import cases

LAYER = "conv_f32_NCHW_n1c8k8g1_i14x14_w3x3_p1x1_bias"
SIGNAL = "conv_f64_NCL_n1c1k1g1_i300_w9_p8_flip"
UP = "convt_f32_NCHW_n1c4k4g1_i12x12_w4x4_s2x2_p1x1"


def warm(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convjit", "warmup", *arguments],
        env=os.environ | {"CONVJIT_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=170,
    )


@pytest.mark.subprocess
def test_a_warm_process_compiles_nothing(tmp_path: Path) -> None:
    specs = (LAYER, SIGNAL, UP)
    done = warm(*specs, "--json", cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [row["spec"] for row in found["specs"]] == list(specs)
    assert all(row["planned"] and row["plain"] and not row["failure"] for row in found["specs"])
    assert len(found["compiled"]) == len(set(found["compiled"])) > 0
    stored = {f"numba: {path.stem}" for path in tmp_path.rglob("*.o")}
    assert set(found["compiled"]) == stored

    done = warm(*specs, cache=tmp_path)
    assert done.returncode == 0
    assert "nothing had to be compiled for 3 problems" in done.stdout
    assert "3/3" in done.stderr  # the bar

    calls = """
import numpy as np, convjit
from convjit_numba import cache
x, w = np.ones((1, 8, 14, 14), np.float32), np.ones((8, 8, 3, 3), np.float32)
b = np.ones(8, np.float32)
convjit.conv(x, w, b, padding=1)
convjit.plan(x, w, padding=1)(x, w, b)
signal = np.ones(300)
convjit.conv(signal, signal[:9], padding="full", flip=True)
signal[7] = np.nan
convjit.conv(signal, signal[9:18], padding="full", flip=True)
convjit.conv_transpose(np.ones((1, 4, 6, 6), np.float32), np.ones((4, 4, 4, 4), np.float32),
                       stride=2, padding=1)
assert not cache.compiled, cache.compiled
"""
    done = subprocess.run(
        [sys.executable, "-c", calls],
        env=os.environ | {"CONVJIT_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_words_are_specs_networks_and_files(tmp_path: Path) -> None:
    layers = tmp_path / "layers.json"
    row = {"x": [1, 8, 14, 14], "w": [8, 8, 3, 3], "padding": [[1, 1], [1, 1]], "bias": True}
    layers.write_text(json.dumps({"mine": [row, row]}))
    assert warmup.specs([LAYER, str(layers), LAYER]) == [LAYER]
    assert warmup.specs([str(layers)], batch=2, dtype="f64") == [
        LAYER.replace("f32", "f64").replace("n1", "n2")
    ]
    network = warmup.specs(["vgg19"])
    assert network == list(dict.fromkeys(c.spec for c in cases.network_cases(["vgg19"])))


def test_a_problem_that_nothing_takes_is_told() -> None:
    with convjit.use(algorithm="winograd"):
        (row,) = warmup.prepare([SIGNAL.replace("w9", "w1").replace("p8", "p0")])
    assert row.failure.startswith("UnsupportedError: ")
    assert "failed: conv_f64_NCL_n1c1k1g1_i300_w1_p0_flip: Unsupp" in warmup.text([row])


@pytest.mark.subprocess
def test_a_word_that_means_nothing_is_one_line(tmp_path: Path) -> None:
    for word in ("resnet_of_mine", "missing.json"):
        done = warm(word, cache=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert word in done.stderr

"""The command line: values of arguments, exit codes, one-line errors, JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import convjit
from convjit import calls, cli, pictures, selftest
from convjit.bench import runner
from convjit.commands import COMMANDS, common, values
from convjit.spec import ConvSpec
from convjit.testing.check import Outcome


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    caught = capsys.readouterr()
    return code, caught.out, caught.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error."""
    code, out, error = run(capsys, *arguments)
    assert code == common.USAGE
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("convjit: ")
    return error


# -------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1,2", (1, 2)), ("0:1,2:3", ((0, 1), (2, 3))), ("same", "same"),
     ("same_lower", "same_lower")],
)  # fmt: skip
def test_padding(text: str, value: Any) -> None:
    assert values.padding(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("relu", "relu"), ("leaky_relu,0.1", ("leaky_relu", 0.1)), ("clip,0,6", ("clip", 0.0, 6.0))],
)
def test_activation(text: str, value: Any) -> None:
    assert values.activation(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [(values.shape, "1,b"), (values.padding, "1:2:3"), (values.padding, "1;2"),
     (values.activation, "clip,a"), (values.positive, "0"), (values.positive, "-1")],
)  # fmt: skip
def test_bad_values_are_told_in_a_sentence(parse: Any, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
        parse(text)


def test_shapes_are_written_with_commas_or_crosses() -> None:
    assert values.shape("1,64,56,56") == values.shape("1x64x56x56") == (1, 64, 56, 56)


@pytest.mark.parametrize(
    "word",
    [
        "conv_f32_NCHW_n2c3k4g1_i9x8_w3x3_s2x2_p1x1",
        "conv_f64_NHWC_n2c6k4g2_i9x8_w3x2_p1.2x0_flip_bias_act=leaky_relu,0.1",
        "convt_f32_NCHW_n1c3k4g1_i10x9_w3x3_s2x2_p1x1",
        "igrad_f32_NCL_n1c3k4g1_i17_w3_reflect",
        "igrad_c64_NCL_n1c3k4g1_i17_w3_p1_reflect",
        "wgrad_f32_NCDHW_n1c2k3g1_i5x6x4_w3x2x3_d1x2x1",
    ],
)
def test_a_spec_is_explained_as_itself(word: str) -> None:
    spec = ConvSpec.parse(word)
    shapes, given = calls.described(spec)
    assert convjit.explain(*shapes, backend="scipy", **given).spec == spec


# -------------------------------------------------------------------- commands


def test_explain_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "explain", "1,8,9,9", "4,8,3,3", "--padding", "1", "--backend", "scipy"
    )
    assert code == common.OK
    assert "conv_f32_NCHW_n1c8k4g1_i9x9_w3x3_p1x1" in out
    assert "scipy." in out


def test_explain_takes_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "explain", "2,9,8,6", "4,3,3,2", "--layout", "NHWC", "--groups", "2",
        "--stride", "2,1", "--padding", "1:2,0:1", "--dilation", "1,2", "--dtype", "f64",
        "--flip", "--bias", "--activation", "relu", "--pad-mode", "reflect", "--precision", "exact",
        "--nonfinite", "local", "--workspace-limit", "100000000", "--backend", "numba,scipy",
        "--packed", "--json",
    )  # fmt: skip
    assert code == common.OK
    assert json.loads(out)["spec"] == (
        "conv_f64_NHWC_n2c6k4g2_i9x8_w3x2_s2x1_p1.2x0.1_d1x2_reflect_flip_bias_act=relu"
    )


def test_explain_compares(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "explain", "conv_f32_NCHW_n1c2k2g1_i5x5_w3x3", "--backend", "scipy", "--compare",
        "--algorithm", "gemm", "--json",
    )  # fmt: skip
    assert code == common.OK
    assert json.loads(out)["candidates"][0]["measured_seconds"] > 0


def test_explain_draws_and_writes_a_test(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    word, path = "conv_f32_NCHW_n1c2k2g1_i5x5_w3x3", tmp_path / "it.png"
    code, out, _ = run(capsys, "explain", word, "--backend", "scipy", "--repro")
    assert code == common.OK
    assert f"def test_{word.lower()}():" in out
    code, read, _ = run(capsys, "explain", word, "--backend", "scipy", "--repro", "--json")
    assert json.loads(read)["repro"] == out
    assert "install convjit[plot]" in refused_without_matplotlib(capsys, word, path)
    pytest.importorskip("matplotlib", reason="draws the pictures (extra plot)")
    code, out, _ = run(capsys, "explain", word, "--backend", "scipy", "--plot", str(path))
    assert code == common.OK
    assert "scipy." in out
    assert path.exists()
    assert "end it with .png" in refused(capsys, "explain", word, "--plot", "it.txt")


def refused_without_matplotlib(capsys: pytest.CaptureFixture[str], word: str, path: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "find_spec", lambda name: None)
        return refused(capsys, "explain", word, "--plot", str(path))


def test_explain_tells_of_separable_layers(capsys: pytest.CaptureFixture[str]) -> None:
    given = (
        "explain",
        "1,8,9,9",
        "8,1,3,3",
        "4,8",
        "--backend",
        "scipy",
        "--depth-activation",
        "relu",
    )
    code, out, _ = run(capsys, *given)
    assert code == common.OK
    assert "two calls run; no single pass: the backend scipy has no such pass" in out
    code, out, _ = run(capsys, *given, "--compare", "--json")
    (way,) = json.loads(out)["ways"]
    assert way["measured_seconds"] > 0
    code, out, _ = run(capsys, *given, "--algorithm", "fft", "--precision", "exact")
    assert code == common.FAILED


def test_explain_fails_when_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "explain", "1,8,9,9", "4,8,3,3", "--backend", "scipy", "--algorithm", "fft",
        "--precision", "exact",
    )  # fmt: skip
    assert code == common.FAILED
    assert "nothing runs" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("1,8,9,9", "4,7,3,3"), "ConvSpecError: "),
        (("conv_f32_NCHX_n1c2k2g1_i5x5_w3x3",), "ConvSpecError: "),
        (("conv_f32_NCHW_n1c2k2g1_i5x5_w3x3_strided",), "shapes have no strides"),
        (("conv_f32_NCHW_n1c2k2g1_i5x5_w3x3", "--stride", "2"), "leave out --stride"),
        (("1,8,9,9", "4,8,b,3"), "'4,8,b,3' is not a shape"),
        (("1,8,9,9", "4,8,3,3", "--stride", "a"), "--stride: 'a' is not a size; write 2"),
        (("1,8,9,9", "4,8,3,3", "--budget", "0"), "--budget 0 must be more than 0 seconds"),
        (("1,8,9,9", "4,8,3,3", "--budget", "x"), "'x' is not a number of seconds"),
        (("1,8,9,9", "4,8,3,3", "--workspace-limit", "1MB"), "'1MB' is not a size; write bytes"),
        (("1,8,9,9", "4,8,3,3", "--what"), "unrecognized arguments: --what; python -m convjit"),
        (("1,8,9,9",), "neither a spec nor followed by the shape of w"),
        (("1,8,9,9", "4,8,3,3", "1,1", "1"), "give a spec, or two shapes, not 4"),
        (("1,8,9,9", "8,1,3,3", "1,1"), "w_point has shape (1, 1)"),
        (("1,8,9,9", "8,1,3,3", "4,8", "--groups", "8"), "does not take 'groups'"),
        (("1,8,9,9", "8,1,3,3", "4,8", "--repro"), "of one convolution; give two shapes"),
        (("1,8,9,9", "4,8,3,3", "--depth-activation", "relu"), "give three shapes"),
        (("1,8,9,9", "4,8,3,3", "--dtype", "float8"), "--dtype float8 is not known"),
        (("1,8,9,9", "4,8,3,3", "--backend", "nobody"), "ConfigError: "),
        (("1,8,9,9", "4,8,3,3", "--algorithm", "magic"), "algorithm='magic' is not known"),
    ],
)
def test_what_explain_does_not_understand_is_one_line(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "explain", *arguments)


def test_info_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", "--lazy")
    assert code == common.OK
    assert "backend" in out
    code, out, _ = run(capsys, "info", "--json")
    assert code == common.OK
    assert json.loads(out)["convjit"] == convjit.__version__


def test_bench_passes_the_arguments_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def fake(cases: Any, names: Any, **options: Any) -> runner.Report:
        seen.update(options, cases=list(cases), engines=list(names))
        row = runner.Row(seen["cases"][0], {"convjit": runner.Timing(1e-3, "scipy.gemm", 1e-3, 0)})
        options["told"](row)
        return runner.Report([row], ["convjit"], {}, options["threads"], {})

    monkeypatch.setattr(runner, "run", fake)
    code, out, error = run(
        capsys, "bench", "--network", "vgg19", "--batch", "2", "--threads", "3", "--rounds", "1",
        "--peers", "--layers", "--images", "--signals", "--detail",
    )  # fmt: skip
    assert code == common.OK
    assert "scipy.gemm" in out
    assert "1.000 ms" in error
    assert seen["threads"] == 3
    assert seen["rounds"] == 1
    assert seen["engines"][0] == "convjit"
    assert {"torch", "numpy", "ncnn"} <= set(seen["engines"])
    assert {case.group for case in seen["cases"]} >= {"vgg19", "dilated", "images", "signals"}
    code, out, error = run(capsys, "bench", "--json")
    assert json.loads(out)["cases"][0]["timings"]["convjit"]["label"] == "scipy.gemm"
    assert error == ""


def test_bench_fails_when_convjit_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(cases: Any, names: Any, **options: Any) -> runner.Report:
        row = runner.Row(next(iter(cases)), {"convjit": runner.Timing(reason="boom", failed=True)})
        return runner.Report([row], ["convjit"], {}, 1, {})

    monkeypatch.setattr(runner, "run", fake)
    code, out, _ = run(capsys, "bench", "--quiet")
    assert code == common.FAILED
    assert "failed, convjit on" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--engines", "jax"), "'jax' is not known; choose from convjit,"),
        (("--network", "lenet"), "network 'lenet' is not known"),
        (("--networks-file", "/no/such/file"), "is not a file of layers"),
        (("conv_i8_NCHW_n1c3k4g1_i9x8_w3x3",), "bench times float32"),
    ],
)
def test_what_bench_does_not_understand_is_one_line(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "bench", *arguments)


# -------------------------------------------------------------------- selftest


def test_selftest_checks_a_backend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "QUICK", selftest.QUICK[:6])
    code, out, _ = run(capsys, "selftest", "--backend", "scipy", "--json")
    assert code == common.OK
    (result,) = json.loads(out)["results"]
    assert result["backend"] == "scipy"
    assert result["passed"] == 6
    assert result["failed"] == 0


def test_selftest_fails_on_a_wrong_answer_and_on_an_exception(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(case: Any, backend: str, **forced: Any) -> Outcome:
        if str(case).startswith("conv_"):
            return Outcome(case, backend, "scipy.gemm", 1.0, 1e-7, complaint="a plan is wrong")
        if str(case).startswith("convt_"):
            raise ValueError("boom")
        return Outcome(case, backend, refusal="not offered")

    monkeypatch.setattr(selftest, "check", wrong)
    monkeypatch.setattr(selftest, "QUICK", selftest.QUICK[:8])
    code, out, error = run(capsys, "selftest", "--backend", "scipy")
    assert code == common.FAILED
    assert out.rstrip().endswith("failed")
    assert "a plan is wrong" in error
    assert "ValueError: boom" in error


def test_selftest_without_the_device_says_so_in_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in convjit.backends() if row.device != "cuda"]
    monkeypatch.setattr(selftest.registry, "status", lambda load=(): rows)
    code, out, error = run(capsys, "selftest", "--device", "cuda")
    assert code == common.NO_DEVICE
    assert out == ""
    assert error.startswith("convjit: no backend for the device 'cuda' works here")
    assert error.count("\n") == 1


def test_selftest_of_an_unknown_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert "backend='nobody' is not known" in refused(capsys, "selftest", "--backend", "nobody")


def test_demo_without_its_photograph_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from convjit import demo

    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert "install convjit[demo]" in refused(capsys, "demo", "--output", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------- processes


def convjit_process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convjit", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **variables},
        timeout=120,
        check=False,
    )


@pytest.mark.subprocess
def test_help_and_version() -> None:
    told = convjit_process("--help")
    assert told.returncode == 0
    for command in COMMANDS:
        assert command in told.stdout
    assert "exit codes" in told.stdout
    assert convjit_process("--version").stdout == f"convjit {convjit.__version__}\n"
    assert convjit_process("no-such-command").returncode == common.USAGE


@pytest.mark.subprocess
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    told = convjit_process(command, "--help")
    assert told.returncode == 0
    assert f"python -m convjit {command}" in told.stdout
    assert "--json" in told.stdout


@pytest.mark.subprocess
def test_a_bad_environment_is_one_line() -> None:
    told = convjit_process("info", CONVJIT_NUM_THREADS="many")
    assert told.returncode == common.USAGE
    assert told.stdout == ""
    assert told.stderr.startswith("convjit: ConfigError: CONVJIT_NUM_THREADS='many'")
    assert told.stderr.count("\n") == 1


@pytest.mark.subprocess
def test_a_warning_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tuning.json").write_text("{")
    told = convjit_process("tune", "--list", CONVJIT_CACHE_DIR=str(tmp_path))
    assert told.returncode == 0
    assert told.stderr.startswith(f"convjit: warning: {tmp_path / 'tuning.json'} was damaged")
    assert told.stderr.count("\n") == 1


@pytest.mark.subprocess
def test_a_narrow_encoding_does_not_break_a_table() -> None:
    told = convjit_process("info", "--lazy", PYTHONIOENCODING="ascii")
    assert told.returncode == 0
    assert "backend" in told.stdout

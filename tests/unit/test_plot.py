"""Pictures of a benchmark: families of layers, where algorithms cross, the roofline, the files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convjit import cli, gauging, pictures, sweeps
from convjit.bench import engines, family, peak, plot, runner, verify, worker
from convjit.bench.cases import Case
from convjit.bench.runner import Report, Row, Timing
from convjit.commands import common
from convjit.errors import ConvSpecError
from convjit.gauges import Gauge, Run
from convjit.spec import ConvSpec
from convjit.spi import Target
from convjit.sweeps import Crossover

# -------------------------------------------------------------------- families


def test_a_family_keeps_its_size_and_grows_its_padding() -> None:
    made = family.parse("channels=64,size=56", (7, 1, 4))
    assert {k: str(spec) for k, spec in made.specs.items()} == {
        1: "conv_f32_NCHW_n1c64k64g1_i56x56_w1x1",
        4: "conv_f32_NCHW_n1c64k64g1_i56x56_w4x4_p1.2x1.2",
        7: "conv_f32_NCHW_n1c64k64g1_i56x56_w7x7_p3x3",
    }
    assert list(family.parse("channels=1,size=100x").specs) == list(sweeps.KERNELS[1])
    assert list(made.specs) == [1, 4, 7]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("channels=8,out=4,size=9x7,batch=2,groups=4", "conv_f32_NCHW_n2c8k4g4_i9x7_w5x5_p2x2"),
        ("channels=2,size=9,dtype=f64,layout=NHWC,dilation=2",
         "conv_f64_NHWC_n1c2k2g1_i9x9_w5x5_p4x4_d2x2"),
        ("channels=2,size=8,stride=2", "conv_f32_NCHW_n1c2k2g1_i8x8_w5x5_s2x2_p1.2x1.2"),
        ("channels=1,size=50x", "conv_f32_NCL_n1c1k1g1_i50_w5_p2"),
        ("channels=2,size=4x5x6", "conv_f32_NCDHW_n1c2k2g1_i4x5x6_w5x5x5_p2x2x2"),
        ("conv_f32_NCL_n1c1k1g1_i50_w9_p8_flip", "conv_f32_NCL_n1c1k1g1_i50_w5_p6_flip"),
        ("conv_f32_NCHW_n1c1k1g1_i20x20_w3x3", "conv_f32_NCHW_n1c1k1g1_i20x20_w5x5"),
        ("conv_f32_NCHW_n1c1k1g1_i20x20_w1x3_p0x1", "conv_f32_NCHW_n1c1k1g1_i20x20_w1x5_p0x2"),
        ("convt_f32_NCHW_n1c3k4g1_i10x10_w4x4_s2_p1",
         "convt_f32_NCHW_n1c3k4g1_i10x10_w5x5_s2_p1.2"),
        ("convt_f32_NCL_n1c3k4g1_i10_w3_o4_s2", "convt_f32_NCL_n1c3k4g1_i12_w5_o4_s2"),
    ],
)  # fmt: skip
def test_a_family_has_the_layer_of_each_kernel_size(text: str, word: str) -> None:
    made = family.parse(text, (5,))
    assert made.specs[5] == ConvSpec.parse(word)
    assert ConvSpec.parse(str(made.specs[5])) == made.specs[5]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("channels=64", "does not say size"),
        ("channels=64,size", "not understood at 'size'"),
        ("channels=64,size=56,size=5", "not understood at 'size=5'"),
        ("channels=64,width=56", "not understood at 'width=56'"),
        ("channels=0,size=56", "channels=0 is not a whole number"),
        ("channels=64,size=axb", "size=a is not a whole number"),
        ("channels=64,size=2x2x2x2", "size is 1000x, 56, 56x80 or 8x56x56"),
        ("channels=64,size=56,layout=NCL", "layout is NCHW or NHWC, not NCL"),
        ("channels=6,size=56,groups=4", "groups must divide"),
        ("channels=6,size=56,dtype=f8", "not f8"),
        ("conv_f32_NCHW_n1c1k1g1_i3x3_w3x3", "has no result with a kernel"),
        ("wgrad_f32_NCHW_n1c1k1g1_i9x9_w3x3", "forward and transposed directions"),
        ("mine", "is not understood"),
    ],
)
def test_what_is_no_family_is_told_in_a_sentence(text: str, told: str) -> None:
    with pytest.raises(ConvSpecError, match=told):
        family.parse(text, (5,))


def test_a_kernel_has_taps() -> None:
    with pytest.raises(ConvSpecError, match="a kernel of 0 taps"):
        family.parse("channels=1,size=5", (0, 3))


# -------------------------------------------------------------------- sweeps


def test_a_problems_own_size_stands_in_place_of_what_nearly_equals_it() -> None:
    spec = ConvSpec.parse("conv_f32_NCL_n1c60k8g1_i1000_w31")
    kernels, channels = sweeps.members(spec, "kernel"), sweeps.members(spec, "channels")
    assert [size for size in kernels if 17 <= size <= 65] == [17, 31, 65]
    assert [size for size in channels if 32 <= size <= 128] == [32, 60, 128]
    assert kernels[31] == channels[60] == spec
    assert list(sweeps.members(spec, "kernel", (31, 33))) == [31, 33]


TIMES: dict[str, dict[int, tuple[float, float]]] = {  # milliseconds: measured, predicted
    "direct": {1: (1.0, 1.0), 3: (4.0, 2.0), 5: (20.0, 20.0)},
    "winograd": {3: (2.0, 3.0)},
    "fft": {1: (9.0, 9.0), 3: (8.0, 8.0), 5: (5.0, 5.0)},
}


def swept() -> tuple[family.Family, Report]:
    made = family.parse("channels=4,size=9", (1, 3, 5))
    rows = []
    for case in made.cases_by_algorithm():
        kernel = case.problem.kernel_size[0]
        times = TIMES.get(case.algorithm, {}).get(kernel)
        timing = Timing(reason="refused")
        if times is not None:
            measured, predicted = (t * 1e-3 for t in times)
            timing = Timing(measured, case.algorithm, predicted, 0.0, algorithm=case.algorithm)
        rows.append(Row(case, {"convjit": timing}))
    return made, Report(rows, ["convjit"], {}, 2, {})


def test_a_sweep_knows_the_fastest_the_choice_and_the_regret() -> None:
    found = family.sweep_of(*swept())
    assert list(found.curves) == ["direct", "fft", "winograd"]
    assert found.sizes == [1, 3, 5]
    assert [found.fastest(k) for k in (1, 3, 5)] == ["direct", "winograd", "fft"]
    assert [found.chosen(k) for k in (1, 3, 5)] == ["direct", "direct", "fft"]
    assert [found.regret(k) for k in (1, 3, 5)] == pytest.approx([1.0, 2.0, 1.0])


def test_crossovers_lie_where_the_curves_meet_or_in_the_middle() -> None:
    first, second = family.sweep_of(*swept()).crossovers()
    assert (first.before, first.after) == ("direct", "winograd")
    assert (first.smaller, first.larger) == (1, 3)
    assert first.at == pytest.approx(math.sqrt(3))  # winograd has no time at 1
    assert second == Crossover("winograd", "fft", 3, 5, pytest.approx(math.sqrt(15)))
    made, report = swept()
    for row in report.rows:
        if row.case.algorithm == "winograd":
            row.timings["convjit"] = Timing(reason="refused")
    (only,) = family.sweep_of(made, report).crossovers()
    assert (only.before, only.after, only.smaller, only.larger) == ("direct", "fft", 3, 5)
    # From 4:8 to 20:5, straight on logarithmic scales: log 2 / (log 2 + log 4) of the way.
    assert only.at == pytest.approx(3 * (5 / 3) ** (1 / 3))


def test_the_text_and_the_json_of_a_sweep() -> None:
    found = family.sweep_of(*swept())
    text = family.text(found)
    assert "3x3        4.00   8.00       2.00   winograd   direct     2.00" in text
    assert "from kernel size 3 on winograd is faster than direct (they meet at 1.7)" in text
    assert "| 3x3 | 4.00 | 8.00 | 2.00 | winograd | direct | 2.00 |" in family.text(
        found, as_markdown=True
    )
    read = json.loads(json.dumps(found.as_dict()))
    assert read["sizes"]["3"]["algorithms"]["fft"]["seconds"] == pytest.approx(8e-3)
    assert read["crossovers"][0]["sizes"] == [1, 3]


def test_an_engine_takes_the_algorithm_of_its_case_or_says_why_not() -> None:
    def made(word: str, algorithm: str) -> engines.Engine:
        case = Case("family", "layer", word, algorithm=algorithm)
        spec = case.problem
        return engines.convjit_engine(
            engines.Job(case, spec, *verify.operands(spec), threads=1, plain=False)
        )

    word = "conv_f32_NCHW_n1c4k4g1_i9x9_w3x3_p1"
    for algorithm in ("direct", "gemm"):
        facts = made(word, algorithm).facts
        assert facts["algorithm"] == algorithm
        assert facts["predicted"] > 0
    with pytest.raises(engines.NotOffered):
        made("conv_f32_NCHW_n1c4k4g1_i9x9_w9x9_p4", "winograd")


def test_what_is_hopeless_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "HOPELESS", 0.0)
    case = Case("family", "layer", "conv_f32_NCHW_n1c4k4g1_i9x9_w3x3_p1", algorithm="gemm")
    job = engines.Job(case, case.problem, *verify.operands(case.problem), 1, plain=False)
    with pytest.raises(engines.NotOffered, match="times as long as the choice"):
        engines.convjit_engine(job)


@pytest.mark.subprocess
def test_a_family_is_timed_by_algorithm() -> None:
    made = family.parse("channels=4,size=9", (3,))
    found = family.sweep(made, threads=1, seconds=0.0, rounds=1)
    assert {"direct", "gemm"} <= set(found.curves)
    assert not found.failures
    for timing in found.at(3).values():
        assert timing.seconds is not None
        assert timing.predicted is not None


# -------------------------------------------------------------------- the roofline


LAYER = "conv_f32_NCHW_n1c8k16g1_i10x10_w1x1_bias"


def sample() -> Report:
    rows = [
        Row(Case("net", "layer", LAYER, 2), {
            "convjit": Timing(1e-6, "numba.gemm", 1e-6, 0.0, algorithm="gemm")}),
        Row(Case("net", "layer", LAYER), {
            "convjit": Timing(4e-6, "numba.gemm", 1e-6, 0.0, algorithm="gemm")}),
        Row(Case("images", "image", "conv_f64_NCHW_n1c1k1g1_i10x10_w3x3_p1"), {
            "convjit": Timing(2e-6, "stranger", 1e-6, 0.0, algorithm="stranger")}),
        Row(Case("net", "layer", "conv_f32_NCHW_n1c1k1g1_i9x9_w3x3"), {
            "convjit": Timing(reason="boom", failed=True)}),
    ]  # fmt: skip
    peaks = {"float32": {"peak": 2e10, "how": ""}, "float64": {"peak": 0.0, "how": "unknown"}}
    bandwidth = {"l1": 9e10, "l2": 8e10, "l3": 3e10, "memory": 1e10, "copy": 2e10}
    return Report(rows, ["convjit"], {}, 2, peaks, {"bandwidth": bandwidth, "how": "measured"})


def test_compulsory_traffic_is_each_operand_and_the_result_once() -> None:
    assert plot.compulsory_bytes(ConvSpec.parse(LAYER)) == 4 * (800 + 128 + 16 + 1600)
    transposed = ConvSpec.parse("convt_f64_NCL_n2c3k4g1_i10_w3_o4_s2_p1")
    assert plot.compulsory_bytes(transposed) == 8 * (2 * 4 * 4 + 4 * 3 * 3 + 2 * 3 * 10)


def test_equal_layers_are_one_point() -> None:
    gemm, other = plot.points(sample())
    flops = 2 * 8 * 16 * 100
    assert gemm.layers == 3
    assert gemm.intensity == pytest.approx(flops / 10176)
    assert gemm.rate == pytest.approx(3 * flops / 6e-6)
    assert gemm.share == pytest.approx(0.75)
    assert (other.algorithm, other.dtype, other.share) == ("stranger", "float64", 0.25)
    assert plot.peaks(sample()) == {"float32": 2e10}
    assert plot.bandwidths(sample()) == {"l2": 8e10, "l3": 3e10, "memory": 1e10}
    assert json.loads(json.dumps(plot.as_dict(sample())))["points"][0]["layers"] == 3


@pytest.mark.parametrize(
    ("word", "words"),
    [
        (LAYER, "1x1, 8 to 16 on 10x10"),
        ("conv_f64_NCL_n1c1k1g1_i50_w5_p2", "5 on 50, float64"),
        ("convt_f32_NCHW_n2c6k4g2_i17x16_w3x3_o9x8_s2_p1",
         "3x3, 4 to 6 on 9x8, batch 2, stride 2, 2 groups, transposed"),
        ("conv_f32_NCHW_n1c4k4g1_i9x9_w3x3_d1x2", "3x3, 4 to 4 on 9x9, dilation 1x2"),
    ],
)  # fmt: skip
def test_a_layer_is_told_in_a_few_words(word: str, words: str) -> None:
    assert pictures.told(ConvSpec.parse(word)) == words


def test_bandwidths_are_measured_unless_they_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Target("", "cpu", "", 1, {}, {}, {"l2": 1.0}, {}, 0.0)

    class Plain:
        name = "plain"

        def target(self) -> Target:
            return table

    class Measuring(Plain):
        name = "measuring"

        def gauges(self, target: Target) -> list[Gauge]:
            return [Gauge("bandwidth", "l2", lambda: Run(lambda: 0.5, 1.0))]

    monkeypatch.setattr(gauging, "_least", lambda call: call())
    monkeypatch.setattr(peak, "target_of", lambda name: table)
    monkeypatch.setattr(peak.registry, "default_pool", lambda device: [Plain(), Measuring()])
    measured = {"bandwidth": {"l2": 2.0}, "how": "measured by measuring"}
    assert worker.Worker("convjit").answer({"bandwidth": True}) == measured
    monkeypatch.setattr(peak.registry, "default_pool", lambda device: [Plain()])
    assert peak.measured_bandwidth() == {"bandwidth": {"l2": 1.0}, "how": "from the table of plain"}
    monkeypatch.setattr(peak.registry, "default_pool", lambda device: [])
    assert peak.measured_bandwidth() == {"bandwidth": {}, "how": "unknown"}


# -------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_equal_data_gives_equal_files(suffix: str, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="draws the pictures (extra plot)")
    found = family.sweep_of(*swept())
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    plot.draw(one, sample(), [found])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        plot.draw(two, sample(), [found])
    assert one.read_bytes() == two.read_bytes()
    start = {".png": b"\x89PNG\r\n", ".svg": b"<?xml"}[suffix]
    assert one.read_bytes().startswith(start)


def test_a_picture_has_a_panel_for_the_roofline_and_one_for_each_family(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the pictures (extra plot)")
    from matplotlib import image

    heights = []
    for number, (report, count) in enumerate(
        [(sample(), 0), (sample(), 2), (Report([], ["convjit"], {}, 1, {}), 1)]
    ):
        path = tmp_path / f"{number}.png"
        plot.draw(path, report, [family.sweep_of(*swept())] * count)
        heights.append(np.asarray(image.imread(path)).shape[0])
    assert heights == [heights[0], 3 * heights[0], heights[0]]


def test_a_roofline_needs_neither_peak_nor_bandwidth(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the pictures (extra plot)")
    report = sample()
    report.peak, report.bandwidth = {}, {}
    report.rows = report.rows[:1]
    plot.draw(tmp_path / "it.png", report)
    assert (tmp_path / "it.png").stat().st_size > 10_000


def test_what_cannot_be_drawn_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="draws the pictures (extra plot)")
    (tmp_path / "folder.png").mkdir()
    for path, told in (
        (tmp_path / "it.doc", r"end it with \.png or \.svg"),
        (tmp_path / "no" / "it.png", "is not a directory to write in"),
        (tmp_path / "folder.png", "it is a directory"),
    ):
        with pytest.raises(pictures.PlotError, match=told):
            pictures.prepare(path)
    with pytest.raises(pictures.PlotError, match="computed nothing to show"):
        plot.draw(tmp_path / "it.png", Report([], ["convjit"], {}, 1, {}))
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    with pytest.raises(pictures.PlotError, match=r"install convjit\[plot\]"):
        plot.draw(tmp_path / "it.png", sample())
    assert not (tmp_path / "it.png").exists()


# -------------------------------------------------------------------- the command line


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["bench", *arguments])
    caught = capsys.readouterr()
    return code, caught.out, caught.err


def test_bench_draws_what_it_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="draws the pictures (extra plot)")
    asked: list[dict[str, Any]] = []

    def fake(cases: Any, names: Any, **options: Any) -> Report:
        asked.append({**options, "cases": list(cases), "names": list(names)})
        return swept()[1] if asked[-1]["cases"][0].algorithm else sample()

    monkeypatch.setattr(runner, "run", fake)
    path = tmp_path / "it.png"
    code, out, _ = command(
        capsys, "--family", "channels=4,size=9", "--kernels", "1,3,5", "--plot", str(path),
        "--threads", "2", "--plain",
    )  # fmt: skip
    assert code == common.FAILED  # one of the sample's layers failed
    assert "from kernel size 3 on winograd is faster than direct" in out
    assert path.stat().st_size > 10_000
    timed, by_algorithm = asked
    assert [case.problem.kernel_size[0] for case in timed["cases"]] == [1, 3, 5]
    assert timed["bandwidth"]
    assert {case.algorithm for case in by_algorithm["cases"]} >= {"direct", "gemm", "fft"}
    assert timed["plain"]
    assert by_algorithm["plain"]
    assert by_algorithm["names"] == ["convjit"]
    path.unlink()
    code, out, _ = command(
        capsys, "--family", "channels=4,size=9", "--kernels", "1,3,5", "--plot", str(path), "--json"
    )
    read = json.loads(out)
    assert read["families"][0]["name"] == "channels=4,size=9"
    assert read["roofline"]["points"][0]["algorithm"] == "gemm"
    assert path.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--plot", "it.doc"), "end it with .png or .svg"),
        (("--plot", "/no/such/place/it.png"), "is not a directory to write in"),
        (("--plot", "it.png", "--engines", "numpy"), "name it among --engines"),
        (("--family", "channels=4,size=9", "--engines", "numpy"), "name it among --engines"),
        (("--family", "channels=4"), "does not say size"),
        (("--kernels", "3"), "name it with --family"),
        (("--family", "channels=4,size=9", "--kernels", "0"), "a kernel of 0 taps"),
    ],
)
def test_what_bench_cannot_draw_is_one_line_before_anything_is_timed(
    arguments: tuple[str, ...],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "run", lambda *_, **__: pytest.fail("it was timed"))
    code, out, error = command(capsys, *arguments)
    assert (code, out) == (common.USAGE, "")
    assert told in error
    assert error.count("\n") == 1


def test_without_matplotlib_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    monkeypatch.setattr(runner, "run", lambda *_, **__: pytest.fail("it was timed"))
    code, _, error = command(capsys, "--plot", "it.png")
    assert code == common.USAGE
    assert "install convjit[plot]" in error

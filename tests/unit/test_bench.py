"""The benchmark: cases, the check of results, the engines' turns, the tables."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convjit.algorithms.oracle import oracle
from convjit.bench import cases, engines, gradients, peak, report, runner, verify, worker
from convjit.bench.cases import Case
from convjit.bench.runner import Row, Timing
from convjit.errors import BackendError, ConvSpecError
from convjit.spec import ConvSpec, Direction
from convjit.spi import Target

SPECS = [
    "conv_f32_NCHW_n2c6k4g2_i9x8_w3x2_s2x1_p1.2x0_d1x2_bias",
    "conv_f64_NCL_n1c1k1g1_i50_w7_p6_flip",
    "conv_f32_NHWC_n2c3k4g1_i9x8_w3x3_p1",
    "conv_f32_NCDHW_n1c2k3g1_i5x6x4_w3x2x3_p1",
    "convt_f32_NCHW_n2c6k4g2_i17x16_w3x3_o9x8_s2_p1_bias",
    "convt_f64_NCHW_n1c4k4g4_i10x9_w3x3_s2_p1_flip",
    "igrad_f32_NCHW_n2c6k4g2_i9x8_w3x2_s2x1_p1.2x0_d1x2",
    "igrad_f64_NHWC_n1c3k4g1_i9x8_w3x3_s2_p1",
    "wgrad_f32_NCHW_n2c6k4g2_i9x8_w3x2_s2x1_p1.2x0_d1x2",
    "wgrad_f64_NCHW_n3c3k4g1_i9x8_w3x3_p1_flip",
]


# -------------------------------------------------------------------- cases


def test_every_network_parses_and_spells_itself() -> None:
    names = list(cases.networks())
    assert {"resnet50", "vgg19", "mobilenet_v2", "unet256", "dcgan64_b16"} <= set(names)
    for case in cases.network_cases(names):
        spec = case.problem
        assert str(spec) == case.spec
        assert spec.macs > 0
        assert case.count >= 1


@pytest.mark.parametrize("name", ["resnet50", "dcgan64_b16", "unet256"])
def test_a_layer_has_the_shapes_of_its_file(name: str) -> None:
    for layer, case in zip(cases.networks()[name], cases.network_cases([name]), strict=True):
        spec = case.problem
        assert spec.lhs_shape == tuple(layer["x"])
        assert spec.w_shape == tuple(layer["w"])
        assert spec.bias == layer["bias"]


def test_batch_and_dtype_change_every_layer() -> None:
    for case in cases.network_cases(["vgg19"], batch=4, dtype="float64"):
        assert case.problem.batch == 4
        assert case.problem.dtype == "float64"


def test_a_direction_makes_gradients_of_layers() -> None:
    for direction in ("input_grad", "weight_grad", "transposed"):
        for forward, case in zip(
            cases.network_cases(["resnet50"]),
            cases.network_cases(["resnet50"], direction=direction),
            strict=True,
        ):
            wanted = forward.problem.replace(direction=Direction(direction), bias=False)
            assert case.problem == wanted
            verify.check_supported(case.problem)
    for layer, case in zip(
        cases.networks()["dcgan64_b16"],
        cases.network_cases(["dcgan64_b16"], direction="input_grad"),
        strict=True,
    ):
        assert case.problem.direction is Direction.FORWARD
        assert case.problem.y_shape == tuple(layer["x"])


def test_an_unknown_network_names_the_choices() -> None:
    with pytest.raises(ConvSpecError, match=r"network 'lenet' is not known; choose from bvlc_"):
        list(cases.network_cases(["lenet"]))


def test_a_file_of_layers_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"mine": [{"x": [1, 3, 8, 8], "w": [4, 3, 3, 3]}]}))
    (case,) = cases.network_cases(["mine"], cases.read_networks(path))
    path.with_name("all.json").write_text(json.dumps(cases.networks()))
    assert cases.read_networks(path.with_name("all.json")) == cases.networks()
    assert case.spec == "conv_f32_NCHW_n1c3k4g1_i8x8_w3x3"
    path.write_text('{"mine": [{"x": [1, 3, 8, 8]}]}')
    with pytest.raises(ConvSpecError, match="has a layer without w"):
        cases.read_networks(path)
    for wrong in ("[1]", '{"mine": 3}', "{}", '{"mine": []}', "{"):
        path.write_text(wrong)
        with pytest.raises(ConvSpecError, match="is not a file of layers"):
            cases.read_networks(path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"strid": [1, 1]}, "layer 0 of 'mine' has 'strid', which is not known; choose from w, x"),
        ({"padding": 1}, r"has padding=1; give a list of pairs \[lo, hi\]"),
        ({"padding": [[1], [1]]}, "has padding="),
        ({"stride": [1]}, "has stride=.*; give a list of whole numbers, one for each spatial axis"),
        ({"dilation": [1, True]}, "has dilation="),
        ({"x": [1, 3, 8]}, "has x=.*; give a list of sizes, as many as w has"),
        ({"w": "4333"}, "has w='4333'; give a list of 3 to 5 sizes"),
        ({"groups": "a"}, "has groups='a'; give a whole number above 0"),
        ({"bias": 2}, "has bias=2; give true or false"),
        ({"w": [4, 2, 3, 3]}, "has x=.* and w=.*, but such a w takes 2 channels"),
        ({"w": [4, 1, 3, 3], "groups": 3}, "takes 3 channels, 3 groups of them"),
        ({"w": [4, 3, 9, 9]}, r"layer 0 of 'mine' has a kernel \[9, 9\] that does not fit"),
    ],
)
def test_a_wrong_layer_of_a_file_is_named(given: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"mine": [{"x": [1, 3, 8, 8], "w": [4, 3, 3, 3], **given}]}))
    with pytest.raises(ConvSpecError, match=told):
        cases.read_networks(path)


def test_kinds_of_layers_are_what_their_names_say() -> None:
    kinds: dict[str, list[ConvSpec]] = {}
    for case in cases.kind_cases():
        verify.check_supported(case.problem)
        kinds.setdefault(case.group, []).append(case.problem)
    assert all(max(spec.dilation) > 1 for spec in kinds["dilated"])
    assert all(spec.groups > 1 for spec in kinds["grouped"])
    assert {spec.direction for spec in kinds["transposed"]} == {Direction.TRANSPOSED}
    assert {spec.ndim for spec in kinds["3-D"]} == {3}
    assert {spec.ndim for spec in kinds["1-D"]} == {1}
    assert {spec.dtype for spec in kinds["float64"]} == {"float64"}
    assert {spec.direction for spec in kinds["gradients, x"]} == {Direction.INPUT_GRAD}
    assert {spec.direction for spec in kinds["gradients, w"]} == {Direction.WEIGHT_GRAD}


def test_images_and_signals_are_what_their_names_say() -> None:
    for case in cases.image_cases():
        assert case.problem.out_size == case.problem.in_size
    for case in cases.signal_cases():
        (n,), (k,) = case.problem.in_size, case.problem.kernel_size
        assert case.problem.out_size == (n + k - 1,)
        assert case.problem.flip
    for case in cases.small_cases():
        verify.check_supported(case.problem)


# -------------------------------------------------------------------- the check of results


def first(spec: ConvSpec) -> ConvSpec:
    return spec.replace(layout={1: "NCL", 2: "NCHW", 3: "NCDHW"}[spec.ndim])


@pytest.mark.parametrize("word", SPECS)
def test_the_check_agrees_with_the_oracle(word: str) -> None:
    spec = ConvSpec.parse(word)
    lhs, rhs, bias = verify.operands(spec)
    right = oracle(first(spec), lhs, rhs, bias).astype(spec.dtype)
    assert verify.check(spec, lhs, rhs, bias, right) < verify.LIMITS[spec.dtype]


@pytest.mark.parametrize("word", SPECS)
def test_the_check_finds_what_is_wrong(word: str) -> None:
    spec = ConvSpec.parse(word)
    lhs, rhs, bias = verify.operands(spec)
    right = oracle(first(spec), lhs, rhs, bias).astype(spec.dtype)
    with pytest.raises(BackendError, match="wrong result"):
        verify.check(spec, lhs, rhs, bias, right + right.dtype.type(0.01))
    with pytest.raises(BackendError, match="wrong result"):
        verify.check(spec, lhs, rhs, bias, right[..., :-1])
    with pytest.raises(BackendError, match="wrong result"):
        verify.check(spec, lhs, rhs, bias, right.astype(np.float16))
    with pytest.raises(BackendError, match="wrong result"):
        verify.check(spec, lhs, rhs, bias, np.full_like(right, np.nan))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("conv_f32_NCHW_n1c3k4g1_i9x8_w3x3_p1_reflect", "zero padding"),
        ("conv_i8_NCHW_n1c3k4g1_i9x8_w3x3", "not int8"),
    ],
)
def test_what_cannot_be_checked_is_not_timed(word: str, told: str) -> None:
    with pytest.raises(ConvSpecError, match=told):
        verify.check_supported(ConvSpec.parse(word))


# -------------------------------------------------------------------- engines


def job(case: Case) -> engines.Job:
    spec = case.problem
    return engines.Job(case, spec, *verify.operands(spec), threads=1, plain=False)


IN_PROCESS = ("convjit", "convjit_nhwc", "scipy_fft", "scipy_oa", "scipy_ndimage", "numpy")


@pytest.mark.parametrize("name", IN_PROCESS)
@pytest.mark.parametrize("case", [
    *(Case("specs", "layer", word) for word in SPECS if "NHWC" not in word),
    Case("images", "image", "conv_f32_NCHW_n1c1k1g1_i30x30_w5x5_p2"),
    Case("signals", "signal", "conv_f64_NCL_n1c1k1g1_i200_w9_p8_flip"),
], ids=lambda case: case.spec)  # fmt: skip
def test_an_engine_computes_the_case_or_says_that_it_does_not(name: str, case: Case) -> None:
    work = job(case)
    if work.gradient and not name.startswith("convjit"):
        with pytest.raises(engines.NotOffered, match="no gradients"):
            gradients.engine(name, work)
        return
    kinds = {"numpy": ["signal"], "scipy_ndimage": ["image"], "convjit_nhwc": ["layer"]}
    if name.startswith("scipy_") and name != "scipy_ndimage":
        kinds[name] = ["image", "signal"]
    if case.kind not in kinds.get(name, [case.kind]):
        with pytest.raises(engines.NotOffered, match=r"^for (layers|images|signals|images and)"):
            engines.ENGINES[name](work)
        return
    made = gradients.engine(name, work)
    result = made.result(made.run())
    verify.check(work.spec, work.lhs, work.rhs, work.bias, result)


def test_every_engine_says_what_it_imports() -> None:
    assert set(engines.MODULES) == set(engines.ENGINES)
    assert set(engines.PEERS) < set(engines.ENGINES)


def test_output_padding_of_a_transposed_layer() -> None:
    word = "convt_f32_NCHW_n1c3k4g1_i10x9_w3x3_o5x5_s2_p1"
    assert job(Case("specs", "layer", word)).spec.output_padding == (1, 0)


# -------------------------------------------------------------------- workers


def request(spec: str, kind: str = "layer") -> dict[str, Any]:
    return {
        "group": "specs", "kind": kind, "spec": spec, "threads": 1, "seconds": 0.0, "plain": False,
    }  # fmt: skip


def test_a_worker_times_checks_and_tells_what_it_does_not_do() -> None:
    numpy = worker.Worker("numpy")
    answer = numpy.answer(request("conv_f64_NCL_n1c1k1g1_i200_w9_p8_flip", "signal"))
    assert answer["seconds"] > 0
    assert answer["error_found"] < 1e-12
    assert "signals only" in numpy.answer(request(SPECS[0]))["left_out"]


def test_a_wrong_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(work: engines.Job) -> engines.Engine:
        return engines.Engine(lambda: np.zeros(first(work.spec).result_shape, work.spec.dtype))

    monkeypatch.setitem(engines.ENGINES, "numpy", wrong)
    answer = worker.Worker("numpy").answer(request(SPECS[0]))
    assert "wrong result" in answer["error"]


def test_a_library_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.MODULES, "numpy", ("no_such_module_of_anybody",))
    answers = io.StringIO()
    worker.serve("numpy", io.StringIO(json.dumps(request(SPECS[0])) + "\n"), answers)
    assert "no_such_module_of_anybody" in json.loads(answers.getvalue())["missing"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "int8"])
def test_the_peak_is_the_best_of_the_measurements(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Named:
        name = "measuring"

    rates = {"float32": 200.0, "float64": 200.0}
    remembered = Target("", "cpu", "", 1, rates, {}, {}, {}, 0.0, measured=True)
    monkeypatch.setattr(peak, "_matrix_product", lambda kind: 100.0)
    monkeypatch.setattr(peak.registry, "default_pool", lambda device: [Named()])
    monkeypatch.setattr(peak, "target_of", lambda name: remembered)
    found = peak.measured_peak(dtype)
    if dtype == "int8":  # accumulates in int64, for which nobody states a peak
        assert found["peak"] == 100.0
    else:
        assert found == {"peak": 200.0, "how": "measured by measuring"}
    table = dataclasses.replace(remembered, measured=False)
    monkeypatch.setattr(peak, "target_of", lambda name: table)
    assert peak.measured_peak(dtype)["how"] == "the best rate of NumPy's matrix product"
    monkeypatch.setattr(Named, "peak", lambda self, kind: 300.0, raising=False)
    assert peak.measured_peak(dtype) == {"peak": 300.0, "how": "measured by measuring"}


def test_a_matrix_product_has_a_rate() -> None:
    assert peak._matrix_product("float32", n=32, seconds=0.0) > 0


@pytest.mark.subprocess
def test_engines_take_turns_in_processes_of_their_own() -> None:
    rows: list[Row] = []
    chosen = [
        Case("signals", "signal", "conv_f64_NCL_n1c1k1g1_i300_w9_p8_flip"),
        Case("mine", "layer", "conv_f32_NCHW_n1c3k4g1_i9x8_w3x3_p1", 3),
    ]
    found = runner.run(
        chosen, ["numpy", "scipy_fft"], threads=1, seconds=0.0, rounds=2, told=rows.append
    )
    assert rows == found.rows
    assert found.engines == ["numpy", "scipy_fft"]
    assert found.rows[0].seconds("numpy") is not None
    assert found.rows[0].seconds("scipy_fft") is not None
    assert found.rows[1].timings["numpy"].reason == "for images and signals only"
    assert not found.failures


@pytest.mark.subprocess
def test_a_worker_that_dies_answers_with_an_error() -> None:
    with runner.Process("no such engine", 1) as process:
        for _ in range(2):
            assert "ended with status" in process.ask({"peak": "float32"})["error"]


# -------------------------------------------------------------------- reports


def sample() -> runner.Report:
    layer = "conv_f32_NCHW_n1c8k8g1_i10x10_w1x1"
    rows = [
        Row(Case("net", "layer", layer, 2), {
            "convjit": Timing(1e-3, "numba.gemm", 1e-3, 1e-7), "torch": Timing(2e-3, error=1e-7),
            "ncnn": Timing(4e-3, error=1e-7),
        }),
        Row(Case("net", "layer", layer), {
            "convjit": Timing(1e-3, "numba.gemm", 1e-3, 1e-7), "torch": Timing(2e-3, error=1e-7),
            "ncnn": Timing(reason="for 2-D layers only"),
        }),
        Row(Case("images", "image", "conv_f32_NCHW_n1c1k1g1_i10x10_w3x3_p1"), {
            "convjit": Timing(2e-3, "numba.direct", 1e-3, 1e-7), "torch": Timing(1e-3, error=1e-7),
            "ncnn": Timing(reason="boom", failed=True),
        }),
    ]  # fmt: skip
    peaks = {"float32": {"peak": 1e9, "how": "measured by numba"}}
    return runner.Report(rows, ["convjit", "torch", "ncnn"], {"openvino": "No module"}, 2, peaks)


def test_totals_weigh_by_count_and_leave_out_the_incomplete() -> None:
    (total,) = sample().totals()
    assert total.seconds == {"convjit": pytest.approx(3e-3), "torch": pytest.approx(6e-3)}
    assert total.layers == 3
    assert total.ratio == pytest.approx(2.0)
    assert total.best_peer() == ("torch", pytest.approx(6e-3))


def test_ratios_are_of_networks_and_of_each_image() -> None:
    ratios = sample().ratios()
    assert ratios == {"net": pytest.approx(2.0), "image 10x10 * 3x3 float32": pytest.approx(0.5)}
    assert runner.geometric_mean(list(ratios.values())) == pytest.approx(1.0)
    assert runner.geometric_mean([]) is None


def test_the_text_names_what_was_left_out_and_what_failed() -> None:
    text = report.text(sample())
    assert "geometric mean 1.00 over 2, least 0.50 (image 10x10 * 3x3 float32)" in text
    assert "left out, openvino: No module" in text
    assert "failed, ncnn on conv_f32_NCHW_n1c1k1g1_i10x10_w3x3_p1: boom" in text
    assert "peak in float32: 1.0 GFLOP/s, measured by numba" in text
    assert "numba.gemm" not in text
    assert "numba.gemm" in report.text(sample(), detail=True)


def test_the_markdown_is_made_of_tables_and_a_list() -> None:
    lines = report.text(sample(), as_markdown=True).splitlines()
    assert "| layers of | count | convjit | torch | GFLOP/s | % peak | ratio | best peer |" in lines
    assert any(line.startswith("- ratio = best peer") for line in lines)


def test_the_report_is_json() -> None:
    read = json.loads(json.dumps(sample().as_dict()))
    assert read["networks"][0]["ratio"] == pytest.approx(2.0)
    assert read["cases"][0]["timings"]["convjit"]["label"] == "numba.gemm"
    assert read["failures"] == ["ncnn on conv_f32_NCHW_n1c1k1g1_i10x10_w3x3_p1: boom"]


def test_failures_of_ours_are_told_apart() -> None:
    assert not sample().ours_failed
    made = sample()
    made.rows[0].timings["convjit"] = Timing(reason="wrong result", failed=True)
    assert made.ours_failed

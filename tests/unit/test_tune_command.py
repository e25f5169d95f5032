"""``python -m convjit tune``: its arguments, its output, and what it leaves behind."""

from __future__ import annotations

import json

import pytest

import convjit
from convjit import cli, revisions, tuner, tuning
from convjit.bench import cases
from convjit.spec import ConvSpec

TINY = "conv_f32_NCHW_n1c2k3g1_i6x6_w3x3"
OTHER = "wgrad_f64_NCL_n2c2k2g1_i9_w3"
LAYERS = {
    "tiny": [
        {"x": [1, 2, 6, 6], "w": [3, 2, 3, 3]},
        {"x": [1, 2, 6, 6], "w": [3, 2, 3, 3], "padding": [[1, 1], [1, 1]]},
    ]
}


def run(*arguments, code=0):
    assert cli.main(["tune", *map(str, arguments)]) == code


def tune(*arguments, code=0):
    run(*arguments, "--backend", "scipy", "--budget", 0.2, code=code)


def test_one_problem_is_told_in_detail(database, capsys):
    tune(TINY)
    told = capsys.readouterr()
    assert told.out.startswith(TINY + "\n")
    assert "scipy.direct" in told.out
    assert "with packed weights: scipy." in told.out
    assert "1/1" in told.err
    plan = convjit.plan((1, 2, 6, 6), (3, 2, 3, 3), backend="scipy")
    assert "remembered" in plan.reason


def test_shapes_are_tuned_as_a_call_of_them_is(database, capsys):
    tune("9,9", "3,3", "--padding", "same", "--flip", "--quiet")
    assert capsys.readouterr().err == ""
    explained = convjit.explain((9, 9), (3, 3), padding="same", flip=True, backend="scipy")
    assert explained.winner.remembered is not None


def test_several_are_a_line_each(database, tmp_path, capsys):
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(LAYERS))
    tune(path, OTHER, "--batch", 2, "--quiet")
    out = capsys.readouterr().out
    assert TINY.replace("n1", "n2") in out
    assert OTHER in out
    assert "3 problems with packed weights: " in out
    assert f"remembered in {database.path}" in out


def test_json(database, capsys):
    tune(TINY, OTHER, "--json")
    told = json.loads(capsys.readouterr().out)
    assert [problem["spec"] for problem in told["problems"]] == [TINY, OTHER]
    assert told["database"] == str(database.path)
    run("--list", "--json")
    told = json.loads(capsys.readouterr().out)
    assert [entry["spec"] for entry in told["remembered"]] == [TINY, OTHER]
    assert {"label", "config", "seconds", "revision"} <= set(told["remembered"][0]["rows"][0])


def test_what_is_exported_can_be_imported(database, tmp_path, capsys):
    path = tmp_path / "tuned.json"
    tune(TINY, "--export", path)
    run("--forget", "--list")
    assert "nothing is remembered in" in capsys.readouterr().out
    run("--import", path, "--list")
    out = capsys.readouterr().out
    assert f"1 entries from {path} are remembered" in out
    assert TINY in out


def test_the_list_says_what_still_counts(database, capsys, monkeypatch):
    tune(TINY)
    capsys.readouterr()

    def listed():
        run("--list")
        return capsys.readouterr().out

    assert "in force" in listed()
    with convjit.use(num_threads=3):
        assert "another machine" in listed()
    with monkeypatch.context() as patch:
        patch.setattr(revisions, "revision", lambda solver: "new")
        assert "kernel changed" in listed()
    with convjit.use(disable="scipy"):
        assert "no such backend" in listed()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to tune, or give --list"),
        (["nothing"], "spec='nothing' is not understood"),
        (["nothing.json"], "nothing.json is not a file of layers"),
        ([TINY, "--stride", "2"], "--stride go with the shapes"),
        ([TINY, "--budget", "0"], "--budget 0 must be more than 0 seconds"),
        (["1,2", "3", "--backend", "scipy"], "w has shape (3,)"),
        (["6,6", "3,3", "--dtype", "float7"], "--dtype float7 is not known"),
        ([TINY, "--deterministic"], "deterministic=True was given"),
        ([TINY, "--precision", "high"], "precision='high'"),
        (["--import", "nothing"], "nothing cannot be imported"),
        (["--export", "/dev/null/x"], "/dev/null/x cannot be written"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, database, capsys):
    run(*arguments, "--quiet", code=2)
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert message in told.err


def test_what_cannot_be_computed_is_told_and_the_rest_tuned(database, capsys):
    tune(TINY, OTHER, "--algorithm", "winograd", "--quiet", code=1)
    out = capsys.readouterr().out
    assert f"failed: {OTHER}: UnsupportedError" in out
    assert TINY in out


def test_an_interrupt_tells_what_is_done(database, capsys, monkeypatch):
    real = tuning.tune_problem

    def interrupted(problem, request, **options):
        if str(problem.spec) == OTHER:
            raise KeyboardInterrupt
        return real(problem, request, **options)

    monkeypatch.setattr(tuning, "tune_problem", interrupted)
    tune(TINY, OTHER, "--quiet", code=130)
    told = capsys.readouterr()
    assert TINY in told.out
    assert told.err == "convjit: interrupted\n"
    assert len(database.entries()) == 1


def test_what_one_problem_does_not_need_is_left_for_the_others(monkeypatch):
    shares = []
    clock = iter([100.0, 100.0, 101.0, 105.0])  # the start, then before each job
    monkeypatch.setattr(tuner.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(tuner, "tune", lambda *shapes, budget_s, **given: shares.append(budget_s))
    jobs = [tuner.Job(str(number), ((1,), (1,)), {}) for number in range(3)]
    list(tuner.tune_jobs(jobs, budget=9.0))
    assert shares == [3.0, 4.0, 4.0]


def test_threads_are_part_of_the_machine(database, capsys):
    run(TINY, "--backend", "scipy", "--budget", 0.1, "--threads", 1, "--json")
    (entry,) = database.entries().values()
    with convjit.use(num_threads=1):
        plan = convjit.plan((1, 2, 6, 6), (3, 2, 3, 3), backend="scipy")
        assert "remembered" in plan.reason
    with convjit.use(num_threads=2):
        plan = convjit.plan((1, 2, 6, 6), (3, 2, 3, 3), backend="scipy")
        assert "remembered" not in plan.reason
    assert entry["backend"] == "scipy"


def pair(x, depth, point, **more):
    """Two rows of a file of layers, the second pointwise."""
    after = {"x": [*x[:1], depth[0], *more.pop("after", x[2:])], "w": point}
    return [{"x": x, "w": depth, "groups": x[1], **more}, after]


def test_pairs_of_layers_are_tuned_as_separable_ones(database, tmp_path, capsys, monkeypatch):
    known = pair([1, 4, 6, 6], [4, 1, 3, 3], [2, 4, 1, 1], padding=[[1, 1], [1, 1]])
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"tiny": [*known, *known]}))
    tune(path, "--layout", "NHWC", "--json")
    told = [problem["spec"] for problem in json.loads(capsys.readouterr().out)["problems"]]
    first, second = "conv_f32_NHWC_n1c4k4g4_i6x6_w3x3_p1x1", "conv_f32_NHWC_n1c4k2g1_i6x6_w1x1"
    assert told == [first, second, f"{first}, then {second}"]
    tune(path, "--layout", "NHWC", "--quiet")
    assert "2 problems with packed weights: " in capsys.readouterr().out
    tune("1,6,6,4", "4,1,3,3", "2,4", "--layout", "NHWC", "--padding", 1, "--quiet")
    assert "there is no single pass: the backend scipy has" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "pairs"),
    [
        (pair([1, 4, 6, 6], [4, 1, 3, 3], [2, 4, 1, 1], padding=[[1, 1], [1, 1]]), 1),
        (pair([1, 4, 6, 6], [8, 1, 3, 3], [2, 8, 1, 1], after=[4, 4]), 1),
        (pair([1, 4, 6, 6], [4, 1, 3, 3], [2, 4, 1, 1]), 0),  # of other sizes
        (pair([1, 4, 6, 6], [4, 1, 3, 3], [2, 4, 3, 3], padding=[[1, 1], [1, 1]]), 0),
        (pair([1, 1, 6, 6], [4, 1, 3, 3], [2, 4, 1, 1], padding=[[1, 1], [1, 1]]), 0),
    ],
)
def test_what_makes_a_pair(rows, pairs):
    assert len(list(cases.separable_pairs(map(cases.layer_spec, rows)))) == pairs


def test_mobilenets_blocks_are_pairs():
    specs = [ConvSpec.parse(case.spec) for case in cases.network_cases(["mobilenet_v2"])]
    assert len(list(cases.separable_pairs(specs))) == 17


def test_a_layout_of_another_dimension_is_told(capsys):
    run(TINY, "--layout", "NLC", "--quiet", code=2)
    assert "it may be NCHW or NHWC" in capsys.readouterr().err

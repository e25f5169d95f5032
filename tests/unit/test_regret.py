"""The held-out problems are the same everywhere, and regret is what its name says."""

from __future__ import annotations

import json
from typing import Any

import pytest

import convjit
from convjit import cli
from convjit.bench import cases, heldout, regret
from convjit.bench.heldout import Trial
from convjit.bench.regret import Row, Timed
from convjit.errors import ConvSpecError
from convjit.spec import Direction

TRIAL = Trial("given", "conv_f32_NCHW_n1c2k2g1_i6x6_w3x3")


def row(*candidates: tuple[str, float, float]) -> Row:
    return Row(TRIAL, tuple(Timed(*candidate) for candidate in candidates))


def test_a_set_is_the_same_every_time_and_longer_sets_begin_with_shorter_ones() -> None:
    few, more = list(heldout.trials(0, 2)), list(heldout.trials(0, 4))
    assert few == list(heldout.trials(0, 2))
    for group in heldout.GROUPS:
        mine = [trial for trial in more if trial.group == group]
        assert mine[:2] == [trial for trial in few if trial.group == group]
    assert not {t.spec for t in few} & {t.spec for t in heldout.trials(1, 2)}
    # What Python promises not to change, spelt out once.
    assert few[0].spec == "conv_f32_NCHW_n4c480k64g1_i30x30_w3x3_p1x1"


def test_the_set_is_varied_and_none_of_it_is_a_layer_that_kernels_are_developed_by() -> None:
    trials = list(heldout.trials())
    specs = [trial.problem for trial in trials]
    known = {case.spec for case in cases.network_cases(list(cases.networks()))}
    others = (*cases.kind_cases(), *cases.image_cases(), *cases.signal_cases())
    known |= {case.spec for case in others}
    assert not known & {trial.spec for trial in trials}
    assert len({trial.spec for trial in trials}) == len(trials)
    assert {spec.ndim for spec in specs} == {1, 2, 3}
    assert {spec.direction for spec in specs} == set(Direction)
    assert {spec.layout for spec in specs} >= {"NCHW", "NHWC", "NCL", "NLC", "NCDHW", "NDHWC"}
    assert len({spec.dtype for spec in specs}) >= 7
    assert {max(spec.stride) for spec in specs} >= {1, 2, 3}
    assert any(max(spec.dilation) > 1 for spec in specs)
    assert any(1 < spec.groups < spec.in_channels for spec in specs)
    assert any(spec.groups == spec.in_channels > 1 for spec in specs)
    assert {trial.packed for trial in trials} == {True, False}
    assert all(spec.flops <= heldout.MOST_FLOPS for spec in specs)


def test_regret_is_the_choice_over_the_best() -> None:
    assert row(("a", 1.0, 3.0), ("b", 2.0, 2.0), ("c", 3.0, 4.0)).regret == 1.5
    assert row(("a", 1.0, 2.0), ("b", 2.0, 3.0)).regret == 1.0
    rows = [row(("a", 1.0, 4.0), ("b", 2.0, 1.0)), row(("a", 1.0, 1.0))]
    assert regret.geometric_mean(rows) == pytest.approx(2.0)
    assert regret.as_dict(rows)["worst"] == 4.0
    text = regret.text(rows, detail=True)
    assert "4.00" in text
    assert "2.000" in text


def test_candidates_are_timed() -> None:
    with convjit.use(disable="numba"):
        found, admitted = regret.measured(TRIAL, 0.0), regret.explained(TRIAL).admitted
    assert [one.label for one in found.timed] == [c.label for c in admitted][: len(found.timed)]
    assert found.chosen.predicted == admitted[0].seconds
    assert all(one.seconds > 0.0 for one in found.timed)


def test_a_problem_that_computes_nothing_is_told() -> None:
    with pytest.raises(ConvSpecError, match="no product is summed"):
        regret.measured(Trial("given", "conv_f32_NCHW_n0c2k2g1_i6x6_w3x3"))


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regret, "measured", lambda trial, seconds: row(("a", 1.0, 1.0)))
    assert cli.main(["regret", "--group", "image", "--each", "2", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["geometric_mean"] == 1.0
    assert len(found["rows"]) == 2
    assert cli.main(["regret", "--group", "teapot"]) == 2
    assert "choose from dense" in capsys.readouterr().err
    assert cli.main(["regret", TRIAL.spec, "--group", "image"]) == 2
    assert cli.main(["regret", "conv_nonsense"]) == 2

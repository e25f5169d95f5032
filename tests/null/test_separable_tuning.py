"""Tuning of separable layers, with times that the test says: what is measured, kept, and chosen."""

from __future__ import annotations

import json

import numpy as np
import pytest

import convjit
from convjit import (
    calls,
    registry,
    revisions,
    separable,
    separable_tuning,
    staleness,
    tunedb,
    tuner,
    turns,
)
from convjit.errors import ConvSpecError, UnsupportedError
from convjit.precision import Numerics
from convjit.spi import Feature, Phase, Refusal, Work

X, DEPTH, POINT = (1, 28, 28, 64), (64, 1, 3, 3), (128, 64)
WIDE, NARROW = (("mr", 8),), (("mr", 4),)
TWO = "numba.depthwise, then numba.indirect"
OPTIONS = {"layout": "NHWC", "padding": 1, "backend": "numba"}


class OnePass:
    """A solver that computes nothing; ``times`` says what it and the two calls take."""

    id = "numba.separable"

    def __init__(self):
        self.times = {(): 0.9, WIDE: 0.5, NARROW: 0.8, TWO: 1.0}
        self.predicted, self.takes = 1e-9, True
        self.ran, self.measured = None, []

    def refuse(self, depth, point, target):
        return None if self.takes else Refusal(Feature.OTHER, "not these")

    def estimate(self, depth, point, target):
        phase = Phase("all", bytes={"memory": self.predicted * target.bandwidth["memory"]})
        return Work((phase,), Numerics("direct"), launches=0, workspace=100, calls=0)

    def configs(self, depth, point, target):
        yield from ((), WIDE, NARROW)

    def plan(self, depth, point, target, config):
        return _Executable(self, config)


class _Executable:
    pack_depth = pack_point = staticmethod(lambda weights: weights)

    def __init__(self, solver, config):
        self.solver, self.config = solver, config
        self.workspace = 100 + 10_000 * dict(config).get("mr", 0)

    def run(self, x, depth, depth_bias, point, bias, out, workspace):
        self.solver.ran = self.config


class _Half:
    """Stands for a plan of one of the two calls."""

    def __init__(self, solver):
        self.solver = solver

    def pack(self, weights):
        return weights

    def __call__(self, x, weights, bias):
        self.solver.ran = TWO


@pytest.fixture
def one(database, monkeypatch):
    made = OnePass()

    def measure(function, seconds, least=3):
        function()
        made.measured.append(made.ran)
        return made.times[made.ran]

    monkeypatch.setattr(type(registry.get("numba")), "separable", lambda self: made)
    monkeypatch.setattr(separable_tuning, "plans_of", lambda offer: (_Half(made),) * 2)
    monkeypatch.setattr(turns, "low_quartile", measure)
    staleness.outdate()
    yield made
    staleness.outdate()


def tune(x=X, depth=DEPTH, point=POINT, **options):
    return convjit.tune_separable(x, depth, point, **(OPTIONS | options))


def offered(x=X, **options):
    given = {"packed": True} | OPTIONS | options
    return convjit.explain_separable(x, DEPTH, POINT, **given).offer


def test_the_fastest_block_sizes_are_remembered_and_run(one):
    found = tune()
    assert found.planned == "numba.separable (mr=8), measured"
    assert found.before == "numba.separable"
    assert found.gain == pytest.approx(0.9 / 0.5)
    assert found.is_finished
    assert set(one.measured) == {(), WIDE, NARROW, TWO}
    told = convjit.explain_separable(X, DEPTH, POINT, packed=True, **OPTIONS)
    assert told.runs == "one pass"
    assert "numba.separable (mr=8) runs: it is faster than two calls, measured on 2" in str(told)
    assert "remembered ms" in str(told)
    assert told.as_dict()["ways"][0]["remembered"]["seconds"] == 0.5
    x, depth, point = (np.ones(s, np.float32) for s in (X, DEPTH, POINT))
    convjit.depthwise_separable(x, depth, point, **OPTIONS)
    assert one.ran == WIDE
    again = tune()
    assert not again.is_new
    assert again.planned == found.planned
    assert json.dumps(again.as_dict())


def test_two_calls_that_are_faster_run(one):
    one.times[TWO] = 0.4
    assert offered().why_not == ""
    found = tune()
    assert found.planned == f"{TWO} (default), measured"
    assert offered().why_not.startswith("two calls are faster, measured on 2")
    operator = calls.OPERATOR | {"groups": 64, "layout": "NHWC", "padding": 1}
    operands = [np.ones(s, np.float32) for s in (X, DEPTH, (*POINT, 1, 1))]
    choice = {"backend": "numba"}
    assert separable.find(*operands, None, None, None, operator, (None, None), choice) is None


def test_the_model_decides_between_times_that_are_alike(one):
    one.times |= {(): 0.6, TWO: 0.51}
    tune()
    assert offered().why_not == ""
    one.predicted = 1.0
    assert offered().why_not == "two calls are predicted to be as fast"


def test_measurements_decide_nothing_for_deterministic_calls(one):
    tune()
    assert offered().remembered is not None
    assert offered(deterministic=True).remembered is None
    one.predicted = 1.0  # as for another number of threads
    staleness.outdate()
    assert offered(deterministic=True).why_not == ""
    told = convjit.explain_separable(X, DEPTH, POINT, deterministic=True, **OPTIONS)
    assert "runs: with deterministic=True it does for every number of threads" in str(told)
    with pytest.raises(ConvSpecError, match="deterministic=True was given"):
        tune(deterministic=True)


def test_a_kernel_that_changes_voids_its_own_times_alone(one, monkeypatch):
    tune()
    real = revisions.revision

    def listed():
        (row,) = [line for line in tuner.listing().splitlines() if ", then " in line]
        return row

    def changed(name):
        return lambda solver: "new" if solver.id == name else real(solver)

    assert "in force" in listed()
    with monkeypatch.context() as patch:
        patch.setattr(revisions, "revision", changed("numba.indirect"))
        assert offered().remembered is not None
        assert offered().halves_remembered is None
        assert not offered().is_measured
        assert "in force" in listed()  # the fastest row is of one pass
        assert tune().is_new
    with monkeypatch.context() as patch:
        patch.setattr(revisions, "revision", changed("numba.separable"))
        assert offered().remembered is None
        assert offered().config == ()
        assert "kernel changed" in listed()


def test_the_entry_is_none_of_a_problem(one, database, tmp_path):
    tune()
    (entry,) = database.entries().values()
    assert "spec" not in entry  # which versions that know of no layers ask for
    assert entry["layer"] == [str(tunedb.keyed(spec)) for spec in offered().specs]
    assert convjit.explain(X, DEPTH, groups=64, **OPTIONS).winner.remembered is None
    tunedb.export_file(tmp_path / "tuned.json")
    tunedb.forget()
    assert offered().remembered is None
    assert tunedb.import_file(tmp_path / "tuned.json") == 1
    assert offered().remembered is not None


def test_sizes_of_one_bucket_share_an_entry(one):
    tune()
    near = offered((1, 30, 30, 64))
    assert near.config == WIDE
    assert "of its bucket" in str(near.remembered)
    assert offered((1, 60, 60, 64)).remembered is None


def test_block_sizes_must_fit_the_workspace(one):
    tune(workspace_limit=50_000)
    assert set(one.measured) == {(), NARROW, TWO}
    tune(again=True)
    assert separable.planned(offered()).executable.config == WIDE
    assert separable.planned(offered(workspace_limit=50_000)).executable.config == ()


def test_without_a_pass_nothing_is_measured(one, database):
    one.takes = False
    found = tune()
    assert found.ended == "there is no single pass: not these"
    assert found.planned == TWO
    assert one.measured == []
    assert not database.entries()


def test_each_backend_that_has_a_pass_is_asked(one):
    found = offered(backend=("scipy", "numba"))
    assert (found.backend, found.why_not) == ("numba", "")
    assert offered(backend="scipy").refusal == "the backend scipy has no such pass"


def test_what_nothing_computes_is_told(one):
    with pytest.raises(UnsupportedError, match="computed by nothing"):
        tune(backend="scipy", workspace_limit=0)


def test_an_algorithm_is_of_the_two_calls(one):
    assert tune(algorithm="direct").ended.endswith("algorithm='direct' is of the two calls")
    assert one.measured == []

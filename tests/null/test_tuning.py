"""Tuning, with times that the test says: what is measured, kept, and chosen from then on."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

import convjit
from convjit import calls, dispatch, environment, registry, revisions, staleness, tunedb, turns
from convjit.arguments import Request
from convjit.errors import ConfigError, ConvjitWarning, ConvSpecError, UnsupportedError
from convjit.precision import Policy
from convjit.spec import ConvSpec
from convjit.store import Store

X, W = (1, 16, 32, 32), (16, 16, 3, 3)
SPEC = ConvSpec.forward(X, W, padding=1)
T4, T8 = (("tile", 4),), (("tile", 8),)


class Clock:
    """Stands for the measuring: (solver, tile) -> seconds of a call, and of packing."""

    def __init__(self, times, pack):
        self.times, self.pack = times, pack
        self.measured = []
        self.interrupt_after = None

    def __call__(self, function, seconds, least=3):
        if self.interrupt_after is not None and len(self.measured) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.ran, self.packs = None, 0
        function()
        self.measured.append(self.ran)
        return self.times[self.ran] + self.packs * self.pack.get(self.ran[0], 0.0)

    @property
    def tiles(self):
        """What was measured at all, each once, in order."""
        return list(dict.fromkeys(self.measured))


@pytest.fixture
def clock(solvers, database, monkeypatch):
    """Times by which gemm with tiles of 8 is the fastest, and winograd the slowest to pack."""
    times = {
        ("direct", 4): 1.05, ("direct", 8): 1.06, ("gemm", 4): 1.0, ("gemm", 8): 0.5,
        ("winograd", 4): 0.8, ("winograd", 8): 0.79, ("loose", 4): 3.0, ("loose", 8): 0.1,
        ("tf32", 4): 0.3, ("tf32", 8): 0.3,
    }  # fmt: skip
    made = Clock(times, {"winograd": 2.0})

    def run(executable, lhs, packed, bias, out, workspace):
        made.ran = executable.solver.id.removeprefix("null."), dict(executable.config)["tile"]

    def pack(executable, rhs):
        made.packs += 1
        return "packed"

    made.packs = 0
    executable = type(solvers["gemm"].plan(SPEC, None, T4))
    monkeypatch.setattr(executable, "run", run)
    monkeypatch.setattr(executable, "pack", pack)
    monkeypatch.setattr(turns, "low_quartile", made)
    return made


def tune(x=X, w=W, **options):
    return convjit.tune(x, w, **({"padding": 1, "backend": "null"} | options))


def chosen(x=X, w=W, **options):
    plan = convjit.plan(x, w, **({"padding": 1, "backend": "null"} | options))
    return plan.solver.removeprefix("null."), plan.config


def plain_choice(**options):
    request = Request(backend="null", policy=Policy(**options), packed=False)
    return dispatch.candidates(SPEC, request)[0]


# -------------------------------------------------------------------- what is chosen


def test_the_fastest_measured_is_chosen_with_its_block_sizes(clock):
    assert chosen() == ("winograd", T4)
    found = tune()
    assert chosen() == ("gemm", T8)
    assert found.planned.startswith("null.gemm (tile=8), forced by backend='null'; remembered: 500")
    assert found.before == "null.winograd"
    assert found.gain == pytest.approx(0.8 / 0.5)
    assert found.is_new
    plan = convjit.plan(X, W, padding=1, backend="null")
    assert re.search(
        r"remembered: 500 ms, measured on \d{4}-\d\d-\d\d; next null.\w+ ", plan.reason
    )
    assert "null.gemm (tile=8)" in str(plan)
    assert "null.gemm" in str(found)
    assert json.dumps(found.as_dict())


def test_info_tells_how_much_is_remembered(clock):
    def told():
        (row,) = [b for b in environment.facts(load=True)["backends"] if b["name"] == "null"]
        return row["target"]

    assert told()["tuned"] == 0
    tune()
    assert told()["tuned"] == 1
    assert "; tuned problems: 1" in environment.describe(load=True)


def test_packing_counts_where_it_is_paid_each_time(clock):
    clock.times["winograd", 8] = 0.4
    tune()
    assert chosen() == ("winograd", T8)
    assert plain_choice().solver_id == "null.gemm"
    assert plain_choice().remembered.seconds == 0.5


def test_the_plans_of_this_process_notice(clock):
    x, w = np.ones(X, np.float32), np.ones(W, np.float32)
    convjit.conv(x, w, padding=1, backend="null")
    assert clock.ran == ("loose", 4)  # what the model says of plain calls
    tune()
    convjit.conv(x, w, padding=1, backend="null")
    assert clock.ran == ("gemm", 8)
    clock.ran = None
    assert len(calls._plans) == 1
    convjit.conv(x, w, padding=1, backend="null")
    assert clock.ran == ("gemm", 8)


def test_what_is_measured_alike_is_decided_by_the_model(clock):
    clock.times |= {("gemm", 8): 0.79, ("gemm", 4): 0.79}
    tune()
    assert chosen() == ("winograd", T4)  # 0.80 against 0.79, and its own first block sizes


def test_bias_and_activation_share_what_is_remembered(clock):
    tune()
    assert chosen(bias=False) == chosen(bias=True) == chosen(activation="relu") == ("gemm", T8)


# -------------------------------------------------------------------- filters stand above it


def test_a_measurement_lets_nothing_in_that_is_refused(clock):
    tune()
    assert chosen(workspace_limit=1000)[0] == "winograd"
    assert chosen(precision="exact", workspace_limit=1000)[0] == "direct"
    clock.times["winograd", 8] = 0.01
    tune(again=True)
    assert chosen()[0] == "winograd"
    assert chosen(precision="exact") == ("gemm", T8)
    assert chosen(algorithm="direct") == ("direct", T4)
    with convjit.use(disable="null.gemm"):
        assert chosen(precision="exact")[0] in ("loose", "direct")


def test_what_is_remembered_of_other_steps_does_not_count(clock):
    tune()
    first = dispatch.candidates(SPEC, Request(backend="null", policy=Policy(nonfinite="local")))
    guarded = next(c for c in first if c.solver_id == "null.winograd")
    assert guarded.label.startswith("finite check")
    assert guarded.remembered is None


def test_deterministic_takes_no_measurement_into_account(clock):
    tune()
    assert chosen(deterministic=True) == ("winograd", T4)
    with pytest.raises(ConvSpecError, match="deterministic=True was given"):
        tune(deterministic=True)


def test_block_sizes_that_need_too_much_give_way(clock, solvers, monkeypatch):
    tune()
    plan = type(solvers["gemm"]).plan

    def hungry(solver, spec, target, config):
        executable = plan(solver, spec, target, config)
        executable.workspace *= 1 + (config == T8)
        return executable

    monkeypatch.setattr(type(solvers["gemm"]), "plan", hungry)
    assert chosen(workspace_limit=1 << 20) == ("gemm", T4)
    assert chosen() == ("gemm", T8)


# -------------------------------------------------------------------- when it holds


def test_block_sizes_that_are_no_longer_offered_are_ignored(clock, solvers, monkeypatch):
    tune()
    monkeypatch.setattr(type(solvers["gemm"]), "configs", lambda *args: [T4])
    assert chosen() == ("winograd", T4)
    assert chosen(algorithm="gemm") == ("gemm", T4)


def renew(changed, monkeypatch):
    """Give a solver another revision."""
    others = revisions.revision
    monkeypatch.setattr(revisions, "revision", lambda s: "new" if s is changed else others(s))


def test_another_revision_of_a_solver_is_another_solver(clock, solvers, monkeypatch):
    tune()
    renew(solvers["gemm"], monkeypatch)
    rows = {c.solver_id: c for c in dispatch.candidates(SPEC, Request(backend="null"))}
    assert rows["null.gemm"].remembered is None
    assert rows["null.winograd"].remembered.seconds == 0.8
    # What is new is measured again, and what it was before is gone.
    assert tune().is_new
    (entry,) = tunedb.DATABASE.entries().values()
    assert {r["revision"] for r in entry["rows"] if r["solver"] == "null.gemm"} == {"new"}


def test_what_was_not_measured_is_ranked_by_the_model_scaled(clock, solvers, monkeypatch):
    """All that was measured took 1000 times longer than predicted: so will what is new."""
    for row in dispatch.candidates(SPEC, Request(backend="null")):
        name = row.solver_id.removeprefix("null.")
        clock.times |= {(name, 4): row.total(True) * 1000, (name, 8): row.total(True) * 1000}
    tune()
    first = dispatch.candidates(SPEC, Request(backend="null"))
    renew(solvers["gemm"], monkeypatch)
    again = dispatch.candidates(SPEC, Request(backend="null"))
    assert [c.solver_id for c in again] == [c.solver_id for c in first]


def test_another_machine_remembers_nothing(clock, monkeypatch):
    tune()
    backend = registry.get("null")
    target = backend.target()
    other = dataclasses.replace(target, fingerprint="another")
    monkeypatch.setattr(type(backend), "target", lambda *args: other)
    assert chosen() == ("winograd", T4)


# -------------------------------------------------------------------- buckets


def test_sizes_of_one_bucket_share_and_the_exact_shape_stands_first(clock):
    tune()
    near = (1, 16, 30, 27)
    assert chosen(near) == ("gemm", T8)
    reason = convjit.explain(near, W, padding=1, backend="null", packed=True).reason
    assert f"for {SPEC} of its bucket (equal but for batch and sizes, each rounded up" in reason
    scaled = dispatch.candidates(ConvSpec.forward(near, W, padding=1), Request(backend="null"))[0]
    assert scaled.remembered.seconds == pytest.approx(0.5 * (30 * 27) / (32 * 32))
    assert not tune(near).is_new
    clock.times["direct", 4] = 0.01
    assert tune(near, again=True).is_new
    assert chosen(near) == ("direct", T4)
    assert chosen() == ("gemm", T8)
    for far in ((1, 16, 33, 32), (2, 16, 32, 32), (1, 16, 32, 24)):
        assert chosen(far) == ("winograd", T4)


def test_of_several_in_a_bucket_the_nearest_counts(clock):
    tune((1, 16, 32, 32))
    clock.times["direct", 4] = 0.01
    tune((1, 16, 25, 25), again=True)
    assert chosen((1, 16, 26, 26)) == ("direct", T4)
    assert chosen((1, 16, 31, 31)) == ("gemm", T8)


@pytest.mark.parametrize("size", [*range(70), 100, 224, 1000, 4097])
def test_rounded_up(size):
    up = tunedb.rounded_up(size)
    assert size <= up <= max(1.5 * size, 1) or size == 0 == up
    assert tunedb.rounded_up(up) == up
    assert up >= tunedb.rounded_up(max(size - 1, 0))


# -------------------------------------------------------------------- how it is measured


def test_the_search_ends_where_block_sizes_gain_little(clock):
    clock.times |= {("gemm", 4): 0.85, ("gemm", 8): 0.84}
    tune()
    assert {("winograd", 8), ("gemm", 8)} <= set(clock.measured)
    assert ("direct", 8) not in clock.measured  # two solvers gained nothing: it is not its turn
    clock.measured.clear()
    clock.times["gemm", 8] = 0.8
    tune(again=True)
    assert ("direct", 8) in clock.measured


def test_what_is_far_behind_is_measured_once(clock):
    clock.times["direct", 4] = 100.0
    tune()
    assert clock.measured.count(("direct", 4)) == 2  # with packed weights and with plain ones
    assert ("direct", 8) not in clock.measured


def test_turns_alternate(clock):
    clock.times = dict.fromkeys(clock.times, 1.0)
    tune()
    later = clock.measured[len(clock.tiles) :]
    assert any(a != b for a, b in zip(later[::2], later[2::2], strict=False))


def test_a_budget_ends_it_and_a_second_call_goes_on(clock):
    found = tune(budget_s=1e-9)
    assert found.ended.startswith("ended by the budget")
    assert [row.label for _, row in found.rows] == ["null.winograd"]
    assert chosen() == ("winograd", T4)
    assert tune().is_new
    assert chosen() == ("gemm", T8)
    assert not tune().is_new


@pytest.fixture
def compiler(clock, solvers, monkeypatch):
    """What has to be compiled first takes four seconds, on a clock that stands still otherwise."""
    now, compiled = [100.0], []
    lacking = {("winograd", 4), ("gemm", 4), ("gemm", 8), ("direct", 8)}
    kind, asking = type(solvers["gemm"]), []
    whole = kind.plan

    def plan(self, spec, target, config):
        kernel = self.id.removeprefix("null."), dict(config)["tile"]
        if asking and kernel in lacking:
            asking.append(kernel)
            raise RuntimeError("a kernel is not there")
        if kernel in lacking:
            now[0] += 4.0
            lacking.remove(kernel)
            compiled.append(kernel)
        return whole(self, spec, target, config)

    def uncompiled(self, make):
        asking.append("asked")
        try:
            make()
        except RuntimeError:
            return asking[1:]
        finally:
            asking.clear()
        return []

    monkeypatch.setattr(kind, "plan", plan)
    monkeypatch.setattr(type(registry.get("null")), "uncompiled", uncompiled, raising=False)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    return compiled


def test_what_would_not_be_compiled_in_time_is_skipped_and_told(clock, compiler):
    found = tune(budget_s=6.0)
    assert compiler == [("winograd", 4)]
    assert found.seconds == 4.0
    skipped = dict(found.skipped)
    assert skipped["null.gemm (tile=4)"] == (
        "compiling it takes some 4.0 s, of the budget 2.0 s are left"
    )
    assert "null.gemm (tile=4) was skipped: compiling it takes some 4.0 s" in str(found)
    assert found.as_dict()["skipped"] == skipped
    assert not found.is_finished
    assert found.ended.startswith("ended by the budget")
    # What need not be compiled is measured all the same.
    assert {"null.winograd", "null.loose", "null.direct"} <= {row.label for _, row in found.rows}
    # The next one goes on.
    assert tune(budget_s=60.0).is_finished
    assert set(compiler) >= {("winograd", 4), ("gemm", 4), ("gemm", 8)}
    assert chosen() == ("gemm", T8)


def test_the_first_candidate_is_compiled_whatever_the_budget(clock, compiler):
    found = tune(budget_s=1.0)
    assert compiler == [("winograd", 4)]
    assert found.seconds == 4.0


def test_before_anything_was_compiled_a_usual_time_is_expected(clock, compiler):
    tune(budget_s=60.0)
    del compiler[:]
    tunedb.forget()
    search = {"again": True, "budget_s": turns.COMPILING / 2}
    assert not tune(**search).skipped  # all of it is compiled
    assert compiler == []


def test_an_interrupt_keeps_what_was_measured(clock):
    clock.interrupt_after = 5
    with pytest.raises(KeyboardInterrupt):
        tune()
    (entry,) = tunedb.DATABASE.entries().values()
    assert {row["solver"] for row in entry["rows"]} >= {"null.winograd", "null.gemm"}
    assert not entry["finished"]
    clock.interrupt_after = None
    assert tune().is_new


@pytest.mark.parametrize("where", ["plan", "run"])
def test_a_solver_that_fails_is_told_of_and_left_out(where, clock, solvers, monkeypatch):
    def broken(self, *arguments):
        solver = self if where == "plan" else self.solver
        if solver is solvers["gemm"]:
            raise ValueError("no luck")
        return original(self, *arguments)

    kind = type(solvers["gemm"])
    if where == "run":
        kind = type(solvers["gemm"].plan(SPEC, None, T4))
    original = getattr(kind, where)
    monkeypatch.setattr(kind, where, broken)
    with pytest.warns(ConvjitWarning, match="no luck.* It is not used again in this process"):
        found = tune()
    assert [label for label, _ in found.failures] == ["null.gemm"]
    assert "null.gemm could not be measured: " in str(found)
    assert "no luck" in str(found)
    assert chosen() == ("winograd", T4)


@pytest.mark.parametrize("budget", [0, -1.0, float("nan")])
def test_a_budget_that_is_none(budget, solvers, database):
    with pytest.raises(ConvSpecError, match=r"budget_s=.* must be more than 0"):
        tune(budget_s=budget)


@pytest.mark.parametrize("budget", ["10", True])
def test_a_budget_of_another_type(budget, solvers, database):
    with pytest.raises(TypeError, match=r"budget_s=.* is not a number of seconds"):
        tune(budget_s=budget)


def test_what_nothing_computes(solvers, database):
    with pytest.raises(UnsupportedError):
        tune(workspace_limit=0, algorithm="gemm")
    with pytest.raises(TypeError, match="do not take 'colour'"):
        tune(colour="red")


def test_an_empty_problem_is_not_measured(clock):
    found = tune((0, 16, 32, 32))
    assert not found.is_new
    assert not clock.measured
    assert "no product is summed" in str(found)


@pytest.mark.parametrize("direction", ["forward", "transposed", "input_grad", "weight_grad"])
@pytest.mark.parametrize("given", ["arrays", "shapes"])
def test_every_direction_on_a_real_backend(direction, given, database):
    x, w = (2, 3, 6, 5), (3, 4, 3, 3) if direction == "transposed" else (4, 3, 3, 3)
    if given == "arrays":
        x, w = np.ones(x, np.float64), np.ones(w, np.float64)
    found = convjit.tune(x, w, direction=direction, backend="scipy", budget_s=0.05)
    assert found.rows
    plan = convjit.plan(x, w, direction=direction, backend="scipy", bias=False)
    assert "remembered" in plan.reason


# -------------------------------------------------------------------- the file


def test_entries_of_another_form_are_ignored(clock, database):
    tune()
    ((key, entry),) = database.entries().items()
    row = entry["rows"][0]
    database.update(
        {
            "no rows": {"backend": "null", "target": "null", "spec": str(SPEC)},
            "no spec": {**entry, "spec": "what"},
            "no time": {**entry, "rows": [{**row, "seconds": 0.0}]},
            "no number": {**entry, "rows": [{**row, "seconds": "soon"}]},
            key: {**entry, "colour": "red", "rows": [{**row, "more": 1} for row in entry["rows"]]},
        }
    )
    staleness.outdate()
    assert chosen() == ("gemm", T8)


def test_a_corrupt_file_is_one_warning_and_everything_works(clock, database):
    tune()
    database.path.write_text("{")
    staleness.outdate()
    with pytest.warns(ConvjitWarning, match="damaged") as told:
        assert chosen() == ("winograd", T4)
    assert len(told) == 1
    assert chosen() == ("winograd", T4)
    tune()
    assert chosen() == ("gemm", T8)


def test_a_directory_that_cannot_be_written_is_one_warning(clock, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    made = Store("tuning.json", tunedb.VERSION, directory=tmp_path / "file")
    monkeypatch.setattr(tunedb, "DATABASE", made)
    with pytest.warns(ConvjitWarning, match="holds for this process alone") as told:
        tune()
    assert len(told) == 1
    assert chosen() == ("gemm", T8)


def test_what_is_exported_is_imported_elsewhere(clock, tmp_path, monkeypatch):
    tune()
    assert tunedb.export_file(tmp_path / "mine.json") == 1
    assert tunedb.forget() == 1
    assert chosen() == ("winograd", T4)
    assert tunedb.import_file(tmp_path / "mine.json") == 1
    assert chosen() == ("gemm", T8)
    with pytest.raises(ConfigError, match="cannot be imported"):
        tunedb.import_file(tmp_path / "nothing.json")

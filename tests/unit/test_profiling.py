"""Profiling: what is recorded, by whom, and that the trace is a valid Trace Event file."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import convjit
from convjit import profiled, profiling, records
from convjit.errors import ConvjitWarning, ConvSpecError
from convjit.profiling import profile
from convjit.records import Record

A = "conv_f32_NCHW_n1c4k4g1_i8x8_w3x3"
B = "conv_f32_NCHW_n1c8k8g1_i8x8_w3x3"


def call(spec: str = A, **changes: Any) -> profiling.call:
    given: dict[str, Any] = {
        "spec": spec, "backend": "numba", "solver": "numba.gemm", "label": "pad + numba.gemm",
        "flops": 1e6, "peak": 1e11, "cold": False,
    }  # fmt: skip
    return profiling.call(**{**given, **changes})


def record(spec: str, seconds: float, **changes: Any) -> Record:
    given: dict[str, Any] = {
        "backend": "numba", "solver": "numba.gemm", "label": "numba.gemm", "start": 0.0,
        "flops": 1e9, "peak": 1e11, "cold": False, "thread": 1,
    }  # fmt: skip
    return Record(spec=spec, seconds=seconds, **{**given, **changes})


def of(*records: Record) -> profile:
    made = profile()
    made.records.extend(records)
    return made


def test_off_by_default_and_after_the_block() -> None:
    assert profiling.enabled is False
    with profile():
        assert profiling.enabled is True
    assert profiling.enabled is False


def test_a_phase_is_nothing_when_off() -> None:
    assert profiling.phase("a") is profiling.phase("b")
    with profiling.phase("a"):
        pass


def test_a_call_is_recorded_with_its_phases_in_order_and_depth() -> None:
    with profile() as prof, call(cold=True):
        with profiling.phase("pack"):
            pass
        with profiling.phase("gemm"), profiling.phase("tile"):
            pass
    (made,) = prof.records
    assert (made.spec, made.backend, made.solver) == (A, "numba", "numba.gemm")
    assert made.label == "pad + numba.gemm"
    assert made.cold
    assert not made.failed
    assert [(p.name, p.depth) for p in made.phases] == [("pack", 0), ("gemm", 0), ("tile", 1)]
    for inner in made.phases:
        assert made.start <= inner.start
        assert inner.start + inner.seconds <= made.start + made.seconds + 1e-9


def test_blocks_nest_and_each_records_what_is_inside_it() -> None:
    with profile() as outer:
        with call(A):
            pass
        with profile() as inner, call(B):
            pass
        with call(A):
            pass
    assert [r.spec for r in outer.records] == [A, B, A]
    assert [r.spec for r in inner.records] == [B]


def test_a_profile_may_be_entered_again_but_not_twice_at_once() -> None:
    prof = profile()
    for _ in range(2):
        with prof, call():
            pass
    assert len(prof.records) == 2
    with prof, pytest.raises(RuntimeError, match="already recording"):
        prof.__enter__()
    assert profiling.enabled is False


def test_threads_are_told_apart() -> None:
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        for _ in range(50):
            with call(f"{number}"), profiling.phase(f"phase {number}"):
                pass

    with profile() as prof:
        threads = [threading.Thread(target=work, args=(n,), name=f"worker-{n}") for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(prof.records) == 200
    assert all([p.name for p in r.phases] == [f"phase {r.spec}"] for r in prof.records)
    names = {
        e["args"]["name"] for e in prof.trace_events()["traceEvents"] if e["name"] == "thread_name"
    }
    assert names == {f"worker-{n}" for n in range(4)}


def test_a_call_that_raises_is_recorded_as_failed() -> None:
    with profile() as prof, pytest.raises(ZeroDivisionError), call():
        raise ZeroDivisionError
    assert prof.records[0].failed
    with profile() as again, call():
        pass
    assert not again.records[0].failed


def test_a_call_that_began_before_the_block_is_not_recorded_in_it() -> None:
    with profile() as outer:
        with call(), profile() as inner:
            pass
        assert inner.records == []
    assert len(outer.records) == 1


def test_a_phase_outside_a_call_is_kept_beside_the_records() -> None:
    with profile() as prof, profiling.phase("pack"):
        pass
    assert prof.records == []
    assert [p.name for p in prof.phases] == ["pack"]


def test_rates_are_effective_ones() -> None:
    made = record(A, 0.02)
    assert made.gflops == pytest.approx(50)
    assert made.share_of_peak == pytest.approx(0.5)
    assert record(A, 0.02, peak=0.0).share_of_peak is None


def test_totals_split_cold_from_warm() -> None:
    phases = (records.PhaseRecord("gemm", 0.0, 0.3, 0, 1),)
    totals = of(record(A, 1.0, cold=True), record(A, 0.5, phases=phases)).totals
    assert (totals.calls, totals.cold_calls) == (2, 1)
    assert (totals.seconds, totals.cold_seconds) == (1.5, 1.0)
    assert totals.gflops == pytest.approx(2 / 1.5)
    assert totals.phases == {"gemm": 0.3, "(other)": pytest.approx(0.2)}


def test_times_of_phases_leave_out_the_phases_inside_them() -> None:
    def phase(name: str, start: float, seconds: float, depth: int) -> records.PhaseRecord:
        return records.PhaseRecord(name, start, seconds, depth, 1)

    made = record(A, 1.0, phases=(
        phase("pack", 0.0, 0.1, 0), phase("run", 0.1, 0.8, 0), phase("pad", 0.1, 0.2, 1),
        phase("copy", 0.1, 0.05, 2), phase("pad", 0.4, 0.1, 1),
    ))  # fmt: skip
    assert records.exclusive(made) == {
        "(other)": pytest.approx(0.1), "pack": pytest.approx(0.1), "run": pytest.approx(0.5),
        "pad": pytest.approx(0.25), "copy": pytest.approx(0.05),
    }  # fmt: skip
    assert sum(records.exclusive(made).values()) == pytest.approx(made.seconds)


def test_real_calls_show_their_steps() -> None:
    image = np.ones((40, 40), np.float32)
    kernel = np.ones((3, 3), np.float32)
    with profile() as prof:
        for _ in range(2):
            convjit.conv(
                image, kernel, padding=1, pad_mode="reflect", backend="scipy", algorithm="gemm"
            )
    cold, warm = prof.records
    assert warm.solver == "scipy.gemm"
    assert not warm.cold
    assert warm.gflops > 0
    names = [(p.name, p.depth) for p in warm.phases]
    assert ("pack", 0) in names
    assert ("scipy.gemm", 0) in names
    assert ("pad reflect", 1) in names
    assert warm.label == "pad reflect + scipy.gemm"
    assert cold.spec == warm.spec


def lines_of(prof: profile, sort_by: str, **more: Any) -> list[str]:
    """The specs in the order in which a table lists them."""
    return [line.split()[0] for line in prof.table(sort_by, **more).splitlines() if "conv_" in line]


@pytest.mark.parametrize(
    ("sort_by", "expected"),
    [("total", [B, A]), ("ms", [B, A]), ("gflops", [A, B]), ("calls", [A, B]), ("cold", [B, A]),
     ("spec", [A, B]), ("first", [B, A])],
)  # fmt: skip
def test_a_table_is_sorted_as_asked(sort_by: str, expected: list[str]) -> None:
    prof = of(record(B, 0.5), record(B, 3.0, cold=True), *(record(A, 0.1) for _ in range(3)))
    assert lines_of(prof, sort_by) == expected


def test_a_table_has_a_row_a_call_when_not_grouped() -> None:
    prof = of(record(A, 0.1), record(A, 0.2), record(B, 0.3))
    assert lines_of(prof, "first", group=False) == [A, A, B]


def test_a_table_shows_the_figures_and_the_totals() -> None:
    text = of(record(A, 0.02), record(A, 1.0, cold=True)).table()
    assert "GFLOP/s" in text
    row = next(line for line in text.splitlines() if A in line)
    assert row.split()[1:] == [
        "numba.gemm", "2", "1020", "100.0", "20.0", "50.0", "50.0", "-", "-", "-", "1000"
    ]  # fmt: skip
    assert "2 calls, 1020 ms, of which cold 1 calls, 1000 ms" in text


def phased(
    kind: str, seconds: float, name: str = "", **changes: Any
) -> tuple[records.PhaseRecord, ...]:
    given: dict[str, Any] = {"start": 0.0, "depth": 0, "thread": 1, **changes}
    return (records.PhaseRecord(name or kind, seconds=seconds, kind=kind, **given),)


def test_a_table_shows_shares_of_time_and_what_went_into_layout_packing_and_compiling() -> None:
    prof = of(
        record(A, 0.1, phases=phased(records.PACK, 0.01)),
        record(A, 0.1, phases=phased(records.LAYOUT, 0.02)),
        record(B, 0.6, cold=True, phases=phased(records.COMPILE, 0.5)),
    )
    prof.phases += phased(records.COMPILE, 2.0, "compile it", spec=A, depth=1)
    prof.phases += phased("", 2.5, "plan", spec=A)
    rows = {
        line.split()[0]: line.split()[3:] for line in prof.table().splitlines() if "conv_" in line
    }
    assert rows[A] == ["200", "25.0", "100", "10.0", "10.0", "20.0", "10.0", "2000", "-"]
    assert rows[B] == ["600", "75.0", "-", "-", "-", "-", "-", "500", "600"]
    assert "outside of calls: plan 2500 ms" in prof.table()


# -------------------------------------------------------------------- advice


def test_weights_packed_again_and_again_are_told_with_the_remedy() -> None:
    calls = [record(A, 0.1, phases=phased(records.PACK, 0.04)) for _ in range(3)]
    (sentence,) = of(*calls).advice
    assert sentence == (
        f"3 calls of {A} packed their weights each time, which took 40 % of them. Pack once: give "
        "convjit.weights(w), or call a plan with plan.pack(w)."
    )
    assert "advice: 3 calls" in of(*calls).table()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("NHWC to NCHW", "Keep the data as it is computed, layout='NCHW'"),
        ("NHWC to NCHW, back", "layout='NCHW'"),
        ("contiguous copy", "np.ascontiguousarray"),
    ],
)
def test_changes_of_layout_that_dominate_are_told(name: str, remedy: str) -> None:
    calls = [record(A, 0.1, phases=phased(records.LAYOUT, 0.05, name)) for _ in range(3)]
    (sentence,) = of(*calls).advice
    assert "changed the layout of their data" in sentence
    assert "which took 50 % of them" in sentence
    assert remedy in sentence


def test_a_slow_fallback_is_told_with_the_reason() -> None:
    calls = [record(A, 0.1, fallback="backend 'numba' does not work here") for _ in range(3)]
    quick = [record(B, 0.001, fallback="never mind") for _ in range(3)]
    assert of(*calls, *quick).advice == (
        f"3 calls of {A} ran on a fallback, numba.gemm: backend 'numba' does not work here. "
        "Mend or allow that; or name the choice (backend=, algorithm=), if it is meant.",
    )


@pytest.mark.parametrize(
    "calls",
    [
        [record(A, 0.1, phases=phased(records.PACK, 0.04)) for _ in range(2)],
        [record(A, 0.1, phases=phased(records.PACK, 0.01)) for _ in range(9)],
        [record(A, 1e-5, phases=phased(records.PACK, 9e-6)) for _ in range(9)],
        [record(A, 0.1, cold=True, phases=phased(records.PACK, 0.09)) for _ in range(9)],
        [record("w" + A, 0.1, phases=phased(records.PACK, 0.09)) for _ in range(0)],
        [record(A.replace("conv", "wgrad"), 0.1, phases=phased(records.PACK, 0.09))] * 9,
    ],
    ids=["few calls", "a small share", "microseconds", "cold", "none", "what is packed is data"],
)
def test_what_is_no_waste_is_not_told(calls: list[Record]) -> None:
    assert of(*calls).advice == ()


WASTED = [record(A, 0.1, phases=phased(records.PACK, 0.04)) for _ in range(3)]


def waste(nested: bool = False, error: Exception | None = None, **options: Any) -> None:
    with profile(**options) as prof:
        prof.records.extend(WASTED)
        if nested:
            waste()  # the enclosing one will speak
        if error is not None:
            raise error


@pytest.mark.parametrize("nested", [False, True])
def test_the_end_of_the_block_warns_once(nested: bool) -> None:
    with pytest.warns(ConvjitWarning, match="Pack once") as caught:
        waste(nested)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_block_does_not_warn_if_asked_not_to_or_when_it_fails() -> None:
    waste(warn=False)
    with pytest.raises(ZeroDivisionError):
        waste(error=ZeroDivisionError())


def test_real_calls_that_pack_and_copy_and_are_planned_are_seen() -> None:
    x, w = np.ones((1, 8, 12, 24), np.float32)[..., ::2], np.ones((4, 8, 3, 3), np.float32)
    kept = convjit.weights(w)
    with profile(warn=False) as prof:
        plan = convjit.plan((1, 8, 12, 12), w.shape, backend="scipy", algorithm="winograd")
        for weights in (w, kept, kept, plan.pack(w)):
            plan(x, weights)
        plan(x.astype(np.float16), kept)
    kinds = [{p.kind for p in r.phases} for r in prof.records]
    assert [records.PACK in k for k in kinds] == [True, True, False, False, False]
    assert [records.LAYOUT in k for k in kinds] == [True, True, True, True, False]
    assert [p.name for p in prof.phases] == ["plan", "pack"]
    assert {p.spec for p in prof.phases} == {r.spec for r in prof.records}


def test_an_unknown_order_names_the_choices() -> None:
    with pytest.raises(ConvSpecError, match=r"sort_by='speed' is not known; choose one of total,"):
        profile().table(sort_by="speed")


def check_trace(trace: Any) -> list[dict[str, Any]]:
    """The complete events of a trace that its schema admits."""
    jsonschema.validate(trace, profiled.TRACE_SCHEMA, jsonschema.Draft202012Validator)
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def test_the_schema_itself_is_one_and_rejects_what_is_no_trace() -> None:
    jsonschema.Draft202012Validator.check_schema(profiled.TRACE_SCHEMA)
    with profile() as prof, call():
        pass
    good = prof.trace_events()
    for change in ({"ts": -1.0}, {"dur": "1"}, {"ph": "B"}, {"name": ""}, {"cat": "more"}):
        bad = {**good, "traceEvents": [{**good["traceEvents"][-1], **change}]}
        with pytest.raises(jsonschema.ValidationError):
            check_trace(bad)
    with pytest.raises(jsonschema.ValidationError):
        check_trace(good["traceEvents"])


def test_the_trace_is_valid_and_its_spans_nest(tmp_path: Path) -> None:
    with profile() as prof:
        for _ in range(3):
            with call(), profiling.phase("outer"), profiling.phase("inner"):
                pass
        with profiling.phase("alone"):
            pass
    path = tmp_path / "trace.json"
    prof.chrome_trace(path)
    spans = check_trace(json.loads(path.read_text(encoding="utf-8")))
    names = [e["name"] for e in spans]
    assert names == ["pad + numba.gemm", "outer", "inner"] * 3 + ["alone"]
    calls = [e for e in spans if e["cat"] == "call"]
    assert all(e["args"]["spec"] == A and e["args"]["gflops"] > 0 for e in calls)
    open_until: list[float] = []
    for event in spans:  # in order of time: each ends inside of what is open, or after it
        while open_until and event["ts"] >= open_until[-1]:
            open_until.pop()
        end = event["ts"] + event["dur"]
        assert not open_until or end <= open_until[-1] + 1e-3
        open_until.append(end)


def test_as_dict_is_json() -> None:
    with profile() as prof, call(), profiling.phase("gemm"):
        pass
    read = json.loads(json.dumps(prof.as_dict()))
    assert read["calls"] == 1
    assert read["records"][0]["phases"][0]["name"] == "gemm"

"""Measured figures over the tables: what is kept, what is refused, and whom they serve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convjit
from convjit import calibration, cli, config, dispatch, environment, gauging, registry, staleness
from convjit.arguments import Request
from convjit.calibration import calibrate
from convjit.errors import BackendError, ConvjitWarning
from convjit.gauges import SECONDS, TABLES, Gauge, Run, of_solver
from convjit.spec import ConvSpec
from convjit.spi import SPI_VERSION, Feature, Refusal, Target
from convjit.store import Store
from convjit_scipy.direct import DirectSolver

SPEC = ConvSpec.parse("conv_f32_NCHW_n1c2k2g1_i6x6_w3x3")
TABLE = Target(
    fingerprint="a processor, 2 threads",
    device="cpu",
    description="a machine of round numbers",
    cores=2,
    peak={"float32": 1e11, "float64": 5e10},
    rates={"gauged.gemm.float32": 8e10, "gauged.gemm.float64": 4e10, "gauged.fft.float64": 1e10},
    bandwidth={"memory": 1e10, "l2": 1e11},
    caches={"l1": 2**15},
    launch=2e-6,
    call=1e-6,
)


class Shy(DirectSolver):
    """A solver that takes nothing: a backend must have one."""

    id = "gauged.direct"

    def refuse(self, spec: ConvSpec, target: Target) -> Refusal | None:
        return Refusal(Feature.OTHER, "takes nothing")


class Gauged:
    """A backend whose gauges read what ``readings`` says, pass by pass."""

    name = "gauged"
    device = "cpu"
    spi_version = SPI_VERSION
    array_types = ("numpy:ndarray",)

    def __init__(self) -> None:
        self.table = TABLE
        # (figure, key) -> seconds of a call, for each pass; the last one repeats.
        self.readings: dict[tuple[str, str], list[float]] = {
            ("peak", "float32"): [1e-3],
            ("rates", "gauged.gemm.float32"): [1e-3],
        }
        self.amount = 2e8
        self.prepared: list[str] = []

    def probe(self) -> str | None:
        return None

    def array_namespace(self) -> Any:
        return np

    def target(self, device_id: int = 0) -> Target:
        return self.table

    def solvers(self) -> list[Any]:
        return [Shy()]

    def gauges(self, target: Target) -> Iterator[Gauge]:
        assert target is self.table
        for (figure, key), seconds in self.readings.items():
            yield Gauge(figure, key, self.run_of(figure, key, iter(seconds)))

    def run_of(self, figure: str, key: str, seconds: Iterator[float]) -> Any:
        last, rehearsed = 0.0, False

        def prepare() -> Run:
            nonlocal last, rehearsed
            self.prepared.append(key)
            if rehearsed:
                last = next(seconds, last)
            rehearsed = True

            def call(taken: float = last) -> float:
                return taken

            return Run(call, self.amount if figure in TABLES else 1.0)

        return prepare


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of the user, and a clock that shows what a call says it takes."""
    monkeypatch.setenv("CONVJIT_CACHE_DIR", str(tmp_path))
    config.reload_environment()
    monkeypatch.setattr(gauging, "_least", lambda call: call())
    monkeypatch.setattr(calibration, "STORE", Store("calibration.json", calibration.VERSION))
    yield tmp_path
    monkeypatch.undo()
    config.reload_environment()


@pytest.fixture
def gauged(home: Path) -> Iterator[Gauged]:
    backend = Gauged()
    registry.register(backend)
    yield backend
    registry.unregister(backend.name)


def note_of(found: calibration.Calibration, key: str) -> str:
    (figure,) = [one for one in found.figures if one.key == key]
    assert not figure.kept or not figure.note
    return figure.note


# -------------------------------------------------------------------- compiling


def test_what_has_to_be_compiled_is_shared_among_processes_and_told(
    gauged: Gauged, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauged.readings[("bandwidth", "memory")] = [1e-3]
    kernels = {"float32": ["fma"], "gauged.gemm.float32": ["gemm", "pack"], "memory": ["fma"]}

    def uncompiled(make: Any) -> list[str]:
        make()
        return kernels[gauged.prepared.pop()]

    class Bar:
        def __enter__(self) -> Any:
            return told.append

        def __exit__(self, *_: object) -> None: ...

    def here(function: Any, jobs: Any, processes: int, began: Any) -> None:
        assert processes == 2
        for number, job in enumerate(jobs):
            began(jobs[number:])
            function(job)
        began([])

    told: list[str] = []
    steps: list[int] = []
    monkeypatch.setattr(gauged, "uncompiled", uncompiled, raising=False)
    monkeypatch.setattr(calibration.together, "run", here)

    def bar(total: int) -> Any:
        steps.append(total)
        return Bar()

    calibrate(["gauged"], progress=bar, processes=2)
    assert told[:2] == [
        "gauged peak float32 (compiling, 2 left)",
        "gauged rates gauged.gemm.float32 (compiling, 1 left)",
    ]
    assert gauged.prepared[:3] == ["float32", "memory", "gauged.gemm.float32"]
    assert steps == [len(told)] == [2 + 3 * (1 + gauging.PASSES)]


# -------------------------------------------------------------------- what is used


def test_measured_figures_are_used_and_unmeasured_rates_follow_their_peak(gauged: Gauged) -> None:
    assert calibration.target(gauged) is TABLE
    assert calibration.state(gauged) == "from a table"
    before = staleness.generation()
    found = calibrate(["gauged"])
    assert found.kept == ("gauged",)
    assert staleness.generation() > before  # plans are made anew
    target = calibration.target(gauged)
    assert target.measured
    assert target.peak == {"float32": 2e11, "float64": 5e10}
    assert target.rates["gauged.gemm.float32"] == 2e11
    assert target.rates["gauged.gemm.float64"] == 4e10
    assert target.bandwidth == TABLE.bandwidth
    assert target is calibration.target(gauged)
    assert calibration.state(gauged).startswith("measured on 20")
    gauged.readings = {("peak", "float64"): [1e-3]}
    calibrate(["gauged"])
    assert calibration.target(gauged).rates["gauged.fft.float64"] == 4e10  # four times the peak


def test_another_machine_starts_from_the_table_and_is_told_why(gauged: Gauged) -> None:
    calibrate(["gauged"])
    gauged.table = replace(TABLE, fingerprint="a processor, 4 threads")
    assert calibration.target(gauged) is gauged.table
    told = calibration.state(gauged)
    assert told.startswith("from a table (what was measured on 20")
    assert "of a processor, 2 threads" in told
    gauged.table = TABLE
    assert calibration.target(gauged).measured


def test_the_choice_is_made_by_them(home: Path) -> None:
    scipy = registry.get("scipy")
    request = Request(backend="scipy", algorithm="scipy.direct")
    (before,) = dispatch.candidates(SPEC, request)
    figures = {"backend": "scipy", "launch": 1.0}
    calibration.STORE.update({calibration._key("scipy", scipy.target().fingerprint): figures})
    (after,) = dispatch.candidates(SPEC, request)
    assert before.seconds is not None
    assert after.seconds is not None
    assert before.seconds < 1.0 < after.seconds
    assert "scipy sees" in environment.describe(load=True)
    assert "measured on" in environment.describe(load=True)
    assert calibration.forget(["numba"]) == 0
    assert calibration.forget() == 1
    assert dispatch.candidates(SPEC, request) == [before]


@pytest.mark.parametrize(
    "figures",
    [
        {"peak": {"float32": -1.0}},
        {"rates": {"gauged.gemm.float32": "fast"}},
        {"bandwidth": [1, 2]},
        {"launch": float("nan")},
        {"call": None},
    ],
    ids=str,
)
def test_an_entry_of_no_use_is_not_used(gauged: Gauged, figures: dict[str, Any]) -> None:
    calibration.STORE.update({calibration._key("gauged", TABLE.fingerprint): figures})
    assert calibration.target(gauged) is TABLE


def test_a_directory_that_cannot_be_written_is_told_once(
    gauged: Gauged, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("CONVJIT_CACHE_DIR", str(home / "file" / "below"))
    config.reload_environment()
    with pytest.warns(ConvjitWarning, match="cannot be written"):
        calibrate(["gauged"])
    assert calibration.target(gauged).measured  # in this process


def test_a_changed_kernel_voids_its_own_rates_alone(
    gauged: Gauged, monkeypatch: pytest.MonkeyPatch
) -> None:
    gemm, fft = "gauged.gemm.float32", "gauged.fft.float64"
    gauged.readings["rates", fft] = [2e-3]
    gauged.readings["rates", "gauged.gemm.float64"] = [1e-3]
    offered = Gauged.gauges

    def gauges(target: Target) -> Iterator[Gauge]:
        solvers = dict(zip((gemm, fft), gauged.solvers(), strict=True))
        for gauge in offered(gauged, target):
            yield replace(gauge, solver=solvers.get(gauge.key))

    class Other(Shy):
        id = "gauged.fft"

    known = {Shy: "00000001", Other: "00000002"}
    monkeypatch.setattr(gauged, "solvers", lambda: [Shy(), Other()])
    monkeypatch.setattr(gauged, "gauges", gauges)
    monkeypatch.setattr(calibration.revisions, "revision", lambda solver: known[type(solver)])
    staleness.outdate()
    calibrate(["gauged"])
    before = calibration.target(gauged)
    assert before.rates == {**dict.fromkeys(TABLE.rates, 2e11), fft: 1e11}
    assert "changed" not in calibration.state(gauged)
    known[Other] = "00000003"
    calibration._over.clear()  # as in a new process
    after = calibration.target(gauged)
    assert after.measured
    assert after.rates == {**before.rates, fft: 1e10}
    assert (after.peak, after.bandwidth, after.launch) == (
        before.peak, before.bandwidth, before.launch,
    )  # fmt: skip
    assert "but for 1 rates of kernels that have changed since" in calibration.state(gauged)
    calibrate(["gauged"])
    assert calibration.target(gauged).rates == before.rates


def test_a_solver_that_is_gone_voids_its_rates(gauged: Gauged) -> None:
    calibrate(["gauged"])
    entry = dict(calibration.STORE.entries()[calibration._key("gauged", TABLE.fingerprint)])
    for kernels in ({"gauged.gemm.float32": ["gauged.gone", "00000001"]},
                    {"gauged.gemm.float32": "nonsense"}):  # fmt: skip
        calibration.STORE.update(
            {calibration._key("gauged", TABLE.fingerprint): entry | {"kernels": kernels}}
        )
        # As its peak was found to be, twice the table's.
        assert calibration.target(gauged).rates["gauged.gemm.float32"] == 1.6e11


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("seconds", "note"),
    [
        ([1e-3, 2e-3, 2e-3], "passes differ 2.0 times"),
        ([1e-6], "not credible"),
        ([1.0], "not credible"),
        ([0.0], "no time passed"),
        ([-1e-3], "no time passed"),
        ([float("nan")], "no time passed"),
    ],
)
def test_nonsense_is_not_kept(gauged: Gauged, seconds: list[float], note: str) -> None:
    gauged.readings["bandwidth", "l2"] = [1e-3]
    gauged.readings["peak", "float64"] = [1e-3]
    gauged.readings["rates", "gauged.gemm.float32"] = seconds
    found = calibrate(["gauged"])
    assert note in note_of(found, "gauged.gemm.float32")
    assert note in str(found)
    assert calibration.target(gauged).rates["gauged.gemm.float32"] == 1.6e11  # as its peak says


def test_a_remarkable_figure_is_kept_and_told(gauged: Gauged) -> None:
    gauged.readings["rates", "gauged.gemm.float32"] = [0.5e-3]
    (figure,) = [one for one in calibrate(["gauged"]).figures if one.key.endswith("gemm.float32")]
    assert figure.kept
    assert figure.note == "5 times the table's"


def test_passes_that_disagree_are_repeated_and_the_least_disturbed_counts(gauged: Gauged) -> None:
    gauged.readings["peak", "float32"] = [1.5e-3, 1e-3, 1.5e-3, 1e-3, 1.05e-3]
    found = calibrate(["gauged"])
    assert found.kept == ("gauged",)
    assert calibration.target(gauged).peak["float32"] == 2e11
    assert gauged.prepared.count("float32") == 1 + gauging.MOST_PASSES
    assert gauged.prepared.count("gauged.gemm.float32") == 1 + gauging.PASSES


def test_a_slow_machine_is_measured_once(gauged: Gauged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauging, "BUDGET", 0.0)
    found = calibrate(["gauged"])
    assert found.kept == ("gauged",)
    # Once each to compile it, once to measure it.
    assert gauged.prepared == 2 * ["float32", "gauged.gemm.float32"]


def test_a_busy_machine_is_not_calibrated(gauged: Gauged) -> None:
    gauged.readings["peak", "float32"] = [1e-3, 3e-3, 3e-3]
    with pytest.warns(ConvjitWarning, match="1 of 2 figures of backend 'gauged'.*machine is idle"):
        found = calibrate(["gauged"])
    assert found.kept == ()
    assert "nothing was kept" in str(found)
    assert calibration.target(gauged) is TABLE


def test_a_gauge_that_fails_is_named(gauged: Gauged, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Run:
        raise RuntimeError("no such device")

    monkeypatch.setattr(gauged, "gauges", lambda target: [Gauge("peak", "float32", broken)])
    with pytest.raises(BackendError, match="'gauged': the gauge of peak float32 failed: Runtime"):
        calibrate(["gauged"])


def test_a_backend_without_gauges(gauged: Gauged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gauged, "gauges", None)
    with pytest.raises(BackendError, match="'gauged' has no gauges"):
        calibrate(["gauged"])
    with convjit.use(disable=("numba", "scipy")):
        found = calibrate()
    assert found.without == ("gauged",)
    assert "gauged offers nothing to measure" in str(found)


def test_progress_is_told(gauged: Gauged) -> None:
    from contextlib import contextmanager

    names: list[str] = []
    totals: list[int] = []

    @contextmanager
    def progress(total: int) -> Iterator[Any]:
        totals.append(total)
        yield names.append

    calibrate(["gauged"], progress=progress)
    assert totals == [len(names)] == [2 * (1 + gauging.PASSES)]
    assert names[::2][:2] == ["gauged peak float32 (compiling)", "gauged peak float32"]


# -------------------------------------------------------------------- gauges


def test_seconds_are_differences_where_a_run_says_so(
    gauged: Gauged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare() -> Run:
        return Run(lambda: 9e-6, 2.0, without=lambda: 1e-6)

    monkeypatch.setattr(gauged, "gauges", lambda target: [Gauge("launch", "", prepare)])
    calibrate(["gauged"])
    assert calibration.target(gauged).launch == 4e-6


def test_rates_that_share_calls_are_told_apart(
    gauged: Gauged, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Multiplying at 2e11 a second and transforming at 5e10, in turns: each gauge has both.
    def taking(key: str, own: float, other: str, beside: float) -> Gauge:
        rates = {"gauged.gemm.float32": 2e11, "gauged.transform.float32": 5e10}
        seconds = own / rates[key] + beside / rates[other]
        return Gauge("rates", key, lambda: Run(lambda: seconds, own, None, {other: beside}))

    product, transform = "gauged.gemm.float32", "gauged.transform.float32"
    offered = [taking(product, 9e8, transform, 1e8), taking(transform, 3e8, product, 2e8)]
    monkeypatch.setattr(gauged, "gauges", lambda target: offered)
    calibrate(["gauged"])
    target = calibration.target(gauged)
    assert target.rates[product] == pytest.approx(2e11, rel=1e-3)
    assert target.rates[transform] == pytest.approx(5e10, rel=1e-3)


def test_what_shares_a_call_leaves_something_of_it(
    gauged: Gauged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare() -> Run:
        return Run(lambda: 1e-3, 2e7, None, {"gauged.other.float32": 1e15})

    monkeypatch.setattr(
        gauged, "gauges", lambda target: [Gauge("rates", "gauged.gemm.float32", prepare)]
    )
    (figure,) = calibrate(["gauged"]).figures
    assert figure.measured == pytest.approx(2e7 / (gauging.OWN * 1e-3))


@pytest.mark.parametrize(("figure", "key"), [("speed", "x"), ("peak", ""), ("launch", "x")])
def test_a_gauge_of_nothing_is_refused(figure: str, key: str) -> None:
    with pytest.raises(ValueError, match=r"speed|tables have keys"):
        Gauge(figure, key, lambda: Run(lambda: None, 1.0))


@pytest.mark.parametrize("name", ["numba", "scipy"])
def test_every_rate_and_peak_of_ours_has_one_gauge(name: str) -> None:
    backend: Any = registry.get(name)
    target = backend.target()
    gauges = list(backend.gauges(target))
    assert len({gauge.name for gauge in gauges}) == len(gauges)
    rates = [gauge.key for gauge in gauges if gauge.figure == "rates"]
    assert sorted(rates) == sorted(target.rates)
    assert {gauge.figure for gauge in gauges} <= {*TABLES, *SECONDS}


def test_a_solver_s_rate_is_its_flops_by_the_time_of_a_call() -> None:
    backend: Any = registry.get("scipy")
    (solver,) = [s for s in backend.solvers() if s.id == "scipy.direct"]
    target = backend.target()
    run = of_solver(solver, SPEC, target, "scipy.direct.float32").prepare()
    run.call()
    assert run.amount == solver.estimate(SPEC, target).flops > 0.0


def test_the_clock_takes_a_low_quantile() -> None:
    assert 0.0 < gauging._least(lambda: None) < 1.0


def test_fingerprints_follow_threads_and_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    from convjit_numba import peak

    here = registry.get("numba").target().fingerprint
    with convjit.use(num_threads=3):
        assert len({registry.get(n).target().fingerprint for n in ("numba", "scipy")}) == 2
        assert registry.get("numba").target().fingerprint != here
    monkeypatch.setattr(peak.metadata, "version", lambda name: "99")
    peak._target.cache_clear()
    try:
        assert registry.get("numba").target().fingerprint != here
    finally:
        monkeypatch.undo()
        peak._target.cache_clear()


# -------------------------------------------------------------------- the command


def test_the_command(gauged: Gauged, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", "--backend", "gauged", "--quiet"]) == 0
    assert "gauged: in use from now on" in capsys.readouterr().out
    assert cli.main(["calibrate", "--backend", "gauged", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] == ["gauged"]
    assert found["figures"][0]["measured"] == pytest.approx(2e11)
    assert cli.main(["calibrate", "--backend", "gauged", "--forget"]) == 0
    assert "1 calibration forgotten" in capsys.readouterr().out
    assert calibration.target(gauged) is TABLE
    assert cli.main(["calibrate", "--backend", "teapot"]) == 2
    assert cli.main(["calibrate", "--backend", "teapot", "--forget"]) == 2

"""What a bug report shows."""

from __future__ import annotations

import json

import pytest

import convjit
from convjit import config, environment


def test_facts_are_json_and_name_what_matters() -> None:
    known = json.loads(json.dumps(environment.facts()))
    assert known["convjit"] == convjit.__version__
    assert known["packages"]["numpy"]
    assert known["cores"] >= 1
    assert {"numba", "scipy"} <= {row["name"] for row in known["backends"]}
    assert known["cpu"]


def test_loading_tells_the_device_of_each_backend() -> None:
    rows = {row["name"]: row for row in environment.facts(load=True)["backends"]}
    assert rows["scipy"]["state"] == "loaded"
    assert rows["scipy"]["device"] == "cpu"
    assert rows["scipy"]["target"]["peak"]["float32"] > 0


def test_settings_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVJIT_NUM_THREADS", "2")
    config.reload_environment()
    try:
        with convjit.use(precision="exact"):
            text = environment.describe()
    finally:
        monkeypatch.undo()
        config.reload_environment()
    rows = [line.split() for line in text.splitlines()]
    assert ["num_threads", "2", "CONVJIT_NUM_THREADS"] in rows
    assert ["precision", "exact", "convjit.use"] in rows
    assert "2 threads in force" in text


def test_a_machine_without_cpuinfo_still_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_cpuinfo", dict)
    assert environment.cpu_name()
    assert environment.isa() == ()


def test_versions_leaves_out_what_is_not_installed() -> None:
    assert list(environment.versions(["numpy", "no-such-distribution-of-ours"])) == ["numpy"]


def test_show_config_prints(capsys: pytest.CaptureFixture[str]) -> None:
    convjit.show_config()
    assert capsys.readouterr().out.startswith("convjit ")

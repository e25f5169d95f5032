"""Strict environment variables, and settings that nest."""

from __future__ import annotations

import asyncio
import re
import threading
import warnings
from pathlib import Path

import pytest

from convjit import config
from convjit.config import Settings, parse_environment
from convjit.errors import ConfigError, ConvjitWarning


def test_an_empty_environment_says_nothing() -> None:
    assert parse_environment({"PATH": "/bin", "CONVJITX": "1"}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("CONVJIT_BACKEND", "numba", "backend", "numba"),
        ("CONVJIT_BACKEND", " numba , scipy ", "backend", ("numba", "scipy")),
        ("CONVJIT_BACKEND", "cpu", "backend", "cpu"),
        ("CONVJIT_ALGORITHM", "winograd", "algorithm", "winograd"),
        ("CONVJIT_PRIORITY", "fast_one", "priority", ("fast_one",)),
        ("CONVJIT_PRIORITY", "b,a", "priority", ("b", "a")),
        ("CONVJIT_DISABLE", "numba,scipy.fft", "disable", ("numba", "scipy.fft")),
        ("CONVJIT_NUM_THREADS", "1", "num_threads", 1),
        ("CONVJIT_NUM_THREADS", "1024", "num_threads", 1024),
        ("CONVJIT_WORKSPACE_LIMIT", "0", "workspace_limit", 0),
        ("CONVJIT_WORKSPACE_LIMIT", "1000", "workspace_limit", 1000),
        ("CONVJIT_WORKSPACE_LIMIT", "64k", "workspace_limit", 65536),
        ("CONVJIT_WORKSPACE_LIMIT", "512 MiB", "workspace_limit", 512 * 2**20),
        ("CONVJIT_WORKSPACE_LIMIT", "2GiB", "workspace_limit", 2 * 2**30),
    ],
)
def test_good_values(variable: str, text: str, field: str, value: object) -> None:
    assert parse_environment({variable: text}) == Settings(**{field: value})


@pytest.mark.parametrize("variable", config.VARIABLES)
def test_an_empty_value_is_no_value(variable: str) -> None:
    assert parse_environment({variable: "  "}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        (
            "CONVJIT_NUM_THREADS",
            "0",
            "CONVJIT_NUM_THREADS='0' is not a number of threads; give a whole number from 1 to "
            "1024.",
        ),
        ("CONVJIT_NUM_THREADS", "two", "CONVJIT_NUM_THREADS='two' is not a number of threads"),
        ("CONVJIT_NUM_THREADS", "-1", "CONVJIT_NUM_THREADS='-1' is not a number of threads"),
        ("CONVJIT_NUM_THREADS", "1025", "from 1 to 1024"),
        ("CONVJIT_NUM_THREADS", "1.5", "CONVJIT_NUM_THREADS='1.5'"),
        (
            "CONVJIT_BACKEND",
            "numba,,scipy",
            "CONVJIT_BACKEND='numba,,scipy' has an empty name; give names separated by commas, "
            "e.g. CONVJIT_BACKEND=numba,scipy.",
        ),
        ("CONVJIT_DISABLE", ",", "CONVJIT_DISABLE=',' has an empty name"),
        (
            "CONVJIT_ALGORITHM",
            "fft,direct",
            "CONVJIT_ALGORITHM='fft,direct' names 2 things; give one.",
        ),
        (
            "CONVJIT_WORKSPACE_LIMIT",
            "1.5GiB",
            "CONVJIT_WORKSPACE_LIMIT='1.5GiB' is not a size; give bytes, or a number with one of "
            "KiB, MiB, GiB (e.g. 512MiB).",
        ),
        ("CONVJIT_WORKSPACE_LIMIT", "-1", "CONVJIT_WORKSPACE_LIMIT='-1' is not a size"),
        ("CONVJIT_WORKSPACE_LIMIT", "5TB", "CONVJIT_WORKSPACE_LIMIT='5TB' is not a size"),
        ("CONVJIT_WORKSPACE_LIMIT", "GiB", "CONVJIT_WORKSPACE_LIMIT='GiB' is not a size"),
    ],
)
def test_a_bad_value_names_the_variable_the_value_and_the_choices(
    variable: str, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_environment({variable: text})


def test_a_cache_directory_may_not_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cache"
    file.write_text("")
    with pytest.raises(
        ConfigError, match=r"CONVJIT_CACHE_DIR='.*cache' is a file; name a directory"
    ):
        parse_environment({"CONVJIT_CACHE_DIR": str(file)})
    assert parse_environment({"CONVJIT_CACHE_DIR": str(tmp_path / "new")}).cache_dir == str(
        tmp_path / "new"
    )


def test_an_unknown_variable_warns_and_has_no_effect() -> None:
    with pytest.warns(
        ConvjitWarning, match=r"CONVJIT_THREADS is not a variable of convjit, which reads CONVJIT_"
    ):
        settings = parse_environment({"CONVJIT_THREADS": "4", "CONVJIT_NUM_THREADS": "3"})
    assert settings == Settings(num_threads=3)


def test_the_environment_is_read_late_once_and_again_when_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in config.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CONVJIT_NUM_THREADS", "3")
    config.reload_environment()
    try:
        assert config.num_threads() == 3
        monkeypatch.setenv("CONVJIT_NUM_THREADS", "5")
        assert config.num_threads() == 3
        config.reload_environment()
        assert config.num_threads() == 5
        monkeypatch.setenv("CONVJIT_NUM_THREADS", "bad")
        config.reload_environment()
        with pytest.raises(ConfigError, match="CONVJIT_NUM_THREADS='bad'"):
            config.num_threads()
    finally:
        monkeypatch.undo()
        config.reload_environment()


def test_settings_nest_and_are_restored() -> None:
    before = config.current()
    config.push({"num_threads": 3, "precision": "fast"})
    config.push({"num_threads": 1})
    assert (config.current().num_threads, config.current().precision) == (1, "fast")
    config.pop()
    assert config.num_threads() == 3
    config.pop()
    assert config.current() == before


def test_settings_belong_to_a_task_and_not_to_its_neighbours() -> None:
    seen: dict[int, list[int]] = {1: [], 2: []}

    async def work(threads: int, barrier: asyncio.Barrier) -> None:
        config.push({"num_threads": threads})
        for _ in range(3):
            await barrier.wait()
            seen[threads].append(config.num_threads())
        config.pop()

    async def both() -> None:
        barrier = asyncio.Barrier(2)
        await asyncio.gather(work(1, barrier), work(2, barrier))

    asyncio.run(both())
    assert seen == {1: [1, 1, 1], 2: [2, 2, 2]}


def test_settings_belong_to_a_thread() -> None:
    default = config.num_threads()
    config.push({"num_threads": default + 1})
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(config.num_threads()))
    thread.start()
    thread.join()
    config.pop()
    assert seen == [default]


def test_the_default_cache_directory_is_the_users() -> None:
    config.push({"cache_dir": None})
    try:
        assert config.cache_dir().name == "convjit"
    finally:
        config.pop()


def test_the_fields_and_the_variables_agree() -> None:
    """Every field but precision, which is a matter of a program and not of a machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parsed = {variable.removeprefix("CONVJIT_").lower() for variable in config.VARIABLES}
    assert parsed == set(config.SETTING_NAMES) - {"precision"}

"""Files that convjit remembers things in: damaged, newer, read-only, full, and shared ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from convjit import config, store
from convjit.errors import ConfigError, ConvjitWarning
from convjit.store import Store


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A directory of the user that is not there yet."""
    monkeypatch.setenv("CONVJIT_CACHE_DIR", str(tmp_path / "home"))
    config.reload_environment()
    yield tmp_path / "home"
    monkeypatch.undo()
    config.reload_environment()


def made(version=1, shipped=None):
    return Store("things.json", version, shipped)


@contextmanager
def one_warning(match):
    """Exactly one warning, whatever is done inside."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    (only,) = told
    assert only.category is ConvjitWarning
    assert re.search(match, str(only.message))


def test_entries_are_found_by_the_next_process_and_read_once(kept, monkeypatch):
    ours = made()
    assert ours.entries() == {}
    assert ours.update({"a": {"x": 1}, "b": {"x": 2}})
    assert ours.update({"a": None, "c": {"x": 3}})
    theirs = made()
    assert theirs.entries() == ours.entries() == {"b": {"x": 2}, "c": {"x": 3}}
    monkeypatch.setattr(Store, "_usable", None)  # reading again would call it
    assert theirs.entries() is theirs.entries()


def test_a_change_of_another_process_is_noticed(kept):
    ours, theirs = made(), made()
    theirs.update({"a": {}})
    before = (ours.entries(), ours.changes)
    theirs.update({"b": {}})
    assert set(ours.entries()) == {"a", "b"}
    assert ours.changes == before[1] + 1


def test_the_file_is_for_people_and_unknown_fields_stay_in_it(kept):
    path = kept / "things.json"
    kept.mkdir()
    text = {"convjit": "things.json", "version": 1, "note": "mine", "entries": {"b": {"new": [1]}}}
    path.write_text(json.dumps(text))
    made().update({"a": {"x": 1.5}})
    found = json.loads(path.read_text())
    assert found == {**text, "entries": {"a": {"x": 1.5}, "b": {"new": [1]}}}
    assert path.read_text().splitlines()[:2] == ["{", ' "convjit": "things.json",']
    assert list(found["entries"]) == ["a", "b"]


DAMAGED = {
    "nothing": b"",
    "half a document": b'{"convjit": "things.json", "version": 1, "entr',
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "another file": b'{"convjit": "others.json", "version": 1, "entries": {}}',
    "no version": b'{"convjit": "things.json", "version": "1", "entries": {}}',
    "no entries": b'{"convjit": "things.json", "version": 1, "entries": {"a": 3}}',
    "too deep": b"[" * 100_000,
}
OLDER = b'{"convjit": "things.json", "version": 0, "entries": {"a": {}}}'


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("writes", [False, True], ids=["read", "written"])
def test_a_corrupt_file_is_set_aside_with_one_warning(data, writes, kept):
    kept.mkdir()
    (kept / "things.json").write_bytes(data)
    ours = made()
    with one_warning(r"damaged .* set aside as things.json.corrupt"):
        if writes:
            assert ours.update({"a": {}})
        assert ours.entries() == ({"a": {}} if writes else {})
        assert ours.entries() == ({"a": {}} if writes else {})
    assert (kept / "things.json.corrupt").read_bytes() == data
    assert (kept / "things.json").exists() == writes
    assert ours.update({"b": {}})
    assert "b" in made().entries()


def test_a_newer_file_is_left_alone_and_an_older_one_replaced(kept):
    made(version=2).update({"a": {"x": 2}})
    before = (kept / "things.json").read_bytes()
    old = made(version=1)
    with one_warning("version is 2, this convjit knows up to 1"):
        assert old.entries() == {}
        assert not old.update({"b": {"x": 1}})
    assert old.entries() == {"b": {"x": 1}}  # in this process
    assert (kept / "things.json").read_bytes() == before
    new = made(version=3)
    assert new.entries() == {}
    assert new.update({"c": {"x": 3}})
    assert made(version=3).entries() == {"c": {"x": 3}}


def cannot_replace(*names):
    raise OSError(28, "No space left on device")


def test_what_cannot_be_written_holds_for_this_process_and_is_tried_again(kept, monkeypatch):
    ours = made()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cannot_replace)
        with one_warning("No space left on device"):
            assert not ours.update({"a": {"x": 1}})
            assert not ours.update({"b": {"x": 2}})
        assert ours.entries() == {"a": {"x": 1}, "b": {"x": 2}}
    assert made().entries() == {}
    assert not list(kept.glob("*.part"))
    assert ours.update({"c": {}})
    assert set(made().entries()) == {"a", "b", "c"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_directory(kept):
    kept.mkdir()
    kept.chmod(0o500)
    ours = made()
    with pytest.warns(ConvjitWarning, match="CONVJIT_CACHE_DIR"):
        assert not ours.update({"a": {}})
    assert ours.entries() == {"a": {}}


def test_a_directory_that_cannot_be_made(kept, monkeypatch):
    kept.write_text("a file is in its place")
    monkeypatch.setenv("CONVJIT_CACHE_DIR", str(kept / "inner"))
    config.reload_environment()
    ours = made()
    assert ours.entries() == {}
    with pytest.warns(ConvjitWarning, match="cannot be written"):
        assert not ours.update({"a": {}})
    assert ours.entries() == {"a": {}}


def test_a_corrupt_file_that_cannot_be_moved_is_not_used(kept, monkeypatch):
    kept.mkdir()
    (kept / "things.json").write_bytes(b"?")
    monkeypatch.setattr(os, "replace", cannot_replace)
    ours = made()
    with one_warning("damaged .* Remove it"):
        assert ours.entries() == ours.entries() == {}


# -------------------------------------------------------------------- shipped, exported, imported


def test_a_users_entry_stands_before_a_shipped_one(kept, tmp_path, monkeypatch):
    package = tmp_path / "shipping"
    package.mkdir()
    (package / "__init__.py").touch()
    text = {"convjit": "things.json", "version": 1, "entries": {"a": {"x": 1}, "b": {"x": 2}}}
    (package / "theirs.json").write_text(json.dumps(text))
    monkeypatch.syspath_prepend(tmp_path)
    ours = made(shipped=("shipping", "theirs.json"))
    assert ours.entries() == text["entries"]
    ours.update({"a": {"x": 9}})
    assert ours.entries() == {"a": {"x": 9}, "b": {"x": 2}}
    ours.update({"a": None})
    assert ours.entries() == text["entries"]


def test_what_is_exported_can_be_read_elsewhere(kept, tmp_path):
    ours = made()
    ours.update({"a": {"x": 1}, "b": {"x": 2}})
    assert ours.export(tmp_path / "all.json") == 2
    assert ours.export(tmp_path / "some.json", lambda key, entry: entry["x"] == 2) == 1
    assert ours.read_file(tmp_path / "all.json") == ours.entries()
    assert made().read_file(tmp_path / "some.json") == {"b": {"x": 2}}


@pytest.mark.parametrize("data", [None, b"", b"[]", DAMAGED["no entries"], OLDER])
def test_a_file_that_cannot_be_imported(data, kept, tmp_path):
    path = tmp_path / "given.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"given.json cannot be imported .* things.json"):
        made().read_file(path)
    assert data is None or path.read_bytes() == data


def test_a_file_that_cannot_be_exported(kept, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        made().export(tmp_path / "file" / "out.json")


# -------------------------------------------------------------------- at once

WRITER = """
import sys
from convjit.store import Store
ours = Store("things.json", 1)
sys.stdin.readline()
for number in range(25):
    assert ours.update({f"{sys.argv[1]}{number}": {"by": sys.argv[1]}})
"""


@pytest.mark.subprocess
def test_two_processes_that_write_at_once_lose_nothing(kept):
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", WRITER, name], stdin=subprocess.PIPE)
            )
            for name in "ab"
        ]
        for writer in writers:
            writer.stdin.write(b"go\n")
            writer.stdin.flush()
        assert [writer.wait(60) for writer in writers] == [0, 0]
    assert len(made().entries()) == 50


def test_threads_of_one_process_that_write_and_read(kept):
    ours, names = made(), [f"n{n}" for n in range(24)]

    def work(name: str) -> None:
        ours.update({name: {}})
        assert name in ours.entries()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(made().entries()) == sorted(names)


def test_a_lock_that_another_holds_for_too_long_is_a_warning(kept, monkeypatch):
    from filelock import FileLock

    kept.mkdir()
    monkeypatch.setattr(store, "LOCK_TIMEOUT", 0.05)
    ours = made()
    with (
        FileLock(Path(f"{ours.path}.lock")),
        pytest.warns(ConvjitWarning, match="cannot be written"),
    ):
        assert not ours.update({"a": {}})
    assert ours.update({})
    assert made().entries() == {"a": {}}

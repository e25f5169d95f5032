"""Several processes for one function: all jobs are done, whatever becomes of a process."""

from __future__ import annotations

import os
from pathlib import Path

from convjit import together


def leave_a_mark(path: str) -> None:
    """A job: says which process it ran in; those named so fail, or end their process."""
    name = Path(path).name
    if name == "raises":
        raise ValueError(name)
    if name == "dies":
        os._exit(1)
    Path(path).write_text(str(os.getpid()))


def test_jobs_run_in_other_processes_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    jobs = [str(tmp_path / name) for name in ("a", "raises", "b", "c")]
    told: list[int] = []
    together.run(leave_a_mark, jobs, 2, began=lambda left: told.append(len(left)))
    assert told == [4, 3, 2, 1, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}
    pids = {int(path.read_text()) for path in tmp_path.iterdir()}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


def test_a_process_that_dies_leaves_its_jobs_undone_and_nothing_waits(tmp_path: Path) -> None:
    told: list[int] = []
    together.run(
        leave_a_mark, [str(tmp_path / "dies")], 1, began=lambda left: told.append(len(left))
    )
    assert told == [1, 0]
    assert list(tmp_path.iterdir()) == []

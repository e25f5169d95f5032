"""Several processes for one function: all jobs are done, whatever becomes of a process."""

from __future__ import annotations

import os
from pathlib import Path

from convjit import together


def test_jobs_run_in_other_processes_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    jobs = [str(tmp_path / name) for name in ("a", "b", "c")]
    failing = str(tmp_path / "missing" / "d")
    told: list[int] = []
    together.run(
        os.mkdir, [jobs[0], failing, *jobs[1:]], 2, began=lambda left: told.append(len(left))
    )
    assert told == [4, 3, 2, 1, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}


def test_jobs_run_elsewhere(tmp_path: Path) -> None:
    """In a process of their own: what a job changes there stays as it is here."""
    here = os.getcwd()
    together.run(os.chdir, [str(tmp_path)], 1)
    assert os.getcwd() == here


def test_a_process_that_dies_leaves_its_jobs_undone_and_nothing_waits() -> None:
    told: list[int] = []
    together.run(os._exit, [1], 1, began=lambda left: told.append(len(left)))
    assert told == [1, 0]

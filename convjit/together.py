"""One function over many arguments in several processes, for what holds the interpreter's lock.

numba and LLVM compile one kernel at a time in a process, however many threads it has.  What they
compile is kept on disk, so that the processes need hand nothing back.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

MOST = 8  # processes: each imports numba, which takes some 200 MiB

Job = TypeVar("Job")


def run(
    function: Callable[[Job], object],
    jobs: Sequence[Job],
    processes: int,
    *,
    began: Callable[[Sequence[Job]], None] = lambda left: None,
) -> None:
    """Call ``function(job)`` for each job, in processes of their own, and wait for all.

    Nothing comes back: neither results nor what is raised.  It is for work that the caller would do
    itself if it were left undone (and would meet the same error).

    Parameters
    ----------
    function : callable
        Of a module, so that it can be named to another process.
    jobs : sequence
        The longest first, so that none is left for the end.
    processes : int
        At most, no more than :data:`MOST`.
    began : callable
        Told the jobs that are left, at first and whenever one is done.
    """
    # A first call imports this module, and has no use for what makes processes.
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    left = list(jobs)
    began(left)
    count = min(processes, MOST, len(left))
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_quietly)
    futures = {}
    try:
        with suppress(BrokenProcessPool):  # a process that died takes the others with it
            for job in jobs:
                futures[pool.submit(function, job)] = job
        for future in as_completed(futures):
            left.remove(futures[future])
            began(left)
    finally:
        pool.shutdown(cancel_futures=True)


def _quietly() -> None:
    """Leave speaking to the parent, which Ctrl-C interrupts too."""
    import logging

    def leave(*_: Any) -> None:
        os._exit(130)

    signal.signal(signal.SIGINT, leave)
    # Who listens is not told which kernels are compiled; nor is the terminal, the caller's own.
    logging.getLogger("convjit").setLevel(logging.INFO)

"""The peers that are installed beside convjit, on the same problems.

asv gives each benchmark a process of its own, so that no two libraries' threads meet; a peer is
imported in ``setup`` alone.  ``python -m convjit bench --peers`` lets the engines take turns
instead, which is what the README's tables come from; this is their history.
"""

from __future__ import annotations

import os

from convjit.bench import verify
from convjit.bench.cases import Case, small_cases
from convjit.bench.engines import ENGINES, Job, NotOffered

from .common import skip, warmed_up

CASES = {case.title: case for case in small_cases()}


class Peers:
    params = (list(CASES), list(ENGINES))
    param_names = ("case", "engine")
    timeout = 120

    def setup(self, title: str, engine: str) -> None:
        case: Case = CASES[title]
        spec = case.problem
        threads = len(os.sched_getaffinity(0))
        job = Job(case, spec, *verify.operands(spec), threads, plain=False)
        try:
            self.call = warmed_up(ENGINES[engine](job).run)
        except (NotOffered, ImportError) as reason:
            skip(str(reason))

    def time_run(self, title: str, engine: str) -> None:
        self.call()

"""From a fresh interpreter to the first result, with kernels compiled before and without."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

FIRST_CALL = """
import time
start = time.perf_counter()
import numpy as np
import convjit
x = np.ones({x}, np.float32)
w = np.ones({w}, np.float32)
convjit.conv(x, w, padding="same")
print(time.perf_counter() - start)
"""

PROBLEMS = {
    "image": ((256, 256), (5, 5)),
    "layer": ((1, 64, 56, 56), (64, 64, 3, 3)),
    "signal": ((10_000,), (33,)),
}


def seconds(problem: str, cache: str) -> float:
    """Seconds from the first import to the first result in a process of its own."""
    x, w = PROBLEMS[problem]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL.format(x=x, w=w)],
        check=True, capture_output=True, text=True,
        env=os.environ | {"CONVJIT_CACHE_DIR": cache, "NUMBA_CACHE_DIR": cache},
    )  # fmt: skip
    return float(done.stdout)


class FirstCall:
    params = list(PROBLEMS)
    param_names = ("problem",)
    timeout = 300
    unit = "s"

    def setup(self, problem: str) -> None:
        self.directory = tempfile.TemporaryDirectory()

    def teardown(self, problem: str) -> None:
        self.directory.cleanup()

    def track_cold(self, problem: str) -> float:
        """Nothing was compiled before."""
        return seconds(problem, self.directory.name)

    def track_warm(self, problem: str) -> float:
        """A process before this one compiled the kernels."""
        seconds(problem, self.directory.name)
        return statistics.median(seconds(problem, self.directory.name) for _ in range(5))

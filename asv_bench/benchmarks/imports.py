"""What ``import convjit`` costs beyond ``import numpy``, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

IMPORT = """
import numpy, time
start = time.perf_counter()
import convjit
convjit.conv  # whatever the package imports only when it is first used
print(time.perf_counter() - start)
"""


def timeraw_import_convjit() -> str:
    return "import convjit; convjit.conv"


def timeraw_import_numpy() -> str:
    """For comparison: what every user of arrays pays anyway."""
    return "import numpy"


def track_beyond_numpy() -> float:
    """Milliseconds that ``import convjit`` takes after ``import numpy``; 25 are allowed."""
    runs = (
        subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True)
        for _ in range(11)
    )
    return min(float(done.stdout) for done in runs) * 1e3


track_beyond_numpy.unit = "ms"  # type: ignore[attr-defined]


def track_modules() -> int:
    """Number of modules that ``import convjit`` adds to those of NumPy."""
    count = (
        "import sys, numpy; n = len(sys.modules); import convjit; convjit.conv; "
        "print(len(sys.modules) - n)"
    )
    done = subprocess.run([sys.executable, "-c", count], check=True, capture_output=True, text=True)
    return int(done.stdout)


track_modules.unit = "modules"  # type: ignore[attr-defined]

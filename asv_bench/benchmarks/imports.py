"""What ``import convjit`` costs beyond ``import numpy``, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

IMPORT = """
import numpy, time
start = time.perf_counter()
import convjit
{more}
print(time.perf_counter() - start)
"""


def milliseconds(more: str) -> float:
    """The least of several processes."""
    program = IMPORT.format(more=more)
    runs = (
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        for _ in range(11)
    )
    return min(float(done.stdout) for done in runs) * 1e3


def timeraw_import_convjit() -> str:
    return "import convjit; convjit.conv"


def timeraw_import_numpy() -> str:
    """For comparison: what every user of arrays pays anyway."""
    return "import numpy"


def track_beyond_numpy() -> float:
    """``import convjit`` after ``import numpy``; 25 ms are allowed."""
    return milliseconds("")


def track_beyond_numpy_with_conv() -> float:
    """The same with the first use of a name, which imports what stands behind it."""
    return milliseconds("convjit.conv")


track_beyond_numpy.unit = track_beyond_numpy_with_conv.unit = "ms"  # type: ignore[attr-defined]


def track_modules() -> int:
    """Number of modules that ``import convjit`` adds to those of NumPy."""
    count = (
        "import sys, numpy; n = len(sys.modules); import convjit; convjit.conv; "
        "print(len(sys.modules) - n)"
    )
    done = subprocess.run([sys.executable, "-c", count], check=True, capture_output=True, text=True)
    return int(done.stdout)


track_modules.unit = "modules"  # type: ignore[attr-defined]

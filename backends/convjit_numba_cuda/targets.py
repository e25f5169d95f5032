"""GPUs as numba.cuda's kernels see them: the ordinary cores' peaks and a share of them each."""

from __future__ import annotations

from convjit import gpus
from convjit.gpus import Description
from convjit.spi import Target

# Share of the peak that a kernel family is taken to reach: half of the multiply-adds share of the
# hottest loop of its machine code (63 to 81 % for direct and gemm; `explain --ptx`), for what
# waits.  Modelled; no GPU was at hand to measure.
SHARES = {"gemm": 0.35, "direct": 0.33, "depthwise": 0.1, "winograd": 0.15}


def target(description: Description) -> Target:
    """The target of a device."""
    found = gpus.figures(description)
    rates = {
        f"numba_cuda.{family}.{dtype}": share * peak
        for family, share in SHARES.items()
        for dtype, peak in (("float32", found.float32), ("float64", found.float64))
    }
    return gpus.target(description, found, rates)

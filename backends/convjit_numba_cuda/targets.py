"""GPUs as the cost model sees them: a table of published rates, else the device's own figures.

Peaks are those of the ordinary cores (what numba.cuda can use), from the makers' data sheets; what
a kernel reaches of them is modelled, not measured (see :data:`SHARES`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from convjit.spi import Target
from convjit_numba_cuda.device import Description


class Row(NamedTuple):
    """A GPU by its data sheet: 10^12 flop/s in float32 and float64, 10^9 byte/s of its memory."""

    name: str
    float32: float
    float64: float
    memory: float


# The first row whose name stands, as words, in what the driver calls the device.
ROWS = (
    Row("B200", 75.0, 37.0, 8000.0),
    Row("H200", 67.0, 34.0, 4800.0),
    Row("H100 PCIe", 51.0, 26.0, 2000.0),
    Row("H100", 67.0, 34.0, 3350.0),
    Row("GH200", 67.0, 34.0, 4000.0),
    Row("A100-SXM4-80GB", 19.5, 9.7, 2039.0),
    Row("A100", 19.5, 9.7, 1555.0),
    Row("A30", 10.3, 5.2, 933.0),
    Row("A10", 31.2, 0.49, 600.0),
    Row("A40", 37.4, 0.58, 696.0),
    Row("RTX A6000", 38.7, 0.60, 768.0),
    Row("L40S", 91.6, 1.4, 864.0),
    Row("L40", 90.5, 1.4, 864.0),
    Row("L4", 30.3, 0.47, 300.0),
    Row("T4", 8.1, 0.25, 320.0),
    Row("RTX 5090", 104.8, 1.6, 1792.0),
    Row("RTX 5080", 56.3, 0.88, 960.0),
    Row("RTX 4090", 82.6, 1.3, 1008.0),
    Row("RTX 4080", 48.7, 0.76, 717.0),
    Row("RTX 4070", 29.1, 0.46, 504.0),
    Row("RTX 3090", 35.6, 0.56, 936.0),
    Row("RTX 3080", 29.8, 0.47, 760.0),
    Row("RTX 3070", 20.3, 0.32, 448.0),
    Row("RTX 2080 Ti", 13.4, 0.42, 616.0),
)

# Multiply-adds of a multiprocessor and cycle, in float32 and float64, by compute capability
# (CUDA C++ Programming Guide, arithmetic instructions).
LANES = {
    (7, 5): (64, 2), (8, 0): (64, 32), (8, 6): (128, 2), (8, 7): (128, 2), (8, 9): (128, 2),
    (9, 0): (128, 64), (10, 0): (128, 64), (10, 3): (128, 2), (12, 0): (128, 2),
}  # fmt: skip
OTHER_LANES = (128, 2)

# Share of the peak that a kernel family is taken to reach: its multiply-adds over the instructions
# of its innermost loop in PTX (half of them for direct, two thirds for gemm), and half of that for
# what waits.  Modelled; no GPU was at hand to measure.
SHARES = {"gemm": 0.35, "direct": 0.3, "depthwise": 0.1, "winograd": 0.15}

# Bytes of L2 that move while its memory moves one (what the published microbenchmarks agree on).
L2_SPEED = 3.0

# PCI Express 4.0 with 16 lanes, pageable memory: half of what pinned memory would give.
BUS = 1.2e10

# Seconds of a launch, and of the allocations and copies around it.
LAUNCH = 6e-6
CALL = 60e-6


def row_of(name: str) -> Row | None:
    """The row of a device; none for a variant that the table does not have."""
    variant = r"\b(?! (?:Ti|SUPER|D|Laptop|Max-Q)\b)"
    return next((r for r in ROWS if re.search(rf"\b{re.escape(r.name)}{variant}", name)), None)


def target(description: Description) -> Target:
    """The target of a device."""
    row = row_of(description.name)
    if row is not None:
        peak = {"float32": row.float32 * 1e12, "float64": row.float64 * 1e12}
        memory = row.memory * 1e9
        origin = "published rates"
    else:
        lanes = LANES.get(description.capability, OTHER_LANES)
        cycles = 2.0 * description.multiprocessors * description.clock
        peak = {"float32": lanes[0] * cycles, "float64": lanes[1] * cycles}
        memory = 2.0 * description.memory_clock * description.bus_bits / 8
        origin = "rates from its clocks"
    rates = {
        f"numba_cuda.{family}.{dtype}": share * peak[dtype]
        for family, share in SHARES.items()
        for dtype in peak
    }
    major, minor = description.capability
    return Target(
        fingerprint=f"{description.name}|sm_{major}{minor}|{description.multiprocessors}",
        device="cuda",
        description=f"{description.name}, sm_{major}{minor}, "
        f"{description.multiprocessors} multiprocessors, {origin}",
        cores=description.multiprocessors,
        peak=peak,
        rates=rates,
        bandwidth={"memory": memory, "l2": L2_SPEED * memory, "bus": BUS},
        caches={"l2": description.l2_bytes},
        launch=LAUNCH,
        call=CALL,
        features={"sm": f"{major}{minor}"},
    )

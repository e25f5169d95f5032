"""GPUs as the cost model sees them: a table of published rates, else a device's own figures.

Every backend that runs on NVIDIA's GPUs describes its device with a :class:`Description`, asks
:func:`figures` for the peaks, multiplies them by what its kernels reach of them, and has
:func:`target` put it together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from convjit.spi import Target


@dataclass(frozen=True, slots=True)
class Description:
    """What a GPU says about itself.

    Attributes
    ----------
    name : str
        ``"NVIDIA A100-SXM4-80GB"``.
    capability : (int, int)
        Compute capability.
    multiprocessors : int
    clock, memory_clock : float
        Hz.
    bus_bits : int
        Width of the memory's bus.
    l2_bytes, memory_bytes : int
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: float
    memory_clock: float
    bus_bits: int
    l2_bytes: int
    memory_bytes: int


class Row(NamedTuple):
    """A GPU by its maker's data sheet.

    Attributes
    ----------
    float32, float64 : float
        10^12 flop/s of the ordinary cores.
    memory : float
        10^9 byte/s.
    half, tf32 : float
        10^12 flop/s of the tensor cores for dense matrices, float16 summed in float32, and TF32;
        0 where there is no such arithmetic.
    matrices64 : float
        The same of float64, 0 where the sheet names none: it is done no faster than otherwise.
    """

    name: str
    float32: float
    float64: float
    memory: float
    half: float
    tf32: float
    matrices64: float = 0.0


# The first row whose name stands, as words, in what the driver calls the device.  From NVIDIA's
# data sheets "B200", "H200", "H100", "GH200", "A100", "A30", "A10", "A40", "L40S", "L40", "L4",
# "T4", "V100", "V100S", "RTX A6000" and "RTX 6000 Ada"; for GeForce from the white papers on
# Turing (2018), GA102 (2020), Ada (2022) and RTX Blackwell (2025), whose float64 is 1/32 or 1/64.
# Boost clocks, dense matrices; where a sheet gives sparse ones, half of those.
ROWS = (
    Row("B200", 75.0, 37.0, 8000.0, 2250.0, 1100.0),
    Row("H200", 67.0, 34.0, 4800.0, 989.0, 494.0, 67.0),
    Row("H100 NVL", 60.0, 30.0, 3938.0, 835.0, 417.0, 60.0),
    Row("H100 PCIe", 51.0, 26.0, 2000.0, 756.0, 378.0, 51.0),
    Row("H100", 67.0, 34.0, 3350.0, 989.0, 494.0, 67.0),
    Row("GH200", 67.0, 34.0, 4000.0, 989.0, 494.0, 67.0),
    Row("A100-SXM4-80GB", 19.5, 9.7, 2039.0, 312.0, 156.0, 19.5),
    Row("A100 80GB PCIe", 19.5, 9.7, 1935.0, 312.0, 156.0, 19.5),
    Row("A100", 19.5, 9.7, 1555.0, 312.0, 156.0, 19.5),
    Row("A30", 10.3, 5.2, 933.0, 165.0, 82.0, 10.3),
    Row("A10", 31.2, 0.49, 600.0, 125.0, 62.5),
    Row("A40", 37.4, 0.58, 696.0, 149.7, 74.8),
    Row("RTX A6000", 38.7, 0.60, 768.0, 154.8, 77.4),
    Row("RTX 6000 Ada", 91.1, 1.4, 960.0, 364.2, 182.1),
    Row("L40S", 91.6, 1.4, 864.0, 362.0, 183.0),
    Row("L40", 90.5, 1.4, 864.0, 181.0, 90.5),
    Row("L4", 30.3, 0.47, 300.0, 121.0, 60.0),
    Row("T4", 8.1, 0.25, 320.0, 65.0, 0.0),
    Row("V100S-PCIE-32GB", 16.4, 8.2, 1134.0, 130.0, 0.0),
    Row("V100-PCIE", 14.0, 7.0, 900.0, 112.0, 0.0),
    Row("V100", 15.7, 7.8, 900.0, 125.0, 0.0),
    Row("RTX 5090", 104.8, 1.6, 1792.0, 209.5, 104.8),
    Row("RTX 5080", 56.3, 0.88, 960.0, 112.6, 56.3),
    Row("RTX 4090", 82.6, 1.3, 1008.0, 165.2, 82.6),
    Row("RTX 4080", 48.7, 0.76, 717.0, 97.5, 48.7),
    Row("RTX 4070", 29.1, 0.46, 504.0, 58.3, 29.1),
    Row("RTX 4060", 15.1, 0.24, 272.0, 30.2, 15.1),
    Row("RTX 3090 Ti", 40.0, 0.63, 1008.0, 80.0, 40.0),
    Row("RTX 3090", 35.6, 0.56, 936.0, 71.0, 35.6),
    Row("RTX 3080", 29.8, 0.47, 760.0, 59.5, 29.8),
    Row("RTX 3070", 20.3, 0.32, 448.0, 40.6, 20.3),
    Row("RTX 3060", 12.7, 0.20, 360.0, 25.5, 12.7),
    Row("RTX 2080 Ti", 13.4, 0.42, 616.0, 53.8, 0.0),
)


class Lanes(NamedTuple):
    """Multiply-adds of a multiprocessor and cycle; the tensor cores' for dense matrices."""

    float32: int
    float64: int
    half: int
    tf32: int
    matrices64: int = 0


# By compute capability (CUDA C++ Programming Guide, arithmetic instructions; the architectures'
# white papers for the tensor cores, of consumer chips with sums in float32).
LANES = {
    (7, 0): Lanes(64, 32, 512, 0), (7, 5): Lanes(64, 2, 256, 0),
    (8, 0): Lanes(64, 32, 1024, 512, 64),
    (8, 6): Lanes(128, 2, 256, 128), (8, 7): Lanes(128, 2, 512, 256),
    (8, 9): Lanes(128, 2, 256, 128), (9, 0): Lanes(128, 64, 2048, 1024, 128),
    (10, 0): Lanes(128, 64, 4096, 2048), (10, 3): Lanes(128, 2, 4096, 2048),
    (12, 0): Lanes(128, 2, 256, 128),
}  # fmt: skip
OTHER_LANES = Lanes(128, 2, 256, 128)

# Bytes of L2 that move while its memory moves one (what the published microbenchmarks agree on).
L2_SPEED = 3.0

# PCI Express 4.0 with 16 lanes, pageable memory: half of what pinned memory would give.
BUS = 1.2e10

# Seconds of a launch, and of the allocations and checks around a call.
LAUNCH = 6e-6
CALL = 60e-6


@dataclass(frozen=True, slots=True)
class Figures:
    """A GPU's peaks.

    Attributes
    ----------
    float32, float64, half, tf32 : float
        flop/s, as :class:`Row` has them.
    matrices64 : float
        flop/s of products of float64's matrices, by whichever cores do them faster.
    memory : float
        byte/s.
    origin : str
        Where they come from.
    """

    float32: float
    float64: float
    half: float
    tf32: float
    matrices64: float
    memory: float
    origin: str


def row_of(name: str) -> Row | None:
    """The row of a device; none for a variant that the table does not have."""
    variant = r"\b(?! (?:Ti|SUPER|D|Laptop|Max-Q)\b)"
    return next((r for r in ROWS if re.search(rf"\b{re.escape(r.name)}{variant}", name)), None)


def figures(description: Description) -> Figures:
    """The peaks of a device: of its row, else from its clocks and compute capability."""
    row = row_of(description.name)
    if row is not None:
        return Figures(
            row.float32 * 1e12, row.float64 * 1e12, row.half * 1e12, row.tf32 * 1e12,
            max(row.float64, row.matrices64) * 1e12, row.memory * 1e9, "published rates",
        )  # fmt: skip
    lanes = LANES.get(description.capability, OTHER_LANES)
    cycles = 2.0 * description.multiprocessors * description.clock
    memory = 2.0 * description.memory_clock * description.bus_bits / 8
    return Figures(
        lanes.float32 * cycles, lanes.float64 * cycles, lanes.half * cycles, lanes.tf32 * cycles,
        max(lanes.float64, lanes.matrices64) * cycles, memory, "rates from its clocks",
    )  # fmt: skip


def target(
    description: Description,
    found: Figures,
    rates: Mapping[str, float],
    *,
    peak: Mapping[str, float] | None = None,
    call: float = CALL,
) -> Target:
    """The target of a device.

    Parameters
    ----------
    description : Description
    found : Figures
        Of that device.
    rates : mapping of rate key to flop/s
        What each kernel family of the backend reaches.
    peak : mapping of dtype to flop/s, optional
        Where kernels of the backend use more than the ordinary cores.
    call : float
        Seconds of one call beside its launches.
    """
    major, minor = description.capability
    return Target(
        fingerprint=f"{description.name}|sm_{major}{minor}|{description.multiprocessors}",
        device="cuda",
        description=f"{description.name}, sm_{major}{minor}, "
        f"{description.multiprocessors} multiprocessors, {found.origin}",
        cores=description.multiprocessors,
        peak=peak or {"float32": found.float32, "float64": found.float64},
        rates=rates,
        bandwidth={"memory": found.memory, "l2": L2_SPEED * found.memory, "bus": BUS},
        caches={"l2": description.l2_bytes},
        launch=LAUNCH,
        call=call,
        features={"sm": f"{major}{minor}"},
    )


# A GPU of each generation, by its data sheet: how many multiprocessors there are decides tiles.
MODELS = {
    (7, 5): ("Tesla T4", 40, 1.59e9, 16 << 30),
    (8, 0): ("NVIDIA A100-SXM4-80GB", 108, 1.41e9, 80 << 30),
    (8, 6): ("NVIDIA GeForce RTX 3090", 82, 1.70e9, 24 << 30),
    (8, 9): ("NVIDIA GeForce RTX 4090", 128, 2.52e9, 24 << 30),
    (9, 0): ("NVIDIA H100 80GB HBM3", 132, 1.98e9, 80 << 30),
    (10, 0): ("NVIDIA B200", 148, 1.97e9, 180 << 30),
    (12, 0): ("NVIDIA GeForce RTX 5090", 170, 2.41e9, 32 << 30),
}


def model(capability: tuple[int, int]) -> Description:
    """A GPU of a compute capability, to plan for where there is none."""
    name, multiprocessors, clock, memory = MODELS.get(capability, ("a GPU", 100, 1.5e9, 16 << 30))
    return Description(name, capability, multiprocessors, clock, 2e9, 5120, 40 << 20, memory)

"""What a core does where nothing was measured: a table by microarchitecture.

The instruction set alone does not tell: Zen 4 splits a 512-bit FMA in two, Zen 5 and Intel's
servers do not, Intel's desktops have one port for it.  Names are LLVM's.  A processor that is not
in the table gets the row of its instruction set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CLOCK = 3.0e9  # Hz, where nothing better is known


def _bandwidth(
    l1: float, l2: float, l3: float, memory: float, copy: float, cast: float, elementwise: float
) -> Mapping[str, float]:
    return {
        "l1": l1, "l2": l2, "l3": l3, "memory": memory,
        "copy": copy, "cast": cast, "elementwise": elementwise,
    }  # fmt: skip


# What kernels reach in general, in the units of their models.
SHARES: Mapping[str, float] = {
    "direct": 0.9, "gemm": 1.0, "indirect": 1.0, "winograd": 0.9, "winograd.transform": 0.7,
    "fft": 0.8, "fft.multiply": 0.7, "depthwise": 0.55, "depthwise.slab": 0.8, "planes": 0.9,
    "transposed": 0.9, "subpixel": 0.9, "weight_grad": 1.0,
}  # fmt: skip
OTHER_SHARE = 0.9  # of a family that is in no table


@dataclass(frozen=True, slots=True)
class Microarchitecture:
    """A row of the table.

    Attributes
    ----------
    flops_per_cycle : int
        Of one core in float32 (half of it in float64): two for each lane of an FMA.
    clock : float
        Hz, all cores busy with vectors.
    shares : mapping
        By kernel family, what it reaches of that peak.
    bandwidth : mapping
        Bytes read and written per second, ``"l1"`` to ``"l3"`` by each core, ``"memory"``,
        ``"copy"``, ``"cast"`` (the backend's) and ``"elementwise"`` (a pass of NumPy's) by all
        together.
    stream : (float, float)
        Bytes read per second by each core while it computes, from the shared cache and from memory:
        by these kernels are blocked.
    """

    flops_per_cycle: int
    clock: float = CLOCK
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)
    bandwidth: Mapping[str, float] = field(
        default_factory=lambda: _bandwidth(1.2e11, 6e10, 2.5e10, 1.5e10, 1e10, 2e10, 4e9)
    )
    stream: tuple[float, float] = (4e10, 1.5e10)


# Figures of `python -m convjit calibrate` on two cores of a server, but for "depthwise.slab", which
# reaches 1.2: the model of planes, its only rival, says too much of small ones by a part of that
# (over 90 layers what is chosen by 1.0 took 1.02 times the best, by .9 or 1.2 1.03 times); for
# "transposed", the median over 56 layers of both layouts (the one of calibrate is at 1.02); for
# "depthwise", which reaches .92 with kernels of 3x3 and .75 with those of 29x29; and for "fft", the
# median over 90 images of 1 to 256 channels (the one of calibrate is at .9).
_ZEN4 = Microarchitecture(
    32,
    3.67e9,
    {
        "direct": 1.0, "gemm": 1.07, "indirect": 1.07, "winograd": 1.08,
        "winograd.transform": 1.08, "fft": 1.0, "fft.multiply": 0.88,
        "depthwise": 0.8, "depthwise.slab": 1.0, "planes": 1.13, "transposed": 1.09,
        "subpixel": 1.0, "weight_grad": 1.1,
    },
    _bandwidth(1.2e11, 1.1e11, 4.3e10, 3.3e10, 2.3e10, 1.0e11, 1.0e10),
    (7.3e10, 1.74e10),
)  # fmt: skip

# The first three shares are medians over 38 channels-first layers of many kinds; casts were not
# measured: they are taken to go as fast as the shared cache.
_GRANITE = Microarchitecture(
    64,
    3.6e9,
    {
        "direct": 0.78, "gemm": 0.86, "indirect": 0.82, "winograd": 0.9,
        "winograd.transform": 0.5, "fft": 0.45, "fft.multiply": 0.4,
        "depthwise": 0.33, "depthwise.slab": 0.5, "planes": 0.65, "transposed": 0.75,
        "subpixel": 0.75, "weight_grad": 0.76,
    },
    _bandwidth(3.2e11, 9.6e10, 2.6e10, 2.5e10, 2.8e10, 5.2e10, 1.35e10),
    (2.8e10, 1.5e10),
)  # fmt: skip

# FMA ports by vector width: A. Fog, "The microarchitecture of Intel, AMD and VIA CPUs"; Arm's
# software optimization guides.  Clocks of Zen 3 and Zen 5 are those of measured peaks.
MICROARCHITECTURES: Mapping[str, Microarchitecture] = {
    "znver1": Microarchitecture(16),
    "znver2": Microarchitecture(32),
    "znver3": Microarchitecture(32),
    "znver4": _ZEN4,
    "znver5": Microarchitecture(64, 4.0e9, bandwidth=_ZEN4.bandwidth),
    "haswell": Microarchitecture(32),
    "broadwell": Microarchitecture(32),
    "skylake": Microarchitecture(32),
    "alderlake": Microarchitecture(32),
    "raptorlake": Microarchitecture(32),
    "skylake-avx512": Microarchitecture(64, 2.6e9),
    "cascadelake": Microarchitecture(64, 2.6e9),
    "cooperlake": Microarchitecture(64, 2.6e9),
    "icelake-client": Microarchitecture(32),
    "tigerlake": Microarchitecture(32),
    "rocketlake": Microarchitecture(32),
    "icelake-server": Microarchitecture(64, 2.6e9),
    "sapphirerapids": Microarchitecture(64, 2.8e9),
    "emeraldrapids": Microarchitecture(64, 2.8e9),
    "graniterapids": _GRANITE,
    "neoverse-n1": Microarchitecture(16),
    "neoverse-n2": Microarchitecture(16),
    "neoverse-v1": Microarchitecture(32, 2.6e9),
    "neoverse-v2": Microarchitecture(32),
    "apple-m1": Microarchitecture(32),
    "apple-m2": Microarchitecture(32, 3.4e9),
    "apple-m3": Microarchitecture(32, 3.8e9),
}  # fmt: skip

INSTRUCTION_SETS: Mapping[str, Microarchitecture] = {
    "avx512": Microarchitecture(64, 2.6e9),
    "avx2": Microarchitecture(32),
    "sse2": Microarchitecture(8),
    "neon": Microarchitecture(16),
    "generic": Microarchitecture(4),
}


# What a virtual machine says it is may be older than the instructions that it has: LLVM's name is
# then of the older one.  The first of the features that is there tells better.
TELLING = (("avx10.1", "graniterapids"), ("amx-tile", "sapphirerapids"))


def named(cpu: str, features: str) -> str:
    """The name in the table of a processor that LLVM calls ``cpu``, with LLVM's features."""
    on = {word[1:] for word in features.split(",") if word.startswith("+")}
    names = list(MICROARCHITECTURES)
    for feature, name in TELLING:
        if feature in on and cpu in names and names.index(cpu) < names.index(name):
            return name
    return cpu


def row(cpu: str, isa: str) -> Microarchitecture:
    """The row of a processor by LLVM's name, unless fewer instructions are in force than it has."""
    known, most = MICROARCHITECTURES.get(cpu), INSTRUCTION_SETS[isa]
    if known is None or (isa != "avx512" and most.flops_per_cycle < known.flops_per_cycle):
        return most
    return known

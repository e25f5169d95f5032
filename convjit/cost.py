"""From work to seconds: the roofline model (Williams, Waterman and Patterson 2009, section 2).

A phase computes while it moves data, so that its time is that of whichever takes longest: the
arithmetic at the kernel family's own rate, or the traffic of one level of the memory at that
level's bandwidth.  Phases follow each other, and their times add.  What no phase contains is the
start of parallel regions and of the call itself.

Rates are measured per kernel family.  Where a target has no figure for a rate key, the key's
family and dtype stand in: ``"gemm.f32"`` is taken as ``SHARES["gemm"]`` of the float32 peak.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from convjit import precision
from convjit.spi import Config, Phase, Target, Work

# What a family reaches of the peak where nothing was measured.  The figures are what careful
# implementations report: blocked matrix products three quarters and more (Goto and van de Geijn
# 2008, section 7), direct loops and Winograd's whole pipeline about half, transforms a tenth
# (Frigo and Johnson 2005, section 8), streaming code less, since it waits for memory.
SHARES: Mapping[str, float] = {
    "gemm": 0.75,
    "direct": 0.5,
    "winograd": 0.5,
    "depthwise": 0.25,
    "fft": 0.1,
    "pack": 0.05,
}
DEFAULT_SHARE = 0.1  # of a family that is not in the table

# For a target that gives no peak or no bandwidth at all: one slow core, and its memory.
FALLBACK_PEAK = 1e9  # flop/s
FALLBACK_BANDWIDTH = 4e9  # byte/s

# Where a level has no bandwidth of its own, the next one outwards bounds it from below; a strided
# copy moves at half of the memory's speed, and so does a pass of the array library.
_OUTWARDS = ("l1", "l2", "l3", "memory")
COPY_SHARE = 0.5
COPIES = ("copy", "cast", "elementwise")

# Levels whose bandwidth is that of the cores' own ways to them; a few cores draw all that memory
# gives.
OF_CORES = ("l1", "l2")


def seconds(work: Work, target: Target) -> float:
    """Predicted seconds of one call with packed weights.

    Parameters
    ----------
    work : Work
    target : Target

    Returns
    -------
    float
        The phases' times, one launch for each parallel region, and the calls themselves.
    """
    phases = sum(phase_seconds(phase, target) for phase in work.phases)
    return phases + work.launches * target.launch + work.calls * target.call


def fastest(works: Iterable[tuple[Config, Work]], target: Target) -> list[Config]:
    """Configurations by the predicted seconds of their works, six digits of them.

    Of equals that which wastes less arithmetic is first, then the one that was given first.
    """

    def rank(one: tuple[Config, Work]) -> tuple[float, float]:
        return float(f"{seconds(one[1], target):.5e}"), one[1].flops

    return [config for config, _ in sorted(works, key=rank)]


def pack_seconds(work: Work, target: Target) -> float:
    """Predicted seconds of packing the second operand, 0 for a solver that packs nothing."""
    if work.pack is None:
        return 0.0
    return phase_seconds(work.pack, target) + work.pack_calls * target.call


def phase_seconds(phase: Phase, target: Target) -> float:
    """Predicted seconds of one phase: the slowest of its arithmetic and its traffic by level."""
    return max((time for _, time in phase_bounds(phase, target)), default=0.0)


def phase_bounds(phase: Phase, target: Target) -> list[tuple[str, float]]:
    """(resource, seconds) for everything that bounds a phase: ``"compute"`` and memory levels."""
    bounds = [
        (level, moved / bandwidth(level, target) / (phase.busy if level in OF_CORES else 1.0))
        for level, moved in phase.bytes.items()
        if moved
    ]
    if phase.flops:
        bounds.append(("compute", phase.flops / rate(phase.rate, target) / phase.busy))
    return bounds


def rate(key: str, target: Target) -> float:
    """Flop/s of a kernel family: measured, else its share of the peak of the key's dtype."""
    measured = target.rates.get(key, 0.0)
    return measured if measured > 0.0 else share(key) * peak(key, target)


def share(key: str) -> float:
    """The part of the peak that a key's family is taken to reach.

    The family is the first word of the key that is in ``SHARES``: ``"fft.f32"`` and
    ``"scipy.fft.f32"`` are both transforms.
    """
    return next((SHARES[word] for word in key.split(".") if word in SHARES), DEFAULT_SHARE)


def peak(key: str, target: Target) -> float:
    """Flop/s that the target's peak allows the dtype named by the last word of a rate key.

    A complex dtype computes at the rate of its parts, a half one at that of its accumulator, an
    integer or unknown one at the slowest peak that the target states.
    """
    name = key.rpartition(".")[2]
    name = precision.DTYPES.get(name, name)
    name = precision.REAL_OF.get(name, name)
    for candidate in (name, precision.accumulator_dtype(name) if name in precision.HALF else name):
        if target.peak.get(candidate, 0.0) > 0.0:
            return target.peak[candidate]
    return min((value for value in target.peak.values() if value > 0.0), default=FALLBACK_PEAK)


def bandwidth(level: str, target: Target) -> float:
    """Byte/s of a memory level, or of the nearest level outwards that the target knows."""
    nearest = ("elementwise", *COPIES) if level in COPIES else ()
    for named in (level, *nearest):
        if target.bandwidth.get(named, 0.0) > 0.0:
            return target.bandwidth[named]
    start = _OUTWARDS.index(level) if level in _OUTWARDS else len(_OUTWARDS) - 1
    part = COPY_SHARE if level in COPIES else 1.0
    for outer in _OUTWARDS[start:]:
        if target.bandwidth.get(outer, 0.0) > 0.0:
            return part * target.bandwidth[outer]
    return part * FALLBACK_BANDWIDTH

"""What a profile holds: calls, their phases, and sums over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Kinds of phases, beside computing: "" is the kind of all else.
PACK, LAYOUT, COMPILE = "pack", "layout", "compile"


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """A stage of a call.

    Attributes
    ----------
    name : str
    start, seconds : float
        When it began, in seconds since the profiler was entered, and how long it took.
    depth : int
        0 for a phase directly inside its call, 1 for one inside that, ...
    thread : int
        Native id.
    kind : str
        ``PACK``, ``LAYOUT``, ``COMPILE`` or empty.
    spec : str
        Of a phase outside of any call, the problem that it is for, where that is known.
    """

    name: str
    start: float
    seconds: float
    depth: int
    thread: int
    kind: str = ""
    spec: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One call.

    Attributes
    ----------
    spec, backend, solver : str
    label : str
        Lowering and solver, as ``explain`` shows it.
    start, seconds : float
        When it began, in seconds since the profiler was entered, and how long it took.
    flops : float
        Of the direct algorithm, whichever ran: rates are effective ones.
    peak : float
        Flop/s of the machine in the accumulator's dtype, 0 where unknown.
    cold : bool
        Whether the executable ran for the first time in this process, compilation included.
    thread : int
        Native id.
    phases : tuple of PhaseRecord
        In the order in which they began.
    failed : bool
        Whether it raised.
    fallback : str
        What better there would be and why it did not run, where that is so.
    """

    spec: str
    backend: str
    solver: str
    label: str
    start: float
    seconds: float
    flops: float
    peak: float
    cold: bool
    thread: int
    phases: tuple[PhaseRecord, ...] = ()
    failed: bool = False
    fallback: str = ""

    @property
    def gflops(self) -> float:
        """Effective rate, in 10^9 operations of the direct algorithm a second."""
        return self.flops / self.seconds / 1e9 if self.seconds > 0 else 0.0

    @property
    def share_of_peak(self) -> float | None:
        """Effective rate over the peak; above 1 where an algorithm saves arithmetic."""
        return self.gflops * 1e9 / self.peak if self.peak > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "spec": self.spec, "backend": self.backend, "solver": self.solver, "label": self.label,
            "start": self.start, "seconds": self.seconds, "gflops": self.gflops,
            "share_of_peak": self.share_of_peak, "cold": self.cold, "failed": self.failed,
            "thread": self.thread, "fallback": self.fallback,
            "phases": [
                {
                    "name": p.name, "kind": p.kind, "start": p.start, "seconds": p.seconds,
                    "depth": p.depth,
                }
                for p in self.phases
            ],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the records of a profile.

    Attributes
    ----------
    calls, cold_calls : int
    seconds : float
        Spent inside calls, summed over threads.
    cold_seconds : float
        The part of it in cold calls.
    flops : float
    phases : mapping of name to seconds
        Without what lies in phases inside them; what no phase covers is under ``"(other)"``.
    """

    calls: int
    cold_calls: int
    seconds: float
    cold_seconds: float
    flops: float
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def gflops(self) -> float:
        return self.flops / self.seconds / 1e9 if self.seconds > 0 else 0.0


def exclusive(record: Record, key: str = "name") -> dict[str, float]:
    """Seconds of a call by phase, each without the phases inside it, so that they add up.

    Parameters
    ----------
    record : Record
    key : {"name", "kind"}
        What phases are told apart by.

    Returns
    -------
    dict of str to float
        Empty for a call without phases; else the rest of the call is under ``"(other)"``.
    """
    if not record.phases:
        return {}
    found: dict[str, float] = {"(other)": record.seconds}
    enclosing = ["(other)"]
    for phase in record.phases:  # in the order in which they began, so that the stack is right
        name = getattr(phase, key)
        del enclosing[phase.depth + 1 :]
        found[name] = found.get(name, 0.0) + phase.seconds
        found[enclosing[-1]] -= phase.seconds
        enclosing.append(name)
    return found

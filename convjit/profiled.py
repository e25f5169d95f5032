"""What a profile says: the table of its calls, advice where time was wasted, and the trace.

The trace is in the JSON object form of the Trace Event Format (Duca and Sinclair, "Trace Event
Format", 2016, sections 2.1 to 2.3), which Perfetto and ``chrome://tracing`` read; its schema is
:data:`TRACE_SCHEMA`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convjit.errors import ConvSpecError
from convjit.records import COMPILE, LAYOUT, PACK, PhaseRecord, Record, exclusive
from convjit.tables import milliseconds, percent, table

if TYPE_CHECKING:
    from convjit.profiling import profile

SORT_KEYS = ("total", "calls", "ms", "gflops", "peak", "cold", "spec", "label", "first")

# Advice is given where this share of all the time of warm calls was wasted, at least this long, in
# at least this many calls: a few calls are no habit.
WASTED_SHARE, WASTED_SECONDS, WASTED_CALLS = 0.2, 1e-3, 3


# -------------------------------------------------------------------- rows of the table


@dataclass(slots=True)
class _Row:
    """Calls of one problem by one algorithm."""

    order: int
    spec: str
    label: str
    records: list[Record]
    compiled_ahead: float = 0.0  # seconds, while it was planned

    @property
    def seconds(self) -> float:
        return sum(r.seconds for r in self.records)

    @property
    def warm(self) -> list[Record]:
        return [r for r in self.records if not r.cold]

    @property
    def mean(self) -> float | None:
        """Seconds of a warm call."""
        warm = self.warm
        return sum(r.seconds for r in warm) / len(warm) if warm else None

    @property
    def gflops(self) -> float | None:
        mean = self.mean
        return self.records[0].flops / mean / 1e9 if mean else None

    @property
    def share_of_peak(self) -> float | None:
        gflops, peak = self.gflops, self.records[0].peak
        return gflops * 1e9 / peak if gflops and peak > 0 else None

    @property
    def cold(self) -> float | None:
        """Seconds of the calls that ran first."""
        return sum(r.seconds for r in self.records if r.cold) or None

    def spent(self, kind: str, *, warm: bool = False) -> float | None:
        """Seconds in phases of a kind."""
        records = self.warm if warm else self.records
        return sum(exclusive(r, "kind").get(kind, 0.0) for r in records) or None

    @property
    def compiled(self) -> float | None:
        """Seconds of compiling, while the problem was planned and in its calls."""
        return self.compiled_ahead + (self.spent(COMPILE) or 0.0) or None

    def key(self, sort_by: str) -> tuple[Any, int]:
        """What to sort by; rows that lack it come last."""
        values: dict[str, Any] = {
            "total": -self.seconds,
            "calls": -len(self.records),
            "ms": -(self.mean or 0.0),
            "gflops": -(self.gflops or 0.0),
            "peak": -(self.share_of_peak or 0.0),
            "cold": -(self.cold or 0.0),
            "spec": self.spec,
            "label": self.label,
            "first": self.order,
        }
        return values[sort_by], self.order


def _rows(records: Iterable[Record], group: bool = True) -> list[_Row]:
    number = itertools.count()
    groups: dict[Any, list[Record]] = {}
    for record in records:
        key = (record.spec, record.label, record.backend) if group else next(number)
        groups.setdefault(key, []).append(record)
    return [
        _Row(order, members[0].spec, members[0].label, members)
        for order, members in enumerate(groups.values())
    ]


def _compiled_ahead(phases: Iterable[PhaseRecord]) -> dict[str, float]:
    """Seconds of compiling outside of calls, by problem."""
    found: dict[str, float] = {}
    for phase in phases:
        if phase.kind == COMPILE and phase.spec:
            found[phase.spec] = found.get(phase.spec, 0.0) + phase.seconds
    return found


def table_of(found: profile, sort_by: str, group: bool) -> str:
    """What :meth:`convjit.profile.table` prints."""
    if sort_by not in SORT_KEYS:
        raise ConvSpecError(
            f"sort_by={sort_by!r} is not known; choose one of {', '.join(SORT_KEYS)}."
        )
    rows = _rows(found.records, group)
    ahead = _compiled_ahead(found.phases)
    for row in rows:  # the first of a problem bears what was compiled for it
        row.compiled_ahead = ahead.pop(row.spec, 0.0)
    rows.sort(key=lambda row: row.key(sort_by))
    totals = found.totals
    caption = (
        f"{totals.calls} calls, {milliseconds(totals.seconds)} ms, of which cold "
        f"{totals.cold_calls} calls, {milliseconds(totals.cold_seconds)} ms; "
        f"{totals.gflops:.1f} GFLOP/s effective"
    )
    if totals.phases:
        shares = sorted(totals.phases.items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {milliseconds(s)} ms" for name, s in shares)
        caption += f"\nphases: {told}"
    outside = [p for p in found.phases if not p.depth]
    if outside:
        by_name: dict[str, float] = {}
        for phase in outside:
            by_name[phase.name] = by_name.get(phase.name, 0.0) + phase.seconds
        told = ", ".join(f"{name} {milliseconds(s)} ms" for name, s in by_name.items())
        caption += f"\noutside of calls: {told}"
    caption += "".join(f"\nadvice: {sentence}" for sentence in found.advice)
    return table(
        ["spec", "algorithm", ">calls", ">total ms", ">% time", ">ms", ">GFLOP/s", ">% peak",
         ">layout ms", ">pack ms", ">compile ms", ">cold ms"],
        [
            (r.spec, r.label, len(r.records), milliseconds(r.seconds),
             percent(r.seconds / totals.seconds if totals.seconds else None),
             milliseconds(r.mean), "-" if r.gflops is None else f"{r.gflops:.1f}",
             percent(r.share_of_peak), milliseconds(r.spent(LAYOUT)),
             milliseconds(r.spent(PACK)), milliseconds(r.compiled), milliseconds(r.cold))
            for r in rows
        ],
        caption=caption,
    )  # fmt: skip


# -------------------------------------------------------------------- advice


def advice_of(records: Sequence[Record]) -> tuple[str, ...]:
    """What wasted time in warm calls, each with its remedy, the most expensive first.

    Three things do: weights that are packed in every call, changes of layout, and a fallback, which
    runs because something faster could not.
    """
    rows = _rows(r for r in records if not r.cold and not r.failed)
    total = sum(row.seconds for row in rows)
    found = []
    for row in rows:
        for wasted, sentence in _wastes(row):
            if wasted >= max(WASTED_SHARE * total, WASTED_SECONDS):
                found.append((wasted, sentence))
    return tuple(sentence for _, sentence in sorted(found, key=lambda item: -item[0]))


def _wastes(row: _Row) -> Iterable[tuple[float, str]]:
    """(seconds, what to do about them) of the calls of one problem."""
    calls = len(row.records)
    if calls < WASTED_CALLS:
        return

    def share(seconds: float) -> str:
        return f"{100 * seconds / row.seconds:.0f} %"

    packing = row.spent(PACK)
    # What a weights' gradient packs is data, another in every call.
    if packing and not row.spec.startswith("wgrad"):
        yield (
            packing,
            (
                f"{calls} calls of {row.spec} packed their weights each time, which took "
                f"{share(packing)} of them. Pack once: give convjit.weights(w), or call a plan "
                "with plan.pack(w)."
            ),
        )
    moving = row.spent(LAYOUT)
    if moving:
        names = {p.name.removesuffix(", back") for r in row.records for p in r.phases
                 if p.kind == LAYOUT}  # fmt: skip
        yield (
            moving,
            (
                f"{calls} calls of {row.spec} changed the layout of their data ({_listed(names)}), "
                f"which took {share(moving)} of them. {_layout_remedy(names)}"
            ),
        )
    reasons = dict.fromkeys(r.fallback for r in row.records if r.fallback)
    if reasons:
        yield (
            row.seconds,
            (
                f"{calls} calls of {row.spec} ran on a fallback, {row.label}: "
                f"{'; '.join(reasons)}. Mend or allow that; or name the choice (backend=, "
                "algorithm=), if it is meant."
            ),
        )


def _layout_remedy(names: set[str]) -> str:
    changed = sorted(name.rpartition(" to ")[2] for name in names if " to " in name)
    if changed:
        return f"Keep the data as it is computed, layout={changed[0]!r}, from one call to the next."
    return (
        "Give contiguous arrays: say layout= as the data lies in memory (a transposed view is "
        "channels last), or copy once with np.ascontiguousarray."
    )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


# -------------------------------------------------------------------- the trace

_COMMON = {
    "name": {"type": "string", "minLength": 1},
    "pid": {"type": "integer"},
    "tid": {"type": "integer"},
}
_METADATA = {
    "type": "object",
    "required": ["ph", "name", "pid", "tid", "args"],
    "properties": {
        **_COMMON,
        "ph": {"const": "M"},
        "name": {"enum": ["process_name", "thread_name"]},
        "args": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        },
    },
    "additionalProperties": False,
}
_COMPLETE = {
    "type": "object",
    "required": ["ph", "name", "cat", "pid", "tid", "ts", "dur", "args"],
    "properties": {
        **_COMMON,
        "ph": {"const": "X"},
        "cat": {"enum": ["call", "phase"]},
        "ts": {"type": "number", "minimum": 0},  # microseconds
        "dur": {"type": "number", "minimum": 0},
        "args": {"type": "object"},
    },
    "additionalProperties": False,
}
# The Trace Event Format as far as it is used: JSON Schema, draft 2020-12.
TRACE_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Trace Event Format, JSON object form: metadata and complete events",
    "type": "object",
    "required": ["traceEvents", "displayTimeUnit"],
    "properties": {
        "traceEvents": {"type": "array", "items": {"oneOf": [_METADATA, _COMPLETE]}},
        "displayTimeUnit": {"enum": ["ms", "ns"]},
    },
    "additionalProperties": False,
}


def trace_of(found: profile) -> dict[str, Any]:
    """What :meth:`convjit.profile.chrome_trace` writes."""
    pid = os.getpid()
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": "convjit"}}
    ]
    events += [
        {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
        for tid, name in sorted(found.threads.items())
    ]

    def complete(name: str, kind: str, item: Record | PhaseRecord, args: Any) -> dict[str, Any]:
        start, end = _microseconds(item.start), _microseconds(item.start + item.seconds)
        return {
            "ph": "X", "name": name, "cat": kind, "pid": pid, "tid": item.thread,
            "ts": start, "dur": round(end - start, 3), "args": args,
        }  # fmt: skip

    spans: list[dict[str, Any]] = []
    for record in found.records:
        args = record.as_dict()
        del args["phases"], args["thread"], args["start"]
        spans.append(complete(record.label, "call", record, args))
        spans += [
            complete(p.name, "phase", p, {"spec": record.spec, "kind": p.kind})
            for p in record.phases
        ]
    spans += [complete(p.name, "phase", p, {"spec": p.spec, "kind": p.kind}) for p in found.phases]
    # Importers nest spans of one thread by time; the enclosing one has to come first.
    spans.sort(key=lambda e: (e["ts"], -e["dur"]))
    return {"traceEvents": events + spans, "displayTimeUnit": "ms"}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)

"""Remembered measurements: which algorithm was fastest for a problem here, and with which blocks.

An entry holds what was measured of one problem by one backend on one machine.  Its rows are a
solver with the steps of its lowering (the label), block sizes, and the seconds of a call, with the
weights packed before and packed in the call.  A row counts only if the solver's revision is still
the one that was measured, and if the solver still offers those block sizes: see :func:`recall`.

**Which problems share an entry.**  Bias and activation are left out of the key: every algorithm
applies them to its result.  An entry of exactly the problem asked for comes first.  Else one of
the same *bucket* counts, the nearest in size: problems that are alike but for batch and spatial
sizes, each rounded up to 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, ... (the powers of two, and three
quarters of them).  Sizes of one bucket differ by less than a half, and so do their times; what is
best for one is good for all, so that a program with variable sizes is measured once a bucket.

**Which machines share an entry.**  None: the target's fingerprint is part of the key, and with it
the instruction set, the code generator's features and the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convjit import staleness
from convjit.errors import ConvSpecError
from convjit.spec import ConvSpec
from convjit.spi import Config
from convjit.store import Entry, Store

VERSION = 1
# Measured times that differ by less are alike: what would be taken without them is taken.
ALIKE = 1.03
DATABASE = Store("tuning.json", VERSION, ("convjit", "tuning.json"))
# Between the names of two convolutions that are computed one after the other.
THEN = ", then "
BUCKETS = "equal but for batch and sizes, each rounded up to 1, 2, 3, 4, 6, 8, 12, 16, ..."


Specs = tuple[ConvSpec, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """What one solver took with one choice of block sizes.

    Attributes
    ----------
    solver, label : str
        The label says the lowering too: ``"pad reflect + numba.direct"``.  Of the two calls of a
        layer these are two, with :data:`THEN` between them, and so are the revisions.
    revision : str
        Of the solver when it was measured.
    config : Config
    seconds : float
        Of a call with packed weights.
    plain_seconds : float
        Of a call that packs them.
    """

    solver: str
    label: str
    revision: str
    config: Config
    seconds: float
    plain_seconds: float

    def total(self, packed: bool) -> float:
        """Seconds of a call."""
        return self.seconds if packed else self.plain_seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "solver": self.solver, "label": self.label, "revision": self.revision,
            "config": dict(self.config), "seconds": self.seconds,
            "plain_seconds": self.plain_seconds,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """What is remembered of a problem, or of one in its bucket.

    Attributes
    ----------
    specs : tuple of ConvSpec
        What was measured, without bias and activation: a problem, or the two of a layer.
    is_exact : bool
        Whether that is the problem asked for.
    rows : tuple of Row
    date : str
        ``"2026-11-25"``.
    finished : bool
        Whether everything worth it was measured, so that there is no need to go on.
    scale : float
        Work of the problem asked for, as a multiple of the measured one's.
    """

    specs: tuple[ConvSpec, ...]
    is_exact: bool
    rows: tuple[Row, ...]
    date: str
    finished: bool
    scale: float = 1.0

    @property
    def name(self) -> str:
        """For people."""
        return THEN.join(map(str, self.specs))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a layer has no ``spec``, so that versions which know of none pass it over."""
        words = [str(spec) for spec in self.specs]
        what = {"spec": words[0]} if len(words) == 1 else {"layer": words}
        return what | {
            "date": self.date, "finished": self.finished,
            "rows": [row.as_dict() for row in self.rows],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Remembered:
    """The measurement that stands for a candidate.

    Attributes
    ----------
    seconds : float
        Of the call asked for (packed or plain); scaled by the work where another size of the
        bucket was measured.
    config : Config
        The block sizes with which it was the fastest.
    measured : str
        The spec that was measured.
    is_exact : bool
    date : str
    """

    seconds: float
    config: Config
    measured: str
    is_exact: bool
    date: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"config": dict(self.config)}

    def __str__(self) -> str:
        what = f"measured on {self.date}"
        return what if self.is_exact else f"{what} for {self.measured} of its bucket ({BUCKETS})"


def sizes(config: Config) -> str:
    """Block sizes for people: ``"mr=6, nv=4"``."""
    return ", ".join(f"{name}={size}" for name, size in config) or "default"


# -------------------------------------------------------------------- keys


def keyed(spec: ConvSpec) -> ConvSpec:
    """The problem without what does not tell algorithms apart: bias and activation."""
    return spec.replace(bias=False, activation=None)


def rounded_up(size: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...; 0 stays."""
    if size <= 2:
        return size
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def bucket(spec: ConvSpec) -> ConvSpec:
    """What stands for all problems that share measurements; its sizes need not fit together."""
    return keyed(spec).replace(
        batch=rounded_up(spec.batch),
        in_size=tuple(map(rounded_up, spec.in_size)),
        out_size=tuple(map(rounded_up, spec.out_size)),
    )


def _key(backend: str, target: str, specs: Specs) -> str:
    return f"{THEN.join(map(str, specs))} by {backend} on {target}"


# -------------------------------------------------------------------- reading


class _Index:
    """The entries of one state of the database, by problem and by bucket."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        self.exact: dict[tuple[str, str, Specs], Found] = {}
        self.near: dict[tuple[str, str, Specs], list[Found]] = {}
        for entry in entries.values():
            try:
                found = _parse(entry)
                place = str(entry["backend"]), str(entry["target"])
            except (KeyError, TypeError, ValueError, AttributeError, ConvSpecError):
                continue  # of a form that this version does not know
            self.exact[*place, found.specs] = found
            near = tuple(map(bucket, found.specs))
            self.near.setdefault((*place, near), []).append(found)


def _parse(entry: Entry) -> Found:
    rows = tuple(
        Row(
            str(row["solver"]), str(row["label"]), str(row["revision"]),
            tuple((str(name), int(size)) for name, size in row["config"].items()),
            float(row["seconds"]), float(row["plain_seconds"]),
        )
        for row in entry["rows"]
    )  # fmt: skip
    if not all(0.0 < row.total(packed) < math.inf for row in rows for packed in (True, False)):
        raise ValueError("a time is no positive number")
    words = entry["layer"] if "layer" in entry else [entry["spec"]]
    specs = tuple(keyed(ConvSpec.parse(word)) for word in words)
    return Found(specs, True, rows, str(entry["date"]), entry.get("finished") is True)


_index = _Index({})


def _current() -> _Index:
    global _index
    entries = DATABASE.entries()
    if _index.entries is not entries:
        _index = _Index(entries)
    return _index


def find(backend: str, target: str, specs: Sequence[ConvSpec]) -> Found | None:
    """What is remembered of a problem, exactly or in its bucket; None if nothing is.

    Parameters
    ----------
    backend : str
    target : str
        The target's fingerprint.
    specs : sequence of ConvSpec
        The problem; of a layer its two.
    """
    index = _current()
    if not index.exact:
        return None
    found = index.exact.get((backend, target, tuple(map(keyed, specs))))
    if found is not None:
        return found
    near = index.near.get((backend, target, tuple(map(bucket, specs))))
    macs = _macs(specs)
    if not near or not macs:
        return None
    scales = [macs / _macs(other.specs) if _macs(other.specs) else math.inf for other in near]
    scale, best = min(zip(scales, near, strict=True), key=lambda pair: abs(math.log(pair[0])))
    return Found(best.specs, False, best.rows, best.date, best.finished, scale)


def _macs(specs: Sequence[ConvSpec]) -> int:
    return sum(spec.macs for spec in specs)


def recall(
    found: Found, label: str, revision: str, offered: Iterable[Config], packed: bool
) -> Remembered | None:
    """The measurement that stands for a candidate, None if there is none that holds.

    Of block sizes that were measured alike the ones offered first count.

    Parameters
    ----------
    found : Found
    label : str
        The candidate's solver and lowering.
    revision : str
        The solver's, now.
    offered : iterable of Config
        The block sizes that the solver offers now.
    packed : bool
        Whether calls with packed weights are asked about.
    """
    rows = [row for row in found.rows if row.label == label and row.revision == revision]
    if not rows:
        return None
    measured = {frozenset(row.config): row.total(packed) for row in rows}
    known: list[Config] = []
    for config in offered:
        known += [config] if frozenset(config) in measured else []
        if len(known) == len(measured):  # what is offered besides need not be worked out
            break
    if not known:
        return None
    seconds = [measured[frozenset(config)] for config in known]
    best = next(n for n, taken in enumerate(seconds) if taken <= ALIKE * min(seconds))
    return Remembered(
        seconds[best] * found.scale, known[best], found.name, found.is_exact, found.date
    )


def labels(found: Found | None) -> frozenset[str]:
    """What was measured, so that nobody need ask for the revision of the rest."""
    return frozenset() if found is None else frozenset(row.label for row in found.rows)


# -------------------------------------------------------------------- writing


def remember(
    backend: str, target: str, specs: Sequence[ConvSpec], rows: Sequence[Row], *, finished: bool
) -> bool:
    """Keep measurements, and have every later choice see them.

    Rows of the same label and block sizes are replaced, those of the same solver in another
    revision removed; what else is remembered of the problem stays.

    Returns
    -------
    bool
        Whether they were written; if not, they hold for this process (and a warning said so).
    """
    from datetime import date

    wanted = tuple(map(keyed, specs))
    old = _current().exact.get((backend, target, wanted))
    kept = {(row.label, frozenset(row.config)): row for row in (old.rows if old else ())}
    revisions = {row.solver: row.revision for row in rows}
    kept = {
        place: row
        for place, row in kept.items()
        if revisions.get(row.solver, row.revision) == row.revision
    }
    kept |= {(row.label, frozenset(row.config)): row for row in rows}
    ordered = tuple(sorted(kept.values(), key=lambda row: row.seconds))
    found = Found(wanted, True, ordered, date.today().isoformat(), finished)
    entry = {"backend": backend, "target": target, **found.as_dict()}
    return _changed({_key(backend, target, wanted): entry})


def _changed(changes: Mapping[str, Entry | None]) -> bool:
    try:
        return DATABASE.update(changes)
    finally:
        staleness.outdate()


def everything() -> list[tuple[str, str, Found]]:
    """(backend, target, what is remembered) of every problem, in the order of their specs."""
    known = _current().exact.items()
    return sorted(
        ((backend, target, found) for (backend, target, _), found in known),
        key=lambda row: (row[2].name, row[:2]),
    )


def forget() -> int:
    """Remove every entry of the user's (what is shipped stays); returns how many there were."""
    before = DATABASE.entries()
    _changed(dict.fromkeys(before))
    after = DATABASE.entries()
    return sum(after.get(key) != entry for key, entry in before.items())


def export_file(path: Any) -> int:
    """Write all that is remembered to a file; returns the number of entries.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    return DATABASE.export(path)


def import_file(path: Any) -> int:
    """Remember what a file holds, in place of what was remembered of the same problems.

    Entries of other machines are kept too: they count where their fingerprint is the target's.

    Returns
    -------
    int
        Entries imported; those that this version does not understand are left out.

    Raises
    ------
    ConfigError
        If the file is none that was exported.
    """
    entries = DATABASE.read_file(path)
    usable = {key: entry for key, entry in entries.items() if _Index({key: entry}).exact}
    _changed(usable)
    return len(usable)

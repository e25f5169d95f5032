"""Discovery: which backends are installed, by metadata alone.

The entry-point group ``convjit.backends`` is read from every installed distribution; nothing of a
distribution is imported for it.  Our own backends are found here as a stranger's are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convjit.spi import Backend, Solver

GROUP = "convjit.backends"
OWN_DISTRIBUTION = "convjit"

# The order preferred where nothing else decides, of our own backends.  Entry points have none:
# build tools sort them.
DECLARED_ORDER = ("numba", "scipy", "numba_cuda", "cupy")


@dataclass(slots=True, eq=False)
class Entry:
    """A backend that was found: where it came from, and what became of it."""

    name: str
    distribution: str
    version: str
    make: Callable[[], Any]
    backend: Backend | None = None
    probed: bool = False
    solvers: tuple[Solver, ...] | None = None
    reason: str = ""  # why it is not used, empty while it may be
    error: BaseException | None = None
    answer: str = ""  # the probe's reason, where that is why it is not used

    @property
    def is_builtin(self) -> bool:
        return self.distribution == OWN_DISTRIBUTION

    @property
    def is_quiet(self) -> bool:
        """Whether it is an expected absence (no driver): told when asked, not warned about."""
        return self.is_builtin and bool(self.answer)

    @property
    def origin(self) -> str:
        """For messages: ``convjit-example 0.1``."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def key(self) -> str:
        """The name that tells two strangers' backends of one name apart."""
        return f"{self.name}@{self.distribution}"


@dataclass(slots=True)
class Found:
    """Everything that is known, replaced as a whole by :func:`refresh`."""

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # distributions with unreadable metadata


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def scan() -> Found:
    """Read the metadata of what is installed; the first of two equal distributions counts."""
    from importlib import metadata

    found = Found()
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            if GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            name = _normalised(distribution.metadata["Name"] or "")
            if name in seen:
                continue
            points = distribution.entry_points.select(group=GROUP)
            version = distribution.version
        except Exception as error:
            # Metadata of a stranger that cannot be parsed must not hide everybody else's.
            found.notes.append(f"the metadata of {_location(distribution)} cannot be read: {error}")
            continue
        seen.add(name)
        found.entries += [Entry(p.name, name, version or "", p.load) for p in points]
    found.entries.sort(key=_declared)
    return found


def _location(distribution: object) -> str:
    return str(getattr(distribution, "_path", distribution))


def _declared(entry: Entry) -> tuple[int, int, str]:
    """Ours first, in the declared order; then strangers' by name."""
    if entry.is_builtin and entry.name in DECLARED_ORDER:
        return 0, DECLARED_ORDER.index(entry.name), entry.name
    return (1 if entry.is_builtin else 2), 0, entry.name

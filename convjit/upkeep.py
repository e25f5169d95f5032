"""The public calls about what runs: backends, settings, memory that is kept."""

from __future__ import annotations

import sys
from typing import Any

from convjit import registry


class BackendTable(tuple[registry.BackendInfo, ...]):
    """The rows of :func:`backends`; prints itself as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        rows = [("name", "device", "state", "distribution", "reason")] + [
            (i.name, i.device or "-", i.state, f"{i.distribution} {i.version}".strip(), i.reason)
            for i in self
        ]
        widths = [max(len(row[c]) for row in rows) for c in range(4)]
        return "\n".join(
            "  ".join([*(row[c].ljust(widths[c]) for c in range(4)), row[4]]).rstrip()
            for row in rows
        )

    __repr__ = __str__


def backends() -> BackendTable:
    """Every backend found: name, device, state, distribution, version, reason.

    Nothing is imported for it: a backend that no call has needed yet is ``lazy``.
    """
    return BackendTable(registry.status())


def register(backend: Any) -> None:
    """Add a backend object of the running program; it is used where it is named.

    Raises
    ------
    TypeError
        If it lacks something of :class:`convjit.spi.Backend`, naming what.
    BackendError
        For a bad or taken name, and for another version of the SPI.
    """
    registry.register(backend)


def refresh() -> None:
    """Read the environment and what is installed anew; try again what was broken."""
    from convjit import dispatch

    dispatch.forget_failures()
    registry.refresh()


def release_memory() -> int:
    """Give up the memory that is kept for later calls.

    Each thread keeps the largest workspace that it used (see :mod:`convjit.arena`), so that the
    next call need not wait for the pages of a fresh one, and the memory of packed operands that are
    gone is kept for others; backends may keep more.  What a call is using at the moment stays, and
    so do plans and packed weights, which belong to the caller.

    Returns
    -------
    int
        Bytes that were given up.
    """
    from convjit import arena

    freed = arena.release()
    for backend in registry.loaded():
        give_up = getattr(backend, "release_memory", None)
        if callable(give_up):
            give_up()
    return freed


def show_config() -> None:
    """Print versions, the machine, the settings in force and the backends."""
    from convjit.environment import describe

    sys.stdout.write(describe() + "\n")

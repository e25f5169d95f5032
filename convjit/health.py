"""The health of a backend: imported, probed and asked for its solvers, each once, when needed.

Policy
------
* Breaking is local.  A plugin that cannot be imported, exits, has another SPI version, a bad name
  or the wrong type is one :class:`~convjit.errors.ConvjitWarning` and a ``broken`` row of
  :func:`convjit.registry.status`; asked for by name it raises its error again.
* No lock is held while a plugin's code runs.  Two threads may therefore load one plugin at once,
  of which the first result counts; but plugins that import convjit, or compute a convolution while
  they load, cannot deadlock.  Inside its own loading code a plugin does not take part.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from convjit import staleness
from convjit.checks import backend_problems, solver_problems
from convjit.discovery import Entry
from convjit.errors import BackendError, ConvjitWarning
from convjit.locks import lock_held_over_forks
from convjit.spi import Backend, Solver


class State(StrEnum):
    """What is known of a backend."""

    LAZY = "lazy"  # installed; nothing of it was imported
    LOADED = "loaded"  # imported and healthy
    UNAVAILABLE = "unavailable"  # imported; its probe says what it misses here
    BROKEN = "broken"
    BLOCKED = "blocked"  # named by CONVJIT_DISABLE or use(disable=)


class _Broken(Exception):
    """A rule of the SPI that a plugin breaks; the message is the reason."""


_lock = lock_held_over_forks()
_warned: set[str] = set()
_loading = threading.local()


# -------------------------------------------------------------------- saying so


def unused_state(entry: Entry, reason: str) -> State:
    """The state of an entry that is not used for a reason."""
    return State.UNAVAILABLE if entry.answer and reason == entry.reason else State.BROKEN


def told(entry: Entry, reason: str) -> str:
    """The sentence that warns of an entry which is not used."""
    state = unused_state(entry, reason)
    return f"backend {entry.name!r} of {entry.origin} is {state} and not used: {reason}."


def warn_once(message: str, *, swallow: bool = False) -> None:
    """A :class:`~convjit.errors.ConvjitWarning` that is given once per process.

    ``swallow``: an exception that says the same follows, in whose way a filter must not stand.
    """
    with _lock:
        if message in _warned:
            return
        _warned.add(message)
    try:
        warnings.warn(message, ConvjitWarning, stacklevel=2)
    except ConvjitWarning:  # the filter is "error"
        if not swallow:
            raise


def warn_before_raising(entry: Entry) -> None:
    """Warn of a broken entry whose error is about to be raised."""
    if not entry.is_quiet:
        warn_once(told(entry, entry.reason), swallow=True)


def error_of(entry: Entry, reason: str, cause: BaseException | None) -> BackendError:
    """The error of an entry that is not used, to be raised from what caused it."""
    state = unused_state(entry, reason)
    error = BackendError(f"backend {entry.name!r} of {entry.origin} is {state}: {reason}.")
    error.__cause__ = cause
    return error


# -------------------------------------------------------------------- finding out


def mark_broken(entry: Entry, reason: str, error: BaseException | None) -> None:
    """Take an entry out of use; what broke it first stays its reason."""
    with _lock:
        if entry.reason:
            return
        entry.reason, entry.error = reason.rstrip("."), error
    staleness.outdate()


def _cause(error: BaseException) -> str:
    if isinstance(error, _Broken):
        return str(error)
    text = str(error).strip().replace("\n", " ")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _guard(entry: Entry, doing: str) -> Iterator[None]:
    """Run a plugin's code: what it raises breaks the entry, Ctrl-C passes through."""
    active: set[Entry] = _loading.__dict__.setdefault("active", set())
    active.add(entry)
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, _Broken):
            mark_broken(entry, str(error), None)
        else:
            mark_broken(entry, f"it failed while it was {doing}: {_cause(error)}", error)
    finally:
        active.discard(entry)


def is_loading(entry: Entry) -> bool:
    """Whether this very thread is inside the plugin's loading code."""
    return entry in _loading.__dict__.get("active", ())


def load(entry: Entry) -> Backend | None:
    """The backend object, imported and checked, not yet probed; None if broken."""
    if entry.backend is None and not entry.reason:
        with _guard(entry, "imported"):
            made = entry.make()
            if not callable(made):
                raise _Broken(
                    f"its entry point names a {type(made).__name__}, which is not callable; "
                    "name a class or a function that returns the backend"
                )
            backend = made()
            if problems := backend_problems(backend, entry.name):
                raise _Broken("; ".join(problems))
            with _lock:
                entry.backend = entry.backend or backend
    return None if entry.reason else entry.backend


def probe(entry: Entry) -> Backend | None:
    """The backend if it is healthy; its probe runs once."""
    backend = load(entry)
    if backend is None or entry.probed:
        return backend
    answer: str | None = None
    with _guard(entry, "probed"):
        answer = backend.probe()
        if answer is not None and not isinstance(answer, str):
            raise _Broken(f"its probe returned {answer!r}; return None, or the reason as a string")
    with _lock:
        entry.probed = True
    if isinstance(answer, str):
        entry.answer = answer or "its probe gives no reason"
        mark_broken(entry, entry.answer, None)
    return None if entry.reason else backend


def solvers(entry: Entry) -> tuple[Solver, ...] | None:
    """The solvers, asked for once and checked; None if broken."""
    backend = probe(entry)
    if backend is not None and entry.solvers is None:
        with _guard(entry, "asked for its solvers"):
            offered = tuple(backend.solvers())
            if problems := solver_problems(offered, entry.name):
                raise _Broken("; ".join(problems))
            with _lock:
                entry.solvers = entry.solvers or offered
    return None if entry.reason else entry.solvers

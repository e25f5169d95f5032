"""The registry: which backends exist, which of them work, and which a call may use.

Policy
------
* Every backend, ours too, is found through the entry-point group ``convjit.backends``, by metadata
  alone: finding one imports nothing of it.  It is imported when a call needs it, and a call that
  names no backend needs our own and those that ``CONVJIT_PRIORITY`` or ``use(priority=)`` name.
* Breaking is local.  A plugin that cannot be imported, exits, has another SPI version, a bad name
  or the wrong type is one :class:`~convjit.errors.ConvjitWarning` and a ``broken`` row of
  :func:`status`; asked for by name it raises its error again.
* The names that the distribution ``convjit`` registers are reserved; a stranger's duplicate is the
  broken one.  Of two strangers with one name both are broken until one is disabled, by
  ``name@distribution``.
* No lock is held while a plugin's code runs.  Two threads may therefore load one plugin at once,
  of which the first result counts; but plugins that import convjit, or compute a convolution while
  they load, cannot deadlock.  Inside its own loading code a plugin does not take part.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from convjit import config
from convjit.checks import DEVICES, backend_problems, bad_name, solver_problems
from convjit.discovery import Entry, Found, scan
from convjit.errors import BackendError, ConfigError, ConvjitWarning
from convjit.locks import lock_held_over_forks
from convjit.spi import SPI_VERSION, Backend, Solver

REGISTERED = "(registered)"  # stands for the distribution of a backend given to register()


class State(StrEnum):
    """What is known of a backend."""

    LAZY = "lazy"  # installed; nothing of it was imported
    LOADED = "loaded"  # imported and healthy
    UNAVAILABLE = "unavailable"  # imported; its probe says what it misses here
    BROKEN = "broken"
    BLOCKED = "blocked"  # named by CONVJIT_DISABLE or use(disable=)


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """One row of the table of backends.

    Attributes
    ----------
    name : str
    device : str
        ``"cpu"`` or ``"cuda"``; empty while the backend was not imported.
    state : State
    distribution, version : str
        Where it came from.
    reason : str
        Why it is not used, else empty.
    """

    name: str
    device: str
    state: State
    distribution: str
    version: str
    reason: str = ""


class _Broken(Exception):
    """A rule of the SPI that a plugin breaks; the message is the reason."""


_lock = lock_held_over_forks()
_found: Found | None = None
_registered: list[Entry] = []
_warned: set[str] = set()
_generation = 0
_loading = threading.local()


# -------------------------------------------------------------------- finding


def _entries() -> list[Entry]:
    """What was found, looking first if nobody did."""
    global _found
    found = _found
    if found is None:
        disabled = config.current().disable
        scanned = scan()
        for entry in scanned.entries:
            entry.reason = bad_name(entry.name)
        with _lock:
            found = _found = _found or scanned
        if found is scanned:  # and not another thread's
            for note in found.notes:
                _warn(note)
            for entry in found.entries:
                if reason := entry.reason or _collision(entry, disabled):
                    _warn(_warning(entry, reason))
    with _lock:
        return [*found.entries, *_registered]


def _collision(entry: Entry, disabled: Sequence[str]) -> str:
    """Why other entries of the same name make this one broken, else empty."""
    with _lock:
        known = [*(_found.entries if _found is not None else ()), *_registered]
    # By key: an entry from before a refresh equals the one that succeeds it.
    same = [e for e in known if e.name == entry.name and e.key != entry.key]
    if entry.is_builtin or not same:
        return ""
    if any(e.is_builtin for e in same):
        return f"the name {entry.name!r} is reserved: convjit registers it itself"
    live = [e for e in same if e.key not in disabled]
    if not live or entry.key in disabled:
        return ""
    keys = " or ".join(e.key for e in (entry, *live))
    return (
        f"the name {entry.name!r} is also registered by {', '.join(e.origin for e in live)}; "
        f"disable all but one, e.g. CONVJIT_DISABLE={keys}"
    )


# -------------------------------------------------------------------- health


def _unused(entry: Entry, reason: str) -> State:
    """The state of an entry that is not used for a reason."""
    return State.UNAVAILABLE if entry.answer and reason == entry.reason else State.BROKEN


def _warning(entry: Entry, reason: str) -> str:
    state = _unused(entry, reason)
    return f"backend {entry.name!r} of {entry.origin} is {state} and not used: {reason}."


def _warn(message: str, *, swallow: bool = False) -> None:
    """Warn once per process.  ``swallow``: an exception that says the same follows."""
    with _lock:
        if message in _warned:
            return
        _warned.add(message)
    try:
        warnings.warn(message, ConvjitWarning, stacklevel=2)
    except ConvjitWarning:  # the filter is "error"
        if not swallow:
            raise


def warn_once(message: str) -> None:
    """A :class:`~convjit.errors.ConvjitWarning` that is given once per process."""
    _warn(message)


def _break(entry: Entry, reason: str, error: BaseException | None) -> None:
    global _generation
    with _lock:
        if entry.reason:
            return
        entry.reason, entry.error = reason.rstrip("."), error
        _generation += 1


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
            _break(entry, str(error), None)
        else:
            _break(entry, f"it failed while it was {doing}: {_cause(error)}", error)
    finally:
        active.discard(entry)


def _is_loading(entry: Entry) -> bool:
    """Whether this very thread is inside the plugin's loading code."""
    return entry in _loading.__dict__.get("active", ())


def _load(entry: Entry) -> Backend | None:
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


def _probe(entry: Entry) -> Backend | None:
    """The backend if it is healthy; its probe runs once."""
    backend = _load(entry)
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
        _break(entry, entry.answer, None)
    return None if entry.reason else backend


def _solvers(entry: Entry) -> tuple[Solver, ...] | None:
    """The solvers, asked for once and checked; None if broken."""
    backend = _probe(entry)
    if backend is not None and entry.solvers is None:
        with _guard(entry, "asked for its solvers"):
            offered = tuple(backend.solvers())
            if problems := solver_problems(offered, entry.name):
                raise _Broken("; ".join(problems))
            with _lock:
                entry.solvers = entry.solvers or offered
    return None if entry.reason else entry.solvers


def _blocked_by(entry: Entry) -> str:
    """What blocks an entry in this context, else empty."""
    for item in (entry.name, entry.key):
        if item in config.current().disable:
            if item in config.environment().disable:
                return f"CONVJIT_DISABLE={','.join(config.environment().disable)}"
            return f"convjit.use(disable={config.current().disable!r})"
    return ""


def _usable(entry: Entry) -> bool:
    """Whether an entry may be considered here; broken ones are warned about."""
    if _is_loading(entry) or _blocked_by(entry):
        return False
    reason = _collision(entry, config.current().disable)
    if not reason and _solvers(entry) is None:
        reason = entry.reason
    if reason and not entry.is_quiet:
        _warn(_warning(entry, reason))
    return not reason


# -------------------------------------------------------------------- asking


def names() -> tuple[str, ...]:
    """Names of all backends that were found, ours first; broken and blocked ones too."""
    return tuple(dict.fromkeys(e.name for e in _entries()))


def is_builtin(name: str) -> bool:
    """Whether the distribution ``convjit`` itself registers a name."""
    return any(e.name == name and e.is_builtin for e in _entries())


def generation() -> int:
    """A number that grows whenever a cached choice may no longer hold."""
    return _generation


def outdate() -> None:
    """Have every cached choice be made anew: what decides it changed."""
    global _generation
    with _lock:
        _generation += 1


def default_pool(device: str | None = None) -> list[Backend]:
    """The healthy backends that a call without ``backend=`` considers, the preferred ones first.

    These are our own, in the declared order, after (or among) those that the priority in force
    names in its order.  With ``device``, backends on other devices are neither probed nor asked
    for their solvers.
    """
    _check_settings()
    wanted = config.current().priority
    chosen = [e for name in wanted for e in _named(name)]
    chosen += [e for e in _entries() if e.is_builtin and e.name not in wanted]
    pool = []
    for entry in chosen:
        if device is not None and not _blocked_by(entry) and not _is_loading(entry):
            backend = _load(entry)
            if backend is not None and backend.device != device:
                continue
        if _usable(entry) and entry.backend is not None:
            pool.append(entry.backend)
    return pool


def resolve(
    backend: str | Sequence[str] | None, *, source: str = "", device: str | None = None
) -> list[Backend]:
    """The backends that a value of ``backend=`` means.

    Parameters
    ----------
    backend : str or sequence of str or None
        A name, a device kind (the backends that None would consider on it), names, or None.
    source : str
        What the value came from, for messages; ``"CONVJIT_BACKEND"`` or ``"backend"`` by default.
    device : str or None
        For None: the device that the data is on.

    Raises
    ------
    ConfigError
        For an unknown name, listing the choices.
    BackendError
        For a backend that is broken (from the error that broke it) or blocked (saying by what),
        and for a device kind on which no backend is healthy.
    """
    if backend is None:
        if pool := default_pool(device):
            return pool
        raise BackendError(f"no backend is left{_told(device)}.")
    if not source:
        outside = config.current().backend == backend == config.environment().backend
        source = "CONVJIT_BACKEND" if outside else "backend"
    if isinstance(backend, str):
        if backend in DEVICES:
            return _kind(backend)
        return [get(backend, source=source)]
    if not isinstance(backend, (tuple, list)) or not all(isinstance(b, str) for b in backend):
        raise TypeError(f"{source}={backend!r} must be a name, a tuple of names, or None.")
    if not backend:
        raise ConfigError(f"{source}={backend!r} names no backend; {_choices()}")
    return [get(name, source=source) for name in dict.fromkeys(backend)]


def _kind(device: str) -> list[Backend]:
    if pool := default_pool(device):
        return pool
    raise BackendError(f"no backend works on the device {device!r}{_told(device)}.")


def _told(device: str | None) -> str:
    """Why those backends that may be meant are not used."""
    rows = [row for row in status() if not row.device or device in (None, row.device)]
    told = "; ".join(f"{row.name} is {row.state}: {row.reason}" for row in rows if row.reason)
    return f" ({told})" if told else "; none is installed for it"


def get(name: str, *, source: str = "backend") -> Backend:
    """The healthy backend of a name, loaded; raises as :func:`resolve` does."""
    entry = _entry(name, source)
    if _solvers(entry) is None or entry.backend is None:
        _warn_before_raising(entry)
        raise _replay(entry, entry.reason, entry.error)
    return entry.backend


def without_device(name: str) -> Backend:
    """The backend of a name, loaded, whether or not its probe finds a device to work on.

    For what needs none, such as compiling kernels.

    Raises
    ------
    ConfigError, BackendError
        As :func:`resolve`, for a backend that is unknown, blocked or cannot be loaded.
    """
    entry = _entry(name)
    if entry.backend is None and _load(entry) is None:
        _warn_before_raising(entry)
        raise _replay(entry, entry.reason, entry.error)
    assert entry.backend is not None
    return entry.backend


def _named(name: str) -> list[Entry]:
    return [e for e in _entries() if e.name == name]


def _entry(name: str, source: str = "backend") -> Entry:
    """The one entry that may be loaded under a name here."""
    same = _named(name)
    if not same:
        raise ConfigError(f"{source}={name!r} is not known; {_choices()}")
    entry = next((e for e in same if e.is_builtin), None) or next(
        (e for e in same if not _blocked_by(e)), same[0]
    )
    if blocker := _blocked_by(entry):
        raise BackendError(f"backend {name!r} of {entry.origin} is blocked by {blocker}.")
    if _is_loading(entry):
        raise BackendError(f"backend {name!r} of {entry.origin} was asked for while it loads.")
    if reason := _collision(entry, config.current().disable):
        raise _replay(entry, reason, None)
    return entry


def _warn_before_raising(entry: Entry) -> None:
    if not entry.is_quiet:
        _warn(_warning(entry, entry.reason), swallow=True)


def _replay(entry: Entry, reason: str, cause: BaseException | None) -> BackendError:
    state = _unused(entry, reason)
    error = BackendError(f"backend {entry.name!r} of {entry.origin} is {state}: {reason}.")
    error.__cause__ = cause
    return error


def _choices() -> str:
    known = names()
    if not known:
        return (
            "no backend is installed, convjit's own neither: install the package (pip install -e . "
            "in a checkout), so that its entry points exist."
        )
    return f"choose one of {', '.join(known)}, or a device: {', '.join(DEVICES)}."


def _check_settings() -> None:
    """The names in ``priority`` and ``disable`` are names of backends (or of their solvers)."""
    settings, environment = config.current(), config.environment()
    known = names()
    for setting, given in (("priority", settings.priority), ("disable", settings.disable)):
        for item in given:
            head = re.split(r"[.@]", item, maxsplit=1)[0] if setting == "disable" else item
            if head not in known:
                outside = item in getattr(environment, setting)
                source = f"CONVJIT_{setting.upper()}" if outside else setting
                hint = ", or a solver's id" if setting == "disable" else ""
                raise ConfigError(
                    f"{source} names {item!r}, which is not known; choose from "
                    f"{', '.join(known) or '(no backend is installed)'}{hint}."
                )


def solvers(backend: Backend | str) -> tuple[Solver, ...]:
    """The solvers of a backend, checked once: unique ids that start with the backend's name.

    Raises
    ------
    BackendError
        If the list is not what the protocol asks for; the backend is broken from then on.
    """
    name = backend if isinstance(backend, str) else backend.name
    entry = _entry(name)
    offered = _solvers(entry)
    if offered is None:
        _warn_before_raising(entry)
        raise _replay(entry, entry.reason, entry.error)
    return offered


def probe_answer(name: str) -> str | None:
    """Why the backend of a name cannot work on this machine, by its own probe; None if it can.

    Raises
    ------
    ConfigError, BackendError
        As :func:`resolve`, for a backend that is broken otherwise.
    """
    entry = _entry(name)
    if _probe(entry) is None and not entry.answer:
        _warn_before_raising(entry)
        raise _replay(entry, entry.reason, entry.error)
    return entry.answer or None


def mark_broken(
    name: str, reason: str, error: BaseException | None = None, *, raises: bool = False
) -> None:
    """Take a backend out of use until :func:`refresh`, warning once.

    ``raises`` says that the caller raises the error, so that a warning must not stand in its way.
    """
    entry = _entry(name)
    _break(entry, reason, error)
    _warn(_warning(entry, entry.reason), swallow=raises)


def broken_error(name: str) -> BackendError:
    """The error of a backend that is broken, to be raised from its cause."""
    entry = _entry(name)
    return _replay(entry, entry.reason, entry.error)


def status(load: Iterable[str] = ()) -> list[BackendInfo]:
    """What is known of every backend, ours first; only the names in ``load`` are imported."""
    loading = set(load)
    disabled = config.current().disable
    rows = []
    for entry in _entries():
        if blocker := _blocked_by(entry):
            state, reason = State.BLOCKED, f"by {blocker}"
        elif collision := _collision(entry, disabled):
            state, reason = State.BROKEN, collision
        else:
            if entry.name in loading and not _is_loading(entry):
                _usable(entry)
            reason = entry.reason
            loaded = entry.solvers is not None
            state = State.LOADED if loaded else State.LAZY
            if reason:
                state = _unused(entry, reason)
        rows.append(
            BackendInfo(
                entry.name,
                entry.backend.device if entry.backend is not None else "",
                state,
                entry.distribution,
                entry.version,
                reason,
            )
        )
    return rows


# -------------------------------------------------------------------- changing


def loaded() -> list[Backend]:
    """The healthy backends that are in use so far; loads none."""
    return [get(row.name) for row in status() if row.state is State.LOADED]


def register(backend: Backend) -> None:
    """Add a backend object of the running program; it is used where it is named.

    Raises
    ------
    TypeError
        If the object lacks something of the protocol, naming what.
    BackendError
        For a name that is bad or taken, and another version of the SPI.
    """
    global _generation
    if isinstance(backend, type):
        raise TypeError(f"register takes a backend, not its class; give {backend.__name__}().")
    name = getattr(backend, "name", None)
    problems = backend_problems(backend, cast("str", name))
    version = getattr(backend, "spi_version", SPI_VERSION)
    if problems and version == SPI_VERSION:
        raise TypeError(f"register: {'; '.join(problems)}.")
    if problem := "; ".join(problems) or bad_name(name):
        raise BackendError(f"register: backend {name!r}: {problem}.")
    _entries()
    with _lock:
        if same := _named(backend.name):
            raise BackendError(
                f"register: the name {backend.name!r} is taken by {same[0].origin}; give the "
                "backend another name."
            )
        _registered.append(Entry(backend.name, REGISTERED, "", lambda: lambda: backend))
        _registered[-1].backend = backend
        _generation += 1


def unregister(name: str) -> None:
    """Remove a backend that :func:`register` added."""
    global _generation
    with _lock:
        kept = [e for e in _registered if e.name != name]
        if len(kept) == len(_registered):
            raise BackendError(f"unregister: no backend was registered as {name!r}.")
        _registered[:] = kept
        _generation += 1


def refresh() -> None:
    """Look at the environment and at what is installed anew, and try broken backends again."""
    global _found, _generation
    import importlib

    importlib.invalidate_caches()
    config.reload_environment()
    with _lock:
        _found = None
        for entry in _registered:
            entry.probed, entry.solvers, entry.error = False, None, None
            entry.reason = entry.answer = ""
        _generation += 1

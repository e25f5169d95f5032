"""The registry: which backends exist, which of them work, and which a call may use.

Policy
------
* Every backend, ours too, is found through the entry-point group ``convjit.backends``, by metadata
  alone: finding one imports nothing of it.  It is imported when a call needs it, and a call that
  names no backend needs our own and those that ``CONVJIT_PRIORITY`` or ``use(priority=)`` name.
* One that does not work is told of by a warning and is a row of :func:`status`; it touches no other
  (:mod:`convjit.health`).
* The names that the distribution ``convjit`` registers are reserved; a stranger's duplicate is the
  broken one.  Of two strangers with one name both are broken until one is disabled, by
  ``name@distribution``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from convjit import config, health, staleness
from convjit.checks import backend_problems, bad_name
from convjit.discovery import Entry, Found, scan
from convjit.errors import BackendError, ConfigError
from convjit.locks import lock_held_over_forks
from convjit.spi import DEVICES, SPI_VERSION, Backend, Solver

REGISTERED = "(registered)"  # stands for the distribution of a backend given to register()


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """One row of the table of backends.

    Attributes
    ----------
    name : str
    device : str
        ``"cpu"`` or ``"cuda"``; empty while the backend was not imported.
    state : health.State
    distribution, version : str
        Where it came from.
    reason : str
        Why it is not used, else empty.
    """

    name: str
    device: str
    state: health.State
    distribution: str
    version: str
    reason: str = ""


_lock = lock_held_over_forks()
_found: Found | None = None
_registered: list[Entry] = []


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
                health.warn_once(note)
            for entry in found.entries:
                if reason := entry.reason or _collision(entry, disabled):
                    health.warn_once(health.told(entry, reason))
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


# -------------------------------------------------------------------- which may be used


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
    if health.is_loading(entry) or _blocked_by(entry):
        return False
    reason = _collision(entry, config.current().disable)
    if not reason and health.solvers(entry) is None:
        reason = entry.reason
    if reason and not entry.is_quiet:
        health.warn_once(health.told(entry, reason))
    return not reason


# -------------------------------------------------------------------- asking


def names() -> tuple[str, ...]:
    """Names of all backends that were found, ours first; broken and blocked ones too."""
    return tuple(dict.fromkeys(e.name for e in _entries()))


def is_builtin(name: str) -> bool:
    """Whether the distribution ``convjit`` itself registers a name."""
    return any(e.name == name and e.is_builtin for e in _entries())


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
        if device is not None and not _blocked_by(entry) and not health.is_loading(entry):
            backend = health.load(entry)
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
    if health.solvers(entry) is None or entry.backend is None:
        health.warn_before_raising(entry)
        raise health.error_of(entry, entry.reason, entry.error)
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
    if entry.backend is None and health.load(entry) is None:
        health.warn_before_raising(entry)
        raise health.error_of(entry, entry.reason, entry.error)
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
    if health.is_loading(entry):
        raise BackendError(f"backend {name!r} of {entry.origin} was asked for while it loads.")
    if reason := _collision(entry, config.current().disable):
        raise health.error_of(entry, reason, None)
    return entry


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
    offered = health.solvers(entry)
    if offered is None:
        health.warn_before_raising(entry)
        raise health.error_of(entry, entry.reason, entry.error)
    return offered


def probe_answer(name: str) -> str | None:
    """Why the backend of a name cannot work on this machine, by its own probe; None if it can.

    Raises
    ------
    ConfigError, BackendError
        As :func:`resolve`, for a backend that is broken otherwise.
    """
    entry = _entry(name)
    if health.probe(entry) is None and not entry.answer:
        health.warn_before_raising(entry)
        raise health.error_of(entry, entry.reason, entry.error)
    return entry.answer or None


def mark_broken(
    name: str, reason: str, error: BaseException | None = None, *, raises: bool = False
) -> None:
    """Take a backend out of use until :func:`refresh`, warning once.

    ``raises`` says that the caller raises the error, so that a warning must not stand in its way.
    """
    entry = _entry(name)
    health.mark_broken(entry, reason, error)
    health.warn_once(health.told(entry, entry.reason), swallow=raises)


def broken_error(name: str) -> BackendError:
    """The error of a backend that is broken, to be raised from its cause."""
    entry = _entry(name)
    return health.error_of(entry, entry.reason, entry.error)


def status(load: Iterable[str] = ()) -> list[BackendInfo]:
    """What is known of every backend, ours first; only the names in ``load`` are imported."""
    loading = set(load)
    disabled = config.current().disable
    rows = []
    for entry in _entries():
        if blocker := _blocked_by(entry):
            state, reason = health.State.BLOCKED, f"by {blocker}"
        elif collision := _collision(entry, disabled):
            state, reason = health.State.BROKEN, collision
        else:
            if entry.name in loading and not health.is_loading(entry):
                _usable(entry)
            reason = entry.reason
            loaded = entry.solvers is not None
            state = health.State.LOADED if loaded else health.State.LAZY
            if reason:
                state = health.unused_state(entry, reason)
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
    return [get(row.name) for row in status() if row.state is health.State.LOADED]


def register(backend: Backend) -> None:
    """Add a backend object of the running program; it is used where it is named.

    Raises
    ------
    TypeError
        If the object lacks something of the protocol, naming what.
    BackendError
        For a name that is bad or taken, and another version of the SPI.
    """
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
    staleness.outdate()


def unregister(name: str) -> None:
    """Remove a backend that :func:`register` added."""
    with _lock:
        kept = [e for e in _registered if e.name != name]
        if len(kept) == len(_registered):
            raise BackendError(f"unregister: no backend was registered as {name!r}.")
        _registered[:] = kept
    staleness.outdate()


def refresh() -> None:
    """Look at the environment and at what is installed anew, and try broken backends again."""
    global _found
    import importlib

    importlib.invalidate_caches()
    config.reload_environment()
    with _lock:
        _found = None
        for entry in _registered:
            entry.probed, entry.solvers, entry.error = False, None, None
            entry.reason = entry.answer = ""
    staleness.outdate()

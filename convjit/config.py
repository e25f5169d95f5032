"""Settings: the environment, parsed strictly and late, under the nestable ``convjit.use``.

The environment is read at the first call (and again by ``convjit.refresh``), never at import, so
that a bad value cannot break a program that only imports convjit.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from convjit.errors import ConfigError, ConvjitWarning

MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """What is in force for a call; None means that nobody said anything.

    Attributes
    ----------
    backend : str or tuple of str or None
        A backend's name, a device kind, or several names.
    algorithm : str or None
        A family or a solver's id.
    precision : str or None
    num_threads : int or None
    disable : tuple of str
        Names of backends and ids of solvers that are not considered.
    priority : tuple of str
        Third-party backends that join ``backend=None``, and the order of those named.
    cache_dir : str or None
    workspace_limit : int or None
        Bytes.
    """

    backend: str | tuple[str, ...] | None = None
    algorithm: str | None = None
    precision: str | None = None
    num_threads: int | None = None
    disable: tuple[str, ...] = ()
    priority: tuple[str, ...] = ()
    cache_dir: str | None = None
    workspace_limit: int | None = None


def _names(variable: str, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise ConfigError(
            f"{variable}={text!r} has an empty name; give names separated by commas, e.g. "
            f"{variable}=numba,scipy."
        )
    return names


def _one_or_more(variable: str, text: str) -> str | tuple[str, ...]:
    names = _names(variable, text)
    return names[0] if len(names) == 1 else names


def _one(variable: str, text: str) -> str:
    names = _names(variable, text)
    if len(names) > 1:
        raise ConfigError(f"{variable}={text!r} names {len(names)} things; give one.")
    return names[0]


def _threads(variable: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_THREADS:
        raise ConfigError(
            f"{variable}={text!r} is not a number of threads; give a whole number from 1 to "
            f"{MAX_THREADS}."
        )
    return value


_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size_in_bytes(source: str, text: str) -> int:
    """Bytes from ``"1048576"``, ``"512MiB"`` or ``"2G"``.

    Raises
    ------
    ConfigError
        For anything else, naming the ``source`` that it came from.
    """
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text.strip()[len(digits) :].strip().lower()
    if not digits.isdecimal() or unit not in _UNITS:
        raise ConfigError(
            f"{source}={text!r} is not a size; give bytes, or a number with one of "
            "KiB, MiB, GiB (e.g. 512MiB)."
        )
    return int(digits) * _UNITS[unit]


def _directory(variable: str, text: str) -> str:
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(
            f"{variable}={text!r} is a file; name a directory (it is made if needed)."
        )
    return str(path)


_PARSERS: Mapping[str, tuple[str, Any]] = {
    "CONVJIT_BACKEND": ("backend", _one_or_more),
    "CONVJIT_ALGORITHM": ("algorithm", _one),
    "CONVJIT_PRIORITY": ("priority", _names),
    "CONVJIT_DISABLE": ("disable", _names),
    "CONVJIT_NUM_THREADS": ("num_threads", _threads),
    "CONVJIT_CACHE_DIR": ("cache_dir", _directory),
    "CONVJIT_WORKSPACE_LIMIT": ("workspace_limit", size_in_bytes),
}
VARIABLES = tuple(_PARSERS)


def parse_environment(environ: Mapping[str, str]) -> Settings:
    """Settings from ``CONVJIT_*`` variables.

    Raises
    ------
    ConfigError
        For a bad value, naming the variable, the value and the choices.

    Warns
    -----
    ConvjitWarning
        For an unknown ``CONVJIT_*`` variable.
    """
    values = {}
    for variable, text in environ.items():
        if not variable.startswith("CONVJIT_"):
            continue
        if variable not in _PARSERS:
            warnings.warn(
                f"{variable} is not a variable of convjit, which reads {', '.join(VARIABLES)}; "
                "it has no effect.",
                ConvjitWarning,
                stacklevel=2,
            )
            continue
        if not text.strip():
            continue
        name, parse = _PARSERS[variable]
        values[name] = parse(variable, text)
    return Settings(**values)


_environment: Settings | None = None
# The settings of the enclosing ``use`` blocks, outermost first.  A tuple in a context variable
# needs no tokens, so that one ``use`` object may be entered by several threads at once.
_stack: ContextVar[tuple[Settings, ...]] = ContextVar("convjit_settings", default=())

# Equal settings are one object, so that a plan cache can key on their identity: hashing a
# dataclass of eight fields on every call would cost more than finding the plan.
_interned: dict[Settings, Settings] = {}


def environment() -> Settings:
    """Settings of the environment, read once."""
    global _environment
    if _environment is None:
        settings = parse_environment(os.environ)
        _environment = _interned.setdefault(settings, settings)
    return _environment


def reload_environment() -> None:
    """Forget what was read: the next call reads the environment anew."""
    global _environment
    _environment = None


def current() -> Settings:
    """Settings in force here: the innermost ``use`` over the environment."""
    stack = _stack.get()
    return stack[-1] if stack else environment()


def push(changes: Mapping[str, Any]) -> None:
    """Put changed settings in force in this context, until :func:`pop`."""
    settings = replace(current(), **changes)
    _stack.set((*_stack.get(), _interned.setdefault(settings, settings)))


def pop() -> None:
    """Undo the last :func:`push` of this context."""
    _stack.set(_stack.get()[:-1])


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def num_threads() -> int:
    """Threads that a kernel may use here."""
    return current().num_threads or available_cores()


def cache_dir() -> Path:
    """Directory of everything convjit stores between processes (it may not exist yet)."""
    chosen = current().cache_dir
    if chosen is not None:
        return Path(chosen)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("convjit", appauthor=False))


SETTING_NAMES = tuple(f.name for f in fields(Settings))

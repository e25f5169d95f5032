"""Revisions: what a solver's speed depends on, as one short word.

A remembered measurement is of no use once the kernel is another.  A solver's revision is a hash of
the source of its module and of every module that it imports, directly or not, of its own package
and of convjit's shared mathematics, and of the versions of the other libraries that these import
(numba and llvmlite, say).  A change of one kernel thus leaves what is remembered of its neighbours.

The imports are read off the text, those inside functions too, since that is where kernels import
what they are built of.
"""

from __future__ import annotations

import hashlib
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from convjit import registry

# Modules of the core that kernels are made of, whoever uses them.
SHARED = "convjit.algorithms"

_FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]*)", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*import[ \t]+([\w., \t]+)", re.MULTILINE)


class _Source(NamedTuple):
    """A module's text as a hash, and what it imports: (module, name in it or empty)."""

    digest: bytes
    imports: frozenset[tuple[str, str]]


def revision(solver: Any) -> str:
    """Eight letters that change when a solver's kernels or the libraries below them do.

    Parameters
    ----------
    solver : Solver
    """
    return of_module(type(solver).__module__)


def of_id(name: str) -> str | None:
    """The revision of the solver of an id, the one of separable layers too; None for none.

    Raises
    ------
    BackendError, ConfigError
        If its backend cannot be had.
    """
    backend = registry.get(name.partition(".")[0])
    separable = getattr(backend, "separable", None)
    offered = [*registry.solvers(backend), *([separable()] if callable(separable) else ())]
    return next((revision(solver) for solver in offered if solver.id == name), None)


@lru_cache(maxsize=256)
def of_module(name: str) -> str:
    """The revision of what a module and all that it imports define.

    The module has been imported, so that its package is known.
    """
    own = name.partition(".")[0]
    # The core itself is no kernel: a solver that is defined in it depends on its module alone.
    packages = (SHARED,) if own == "convjit" else (own, SHARED)
    sources: dict[str, _Source] = {}
    libraries: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module in sources:
            continue
        sources[module] = source = _source(module)
        for package, what in source.imports:
            if not any(f"{package}.".startswith(f"{within}.") for within in packages):
                libraries.add(package.partition(".")[0])
            elif what and _file(f"{package}.{what}") is not None:
                waiting.append(f"{package}.{what}")
            else:
                waiting.append(package)
    digest = hashlib.sha256()
    for module in sorted(sources):
        digest.update(module.encode() + b"\0" + sources[module].digest + b"\0")
    for library in sorted(libraries - set(sys.stdlib_module_names) - {"convjit"}):
        digest.update(f"{library} {_version(library)}\0".encode())
    return digest.hexdigest()[:8]


def _file(module: str) -> Path | None:
    """Where the source of a module is, None if that name is no module or has none."""
    top, *parts = module.split(".")
    origin = getattr(sys.modules.get(top), "__file__", None)
    if origin is None:
        return None
    if not parts:
        return Path(origin)
    below = Path(origin).parent.joinpath(*parts)
    return next((p for p in (below.with_suffix(".py"), below / "__init__.py") if p.is_file()), None)


@lru_cache(maxsize=512)
def _source(module: str) -> _Source:
    """What a module consists of; nothing for one whose source is not there."""
    try:
        path = _file(module)
        data = path.read_bytes() if path is not None else b""
    except OSError:
        data = b""
    return _Source(
        hashlib.sha256(data).digest(), frozenset(_imports(data.decode(errors="replace")))
    )


def _imports(text: str) -> set[tuple[str, str]]:
    """(module, name in it or empty) for everything that a text imports."""
    found = set()
    for package, what in _FROM.findall(text):
        words = re.sub(r"#[^\n]*", "", what.strip("()")).split(",")
        found |= {(package, word.split()[0]) for word in words if word.strip()}
    for line in _IMPORT.findall(text):
        found |= {(word.split()[0], "") for word in line.split(",") if word.strip()}
    return found


def _version(library: str) -> str:
    """The version of an installed library, empty where it has none."""
    from importlib import metadata

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        module = sys.modules.get(library)
        return str(getattr(module, "__version__", ""))

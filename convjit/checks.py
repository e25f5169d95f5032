"""Does an object follow the protocol?  What it lacks, in words.

Used where a backend enters: the registry asks of what a plugin made, and of what a program
registers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from convjit.spi import DEVICES, SPI_VERSION

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ARRAY_TYPE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_BACKEND_MEMBERS = ("name", "device", "spi_version", "array_types")
_BACKEND_METHODS = ("probe", "array_namespace", "target", "solvers")
_SOLVER_MEMBERS = ("id", "algorithm")
_SOLVER_METHODS = ("refuse", "estimate", "configs", "plan")


def bad_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return (
            f"{name!r} is not a name for a backend; use lower-case letters, digits and "
            "underscores, a letter first"
        )
    if name in DEVICES:
        return f"{name!r} is the name of a device kind; a backend needs one of its own"
    return ""


def backend_problems(backend: Any, name: str) -> list[str]:
    """What an object lacks of the protocol; the version first, since it decides on the rest."""
    kind = type(backend).__name__
    version = getattr(backend, "spi_version", None)
    if version is not None and version != SPI_VERSION:
        return [
            f"it was written for version {version!r} of convjit's SPI and this is version "
            + f"{SPI_VERSION}; install a release of it that matches"
        ]
    missing = [m for m in (*_BACKEND_MEMBERS, *_BACKEND_METHODS) if not hasattr(backend, m)]
    if missing:
        return [f"{kind} is not a backend: it has no {', '.join(missing)}"]
    problems = []
    if backend.name != name:
        problems.append(
            f"it is registered as {name!r} but calls itself {backend.name!r}; the names must agree"
        )
    if backend.device not in DEVICES:
        problems.append(f"its device is {backend.device!r}, not one of {', '.join(DEVICES)}")
    types = backend.array_types
    if (
        not isinstance(types, tuple)
        or not types
        or not all(isinstance(t, str) and _ARRAY_TYPE.fullmatch(t) for t in types)
    ):
        problems.append(
            f"its array_types is {types!r}; give a tuple of 'module:qualname', e.g. "
            "('numpy:ndarray',)"
        )
    problems += [f"its {m} is not callable" for m in _BACKEND_METHODS if not _calls(backend, m)]
    return problems


def _calls(thing: object, member: str) -> bool:
    return callable(getattr(thing, member, None))


def solver_problems(offered: Sequence[Any], name: str) -> list[str]:
    if not offered:
        return ["it offers no solvers"]
    problems: list[str] = []
    seen: set[str] = set()
    for solver in offered:
        missing = [m for m in (*_SOLVER_MEMBERS, *_SOLVER_METHODS) if not hasattr(solver, m)]
        if missing:
            problems.append(
                f"{type(solver).__name__} is not a solver: it has no {', '.join(missing)}"
            )
            continue
        identity = solver.id
        if not isinstance(identity, str) or not identity.startswith(f"{name}."):
            problems.append(f"the solver's id {identity!r} does not start with '{name}.'")
        elif identity in seen:
            problems.append(f"two solvers have the id {identity!r}")
        elif not isinstance(solver.algorithm, str) or not _NAME.fullmatch(solver.algorithm):
            problems.append(
                f"the algorithm of {identity} is {solver.algorithm!r}; name the family in lower "
                "case, e.g. 'direct'"
            )
        problems += [
            f"{m} of {identity} is not callable" for m in _SOLVER_METHODS if not _calls(solver, m)
        ]
        seen.add(str(identity))
    return problems

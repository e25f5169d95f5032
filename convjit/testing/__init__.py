"""What a backend's author needs to show that the backend is right.

``suite`` is a conformance suite to star-import into a test file, ``requirements`` says what to run
of it, ``cases`` names the problems, ``check`` runs one without pytest, ``loopback`` is a backend
that fails when dispatch is bypassed, ``plugin`` gives pytest ``--convjit-backend NAME``, and
``oracle`` is the plain loop nest that all of them measure against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convjit.algorithms.oracle import oracle as oracle
    from convjit.testing.cases import CASES as CASES
    from convjit.testing.cases import QUICK as QUICK
    from convjit.testing.cases import Case as Case
    from convjit.testing.check import Outcome as Outcome
    from convjit.testing.loopback import Loopback as Loopback
    from convjit.testing.loopback import LoopbackBackend as LoopbackBackend
    from convjit.testing.requirements import Requirements as Requirements

_WHERE = {
    "CASES": "convjit.testing.cases",
    "QUICK": "convjit.testing.cases",
    "Case": "convjit.testing.cases",
    "Loopback": "convjit.testing.loopback",
    "LoopbackBackend": "convjit.testing.loopback",
    "Outcome": "convjit.testing.check",
    "Requirements": "convjit.testing.requirements",
    "oracle": "convjit.algorithms.oracle",
}
__all__ = [
    "CASES",
    "QUICK",
    "Case",
    "Loopback",
    "LoopbackBackend",
    "Outcome",
    "Requirements",
    "oracle",
]


def __getattr__(name: str) -> Any:
    # Lazy, because pytest imports this package in every session of an environment that has convjit.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)

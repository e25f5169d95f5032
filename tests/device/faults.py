"""Faults planted in kernels: modules made anew with another line, and what a run of them tells."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ptxcpu

from convjit.errors import BackendError
from convjit.spec import ConvSpec
from convjit.testing.cases import Case
from convjit.testing.check import check


def changed(module: ModuleType, before: str = "", after: str = "", **names: Any) -> ModuleType:
    """A module made anew from its source, one place of it replaced, and with other names.

    What it defines is reached from here alone.
    """
    assert module.__file__ is not None
    source = Path(module.__file__).read_text(encoding="utf-8")
    if before:
        assert source.count(before) == 1, f"{before!r} stands {source.count(before)} times"
    made = ModuleType(f"{module.__name__}_changed")
    made.__file__ = module.__file__  # beside which a kernel's source may lie
    sys.modules[made.__name__] = made  # where dataclasses look while they are made
    exec(
        compile(source.replace(before, after) if before else source, module.__file__, "exec"),
        made.__dict__,
    )
    del sys.modules[made.__name__]
    made.__dict__.update(names)
    return made


def cause(error: BaseException | None) -> BaseException | None:
    """The first error of a chain."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return error


def told_of(backend: str, text: str) -> str:
    """What a problem on a backend tells: checked mode's complaint, ``"wrong"`` or ``"nothing"``."""
    case = Case("faulty", ConvSpec.parse(text))
    try:
        outcome = check(case, backend, choice={"precision": "fast"})
    except BackendError as error:
        found = cause(error)
        assert isinstance(found, ptxcpu.Fault), repr(found)
        return str(found)
    assert not outcome.refusal, outcome.refusal
    return "wrong" if outcome.complaint else "nothing"

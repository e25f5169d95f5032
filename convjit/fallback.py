"""What better there would be than what runs, and why it does not: for profiles to warn of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from convjit import discovery, health, registry
from convjit.arguments import Request
from convjit.spi import Feature

if TYPE_CHECKING:
    from convjit.dispatch import Candidate

# What a policy rules out is worth telling of where it is predicted to be this many times faster.
MUCH_FASTER = 1.5


def of(chosen: Candidate, asked: Sequence[Candidate], request: Request) -> str:
    """Why something better than a choice does not run.

    Parameters
    ----------
    chosen : Candidate
        What runs.
    asked : sequence of Candidate
        All of them, the refused too.
    request : Request

    Returns
    -------
    str
        A clause for people; empty where nothing better is known, or the caller forced the choice.
    """
    if request.is_forced:
        return ""
    for name, reason in absent(chosen.backend, request).items():
        return f"backend {name!r} does not work here ({reason}); convjit.backends() lists it"
    mine = chosen.total(request.packed)
    for c in asked:
        if c.refusal is None:
            continue
        if c.refusal.feature is Feature.BROKEN:
            return f"{c.label} is left out: {c.refusal.reason}"
        by_policy = c.refusal.feature in (Feature.POLICY, Feature.WORKSPACE)
        if by_policy and c.seconds is not None and c.total(request.packed) * MUCH_FASTER < mine:
            times = mine / c.total(request.packed)
            return f"{c.label} would be {times:.1f} times faster, but {c.refusal.reason}"
    for name in _before(chosen.backend):
        refusals = [c.refusal.reason for c in asked if c.backend == name and c.refusal]
        if refusals and all(c.refusal for c in asked if c.backend == name):
            usual = max(dict.fromkeys(refusals), key=refusals.count)
            return f"the {name} backend refuses it: {usual}"
    return ""


def absent(chosen: str, request: Request) -> dict[str, str]:
    """Name and reason of our own backends that would come before the chosen one and do not work."""
    if request.backend is not None:
        return {}
    before = _before(chosen)
    return {
        row.name: row.reason
        for row in registry.status()
        if row.name in before
        and row.state in (health.State.BROKEN, health.State.UNAVAILABLE)
        and row.device in ("", registry.get(chosen).device)
    }


def _before(chosen: str) -> tuple[str, ...]:
    """The backends that are preferred to one in the declared order."""
    order = discovery.DECLARED_ORDER
    return order[: order.index(chosen)] if chosen in order else ()

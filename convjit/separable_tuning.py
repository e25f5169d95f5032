"""Tuning of a separable layer: one pass with each of its block sizes, beside the two calls.

They are measured as :mod:`convjit.turns` says, and remembered in one entry, whose times
compare.  The two calls run as they would: what tuning found for each of them is used, so that they
are tuned first.  A kernel that changes, of the one pass or of either call, voids its times alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from convjit import calibration, registry, revisions
from convjit.errors import UnsupportedError
from convjit.plans import Plan
from convjit.separable import Layer, planned
from convjit.separable_explanation import calls_of_one, calls_of_two, plans_of
from convjit.separable_offer import Offer
from convjit.spi import DEFAULT_CONFIG, Config
from convjit.tunedb import THEN
from convjit.tuning import Choice, Tuning, check, is_remembered, remember, tuned
from convjit.turns import BUDGET, KINDS, Search, Way


def tune_layer(
    offer: Callable[[bool], Offer], *, budget: float = BUDGET, again: bool = False
) -> Tuning:
    """Measure a layer and remember what was found (what :func:`convjit.tune_separable` does).

    Parameters
    ----------
    offer : callable
        What the layer comes to now, by whether the weights are packed before.
    budget, again
        As in :func:`convjit.tuning.tune_problem`, whose errors are raised, too.
    """
    start = time.perf_counter()
    found = offer(True)
    check(found.request, budget)
    if len(found.halves) < 2:
        raise UnsupportedError(f"{THEN.join(map(str, found.specs))}: {found.refusal}")
    if found.refusal:
        label = found.halves_label
        ended = f"there is no single pass: {found.refusal}"
        name = THEN.join(map(str, found.specs))
        return Tuning(name, (), label, label, label, 1.0, 0.0, ended, is_new=False)
    ways = [_one_pass(found), _two_calls(found)]
    is_model = (found.seconds or 0.0) < (found.halves_seconds or 0.0)
    if not is_model:
        ways.reverse()
    search = Search(ways, ways[0].label, budget)
    is_new = again or not is_remembered(search, found.specs)
    if is_new:
        try:
            search.run()
        finally:
            remember(search, found.specs)
    choices = {packed: _choice(offer(packed)) for packed in KINDS}
    return tuned(search, found.specs, choices, start, is_new=is_new)


def _one_pass(offer: Offer) -> Way:
    solver, target = offer.separable_solver(), calibration.target(registry.get(offer.backend))
    limit = offer.request.policy.workspace_limit

    def plan(config: Config) -> Layer | None:
        layer = planned(offer, config)
        return layer if limit is None or layer.executable.workspace <= limit else None

    return Way(
        offer.solver, (offer.solver,), (revisions.revision(solver),), offer.backend, offer.target,
        tuple(solver.configs(*offer.specs, target)), plan, lambda layer: calls_of_one(offer, layer),
    )  # fmt: skip


def _two_calls(offer: Offer) -> Way:
    def plan(config: Config) -> tuple[Plan, Plan]:
        return plans_of(offer)

    return Way(
        offer.halves_label, tuple(half.solver_id for half in offer.halves),
        offer.halves_revisions(), offer.backend, offer.target, (DEFAULT_CONFIG,), plan,
        lambda plans: calls_of_two(offer, plans),
    )  # fmt: skip


def _choice(offer: Offer) -> Choice:
    """What runs from now on."""
    why = "measured" if offer.is_measured else "the cost model"
    if offer.why_not:
        return Choice(offer.halves_label, DEFAULT_CONFIG, why)
    return Choice(offer.solver, offer.config, why)

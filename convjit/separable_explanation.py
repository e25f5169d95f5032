"""Why a separable layer runs as it does: in one pass, or as its two convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from convjit import showing
from convjit.explanation import (
    Explanation,
    explain_problem,
    low_quartile,
    plan_of,
    random_operands,
)
from convjit.packing import Weights
from convjit.plans import Plan
from convjit.precision import numpy_dtype
from convjit.separable import Layer, planned
from convjit.separable_offer import Offer
from convjit.tables import milliseconds, size, table
from convjit.tunedb import Remembered, sizes

ONE_PASS, TWO_CALLS = "one pass", "two calls"
LISTED = 5  # candidates of each of the two convolutions: all of it is one screen


@dataclass(frozen=True, slots=True)
class SeparableExplanation:
    """What :func:`convjit.depthwise_separable` runs; prints itself.

    Attributes
    ----------
    offer : Offer
        The two ways, and why the one pass is not taken where it is not.
    depth, point : Explanation
        Of the two convolutions.
    measured : mapping of way to seconds
        ``"one pass"`` and ``"two calls"``, filled by :meth:`compare`.
    """

    offer: Offer
    depth: Explanation
    point: Explanation
    measured: dict[str, float] | None = None

    @property
    def runs(self) -> str | None:
        """``"one pass"`` or ``"two calls"``, None where nothing computes one of the two."""
        if not self.offer.why_not:
            return ONE_PASS
        return TWO_CALLS if len(self.offer.halves) == 2 else None

    def compare(self, *, seconds: float = 0.1) -> SeparableExplanation:
        """The same explanation with measured times of the ways that could run.

        Parameters
        ----------
        seconds : float
            To spend on repeats of each way, beside its first two calls.

        Raises
        ------
        BackendError
            If a way fails while it runs.
        """
        calls = self._calls()
        return replace(self, measured={way: low_quartile(c, seconds) for way, c in calls.items()})

    def _calls(self) -> dict[str, Callable[[], object]]:
        offer, packed = self.offer, self.offer.request.packed
        found: dict[str, Callable[[], object]] = {}
        if len(offer.halves) == 2:
            found[TWO_CALLS] = calls_of_two(offer, plans_of(offer))[packed]
        if offer.work is not None:
            found[ONE_PASS] = calls_of_one(offer, planned(offer))[packed]
        return found

    # ---------------------------------------------------------------- showing

    def __str__(self) -> str:
        offer = self.offer
        flops = offer.depth.spec.flops + offer.point.spec.flops
        head = (
            f"{offer.depth.spec}\nthen {offer.point.spec}\n"
            f"{showing.conditions(flops, offer.request.packed)}"
        )
        columns = ["way", "algorithm", ">predicted ms"]
        is_remembered = any(known for *_, known in self._ways())
        columns += [">remembered ms"] if is_remembered else []
        columns += [">measured ms"] if self.measured is not None else []
        rows = []
        for way, label, predicted, space, known in self._ways():
            row: list[object] = [way, label, milliseconds(predicted)]
            if is_remembered:
                row += [milliseconds(None if known is None else known.seconds)]
            if self.measured is not None:
                row += [milliseconds(self.measured.get(way))]
            rows.append([*row, size(space)])
        halves = [e.table(refused=False, most=LISTED) for e in (self.depth, self.point)]
        return "\n\n".join([head, table([*columns, ">workspace"], rows), self._ending(), *halves])

    def __repr__(self) -> str:
        return f"<convjit.SeparableExplanation of {self.offer.depth.spec}: {self.runs}>"

    def _ways(self) -> list[tuple[str, str, float | None, int, Remembered | None]]:
        """(way, algorithm, predicted seconds, bytes of workspace, remembered), what runs first."""
        offer = self.offer
        found: list[tuple[str, str, float | None, int, Remembered | None]] = []
        if offer.work is not None:
            space = offer.work.workspace
            found.append((ONE_PASS, offer.solver, offer.seconds, space, offer.remembered))
        if len(offer.halves) == 2:
            # The intermediate result is memory that one pass does without.
            spec = offer.depth.spec
            between = prod(spec.result_shape) * numpy_dtype(spec.result_dtype).itemsize
            space = between + max(half.workspace for half in offer.halves)
            known = offer.halves_remembered
            found.append((TWO_CALLS, offer.halves_label, offer.halves_seconds, space, known))
        return sorted(found, key=lambda row: row[0] != self.runs)

    def _ending(self) -> str:
        offer = self.offer
        if self.runs is None:
            return f"nothing runs: {offer.refusal}"
        if self.runs == TWO_CALLS:
            return f"two calls run; no single pass: {offer.why_not}"
        if offer.request.policy.deterministic:
            return (
                f"{offer.solver} runs: with deterministic=True it does for every number of threads"
            )
        if offer.is_measured:
            return (
                f"{offer.solver} ({sizes(offer.config)}) runs: it is faster than two calls, "
                f"{offer.remembered}"
            )
        return f"{offer.solver} runs: it is predicted to be faster than two calls"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "runs": self.runs,
            "why_not_one_pass": self.offer.why_not,
            "ways": [
                {
                    "way": way,
                    "label": label,
                    "predicted_seconds": predicted,
                    "measured_seconds": (self.measured or {}).get(way),
                    "workspace": space,
                    "remembered": None if known is None else known.as_dict(),
                }
                for way, label, predicted, space, known in self._ways()
            ],
            "depth": self.depth.as_dict(),
            "point": self.point.as_dict(),
        }


def plans_of(offer: Offer) -> tuple[Plan, Plan]:
    """The plans of the two calls."""
    first, second = zip((offer.depth, offer.point), offer.halves, strict=True)
    return plan_of(first[0], offer.request, first[1]), plan_of(second[0], offer.request, second[1])


def calls_of_two(offer: Offer, plans: tuple[Plan, Plan]) -> dict[bool, Callable[[], object]]:
    """The layer in two calls on random operands, by whether the weights are packed before."""
    first, second = plans
    x, depth, depth_bias = random_operands(offer.depth)
    _, point, bias = random_operands(offer.point)

    def calls(depth: Any, point: Any) -> Callable[[], object]:
        return lambda: second(first(x, depth, depth_bias), point, bias)

    return {True: calls(first.pack(depth), second.pack(point)), False: calls(depth, point)}


def calls_of_one(offer: Offer, layer: Layer) -> dict[bool, Callable[[], object]]:
    """The layer in one pass on random operands, by whether the weights are packed before."""
    x, depth, depth_bias = random_operands(offer.depth)
    _, point, bias = random_operands(offer.point)

    def calls(depth: Any, point: Any) -> Callable[[], object]:
        return lambda: layer(x, depth, point, depth_bias, bias, None)

    return {True: calls(Weights(depth), Weights(point)), False: calls(depth, point)}


def explain_offer(offer: Offer) -> SeparableExplanation:
    """The explanation of a layer (what :func:`convjit.explain_separable` returns)."""
    depth, point = (explain_problem(p, offer.request) for p in (offer.depth, offer.point))
    return SeparableExplanation(offer, depth, point)

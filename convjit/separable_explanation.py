"""Why a separable layer runs as it does: in one pass, or as its two convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from convjit.explanation import (
    Array,
    Explanation,
    explain_problem,
    low_quartile,
    plan_of,
    random_operands,
)
from convjit.plans import Weights
from convjit.precision import numpy_dtype
from convjit.separable import Offer
from convjit.tables import milliseconds, size, table

ONE_PASS, TWO_CALLS = "one pass", "two calls"


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
        if not self.offer.refusal:
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
        offer = self.offer
        found: dict[str, Callable[[], object]] = {}
        packed = offer.request.packed
        x, depth, depth_bias = random_operands(offer.depth)
        _, point, bias = random_operands(offer.point)
        if len(offer.halves) == 2:
            first, second = (
                plan_of(problem, offer.request, half)
                for problem, half in zip((offer.depth, offer.point), offer.halves, strict=True)
            )
            w_depth: Any = first.pack(depth) if packed else depth
            w_point: Any = second.pack(point) if packed else point

            def two_calls() -> Array:
                result: Array = second(first(x, w_depth, depth_bias), w_point, bias)
                return result

            found[TWO_CALLS] = two_calls
        if offer.work is not None:
            layer = offer.layer()
            first_w: Any = Weights(depth) if packed else depth
            second_w: Any = Weights(point) if packed else point
            found[ONE_PASS] = lambda: layer(x, first_w, second_w, depth_bias, bias, None)
        return found

    # ---------------------------------------------------------------- showing

    def __str__(self) -> str:
        offer = self.offer
        flops = offer.depth.spec.flops + offer.point.spec.flops
        packing = "packed once" if offer.request.packed else "packed in each call"
        head = (
            f"{offer.depth.spec}\nthen {offer.point.spec}\n{flops / 1e9:.3g} G operations "
            f"directly; weights {packing}"
        )
        columns = ["way", "algorithm", ">predicted ms"]
        columns += [">measured ms"] if self.measured is not None else []
        rows = []
        for way, label, predicted, space in self._ways():
            row: list[object] = [way, label, milliseconds(predicted)]
            if self.measured is not None:
                row += [milliseconds(self.measured.get(way))]
            rows.append([*row, size(space)])
        halves = [e.table(refused=False) for e in (self.depth, self.point)]
        return "\n\n".join([head, table([*columns, ">workspace"], rows), self._ending(), *halves])

    def __repr__(self) -> str:
        return f"<convjit.SeparableExplanation of {self.offer.depth.spec}: {self.runs}>"

    def _ways(self) -> list[tuple[str, str, float | None, int]]:
        """(way, algorithm, predicted seconds, bytes of workspace), what runs first."""
        offer, found = self.offer, []
        if offer.work is not None:
            found.append((ONE_PASS, offer.solver, offer.seconds, offer.work.workspace))
        if len(offer.halves) == 2:
            labels = ", then ".join(half.label for half in offer.halves)
            # The intermediate result is memory that one pass does without.
            spec = offer.depth.spec
            between = prod(spec.result_shape) * numpy_dtype(spec.result_dtype).itemsize
            space = between + max(half.workspace for half in offer.halves)
            found.append((TWO_CALLS, labels, offer.halves_seconds, space))
        return sorted(found, key=lambda row: row[0] != self.runs)

    def _ending(self) -> str:
        if self.runs is None:
            return f"nothing runs: {self.offer.refusal}"
        if self.runs == TWO_CALLS:
            return f"two calls run; no single pass: {self.offer.refusal}"
        return f"{self.offer.solver} runs: it is predicted to be faster than two calls"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "runs": self.runs,
            "why_not_one_pass": self.offer.refusal,
            "ways": [
                {
                    "way": way,
                    "label": label,
                    "predicted_seconds": predicted,
                    "measured_seconds": (self.measured or {}).get(way),
                    "workspace": space,
                }
                for way, label, predicted, space in self._ways()
            ],
            "depth": self.depth.as_dict(),
            "point": self.point.as_dict(),
        }


def explain_offer(offer: Offer) -> SeparableExplanation:
    """The explanation of a layer (what :func:`convjit.explain_separable` returns)."""
    depth, point = (explain_problem(p, offer.request) for p in (offer.depth, offer.point))
    return SeparableExplanation(offer, depth, point)

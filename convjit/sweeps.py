"""One problem whose kernel or channels grow: what each family of algorithms takes at each size.

A sweep shows where one algorithm overtakes another, and whether the cost model knows.  Its times
are the model's (:func:`predicted`), or measured ones beside them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from convjit import dispatch
from convjit.algorithms.geometry import extent, same_padding, transposed_size
from convjit.arguments import Request
from convjit.dispatch import FAMILIES, Candidate
from convjit.errors import ConvSpecError
from convjit.spec import ConvSpec, Direction

# Sizes to sweep where nobody names them: kernels by the number of spatial axes, and channels.
KERNELS = {
    1: (3, 5, 9, 17, 33, 65, 129, 257, 513, 1025),
    2: (1, 3, 5, 7, 9, 11, 15, 21, 31),
    3: (1, 3, 5, 7, 9),
}
CHANNELS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
OVER = {"kernel": "kernel size", "channels": "channels"}
# A member of a sweep that is this many times the work of the problem itself is left out.
LARGEST = 1000.0


# -------------------------------------------------------------------- the members


def with_kernel(spec: ConvSpec, kernel: int, *, same: bool = False) -> ConvSpec:
    """The spec with another kernel size along every axis that has more than one tap.

    With ``same`` the padding is that of ``padding="same"``.  Without, an axis that has no padding
    stays so, and its result shrinks as the kernel grows; along any other axis the padding grows
    with the kernel, an odd sample at its end, so that the sizes stay.
    """
    swept = [k > 1 for k in spec.kernel_size]
    if not any(swept):
        swept = [True] * spec.ndim
    sizes = tuple(
        kernel if is_swept else k for is_swept, k in zip(swept, spec.kernel_size, strict=True)
    )
    padding = []
    for n, old, k, s, (lo, hi), d in zip(
        spec.in_size, spec.kernel_size, sizes, spec.stride, spec.padding, spec.dilation, strict=True
    ):
        wider = extent(k, d) - extent(old, d)
        if same:
            lo, hi = same_padding(n, k, s, d)
        elif lo or hi:
            lo, hi = max(lo + wider // 2, 0), max(hi + wider - wider // 2, 0)
        padding.append((lo, hi))
    changed = spec.replace(kernel_size=sizes, padding=tuple(padding))
    if spec.direction is not Direction.TRANSPOSED:
        return changed.replace(out_size=changed.formula_out_size)
    # A transposed layer's data is y, which stays; its result x follows, output_padding and all.
    size = tuple(
        transposed_size(o, k, s, lo, hi, d, extra)
        for o, k, s, (lo, hi), d, extra in zip(
            spec.out_size, sizes, spec.stride, padding, spec.dilation, spec.output_padding,
            strict=True,
        )
    )  # fmt: skip
    return changed.replace(in_size=size)


def with_channels(spec: ConvSpec, channels: int) -> ConvSpec:
    """The spec with another number of input channels, and as many times more or fewer results.

    Groups stay, or follow the channels of a depthwise layer.

    Raises
    ------
    ConvSpecError
        If the groups do not divide ``channels``.
    """
    depthwise = spec.groups == spec.in_channels > 1
    groups = channels if depthwise else spec.groups
    out = max(spec.out_channels * channels // spec.in_channels, 1)
    out = max(out // groups, 1) * groups
    if channels % groups:
        raise ConvSpecError(f"groups={groups} does not divide {channels} channels.")
    return spec.replace(in_channels=channels, out_channels=out, groups=groups)


def members(spec: ConvSpec, over: str, sizes: Sequence[int] | None = None) -> dict[int, ConvSpec]:
    """The problems of a sweep by size, ascending, each of which has a result.

    Parameters
    ----------
    spec : ConvSpec
        Is among the members if its own size is a single number.
    over : {"kernel", "channels"}
    sizes : sequence of int, optional
        Those of :data:`KERNELS` or :data:`CHANNELS` if not given, as far as they make sense, and
        the problem's own in place of what is within a tenth of it.

    Raises
    ------
    ConvSpecError
        For an unknown ``over``, and for sizes that are given and cannot be.
    """
    if over not in OVER:
        raise ConvSpecError(f"over={over!r} is not known; choose one of {', '.join(OVER)}.")
    usual = KERNELS[spec.ndim] if over == "kernel" else CHANNELS
    asked = sizes if sizes is not None else _beside(own_size(spec, over), usual)
    is_list = isinstance(asked, (list, tuple, range))
    if not is_list or not all(isinstance(size, int) and size >= 1 for size in asked) or not asked:
        raise ConvSpecError(f"sizes={asked!r} must be a list of whole numbers of at least 1.")
    found = {}
    for size in sorted(set(asked)):
        try:
            member = with_kernel(spec, size) if over == "kernel" else with_channels(spec, size)
        except ConvSpecError:
            if sizes is not None:
                raise
            continue
        huge = sizes is None and member.flops > LARGEST * max(spec.flops, 1e6)
        if member.is_empty or min(member.out_size) < 1 or not _borders_fit(member) or huge:
            if sizes is not None:
                raise ConvSpecError(f"{OVER[over]} {size} leaves nothing to compute in {spec}.")
            continue
        found[size] = member
    return found


def _beside(own: int | None, usual: Sequence[int]) -> tuple[int, ...]:
    """A problem's own size among the usual ones, of which those that nearly equal it give way."""
    if own is None:
        return tuple(usual)
    return (own, *(size for size in usual if max(size, own) > 1.1 * min(size, own)))


def own_size(spec: ConvSpec, over: str) -> int | None:
    """Where a problem stands in its own sweep, None for a kernel of several sizes."""
    if over == "channels":
        return spec.in_channels
    sizes = {k for k in spec.kernel_size if k > 1} or {1}
    return sizes.pop() if len(sizes) == 1 else None


def _borders_fit(spec: ConvSpec) -> bool:
    """Whether the padding stays within what the pad mode can continue."""
    if spec.pad_mode in ("zeros", "replicate"):
        return True
    less = 1 if spec.pad_mode == "reflect" else 0
    return all(
        max(padding) <= n - less for padding, n in zip(spec.padding, spec.in_size, strict=True)
    )


# -------------------------------------------------------------------- what a sweep finds


@dataclass(frozen=True, slots=True)
class Time:
    """What an algorithm takes at one size.

    Attributes
    ----------
    seconds : float or None
        Measured.
    predicted : float or None
        By the cost model.
    label : str
        Lowering and solver.
    """

    seconds: float | None = None
    predicted: float | None = None
    label: str = ""

    def by(self, which: str) -> float | None:
        """The time of one kind: ``"seconds"`` or ``"predicted"``."""
        return self.seconds if which == "seconds" else self.predicted


@dataclass(frozen=True, slots=True)
class Crossover:
    """Between two neighbouring sizes the fastest algorithm changes.

    Attributes
    ----------
    before, after : str
        The fastest at the smaller size, and at the larger one.
    smaller, larger : int
    at : float
        Where the two curves meet, straight lines between the points on logarithmic scales; in the
        middle where one of the two algorithms has no time at one of the sizes.
    """

    before: str
    after: str
    smaller: int
    larger: int
    at: float


@dataclass(slots=True)
class Sweep:
    """Times by size: ``curves[algorithm][size]``, of what could run.

    Attributes
    ----------
    name : str
        As the user spells it.
    over : str
        What grows, a key of :data:`OVER`.
    specs : mapping of int to ConvSpec
        The members, ascending.
    curves : mapping of algorithm to mapping of size to Time
        In the order of :data:`convjit.dispatch.FAMILIES`, then others.
    failures : list of str
    """

    name: str
    over: str
    specs: Mapping[int, ConvSpec]
    curves: dict[str, dict[int, Time]]
    failures: list[str] = field(default_factory=list)

    def at(self, size: int) -> dict[str, Time]:
        """Times by algorithm at one size."""
        return {name: curve[size] for name, curve in self.curves.items() if size in curve}

    @property
    def sizes(self) -> list[int]:
        """The sizes that something computes."""
        return [size for size in self.specs if self.at(size)]

    def best(self, size: int, which: str) -> str | None:
        """The algorithm of the least time of one kind, None where there is no such time."""
        times = {name: time.by(which) for name, time in self.at(size).items()}
        known = {name: time for name, time in times.items() if time is not None}
        return min(known, key=lambda name: known[name], default=None)

    def fastest(self, size: int) -> str | None:
        """The algorithm that was measured to be the fastest."""
        return self.best(size, "seconds")

    def chosen(self, size: int) -> str | None:
        """The algorithm that the cost model chooses."""
        return self.best(size, "predicted")

    def regret(self, size: int) -> float:
        """Measured time of the choice over that of the fastest; nan where either is unknown."""
        times = self.at(size)
        chosen, fastest = self.chosen(size), self.fastest(size)
        if chosen is None or fastest is None:
            return math.nan
        return (times[chosen].seconds or math.nan) / (times[fastest].seconds or math.nan)

    @property
    def which(self) -> str:
        """The kind of times to speak of: measured ones if two sizes or more have them."""
        measured = [size for size in self.sizes if self.fastest(size) is not None]
        return "seconds" if len(measured) > 1 else "predicted"

    def crossovers(self, which: str = "") -> list[Crossover]:
        """Where the fastest algorithm changes, by size, in times of one kind."""
        which = which or self.which
        found = []
        sizes = [size for size in self.sizes if self.best(size, which) is not None]
        for smaller, larger in itertools.pairwise(sizes):
            before, after = self.best(smaller, which), self.best(larger, which)
            if before is not None and after is not None and before != after:
                at = self._meet(before, after, smaller, larger, which)
                found.append(Crossover(before, after, smaller, larger, at))
        return found

    def _meet(self, before: str, after: str, smaller: int, larger: int, which: str) -> float:
        def gap(size: int) -> float | None:
            first, second = (self.curves[name].get(size, Time()).by(which) for name in both)
            return math.log(second / first) if first and second else None

        both = (before, after)
        left, right = gap(smaller), gap(larger)
        part = 0.5
        if left is not None and right is not None and left != right:
            part = left / (left - right)  # left >= 0 >= right
        return float(smaller ** (1 - part) * larger**part)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "over": self.over,
            "sizes": {
                str(size): {
                    "spec": str(self.specs[size]),
                    "fastest": self.fastest(size),
                    "chosen": self.chosen(size),
                    "regret": None if math.isnan(self.regret(size)) else self.regret(size),
                    "algorithms": {
                        name: {
                            "label": time.label,
                            "seconds": time.seconds,
                            "predicted": time.predicted,
                        }
                        for name, time in self.at(size).items()
                    },
                }
                for size in self.sizes
            },
            "crossovers": [
                {"before": c.before, "after": c.after, "sizes": [c.smaller, c.larger], "at": c.at}
                for c in self.crossovers()
            ],
            "failures": self.failures,
        }


def best_by_family(spec: ConvSpec, request: Request) -> dict[str, Candidate]:
    """The candidate of least predicted time of every family of algorithms that could run."""
    found: dict[str, Candidate] = {}
    for candidate in dispatch.candidates(spec, request):  # by predicted time
        if candidate.refusal is None:
            found.setdefault(candidate.algorithm, candidate)
    return {name: found[name] for name in in_order(found)}


def in_order(names: Mapping[str, Any] | set[str]) -> list[str]:
    """Algorithms in the declared order, strangers last."""
    known = [name for name in FAMILIES if name in names]
    return known + sorted(set(names) - set(known))


def check_seconds(**given: object) -> None:
    """Raise unless each is a number of seconds, naming it."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}={value!r} is not a number of seconds; give one such as 10.")
        if not value >= 0:
            raise ConvSpecError(f"{name}={value!r} must be at least 0: seconds.")


def predicted(
    spec: ConvSpec, request: Request, over: str, sizes: Sequence[int] | None = None
) -> Sweep:
    """The sweep of a problem as the cost model sees it.

    Parameters are those of :func:`members`; a forced algorithm in the request is set aside, for the
    sweep is of them all.
    """
    specs = members(spec, over, sizes)
    request = replace(request, algorithm=None)
    curves: dict[str, dict[int, Time]] = {}
    for size, member in specs.items():
        for name, candidate in best_by_family(member, request).items():
            time = Time(None, candidate.total(request.packed), candidate.label)
            curves.setdefault(name, {})[size] = time
    return Sweep(str(spec), over, specs, {name: curves[name] for name in in_order(curves)})

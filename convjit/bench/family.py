"""Families of layers: one layer whose kernel grows, timed by each family of algorithms.

A sweep shows where one algorithm overtakes another, and whether the cost model knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from convjit import layout as layouts
from convjit import precision
from convjit.algorithms.geometry import extent, same_padding, transposed_size
from convjit.bench import runner, verify
from convjit.bench.cases import Case, output_padding
from convjit.bench.report import ratio_text
from convjit.bench.runner import OURS, Report, Row, Timing
from convjit.dispatch import FAMILIES
from convjit.errors import ConvSpecError
from convjit.spec import ConvSpec, Direction
from convjit.tables import markdown, milliseconds, table

# Kernel sizes to sweep by the number of spatial axes, where nobody names them.
KERNELS = {
    1: (3, 5, 9, 17, 33, 65, 129, 257, 513, 1025),
    2: (1, 3, 5, 7, 9, 11, 15, 21, 31),
    3: (1, 3, 5, 7, 9),
}
_WORDS = ("channels", "out", "size", "batch", "groups", "stride", "dilation", "dtype", "layout")
_FORM = "write it as channels=64,size=56 or as a spec"


@dataclass(frozen=True, slots=True)
class Family:
    """A layer by kernel size.

    Attributes
    ----------
    name : str
        As the user spells it.
    specs : mapping of int to ConvSpec
        By kernel size, ascending.
    """

    name: str
    specs: dict[int, ConvSpec]

    def cases(self) -> Iterator[Case]:
        """Its layers, for convjit to choose an algorithm for each."""
        for spec in self.specs.values():
            yield Case("specs", "layer", str(spec))

    def cases_by_algorithm(self) -> Iterator[Case]:
        """Its layers, each by every family of algorithms."""
        for spec in self.specs.values():
            for algorithm in FAMILIES:
                yield Case(self.name, "layer", str(spec), algorithm=algorithm)


# -------------------------------------------------------------------- from the command line


def parse(text: str, kernels: Sequence[int] | None = None) -> Family:
    """A family from ``channels=64,size=56`` or from a spec.

    Of the words, ``channels`` and ``size`` (``56`` for an image of 56x56, ``56x80``, ``1000x`` for
    a signal, ``8x56x56``) are needed; ``out`` is ``channels`` unless it is given.  Padding is
    "same".  A spec keeps its padding where that is none; else its result keeps its size.

    Raises
    ------
    ConvSpecError
        Naming what is not understood.
    """
    in_words = "=" in text.partition("_")[0]
    spec = _spec_of_words(text) if in_words else ConvSpec.parse(text)
    sizes = sorted(set(kernels or KERNELS[spec.ndim]))
    if sizes[0] < 1:
        raise ConvSpecError(f"a kernel of {sizes[0]} taps is none; give sizes of at least 1.")
    family = Family(text, {k: resized(spec, k, same=in_words) for k in sizes})
    if spec.direction in (Direction.INPUT_GRAD, Direction.WEIGHT_GRAD):
        raise ConvSpecError(f"{spec}: families are of the forward and transposed directions.")
    for member in family.specs.values():
        verify.check_supported(member)
        if member.is_empty or min(member.out_size) < 1:
            raise ConvSpecError(f"family {text!r} has no result with a kernel as in {member}.")
    return family


def _spec_of_words(text: str) -> ConvSpec:
    given: dict[str, str] = {}
    for word in text.split(","):
        name, sign, value = word.partition("=")
        if not sign or not value or name not in _WORDS or name in given:
            raise ConvSpecError(
                f"family {text!r} is not understood at {word!r}; {_FORM} (the words are "
                f"{', '.join(_WORDS)}, each at most once)."
            )
        given[name] = value
    missing = [name for name in ("channels", "size") if name not in given]
    if missing:
        raise ConvSpecError(f"family {text!r} does not say {' and '.join(missing)}; {_FORM}.")
    dtype = given.get("dtype", "float32")
    dtype = precision.DTYPES.get(dtype, dtype)
    numbers = {
        name: _number(text, name, given.get(name, "1"))
        for name in ("batch", "channels", "groups", "stride", "dilation")
    }
    channels, groups = numbers["channels"], numbers["groups"]
    out = _number(text, "out", given.get("out", given["channels"]))
    size = tuple(_number(text, "size", part) for part in given["size"].split("x") if part)
    size = size * 2 if "x" not in given["size"] else size
    if not 1 <= len(size) <= 3:
        raise ConvSpecError(f"family {text!r}: size is 1000x, 56, 56x80 or 8x56x56.")
    layout = given.get("layout", layouts.CHANNELS_FIRST[len(size)])
    if layout not in (layouts.CHANNELS_FIRST[len(size)], layouts.CHANNELS_LAST[len(size)]):
        raise ConvSpecError(
            f"family {text!r}: layout is {layouts.CHANNELS_FIRST[len(size)]} or "
            f"{layouts.CHANNELS_LAST[len(size)]}, not {layout}."
        )
    if channels % groups or out % groups:
        raise ConvSpecError(f"family {text!r}: groups must divide channels and out.")
    return ConvSpec.forward(
        layouts.data_shape(layout, numbers["batch"], channels, size),
        (out, channels // groups, *(1 for _ in size)), dtype=dtype, layout=layout,
        stride=numbers["stride"], dilation=numbers["dilation"], groups=groups,
    )  # fmt: skip


def _number(text: str, name: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ConvSpecError(f"family {text!r}: {name}={value} is not a whole number of at least 1.")
    return int(value)


def resized(spec: ConvSpec, kernel: int, *, same: bool = False) -> ConvSpec:
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
            spec.out_size, sizes, spec.stride, padding, spec.dilation, output_padding(spec),
            strict=True,
        )
    )  # fmt: skip
    return changed.replace(in_size=size)


# -------------------------------------------------------------------- what a sweep finds


@dataclass(frozen=True, slots=True)
class Crossover:
    """Between two neighbouring kernel sizes the fastest algorithm changes.

    Attributes
    ----------
    before, after : str
        The fastest at the smaller kernel, and at the larger one.
    smaller, larger : int
    at : float
        Where the two curves meet, straight lines between the points on logarithmic scales; in the
        middle where one of the two algorithms has no time at one of the kernels.
    """

    before: str
    after: str
    smaller: int
    larger: int
    at: float


@dataclass(slots=True)
class Sweep:
    """A family's times: ``curves[algorithm][kernel]``, of what could run.

    Attributes
    ----------
    family : Family
    curves : mapping of algorithm to mapping of kernel size to Timing
        In the order of :data:`convjit.dispatch.FAMILIES`.
    failures : list of str
    """

    family: Family
    curves: dict[str, dict[int, Timing]]
    failures: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, family: Family, report: Report) -> Sweep:
        """The sweep in the rows of :meth:`Family.cases_by_algorithm`."""
        kernels = {str(spec): kernel for kernel, spec in family.specs.items()}
        curves: dict[str, dict[int, Timing]] = {name: {} for name in FAMILIES}
        for row in report.rows:
            timing = row.timings[OURS]
            if timing.seconds is not None:
                curves[row.case.algorithm][kernels[row.case.spec]] = timing
        ran = {name: curve for name, curve in curves.items() if curve}
        return cls(family, ran, report.failures)

    def at(self, kernel: int) -> dict[str, Timing]:
        """Timings by algorithm of one kernel size."""
        return {name: curve[kernel] for name, curve in self.curves.items() if kernel in curve}

    @property
    def kernels(self) -> list[int]:
        """The kernel sizes that something ran."""
        return [kernel for kernel in self.family.specs if self.at(kernel)]

    def fastest(self, kernel: int) -> str:
        """The algorithm that was measured to be the fastest."""
        timings = self.at(kernel)
        return min(timings, key=lambda name: timings[name].seconds or math.inf)

    def chosen(self, kernel: int) -> str:
        """The algorithm that the cost model chooses."""
        timings = self.at(kernel)
        return min(timings, key=lambda name: timings[name].predicted or math.inf)

    def regret(self, kernel: int) -> float:
        """Time of the choice over time of the fastest."""
        timings = self.at(kernel)
        chosen, fastest = timings[self.chosen(kernel)], timings[self.fastest(kernel)]
        return (chosen.seconds or math.nan) / (fastest.seconds or math.nan)

    def crossovers(self) -> list[Crossover]:
        """Where the fastest algorithm changes, by kernel size."""
        found = []
        for smaller, larger in zip(self.kernels, self.kernels[1:], strict=False):
            before, after = self.fastest(smaller), self.fastest(larger)
            if before != after:
                at = self._meet(before, after, smaller, larger)
                found.append(Crossover(before, after, smaller, larger, at))
        return found

    def _meet(self, before: str, after: str, smaller: int, larger: int) -> float:
        def gap(kernel: int) -> float | None:
            first, second = (self.curves[name].get(kernel) for name in (before, after))
            if first is None or second is None or not first.seconds or not second.seconds:
                return None
            return math.log(second.seconds / first.seconds)

        left, right = gap(smaller), gap(larger)
        part = 0.5
        if left is not None and right is not None and left != right:
            part = left / (left - right)  # left >= 0 >= right
        return float(smaller ** (1 - part) * larger**part)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "family": self.family.name,
            "kernels": {
                str(kernel): {
                    "spec": str(self.family.specs[kernel]),
                    "fastest": self.fastest(kernel),
                    "chosen": self.chosen(kernel),
                    "regret": self.regret(kernel),
                    "algorithms": {
                        name: {
                            "label": timing.label,
                            "seconds": timing.seconds,
                            "predicted": timing.predicted,
                        }
                        for name, timing in self.at(kernel).items()
                    },
                }
                for kernel in self.kernels
            },
            "crossovers": [
                {"before": c.before, "after": c.after, "kernels": [c.smaller, c.larger], "at": c.at}
                for c in self.crossovers()
            ],
            "failures": self.failures,
        }


def sweep(
    family: Family,
    *,
    threads: int,
    seconds: float = 0.12,
    rounds: int = 3,
    plain: bool = False,
    told: Callable[[Row], None] | None = None,
) -> Sweep:
    """Time a family by every algorithm, in convjit's own process (as :func:`runner.run` does)."""
    report = runner.run(
        family.cases_by_algorithm(), [OURS], threads=threads, seconds=seconds, rounds=rounds,
        plain=plain, told=told,
    )  # fmt: skip
    return Sweep.of(family, report)


def text(found: Sweep, *, as_markdown: bool = False) -> str:
    """The times by kernel size, and a line for each crossover."""
    names = list(found.curves)
    columns = ["kernel", *(f">{name}" for name in names), "fastest", "chosen", ">regret"]
    rows = []
    for kernel in found.kernels:
        timings = found.at(kernel)
        times = [milliseconds(timings[n].seconds if n in timings else None) for n in names]
        size = "x".join(map(str, found.family.specs[kernel].kernel_size))
        rows.append(
            [size, *times, found.fastest(kernel), found.chosen(kernel),
             ratio_text(found.regret(kernel))]
        )  # fmt: skip
    drawn = markdown(columns, rows) if as_markdown else table(columns, rows)
    lines = [
        f"from kernel size {c.larger} on {c.after} is faster than {c.before} (they meet at "
        f"{c.at:.1f})"
        for c in found.crossovers()
    ]
    lines += [f"failed, {failure}" for failure in found.failures]
    if as_markdown:
        lines = [f"- {line}" for line in lines]
    parts = [f"family {found.family.name}, milliseconds:", drawn, "\n".join(lines)]
    return "\n\n".join(part for part in parts if part)

"""Families of layers: one layer whose kernel grows, timed by each family of algorithms.

A sweep shows where one algorithm overtakes another, and whether the cost model knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from convjit import layout as layouts
from convjit import precision
from convjit.bench import runner, verify
from convjit.bench.cases import Case
from convjit.bench.report import ratio_text
from convjit.bench.runner import OURS, Report, Row
from convjit.dispatch import FAMILIES
from convjit.errors import ConvSpecError
from convjit.spec import ConvSpec, Direction
from convjit.sweeps import KERNELS, Sweep, Time, with_kernel
from convjit.tables import markdown, milliseconds, table

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
    family = Family(text, {k: with_kernel(spec, k, same=in_words) for k in sizes})
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


# -------------------------------------------------------------------- what is found


def sweep_of(family: Family, report: Report) -> Sweep:
    """The sweep in the rows of :meth:`Family.cases_by_algorithm`."""
    kernels = {str(spec): kernel for kernel, spec in family.specs.items()}
    curves: dict[str, dict[int, Time]] = {name: {} for name in FAMILIES}
    for row in report.rows:
        timing = row.timings[OURS]
        if timing.seconds is not None:
            time = Time(timing.seconds, timing.predicted, timing.label)
            curves[row.case.algorithm][kernels[row.case.spec]] = time
    ran = {name: curve for name, curve in curves.items() if curve}
    return Sweep(family.name, "kernel", family.specs, ran, report.failures)


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
    return sweep_of(family, report)


def text(found: Sweep, *, as_markdown: bool = False) -> str:
    """The times by kernel size, and a line for each crossover."""
    names = list(found.curves)
    columns = ["kernel", *(f">{name}" for name in names), "fastest", "chosen", ">regret"]
    rows = []
    for kernel in found.sizes:
        by_name = found.at(kernel)
        times = [milliseconds(by_name[n].seconds if n in by_name else None) for n in names]
        size = "x".join(map(str, found.specs[kernel].kernel_size))
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
    parts = [f"family {found.name}, milliseconds:", drawn, "\n".join(lines)]
    return "\n\n".join(part for part in parts if part)

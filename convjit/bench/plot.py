"""Pictures of a benchmark: the roofline of its layers, and families of layers by kernel size.

The roofline model is that of Williams, Waterman and Patterson (2009), "Roofline: an insightful
visual performance model for multicore architectures": a layer that moves one byte for every I
operations cannot run faster than min(peak, I * bandwidth).  Its abscissa is the intensity by
compulsory traffic alone (every operand and the result once), the ordinate the *effective* rate,
operations of the direct algorithm per second, so that algorithms that save arithmetic may pass the
peak, and layers whose data is in a cache the line of memory.

What is drawn is computed by :func:`points` and by :class:`~convjit.sweeps.Sweep`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convjit import precision
from convjit.bench.runner import OURS, Report
from convjit.environment import cpu_name
from convjit.pictures import (
    PANEL,
    PlotError,
    canvas,
    draw_sweep,
    legend,
    look,
    plain_numbers,
    prepare,
    told,
)
from convjit.spec import ConvSpec
from convjit.sweeps import Sweep, in_order

LEVELS = {"l2": "L2", "l3": "L3", "memory": "memory"}  # bandwidths that are drawn

_LARGEST, _SMALLEST = 200.0, 22.0  # areas, in square points, of the marks on the roofline
_NUMBERED = 8  # layers that are told on the roofline
_SIDES = ((9, 6), (9, -6), (-9, 6), (-9, -6), (0, 11), (0, -11), (12, 0), (-12, 0))


# -------------------------------------------------------------------- the data


@dataclass(frozen=True, slots=True)
class Point:
    """A layer on the roofline.

    Attributes
    ----------
    spec : str
    algorithm : str
        The family that computed it.
    dtype : str
    layers : int
        How many layers this is.
    intensity : float
        Operations per byte of compulsory traffic.
    rate : float
        Operations of the direct algorithm per second.
    share : float
        Of the time of all layers together, each as often as it occurs.
    """

    spec: str
    algorithm: str
    dtype: str
    layers: int
    intensity: float
    rate: float
    share: float


def compulsory_bytes(spec: ConvSpec) -> int:
    """Bytes that have to move: each operand read once, the result written once."""
    read = math.prod(spec.lhs_shape) + math.prod(spec.rhs_shape)
    read += spec.result_channels if spec.bias else 0
    written = math.prod(spec.result_shape)
    return (
        read * precision.numpy_dtype(spec.dtype).itemsize
        + written * precision.numpy_dtype(spec.result_dtype).itemsize
    )


def points(report: Report) -> list[Point]:
    """Everything that convjit computed, equal problems of several layers as one point."""
    seconds: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for row in report.rows:
        took = row.seconds(OURS)
        if took and row.case.problem.flops:
            key = (row.case.spec, row.timings[OURS].algorithm)
            seconds.setdefault(key, []).append((took, row.case.count))
    sums = {key: sum(took * count for took, count in found) for key, found in seconds.items()}
    total, made = sum(sums.values()), []
    for (word, algorithm), found in seconds.items():
        spec, layers = ConvSpec.parse(word), sum(count for _, count in found)
        taken = sums[word, algorithm]
        made.append(
            Point(
                word, algorithm, spec.dtype, layers, spec.flops / compulsory_bytes(spec),
                spec.flops * layers / taken, taken / total,
            )
        )  # fmt: skip
    return made


def peaks(report: Report) -> dict[str, float]:
    """Flop/s by dtype, of the dtypes whose peak is known."""
    return {dtype: found["peak"] for dtype, found in report.peak.items() if found["peak"]}


def bandwidths(report: Report) -> dict[str, float]:
    """Byte/s by level, the fastest first."""
    known = report.bandwidth.get("bandwidth", {})
    return {level: known[level] for level in LEVELS if known.get(level)}


def as_dict(report: Report) -> dict[str, Any]:
    """For JSON."""
    return {
        "peaks": peaks(report),
        "bandwidths": bandwidths(report),
        "points": [asdict(point) for point in points(report)],
    }


# -------------------------------------------------------------------- the pictures


def draw(path: Path, report: Report, sweeps: Sequence[Sweep] = ()) -> None:
    """Write the roofline, and below it the sweeps, as the path's suffix says.

    Raises
    ------
    PlotError
        As :func:`~convjit.pictures.prepare`, or if nothing was timed.
    """
    prepare(path)
    shown = [found for found in sweeps if found.curves]
    if not points(report) and not shown:
        raise PlotError(f"{path} was not written: convjit has computed nothing to show.")
    heights = [PANEL] * (bool(points(report)) + len(shown))
    with canvas(path, heights) as axes:
        if points(report):
            _roofline(axes.pop(0), report)
        for axis, found in zip(axes, shown, strict=True):
            draw_sweep(axis, found, found.name, _on(report))


def _on(report: Report) -> str:
    """The machine, for titles."""
    plural = "" if report.threads == 1 else "s"
    return f"{report.threads} thread{plural} of {cpu_name()}"


def _roofline(axis: Any, report: Report) -> None:
    """Roofs of the machine, and a point for each layer."""
    found = points(report)
    by_dtype, by_level = peaks(report), bandwidths(report)
    highest, fastest = max(by_dtype.values(), default=0.0), max(by_level.values(), default=0.0)
    # All points are seen, and the ridges, where the lines of bandwidths meet the peak.
    ridge = highest / fastest if highest and fastest else float("inf")
    low = min([p.intensity / 1.6 for p in found] + [ridge / 2])
    high = max(p.intensity for p in found) * 1.6
    rates = [p.rate / 1e9 for p in found]
    bottom = min([*rates, *(low * width / 1e9 * 2 for width in by_level.values())]) / 1.6
    top = max([*rates, highest / 1e9]) * 1.6
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    for level, width in by_level.items():
        end = min(high, (highest or top * 1e9) / width)
        start = max(low, bottom * 1e9 / width)
        if end <= start:
            continue
        axis.plot([start, end], [start * width / 1e9, end * width / 1e9], color="#888888", lw=1.2)
        place = start * (end / start) ** 0.06
        # A slope in the data; the axes turn it with the line when the figure is laid out.
        axis.text(
            place, place * width / 1e9, f"{LEVELS[level]} {width / 1e9:.3g} GB/s", va="bottom",
            rotation=math.degrees(math.atan(width / 1e9)), rotation_mode="anchor",
            transform_rotates_text=True, color="#555555", fontsize=8.5,
        )  # fmt: skip
    for dtype, peak in by_dtype.items():
        start = min(max(low, peak / fastest), high) if fastest else low
        axis.plot([start, high], [peak / 1e9] * 2, color="#333333", lw=1.4)
        axis.annotate(
            f"{dtype} peak {peak / 1e9:.3g} GFLOP/s", (high, peak / 1e9), (-2, 4),
            textcoords="offset points", ha="right", color="#333333", fontsize=8.5,
        )  # fmt: skip
    largest = max(p.share for p in found)
    for name in in_order({p.algorithm for p in found}):
        mine = [p for p in found if p.algorithm == name]
        colour, marker = look(name)
        axis.scatter(
            [p.intensity for p in mine], [p.rate / 1e9 for p in mine],
            s=[_SMALLEST + (_LARGEST - _SMALLEST) * p.share / largest for p in mine],
            color=colour, marker=marker, alpha=0.8, edgecolors="white", linewidths=0.6, zorder=3,
        )  # fmt: skip
        label = f"{name or 'other'} ({sum(p.layers for p in mine)})"
        axis.scatter([], [], s=45, color=colour, marker=marker, label=label)
    _number_the_longest(axis, found)
    groups = ", ".join(dict.fromkeys(row.case.group for row in report.rows))
    axis.set_title(f"Roofline: {groups}, {_on(report)}")
    axis.set_xlabel("arithmetic intensity (flop / byte of compulsory traffic)")
    axis.set_ylabel("effective rate (GFLOP/s of direct summation)")
    plain_numbers(axis.xaxis)
    plain_numbers(axis.yaxis)
    legend(axis, "Algorithm (layers)")


def _number_the_longest(axis: Any, found: list[Point]) -> None:
    """Numbers beside the points that take the most time, and what they are, under the legend."""
    ranked = sorted(found, key=lambda p: -p.share)[:_NUMBERED]
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()

    def place(p: Point) -> tuple[float, float]:  # in points, of a panel as large as they are
        across = math.log(p.intensity / left) / math.log(right / left)
        return across * 560, math.log(p.rate / 1e9 / bottom) / math.log(top / bottom) * 330

    taken = [place(p) for p in found]

    def room(x: float, y: float) -> float:
        return min(math.hypot(x - a, y - b) for a, b in taken)

    lines = []
    for number, p in enumerate(ranked, 1):
        x, y = place(p)
        dx, dy = max(_SIDES, key=lambda side: min(room(x + side[0], y + side[1]), 14.0))
        taken.append((x + dx, y + dy))
        axis.annotate(
            str(number), (p.intensity, p.rate / 1e9), (dx, dy), textcoords="offset points",
            ha="center", va="center", fontsize=8, color="#222222", zorder=5,
        )  # fmt: skip
        lines.append(f"{number}  {told(ConvSpec.parse(p.spec))}: {100 * p.share:.0f} %")
    axis.text(
        1.02, 0.62, "\n".join(["Share of the time (area of the marks)", *lines]),
        transform=axis.transAxes, va="top", fontsize=8.5, color="#222222", linespacing=1.5,
    )  # fmt: skip

"""Pictures of a benchmark: the roofline of its layers, and families of layers by kernel size.

The roofline model is that of Williams, Waterman and Patterson (2009), "Roofline: an insightful
visual performance model for multicore architectures": a layer that moves one byte for every I
operations cannot run faster than min(peak, I * bandwidth).  Its abscissa is the intensity by
compulsory traffic alone (every operand and the result once), the ordinate the *effective* rate,
operations of the direct algorithm per second, so that algorithms that save arithmetic may pass the
peak, and layers whose data is in a cache the line of memory.

What is drawn is computed by :func:`points` and by :class:`~convjit.bench.family.Sweep`; matplotlib
is imported when a picture is drawn, and draws it without a display.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from convjit import precision
from convjit.bench.family import Sweep
from convjit.bench.runner import OURS, Report
from convjit.dispatch import FAMILIES
from convjit.environment import cpu_name
from convjit.spec import ConvSpec

FORMATS = (".png", ".svg")
LEVELS = {"l2": "L2", "l3": "L3", "memory": "memory"}  # bandwidths that are drawn

# By family of algorithms, the colours of Okabe and Ito (2008), which colour-blind people can tell
# apart, and markers, for prints in black and white.
_LOOKS = {
    "direct": ("#0072B2", "o"), "gemm": ("#E69F00", "s"), "fft": ("#CC79A7", "D"),
    "winograd": ("#009E73", "^"), "depthwise": ("#56B4E9", "v"),
}  # fmt: skip
_OTHER = ("#555555", "P")
_SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same text everywhere
    "font.size": 10.0, "axes.titlesize": 11.0, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True, "legend.frameon": False,
    "svg.hashsalt": "convjit", "svg.fonttype": "path",
}  # fmt: skip
_LARGEST, _SMALLEST = 200.0, 22.0  # areas, in square points, of the marks on the roofline
_NUMBERED = 8  # layers that are told on the roofline
_SIDES = ((9, 6), (9, -6), (-9, 6), (-9, -6), (0, 11), (0, -11), (12, 0), (-12, 0))


class PlotError(Exception):
    """No picture can be drawn; the message says why."""


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


def prepare(path: Path) -> None:
    """Complain before anything is timed.

    Raises
    ------
    PlotError
        If matplotlib is not installed, or no picture could be written to the path.
    """
    if path.suffix.lower() not in FORMATS:
        raise PlotError(f"{path} is not the name of a picture; end it with {' or '.join(FORMATS)}.")
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PlotError(f"{path} cannot be written: {folder} is not a directory to write in.")
    if path.is_dir():
        raise PlotError(f"{path} cannot be written: it is a directory.")
    if find_spec("matplotlib") is None:
        raise PlotError("pictures are drawn by matplotlib, which is missing: install convjit[plot]")


def draw(path: Path, report: Report, sweeps: Sequence[Sweep] = ()) -> None:
    """Write the roofline, and below it the sweeps, as the path's suffix says.

    Raises
    ------
    PlotError
        As :func:`prepare`, if nothing was timed, or if the file cannot be written.
    """
    prepare(path)
    shown = [found for found in sweeps if found.curves]
    if not points(report) and not shown:
        raise PlotError(f"{path} was not written: convjit has computed nothing to show.")
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A user's own style must not change the picture.
    with style.context(["default", _SETTINGS]):
        count = bool(points(report)) + len(shown)
        figure = Figure(figsize=(11.0, 5.6 * count), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(count, 1, squeeze=False)[:, 0])
        if points(report):
            _roofline(axes.pop(0), report)
        for axis, found in zip(axes, shown, strict=True):
            _sweep(axis, found, _on(report))
        # No date and no version, so that equal data gives equal files.
        metadata = {"Software": None} if path.suffix.lower() == ".png" else {"Date": None}
        try:
            figure.savefig(path, dpi=150, metadata=metadata)
        except OSError as error:
            raise PlotError(f"{path} cannot be written: {error}") from error


def _look(algorithm: str) -> tuple[str, str]:
    return _LOOKS.get(algorithm, _OTHER)


def _by_algorithm(names: set[str]) -> list[str]:
    """Algorithms in the declared order, strangers last."""
    known = [name for name in FAMILIES if name in names]
    return known + sorted(names - set(known))


def _plain_numbers(axis: Any, ticks: Sequence[float] | None = None) -> None:
    """Ticks written as 0.1 and 100, not as powers: at ``ticks``, or at 1, 2, 5, 10 and so on."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    steps = (1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
    axis.set_major_locator(LogLocator(subs=steps) if ticks is None else FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())


def _legend(axis: Any, title: str) -> None:
    """At the panel's right, where it covers nothing."""
    axis.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.02), title=title, title_fontsize=10,
        alignment="left", labelspacing=0.7,
    )  # fmt: skip


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
    for name in _by_algorithm({p.algorithm for p in found}):
        mine = [p for p in found if p.algorithm == name]
        colour, marker = _look(name)
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
    _plain_numbers(axis.xaxis)
    _plain_numbers(axis.yaxis)
    _legend(axis, "Algorithm (layers)")


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


def told(spec: ConvSpec) -> str:
    """A problem in a few words: ``3x3, 64 to 64 on 56x56, stride 2``."""

    def sizes(values: tuple[int, ...]) -> str:
        return "x".join(map(str, values))

    words = sizes(spec.kernel_size)
    if spec.in_channels * spec.out_channels > 1:
        channels = (spec.in_channels, spec.out_channels)
        first, second = reversed(channels) if spec.computes_input else channels
        words += f", {first} to {second}"
    words += " on " + sizes(spec.out_size if spec.computes_input else spec.in_size)
    if spec.batch > 1:
        words += f", batch {spec.batch}"
    for name, values in (("stride", spec.stride), ("dilation", spec.dilation)):
        if set(values) != {1}:
            words += f", {name} {values[0] if len(set(values)) == 1 else sizes(values)}"
    if spec.groups > 1:
        words += f", {spec.groups} groups"
    if spec.computes_input:
        words += ", transposed"
    return words if spec.dtype == "float32" else f"{words}, {spec.dtype}"


def _sweep(axis: Any, found: Sweep, machine: str) -> None:
    """Time over kernel size: measured with markers, predicted thin, crossovers as lines."""
    axis.set(xscale="log", yscale="log")
    for name, curve in found.curves.items():
        colour, marker = _look(name)
        kernels = list(curve)
        axis.plot(
            kernels, [(curve[k].seconds or 0.0) * 1e3 for k in kernels], color=colour,
            marker=marker, ms=6, mec="white", mew=0.6, lw=2.0, label=name, zorder=3,
        )  # fmt: skip
        predicted = [(k, curve[k].predicted) for k in kernels]
        axis.plot(
            [k for k, p in predicted if p], [p * 1e3 for _, p in predicted if p],
            color=colour, lw=0.9, ls=(0, (4, 2)), zorder=2,
        )  # fmt: skip
    kernels = found.kernels
    chosen = [(k, found.at(k)[found.chosen(k)].seconds) for k in kernels]
    axis.plot(
        [k for k, _ in chosen], [(s or 0.0) * 1e3 for _, s in chosen], ls="none", marker="o",
        ms=12, mfc="none", mec="#333333", mew=1.1, label="convjit's choice", zorder=4,
    )  # fmt: skip
    axis.plot([], [], color="#555555", lw=0.9, ls=(0, (4, 2)), label="predicted")
    for crossing in found.crossovers():
        axis.axvline(crossing.at, color="#999999", lw=1.0, ls=":", zorder=1)
        axis.annotate(
            f"{crossing.before} | {crossing.after}", (crossing.at, 1.0),
            xycoords=("data", "axes fraction"), xytext=(0, -4), textcoords="offset points",
            rotation=90, ha="center", va="top", color="#333333", fontsize=8.5, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axis.set_title(f"Time by kernel size: {found.family.name}, {machine}")
    axis.set_xlabel("kernel size (taps along each axis)")
    axis.set_ylabel("time of a call (ms)")
    _plain_numbers(axis.xaxis, kernels)
    _plain_numbers(axis.yaxis)
    _legend(axis, "Algorithm")

"""Pictures of choices: the ranking of candidates, and sweeps with their crossovers.

Also what every picture of convjit shares: looks, legends, files.  matplotlib is imported when a
picture is drawn, and draws it without a display.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from convjit.dispatch import Candidate
from convjit.errors import ConvSpecError
from convjit.spec import ConvSpec
from convjit.sweeps import OVER, Sweep
from convjit.tables import milliseconds, size

FORMATS = (".png", ".svg")
WIDTH, PANEL = 11.0, 5.6  # inches: of a picture, and the height of a panel

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


class PlotError(ConvSpecError):
    """No picture can be drawn; the message says why."""


# -------------------------------------------------------------------- what pictures share


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


@contextmanager
def canvas(path: Path, heights: Sequence[float]) -> Iterator[list[Any]]:
    """Axes below each other to draw on; the picture is written when the block ends.

    Parameters
    ----------
    path : Path
        Its suffix says the format.
    heights : sequence of float
        Inches, of each panel.

    Raises
    ------
    PlotError
        As :func:`prepare`, or if the file cannot be written.
    """
    prepare(path)
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A user's own style must not change the picture.
    with style.context(["default", _SETTINGS]):
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(
            len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        yield list(grid[:, 0])
        # No date and no version, so that equal data gives equal files.
        metadata = {"Software": None} if path.suffix.lower() == ".png" else {"Date": None}
        try:
            figure.savefig(path, dpi=150, metadata=metadata)
        except OSError as error:
            raise PlotError(f"{path} cannot be written: {error}") from error


def look(algorithm: str) -> tuple[str, str]:
    """Colour and marker of a family of algorithms."""
    return _LOOKS.get(algorithm, _OTHER)


def plain_numbers(axis: Any, ticks: Sequence[float] | None = None) -> None:
    """Ticks written as 0.1 and 100, not as powers: at ``ticks``, or at 1, 2, 5, 10 and so on."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    steps = (1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
    axis.set_major_locator(LogLocator(subs=steps) if ticks is None else FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())


def legend(axis: Any, title: str, **options: Any) -> None:
    """At the panel's right, where it covers nothing."""
    axis.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.02), title=title, title_fontsize=10,
        alignment="left", labelspacing=0.7, **options,
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


# -------------------------------------------------------------------- the ranking


def ranking_height(rows: int) -> float:
    """Inches that the ranking of so many candidates needs."""
    return 1.3 + 0.34 * rows


def draw_ranking(
    axis: Any,
    candidates: Sequence[Candidate],
    seconds: Callable[[Candidate], tuple[float, float | None]],
    title: str,
) -> None:
    """Bars of predicted times, the choice on top, with measured times as marks.

    Parameters
    ----------
    axis : matplotlib axes
    candidates : sequence of Candidate
        Each with a prediction; refused ones are pale, with the reason beside them.
    seconds : callable
        (predicted, measured or None) of a candidate.
    title : str
    """
    places = list(range(len(candidates)))[::-1]
    times = [seconds(c) for c in candidates]
    known = [t for pair in times for t in pair if t]
    low, high = min(known) * 1e3, max(known) * 1e3
    left = low / (high / low) ** 0.12 / 1.6
    axis.set(xscale="log", xlim=(left, high * 1.15), ylim=(-0.7, len(candidates) - 0.3))
    any_measured = False
    for place, c, (predicted, measured) in zip(places, candidates, times, strict=True):
        colour, _ = look(c.algorithm)
        ran = c.refusal is None
        axis.barh(
            place, predicted * 1e3 - left, left=left, height=0.62, color=colour,
            alpha=1.0 if ran and measured is None else 0.35 if ran else 0.15, lw=0,
        )  # fmt: skip
        if measured is not None:
            any_measured = True
            axis.plot(
                [measured * 1e3] * 2, [place - 0.37, place + 0.37], color="#222222", lw=2.4,
                solid_capstyle="butt", zorder=3,
            )  # fmt: skip
        words = f"{milliseconds(predicted if measured is None else measured)} ms"
        words += f", {size(c.workspace)}" if c.workspace else ""
        words += f", ±{c.error_bound:.0e}" if c.error_bound is not None else ""
        if c.refusal is not None:
            words = "ruled out: " + _shortened(c.refusal.reason, 34)
        axis.annotate(
            words, (1.0, place), xycoords=("axes fraction", "data"), xytext=(8, 0),
            textcoords="offset points", va="center", fontsize=8.5,
            color="#222222" if ran else "#777777",
        )  # fmt: skip
    axis.set_yticks(places, [c.label for c in candidates], fontsize=9)
    for label, c in zip(axis.get_yticklabels(), candidates, strict=True):
        label.set_color("#222222" if c.refusal is None else "#777777")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)
    plain_numbers(axis.xaxis)
    bars = "bars predicted, black marks measured" if any_measured else "predicted"
    axis.set_xlabel(f"time of a call (ms; {bars})")
    axis.annotate(
        "time, workspace, error bound", (1.0, 0.0), xycoords="axes fraction", xytext=(8, -7),
        textcoords="offset points", va="top", fontsize=8.5, color="#777777",
    )  # fmt: skip
    axis.set_title(title)


def _shortened(sentence: str, length: int) -> str:
    return sentence if len(sentence) <= length else sentence[: length - 1].rstrip() + "…"


# -------------------------------------------------------------------- sweeps


def draw_sweep(axis: Any, found: Sweep, name: str, machine: str) -> None:
    """Time over size: measured with markers, predicted thin (with markers where it is alone)."""
    axis.set(xscale="log", yscale="log")
    which = found.which
    for algorithm, curve in found.curves.items():
        colour, marker = look(algorithm)
        main = _milliseconds({size: time.by(which) for size, time in curve.items()})
        axis.plot(
            list(main), list(main.values()), color=colour, marker=marker, ms=6, mec="white",
            mew=0.6, lw=2.0, label=algorithm if main else None, zorder=3,
        )  # fmt: skip
        if which == "seconds":
            thin = _milliseconds({size: time.predicted for size, time in curve.items()})
            axis.plot(
                list(thin), list(thin.values()), color=colour, lw=0.9, ls=(0, (4, 2)), zorder=2
            )
    _mark_the_choice(axis, found, which)
    if which == "seconds":
        axis.plot([], [], color="#555555", lw=0.9, ls=(0, (4, 2)), label="predicted")
    for crossing in found.crossovers():
        axis.axvline(crossing.at, color="#999999", lw=1.0, ls=":", zorder=1)
        axis.annotate(
            f"{crossing.before} | {crossing.after}", (crossing.at, 1.0),
            xycoords=("data", "axes fraction"), xytext=(0, -4), textcoords="offset points",
            rotation=90, ha="center", va="top", color="#333333", fontsize=8.5, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    kind = "Time" if which == "seconds" else "Predicted time"
    axis.set_title(f"{kind} by {OVER[found.over]}: {name}, {machine}")
    along = " (taps along each axis)" if found.over == "kernel" else " of the input"
    axis.set_xlabel(f"{OVER[found.over]}{along}")
    axis.set_ylabel("time of a call (ms)")
    plain_numbers(axis.xaxis, found.sizes)
    plain_numbers(axis.yaxis)
    legend(axis, "Algorithm")


def _mark_the_choice(axis: Any, found: Sweep, which: str) -> None:
    """Rings around what convjit chooses."""
    ringed = {}
    for size_ in found.sizes:
        name = found.chosen(size_)
        if name is not None:
            ringed[size_] = found.curves[name][size_].by(which)
    rings = _milliseconds(ringed)
    axis.plot(
        list(rings), list(rings.values()), ls="none", marker="o", ms=12, mfc="none",
        mec="#333333", mew=1.1, label="convjit's choice", zorder=4,
    )  # fmt: skip


def _milliseconds(seconds: Mapping[int, float | None]) -> dict[int, float]:
    """The known times."""
    return {size_: s * 1e3 for size_, s in seconds.items() if s}

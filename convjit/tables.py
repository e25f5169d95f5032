"""Tables as text, for everything that convjit prints: one look, rich imported when one is drawn."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence

FOLDED = 160  # columns of a table with sentences, where the text does not go to a terminal
UNFOLDED = 1000  # of any other: as wide as it needs


def width(unbounded: int) -> int:
    """Columns to draw in: ``COLUMNS``, the terminal's, else ``unbounded``."""
    if os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty():
        return max(40, shutil.get_terminal_size((unbounded, 24)).columns)
    return unbounded


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    caption: str = "",
    columns_wide: int | None = None,
) -> str:
    """A table as text, without a trailing newline.

    Parameters
    ----------
    columns : sequence of str
        Headings.  ``>`` in front is a column of numbers: aligned to the right, never folded.
        ``~`` is one of sentences, which are folded in a file too.
    rows : iterable of sequences
        Cells; None is an empty one.
    title, caption : str
        One line above and any lines below, not folded into the table.
    columns_wide : int, optional
        Width to draw in instead of :func:`width`.
    """
    import io

    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    cells = [["" if cell is None else escape(str(cell)) for cell in row] for row in rows]
    sentences = any(heading.startswith("~") for heading in columns)
    wide = columns_wide or width(FOLDED if sentences else UNFOLDED)
    names = [heading.lstrip(">~") for heading in columns]
    texts = [[name, *(row[number] for row in cells)] for number, name in enumerate(names)]
    longest = [max(map(len, column)) for column in texts]
    fits = sum(longest) + 3 * (len(names) - 1) <= wide
    # Where not everything fits, gaps are narrower, and names are folded before sentences.
    gap = (0, 1) if fits else (0, 1, 0, 0)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=gap)
    left = wide - sum(longest) - 2 * (len(names) - 1)
    for heading, name, column, most in zip(columns, names, texts, longest, strict=True):
        numbers = heading.startswith(">")
        words = max(len(word) for text in column for word in ("", *text.split()))
        folded_first = sentences and not fits and not heading.startswith((">", "~"))
        drawn.add_column(
            name,
            justify="right" if numbers else "left",
            overflow="fold",
            min_width=most if numbers else None,
            max_width=max(words, most + left) if folded_first else None,
        )
    for row in cells:
        drawn.add_row(*row)
    out = io.StringIO()
    console = Console(file=out, width=wide, color_system=None, legacy_windows=False, emoji=False)
    console.print(drawn, highlight=False)
    body = "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))
    return "\n".join(part for part in (title, body, caption) if part)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same table in Markdown (a heading's ``>`` aligns to the right)."""
    names = [heading.lstrip(">~") for heading in columns]
    rule = ["---:" if heading.startswith(">") else "---" for heading in columns]
    lines = [names, rule]
    for row in rows:
        lines.append(["" if cell is None else str(cell).replace("|", "\\|") for cell in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds with three significant digits, ``-`` for None."""
    if seconds is None:
        return "-"
    value = seconds * 1e3
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def three_digits(value: float) -> str:
    """A number above 0 with three significant digits, ``0.420`` or ``500``."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def size(count: float | None) -> str:
    """Bytes with a binary unit, ``-`` for none."""
    if not count:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def percent(share: float | None) -> str:
    """A share as a percentage, ``-`` for None or an unknown (zero) one."""
    return f"{share * 100:.1f}" if share else "-"

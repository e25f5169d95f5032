"""Tables as text: what is aligned, what is folded, and the units."""

from __future__ import annotations

import pytest

from convjit import tables

COLUMNS = ["name", ">number", "~sentence"]
LONG = "a sentence that is longer than the column has room for, so that it is folded"


def test_numbers_are_aligned_to_the_right_and_none_is_empty() -> None:
    lines = tables.table(["name", ">number"], [("a", 1), ("b", 1000), ("c", None)]).splitlines()
    assert lines[0].split() == ["name", "number"]
    assert lines[2].endswith("     1")
    assert lines[3].endswith("  1000")
    assert lines[4] == "c"


def test_sentences_are_folded_and_numbers_never() -> None:
    text = tables.table(COLUMNS, [("x", 123456789, LONG)], columns_wide=48)
    assert "123456789" in text
    assert LONG not in text
    assert LONG.split()[-1] in text
    assert max(len(line) for line in text.splitlines()) <= 48


def test_where_not_everything_fits_names_are_folded_before_sentences() -> None:
    names = ", ".join(["a.long.name.of.a.solver"] * 3)
    lines = tables.table(["who", "~why"], [(names, LONG[:50])], columns_wide=80).splitlines()
    assert LONG[:50] in lines[2]
    assert [line.split(" ")[0].rstrip(",") for line in lines[2:]] == names.split(", ")


def test_a_table_without_sentences_is_as_wide_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    cell = "conv_" + "x" * 300
    assert cell in tables.table(["spec", ">ms"], [(cell, 1)])


def test_cells_are_text_and_not_markup() -> None:
    assert "[bold]x[/bold] :smile:" in tables.table(["a"], [("[bold]x[/bold] :smile:",)])


def test_title_and_caption_stand_around() -> None:
    lines = tables.table(["a"], [("b",)], title="above", caption="below").splitlines()
    assert lines[0] == "above"
    assert lines[-1] == "below"


def test_markdown_escapes_bars_and_aligns() -> None:
    text = tables.markdown(["a", ">b"], [("x|y", 1), (None, 2)])
    assert text.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |", "|  | 2 |"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (1.2345, "1234"), (0.012345, "12.3"), (0.0012345, "1.23"), (1.2e-5, "0.012")],
)
def test_milliseconds(seconds: float | None, text: str) -> None:
    assert tables.milliseconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "-"), (None, "-"), (640, "640 B"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"),
     (2**31, "2.0 GiB"), (2**41, "2048 GiB")],
)  # fmt: skip
def test_sizes(count: float | None, text: str) -> None:
    assert tables.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(500.0, "500"), (0.42, "0.420"), (12.84, "12.8"), (1234.5, "1234")]
)
def test_three_digits(value: float, text: str) -> None:
    assert tables.three_digits(value) == text


def test_percentages() -> None:
    assert tables.percent(0.1234) == "12.3"
    assert tables.percent(None) == tables.percent(0.0) == "-"

"""Tables on a terminal: columns that do not fit are left out whole, and no value is cut."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from descriptors import in_place_of, terminal
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from netmind_rentgpu.cli.cells import Column
from netmind_rentgpu.cli.output import Results
from netmind_rentgpu.cli.tables import fitting_columns, rendered_table

NOW = datetime(2027, 5, 20, 15, 0, tzinfo=UTC)
COLUMNS = [
    Column("name", "NAME"),
    Column("where", "WHERE", 2),
    Column("count", "COUNT", 1, is_number=True),
    Column("more", "MORE", 3),
    Column("end", "END", 2),
]
# The widths are 6, 5, 5, 4 and 3, with 2 between: 31 in all.
CELLS = [["abcdef", "SE", "7", "m", "e"], ["b", "NO", "12345", "", "end"]]


def lines_of(columns: list[Column], cells: list[list[str]], width: int, *, has_colour: bool = False) -> list[str]:
    text, _ = rendered_table(columns, cells, width=width, has_colour=has_colour)
    assert text.endswith("\n")
    return text.removesuffix("\n").split("\n")


@pytest.mark.parametrize(
    ("width", "kept"),
    [
        (1000, [0, 1, 2, 3, 4]),
        (31, [0, 1, 2, 3, 4]),
        (30, [0, 1, 2, 4]),
        (25, [0, 1, 2, 4]),
        # Of two with the same rank, the later one.
        (24, [0, 1, 2]),
        (20, [0, 1, 2]),
        (19, [0, 2]),
        (13, [0, 2]),
        (12, [0]),
        (1, [0]),
    ],
)
def test_columns_of_the_highest_rank_are_left_out_first_and_those_without_a_rank_never(
    width: int, kept: list[int]
) -> None:
    assert fitting_columns(COLUMNS, CELLS, width) == kept
    text, left_out = rendered_table(COLUMNS, CELLS, width=width, has_colour=False)
    assert left_out == [column for index, column in enumerate(COLUMNS) if index not in kept]
    assert text.split("\n")[0].split() == [COLUMNS[index].title for index in kept]


def test_columns_without_rows_are_as_wide_as_their_titles() -> None:
    assert fitting_columns(COLUMNS, [], 29) == [0, 1, 2, 3, 4]
    assert fitting_columns(COLUMNS, [], 28) == [0, 1, 2, 4]
    assert fitting_columns([], [], 5) == []


def test_table_has_a_line_for_each_row_with_numbers_at_the_right() -> None:
    assert lines_of(COLUMNS, CELLS, 80) == [
        "NAME    WHERE  COUNT  MORE  END",
        "abcdef  SE         7  m     e",
        "b       NO     12345        end",
    ]


def test_value_wider_than_the_terminal_is_never_cut() -> None:
    long = " ".join(["word"] * 500)
    assert lines_of(COLUMNS[:2], [[long, "x"]], 20) == ["NAME", long]
    assert lines_of([Column("a", "A"), Column("b", "B")], [[long, "end"]], 20)[1] == f"{long}  end"


def test_wide_and_combining_characters_take_the_room_that_they_have() -> None:
    columns = [Column("a", "A"), Column("b", "B", 1)]
    cells = [["日本語", "x"], ["e\u0301", "y"], ["abcdef", "z"]]
    assert fitting_columns(columns, cells, 9) == [0, 1]
    assert fitting_columns(columns, cells, 8) == [0]
    lines = lines_of(columns, cells, 9)
    assert lines == ["A       B", "日本語  x", "e\u0301       y", "abcdef  z"]
    assert {cell_len(line) for line in lines} == {9}


@pytest.mark.parametrize(
    "text", ["[red]x[/red]", "[/]", "[link=http://h]x", ":smile:", "\\[b]", "**b**", "<b>", "[1, 'a']"]
)
def test_text_that_looks_like_markup_is_shown_as_it_is(text: str) -> None:
    assert lines_of([Column("a", "[b]A[/b]")], [[text]], 80) == ["[b]A[/b]", text]
    assert lines_of([Column("a", "A")], [[text]], 80, has_colour=True)[1] == text


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x0b", "\x85"])
def test_row_with_a_separator_of_lines_is_one_line(separator: str) -> None:
    text = Column("a", "A").text({"a": f"x{separator}y"}, NOW)
    assert len(lines_of([Column("a", "A")], [[text]], 80)) == 2


def test_heading_is_bold_only_with_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    plain = lines_of(COLUMNS, CELLS, 80)
    coloured = lines_of(COLUMNS, CELLS, 80, has_colour=True)
    assert coloured[0].startswith("\x1b[1mNAME")
    assert coloured[1:] == plain[1:]
    # The caller has decided, and not the environment.
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert lines_of(COLUMNS, CELLS, 80) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert lines_of(COLUMNS, CELLS, 80, has_colour=True) == coloured


words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "M"]), max_size=12)


@given(st.lists(st.tuples(words, words), max_size=4), st.integers(1, 40))
def test_each_row_is_found_whole_in_its_line(rows: list[tuple[str, str]], width: int) -> None:
    columns = [Column("a", "A"), Column("b", "B", 1, is_number=True)]
    cells = [list(row) for row in rows]
    kept = fitting_columns(columns, cells, width)
    lines = lines_of(columns, cells, width)
    assert len(lines) == 1 + len(rows)
    for row, line in zip(rows, lines[1:], strict=True):
        assert line.split() == [row[index] for index in kept if row[index]]
        assert cell_len(line) <= width or kept == [0]


def on_terminal(columns: int, rows: list[dict[str, Any]], *, is_list: bool = True) -> tuple[str, list[str]]:
    """Return the text and the notes of results while stdout is a terminal of some width."""
    written, notes = io.BytesIO(), list[str]()
    results = Results(
        "table", now=lambda: NOW, note=notes.append, has_colour=False, write=lambda data: written.write(data) and None
    )
    stdout = terminal(columns)
    with in_place_of(1, stdout.descriptor):
        if is_list:
            results.rows(rows, COLUMNS)
        else:
            results.value(rows[0], COLUMNS)
    stdout.written()
    return written.getvalue().decode(), notes


def test_list_on_a_terminal_names_the_columns_that_it_leaves_out() -> None:
    rows = [dict(zip(["name", "where", "count", "more", "end"], row, strict=True)) for row in CELLS]
    assert on_terminal(31, rows)[1] == []
    text, notes = on_terminal(24, rows)
    assert text.split("\n")[0] == "NAME    WHERE  COUNT"
    assert notes == ["Left out, because the terminal is too narrow: MORE, END. -o csv has all."]


def test_empty_list_on_a_terminal_is_a_note() -> None:
    assert on_terminal(80, []) == ("", ["There are none."])


def test_thing_on_a_terminal_has_its_fields_side_by_side_with_their_titles() -> None:
    row = {"name": "x" * 60, "count": 4, "more": "[b]"}
    assert on_terminal(20, [row], is_list=False) == (f"NAME   {'x' * 60}\nCOUNT  4\nMORE   [b]\n", [])

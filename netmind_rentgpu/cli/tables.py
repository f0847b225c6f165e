"""Tables on a terminal, by rich: without boxes, never cut, whole columns left out where they do not fit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from netmind_rentgpu.cli.cells import Column

__all__ = ["LiveTable", "fitting_columns", "rendered", "rendered_table", "table_of"]

_BETWEEN = 2


def fitting_columns(columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the indices of the columns that fit side by side; those of the highest rank are left out first."""
    widths = [
        max(cell_len(text) for text in (column.title, *(row[index] for row in cells)))
        for index, column in enumerate(columns)
    ]
    kept = list(range(len(columns)))
    while sum(widths[index] + _BETWEEN for index in kept) - _BETWEEN > width:
        index = max(reversed(kept), key=lambda index: columns[index].rank)
        if columns[index].rank == 0:
            break
        kept.remove(index)
    return kept


def table_of(columns: Sequence[Column], cells: Sequence[Sequence[str]], kept: Sequence[int]) -> Table:
    """Return a table of some columns."""
    table = Table(box=None, pad_edge=False, padding=(0, _BETWEEN, 0, 0), header_style="bold", show_edge=False)
    texts = [_texts([columns[index].title, *(row[index] for row in cells)], columns[index]) for index in kept]
    for column in texts:
        table.add_column(column[0], no_wrap=True, overflow="ignore")
    for row in zip(*(column[1:] for column in texts), strict=True):
        table.add_row(*row)
    return table


def _texts(shown: Sequence[str], column: Column) -> list[Text]:
    """Return a column's title and values as texts that rich does not read as markup, with numbers at the right."""
    # Aligned by spaces, because rich aligns nothing where it must not cut.
    width = max(map(cell_len, shown)) if column.is_number else 0
    return [Text(" " * (width - cell_len(text)) + text) for text in shown]


def rendered_table(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], *, width: int, has_colour: bool
) -> tuple[str, list[Column]]:
    """Return a table as a text for a terminal of some width, and the columns that do not fit."""
    kept = fitting_columns(columns, cells, width)
    left_out = [column for index, column in enumerate(columns) if index not in kept]
    return rendered(table_of(columns, cells, kept), has_colour=has_colour), left_out


def rendered(shown: RenderableType, *, has_colour: bool) -> str:
    """Return a renderable as a text, as wide as it is."""
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=has_colour,
        no_color=not has_colour,
        width=10_000,
        highlight=False,
        legacy_windows=False,
    )
    console.print(shown, crop=False, no_wrap=True)
    # Not by splitlines, which also splits at separators that stand in a text.
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().removesuffix("\n").split("\n"))


class LiveTable:
    """A table on the terminal that is redrawn in its place."""

    def __init__(self, columns: Sequence[Column], *, has_colour: bool) -> None:
        self._columns = columns
        self._console = Console(no_color=not has_colour, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="ellipsis")

    def show(self, cells: Sequence[Sequence[str]], heading: str) -> None:
        """Draw the rows, under a line of text."""
        kept = fitting_columns(self._columns, cells, self._console.width)
        table = table_of(self._columns, cells, kept) if cells else ""
        self._live.update(Group(Text(heading, style="dim", no_wrap=True, overflow="ellipsis"), "", table), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

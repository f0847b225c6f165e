"""Lists that a notebook shows as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, SupportsIndex, TypeVar, cast, overload

from netmind_rentgpu.escaping import escaped

__all__ = ["Table", "html_table", "html_text"]

_MOST_ROWS = 100

Row = TypeVar("Row")


class Table(list[Row]):
    """A list of values with a `to_dict`, which a notebook shows as a table, without secrets."""

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Row: ...
    @overload
    def __getitem__(self, index: slice, /) -> Table[Row]: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> Row | Table[Row]:
        return Table(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)

    def _repr_html_(self) -> str:
        return html_table(self)


def html_table(rows: Sequence[Any]) -> str:
    """Return a table in HTML with a column for each field that some row has, and 100 rows at most."""
    shown = [row.to_dict(json=True) for row in rows[:_MOST_ROWS]]
    columns = list(dict.fromkeys(name for row in shown for name, value in row.items() if value not in (None, [], {})))
    head = "".join(f"<th>{html_text(name)}</th>" for name in columns)
    body = "".join(f"<tr>{_cells(row.get(name) for name in columns)}</tr>" for row in shown)
    more = len(rows) - len(shown)
    rest = f"<p>and {more:,} more</p>" if more else ""
    count = f"<p>{len(rows):,} row{'' if len(rows) == 1 else 's'}</p>" if not rest else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}{count}"


def html_text(value: object) -> str:
    """Return a text in which a page obeys no markup and a terminal no control character."""
    return escape(escaped(str(value)))


def _cells(values: Iterable[Any]) -> str:
    return "".join(f"<td>{html_text(_shown(value))}</td>" for value in values)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(str(item) for item in cast("list[Any]", value)) if isinstance(value, list) else str(value)

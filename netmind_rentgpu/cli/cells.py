"""The columns of tables, and the texts in their cells. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias, cast

import attrs

from netmind_rentgpu.cli.values import shown_moment, shown_money
from netmind_rentgpu.escaping import escaped

__all__ = ["Column", "Row"]

Row: TypeAlias = Mapping[str, Any]
"""The fields of a thing, by their names."""


@attrs.frozen
class Column:
    """A column of a table.

    Attributes:
        name: the field that it shows.
        title: its heading.
        rank: the order in which columns are left out where the terminal is too narrow, the highest first; 0 for never.
        is_number: True to align it at the right.
        show: returns a value's text; None for the usual one. It gets the whole row.
    """

    name: str
    title: str
    rank: int = 0
    is_number: bool = False
    show: Callable[[Row], str] | None = None

    def text(self, row: Row, now: datetime) -> str:
        """Return the text of a row's value, in one line."""
        text = self.show(row) if self.show is not None else _shown(row.get(self.name), now)
        return escaped(text.replace("\n", " ").replace("\t", " "))


def _shown(value: object, now: datetime) -> str:
    """Return a value's text in a table: moments in local time, and nothing for nothing."""
    match value:
        case None:
            text = ""
        case bool():
            text = "yes" if value else "no"
        case datetime():
            text = shown_moment(value, now)
        case Decimal():
            text = shown_money(value, None)
        case list() | tuple():
            text = ", ".join(_shown(item, now) for item in cast("Sequence[object]", value))
        case _:
            text = str(value)
    return text

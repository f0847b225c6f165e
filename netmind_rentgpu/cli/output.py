"""The results of commands on stdout: JSON, CSV, tables. Nothing else is written there."""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, Literal, TypeAlias, cast

from netmind_rentgpu.cli.cells import Column, Row
from netmind_rentgpu.errors import RentGPUError
from netmind_rentgpu.escaping import escaped
from netmind_rentgpu.wire.payload import dump_exactly

__all__ = ["FORMATS", "OutputClosedError", "OutputError", "Results", "write_bytes", "writing_output"]

Format: TypeAlias = Literal["table", "json", "jsonl", "csv"]
FORMATS: Final[tuple[Format, ...]] = ("table", "json", "jsonl", "csv")


class OutputError(OSError):
    """The output could not be written."""


class OutputClosedError(OutputError):
    """The reader of the output has closed it."""


@contextmanager
def writing_output(failure: str) -> Generator[None]:
    """Raise the error of an output in place of one of the system; errors of the client stay as they are.

    Args:
        failure: the beginning of the error's text.

    Raises:
        OutputClosedError: the reader has closed it.
        OutputError: it could not be written.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosedError("the reader of the output has closed it") from error
    except OSError as error:
        if isinstance(error, RentGPUError):
            raise  # a timeout
        raise OutputError(f"{failure}: {error.strerror}") from error


def write_bytes(data: bytes, descriptor: int = 1) -> None:
    """Write all of some bytes to stdout, unbuffered.

    Raises:
        OutputClosedError: the reader has closed it.
        OutputError: it could not be written.
    """
    left = memoryview(data)
    with writing_output("could not write the output"):
        while left:
            try:
                left = left[os.write(descriptor, left) :]
            except BlockingIOError:
                # Another program that shares the output has made it non-blocking.
                time.sleep(0.01)


class Results:
    """The writer of a command's results.

    Attributes:
        format: the form of the results.
    """

    def __init__(
        self,
        wanted: Format,
        *,
        now: Callable[[], datetime],
        note: Callable[[str], None],
        has_colour: bool,
        write: Callable[[bytes], None] = write_bytes,
    ) -> None:
        """Set up.

        Args:
            now: returns the present time in the local time zone.
            note: takes a note for the user, such as that columns do not fit.
            has_colour: True to colour tables.
        """
        self.format: Format = wanted
        self._now = now
        self._note = note
        self._has_colour = has_colour
        self._write = write

    def rows(self, rows: Iterable[Row], columns: Sequence[Column]) -> None:
        """Write a list: an array, a line for each, or a table."""
        found = list(rows)
        match self.format:
            case "json":
                self._json(found)
            case "jsonl":
                self._lines(found)
            case "csv":
                self._csv(found)
            case "table":
                self._table(found, columns)

    def value(self, row: Row, columns: Sequence[Column]) -> None:
        """Write one thing: an object, or a table with a line for each of its fields."""
        match self.format:
            case "json":
                self._json(row)
            case "jsonl":
                self._lines([row])
            case "csv":
                self._csv([row])
            case "table":
                now = self._now()
                texts = [(column.title, column.text(row, now)) for column in columns]
                self._texts([(title, text) for title, text in texts if text])

    def text(self, text: str, row: Row) -> None:
        """Write one thing as a line of text, or as an object."""
        if self.format == "table":
            self._write(f"{escaped(text)}\n".encode("utf-8", "backslashreplace"))
        else:
            self.value(row, ())

    def line(self, text: bytes, row: Row) -> None:
        """Write an item of a list that goes on: a line of bytes as they are, or an object in a line."""
        if self.format == "table":
            self._write(text)
        else:
            self._lines([row])

    def _json(self, value: object) -> None:
        self._write(dump_exactly(value, indented=True) + b"\n")

    def _lines(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._write(dump_exactly(row) + b"\n")

    def _csv(self, rows: Sequence[Row]) -> None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines = [names] if names else []
        lines += [[_csv_text(row.get(name)) for name in names] for row in rows]
        self._write("".join(map(_csv_line, lines)).encode("utf-8", "backslashreplace"))

    def _texts(self, texts: Sequence[tuple[str, str]]) -> None:
        width = max((len(title) for title, _ in texts), default=0)
        is_terminal = _is_terminal()
        lines = (f"{title:{width}}  {text}" if is_terminal else f"{title}\t{text}" for title, text in texts)
        self._write("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))

    def _table(self, rows: Sequence[Row], columns: Sequence[Column]) -> None:
        now = self._now()
        cells = [[column.text(row, now) for column in columns] for row in rows]
        if not _is_terminal():
            lines = [[column.title for column in columns], *cells]
            text = "".join("\t".join(line) + "\n" for line in lines)
            self._write(text.encode("utf-8", "backslashreplace"))
            return
        if not rows:
            self._note("There are none.")
            return
        from netmind_rentgpu.cli.tables import rendered_table

        text, left_out = rendered_table(columns, cells, width=_terminal_width(), has_colour=self._has_colour)
        self._write(text.encode("utf-8", "backslashreplace"))
        if left_out:
            titles = ", ".join(column.title for column in left_out)
            self._note(f"Left out, because the terminal is too narrow: {titles}. -o csv has all.")


def _csv_line(texts: Sequence[str]) -> str:
    line = io.StringIO()
    # Ended as csv ends lines by default, because a text with a carriage return is quoted only then.
    csv.writer(line, lineterminator="\r\n").writerow(texts)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _csv_text(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case datetime() | timedelta() | bool() | Mapping() | list() | tuple():
            return dump_exactly(cast("object", value)).decode().strip('"')
        case Decimal():
            return f"{value:f}"
        case _:
            return str(value)


def _is_terminal() -> bool:
    try:
        return os.isatty(sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    except (OSError, ValueError):
        return False


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80

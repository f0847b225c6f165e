"""Bytes <-> JSON values: the only file that knows orjson."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any, Final, cast

import orjson

__all__ = ["NotJSONError", "TooLargeError", "as_array", "as_object", "dump", "dump_exactly", "parse", "parse_in_slices"]

SLICE: Final = 256 * 1024
"""The most bytes of a list that are parsed between two turns of the event loop, unless a single item is longer."""

LARGEST_OBJECT: Final = 1024 * 1024
"""The most bytes of a value that is no list, or of one item of a list."""

MOST_ITEMS: Final = 100_000
"""The most items of a list."""

MOST_VALUES: Final = 1_000_000
"""The most values of an answer, at any depth. Each takes up to 150 bytes of memory, even if it is short in the answer."""

_STRETCH = 64 * 1024
_MARKS_PER_TURN = 2_000
_LONG_ITEM = f"a list with an item of more than {LARGEST_OBJECT // 1024} KiB"
_BLANKS = b" \t\n\r"
_LIST = re.compile(rb"[ \t\n\r]*+\[")
# The characters up to the next bracket (between the items of the list also up to the next comma), with whole strings.
_WITHIN_ITEM = re.compile(rb'[^][{}"]*+(?:"(?:[^"\\]++|\\.)*+"[^][{}"]*+)*+', re.DOTALL)
_BETWEEN_ITEMS = re.compile(rb'[^][{}",]*+(?:"(?:[^"\\]++|\\.)*+"[^][{}",]*+)*+', re.DOTALL)


class NotJSONError(Exception):
    """The bytes are not JSON. The message holds no part of them."""


class TooLargeError(Exception):
    """The JSON value has more items, more values or longer ones than the client reads."""


def parse(body: bytes) -> Any:
    """Parse a JSON text in UTF-8.

    If orjson refuses the text, Python's own parser reads it, because half a character in a name, or NaN, must not hide
    everything around it. The half becomes U+FFFD; NaN, the infinities and numbers beyond a float become texts.

    Raises:
        NotJSONError: the bytes are not JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Only the problem is kept: orjson's error holds the whole body, passwords included, and must not become a cause.
        problem = f"{error.msg} (line {error.lineno}, column {error.colno})"
    try:
        return _whole_characters(json.loads(body.decode(), parse_constant=str, parse_float=_finite))
    except (ValueError, RecursionError):
        pass
    raise NotJSONError(problem)


def parse_in_slices(body: bytes) -> Generator[None, None, Any]:
    """Parse a JSON text in UTF-8 as `parse` does, but a long list slice by slice; yield after each slice.

    Raises:
        NotJSONError: the bytes are not JSON.
        TooLargeError: the value exceeds one of the limits above.
    """
    begin = _LIST.match(body)
    if begin is None:
        if len(body) > LARGEST_OBJECT:
            raise TooLargeError(f"an object of more than {LARGEST_OBJECT // 1024} KiB")
        return parse(body)
    if len(body) <= SLICE:
        items = parse(body)
        _check_count(items)
        return items
    found: list[Any] = []
    values = 0
    for part in _slices(body, begin.end()):
        if part is not None:
            offset, piece = part
            values += sum(map(piece.count, (b",", b"[", b"{")))
            if values > MOST_VALUES:
                raise TooLargeError(f"a list of more than {MOST_VALUES:,} values, counted by its commas and brackets")
            try:
                found += parse(b"[%b]" % piece)
            except NotJSONError as error:
                raise NotJSONError(f"{error}, counted from byte {offset}") from None
            _check_count(found)
        yield
    return found


def _check_count(items: list[Any]) -> None:
    if len(items) > MOST_ITEMS:
        raise TooLargeError(f"a list of more than {MOST_ITEMS:,} items")


def _slices(body: bytes, begin: int) -> Iterator[tuple[int, bytes] | None]:
    """Cut the content of a list's brackets at commas between items; yield the pieces with their offsets.

    The pieces leave out only the commas at the cuts, so that a text that is not JSON has a piece that is not JSON. The
    function yields None where a turn of the event loop is due.

    Args:
        begin: the position just after the list's first bracket.
    """
    cut = item = begin
    for end in _item_ends(body, begin):
        if end is None:
            yield None
            continue
        if end - cut > SLICE and item > cut:
            yield cut, _filled(body[cut : item - 1])
            cut = item
        item = end + 1
    last = body[cut : item - 1]
    yield cut, last if cut == begin else _filled(last)


def _filled(piece: bytes) -> bytes:
    if not piece.strip(_BLANKS):
        raise NotJSONError("an item is missing between two commas of a list, or beside its bracket")
    return piece


def _item_ends(body: bytes, position: int) -> Iterator[int | None]:
    """Yield the end of each item of a list: the position of its comma, or of the list's bracket. Yield None for a turn.

    Args:
        position: the position just after the list's first bracket.

    Raises:
        NotJSONError: the list does not end, or something follows it.
        TooLargeError: an item is too long.
    """
    item, depth = position, 0
    for marks in count(1):
        stop = _next_mark(body, position, _WITHIN_ITEM if depth else _BETWEEN_ITEMS)
        if stop - item > LARGEST_OBJECT:
            raise TooLargeError(_LONG_ITEM)
        mark = body[stop : stop + 1]
        position = stop + 1
        if mark in (b"[", b"{"):
            depth += 1
        elif mark == b",":
            yield stop
            item = position
        elif depth and mark:
            depth -= 1
        elif mark == b"]":
            yield stop
            break
        else:
            raise NotJSONError("the list does not end")
        if marks % _MARKS_PER_TURN == 0:
            yield None
    if body[position:].strip(_BLANKS):
        raise NotJSONError("something follows the list")


def _next_mark(body: bytes, position: int, plain: re.Pattern[bytes]) -> int:
    """Return the position of the next bracket or comma that a pattern does not match; the body's length if there is none.

    Raises:
        TooLargeError: the mark is too far away.
    """
    begin, stretch = position, _STRETCH
    while True:
        window = position + stretch
        # Never None, because the pattern matches no characters, too.
        stop = cast("re.Match[bytes]", plain.match(body, position, window)).end()
        if max(stop - begin, stretch // 2) > LARGEST_OBJECT:
            raise TooLargeError(_LONG_ITEM)
        if stop < window and body[stop : stop + 1] != b'"':
            return stop
        if window >= len(body):
            return len(body)
        # A string that goes beyond the window is matched again in a longer window.
        stretch = 2 * stretch if stop == position else _STRETCH
        position = stop


def _finite(number: str) -> float | str:
    found = float(number)
    return found if math.isfinite(found) else number


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if (items := as_array(value)) is not None:
        return [_whole_characters(item) for item in items]
    if (members := as_object(value)) is not None:
        return {_whole_characters(name): _whole_characters(member) for name, member in members.items()}
    return value


def dump(value: Any) -> bytes:
    """Write a value as JSON in UTF-8.

    Raises:
        TypeError: the value holds something that JSON cannot hold.
    """
    return orjson.dumps(value)


def dump_exactly(value: object, *, indented: bool = False) -> bytes:
    """Write a value as JSON in UTF-8, with decimal numbers as exact numbers, times in UTC, and durations in seconds.

    Raises:
        TypeError: the value holds something else that JSON cannot hold.
    """
    # orjson would write each time with its own offset.
    options = orjson.OPT_PASSTHROUGH_DATETIME | (orjson.OPT_INDENT_2 if indented else 0)
    return orjson.dumps(value, default=_exact, option=options)


def _exact(value: object) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(f"{value:f}")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


def as_object(value: object) -> dict[str, Any] | None:
    """Return a JSON value if it is an object; None for any other value."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def as_array(value: object) -> list[Any] | None:
    """Return a JSON value if it is an array; None for any other value."""
    return cast("list[Any]", value) if isinstance(value, list) else None

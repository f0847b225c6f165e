"""Bytes <-> JSON values: the only file that knows orjson."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Iterator
from itertools import count
from typing import Any, Final, cast

import orjson

__all__ = ["NotJSONError", "TooLargeError", "as_array", "as_object", "dump", "parse", "parse_in_slices"]

SLICE: Final = 256 * 1024
"""The most bytes of a list that are parsed between two turns of the event loop, apart from a single item that is longer."""

LARGEST_OBJECT: Final = 1024 * 1024
"""The most bytes of a value that is no list, and of one item of a list."""

MOST_ITEMS: Final = 100_000
"""The most items of a list."""

MOST_VALUES: Final = 1_000_000
"""The most values of an answer, at any depth: each takes up to 150 bytes of memory, however few it has in the answer."""

_STRETCH = 64 * 1024
_MARKS_PER_TURN = 2_000
_LONG_ITEM = f"a list with an item of more than {LARGEST_OBJECT // 1024} KiB"
_BLANKS = b" \t\n\r"
_LIST = re.compile(rb"[ \t\n\r]*+\[")
# What stands before the next bracket (and, between the items of the list, before the next comma), whole texts included.
_WITHIN_ITEM = re.compile(rb'[^][{}"]*+(?:"(?:[^"\\]++|\\.)*+"[^][{}"]*+)*+', re.DOTALL)
_BETWEEN_ITEMS = re.compile(rb'[^][{}",]*+(?:"(?:[^"\\]++|\\.)*+"[^][{}",]*+)*+', re.DOTALL)


class NotJSONError(Exception):
    """The bytes are not JSON. The message holds no part of them."""


class TooLargeError(Exception):
    """The JSON value has more items, more values or longer ones than the client reads."""


def parse(body: bytes) -> Any:
    """Parse a JSON text in UTF-8.

    What orjson refuses but Python's own parser reads, is read: half a character in a name, or NaN, must not hide all that
    stands around it. The half becomes U+FFFD; NaN, the infinities and numbers beyond a float become texts.

    Raises:
        NotJSONError: it is none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The parser's own error keeps the whole text, passwords included, so it must not become this one's cause.
        problem = f"{error.msg} (line {error.lineno}, column {error.colno})"
    try:
        return _whole_characters(json.loads(body.decode(), parse_constant=str, parse_float=_finite))
    except (ValueError, RecursionError):
        pass
    raise NotJSONError(problem)


def parse_in_slices(body: bytes) -> Generator[None, None, Any]:
    """Parse a JSON text in UTF-8 as `parse` does, but a long list slice by slice; yield after each.

    Raises:
        NotJSONError: it is none.
        TooLargeError: it is longer than the limits above.
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
                raise TooLargeError(f"a list of more than {MOST_VALUES:,} values, as commas and brackets count")
            try:
                found += parse(b"[%b]" % piece)
            except NotJSONError as error:
                raise NotJSONError(f"{error} of what begins at byte {offset}") from None
            _check_count(found)
        yield
    return found


def _check_count(items: list[Any]) -> None:
    if len(items) > MOST_ITEMS:
        raise TooLargeError(f"a list of more than {MOST_ITEMS:,} items")


def _slices(body: bytes, begin: int) -> Iterator[tuple[int, bytes] | None]:
    """Cut what stands between a list's brackets at commas between its items; yield the pieces with their offsets.

    Only the commas of the cuts are left out, so that a text that is not JSON gives a piece that is not JSON. None is yielded
    where a turn is due.

    Args:
        begin: just after the list's first bracket.
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
    """Yield where each item of a list ends: at its comma, or at the list's bracket. Yield None where a turn is due.

    Args:
        position: just after the list's first bracket.

    Raises:
        NotJSONError: the list does not end, or something follows it.
        TooLargeError: an item is too long.
    """
    item, depth = position, 0
    for look in count(1):
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
        if look % _MARKS_PER_TURN == 0:
            yield None
    if body[position:].strip(_BLANKS):
        raise NotJSONError("something follows the list")


def _next_mark(body: bytes, position: int, plain: re.Pattern[bytes]) -> int:
    """Return where the next bracket or comma stands that a pattern does not pass over; the body's length if there is none.

    Raises:
        TooLargeError: it is too far away.
    """
    begin, stretch = position, _STRETCH
    while True:
        window = position + stretch
        # The pattern always matches, if need be nothing at all.
        stop = cast("re.Match[bytes]", plain.match(body, position, window)).end()
        if max(stop - begin, stretch // 2) > LARGEST_OBJECT:
            raise TooLargeError(_LONG_ITEM)
        if stop < window and body[stop : stop + 1] != b'"':
            return stop
        if window >= len(body):
            return len(body)
        # A text that goes beyond the window is looked at again in a longer one.
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
    """Write a JSON text in UTF-8.

    Raises:
        TypeError: the value holds what JSON cannot.
    """
    return orjson.dumps(value)


def as_object(value: object) -> dict[str, Any] | None:
    """Return a JSON value that is an object as one; None for any other."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def as_array(value: object) -> list[Any] | None:
    """Return a JSON value that is an array as one; None for any other."""
    return cast("list[Any]", value) if isinstance(value, list) else None

"""Bytes <-> JSON values: the only file that knows orjson."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import orjson

__all__ = ["NotJSONError", "as_array", "as_object", "dump", "parse"]


class NotJSONError(Exception):
    """The bytes are not JSON. The message holds no part of them."""


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

"""Bytes <-> JSON values: the only file that knows orjson."""

from __future__ import annotations

from typing import Any, cast

import orjson

__all__ = ["NotJSONError", "as_array", "as_object", "dump", "parse"]


class NotJSONError(Exception):
    """The bytes are not JSON. The message holds no part of them."""


def parse(body: bytes) -> Any:
    """Parse a JSON text in UTF-8.

    Raises:
        NotJSONError: it is none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The parser's own error keeps the whole text, passwords included, so it must not become this one's cause.
        problem = f"{error.msg} (line {error.lineno}, column {error.colno})"
    raise NotJSONError(problem)


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

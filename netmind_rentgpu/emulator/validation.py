"""The documented checks of a request, and the 422 bodies in FastAPI's shape."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

__all__ = ["Checker", "InvalidRequest", "Refusal", "json_object", "json_value", "parsed_json"]

_MISSING = object()
_DEEPEST = 100
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,19}")
_UNKNOWN_MEMBER = "value is not a valid enumeration member"


class Refusal(Exception):  # noqa: N818  # it is an answer
    """An answer other than 200 with JSON. A body of bytes is sent unchanged.

    Attributes:
        by_gateway: True if a gateway before the service could give this answer, too.
        by_rule: True if only a fault causes this answer.
    """

    def __init__(
        self,
        status: int,
        body: Any,
        *,
        by_gateway: bool = False,
        by_rule: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body
        self.by_gateway = by_gateway
        self.by_rule = by_rule
        self.headers = headers


class InvalidRequest(Refusal):
    """A 422 that names each rejected field."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(422, {"detail": errors})


def parsed_json(body: bytes) -> Any:
    """Parse strict JSON: without NaN, infinities, or numbers that are too large for a float.

    Raises:
        ValueError: the body is not strict JSON, or it is nested too deeply.
    """
    try:
        content = json.loads(body, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if body.count(b"[") + body.count(b"{") > _DEEPEST:
        _check_depth(content)
    return content


def json_value(body: bytes) -> Any:
    """Parse a body.

    Raises:
        InvalidRequest: the body is not strict JSON.
    """
    try:
        return parsed_json(body)
    except ValueError as error:
        position = getattr(error, "pos", 0)
        raise InvalidRequest(
            [{"loc": ["body", position], "msg": "the body is not JSON", "type": "value_error.jsondecode"}]
        ) from None


def json_object(body: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object.

    Raises:
        InvalidRequest: the body is not a JSON object.
    """
    if not body:
        raise InvalidRequest([{"loc": ["body"], "msg": "field required", "type": "value_error.missing"}])
    content = json_value(body)
    if not isinstance(content, dict):
        raise InvalidRequest([{"loc": ["body"], "msg": "value is not a valid dict", "type": "type_error.dict"}])
    return cast("dict[str, Any]", content)


def _check_depth(content: Any) -> None:
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
    if level:
        raise ValueError("the JSON is nested too deeply")


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class Checker:
    """Reads the fields of one part of a request, and collects their errors.

    Args:
        part: `query`, `body`, `path` or `header`.
        textual: True if all values are texts, so that a number is a text of digits.
    """

    def __init__(self, part: str, values: Mapping[str, Any], *, textual: bool) -> None:
        self._part = part
        self._values = values
        self._textual = textual
        self._errors: list[dict[str, Any]] = []

    def raise_if_wrong(self) -> None:
        """Raise InvalidRequest if any field read so far was wrong."""
        if self._errors:
            raise InvalidRequest(self._errors)

    def text(
        self, name: str, *, default: Any = _MISSING, shortest: int | None = None, longest: int | None = None
    ) -> Any:
        """Read a text, which is required without a default."""
        value = self._value(name, default)
        if value is None or value is default:
            return value
        if not isinstance(value, str):
            return self._wrong(name, "str type expected", "type_error.str")
        if shortest is not None and len(value) < shortest:
            message = f"ensure this value has at least {shortest} characters"
            return self._wrong(name, message, "value_error.any_str.min_length", limit_value=shortest)
        if longest is not None and len(value) > longest:
            message = f"ensure this value has at most {longest} characters"
            return self._wrong(name, message, "value_error.any_str.max_length", limit_value=longest)
        return value

    def integer(self, name: str, *, default: Any = _MISSING, least: int | None = None, most: int | None = None) -> Any:
        """Read a whole number, which is required without a default."""
        value = self._value(name, default)
        if value is None or value is default:
            return value
        if self._textual:
            value = int(value) if _WHOLE_NUMBER.fullmatch(value) else None
        elif type(value) is float and value.is_integer():
            # JSON does not tell 5.0 from 5.
            value = int(value)
        if type(value) is not int or not -(2**63) <= value < 2**63:
            return self._wrong(name, "value is not a valid integer", "type_error.integer")
        if least is not None and value < least:
            message = f"ensure this value is greater than or equal to {least}"
            return self._wrong(name, message, "value_error.number.not_ge", limit_value=least)
        if most is not None and value > most:
            message = f"ensure this value is less than or equal to {most}"
            return self._wrong(name, message, "value_error.number.not_le", limit_value=most)
        return value

    def member(self, name: str, members: tuple[Any, ...], *, default: Any = _MISSING) -> Any:
        """Read a value that must be one of `members`."""
        value = self.integer(name, default=default) if isinstance(members[0], int) else self.text(name, default=default)
        if value is None or value in members:
            return value
        permitted = ", ".join(repr(member) for member in members)
        return self._wrong(
            name, f"{_UNKNOWN_MEMBER}; permitted: {permitted}", "type_error.enum", enum_values=list(members)
        )

    def _value(self, name: str, default: Any) -> Any:
        value = self._values.get(name, _MISSING)
        if value is _MISSING or value is None:
            if default is not _MISSING:
                return default
            if value is None:
                return self._wrong(name, "none is not an allowed value", "type_error.none.not_allowed")
            return self._wrong(name, "field required", "value_error.missing")
        return value

    def _wrong(self, name: str, message: str, kind: str, **context: Any) -> None:
        # Some worlds repeat the rejected value as `input`, or, if a field is missing, all fields of the same part.
        rejected = self._values.get(name, dict(self._values))
        error: dict[str, Any] = {"loc": [self._part, name], "msg": message, "type": kind, "input": rejected}
        if context:
            error["ctx"] = context
        self._errors.append(error)

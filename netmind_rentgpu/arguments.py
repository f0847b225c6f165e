"""Checks of arguments against the limits that the service documents. The service itself checks the rest."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final

from netmind_rentgpu.errors import InvalidArgumentError

__all__ = [
    "bound",
    "count",
    "identifier",
    "image_options",
    "is_seconds",
    "label",
    "moment",
    "names",
    "password",
    "shown_value",
    "text",
    "whole",
]

PASSWORD_LENGTH: Final = (8, 32)
MOST_GPUS: Final = 12
LONGEST_LABEL: Final = 100
IMAGE_OPTIONS: Final = ("--add-host", "-e", "-h", "-w")


def shown_value(value: object) -> str:
    """Return a short text with which an error shows a value of any type that cannot be used."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # the repr of a huge number raises, and that of a caller's class may raise anything
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}…"


def text(argument: str, value: str) -> str:
    """Return a text as it is.

    Raises:
        InvalidArgumentError: the value is no text, or cannot be sent.
    """
    if not isinstance(value, str):
        raise InvalidArgumentError(argument, f"must be a text, not {type(value).__name__}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidArgumentError(argument, "holds half a character, which cannot be sent")
    return value


def whole(argument: str, value: int) -> int:
    """Return a whole number as it is.

    Raises:
        InvalidArgumentError: the value is no whole number, or does not fit in 64 bits.
    """
    if type(value) is not int:
        raise InvalidArgumentError(argument, f"must be a whole number, not {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise InvalidArgumentError(argument, f"must fit in 64 bits: {shown_value(value)}")
    return value


def identifier(argument: str, value: int) -> int:
    """Return an id as it is. It has to be a whole number, because it becomes a part of the request's path."""
    return whole(argument, value)


def count(argument: str, value: int, most: int | None = None) -> int:
    """Return a whole number as it is, if it is at least 1 and at most `most`."""
    if whole(argument, value) < 1 or (most is not None and value > most):
        limits = "at least 1" if most is None else f"from 1 to {most}"
        raise InvalidArgumentError(argument, f"must be {limits}: {value}")
    return value


def is_seconds(value: object, *, above_zero: bool) -> bool:
    """Return True if a value is a number of seconds: finite, not negative, and small enough for a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        seconds = float(value)
    except OverflowError:
        return False
    return 0 < seconds < math.inf or (seconds == 0 and not above_zero)


def password(value: str, argument: str = "value") -> str:
    """Return an SSH password as it is, if it has the documented 8 to 32 characters. No error shows it."""
    shortest, longest = PASSWORD_LENGTH
    if not shortest <= len(text(argument, value)) <= longest:
        raise InvalidArgumentError(
            argument, f"a password has {shortest} to {longest} characters, and this one has {len(value)}"
        )
    return value


def bound(argument: str, value: Decimal | float) -> Decimal:
    """Return a bound on a price as a Decimal."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise InvalidArgumentError(argument, f"must be a number, not {type(value).__name__}")
    try:
        found = Decimal(str(value))
    except (InvalidOperation, ValueError):
        found = Decimal("NaN")
    if not found.is_finite() or found.adjusted() > 18:
        raise InvalidArgumentError(argument, f"must be a finite number below 1e19: {shown_value(value)}")
    return found


def texts(argument: str, value: Iterable[str] | str) -> list[str]:
    """Return texts as a list; a single text becomes a list of one."""
    if not isinstance(value, Iterable):
        raise InvalidArgumentError(argument, f"must be texts, not {type(value).__name__}")
    return [text(argument, item) for item in ([value] if isinstance(value, str) else value)]


def label(value: str, argument: str = "label") -> str:
    """Return a label as it is: a text of one line, which a terminal shows as it is."""
    if not isinstance(value, str) or not value.isprintable() or not value.strip() or len(value) > LONGEST_LABEL:
        raise InvalidArgumentError(
            argument, f"must be a text of 1 to {LONGEST_LABEL} printable characters, not {shown_value(value)}"
        )
    return value


def moment(argument: str, value: datetime) -> datetime:
    """Return a moment in UTC.

    Raises:
        InvalidArgumentError: the value is no datetime, has no time zone, or is out of range.
    """
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidArgumentError(argument, f"must be a datetime with a time zone, not {shown_value(value)}")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidArgumentError(argument, f"is out of range: {shown_value(value)}") from None


def duration(argument: str, value: timedelta | None) -> timedelta | None:
    """Return a duration above 0, or None, as it is."""
    if value is not None and (not isinstance(value, timedelta) or value <= timedelta(0)):
        raise InvalidArgumentError(argument, f"must be a timedelta above 0, or None, not {shown_value(value)}")
    return value


def names(argument: str, value: Iterable[str] | str) -> list[str]:
    """Return names as a list that can be joined with commas. A single text is one name."""
    found = texts(argument, value)
    if not found:
        raise InvalidArgumentError(argument, "names nothing; leave it out for no filter")
    for name in found:
        if "," in name or not name:
            raise InvalidArgumentError(argument, f"is sent as a comma-separated list, which cannot hold {name!r}")
    return found


def image_options(value: str) -> str:
    """Return an image's container options as they are, if they are the four that are documented. No error shows a value."""
    try:
        words = iter(shlex.split(text("options", value)))
    except ValueError as error:
        raise InvalidArgumentError("options", f"cannot be read: {error}") from None
    for word in words:
        option = next((known for known in IMAGE_OPTIONS if word.startswith(known)), None)
        if option is None or (option == "--add-host" and word != option and word[len(option)] != "="):
            # The error shows no word that may be an option's value, because that may be a secret.
            shown = word.partition("=")[0] if word.startswith("--") else word[:2] if word.startswith("-") else "a word"
            raise InvalidArgumentError("options", f"only {', '.join(IMAGE_OPTIONS)} are supported, not {shown}")
        if word == option:
            next(words, None)
    return value

"""Checks of arguments against what the service documents. What it does not document is left to the service."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Final

from netmind_rentgpu.errors import InvalidArgumentError

__all__ = [
    "bound",
    "count",
    "identifier",
    "image_options",
    "is_seconds",
    "names",
    "password",
    "shown_value",
    "text",
    "whole",
]

PASSWORD_LENGTH: Final = (8, 32)
MOST_GPUS: Final = 12
IMAGE_OPTIONS: Final = ("--add-host", "-e", "-h", "-w")


def shown_value(value: object) -> str:
    """Return how an error shows a value that cannot be used: in few characters, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # a number of thousands of digits has none, and a caller's own class may raise anything
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}…"


def text(argument: str, value: str) -> str:
    """Return a text as it is."""
    if not isinstance(value, str):
        raise InvalidArgumentError(argument, f"must be a text, not {type(value).__name__}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidArgumentError(argument, "holds half a character, which cannot be sent")
    return value


def whole(argument: str, value: int) -> int:
    """Return a whole number as it is."""
    if type(value) is not int:
        raise InvalidArgumentError(argument, f"must be a whole number, not {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise InvalidArgumentError(argument, "is too large a number to be sent")
    return value


def identifier(argument: str, value: int) -> int:
    """Return an id as it is. It becomes a part of the path, so nothing but a whole number will do."""
    return whole(argument, value)


def count(argument: str, value: int, most: int | None = None) -> int:
    """Return a whole number from 1 up."""
    if whole(argument, value) < 1 or (most is not None and value > most):
        limits = "at least 1" if most is None else f"from 1 to {most}"
        raise InvalidArgumentError(argument, f"must be {limits}: {value}")
    return value


def is_seconds(value: object, *, above_zero: bool) -> bool:
    """Return True if a value is a number of seconds: finite, a float can hold it, and not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        seconds = float(value)
    except OverflowError:
        return False
    return 0 < seconds < math.inf or (seconds == 0 and not above_zero)


def password(value: str, argument: str = "value") -> str:
    """Return an SSH password, documented to be 8 to 32 characters. No error shows it."""
    shortest, longest = PASSWORD_LENGTH
    if not shortest <= len(text(argument, value)) <= longest:
        raise InvalidArgumentError(
            argument, f"a password has {shortest} to {longest} characters, this one {len(value)}"
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
        raise InvalidArgumentError(argument, "must be a finite number of a price's size")
    return found


def names(argument: str, value: Iterable[str] | str) -> list[str]:
    """Return a list of names that can be joined with commas. A single text is one name."""
    if not isinstance(value, Iterable):
        raise InvalidArgumentError(argument, f"must be texts, not {type(value).__name__}")
    found = [value] if isinstance(value, str) else list(value)
    if not found:
        raise InvalidArgumentError(argument, "names nothing; leave it out for no filter")
    for name in found:
        if "," in text(argument, name) or not name:
            raise InvalidArgumentError(argument, f"is sent as a comma-separated list, where {name!r} cannot stand")
    return found


def image_options(value: str) -> str:
    """Return an image's container options, of which only four are documented. No error shows their values."""
    try:
        words = iter(shlex.split(text("options", value)))
    except ValueError as error:
        raise InvalidArgumentError("options", f"cannot be read: {error}") from None
    for word in words:
        option = next((known for known in IMAGE_OPTIONS if word.startswith(known)), None)
        if option is None or (option == "--add-host" and word != option and word[len(option)] != "="):
            # What is no option may be a value, and that a secret.
            shown = word.partition("=")[0] if word.startswith("--") else word[:2] if word.startswith("-") else "a word"
            raise InvalidArgumentError("options", f"only {', '.join(IMAGE_OPTIONS)} are supported, not {shown}")
        if word == option:
            next(words, None)
    return value

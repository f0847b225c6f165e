"""A rental's name: the only mark of a container's origin and expiry that the service keeps. Pure.

`rg-`, a nonce, `-`, the expiry and a checksum are 24 characters of `[a-z0-9-]`, because the longest name that the service
accepts without cutting it is not documented. The name of a container that is to be kept has another form, without an expiry,
so that `reap(by_name=True)` leaves the container alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import blake2s
from typing import Final

__all__ = ["LATEST", "expiry_in", "holds_nonce", "is_same_name", "new_name"]

_OURS, _KEPT = "rg-", "kept-"
_NONCE, _EXPIRY, _CHECKSUM = 10, 5, 5
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_LENGTH = len(_OURS) + _NONCE + 1 + _EXPIRY + _CHECKSUM
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE: Final = timedelta(minutes=1)
LATEST: Final[datetime] = _EPOCH + (36**_EXPIRY - 1) * _MINUTE
"""The last expiry that a name can hold."""


def new_name(expires_at: datetime | None, *, random: Callable[[int], int] = secrets.randbelow) -> str:
    """Return a name that no other container has.

    Args:
        expires_at: the expiry, rounded up to a minute, and `LATEST` at most; None if the container is to be kept.
        random: returns a random number from 0 up to its argument, exclusive.
    """
    nonce = _digits(random(36**_NONCE), _NONCE)
    if expires_at is None:
        return f"{_KEPT}{nonce}"
    minutes = -((_EPOCH - min(expires_at, LATEST)) // _MINUTE)
    name = f"{_OURS}{nonce}-{_digits(minutes, _EXPIRY)}"
    return name + _checksum(name)


def expiry_in(name: str) -> datetime | None:
    """Return the expiry in a name, in upper or lower case; None for a name without one, or not wholly made by `new_name`."""
    name = name.lower()
    if len(name) != _LENGTH or not name.startswith(_OURS) or _checksum(name[:-_CHECKSUM]) != name[-_CHECKSUM:]:
        return None
    nonce, _, rest = name.removeprefix(_OURS).partition("-")
    minutes = rest[:_EXPIRY]
    if len(nonce) != _NONCE or not set(nonce + minutes) <= set(_DIGITS):
        return None
    return _EPOCH + int(minutes, 36) * _MINUTE


def is_same_name(name: str, shown: str | None, *, shortest: int = _NONCE) -> bool:
    """Return True if the name that the service shows is this name, in upper or lower case, perhaps cut short.

    Args:
        shortest: the number of the nonce's characters that have to be left.
    """
    if shown is None:
        return False
    return name.startswith(shown.lower()) and len(shown) >= _nonce_at(name) + shortest


def holds_nonce(name: str, shown: str | None) -> bool:
    """Return True if the name that the service shows contains this name's nonce, in upper or lower case."""
    nonce = name[_nonce_at(name) :][:_NONCE]
    return shown is not None and len(nonce) == _NONCE and nonce in shown.lower()


def _nonce_at(name: str) -> int:
    return len(_OURS if name.startswith(_OURS) else _KEPT)


def _digits(number: int, count: int) -> str:
    digits = ""
    for _ in range(count):
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits


def _checksum(text: str) -> str:
    return _digits(int.from_bytes(blake2s(text.encode(), digest_size=8).digest()), _CHECKSUM)

"""The fingerprint by which the state file knows a token: the service's origin, and a digest of origin and token."""

from __future__ import annotations

import hashlib
import ipaddress
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

__all__ = ["Fingerprint", "normalized_origin"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Fingerprint:
    """The fingerprint of a token at a service. Its `str` shows nothing of the token.

    An account has a fingerprint for each of its tokens. The state file joins fingerprints that are proven to belong to one
    account.

    Attributes:
        origin: the service's origin, in its normal form.
    """

    def __init__(self, base_url: str, token: str) -> None:
        self.origin: str = normalized_origin(base_url)
        self._token = token
        self._text = self._spelled(self.origin)

    def is_earlier_spelling(self, fingerprint: str) -> bool:
        """Return True for the fingerprint that an earlier version gave this token, for another spelling of the origin."""
        origin = fingerprint.rpartition(" ")[0]
        return self.is_of_same_service(fingerprint) and fingerprint == self._spelled(origin) != self._text

    def is_of_same_service(self, fingerprint: str) -> bool:
        """Return True for the fingerprint of any token at the same origin."""
        try:
            return normalized_origin(fingerprint.rpartition(" ")[0]) == self.origin
        except ValueError:  # the text is no fingerprint
            return False

    def _spelled(self, origin: str) -> str:
        return f"{origin} {hashlib.sha256(f'{origin} {self._token}'.encode()).hexdigest()[:32]}"

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Fingerprint({self._text!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a fingerprint holds a token and cannot be pickled")


def normalized_origin(url: str) -> str:
    """Return a URL's scheme, host and port in the form in which RFC 6454 compares them, so that spelling does not matter.

    Raises:
        ValueError: the port is no number, or the host is broken.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
        host = f"[{address}]" if address.version == 6 else str(address)
    except ValueError:
        with suppress(UnicodeError):
            host = host.encode("idna").decode()
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"

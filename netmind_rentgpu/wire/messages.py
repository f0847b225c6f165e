"""A request and its raw response, as values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["RawResponse", "Request", "printable"]

_REQUEST_ID_HEADERS = ("x-request-id", "request-id", "x-amzn-requestid", "cf-ray")


@attrs.frozen(kw_only=True)
class Request:
    """One call, as it is put on the wire.

    Attributes:
        path: from the host's root, percent-encoding left to the transport.
        idempotent: True if sending it twice does what sending it once does.
        avoid_idle_connection: True if it must not go over a connection that was idle.
        secrets: what must not be shown should the answer repeat it.
        known: a body whose payload is known: an answer with the same is not parsed, and its payload is UNCHANGED.
    """

    method: str
    path: str
    query: Mapping[str, str] = attrs.field(factory=dict[str, str])
    body: Any = attrs.field(default=None, repr=False)
    idempotent: bool = True
    avoid_idle_connection: bool = False
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)
    known: bytes | None = attrs.field(default=None, repr=False)


@attrs.frozen
class RawResponse:
    """A whole answer. Its headers are looked up in lower case."""

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)

    @property
    def request_id(self) -> str | None:
        """The id the service, or what stands before it, gave the request."""
        found = next((self.headers[name] for name in _REQUEST_ID_HEADERS if self.headers.get(name)), None)
        return None if found is None else printable(found)


def printable(header: str) -> str:
    """Return a header in characters that every stream can write; bytes that are not UTF-8 come as surrogates."""
    return header.encode("utf-8", "backslashreplace").decode()

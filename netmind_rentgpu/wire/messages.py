"""A request and its raw response, as pure values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

__all__ = ["RawResponse", "Request", "printable"]

_REQUEST_ID_HEADERS = ("x-request-id", "request-id", "x-amzn-requestid", "cf-ray")


@attrs.frozen(kw_only=True)
class Request:
    """One call, as it goes on the wire.

    Attributes:
        path: the path from the host's root; the transport percent-encodes it.
        idempotent: True if sending the request twice has the effect of sending it once.
        avoid_idle_connection: True if the request must not go over a connection that has been idle.
        secrets: texts that no error may show, even if the answer repeats them.
        known: a body that the caller has parsed before. An answer with this body is not parsed; its payload is UNCHANGED.
        check: is called just before each sending; an error that it raises is raised in place of it.
    """

    method: str
    path: str
    query: Mapping[str, str] = attrs.field(factory=dict[str, str])
    body: Any = attrs.field(default=None, repr=False)
    idempotent: bool = True
    avoid_idle_connection: bool = False
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)
    known: bytes | None = attrs.field(default=None, repr=False)
    check: Callable[[], object] | None = attrs.field(default=None, repr=False)


@attrs.frozen
class RawResponse:
    """A complete answer. Look its headers up by their names in lower case."""

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)

    @property
    def request_id(self) -> str | None:
        """The id that the service, or a gateway before it, gave the request; None if the answer names none."""
        found = next((self.headers[name] for name in _REQUEST_ID_HEADERS if self.headers.get(name)), None)
        return None if found is None else printable(found)


def printable(header: str) -> str:
    """Escape a header's surrogates, which stand for bytes that are not UTF-8, so that every stream can write the text."""
    return header.encode("utf-8", "backslashreplace").decode()

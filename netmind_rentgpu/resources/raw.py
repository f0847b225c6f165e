"""Checked requests for `client.request`, which sends any call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import unquote

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.resources.paths import API
from netmind_rentgpu.wire.messages import Request
from netmind_rentgpu.wire.payload import dump

__all__ = ["raw_request"]


def raw_request(method: str, path: str, params: Mapping[str, str | int | float], json: Any) -> Request:
    """Return the request for a call that no typed method makes.

    Raises:
        InvalidArgumentError: the method or path cannot be sent, the path could lead elsewhere, or the body cannot be JSON.
    """
    verb = method.upper()
    if not (verb.isascii() and verb.isalpha()):
        raise InvalidArgumentError("method", f"must be an HTTP method: {method!r}")
    try:
        dump(json)
    except TypeError as error:
        raise InvalidArgumentError("json", str(error)) from None
    idempotent = verb in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
    return Request(
        method=verb,
        path=_full_path(path),
        query=_query(params),
        body=json,
        idempotent=idempotent,
        avoid_idle_connection=not idempotent,
        secrets=_secrets_in(json),
    )


def _full_path(path: str) -> str:
    segments = unquote(path).split("/")
    if not path or "?" in path or "#" in path or "\\" in path or "://" in path or ".." in segments or "." in segments:
        raise InvalidArgumentError("path", f"must be a plain path, without a host, a query or dot segments: {path!r}")
    if not path.isprintable():
        raise InvalidArgumentError("path", "holds characters that cannot be sent")
    return f"/{path.lstrip('/')}" if path.startswith("/") else f"{API}{path}"


def _query(params: Mapping[str, str | int | float]) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise InvalidArgumentError("params", f"{name} must be a text or a number, not {type(value).__name__}")
        query[name] = str(value)
    if not "".join((*query, *query.values())).isascii():
        for value in (*query, *query.values()):
            arguments.text("params", value)
    return query


def _secrets_in(json: Any) -> tuple[str, ...]:
    """Return the values that the typed calls treat as secrets, so that no error shows them here either."""
    if not isinstance(json, Mapping):
        return ()
    fields = cast("Mapping[Any, Any]", json)
    return tuple(value for name in ("value", "docker_passwd") if isinstance(value := fields.get(name), str))

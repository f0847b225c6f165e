"""The meaning of an answer: status, headers and body -> payload, or the right error. Pure.

The service documents only 200 and 422, so the text of an error's body decides about the error's class beside the status;
`netmind_rentgpu/guide/explanation/wire-contract.md`, "Unknown", lists the bodies that were seen.
"""

from __future__ import annotations

import email.utils
import html
import json
import math
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from netmind_rentgpu.errors import (
    APIStatusError,
    AuthenticationError,
    ConflictError,
    InsufficientBalanceError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    UnexpectedResponseError,
)
from netmind_rentgpu.models import InvalidField
from netmind_rentgpu.wire.messages import RawResponse, Request, printable
from netmind_rentgpu.wire.payload import NotJSONError, TooLargeError, as_array, as_object, dump, parse, parse_in_slices

__all__ = ["UNCHANGED", "parsed_body", "payload", "unexpected"]

UNCHANGED: Final = object()
"""A stand-in for the payload of a body that the caller has parsed before."""

MASK = "***"
_TEXT_SHOWN = 500
_LARGEST_ERROR_READ = 256 * 1024
_DEEPEST = 50
_TITLE = re.compile(r"<title[^>]{0,100}>([^<]{1,200})", re.IGNORECASE)
# A body that is not JSON cannot be masked by its fields' names, so an error does not show it if it may hold such fields.
_MAY_HOLD_SECRETS = re.compile(r"^\s*[\[{]|value|passw|pwd|token|authorization", re.IGNORECASE)
_HIDDEN = "a body that is not JSON"
_ECHOED = frozenset({"input", "value", "docker_passwd"})

_BALANCE = re.compile(
    r"insufficient[\s_-]*(?:account[\s_-]*)?(?:balance|funds?|credits?)"
    r"|(?:balance|funds?|credits?)\W+(?:is\s+|are\s+)?(?:not\s+enough|insufficient|too\s+low)"
    r"|not\s+enough\s+(?:balance|funds?|credits?)",
    re.IGNORECASE,
)
_CREDENTIAL = re.compile(
    r"(?:invalid|wrong|bad|missing|expired|revoked|unknown|incorrect|no)\W+(?:api\W*)?(?:token|key|credentials?)\b"
    r"|(?:token|api\W*key|credentials?)\W+(?:is\s+|are\s+|was\s+|has\s+(?:been\s+)?)?(?:invalid|wrong|missing|expired|revoked|unknown|incorrect)"
    r"|unauthori[sz]ed|(?:not|un)\W?authenticated|authentication",
    re.IGNORECASE,
)
# Fewer words for a 400, because the others may be about the request's content: "Unknown key: gpus".
_TOKEN = re.compile(r"(?:invalid|wrong|missing|expired|incorrect)\W+(?:api\W*)?(?:token|api\W*key)\b", re.IGNORECASE)


def unexpected(
    request: Request, response: RawResponse, problem: str, *, json_path: str = "$", truncated: bool = False
) -> UnexpectedResponseError:
    """Build the error for an answer that is not what the service documents."""
    return UnexpectedResponseError(
        problem,
        status=response.status,
        method=request.method,
        path=request.path,
        json_path=json_path,
        truncated=truncated,
        request_id=response.request_id,
    )


def payload(
    request: Request, response: RawResponse, *, validation_errors_key: str, token: str, now: Callable[[], datetime]
) -> Generator[None, None, Any]:
    """Return the JSON value of a good answer; None for an empty body, UNCHANGED for the request's known body.

    Yields after each slice of a long list.

    Raises:
        APIStatusError: the service answered with an error.
        UnexpectedResponseError: the answer is a redirect, not JSON, or more than the client reads.
    """
    if 200 <= response.status < 300:
        if not response.body:
            return None
        if response.body == request.known:
            return UNCHANGED
        return (yield from parsed_body(request, response))
    if response.status < 400:
        secrets = _spellings((token, *request.secrets))
        target = _mask_text(printable(response.headers.get("location", "")), secrets)
        towards = f" to {target.partition('?')[0][:200]}" if target else ""
        raise unexpected(request, response, f"redirects{towards} are not followed: they could take the token elsewhere")
    raise _status_error(request, response, validation_errors_key, (token, *request.secrets), now())


def parsed_body(request: Request, response: RawResponse) -> Generator[None, None, Any]:
    """Return the JSON value of a body; yield after each slice of a long list.

    Raises:
        UnexpectedResponseError: the body is not JSON, or more than the client reads.
    """
    try:
        return (yield from parse_in_slices(response.body))
    except NotJSONError as error:
        looks = " (it looks like a page of HTML)" if _is_html(response.body[:1000].decode(errors="replace")) else ""
        raise unexpected(request, response, f"the body is not JSON: {error}{looks}") from None
    except TooLargeError as error:
        raise unexpected(request, response, f"the body holds {error}, which is more than this client reads") from None


def _status_error(
    request: Request, response: RawResponse, validation_errors_key: str, secrets: tuple[str, ...], now: datetime
) -> APIStatusError:
    raw = _body(response.body[:_LARGEST_ERROR_READ])
    mask = partial(_mask_text, secrets=_spellings(secrets))
    # The class is chosen by the unmasked text, because a secret may be one of the words that the choice depends on.
    said, said_code = _message(raw, validation_errors_key, str)
    kind = _kind(response.status, said, said_code, is_list=_rejected(raw, validation_errors_key) is not None)
    message, code = _message(raw, validation_errors_key, mask)
    details: dict[str, Any] = {
        "status": response.status,
        "code": code,
        "message": message,
        "body": _masked(raw, mask),
        "request_id": response.request_id,
        "method": request.method,
        "path": request.path,
    }
    saying = f": {message}" if message else ""
    text = f"{request.method} {request.path} was answered with {response.status}{saying}"
    if issubclass(kind, (RateLimitError, ServerError)):
        retry_after = _retry_after(response.headers, now)
        wait = f" (it asks to wait {retry_after:g} s)" if retry_after is not None else ""
        return kind(text + wait, retry_after=retry_after, **details)
    if issubclass(kind, InvalidRequestError):
        return kind(text, fields=_fields(raw, validation_errors_key, mask), **details)
    return kind(text + _ADVICE.get(kind, ""), **details)


_ADVICE: Mapping[type[APIStatusError], str] = {
    AuthenticationError: " (check the API token, and whether the service wants it bare: ServiceProfile.authorization)",
    InsufficientBalanceError: " (top up the balance that payment_type names, or choose another payment_type)",
}


def _kind(status: int, message: str, code: str | None, *, is_list: bool) -> type[APIStatusError]:  # noqa: PLR0911  # a table
    """Choose the error's class by the status, and by the text where the status alone does not decide."""
    text = f"{message} {code or ''}"
    if status == 429:
        return RateLimitError
    if status >= 500:
        return ServerError
    if status == 401:
        return AuthenticationError
    if status == 402:
        return InsufficientBalanceError
    if status in (400, 403, 409, 422) and not is_list and _BALANCE.search(text):
        return InsufficientBalanceError
    if status == 403:
        return AuthenticationError if _CREDENTIAL.search(text) else PermissionDeniedError
    if status == 400 and not is_list and _TOKEN.search(text):
        return AuthenticationError
    return {
        400: InvalidRequestError,
        404: NotFoundError,
        409: ConflictError,
        422: InvalidRequestError,
    }.get(status, APIStatusError)


def _message(body: Any, key: str, mask: Callable[[str], str], depth: int = 0) -> tuple[str, str | None]:
    """Find the service's message and its own error code, in any of the forms that were seen."""
    if isinstance(body, str):
        return _shown(mask(body)), None
    fields = as_object(body)
    if fields is None:
        return "", None
    nested = as_object(fields.get("error")) or {}
    codes = (fields.get("code"), nested.get("code"))
    code = next((mask(str(value)) for value in codes if isinstance(value, (str, int))), None)
    detail = fields.get("detail")
    if as_object(detail) is not None and depth < _DEEPEST:
        inner, inner_code = _message(detail, key, mask, depth + 1)
        return inner, code or inner_code
    candidates = (detail, nested.get("message"), fields.get("message"), fields.get("error"), fields.get("msg"))
    said = next((value for value in candidates if isinstance(value, str) and value.strip()), None)
    if said is None:
        said = "; ".join(_rejection(item) for item in as_array(detail) or _rejected(fields, key) or ())
    return _shown(mask(said) if said else code or ""), code


def _rejection(item: Any) -> str:
    if isinstance(item, str):
        return item
    field = _field(item)
    return f"{'.'.join(map(str, field.loc))}: {field.msg}" if field else "?"


def _rejected(body: Any, key: str) -> list[Any] | None:
    fields = as_object(body)
    return None if fields is None else as_array(fields.get(key))


def _fields(body: Any, key: str, mask: Callable[[str], str]) -> tuple[InvalidField, ...]:
    found = (field for item in _rejected(body, key) or () if (field := _field(item)) is not None)
    return tuple(
        InvalidField(
            tuple(mask(part) if isinstance(part, str) else part for part in field.loc),
            mask(field.msg),
            mask(field.type),
        )
        for field in found
    )


def _field(item: Any) -> InvalidField | None:
    members = as_object(item) or {}
    path = as_array(members.get("loc"))
    if path is None:
        return None
    loc = tuple(part if type(part) is int else str(part) for part in path)
    return InvalidField(loc, str(members.get("msg", "")), str(members.get("type", "")))


def _shown(text: str) -> str:
    """Cut a text to one line for an error message; return the title of a page of HTML."""
    if _is_html(text):
        title = _TITLE.search(text[:4096])
        return f"a page of HTML, {title[1].strip()!r}" if title else "a page of HTML"
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_SHOWN else line[:_TEXT_SHOWN] + "…"


def _is_html(text: str) -> bool:
    return text.lstrip()[:15].lower().startswith(("<!doctype html", "<html", "<head", "<body", "<center"))


def _body(body: bytes) -> Any:
    """Parse an error's body; return a text without secrets if the body is not JSON."""
    if not body:
        return None
    try:
        return parse(body)
    except NotJSONError:
        text = body.decode(errors="replace")
        return _shown(text) if _is_html(text) else text if not _MAY_HOLD_SECRETS.search(text) else _HIDDEN


def _masked(value: Any, mask: Callable[[str], str], depth: int = 0) -> Any:
    if isinstance(value, str):
        return mask(value)
    if depth == _DEEPEST and isinstance(value, (list, dict)):
        return "…"
    if (items := as_array(value)) is not None:
        return [_masked(item, mask, depth + 1) for item in items]
    if (members := as_object(value)) is not None:
        # By name, because a 422 in the form of pydantic 2 repeats the rejected value, or the whole body, as `input`.
        return {
            mask(name): MASK if name in _ECHOED else _masked(member, mask, depth + 1)
            for name, member in members.items()
        }
    return value


def _spellings(secrets: Iterable[str]) -> tuple[str, ...]:
    """Return all texts to mask: an answer may hold a secret in the spelling of JSON, Python, a URL or HTML."""
    found: dict[str, None] = {}
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        forms = (secret, json.dumps(secret)[1:-1], dump(secret).decode()[1:-1], repr(secret)[1:-1])
        found |= dict.fromkeys((*forms, quote(secret, safe=""), html.escape(secret)))
    return tuple(found)


def _mask_text(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def _retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Read `Retry-After`, given in seconds or as a date; return the seconds, or None if it is missing or cannot be read."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        seconds = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None

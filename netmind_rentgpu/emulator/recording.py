"""Every request that came in, for tests to count; secrets are masked before anything is kept.

A request is kept once its head was read. What is no HTTP, and who connects but asks nothing, is not; nor are the controls.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, overload

import attrs

from netmind_rentgpu.emulator.calls import CALLS
from netmind_rentgpu.emulator.validation import parsed_json

__all__ = ["MASK", "RecordedRequest", "Recorder", "Recording"]

MASK = "***"
# A password is `value` to an auth. `options` and `onstart` are for a shell, in which a secret can stand in any form, and so
# they are masked as a whole. The other names are docker_passwd and what a client may send by mistake.
_SECRET_NAME = re.compile(r"\s*(value|options|onstart)\s*|.*(pass|secret|token|key|credential|authori).*", re.DOTALL)
_LOGIN_IN_URL = re.compile(r"://[^\s]*@")
# A shorter token is found only where it stands by itself: ordinary text may contain it.
_UNMISTAKABLE = 12


@attrs.define(kw_only=True)
class RecordedRequest:
    """One request, as it came in.

    Attributes:
        number: from 1 on, in the order of arrival.
        call: which of the thirteen it is, as `create_container`; None for what the service does not have.
        method, path: as sent; the path decoded, and without its query.
        query: the first value of each name, which is what the service reads.
        body: the JSON, with secrets masked, and all of `options` and `onstart`; None where there is none, or none yet, or
            where it is not JSON.
        connection: the number of the connection it came over, from 1 on.
        time: by the emulator's clock, in seconds since 1970.
        fault: what it met, as a `Fault` calls it; None for nothing.
        status: what was answered; None for nothing, or nothing yet.
    """

    number: int
    call: str | None
    method: str
    path: str
    query: dict[str, str]
    body: Any
    connection: int
    time: float
    fault: str | None = None
    status: int | None = None


class Recording(Sequence[RecordedRequest]):
    """The requests until now, in the order of arrival.

    assert len(emulator.requests.of("create_container")) == 1
    assert len(emulator.requests.of(method="GET", path="/v1/rentgpu/containers/")) == 4
    assert emulator.requests.connections == 2
    """

    def __init__(self, requests: Iterable[RecordedRequest]) -> None:
        self._requests = tuple(requests)

    def of(self, call: str | None = None, *, method: str | None = None, path: str | None = None) -> Recording:
        """Return those of one call, method or path.

        Raises:
            ValueError: the service has no such call.
        """
        if call is not None and call not in CALLS:
            raise ValueError(f"no call is named {call}; there are {', '.join(CALLS)}")
        method = None if method is None else method.upper()
        return Recording(
            one
            for one in self._requests
            if call in (None, one.call) and method in (None, one.method) and path in (None, one.path)
        )

    @property
    def connections(self) -> int:
        """Over how many connections they came."""
        return len({one.connection for one in self._requests})

    @overload
    def __getitem__(self, index: int) -> RecordedRequest: ...
    @overload
    def __getitem__(self, index: slice) -> Recording: ...
    def __getitem__(self, index: int | slice) -> RecordedRequest | Recording:
        return Recording(self._requests[index]) if isinstance(index, slice) else self._requests[index]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[RecordedRequest]:
        return iter(self._requests)

    def __repr__(self) -> str:
        lines = [
            f"  {one.number}. {one.method} {one.path} {one.query or ''} -> {one.status} {one.fault or ''}"
            for one in self._requests
        ]
        return "\n".join([f"<{len(self)} requests>", *map(str.rstrip, lines)])


class Recorder:
    """Keeps the requests; of more than `keep`, the newest."""

    def __init__(self, keep: int | None, *, token: str) -> None:
        self._tokens: dict[str, re.Pattern[str]] = {}
        self.mask(token)
        self._requests: deque[RecordedRequest] = deque(maxlen=keep)
        self._count = 0

    def mask(self, token: str) -> None:
        """Mask a token wherever it is sent from now on."""
        found = re.escape(token)
        self._tokens[token] = re.compile(found if len(token) >= _UNMISTAKABLE else rf"(?<![\w-]){found}(?![\w-])")
        # One may begin as another does.
        self._tokens = {known: self._tokens[known] for known in sorted(self._tokens, key=len, reverse=True)}

    def add(
        self,
        *,
        call: str | None,
        method: str,
        path: str,
        query: Mapping[str, str],
        connection: int,
        time: float,
    ) -> RecordedRequest:
        """Keep a request, as soon as its head is there."""
        self._count += 1
        request = RecordedRequest(
            number=self._count,
            call=call,
            method=method,
            path=self._masked_text(path),
            query=self._masked(dict(query)),
            body=None,
            connection=connection,
            time=time,
        )
        self._requests.append(request)
        return request

    def add_body(self, request: RecordedRequest, body: bytes) -> None:
        """Keep the body, too; what is kept of it has its secrets masked."""
        if body:
            request.body = self._masked_body(body)

    def recording(self) -> Recording:
        """Return what was kept until now."""
        return Recording(self._requests.copy())  # another thread may add meanwhile

    def clear(self) -> None:
        """Forget all requests; numbers go on."""
        self._requests.clear()

    def _masked_body(self, body: bytes) -> Any:
        try:
            content = parsed_json(body)
            # What has no names may be a secret itself.
            return self._masked(content) if isinstance(content, dict) else MASK
        except ValueError:
            return None

    def _masked(self, value: Any, name: str = "") -> Any:
        if value is not None and _SECRET_NAME.fullmatch(name.lower()):
            return MASK
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            return {self._masked_text(name): self._masked(inner, name) for name, inner in fields.items()}
        if isinstance(value, list):
            return [self._masked(inner) for inner in cast("list[Any]", value)]
        return self._masked_text(value) if isinstance(value, str) else value

    def _masked_text(self, text: str) -> str:
        for token in self._tokens.values():
            text = token.sub(MASK, text)
        return _LOGIN_IN_URL.sub(f"://{MASK}@", text)

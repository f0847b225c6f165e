"""The recording of every request that the emulator receives, for tests to count. It masks secrets before it keeps a request.

The server records a request when it has read the request's head. It does not record controls, connections without a
request, or data that is not HTTP.
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
# `value` is an auth's password. `options` and `onstart` are masked as a whole, because shell text can hold a secret in any
# form. The other patterns match docker_passwd, and fields that a client may send by mistake.
_SECRET_NAME = re.compile(r"\s*(value|options|onstart)\s*|.*(pass|secret|token|key|credential|authori).*", re.DOTALL)
_LOGIN_IN_URL = re.compile(r"://[^\s]*@")
# A token shorter than this is masked only as a whole word, because ordinary text may contain it.
_UNMISTAKABLE = 12


@attrs.define(kw_only=True)
class RecordedRequest:
    """A request that the emulator received.

    Attributes:
        number: the number of the request, from 1 on, in the order of arrival.
        call: the name of the call, such as `create_container`; None if the service has no such call.
        method, path: the method and the decoded path, without the query.
        query: the first value of each parameter, which is the value that the service reads.
        body: the JSON body, in which secrets, `options` and `onstart` are masked; None if there is no body, if it has not
            arrived yet, or if it is not JSON.
        connection: the number of the connection, from 1 on.
        time: the time of arrival by the emulator's clock, in seconds since 1970.
        fault: the names of the faults that the request met, as in `Fault.what`; None if it met none.
        status: the status of the answer; None if there is no answer, or none yet.
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
    """The requests until now, in the order of arrival. For example:

    assert len(emulator.requests.of("create_container")) == 1
    assert len(emulator.requests.of(method="GET", path="/v1/rentgpu/containers/")) == 4
    assert emulator.requests.connections == 2
    """

    def __init__(self, requests: Iterable[RecordedRequest]) -> None:
        self._requests = tuple(requests)

    def of(self, call: str | None = None, *, method: str | None = None, path: str | None = None) -> Recording:
        """Return the requests of a call, a method and a path; None for any.

        Raises:
            ValueError: the service has no such call.
        """
        if call is not None and call not in CALLS:
            raise ValueError(f"no call is named {call}; there are {', '.join(CALLS)}")
        method = None if method is None else method.upper()
        return Recording(
            request
            for request in self._requests
            if call in (None, request.call) and method in (None, request.method) and path in (None, request.path)
        )

    @property
    def connections(self) -> int:
        """The number of connections over which the requests came."""
        return len({request.connection for request in self._requests})

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
            f"  {request.number}. {request.method} {request.path} {request.query or ''} -> {request.status} "
            f"{request.fault or ''}"
            for request in self._requests
        ]
        return "\n".join([f"<{len(self)} requests>", *map(str.rstrip, lines)])


class Recorder:
    """Records requests, and masks their secrets."""

    def __init__(self, keep: int | None, *, token: str) -> None:
        """Prepare a recorder.

        Args:
            keep: how many of the newest requests to keep; None for all.
            token: a token to mask, as `mask` does.
        """
        self._tokens: dict[str, re.Pattern[str]] = {}
        self.mask(token)
        self._requests: deque[RecordedRequest] = deque(maxlen=keep)
        self._count = 0

    def mask(self, token: str) -> None:
        """Mask a token in all requests from now on."""
        literal = re.escape(token)
        self._tokens[token] = re.compile(literal if len(token) >= _UNMISTAKABLE else rf"(?<![\w-]){literal}(?![\w-])")
        # The longest first, because otherwise a token that begins another token would leave the rest of it readable.
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
        """Record a request whose head has arrived, and return the record, to which body and status are added later."""
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
        """Add a request's body to its record, with secrets masked."""
        if body:
            request.body = self._masked_body(body)

    def recording(self) -> Recording:
        """Return the requests until now."""
        return Recording(self._requests.copy())  # because another thread may add a request meanwhile

    def clear(self) -> None:
        """Delete all requests. The numbers of later requests continue."""
        self._requests.clear()

    def _masked_body(self, body: bytes) -> Any:
        try:
            content = parsed_json(body)
            # A body without names may itself be a secret.
            return self._masked(content) if isinstance(content, dict) else MASK
        except ValueError:
            return None

    def _masked(self, value: Any, name: str = "") -> Any:
        if value is not None and _SECRET_NAME.fullmatch(name.lower()):
            return MASK
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            return {self._masked_text(name): self._masked(field, name) for name, field in fields.items()}
        if isinstance(value, list):
            return [self._masked(item) for item in cast("list[Any]", value)]
        return self._masked_text(value) if isinstance(value, str) else value

    def _masked_text(self, text: str) -> str:
        for token in self._tokens.values():
            text = token.sub(MASK, text)
        return _LOGIN_IN_URL.sub(f"://{MASK}@", text)

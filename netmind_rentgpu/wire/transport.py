"""One request over HTTP, sent once: the only file that knows aiohttp's client.

Connections are pooled, redirects are not followed, and the token goes only to the configured origin. A failure becomes a
`TransportError`, which says whether the service may have acted, or an `UnexpectedResponseError`.
"""

from __future__ import annotations

import asyncio
import platform
import socket
import sys
from collections.abc import Mapping
from functools import lru_cache
from ssl import SSLContext
from typing import Final, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp
import aiohttp.abc
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from netmind_rentgpu.concurrency.threads import run_in_thread
from netmind_rentgpu.errors import (
    APIConnectionError,
    APITimeoutError,
    ClientStateError,
    ConfigurationError,
    RentGPUError,
    TransportError,
)
from netmind_rentgpu.settings import Settings, Timeouts
from netmind_rentgpu.version import __version__
from netmind_rentgpu.wire.loop_use import LoopUse
from netmind_rentgpu.wire.messages import RawResponse, Request
from netmind_rentgpu.wire.payload import dump
from netmind_rentgpu.wire.responses import unexpected

__all__ = ["Transport"]

LARGEST_BODY: Final = 16 * 1024 * 1024
# The most seconds for which a connection may be idle before it is used again; None if each connection is used only once.
_LONGEST_IDLE: Final[Mapping[str, float | None]] = {"usual": 15, "recent": 1, "single": None}
# True if asyncio leaks TLS connections that the server does not close, so that aiohttp has to close them.
_LEAKS_TLS_CONNECTIONS: Final = sys.version_info < (3, 12, 8) or (3, 13, 0) <= sys.version_info < (3, 13, 1)


class Transport:
    """A sender of requests to one origin with one token."""

    def __init__(
        self,
        settings: Settings,
        *,
        authorization: str,
        session: aiohttp.ClientSession | None = None,
        ssl_context: SSLContext | None = None,
        use: LoopUse | None = None,
    ) -> None:
        """Set up the transport; it opens nothing, and needs no running loop, before its first request.

        Args:
            authorization: the whole value of the header.
            session: the caller's own session, which the transport never closes.
            use: the loop that the client is used in, if it is known already.

        Raises:
            ConfigurationError: the session cannot be used.
        """
        if session is not None and not isinstance(session, aiohttp.ClientSession):
            raise ConfigurationError(f"session must be an aiohttp.ClientSession, not {type(session).__name__}")
        if session is not None and session.auth is not None:
            raise ConfigurationError("the session has a login of its own (auth=...), which would replace the API token")
        self._base_url = settings.base_url
        self._headers = {
            "Authorization": authorization,
            "Accept": "application/json",
            "User-Agent": f"netmind-rentgpu/{__version__} Python/{platform.python_version()} aiohttp/{aiohttp.__version__}",
        }
        if session is not None and not session.auto_decompress:
            self._headers["Accept-Encoding"] = "identity"
        self._ssl: SSLContext | bool = True if ssl_context is None else ssl_context
        self._proxy, self._proxy_headers = _proxy(settings.proxy)
        if self._proxy_headers and settings.base_url.startswith("http://"):
            # A request in plain http has no tunnel, so the request itself carries the proxy's login.
            self._headers |= self._proxy_headers
        # A request's middlewares replace its session's, so ours include those. If the session does not show its own, the
        # request names none, because the session's would be lost.
        of_session = () if session is None else getattr(session, "_middlewares", None)
        self._send_once = None if of_session is None else (_send_once, *of_session)
        self._session = session
        self._own_sessions: dict[str, aiohttp.ClientSession] = {}
        self._closes_without_notice = False
        self._use = LoopUse() if use is None else use
        self._closing: asyncio.Task[None] | None = None

    @property
    def connection_limit(self) -> int | None:
        """The number of connections that the caller's own session allows; None if only the client's limit counts."""
        connector = None if self._session is None else self._session.connector
        if connector is None:
            return None
        return min((limit for limit in (connector.limit, connector.limit_per_host) if limit), default=None)

    def check_usable(self) -> None:
        """Raise ClientStateError if the client is closed or belongs to another event loop."""
        self._use.check()

    async def send(self, request: Request, timeouts: Timeouts, remaining: float | None) -> RawResponse:
        """Send a request once, and read the whole answer.

        Args:
            timeouts: the call's timeouts, of which `connect` and `read` apply here.
            remaining: seconds until the end of the whole call; None for no limit.

        Raises:
            TransportError: no answer came.
            UnexpectedResponseError: the answer was cut short or is too large.
            ClientStateError: the session is closed.
        """
        connect = _shorter(timeouts.connect, remaining)
        head: RawResponse | None = None
        silence: asyncio.Timeout | None = None
        chunks: list[bytes] = []
        size = 0
        try:
            async with (await self._session_for(request)).request(
                request.method,
                URL(self._base_url + request.path),
                params=request.query or None,
                data=None if request.body is None else dump(request.body),
                headers=self._headers
                if request.body is None
                else {**self._headers, "Content-Type": "application/json"},
                allow_redirects=False,
                raise_for_status=False,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
                ssl=self._ssl,
                middlewares=self._send_once,
                timeout=_client_timeout(remaining, connect, timeouts.read),
            ) as response:
                head = RawResponse(response.status, response.headers, b"")
                content = response.content
                while not content.at_eof():
                    chunk = content.read_nowait()
                    if not chunk:
                        # aiohttp's own timer does not run for a stream that its parser has given up.
                        async with asyncio.timeout(timeouts.read) as silence:
                            chunk = await content.readany()
                    chunks.append(chunk)
                    size += len(chunk)
                    _check_size(request, head, size)
                return RawResponse(head.status, head.headers, b"".join(chunks))
        except RentGPUError:
            raise
        except _SentOnceError as error:
            failure: Exception = error.original
        except Exception as error:  # noqa: BLE001  # parsers and a session's middlewares may raise anything
            failure = error
        # Raised outside the `except` blocks, because the error's context would lead to what `_shown_cause` leaves out.
        if head is not None and not isinstance(failure, TimeoutError):
            if head.status >= 400:
                return RawResponse(head.status, head.headers, b"".join(chunks))
            raise unexpected(request, head, "the body was cut short", truncated=True) from _shown_cause(failure)
        if silence is not None and silence.expired():
            failure = aiohttp.SocketTimeoutError()
        broken = self._translated(request, failure, timeouts, connect)
        if request.avoid_idle_connection and isinstance(broken, APIConnectionError) and broken.maybe_processed:
            # The service may close connections without notice, so a new one is used for each such request from now on.
            self._closes_without_notice = True
        raise broken from _shown_cause(failure)

    async def close(self) -> None:
        """Close the transport's own sessions. A second call closes nothing more, and a cancelled call still closes them.

        Raises:
            ClientStateError: the client was used in another event loop.
        """
        loop = self._use.close()
        if self._closing is None:
            self._closing = loop.create_task(self._close_sessions())
        await asyncio.shield(self._closing)

    async def _close_sessions(self) -> None:
        await asyncio.gather(*(session.close() for session in self._own_sessions.values()))

    async def _session_for(self, request: Request) -> aiohttp.ClientSession:
        if self._session is not None:
            return self._session
        if request.avoid_idle_connection:
            # So that aiohttp notices a connection that the service has closed after its last answer, and does not use it.
            await asyncio.sleep(0)
        kind = "usual" if not request.avoid_idle_connection else "single" if self._closes_without_notice else "recent"
        session = self._own_sessions.get(kind)
        if session is None:
            session = self._own_sessions[kind] = _new_session(_LONGEST_IDLE[kind])
        return session

    def _translated(  # noqa: PLR0911  # a table
        self, request: Request, error: Exception, timeouts: Timeouts, connect: float | None
    ) -> RentGPUError:
        call = f"{request.method} {request.path}"
        sessions = self._own_sessions.values() if self._session is None else (self._session,)
        if isinstance(error, RuntimeError) and any(session.closed for session in sessions):
            return ClientStateError(f"{call}: the session is closed")
        if self._use.is_closed:
            return APIConnectionError(f"{call}: the client was closed meanwhile", maybe_processed=True)
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            # The rest of the call's time may be shorter than `connect`, and says nothing to the caller.
            bound = timeouts.connect if connect == timeouts.connect else timeouts.total
            return APITimeoutError(f"{call}: no connection {_within(bound)}", maybe_processed=False)
        if isinstance(error, aiohttp.SocketTimeoutError):
            return APITimeoutError(f"{call}: the service sent nothing {_within(timeouts.read)}", maybe_processed=True)
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError) and error.errno is None:
            return APITimeoutError(f"{call}: no complete answer {_within(timeouts.total)}", maybe_processed=True)
        if isinstance(error, ValueError) and "AUTHORIZATION" in str(error):
            # aiohttp raises this before it sends anything, if a session with trust_env finds the host in netrc.
            return ConfigurationError(f"{call}: the session has a login of its own for this host (netrc)")
        return self._broken(call, error)

    def _broken(self, call: str, error: Exception) -> TransportError:
        never_sent = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ClientConnectorCertificateError))
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            what = f"no connection to the proxy ({error.os_error})"
        elif isinstance(error, aiohttp.ClientHttpProxyError):
            never_sent = True
            what = f"the proxy refused with {error.status}"
        elif isinstance(error, aiohttp.ClientConnectorDNSError):
            what = f"the name {error.host} cannot be resolved ({error.os_error})"
        elif isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
            problem = _tls_problem(error)
            what = f"no secure connection to the service ({problem})"
            # The alert of a server that is overloaded or restarts; all others mean that the two sides cannot agree.
            may_pass = "INTERNAL_ERROR" in (getattr(problem, "reason", None) or "")
            return APIConnectionError(f"{call}: {what}", maybe_processed=False, is_permanent=not may_pass)
        elif isinstance(error, aiohttp.ClientConnectorError):
            what = f"no connection to the service ({error.os_error})"
        elif isinstance(error, aiohttp.ServerDisconnectedError):
            what = "the service closed the connection without an answer"
        elif isinstance(error, aiohttp.ClientResponseError) and "Got more than" in error.message:
            what = "the head of the answer has a line of more than 8 KiB, perhaps a header that a proxy adds"
        elif isinstance(error, aiohttp.ClientResponseError):
            what = "the answer is not HTTP"
        elif isinstance(error, (aiohttp.ClientError, OSError)):
            what = f"the connection broke ({_shown_cause(error)})"
        else:
            what = f"the session or the parser failed ({type(error).__name__})"
        return APIConnectionError(f"{call}: {what}", maybe_processed=not never_sent)


class _Resolver(aiohttp.abc.AbstractResolver):
    """A resolver as aiohttp's own, which also works after the main thread has ended, and while the interpreter exits."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        found = await run_in_thread(
            lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        )
        return [
            aiohttp.abc.ResolveResult(
                hostname=host,
                # A link-local address names its link, too.
                host=f"{address[0]}%{address[3]}" if len(address) == 4 and address[3] else str(address[0]),
                port=int(address[1]),
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Do nothing, because the resolver holds nothing."""


class _SentOnceError(aiohttp.ClientError):
    """A wrapper around an error, because aiohttp would send the request again if it saw the error itself."""

    def __init__(self, original: Exception) -> None:
        super().__init__()
        self.original = original


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from repeating a DELETE by itself, because a 404 to the second would hide that the first was done."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        failure = error
    raise _SentOnceError(failure)


def _within(seconds: float | None) -> str:
    return "in time" if seconds is None else f"within {seconds:g} s"


def _tls_problem(error: aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError) -> Exception:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return cast("Exception", error.certificate_error)
    return cast("Exception", error.os_error)


def _shown_cause(error: Exception) -> Exception:
    """Return a cause that a public error may show: some of aiohttp's errors hold sent headers, or bytes of the answer."""
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError, HttpProcessingError)):
        return aiohttp.ClientError(type(error).__name__)
    return error


def _proxy(proxy: str | None) -> tuple[URL | None, Mapping[str, str] | None]:
    """Split a proxy's URL into a URL without login and a header with the login, so that no error of aiohttp shows it."""
    if proxy is None:
        return None, None
    parts = urlsplit(proxy)
    url = login = None
    try:
        url = URL(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
        if parts.username is None:
            return url, None
        login = aiohttp.encode_basic_auth(unquote(parts.username), unquote(parts.password or ""), "utf-8")
    except ValueError:
        # Our error is raised below, because the error that is handled here holds the login.
        login = None
    if url is None or login is None:
        raise ConfigurationError("the proxy's host, user name or password cannot be sent")
    return url, {"Proxy-Authorization": login}


@lru_cache(maxsize=64)
def _client_timeout(total: float | None, connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    """Build aiohttp's timeouts. They are cached, because every call that succeeds at once has the same."""
    return aiohttp.ClientTimeout(total=total, connect=connect, sock_read=read)


def _check_size(request: Request, head: RawResponse, size: int) -> None:
    if size > LARGEST_BODY:
        raise unexpected(request, head, f"the body is larger than {LARGEST_BODY // 1024**2} MiB")


def _shorter(connect: float | None, remaining: float | None) -> float | None:
    """Shorten the time for connecting so that it ends before the whole call's, because then nothing was sent for certain."""
    if remaining is None:
        return connect
    # aiohttp rounds timers of more than 5 s up to whole seconds.
    before = remaining * 0.9 if remaining <= 5 else remaining - 1
    return before if connect is None else min(connect, before)


def _new_session(longest_idle: float | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            # No limit, because the slots of `Caller` are the limit; a wait in this pool would use up the request's time.
            limit=0,
            force_close=longest_idle is None,
            keepalive_timeout=longest_idle,
            resolver=_Resolver(),
            enable_cleanup_closed=_LEAKS_TLS_CONNECTIONS,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )

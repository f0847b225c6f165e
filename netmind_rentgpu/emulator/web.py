"""The emulator's HTTP server. Only this file of the emulator imports aiohttp."""

from __future__ import annotations

import asyncio
import hmac
import math
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import attrs
from aiohttp import web

from netmind_rentgpu.emulator.account import Account
from netmind_rentgpu.emulator.calls import ROUTES, Call
from netmind_rentgpu.emulator.control_plane import CONTROLS, ControlPlane
from netmind_rentgpu.emulator.faults import Fault, Faults
from netmind_rentgpu.emulator.openapi import openapi
from netmind_rentgpu.emulator.recording import RecordedRequest
from netmind_rentgpu.emulator.service import Service
from netmind_rentgpu.emulator.validation import Checker, Refusal, json_object, json_value

__all__ = ["Server"]

_DESCRIPTION = "/openapi.json"
_JSON = "application/json"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HTML = b"<html><head><title>Welcome</title></head><body>This page has nothing to do with the service.</body></html>"
_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.frozen
class _Call:
    """A call of the service, as a method of `Account`.

    Attributes:
        name: the name of the method.
        read: a function that reads the method's argument from a request and its body.
        boots: True if the call starts a container, so that its method also takes the container's faults.
    """

    name: Call
    read: Callable[[web.Request, bytes], Any]
    boots: bool = False


class _ServiceRequest:
    """A request for a call, with the service that received it, because a reset may replace the service meanwhile."""

    __slots__ = ("body", "call", "number", "record", "request", "service")

    def __init__(
        self, service: Service, call: _Call, request: web.Request, body: bytes, record: RecordedRequest
    ) -> None:
        self.service = service
        self.call = call
        self.request = request
        self.body = body
        self.record = record
        self.number: int | None = None

    def expect(self, how: str, seconds: float | None = None) -> None:
        """Register a create with its account before the service does it. For other calls, it does nothing.

        Args:
            how: the name of the fault that delays the create.
            seconds: the delay by the emulator's clock; None for the fault `slow`, which follows real time.
        """
        if self.call.name == "create_container":
            with suppress(Refusal):
                account = self.account()
                self.number = self.service.at_once(account.expect, self.argument(), how, seconds)

    def act(self, account: Account, faults: Faults, argument: Any) -> bytes:
        """Call the account's method. The faults of a container are chosen when the method starts it."""
        method = cast("Callable[..., bytes]", getattr(account, self.call.name))
        if not self.call.boots:
            return method(argument)
        starting = faults.start(self.call.name, self.request.method, self.request.path)
        expected = {} if self.number is None else {"number": self.number}
        try:
            content = method(argument, starting.faults, **expected)
        except Refusal as refusal:
            if refusal.by_rule:
                starting.refused()
                self.meet("stock-out")
            raise
        starting.done()
        for fault in starting.faults:
            self.meet(fault.what)
        return content

    def meet(self, what: str) -> None:
        """Add a fault's name to the recorded request."""
        self.record.fault = what if self.record.fault is None else f"{self.record.fault}, {what}"

    def account(self) -> Account:
        """Return the account of the request's token.

        Raises:
            Refusal: the token is missing or not accepted.
        """
        return self.service.authorize(self.request.headers.get("Authorization"))

    def argument(self) -> Any:
        """Read the method's argument from the request.

        Raises:
            Refusal: the argument is invalid.
        """
        return self.call.read(self.request, self.body)


class Server:
    """Serves the service and its controls over HTTP."""

    def __init__(
        self, control_plane: ControlPlane, *, hosts: Iterable[str] = (), control_token: str | None = None
    ) -> None:
        """Configure the server.

        Args:
            hosts: host names beside those of the loopback that requests may be addressed to or come from.
            control_token: the token that the controls need; None if they need no token.
        """
        self._control_plane = control_plane
        self._hosts = _LOOPBACK | {host.lower() for host in hosts}
        self._control_token = control_token
        self._runner: web.AppRunner | None = None
        self._listener: socket.socket | None = None
        self._connections: WeakKeyDictionary[asyncio.Task[None], int] = WeakKeyDictionary()
        self._connections_seen = 0
        self._stopping = asyncio.Event()
        self._unfinished: set[asyncio.Task[web.Response]] = set()

    async def start(self, host: str, port: int) -> int:
        """Start serving, and return the port."""
        listener = socket.create_server((host, port), backlog=1024)
        try:
            self._runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=1)
            await self._runner.setup()
            await web.SockSite(self._runner, listener).start()
        except BaseException:
            listener.close()
            await self.stop()
            raise
        self._listener = listener
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Stop serving. Clients that still wait for an answer receive none."""
        self._stopping.set()
        if self._listener is not None:
            # Three rounds of the loop turn accepted sockets into connections. Otherwise asyncio leaves these sockets open.
            asyncio.get_running_loop().remove_reader(self._listener)
            for _ in range(3):
                await asyncio.sleep(0)
        for task in self._unfinished:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application()
        container = _id("container_id")
        calls = [
            _Call("list_machines", _query),
            _Call("create_auth", _body),
            _Call("list_auths", _query),
            _Call("get_auth", _id("auth_id")),
            _Call("create_image", _body),
            _Call("list_images", _query),
            _Call("get_image", _id("image_id")),
            _Call("create_container", _body, boots=True),
            _Call("list_containers", _query),
            _Call("get_container", container),
            _Call("stop_container", container),
            _Call("restart_container", container, boots=True),
            _Call("delete_container", container),
        ]
        control_plane = self._control_plane
        controls: list[tuple[str, str, _Handler]] = [
            ("GET", f"{CONTROLS}/requests", _control(lambda request, _: control_plane.show_requests(request.query))),
            ("DELETE", f"{CONTROLS}/requests", _plain(control_plane.forget_requests)),
            ("GET", f"{CONTROLS}/bill", _plain(control_plane.show_bill)),
            ("GET", f"{CONTROLS}/clock", _plain(control_plane.show_clock)),
            ("POST", f"{CONTROLS}/clock", _control(lambda _, body: control_plane.move_clock(json_value(body)))),
            ("GET", f"{CONTROLS}/faults", _plain(control_plane.show_faults)),
            ("POST", f"{CONTROLS}/faults", _control(lambda _, body: control_plane.add_fault(json_value(body)))),
            ("DELETE", f"{CONTROLS}/faults", _plain(control_plane.clear_faults)),
            ("GET", f"{CONTROLS}/tokens", _plain(control_plane.show_tokens)),
            ("POST", f"{CONTROLS}/tokens", _control(lambda _, body: control_plane.change_tokens(json_value(body)))),
            ("POST", f"{CONTROLS}/gpus", _control(lambda _, body: control_plane.change_gpu_use(json_value(body)))),
            ("POST", f"{CONTROLS}/reset", _plain(control_plane.begin_again)),
            ("GET", _DESCRIPTION, _plain(openapi)),
        ]
        # By `add_route`, because `web.get` would also add a route for HEAD.
        for call in calls:
            application.router.add_route(*ROUTES[call.name], partial(self._guard, partial(self._serve, call)))
        for method, path, handler in controls:
            application.router.add_route(method, path, partial(self._guard, partial(self._control, handler)))
        # A route for all other paths and methods. A middleware would cost time in every call of the service, too.
        application.router.add_route("*", "/{path:.*}", partial(self._guard, self._answer_unknown))
        return application

    async def _guard(self, handler: _Handler, request: web.Request) -> web.StreamResponse:
        """Handle a request, or refuse it if a web page in a browser may have sent it."""
        try:
            self._check_host(request)
        except Refusal as refusal:
            return self._refused(refusal)
        return await handler(request)

    def _check_host(self, request: web.Request) -> None:
        """Refuse a request to an unknown host name or from another site, because a web page may have sent it.

        Raises:
            Refusal: the `Host` or the `Origin` is not allowed.
        """
        headers = request.headers
        host = _name_in(headers.get("Host", ""))
        if host not in self._hosts:
            raise Refusal(
                403, {"detail": f"this emulator is not {host!r}; allow that name with --allow-host"}, by_gateway=True
            )
        origin = headers.get("Origin")
        if origin is not None and _name_in(origin.rpartition("://")[2]) not in self._hosts:
            detail = f"requests from {origin!r} are refused; allow its host with --allow-host"
            raise Refusal(403, {"detail": detail}, by_gateway=True)

    async def _control(self, handler: _Handler, request: web.Request) -> web.StreamResponse:
        try:
            if self._control_token is not None and request.path != _DESCRIPTION:
                self._check_token(request)
            return await handler(request)
        except web.HTTPException as error:  # the body is too large
            return web.json_response({"detail": error.reason}, status=error.status)
        except Refusal as refusal:
            return self._refused(refusal)

    def _check_token(self, request: web.Request) -> None:
        """Refuse a control without the token, because with SSH the controls show passwords of logins to this machine.

        Raises:
            Refusal: the token is missing or wrong.
        """
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, (self._control_token or "").encode()):
            detail = "with SSH the controls need 'Authorization: Bearer TOKEN', the token that the emulator began with"
            raise Refusal(401, {"detail": detail})

    async def _answer_unknown(self, request: web.Request) -> web.StreamResponse:
        """Refuse or redirect a request for a path or method that does not exist, and record it unless it is a control."""
        if request.path in (CONTROLS, _DESCRIPTION) or request.path.startswith(f"{CONTROLS}/"):
            return await self._misdirected(request)
        record = self._record(None, request)
        answer = await self._misdirected(request)
        with suppress(web.HTTPException, ConnectionError):
            self._control_plane.recorder.add_body(record, await request.read())
        record.status = answer.status
        return answer

    async def _misdirected(self, request: web.Request) -> web.Response:
        allowed = await _methods(request)
        if allowed:
            headers = {"Allow": ", ".join(sorted(allowed))}
            return self._refused(Refusal(405, {"detail": "Method Not Allowed"}, by_gateway=True, headers=headers))
        # If a slash at the end is missing or superfluous, redirect to the right path, as FastAPI does.
        path = request.path
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        if request.method in await _methods(request.clone(rel_url=request.rel_url.with_path(other or "/"))):
            return web.Response(status=307, headers={"Location": str(request.url.with_path(other))})
        return self._refused(Refusal(404, {"detail": "Not Found"}, by_gateway=True))

    async def _serve(self, call: _Call, request: web.Request) -> web.StreamResponse:
        record = self._record(call.name, request)
        try:
            body = await request.read()
        except web.HTTPException as error:  # the body is too large
            record.status = error.status
            return self._refused(Refusal(error.status, {"detail": error.reason}, by_gateway=True))
        except ConnectionError:
            return _dropped(request)
        self._control_plane.recorder.add_body(record, body)
        fault = self._control_plane.faults.meet(call.name, request.method, request.path)
        received = _ServiceRequest(self._control_plane.service, call, request, body, record)
        if fault is None:
            answer: web.StreamResponse | None = self._act(received)
        else:
            received.meet(fault.what)
            answer = await self._act_with_fault(fault, received)
        if answer is None:
            return _dropped(request)
        record.status = answer.status
        return answer

    def _act(self, received: _ServiceRequest) -> web.Response:
        """Do a call on the service, and return the response with its answer."""
        try:
            account = received.account()
            return _answer(
                received.service.at_once(received.act, account, self._control_plane.faults, received.argument())
            )
        except Refusal as refusal:
            return self._refused(refusal)

    def _act_later(self, fault: Fault, received: _ServiceRequest) -> web.Response | None:
        """Schedule a call by a late commit; return the response if the service refuses it at once, else None."""
        try:
            account, argument = received.account(), received.argument()
        except Refusal as refusal:
            return self._refused(refusal)
        received.expect(fault.what, fault.seconds)
        service = received.service
        service.at_once(service.later, fault.seconds, received.act, account, self._control_plane.faults, argument)
        return None

    async def _act_with_fault(self, fault: Fault, received: _ServiceRequest) -> web.StreamResponse | None:
        """Handle a request that meets a fault; return the response, or None if the connection breaks without a response."""
        if fault.what == "late commit":
            return self._act_later(fault, received)
        if fault.when == "before" or fault.what == "rate limit":
            return await self._fail_before_acting(fault, received)
        return await self._fail_after_acting(fault, received.request, self._act(received))

    async def _fail_before_acting(self, fault: Fault, received: _ServiceRequest) -> web.Response | None:
        """Apply a fault before the service acts. After the fault `slow`, the service still acts."""
        if fault.what != "slow":
            return await self._answer_as_gateway(fault)

        async def act_slowly() -> web.Response:
            await asyncio.sleep(fault.seconds or 0)
            return self._act(received)

        received.expect(fault.what)
        # In a separate task, so that the service acts even if the client disconnects meanwhile.
        task = asyncio.create_task(act_slowly())
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)

    async def _fail_after_acting(
        self, fault: Fault, request: web.Request, done: web.Response
    ) -> web.StreamResponse | None:
        """Apply a fault to the response `done` after the service acted."""
        content = done.body if isinstance(done.body, bytes) else b""
        match fault.what:
            case "slow":
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), fault.seconds)
            case "cut body":
                return await _cut(request, done, content)
            case "wrong json" | "wrong shape" if done.status == HTTPStatus.NO_CONTENT:  # which cannot have a body
                return None
            case "wrong json":
                return _answer(content[: len(content) // 2] or b"{", done.status)
            case "wrong shape":
                return _answer(b'{"unexpected":%s}' % (content or b"null"), done.status)
            case _:
                return await self._answer_as_gateway(fault)
        return done

    async def _answer_as_gateway(self, fault: Fault) -> web.Response | None:
        """Return the response of a gateway in front of the service; None if the connection breaks without a response."""
        match fault.what:
            case "status":
                return self._gateway(fault.status or 500)
            case "rate limit":
                wait = {} if fault.retry_after is None else {"Retry-After": str(math.ceil(fault.retry_after))}
                return self._gateway(429, wait)
            case "html":
                return web.Response(body=_HTML, content_type="text/html")
            case "hang":
                await self._stopping.wait()
            case _:
                pass
        return None

    def _gateway(self, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
        return self._refused(Refusal(status, {"detail": HTTPStatus(status).phrase}, by_gateway=True, headers=headers))

    def _refused(self, refusal: Refusal) -> web.Response:
        content, kind = self._control_plane.service.dialect.refusal(refusal)
        return web.Response(status=refusal.status, body=content or None, content_type=kind, headers=refusal.headers)

    def _record(self, call: str | None, request: web.Request) -> RecordedRequest:
        control_plane = self._control_plane
        return control_plane.recorder.add(
            call=call,
            method=request.method,
            path=request.path,
            query=request.query,
            connection=self._connection(request.task),
            time=control_plane.clock.now,
        )

    def _connection(self, task: asyncio.Task[None]) -> int:
        # The task identifies the connection, because a request has no transport any more after the client disconnects.
        if task not in self._connections:
            self._connections_seen += 1
            self._connections[task] = self._connections_seen
        return self._connections[task]


def _answer(content: bytes, status: int = 200) -> web.Response:
    return web.Response(body=content, status=status, content_type=_JSON)


def _dropped(request: web.Request) -> web.Response:
    """Break the connection, and return a response that aiohttp requires but cannot send."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _cut(request: web.Request, answer: web.Response, content: bytes) -> web.StreamResponse | None:
    """Send an answer's head and half of its body, and break the connection; None if the body is too short to cut."""
    if len(content) < 2:
        return None
    headers = {"Content-Type": answer.content_type, "Content-Length": str(len(content))}
    half = web.StreamResponse(status=answer.status, headers=headers)
    await half.prepare(request)
    await half.write(content[: len(content) // 2])
    if request.transport is not None:
        request.transport.close()
    return half


async def _methods(request: web.Request) -> set[str]:
    """Return the methods that a request's path allows; an empty set for a path that does not exist."""
    methods: set[str] = set()
    for resource in request.app.router.resources():
        _, allowed = await resource.resolve(request)
        methods |= allowed
    return methods - {"*"}


def _control(call: Callable[[web.Request, bytes], Any]) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response(call(request, await request.read()))

    return handle


def _plain(call: Callable[[], Any]) -> _Handler:
    return _control(lambda _, __: call())


def _query(request: web.Request, _: bytes) -> Any:
    return request.query


def _body(_: web.Request, body: bytes) -> Any:
    return json_object(body)


def _id(name: str) -> Callable[[web.Request, bytes], int]:
    def read(request: web.Request, _: bytes) -> int:
        check = Checker("path", request.match_info, textual=True)
        number: int = check.integer(name)
        check.raise_if_wrong()
        return number

    return read


def _name_in(host: str) -> str:
    """Return the name in a `Host` header, without its port."""
    name = f"{host.partition(']')[0]}]" if host.startswith("[") else host.partition(":")[0]
    return name.lower()

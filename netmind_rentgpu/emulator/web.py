"""The emulated service on a port: the only file of the emulator that knows aiohttp."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import attrs
from aiohttp import web

from netmind_rentgpu.emulator.backstage import PREFIX, Backstage
from netmind_rentgpu.emulator.faults import Fault, Met
from netmind_rentgpu.emulator.openapi import openapi
from netmind_rentgpu.emulator.recording import RecordedRequest
from netmind_rentgpu.emulator.validation import Checker, InvalidRequest, Refusal

__all__ = ["Server"]

_DESCRIPTION = "/openapi.json"
_JSON = "application/json"
_HTML = b"<html><head><title>Welcome</title></head><body>This page has nothing to do with the service.</body></html>"
_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.frozen
class _Call:
    """One of the service's calls.

    Attributes:
        name: of the service's method.
        read: takes the method's argument from a request and its body.
        boots: the method also takes what happens to the container that it starts.
    """

    name: str
    read: Callable[[web.Request, bytes], Any]
    boots: bool = False

    def arguments(self, request: web.Request, body: bytes, faults: Sequence[Fault]) -> tuple[Any, ...]:
        """Read all of the method's arguments."""
        return (self.read(request, body), faults) if self.boots else (self.read(request, body),)


class Server:
    """Serves what stands behind it."""

    def __init__(self, backstage: Backstage) -> None:
        self._backstage = backstage
        self._runner: web.AppRunner | None = None
        self._connections: WeakKeyDictionary[asyncio.BaseTransport, int] = WeakKeyDictionary()
        self._connections_seen = 0
        self._stopping = asyncio.Event()
        self._unfinished: set[asyncio.Task[web.Response]] = set()

    async def start(self, host: str, port: int) -> int:
        """Start to serve; return the port."""
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop; whoever still waits for an answer gets none."""
        self._stopping.set()
        for task in self._unfinished:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application()
        prefix = "/v1/rentgpu"
        one = f"{prefix}/containers/{{container_id}}"
        container = _id("container_id")
        calls: list[tuple[str, str, _Call]] = [
            ("GET", f"{prefix}/machines", _Call("list_machines", _query)),
            ("POST", f"{prefix}/auths/", _Call("create_auth", _body)),
            ("GET", f"{prefix}/auths/", _Call("list_auths", _query)),
            ("GET", f"{prefix}/auths/{{auth_id}}", _Call("get_auth", _id("auth_id"))),
            ("POST", f"{prefix}/images/", _Call("create_image", _body)),
            ("GET", f"{prefix}/images/", _Call("list_images", _query)),
            ("GET", f"{prefix}/images/{{image_id}}", _Call("get_image", _id("image_id"))),
            ("POST", f"{prefix}/containers/", _Call("create_container", _body, boots=True)),
            ("GET", f"{prefix}/containers/", _Call("list_containers", _query)),
            ("GET", one, _Call("get_container", container)),
            ("POST", f"{one}/stop", _Call("stop_container", container)),
            ("POST", f"{one}/restart", _Call("restart_container", container, boots=True)),
            ("DELETE", one, _Call("delete_container", container)),
        ]
        behind = self._backstage
        controls: list[tuple[str, str, _Handler]] = [
            ("GET", f"{PREFIX}/requests", _control(lambda request, _: behind.show_requests(request.query))),
            ("DELETE", f"{PREFIX}/requests", _plain(behind.forget_requests)),
            ("GET", f"{PREFIX}/bill", _plain(behind.show_bill)),
            ("GET", f"{PREFIX}/clock", _plain(behind.show_clock)),
            ("POST", f"{PREFIX}/clock", _control(lambda _, body: behind.move_clock(_json(body)))),
            ("GET", f"{PREFIX}/faults", _plain(behind.show_faults)),
            ("POST", f"{PREFIX}/faults", _control(lambda _, body: behind.add_fault(_json(body)))),
            ("DELETE", f"{PREFIX}/faults", _plain(behind.clear_faults)),
            ("POST", f"{PREFIX}/reset", _plain(behind.begin_again)),
            ("GET", _DESCRIPTION, _plain(openapi)),
        ]
        # One by one, and not as `web.get`, which would add HEAD.
        for method, path, call in calls:
            application.router.add_route(method, path, partial(self._serve, call))
        for method, path, handler in controls:
            application.router.add_route(method, path, partial(self._control, handler))
        # Whatever no other path takes. A middleware would come before the service's own calls, too, and cost each its share.
        application.router.add_route("*", "/{path:.*}", self._answer_what_is_not_there)
        return application

    async def _control(self, handler: _Handler, request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            return self._refused(refusal)

    async def _answer_what_is_not_there(self, request: web.Request) -> web.StreamResponse:
        answer = await self._misdirected(request)
        if not request.path.startswith((f"{PREFIX}/", _DESCRIPTION)):
            self._record(None, request, b"").status = answer.status
        return answer

    async def _misdirected(self, request: web.Request) -> web.Response:
        allowed = await _methods(request)
        if allowed:
            headers = {"Allow": ", ".join(sorted(allowed))}
            return self._refused(Refusal(405, {"detail": "Method Not Allowed"}, by_gateway=True, headers=headers))
        # A path with the wrong slash at its end is sent to the right one, as FastAPI does.
        path = request.path
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        if request.method in await _methods(request.clone(rel_url=request.rel_url.with_path(other or "/"))):
            return web.Response(status=307, headers={"Location": str(request.url.with_path(other))})
        return self._refused(Refusal(404, {"detail": "Not Found"}, by_gateway=True))

    async def _serve(self, call: _Call, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.read()
        except web.HTTPException as error:  # the body is too large
            self._record(call.name, request, b"").status = error.status
            return self._refused(Refusal(error.status, {"detail": error.reason}, by_gateway=True))
        record = self._record(call.name, request, body)
        met = self._backstage.faults.meet(call.name, request.method, request.path)
        if met.names is None:
            answer: web.StreamResponse = self._act(call, request, body)
        else:
            record.fault = met.names
            left = await self._suffer(met, call, request, body)
            if left is None:
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()  # which is written nowhere
            answer = left
        record.status = answer.status
        return answer

    def _act(self, call: _Call, request: web.Request, body: bytes, faults: Sequence[Fault] = ()) -> web.Response:
        """Let the service do what it is asked for, and write its answer."""
        service = self._backstage.service
        try:
            service.authorize(request.headers.get("Authorization"))
            arguments = call.arguments(request, body, faults)
            return web.Response(body=service.at_once(getattr(service, call.name), *arguments), content_type=_JSON)
        except Refusal as refusal:
            return self._refused(refusal)

    async def _suffer(self, met: Met, call: _Call, request: web.Request, body: bytes) -> web.StreamResponse | None:
        """Return the answer that is left of a request that meets faults; None where the connection breaks without one."""
        fault = met.answer
        if fault is None:
            return self._act(call, request, body, met.lives)
        if fault.what == "late commit":
            return self._act_later(fault, call, request, body, met.lives)
        act = partial(self._act, call, request, body, (*met.lives, fault))
        if fault.when == "before" or fault.what == "rate limit":
            return await self._instead(fault, act)
        return await self._afterwards(fault, request, act())

    def _act_later(
        self, fault: Fault, call: _Call, request: web.Request, body: bytes, lives: Sequence[Fault]
    ) -> web.Response | None:
        service = self._backstage.service
        try:
            service.authorize(request.headers.get("Authorization"))
            arguments = call.arguments(request, body, lives)
        except Refusal as refusal:
            return self._refused(refusal)
        service.at_once(service.later, fault.seconds, getattr(service, call.name), *arguments)
        return None

    async def _instead(self, fault: Fault, act: Callable[[], web.Response]) -> web.Response | None:
        """Let a fault come before the service acts, if it still does."""
        if fault.what != "slow":
            return await self._blocked(fault)

        async def slowly() -> web.Response:
            await asyncio.sleep(fault.seconds or 0)
            return act()

        # A task of its own: whoever leaves meanwhile does not keep the service from acting.
        task = asyncio.create_task(slowly())
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)

    async def _afterwards(self, fault: Fault, request: web.Request, done: web.Response) -> web.StreamResponse | None:
        """Let a fault come after the service acted."""
        content = done.body if isinstance(done.body, bytes) else b""
        match fault.what:
            case "slow":
                await asyncio.sleep(fault.seconds or 0)
            case "cut body":
                await _send_half(request, done, content)
            case "wrong json" if done.status < 300:
                return web.Response(body=content[: len(content) // 2] or b"{", content_type=_JSON)
            case "wrong shape" if done.status < 300:
                return web.Response(body=b'{"unexpected":%s}' % (content or b"null"), content_type=_JSON)
            case "drop" | "status" | "hang" | "html":
                return await self._blocked(fault)
            case _:  # a stock-out is the service's own answer
                pass
        return done

    async def _blocked(self, fault: Fault) -> web.Response | None:
        """Answer as if no service had."""
        match fault.what:
            case "status":
                return self._gateway(fault.status or 500)
            case "rate limit":
                wait = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
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
        content, kind = self._backstage.service.dialect.refusal(refusal)
        return web.Response(status=refusal.status, body=content or None, content_type=kind, headers=refusal.headers)

    def _record(self, call: str | None, request: web.Request, body: bytes) -> RecordedRequest:
        backstage = self._backstage
        return backstage.recorder.add(
            call=call,
            method=request.method,
            path=request.path,
            query=request.query,
            body=body,
            connection=self._connection(request.transport),
            time=backstage.clock.now,
        )

    def _connection(self, transport: asyncio.BaseTransport | None) -> int:
        number = None if transport is None else self._connections.get(transport)
        if number is None:
            self._connections_seen += 1
            number = self._connections_seen
            if transport is not None:
                self._connections[transport] = number
        return number


async def _send_half(request: web.Request, answer: web.Response, content: bytes) -> None:
    """Send an answer's head and half of its body, and break the connection."""
    half = web.StreamResponse(
        status=answer.status, headers={"Content-Type": _JSON, "Content-Length": str(len(content))}
    )
    await half.prepare(request)
    await half.write(content[: len(content) // 2])
    if request.transport is not None:
        request.transport.close()


async def _methods(request: web.Request) -> set[str]:
    """Return the methods that a path can be asked with; none for a path that does not exist."""
    found: set[str] = set()
    for resource in request.app.router.resources():
        _, allowed = await resource.resolve(request)
        found |= allowed
    return found - {"*"}


def _control(call: Callable[[web.Request, bytes], Any]) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response(call(request, await request.read()))

    return handle


def _plain(call: Callable[[], Any]) -> _Handler:
    return _control(lambda _, __: call())


def _query(request: web.Request, _: bytes) -> Any:
    return request.query


def _body(_: web.Request, body: bytes) -> Any:
    if not body:
        raise InvalidRequest([{"loc": ["body"], "msg": "field required", "type": "value_error.missing"}])
    content = _json(body)
    if not isinstance(content, dict):
        raise InvalidRequest([{"loc": ["body"], "msg": "value is not a valid dict", "type": "type_error.dict"}])
    return cast("dict[str, Any]", content)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        position = getattr(error, "pos", 0)
        raise InvalidRequest(
            [{"loc": ["body", position], "msg": "the body is not JSON", "type": "value_error.jsondecode"}]
        ) from None


def _id(name: str) -> Callable[[web.Request, bytes], int]:
    def read(request: web.Request, _: bytes) -> int:
        check = Checker("path", request.match_info, textual=True)
        number: int = check.integer(name)
        check.raise_if_wrong()
        return number

    return read

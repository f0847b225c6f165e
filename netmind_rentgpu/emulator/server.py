"""The emulated service on a port: the only file of the emulator that knows aiohttp."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from decimal import Decimal
from functools import partial
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from netmind_rentgpu.emulator.billing import Charge
from netmind_rentgpu.emulator.openapi import openapi
from netmind_rentgpu.emulator.presets import preset_world
from netmind_rentgpu.emulator.service import Service
from netmind_rentgpu.emulator.validation import Checker, InvalidRequest, Refusal
from netmind_rentgpu.emulator.world import World

__all__ = ["Emulator"]

_DESCRIPTION = "/openapi.json"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Emulator:
    """A Rent GPU service on a port of this machine, for as long as the `async with` block.

    Nothing happens in the background: what a container is follows from what time it is. In a program that is not
    asynchronous, `with` serves from a thread.

    Attributes:
        url: what to give a client as base URL.
        token: the one API token that it accepts.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        port: int = 0,
        machines: int = 60,
        boot_seconds: float = 2.0,
        token: str | None = None,
        world: World | str = "documented",
        balance: Decimal | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Set up a service; it is there from `async with` on.

        Args:
            seed: machines, prices and start-up times follow from it.
            port: on 127.0.0.1; 0 for any that is free.
            machines: how many machines there are.
            boot_seconds: about how long a container takes until `ssh` names an endpoint.
            token: made up from the seed where it is None.
            world: how the service behaves where its documentation is silent: a `World`, or the name of a preset.
            balance: US dollars; once as much is spent, creates are refused. None for a balance that never ends.
            clock: seconds since 1970; containers start and costs grow by it.
        """
        self.token: str = token or f"emulator-token-{seed:08x}"
        self._port = port
        self._service = Service(
            seed=seed,
            machines=machines,
            boot_seconds=boot_seconds,
            token=self.token,
            balance=balance,
            world=preset_world(world) if isinstance(world, str) else world,
            clock=clock,
        )
        self._runner: web.AppRunner | None = None
        self._url: str | None = None
        self._stop: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._process: int | None = None

    @property
    def url(self) -> str:
        """The base URL, as http://127.0.0.1:PORT."""
        if self._url is None:
            raise RuntimeError("the emulator has no URL before it is started with 'async with' or 'with'")
        return self._url

    @property
    def charges(self) -> list[Charge]:
        """What each container has cost until now, those that are gone included."""
        return self._service.charges()

    @property
    def running(self) -> list[Charge]:
        """What is rented now, and costs."""
        return [charge for charge in self.charges if charge.running]

    @property
    def spent(self) -> Decimal:
        """What all containers have cost until now, in US dollars."""
        return sum((charge.cost for charge in self.charges), Decimal(0))

    async def __aenter__(self) -> Self:
        if self._runner is not None:
            raise RuntimeError("an emulator is started once; make another one")
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=1)
        self._runner = runner
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def __enter__(self) -> Self:
        started: Future[None] = Future()
        self._process = os.getpid()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="netmind_rentgpu.emulator", daemon=True
        )
        self._thread.start()
        started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A child that was forked within the block leaves it, too, but the server is its parent's.
        if self._stop is not None and self._thread is not None and self._process == os.getpid():
            self._stop()
            self._thread.join()

    async def _serve(self, started: Future[None]) -> None:
        """Serve until told to stop; what keeps it from starting is for the thread that waits for that."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            await self.__aenter__()
        except Exception as error:  # noqa: BLE001  # told elsewhere
            started.set_exception(error)
            return
        self._stop = partial(loop.call_soon_threadsafe, stop.set)
        started.set_result(None)
        try:
            await stop.wait()
        finally:
            await self.__aexit__(None, None, None)

    def __repr__(self) -> str:
        return f"<Emulator at {self._url or 'no port yet'}>"

    def _application(self) -> web.Application:
        service = self._service
        application = web.Application(middlewares=[self._answer_refusals, self._authorized])
        prefix = "/v1/rentgpu"
        containers = f"{prefix}/containers"
        routes = [
            web.get(f"{prefix}/machines", _with_query(service.list_machines), allow_head=False),
            web.post(f"{prefix}/auths/", _with_body(service.create_auth)),
            web.get(f"{prefix}/auths/", _with_query(service.list_auths), allow_head=False),
            web.get(f"{prefix}/auths/{{auth_id}}", _with_id("auth_id", service.get_auth), allow_head=False),
            web.post(f"{prefix}/images/", _with_body(service.create_image)),
            web.get(f"{prefix}/images/", _with_query(service.list_images), allow_head=False),
            web.get(f"{prefix}/images/{{image_id}}", _with_id("image_id", service.get_image), allow_head=False),
            web.post(f"{containers}/", _with_body(service.create_container)),
            web.get(f"{containers}/", _with_query(service.list_containers), allow_head=False),
            web.get(f"{containers}/{{container_id}}", _with_container(service.get_container), allow_head=False),
            web.post(f"{containers}/{{container_id}}/stop", _with_container(service.stop_container)),
            web.post(f"{containers}/{{container_id}}/restart", _with_container(service.restart_container)),
            web.delete(f"{containers}/{{container_id}}", _with_container(service.delete_container)),
        ]
        application.add_routes([*routes, web.get(_DESCRIPTION, _describe, allow_head=False)])
        return application

    @web.middleware
    async def _answer_refusals(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            try:
                return await handler(request)
            except web.HTTPNotFound:
                return await _redirect_or_not_found(request)
            except web.HTTPMethodNotAllowed as error:
                allowed = ", ".join(sorted(error.allowed_methods))
                body = {"detail": "Method Not Allowed"}
                raise Refusal(405, body, by_gateway=True, headers={"Allow": allowed}) from None
        except Refusal as refusal:
            content, kind = self._service.dialect.refusal(refusal)
            return web.Response(status=refusal.status, body=content or None, content_type=kind, headers=refusal.headers)

    @web.middleware
    async def _authorized(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.match_info.http_exception is None and request.path != _DESCRIPTION:
            self._service.authorize(request.headers.get("Authorization"))
        return await handler(request)


async def _describe(_: web.Request) -> web.StreamResponse:
    return web.json_response(openapi())


async def _redirect_or_not_found(request: web.Request) -> web.Response:
    """Send a path with the wrong slash at its end to the right one, as FastAPI does."""
    path = request.path
    other = path.rstrip("/") if path.endswith("/") else f"{path}/"
    match = await request.app.router.resolve(request.clone(rel_url=request.rel_url.with_path(other or "/")))
    if match.http_exception is None:
        return web.Response(status=307, headers={"Location": str(request.url.with_path(other))})
    raise Refusal(404, {"detail": "Not Found"}, by_gateway=True)


def _with_query(call: Callable[[Any], Any]) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response(call(request.query))

    return handle


def _with_body(call: Callable[[Any], Any]) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        text = await request.read()
        if not text:
            raise InvalidRequest([{"loc": ["body"], "msg": "field required", "type": "value_error.missing"}])
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            position = getattr(error, "pos", 0)
            raise InvalidRequest(
                [{"loc": ["body", position], "msg": "the body is not JSON", "type": "value_error.jsondecode"}]
            ) from None
        if not isinstance(body, dict):
            raise InvalidRequest([{"loc": ["body"], "msg": "value is not a valid dict", "type": "type_error.dict"}])
        return web.json_response(call(body))

    return handle


def _with_id(name: str, call: Callable[[int], Any]) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        check = Checker("path", request.match_info, textual=True)
        number = check.integer(name)
        check.raise_if_wrong()
        return web.json_response(call(number))

    return handle


def _with_container(call: Callable[[int], Any]) -> _Handler:
    return _with_id("container_id", call)

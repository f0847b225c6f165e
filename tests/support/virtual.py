"""Time that passes at once, and an account in memory behind the real client: for what takes hours and thousands of tries."""

from __future__ import annotations

import asyncio
import json
import selectors
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from netmind_rentgpu.errors import APIConnectionError, ClientStateError
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.settings import Retries, Settings, Timeouts
from netmind_rentgpu.waiting.reachable import ask_for_greeting
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.messages import RawResponse, Request


class _NoWaiting(selectors.SelectSelector):
    """Where the loop would wait, its clock goes on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time."""

    def __init__(self) -> None:
        self._no_waiting = _NoWaiting()
        super().__init__(self._no_waiting)

    def time(self) -> float:
        return self._no_waiting.now


def virtually(run: Callable[[Account], Awaitable[None]], *, count: int = 0, page: int = 3) -> Account:
    """Run something on an account of some containers, in virtual time; nothing may be left running in the end."""
    loop = VirtualLoop()
    account = Account(loop, 1, page=page)
    for _ in range(count):
        account.create()

    async def all_of_it() -> None:
        async with asyncio.timeout(100_000):
            await run(account)

    try:
        loop.run_until_complete(all_of_it())
        loop.run_until_complete(loop.shutdown_asyncgens())
        assert account.running == 0
        assert not asyncio.all_tasks(loop)
    finally:
        loop.close()
    return account


class Account:
    """Containers as a service keeps them, and how badly it shows them.

    Attributes:
        truth: how each is now, by id.
        history: every state that each has had, the last None where it was deleted.
        order: in which the list shows them.
        lag: for how many seconds the list does not show a new one, and still shows one that was deleted.
        dead_marker: what a marker leads to whose container is not listed.
        trouble: the probability that a request goes wrong.
        meets: what a request meets before it is answered; an answer where it is not.
        closed: the client is closed.
        asked: the requests' paths, as they came.
        running: how many requests are under way.
    """

    def __init__(self, loop: VirtualLoop, seed: int, *, page: int = 3) -> None:
        self.loop = loop
        self.random = Random(seed)
        self.truth: dict[int, dict[str, Any]] = {}
        self.history: dict[int, list[dict[str, Any] | None]] = {}
        self.order: list[int] = []
        self.created: dict[int, float] = {}
        self.deleted: dict[int, tuple[float, dict[str, Any]]] = {}
        self.lag = 0.0
        self.dead_marker = "by value"
        self.trouble = 0.0
        self.meets: Callable[[Request], Awaitable[RawResponse | None]] | None = None
        self.closed = False
        self.latency = 0.01
        self.page = page
        self.asked: list[str] = []
        self.running = 0

    @property
    def connection_limit(self) -> int | None:
        return None

    def check_usable(self) -> None:
        if self.closed:
            raise ClientStateError("the client is closed")

    async def close(self) -> None:
        pass

    def containers(self) -> AsyncContainers:
        """Return the client's containers, on this account."""
        settings = Settings.resolve(
            token="t",
            base_url="http://127.0.0.1:1",
            proxy=None,
            timeout=Timeouts(),
            retries=Retries(max_attempts=2),
            max_connections=100,
            allow_insecure_http=False,
            environment={"NETMIND_RENTGPU_STATE": "state.sqlite3"},
        )
        profile = ServiceProfile(page_size=self.page)
        caller = Caller(self, settings, profile, clock=self.loop.time, sleep=asyncio.sleep, random=self.random.random)
        containers = AsyncContainers(caller, ask_for_greeting)
        # Every run is the same.
        containers._poller._random = self.random.random
        return containers

    def create(self) -> int:
        container_id = 100 + len(self.history)
        self.history[container_id] = []
        self.created[container_id] = self.loop.time()
        self.order.append(container_id)
        self.set(container_id, 0)
        return container_id

    def set(self, container_id: int, status: int, ssh: str | None = None) -> None:
        self.truth[container_id] = {"id": container_id, "name": f"n{container_id}", "status": status, "ssh": ssh}
        self.history[container_id].append(self.truth[container_id])

    def revert(self, container_id: int) -> None:
        """Let one be as it was before its last change."""
        before = self.history[container_id][-2:][0]
        assert before is not None
        self.set(container_id, before["status"], before["ssh"])

    def delete(self, container_id: int) -> None:
        self.deleted[container_id] = self.loop.time(), self.truth.pop(container_id)
        self.history[container_id].append(None)

    def listed(self) -> list[dict[str, Any]]:
        now = self.loop.time()
        shown: list[dict[str, Any]] = []
        for one in self.order:
            if one in self.truth:
                if now - self.created[one] >= self.lag:
                    shown.append(self.truth[one])
            elif now - self.deleted[one][0] < self.lag:
                shown.append(self.deleted[one][1])
        return shown

    async def send(self, request: Request, timeouts: Timeouts, remaining: float | None) -> RawResponse:
        self.asked.append(request.path)
        self.running += 1
        try:
            await asyncio.sleep(self.latency * self.random.uniform(0.5, 1.5))
            if self.random.random() < self.trouble:
                trouble = self.random.choice(TROUBLES)
                answer = await trouble(self)
                if answer is not None:
                    return answer
            if self.meets is not None:
                answer = await self.meets(request)
                if answer is not None:
                    return answer
            return self._answer(request)
        finally:
            self.running -= 1

    def _answer(self, request: Request) -> RawResponse:
        item = request.path.rpartition("/")[2]
        if request.method != "GET":
            return self._act(request)
        if item:
            found = self.truth.get(int(item))
            return answered(404, {"detail": "not found"}) if found is None else answered(200, found)
        return self._page(request.query.get("marker"), min(self.page, int(request.query["limit"])))

    def _act(self, request: Request) -> RawResponse:
        *_, number, what = request.path.split("/") if request.method == "POST" else (*request.path.split("/"), "delete")
        container_id = int(number)
        if container_id not in self.truth:
            return answered(404, {"detail": "not found"})
        before = self.truth[container_id]
        if what == "delete":
            self.delete(container_id)
        else:
            self.set(container_id, before["status"] + 1, None if what == "stop" else before["ssh"])
        return answered(200, self.truth.get(container_id, before))

    def _page(self, marker: str | None, limit: int) -> RawResponse:
        shown = self.listed()
        start = 0
        if marker is not None:
            ids = [one["id"] for one in shown]
            if int(marker) in ids:
                start = ids.index(int(marker)) + 1
            elif self.dead_marker == "404":
                return answered(404, {"detail": "marker not found"})
            elif self.dead_marker == "by value":
                start = bisect_right(sorted(ids), int(marker))
        return answered(200, shown[start : start + limit])


def answered(status: int, content: Any) -> RawResponse:
    return RawResponse(status, {}, json.dumps(content).encode())


async def _rate_limited(_: Account) -> RawResponse | None:
    return RawResponse(429, {"retry-after": "2"}, b"{}")


async def _bad_gateway(_: Account) -> RawResponse | None:
    return RawResponse(502, {}, b"<html>")


async def _reset(_: Account) -> RawResponse | None:
    raise APIConnectionError("reset", maybe_processed=True)


async def _not_json(_: Account) -> RawResponse | None:
    return RawResponse(200, {}, b"<html>")


async def _slow(_: Account) -> RawResponse | None:
    await asyncio.sleep(3)
    return None


TROUBLES: list[Callable[[Account], Awaitable[RawResponse | None]]] = [
    _rate_limited,
    _bad_gateway,
    _reset,
    _not_json,
    _slow,
]

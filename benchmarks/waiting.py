"""Waiting for n containers: requests and processor time for each look, beside a bare `get` for each (aiohttp and orjson).

The service is a process of its own that returns what it has written before, so that what is measured is the client's. All
containers are waited for by a `wait` of their own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import attrs
import orjson

from benchmarks.measure import report
from benchmarks.server import CONTAINER
from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.conditions import has_ssh
from netmind_rentgpu.waiting.strategy import AdaptiveInterval

SIZES = (10, 100, 1_000, 10_000)
MOST_ROUNDS = 7
LIST = "/v1/rentgpu/containers/"
# How many of the containers change between two looks: one in so many.
ONE_IN = 10
_IDLE_LOOKS = 5
FEWER_REQUESTS, LESS_TIME, IDLE_MICROSECONDS = 50.0, 10.0, 3.0
BARE, IDLE, CHANGED = "a get for each, bare", "waits, nothing changed", "waits, a tenth changed"


# The service.


class _Service:
    """Containers without an endpoint, as text."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.requests = 0
        self.version = 0
        self.items = [self._item(number, 0) for number in range(count)]
        self.pages: dict[tuple[int, int], bytes] = {}

    @staticmethod
    def _item(number: int, status: int) -> bytes:
        return json.dumps({**CONTAINER, "id": number + 1, "name": f"n-{number}", "ssh": "", "status": status}).encode()

    def change(self) -> None:
        """Let a tenth of the containers change, spread over the list."""
        self.version += 1
        for number in range(self.version % ONE_IN, self.count, ONE_IN):
            self.items[number] = self._item(number, self.version)
        self.pages.clear()

    def answer(self, target: str) -> bytes:
        parts = urlsplit(target)
        if parts.path == "/change":
            self.change()
            return b"null"
        if parts.path == "/requests":
            return json.dumps(self.requests).encode()
        self.requests += 1
        item = parts.path.removeprefix(LIST)
        if item:
            return self.items[int(item) - 1]
        query = parse_qs(parts.query)
        start, limit = int(query.get("marker", ["0"])[0]), min(100, int(query["limit"][0]))
        if (start, limit) not in self.pages:
            self.pages[start, limit] = b"[" + b",".join(self.items[start : start + limit]) + b"]"
        return self.pages[start, limit]


class _Connection(asyncio.Protocol):
    def __init__(self, service: _Service) -> None:
        self._service = service
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a server's is one

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            target = self._received.split(b" ", 2)[1].decode()
            self._received = self._received[end + 4 :]
            body = self._service.answer(target)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            self._transport.write(head + body)


async def _serve(count: int) -> None:
    service = _Service(count)
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(service), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@contextmanager
def _serving(count: int) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.waiting", str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


# What is measured.


class _Looks(AdaptiveInterval):
    """Lets each look be begun by hand, and says when it is over."""

    def __init__(self) -> None:
        super().__init__(longest=1e9)
        self.over = asyncio.Event()

    def after_look(self, random: float, *, changed: bool) -> float:
        del random, changed
        self.over.set()
        return 1e9


@attrs.frozen
class Measured:
    """One round.

    Attributes:
        seconds: of this process's processor time, for each way to look once at all containers.
        requests: how many each took.
    """

    seconds: dict[str, float]
    requests: dict[str, int]


class _Bench:
    def __init__(self, url: str, session: aiohttp.ClientSession, gpu: AsyncRentGPU, count: int) -> None:
        self._url = url
        self._session = session
        self._count = count
        self._containers = gpu.containers
        self._looks = _Looks()
        self._poller = gpu.containers._poller  # noqa: SLF001  # what is measured is one of its looks
        self._poller.schedule.interval = self._looks

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[float]:
        """Wait for all containers; give how many bytes each wait takes."""
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        waits = [
            asyncio.create_task(self._containers.wait(one + 1, until=has_ssh, timeout=1e6))
            for one in range(self._count)
        ]
        await self._looks.over.wait()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        try:
            yield (after - before) / self._count
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)

    async def round(self) -> Measured:
        seconds: dict[str, float] = {}
        requests: dict[str, int] = {}
        for name, change, look in ((BARE, True, self._bare), (CHANGED, True, self._look), (IDLE, False, self._look)):
            if change:
                await self._ask("/change")
            # What is idle goes on being so, while a change is one look's.
            times = _IDLE_LOOKS if name == IDLE else 1
            before = await self._ask("/requests")
            began = time.process_time()
            for _ in range(times):
                await look()
            seconds[name] = (time.process_time() - began) / times
            requests[name] = (await self._ask("/requests") - before) // times
        return Measured(seconds, requests)

    async def _ask(self, path: str) -> Any:
        async with self._session.get(f"{self._url}{path}") as response:
            return orjson.loads(await response.read())

    async def _look(self) -> None:
        self._looks.over.clear()
        self._poller.schedule.round_due = asyncio.get_running_loop().time()
        self._poller._wake_leader()  # noqa: SLF001
        await self._looks.over.wait()

    async def _bare(self) -> None:
        ids = iter(range(1, self._count + 1))

        async def some() -> None:
            for one in ids:
                found = await self._ask(f"{LIST}{one}")
                assert not found["ssh"]

        await asyncio.gather(*(some() for _ in range(100)))


async def _measure(url: str, count: int, rounds: int) -> tuple[list[Measured], float]:
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session,
        AsyncRentGPU("token", base_url=url) as gpu,
    ):
        bench = _Bench(url, session, gpu, count)
        async with bench.waiting() as size:
            # The first time is not like the others.
            await bench.round()
            return [await bench.round() for _ in range(rounds)], size


def run(rounds: int, plot: Path | None = None) -> bool:
    """Measure for each size; draw the curves into a folder, where one is given."""
    kept = True
    medians: dict[int, dict[str, float]] = {}
    requests: dict[int, dict[str, int]] = {}
    for count in SIZES:
        with _serving(count) as url:
            found, size = asyncio.run(_measure(url, count, min(rounds, MOST_ROUNDS)))
        milliseconds = [{name: value * 1e3 for name, value in one.seconds.items()} for one in found]
        most = count == SIZES[-1]
        title = f"One look at {count} containers that are all waited for, processor time"
        kept &= report(title, milliseconds, BARE, "ms", {CHANGED: 1 / LESS_TIME} if most else {})
        medians[count] = {name: statistics.median(one[name] for one in milliseconds) for name in milliseconds[0]}
        requests[count] = found[-1].requests
        fewer = requests[count][BARE] / requests[count][CHANGED]
        # What a busy machine adds is never less than nothing, so that the least is nearest to what it costs.
        idle = min(one[IDLE] for one in milliseconds) / count * 1e3
        verdict = ""
        if most:
            good = fewer >= FEWER_REQUESTS and idle <= IDLE_MICROSECONDS
            kept &= good
            verdict = f"  at least {FEWER_REQUESTS:g}, at most {IDLE_MICROSECONDS:g}: {'kept' if good else 'MISSED'}"
        print(
            f"  requests: {requests[count][CHANGED]}, {fewer:g} times fewer; "
            f"{idle:.2f} us a look for each idle wait, at least; {size:.0f} bytes each{verdict}"
        )
    if plot is not None:
        _draw(plot, medians, requests)
    return kept


def _draw(folder: Path, medians: Mapping[int, Mapping[str, float]], requests: Mapping[int, Mapping[str, int]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    # The same figures make the same file.
    mpl.rcParams.update({"svg.hashsalt": "waiting", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colours = {BARE: "#c44e52", CHANGED: "#4c72b0", IDLE: "#55a868"}
    sizes = list(medians)
    for axes, values, title, unit in (
        (left, requests, "Requests for one look", "requests"),
        (right, medians, "Processor time of the client for one look", "ms"),
    ):
        for name, colour in colours.items():
            if values is requests and name == IDLE:
                continue
            label = "waits" if values is requests and name == CHANGED else name
            axes.loglog(sizes, [values[size][name] for size in sizes], "o-", color=colour, label=label)
        axes.set(title=title, xlabel="containers that are waited for", ylabel=unit, xticks=sizes)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.grid(visible=True, which="major", color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "waiting.svg", metadata={"Date": None})


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))

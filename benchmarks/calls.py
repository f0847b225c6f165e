"""A typed `containers.get` beside bare aiohttp with orjson, the same headers and a timeout for each call.

Between the two stand the client's own layers, each with all that is below it, so that what a call costs more can be seen
to the part: sending (which request, the body's limit, what a failure means), then slots, deadline, retries and parsing,
then the argument's check and the model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp
import orjson

from benchmarks.measure import report
from benchmarks.server import PATH, serving
from netmind_rentgpu import DEFAULT, AsyncRentGPU, Container, ServiceProfile, Timeouts
from netmind_rentgpu.settings import Settings
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.messages import Request
from netmind_rentgpu.wire.transport import Transport

LIMIT = 1.15
BARE = "bare aiohttp and orjson"


async def _timed(call: Callable[[], Awaitable[object]], concurrency: int, calls: int) -> float:
    """Return the microseconds a call takes."""

    async def some() -> None:
        for _ in range(calls // concurrency):
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(concurrency)))
    return (time.perf_counter() - began) / calls * 1e6


async def _run(url: str, rounds: int) -> bool:
    timeouts = Timeouts()
    headers = {"Authorization": "Bearer token", "Accept": "application/json", "User-Agent": "benchmark"}
    timeout = aiohttp.ClientTimeout(total=timeouts.total, connect=timeouts.connect, sock_read=timeouts.read)
    address = f"{url}{PATH}"
    settings = Settings.resolve(
        token="token",  # noqa: S106  # no secret
        base_url=url,
        proxy=None,
        timeout=DEFAULT,
        retries=DEFAULT,
        max_connections=100,
        allow_insecure_http=False,
        environment={"NO_PROXY": "*"},
    )
    transport = Transport(settings, authorization=headers["Authorization"])
    caller = Caller(transport, settings, ServiceProfile())
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session,
        AsyncRentGPU("token", base_url=url) as gpu,
    ):

        async def bare() -> object:
            async with session.get(address, headers=headers, timeout=timeout, allow_redirects=False) as response:
                return orjson.loads(await response.read())

        async def sent() -> object:
            return orjson.loads((await transport.send(Request(method="GET", path=PATH), timeouts, timeouts.total)).body)

        async def called() -> object:
            return (await caller.call(Request(method="GET", path=PATH))).payload

        async def typed() -> Container:
            return await gpu.containers.get(1)

        transport.check_usable()
        candidates = {
            BARE: bare,
            "  with the client's transport": sent,
            "  and slots, deadline, retries, log": called,
            "containers.get (and the model)": typed,
        }
        kept = True
        for concurrency in (1, 64):
            found = [
                {name: await _timed(candidate, concurrency, 1280) for name, candidate in candidates.items()}
                for _ in range(rounds)
            ]
            title = f"A call over loopback, {concurrency} at a time"
            kept &= report(title, found, BARE, "us", {"containers.get (and the model)": LIMIT})
        await caller.close()
        return kept


def run(rounds: int) -> bool:
    """Measure against a server in a process of its own."""
    with serving() as url:
        return asyncio.run(_run(url, rounds))

"""A typed `containers.get` beside bare aiohttp with orjson, the same headers and a timeout for each call."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import orjson

from benchmarks.measure import report
from netmind_rentgpu import AsyncRentGPU, Container, Timeouts

LIMIT = 1.15


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
    address = f"{url}/v1/rentgpu/containers/1"
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session,
        AsyncRentGPU("token", base_url=url) as gpu,
    ):

        async def bare() -> object:
            async with session.get(address, headers=headers, timeout=timeout, allow_redirects=False) as response:
                return orjson.loads(await response.read())

        async def typed() -> Container:
            return await gpu.containers.get(1)

        kept = True
        for concurrency in (1, 64):
            found = []
            for _ in range(rounds):
                calls = 1280
                found.append(
                    {
                        "bare aiohttp and orjson": await _timed(bare, concurrency, calls),
                        "containers.get": await _timed(typed, concurrency, calls),
                    }
                )
            title = f"A call over loopback, {concurrency} at a time"
            kept &= report(title, found, "bare aiohttp and orjson", "us", {"containers.get": LIMIT})
        return kept


def run(rounds: int) -> bool:
    """Measure against a server in a process of its own."""
    with subprocess.Popen([sys.executable, "-m", "benchmarks.server"], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = server.stdout.readline().strip() if server.stdout else ""
            return asyncio.run(_run(f"http://127.0.0.1:{port}", rounds))
        finally:
            server.kill()

"""Renting 200 machines at once, until the last create was answered, beside 200 bare creates (aiohttp and orjson).

The emulator runs in a process of its own, and its containers take an hour to start, so that nobody logs in. Renting is with
all that belongs to it: the machines are listed once and ranked, each intent is on the disk before its create is sent, and
those that were answered are waited for meanwhile. Each round ends with nothing rented.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import orjson

from benchmarks.measure import report
from netmind_rentgpu import AsyncRentGPU, Container, Offer, PaymentType
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.rentals.ledger.names import new_name

AT_ONCE, CONNECTIONS, MACHINES = 200, 100, 200
MOST_ROUNDS = 11
LIMIT = 1.5
PATH = "/v1/rentgpu/containers/"
BARE, FRESH = "bare creates", "bare creates, fresh connections"
CREATES, RENTALS = "containers.create", "rent"


async def _serve() -> None:
    async with Emulator(seed=1, machines=MACHINES, boot_seconds=3600, keep_requests=1000) as emulator:
        print(emulator.url, emulator.token, flush=True)
        await asyncio.Event().wait()


@contextmanager
def _serving() -> Iterator[tuple[str, str]]:
    command = [sys.executable, "-m", "benchmarks.renting"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, token = process.stdout.readline().split()
            yield url, token
        finally:
            process.kill()


class _Watch:
    """Seconds since it was made: that have passed, and of this process's processor time."""

    def __init__(self) -> None:
        self._began, self._busy = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._began, time.process_time() - self._busy


class _Bench:
    def __init__(self, url: str, token: str, gpu: AsyncRentGPU, auth_id: int, offers: list[Offer]) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "User-Agent": "benchmark"}
        self._gpu = gpu
        self._auth_id = auth_id
        # As rent takes them: the cheapest machine for as long as it has GPUs.
        nodes = (offer.machine for offer in offers)
        self._nodes = [node.node_name for node in nodes for _ in range(node.gpu_count or 0)][:AT_ONCE]
        self.commits = 0

    async def bare(self, session: aiohttp.ClientSession) -> tuple[float, float]:
        """Create, and return the seconds that took, and those of the processor."""
        timeout = aiohttp.ClientTimeout(total=120, connect=10, sock_read=30)

        async def create(node_name: str) -> int:
            body = orjson.dumps(
                {
                    "name": new_name(read_clocks().wall),
                    "auth_id": self._auth_id,
                    "gpu": 1,
                    "node_name": node_name,
                    "image_template_id": 1,
                    "payment_type": 0,
                }
            )
            headers = {**self._headers, "Content-Type": "application/json"}
            async with session.post(f"{self._url}{PATH}", data=body, headers=headers, timeout=timeout) as response:
                found = orjson.loads(await response.read())
                assert response.status == 200, found
                return int(found["id"])

        watch = _Watch()
        made = await asyncio.gather(*(create(node) for node in self._nodes))
        seconds = watch.read()
        await self._delete(made)
        return seconds

    async def creates(self) -> tuple[float, float]:
        """Do so by the client."""

        async def create(node_name: str) -> int:
            container = await self._gpu.containers.create(
                name=new_name(read_clocks().wall),
                auth_id=self._auth_id,
                gpu=1,
                node_name=node_name,
                image_template_id=1,
                payment_type=PaymentType.USD,
            )
            return container.id

        watch = _Watch()
        made = await asyncio.gather(*(create(node) for node in self._nodes))
        seconds = watch.read()
        await self._delete(made)
        return seconds

    async def rentals(self) -> tuple[float, float]:
        """Rent, and return the seconds until the last create was answered, and those of the processor."""
        answered, seconds, over = count(1), (0.0, 0.0), asyncio.Event()
        create = self._gpu.containers.create

        async def counted(**arguments: Any) -> Container:
            nonlocal seconds
            container = await create(**arguments)
            if next(answered) == AT_ONCE:
                seconds = watch.read()
                over.set()
            return container

        async def rent() -> None:
            async with self._gpu.rent(image=1):
                raise AssertionError("nothing starts within an hour")

        watch = _Watch()
        self._gpu.containers.create = counted  # type: ignore[method-assign]  # for as long as this takes
        renting = {asyncio.create_task(rent()) for _ in range(AT_ONCE)}
        waiting = asyncio.create_task(over.wait())
        try:
            done, _ = await asyncio.wait({waiting, *renting}, return_when=asyncio.FIRST_COMPLETED)
            if waiting not in done:
                done.pop().result()
        finally:
            del self._gpu.containers.create
            for task in (waiting, *renting):
                task.cancel()
            await asyncio.wait({waiting, *renting})
        return seconds

    async def check(self) -> None:
        """See that nothing is left, on the service or on record."""
        left = [container.name async for container in self._gpu.containers.list()]
        assert not left, left
        assert not await self._gpu.rentals.list()

    def count_commits(self) -> None:
        """Count what goes to the disk: one transaction is one `fsync`."""
        state = self._gpu._state  # noqa: SLF001  # what is counted is its own
        together = state._together  # noqa: SLF001

        def counted(acts: Any) -> Any:
            self.commits += 1
            return together(acts)

        state._together = counted  # type: ignore[method-assign]  # noqa: SLF001

    async def _delete(self, ids: list[int]) -> None:
        await asyncio.gather(*(self._gpu.containers.delete(one) for one in ids))


async def _run(url: str, token: str, state: Path, rounds: int) -> bool:
    kept, fresh = aiohttp.TCPConnector(limit=CONNECTIONS), aiohttp.TCPConnector(limit=CONNECTIONS, force_close=True)
    async with (
        aiohttp.ClientSession(connector=kept, cookie_jar=aiohttp.DummyCookieJar()) as session,
        aiohttp.ClientSession(connector=fresh, cookie_jar=aiohttp.DummyCookieJar()) as fresh_session,
        AsyncRentGPU(token, base_url=url, state=state, max_connections=CONNECTIONS) as gpu,
    ):
        auth = await gpu.auths.ensure("a-long-password")
        bench = _Bench(url, token, gpu, auth.id, await gpu.offers())
        candidates: dict[str, Callable[[], Awaitable[tuple[float, float]]]] = {
            BARE: lambda: bench.bare(session),
            FRESH: lambda: bench.bare(fresh_session),
            CREATES: bench.creates,
            RENTALS: bench.rentals,
        }
        # The first time is not like the others: the account's own password is made then.
        for candidate in candidates.values():
            await candidate()
        bench.count_commits()
        passed: list[dict[str, float]] = []
        busy: list[dict[str, float]] = []
        for _ in range(rounds):
            found: dict[str, tuple[float, float]] = {}
            for name, candidate in candidates.items():
                # What one leaves is not to be collected in another's time: all of it would be, in that of the longest.
                gc.collect()
                found[name] = await candidate()
                await bench.check()
            passed.append({name: seconds * 1e3 for name, (seconds, _) in found.items()})
            busy.append({name: seconds * 1e3 for name, (_, seconds) in found.items()})
        title = f"{AT_ONCE} at once, over at most {CONNECTIONS} connections"
        good = report(title, passed, BARE, "ms", {RENTALS: LIMIT})
        report(f"{title}: the client's processor time", busy, BARE, "ms", {})
        print(f"  commits to the disk, those of giving back included: {bench.commits / rounds:.0f} a round")
        return good


def run(rounds: int) -> bool:
    """Measure against an emulator in a process of its own."""
    with _serving() as (url, token), TemporaryDirectory() as folder:
        return asyncio.run(_run(url, token, Path(folder) / "state.sqlite3", min(rounds, MOST_ROUNDS)))


if __name__ == "__main__":
    asyncio.run(_serve())

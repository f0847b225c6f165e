"""The emulator under load: 10,000 containers and 500 clients at once; and a list page beside a handler that only returns it.

The service runs in a process of its own. What one page costs is that process's time on a processor, so that the client's
share is not in it.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

from aiohttp import web

from benchmarks.measure import report
from netmind_rentgpu import AsyncRentGPU, PaymentType
from netmind_rentgpu.emulator import Emulator

CONTAINERS, CLIENTS, SECONDS = 10_000, 500, 20.0
LIMIT = 2.0
PAGE = "/v1/rentgpu/containers/?limit=100&marker={}"
BARE = "a bare aiohttp handler"
PAGES_A_ROUND, CONNECTIONS = 2000, 8
# Of one GPU on average; enough for all of them and for those that come and go meanwhile.
MACHINES = 4_000


@dataclass
class Served:
    """A server in a process of its own."""

    pid: int
    url: str
    token: str

    def memory(self) -> int:
        """Return its resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def processor_seconds(self) -> float:
        """Return how long its main thread, which serves, has been on a processor."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    def get(self, path: str) -> bytes:
        """Ask it once."""
        request = Request(  # noqa: S310  # our own
            f"{self.url}{path}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urlopen(request, timeout=60) as answer:  # noqa: S310  # our own
            return bytes(answer.read())


@dataclass
class Tally:
    """What the clients did, and what is to be there for it."""

    made: int = 0
    listed: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311  # the same load every time
    calls: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    rented: dict[int, str] = field(default_factory=dict)
    machines: list[tuple[str, int]] = field(default_factory=list)


async def _serve_emulator() -> None:
    async with Emulator(seed=1, machines=MACHINES, boot_seconds=5, keep_requests=1000) as emulator:
        print(emulator.url, emulator.token, flush=True)
        await asyncio.Event().wait()


async def _serve_bytes() -> None:
    body = sys.stdin.buffer.read()

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    application = web.Application()
    application.router.add_get("/v1/rentgpu/containers/", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]} none", flush=True)
    await asyncio.Event().wait()


@contextmanager
def _serving(what: str, content: bytes = b"") -> Iterator[Served]:
    command = [sys.executable, "-m", "benchmarks.load", what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(content)
            process.stdin.close()
            url, token = process.stdout.readline().decode().split()
            yield Served(process.pid, url, token)
        finally:
            process.kill()


# The load.


async def _create(gpu: AsyncRentGPU, tally: Tally) -> int:
    tally.made += 1
    name = f"load-{tally.made}"
    node_name, _ = tally.machines[tally.made % len(tally.machines)]
    container = await gpu.containers.create(
        name=name, auth_id=1, gpu=1, node_name=node_name, image_template_id=1, payment_type=PaymentType.USD
    )
    tally.rented[container.id] = name
    tally.calls["create"] += 1
    return container.id


async def _fill(gpu: AsyncRentGPU, tally: Tally, count: int) -> None:
    for _ in range(count):
        await _create(gpu, tally)


async def _use(gpu: AsyncRentGPU, tally: Tally, until: float) -> None:
    chance = tally.chance
    ids = list(tally.rented)
    while time.monotonic() < until:
        dice = chance.random()
        if dice < 0.7:
            await gpu.containers.get(chance.choice(ids))
            tally.calls["get"] += 1
        elif dice < 0.9:
            page = await gpu.containers.list(page_size=100, marker=chance.choice(ids))
            tally.calls["list"] += 1
            tally.listed += len(page)
        else:
            container = await _create(gpu, tally)
            await gpu.containers.delete(container)
            del tally.rented[container]
            tally.calls["delete"] += 1


async def _load(served: Served) -> bool:
    tally = Tally()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncRentGPU(served.token, base_url=served.url, timeout=120, retries=0))
            for _ in range(CLIENTS)
        ]
        await clients[0].auths.create("a-password")
        machines = await clients[0].machines.list()
        # One entry for each GPU, so that creates spread as the stock does.
        tally.machines = [(one.node_name, number) for one in machines for number in range(one.gpu_count or 0)]
        tally.chance.shuffle(tally.machines)

        before, began = served.memory(), time.monotonic()
        await asyncio.gather(*(_fill(gpu, tally, CONTAINERS // CLIENTS) for gpu in clients))
        seconds = time.monotonic() - began
        each = (served.memory() - before) / CONTAINERS
        print(f"\n{CONTAINERS} containers, {CLIENTS} clients at once, each with connections of its own")
        print(
            f"  filled in {seconds:.1f} s: {CONTAINERS / seconds:.0f} creates a second, {each:.0f} bytes for each container"
        )

        tally.calls.clear()
        began, busy = time.monotonic(), served.processor_seconds()
        results = await asyncio.gather(
            *(_use(gpu, tally, began + SECONDS) for gpu in clients),
            return_exceptions=True,
        )
        seconds, busy = time.monotonic() - began, served.processor_seconds() - busy
    errors = [repr(result) for result in results if result is not None]
    calls = sum(tally.calls.values())
    print(
        f"  used for {seconds:.1f} s: {calls / seconds:.0f} requests a second, {busy / calls * 1e6:.0f} us of service each"
    )
    done = ", ".join(f"{count} {name}" for name, count in tally.calls.most_common())
    print(f"  {done}; {tally.listed / tally.calls['list']:.0f} containers on a page")

    charges = json.loads(served.get("/_emulator/bill"))["charges"]
    running = {charge["container_id"]: charge["name"] for charge in charges if charge["running"]}
    lost = len(tally.rented.items() - running.items()) + len(running.items() - tally.rented.items())
    unknown = len(charges) - tally.made
    print(f"  errors: {len(errors)}; creates lost or doubled: {lost + abs(unknown)}, of {tally.made}")
    for error in errors[:3]:
        print(f"    {error}")
    return not errors and not lost and not unknown


# One page.


async def _ask(served: Served, markers: Sequence[int]) -> None:
    """Ask for pages over one kept connection, with as little of a client as will do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
    for marker in markers:
        head = f"GET {PAGE.format(marker)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
    writer.close()


async def _cost(served: Served, markers: Sequence[int]) -> float:
    """Return the microseconds of the server's processor that a page takes."""
    before = served.processor_seconds()
    await asyncio.gather(*(_ask(served, markers[number::CONNECTIONS]) for number in range(CONNECTIONS)))
    return (served.processor_seconds() - before) / len(markers) * 1e6


def _compare(emulator: Served, rounds: int) -> bool:
    page = emulator.get(PAGE.format(6000))
    same = [6000] * PAGES_A_ROUND
    # Each is another one, so that none can be shown as it was shown before.
    different = list(range(2000, 2000 + PAGES_A_ROUND))
    with _serving("bytes", page) as bare:
        assert bare.get(PAGE.format(6000)) == page
        candidates = {
            BARE: (bare, same),
            "the emulator, the same page again": (emulator, same),
            "the emulator, always another page": (emulator, different),
        }
        found = [
            {name: asyncio.run(_cost(served, markers)) for name, (served, markers) in candidates.items()}
            for _ in range(rounds)
        ]
    title = f"A list page of {len(json.loads(page))} of {CONTAINERS} containers, {len(page)} bytes"
    return report(title, found, BARE, "us", dict.fromkeys(list(candidates)[1:], LIMIT))


def run(rounds: int) -> bool:
    """Measure against servers in processes of their own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CLIENTS
    if soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
    with _serving("emulator") as emulator:
        kept = asyncio.run(_load(emulator))
        return _compare(emulator, rounds) and kept


if __name__ == "__main__":
    asyncio.run(_serve_emulator() if sys.argv[1] == "emulator" else _serve_bytes())

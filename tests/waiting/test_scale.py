"""The cost of waiting for the service, counted in the emulator's record of its requests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from until import until
from virtual import Account, VirtualLoop

from netmind_rentgpu import AsyncRentGPU, Container
from netmind_rentgpu.conditions import has_ssh
from netmind_rentgpu.emulator import Clock, Emulator, World

pytestmark = pytest.mark.xdist_group("machine")

FIRST = 1001
# Seconds; a bound against hanging, not a measure of speed.
LONG = 300


def fill(emulator: Emulator, count: int) -> list[int]:
    """Rent containers without a request for each."""
    service = emulator._control_plane.service
    account = service.authorize(f"Bearer {emulator.token}")
    account.create_auth({"value": "a-password"})
    nodes = [(node.name, node.free) for node in service._market.nodes.values()]
    places = (name for name, free in nodes for _ in range(free))
    for number, name in zip(range(count), places, strict=False):
        body = {
            "name": f"c{number}",
            "auth_id": 1,
            "gpu": 1,
            "node_name": name,
            "image_template_id": 1,
            "payment_type": 0,
        }
        account.create_container(body)
    assert len(emulator.running) == count
    return list(range(FIRST, FIRST + count))


@asynccontextmanager
async def filled(count: int, world: World | str) -> AsyncIterator[tuple[Emulator, AsyncRentGPU, list[int]]]:
    clock = Clock(scale=0)
    async with (
        Emulator(seed=7, machines=4000, boot_seconds=10, world=world, clock=clock) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        yield emulator, gpu, fill(emulator, count)


def walks(emulator: Emulator, since: int) -> list[int]:
    """Return how many list requests each walk took, without requests refused for their page size."""
    asked = [request for request in emulator.requests[since:].of("list_containers") if request.status == 200]
    starts = [index for index, request in enumerate(asked) if "marker" not in request.query]
    return [end - begin for begin, end in itertools.pairwise([*starts, len(asked)])]


@pytest.fixture
def many(full: bool) -> int:
    """How many containers are many: ten thousand, and fewer in the short form."""
    return 10_000 if full else 1_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "page_size", "refused"),
    [
        (World(limit="100"), 100, 0),
        (World(limit="10", over_limit="clamp"), 10, 0),
        (World(limit="10", over_limit="refuse"), 10, 3),
    ],
    ids=["100 a page", "10 a page", "10 a page, more refused"],
)
async def test_many_waits_share_each_walk(many: int, world: World, page_size: int, refused: int) -> None:
    pages = many // page_size
    async with filled(many, world) as (emulator, gpu, ids):
        waits = [
            asyncio.create_task(gpu.containers.wait(container_id, until=has_ssh, timeout=LONG)) for container_id in ids
        ]
        await until(lambda: len(walks(emulator, 0)) >= 3)
        assert set(walks(emulator, 0)[:-1]) == {pages}
        assert len(emulator.requests.of("get_container")) == 0
        emulator.clock.advance(30)
        began = len(emulator.requests)
        ready = await asyncio.gather(*waits)
        assert [container.id for container in ready] == ids
        assert all(container.ssh_endpoint is not None for container in ready)
        # The rest of the walk that was under way, and a whole walk.
        assert len(emulator.requests) - began <= 2 * pages
        assert len([request for request in emulator.requests if request.status == 422]) == refused
        # No wait is left, so no request is sent.
        ended = len(emulator.requests)
        await gpu.machines.list()
        assert len(emulator.requests) == ended + 1


@pytest.mark.slow
async def test_three_waits_among_many_containers_use_gets_by_id(many: int) -> None:
    async with filled(many, "documented") as (emulator, gpu, ids):
        # Until something is known of the account's size, one page is as cheap as anything.
        wanted = [ids[many * 9 // 10], ids[20], ids[many // 2]]
        waits = asyncio.create_task(gpu.containers.wait_all(wanted, until=has_ssh, timeout=LONG))
        await until(lambda: len(emulator.requests.of("get_container")) >= 9)
        emulator.clock.advance(30)
        assert [container.id for container in await waits] == wanted
        assert {int(request.path.rpartition("/")[2]) for request in emulator.requests.of("get_container")} <= set(
            wanted
        )
        assert len(emulator.requests.of("list_containers")) <= 3


async def test_wait_for_containers_on_the_first_page_stops_there() -> None:
    async with filled(1000, "documented") as (emulator, gpu, ids):
        waits = asyncio.create_task(gpu.containers.wait_all(ids[:90], until=has_ssh, timeout=LONG))
        await until(lambda: len(walks(emulator, 0)) >= 3)
        assert set(walks(emulator, 0)) == {1}
        emulator.clock.advance(30)
        await waits
        assert len(emulator.requests.of("get_container")) == 0


async def test_watch_of_all_walks_the_whole_list() -> None:
    async with filled(250, "documented") as (emulator, gpu, ids):
        seen: list[Any] = []

        async def read() -> None:
            async for change in gpu.containers.watch():
                seen.append(change)

        reading = asyncio.create_task(read())
        await until(lambda: len(walks(emulator, 0)) >= 3)
        assert set(walks(emulator, 0)[:-1]) == {3}
        emulator.clock.advance(30)
        await until(lambda: len(seen) >= 250)
        assert sorted(change.container_id for change in seen) == ids
        assert all(change.before.ssh_endpoint is None and change.after.ssh_endpoint is not None for change in seen)
        reading.cancel()


@pytest.mark.slow
def test_change_is_seen_within_one_interval_and_two_walks(many: int) -> None:
    loop = VirtualLoop()
    account = Account(loop, 1, page=100)
    ids = [account.create() for _ in range(many)]
    containers = account.containers()
    walk = many / 100 * account.latency * 1.5

    async def run() -> None:
        async def ready(container_id: int) -> tuple[Container, float]:
            container = await containers.wait(container_id, until=has_ssh, timeout=1000)
            return container, loop.time()

        waits = [asyncio.create_task(ready(container_id)) for container_id in ids]
        # Long enough for the interval to have grown to its longest.
        await asyncio.sleep(100)
        changed = loop.time()
        for container_id in ids:
            account.set(container_id, 1, "ssh root@h -p 1")
        for container, at in await asyncio.gather(*waits):
            assert container.status == 1
            # The walk that was under way may already have passed it.
            assert at - changed <= 5 + 2 * walk

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
    assert {path.rpartition("/")[2] for path in account.asked} == {""}

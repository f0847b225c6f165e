"""The client in every world: what a renter does works whichever way the real service turns out."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC
from decimal import Decimal
from itertools import combinations
from typing import Any

import attrs
import canaries
import pytest
from banners import BANNER, listening, says
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    AuthenticationError,
    Change,
    ConflictError,
    Container,
    ContainerGoneError,
    InsufficientBalanceError,
    InvalidRequestError,
    Machine,
    NotFoundError,
    PaymentType,
    PermissionDeniedError,
    Retries,
    ServiceProfile,
    WaitTimeoutError,
    conditions,
)
from netmind_rentgpu.emulator import Emulator, World, preset_names, preset_world

REQUIRED = {
    "name": "mine",
    "image_name": "a/b",
    "image_tag": "1",
    "image_label": "c",
    "docker_username": "me",
    "docker_passwd": canaries.DOCKER_PASSWORD,
}
BOOT, LAG = 13, 20


@pytest.fixture
def free_ports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the emulator give out ports of this machine that are free, in place of its made-up numbers."""
    found: list[int] = []
    while len(found) < 2:
        # The kernel gives the ports above 32,767 to outgoing connections.
        port = random.randrange(10_000, 30_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
    monkeypatch.setattr("netmind_rentgpu.emulator.ports._NUMBERS", found)
    return found


def covering(*switches: str) -> list[str]:
    """Return presets in which every pair of values of some switches occurs, or every value of a single switch.

    They are the switches that a test depends on; what others do to it, the tests in every preset show.
    """
    size = min(2, len(switches))

    def values(preset: str) -> set[Any]:
        return set(combinations([(switch, getattr(preset_world(preset), switch)) for switch in switches], size))

    missing = set[Any]().union(*map(values, preset_names()))
    chosen: list[str] = []
    while missing:
        chosen.append(max(preset_names(), key=lambda preset: len(values(preset) & missing)))
        missing -= values(chosen[-1])
    return chosen


def in_worlds(*switches: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("world", covering(*switches), indirect=True)


LISTS = ("limit", "over_limit", "order", "marker", "dead_marker", "list_lag")


@pytest.fixture(params=preset_names())
def world(request: pytest.FixtureRequest) -> World:
    return preset_world(request.param)


@pytest.fixture
async def emulator(world: World, clock: Any) -> AsyncIterator[Emulator]:
    async with Emulator(
        seed=7, boot_seconds=10, token=canaries.TOKEN, world=world, balance=Decimal(1000), clock=clock
    ) as emulator:
        yield emulator


def client(emulator: Emulator, world: World, token: str | None = None) -> AsyncRentGPU:
    # What cannot be seen from outside is told by the profile.
    profile = ServiceProfile(authorization=world.token)
    retries = Retries(base_delay=0)
    return AsyncRentGPU(token or emulator.token, base_url=emulator.url, profile=profile, retries=retries)


@pytest.fixture
async def gpu(emulator: Emulator, world: World) -> AsyncIterator[AsyncRentGPU]:
    async with client(emulator, world) as gpu:
        yield gpu


async def create(gpu: AsyncRentGPU, machine: Machine, name: str = "mine") -> Container:
    auth = await gpu.auths.ensure(canaries.PASSWORD)
    return await gpu.containers.create(
        name=name,
        auth_id=auth.id,
        node_name=machine.node_name,
        image_template_id=1,
        payment_type=PaymentType.USD,
    )


async def test_container_is_rented_restarted_and_deleted(
    emulator: Emulator, gpu: AsyncRentGPU, world: World, clock: Any
) -> None:
    machine = (await gpu.machines.list(gpu_names=["NVIDIA_GeForce_RTX_4090"], max_price=Decimal("0.9")))[0]
    image = await gpu.images.ensure(**REQUIRED)
    assert (await gpu.images.get(image.id)).id == image.id
    container = await create(gpu, machine)
    assert container.ssh_endpoint is None
    clock.advance(BOOT)
    ready = await gpu.containers.get(container.id)
    if world.ssh == "other text":
        assert (ready.ssh, ready.ssh_endpoint) == ("see the console for how to log in", None)
    else:
        assert ready.ssh_endpoint is not None
        assert (ready.ssh_endpoint.host, ready.ssh_endpoint.port) == ("127.0.0.1", 21001)
    await gpu.containers.stop(container.id)
    assert (await gpu.containers.get(container.id)).ssh_endpoint is None
    await gpu.containers.restart(container.id)
    clock.advance(BOOT)
    again = await gpu.containers.get(container.id)
    if again.ssh_endpoint is not None:
        assert again.ssh_endpoint.port == (21001 if world.restart_port == "kept" else 21002)
    deleted = await gpu.containers.delete(container.id)
    assert (deleted is None) is (world.delete_answer != "object")
    assert emulator.running == []
    assert await gpu.containers.delete(container.id, missing_ok=True) in (None, deleted)
    with pytest.raises(NotFoundError):
        await gpu.containers.get(container.id)


@in_worlds(*LISTS, "optional_fields", "services")
async def test_ensure_creates_once_and_finds_by_content(gpu: AsyncRentGPU, emulator: Emulator, world: World) -> None:
    for number in range(12):
        await gpu.auths.create(f"password-{number}")
    first = await gpu.auths.ensure("password-11")
    assert first.id == 12
    made = await asyncio.gather(*(gpu.auths.ensure("another-password") for _ in range(3)))
    assert {auth.id for auth in made} == {13}
    image = await gpu.images.ensure(**REQUIRED)
    assert (await gpu.images.ensure(**REQUIRED)).id == image.id
    # Another client finds by content what this one made.
    async with client(emulator, world) as other:
        assert (await other.auths.ensure("another-password")).id == 13
        found = (await other.images.ensure(**REQUIRED)).id
        # Where the service hides a part of an image, its content cannot be told to be the same; none of it is here.
        assert found == image.id


@in_worlds(*LISTS)
@pytest.mark.parametrize("page_size", [None, 7, pytest.param(1, marks=pytest.mark.full)])
async def test_lists_are_whole_at_every_page_size_while_items_are_deleted(
    gpu: AsyncRentGPU, clock: Any, page_size: int | None
) -> None:
    machines = await gpu.machines.list()
    made = [(await create(gpu, machine, f"c{number}")).id for number, machine in enumerate(machines[:33])]
    clock.advance(LAG)
    assert sorted([one.id async for one in gpu.containers.list(page_size=page_size)]) == made
    assert sorted([one.id for page in [p async for p in gpu.containers.list().pages()] for one in page]) == made
    gone = []
    async for container in gpu.containers.list(page_size=page_size):
        await gpu.containers.delete(container.id)
        gone.append(container.id)
    assert sorted(gone) == made
    assert [one async for one in gpu.containers.list()] == []


@in_worlds("stamps", "optional_fields", "gpu_name", "numbers", "prices", "new_fields", "members", "ssh")
async def test_models_of_every_world_are_equal_to_what_their_plain_values_are_read_as(
    gpu: AsyncRentGPU, clock: Any
) -> None:
    machines = await gpu.machines.list()
    made = await create(gpu, machines[0])
    await gpu.images.ensure(**REQUIRED)
    clock.advance(LAG)
    images = [image async for image in gpu.images.list(image_type="CUSTOM")]
    models = [*machines, *images, made, await gpu.containers.get(made.id), *[one async for one in gpu.auths.list()]]
    assert len({type(model) for model in models}) == 4
    for model in models:
        sent = json.loads(json.dumps(model.to_dict(secrets=True, json=True)))
        assert type(model).from_dict(sent) == type(model).from_dict(model.to_dict(secrets=True)) == model


@in_worlds("list_lag")
async def test_new_container_is_listed_once_the_lag_has_passed(gpu: AsyncRentGPU, world: World, clock: Any) -> None:
    container = await create(gpu, (await gpu.machines.list())[0])
    listed = [one.id async for one in gpu.containers.list()]
    assert listed == ([container.id] if world.list_lag == "none" else [])
    clock.advance(LAG)
    assert [one.id async for one in gpu.containers.list()] == [container.id]


@in_worlds("stamps", "optional_fields", "gpu_name", "numbers", "prices", "new_fields", "members")
async def test_every_readable_field_is_read(gpu: AsyncRentGPU, world: World, clock: Any) -> None:
    machines = await gpu.machines.list()
    container = await create(gpu, machines[0])
    things: list[Any] = [*machines, *await gpu.images.list(), *await gpu.auths.list(), container]
    new = {"new_field", "tags"} if world.new_fields == "yes" else set()
    for thing in things:
        assert thing.extra.keys() == new
    for machine in machines:
        assert type(machine.price) is Decimal
        assert None not in (machine.gpu_name, machine.gpu_count, machine.memory_total, machine.region)
    for thing in (*await gpu.images.list(), *await gpu.auths.list(), container):
        assert type(thing.id) is int
        if world.stamps == "missing" or world.optional_fields != "there":
            assert thing.created_at is None
        else:
            assert thing.created_at.astimezone(UTC).timestamp() == int(clock.now)
    assert (container.gpu, type(container.gpu)) == (1, int)
    assert container.status == (40 if world.members == "new" else 0)
    if world.optional_fields == "there":
        assert isinstance(container.gpu_name, int if world.gpu_name == "number" else str)


@in_worlds("numbers", "prices", "optional_fields")
async def test_machines_are_filtered_by_price_and_gpus(gpu: AsyncRentGPU) -> None:
    everything = await gpu.machines.list()
    found = await gpu.machines.list(min_price=Decimal("0.2"), max_price=Decimal("0.6"), gpu=2)
    assert found == [
        m for m in everything if Decimal("0.2") <= (m.price or 0) <= Decimal("0.6") and (m.gpu_count or 0) >= 2
    ]
    assert 0 < len(found) < len(everything)


@in_worlds("token", "bad_token", "errors")
async def test_wrong_token_is_refused(emulator: Emulator, world: World) -> None:
    # A page of HTML with a 403 does not say what is wrong.
    silent = world.errors == "html from a gateway" and world.bad_token != "401 detail"
    async with client(emulator, world, token="wrong-token") as gpu:
        with pytest.raises(PermissionDeniedError if silent else AuthenticationError):
            await gpu.machines.list()


@in_worlds("token", "bad_token", "errors")
async def test_token_in_the_other_form_is_refused(emulator: Emulator, world: World) -> None:
    other = attrs.evolve(world, token="bare" if world.token == "bearer" else "bearer")
    async with client(emulator, other) as gpu:
        with pytest.raises((PermissionDeniedError, AuthenticationError)):
            await gpu.machines.list()


@in_worlds("balance_refusal", "errors")
async def test_create_with_too_low_a_balance_raises_insufficient_balance_error(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    container = await create(gpu, (await gpu.machines.list())[-1])
    clock.advance(3600 * 1000)
    with pytest.raises(InsufficientBalanceError):
        await create(gpu, (await gpu.machines.list())[0], "second")
    await gpu.containers.delete(container.id)
    assert len(emulator.charges) == 1


@in_worlds("validation_errors", "errors")
async def test_rejected_fields_are_named_without_their_values(gpu: AsyncRentGPU) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await gpu.request("POST", "auths/", json={"value": canaries.PASSWORD * 2})
    assert [field.loc for field in caught.value.fields] == [("body", "value")]
    with pytest.raises(InvalidRequestError) as caught:
        await gpu.request("POST", "images/", json={"docker_passwd": canaries.DOCKER_PASSWORD, "name": 5})
    assert ("body", "image_tag") in [field.loc for field in caught.value.fields]
    # That neither is repeated, the watch over every test sees to.


@in_worlds("names", "long_names")
async def test_names_are_shortened_or_unique_as_the_world_has_it(gpu: AsyncRentGPU, world: World) -> None:
    machine = (await gpu.machines.list(gpu=2))[0]
    name = "a-name-of-32-characters-xxxxxxxx"
    first = await create(gpu, machine, name)
    assert first.name == (name if world.long_names == "kept" else name[:24])
    if world.names == "unique":
        with pytest.raises(ConflictError):
            await create(gpu, machine, name)
    else:
        assert (await create(gpu, machine, name)).id != first.id


@in_worlds("second_delete", "delete_answer", "errors")
async def test_missing_container_and_image_raise_not_found_error(gpu: AsyncRentGPU) -> None:
    for call in (
        gpu.containers.get,
        gpu.containers.stop,
        gpu.containers.restart,
        gpu.containers.delete,
        gpu.images.get,
    ):
        with pytest.raises(NotFoundError):
            await call(9999)
    assert await gpu.containers.delete(9999, missing_ok=True) is None


async def test_refused_delete_raises_although_missing_is_allowed() -> None:
    from hostile import CONTAINER, Hostile, Peer, answer

    def behave(peer: Peer) -> None:
        deleting = peer.server.seen[-1].method == "DELETE"
        (answer({"detail": "still starting"}, 409) if deleting else answer(CONTAINER))(peer)

    async with Hostile([behave]) as server, AsyncRentGPU("t", base_url=server.url) as gpu:
        with pytest.raises(ConflictError):
            await gpu.containers.delete(1, missing_ok=True)


@in_worlds("stop_billing")
async def test_stopped_container_costs_what_the_world_says(
    emulator: Emulator, gpu: AsyncRentGPU, world: World, clock: Any
) -> None:
    container = await create(gpu, (await gpu.machines.list())[0])
    clock.advance(100)
    await gpu.containers.stop(container.id)
    clock.advance(100)
    assert emulator.charges[0].seconds == (200 if world.stop_billing == "goes on" else 100)
    await gpu.containers.restart(container.id)
    clock.advance(100)
    assert emulator.charges[0].seconds == (300 if world.stop_billing == "goes on" else 200)
    assert len(emulator.running) == 1


def hurried(gpu: AsyncRentGPU) -> AsyncRentGPU:
    """Let looks follow upon each other: time stands still where the containers are."""
    interval = gpu.containers._poller.schedule.interval
    interval.shortest = interval.longest = 0.02
    return gpu


@pytest.mark.slow
async def test_waits_end_in_every_world(emulator: Emulator, gpu: AsyncRentGPU, world: World, clock: Any) -> None:
    machine = max(await gpu.machines.list(), key=lambda one: one.gpu_count or 0)
    ids = [(await create(gpu, machine, f"mine-{number}")).id for number in range(7)]
    containers = hurried(gpu).containers
    everything = asyncio.create_task(containers.wait_all(ids, until=lambda one: bool(one.ssh), timeout=60))
    each = [asyncio.create_task(containers.wait(one, until=lambda one: bool(one.ssh), timeout=60)) for one in ids]
    await until(lambda: len(emulator.requests) > 24)
    assert not everything.done()
    # One is deleted while they start, which kills the marker that may name it.
    gone = asyncio.create_task(containers.wait(ids[3], until=conditions.gone, timeout=60))
    await containers.delete(ids[3])
    assert (await gone).id == ids[3]
    for failed in (everything, each.pop(3)):
        with pytest.raises(ContainerGoneError):
            await failed
    clock.advance(BOOT)
    ready = await asyncio.gather(*each)
    assert [container.id for container in ready] == ids[:3] + ids[4:]
    readable = world.ssh != "other text"
    assert all((container.ssh_endpoint is not None) is readable for container in ready)
    assert all(conditions.has_ssh(container) is readable for container in ready)
    # A wait that begins after a call of our own does not believe what was seen before it.
    await containers.restart(ids[0])
    with pytest.raises(WaitTimeoutError):
        await containers.wait(ids[0], until=lambda one: bool(one.ssh), timeout=0.1)


@pytest.mark.slow
async def test_watch_reports_every_change_in_every_world(
    emulator: Emulator, gpu: AsyncRentGPU, world: World, clock: Any
) -> None:
    machine = max(await gpu.machines.list(), key=lambda one: one.gpu_count or 0)
    first = await create(gpu, machine, "first")
    clock.advance(LAG)
    containers = hurried(gpu).containers
    read: list[Change] = []

    async def reading() -> None:
        async for change in containers.watch():
            read.append(change)

    async def read_of(container_id: int, wanted: Callable[[Change], bool]) -> Change:
        """Wait for a change of a container; a look that came early may have found others before it."""

        def found() -> Change | None:
            return next((change for change in read if change.container_id == container_id and wanted(change)), None)

        await until(lambda: found() is not None)
        change = found()
        assert change is not None
        del read[: read.index(change) + 1]
        return change

    reader = asyncio.create_task(reading())
    try:
        await until(lambda: containers._poller._snapshots.all_wanted and not containers._poller._snapshots.base_wanted)
        second = await create(gpu, machine, "second")
        clock.advance(LAG)
        appeared = await read_of(second.id, lambda _: True)
        assert appeared.before is None
        assert appeared.after is not None
        assert appeared.after.name == "second"
        status = (await gpu.containers.get(first.id)).status
        await containers.stop(first.id)
        change = await read_of(first.id, lambda change: change.after is not None and change.after.status != status)
        assert change.before is not None
        assert change.after is not None
        assert change.before.status != change.after.status
        await containers.delete(first.id)
        clock.advance(LAG)
        await read_of(first.id, lambda change: change.after is None)
        await containers.delete(second.id)
        clock.advance(LAG)
        await read_of(second.id, lambda change: change.after is None)
    finally:
        reader.cancel()
        await asyncio.wait([reader])
    assert emulator.running == []


@in_worlds("ssh", "ssh_not_yet", "restart_port")
async def test_wait_reachable_returns_once_an_ssh_server_answers(
    free_ports: list[int], gpu: AsyncRentGPU, world: World, clock: Any
) -> None:
    machine = (await gpu.machines.list())[0]
    container = await create(gpu, machine)
    containers = hurried(gpu).containers
    if world.ssh == "other text":
        clock.advance(BOOT)
        text = "'see the console for how to log in', in which no endpoint can be read"
        with pytest.raises(WaitTimeoutError, match=text):
            await containers.wait_reachable(container.id, timeout=3)
        return
    reachable = asyncio.create_task(containers.wait_reachable(container.id, timeout=60))
    clock.advance(BOOT)
    port = free_ports[0]
    async with listening(says(BANNER), port):
        found = (await reachable).ssh_endpoint
        assert found is not None
        assert (found.host, found.port) == ("127.0.0.1", port)
    await containers.restart(container.id)
    reachable = asyncio.create_task(containers.wait_reachable(container.id, timeout=60))
    clock.advance(BOOT)
    port = free_ports[world.restart_port != "kept"]
    async with listening(says(BANNER), port):
        found = (await reachable).ssh_endpoint
        assert found is not None
        assert found.port == port


def test_presets_cover_every_pair_of_values(capsys: pytest.CaptureFixture[str]) -> None:
    switches = World.switches(in_presets=True)
    others = World.switches().keys() - switches.keys()
    presets = [preset_world(name) for name in preset_names()]
    assert {getattr(world, switch) for world in presets for switch in others} == {
        World.switches()[switch][0] for switch in others
    }
    worlds = [{switch: getattr(world, switch) for switch in switches} for world in presets]
    wanted = {
        ((one, first), (other, second))
        for one, other in combinations(switches, 2)
        for first in switches[one]
        for second in switches[other]
    }
    covered = {pair for world in worlds for pair in combinations(world.items(), 2)}
    with capsys.disabled():
        print(
            f"\n{len(worlds)} presets of {len(switches)} switches cover {len(covered & wanted)} of {len(wanted)} pairs"
        )
    assert covered == wanted
    assert presets[0] == World()


def test_presets_are_the_same_in_every_process() -> None:
    import subprocess
    import sys

    code = "from netmind_rentgpu.emulator import *; print([preset_world(name) for name in preset_names()])"
    here = str([preset_world(name) for name in preset_names()])
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert there.strip() == here


def test_unknown_world_value_or_preset_is_refused() -> None:
    impossible: dict[str, Any] = {"ssh": "telnet"}
    with pytest.raises(ValueError, match="ssh"):
        World(**impossible)
    with pytest.raises(KeyError):
        preset_world("nowhere")

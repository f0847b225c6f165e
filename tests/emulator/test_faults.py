"""Every fault happens as named: what the service did, what a bare client saw, and what this package's client made of it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncRentGPU,
    ConflictError,
    Container,
    NotFoundError,
    PaymentType,
    RateLimitError,
    RentGPUError,
    Retries,
    ServerError,
    TransportError,
    UnexpectedResponseError,
)
from netmind_rentgpu.emulator import Emulator, Fault, Faults, World
from netmind_rentgpu.emulator.calls import CALLS
from netmind_rentgpu.emulator.faults import CALLS_OF

ONCE = Retries(max_attempts=1)


@pytest.fixture
async def gpu(emulator: Emulator) -> AsyncIterator[AsyncRentGPU]:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, retries=ONCE) as gpu:
        yield gpu


class Raw:
    """A bare client on a socket: what a server wrote, to the byte."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int | None, dict[str, str], bytes]:
        """Return status, headers and what came of the body; no status where the connection broke without an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.emulator.url.rpartition(":")[2]))
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} /v1/rentgpu/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.emulator.token}\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
        try:
            async with asyncio.timeout(30):
                answer = await reader.read()
        except ConnectionResetError:
            answer = b""
        finally:
            writer.close()
        if not answer:
            return None, {}, b""
        head, _, rest = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, rest


async def wanted(gpu: AsyncRentGPU, name: str = "mine") -> dict[str, Any]:
    auth = await gpu.auths.ensure("a-password")
    machine = (await gpu.machines.list(gpu=4))[0]
    return {
        "name": name,
        "auth_id": auth.id,
        "gpu": 1,
        "node_name": machine.node_name,
        "image_template_id": 1,
        "payment_type": 0,
    }


async def create(gpu: AsyncRentGPU, name: str = "mine") -> Container:
    return await gpu.containers.create(**{**await wanted(gpu, name), "payment_type": PaymentType.USD})


# What a fault looks like to a bare client: status and whether the body is what it should be; then the client's error.
Look = Callable[[int | None, dict[str, str], bytes], bool]


def is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def broken(status: int | None, _: dict[str, str], body: bytes) -> bool:
    return status is None


def error(wanted: int) -> Look:
    return lambda status, headers, body: status == wanted and is_json(body)


def limited(status: int | None, headers: dict[str, str], _: bytes) -> bool:
    return status == 429 and headers["retry-after"] == "7"


def html(status: int | None, headers: dict[str, str], body: bytes) -> bool:
    return status == 200 and headers["content-type"].startswith("text/html") and body.startswith(b"<html>")


def cut(status: int | None, headers: dict[str, str], body: bytes) -> bool:
    return status == 200 and 0 < len(body) < int(headers["content-length"])


def no_json(status: int | None, headers: dict[str, str], body: bytes) -> bool:
    return status == 200 and headers["content-type"].startswith("application/json") and not is_json(body)


def other_shape(status: int | None, _: dict[str, str], body: bytes) -> bool:
    return status == 200 and json.loads(body).keys() == {"unexpected"}


ANSWERS: list[tuple[Fault, bool, Look, type[RentGPUError]]] = [
    (Fault("drop", when="before"), False, broken, APIConnectionError),
    (Fault("drop", when="after"), True, broken, APIConnectionError),
    *(
        (Fault("status", status=status, when=when), when == "after", error(status), ServerError)
        for status in (500, 502, 503, 504)
        for when in ("before", "after")
    ),
    (Fault("status", status=409), False, error(409), ConflictError),
    (Fault("rate limit", retry_after=7), False, limited, RateLimitError),
    (Fault("html", when="before"), False, html, UnexpectedResponseError),
    (Fault("html", when="after"), True, html, UnexpectedResponseError),
    (Fault("cut body"), True, cut, UnexpectedResponseError),
    (Fault("wrong json"), True, no_json, UnexpectedResponseError),
    (Fault("wrong shape"), True, other_shape, UnexpectedResponseError),
    (Fault("stock-out"), False, error(400), APIStatusError),
]


def told(fault: Fault) -> str:
    return " ".join(str(part) for part in (fault.what, fault.status, fault.when) if part)


@pytest.mark.parametrize(("fault", "acted", "look", "raised"), ANSWERS, ids=[told(case[0]) for case in ANSWERS])
async def test_what_happens_to_an_answer(
    emulator: Emulator, gpu: AsyncRentGPU, fault: Fault, acted: bool, look: Look, raised: type[RentGPUError]
) -> None:
    body = await wanted(gpu)
    emulator.faults.add(attrs.evolve(fault, call="create_container", times=2))
    status, headers, content = await Raw(emulator).ask("POST", "containers/", body)
    assert look(status, headers, content), (status, headers, content)
    assert len(emulator.running) == (1 if acted else 0)
    with pytest.raises(raised) as caught:
        await gpu.containers.create(**{**body, "payment_type": PaymentType.USD})
    if isinstance(caught.value, TransportError):
        assert caught.value.maybe_processed
    assert len(emulator.running) == (2 if acted else 0)
    met = emulator.requests.of("create_container")
    assert [(one.fault, one.status) for one in met] == [(fault.what, status)] * 2
    # It is over.
    assert (await gpu.containers.create(**{**body, "payment_type": PaymentType.USD})).name == "mine"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_answer_that_never_comes(emulator: Emulator, gpu: AsyncRentGPU, when: Any) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("hang", call="create_container", when=when))
    with pytest.raises(APITimeoutError) as caught:
        await gpu.containers.create(**{**body, "payment_type": PaymentType.USD}, timeout=0.2)
    assert caught.value.maybe_processed
    assert len(emulator.running) == (1 if when == "after" else 0)
    assert [one.status for one in emulator.requests.of("create_container")] == [None]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_answer_that_comes_late(emulator: Emulator, gpu: AsyncRentGPU, when: Any) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("slow", call="create_container", when=when, seconds=0.05))
    loop = asyncio.get_running_loop()
    began = loop.time()
    status, _, content = await Raw(emulator).ask("POST", "containers/", body)
    assert loop.time() - began >= 0.05
    assert (status, json.loads(content)["name"]) == (200, "mine")
    assert len(emulator.running) == 1


async def test_who_leaves_does_not_keep_a_slow_service_from_acting(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("slow", call="create_container", seconds=0.3))
    with pytest.raises(APITimeoutError):
        await gpu.containers.create(**{**body, "payment_type": PaymentType.USD}, timeout=0.05)
    assert emulator.running == []
    async with asyncio.timeout(30):
        while not emulator.running:
            await asyncio.sleep(0.01)


async def test_a_create_that_is_done_after_its_connection_broke(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("late commit", seconds=5))
    assert (await Raw(emulator).ask("POST", "containers/", body))[0] is None
    clock.advance(4)
    assert emulator.running == []
    assert [one async for one in gpu.containers.list()] == []
    clock.advance(11)
    # It costs from the moment it was done, not from the moment somebody looked.
    assert [charge.seconds for charge in emulator.running] == [10]
    assert [one.name async for one in gpu.containers.list()] == ["mine"]


@pytest.mark.parametrize("call", ["create_auth", "create_image", "stop_container", "delete_container"])
async def test_what_else_is_done_late(emulator: Emulator, gpu: AsyncRentGPU, clock: Any, call: Any) -> None:
    container = await create(gpu)
    clock.advance(20)
    emulator.faults.add(Fault("late commit", call=call, seconds=5))
    calls = {
        "create_auth": lambda: gpu.auths.create("other-password"),
        "create_image": lambda: gpu.images.create(name="a", image_name="b", image_tag="c", image_label="d"),
        "stop_container": lambda: gpu.containers.stop(container.id),
        "delete_container": lambda: gpu.containers.delete(container.id),
    }

    async def state() -> Any:
        return (
            len([one async for one in gpu.auths.list()]),
            len([one async for one in gpu.images.list(image_type=2)]),
            [(one.id, one.status) async for one in gpu.containers.list()],
        )

    before = await state()
    with pytest.raises(APIConnectionError):
        await calls[call]()
    assert await state() == before
    clock.advance(5)
    assert await state() != before


async def test_a_late_commit_that_the_service_refuses(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("late commit", times=3))
    raw = Raw(emulator)
    assert (await raw.ask("POST", "containers/", {**body, "node_name": "nowhere"}))[0] is None
    assert (await raw.ask("POST", "containers/", []))[0] == 422
    emulator.assert_nothing_rented()
    clock.advance(100)
    assert emulator.charges == []
    async with AsyncRentGPU("another-token", base_url=emulator.url, retries=ONCE) as stranger:
        with pytest.raises(APIStatusError):
            await stranger.containers.create(**{**body, "payment_type": PaymentType.USD})
    assert emulator.charges == []


async def test_a_machine_that_refuses_though_it_is_listed(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("stock-out"))
    with pytest.raises(APIStatusError, match="0 free GPUs, 1 were asked for") as caught:
        await gpu.containers.create(**{**body, "payment_type": PaymentType.USD})
    assert caught.value.status == 400
    assert body["node_name"] in [machine.node_name for machine in await gpu.machines.list()]
    assert emulator.charges == []


async def test_a_container_that_never_starts(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    emulator.faults.add(Fault("never starts"))
    container = await create(gpu)
    clock.advance(1e6)
    assert (await gpu.containers.get(container.id)).status == container.status == 0
    assert (await gpu.containers.get(container.id)).ssh_endpoint is None
    await gpu.containers.restart(container.id)
    clock.advance(20)
    assert (await gpu.containers.get(container.id)).ssh_endpoint is not None


async def test_a_container_that_is_never_reachable(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    emulator.faults.add(Fault("never reachable"))
    container = await create(gpu)
    other = await create(gpu, "other")
    clock.advance(20)
    seen, usual = await gpu.containers.get(container.id), await gpu.containers.get(other.id)
    assert seen.status == usual.status
    assert seen.ssh_endpoint is not None
    assert usual.ssh_endpoint is not None
    assert (seen.ssh_endpoint.host, seen.ssh_endpoint.port) == ("127.0.0.1", 1)
    assert usual.ssh_endpoint.port != 1
    with socket.socket() as caller:
        assert caller.connect_ex((seen.ssh_endpoint.host, seen.ssh_endpoint.port)) != 0


async def test_a_container_that_dies_while_it_starts(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    emulator.faults.add(Fault("dies"))
    container = await create(gpu)
    statuses = []
    for _ in range(8):
        statuses.append((await gpu.containers.get(container.id)).status)
        clock.advance(2)
    assert statuses in ([0, 0, 0, 3, 3, 3, 3, 3], [0, 0, 3, 3, 3, 3, 3, 3])
    assert (await gpu.containers.get(container.id)).ssh_endpoint is None
    assert [charge.seconds for charge in emulator.running] == [16]
    await gpu.containers.delete(container.id)
    emulator.assert_nothing_rented()


async def test_a_container_that_vanishes(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    emulator.faults.add(Fault("vanishes", seconds=60))
    free = len(await gpu.machines.list(gpu=1))
    container = await create(gpu)
    clock.advance(20)
    assert (await gpu.containers.get(container.id)).ssh_endpoint is not None
    clock.advance(100)
    with pytest.raises(NotFoundError):
        await gpu.containers.get(container.id)
    assert [one async for one in gpu.containers.list()] == []
    assert len(await gpu.machines.list(gpu=1)) == free
    with pytest.raises(NotFoundError):
        await gpu.containers.delete(container.id)
    # The bill ends when it vanished, 7.5 to 12.5 s of start and 60 of running after its creation.
    (charge,) = emulator.charges
    assert not charge.running
    assert 67.5 <= charge.seconds <= 72.5


async def test_what_was_stopped_does_not_vanish(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    emulator.faults.add(Fault("vanishes", seconds=60, times=2))
    stopped, deleted = await create(gpu), await create(gpu, "other")
    clock.advance(20)
    await gpu.containers.stop(stopped.id)
    await gpu.containers.delete(deleted.id)
    clock.advance(1000)
    assert (await gpu.containers.get(stopped.id)).status == 2
    assert [(charge.running, charge.seconds) for charge in emulator.charges] == [(True, 1020), (False, 20)]


async def test_a_container_that_moves(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    emulator.faults.add(Fault("moves", nth=2))
    container = await create(gpu)
    ports = []
    for _ in range(4):
        clock.advance(20)
        endpoint = (await gpu.containers.get(container.id)).ssh_endpoint
        assert endpoint is not None
        ports.append(endpoint.port)
        await gpu.containers.restart(container.id)
    assert ports == [21001, 21001, 21002, 21002]


async def test_an_answer_and_a_life_at_once(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    emulator.faults.add(Fault("dies"))
    emulator.faults.add(Fault("status", status=502, when="after", call="create_container"))
    emulator.faults.add(Fault("drop", call="create_container"))
    with pytest.raises(ServerError):
        await create(gpu)
    assert emulator.requests.of("create_container")[0].fault == "status, dies"
    clock.advance(20)
    assert [one.status async for one in gpu.containers.list()] == [3]


async def test_a_life_waits_for_a_container_to_meet(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    """A refused create starts no container, so that what was to happen to one happens to the next."""
    emulator.faults.add(Fault("dies"))
    emulator.faults.add(Fault("stock-out"))
    emulator.faults.add(Fault("drop", call="create_container", nth=2))
    for _ in range(2):
        with pytest.raises(RentGPUError):
            await create(gpu)
    container = await create(gpu)
    assert [one.fault for one in emulator.requests.of("create_container")] == ["stock-out", "drop", "dies"]
    clock.advance(20)
    assert (await gpu.containers.get(container.id)).status == 3


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("what", ["never starts", "dies"])
async def test_what_never_runs_does_not_vanish(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any, order: int, what: Any
) -> None:
    for fault in [Fault(what), Fault("vanishes")][::order]:
        emulator.faults.add(fault)
    container = await create(gpu)
    clock.advance(1000)
    assert (await gpu.containers.get(container.id)).status == (3 if what == "dies" else 0)


@pytest.mark.parametrize("what", ["cut body", "wrong json", "wrong shape"])
async def test_a_refusal_can_be_garbled_too(emulator: Emulator, gpu: AsyncRentGPU, what: Any) -> None:
    emulator.faults.add(Fault(what, times=2))
    status, headers, body = await Raw(emulator).ask("GET", "containers/7")
    assert status == 404
    assert {"cut body": cut, "wrong json": no_json, "wrong shape": other_shape}[what](200, headers, body)
    with pytest.raises(NotFoundError):
        await gpu.containers.get(7)


@pytest.mark.parametrize("answer", ["empty", "204"])
async def test_a_body_that_is_not_there_is_not_cut(clock: Any, answer: Any) -> None:
    faults = [Fault("cut body", call="delete_container")]
    async with Emulator(world=World(delete_answer=answer), clock=clock, faults=faults) as emulator:
        async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
            container = await create(gpu)
        assert (await Raw(emulator).ask("DELETE", f"containers/{container.id}"))[0] is None
        emulator.assert_nothing_rented()


@pytest.mark.parametrize(("what", "look"), [("wrong json", no_json), ("wrong shape", other_shape)])
@pytest.mark.parametrize("answer", ["empty", "204"])
async def test_a_body_that_is_not_there_is_garbled(clock: Any, answer: Any, what: Any, look: Look) -> None:
    faults = [Fault(what, call="delete_container")]
    async with Emulator(world=World(delete_answer=answer), clock=clock, faults=faults) as emulator:
        async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
            container = await create(gpu)
        seen = await Raw(emulator).ask("DELETE", f"containers/{container.id}")
        assert look(*seen) if answer == "empty" else broken(*seen), seen
        emulator.assert_nothing_rented()


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(0, "0"), (0.2, "1"), (7.0, "7"), (1234567, "1234567"), (2592000, "2592000"), (123456.7, "123457")],
)
async def test_seconds_to_wait_are_whole(emulator: Emulator, seconds: float, header: str) -> None:
    emulator.faults.add(Fault("rate limit", retry_after=seconds))
    _, headers, _ = await Raw(emulator).ask("GET", "machines")
    assert headers["retry-after"] == header


async def test_a_late_commit_is_a_leak_before_it_is_done(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    emulator.faults.add(Fault("late commit", seconds=5))
    with pytest.raises(APIConnectionError):
        await create(gpu)
    (coming,) = emulator.coming
    clock.advance(2)
    with pytest.raises(AssertionError) as caught:
        emulator.assert_nothing_rented()
    price = f"{coming.hourly_price} USD an hour"
    assert str(caught.value) == (
        f"1 still to be rented, for {price}:\n  mine: 1 GPU on {coming.node_name}, {price}, by 'late commit' in 3.0 s"
    )
    emulator.assert_nothing_rented(apart_from=[coming])
    clock.advance(3)
    assert (emulator.coming, [one.number for one in emulator.running]) == ([], [coming.number])
    emulator.assert_nothing_rented(apart_from=[coming])
    with pytest.raises(AssertionError, match=r"^1 still rented, for"):
        emulator.assert_nothing_rented()
    await gpu.containers.delete(1001)
    emulator.assert_nothing_rented()


async def test_a_create_that_can_only_be_refused_does_not_come(clock: Any) -> None:
    faults = [Fault("late commit", seconds=60, times="all")]
    async with Emulator(clock=clock, boot_seconds=0, balance=Decimal("0.01"), faults=faults) as emulator:
        raw = Raw(emulator)
        async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
            machine = (await gpu.machines.list())[0]
        body = {
            "name": "x",
            "auth_id": 1,
            "gpu": 1,
            "node_name": machine.node_name,
            "image_template_id": 1,
            "payment_type": 0,
        }
        # Its auth may be made in time; one too many GPUs are never free.
        await raw.ask("POST", "containers/", body)
        await raw.ask("POST", "containers/", {**body, "gpu": (machine.gpu_count or 0) + 1})
        assert emulator.coming == []
        emulator.faults.clear()
        await raw.ask("POST", "auths/", {"value": "a-password"})
        assert [one.name for one in emulator.coming] == ["x"]
        await raw.ask("POST", "containers/", {**body, "name": "dear"})
        emulator.assert_nothing_rented(apart_from=[*emulator.running, *emulator.coming])
        clock.advance(59)
        assert len(emulator.coming) == 1
        clock.advance(1)
        assert (emulator.coming, len(emulator.running)) == ([], 2)
        clock.advance(36000)
        emulator.faults.add(Fault("late commit"))
        await raw.ask("POST", "containers/", body)
        assert emulator.coming == []


async def test_what_is_refused_late_uses_no_other_fault_up(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    body = await wanted(gpu)
    raw = Raw(emulator)
    for fault in (Fault("dies"), Fault("late commit", times=2)):
        emulator.faults.add(fault)
    await raw.ask("POST", "containers/", {**body, "node_name": "nowhere"})
    clock.advance(5)
    assert emulator.requests[-1].fault == "late commit"
    await raw.ask("POST", "containers/", body)
    assert emulator.requests[-1].fault == "late commit"
    clock.advance(5)
    assert len(emulator.running) == 1
    # It is decided when the container is started, and recorded then.
    assert emulator.requests[-1].fault == "late commit, dies"
    clock.advance(20)
    assert (await gpu.containers.get(1001)).status == 3


async def test_a_stock_out_waits_for_a_create_that_would_be_done(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    raw = Raw(emulator)
    emulator.faults.add(Fault("stock-out", nth=2))
    emulator.faults.add(Fault("stock-out", nth=2))
    for refused in ({**body, "node_name": "nowhere"}, {**body, "auth_id": 99}, {}, {**body, "gpu": 12}):
        assert (await raw.ask("POST", "containers/", refused))[0] != 200
    statuses = [(await raw.ask("POST", "containers/", body))[0] for _ in range(4)]
    assert statuses == [200, 400, 400, 200]
    assert [one.fault for one in emulator.requests.of("create_container")[4:]] == [None, "stock-out", "stock-out", None]


async def test_a_slow_create_is_a_leak_before_it_is_done(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("slow", call="create_container", seconds=600))
    emulator.faults.add(Fault("slow", call="create_container", seconds=600))
    asking = [
        asyncio.create_task(Raw(emulator).ask("POST", "containers/", what)) for what in (body, {**body, "gpu": 0})
    ]
    async with asyncio.timeout(30):
        while len(emulator.requests.of("create_container")) < 2 or emulator.requests[-1].fault is None:
            await asyncio.sleep(0)
    (coming,) = emulator.coming
    with pytest.raises(AssertionError, match=r"^1 still to be rented, .*\n  mine: 1 GPU on .* an hour, by 'slow'$"):
        emulator.assert_nothing_rented()
    emulator.assert_nothing_rented(apart_from=[coming])
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    assert emulator.coming == [coming]


async def test_a_slow_create_keeps_its_number(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("slow", call="create_container", seconds=0))
    assert (await Raw(emulator).ask("POST", "containers/", body))[0] == 200
    assert emulator.coming == []
    assert [charge.number for charge in emulator.charges] == [1]


async def test_a_reset_is_the_end_of_what_was_under_way(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("slow", call="create_container", seconds=0.2))
    asking = asyncio.create_task(Raw(emulator).ask("POST", "containers/", body))
    async with asyncio.timeout(30):
        while not emulator.requests.of("create_container"):
            await asyncio.sleep(0)
    faults = emulator.faults
    emulator.reset()
    await gpu.auths.create("a-password")
    assert (await asking)[0] == 200
    assert emulator.charges == []
    faults.add(Fault("status", status=503, call="get_auth"))
    assert (await Raw(emulator).ask("GET", "auths/1"))[0] == 503


async def test_a_gateway_answers_as_its_world_does(clock: Any) -> None:
    world = World(errors="html from a gateway")
    async with Emulator(world=world, faults=[Fault("status", status=503)]) as emulator:
        status, headers, body = await Raw(emulator).ask("GET", "machines")
    assert (status, headers["content-type"], body[:6]) == (503, "text/html", b"<html>")


async def test_stopping_answers_nobody_and_waits_for_nobody() -> None:
    faults = [Fault("hang"), Fault("slow", seconds=600, nth=2), Fault("slow", seconds=600, nth=3, when="after")]
    async with Emulator(faults=faults) as emulator:
        before = asyncio.all_tasks()
        waiting = [asyncio.create_task(Raw(emulator).ask("GET", "machines")) for _ in range(3)]
        async with asyncio.timeout(30):
            while len(emulator.requests) < 3:
                await asyncio.sleep(0)
    # The last one was answered, only too early: it had been done.
    assert sorted([(await task)[0] or 0 for task in waiting]) == [0, 0, 200]
    assert asyncio.all_tasks() <= before


# Which requests a rule is for.


def hits(fault: Fault, requests: list[tuple[str, str, str]], seed: int = 0) -> list[int]:
    faults = Faults(seed, [fault])
    return [number for number, request in enumerate(requests, 1) if faults.meet(*request) is not None]


GET = [("list_containers", "GET", "/v1/rentgpu/containers/")]
ONE = [("get_container", "GET", "/v1/rentgpu/containers/7")]
DELETE = [("delete_container", "DELETE", "/v1/rentgpu/containers/7")]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, [1]),
        ({"times": "all"}, [1, 2, 3, 4, 5, 6]),
        ({"nth": 3}, [3]),
        ({"nth": 3, "times": 2}, [3, 4]),
        ({"nth": 5, "times": "all"}, [5, 6]),
        ({"nth": 7}, []),
        ({"call": "get_container"}, [2]),
        ({"call": "get_container", "nth": 2}, [5]),
        ({"method": "DELETE", "times": "all"}, [3, 6]),
        ({"path": "*/containers/7", "times": "all"}, [2, 3, 5, 6]),
        ({"path": "*/containers/7", "method": "GET", "nth": 2}, [5]),
        ({"path": "/v1/rentgpu/containers/8"}, []),
        ({"path": "/v1/rentgpu/containers/[78]", "times": "all"}, [2, 3, 5, 6]),
        ({"probability": 0.0, "times": "all"}, []),
        ({"probability": 0.999999, "call": "get_container"}, [2, 5]),
        ({"probability": 0.999999, "times": 1}, [1]),
        ({"probability": 1.0}, [1, 2, 3, 4, 5, 6]),
        ({"probability": 1, "times": 2}, [1, 2]),
    ],
)
def test_which_requests_meet_a_fault(rule: dict[str, Any], expected: list[int]) -> None:
    assert hits(Fault("drop", **rule), [*GET, *ONE, *DELETE] * 2) == expected


@given(st.integers(), st.floats(0, 1))
def test_chance_follows_the_seed(seed: int, probability: float) -> None:
    fault = Fault("drop", probability=probability, times="all")
    assert hits(fault, GET * 200, seed) == hits(fault, GET * 200, seed)
    # Another rule does not change it.
    faults = Faults(seed, [fault, Fault("hang", probability=0.5, times="all")])
    met = [faults.meet(*GET[0]) for _ in range(200)]
    assert [number for number, answer in enumerate(met, 1) if answer == fault] == hits(fault, GET * 200, seed)


def test_rules_for_the_same_requests_take_turns() -> None:
    faults = Faults(0, [Fault("status", status=500, times=2), Fault("status", status=502), Fault("drop", nth=2)])
    met = [faults.meet(*GET[0]) for _ in range(6)]
    assert [None if fault is None else fault.status or fault.what for fault in met] == [
        500,
        500,
        502,
        "drop",
        None,
        None,
    ]


def test_chance_is_as_large_as_said() -> None:
    assert 250 < len(hits(Fault("drop", probability=0.3, times="all"), GET * 1000)) < 350


def test_no_rule_costs_no_thought() -> None:
    faults = Faults(0)
    assert faults.meet(*GET[0]) is None
    faults.add(Fault("drop"))
    assert list(faults) == [Fault("drop")]
    faults.clear()
    assert list(faults) == []


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"what": "sabotage"}, "'what' must be in"),
        ({"what": "drop", "call": "list_everything"}, "'call' must be in"),
        ({"what": "drop", "method": "get"}, "'method' must be in"),
        ({"what": "drop", "path": 7}, "'path' must be <class 'str'>"),
        ({"what": "drop", "when": "during"}, "'when' must be in"),
        ({"what": "drop", "seconds": 1}, "'drop' takes no seconds"),
        ({"what": "drop", "status": 500}, "'drop' takes no status"),
        ({"what": "status"}, "'status' needs its number"),
        ({"what": "status", "status": 200}, "'status' must be in"),
        ({"what": "rate limit", "when": "after"}, "'rate limit' takes no when"),
        ({"what": "rate limit", "retry_after": -1}, "'retry_after' must be a number from 0 to 1e+09, not -1"),
        ({"what": "cut body", "when": "before"}, "'cut body' takes no when"),
        ({"what": "slow", "seconds": float("nan")}, "'seconds' must be a number"),
        ({"what": "slow", "seconds": True}, "'seconds' must be a number"),
        ({"what": "moves", "call": "create_container"}, "'moves' is for restart_container, not create_container"),
        ({"what": "late commit", "call": "get_auth"}, "'late commit' is for create_container, "),
        ({"what": "drop", "nth": 0}, "'nth' must be a whole number from 1 on, not 0"),
        ({"what": "drop", "nth": True}, "'nth' must be a whole number"),
        ({"what": "drop", "times": 1.5}, "'times' must be a whole number from 1 on, or \"all\", not 1.5"),
        ({"what": "drop", "times": None}, "times must not be null"),
        ({"what": "drop", "probability": 1.1}, "'probability' must be a number from 0 to 1, not 1.1"),
        ({"what": "drop", "call": None}, "call must not be null"),
        ({"what": "drop", "call": "get_auth", "method": "POST"}, "get_auth is a GET, so that no POST can meet this"),
        ({"what": "dies", "method": "DELETE"}, "create_container is a POST, so that no DELETE can meet this"),
        (
            {"what": "drop", "path": "/containers/7"},
            "'path' matches no path that can meet this: /v1/rentgpu/machines, ",
        ),
        ({"what": "drop", "path": "/containers/*"}, "'path' matches no path"),
        ({"what": "drop", "path": "/v1/rentgpu/machines/"}, "'path' matches no path"),
        ({"what": "drop", "path": "/v1/rentgpu/machines/*", "call": "list_machines"}, "'path' matches no path"),
        (
            {"what": "drop", "path": "/v1/rentgpu/containers/7/*", "method": "GET", "call": "get_auth"},
            "'path' matches no",
        ),
        ({"what": "drop", "path": "*/machines", "method": "DELETE", "call": None}, "call must not be null"),
        ({"what": "drop", "path": "/v1/rentgpu/containers/7/stop", "call": "get_container"}, "'path' matches no path"),
    ],
)
def test_rules_that_are_none(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared below
        Fault.from_mapping(rule)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop", when="after", call="get_auth", nth=3, times="all"),
        Fault("status", status=502, method="GET", path="*"),
        Fault("vanishes", seconds=0.5, probability=0.25),
    ],
)
def test_rules_survive_being_written_down(fault: Fault) -> None:
    assert Fault.from_mapping(json.loads(json.dumps(fault.to_mapping()))) == fault


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faults": Fault("drop")}, "faults must be a list of them: [Fault(...)]"),
        ({"faults": [{"what": "drop"}]}, "a fault must be a Fault, not {'what': 'drop'}"),
        ({"world": {"ssh": "url"}}, "world must be a World or the name of a preset, not {'ssh': 'url'}"),
        ({"world": None}, "world must be a World or the name of a preset, not None"),
        ({"clock": 0}, "clock must be a Clock, as Clock(scale=0), not 0"),
    ],
)
def test_what_an_emulator_cannot_take(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        Emulator(**options)
    assert str(caught.value) == message


def test_help_says_which_calls_a_fault_is_for() -> None:
    told = " ".join((Fault.__doc__ or "").split())
    for what, calls in CALLS_OF.items():
        assert what in told
        assert all(call in told for call in calls)


def test_a_whole_number_may_be_written_as_json_allows() -> None:
    assert Fault.from_mapping({"what": "status", "status": 502.0, "nth": 2.0}) == Fault("status", status=502, nth=2)


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_can_meet_a_fault(emulator: Emulator, call: Any) -> None:
    paths = {
        "list_machines": ("GET", "machines"),
        "create_auth": ("POST", "auths/"),
        "list_auths": ("GET", "auths/"),
        "get_auth": ("GET", "auths/1"),
        "create_image": ("POST", "images/"),
        "list_images": ("GET", "images/"),
        "get_image": ("GET", "images/1"),
        "create_container": ("POST", "containers/"),
        "list_containers": ("GET", "containers/"),
        "get_container": ("GET", "containers/1"),
        "stop_container": ("POST", "containers/1/stop"),
        "restart_container": ("POST", "containers/1/restart"),
        "delete_container": ("DELETE", "containers/1"),
    }
    emulator.faults.add(Fault("status", status=504, call=call))
    statuses = {name: (await Raw(emulator).ask(*path, body={}))[0] for name, path in paths.items()}
    assert [name for name, status in statuses.items() if status == 504] == [call]
    assert emulator.requests.of(call)[0].status == 504

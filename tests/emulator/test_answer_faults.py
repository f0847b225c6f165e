"""Faults of answers: the bytes that a bare client receives, the client's error, and whether the service acted."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest
from bare_client import ONCE, BareClient, create, wanted

from netmind_rentgpu import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncRentGPU,
    ConflictError,
    NotFoundError,
    PaymentType,
    RateLimitError,
    RentGPUError,
    ServerError,
    TransportError,
    UnexpectedResponseError,
)
from netmind_rentgpu.emulator import Emulator, Fault, World
from netmind_rentgpu.emulator.calls import CALLS


@pytest.fixture
async def gpu(emulator: Emulator) -> AsyncIterator[AsyncRentGPU]:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, retries=ONCE) as gpu:
        yield gpu


# A check of the status, headers and body that a bare client received.
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


def name_of(fault: Fault) -> str:
    """Return the test id of a fault."""
    return " ".join(str(part) for part in (fault.what, fault.status, fault.when) if part)


@pytest.mark.parametrize(("fault", "acted", "look", "raised"), ANSWERS, ids=[name_of(case[0]) for case in ANSWERS])
async def test_fault_changes_the_answer_to_a_create_and_whether_the_service_acts(
    emulator: Emulator, gpu: AsyncRentGPU, fault: Fault, acted: bool, look: Look, raised: type[RentGPUError]
) -> None:
    body = await wanted(gpu)
    emulator.faults.add(attrs.evolve(fault, call="create_container", times=2))
    status, headers, content = await BareClient(emulator).ask("POST", "containers/", body)
    assert look(status, headers, content), (status, headers, content)
    assert len(emulator.running) == (1 if acted else 0)
    with pytest.raises(raised) as caught:
        await gpu.containers.create(**{**body, "payment_type": PaymentType.USD})
    if isinstance(caught.value, TransportError):
        assert caught.value.maybe_processed
    assert len(emulator.running) == (2 if acted else 0)
    met = emulator.requests.of("create_container")
    assert [(request.fault, request.status) for request in met] == [(fault.what, status)] * 2
    # The fault is used up.
    assert (await gpu.containers.create(**{**body, "payment_type": PaymentType.USD})).name == "mine"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_hanging_answer_times_out(emulator: Emulator, gpu: AsyncRentGPU, when: Any) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("hang", call="create_container", when=when))
    with pytest.raises(APITimeoutError) as caught:
        await gpu.containers.create(**{**body, "payment_type": PaymentType.USD}, timeout=1)
    assert caught.value.maybe_processed
    assert len(emulator.running) == (1 if when == "after" else 0)
    assert [request.status for request in emulator.requests.of("create_container")] == [None]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_slow_answer_comes_late_and_whole(emulator: Emulator, gpu: AsyncRentGPU, when: Any) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("slow", call="create_container", when=when, seconds=0.05))
    loop = asyncio.get_running_loop()
    began = loop.time()
    status, _, content = await BareClient(emulator).ask("POST", "containers/", body)
    assert loop.time() - began >= 0.05
    assert (status, json.loads(content)["name"]) == (200, "mine")
    assert len(emulator.running) == 1


async def test_stock_out_refuses_a_create_on_a_listed_machine(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    emulator.faults.add(Fault("stock-out"))
    with pytest.raises(APIStatusError, match="0 free GPUs, 1 were asked for") as caught:
        await gpu.containers.create(**{**body, "payment_type": PaymentType.USD})
    assert caught.value.status == 400
    assert body["node_name"] in [machine.node_name for machine in await gpu.machines.list()]
    assert emulator.charges == []


@pytest.mark.parametrize("what", ["cut body", "wrong json", "wrong shape"])
async def test_refusal_can_be_garbled(emulator: Emulator, gpu: AsyncRentGPU, what: Any) -> None:
    emulator.faults.add(Fault(what, times=2))
    status, headers, body = await BareClient(emulator).ask("GET", "containers/7")
    assert status == 404
    assert {"cut body": cut, "wrong json": no_json, "wrong shape": other_shape}[what](200, headers, body)
    with pytest.raises(NotFoundError):
        await gpu.containers.get(7)


@pytest.mark.parametrize("answer", ["empty", "204"])
async def test_cut_body_fault_drops_an_answer_without_a_body(clock: Any, answer: Any) -> None:
    faults = [Fault("cut body", call="delete_container")]
    async with Emulator(world=World(delete_answer=answer), clock=clock, faults=faults) as emulator:
        async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
            container = await create(gpu)
        assert (await BareClient(emulator).ask("DELETE", f"containers/{container.id}"))[0] is None
        emulator.assert_nothing_rented()


@pytest.mark.parametrize(("what", "look"), [("wrong json", no_json), ("wrong shape", other_shape)])
@pytest.mark.parametrize("answer", ["empty", "204"])
async def test_garbling_fault_applies_to_an_empty_answer_and_drops_a_204(
    clock: Any, answer: Any, what: Any, look: Look
) -> None:
    faults = [Fault(what, call="delete_container")]
    async with Emulator(world=World(delete_answer=answer), clock=clock, faults=faults) as emulator:
        async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
            container = await create(gpu)
        seen = await BareClient(emulator).ask("DELETE", f"containers/{container.id}")
        assert look(*seen) if answer == "empty" else broken(*seen), seen
        emulator.assert_nothing_rented()


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(0, "0"), (0.2, "1"), (7.0, "7"), (1234567, "1234567"), (2592000, "2592000"), (123456.7, "123457")],
)
async def test_retry_after_is_rounded_up_to_whole_seconds(emulator: Emulator, seconds: float, header: str) -> None:
    emulator.faults.add(Fault("rate limit", retry_after=seconds))
    _, headers, _ = await BareClient(emulator).ask("GET", "machines")
    assert headers["retry-after"] == header


async def test_stock_out_waits_for_a_create_that_would_succeed(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    body = await wanted(gpu)
    client = BareClient(emulator)
    emulator.faults.add(Fault("stock-out", nth=2))
    emulator.faults.add(Fault("stock-out", nth=2))
    for refused in ({**body, "node_name": "nowhere"}, {**body, "auth_id": 99}, {}, {**body, "gpu": 12}):
        assert (await client.ask("POST", "containers/", refused))[0] != 200
    statuses = [(await client.ask("POST", "containers/", body))[0] for _ in range(4)]
    assert statuses == [200, 400, 400, 200]
    assert [request.fault for request in emulator.requests.of("create_container")[4:]] == [
        None,
        "stock-out",
        "stock-out",
        None,
    ]


async def test_status_fault_answers_in_the_form_of_the_world(clock: Any) -> None:
    world = World(errors="html from a gateway")
    async with Emulator(world=world, faults=[Fault("status", status=503)]) as emulator:
        status, headers, body = await BareClient(emulator).ask("GET", "machines")
    assert (status, headers["content-type"], body[:6]) == (503, "text/html", b"<html>")


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
    statuses = {name: (await BareClient(emulator).ask(*path, body={}))[0] for name, path in paths.items()}
    assert [name for name, status in statuses.items() if status == 504] == [call]
    assert emulator.requests.of(call)[0].status == 504

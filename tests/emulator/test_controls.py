"""The controls of an emulator: bill, clock, faults, requests and reset, over HTTP and in Python."""

import io
import threading
from collections.abc import AsyncIterator
from decimal import Decimal
from http import HTTPStatus
from typing import Any

import aiohttp
import pytest

from netmind_rentgpu import AsyncRentGPU, Container, PaymentType, Retries, ServerError
from netmind_rentgpu.emulator import Clock, Emulator, Fault, World


@pytest.fixture
async def http(emulator: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"{emulator.url}/_emulator/") as session:
        yield session


async def ask(http: aiohttp.ClientSession, method: str, path: str, **arguments: Any) -> Any:
    async with http.request(method, path, **arguments) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def create(gpu: AsyncRentGPU, name: str = "mine") -> Container:
    return await gpu.containers.create(
        name=name,
        auth_id=(await gpu.auths.create("a-password")).id,
        node_name=(await gpu.machines.list(gpu=4))[0].node_name,
        gpu=2,
        image_template_id=1,
        payment_type=PaymentType.USD,
    )


async def test_bill_is_the_same_over_http_and_in_python(
    emulator: Emulator, gpu: AsyncRentGPU, http: aiohttp.ClientSession, clock: Any
) -> None:
    assert await ask(http, "GET", "bill") == {"spent": "0", "rented": None, "charges": [], "pending_creates": []}
    emulator.assert_nothing_rented()
    container = await create(gpu)
    clock.advance(1800)
    price = emulator.running[0].hourly_price
    bill = await ask(http, "GET", "bill")
    assert Decimal(bill["spent"]) == price / 2
    assert bill["charges"] == [
        {
            "number": 1,
            "account": "default",
            "container_id": container.id,
            "name": "mine",
            "node_name": container.node_name,
            "gpu": 2,
            "hourly_price": str(price),
            "seconds": 1800.0,
            "running": True,
            "accruing": True,
            "cost": bill["spent"],
        }
    ]
    other = await create(gpu, "other")
    with pytest.raises(AssertionError) as caught:
        emulator.assert_nothing_rented()
    assert str(caught.value) == (
        f"2 still rented, for {2 * price} USD an hour:\n"
        f"  mine (container 1001): 2 GPU on {container.node_name}, {price} USD an hour, {price / 2:.6f} USD in 1800.0 s\n"
        f"  other (container 1002): 2 GPU on {container.node_name}, {price} USD an hour, 0.000000 USD in 0.0 s"
    )
    assert (await ask(http, "GET", "bill"))["rented"] == str(caught.value)
    await gpu.containers.delete(container.id)
    await gpu.containers.delete(other.id)
    emulator.assert_nothing_rented()
    assert (await ask(http, "GET", "bill"))["rented"] is None


async def test_clock_is_read_and_moved_over_http(emulator: Emulator, http: aiohttp.ClientSession, clock: Any) -> None:
    began = clock.now
    assert await ask(http, "GET", "clock") == {"now": began, "scale": 0}
    assert await ask(http, "POST", "clock", json={"advance": 3600}) == {"now": began + 3600, "scale": 0}
    assert (await ask(http, "POST", "clock", json={"scale": 60}))["scale"] == 60
    assert emulator.clock.scale == 60
    assert (await ask(http, "POST", "clock", json={"scale": 0, "advance": 0.5}))["now"] > began + 3600


async def test_faults_are_added_and_cleared_over_http(
    emulator: Emulator, gpu: AsyncRentGPU, http: aiohttp.ClientSession
) -> None:
    assert await ask(http, "GET", "faults") == {"faults": [], "unmet": []}
    fault = {"what": "status", "status": 502, "call": "get_auth", "times": "all"}
    added = await ask(http, "POST", "faults", json=fault)
    assert added["faults"] == added["unmet"] == [{**fault, "when": "before", "nth": 1}]
    assert list(emulator.faults) == [Fault("status", status=502, call="get_auth", times="all")]
    with pytest.raises(ServerError):
        await gpu.auths.get(1)
    assert (await ask(http, "GET", "faults"))["unmet"] == []
    await ask(http, "POST", "faults", json={**fault, "call": "get_image"})
    cleared = await ask(http, "DELETE", "faults")
    assert (cleared["faults"], [fault["call"] for fault in cleared["unmet"]]) == ([], ["get_image"])
    await ask(http, "POST", "reset")
    assert await ask(http, "GET", "faults") == {"faults": [], "unmet": []}
    assert list(emulator.faults) == []


async def test_requests_are_listed_chosen_and_cleared_over_http(
    emulator: Emulator, gpu: AsyncRentGPU, http: aiohttp.ClientSession, clock: Any
) -> None:
    await create(gpu)
    everything = await ask(http, "GET", "requests")
    assert len(everything["requests"]) == len(emulator.requests) == 3
    assert everything["connections"] == emulator.requests.connections == 2
    found = await ask(http, "GET", "requests", params={"call": "create_auth"})
    assert found == {
        "connections": 1,
        "requests": [
            {
                "number": 1,
                "call": "create_auth",
                "method": "POST",
                "path": "/v1/rentgpu/auths/",
                "query": {},
                "body": {"value": "***"},
                "connection": 1,
                "time": clock.now,
                "fault": None,
                "status": 200,
            }
        ],
    }
    chosen = {"method": "POST", "path": "/v1/rentgpu/containers/"}
    assert len((await ask(http, "GET", "requests", params=chosen))["requests"]) == 1
    assert await ask(http, "DELETE", "requests") == {"connections": 0, "requests": []}
    assert len(emulator.requests) == 0


async def test_reset_restores_the_first_state_and_faults(clock: Any) -> None:
    first = Fault("status", status=502, call="get_image")
    async with (
        Emulator(seed=7, clock=clock, faults=[first]) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url, retries=Retries(max_attempts=1)) as gpu,
        aiohttp.ClientSession(f"{emulator.url}/_emulator/") as http,
    ):
        machines = await gpu.machines.list()
        for reset in (lambda: ask(http, "POST", "reset"), emulator.reset):
            await create(gpu)
            with pytest.raises(ServerError):
                await gpu.images.get(1)
            emulator.faults.add(Fault("hang", call="get_auth"))
            clock.advance(100)
            if answer := reset():
                assert await answer == {"now": clock.now, "scale": 0}
            assert (emulator.charges, len(emulator.requests), list(emulator.faults)) == ([], 0, [first])
            assert await gpu.machines.list() == machines
            assert [container async for container in gpu.containers.list()] == []
            assert [auth async for auth in gpu.auths.list()] == []
        assert (await create(gpu)).id == 1001
        with pytest.raises(ServerError):
            await gpu.images.get(1)


async def test_stopped_container_without_cost_is_reported_as_such(clock: Any) -> None:
    world = World(stop_billing="ends")
    async with (
        Emulator(world=world, clock=clock) as emulator,
        AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu,
    ):
        container = await create(gpu)
        price = emulator.charges[0].hourly_price
        clock.advance(360)
        await gpu.containers.stop(container.id)
        clock.advance(3600)
        with pytest.raises(AssertionError) as caught:
            emulator.assert_nothing_rented()
        assert str(caught.value) == (
            f"1 still rented, for 0 USD an hour:\n  mine (container 1001): 2 GPU on {container.node_name}, "
            f"nothing as long as it is stopped, {price / 10:.6f} USD in 360.0 s"
        )
        emulator.assert_nothing_rented(apart_from=[container.id])


async def test_charged_seconds_are_exact(clock: Any, emulator: Emulator, gpu: AsyncRentGPU) -> None:
    await create(gpu)
    for _ in range(10):
        clock.advance(0.1)
    assert [charge.seconds for charge in emulator.charges] == [1.0]
    assert emulator.spent == emulator.charges[0].hourly_price / 3600


@pytest.mark.parametrize(
    ("method", "path", "arguments", "message"),
    [
        ("POST", "clock", {"json": {"advance": -1}}, "a clock goes forward"),
        ("POST", "clock", {"json": {"advance": "1"}}, "advance must be a number"),
        ("POST", "clock", {"json": {"scale": True}}, "scale must be a number"),
        ("POST", "clock", {"json": {}}, "give 'advance' (seconds), 'scale', or both"),
        ("POST", "clock", {"json": {"to": 5}}, "give 'advance'"),
        ("POST", "clock", {"json": [5]}, "give 'advance'"),
        ("POST", "faults", {"json": {"what": "sabotage"}}, "'what' must be one of"),
        ("POST", "faults", {"json": {}}, "a fault needs 'what'"),
        ("POST", "faults", {"json": []}, "a fault has what, call"),
        ("GET", "requests", {"params": {"name": "x"}}, "unknown: name; choose requests by call, method or path"),
        ("GET", "requests", {"params": {"call": "x"}}, "no call is named x; there are list_machines"),
    ],
)
async def test_invalid_control_is_refused_and_changes_nothing(
    emulator: Emulator, http: aiohttp.ClientSession, method: str, path: str, arguments: dict[str, Any], message: str
) -> None:
    now = emulator.clock.now
    async with http.request(method, path, **arguments) as answer:
        assert answer.status == 422
        assert (await answer.json())["detail"].startswith(message)
    assert (emulator.clock.now, list(emulator.faults)) == (now, [])


async def test_control_body_that_is_not_json_is_refused(http: aiohttp.ClientSession) -> None:
    for path in ("clock", "faults"):
        for body in (b"", b"{", b"\xff", b'{"advance": NaN}'):
            async with http.post(path, data=body) as answer:
                assert answer.status == 422


async def test_control_body_that_is_too_large_is_refused(http: aiohttp.ClientSession) -> None:
    async with http.post("faults", data=io.BytesIO(b" " * (1024**2 + 1))) as answer:
        assert (answer.status, await answer.json()) == (413, {"detail": HTTPStatus(413).phrase})


async def test_unknown_control_path_or_method_is_refused(http: aiohttp.ClientSession) -> None:
    async with http.get("") as answer:
        assert answer.status == 404
    async with http.put("clock") as answer:
        assert answer.status == 405


def test_emulator_can_be_read_from_another_thread_while_serving() -> None:
    """A read makes due events happen, which must not disturb the thread that serves."""
    import http.client
    import json

    faults = [Fault("vanishes", seconds=0.001, times="all"), Fault("late commit", nth=2, probability=0.5, times="all")]
    with Emulator(boot_seconds=0.001, machines=400, clock=Clock(scale=100), faults=faults) as emulator:
        looked: list[int] = []
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                looked.append(len(emulator.charges) + len(emulator.requests) + len(emulator.running))
                emulator.clock.advance(0.01)

        watcher = threading.Thread(target=look)
        watcher.start()
        headers = {"Authorization": f"Bearer {emulator.token}"}
        caller = http.client.HTTPConnection("127.0.0.1", int(emulator.url.rpartition(":")[2]), timeout=60)
        try:
            caller.request("POST", "/v1/rentgpu/auths/", json.dumps({"value": "a-password"}), headers)
            caller.getresponse().read()
            caller.request("GET", "/v1/rentgpu/machines", headers=headers)
            nodes = [machine["node_name"] for machine in json.load(caller.getresponse())]
            for number in range(300):
                body = {
                    "name": "x",
                    "auth_id": 1,
                    "gpu": 1,
                    "node_name": nodes[number],
                    "image_template_id": 1,
                    "payment_type": 0,
                }
                try:
                    caller.request("POST", "/v1/rentgpu/containers/", json.dumps(body), headers)
                    caller.getresponse().read()
                except (http.client.RemoteDisconnected, ConnectionResetError):
                    caller.close()
        finally:
            done.set()
            watcher.join()
            caller.close()
        emulator.clock.advance(1000)
        assert len(emulator.charges) == 300
        emulator.assert_nothing_rented()
        assert looked

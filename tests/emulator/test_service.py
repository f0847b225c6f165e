"""The emulated service over a real socket: answers, refusals, pages, starts and charges, with a bare HTTP client."""

import re
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiohttp
import pytest

from netmind_rentgpu.emulator import Charge, Emulator, World

AUTH_FIELDS = {"id", "value", "created_at"}
IMAGE_FIELDS = {
    *("name", "description", "image_name", "image_tag", "image_label", "docker_username", "docker_passwd"),
    *("docker_registry", "public_port", "onstart", "options", "image_type", "id", "created_at"),
}
CONTAINER_FIELDS = {
    *(
        "name",
        "auth_id",
        "gpu",
        "node_name",
        "image_template_id",
        "enable_vscode",
        "enable_jupyter",
        "cpu",
        "disk_size",
    ),
    *(
        "memory",
        "gpu_name",
        "id",
        "ssh",
        "status",
        "exposed_service",
        "vscode_service",
        "jupyter_service",
        "created_at",
    ),
}
MACHINE_FIELDS = {
    *("on_demand", "labels", "node_name", "cluster", "gpu_name", "gpu_count", "gpu_memory", "cpu_name", "cpu_count"),
    *("cpu_per_gpu", "memory_per_gpu", "memory_total", "disk_per_gpu", "disk_total", "region", "network_upload_speed"),
    *("network_download_speed", "up_time", "online_rate", "price", "original_price", "gpu_id", "organization"),
    *("driver_version", "cuda_version", "nvlink_status"),
}
IMAGE = {"name": "mine", "image_name": "a/b", "image_tag": "1", "image_label": "c"}


@pytest.fixture
async def http(emulator: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {emulator.token}"}
    async with aiohttp.ClientSession(f"{emulator.url}/v1/rentgpu/", headers=headers) as session:
        yield session


async def ask(http: aiohttp.ClientSession, method: str, path: str, **arguments: Any) -> tuple[int, Any]:
    async with http.request(method, path, allow_redirects=False, **arguments) as response:
        return response.status, await response.json()


async def rent(http: aiohttp.ClientSession, gpu: int = 1, name: str = "mine") -> dict[str, Any]:
    await ask(http, "POST", "auths/", json={"value": "a-password"})
    _, machines = await ask(http, "GET", "machines", params={"gpu": gpu})
    wanted = {
        "name": name,
        "auth_id": 1,
        "gpu": gpu,
        "node_name": machines[0]["node_name"],
        "image_template_id": 1,
        "payment_type": 0,
    }
    status, container = await ask(http, "POST", "containers/", json=wanted)
    assert status == 200
    return dict(container)


async def test_every_call_answers_with_the_documented_fields(http: aiohttp.ClientSession) -> None:
    _, machines = await ask(http, "GET", "machines")
    assert all(machine.keys() == MACHINE_FIELDS for machine in machines)
    assert all(isinstance(machine["price"], str) for machine in machines)
    container = await rent(http)
    assert container.keys() == CONTAINER_FIELDS
    path = f"containers/{container['id']}"
    for method, call in (("GET", path), ("POST", f"{path}/stop"), ("POST", f"{path}/restart"), ("DELETE", path)):
        status, answer = await ask(http, method, call)
        assert (status, answer.keys()) == (200, CONTAINER_FIELDS)
    assert (await ask(http, "GET", "auths/1"))[1].keys() == AUTH_FIELDS
    assert [auth.keys() for auth in (await ask(http, "GET", "auths/"))[1]] == [AUTH_FIELDS]
    status, image = await ask(http, "POST", "images/", json=IMAGE)
    assert (status, image.keys(), image["image_type"]) == (200, IMAGE_FIELDS, 2)
    assert (await ask(http, "GET", f"images/{image['id']}"))[1] == image
    assert all(listed.keys() == IMAGE_FIELDS for listed in (await ask(http, "GET", "images/"))[1])


def missing(part: str, name: str) -> dict[str, Any]:
    return {"loc": [part, name], "msg": "field required", "type": "value_error.missing"}


@pytest.mark.parametrize(
    ("method", "path", "arguments", "locations"),
    [
        ("GET", "machines", {"params": {"gpu": "x"}}, [["query", "gpu"]]),
        ("GET", "machines", {"params": {"currency": "GBP"}}, [["query", "currency"]]),
        (
            "GET",
            "machines",
            {"params": {"max_price": "0.5", "min_disk": ""}},
            [["query", "min_disk"], ["query", "max_price"]],
        ),
        ("GET", "auths/", {"params": {"limit": "-1"}}, [["query", "limit"]]),
        ("POST", "auths/", {"data": b"[" * 100_000}, [["body", 0]]),
        ("GET", "auths/", {"params": {"marker": "x", "limit": "y"}}, [["query", "marker"], ["query", "limit"]]),
        ("GET", "images/", {"params": {"image_type": "3"}}, [["query", "image_type"]]),
        ("GET", "images/", {"params": {"image_type": "OFFICIAL"}}, [["query", "image_type"]]),
        ("GET", "auths/x", {}, [["path", "auth_id"]]),
        ("GET", "images/x", {}, [["path", "image_id"]]),
        ("GET", "containers/9999999999999999999999", {}, [["path", "container_id"]]),
        ("DELETE", "containers/x", {}, [["path", "container_id"]]),
        ("POST", "auths/", {}, [["body"]]),
        ("POST", "auths/", {"data": b"{"}, [["body", 1]]),
        ("POST", "auths/", {"json": []}, [["body"]]),
        ("POST", "auths/", {"json": {}}, [["body", "value"]]),
        ("POST", "auths/", {"json": {"value": None}}, [["body", "value"]]),
        ("POST", "auths/", {"json": {"value": 12345678}}, [["body", "value"]]),
        ("POST", "auths/", {"json": {"value": "x" * 7}}, [["body", "value"]]),
        ("POST", "auths/", {"json": {"value": "x" * 33}}, [["body", "value"]]),
        (
            "POST",
            "images/",
            {"json": {"options": 3}},
            [["body", n] for n in ("name", "image_name", "image_tag", "image_label", "options")],
        ),
        (
            "POST",
            "containers/",
            {"json": {"gpu": 13}},
            [["body", n] for n in ("name", "auth_id", "gpu", "node_name", "image_template_id", "payment_type")],
        ),
        (
            "POST",
            "containers/",
            {
                "json": {
                    "name": "a",
                    "auth_id": True,
                    "gpu": 0,
                    "node_name": "b",
                    "image_template_id": 1.5,
                    "payment_type": 3,
                }
            },
            [["body", n] for n in ("auth_id", "gpu", "image_template_id", "payment_type")],
        ),
    ],
)
async def test_invalid_argument_is_a_422_in_the_shape_of_fastapi(
    http: aiohttp.ClientSession, method: str, path: str, arguments: dict[str, Any], locations: list[Any]
) -> None:
    status, body = await ask(http, method, path, **arguments)
    assert status == 422
    assert body.keys() == {"detail"}
    assert [error["loc"] for error in body["detail"]] == locations
    assert all(error["msg"] and error["type"] for error in body["detail"])


async def test_missing_or_wrong_token_is_refused(emulator: Emulator) -> None:
    async with aiohttp.ClientSession(f"{emulator.url}/v1/rentgpu/") as http:
        assert await ask(http, "GET", "machines") == (422, {"detail": [missing("header", "authorization")]})
        for wrong in ("Bearer wrong", emulator.token, f"bearer {emulator.token}"):
            status, body = await ask(http, "GET", "machines", headers={"Authorization": wrong})
            assert (status, body) == (403, {"error": {"message": "Invalid api token"}})


async def test_wrong_path_or_method_is_refused_or_redirected(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    assert await ask(http, "GET", "nothing") == (404, {"detail": "Not Found"})
    assert await ask(http, "PUT", "machines") == (405, {"detail": "Method Not Allowed"})
    assert (await ask(http, "DELETE", "auths/1"))[0] == 405
    for path, right in (("machines/", "machines"), ("auths", "auths/")):
        async with http.get(path, allow_redirects=False) as response:
            assert response.status == 307
            assert response.headers["Location"] == f"{emulator.url}/v1/rentgpu/{right}"


async def test_unknown_id_or_machine_is_a_404(http: aiohttp.ClientSession) -> None:
    container = await rent(http)
    wanted = {
        "name": "x",
        "auth_id": 1,
        "gpu": 1,
        "node_name": container["node_name"],
        "image_template_id": 1,
        "payment_type": 0,
    }
    for change in ({"auth_id": 9}, {"image_template_id": 99}, {"node_name": "nowhere"}):
        status, body = await ask(http, "POST", "containers/", json={**wanted, **change})
        assert status == 404
        assert body["detail"].endswith("not found")
    for path in ("auths/9", "images/99", "containers/1"):
        assert (await ask(http, "GET", path))[0] == 404


async def test_lists_are_cut_into_pages_by_limit_and_marker(http: aiohttp.ClientSession) -> None:
    for number in range(12):
        await ask(http, "POST", "auths/", json={"value": f"password-{number}"})

    async def ids(**params: int) -> list[int]:
        return [auth["id"] for auth in (await ask(http, "GET", "auths/", params=params))[1]]

    assert await ids() == list(range(1, 11))
    assert await ids(limit=5) == [1, 2, 3, 4, 5]
    assert await ids(limit=5, marker=5) == [6, 7, 8, 9, 10]
    assert await ids(marker=10) == [11, 12]
    assert await ids(marker=12) == []
    assert await ids(limit=1000) == list(range(1, 13))
    assert await ids(limit=0) == []
    # An image's marker is documented as a text.
    assert (await ask(http, "GET", "images/", params={"marker": "abc"}))[0] == 200
    assert [image["id"] for image in (await ask(http, "GET", "images/", params={"marker": "2"}))[1]] == [3, 4]


async def test_container_starts_as_time_passes(http: aiohttp.ClientSession, clock: Any) -> None:
    path = f"containers/{(await rent(http))['id']}"

    async def shown() -> tuple[int, bool]:
        _, container = await ask(http, "GET", path)
        return container["status"], bool(container["ssh"])

    assert await shown() == (0, False)
    clock.advance(7.4)
    assert await shown() == (0, False)
    clock.advance(5.2)
    assert await shown() == (1, True)
    assert (await ask(http, "GET", "containers/"))[1][0]["ssh"].startswith("ssh root@127.0.0.1 -p ")
    await ask(http, "POST", f"{path}/stop")
    clock.advance(100)
    assert await shown() == (2, False)
    await ask(http, "POST", f"{path}/restart")
    assert await shown() == (0, False)
    clock.advance(12.6)
    assert await shown() == (1, True)


async def test_charges_run_from_create_to_delete(emulator: Emulator, http: aiohttp.ClientSession, clock: Any) -> None:
    first = await rent(http, gpu=2, name="first")
    clock.advance(1800)
    second = await rent(http, gpu=1, name="second")
    clock.advance(1800)
    charges = emulator.charges
    assert [(charge.name, charge.seconds, charge.running) for charge in charges] == [
        ("first", 3600, True),
        ("second", 1800, True),
    ]
    assert charges[0].cost == charges[0].hourly_price
    assert charges[1].cost == charges[1].hourly_price / 2
    assert emulator.spent == charges[0].cost + charges[1].cost
    assert emulator.running == charges
    # A stop does not end the bill, a delete does.
    await ask(http, "POST", f"containers/{second['id']}/stop")
    await ask(http, "DELETE", f"containers/{first['id']}")
    clock.advance(1800)
    assert [(charge.name, charge.seconds) for charge in emulator.running] == [("second", 3600)]
    assert [charge.seconds for charge in emulator.charges] == [3600, 3600]
    assert isinstance(emulator.spent, Decimal)


def test_cost_of_a_charge_is_price_times_seconds() -> None:
    charge = Charge(
        number=1,
        account="default",
        container_id=1,
        name="n",
        node_name="x",
        gpu=1,
        hourly_price=Decimal("0.36"),
        seconds=10.0,
        running=True,
        accruing=True,
    )
    assert charge.cost == Decimal("0.001")


async def test_seed_decides_the_machines(clock: Any) -> None:
    async def machines(seed: int) -> list[Any]:
        async with Emulator(seed=seed, clock=clock) as emulator:
            headers = {"Authorization": f"Bearer {emulator.token}"}
            async with aiohttp.ClientSession(f"{emulator.url}/v1/rentgpu/", headers=headers) as http:
                return list((await ask(http, "GET", "machines"))[1])

    assert await machines(1) == await machines(1)
    assert await machines(1) != await machines(2)


async def test_emulator_serves_once_between_start_and_end() -> None:
    emulator = Emulator(token="mine")
    assert emulator.token == "mine"
    with pytest.raises(RuntimeError, match="before it is started"):
        _ = emulator.url
    async with emulator:
        assert repr(emulator) == f"<Emulator at {emulator.url}>"
        with pytest.raises(RuntimeError, match="started once"):
            await emulator.__aenter__()
        with pytest.raises(OSError, match=r"address already in use|\[Errno"):
            async with Emulator(port=int(emulator.url.rpartition(":")[2])):
                pass
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(emulator.url)


async def test_list_asked_for_again_shows_changes(http: aiohttp.ClientSession, clock: Any) -> None:
    first = (await rent(http, gpu=4, name="one"))["id"]

    async def seen() -> list[tuple[str, int]]:
        answers = [(await ask(http, "GET", "containers/"))[1] for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]
        return [(container["name"], container["status"]) for container in answers[0]]

    assert await seen() == [("one", 0)]
    clock.advance(20)
    assert await seen() == [("one", 1)]
    other = (await rent(http, gpu=4, name="other"))["id"]
    assert await seen() == [("one", 1), ("other", 0)]
    await ask(http, "POST", f"containers/{first}/stop")
    assert await seen() == [("one", 2), ("other", 0)]
    await ask(http, "POST", f"containers/{first}/restart")
    assert await seen() == [("one", 0), ("other", 0)]
    clock.advance(20)
    assert await seen() == [("one", 1), ("other", 1)]
    await ask(http, "DELETE", f"containers/{first}")
    assert await seen() == [("other", 1)]
    await ask(http, "DELETE", f"containers/{other}")
    assert await seen() == []


@pytest.mark.parametrize(("switch", "value"), [("services", "zzz"), ("order", "up"), ("limit", 100), ("numbers", None)])
def test_value_that_a_world_does_not_have_is_refused_with_those_it_has(switch: str, value: Any) -> None:
    values = ", ".join(map(repr, World.switches()[switch]))
    with pytest.raises(ValueError, match=f"^{re.escape(f'{switch} must be one of {values}, not {value!r}')}$"):
        World(**{switch: value})

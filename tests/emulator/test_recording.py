"""What an emulator keeps of its requests."""

import asyncio
import io
from typing import Any

import aiohttp
import canaries
import pytest

from netmind_rentgpu import AsyncRentGPU, PaymentType, RateLimitError
from netmind_rentgpu.emulator import Emulator, Fault, Recording, World
from netmind_rentgpu.emulator.recording import Recorder

BODY = b'{"value": "a-password"}'


async def test_one_create_two_connections_four_pages(emulator: Emulator, gpu: AsyncRentGPU, clock: Any) -> None:
    for number in range(7):
        await gpu.auths.create(f"password-{number}")
    first = len(emulator.requests)
    clock.advance(5)
    assert len([auth async for auth in gpu.auths.list(page_size=2)]) == 7
    container = await gpu.containers.create(
        name="mine",
        auth_id=1,
        node_name=(await gpu.machines.list())[0].node_name,
        image_template_id=1,
        payment_type=PaymentType.USD,
    )
    asked = emulator.requests[first:]
    assert len(asked.of("create_container")) == 1
    assert len(asked.of("list_auths")) == 4
    assert len(asked.of(method="GET", path="/v1/rentgpu/auths/")) == 4
    assert [page.query.get("marker") for page in asked.of("list_auths")] == [None, "2", "4", "6"]
    assert {page.query["limit"] for page in asked.of("list_auths")} == {"2"}
    # Lists share a connection; a create goes over another.
    assert (asked.of(method="GET").connections, asked.connections) == (1, 2)
    (create,) = asked.of("create_container")
    assert create.body == {
        "name": "mine",
        "auth_id": 1,
        "gpu": 1,
        "node_name": container.node_name,
        "image_template_id": 1,
        "payment_type": 0,
    }
    assert (create.number, create.method, create.path) == (first + 6, "POST", "/v1/rentgpu/containers/")
    assert (create.time, create.status, create.fault) == (clock.now, 200, None)


async def test_no_secret_is_kept(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    await gpu.auths.create(canaries.PASSWORD)
    await gpu.images.create(
        name="a", image_name="b", image_tag="c", image_label="d", docker_passwd=canaries.DOCKER_PASSWORD
    )
    headers = {"Authorization": f"Bearer {emulator.token}"}
    async with aiohttp.ClientSession(f"{emulator.url}/v1/rentgpu/", headers=headers) as http:
        for body in (
            f'{{"value": "{canaries.PASSWORD}"',
            f'[{{"value": "{canaries.PASSWORD}"}}, {{"a": {{"docker_passwd": ["{canaries.DOCKER_PASSWORD}"]}}}}]',
            b"\xff" + canaries.PASSWORD.encode(),
            b"[" * 100_000,
            '{"docker_passwd": null}',
            f'"{canaries.PASSWORD}"',
            f'{{"Password": "{canaries.PASSWORD}", "a": [{{"token": "{canaries.PASSWORD}"}}, "{canaries.TOKEN}", 5]}}',
            f'{{"docker_registry": "https://me:{canaries.PASSWORD}/@r.io", "{canaries.TOKEN}": 1, "Value ": "x"}}',
            f'{{"docker_password": "{canaries.PASSWORD}", "passphrase": 7, "Access-Token": "{canaries.PASSWORD}"}}',
            '{"value": NaN}',
        ):
            async with http.post("auths/", data=body) as answer:
                assert answer.status == 422
        for text in (
            "-e HF_TOKEN={}",
            '-e "HF_TOKEN={}"',
            "-e 'HF_TOKEN={}'",
            "--env HF_TOKEN={}",
            '-e HF_TOKEN="x {}"',
            "-e\tHF.TOKEN={}",
            "-we HF-TOKEN {}",
            "docker login -p {}",
            "export HF_TOKEN={}\n",
        ):
            for name in ("options", "onstart"):
                body = {"name": "a", "image_name": "b", "image_tag": "c", "image_label": "d"}
                async with http.post("images/", json={**body, name: text.format(canaries.PASSWORD)}) as answer:
                    assert answer.status == 200
        query = {"value": canaries.PASSWORD, "region": canaries.TOKEN, "ssh_password": "x", canaries.TOKEN: "x"}
        async with http.get(f"machines/{canaries.TOKEN}", params=query), http.get("machines", params=query):
            pass
    kept = emulator.requests
    assert kept[-1].query == {"value": "***", "region": "***", "ssh_password": "***", "***": "***"}
    assert kept[-2].path == "/v1/rentgpu/machines/***"
    assert [one.body for one in kept.of("create_auth")] == [
        {"value": "***"},
        None,
        "***",
        None,
        None,
        {"docker_passwd": None},
        "***",
        {"Password": "***", "a": [{"token": "***"}, "***", 5]},
        {"docker_registry": "https://***@r.io", "***": "***", "Value ": "***"},
        {"docker_password": "***", "passphrase": "***", "Access-Token": "***"},
        None,
    ]
    assert kept.of("create_image")[0].body["docker_passwd"] == "***"
    for secret in canaries.ALL:
        assert secret not in repr(list(kept)) + repr(kept)


@pytest.mark.parametrize(
    "extra", ["1e999", "-1e999", *("[" * depth + "]" * depth for depth in (101, 300, 900, 100_000))]
)
@pytest.mark.parametrize("validation_errors", ["pydantic 1", "pydantic 2"])
async def test_what_cannot_be_written_again_is_refused(extra: str, validation_errors: Any) -> None:
    async with (
        Emulator(world=World(validation_errors=validation_errors)) as emulator,
        aiohttp.ClientSession(emulator.url, headers={"Authorization": f"Bearer {emulator.token}"}) as http,
    ):
        async with http.post("/v1/rentgpu/auths/", data=f'{{"value": "a-password", "x": {extra}}}') as answer:
            assert answer.status == 422
            assert (await answer.json())["detail"][0]["loc"] == ["body", 0]
        async with http.get("/_emulator/requests") as answer:
            assert [one["body"] for one in (await answer.json())["requests"]] == [None]


async def test_what_is_nested_deeply_enough_is_kept(emulator: Emulator) -> None:
    nested: Any = {"x": "y", "z": [[] for _ in range(200)]}
    for _ in range(95):
        nested = [nested, {}]
    async with aiohttp.ClientSession(emulator.url) as http:
        async with http.post("/v1/rentgpu/auths/", json={"x": nested}):
            pass
        async with http.get("/_emulator/requests") as answer:
            assert [one["body"] for one in (await answer.json())["requests"]] == [{"x": nested}]


async def test_what_the_service_does_not_have_is_recorded_too(emulator: Emulator) -> None:
    async with aiohttp.ClientSession(f"{emulator.url}/v1/rentgpu/") as http:
        for method, path in (("GET", "nothing"), ("PUT", "machines"), ("GET", "auths")):
            async with http.request(method, path, allow_redirects=False):
                pass
        async with http.get("machines"):
            pass
        async with http.get("/openapi.json"), http.get("/_emulator/bill"), http.get("/_emulator/nothing"):
            pass
        async with http.get("/_emulator"), http.get("machines?gpu=8&gpu=1"):
            pass
        async with http.post("containers", json={"name": "x"}, allow_redirects=False):
            pass
        async with http.post("auths/", data=io.BytesIO(b" " * (1024**2 + 1))) as answer:
            assert answer.status == 413
    assert [(one.call, one.path, one.status) for one in emulator.requests] == [
        (None, "/v1/rentgpu/nothing", 404),
        (None, "/v1/rentgpu/machines", 405),
        (None, "/v1/rentgpu/auths", 307),
        ("list_machines", "/v1/rentgpu/machines", 422),
        ("list_machines", "/v1/rentgpu/machines", 422),
        (None, "/v1/rentgpu/containers", 307),
        ("create_auth", "/v1/rentgpu/auths/", 413),
    ]
    assert emulator.requests[4].query == {"gpu": "8"}
    assert emulator.requests[5].body == {"name": "x"}


async def test_who_leaves_in_the_midst_of_a_body_is_recorded(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/v1/rentgpu/auths/", "/nothing"):
        _, writer = await asyncio.open_connection("127.0.0.1", int(emulator.url.rpartition(":")[2]))
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        await writer.drain()
        async with asyncio.timeout(30):
            async with aiohttp.ClientSession() as http, http.get(emulator.url):
                pass
        writer.transport.abort()
    async with asyncio.timeout(30):
        while len(emulator.requests.of(method="post")) < 2:
            await asyncio.sleep(0)
    assert [(one.call, one.path, one.body) for one in emulator.requests.of(method="post")] == [
        ("create_auth", "/v1/rentgpu/auths/", None),
        (None, "/nothing", None),
    ]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_numbers_are_in_the_order_of_arrival(emulator: Emulator) -> None:
    """And who leaves before a body is whole counts as the connection that it was."""
    port = int(emulator.url.rpartition(":")[2])
    head = f"POST /v1/rentgpu/auths/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {emulator.token}\r\n"
    head += f"Content-Length: {len(BODY)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode())
    async with asyncio.timeout(30):
        while not emulator.requests:
            await asyncio.sleep(0)
    assert emulator.requests[0].body is None
    async with aiohttp.ClientSession() as http, http.get(f"{emulator.url}/v1/rentgpu/machines"):
        pass
    writer.write(BODY + head.encode() + b"{")
    await reader.readuntil(b"\r\n\r\n")
    async with asyncio.timeout(30):
        while len(emulator.requests) < 3:
            await asyncio.sleep(0)
    writer.transport.abort()
    kept = list(emulator.requests)
    assert [(one.call, one.number, one.connection) for one in kept[:3]] == [
        ("create_auth", 1, 1),
        ("list_machines", 2, 2),
        ("create_auth", 3, 1),
    ]
    assert (kept[0].body, kept[0].status, kept[2].body, kept[2].status) == ({"value": "***"}, 200, None, None)
    assert emulator.requests.connections == 2


async def test_a_call_that_is_none_is_not_simply_absent(emulator: Emulator) -> None:
    with pytest.raises(ValueError, match="no call is named create_containers; there are list_machines"):
        emulator.requests.of("create_containers")


async def test_it_prints_as_a_list(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    emulator.faults.add(Fault("rate limit", nth=2, times="all", retry_after=0))
    await gpu.machines.list(region="US")
    with pytest.raises(RateLimitError):
        await gpu.auths.list()
    lines = repr(emulator.requests).splitlines()
    assert lines[0] == f"<{len(emulator.requests)} requests>"
    assert lines[1].startswith("  1. GET /v1/rentgpu/machines {")
    assert lines[1].endswith("-> 200")
    assert lines[2] == "  2. GET /v1/rentgpu/auths/ {'limit': '100'} -> 429 rate limit"
    assert repr(Recording([])) == "<0 requests>"


def test_a_short_token_leaves_ordinary_text_alone() -> None:
    recorder = Recorder(keep=None, token="test")
    body = b'{"name": "test-1", "image_name": "a/tester", "image_tag": "test", "image_label": "Bearer test!"}'
    recorder.add(call=None, method="GET", path="/latest/test", query={}, connection=1, time=0)
    recorder.add_body(recorder.recording()[0], body)
    (kept,) = recorder.recording()
    assert (kept.path, kept.body) == (
        "/latest/***",
        {"name": "test-1", "image_name": "a/tester", "image_tag": "***", "image_label": "Bearer ***!"},
    )


def test_the_newest_are_kept() -> None:
    recorder = Recorder(keep=2, token="the-token")
    for number in range(5):
        recorder.add(call=None, method="GET", path=f"/{number}", query={}, connection=number, time=float(number))
    before = recorder.recording()
    assert [(one.number, one.path) for one in before] == [(4, "/3"), (5, "/4")]
    recorder.clear()
    assert len(recorder.recording()) == 0
    # What was handed out is no window: it stays as it was.
    assert len(before) == 2
    assert [one.number for one in before[1:]] == [5]

"""The requests that an emulator records: order, connections, secrets, and bodies."""

import asyncio
import io
from typing import Any

import aiohttp
import canaries
import pytest
from until import until

from netmind_rentgpu import AsyncRentGPU, PaymentType, RateLimitError
from netmind_rentgpu.emulator import Emulator, Fault, Recording, World
from netmind_rentgpu.emulator.recording import Recorder

BODY = b'{"value": "a-password"}'


async def test_recorded_requests_show_calls_pages_and_connections(
    emulator: Emulator, gpu: AsyncRentGPU, clock: Any
) -> None:
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


async def test_recording_keeps_no_secret(emulator: Emulator, gpu: AsyncRentGPU) -> None:
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
    assert [request.body for request in kept.of("create_auth")] == [
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
async def test_body_that_cannot_be_written_as_json_is_refused_and_not_recorded(
    extra: str, validation_errors: Any
) -> None:
    async with (
        Emulator(world=World(validation_errors=validation_errors)) as emulator,
        aiohttp.ClientSession(emulator.url, headers={"Authorization": f"Bearer {emulator.token}"}) as http,
    ):
        async with http.post("/v1/rentgpu/auths/", data=f'{{"value": "a-password", "x": {extra}}}') as answer:
            assert answer.status == 422
            assert (await answer.json())["detail"][0]["loc"] == ["body", 0]
        async with http.get("/_emulator/requests") as answer:
            assert [request["body"] for request in (await answer.json())["requests"]] == [None]


async def test_body_nested_just_within_the_limit_is_recorded(emulator: Emulator) -> None:
    nested: Any = {"x": "y", "z": [[] for _ in range(200)]}
    for _ in range(95):
        nested = [nested, {}]
    async with aiohttp.ClientSession(emulator.url) as http:
        async with http.post("/v1/rentgpu/auths/", json={"x": nested}):
            pass
        async with http.get("/_emulator/requests") as answer:
            assert [request["body"] for request in (await answer.json())["requests"]] == [{"x": nested}]


async def test_requests_that_the_service_does_not_know_are_recorded(emulator: Emulator) -> None:
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
    assert [(request.call, request.path, request.status) for request in emulator.requests] == [
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


async def test_caller_that_leaves_within_a_body_is_recorded(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/v1/rentgpu/auths/", "/nothing"):
        _, writer = await asyncio.open_connection("127.0.0.1", int(emulator.url.rpartition(":")[2]))
        writer.write(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{{".encode())
        await writer.drain()
        async with asyncio.timeout(60):
            async with aiohttp.ClientSession() as http, http.get(emulator.url):
                pass
        writer.transport.abort()
    await until(lambda: len(emulator.requests.of(method="post")) == 2)
    assert [(request.call, request.path, request.body) for request in emulator.requests.of(method="post")] == [
        ("create_auth", "/v1/rentgpu/auths/", None),
        (None, "/nothing", None),
    ]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_requests_are_numbered_in_the_order_of_arrival(emulator: Emulator) -> None:
    """A caller that leaves within a body counts as its own connection, too."""
    port = int(emulator.url.rpartition(":")[2])
    head = f"POST /v1/rentgpu/auths/ HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {emulator.token}\r\n"
    head += f"Content-Length: {len(BODY)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode())
    await until(lambda: emulator.requests)
    assert emulator.requests[0].body is None
    async with aiohttp.ClientSession() as http, http.get(f"{emulator.url}/v1/rentgpu/machines"):
        pass
    writer.write(BODY + head.encode() + b"{")
    await reader.readuntil(b"\r\n\r\n")
    await until(lambda: len(emulator.requests) >= 3)
    writer.transport.abort()
    kept = list(emulator.requests)
    assert [(request.call, request.number, request.connection) for request in kept[:3]] == [
        ("create_auth", 1, 1),
        ("list_machines", 2, 2),
        ("create_auth", 3, 1),
    ]
    assert (kept[0].body, kept[0].status, kept[2].body, kept[2].status) == ({"value": "***"}, 200, None, None)
    assert emulator.requests.connections == 2


async def test_unknown_call_name_raises_instead_of_an_empty_list(emulator: Emulator) -> None:
    with pytest.raises(ValueError, match="no call is named create_containers; there are list_machines"):
        emulator.requests.of("create_containers")


async def test_recording_prints_as_a_list(emulator: Emulator, gpu: AsyncRentGPU) -> None:
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


def test_short_token_is_masked_and_leaves_ordinary_text_alone() -> None:
    recorder = Recorder(keep=None, token="test")
    body = b'{"name": "test-1", "image_name": "a/tester", "image_tag": "test", "image_label": "Bearer test!"}'
    recorder.add(call=None, method="GET", path="/latest/test", query={}, connection=1, time=0)
    recorder.add_body(recorder.recording()[0], body)
    (kept,) = recorder.recording()
    assert (kept.path, kept.body) == (
        "/latest/***",
        {"name": "test-1", "image_name": "a/tester", "image_tag": "***", "image_label": "Bearer ***!"},
    )


def test_recording_keeps_the_newest_requests() -> None:
    recorder = Recorder(keep=2, token="the-token")
    for number in range(5):
        recorder.add(call=None, method="GET", path=f"/{number}", query={}, connection=number, time=float(number))
    before = recorder.recording()
    assert [(request.number, request.path) for request in before] == [(4, "/3"), (5, "/4")]
    recorder.clear()
    assert len(recorder.recording()) == 0
    # A recording that was returned before the clearing is a copy.
    assert len(before) == 2
    assert [request.number for request in before[1:]] == [5]

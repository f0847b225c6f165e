"""The client as a whole: its life cycle, limits, sessions, proxies, raw requests, imports and log."""

import asyncio
import gc
import logging
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
import trustme
from hostile import Hostile, Peer, answer

import netmind_rentgpu
from netmind_rentgpu import (
    APIConnectionError,
    AsyncRentGPU,
    ClientStateError,
    ConfigurationError,
    InvalidArgumentError,
    NotFoundError,
    PaymentType,
    Retries,
    UnexpectedResponseError,
)
from netmind_rentgpu.emulator import Emulator

CREATE: dict[str, Any] = {
    "name": "n",
    "auth_id": 1,
    "node_name": "n",
    "image_template_id": 1,
    "payment_type": PaymentType.USD,
}


async def test_500_calls_over_10_connections_succeed() -> None:
    async with Emulator() as emulator:
        async with AsyncRentGPU(emulator.token, base_url=emulator.url, max_connections=10) as gpu:
            found = await asyncio.gather(*(gpu.images.get(1) for _ in range(500)))
    assert {image.id for image in found} == {1}


async def test_500_calls_open_no_more_connections_than_allowed() -> None:
    async with Hostile([answer()]) as server, AsyncRentGPU("t", base_url=server.url, max_connections=10) as gpu:
        await asyncio.gather(*(gpu.containers.get(1) for _ in range(500)))
        assert len(server.seen) == 500
        assert server.connections == 10


def test_client_is_made_without_a_loop() -> None:
    client = AsyncRentGPU("t")
    asyncio.run(client.close())


def test_client_used_in_another_loop_is_refused() -> None:
    async def use(client: AsyncRentGPU) -> None:
        await client.containers.get(1)

    async def first(client: AsyncRentGPU) -> None:
        with pytest.raises(APIConnectionError):
            await use(client)

    client = AsyncRentGPU("t", base_url="http://127.0.0.1:1", retries=0)
    with asyncio.Runner() as runner:
        runner.run(first(client))
        with pytest.raises(ClientStateError, match="another event loop"):
            asyncio.run(use(client))
        with pytest.raises(ClientStateError, match="another event loop"):
            asyncio.run(client.close())
        runner.run(client.close())


async def test_closed_client_refuses_calls(emulator: Emulator) -> None:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
        await gpu.machines.list()
    with pytest.raises(ClientStateError, match="closed"):
        await gpu.machines.list()
    with pytest.raises(ClientStateError, match="closed"):
        await gpu.containers.create(**CREATE)
    await gpu.close()


async def test_closing_ends_calls_under_way() -> None:
    def stall(peer: Peer) -> None:
        pass

    async with Hostile([stall]) as server:
        gpu = AsyncRentGPU("t", base_url=server.url, retries=0)
        calls = [asyncio.ensure_future(gpu.containers.get(1)), asyncio.ensure_future(gpu.containers.create(**CREATE))]
        await server.until(lambda: len(server.seen) == 2)
        with anyio.fail_after(10):
            await gpu.close()
            errors = await asyncio.gather(*calls, return_exceptions=True)
            await server.until(lambda: not server.open)
        for error in errors:
            assert isinstance(error, APIConnectionError)
            assert error.maybe_processed is True
            assert "closed meanwhile" in str(error)


async def test_cancelled_close_still_closes() -> None:
    def behave(peer: Peer) -> None:
        if peer.server.seen[-1].method == "GET":
            answer()(peer)

    for turns in range(4):
        async with Hostile([behave]) as server:
            gpu = AsyncRentGPU("t", base_url=server.url, retries=0)
            await gpu.containers.get(1)
            create = asyncio.ensure_future(gpu.containers.create(**CREATE))
            await server.until(lambda: len(server.seen) == 2)
            closing = asyncio.ensure_future(gpu.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            with anyio.fail_after(10):
                await gpu.close()
                with pytest.raises(APIConnectionError):
                    await create
                await server.until(lambda: not server.open)
    async with Hostile([answer()]) as server:
        with anyio.CancelScope() as scope:
            async with AsyncRentGPU("t", base_url=server.url) as gpu:
                await gpu.containers.get(1)
                await gpu.containers.create(**CREATE)
                scope.cancel()
                await anyio.sleep_forever()
        await server.until(lambda: not server.open)
    gc.collect()


async def test_session_limit_per_host_limits_the_client() -> None:
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100, limit_per_host=2))
    assert AsyncRentGPU("t", session=session)._caller._transport.connection_limit == 2
    await session.close()
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    assert AsyncRentGPU("t", session=session)._caller._transport.connection_limit is None
    await session.close()


async def test_session_login_from_netrc_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password canary\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with Hostile([answer()]) as server, aiohttp.ClientSession(trust_env=True) as session:
        async with AsyncRentGPU("t", base_url=server.url, session=session) as gpu:
            with pytest.raises(ConfigurationError, match="netrc"):
                await gpu.containers.create(**CREATE)
        assert server.seen == []


async def test_middleware_failing_after_the_answer_leaves_the_create_in_doubt() -> None:
    async def fail(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        await handler(request)
        raise RuntimeError("canary")

    async with Hostile([answer()]) as server, aiohttp.ClientSession(middlewares=[fail]) as session:
        async with AsyncRentGPU("t", base_url=server.url, session=session) as gpu:
            with pytest.raises(APIConnectionError, match=r"failed \(RuntimeError\)") as caught:
                await gpu.containers.create(**CREATE)
    assert caught.value.maybe_processed is True


async def test_own_session_is_used_and_not_closed(emulator: Emulator) -> None:
    headers = {"X-Mine": "yes", "Authorization": "not this one"}
    async with Hostile([answer()]) as server, aiohttp.ClientSession(headers=headers) as session:
        async with AsyncRentGPU("t", base_url=server.url, session=session) as gpu:
            await gpu.containers.get(1)
            await gpu.containers.create(**CREATE)
            await gpu.containers.delete(1)
        assert not session.closed
        for request in server.seen:
            assert (request.headers["x-mine"], request.headers["authorization"]) == ("yes", "Bearer t")


async def test_session_middlewares_see_every_request() -> None:
    seen: list[str] = []

    async def note(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        seen.append(request.method)
        return await handler(request)

    async with Hostile([answer()]) as server, aiohttp.ClientSession(middlewares=[note]) as session:
        async with AsyncRentGPU("t", base_url=server.url, session=session) as gpu:
            await gpu.containers.get(1)
            await gpu.containers.create(**CREATE)
            await gpu.containers.delete(1)
    assert seen == ["GET", "POST", "DELETE"]


async def test_session_settings_do_not_break_a_call() -> None:
    connector = aiohttp.TCPConnector(limit=2)
    session = aiohttp.ClientSession(
        connector=connector, raise_for_status=True, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=0.001)
    )
    async with Hostile([answer(), answer({"detail": "no"}, 404)]) as server, session:
        async with AsyncRentGPU("t", base_url=server.url, session=session) as gpu:
            assert (await gpu.containers.get(1)).id == 1
            with pytest.raises(NotFoundError):
                await gpu.containers.get(1)
            assert server.seen[0].headers["accept-encoding"] == "identity"
            calls = (gpu.containers.delete(1) for _ in range(20))
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {NotFoundError}
        assert server.connections == 2


async def test_unusable_session_is_refused() -> None:
    with pytest.warns(DeprecationWarning, match="auth"):
        session = aiohttp.ClientSession(auth=aiohttp.BasicAuth("a", "b"))
    async with session:
        with pytest.raises(ConfigurationError, match="login of its own"):
            AsyncRentGPU("t", session=session)
    gpu = AsyncRentGPU("t", session=aiohttp.ClientSession())
    session = gpu._caller._transport._session  # type: ignore[attr-defined]  # to close it behind the client's back
    await session.close()
    with pytest.raises(ClientStateError, match="session is closed"):
        await gpu.containers.get(1)
    await gpu.close()


async def test_closing_over_tls_leaves_no_warning() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with Hostile([answer()], ssl_context=server_context) as server:
        async with AsyncRentGPU("t", base_url=server.url, ssl_context=context) as gpu:
            await gpu.containers.get(1)
            await gpu.containers.create(**CREATE)
        await server.until(lambda: not server.open)
    gc.collect()


def proxy_behaviour(peer: Peer) -> None:
    """Answer a plain request as a forwarding proxy would; refuse a tunnel."""
    if peer.server.seen[-1].method == "CONNECT":
        peer.send(407, b"")
    else:
        answer()(peer)


async def test_proxy_forwards_plain_http() -> None:
    async with Hostile([proxy_behaviour]) as proxy:
        address = proxy.url.replace("http://", "http://me:p%40ss@")
        async with AsyncRentGPU("t", base_url="http://gpu.invalid", allow_insecure_http=True, proxy=address) as gpu:
            assert (await gpu.containers.get(1)).id == 1
            assert (await gpu.containers.create(**CREATE)).id == 1
        for request in proxy.seen:
            assert request.target.startswith("http://gpu.invalid/v1/rentgpu/containers/")
            assert request.headers["proxy-authorization"] == aiohttp.encode_basic_auth("me", "p@ss")


async def test_tunnel_refused_by_the_proxy_is_an_error_without_secrets() -> None:
    async with Hostile([proxy_behaviour]) as proxy:
        address = proxy.url.replace("http://", "http://me:canary@")
        async with AsyncRentGPU("token-canary", base_url="https://gpu.invalid", proxy=address, retries=0) as gpu:
            with pytest.raises(APIConnectionError, match="the proxy refused with 407") as caught:
                await gpu.containers.create(**CREATE)
        assert caught.value.maybe_processed is False
        request = proxy.seen[0]
        assert (request.method, request.target) == ("CONNECT", "gpu.invalid:443")
        assert request.headers["proxy-authorization"] == aiohttp.encode_basic_auth("me", "canary")
        # The token is for the service, not for the proxy.
        assert "authorization" not in request.headers
        cause = caught.value.__cause__
        login = aiohttp.encode_basic_auth("me", "canary")
        for secret in ("canary", login, login.removeprefix("Basic ")):
            assert secret not in f"{cause!r} {cause} {vars(cause)}"
        assert caught.value.__context__ is None


async def test_proxy_from_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Hostile([proxy_behaviour]) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        async with AsyncRentGPU("t", base_url="http://gpu.invalid", allow_insecure_http=True) as gpu:
            assert (await gpu.containers.get(1)).id == 1


async def test_unreachable_proxy_is_an_error_without_secrets() -> None:
    async with AsyncRentGPU(
        "t", base_url="https://gpu.invalid", proxy="http://me:canary@127.0.0.1:1", retries=0
    ) as gpu:
        with pytest.raises(APIConnectionError, match="no connection to the proxy") as caught:
            await gpu.containers.create(**CREATE)
        assert caught.value.maybe_processed is False
        cause = caught.value.__cause__
        assert "canary" not in f"{caught.value} {cause} {cause!r} {vars(cause)} {cause and cause.args}"


async def test_tunnel_through_a_proxy_reaches_the_service() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readuntil(b"\r\n\r\n")
        assert first.startswith(b"CONNECT 127.0.0.1")
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
            target.close()

        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))

    async with Hostile([answer()], ssl_context=server_context) as server:
        proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        async with (
            proxy,
            AsyncRentGPU(
                "t", base_url=server.url, proxy=f"http://127.0.0.1:{port}", ssl_context=context, retries=0
            ) as gpu,
        ):
            assert (await gpu.containers.get(1)).id == 1
            assert (await gpu.containers.create(**CREATE)).id == 1
        assert [request.headers["authorization"] for request in server.seen] == ["Bearer t"] * 2


async def test_raw_requests_return_the_decoded_answer(gpu: AsyncRentGPU) -> None:
    assert len(await gpu.request("GET", "machines", params={"gpu": 8})) > 0
    auth = await gpu.request("post", "auths/", json={"value": "a-password"})
    assert auth["value"] == "a-password"
    assert await gpu.request("GET", "/v1/rentgpu/auths/", params={"limit": 5}) == [auth]
    with pytest.raises(NotFoundError):
        await gpu.request("GET", "elsewhere")
    with pytest.raises(UnexpectedResponseError, match="not followed"):
        await gpu.request("GET", "auths")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "https://evil.example/",
        "a?b=c",
        "a#b",
        "../users",
        "a/%2e%2e/b",
        "a\\b",
        "a\nb",
        "./a",
        "//evil.example/%2E%2e/x",
    ],
)
async def test_raw_request_to_a_path_outside_the_service_is_refused(gpu: AsyncRentGPU, path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="path"):
        await gpu.request("GET", path)


async def test_raw_request_with_a_double_slash_stays_on_the_host(gpu: AsyncRentGPU) -> None:
    with pytest.raises(NotFoundError) as caught:
        await gpu.request("GET", "//evil.example/x")
    assert caught.value.path == "/evil.example/x"


async def test_raw_request_with_unsendable_arguments_is_refused(gpu: AsyncRentGPU) -> None:
    with pytest.raises(InvalidArgumentError, match="method"):
        await gpu.request("GET /", "machines")
    wrong: Any = {"a": None}
    with pytest.raises(InvalidArgumentError, match="params: a must be a text or a number"):
        await gpu.request("GET", "machines", params=wrong)
    with pytest.raises(InvalidArgumentError, match="params: holds half a character"):
        await gpu.request("GET", "machines", params={"region": "\udcff"})
    with pytest.raises(InvalidArgumentError, match="json"):
        await gpu.request("POST", "auths/", json={"value": object()})


async def test_raw_request_is_retried_only_for_idempotent_methods() -> None:
    async with Hostile([answer(b"", 502)]) as server:
        async with AsyncRentGPU("t", base_url=server.url, retries=Retries(base_delay=0)) as gpu:
            for method, times in (("GET", 4), ("DELETE", 4), ("PUT", 4), ("POST", 1), ("PATCH", 1)):
                server.seen.clear()
                with pytest.raises(netmind_rentgpu.ServerError):
                    await gpu.request(method, "x", json=None if method == "GET" else {})
                assert len(server.seen) == times


async def test_secret_echoed_to_a_raw_request_is_masked() -> None:
    async with Hostile([answer({"detail": "canary is too short"}, 400)]) as server:
        async with AsyncRentGPU("t", base_url=server.url) as gpu:
            with pytest.raises(netmind_rentgpu.InvalidRequestError) as caught:
                await gpu.request("POST", "auths/", json={"value": "canary"})
    assert "canary" not in repr(caught.value)


async def test_token_is_sent_bare_if_the_profile_says_so(emulator: Emulator) -> None:
    async with Hostile([answer()]) as server:
        profile = netmind_rentgpu.ServiceProfile(authorization="bare")
        async with AsyncRentGPU("the-token", base_url=server.url, profile=profile) as gpu:
            await gpu.containers.get(1)
    assert server.seen[0].headers["authorization"] == "the-token"


async def test_base_url_with_a_path_keeps_the_path() -> None:
    async with Hostile([answer()]) as server:
        async with AsyncRentGPU("t", base_url=f"{server.url}/gateway/") as gpu:
            await gpu.containers.get(1)
    assert server.seen[0].target == "/gateway/v1/rentgpu/containers/1"


async def test_log_shows_no_secret(gpu: AsyncRentGPU, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await gpu.auths.create("canary-password")
    await gpu.images.create(name="n", image_name="i", image_tag="t", image_label="l", docker_passwd="canary-docker")
    messages = [record for record in caplog.records if record.name == "netmind_rentgpu"]
    assert [record.levelno for record in messages] == [logging.DEBUG] * 2
    assert "canary" not in caplog.text
    assert gpu._parts.settings.token not in caplog.text


def run(code: str, *flags: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_client_loads_no_heavy_module(tmp_path: Path) -> None:
    heavy = ("aiohttp", "asyncio", "anyio", "cattrs", "orjson", "asyncssh", "ssl")
    code = f"import sys; from netmind_rentgpu import AsyncRentGPU; print([m for m in {heavy} if m in sys.modules])"
    assert run(code, cwd=tmp_path).strip() == "[]"


def test_package_root_offers_every_public_name() -> None:
    for name in netmind_rentgpu.__all__:
        assert getattr(netmind_rentgpu, name) is not None
    assert set(netmind_rentgpu.__all__) <= set(dir(netmind_rentgpu))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        netmind_rentgpu.nothing  # noqa: B018  # the access itself is tested


def test_client_left_open_ends_with_its_process(tmp_path: Path) -> None:
    code = """
import asyncio
from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.emulator import Emulator

async def main():
    async with Emulator() as emulator:
        gpu = AsyncRentGPU(emulator.token, base_url=emulator.url)
        print(len(await gpu.machines.list()))

asyncio.run(main())
"""
    assert run(code, cwd=tmp_path).strip() == "60"


async def test_client_used_from_many_tasks_keeps_its_limits() -> None:
    threads = set(threading.enumerate())
    async with Hostile([answer()]) as server, AsyncRentGPU("t", base_url=server.url, max_connections=3) as gpu:
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(gpu.containers.get(1))
                group.create_task(gpu.containers.create(**CREATE))
        # Creates have connections of their own, which are not kept for long.
        assert 1 <= len(server.open) <= 2 * 3
    # A client starts no thread and no task of its own.
    assert set(threading.enumerate()) <= threads

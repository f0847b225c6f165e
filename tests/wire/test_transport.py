"""Each fault of a connection ends in the right error, in bounded time, and says whether the service may have acted."""

import asyncio
import socket
import ssl
from typing import Any

import anyio
import hostile
import pytest
import trustme
from hostile import CONTAINER, Hostile, answer

from netmind_rentgpu import (
    APIConnectionError,
    APITimeoutError,
    AsyncRentGPU,
    Container,
    NotFoundError,
    PaymentType,
    RentGPUError,
    Retries,
    ServerError,
    Timeouts,
    UnexpectedResponseError,
)

# For tests that wait for a timeout; the others have time enough on any machine.
SHORT = Timeouts(total=20, connect=0.5, read=0.3)
LONG = Timeouts(total=60, connect=20, read=20)
AT_ONCE = Retries(base_delay=0, max_delay=0)


def client(server: Hostile | str, **settings: Any) -> AsyncRentGPU:
    url = server if isinstance(server, str) else server.url
    return AsyncRentGPU("token", base_url=url, **{"timeout": LONG, "retries": AT_ONCE, **settings})


async def create(gpu: AsyncRentGPU) -> Container:
    return await gpu.containers.create(
        name="mine", auth_id=1, node_name="node", image_template_id=1, payment_type=PaymentType.USD
    )


@pytest.mark.parametrize(
    ("behaviour", "error", "attributes"),
    [
        (hostile.close, APIConnectionError, {"maybe_processed": True}),
        (hostile.reset, APIConnectionError, {"maybe_processed": True}),
        (hostile.stall, APITimeoutError, {"maybe_processed": True}),
        (hostile.stall_after_head, APITimeoutError, {"maybe_processed": True}),
        (hostile.not_http, APIConnectionError, {"maybe_processed": True}),
        (hostile.cut_body, UnexpectedResponseError, {"truncated": True, "status": 200}),
        (hostile.reset_body, UnexpectedResponseError, {"truncated": True, "status": 200}),
        (answer(b"<html><title>Bad gateway</title></html>", 502), ServerError, {"status": 502}),
    ],
)
async def test_faults_are_retried_for_a_get_and_never_for_a_create(
    behaviour: hostile.Behaviour, error: type[RentGPUError], attributes: dict[str, object]
) -> None:
    with anyio.fail_after(30):
        async with Hostile([behaviour]) as server, client(server, timeout=SHORT) as gpu:
            with pytest.raises(error) as caught:
                await create(gpu)
            assert {name: getattr(caught.value, name) for name in attributes} == attributes
            assert [request.method for request in server.seen] == ["POST"]

            server.seen.clear()
            with pytest.raises(error) as caught:
                await gpu.containers.get(1)
            assert {name: getattr(caught.value, name) for name in attributes} == attributes
            assert "sent 4 times" in caught.value.__notes__[0]
            assert len(server.seen) == 4


@pytest.mark.parametrize(
    "fault", [hostile.close, hostile.reset, hostile.cut_body, hostile.reset_body, hostile.not_http]
)
async def test_a_get_outlives_a_fault(fault: hostile.Behaviour) -> None:
    async with Hostile([fault, fault, answer()]) as server, client(server) as gpu:
        assert (await gpu.containers.get(1)).id == 1
        assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("body", "json_path"),
    [
        (b"", "$"),
        (b"null", "$"),
        (b"<html>hello</html>", "$"),
        (b"[]", "$"),
        (b"3", "$"),
        (b'{"name": "no id"}', "$.id"),
        (b'{"id": "x"}', "$.id"),
        (b'{"id": NaN}', "$.id"),
        (b'{"id": 1', "$"),
        (b'{"id": 1, "name": "\xff"}', "$"),
        (b"[" * 2000, "$"),
    ],
)
async def test_a_body_of_another_shape_is_unexpected_and_not_asked_for_again(body: bytes, json_path: str) -> None:
    async with Hostile([answer(body)]) as server, client(server) as gpu:
        with pytest.raises(UnexpectedResponseError) as caught:
            await gpu.containers.get(1)
        assert caught.value.json_path == json_path
        assert caught.value.__context__ is None or "hello" not in repr(caught.value.__context__)
        assert len(server.seen) == 1


async def test_no_content_is_unexpected_but_for_a_delete() -> None:
    async with Hostile([lambda peer: peer.transport.write(hostile.head(204, None))]) as server, client(server) as gpu:
        with pytest.raises(UnexpectedResponseError, match="empty or null where an object belongs"):
            await gpu.containers.get(1)
        with pytest.raises(UnexpectedResponseError, match="empty or null where a list belongs"):
            await gpu.machines.list()
        assert await gpu.containers.delete(1) is None


@pytest.mark.parametrize("body", [b"", b"null", b"{}"])
async def test_a_delete_may_answer_with_nothing(body: bytes) -> None:
    async with Hostile([answer(body)]) as server, client(server) as gpu:
        assert await gpu.containers.delete(1) is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with Hostile() as elsewhere:
        location = f"{elsewhere.url}/?token=token"
        async with Hostile([answer(b"", status, Location=location)]) as server, client(server) as gpu:
            with pytest.raises(UnexpectedResponseError, match="redirects") as caught:
                await gpu.machines.list()
            assert caught.value.status == status
            assert len(server.seen) == 1
        assert elsewhere.connections == 0


async def test_too_large_a_body_is_not_read() -> None:
    with anyio.fail_after(30):
        async with Hostile([hostile.endless_body]) as server, client(server) as gpu:
            with pytest.raises(UnexpectedResponseError, match="larger than 16 MiB"):
                await gpu.containers.get(1)
            await server.until(lambda: not server.open)
            assert len(server.seen) == 1


async def test_a_compressed_body_is_measured_as_it_unfolds() -> None:
    import gzip

    bomb = gzip.compress(b" " * 17 * 1024 * 1024)
    assert len(bomb) < 100_000
    async with Hostile([answer(bomb, Content_Encoding="gzip")]) as server, client(server) as gpu:
        with pytest.raises(UnexpectedResponseError, match="larger than 16 MiB"):
            await gpu.containers.get(1)


async def test_a_broken_compression_is_unexpected() -> None:
    async with Hostile([answer(b"not gzip", Content_Encoding="gzip")]) as server, client(server, retries=0) as gpu:
        with pytest.raises(UnexpectedResponseError):
            await gpu.containers.get(1)


async def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with client(url) as gpu:
        with pytest.raises(APIConnectionError, match="no connection to the service") as caught:
            await create(gpu)
        assert caught.value.maybe_processed is False
        # Surely not sent, so even a create is tried again.
        assert "sent 4 times" in caught.value.__notes__[0]


async def test_a_full_listener_is_a_connect_timeout() -> None:
    with hostile.full_listener() as url:
        async with client(url, retries=0, timeout=SHORT) as gpu:
            with pytest.raises(APITimeoutError, match=r"no connection within 0\.5 s") as caught:
                await create(gpu)
        assert caught.value.maybe_processed is False
        assert isinstance(caught.value, TimeoutError)


async def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with client("https://gpu.invalid") as gpu:
        with pytest.raises(APIConnectionError, match=r"gpu\.invalid cannot be resolved") as caught:
            await create(gpu)
        assert caught.value.maybe_processed is False


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_an_untrusted_certificate(authority: trustme.CA) -> None:
    async with Hostile([answer()], ssl_context=server_context(authority)) as server, client(server) as gpu:
        with pytest.raises(APIConnectionError, match="no safe connection") as caught:
            await create(gpu)
        assert caught.value.maybe_processed is False
        assert server.seen == []


async def test_a_certificate_for_another_name(authority: trustme.CA) -> None:
    context = server_context(authority, "somewhere.else")
    async with (
        Hostile([answer()], ssl_context=context) as server,
        client(server, ssl_context=client_context(authority)) as gpu,
    ):
        with pytest.raises(APIConnectionError, match="no safe connection") as caught:
            await create(gpu)
        assert caught.value.maybe_processed is False


async def test_plain_http_behind_https() -> None:
    async with (
        Hostile([answer()], on_connect=lambda peer: peer.send(400, b"")) as server,
        client(server.url.replace("http:", "https:")) as gpu,
    ):
        with pytest.raises(APIConnectionError, match="no safe connection") as caught:
            await create(gpu)
        assert caught.value.maybe_processed is False
        assert server.seen == []


async def test_a_custom_authority_is_trusted_by_context(authority: trustme.CA) -> None:
    async with (
        Hostile([answer()], ssl_context=server_context(authority)) as server,
        client(server, ssl_context=client_context(authority)) as gpu,
    ):
        assert (await create(gpu)).id == 1
        assert (await gpu.containers.get(1)).id == 1


async def test_reset_before_the_request_is_read() -> None:
    async with Hostile([answer()], on_connect=lambda peer: peer.reset()) as server, client(server) as gpu:
        with pytest.raises(APIConnectionError) as caught:
            await create(gpu)
        # Whether the reset came before or after the bytes, nobody can tell.
        assert caught.value.maybe_processed is True
        assert server.seen == []


async def test_a_create_goes_over_no_connection_that_has_lain_idle() -> None:
    async with Hostile([answer()]) as server, client(server) as gpu:
        for _ in range(3):
            await gpu.containers.get(1)
        await create(gpu)
        await gpu.containers.get(1)
        # One that has answered a create this very moment will do.
        await create(gpu)
        assert [request.connection for request in server.seen] == [1, 1, 1, 2, 1, 2]
        await server.until(lambda: [peer.number for peer in server.open] == [1])
        await create(gpu)
        assert server.seen[-1].connection == 3


async def test_a_connection_that_was_closed_with_the_answer_costs_a_create_nothing() -> None:
    def answer_then_close(peer: hostile.Peer) -> None:
        answer()(peer)
        peer.transport.close()

    async with Hostile([answer_then_close]) as server, client(server) as gpu:
        for _ in range(5):
            assert (await create(gpu)).id == 1
        assert [request.connection for request in server.seen] == [1, 2, 3, 4, 5]


async def test_where_connections_close_unannounced_each_create_gets_its_own() -> None:
    def close_without_an_answer(peer: hostile.Peer) -> None:
        peer.transport.close()

    async with Hostile([answer(), close_without_an_answer, answer()]) as server, client(server) as gpu:
        await create(gpu)
        with pytest.raises(APIConnectionError, match="without an answer") as caught:
            await create(gpu)
        assert caught.value.maybe_processed is True
        for _ in range(3):
            await create(gpu)
        assert [request.connection for request in server.seen] == [1, 1, 2, 3, 4]


async def test_the_total_covers_a_body_that_drips() -> None:
    with anyio.fail_after(10):
        async with Hostile([hostile.drip]) as server, client(server) as gpu:
            with pytest.raises(APITimeoutError, match=r"no whole answer within 0\.5 s") as caught:
                await gpu.containers.get(1, timeout=0.5)
            assert caught.value.maybe_processed is True
            assert len(server.seen) == 1


async def test_the_total_covers_the_retries() -> None:
    with anyio.fail_after(10):
        async with Hostile([hostile.stall]) as server, client(server) as gpu:
            with pytest.raises(APITimeoutError):
                await gpu.containers.get(1, timeout=Timeouts(total=0.5, read=0.2))
            assert 2 <= len(server.seen) <= 3


async def test_none_takes_a_limit_off() -> None:
    def slow(peer: hostile.Peer) -> None:
        asyncio.get_running_loop().call_later(0.4, answer(), peer)

    async with Hostile([slow]) as server, client(server, retries=0, timeout=SHORT) as gpu:
        with pytest.raises(APITimeoutError, match=r"nothing within 0\.3 s"):
            await gpu.containers.get(1, timeout=None)
        assert (await gpu.containers.get(1, timeout=Timeouts(total=None, connect=None, read=None, slot=None))).id == 1


async def test_an_error_status_counts_even_when_its_body_is_cut() -> None:
    def cut(peer: hostile.Peer) -> None:
        peer.transport.write(hostile.head(503, 1000) + b"upstream")
        peer.transport.close()

    async with Hostile([cut, answer()]) as server, client(server) as gpu:
        with pytest.raises(ServerError, match="upstream"):
            await create(gpu)
        assert (await gpu.containers.get(1)).id == 1


async def test_what_is_sent() -> None:
    async with Hostile([answer()]) as server, client(server) as gpu:
        await create(gpu)
        await gpu.containers.stop(1)
        await gpu.containers.get(1)
    create_request, stop_request, get_request = server.seen
    assert create_request.headers["authorization"] == "Bearer token"
    assert create_request.headers["content-type"] == "application/json"
    assert create_request.headers["accept"] == "application/json"
    assert create_request.headers["user-agent"].startswith("netmind-rentgpu/")
    assert stop_request.body == b""
    assert stop_request.headers["content-length"] == "0"
    assert "content-type" not in get_request.headers
    assert "cookie" not in get_request.headers


async def test_cookies_are_not_kept() -> None:
    async with Hostile([answer(CONTAINER, Set_Cookie="a=b")]) as server, client(server) as gpu:
        await gpu.containers.get(1)
        await gpu.containers.get(1)
        assert "cookie" not in server.seen[1].headers


@pytest.mark.parametrize("fault", [hostile.close, hostile.reset])
async def test_a_delete_is_not_repeated_behind_our_back(fault: hostile.Behaviour) -> None:
    async with (
        Hostile([answer(), fault, answer({"detail": "Container not found"}, 404)]) as server,
        client(server) as gpu,
    ):
        await gpu.containers.get(1)
        # The first delete was read and then lost; what the second is told is the first one's work.
        assert await gpu.containers.delete(1) is None
        assert [request.method for request in server.seen] == ["GET", "DELETE", "DELETE"]

        with pytest.raises(NotFoundError) as caught:
            await gpu.containers.delete(1)
        assert caught.value.earlier_attempt_unclear is False


async def test_a_delete_that_is_never_answered_is_in_doubt() -> None:
    async with Hostile([hostile.close]) as server, client(server) as gpu:
        with pytest.raises(APIConnectionError) as caught:
            await gpu.containers.delete(1)
        assert caught.value.maybe_processed is True
        assert len(server.seen) == 4


async def test_doubt_outlives_a_later_refusal_to_connect() -> None:
    def last(peer: hostile.Peer) -> None:
        server._server.close()
        peer.transport.close()

    async with Hostile([last]) as server, client(server) as gpu:
        with pytest.raises(APIConnectionError, match="no connection to the service") as caught:
            await gpu.containers.delete(1)
        assert caught.value.maybe_processed is True


def bad_chunk(peer: hostile.Peer) -> None:
    """Send one good chunk, and later one whose length is none."""
    peer.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")

    def later() -> None:
        peer.transport.write(b"zz canary\r\nabc")
        peer.transport.close()

    asyncio.get_running_loop().call_later(0.02, later)


async def test_a_stream_that_the_parser_gives_up_on_ends() -> None:
    with anyio.fail_after(20):
        async with Hostile([bad_chunk]) as server, client(server, max_connections=1, timeout=SHORT) as gpu:
            for _ in range(2):
                with pytest.raises((APITimeoutError, UnexpectedResponseError)) as caught:
                    await create(gpu)
                assert "canary" not in f"{caught.value.__cause__!r}"
            assert len(server.seen) == 2


async def test_no_cause_holds_the_token_or_the_answer() -> None:
    def echo(peer: hostile.Peer) -> None:
        peer.transport.write(
            b"HTTP/1.1 200 OK\r\n" + peer.server.seen[-1].headers["authorization"].encode() + b"\r\n\r\n"
        )

    for behaviour in (hostile.not_http, echo, hostile.close, hostile.reset, hostile.cut_body):
        async with Hostile([behaviour]) as server:
            async with AsyncRentGPU("canary", base_url=server.url, retries=0) as gpu:
                with pytest.raises(RentGPUError) as caught:
                    await gpu.containers.get(1)
        error: BaseException | None = caught.value
        while error is not None:
            assert "canary" not in f"{error} {error!r} {error.args} {vars(error)}"
            assert error.__context__ is None or error.__context__ is error.__cause__
            error = error.__cause__


async def test_a_short_total_to_a_full_listener_was_surely_not_sent() -> None:
    with hostile.full_listener() as url:
        async with client(url, timeout=Timeouts(total=2, connect=10), retries=0) as gpu:
            with pytest.raises(APITimeoutError, match="no connection within") as caught:
                await create(gpu)
        assert caught.value.maybe_processed is False


async def test_a_get_that_was_seen_once_stays_in_doubt() -> None:
    def last(peer: hostile.Peer) -> None:
        server._server.close()
        peer.transport.close()

    async with Hostile([answer(), last]) as server, client(server, retries=0) as gpu:
        await gpu.containers.get(1)
        with pytest.raises(APIConnectionError) as caught:
            await gpu.containers.get(1)
        assert caught.value.maybe_processed is True


async def test_half_a_character_hides_nothing_else() -> None:
    body = b'[{"id": 1}, {"id": 2, "name": "rocket \\ud83d", "cpu": NaN}]'
    async with Hostile([answer(body)]) as server, client(server) as gpu:
        page = await gpu.containers.list()
    assert [container.id for container in page] == [1, 2]
    assert page[1].name == "rocket \ufffd"
    assert (page[1].cpu, page[1].extra) == (None, {"cpu": "NaN"})

"""Each fault of a connection ends in the right error, in bounded time, and says if the service may have acted."""

import asyncio
import re
import socket
import ssl
from typing import Any

import anyio
import hostile
import pytest
import trustme
from hostile import CONTAINER, Hostile, Peer, answer, full_listener

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
async def test_fault_is_retried_for_a_get_and_never_for_a_create(
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
async def test_get_succeeds_after_two_faults(fault: hostile.Behaviour) -> None:
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
async def test_body_of_another_shape_is_unexpected_and_not_retried(body: bytes, json_path: str) -> None:
    async with Hostile([answer(body)]) as server, client(server) as gpu:
        with pytest.raises(UnexpectedResponseError) as caught:
            await gpu.containers.get(1)
        assert caught.value.json_path == json_path
        assert caught.value.__context__ is None or "hello" not in repr(caught.value.__context__)
        assert len(server.seen) == 1


async def test_empty_answer_is_unexpected_except_for_a_delete() -> None:
    async with Hostile([lambda peer: peer.transport.write(hostile.head(204, None))]) as server, client(server) as gpu:
        with pytest.raises(UnexpectedResponseError, match="empty or null where an object belongs"):
            await gpu.containers.get(1)
        with pytest.raises(UnexpectedResponseError, match="empty or null where a list belongs"):
            await gpu.machines.list()
        assert await gpu.containers.delete(1) is None


@pytest.mark.parametrize("body", [b"", b"null", b"{}"])
async def test_delete_accepts_an_empty_answer(body: bytes) -> None:
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


async def test_body_over_16_mib_is_not_read() -> None:
    with anyio.fail_after(30):
        async with Hostile([hostile.endless_body]) as server, client(server) as gpu:
            with pytest.raises(UnexpectedResponseError, match="larger than 16 MiB"):
                await gpu.containers.get(1)
            await server.until(lambda: not server.open)
            assert len(server.seen) == 1


async def test_compressed_body_is_limited_by_its_decompressed_size() -> None:
    import gzip

    bomb = gzip.compress(b" " * 17 * 1024 * 1024)
    assert len(bomb) < 100_000
    async with Hostile([answer(bomb, Content_Encoding="gzip")]) as server, client(server) as gpu:
        with pytest.raises(UnexpectedResponseError, match="larger than 16 MiB"):
            await gpu.containers.get(1)


async def test_broken_compression_is_unexpected() -> None:
    async with Hostile([answer(b"not gzip", Content_Encoding="gzip")]) as server, client(server, retries=0) as gpu:
        with pytest.raises(UnexpectedResponseError):
            await gpu.containers.get(1)


async def test_port_without_a_listener_is_retried_even_for_a_create() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with client(url) as gpu:
        with pytest.raises(APIConnectionError, match="no connection to the service") as caught:
            await create(gpu)
        assert caught.value.maybe_processed is False
        # Certainly not sent, so even a create is retried.
        assert "sent 4 times" in caught.value.__notes__[0]


async def test_full_listener_is_a_connect_timeout() -> None:
    with hostile.full_listener() as url:
        async with client(url, retries=0, timeout=SHORT) as gpu:
            with pytest.raises(APITimeoutError, match=r"no connection within 0\.5 s") as caught:
                await create(gpu)
        assert caught.value.maybe_processed is False
        assert isinstance(caught.value, TimeoutError)


async def test_unknown_host_is_a_connection_error_not_processed(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_untrusted_certificate_is_refused(authority: trustme.CA) -> None:
    async with Hostile([answer()], ssl_context=server_context(authority)) as server, client(server) as gpu:
        with pytest.raises(APIConnectionError, match="no secure connection") as caught:
            await create(gpu)
        assert caught.value.maybe_processed is False
        assert server.seen == []


async def test_certificate_for_another_name_is_refused(authority: trustme.CA) -> None:
    context = server_context(authority, "somewhere.else")
    async with (
        Hostile([answer()], ssl_context=context) as server,
        client(server, ssl_context=client_context(authority)) as gpu,
    ):
        with pytest.raises(APIConnectionError, match="no secure connection") as caught:
            await create(gpu)
        assert caught.value.maybe_processed is False


async def test_plain_http_on_an_https_port_is_refused() -> None:
    async with (
        Hostile([answer()], on_connect=lambda peer: peer.send(400, b"")) as server,
        client(server.url.replace("http:", "https:")) as gpu,
    ):
        with pytest.raises(APIConnectionError, match="no secure connection") as caught:
            await create(gpu)
        assert caught.value.maybe_processed is False
        assert server.seen == []


async def test_custom_authority_is_trusted_by_context(authority: trustme.CA) -> None:
    async with (
        Hostile([answer()], ssl_context=server_context(authority)) as server,
        client(server, ssl_context=client_context(authority)) as gpu,
    ):
        assert (await create(gpu)).id == 1
        assert (await gpu.containers.get(1)).id == 1


async def test_reset_before_the_request_is_read_leaves_a_create_in_doubt() -> None:
    async with Hostile([answer()], on_connect=lambda peer: peer.reset()) as server, client(server) as gpu:
        with pytest.raises(APIConnectionError) as caught:
            await create(gpu)
        # The client cannot know if the reset came before or after the bytes.
        assert caught.value.maybe_processed is True
        assert server.seen == []


async def test_create_never_uses_an_idle_connection() -> None:
    async with Hostile([answer()]) as server, client(server) as gpu:
        for _ in range(3):
            await gpu.containers.get(1)
        await create(gpu)
        await gpu.containers.get(1)
        # A connection that has just answered a create is used again.
        await create(gpu)
        assert [request.connection for request in server.seen] == [1, 1, 1, 2, 1, 2]
        await server.until(lambda: [peer.number for peer in server.open] == [1])
        await create(gpu)
        assert server.seen[-1].connection == 3


async def test_create_succeeds_after_the_server_closed_the_previous_connection() -> None:
    def answer_then_close(peer: hostile.Peer) -> None:
        answer()(peer)
        peer.transport.close()

    async with Hostile([answer_then_close]) as server, client(server) as gpu:
        for _ in range(5):
            assert (await create(gpu)).id == 1
        assert [request.connection for request in server.seen] == [1, 2, 3, 4, 5]


async def test_create_uses_a_new_connection_after_an_unannounced_close() -> None:
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


async def test_total_timeout_covers_a_body_that_drips() -> None:
    with anyio.fail_after(10):
        async with Hostile([hostile.drip]) as server, client(server) as gpu:
            with pytest.raises(APITimeoutError, match=r"no complete answer within 2 s") as caught:
                await gpu.containers.get(1, timeout=2)
            assert caught.value.maybe_processed is True
            assert len(server.seen) == 1


async def test_total_timeout_covers_the_retries() -> None:
    with anyio.fail_after(10):
        async with Hostile([hostile.stall]) as server, client(server) as gpu:
            with pytest.raises(APITimeoutError):
                await gpu.containers.get(1, timeout=Timeouts(total=0.5, read=0.2))
            assert 2 <= len(server.seen) <= 3


async def test_timeout_of_none_removes_the_limit() -> None:
    def slow(peer: hostile.Peer) -> None:
        asyncio.get_running_loop().call_later(0.4, answer(), peer)

    async with Hostile([slow]) as server, client(server, retries=0, timeout=SHORT) as gpu:
        with pytest.raises(APITimeoutError, match=r"nothing within 0\.3 s"):
            await gpu.containers.get(1, timeout=None)
        assert (await gpu.containers.get(1, timeout=Timeouts(total=None, connect=None, read=None, slot=None))).id == 1


async def test_error_status_counts_even_if_its_body_is_cut() -> None:
    def cut(peer: hostile.Peer) -> None:
        peer.transport.write(hostile.head(503, 1000) + b"upstream")
        peer.transport.close()

    async with Hostile([cut, answer()]) as server, client(server) as gpu:
        with pytest.raises(ServerError, match="upstream"):
            await create(gpu)
        assert (await gpu.containers.get(1)).id == 1


async def test_requests_carry_the_expected_headers() -> None:
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


NOT_FOUND = answer({"detail": "Container not found"}, 404)


@pytest.mark.parametrize("fault", [hostile.close, hostile.reset])
async def test_lost_delete_is_retried_and_its_404_counts_as_deleted(fault: hostile.Behaviour) -> None:
    async with (
        Hostile([answer(), fault, NOT_FOUND, answer([]), NOT_FOUND]) as server,
        client(server) as gpu,
    ):
        await gpu.containers.get(1)
        # The first delete was read and its answer lost; the 404 for the second is its effect, and the list agrees.
        assert await gpu.containers.delete(1) is None
        assert [request.method for request in server.seen] == ["GET", "DELETE", "DELETE", "GET"]

        with pytest.raises(NotFoundError) as caught:
            await gpu.containers.delete(1)
        assert caught.value.earlier_attempt_unclear is False


async def test_delete_that_is_never_answered_is_in_doubt() -> None:
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
    """Send a good chunk, and later a chunk with an invalid length."""
    peer.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")

    def later() -> None:
        peer.transport.write(b"zz canary\r\nabc")
        peer.transport.close()

    asyncio.get_running_loop().call_later(0.02, later)


async def test_stream_with_a_bad_chunk_ends_in_an_error() -> None:
    with anyio.fail_after(20):
        async with Hostile([bad_chunk]) as server, client(server, max_connections=1, timeout=SHORT) as gpu:
            for _ in range(2):
                with pytest.raises((APITimeoutError, UnexpectedResponseError)) as caught:
                    await create(gpu)
                assert "canary" not in f"{caught.value.__cause__!r}"
            assert len(server.seen) == 2


async def test_error_causes_hold_neither_the_token_nor_the_answer() -> None:
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


async def test_short_total_timeout_to_a_full_listener_is_certainly_not_sent() -> None:
    with hostile.full_listener() as url:
        async with client(url, timeout=Timeouts(total=2, connect=10), retries=0) as gpu:
            with pytest.raises(APITimeoutError, match="no connection within") as caught:
                await create(gpu)
        assert caught.value.maybe_processed is False


async def test_get_seen_by_the_service_stays_in_doubt() -> None:
    def last(peer: hostile.Peer) -> None:
        server._server.close()
        peer.transport.close()

    async with Hostile([answer(), last]) as server, client(server, retries=0) as gpu:
        await gpu.containers.get(1)
        with pytest.raises(APIConnectionError) as caught:
            await gpu.containers.get(1)
        assert caught.value.maybe_processed is True


async def test_half_a_character_hides_no_other_item() -> None:
    body = b'[{"id": 1}, {"id": 2, "name": "rocket \\ud83d", "cpu": NaN}]'
    async with Hostile([answer(body)]) as server, client(server) as gpu:
        page = await gpu.containers.list()
    assert [container.id for container in page] == [1, 2]
    assert page[1].name == "rocket \ufffd"
    assert (page[1].cpu, page[1].extra) == (None, {"cpu": "NaN"})


async def test_tls_failure_is_not_retried(authority: trustme.CA) -> None:
    async with (
        Hostile([answer()], ssl_context=server_context(authority)) as server,
        AsyncRentGPU("token", base_url=server.url) as gpu,
    ):
        with pytest.raises(APIConnectionError, match="no secure connection") as caught:
            await gpu.machines.list()
        assert not hasattr(caught.value, "__notes__")
        assert caught.value.is_permanent
        assert not caught.value.maybe_processed


async def test_tls_alert_of_a_server_in_trouble_is_retried() -> None:
    def alert(peer: Peer) -> None:
        # RFC 8446: a record of type alert (21), with the fatal alert internal_error (80).
        peer.transport.write(bytes([21, 3, 3, 0, 2, 2, 80]))
        peer.transport.close()

    async with (
        Hostile([answer()], on_connect=alert) as server,
        client(server.url.replace("http", "https")) as gpu,
    ):
        with pytest.raises(APIConnectionError, match="no secure connection") as caught:
            await gpu.machines.list()
        assert server.connections == 4
        assert not caught.value.maybe_processed


async def test_https_url_of_a_plain_server_is_not_retried() -> None:
    def answer_plainly(peer: Peer) -> None:
        peer.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with (
        Hostile([answer()], on_connect=answer_plainly) as plain,
        AsyncRentGPU("token", base_url=plain.url.replace("http", "https")) as gpu,
    ):
        with pytest.raises(APIConnectionError, match="no secure connection"):
            await gpu.machines.list()
        assert plain.connections == 1


@pytest.mark.parametrize("size", [9_000, 40_000])
async def test_long_header_is_named_as_such(size: int) -> None:
    async with Hostile([answer([], **{"X-Long": "x" * size})]) as server, client(server) as gpu:
        with pytest.raises(APIConnectionError, match="the head of the answer has a line of more than 8 KiB"):
            await gpu.machines.list()


async def test_timeout_of_a_last_attempt_names_the_time_of_the_whole_call() -> None:
    # No connection is ever accepted, so that each attempt ends by its own time for connecting.
    with full_listener() as url:
        timeouts = Timeouts(total=1.0, connect=0.4, read=5)
        retries = Retries(base_delay=0.0, max_delay=0.0)
        async with AsyncRentGPU("token", base_url=url, timeout=timeouts, retries=retries) as gpu:
            with pytest.raises(
                APITimeoutError, match=r"no (connection|answer|complete answer) within (1|0\.4) s"
            ) as caught:
                await gpu.machines.list()
    assert re.fullmatch(r"sent \d times over [\d.]+ s", caught.value.__notes__[0])

"""`wait_reachable`: the container is returned once an SSH server answers; otherwise the error says what answered."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from typing import cast

import pytest
from banners import BANNER, Serve, listening, says
from virtual import Account, VirtualLoop

from netmind_rentgpu import Container, ContainerFailedError, ContainerGoneError, SSHEndpoint, WaitTimeoutError
from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.waiting import reachable
from netmind_rentgpu.waiting.reachable import probe
from netmind_rentgpu.wire.messages import RawResponse, Request

LONG = 60


@pytest.fixture
async def account() -> Account:
    # In real time, because its loop is that of the test.
    account = Account(cast("VirtualLoop", asyncio.get_running_loop()), 1)
    account.latency = 0.001
    return account


@pytest.fixture
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def at(port: int) -> str:
    return f"ssh root@127.0.0.1 -p {port}"


@pytest.mark.parametrize(
    ("serve", "problem"),
    [
        (says(BANNER), None),
        (says(b"SSH-1.99-old\n"), None),
        (says(b"SSH-", b"2.0-slow", b"ly\r\n"), None),
        (says(b"Welcome.\r\nSSH is here\r\n", BANNER), None),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n", stays=False), "the answer is no SSH greeting"),
        (says(stays=False), "the connection was closed without an SSH greeting"),
        (says(b"x" * 20_000), "the answer is no SSH greeting"),
        (says(b"a line\r\n" * 3000), "the answer is no SSH greeting"),
        (says(b"SSH", stays=False), "the answer is no SSH greeting"),
    ],
    ids=["banner", "old", "slow", "lines first", "HTTP", "closed", "no line", "only lines", "cut"],
)
async def test_probe_distinguishes_an_ssh_banner_from_other_answers(serve: Serve, problem: str | None) -> None:
    async with listening(serve) as port:
        assert await probe(SSHEndpoint("127.0.0.1", port, "root"), LONG) == problem


async def test_probe_of_an_unreachable_port_names_the_problem(free_port: int) -> None:
    async with listening(says()) as silent:
        assert await probe(SSHEndpoint("127.0.0.1", silent, "root"), 0.05) == "no answer within 0.05 s"
    refused = await probe(SSHEndpoint("127.0.0.1", free_port, "root"), LONG)
    assert refused is not None
    assert refused.startswith("no connection (")
    for strange in ("a" * 70, "\N{SNOWMAN}\ud800"):
        assert (await probe(SSHEndpoint(strange, 22, "root"), LONG) or "").startswith("no connection (")


async def test_wait_reachable_returns_the_container_once_ssh_answers(account: Account, free_port: int) -> None:
    container_id = account.create()
    containers = account.containers()
    task = asyncio.create_task(containers.wait_reachable(container_id, timeout=LONG))
    async with AsyncExitStack() as stack:

        async def meets(_: Request) -> RawResponse | None:
            # First there is no endpoint, then nothing listens there, and at last something does.
            if len(account.asked) == 2:
                account.set(container_id, 1, at(free_port))
            if len(account.asked) == 4:
                await stack.enter_async_context(listening(says(BANNER), free_port))
            return None

        account.meets = meets
        found = await task
        assert found.ssh_endpoint == SSHEndpoint("127.0.0.1", free_port, "root")
    assert containers._poller._snapshots.nobody


async def test_wait_reachable_follows_an_endpoint_that_moves(account: Account, free_port: int) -> None:
    container_id = account.create()
    account.set(container_id, 1, at(free_port))
    async with listening(says()) as silent, listening(says(BANNER)) as port:

        async def meets(_: Request) -> RawResponse | None:
            # A probe that hangs must not be waited for to its end.
            if len(account.asked) == 2:
                account.set(container_id, 1, at(silent))
            if len(account.asked) == 4:
                account.set(container_id, 1, at(port))
            return None

        account.meets = meets
        async with asyncio.timeout(9):
            found = await account.containers().wait_reachable(container_id, timeout=LONG)
        assert found.ssh_endpoint == SSHEndpoint("127.0.0.1", port, "root")


async def test_wait_reachable_returns_while_a_poll_round_hangs(account: Account) -> None:
    container_id = account.create()
    async with listening(says(BANNER)) as port:
        account.set(container_id, 1, at(port))
        hangs = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # It answers only once the next poll round is under way, which never ends.
            await hangs.wait()
            await says(BANNER)(reader, writer)

        async def meets(_: Request) -> RawResponse | None:
            if len(account.asked) > 1:
                hangs.set()
                await asyncio.sleep(3600)
            return None

        account.meets = meets
        async with listening(serve) as late, asyncio.timeout(LONG):
            account.set(container_id, 1, at(late))
            assert (await account.containers().wait_reachable(container_id, timeout=LONG)).id == container_id
    assert account.running == 0


async def test_wait_reachable_timeout_says_why_ssh_did_not_answer(
    account: Account, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    container_id = account.create()
    containers = account.containers()
    with pytest.raises(WaitTimeoutError, match=r"^no SSH server answered within 0.2 s: container 100"):
        await containers.wait_reachable(container_id, timeout=0.2)
    account.set(container_id, 1, "see the console for how to log in")
    text = "ssh 'see the console for how to log in', in which no endpoint can be read$"
    with pytest.raises(WaitTimeoutError, match=text):
        await containers.wait_reachable(container_id, timeout=0.2)
    account.set(container_id, 1, at(free_port))
    with pytest.raises(WaitTimeoutError, match=rf"127\.0\.0\.1 port {free_port}: no connection \(.*failed") as caught:
        await containers.wait_reachable(container_id, timeout=2)
    assert isinstance(caught.value.pending[container_id], Container)
    # An emulator without SSH looks like this, and is the usual cause on this machine; it is said early, and in the end.
    assert str(caught.value).endswith("; an emulator accepts SSH logins only with ssh=True, or --ssh")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "an emulator accepts SSH logins only" in warning
    async with listening(says(b"HTTP/1.1 400 Bad Request\r\n\r\n", stays=False)) as port:
        account.set(container_id, 1, at(port))
        with pytest.raises(WaitTimeoutError, match=f"127.0.0.1 port {port}: the answer is no SSH greeting;"):
            await containers.wait_reachable(container_id, timeout=2)


async def test_wait_reachable_ends_when_the_container_fails_or_is_gone(account: Account, free_port: int) -> None:
    containers = account.containers()
    failing, vanishing = account.create(), account.create()
    for container_id in (failing, vanishing):
        account.set(container_id, 1, at(free_port))

    async def meets(_: Request) -> RawResponse | None:
        if len(account.asked) == 3:
            account.set(failing, 3, at(free_port))
            account.delete(vanishing)
        return None

    account.meets = meets
    both = await asyncio.gather(
        containers.wait_reachable(failing, timeout=LONG, fail=status_in(3)),
        containers.wait_reachable(vanishing, timeout=LONG),
        return_exceptions=True,
    )
    assert isinstance(both[0], ContainerFailedError)
    assert isinstance(both[1], ContainerGoneError)


async def test_probes_run_concurrently_up_to_a_limit(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    count, running, most = 150, 0, 0
    release = asyncio.Event()

    async def counted_probe(endpoint: SSHEndpoint, seconds: float) -> str | None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 100:
            release.set()
        try:
            return await probe(endpoint, seconds)
        finally:
            running -= 1

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await says(BANNER)(reader, writer)

    monkeypatch.setattr(reachable, "probe", counted_probe)
    async with listening(serve) as port:
        account.page = 100
        containers = account.containers()
        ids = [account.create() for _ in range(count)]
        for container_id in ids:
            account.set(container_id, 1, at(port))
        found = await asyncio.gather(*(containers.wait_reachable(container_id, timeout=LONG) for container_id in ids))
        assert [container.id for container in found] == ids
    assert release.is_set()
    # Counted by the client, because the server may learn late that a connection was closed.
    assert most == 100


async def test_wait_reachable_cancelled_anywhere_leaves_nothing_behind(account: Account) -> None:
    container_id = account.create()
    containers = account.containers()
    async with listening(says()) as silent:
        account.set(container_id, 1, at(silent))
        for steps in range(60):
            task = asyncio.create_task(containers.wait_reachable(container_id, timeout=LONG))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert account.running == 0
            assert containers._poller._snapshots.nobody
            assert len(asyncio.all_tasks()) <= 2 + steps

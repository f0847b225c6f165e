"""A connection that is lost in the same step of the event loop in which the server's answer arrives, for each answer."""

from __future__ import annotations

import asyncio
import gc
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from netmind_rentgpu import AsyncShell, SSHError
from netmind_rentgpu.ssh.session_probe import probe_sessions

from .conftest import Site

MOST = 60


class Loss:
    """The loss of a connection at one of its answers.

    Attributes:
        happened: True once the connection is lost.
    """

    def __init__(self, connection: asyncssh.SSHClientConnection, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened = False
        self._left = at
        self._connection = connection
        self._receive = connection.data_received
        monkeypatch.setattr(connection, "data_received", self._receive_or_lose)

    def _receive_or_lose(self, data: bytes, datatype: int | None = None) -> None:
        if not self._left:
            # The rest is cleaned up before those who wait for the answer go on.
            self.happened = True
            self._connection.abort()
        self._left -= 1
        self._receive(data, datatype)


async def run(shell: AsyncShell, folder: Path) -> None:
    del folder
    await shell.run("true")


async def upload(shell: AsyncShell, folder: Path) -> None:
    (folder / "file").write_text("x")
    await shell.upload(folder / "file", "file")


async def pipe(shell: AsyncShell, folder: Path) -> None:
    del folder
    await shell.pipe("cat", stdin=b"x", stdout=io.BytesIO())


async def probe(shell: AsyncShell, folder: Path) -> None:
    del folder
    await probe_sessions(shell._connection.connected(), 2, lambda: 0)


async def reverse_forward(shell: AsyncShell, folder: Path) -> None:
    del folder
    async with await shell.reverse_forward(remote_port=0, local_port=9):
        pass


@pytest.fixture
async def unsent_requests() -> AsyncIterator[None]:
    """Collect the futures of SFTP requests that asyncssh could not send any more, whose errors it leaves unread."""

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), asyncssh.SFTPConnectionLost):
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(report)
    yield
    gc.collect()


@pytest.mark.usefixtures("unsent_requests")
@pytest.mark.parametrize("call", [run, upload, pipe, probe, reverse_forward])
async def test_connection_lost_at_any_answer_is_an_error_of_ssh(
    call: Callable[[AsyncShell, Path], Awaitable[None]],
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = 0
    for answer in range(MOST):
        async with site.shell() as shell:
            loss = Loss(shell._connection.connected(), answer, monkeypatch)
            try:
                await call(shell, tmp_path)
            except SSHError as error:
                assert error.stage == "connection", answer
                failed += 1
            if not loss.happened:
                break
    else:
        raise AssertionError("each answer was the last")
    assert failed or call is probe
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []

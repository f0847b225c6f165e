"""Fixtures for the tests of the emulator."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a server that answers a line in capitals."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the folders of the containers apart from those of other emulators on this machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

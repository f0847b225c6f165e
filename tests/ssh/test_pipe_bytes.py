"""Bytes through `pipe`: large and odd ones, each way and both ways, and the memory that a slow end costs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from until import until

from netmind_rentgpu import AsyncShell, SSHError

LARGE = 100 * 1024 * 1024
# A few MiB: the windows of SSH, the buffers of both ends, and what a process holds itself.
BOUND = 16 * 1024 * 1024
ODD = bytes(range(256)) + b"\0\0\xff\xfe\xc3(\r\n\r\r\n\x1a\x04" + "\N{SNOWMAN}".encode()[:2]


class Hashing:
    """A binary file that keeps only the hash and the number of the bytes."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.count = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.count += len(data)
        return len(data)


class Blocked:
    """A receiver that accepts nothing until it is released."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.count = 0

    async def send(self, data: bytes) -> None:
        await self.released.wait()
        self.count += len(data)


async def settled(count: Any) -> int:
    """Wait until a count is above zero and does not change any more; a count that rests too early is only smaller."""
    last, rests = 0, 0

    def rested() -> bool:
        nonlocal last, rests
        now = count()
        rests = rests + 1 if now == last and now else 0
        last = now
        return rests == 50

    await until(rested)
    return last


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large"
    chunk = random.Random(7).randbytes(1024 * 1024)
    with path.open("wb") as file:
        for number in range(LARGE // len(chunk)):
            file.write(number.to_bytes(8, "big") + chunk[8:])
    return path


@pytest.fixture(scope="module")
def digest(large: Path) -> str:
    with large.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.slow
async def test_100_megabytes_reach_a_command_unchanged(shell: AsyncShell, large: Path, digest: str) -> None:
    with large.open("rb") as file:
        done = await shell.pipe("tee >(wc -c >&2) | sha256sum", stdin=file, check=True)
        assert not file.closed
    assert done.stdout.split()[0] == digest
    assert int(done.stderr) == LARGE


@pytest.mark.slow
async def test_100_megabytes_come_from_a_command_unchanged(shell: AsyncShell, large: Path, digest: str) -> None:
    sink = Hashing()
    done = await shell.pipe(f"cat {large}", stdout=sink, check=True)
    assert (sink.count, sink.hash.hexdigest()) == (LARGE, digest)
    assert (done.stdout, done.truncated) == ("", False)


@pytest.mark.slow
async def test_100_megabytes_pass_both_ways_at_once(shell: AsyncShell, large: Path, digest: str) -> None:
    sink = Hashing()
    descriptor = os.open(large, os.O_RDONLY)
    try:
        await shell.pipe("cat", stdin=descriptor, stdout=sink, check=True)
    finally:
        os.close(descriptor)
    assert (sink.count, sink.hash.hexdigest()) == (LARGE, digest)


async def test_slow_receiver_holds_the_command_back(shell: AsyncShell, site: Any) -> None:
    (site.home / "write.py").write_text(
        "import os\n"
        "data = b'x' * 65536\n"
        "for number in range(1600):\n"
        "    os.writev(1, [data]) == 65536 or exit(3)\n"
        "    with open('written.new', 'w') as file:\n"
        "        file.write(str((number + 1) * 65536))\n"
        "    os.replace('written.new', 'written')\n"
    )

    def written() -> int:
        path = site.home / "written"
        return int(path.read_text()) if path.exists() else 0

    sink = Blocked()
    task = asyncio.create_task(shell.pipe("python3 write.py", stdout=sink, check=True))
    assert await settled(written) < BOUND
    assert sink.count == 0
    sink.released.set()
    assert (await task).ok
    assert sink.count == LARGE


async def test_slow_command_holds_the_source_back(shell: AsyncShell, site: Any) -> None:
    os.mkfifo(site.home / "go")
    given = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal given
        while given < LARGE:
            given += 65536
            yield b"x" * 65536

    task = asyncio.create_task(shell.pipe("cat go; wc -c", stdin=source(), check=True))
    assert await settled(lambda: given) < BOUND
    # Opened in a thread, because the open waits for the command.
    await asyncio.to_thread((site.home / "go").write_bytes, b"")
    assert int((await task).stdout) == LARGE


async def test_any_bytes_pass_unchanged(shell: AsyncShell, site: Any) -> None:
    sink, errors = Hashing(), Hashing()
    expected = hashlib.sha256(ODD).digest()
    await shell.pipe("tee /dev/stderr", stdin=ODD, stdout=sink, stderr=errors, environment={"A": "b\nc"}, check=True)
    assert (sink.hash.digest(), errors.hash.digest()) == (expected, expected)
    await shell.pipe("cat > odd", stdin=ODD, check=True)
    assert (site.home / "odd").read_bytes() == ODD


async def test_result_has_the_outputs_without_a_receiver(shell: AsyncShell) -> None:
    done = await shell.pipe("cat; echo wrong >&2; exit 3", stdin=b"given")
    assert (done.command, done.stdout, done.stderr) == ("cat; echo wrong >&2; exit 3", "given", "wrong\n")
    assert (done.exit_status, done.exit_signal, done.truncated) == (3, None, False)
    sink = Hashing()
    done = await shell.pipe("head -c 17000000 /dev/zero; echo wrong >&2; kill -USR1 $$", stderr=sink)
    assert (len(done.stdout), done.truncated, done.exit_signal, sink.count) == (16 * 2**20, True, "USR1", 6)
    with pytest.raises(SSHError, match="ended with status 3: wrong") as caught:
        await shell.pipe("echo wrong >&2; exit 3", check=True)
    assert caught.value.stage == "command"


@pytest.mark.parametrize("source", [None, b"", bytearray()])
async def test_empty_input_ends_at_once(shell: AsyncShell, source: bytes | None) -> None:
    sink = Hashing()
    done = await shell.pipe("cat; echo over >&2", stdin=source, stdout=sink, check=True)
    assert (sink.count, done.stderr) == (0, "over\n")


async def test_input_goes_on_after_the_command_has_closed_its_outputs(shell: AsyncShell, site: Any) -> None:
    closed = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"first\n"
        await until((site.home / "closed").exists)
        closed.set()
        for _ in range(50):
            await asyncio.sleep(0)
            yield b"x" * 1000

    command = "read line; exec >&- 2>&-; touch closed; cat > rest"
    assert (await shell.pipe(command, stdin=source())).ok
    assert (site.home / "rest").read_bytes() == b"x" * 50_000


async def test_unread_input_is_no_error_and_most_of_it_stays_unread(shell: AsyncShell, large: Path) -> None:
    sink = Hashing()
    with large.open("rb", buffering=0) as file:
        done = await shell.pipe("head -c 10; exec <&-; exec >&-; true", stdin=file, stdout=sink)
        assert (done.exit_status, sink.count) == (0, 10)
    given = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 65536
            yield b"x" * 65536

    done = await shell.pipe("head -c 10", stdin=source(), stdout=sink)
    assert (done.exit_status, sink.count) == (0, 20)
    assert given < BOUND

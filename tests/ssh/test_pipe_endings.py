"""The end of `pipe`: errors of its streams, cancellation, timeouts, an early end of the command, and what is left behind."""

from __future__ import annotations

import asyncio
import errno
import gc
import io
import os
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from until import is_running, until

from netmind_rentgpu import AsyncShell, ClientStateError, SSHError, SSHTimeoutError

# A command that reads nothing, and outlives a hangup.
STUCK = "trap '' HUP; echo $$ > parent; touch up; sleep 3600; true"
LOUD = "trap '' HUP; echo $$ > parent; touch up; cat /dev/zero; sleep 3600; true"


async def started(home: Path) -> int:
    await until((home / "up").exists)
    return int((home / "parent").read_text())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def silent_pipe() -> Iterator[tuple[int, int]]:
    """Yield the ends of a pipe that gets no data, and that is full."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def full_pipe() -> Iterator[int]:
    """Yield the end of a pipe that accepts nothing."""
    with silent_pipe() as (_, writing):
        try:
            while True:
                os.write(writing, bytes(4096))
        except BlockingIOError:
            pass
        os.set_blocking(writing, True)
        yield writing


class Broken:
    """A stream that fails after some bytes, in a thread or in the event loop."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._left = 3

    def _use(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise self._error

    def read(self, size: int) -> bytes:
        self._use()
        return b"x" * min(size, 1000)

    def write(self, data: bytes) -> int:
        self._use()
        return len(data)

    async def send(self, data: bytes) -> None:
        del data
        self._use()

    async def items(self) -> AsyncIterator[bytes]:
        while True:
            self._use()
            yield b"x" * 1000


class BrokenFile:
    """A file that fails to write."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def write(self, data: bytes) -> int:
        raise self._error if data else AssertionError


@pytest.mark.parametrize("error", [OSError(errno.EIO, "of a disk"), ZeroDivisionError("of a caller")])
@pytest.mark.parametrize("way", ["read", "items", "write", "send", "stderr"])
async def test_error_of_a_stream_ends_the_command_and_is_raised_as_it_is(
    shell: AsyncShell, site: Any, way: str, error: Exception
) -> None:
    streams: dict[str, Any] = {
        "read": {"stdin": Broken(error)},
        "items": {"stdin": Broken(error).items()},
        "write": {"stdout": BrokenFile(error)},
        "send": {"stdout": Broken(error)},
        "stderr": {"stderr": Broken(error)},
    }[way]
    command = LOUD if "stdout" in streams else f"exec >&2; {LOUD}" if "stderr" in streams else STUCK
    with pytest.raises(type(error)) as caught:
        await shell.pipe(command, **streams, timeout=120)
    assert caught.value is error
    if (site.home / "up").exists():
        pid = await started(site.home)
        await until(lambda: not is_running(pid))
    assert (await shell.run("echo usable")).stdout == "usable\n"


class CallersError(Exception):
    """An error that can be referred to weakly."""


class Raising:
    """A stream that raises an error to which it does not refer."""

    def use(self, data: object) -> None:
        raise CallersError(type(data))

    async def use_later(self, data: object) -> None:
        self.use(data)


@pytest.mark.parametrize(
    ("argument", "name", "method"),
    [
        ("stdin", "read", Raising.use),
        ("stdin", "read", Raising.use_later),
        ("stdout", "write", Raising.use),
        ("stdout", "send", Raising.use_later),
    ],
)
async def test_error_of_a_stream_is_in_no_reference_cycle(
    shell: AsyncShell, argument: str, name: str, method: Any
) -> None:
    streams: dict[str, Any] = {argument: type("Stream", (Raising,), {name: method})()}
    reference: weakref.ref[CallersError] | None = None
    gc.collect()
    gc.disable()
    try:
        try:
            await shell.pipe("cat /dev/zero", **streams)
        except CallersError as error:
            reference = weakref.ref(error)
        await asyncio.sleep(0)
        assert reference is not None
        assert reference() is None
    finally:
        gc.enable()


async def test_closed_descriptor_is_an_error_before_the_command_starts(shell: AsyncShell, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        number = os.dup(file.fileno())
    os.close(number)
    before = descriptors()
    for argument in ("stdin", "stdout", "stderr"):
        streams: dict[str, Any] = {"stdin": 0, argument: number}
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            await shell.pipe("touch started", **streams)
        assert caught.value.errno == errno.EBADF
        with pytest.raises(ValueError, match="closed file"):
            await shell.pipe("cat; echo x; echo x >&2", **{argument: file})  # type: ignore[arg-type]  # by its name
    assert not (await shell.run("test -e started")).ok
    await until(lambda: descriptors() == before)


async def test_reader_that_has_gone_is_a_broken_pipe(shell: AsyncShell) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with pytest.raises(BrokenPipeError):
            await shell.pipe("cat /dev/zero", stdout=writing)
    finally:
        os.close(writing)


async def test_command_that_ends_first_leaves_no_thread_at_a_silent_pipe(shell: AsyncShell) -> None:
    before, threads = descriptors(), threading.active_count()
    with silent_pipe() as (reading, writing):
        done = await shell.pipe("echo over", stdin=reading, check=True)
        assert done.stdout == "over\n"
        with os.fdopen(os.dup(reading), "rb") as file:
            assert (await shell.pipe("echo over", stdin=file, check=True)).ok
        # All that comes later is still there.
        os.write(writing, b"later")
        assert os.read(reading, 100) == b"later"
    assert threading.active_count() == threads
    # Among these descriptors are the ones of the emulator's SSH server.
    await until(lambda: descriptors() <= before)


@pytest.mark.parametrize("kind", ["silent source", "full sink"])
async def test_cancelled_call_leaves_no_thread_and_no_command(shell: AsyncShell, site: Any, kind: str) -> None:
    before = descriptors()
    with silent_pipe() as (reading, _), full_pipe() as full:
        streams: dict[str, Any] = {"stdin": reading} if kind == "silent source" else {"stdout": full}
        task = asyncio.create_task(shell.pipe(STUCK if "stdin" in streams else LOUD, **streams))
        pid = await started(site.home)
        # The thread waits by now, or soon.
        await until(lambda: descriptors() > before + 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: not is_running(pid) and descriptors() <= before)


class Slow:
    """A stream that never gets ready in the event loop; `left` is set when its call is cancelled."""

    def __init__(self) -> None:
        self.left = False

    async def read(self, size: int = -1) -> bytes:
        return await self._wait(size)

    async def send(self, data: bytes) -> None:
        await self._wait(data)

    async def _wait(self, _: object) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            self.left = True
        return b""


@pytest.mark.parametrize("kind", ["source", "sink"])
async def test_cancelled_call_leaves_a_stream_of_the_event_loop(shell: AsyncShell, site: Any, kind: str) -> None:
    slow = Slow()
    streams: dict[str, Any] = {"stdin": slow} if kind == "source" else {"stdout": slow}
    task = asyncio.create_task(shell.pipe(LOUD, **streams))
    pid = await started(site.home)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not is_running(pid))


async def test_call_cancelled_at_any_step_ends_and_leaves_the_shell_usable(shell: AsyncShell, site: Any) -> None:
    before, open_before = asyncio.all_tasks(), descriptors()
    for steps in range(60):
        (site.home / "up").unlink(missing_ok=True)
        with silent_pipe() as (reading, _), full_pipe() as full:
            task = asyncio.create_task(shell.pipe(LOUD, stdin=reading, stdout=full))
            for _ in range(steps):
                await asyncio.sleep(0 if steps < 45 else 0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        if (site.home / "up").exists():
            pid = await started(site.home)
            await until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]
    assert (await shell.run("echo still here")).stdout == "still here\n"
    await until(lambda: all(task.done() for task in asyncio.all_tasks() - before))
    await until(lambda: descriptors() <= open_before)


async def test_call_over_its_timeout_ends_the_command_and_has_its_output(shell: AsyncShell, site: Any) -> None:
    with silent_pipe() as (reading, _), pytest.raises(SSHTimeoutError, match="did not end within 2 s") as caught:
        await shell.pipe(f"echo begun; {STUCK}", stdin=reading, timeout=2)
    assert caught.value.result is not None
    assert caught.value.result.stdout == "begun\n"
    pid = await started(site.home)
    await until(lambda: not is_running(pid))


@pytest.mark.parametrize("way", ["closed", "lost"])
async def test_end_of_the_shell_ends_a_call_that_waits_for_its_streams(site: Any, way: str) -> None:
    async with site.shell() as shell:
        with silent_pipe() as (reading, _), full_pipe() as full:
            task = asyncio.create_task(shell.pipe(LOUD, stdin=reading, stdout=full))
            await started(site.home)
            if way == "closed":
                await shell.close()
            elif site.kind == "emulator":
                await site.gpu.containers.stop(site.container.id)
            else:
                shell._connection.connected().abort()
            with pytest.raises(ClientStateError if way == "closed" else SSHError, match=r"closed|lost"):
                await task


async def test_late_thread_of_a_blocking_file_does_not_delay_the_end(shell: AsyncShell) -> None:
    release = threading.Event()

    class Blocking(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            release.wait(120)
            return b"late"[:size]

    try:
        assert (await shell.pipe("echo over", stdin=Blocking(), check=True)).stdout == "over\n"
    finally:
        release.set()

"""A command between the caller's streams of bytes, with back-pressure both ways."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack

from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.results import CommandResult
from netmind_rentgpu.ssh.commands import Command, prepared
from netmind_rentgpu.ssh.connection import ShellConnection
from netmind_rentgpu.ssh.output import Capture
from netmind_rentgpu.ssh.running import run_command
from netmind_rentgpu.ssh.streams import PipeSink, PipeSource, Sink, Source, check_descriptors, open_sink, open_source

__all__ = ["run_piped"]

_MOST_CAPTURED = 16 * 1024 * 1024
# The most bytes that wait for the caller's sinks before the server is held back, beside the 2 MiB that SSH itself allows.
_MOST_WAITING = 256 * 1024


async def run_piped(
    connection: ShellConnection,
    command: str,
    *,
    stdin: PipeSource | None,
    stdout: PipeSink | None,
    stderr: PipeSink | None,
    check: bool,
    timeout: float | None,
    environment: Mapping[str, str] | None,
) -> CommandResult:
    """Run a command whose input and outputs are the caller's; `AsyncShell.pipe` documents the arguments and errors."""
    ready = prepared(command, environment, None)
    captured = Capture(_MOST_CAPTURED)
    # Check all first, because a duplicate of one could take the number of another that is closed.
    check_descriptors(stdin, stdout, stderr)
    with ExitStack() as opened:
        source = None if stdin is None else open_source("stdin", stdin)
        if source is not None:
            opened.callback(source.close)
        sinks: list[Sink | None] = []
        for argument, given in (("stdout", stdout), ("stderr", stderr)):
            sink = None if given is None else open_sink(argument, given)
            if sink is not None:
                opened.callback(sink.close)
            sinks.append(sink)
        outputs = _Outputs(captured, sinks)
        running = Command(ready, outputs)
        return await run_command(
            connection, running, captured, lambda: _attend(running, source, outputs), check=check, timeout=timeout
        )


class _Outputs:
    """The outputs of a command: what waits for the caller's sinks, and the tails of what has no sink."""

    def __init__(self, captured: Capture, sinks: list[Sink | None]) -> None:
        self._captured = captured
        self.sinks: list[Sink | None] = sinks
        self._waiting: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self._size = 0
        self._is_over = False
        self._news = (asyncio.Event(), asyncio.Event())

    @property
    def has_room(self) -> bool:
        """True if the sinks are not too far behind."""
        return self._size < _MOST_WAITING

    def take(self, data: bytes, *, error: bool) -> bool:
        """Receive a piece of output; return True if there is room for more at once."""
        if self.sinks[error] is None:
            self._captured.take(data, error=error)
        else:
            self._waiting[error].append(data)
            self._size += len(data)
            self._news[error].set()
        return self.has_room

    def finish(self) -> None:
        """Receive the end of both outputs."""
        self._is_over = True
        for news in self._news:
            news.set()

    async def next(self, *, error: bool) -> bytes:
        """Wait for the bytes that an output has for its sink; return none at its end."""
        waiting = self._waiting[error]
        while not waiting and not self._is_over:
            self._news[error].clear()
            await self._news[error].wait()
        data = b"".join(waiting)
        waiting.clear()
        self._size -= len(data)
        return data


async def _attend(running: Command, source: Source | None, outputs: _Outputs) -> None:
    """Feed a command and pass on its outputs until it has ended. The first error of a source or a sink is raised."""
    feeding = asyncio.create_task(running.feed(source))
    ending = asyncio.create_task(_wait_for_end(running, outputs))
    sinks = [(bool(error), sink) for error, sink in enumerate(outputs.sinks) if sink is not None]
    tasks = [feeding, *(asyncio.create_task(_pass_on(running, outputs, sink, error=error)) for error, sink in sinks)]
    tasks.append(ending)
    done, left = set[asyncio.Task[None]](), set(tasks)
    try:
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            _raise_first_error([task for task in tasks if task in done])
            if ending in done:
                if not running.has_ended:
                    return
                # The rest of the input is of no use.
                left.discard(feeding)
    finally:
        # No task uses the caller's streams after the call.
        for task in tasks:
            task.cancel()
        await wait_shielded(asyncio.gather(*tasks, return_exceptions=True))
        # Break the reference cycle.
        tasks.clear()
        done.clear()
        del feeding, ending


def _raise_first_error(finished: list[asyncio.Task[None]]) -> None:
    while finished:
        finished.pop(0).result()


async def _wait_for_end(running: Command, outputs: _Outputs) -> None:
    await running.wait()
    outputs.finish()


async def _pass_on(running: Command, outputs: _Outputs, sink: Sink, *, error: bool) -> None:
    while data := await outputs.next(error=error):
        if outputs.has_room:
            running.go_on()
        await sink.write(data)
    await sink.finish()

"""The relay between a client and a container's SSH server, for connections whose bytes meet faults."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeAlias

from netmind_rentgpu.emulator.connection_faults import ConnectionFaults, Pace, Quota

__all__ = ["Begin", "Relay"]

Begin: TypeAlias = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
"""Starts a task, which the end of the emulator waits for."""
_Pieces: TypeAlias = asyncio.Queue[tuple[float, bytes]]
# A socket that is closed with this option sends a reset, and discards what it has not sent.
_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Passes bytes between a client and a server, and owns both sockets.

    All methods run in the event loop's thread. A frozen relay has no task.
    """

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        faults: ConnectionFaults,
        *,
        begin: Begin,
        closed: Callable[[Relay], object],
    ) -> None:
        """Prepare a relay, which passes nothing before `start`.

        Args:
            closed: called once when the relay closes.
        """
        self._client = client
        self._server = server
        self._faults = faults
        self._begin = begin
        self._closed = closed
        self._quota = Quota(drop_after=faults.drop_after, freeze_after=faults.freeze_after)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._open_directions = 2
        self._is_closing = False
        for end in (client, server):
            end.settimeout(0)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # because small pieces must not wait for more

    def start(self) -> None:
        """Pass bytes in both directions from now on."""
        if self._faults.freeze_at is not None:
            self._timer = asyncio.get_running_loop().call_later(self._faults.freeze_at, self._stop_passing)
        for source, target in ((self._client, self._server), (self._server, self._client)):
            # A limited direction reads the next piece after the last one has passed, so that the sender has to wait.
            pieces: _Pieces = asyncio.Queue(0 if self._faults.latency else 1)
            for passing in (self._read(source, pieces), self._write(pieces, target)):
                task = self._begin(passing)
                self._tasks.add(task)
                task.add_done_callback(self._forget)
        self._stop_when_spent()

    def close(self) -> None:
        """Break the connection. The sockets close as soon as no task uses them."""
        if self._is_closing:
            return
        self._is_closing = True
        self._stop_passing()
        if not self._tasks:
            self._close_sockets()
        self._closed(self)

    def _stop_passing(self) -> None:
        """Pass nothing any more, and keep the connection open."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._is_closing and not self._tasks:
            self._close_sockets()

    def _close_sockets(self) -> None:
        self._client.close()
        self._server.close()

    def _stop_when_spent(self) -> None:
        if not self._quota.is_spent:
            return
        if self._quota.stop == "freeze":
            self._stop_passing()
            return
        with suppress(OSError):  # because the client may have disconnected
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    async def _read(self, source: socket.socket, pieces: _Pieces) -> None:
        """Read pieces at the connection's pace. The last piece is empty."""
        loop = asyncio.get_running_loop()
        pace = Pace(self._faults.bandwidth)
        data = b"not ended"
        try:
            while data:
                data = await loop.sock_recv(source, pace.piece)
                await _until(pace.moment(loop.time(), len(data)))
                await pieces.put((loop.time() + self._faults.latency, data))
        except OSError:
            self.close()

    async def _write(self, pieces: _Pieces, target: socket.socket) -> None:
        """Write each piece at its moment. A quota that is spent stops both directions."""
        loop = asyncio.get_running_loop()
        data = b"not ended"
        try:
            while data:
                moment, data = await pieces.get()
                await _until(moment)
                allowed = self._quota.reserve(len(data))
                await loop.sock_sendall(target, data[:allowed])
                self._quota.confirm(allowed)
                self._stop_when_spent()
                if allowed < len(data):
                    return  # the other direction passes the last bytes, and stops this one
            target.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._open_directions -= 1
        if self._open_directions == 0:
            self.close()


async def _until(moment: float) -> None:
    """Wait for a moment in seconds on the monotonic clock of the event loop."""
    delay = moment - asyncio.get_running_loop().time()
    if delay > 0:
        await asyncio.sleep(delay)

"""Network namespaces of Linux, one for each isolated container.

In a namespace, a process reaches its own loopback interface and nothing else. Files, processes and users stay shared with
this machine.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from itertools import count
from pathlib import Path

__all__ = ["NetworkNamespace", "check_namespaces"]

# With options that keep the environment and installed packages out of it, which also makes it start fast.
_PROGRAM = (sys.executable, "-IS", "-X", "utf8", str(Path(__file__).with_name("namespace_program.py")))
_READY = b"ready"
_LONGEST_MESSAGE = 4096
# Seconds to wait for the holder that only shows if namespaces are allowed.
_LONGEST_START = 60.0
_LOST = "the process that holds the container's network namespace has ended"


class NetworkNamespace:
    """A network namespace, held by a process that ends with the emulator's process, however that ends.

    Only the event loop calls its methods, except for the constructor and `close`.
    """

    def __init__(self) -> None:
        """Start the process that makes and holds the namespace."""
        self._channel, other_end = _socketpair()
        self._channel.settimeout(0)
        try:
            with other_end:
                # In a session of its own, because Ctrl-C in a terminal must not end it before the emulator does.
                self._process = subprocess.Popen(  # noqa: S603  # this package's own program
                    [*_PROGRAM, "hold"],
                    stdin=other_end.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
        except BaseException:
            self._channel.close()
            raise
        self._problem: str | None = None
        self._is_ready = self._is_closed = False
        self._numbers = count()
        self._turn = asyncio.Lock()
        self._readable: asyncio.Future[None] | None = None

    async def ready(self) -> None:
        """Wait until the namespace exists.

        Raises:
            OSError: the system does not allow it, or the namespace was closed.
        """
        async with self._turn:
            if not self._is_ready and self._problem is None:
                self._start((await self._receive())[0])
        self.entry()

    def wait_until_ready(self) -> None:
        """Wait, without an event loop, until the namespace exists.

        Raises:
            OSError: the system does not allow it, or it takes more than 60 s.
        """
        self._channel.settimeout(_LONGEST_START)
        self._start(_received(self._channel)[0])
        self.entry()

    def _start(self, message: bytes) -> None:
        self._is_ready = message == _READY
        if not self._is_ready:
            self._problem = message.decode(errors="replace") or _LOST

    def entry(self) -> tuple[str, ...]:
        """Return the words that, before the words of a command, make it run in the namespace.

        Raises:
            OSError: there is no namespace.
        """
        if not self._is_ready:
            raise OSError(f"there is no network namespace: {self._problem or 'it is being made'}")
        return (*_PROGRAM, "enter", str(self._process.pid))

    async def open_socket(self, family: socket.AddressFamily) -> socket.socket:
        """Return a new TCP socket of the namespace, which does not block.

        Raises:
            OSError: the system refuses a socket of this family, or the namespace was closed.
        """
        await self.ready()
        async with self._turn:
            self.entry()
            number = str(next(self._numbers))
            try:
                self._channel.send(f"{number} {int(family)}".encode())
            except ConnectionError:
                raise OSError(_LOST) from None
            while True:
                message, descriptors = await self._receive()
                made = [socket.socket(fileno=descriptor) for descriptor in descriptors]
                answered, _, error = message.decode().partition(" ")
                if answered == number and made:
                    made[0].settimeout(0)
                    return made[0]
                # Otherwise it answers a call that was cancelled.
                for unwanted in made:
                    unwanted.close()
                if answered == number:
                    raise OSError(int(error), os.strerror(int(error)))

    async def _receive(self) -> tuple[bytes, list[int]]:
        loop = asyncio.get_running_loop()
        self._readable = loop.create_future()
        loop.add_reader(self._channel, self._note_readable)
        try:
            await self._readable
        finally:
            self._readable = None
            if not self._is_closed:
                loop.remove_reader(self._channel)
        if self._is_closed:
            raise OSError(_LOST)
        message, descriptors = _received(self._channel)
        if not message and self._is_ready:
            raise OSError(_LOST)
        return message, descriptors

    def _note_readable(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    def close(self) -> None:
        """End the process that holds the namespace. The namespace ends with the last process in it."""
        self._process.kill()
        self._process.wait()
        if self._readable is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._note_readable()
        self._is_closed, self._is_ready, self._problem = True, False, _LOST
        self._channel.close()


def _socketpair() -> tuple[socket.socket, socket.socket]:
    if sys.platform == "win32":
        raise NotImplementedError
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _received(channel: socket.socket) -> tuple[bytes, list[int]]:
    if sys.platform == "win32":
        raise NotImplementedError
    try:
        message, descriptors, _, _ = socket.recv_fds(channel, _LONGEST_MESSAGE, 1)
    except ConnectionError:  # because the process ended without reading all
        return b"", []
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # noqa: FBT003  # it takes no keyword
    return message, descriptors


def check_namespaces() -> None:
    """Check, by making a namespace, that this system has network namespaces and allows them.

    Raises:
        NotImplementedError: it does not.
    """
    if sys.platform != "linux":
        raise NotImplementedError(
            "isolated containers need Linux's network namespaces, which this system lacks; leave out isolated=True"
        )
    namespace = NetworkNamespace()
    try:
        namespace.wait_until_ready()
    except OSError as error:
        raise NotImplementedError(
            f"containers cannot be isolated: {error}; allow this user to make network namespaces, so that"
            " `unshare -Urn true` succeeds, or leave out isolated=True"
        ) from None
    finally:
        namespace.close()

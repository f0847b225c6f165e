"""A server that answers as it is told, however badly: a bare asyncio protocol, so that nothing is put right on the way."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any, Self

CONTAINER: dict[str, Any] = {
    "name": "text",
    "auth_id": 1,
    "gpu": 1,
    "node_name": "text",
    "image_template_id": 1,
    "enable_vscode": False,
    "enable_jupyter": False,
    "cpu": 1,
    "disk_size": 200,
    "memory": 1,
    "gpu_name": 1,
    "id": 1,
    "ssh": "text",
    "status": 0,
    "exposed_service": "text",
    "vscode_service": "text",
    "jupyter_service": "text",
    "created_at": "2025-05-29T04:47:41.008Z",
}


@dataclass
class Seen:
    """A request as it arrived."""

    connection: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Behaviour = Callable[["Peer"], None]


class Peer(asyncio.Protocol):
    """One connection; each whole request on it meets the server's next behaviour."""

    def __init__(self, server: Hostile) -> None:
        self.server = server
        self.number = 0
        self.received = b""
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.server.connections += 1
        self.number = self.server.connections
        self.server.open.add(self)
        if self.server.on_connect is not None:
            self.server.on_connect(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.open.discard(self)
        self.server.changed.set()

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, separator, rest = self.received.partition(b"\r\n\r\n")
        if not separator:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self.received = rest[length:]
        method, target, _ = first.split(" ", 2)
        self.server.seen.append(Seen(self.number, method, target, headers, rest[:length]))
        self.server.changed.set()
        self.server.next_behaviour()(self)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.transport.write(head(status, len(body), **headers) + body)

    def reset(self) -> None:
        """Close with a TCP reset."""
        sock: socket.socket = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


@dataclass
class Hostile:
    """The server. Behaviours are used in order, the last one again and again."""

    behaviours: Sequence[Behaviour] = ()
    on_connect: Behaviour | None = None
    ssl_context: SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    open: set[Peer] = field(default_factory=set)
    connections: int = 0
    url: str = ""
    port: int = 0
    served: int = 0

    async def __aenter__(self) -> Self:
        self.changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Peer(self), "127.0.0.1", 0, ssl=self.ssl_context)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self.ssl_context else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for peer in list(self.open):
            peer.transport.abort()
        await self._server.wait_closed()
        await self.until(lambda: not self.open)

    def next_behaviour(self) -> Behaviour:
        self.served += 1
        return self.behaviours[min(self.served, len(self.behaviours)) - 1]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something the server notices makes a condition true."""
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def head(status: int, length: int | None, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(body: Any = None, status: int = 200, **headers: str) -> Behaviour:
    """Answer with JSON (the documented container where nothing is said), or with bytes as they are."""
    raw = body if isinstance(body, bytes) else json.dumps(CONTAINER if body is None else body).encode()

    def behave(peer: Peer) -> None:
        peer.send(status, raw, **{"Content_Type": "application/json", **headers})

    return behave


def close(peer: Peer) -> None:
    """Read the request, and close the connection."""
    peer.transport.close()


def reset(peer: Peer) -> None:
    """Read the request, and reset the connection."""
    peer.reset()


def stall(peer: Peer) -> None:
    """Read the request, and say nothing."""


def stall_after_head(peer: Peer) -> None:
    """Send the head of an answer, and nothing of its body."""
    peer.transport.write(head(200, 500))


def cut_body(peer: Peer) -> None:
    """Send half a body, and close."""
    body = json.dumps(CONTAINER).encode()
    peer.transport.write(head(200, len(body)) + body[: len(body) // 2])
    peer.transport.close()


def reset_body(peer: Peer) -> None:
    """Send half a body, and reset."""
    body = json.dumps(CONTAINER).encode()
    peer.transport.write(head(200, len(body)) + body[: len(body) // 2])
    asyncio.get_running_loop().call_soon(peer.reset)


def drip(peer: Peer) -> None:
    """Send a body a byte at a time, faster than any read timeout and slower than any total one."""
    body = json.dumps(CONTAINER).encode()
    peer.transport.write(head(200, 10_000_000))

    def one() -> None:
        if not peer.transport.is_closing():
            peer.transport.write(body[:1])
            asyncio.get_running_loop().call_later(0.01, one)

    one()


def not_http(peer: Peer) -> None:
    """Answer with something that is not HTTP."""
    peer.transport.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def endless_body(peer: Peer) -> None:
    """Send a body that does not end, in chunks, without saying how long it is."""
    peer.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"

    def more() -> None:
        if not peer.transport.is_closing():
            peer.transport.write(chunk)
            asyncio.get_running_loop().call_soon(more)

    more()


@contextmanager
def full_listener() -> Iterator[str]:
    """Give the URL of a port that takes no more connections: its backlog is full, and the kernel drops what else knocks."""
    fillers = [socket.socket() for _ in range(4)]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for filler in fillers:
                filler.close()

"""A server that answers every request with the same container, as fast as asyncio lets it: the other end of `calls`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PATH = "/v1/rentgpu/containers/1"

CONTAINER = {
    "name": "bench-0123456789abcdef",
    "auth_id": 1,
    "gpu": 1,
    "node_name": "node-us-0001",
    "image_template_id": 1,
    "enable_vscode": False,
    "enable_jupyter": False,
    "cpu": 8,
    "disk_size": 200,
    "memory": 64,
    "gpu_name": 1,
    "id": 1,
    "ssh": "ssh root@203.0.113.7 -p 30022",
    "status": 1,
    "exposed_service": "",
    "vscode_service": "",
    "jupyter_service": "",
    "created_at": "2025-05-29T04:47:41.008Z",
}
_BODY = json.dumps(CONTAINER).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a server's is one
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            self._received = self._received[end + 4 :]
            self._transport.write(_ANSWER)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serving() -> Iterator[str]:
    """Run the server in a process of its own; give its URL."""
    with subprocess.Popen([sys.executable, "-m", "benchmarks.server"], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = server.stdout.readline().strip() if server.stdout else ""
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


if __name__ == "__main__":
    asyncio.run(_serve())

"""A client on a bare socket, and the create calls that meet faults."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from netmind_rentgpu import AsyncRentGPU, Container, PaymentType, Retries
from netmind_rentgpu.emulator import Emulator

ONCE = Retries(max_attempts=1)


class BareClient:
    """A client that returns the bytes of a server unchanged."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int | None, dict[str, str], bytes]:
        """Return status, headers and the received part of the body; no status if the connection broke without an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.emulator.url.rpartition(":")[2]))
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} /v1/rentgpu/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.emulator.token}\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
        try:
            async with asyncio.timeout(60):
                answer = await reader.read()
        except ConnectionResetError:
            answer = b""
        finally:
            writer.close()
        if not answer:
            return None, {}, b""
        head, _, rest = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, rest


async def wanted(gpu: AsyncRentGPU, name: str = "mine") -> dict[str, Any]:
    """Return the body of a create call that the service accepts."""
    auth = await gpu.auths.ensure("a-password")
    machine = (await gpu.machines.list(gpu=4))[0]
    return {
        "name": name,
        "auth_id": auth.id,
        "gpu": 1,
        "node_name": machine.node_name,
        "image_template_id": 1,
        "payment_type": 0,
    }


async def create(gpu: AsyncRentGPU, name: str = "mine") -> Container:
    """Create a container."""
    return await gpu.containers.create(**{**await wanted(gpu, name), "payment_type": PaymentType.USD})

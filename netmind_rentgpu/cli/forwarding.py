"""`forward`: forwarded ports that stay while the connection is lost and made again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from netmind_rentgpu.cli.cells import Column
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.targets import Target, find_target
from netmind_rentgpu.cli.values import PortPair
from netmind_rentgpu.concurrency.backoff import backoff
from netmind_rentgpu.errors import SSHError, TransportError
from netmind_rentgpu.ssh.connection_source import LONGEST_OUTAGE

if TYPE_CHECKING:
    from netmind_rentgpu.cli.rows import ForwardedPort
    from netmind_rentgpu.client import AsyncRentGPU

__all__ = ["forward"]

_COLUMNS: Final = (
    Column("url", "HERE"),
    Column("remote_port", "PORT THERE", is_number=True),
    Column("name", "MACHINE"),
)


def forward(session: Session, wanted: str | None, ports: Sequence[PortPair]) -> None:
    """Forward ports until a signal comes.

    Raises:
        StoppedError: the signal has come.
        SSHError: a port could not be forwarded, or no connection could be made again for five minutes.
        RentGPUError: the machine was not found.
    """

    async def work(gpu: AsyncRentGPU) -> None:
        target = await find_target(gpu, wanted)
        pairs = await _forward_once(session, gpu, target, ports, is_first=True)
        pauses, began = backoff(), None
        loop = asyncio.get_running_loop()
        while True:
            session.notes.say(f"lost the connection to {target.name}; connecting again")
            began = loop.time() if began is None else began
            try:
                await _forward_once(session, gpu, target, pairs, is_first=False)
            except (SSHError, TransportError):
                if loop.time() > began + LONGEST_OUTAGE:
                    raise
                await asyncio.sleep(next(pauses))
            else:
                pauses, began = backoff(), None

    session.run(work)


async def _forward_once(
    session: Session, gpu: AsyncRentGPU, target: Target, ports: Sequence[PortPair], *, is_first: bool
) -> list[PortPair]:
    """Forward ports over one connection until it is lost, and return the ports, the free ones included.

    Args:
        is_first: True to print the ports as the result.
    """
    async with gpu.ssh(target.container_id, keepalive=15) as shell, AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(await shell.forward(local_port=pair.local, remote_port=pair.remote))
            for pair in ports
        ]
        if is_first:
            rows: list[ForwardedPort] = [
                {
                    "url": f"127.0.0.1:{each.local_port}",
                    "local_port": each.local_port,
                    "remote_port": each.remote_port,
                    "name": target.name,
                }
                for each in opened
            ]
            session.results.rows(rows, _COLUMNS)
        session.notes.say(f"forwarding to {target.name} until Ctrl-C")
        await shell.wait_disconnected()
        return [PortPair(each.local_port, each.remote_port) for each in opened]

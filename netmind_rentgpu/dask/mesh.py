"""The mesh of a cluster: a loopback address means the same worker on this machine and on each rented one.

All traffic passes through this machine, the hub: each rented machine has one SSH connection with it, and none with others.
A worker listens on a port that is free here and was never used before. Here, that port leads to the worker; on each other
rented machine, the same port leads here. On each of them, the port of the scheduler leads here, too.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final

import attrs

from netmind_rentgpu.errors import RentGPUError, SSHError

if TYPE_CHECKING:
    from netmind_rentgpu.rentals.rental import AsyncRental
    from netmind_rentgpu.ssh.forwarded import AsyncForward

__all__ = ["Mesh", "MeshMember", "WorkerPorts"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_LOOPBACK: Final = "127.0.0.1"
# Times that a machine joins with other ports, because a port may be taken on a machine.
_ATTEMPTS: Final = 3
# Seconds that a join waits for the other machines, whose connections may be broken.
_LONGEST_WAIT: Final = 10.0
_BETWEEN_ATTEMPTS: Final = 1.0


@attrs.frozen
class WorkerPorts:
    """The ports of one worker, the same on each machine.

    Attributes:
        worker: the port that the scheduler, the clients and the other workers connect to.
        nanny, dashboard: the ports that only this machine connects to.
    """

    worker: int
    nanny: int
    dashboard: int


class Mesh:
    """The rented machines of a cluster, and the ports that lead from each to the others."""

    def __init__(self) -> None:
        self._members: set[MeshMember] = set()
        self._used: set[int] = set()

    async def join(self, rental: AsyncRental, count: int, scheduler_port: int) -> MeshMember:
        """Open the ports of a rented machine's workers here and on all other machines, and return their place in the mesh.

        Args:
            count: the number of its workers.
            scheduler_port: the port of the scheduler on this machine.

        Raises:
            SSHError: the server forbids to forward ports, or no ports are free on all machines.
            RentalEndedError: the rental is over.
        """
        await rental._check_forwarding()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a cluster's rentals are its own
        attempt = 1
        while True:
            member = MeshMember(rental, tuple(self._new_ports(count)))
            self._members.add(member)
            try:
                await self._open(member, scheduler_port)
            except BaseException as error:
                await self.leave(member)
                if not isinstance(error, SSHError) or attempt == _ATTEMPTS or rental.shell.lost:
                    raise
                attempt += 1
            else:
                return member

    async def leave(self, member: MeshMember) -> None:
        """Close the ports of a machine's workers, here and on all other machines."""
        self._members.discard(member)
        await asyncio.gather(
            member.close(), *(other.forget(ports.worker) for other in self._members for ports in member.ports)
        )

    def _new_ports(self, count: int) -> Iterator[WorkerPorts]:
        for _ in range(count):
            yield WorkerPorts(*(self._new_port() for _ in range(3)))

    def _new_port(self) -> int:
        while True:
            with socket.socket() as probe:
                probe.bind((_LOOPBACK, 0))
                port = int(probe.getsockname()[1])
            if port not in self._used:
                self._used.add(port)
                return port

    async def _open(self, member: MeshMember, scheduler_port: int) -> None:
        others = [other for other in self._members if other is not member]
        own: list[Coroutine[Any, Any, None]] = [member.open_remote_forward(scheduler_port)]
        for ports in member.ports:
            own += [member.open_local_forward(port) for port in (ports.worker, ports.nanny, ports.dashboard)]
        for other in others:
            own += [member.open_remote_forward(ports.worker) for ports in other.ports]
        await _all(own)
        await _all([other.open_remote_forward_in_time(ports.worker) for other in others for ports in member.ports])


class MeshMember:
    """The place of one rented machine in the mesh.

    Attributes:
        ports: the ports of its workers.
    """

    def __init__(self, rental: AsyncRental, ports: tuple[WorkerPorts, ...]) -> None:
        self.ports: tuple[WorkerPorts, ...] = ports
        self._rental = rental
        self._forwards: dict[int, AsyncForward] = {}
        # The ports of other machines that this one cannot be led to yet, because its connection is broken.
        self._late: dict[int, asyncio.Task[None]] = {}
        self._is_closed = False

    async def open_local_forward(self, port: int) -> None:
        """Forward a port of this machine to the same port of the rented machine.

        Raises:
            SSHError: the port cannot be opened.
            RentalEndedError: the rental is over.
        """
        await self._keep(port, await self._rental.forward(local_port=port, remote_port=port))

    async def open_remote_forward(self, port: int) -> None:
        """Forward a port of the rented machine to the same port of this machine.

        Raises:
            SSHError: the port cannot be opened.
            RentalEndedError: the rental is over.
        """
        await self._keep(port, await self._rental.reverse_forward(remote_port=port, local_port=port))

    async def open_remote_forward_in_time(self, port: int) -> None:
        """Open a remote forward; if that takes too long, because the connection is broken, go on with it later.

        Raises:
            SSHError: the port is taken on the rented machine.
        """
        task = asyncio.get_running_loop().create_task(self._retry_remote_forward(port))
        self._late[port] = task
        task.add_done_callback(lambda done: self._end_late(port, done))
        done, _ = await asyncio.wait({task}, timeout=_LONGEST_WAIT)
        if done and not task.cancelled():
            task.result()

    def _end_late(self, port: int, done: asyncio.Task[None]) -> None:
        self._late.pop(port, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            logger.warning("a worker of the cluster cannot be reached from %s: %s", self._rental.name, error)

    async def _retry_remote_forward(self, port: int) -> None:
        while not self._is_closed:
            try:
                await self.open_remote_forward(port)
            except SSHError:
                if not self._rental.ended and not self._rental.shell.lost:
                    raise
            except RentGPUError:  # the rental is over, and its end is noticed elsewhere
                return
            else:
                return
            await asyncio.sleep(_BETWEEN_ATTEMPTS)

    async def forget(self, port: int) -> None:
        """Close a port of another machine's worker on this one."""
        if (late := self._late.pop(port, None)) is not None:
            late.cancel()
        if (forward := self._forwards.pop(port, None)) is not None:
            await _close(forward)

    async def close(self) -> None:
        """Close all ports that were opened for the rented machine."""
        self._is_closed = True
        for task in tuple(self._late.values()):
            task.cancel()
        forwards, self._forwards = tuple(self._forwards.values()), {}
        await asyncio.gather(*(_close(forward) for forward in forwards))

    async def _keep(self, port: int, forward: AsyncForward) -> None:
        if self._is_closed:
            await _close(forward)
        else:
            self._forwards[port] = forward


async def _all(works: list[Coroutine[Any, Any, None]]) -> None:
    """Run all at once, and raise the first error once all have ended."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _close(forward: AsyncForward) -> None:
    try:
        await forward.close()
    except RentGPUError:  # the rental is over
        return

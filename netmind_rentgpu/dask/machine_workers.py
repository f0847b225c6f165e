"""The workers of one rented machine, as Dask's `SpecCluster` sees them: an entry of its specification."""

# Because the annotations of dask and distributed are incomplete:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

if TYPE_CHECKING:
    from netmind_rentgpu.rentals.rental import AsyncRental

__all__ = ["MachineWorkers", "WorkersPhase", "WorkersRunner"]


class WorkersPhase(Enum):
    """The phases of a machine's workers."""

    NEW = "not started"
    WAITING = "waits after a failure"
    RENTING = "a machine is being rented"
    PREPARING = "software is being installed"
    JOINING = "the workers are being started"
    RUNNING = "the workers run"
    RETIRING = "the workers hand their data over"
    ENDED = "the workers have ended"


class WorkersRunner(Protocol):
    """Runs the workers of machines."""

    def names(self, of_machine: str) -> tuple[str, ...]:
        """Return the names of the workers of one machine."""
        ...

    async def run(self, workers: MachineWorkers) -> None:
        """Run workers on a machine until they have ended, and give the machine back; a cancellation ends that."""
        ...

    def retire(self, workers: MachineWorkers) -> None:
        """Begin to end workers: let them hand their data over if they run, and give the machine back."""
        ...


class MachineWorkers(ProcessInterface):
    """The workers of one machine, from the wish for them to their end. Their names are never used again.

    `start` and `close` return at once, because Dask holds a lock meanwhile.

    Attributes:
        name: the name of the entry.
        worker_names: the names of the workers.
        phase: the present phase.
        rental: the machine; None before it is rented.
        task: runs the workers; None before `start`.
    """

    def __init__(self, scheduler: str | None = None, name: str = "", *, runner: WorkersRunner) -> None:
        super().__init__(scheduler=scheduler, name=name)
        self.name: str = name
        self.worker_names: tuple[str, ...] = runner.names(name)
        self.phase: WorkersPhase = WorkersPhase.NEW
        self.rental: AsyncRental | None = None
        self.task: asyncio.Task[None] | None = None
        self._runner = runner

    async def start(self) -> None:
        """Begin to rent the machine and to start the workers."""
        await super().start()
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self._runner.run(self))

    async def close(self) -> None:
        """Begin to end the workers, and to give the machine back."""
        if self.status not in (Status.closing, Status.closed):
            self._runner.retire(self)
        await super().close()

"""`Shell`, `Forward`, `Job` and `Rental`, which a synchronous program opens and closes, over the asynchronous classes."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Literal, Self

from netmind_rentgpu.client import AsyncRentGPU
from netmind_rentgpu.errors import ClientStateError
from netmind_rentgpu.models import Container, Machine
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.ssh.forwarded import AsyncForward
from netmind_rentgpu.ssh.jobs import AsyncJob
from netmind_rentgpu.ssh.shell import AsyncShell
from netmind_rentgpu.ssh.streams import check_no_event_loop_streams
from netmind_rentgpu.sync.blocks import RentingBlock
from netmind_rentgpu.sync.portal import OwnedHandle, call
from netmind_rentgpu.sync.wrappers import sync_iterator, sync_method, sync_opener, with_own_names

__all__ = ["Forward", "Job", "Rental", "Shell"]


def _check_streams(keywords: dict[str, Any]) -> None:
    check_no_event_loop_streams(**{name: keywords.get(name) for name in ("stdin", "stdout", "stderr")})


class Forward:
    """A forwarded port, which `forward` and `reverse_forward` return: `with shell.forward(...): ...`.

    That of a shell accepts connections until it or the shell is closed, or the shell's connection is lost; that of a rental,
    until it is closed or the rental ends. Leaving the block closes it.

    Attributes:
        listens: the side that accepts connections: `here` on this machine, `there` on the container.
        local_port, remote_port: the ports on this machine's side and on the container's side.
    """

    def __init__(self, forward: AsyncForward, owner: object) -> None:
        self._async = forward
        # Keep the shell or rental, because it would be closed when collected.
        self._owner = owner
        self.listens: Literal["here", "there"] = forward.listens
        self.local_port: int = forward.local_port
        self.remote_port: int = forward.remote_port

    @property
    def port(self) -> int:
        """The port that accepts connections, on the side that `listens` names."""
        return self._async.port

    @property
    def closed(self) -> bool:
        """True if the port accepts no more connections."""
        return self._async.closed

    def close(self) -> None:
        """Stop accepting connections, and free the port. A second call does nothing.

        Connections that are open go on until one of their ends, the shell, or the rental closes them.

        Raises:
            ClientStateError: this is the thread of the client's own event loop.
        """
        call(self._async.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._async).replace("AsyncForward", "Forward")

    def __reduce__(self) -> Any:
        raise TypeError("a forward belongs to its connection and cannot be pickled")


class Job:
    """A command that runs on a container without a connection: `job = shell.start("python train.py", name="train")`.

    It goes on after the connection, the program and the client have ended, until its command ends or the container does.
    `shell.job(name)` finds it again, from any process. If a connection is lost, each method opens another one and goes on.

    Attributes:
        name: the job's name, which no other job of the container has.
        id: the job's id, which an earlier or later job of the same name does not have.
        command: the command that it runs.
    """

    def __init__(self, job: AsyncJob, owner: object) -> None:
        self._async = job
        # Keep the shell or rental, because it would be closed when collected.
        self._owner = owner
        self.name: str = job.name
        self.id: str = job.id
        self.command: str = job.command

    status: Final = sync_method(AsyncJob.status)
    logs: Final = sync_iterator(AsyncJob.logs)
    wait: Final = sync_method(AsyncJob.wait)
    stop: Final = sync_method(AsyncJob.stop)
    remove: Final = sync_method(AsyncJob.remove)

    def __repr__(self) -> str:
        return repr(self._async).replace("AsyncJob", "Job")

    def __reduce__(self) -> Any:
        raise TypeError("a job uses a connection and cannot be pickled; find it again by its name, with job()")


def _jobs(jobs: list[AsyncJob], owner: object) -> list[Job]:
    return [Job(job, owner) for job in jobs]


class Shell:
    """A shell on a container: `with gpu.ssh(container) as shell: ...`.

    All calls share one connection, which is kept alive. The shell does not replace a lost connection, but raises `SSHError`:
    the commands may or may not have ended. Several threads may use it at once. Of commands, eight do, or more if the
    server allows more; further ones wait.
    """

    def __init__(self, shell: AsyncShell, client: OwnedHandle[AsyncRentGPU]) -> None:
        self._shell = OwnedHandle(shell, "shell")
        # Keep the client, because it opens the shell and would be closed when collected.
        self._client = client

    @property
    def _async(self) -> AsyncShell:
        return self._shell.value

    @property
    def container(self) -> Container:
        """The container, as it was when the shell was opened.

        Raises:
            ClientStateError: the shell is not open.
        """
        return self._async.container

    @property
    def lost(self) -> bool:
        """True if the connection was lost; the shell cannot be used any more."""
        return self._async.lost

    @property
    def closed(self) -> bool:
        """True if the shell was closed; it cannot be used any more."""
        return self._shell.closed or self._async.closed

    run: Final = sync_method(AsyncShell.run)
    pipe: Final = sync_method(AsyncShell.pipe, check=_check_streams)
    stream: Final = sync_iterator(AsyncShell.stream)
    start: Final = sync_opener(AsyncShell.start, Job)
    jobs: Final = sync_opener(AsyncShell.jobs, _jobs)
    job: Final = sync_opener(AsyncShell.job, Job)
    upload: Final = sync_method(AsyncShell.upload)
    download: Final = sync_method(AsyncShell.download)
    forward: Final = sync_opener(AsyncShell.forward, Forward)
    reverse_forward: Final = sync_opener(AsyncShell.reverse_forward, Forward)
    interact: Final = sync_method(AsyncShell.interact)
    wait_disconnected: Final = sync_method(AsyncShell.wait_disconnected)

    def close(self) -> None:
        """End all commands and copies, and close the connection. A second call does nothing.

        Raises:
            ClientStateError: this is the thread of the client's own event loop.
        """
        self._shell.close()

    def __enter__(self) -> Self:
        call(self._async.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<Shell: closed>" if self._shell.closed else repr(self._async).replace("AsyncShell", "Shell")

    def __reduce__(self) -> Any:
        raise TypeError("a shell holds a connection and cannot be pickled")


@with_own_names
class Rental(RentingBlock):
    """A rented machine: `with gpu.rent(...) as rental: ...`. It is deleted when the block is left, in any way.

    Entering the block rents the machine and logs in to its container. Several threads may use the rental. When its time is
    up, or its budget is spent, it is deleted even while the block runs. Leaving the block and every later use then raise
    `RentalExpiredError` or `BudgetExceededError`. A rental whose block is never left is deleted when it is collected or the
    interpreter exits.
    """

    def __init__(self, rental: AsyncRental, client: OwnedHandle[AsyncRentGPU]) -> None:
        super().__init__()
        self._rental = OwnedHandle(rental, "rental")
        # Each asynchronous shell with its synchronous one, which is kept because it closes the other when collected.
        self._shells: list[tuple[AsyncShell, Shell]] = []
        # Keep the client, because it deletes the rental and would be closed when collected.
        self._client = client
        self._owner: object = None

    @property
    def _async(self) -> AsyncRental:
        return self._rental.value

    @property
    def name(self) -> str:
        """The name of the container, and of the rental in the state file.

        Raises:
            ClientStateError: the rental was not entered yet.
        """
        return self._async.name

    @property
    def ended(self) -> bool:
        """True if the rental is over: it was left, its time or its budget is up, or its container is known to be gone."""
        return self._async.ended

    @property
    def container(self) -> Container:
        """The container, as it was at the login.

        Raises:
            ClientStateError: the rental was not entered yet.
        """
        return self._async.container

    @property
    def label(self) -> str | None:
        """The label that the rental was made with; None if it has none.

        Raises:
            ClientStateError: the rental was not entered yet.
        """
        return self._async.label

    @property
    def machine(self) -> Machine:
        """The machine, as it was listed; for an attached rental, only its node, GPU and region are known.

        Raises:
            ClientStateError: the rental was not entered yet.
        """
        return self._async.machine

    @property
    def hourly_price(self) -> Decimal | None:
        """The price of an hour, by the listed price of the machine; None if that could not be read.

        Raises:
            ClientStateError: the rental was not entered yet.
        """
        return self._async.hourly_price

    @property
    def expires_at(self) -> datetime | None:
        """The latest time at which the rental is deleted, by its time and budget, in UTC; None for a rental that is kept.

        Raises:
            ClientStateError: the rental was not entered yet.
        """
        return self._async.expires_at

    @property
    def max_cost(self) -> Decimal | None:
        """The most that the rental can cost until `expires_at`, by the listed price, machines that did not start included.

        It is None if the price could not be read, and for a rental that is kept. This process enforces it. If it is killed
        and no other reaps, only `rentals.reap(by_name=True)` ends the rental, at its ceiling (`max_cost_at_ceiling`).

        Raises:
            ClientStateError: the rental was not entered yet.
        """
        return self._async.max_cost

    @property
    def max_cost_at_ceiling(self) -> Decimal | None:
        """The most that it can cost if only `rentals.reap(by_name=True)` is left to end it; None as for `max_cost`.

        Raises:
            ClientStateError: the rental was not entered yet.
        """
        return self._async.max_cost_at_ceiling

    @property
    def spent(self) -> Decimal | None:
        """The estimated cost so far, by listed price and time; None if the price could not be read.

        The cost of machines that did not start is included. The service has no call that returns what a container costs.

        Raises:
            ClientStateError: the rental was not entered yet.
        """
        return self._async.spent

    @property
    def shell(self) -> Shell:
        """The shell on the container, for what `run` does not do. If its connection was lost, `run` opens another shell.

        Raises:
            RentalEndedError: the rental is over, and not because it was left.
            ClientStateError: the rental was not entered yet, was left, or was detached.
        """
        found = self._async.shell
        if all(known is not found for known, _ in self._shells):
            self._shells.append((found, Shell(found, self._client)))
        # Search again, because another thread or a signal handler may have added a shell first; all callers get that shell.
        return next(shell for known, shell in self._shells if known is found)

    run: Final = sync_method(AsyncRental.run)
    pipe: Final = sync_method(AsyncRental.pipe, check=_check_streams)
    start: Final = sync_opener(AsyncRental.start, Job)
    jobs: Final = sync_opener(AsyncRental.jobs, _jobs)
    job: Final = sync_opener(AsyncRental.job, Job)
    forward: Final = sync_opener(AsyncRental.forward, Forward)
    reverse_forward: Final = sync_opener(AsyncRental.reverse_forward, Forward)
    detach: Final = sync_method(AsyncRental.detach)
    extend: Final = sync_method(AsyncRental.extend)

    def close(self) -> None:
        """Delete the rental, as leaving the block does. A second call does nothing.

        Raises:
            ReleaseError: the container could not be deleted, and stays on record.
            ClientStateError: this is the thread of the client's own event loop.
        """
        super().close()

    def open(self) -> Self:
        """Rent the machine without a block, as in a notebook, and return this rental; `close` deletes it.

        When its time or its budget is up, the rental is deleted.
        The next use of it raises `RentalExpiredError` or `BudgetExceededError`.
        A rental that is not closed is deleted when it is collected, its client is closed or the program exits.

        Raises:
            RentGPUError: as on entering the block.
        """
        return self._enter(AsyncRental.open)

    def _note_what_is_kept(self, error: BaseException) -> None:
        rental = self._async
        with suppress(ClientStateError):
            if rental.expires_at is None:
                error.add_note(
                    f"{rental.name}, container {rental.container.id}, was rented with keep=True; it may still run"
                )

    def __repr__(self) -> str:
        return repr(self._async).replace("AsyncRental", "Rental")

    def __reduce__(self) -> Any:
        raise TypeError(
            "a rental belongs to its process and cannot be pickled; detach it, and attach to its record elsewhere"
        )

"""What a synchronous program opens and closes: `Shell` and `Rental`. No logic: that is the asynchronous side's."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from itertools import count
from types import TracebackType
from typing import Any, Final, Self

from netmind_rentgpu.client import AsyncRentGPU
from netmind_rentgpu.errors import ClientStateError, ReleaseError, RentGPUError
from netmind_rentgpu.models import Container, Machine
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.ssh.shell import AsyncShell
from netmind_rentgpu.sync.portal import OwnedHandle, call
from netmind_rentgpu.sync.wrappers import sync_iterator, sync_method

__all__ = ["Rental", "Shell"]


class Shell:
    """A shell on a container: `with gpu.ssh(container) as shell: ...`.

    One connection carries all, and is kept alive. A connection that is lost is not made again: whatever ran may have ended
    or not, so that is said. Several threads may use it at once; more than eight commands wait for their turn.
    """

    def __init__(self, shell: AsyncShell, client: OwnedHandle[AsyncRentGPU]) -> None:
        self._shell = OwnedHandle(shell, "shell")
        # By which the shell is opened: not to be collected, and so closed, before.
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
        """Its connection was lost: nothing more can be done with it."""
        return self._async.lost

    @property
    def closed(self) -> bool:
        """It was closed: nothing more can be done with it."""
        return self._shell.closed or self._async.closed

    run: Final = sync_method(AsyncShell.run)
    stream: Final = sync_iterator(AsyncShell.stream)
    upload: Final = sync_method(AsyncShell.upload)
    download: Final = sync_method(AsyncShell.download)
    forward: Final = sync_method(AsyncShell.forward)
    reverse_forward: Final = sync_method(AsyncShell.reverse_forward)
    interact: Final = sync_method(AsyncShell.interact)

    def close(self) -> None:
        """End what still runs, and close the connection. Closing twice is closing once.

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


class Rental:
    """A rented machine: `with gpu.rent(...) as rental: ...`. It is deleted when the block is left, however that is.

    It is rented when the block is entered, and usable then: its SSH server has let us in. Several threads may use it. When
    its time is up, or its budget spent, it is deleted whatever the block does, and every later use of it raises
    `RentalExpiredError` or `BudgetExceededError`, as leaving the block does. One that is never left is deleted when it is
    collected or the interpreter exits.
    """

    def __init__(self, rental: AsyncRental, client: OwnedHandle[AsyncRentGPU]) -> None:
        self._rental = OwnedHandle(rental, "rental")
        # All of them, each with what is behind it: one that is collected closes that.
        self._shells: list[tuple[AsyncShell, Shell]] = []
        self._entries = count()
        # By which it is deleted: not to be collected, and so closed, before.
        self._client = client

    @property
    def _async(self) -> AsyncRental:
        return self._rental.value

    @property
    def name(self) -> str:
        """The container's name, which is the rental's in the state file, too.

        Raises:
            ClientStateError: it was not entered yet.
        """
        return self._async.name

    @property
    def container(self) -> Container:
        """The container, as it was when it let us in.

        Raises:
            ClientStateError: it was not entered yet.
        """
        return self._async.container

    @property
    def machine(self) -> Machine:
        """The machine, as it was listed; of one that was attached to, only its `node_name` is known.

        Raises:
            ClientStateError: it was not entered yet.
        """
        return self._async.machine

    @property
    def hourly_price(self) -> Decimal | None:
        """What an hour costs, by the price that the machine was listed with; None where that could not be read.

        Raises:
            ClientStateError: it was not entered yet.
        """
        return self._async.hourly_price

    @property
    def expires_at(self) -> datetime | None:
        """When it is deleted at the latest, as its time or its budget allows; None for what is to be kept.

        Raises:
            ClientStateError: it was not entered yet.
        """
        return self._async.expires_at

    @property
    def spent(self) -> Decimal | None:
        """About what it has cost until now, by its listed price and its time; None where the price could not be read.

        The machines that did not start for it are included. The service has no call that tells what a container costs.

        Raises:
            ClientStateError: it was not entered yet.
        """
        return self._async.spent

    @property
    def shell(self) -> Shell:
        """The shell on its container, for what `run` does not do. Where its connection was lost, `run` makes another.

        Raises:
            RentalEndedError: the rental is over, and not because it was left.
            ClientStateError: it was not entered yet, was left, or was detached.
        """
        found = self._async.shell
        if all(known is not found for known, _ in self._shells):
            self._shells.append((found, Shell(found, self._client)))
        # Another thread, or a signal's handler, may have been first: all are given that one's.
        return next(shell for known, shell in self._shells if known is found)

    run: Final = sync_method(AsyncRental.run)
    detach: Final = sync_method(AsyncRental.detach)

    def close(self) -> None:
        """Delete it, as leaving the block does. Closing twice is closing once.

        Raises:
            ReleaseError: it could not be deleted, and stays on record.
            ClientStateError: this is the thread of the client's own event loop.
        """
        call(self._async.close)

    def __enter__(self) -> Self:
        rental, is_first = self._async, False
        try:
            is_first = next(self._entries) == 0
            call(rental.__aenter__)
        except BaseException as error:
            if not is_first:
                # It is somebody else's, who may be using it.
                raise
            # It may have been entered when the interrupt came.
            with suppress(ClientStateError):
                if rental.expires_at is None:
                    error.add_note(f"{rental.name}, container {rental.container.id}, was to be kept, and may have been")
            self._close_after(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            call(self._async.__aexit__, kind, error, traceback)
        except BaseException as raised:
            # The interrupt may have come before leaving was begun.
            self._close_after(raised)
            raise

    def _close_after(self, error: BaseException) -> None:
        """See that it is deleted after what may have been an interrupt, which is told if it is not."""
        try:
            self.close()
        except RentGPUError as problem:
            told = problem is error or str(problem) in getattr(error, "__notes__", ())
            if isinstance(problem, ReleaseError) and not told:
                error.add_note(str(problem))

    def __repr__(self) -> str:
        return repr(self._async).replace("AsyncRental", "Rental")

    def __reduce__(self) -> Any:
        raise TypeError(
            "a rental is its process's own and cannot be pickled; rentals.attach takes one that was detached"
        )

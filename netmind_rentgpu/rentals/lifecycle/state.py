"""Whether a rental can be used, and what to tell whoever may not."""

from __future__ import annotations

import asyncio
import os

from netmind_rentgpu.concurrency.running_loop import running_loop
from netmind_rentgpu.errors import ClientStateError, RentalEndedError
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionedRental

__all__ = ["RentalState"]


class RentalState:
    """Where a rental stands.

    Attributes:
        provisioned: what the rental has on the service; None before that.
        over: why whoever has it is done with it, as "it was left"; empty before.
        cause: by which error its end is told, where that came by itself.
    """

    def __init__(self) -> None:
        self.provisioned: ProvisionedRental | None = None
        self.over: str = ""
        self.cause: tuple[type[RentalEndedError], str] | None = None
        self._process: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def check_new(self) -> None:
        """Raise ClientStateError if it was entered before, or is over."""
        if self.over:
            raise self.unusable()
        if self._loop is not None:
            raise ClientStateError("a rental is entered once; make another")

    def enter(self) -> None:
        """Take in that it is entered, here and now."""
        self._process, self._loop = os.getpid(), running_loop()

    @property
    def is_entered_here(self) -> bool:
        """It was entered in this process. What a forked child inherits is its parent's."""
        return self._process == os.getpid()

    def check_loop(self) -> None:
        """Raise ClientStateError if it was entered in this process, but in another event loop."""
        if self.is_entered_here and self._loop is not running_loop():
            raise ClientStateError("this rental was entered in another event loop, to which it belongs")

    @property
    def had(self) -> ProvisionedRental:
        """What it has, or had.

        Raises:
            ClientStateError: it had nothing yet.
        """
        if self.provisioned is None:
            raise self.unusable()
        return self.provisioned

    def check(self) -> ProvisionedRental:
        """Return what it has.

        Raises:
            RentalEndedError: it is over, and not because it was left.
            ClientStateError: it was not entered yet, was left, or was detached, or belongs to another process.
        """
        if self._process not in (None, os.getpid()):
            raise ClientStateError("this rental belongs to another process, from which this one was forked")
        if self.cause is not None:
            raise self.ended()
        if self.over:
            raise self.unusable()
        return self.had

    def unusable(self) -> ClientStateError:
        """Return an error that says why it cannot be used."""
        return ClientStateError(
            f"this rental cannot be used: {self.over or 'it is not entered yet, which its `with` block does'}"
        )

    def ended(self) -> RentalEndedError:
        """Return an error that says why it has ended by itself."""
        kind, text = self.cause or (RentalEndedError, "this rental is over")
        record = self.had.record
        return kind(text, name=record.name, container_id=record.container_id)

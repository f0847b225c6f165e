"""`client.rentals`: what was rented, whichever process did that."""

from __future__ import annotations

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import (
    InvalidArgumentError,
    NoMachineError,
    NotFoundError,
    RentalEndedError,
    RentGPUError,
)
from netmind_rentgpu.models import Machine
from netmind_rentgpu.rentals.context import RentalContext, is_held_here
from netmind_rentgpu.rentals.ledger.clocks import read_clocks
from netmind_rentgpu.rentals.ledger.container_index import still_belongs_to
from netmind_rentgpu.rentals.ledger.process_identity import this_process
from netmind_rentgpu.rentals.ledger.records import ReapReport, RentalRecord
from netmind_rentgpu.rentals.lifecycle.account_proof import join_proven_accounts
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionedRental
from netmind_rentgpu.rentals.lifecycle.provisioner import Provisioner
from netmind_rentgpu.rentals.lifecycle.reaper import reap, reap_by_name
from netmind_rentgpu.rentals.lifecycle.starting import FailedStarts, StartLimits
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.waiting.waits import checked_timeout

__all__ = ["AsyncRentals"]


class AsyncRentals:
    """`client.rentals`: what the state file knows to be rented by this account, whichever process did that."""

    def __init__(self, context: RentalContext) -> None:
        self._context = context

    async def list(self) -> list[RentalRecord]:
        """Return what the state file knows to be rented, or that may be, the oldest first. The service is not asked.

        Raises:
            StateFileError: the state file cannot be used.
        """
        return await self._context.ledger.list_open()

    async def reap(self, *, wait: bool = False, by_name: bool = False) -> ReapReport:
        """Delete what was rented and nobody alive owns: its process is provably dead, or its time is up.

        To be run by whoever comes next: a cron job, the next start of a program. The first `rent` of a client does it, too.
        A process is known to be dead only on its own machine; elsewhere its rentals are left until their time is up.

        What was rented with another token is reaped, too, if the service shows that both are one account's: by the auth of
        those rentals, or by a container of a recorded name. What may be another account's is left alone.

        Args:
            wait: look for what is in doubt until it is certain that it will not turn up: up to `create_lag` and `list_lag`
                of the profile, and where a process was killed in the midst of a create its longest time as well.
            by_name: go by the containers' names alone, without the state file: what has a name of ours whose expiry has
                passed is deleted, whoever made it.

        Returns:
            What was deleted, what is in doubt, what could not be deleted, and what may be another account's.

        Raises:
            AuthenticationError: the service refuses the token.
            StateFileError: the state file cannot be used (not with `by_name`).
            RentGPUError: with `by_name`, the list of containers could not be read; one strange item is among what failed.
        """
        return await (reap_by_name(self._context) if by_name else reap(self._context, wait=wait))

    def attach(self, rental: RentalRecord | str, *, timeout: float = 600) -> AsyncRental:
        """Return a rental that was detached, to be entered by `async with`: it is deleted when that block is left.

        If it cannot be entered, it stays detached.

        Args:
            rental: what `detach` or `list` returned, or its name.
            timeout: seconds in which it has to let us in.

        Raises:
            InvalidArgumentError: an argument that cannot be used; when it is entered, there is no such detached rental, or
                no longer.
            RentalEndedError: when it is entered, its container is gone.
            StateFileError: when it is entered, the state file cannot be used.
            RentGPUError: when it is entered, any other of the client's errors.
        """
        name = rental.name if isinstance(rental, RentalRecord) else arguments.text("rental", rental)

        seconds = checked_timeout(timeout)
        limits = StartLimits(total=seconds, each=seconds)
        return AsyncRental(self._context, _Detached(self._context, name), limits=limits)


class _Detached:
    """The machine of a rental that was detached.

    Attributes:
        failed, has_others: none, and no.
    """

    def __init__(self, context: RentalContext, name: str) -> None:
        self._context = context
        self._name = name
        self.failed: FailedStarts = FailedStarts()
        self.has_others: bool = False

    async def remember_failure(self, provisioned: ProvisionedRental) -> None:
        """Do nothing, because it has started long ago."""

    def remember_success(self, provisioned: ProvisionedRental) -> None:
        """Do nothing, as above."""

    async def error_if_enough(self) -> NoMachineError | None:
        """Return None: no other machine is ever tried."""
        return None

    async def provision(self, provisioner: Provisioner) -> ProvisionedRental:
        """Take it over."""
        context, name = self._context, self._name
        if is_held_here(name):
            raise InvalidArgumentError("rental", f"{name} is in use in this process")
        # Before it is ours on record, or a reaper of this process would take it for nobody's.
        provisioner.begin_attach(name)
        try:
            record = await self._claim()
        except RentGPUError:
            provisioner.disown(name)
            raise
        if record.container_id is None:
            provisioner.disown(name)
            raise InvalidArgumentError("rental", f"no container of {name} is known")
        provisioner.adopt(record)
        try:
            container = await context.containers.get(record.container_id)
        except NotFoundError as error:
            if not await context.container_index.is_unlisted(record.container_id):
                raise
            raise _gone(record) from error
        if still_belongs_to(record, container) is False:
            raise _gone(record)
        return ProvisionedRental(record=record, container=container, machine=Machine(node_name=record.node_name))

    async def _claim(self) -> RentalRecord:
        """Make this process its owner."""
        ledger, name = self._context.ledger, self._name
        record = await ledger.claim_detached(name, this_process(), read_clocks())
        if record is not None:
            return record
        # It may have been rented with another token of this account.
        unproven = await join_proven_accounts(self._context, is_wanted=lambda other: other.name == name)
        record = await ledger.claim_detached(name, this_process(), read_clocks())
        if record is not None:
            return record
        for each in unproven:
            if each.wanted and each.error is not None:
                raise each.error
            if each.wanted:
                problem = f"{name} is on record for another token, which is not proven to be this account's"
                raise InvalidArgumentError("rental", problem)
        raise InvalidArgumentError("rental", f"no rental called {name} is detached, or its time is up")


def _gone(record: RentalRecord) -> RentalEndedError:
    """Say that a container is gone. Its record stays: whoever says so may be wrong, which `reap` finds out."""
    text = f"the container of {record.name}, {record.container_id}, is gone"
    return RentalEndedError(text, name=record.name, container_id=record.container_id)

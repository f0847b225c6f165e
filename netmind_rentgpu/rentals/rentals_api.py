"""`client.rentals`: the account's rentals on record, of all processes."""

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
    """`client.rentals`: this account's rentals on record in the state file, of all processes."""

    def __init__(self, context: RentalContext) -> None:
        self._context = context

    async def list(self) -> list[RentalRecord]:
        """Return the records of all open rentals, and of creates that may have left a container, the oldest first.

        The records come from the state file; the service is not asked.

        Raises:
            StateFileError: the state file cannot be used.
        """
        return await self._context.ledger.list_open()

    async def reap(self, *, wait: bool = False, by_name: bool = False) -> ReapReport:
        """Delete each rental whose process is provably dead, whose time is up, or whose deletion has failed before.

        Run this from a cron job, or when a program starts; the first `rent` of a client does so, too. A process can only be
        proven dead on its own machine. On other machines its rentals are left alone until their time is up.

        Rentals made with another token are reaped, too, if the service shows that both tokens are one account's: by the auth
        of those rentals, or by a container with a recorded name. Rentals that may be another account's are left alone.

        Args:
            wait: True to search for doubtful containers until none can turn up any longer: for up to `create_lag` and
                `list_lag` of the profile, and for a create's longest time if its process was killed during the create.
            by_name: True to decide by the containers' names alone, without the state file. A container is deleted if its
                name has the form of a rental's and holds an expiry that has passed, no matter which process created it.

        Returns:
            The deleted containers, the doubtful records, the failures, and the records that may be another account's.

        Raises:
            AuthenticationError: the service refuses the token.
            StateFileError: the state file cannot be used (not with `by_name`).
            RentGPUError: with `by_name`, the list of containers could not be read. A single unreadable item is a failure in
                the report instead.
        """
        return await (reap_by_name(self._context) if by_name else reap(self._context, wait=wait))

    def attach(self, rental: RentalRecord | str, *, timeout: float = 600) -> AsyncRental:
        """Return a detached rental, to be entered by `async with`; leaving that block deletes the rental.

        If entering fails, the rental stays detached.

        Args:
            rental: a record that `detach` or `list` returned, or its name.
            timeout: the seconds within which the login has to work.

        Raises:
            InvalidArgumentError: an argument cannot be used; on entering, no such rental is detached, or it has expired.
            RentalEndedError: on entering, the container is gone.
            StateFileError: on entering, the state file cannot be used.
            RentGPUError: on entering, any other of the client's errors.
        """
        name = rental.name if isinstance(rental, RentalRecord) else arguments.text("rental", rental)

        seconds = checked_timeout(timeout)
        limits = StartLimits(total=seconds, each=seconds)
        return AsyncRental(self._context, _Detached(self._context, name), limits=limits)


class _Detached:
    """The source of a detached rental's machine.

    Attributes:
        failed: no machines.
        has_others: False, because a detached rental has only one machine.
    """

    def __init__(self, context: RentalContext, name: str) -> None:
        self._context = context
        self._name = name
        self.failed: FailedStarts = FailedStarts()
        self.has_others: bool = False

    async def remember_failure(self, provisioned: ProvisionedRental) -> None:
        """Do nothing, because the machine has started before."""

    def remember_success(self, provisioned: ProvisionedRental) -> None:
        """Do nothing, because the start is on record already."""

    async def error_if_enough(self) -> NoMachineError | None:
        """Return None, because no other machine is ever tried."""
        return None

    async def provision(self, provisioner: Provisioner) -> ProvisionedRental:
        """Claim the detached rental for this process, and fetch its container."""
        context, name = self._context, self._name
        if is_held_here(name):
            raise InvalidArgumentError("rental", f"{name} is in use in this process")
        # Before the claim, because a reaper of this process deletes rentals that the process owns and does not track.
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
        """Make this process the owner of the rental."""
        ledger, name = self._context.ledger, self._name
        record = await ledger.claim_detached(name, this_process(), self._context.clock())
        if record is not None:
            return record
        # The rental may be on record for another token of this account.
        unproven = await join_proven_accounts(self._context, is_wanted=lambda other: other.name == name)
        record = await ledger.claim_detached(name, this_process(), self._context.clock())
        if record is not None:
            return record
        for account in unproven:
            if account.wanted and account.error is not None:
                raise account.error
            if account.wanted:
                problem = f"{name} is on record for another token, which nothing proves to be this account's"
                raise InvalidArgumentError("rental", f"{problem}; attach with that token")
        raise InvalidArgumentError("rental", f"no rental called {name} is detached, or it has expired")


def _gone(record: RentalRecord) -> RentalEndedError:
    """Return the error for a container that is gone. Its record stays for `reap`, because the service may be wrong."""
    text = f"the container of {record.name}, {record.container_id}, is gone"
    return RentalEndedError(text, name=record.name, container_id=record.container_id)

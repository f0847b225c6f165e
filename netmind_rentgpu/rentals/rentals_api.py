"""`client.rentals`: the account's rentals on record, of all processes."""

from __future__ import annotations

import builtins
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import (
    InvalidArgumentError,
    NoMachineError,
    NotFoundError,
    RentalEndedError,
    RentalExpiredError,
    RentGPUError,
)
from netmind_rentgpu.models import Machine
from netmind_rentgpu.rentals.context import RentalContext, is_held_here
from netmind_rentgpu.rentals.ledger.container_index import still_belongs_to
from netmind_rentgpu.rentals.ledger.deadlines import checked_extension
from netmind_rentgpu.rentals.ledger.past_rentals import PastRental, Period, SpendingReport, report
from netmind_rentgpu.rentals.ledger.process_identity import (
    Liveness,
    ProcessIdentity,
    liveness_of,
    look_up_process,
    this_process,
)
from netmind_rentgpu.rentals.ledger.records import ReapReport, RentalRecord
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionedRental
from netmind_rentgpu.rentals.lifecycle.events import EventOptions, OnRentalEvent, RentalEvents
from netmind_rentgpu.rentals.lifecycle.finding import check_wanted, enforced, find_record, in_use_error
from netmind_rentgpu.rentals.lifecycle.provisioner import Provisioner
from netmind_rentgpu.rentals.lifecycle.reaper import reap, reap_by_name, release
from netmind_rentgpu.rentals.lifecycle.starting import FailedStarts, StartLimits
from netmind_rentgpu.rentals.rental import AsyncRental
from netmind_rentgpu.tables import Table
from netmind_rentgpu.waiting.waits import checked_timeout

__all__ = ["AsyncRentals"]


class AsyncRentals:
    """`client.rentals`: this account's rentals on record in the state file, of all processes."""

    def __init__(self, context: RentalContext) -> None:
        self._context = context

    async def list(self) -> list[RentalRecord]:
        """Return the records of all open rentals, and of creates that may have left a container, the oldest first.

        The records come from the state file; the service is not asked. A create that the service has refused is not listed.

        Raises:
            StateFileError: the state file cannot be used.
        """
        return Table(enforced(record) for record in await self._context.ledger.list_open() if record.may_be_rented)

    async def get(self, rental: RentalRecord | str | int) -> RentalRecord:
        """Return the record of one open rental, as it is on file now.

        Args:
            rental: a record, a name, an unambiguous part of a name, a label, or the id of a container.

        Raises:
            RentalNotFoundError: no such rental is on record.
            InvalidArgumentError: several rentals match; the error lists them.
            StateFileError: the state file cannot be used.
            RentGPUError: the record is another token's, and the service could not be asked whether that is this account's.
        """
        return enforced(await find_record(self._context, rental))

    async def release(self, rental: RentalRecord | str | int, *, force: bool = False) -> None:
        """Delete the container of one rental now, by its record alone: this needs no login.

        Args:
            rental: as for `get`.
            force: True to delete it although a living process may use it. That process gets a `RentalEndedError` at its next
                use of the rental.

        Raises:
            RentalNotFoundError: no such rental is on record.
            RentalInUseError: a living process uses the rental, or one of another machine may use it; with `force`, a process
                that may live may still create the rental's container.
            ReleaseError: the container could not be deleted, or was not found and may still turn up; it stays on record, for
                `reap`.
            InvalidArgumentError: several rentals match; the error lists them.
            StateFileError: the state file cannot be used.
            RentGPUError: as for `get`.
        """
        await release(self._context, await find_record(self._context, rental), force=force)

    async def extend(
        self,
        rental: RentalRecord | str | int,
        *,
        ttl: timedelta | None = None,
        until: datetime | None = None,
        budget: Decimal | float | None = None,
    ) -> RentalRecord:
        """Move the deadline of a rental, also of a detached one, from any process; it never becomes earlier.

        The rental's own process goes by the new deadline, because it reads the state file before it deletes.

        Args:
            rental: as for `get`.
            ttl: the time from now on, for which the container may run.
            until: the moment until which it may run, with a time zone; instead of `ttl`.
            budget: the new total of what the rental may cost, what it has cost so far included.

        Returns:
            The record as it is on file then.

        Raises:
            RentalNotFoundError: no such rental is on record.
            RentalEndedError: the rental is over, or its process is dead.
            RentalInUseError: it is still being started, and may yet begin again on another machine.
            InvalidArgumentError: an argument cannot be used, would end the rental earlier than before, or later than the
                `extendable_to` that it was rented with; or several rentals match.
            StateFileError: the state file cannot be used.
            RentGPUError: as for `get`.
        """
        wanted = checked_extension(ttl=ttl, until=until, budget=budget)
        record = await find_record(self._context, rental)
        owner = record.owner
        if owner is not None and liveness_of(owner, this_process(), look_up_process) is Liveness.DEAD:
            text = f"could not extend rental {record.name}: its process is dead, so the next reap deletes it"
            raise RentalEndedError(text, name=record.name, container_id=record.container_id)
        if record.stage in ("intended", "created"):
            raise in_use_error(record, "it is still being started; extend it once it is ready")
        extended = await self._context.ledger.extend(record.name, wanted, self._context.clock())
        RentalEvents(self._context, EventOptions()).emit("extended", extended)
        return enforced(extended)

    async def history(
        self, *, since: datetime | None = None, until: datetime | None = None, label: str | None = None
    ) -> builtins.list[PastRental]:
        """Return the rentals that are over and ran in a period, in the order of their ends.

        Rentals with a container are kept in the state file for as long as the client's `keep_history` says. A create that
        the service has refused is no rental. Rentals of another token are listed once `rent` or `reap` has proven that it is
        this account's.

        Args:
            since, until: the period, with a time zone; None for no such end.
            label: the label that the rentals must have; None for all.

        Raises:
            InvalidArgumentError: an argument cannot be used.
            StateFileError: the state file cannot be used.
        """
        wanted = None if label is None else arguments.label(label)
        return Table(await self._context.ledger.list_past(_period(since, until), wanted))

    async def spent(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        by: Literal["label", "gpu", "day"] = "label",
    ) -> SpendingReport:
        """Return what this account's rentals have cost in a period, by listed price and time.

        Open rentals count until now. The state file alone is read, so that rentals of other machines, those older than the
        client's `keep_history`, and those of another token that is not proven to be this account's are not counted. The
        service has no call that returns what it has charged.

        Args:
            since, until: the period, with a time zone; None for no such end.
            by: what the lines of the report group by; days are those of UTC.

        Raises:
            InvalidArgumentError: an argument cannot be used.
            StateFileError: the state file cannot be used.
        """
        if by not in ("label", "gpu", "day"):
            raise InvalidArgumentError("by", f"must be label, gpu or day, not {arguments.shown_value(by)}")
        period = _period(since, until)
        return report(await self._context.ledger.shares(period, by, self._context.clock()), by, period)

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

    def attach(
        self,
        rental: RentalRecord | str | int,
        *,
        timeout: float = 600,
        notice: timedelta | None = timedelta(minutes=5),
        on_event: OnRentalEvent | None = None,
    ) -> AsyncRental:
        """Return a detached rental, to be entered by `async with`; leaving that block deletes the rental.

        If entering fails, the rental stays detached.

        Args:
            rental: as for `get`.
            timeout: the seconds within which the login has to work.
            notice, on_event: as for `rent`.

        Raises:
            InvalidArgumentError: an argument cannot be used; on entering, several rentals match.
            RentalNotFoundError: on entering, no such rental is on record.
            RentalInUseError: on entering, the rental is not detached, but some process uses it, this one included.
            RentalExpiredError: on entering, its time is up.
            RentalEndedError: on entering, it is over, or its container is gone.
            StateFileError: on entering, the state file cannot be used.
            RentGPUError: on entering, any other of the client's errors.
        """
        wanted, seconds = check_wanted(rental), checked_timeout(timeout)
        limits = StartLimits(total=seconds, each=seconds)
        events = EventOptions(notice=notice, on_event=on_event)
        return AsyncRental(self._context, _Detached(self._context, wanted), limits=limits, events=events)


class _Detached:
    """The source of a detached rental's machine.

    Attributes:
        failed: no machines.
        label, until: None, because they are in the record.
        has_others: False, because a detached rental has only one machine.
    """

    def __init__(self, context: RentalContext, wanted: str | int) -> None:
        self._context = context
        self._wanted = wanted
        self.failed: FailedStarts = FailedStarts()
        self.label: str | None = None
        self.until: datetime | None = None
        self.has_others: bool = False

    async def remember_failure(self, provisioned: ProvisionedRental) -> None:
        """Do nothing, because the machine has started before."""

    def remember_success(self, provisioned: ProvisionedRental) -> None:
        """Do nothing, because the start is on record already."""

    async def wait_for_stock(self, error: NoMachineError) -> None:
        """Raise the error, because a detached rental has a machine."""
        raise error

    async def why_no_other(self) -> str | None:
        """Return None, because no other machine is ever tried."""
        return None

    async def provision(self, provisioner: Provisioner) -> ProvisionedRental:
        """Claim the detached rental for this process, and fetch its container."""
        context = self._context
        on_file = await find_record(context, self._wanted)
        name = on_file.name
        if is_held_here(name):
            raise in_use_error(on_file, "this process uses it")
        guardian = await context.guard(on_file)
        # Before the claim, because a reaper of this process deletes rentals that the process owns and does not track.
        provisioner.begin_attach(name)
        try:
            record = await self._claim(name, guardian)
        except RentGPUError:
            provisioner.disown(name)
            raise
        if record.container_id is None:
            provisioner.disown(name)
            raise RentalEndedError(f"no container of rental {name} is known", name=name, container_id=None)
        provisioner.adopt(record)
        try:
            container = await context.containers.get(record.container_id)
        except NotFoundError as error:
            if not await context.container_index.is_unlisted(record.container_id):
                raise
            raise _gone(record) from error
        if still_belongs_to(record, container) is False:
            raise _gone(record)
        machine = Machine(node_name=record.node_name, gpu_name=record.gpu_name, region=record.region)
        return ProvisionedRental(record=record, container=container, machine=machine)

    async def _claim(self, name: str, guardian: ProcessIdentity | None) -> RentalRecord:
        """Make this process the owner of the rental."""
        context = self._context
        claimed = await context.ledger.claim_detached(name, this_process(), context.clock(), guardian=guardian)
        if claimed is not None:
            return claimed
        record = await find_record(context, name)
        if record.has_expired(context.clock()):
            raise RentalExpiredError(
                f"the time of rental {name} is up; rentals.reap() deletes it",
                name=name,
                container_id=record.container_id,
            )
        if record.stage == "abandoned":
            raise RentalEndedError(
                f"rental {name} is over; rentals.reap() deletes it", name=name, container_id=record.container_id
            )
        if record.owner is not None and liveness_of(record.owner, this_process(), look_up_process) is Liveness.DEAD:
            why = (
                "it is not detached, and its process is dead; rentals.reap() deletes it, and until then"
                f" gpu.ssh({record.container_id}) can save its files"
            )
            raise in_use_error(record, why)
        raise in_use_error(record, "it is not detached, but belongs to a process; detach it there first")


def _period(since: datetime | None, until: datetime | None) -> Period:
    """Return a period of UTC.

    Raises:
        InvalidArgumentError: an end has no time zone, or the period ends before it begins.
    """
    ends = {
        name: None if moment is None else arguments.moment(name, moment)
        for name, moment in (("since", since), ("until", until))
    }
    period = Period(**ends)
    if period.since is not None and period.until is not None and period.until <= period.since:
        raise InvalidArgumentError("until", f"does not come after since: {arguments.shown_value(until)}")
    return period


def _gone(record: RentalRecord) -> RentalEndedError:
    """Return the error for a container that is gone. Its record stays for `reap`, because the service may be wrong."""
    text = f"the container of {record.name}, {record.container_id}, is gone"
    return RentalEndedError(text, name=record.name, container_id=record.container_id)

"""The machine that a user means: by a rental's name or a part of it, a label, or a container's id; or the only one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.errors import RentalNotFoundError

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.rentals.ledger.records import RentalRecord

__all__ = ["Target", "find_record", "find_target"]


@attrs.frozen
class Target:
    """A machine to log in to.

    Attributes:
        container_id: its container's id.
        record: its record; None for a container that no rental on record has.
    """

    container_id: int
    record: RentalRecord | None = None

    @property
    def name(self) -> str:
        """The name by which messages and further commands call it."""
        return str(self.container_id) if self.record is None else self.record.name


async def find_record(gpu: AsyncRentGPU, wanted: str | None) -> RentalRecord:
    """Return the record of the rental that is meant.

    Args:
        wanted: None or an empty text for the only open one.

    Raises:
        CommandError: no rental is open, or several are and none is named.
        RentalNotFoundError: no such rental is on record.
        InvalidArgumentError: several rentals match; the error lists them.
        RentGPUError: as for `rentals.get`.
    """
    if wanted:
        return await gpu.rentals.get(wanted)
    found = await gpu.rentals.list()
    if len(found) == 1:
        return await gpu.rentals.get(found[0])
    if not found:
        raise CommandError(ExitCode.NOT_FOUND, "no rental is open", "`rentgpu rent` opens one.")
    names = ", ".join(record.name if record.label is None else f"{record.name} ({record.label})" for record in found)
    raise CommandError(ExitCode.USAGE, f"several rentals are open: {names}", "Name one of them.")


async def find_target(gpu: AsyncRentGPU, wanted: str | None) -> Target:
    """Return the machine that is meant; a number that is in no record is a container's id.

    Raises:
        CommandError: as for `find_record`, or the rental has no container yet.
        RentGPUError: as for `find_record`.
    """
    try:
        record = await find_record(gpu, wanted)
    except RentalNotFoundError:
        if wanted is not None and wanted.isdecimal():
            return Target(int(wanted))
        raise
    if record.container_id is None:
        raise CommandError(ExitCode.NO, f"{record.name} has no container that is known yet; it is {record.stage}")
    return Target(record.container_id, record)

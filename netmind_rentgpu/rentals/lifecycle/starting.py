"""Machines that do not start: whose fault that is, what it has cost, and whether another is tried."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Protocol

import attrs

from netmind_rentgpu.conditions import Condition, judged
from netmind_rentgpu.errors import (
    ContainerFailedError,
    ContainerGoneError,
    MachineRefusal,
    NoMachineError,
    RentGPUError,
    SSHError,
    WaitTimeoutError,
)
from netmind_rentgpu.models import Container
from netmind_rentgpu.rentals.ledger.container_index import still_belongs_to
from netmind_rentgpu.rentals.ledger.records import RentalRecord
from netmind_rentgpu.rentals.lifecycle.attempt import ProvisionedRental
from netmind_rentgpu.rentals.lifecycle.provisioner import Provisioner

__all__ = ["FailedStarts", "MachineSource", "StartLimits", "failure_condition", "is_machines_fault"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_MOST_FAILED_STARTS = 3


@attrs.frozen(kw_only=True)
class StartLimits:
    """For how many seconds a rental may take until it is handed over.

    Attributes:
        total: for all of it.
        each: for one machine, from when it is created.
    """

    total: float
    each: float


def failure_condition(record: RentalRecord, fail: Condition | None) -> Condition:
    """Return a condition, called as the user's, that is met, too, by another container which has the rental's id by now."""

    def is_replaced(container: Container) -> bool:
        return still_belongs_to(record, container) is False

    if fail is None:
        return is_replaced

    def has_failed(container: Container) -> bool:
        return is_replaced(container) or judged(fail, container)

    has_failed.__name__ = getattr(fail, "__name__", None) or repr(fail)
    return has_failed


def is_machines_fault(error: RentGPUError) -> bool:
    """Return True if a container did not let us in for a reason that another machine may cure."""
    match error:
        case ContainerFailedError() | ContainerGoneError():
            return True
        case WaitTimeoutError():
            if any(map(_names_no_endpoint, error.pending.values())):
                return False
            # Without one, the container never had an endpoint. Else it is what the last login, or look, met with.
            return error.__cause__ is None or _is_of_a_server(error.__cause__)
        case SSHError():
            return _is_of_a_server(error)
        case _:
            return False


def _is_of_a_server(error: BaseException) -> bool:
    """Return True where no server answered, or a wrong one; a refused password would be refused elsewhere, too."""
    return isinstance(error, SSHError) and error.stage in ("connection", "host key")


def _names_no_endpoint(container: Container | None) -> bool:
    """Return True for a container whose `ssh` is there and cannot be read: no machine's would be."""
    return container is not None and bool((container.ssh or "").strip()) and container.ssh_endpoint is None


class MachineSource(Protocol):
    """Where a rental's machine comes from.

    Attributes:
        failed: the machines that did not start.
        has_others: where one does not start, another is to be had.
    """

    failed: FailedStarts
    has_others: bool

    async def provision(self, provisioner: Provisioner) -> ProvisionedRental:
        """Have a machine, one that did not fail before."""
        ...

    async def remember_failure(self, provisioned: ProvisionedRental) -> None:
        """Let other rentals know that a machine did not start."""
        ...

    def remember_success(self, provisioned: ProvisionedRental) -> None:
        """Let other rentals know that a machine has started. Nobody waits for that."""
        ...

    async def error_if_enough(self) -> NoMachineError | None:
        """Return the error to raise where no other machine is to be tried."""
        ...


class FailedStarts:
    """The machines that did not start for one rental; each of their containers was deleted.

    Attributes:
        cost: what they have cost, by their listed prices; None where one of those is not known.
    """

    def __init__(self) -> None:
        self.cost: Decimal | None = Decimal(0)
        self._by_node: dict[str, MachineRefusal] = {}

    def __bool__(self) -> bool:
        return bool(self._by_node)

    @property
    def by_node(self) -> dict[str, MachineRefusal]:
        """Why each machine did not start."""
        return dict(self._by_node)

    def add(self, provisioned: ProvisionedRental, error: RentGPUError, cost: Decimal | None) -> None:
        """Take in that a machine did not start, and that its container was deleted."""
        refusal = MachineRefusal(machine=provisioned.machine, error=error, container_id=provisioned.container.id)
        self._by_node[provisioned.machine.node_name] = refusal
        self.cost = None if self.cost is None or cost is None else self.cost + cost
        logger.warning(
            "%s on %s did not start, and was deleted: %s",
            provisioned.record.name,
            provisioned.machine.node_name,
            error,
        )

    def error_if_enough(self, *, image_fails_everywhere: bool) -> NoMachineError | None:
        """Return the error to raise where no other machine is to be tried."""
        if len(self._by_node) < _MOST_FAILED_STARTS and not image_fails_everywhere:
            return None
        blame = "; since this image first failed to start, it has started nowhere" if image_fails_everywhere else ""
        count = f"{len(self._by_node)} machine{'s' if len(self._by_node) > 1 else ''}"
        return NoMachineError(f"{count} did not start: {self}{blame}", refusals=tuple(self._by_node.values()))

    def added_to(self, error: RentGPUError) -> RentGPUError:
        """Return an error that says, too, which machines did not start before."""
        # The latter lists all machines.
        if not self._by_node or isinstance(error, NoMachineError):
            return error
        before = f"before that, these did not start: {self}"
        if isinstance(error, WaitTimeoutError):
            return WaitTimeoutError(f"{error}; {before}", arrived=error.arrived, pending=error.pending)
        error.add_note(before)
        return error

    def __str__(self) -> str:
        return "; ".join(map(str, self._by_node.values()))

"""Machines that do not start: the cause, the cost, and the decision whether another machine is tried."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Protocol

import attrs

from netmind_rentgpu.amounts import in_own_context
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

_MOST_FAILED_STARTS = 3


@attrs.frozen(kw_only=True)
class StartLimits:
    """The time limits, in seconds, for a rental to be handed over.

    Attributes:
        total: for the whole start, without the wait for stock.
        each: for one machine, counted from its create.
        stock: for machines to come in stock.
    """

    total: float
    each: float
    stock: float = 0.0


def failure_condition(record: RentalRecord, fail: Condition | None) -> Condition:
    """Return a condition that the user's `fail` meets, or another container that has the rental's id by now.

    The condition has the name of `fail`, because errors show the name.
    """

    def is_replaced(container: Container) -> bool:
        return still_belongs_to(record, container) is False

    if fail is None:
        return is_replaced

    def has_failed(container: Container) -> bool:
        return is_replaced(container) or judged(fail, container)

    has_failed.__name__ = getattr(fail, "__name__", None) or repr(fail)
    return has_failed


def is_machines_fault(error: RentGPUError) -> bool:
    """Return True if a start failed for a reason that another machine may not have."""
    match error:
        case ContainerFailedError() | ContainerGoneError():
            return True
        case WaitTimeoutError():
            if any(map(_names_no_endpoint, error.pending.values())):
                return False
            # Without a cause, the container never had an endpoint. Else the cause is the error of the last login or request.
            return error.__cause__ is None or _is_servers_fault(error.__cause__)
        case SSHError():
            return _is_servers_fault(error)
        case _:
            return False


def _is_servers_fault(error: BaseException) -> bool:
    """Return True if no server answered, or a wrong one did. Other machines would refuse a refused password, too."""
    return isinstance(error, SSHError) and error.stage in ("connection", "host key")


def _names_no_endpoint(container: Container | None) -> bool:
    """Return True if a container has an `ssh` that cannot be read, because another machine's could not be read, either."""
    return container is not None and bool((container.ssh or "").strip()) and container.ssh_endpoint is None


class MachineSource(Protocol):
    """The source of a rental's machine.

    Attributes:
        failed: the machines that did not start.
        label: the user's own name for the rental; None if it has none.
        until: the time at which the rental ends at the latest, as its fleet does, in UTC; None for its own limits alone.
        has_others: True if the source may provide another machine after a machine did not start.
    """

    failed: FailedStarts
    label: str | None
    until: datetime | None
    has_others: bool

    async def provision(self, provisioner: Provisioner) -> ProvisionedRental:
        """Provision a machine that is not in `failed`."""
        ...

    async def wait_for_stock(self, error: NoMachineError) -> None:
        """Wait until a machine may be available.

        Raises:
            NoMachineError: the given error, because it does not come from a lack of stock.
            RentGPUError: the machines cannot be listed.
        """
        ...

    async def remember_failure(self, provisioned: ProvisionedRental) -> None:
        """Record for other rentals that a machine did not start."""
        ...

    def remember_success(self, provisioned: ProvisionedRental) -> None:
        """Record for other rentals that a machine has started, without waiting for the write."""
        ...

    async def why_no_other(self) -> str | None:
        """Return why no other machine is tried after one more that did not start; None if another is."""
        ...


class FailedStarts:
    """The machines that did not start for one rental; each of their containers was deleted.

    Attributes:
        cost: the cost of these machines by their listed prices; None if a price is not known.
    """

    def __init__(self) -> None:
        self.cost: Decimal | None = Decimal(0)
        self._by_node: dict[str, MachineRefusal] = {}

    def __bool__(self) -> bool:
        return bool(self._by_node)

    @property
    def by_node(self) -> dict[str, MachineRefusal]:
        """The reason why each machine did not start, by its node."""
        return dict(self._by_node)

    @in_own_context
    def add(self, provisioned: ProvisionedRental, error: RentGPUError, cost: Decimal | None) -> None:
        """Add a machine that did not start, and whose container was deleted."""
        refusal = MachineRefusal(machine=provisioned.machine, error=error, container_id=provisioned.container.id)
        self._by_node[provisioned.machine.node_name] = refusal
        self.cost = None if self.cost is None or cost is None else self.cost + cost

    def why_no_other(self, *, image_fails_everywhere: bool) -> str | None:
        """Return why no other machine is tried after one more that did not start; None if another is."""
        if image_fails_everywhere:
            return "; within the last half hour, this image has started on no machine"
        return "" if len(self._by_node) + 1 >= _MOST_FAILED_STARTS else None

    def error(self, blame: str) -> NoMachineError:
        """Return the error to raise if no other machine is tried.

        Args:
            blame: the end of its text, as `why_no_other` returns it.
        """
        count = f"{len(self._by_node)} machine{'s' if len(self._by_node) > 1 else ''}"
        return NoMachineError(f"{count} did not start: {self}{blame}", refusals=tuple(self._by_node.values()))

    def added_to(self, error: RentGPUError) -> RentGPUError:
        """Return an error that also lists the machines that did not start before."""
        # A NoMachineError lists them already.
        if not self._by_node or isinstance(error, NoMachineError):
            return error
        before = f"before that, these machines did not start: {self}"
        if isinstance(error, WaitTimeoutError):
            return WaitTimeoutError(f"{error}; {before}", arrived=error.arrived, pending=error.pending)
        error.add_note(before)
        return error

    def __str__(self) -> str:
        return "; ".join(map(str, self._by_node.values()))

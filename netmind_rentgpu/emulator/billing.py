"""The bill: every container's running time and cost, and the creates that are still to come."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import attrs

__all__ = ["Bill", "Charge", "PendingCreate", "rented"]

_SECONDS_IN_AN_HOUR = 3600


@attrs.frozen(kw_only=True)
class Charge:
    """One container's part of the bill.

    Attributes:
        number: from 1 on, in the order in which clients asked for the containers. A reset does not restart the numbers,
            though it restarts the ids.
        account: the name of the container's account.
        container_id, name, node_name, gpu: fields of the container.
        hourly_price: the price of an hour of all its GPUs, in US dollars.
        seconds: the time from the container's creation to its deletion or to now, without pauses in its billing.
        running: True if the container has not been deleted.
        accruing: True if the container costs money now; a stopped container may not.
    """

    number: int
    account: str
    container_id: int
    name: str
    node_name: str
    gpu: int
    hourly_price: Decimal
    seconds: float
    running: bool
    accruing: bool

    @property
    def cost(self) -> Decimal:
        """The cost until now, in US dollars."""
        return self.hourly_price * Decimal(repr(self.seconds)) / _SECONDS_IN_AN_HOUR


@attrs.frozen(kw_only=True)
class PendingCreate:
    """A create that the service will still do, though the client may have disconnected.

    Attributes:
        number: the number of its later `Charge`.
        account: the name of the account that sent it.
        name, node_name, gpu, hourly_price: fields of the later container, unless the service refuses it then.
        how: the name of the fault that delays it, as in `Fault.what`.
        seconds: the delay that is left, by the emulator's clock; None for the fault `slow`, which follows real time.
    """

    number: int
    account: str
    name: str
    node_name: str
    gpu: int
    hourly_price: Decimal
    how: str
    seconds: float | None


@attrs.define(kw_only=True)
class _Entry:
    """A container's line on the bill.

    Attributes:
        began: the start of the current billing period, in seconds since 1970; None while nothing is charged.
        before: the seconds that were charged before that period.
    """

    number: int
    account: str
    container_id: int
    name: str
    node_name: str
    gpu: int
    hourly_price: Decimal
    began: float | None
    before: float = 0.0
    ended: bool = False

    def seconds(self, now: float) -> float:
        return self.before + (0.0 if self.began is None else max(0.0, now - self.began))


class Bill:
    """The bill of all accounts. `World.stop_billing` decides if a stop ends the billing, which is not documented."""

    def __init__(self) -> None:
        # All entries in the order of creation; and the newest entry of each id, because ids may be reused.
        self._all: list[_Entry] = []
        self._entries: dict[int, _Entry] = {}

    def begin(
        self,
        container_id: int,
        *,
        number: int,
        account: str,
        name: str,
        node_name: str,
        gpu: int,
        price: Decimal,
        now: float,
    ) -> None:
        """Start charging for a container.

        Args:
            price: the price of an hour of one GPU, in US dollars.
            now: seconds since 1970, by the emulator's clock.
        """
        entry = self._entries[container_id] = _Entry(
            number=number,
            account=account,
            container_id=container_id,
            name=name,
            node_name=node_name,
            gpu=gpu,
            hourly_price=price * gpu,
            began=now,
        )
        self._all.append(entry)

    def end(self, container_id: int, now: float) -> None:
        """Stop charging for a container for good, because it was deleted."""
        self.pause(container_id, now)
        self._entries[container_id].ended = True

    def pause(self, container_id: int, now: float) -> None:
        """Stop charging for a container until it is resumed."""
        entry = self._entries[container_id]
        entry.before, entry.began = entry.seconds(now), None

    def resume(self, container_id: int, now: float) -> None:
        """Resume charging for a container, if it was paused."""
        entry = self._entries[container_id]
        if entry.began is None:
            entry.began = now

    def charges(self, now: float) -> list[Charge]:
        """Return the charge of every container that ever ran, in the order of creation."""
        return [
            Charge(
                number=entry.number,
                account=entry.account,
                container_id=entry.container_id,
                name=entry.name,
                node_name=entry.node_name,
                gpu=entry.gpu,
                hourly_price=entry.hourly_price,
                # To the microsecond, because a float of seconds since 1970 is no more precise.
                seconds=round(entry.seconds(now), 6),
                running=not entry.ended,
                accruing=entry.began is not None,
            )
            for entry in self._all
        ]


def rented(charges: Sequence[Charge], pending_creates: Sequence[PendingCreate]) -> str | None:
    """Describe what is rented or will be, with its cost; None if there is nothing."""
    running = [charge for charge in charges if charge.running]
    lines: list[str] = []
    if running:
        hourly = sum((charge.hourly_price for charge in running if charge.accruing), Decimal(0))
        lines.append(f"{len(running)} still rented, for {hourly} USD an hour:")
    for charge in running:
        price = f"{charge.hourly_price} USD an hour" if charge.accruing else "nothing as long as it is stopped"
        lines.append(
            f"  {_printable(charge.name)} (container {charge.container_id}): {charge.gpu} GPU on {charge.node_name}, "
            f"{price}, {charge.cost:.6f} USD in {charge.seconds:.1f} s"
        )
    if pending_creates:
        hourly = sum((create.hourly_price for create in pending_creates), Decimal(0))
        lines.append(f"{len(pending_creates)} still to be rented, for {hourly} USD an hour:")
    for create in pending_creates:
        when = "" if create.seconds is None else f" in {create.seconds:.1f} s"
        lines.append(
            f"  {_printable(create.name)}: {create.gpu} GPU on {create.node_name}, {create.hourly_price} USD an hour, "
            f"by '{create.how}'{when}"
        )
    return "\n".join(lines) or None


def _printable(name: str) -> str:
    """Escape the characters of a name that could control a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in name
    )

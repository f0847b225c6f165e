"""What ran, for how long, at what price, and what still runs."""

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
        number: from 1 on, in the order in which containers were asked for; it goes on after a reset, where ids begin again.
        account: whose it is.
        container_id, name, node_name, gpu: of the container.
        hourly_price: US dollars for an hour of all its GPUs.
        seconds: from its creation to its deletion, or until now, without the time in which it cost nothing.
        cost: US dollars.
        running: it has not been deleted.
        accruing: it costs now; a stopped one may not.
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
        """What it has cost, in US dollars."""
        return self.hourly_price * Decimal(repr(self.seconds)) / _SECONDS_IN_AN_HOUR


@attrs.frozen(kw_only=True)
class PendingCreate:
    """A create that is still to be done, though whoever asked for it may have left.

    Attributes:
        number: that of the `Charge` that it will be.
        account: whose it will be.
        name, node_name, gpu, hourly_price: of the container that it will be, if it is not refused then.
        how: by which fault, as a `Fault` calls it.
        seconds: until it is done, by the emulator's clock; None where it does not follow that.
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
    """The bill of all accounts. Whether a stop ends billing is not documented; the world decides."""

    def __init__(self) -> None:
        # In the order of creation; by container, the newest of its id.
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
        """Start charging for a container; `price` is for an hour of one GPU."""
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
        """Stop charging for a container, for good."""
        self.pause(container_id, now)
        self._entries[container_id].ended = True

    def pause(self, container_id: int, now: float) -> None:
        """Stop charging for a container until it is resumed."""
        entry = self._entries[container_id]
        entry.before, entry.began = entry.seconds(now), None

    def resume(self, container_id: int, now: float) -> None:
        """Charge for a container again; nothing changes for one that was not paused."""
        entry = self._entries[container_id]
        if entry.began is None:
            entry.began = now

    def charges(self, now: float) -> list[Charge]:
        """Return every container that ever ran, in the order of creation."""
        return [
            Charge(
                number=entry.number,
                account=entry.account,
                container_id=entry.container_id,
                name=entry.name,
                node_name=entry.node_name,
                gpu=entry.gpu,
                hourly_price=entry.hourly_price,
                # To the microsecond: seconds since 1970 hold no more.
                seconds=round(entry.seconds(now), 6),
                running=not entry.ended,
                accruing=entry.began is not None,
            )
            for entry in self._all
        ]


def rented(charges: Sequence[Charge], pending_creates: Sequence[PendingCreate]) -> str | None:
    """Say what is rented, or will be, and what it costs; None where nothing is."""
    running = [charge for charge in charges if charge.running]
    lines: list[str] = []
    if running:
        hourly = sum((charge.hourly_price for charge in running if charge.accruing), Decimal(0))
        lines.append(f"{len(running)} still rented, for {hourly} USD an hour:")
    for charge in running:
        price = f"{charge.hourly_price} USD an hour" if charge.accruing else "nothing as long as it is stopped"
        lines.append(
            f"  {_shown(charge.name)} (container {charge.container_id}): {charge.gpu} GPU on {charge.node_name}, {price}, "
            f"{charge.cost:.6f} USD in {charge.seconds:.1f} s"
        )
    if pending_creates:
        hourly = sum((one.hourly_price for one in pending_creates), Decimal(0))
        lines.append(f"{len(pending_creates)} still to be rented, for {hourly} USD an hour:")
    for one in pending_creates:
        when = "" if one.seconds is None else f" in {one.seconds:.1f} s"
        lines.append(
            f"  {_shown(one.name)}: {one.gpu} GPU on {one.node_name}, {one.hourly_price} USD an hour, by '{one.how}'{when}"
        )
    return "\n".join(lines) or None


def _shown(name: str) -> str:
    """Return a name in characters that a terminal does not obey."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in name
    )

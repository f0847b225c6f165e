"""The faults of one SSH connection together, and their arithmetic. No I/O; `shells` and `relay` carry the faults out."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Literal, Self, TypeAlias

import attrs

from netmind_rentgpu.emulator.faults import Fault

__all__ = ["PIECE", "ConnectionFaults", "Pace", "Quota", "Stop"]

PIECE = 64 * 1024
"""The most bytes that pass together."""
_PIECES_PER_SECOND = 20

Stop: TypeAlias = Literal["drop", "freeze"]


@attrs.frozen(kw_only=True)
class ConnectionFaults:
    """The effects of all faults that a connection meets.

    Attributes:
        is_refused: True if the connection is closed before the server's banner.
        forwards_ports: False if the server refuses to forward ports.
        supervisor_ages: the ages, in seconds of real time, at which a supervisor of a job is killed.
        drop_after, freeze_after: the bytes after which the connection breaks or freezes; infinity for never.
        freeze_at: the seconds of real time after which the connection freezes; None for never.
        latency: the seconds of real time by which each piece passes later.
        bandwidth: the bytes that each direction passes in a second at most; infinity for no limit.
    """

    is_refused: bool = False
    forwards_ports: bool = True
    supervisor_ages: tuple[float, ...] = ()
    drop_after: float = inf
    freeze_after: float = inf
    freeze_at: float | None = None
    latency: float = 0.0
    bandwidth: float = inf

    @classmethod
    def of(cls, faults: Iterable[Fault]) -> Self:
        """Collect the faults that a connection meets."""
        by_name: dict[str, list[Fault]] = {}
        for fault in faults:
            by_name.setdefault(fault.what, []).append(fault)

        def seconds(what: str) -> list[float]:
            return [fault.seconds for fault in by_name.get(what, []) if fault.seconds is not None]

        def least_bytes(what: str) -> float:
            return min(
                (fault.after_bytes for fault in by_name.get(what, []) if fault.after_bytes is not None), default=inf
            )

        return cls(
            is_refused="ssh refuse" in by_name,
            forwards_ports="ssh no forwarding" not in by_name,
            supervisor_ages=tuple(seconds("kill supervisor")),
            drop_after=least_bytes("ssh drop"),
            freeze_after=least_bytes("ssh freeze"),
            freeze_at=min(seconds("ssh freeze"), default=None),
            latency=sum(seconds("ssh latency")),
            bandwidth=min((fault.bytes_per_second or inf for fault in by_name.get("ssh bandwidth", [])), default=inf),
        )

    @property
    def need_a_relay(self) -> bool:
        """True if bytes do not simply pass between the client and the server."""
        limits = (self.drop_after, self.freeze_after, self.bandwidth)
        return self.freeze_at is not None or self.latency > 0 or min(limits) < inf


class Quota:
    """The bytes that a connection may still pass, in both directions together, before it breaks or freezes.

    Attributes:
        stop: the way in which the connection stops when the quota is spent.
    """

    def __init__(self, *, drop_after: float = inf, freeze_after: float = inf) -> None:
        self.stop: Stop = "drop" if drop_after <= freeze_after else "freeze"
        self._left = min(drop_after, freeze_after)
        self._passing = 0

    def reserve(self, size: int) -> int:
        """Reserve bytes that are about to pass, and return how many of them may."""
        allowed = int(min(size, self._left))
        self._left -= allowed
        self._passing += allowed
        return allowed

    def confirm(self, size: int) -> None:
        """Record that reserved bytes have passed."""
        self._passing -= size

    @property
    def is_spent(self) -> bool:
        """True once all bytes of the quota have passed."""
        return self._left == self._passing == 0


class Pace:
    """The moments at which the pieces of one direction pass. Time that passes without data gives no credit.

    Attributes:
        piece: the most bytes that may pass together.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._free_at = -inf
        self.piece: int = int(min(PIECE, max(1, bytes_per_second / _PIECES_PER_SECOND)))

    def moment(self, now: float, size: int) -> float:
        """Return the moment at which a piece has passed that arrived at `now`; both in seconds on the monotonic clock."""
        self._free_at = max(self._free_at, now) + size / self._bytes_per_second
        return self._free_at

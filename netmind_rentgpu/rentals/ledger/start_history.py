"""Which machines lately failed to start which image, as all processes know that share the state file."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

import attrs

from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.state_file import Connection, State

__all__ = ["ImageStarts", "StartHistory"]

_REMEMBERED_FOR = 30 * 60.0
_FRESH = 1.0
_MANY = 3


@attrs.frozen
class ImageStarts:
    """How one image started within the last half hour.

    Attributes:
        failed_on: the machines on which it failed, and has not started since.
        started: it started on another, after one had failed.
    """

    failed_on: frozenset[str] = frozenset()
    started: bool = False

    @property
    def fails_everywhere(self) -> bool:
        """The image itself seems to be why it does not start."""
        return len(self.failed_on) >= _MANY and not self.started


class StartHistory:
    """The starts of one service's containers, of any account."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._origin = state.fingerprint.origin
        self._known: defaultdict[int, SingleFlight[ImageStarts]] = defaultdict(lambda: SingleFlight(fresh=_FRESH))

    async def of_image(self, image_id: int) -> ImageStarts:
        """Return how an image started; the answer may be a second old.

        Raises:
            StateFileError: the state file cannot be used.
        """
        return await self._known[image_id].get(lambda: self._state.read(lambda found: self._find(found, image_id)))

    def record_soon(self, node_name: str, image_id: int, *, failed: bool) -> asyncio.Future[None]:
        """Remember how a start ended, and forget what is older than half an hour.

        Return the future of the write, which may be a StateFileError.
        """
        column = "failed_at" if failed else "started_at"

        def write(connection: Connection) -> None:
            now = time.time()
            connection.execute(
                f"INSERT INTO starts (origin, node_name, image_id, {column}) VALUES (?, ?, ?, ?)"  # noqa: S608  # our own words
                f" ON CONFLICT (origin, node_name, image_id) DO UPDATE SET {column} = excluded.{column}",
                (self._origin, node_name, image_id, now),
            )
            connection.execute(
                "DELETE FROM starts WHERE coalesce(failed_at NOT BETWEEN :from AND :to, TRUE)"
                " AND coalesce(started_at NOT BETWEEN :from AND :to, TRUE)",
                _remembered(now),
            )

        written = self._state.write_soon(write)
        written.add_done_callback(lambda _: self._known[image_id].forget())
        return written

    def _find(self, connection: Connection, image_id: int) -> ImageStarts:
        rows = connection.execute(
            "SELECT node_name, failed_at BETWEEN :from AND :to AND coalesce(started_at < failed_at, TRUE),"
            " started_at BETWEEN :from AND :to FROM starts WHERE origin = :origin AND image_id = :image_id",
            {**_remembered(time.time()), "origin": self._origin, "image_id": image_id},
        ).fetchall()
        failed_on = frozenset(node_name for node_name, failed, _ in rows if failed)
        return ImageStarts(failed_on, started=any(started for *_, started in rows))


def _remembered(now: float) -> dict[str, float]:
    # What lies ahead was written before the clock was set back.
    return {"from": now - _REMEMBERED_FOR, "to": now + _REMEMBERED_FOR}

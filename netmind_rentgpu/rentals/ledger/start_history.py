"""The machines that lately failed to start an image, for all processes that share the state file."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import datetime

import attrs

from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.state_file import Connection, State

__all__ = ["ImageStarts", "StartHistory"]

_MANY = 3
# In seconds.
_REMEMBERED_FOR = 30 * 60.0
_FRESH = 1.0


@attrs.frozen
class ImageStarts:
    """The starts of one image within the last half hour.

    Attributes:
        failed_on: the nodes on which the image failed to start, and has not started since.
        started: True if the image has started on a node.
    """

    failed_on: frozenset[str] = frozenset()
    started: bool = False

    @property
    def fails_everywhere(self) -> bool:
        """True if the image itself seems to be the reason, because it failed on three nodes or more and started on none."""
        return len(self.failed_on) >= _MANY and not self.started


class StartHistory:
    """The starts of one service's containers, for all its accounts."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._origin = state.fingerprint.origin
        self._known: defaultdict[int, SingleFlight[ImageStarts]] = defaultdict(lambda: SingleFlight(fresh=_FRESH))

    async def of_image(self, image_id: int, now: datetime) -> ImageStarts:
        """Return the starts of an image; the answer may be a second old.

        Args:
            now: UTC wall time.

        Raises:
            StateFileError: the state file cannot be used.
        """

        def find(connection: Connection) -> ImageStarts:
            return self._find(connection, image_id, now.timestamp())

        return await self._known[image_id].get(lambda: self._state.read(find))

    def record_soon(self, node_name: str, image_id: int, now: datetime, *, failed: bool) -> asyncio.Future[None]:
        """Record the result of a start, and delete results older than half an hour; return the future of the write.

        Args:
            now: UTC wall time.
            failed: True if the image did not start.
        """
        column = "failed_at" if failed else "started_at"
        ended_at = now.timestamp()

        def write(connection: Connection) -> None:
            connection.execute(
                f"INSERT INTO starts (origin, node_name, image_id, {column}) VALUES (?, ?, ?, ?)"  # noqa: S608  # inserts constants only
                f" ON CONFLICT (origin, node_name, image_id) DO UPDATE SET {column} = excluded.{column}",
                (self._origin, node_name, image_id, ended_at),
            )
            connection.execute(
                "DELETE FROM starts WHERE coalesce(failed_at NOT BETWEEN :from AND :to, TRUE)"
                " AND coalesce(started_at NOT BETWEEN :from AND :to, TRUE)",
                _remembered(ended_at),
            )

        written = self._state.write_soon(write)
        written.add_done_callback(lambda _: self._known[image_id].forget())
        return written

    def _find(self, connection: Connection, image_id: int, now: float) -> ImageStarts:
        rows = connection.execute(
            "SELECT node_name, failed_at BETWEEN :from AND :to AND coalesce(started_at < failed_at, TRUE),"
            " started_at BETWEEN :from AND :to FROM starts WHERE origin = :origin AND image_id = :image_id",
            {**_remembered(now), "origin": self._origin, "image_id": image_id},
        ).fetchall()
        failed_on = frozenset(node_name for node_name, failed, _ in rows if failed)
        return ImageStarts(failed_on, started=any(started for *_, started in rows))


def _remembered(now: float) -> dict[str, float]:
    # A time in the future was written before the clock was set back.
    return {"from": now - _REMEMBERED_FOR, "to": now + _REMEMBERED_FOR}

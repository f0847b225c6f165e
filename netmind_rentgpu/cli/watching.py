"""`rentals watch`: a table that is redrawn on a terminal, and lines of JSON elsewhere."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from netmind_rentgpu.cli.columns import RENTALS, rental_row
from netmind_rentgpu.cli.output import write_bytes
from netmind_rentgpu.cli.session import Session, is_terminal
from netmind_rentgpu.wire.payload import dump_exactly

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU

__all__ = ["watch"]

# It grows all the time, so that it is no change.
_ALWAYS_NEW = "spent"


def watch(session: Session, interval: timedelta) -> None:
    """Show the open rentals until a signal comes.

    Raises:
        StoppedError: the signal has come.
    """
    shows_table = session.results.format == "table" and is_terminal(1)
    session.run(lambda gpu: (_redraw if shows_table else _print_changes)(session, gpu, interval.total_seconds()))


async def _print_changes(session: Session, gpu: AsyncRentGPU, seconds: float) -> None:
    del session
    before: dict[str, dict[str, Any]] = {}
    while True:
        rows = {record.name: rental_row(record) for record in await gpu.rentals.list()}
        for name, row in rows.items():
            if _without_spent(row) != _without_spent(before.get(name, {})):
                write_bytes(dump_exactly(row) + b"\n")
        for name in before.keys() - rows.keys():
            write_bytes(dump_exactly(before[name] | {"stage": "over"}) + b"\n")
        before = rows
        await asyncio.sleep(seconds)


def _without_spent(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != _ALWAYS_NEW}


async def _redraw(session: Session, gpu: AsyncRentGPU, seconds: float) -> None:
    from netmind_rentgpu.cli.tables import LiveTable

    with LiveTable(RENTALS, has_colour=session.has_colour) as table:
        while True:
            now = session.now()
            rows = [rental_row(record) for record in await gpu.rentals.list()]
            cells = [[column.text(row, now) for column in RENTALS] for row in rows]
            count = "nothing is" if not rows else "1 machine is" if len(rows) == 1 else f"{len(rows)} machines are"
            table.show(cells, f"{now:%H:%M:%S}  {count} rented; Ctrl-C ends this view and releases nothing")
            await asyncio.sleep(seconds)

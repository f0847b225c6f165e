"""`containers watch`: a table that is redrawn on a terminal, and lines of JSON elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final

from netmind_rentgpu.cli.columns import CONTAINERS
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.output import write_bytes
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session, is_terminal
from netmind_rentgpu.wire.payload import dump_exactly

if TYPE_CHECKING:
    from netmind_rentgpu.cli.rows import ContainerChange
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.waiting.watching import Change

__all__ = ["watch"]

# Seconds. Changes that come together are drawn together.
_BETWEEN_DRAWINGS: Final = 0.5


def watch(session: Session, ids: Sequence[int]) -> None:
    """Show containers until a signal comes, or until all of them are gone.

    Args:
        ids: the containers; empty for all of the account.

    Raises:
        StoppedError: the signal has come.
        CommandError: a container was never there.
        RentGPUError: the service has failed for minutes.
    """
    shows_table = session.results.format == "table" and is_terminal(1)
    seen = session.run(lambda gpu: (_redraw if shows_table else _print_changes)(session, gpu, ids or None))
    if missing := [str(container_id) for container_id in dict.fromkeys(ids) if container_id not in seen]:
        raise CommandError(ExitCode.NOT_FOUND, f"the account has no container {', '.join(missing)}")


async def _print_changes(session: Session, gpu: AsyncRentGPU, ids: Sequence[int] | None) -> set[int]:
    """Print each change, and return the ids of all containers that were seen."""
    del session
    seen = set[int]()
    async with aclosing(gpu.containers.watch(ids, initial=True)) as changes:
        async for change in changes:
            seen.add(change.container_id)
            write_bytes(dump_exactly(_row(change)) + b"\n")
    return seen


def _row(change: Change) -> dict[str, Any]:
    container = change.before if change.after is None else change.after
    kind: ContainerChange = {
        "change": "gone" if change.after is None else "new" if change.before is None else "changed"
    }
    return {**kind, **({} if container is None else container.to_dict())}


async def _redraw(session: Session, gpu: AsyncRentGPU, ids: Sequence[int] | None) -> set[int]:
    """Draw the table again and again, and return the ids of all containers that were seen."""
    from netmind_rentgpu.cli.tables import LiveTable

    rows: dict[int, dict[str, Any]] = {}
    seen = set[int]()
    with LiveTable(CONTAINERS, has_colour=session.has_colour) as table:

        def draw() -> None:
            now = session.now()
            cells = [[column.text(row, now) for column in CONTAINERS] for row in rows.values()]
            count = "no container" if not rows else "1 container" if len(rows) == 1 else f"{len(rows)} containers"
            table.show(cells, f"{now:%H:%M:%S}  {count}; Ctrl-C ends this view and deletes nothing")

        async def draw_again() -> None:
            while True:
                draw()
                await asyncio.sleep(_BETWEEN_DRAWINGS)

        drawing = asyncio.create_task(draw_again())
        try:
            async with aclosing(gpu.containers.watch(ids, initial=True)) as changes:
                async for change in changes:
                    seen.add(change.container_id)
                    if change.after is None:
                        rows.pop(change.container_id, None)
                    else:
                        rows[change.container_id] = change.after.to_dict()
        finally:
            drawing.cancel()
            with suppress(asyncio.CancelledError):
                await drawing
        draw()
    return seen

"""One run of `rentgpu rent --count`: several machines, a command on each, and the worst of their exit codes."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from netmind_rentgpu.cli.copying import local_target, progress_of
from netmind_rentgpu.cli.exit_codes import ExitCode, code_of_result
from netmind_rentgpu.cli.output import write_bytes
from netmind_rentgpu.cli.rent_run import RentRun, Work
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.values import shown_duration, shown_money
from netmind_rentgpu.concurrency.threads import run_in_thread
from netmind_rentgpu.errors import RentGPUError

if TYPE_CHECKING:
    from netmind_rentgpu.cli.notes import Notes
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.rentals.fleet import AsyncFleet
    from netmind_rentgpu.rentals.rental import AsyncRental
    from netmind_rentgpu.results import CommandResult

__all__ = ["FleetRun", "PrefixedLines"]

# Arguments of a fleet; all others are those of each machine.
_OF_FLEET: Final = ("ttl", "extendable_to", "budget")
_LONGEST_LINE: Final = 64 * 1024


class PrefixedLines:
    """A stream that puts a prefix before each line, and passes whole lines on, so that those of others do not mix in."""

    def __init__(self, prefix: str, write: Any) -> None:
        """Set up.

        Args:
            write: a coroutine function that takes bytes.
        """
        self._prefix = prefix.encode()
        self._write = write
        self._rest = b""

    async def write(self, data: bytes) -> None:
        """Write bytes; the end of an unfinished line waits for the rest of it."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines, self._rest = [*lines, self._rest], b""
        if lines:
            await self._write(b"".join(self._prefix + line + b"\n" for line in lines))

    async def finish(self) -> None:
        """Write the last line, if it has no end."""
        if self._rest:
            rest, self._rest = self._rest, b""
            await self._write(self._prefix + rest + b"\n")


class FleetRun(RentRun):
    """The run of several machines."""

    def __init__(self, session: Session, work: Work, count: int) -> None:
        super().__init__(session, work)
        self._count = count
        self._fleet: AsyncFleet | None = None
        # The name, the node and the result of each machine, by its index.
        self._machines: list[tuple[str, str]] = []
        self._results: dict[int, CommandResult] = {}

    async def _rent(self, gpu: AsyncRentGPU, wanted: Mapping[str, Any]) -> int:
        seconds = self._session.options.seconds
        of_fleet = {name: value for name, value in wanted.items() if name in _OF_FLEET}
        if seconds is not None:
            of_fleet["timeout"] = seconds
        options: Any = {name: value for name, value in wanted.items() if name not in _OF_FLEET}
        self._fleet = gpu.rent_many(self._count, **of_fleet, **options, on_event=self._on_event)
        async with self._fleet as fleet:
            rentals = fleet.rentals
            self._machines = [(rental.name, rental.machine.node_name) for rental in rentals]
            end = "" if fleet.expires_at is None else f", until {fleet.expires_at:%Y-%m-%d %H:%M:%S} UTC at the latest"
            self._session.notes.say(f"{len(rentals)} machines are ready{end}")
            working = [asyncio.create_task(self._work_on_one(index, rental)) for index, rental in enumerate(rentals)]
            try:
                return max(await asyncio.gather(*working))
            finally:
                for task in working:
                    task.cancel()
                await asyncio.gather(*working, return_exceptions=True)

    async def _work_on_one(self, index: int, rental: AsyncRental) -> int:
        """Upload, run the command and download on one machine; return its exit code."""
        try:
            folder = await self._upload(rental)
            code = await self._run_prefixed(index, rental, folder)
            return await self._download_to(Path(str(index)), rental, folder, code)
        except RentGPUError as error:
            # The others go on.
            return self._show(error)

    async def _run_prefixed(self, index: int, rental: AsyncRental, folder: str | None) -> int:
        width = len(str(self._count - 1))
        notes, prefix = self._session.notes, f"[{index:>{width}}] "
        output, errors = PrefixedLines(prefix, _to_stdout(notes)), PrefixedLines(prefix, notes.pass_on)
        command = self._work.command or ""
        line = command if folder is None else f"cd {shlex.quote(folder)} || exit 1\n{command}"
        own = {"RENTGPU_INDEX": str(index), "RENTGPU_COUNT": str(self._count)}
        result = await rental.pipe(line, stdout=output, stderr=errors, environment={**own, **self._work.environment})
        await output.finish()
        await errors.finish()
        self._results[index] = result
        return code_of_result(result.exit_status, result.exit_signal)

    async def _download_to(self, here: Path, rental: AsyncRental, folder: str | None, code: int) -> int:
        """Fetch what is to be fetched into a folder of the machine's own, also after a failure."""
        notes = self._session.notes
        for remote in self._work.downloads:
            source = remote if folder is None or remote.startswith("/") else f"{folder}/{remote}"
            _make_folder(here)
            show = progress_of(notes, f"downloading {remote} of {here}")
            try:
                await rental.shell.download(source, here / local_target(remote), on_progress=show)
            except RentGPUError as error:
                self._show(error)
                code = code or ExitCode.NO
            notes.clear()
        return code

    def _rented(self) -> str:
        return "the machines"

    def _say_end(self) -> None:
        spent = self._spent()
        if self._asked is None or self._asked.intended_at is None or not self._machines:
            return
        ran = shown_duration((self._ended_at or self._session.now()) - self._asked.intended_at)
        cost = "an amount that is not known" if spent is None else f"about {shown_money(spent, self._asked.currency)}"
        self._session.notes.say(f"ran {ran}, cost {cost}; all {len(self._machines)} machines are given back")

    def _spent(self) -> Decimal | None:
        return None if self._fleet is None else self._fleet.spent

    def _report(self, code: int) -> dict[str, Any]:
        codes = [code_of_result(result.exit_status, result.exit_signal) for result in self._results.values()]
        report = super()._report(code)
        del report["name"], report["node_name"], report["exit_status"], report["exit_signal"]
        return report | {
            "origin": "command" if code in codes and not self._may_be_rented else "rentgpu",
            "machines": [
                {
                    "index": index,
                    "name": name,
                    "node_name": node_name,
                    "exit_status": None if (result := self._results.get(index)) is None else result.exit_status,
                    "exit_signal": None if result is None else result.exit_signal,
                }
                for index, (name, node_name) in enumerate(self._machines)
            ],
        }


def _make_folder(path: Path) -> None:
    path.mkdir(exist_ok=True)


def _to_stdout(notes: Notes) -> Any:
    lock = asyncio.Lock()

    async def write(data: bytes) -> None:
        # In a thread, because the reader may be slow, and the machines have to be given back in time all the same.
        async with lock:
            notes.clear()
            await run_in_thread(lambda: write_bytes(data))

    return write

"""One run of `rentgpu rent`: the machine, the work on it, and the exit code, for which its return comes first."""

from __future__ import annotations

import asyncio
import shlex
import signal
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from netmind_rentgpu.cli.columns import rental_row
from netmind_rentgpu.cli.confirming import confirm_cost
from netmind_rentgpu.cli.copying import Upload, local_target, progress_of, upload_all
from netmind_rentgpu.cli.deadlines import deadline_note, extension_of, machine_of, preview_of
from netmind_rentgpu.cli.exit_codes import ExitCode, code_of_result, code_of_signal
from netmind_rentgpu.cli.problems import Problem, problem_of
from netmind_rentgpu.cli.remote import run_here
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.stopping import StoppedError
from netmind_rentgpu.cli.values import shown_duration, shown_money
from netmind_rentgpu.errors import ClientStateError, RentGPUError, SSHError
from netmind_rentgpu.wire.payload import dump_exactly

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.rentals.ledger.records import RentalRecord
    from netmind_rentgpu.rentals.lifecycle.events import RentalEvent
    from netmind_rentgpu.rentals.rental import AsyncRental
    from netmind_rentgpu.results import CommandResult

__all__ = ["RentRun", "Work"]

# A file of the login's own, which the shell or the command in the terminal reads and removes.
_VARIABLES: Final = ".rentgpu-environment"
# Seconds to wait for certainty about a create whose answer was lost.
_LONGEST_DOUBT: Final = 180.0


@attrs.frozen(kw_only=True)
class Work:
    """The work on the machine.

    Attributes:
        command: the command; None for a shell.
        is_detached: True to leave the command running as a job.
        has_terminal: True to connect the command to this terminal.
        uploads: what goes into the working folder before.
        downloads: the paths that are fetched afterwards, from the working folder.
        excluded: patterns of what is not uploaded.
        environment: variables of the command.
        report: the path of a file for the report; None for none.
    """

    command: str | None
    is_detached: bool = False
    has_terminal: bool = False
    uploads: Sequence[Upload] = ()
    downloads: Sequence[str] = ()
    excluded: Sequence[str] = ()
    environment: Mapping[str, str] = attrs.Factory(dict[str, str])
    report: str | None = None


class RentRun:
    """The run. It knows every name that it has asked for, so that it can look for each of them in the end."""

    def __init__(self, session: Session, work: Work) -> None:
        self._session = session
        self._work = work
        self._count = 1
        self._names: list[str] = []
        self._released: set[str] = set()
        # True from the first create until the last look at the state file says otherwise.
        self._may_be_rented = False
        self._code: int | None = None
        self._asked: RentalEvent | None = None
        self._ended_at: datetime | None = None
        self._spent_at_release: Decimal | None = None
        self._rental: AsyncRental | None = None
        self._record: RentalRecord | None = None
        self._detached: RentalRecord | None = None
        self._left: list[RentalRecord] = []
        self._left_names: list[str] = []
        self._result: CommandResult | None = None
        self._problem: Problem | None = None

    def run(self, wanted: Mapping[str, Any], selecting: Mapping[str, Any]) -> int:
        """Rent, work, give back, and return the exit code.

        Args:
            wanted: the arguments of `AsyncRentGPU.rent`.
            selecting: those among them that are arguments of `AsyncRentGPU.offers`, too.
        """
        stopping = self._session.stopping
        stopping.on_first, stopping.on_second = self._on_first_signal, self._on_second_signal
        try:
            code = stopping.run(lambda: self._run(wanted, selecting))
        except StoppedError as error:
            # A code that was decided before the signal stands.
            code = code_of_signal(error.number) if self._code is None else self._code
        except Exception as error:  # noqa: BLE001  # such as a missing token
            code = self._show(error) if self._code is None else self._code
        if self._work.report is not None and not self._is_report_written(self._work.report, code):
            return code or ExitCode.LOST
        return code

    async def _run(self, wanted: Mapping[str, Any], selecting: Mapping[str, Any]) -> int:
        async with self._session.client(guardian=True) as gpu:
            try:
                kept = await confirm_cost(self._session, gpu, wanted, selecting, machines=self._count)
                code = await self._rent(gpu, {**wanted, **kept})
            except BaseException as error:  # noqa: BLE001  # what it has left is looked for in any case
                code = self._code_after(error)
            self._session.notes.clear()
            try:
                is_given_back = await self._is_given_back(gpu)
            except asyncio.CancelledError:  # by the first signal, and there is no other
                is_given_back = await self._is_given_back(gpu)
            self._code = code if is_given_back else ExitCode.STILL_RENTED
            self._session.stopping.end()
            return self._code

    async def _rent(self, gpu: AsyncRentGPU, wanted: Mapping[str, Any]) -> int:
        seconds = self._session.options.seconds
        limits: dict[str, Any] = {} if seconds is None else {"timeout": seconds}
        self._rental = gpu.rent(**wanted, **limits, on_event=self._on_event)
        async with self._rental as rental:
            record = self._record = await gpu.rentals.get(rental.name)
            self._say_ready(record)
            folder = await self._upload(rental)
            if self._work.is_detached:
                return await self._detach(gpu, rental, record, folder)
            try:
                code = await self._work_on(rental, folder)
            except SSHError as error:
                # The end of the command was not seen.
                code = self._show(error)
            return await self._download(rental, folder, code)

    async def _upload(self, rental: AsyncRental) -> str | None:
        """Upload what is to be uploaded into a fresh folder, and return its path; None without uploads."""
        if not self._work.uploads:
            return None
        folder = rental.name
        await rental.run(f"mkdir {shlex.quote(folder)}", check=True)
        await upload_all(rental.shell, self._work.uploads, folder, self._work.excluded, self._session.notes)
        return folder

    async def _work_on(self, rental: AsyncRental, folder: str | None) -> int:
        work, notes = self._work, self._session.notes
        if work.command is None or work.has_terminal:
            line = await self._line_for_terminal(rental, folder)
            with notes.raw():
                self._result = await rental.shell.interact(line)
        else:
            line = work.command if folder is None else f"cd {shlex.quote(folder)} || exit 1\n{work.command}"
            self._result = await run_here(rental, line, notes, environment=work.environment)
        return code_of_result(self._result.exit_status, self._result.exit_signal)

    async def _line_for_terminal(self, rental: AsyncRental, folder: str | None) -> str | None:
        """Return the command for a terminal: it reads its variables from a file, because they stand on no command line."""
        lines: list[str] = []
        if self._work.environment:
            exports = [f"export {name}={shlex.quote(value)}\n" for name, value in self._work.environment.items()]
            await rental.run(f"umask 077; cat > {_VARIABLES}", input="".join(exports), check=True)
            lines.append(f". ./{_VARIABLES}; rm -f {_VARIABLES}")
        if folder is not None:
            lines.append(f"cd {shlex.quote(folder)} || exit 1")
        if not lines:
            return self._work.command
        return "\n".join([*lines, self._work.command or 'exec "${SHELL:-/bin/sh}" -l'])

    async def _download(self, rental: AsyncRental, folder: str | None, code: int) -> int:
        """Fetch what is to be fetched, also after a failure; return the code, or `NO` if that fails after a success."""
        notes = self._session.notes
        for remote in self._work.downloads:
            source = remote if folder is None or remote.startswith("/") else f"{folder}/{remote}"
            try:
                await rental.run("true")  # over a new connection, if the command's was lost
                show = progress_of(notes, f"downloading {remote}")
                await rental.shell.download(source, local_target(remote), on_progress=show)
            except SSHError as error:
                self._show(error)
                code = code or ExitCode.NO
            notes.clear()
        return code

    async def _detach(self, gpu: AsyncRentGPU, rental: AsyncRental, record: RentalRecord, folder: str | None) -> int:
        work = self._work
        job = None
        if work.command is not None:
            job = await rental.start(work.command, environment=work.environment or None, directory=folder)
        # Before it is detached, because a machine whose name was not read would be lost.
        self._session.results.text(rental.name, rental_row(record) | {"job": None if job is None else job.name})
        self._detached = await (rental.detach() if job is None else rental.detach(release_when="exits", job=job))
        left_running = await gpu.rentals.get(self._detached)
        self._session.notes.say(deadline_note(left_running, self._session.now()))
        return ExitCode.DONE

    def _code_after(self, error: BaseException) -> int:
        number = self._session.stopping.number
        if self._detached is not None:
            return ExitCode.DONE  # the signal came when all was done
        if number is not None and isinstance(error, (asyncio.CancelledError, StoppedError)):
            return code_of_signal(number)
        if not isinstance(error, Exception):
            raise error
        return self._show(error)

    def _show(self, error: Exception) -> int:
        """Write an error, and return its exit code."""
        self._problem = problem_of(error, reads_only=not self._names)
        self._session.show(self._problem, error)
        return self._problem.exit_code

    async def _is_given_back(self, gpu: AsyncRentGPU) -> bool:
        """Return False, and say so, if something that this run has asked for may still be rented; but `-d` leaves one."""
        kept = None if self._detached is None else self._detached.name
        asked = [name for name in self._names if name != kept]
        if asked:
            try:
                self._left = await self._find_left(gpu, asked)
                if self._left and await self._wait_out_doubts():
                    await gpu.rentals.reap()
                    self._left = await self._find_left(gpu, asked)
            except RentGPUError as error:
                name = asked[-1]
                self._left_names = asked
                self._say_left(f"{name} may still be rented, because its record cannot be read: {error}")
                return False
        for record in self._left:
            identity = "" if record.container_id is None else f", container {record.container_id},"
            self._say_left(f"{record.name}{identity} may still be rented: {machine_of(record)}")
        self._left_names = [record.name for record in self._left]
        self._may_be_rented = bool(self._left)
        if not self._left and kept is None:
            self._say_end()
        return not self._left

    def _say_left(self, message: str) -> None:
        problem = Problem(
            exit_code=ExitCode.STILL_RENTED,
            error="StillRentedError",
            message=message,
            hint="It costs money until it is deleted: run `rentgpu rentals reap`.",
        )
        self._problem = self._problem or problem
        self._session.show(problem)

    async def _find_left(self, gpu: AsyncRentGPU, asked: Sequence[str]) -> list[RentalRecord]:
        """Return the records of this run that may have a container, which is known to be gone if its deletion was seen."""
        now = datetime.now(UTC)
        left = [record for record in await gpu.rentals.list() if record.name in asked]
        return [record for record in left if record.name not in self._released or record.certain_at > now]

    async def _wait_out_doubts(self) -> bool:
        """Wait until no machine of an unclear create can turn up any more; return False if something else is left."""
        now = datetime.now(UTC)
        seconds = max((record.certain_at - now).total_seconds() for record in self._left)
        in_doubt = all(record.container_id is None or record.name in self._released for record in self._left)
        if self._session.stopping.number is not None or not in_doubt or seconds > _LONGEST_DOUBT:
            return False
        self._session.notes.say(
            f"the answer to a create was lost: waiting {max(0, seconds):.0f} s until no machine of it can turn up any more"
        )
        await asyncio.sleep(max(0.0, seconds))
        return True

    def _on_event(self, event: RentalEvent) -> None:
        notes, now = self._session.notes, self._session.now()
        match event.kind:
            case "out_of_stock":
                notes.say(str(event))
            case "asking":
                self._names += [name for name in (event.name,) if name is not None]
                self._may_be_rented = True
                self._asked = event
                notes.say(preview_of(event, now))
            case "released":
                self._released |= {name for name in (event.name,) if name is not None}
                self._spent_at_release = event.spent
            case "failed":
                notes.say(f"{event.node_name} did not start: {event.reason}; {event.next_step}")
            case "expiring" if event.reason is not None:
                notes.say(f"{event.name} is {event.reason}")
            case "expiring" if event.expires_at is not None:
                left = shown_duration(event.expires_at - now)
                more = "" if self._record is None else f"; {extension_of(self._record, now)}"
                notes.say(f"{event.name} ends in {left}{more}")
            case "refused" | "created" | "waiting" | "releasing":
                if event.kind == "releasing":
                    self._ended_at = event.at
                notes.progress(str(event).removeprefix(f"{event.name}: "))
            case _:
                pass

    def _say_ready(self, record: RentalRecord) -> None:
        took = "" if record.ready_at is None else f" after {shown_duration(record.ready_at - record.intended_at)}"
        self._session.notes.say(f"ready{took}, with image {record.image}")
        if not self._work.is_detached:
            self._session.notes.say(deadline_note(record, self._session.now()))

    def _say_end(self) -> None:
        spent = self._spent()
        if self._asked is None or self._asked.intended_at is None or (spent is None and not self._released):
            return  # no machine has run
        ran = shown_duration((self._ended_at or self._session.now()) - self._asked.intended_at)
        cost = "an amount that is not known" if spent is None else f"about {shown_money(spent, self._asked.currency)}"
        self._session.notes.say(f"ran {ran}, cost {cost}; the machine is given back")

    def _spent(self) -> Decimal | None:
        try:
            return None if self._rental is None else self._rental.spent
        except ClientStateError:  # no machine was handed over
            return self._spent_at_release

    def _rented(self) -> str:
        """Return what may be rented, for a message."""
        return self._names[-1]

    def _on_first_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if not self._may_be_rented:
            self._session.notes.insist(f"rentgpu: {name}: stopping")
            return
        self._session.notes.insist(
            f"rentgpu: {name}: giving back {self._rented()}; a second signal ends this at once, and the guardian goes on"
        )

    def _on_second_signal(self, number: int) -> int:
        self._session.notes.leave_raw()
        if self._code is not None:
            return self._code
        if not self._may_be_rented:
            return code_of_signal(number)
        self._session.notes.insist(
            f"rentgpu: {self._rented()} may still be rented; the guardian goes on deleting it: see `rentgpu rentals list`"
        )
        if self._work.report is not None:
            self._left_names = self._left_names or self._names[-1:]
            self._is_report_written(self._work.report, ExitCode.STILL_RENTED)
        return ExitCode.STILL_RENTED

    def _is_report_written(self, path: str, code: int) -> bool:
        try:
            Path(path).write_bytes(dump_exactly(self._report(code)) + b"\n")
        except OSError as error:
            self._session.notes.insist(f"rentgpu: could not write the report to {path}: {error.strerror}")
            return False
        return True

    def _report(self, code: int) -> dict[str, Any]:
        result, event = self._result, self._asked
        own = result is not None and code == code_of_result(result.exit_status, result.exit_signal)
        return {
            "exit_code": code,
            "origin": "command" if own and not self._may_be_rented else "rentgpu",
            "exit_status": None if result is None else result.exit_status,
            "exit_signal": None if result is None else result.exit_signal,
            "name": None if event is None else event.name,
            "label": None if event is None else event.label,
            "node_name": None if event is None else event.node_name,
            "gpu_name": None if event is None else event.gpu_name,
            "hourly_price": None if event is None else event.hourly_price,
            "currency": None if event is None else event.currency,
            "spent": self._spent(),
            "still_rented": self._left_names,
            "error": None if self._problem is None else self._problem.to_dict(),
        }

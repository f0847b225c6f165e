"""`rentals`: what is rented, longer, less, and what it has cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal

from netmind_rentgpu.cli.cells import Column
from netmind_rentgpu.cli.columns import RENTAL, RENTALS, rental_row
from netmind_rentgpu.cli.deadlines import deadline_note, machine_of
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.problems import problem_of
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.stopping import StoppedError
from netmind_rentgpu.cli.targets import find_record
from netmind_rentgpu.cli.values import shown_money
from netmind_rentgpu.errors import RentalNotFoundError, RentGPUError

if TYPE_CHECKING:
    from netmind_rentgpu.cli.rows import ReapedRental, ReleasedRental
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.rentals.ledger.past_rentals import PastRental
    from netmind_rentgpu.rentals.ledger.records import ReapReport, RentalRecord

__all__ = ["extend", "print_rental", "print_rentals", "print_spending", "reap", "release"]

_RELEASED: Final = (
    Column("name", "NAME"),
    Column("state", "STATE"),
    Column("container_id", "CONTAINER", 1, is_number=True),
    Column("spent", "SPENT", 2, is_number=True, show=lambda row: shown_money(row.get("spent"), row.get("currency"))),
)
_REAPED: Final = (Column("name", "NAME"), Column("state", "STATE"), Column("error", "ERROR", 1))
_SPENDING: Final = (
    Column("group", "GROUP", show=lambda row: "-" if row["group"] is None else row["group"]),
    Column("rentals", "RENTALS", 1, is_number=True),
    Column("unknown", "OF UNKNOWN COST", 2, is_number=True),
    Column("spent", "SPENT", is_number=True, show=lambda row: shown_money(row["spent"], row["currency"])),
)


def print_rentals(session: Session) -> None:
    """Print what is rented."""

    async def work(gpu: AsyncRentGPU) -> list[RentalRecord]:
        return await gpu.rentals.list()

    session.results.rows([rental_row(record) for record in session.run(work)], RENTALS)


def print_rental(session: Session, wanted: str | None) -> None:
    """Print one rental, and how to extend it."""

    async def work(gpu: AsyncRentGPU) -> RentalRecord:
        return await find_record(gpu, wanted)

    record = session.run(work)
    session.results.value(rental_row(record), RENTAL)
    session.notes.say(deadline_note(record, session.now()))


def extend(
    session: Session,
    wanted: str | None,
    *,
    ttl: timedelta | None,
    until: datetime | None,
    budget: Decimal | None,
) -> None:
    """Move a deadline, and print the rental."""

    async def work(gpu: AsyncRentGPU) -> RentalRecord:
        record = await find_record(gpu, wanted)
        return await gpu.rentals.extend(record, ttl=ttl, until=until, budget=budget)

    record = session.run(work)
    session.results.value(rental_row(record), RENTAL)
    session.notes.say(deadline_note(record, session.now()))


def release(session: Session, wanted: Sequence[str], *, force: bool) -> int:
    """Delete machines, and print what became of each; return the exit code.

    One failure does not keep the others from being deleted.
    """
    session.reads_only = False
    releasing = _Releasing(session)
    rows, codes = releasing.rows, releasing.codes
    try:
        session.run(lambda gpu: releasing.release(gpu, wanted or (None,), force=force))
    except StoppedError as error:
        if releasing.current is None:
            raise
        codes.append(ExitCode.STILL_RENTED)
        session.notes.insist(
            f"rentgpu: {error}, and {releasing.current} may still be rented; see `rentgpu rentals list`"
        )
    session.results.rows(rows, _RELEASED)
    if ExitCode.STILL_RENTED in codes:
        return ExitCode.STILL_RENTED
    is_one = len(codes) + len(rows) == 1
    return ExitCode.NO if codes and not is_one else max(codes, default=ExitCode.DONE)


class _Releasing:
    """The release of several machines.

    Attributes:
        rows: what is gone.
        codes: the exit code of each failure.
        current: the name of the rental whose deletion is under way; None without one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.rows: list[ReleasedRental] = []
        self.codes: list[int] = []
        self.current: str | None = None

    async def release(self, gpu: AsyncRentGPU, wanted: Sequence[str | None], *, force: bool) -> None:
        """Find the machines, ask, and delete them."""
        found = [record for name in wanted if (record := await self._find(gpu, name)) is not None]
        records = list({record.name: record for record in found}.values())
        if records:
            self._session.confirm("\n".join(_what_dies(record) for record in records))
        for record in records:
            self.current = record.name
            try:
                await gpu.rentals.release(record, force=force)
            except RentalNotFoundError:
                self._add_gone(record)
            except RentGPUError as error:
                self._fail(error)
            else:
                self.rows.append(_row(record, "released"))
        self.current = None

    async def _find(self, gpu: AsyncRentGPU, name: str | None) -> RentalRecord | None:
        """Return the record that is meant; None for a rental that is over, and for an error, which is shown."""
        try:
            record = await find_record(gpu, name)
        except RentalNotFoundError as error:
            if (past := await _find_past(gpu, str(name))) is None:
                self._fail(error)
            else:
                self._add_gone(past)
            return None
        if name is not None and name not in (record.name, record.label, str(record.container_id)):
            # A part of a name. The user may mean a rental that is over, and whose name or label it is.
            past = await _find_past(gpu, name, is_exact=True)
            if past is not None:
                self._add_gone(past)
                return None
        return record

    def _add_gone(self, rental: RentalRecord | PastRental) -> None:
        self._session.notes.say(f"{rental.name} is gone already")
        self.rows.append(_row(rental, "gone"))

    def _fail(self, error: RentGPUError) -> None:
        problem = problem_of(error)
        self._session.show(problem, error)
        self.codes.append(problem.exit_code)


def reap(session: Session, *, wait: bool, by_name: bool) -> int:
    """Run the reaper, print what became of each machine, and return the exit code."""

    async def work(gpu: AsyncRentGPU) -> ReapReport:
        return await gpu.rentals.reap(wait=wait, by_name=by_name)

    session.reads_only = False
    report = session.run(work)
    failed: list[ReapedRental] = [
        {"name": name, "state": "failed", "error": str(error)} for name, error in report.failed
    ]
    rows = [
        *_reaped_rows("deleted", report.deleted),
        *_reaped_rows("gone", report.gone),
        *_reaped_rows("doubtful", [record.name for record in report.doubtful]),
        *failed,
        *_reaped_rows("elsewhere", [record.name for record in report.elsewhere]),
    ]
    session.results.rows(rows, _REAPED)
    if report.doubtful:
        names = ", ".join(record.name for record in report.doubtful)
        session.notes.insist(f"rentgpu: a machine of {names} may still turn up; run `rentgpu rentals reap --wait`")
    if report.failed:
        session.notes.insist("rentgpu: what failed costs money until it is deleted; run `rentgpu rentals reap` again")
    return ExitCode.DONE if report.clean else ExitCode.STILL_RENTED


def _reaped_rows(
    state: Literal["deleted", "gone", "doubtful", "elsewhere"], names: Iterable[str]
) -> list[ReapedRental]:
    return [{"name": name, "state": state, "error": None} for name in names]


def print_spending(
    session: Session,
    *,
    since: datetime | timedelta | None,
    until: datetime | None,
    by: Literal["label", "gpu", "day"],
) -> None:
    """Print what rentals have cost."""
    begin = datetime.now(UTC) - since if isinstance(since, timedelta) else since

    async def work(gpu: AsyncRentGPU) -> tuple[list[dict[str, Any]], dict[str | None, Decimal]]:
        report = await gpu.rentals.spent(since=begin, until=until, by=by)
        return [line.to_dict() for line in report.lines], report.total

    rows, total = session.run(work)
    session.results.rows(rows, _SPENDING)
    for currency, amount in total.items():
        session.notes.say(f"in all about {shown_money(amount, currency)}, by listed price and time")


def _what_dies(record: RentalRecord) -> str:
    row = rental_row(record)
    used = f", used by {record.enforced_by}" if record.owner is not None and record.enforced_by else ""
    cost = shown_money(row["spent"], record.currency)
    return f"Delete {record.name}: {machine_of(record)}, cost so far {cost}{used}."


def _row(rental: RentalRecord | PastRental, state: Literal["released", "gone"]) -> ReleasedRental:
    from netmind_rentgpu.rentals.ledger.records import RentalRecord

    spent = rental_row(rental)["spent"] if isinstance(rental, RentalRecord) else rental.spent
    return {
        "name": rental.name,
        "label": rental.label,
        "container_id": rental.container_id,
        "state": state,
        "spent": spent,
        "currency": rental.currency,
    }


async def _find_past(gpu: AsyncRentGPU, wanted: str, *, is_exact: bool = False) -> PastRental | None:
    """Return the last rental that is over and has this name, label or container id, or a name with this part.

    Args:
        is_exact: True if a part of a name is not enough.
    """
    past = await gpu.rentals.history()
    levels: tuple[Callable[[PastRental], bool], ...] = (
        lambda rental: wanted in (rental.name, rental.label, str(rental.container_id)),
        lambda rental: wanted in rental.name,
    )
    for matches in levels[:1] if is_exact else levels:
        if found := [rental for rental in past if matches(rental)]:
            return found[-1]
    return None

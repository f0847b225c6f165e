"""`rentgpu budgets`: limits that the rentals of several programs share."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import click

from netmind_rentgpu.cli.columns import BUDGETS
from netmind_rentgpu.cli.completions import budgets
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.options import AMOUNT, Command, Group, completed_by
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU

__all__ = ["command"]


@click.group("budgets", cls=Group)
def command() -> None:
    """List, set and remove limits that several programs share.

    `rentgpu rent --shared-budget NAME` keeps to one. They stand in the state file.
    """


@command.command("list", cls=Command, reads_only=True)
def list_budgets(session: Session) -> None:
    """List the budgets, each with what is spent and reserved in its present period."""
    session.results.rows(session.run(_rows), BUDGETS)


@command.command("set", cls=Command, reads_only=True)
@click.argument("name", shell_complete=completed_by(budgets))
@click.argument("limit", type=AMOUNT, required=False)
@click.option(
    "--per", type=click.Choice(("day", "month")), help="The period of the limit, in UTC; for all time by default."
)
@click.option("--hourly", type=AMOUNT, help="The most that the rentals which run at once may cost in an hour.")
@click.option("--currency", metavar="NAME", help="The currency of both limits.")
def set_budget(
    session: Session,
    *,
    name: str,
    limit: Decimal | None,
    per: Literal["day", "month"] | None,
    hourly: Decimal | None,
    currency: str | None,
) -> None:
    """Make a budget, or replace the limits of one."""

    async def work(gpu: AsyncRentGPU) -> dict[str, Any]:
        await gpu.budgets.set(name, limit, per=per, hourly=hourly, currency=currency)
        return next(row for row in await _rows(gpu) if row["name"] == name)

    session.results.value(session.run(work), BUDGETS)


@command.command("remove", cls=Command, reads_only=True)
@click.argument("name", shell_complete=completed_by(budgets))
def remove_budget(session: Session, *, name: str) -> None:
    """Remove a budget. It asks; the history stays. A budget that is gone is no error."""

    async def work(gpu: AsyncRentGPU) -> dict[str, Any]:
        row = next((row for row in await _rows(gpu) if row["name"] == name), None)
        if row is None:
            session.notes.say(f"budget {name} is gone already")
            return {"name": name}
        if row["holders"]:
            raise CommandError(
                ExitCode.NO, f"budget {name} has open rentals: {', '.join(row['holders'])}", "Release them first."
            )
        session.confirm(
            f"Budget {name} is removed; it has spent {row['spent']} {row['currency']} in its present period."
        )
        await gpu.budgets.remove(name)
        return row

    session.results.value(session.run(work), BUDGETS)


async def _rows(gpu: AsyncRentGPU) -> list[dict[str, Any]]:
    return [budget.to_dict() for budget in await gpu.budgets.list()]

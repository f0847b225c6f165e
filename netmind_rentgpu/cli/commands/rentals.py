"""`rentgpu rentals`: what is rented, by this account and state file."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

import click

from netmind_rentgpu.cli import completions
from netmind_rentgpu.cli.options import AMOUNT, DURATION, MOMENT, SINCE, Command, Group, completed_by
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.group("rentals", cls=Group)
def command() -> None:
    """List, show, extend, release and count rentals.

    RENTAL is a name or a part of it, a label, or a container's id; it may be left out where one rental is open.
    """


@command.command("list", cls=Command, reads_only=True)
def list_rentals(session: Session) -> None:
    """List what is rented. It reads the state file alone."""
    from netmind_rentgpu.cli.rentals import print_rentals

    print_rentals(session)


@command.command("show", cls=Command, reads_only=True)
@click.argument("rental", required=False, shell_complete=completed_by(completions.rentals))
def show_rental(session: Session, *, rental: str | None) -> None:
    """Show one rental."""
    from netmind_rentgpu.cli.rentals import print_rental

    print_rental(session, rental)


@command.command("extend", cls=Command, reads_only=True)
@click.argument("rental", required=False, shell_complete=completed_by(completions.rentals))
@click.option("--ttl", type=DURATION, help="The time from now on for which it may run.")
@click.option("--until", type=MOMENT, help="The moment until which it may run, such as 18:30.")
@click.option("--budget", type=AMOUNT, help="The new total of what it may cost.")
def extend_rental(
    session: Session, *, rental: str | None, ttl: timedelta | None, until: datetime | None, budget: Decimal | None
) -> None:
    """Move the deadline of a rental; it never becomes earlier."""
    from netmind_rentgpu.cli.rentals import extend

    extend(session, rental, ttl=ttl, until=until, budget=budget)


@command.command("release", cls=Command)
@click.argument("rentals", nargs=-1, metavar="RENTAL...", shell_complete=completed_by(completions.rentals))
@click.option("--force", is_flag=True, help="Also where a living process uses it.")
def release_rentals(session: Session, *, rentals: tuple[str, ...], force: bool) -> int:
    """Delete machines now. It asks; what is gone already is no error."""
    from netmind_rentgpu.cli.rentals import release

    return release(session, rentals, force=force)


@command.command("reap", cls=Command)
@click.option("--wait", is_flag=True, help="Wait until no machine of an unclear create can turn up any more.")
@click.option("--by-name", is_flag=True, help="Go by the containers' names alone, without the state file.")
def reap_rentals(session: Session, *, wait: bool, by_name: bool) -> int:
    """Delete machines whose time is up, or whose process is dead.

    It leaves alone what a living process uses, so it does not ask: run it from a cron job.
    """
    from netmind_rentgpu.cli.rentals import reap

    return reap(session, wait=wait, by_name=by_name)


@command.command("spend", cls=Command, reads_only=True)
@click.option("--since", type=SINCE, metavar="TIME", help="The beginning: a moment, or so long ago, such as 7d.")
@click.option("--until", type=MOMENT, help="The end.")
@click.option("--by", type=click.Choice(("label", "gpu", "day")), default="label", show_default=True, help="The lines.")
def spend(
    session: Session,
    *,
    since: datetime | timedelta | None,
    until: datetime | None,
    by: Literal["label", "gpu", "day"],
) -> None:
    """Count what rentals have cost, by listed price and time. It reads the state file alone."""
    from netmind_rentgpu.cli.rentals import print_spending

    print_spending(session, since=since, until=until, by=by)


@command.command("watch", cls=Command, reads_only=True)
@click.option("--interval", type=DURATION, default="2s", show_default=True, help="The time between two looks.")
def watch_rentals(session: Session, *, interval: timedelta) -> None:
    """Show what is rented, until Ctrl-C.

    On a terminal, it is a table that is redrawn; else, each rental that is new, has changed or is over is a line of JSON.
    """
    from netmind_rentgpu.cli.watching import watch

    watch(session, interval)

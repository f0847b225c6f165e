"""`rentgpu ssh`: a shell on a rented machine."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.completions import rentals
from netmind_rentgpu.cli.options import Command, completed_by
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("ssh", cls=Command, takes_command=True, prints=False)
@click.argument("target", required=False, shell_complete=completed_by(rentals))
@click.option("-t", "--tty", is_flag=True, help="Connect the command to this terminal.")
def command(session: Session, *, target: str | None, tty: bool) -> int:
    """Open a shell on a machine, or run a command there.

    TARGET is a rental's name or a part of it, a label, or a container's id; it may be left out where one rental is open.
    The machine stays rented.
    """
    from netmind_rentgpu.cli.shells import use_machine

    return use_machine(session, target, has_terminal=tty, environment={})

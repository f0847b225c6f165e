"""`rentgpu run`: a command on a rented machine."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.completions import rentals
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.options import VARIABLE, Command, completed_by
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("run", cls=Command, takes_command=True, prints=False)
@click.argument("target", required=False, shell_complete=completed_by(rentals))
@click.option("-t", "--tty", is_flag=True, help="Connect the command to this terminal.")
@click.option("--env", multiple=True, type=VARIABLE, metavar="NAME[=VALUE]", help="A variable of the command.")
def command(session: Session, *, target: str | None, tty: bool, env: tuple[tuple[str, str], ...]) -> int:
    """Run a command on a machine.

    Its output and exit status become those of this program. TARGET is as for `rentgpu ssh`. Several words behind -- are
    quoted and joined; a single one is a line for the machine's shell. --timeout ends it.
    """
    from netmind_rentgpu.cli.shells import use_machine

    if session.command is None:
        raise CommandError(
            ExitCode.USAGE, "there is no command", "Give one behind --: rentgpu run TARGET -- nvidia-smi"
        )
    return use_machine(session, target, has_terminal=tty, environment=dict(env))

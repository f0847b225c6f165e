"""`rentgpu login`: save a token."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.completions import accounts, files
from netmind_rentgpu.cli.options import Command, completed_by
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("login", cls=Command, reads_only=True)
@click.argument("name", metavar="ACCOUNT", required=False, shell_complete=completed_by(accounts))
@click.option(
    "--token-file",
    metavar="FILE",
    help="Read the token from a file, or from stdin with -.",
    shell_complete=completed_by(files),
)
def command(session: Session, *, name: str | None, token_file: str | None) -> int:
    """Check an API token, and save it for further commands.

    It asks for the token, which the terminal does not show; a token is never a word of the command line. Without a name, it
    is for the account in use, which is called `default` at first. --base-url and --profile are saved with it.
    """
    from netmind_rentgpu.cli.accounts import log_in

    return log_in(session, name, token_file)

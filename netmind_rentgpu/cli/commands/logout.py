"""`rentgpu logout`: remove a saved token."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.completions import accounts
from netmind_rentgpu.cli.options import Command, completed_by
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("logout", cls=Command, reads_only=True)
@click.argument("name", metavar="ACCOUNT", required=False, shell_complete=completed_by(accounts))
def command(session: Session, *, name: str | None) -> int:
    """Remove an account and its saved token. It asks.

    What is rented stays rented: release it before.
    """
    from netmind_rentgpu.cli.accounts import log_out

    return log_out(session, name)

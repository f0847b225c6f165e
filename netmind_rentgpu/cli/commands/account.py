"""`rentgpu account`: the accounts of the configuration file."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.completions import accounts
from netmind_rentgpu.cli.options import Command, Group, completed_by
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.group("account", cls=Group)
def command() -> None:
    """List, choose and show accounts.

    `rentgpu login` adds one. A token is never shown.
    """


@command.command("list", cls=Command, reads_only=True)
def list_accounts(session: Session) -> None:
    """List the accounts of config.toml."""
    from netmind_rentgpu.cli.accounts import print_accounts

    print_accounts(session)


@command.command("use", cls=Command, reads_only=True)
@click.argument("name", metavar="ACCOUNT", shell_complete=completed_by(accounts))
def use_account(session: Session, *, name: str) -> None:
    """Use an account from now on.

    NETMIND_API_KEY and --account go before it.
    """
    from netmind_rentgpu.cli.accounts import use

    use(session, name)


@command.command("show", cls=Command, reads_only=True)
@click.argument("name", metavar="ACCOUNT", required=False, shell_complete=completed_by(accounts))
def show_account(session: Session, *, name: str | None) -> None:
    """Show one account, by default the one in use."""
    from netmind_rentgpu.cli.accounts import print_account

    print_account(session, name)

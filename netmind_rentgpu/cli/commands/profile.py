"""`rentgpu profile`: the assumptions about the service where its documentation is silent."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.options import Command, Group
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.group("profile", cls=Group)
def command() -> None:
    """Show and check the assumptions about the service.

    --profile or NETMIND_RENTGPU_PROFILE names a TOML file with other ones.
    """


@command.command("show", cls=Command, reads_only=True)
def show_profile(session: Session) -> None:
    """Show each assumption in use, and where it is from. It needs no account."""
    from netmind_rentgpu.cli.profiles import print_profile

    print_profile(session)


@command.command("check", cls=Command, reads_only=True)
def check_profile(session: Session) -> int:
    """Make a few calls that only read, and compare the answers.

    An assumption is confirmed, contradicted, or open: most show only when a container is created, deleted or billed. The
    exit code is 1 if an assumption is contradicted.
    """
    from netmind_rentgpu.cli.profiles import print_check

    return print_check(session)

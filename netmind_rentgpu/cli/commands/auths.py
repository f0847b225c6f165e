"""`rentgpu auths`: the passwords of containers' SSH logins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from netmind_rentgpu.cli.columns import AUTHS
from netmind_rentgpu.cli.completions import files
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.options import Command, Group, completed_by
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session, is_terminal

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.models import Auth

__all__ = ["command"]

_FILE = click.option(
    "--password-file",
    metavar="FILE",
    shell_complete=completed_by(files),
    help="A file with the password; - for stdin. By default, it is asked for.",
)


@click.group("auths", cls=Group)
def command() -> None:
    """List, show and create passwords of SSH logins.

    An auth is a password that containers are created with. The service deletes none, so use one for many containers.
    """


@command.command("list", cls=Command, reads_only=True)
def list_auths(session: Session) -> None:
    """List the account's passwords, each masked."""

    async def work(gpu: AsyncRentGPU) -> list[Auth]:
        return [auth async for auth in gpu.auths.list()]

    session.results.rows([auth.to_dict() for auth in session.run(work)], AUTHS)


@command.command("show", cls=Command, reads_only=True)
@click.argument("auth_id", type=int, metavar="ID")
@click.option("--reveal", is_flag=True, help="Show the password itself: on a terminal, or with --yes.")
def show_auth(session: Session, *, auth_id: int, reveal: bool) -> None:
    """Show one password, masked without --reveal."""
    if reveal and not (session.options.yes or is_terminal(1)):
        raise CommandError(
            ExitCode.USAGE,
            "--reveal would write the password into a file or to another program, because stdout is no terminal",
            "Add --yes if that is what you want.",
        )
    auth = session.run(lambda gpu: gpu.auths.get(auth_id))
    session.results.value(auth.to_dict(secrets=reveal), AUTHS)


@command.command("ensure", cls=Command)
@_FILE
def ensure_auth(session: Session, *, password_file: str | None) -> None:
    """Find a password among the account's, or store it; show its id.

    A password has 8 to 32 characters.
    """
    _store(session, password_file, "ensure")


@command.command("create", cls=Command)
@_FILE
def create_auth(session: Session, *, password_file: str | None) -> None:
    """Store a password, and show its id.

    A password has 8 to 32 characters. `ensure` stores none twice.
    """
    _store(session, password_file, "create")


def _store(session: Session, path: str | None, method: Literal["ensure", "create"]) -> None:
    from netmind_rentgpu.cli.secret_input import read_secret

    async def work(gpu: AsyncRentGPU) -> Auth:
        password = read_secret(session, path, kind="password", option="--password-file", question="Password")
        return await (gpu.auths.ensure(password) if method == "ensure" else gpu.auths.create(password))

    session.results.value(session.run(work).to_dict(), AUTHS)

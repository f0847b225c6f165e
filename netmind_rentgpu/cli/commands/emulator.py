"""`rentgpu emulator`: an emulated service on a port of this machine."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.options import Command
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command(
    "emulator",
    cls=Command,
    prints=False,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(session: Session, *, arguments: tuple[str, ...]) -> int:
    """Serve an emulated service, which needs no account."""
    from netmind_rentgpu.emulator.__main__ import main

    del session
    try:
        return main(arguments, program="rentgpu emulator")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1

"""`rentgpu completion`: the completion of a shell."""

from __future__ import annotations

from importlib.resources import files

import click

from netmind_rentgpu.cli.options import Command
from netmind_rentgpu.cli.output import write_bytes
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("completion", cls=Command, reads_only=True, prints=False)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(session: Session, *, shell: str) -> None:
    """Print the completion of a shell.

    It completes commands, options, and the names of rentals, budgets, accounts and pages of the guide, for rentgpu and for
    netmind-rentgpu, without the network.

    \b
    ~/.bashrc, bash 4.4 or newer:  eval "$(rentgpu completion bash)"
    ~/.zshrc, behind compinit:     eval "$(rentgpu completion zsh)"
    ~/.config/fish/config.fish:    rentgpu completion fish | source
    """  # noqa: D301  # the character by which click keeps lines
    del session
    write_bytes(files("netmind_rentgpu.cli").joinpath(f"completion.{shell}").read_bytes())

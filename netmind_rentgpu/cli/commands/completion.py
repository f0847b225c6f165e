"""`rentgpu completion`: the completion of a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from netmind_rentgpu.cli.options import Command
from netmind_rentgpu.cli.output import write_bytes
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]

_PROGRAMS = ("rentgpu", "netmind-rentgpu")


@click.command("completion", cls=Command, reads_only=True, prints=False)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(session: Session, *, shell: str) -> None:
    """Print the completion of a shell.

    Put `eval "$(rentgpu completion bash)"` into ~/.bashrc, the same with zsh into ~/.zshrc, or
    `rentgpu completion fish | source` into ~/.config/fish/config.fish.
    """
    from netmind_rentgpu.cli.app import app

    del session
    kind = get_completion_class(shell)
    if kind is None:
        raise RuntimeError(f"click knows no {shell}")
    scripts = [kind(app, {}, program, f"_{program.replace('-', '_').upper()}_COMPLETE") for program in _PROGRAMS]
    write_bytes("".join(f"{script.source()}\n" for script in scripts).encode())

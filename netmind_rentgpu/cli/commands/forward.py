"""`rentgpu forward`: ports of this machine that lead to a rented one."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.completions import rental_before_ports
from netmind_rentgpu.cli.options import PORTS, Command, completed_by
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("forward", cls=Command)
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="[TARGET] [LOCAL:]REMOTE...",
    shell_complete=completed_by(rental_before_ports),
)
@click.pass_context
def command(context: click.Context, session: Session, *, words: tuple[str, ...]) -> None:
    """Forward ports of this machine to those of a machine.

    `rentgpu forward sweep-3 8888 0:6006` listens on 127.0.0.1:8888 and on a free port, until Ctrl-C. A lost connection is
    made again. A single word is a port of the only open rental.
    """
    from netmind_rentgpu.cli.forwarding import forward

    target, ports = (None, words) if len(words) == 1 else (words[0], words[1:])
    forward(session, target, [PORTS.convert(port, None, context) for port in ports])

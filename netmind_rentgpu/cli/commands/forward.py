"""`rentgpu forward`: ports of this machine that lead to a rented one."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.options import PORTS, Command
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.values import PortPair

__all__ = ["command"]


@click.command("forward", cls=Command)
@click.argument("target")
@click.argument("ports", nargs=-1, required=True, type=PORTS, metavar="[LOCAL:]REMOTE...")
def command(session: Session, *, target: str, ports: tuple[PortPair, ...]) -> None:
    """Forward ports of this machine to those of a machine.

    `rentgpu forward sweep-3 8888 0:6006` listens on 127.0.0.1:8888 and on a free port, until Ctrl-C. A lost connection is
    made again.
    """
    from netmind_rentgpu.cli.forwarding import forward

    forward(session, target, ports)

"""`rentgpu schema`: the form of a command's results."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.options import Command
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("schema", cls=Command, reads_only=True, prints=False)
@click.argument("words", nargs=-1, required=True, metavar="COMMAND...")
def command(session: Session, *, words: tuple[str, ...]) -> None:
    """Print the JSON Schema of a command's results.

    `rentgpu schema rentals list` describes what `rentgpu rentals list -o json` prints. With `-o jsonl`, each line is an item
    of the array.
    """
    from netmind_rentgpu.cli.output import write_bytes
    from netmind_rentgpu.cli.schemas import schema_of_command
    from netmind_rentgpu.wire.payload import dump_exactly

    del session
    write_bytes(dump_exactly(schema_of_command(" ".join(words)), indented=True) + b"\n")

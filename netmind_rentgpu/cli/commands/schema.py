"""`rentgpu schema`: the form of a command's results."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.completions import results
from netmind_rentgpu.cli.options import Command, completed_by
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("schema", cls=Command, reads_only=True, prints=False)
@click.argument("names", nargs=-1, required=True, metavar="COMMAND...", shell_complete=completed_by(results))
def command(session: Session, *, names: tuple[str, ...]) -> None:
    """Print the JSON Schema of a command's results.

    `rentgpu schema rentals list` describes what `rentgpu rentals list -o json` prints. With `-o jsonl`, each line is an item
    of the array.
    """
    from netmind_rentgpu.cli.output import write_bytes
    from netmind_rentgpu.cli.schemas import schema_of_command
    from netmind_rentgpu.wire.payload import dump_exactly

    del session
    write_bytes(dump_exactly(schema_of_command(" ".join(names)), indented=True) + b"\n")

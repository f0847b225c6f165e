"""`rentgpu cp`: copies to and from a rented machine."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.completions import places
from netmind_rentgpu.cli.options import Command, completed_by
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("cp", cls=Command, prints=False)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", shell_complete=completed_by(places))
@click.argument("destination", metavar="DESTINATION")
@click.option("--exclude-file", multiple=True, metavar="PATTERN", help="Do not upload such files.")
def command(session: Session, *, sources: tuple[str, ...], destination: str, exclude_file: tuple[str, ...]) -> None:
    """Copy files to or from a machine.

    TARGET:path is a path on a machine, from the login's home folder, and :path one on the only open rental; - is stdin or
    stdout. Folders are copied with all that is in them. As with cp, several sources go into a folder.
    """
    from netmind_rentgpu.cli.places import copy

    copy(session, sources, destination, exclude_file)

"""`rentgpu help`: the guide, and the documentation of public names."""

from __future__ import annotations

import click

from netmind_rentgpu.cli.completions import topics
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.guide import NoSuchTopicError, help_text
from netmind_rentgpu.cli.options import Command, completed_by
from netmind_rentgpu.cli.output import write_bytes
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session, is_terminal

__all__ = ["command"]


@click.command("help", cls=Command, reads_only=True, prints=False)
@click.argument("topic", nargs=-1, shell_complete=completed_by(topics))
def command(session: Session, *, topic: tuple[str, ...]) -> None:
    """Print a page of the guide, or of the reference.

    Without TOPIC, the index; `rentgpu help reference NAME` prints the documentation of a class or method.
    """
    del session
    try:
        text = help_text(list(topic))
    except NoSuchTopicError as error:
        raise CommandError(ExitCode.NOT_FOUND, str(error)) from error
    if is_terminal(1) and not (len(topic) == 2 and topic[0] == "reference"):
        from netmind_rentgpu.cli.markdown import print_markdown

        print_markdown(text)
    else:
        write_bytes(text.encode())

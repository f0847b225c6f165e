"""`rentgpu logs`: what a job has written."""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from netmind_rentgpu.cli.completions import rentals
from netmind_rentgpu.cli.options import SINCE, Command, completed_by
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("logs", cls=Command, reads_only=True)
@click.argument("target", required=False, shell_complete=completed_by(rentals))
@click.argument("job", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what the job writes until it is over.")
@click.option(
    "--since", type=SINCE, metavar="TIME", help="Begin at a moment, such as 18:30, or so long ago, such as 10m."
)
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Begin so many lines before the end.")
def command(
    session: Session,
    *,
    target: str | None,
    job: str | None,
    follow: bool,
    since: datetime | timedelta | None,
    tail: int | None,
) -> None:
    """Print what a job has written.

    What it wrote to stdout goes to stdout, and the rest to stderr. TARGET is as for `rentgpu ssh`; JOB may be left out where
    the machine has one. `-o jsonl` prints both, each line with its stream, its time and its position.
    """
    from netmind_rentgpu.cli.jobs import print_logs

    print_logs(session, target, job, follow=follow, since=since, tail=tail)

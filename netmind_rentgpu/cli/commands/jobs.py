"""`rentgpu jobs`: the jobs of a rented machine."""

from __future__ import annotations

from datetime import timedelta

import click

from netmind_rentgpu.cli.completions import rentals
from netmind_rentgpu.cli.options import DURATION, Command, Group, completed_by
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.group("jobs", cls=Group)
def command() -> None:
    """List, stop, wait for and remove jobs.

    TARGET is as for `rentgpu ssh`. JOB may be left out where the machine has one.
    """


@command.command("list", cls=Command, reads_only=True)
@click.argument("target", required=False, shell_complete=completed_by(rentals))
def list_jobs(session: Session, *, target: str | None) -> None:
    """List the jobs of a machine, those that are over included."""
    from netmind_rentgpu.cli.jobs import print_jobs

    print_jobs(session, target)


@command.command("wait", cls=Command, reads_only=True)
@click.argument("target", required=False, shell_complete=completed_by(rentals))
@click.argument("job", required=False)
def wait_for_job(session: Session, *, target: str | None, job: str | None) -> int:
    """Wait until a job is over, and exit with its status.

    --timeout ends the wait with 124; the job goes on.
    """
    from netmind_rentgpu.cli.jobs import wait_for_job as wait

    return wait(session, target, job)


@command.command("stop", cls=Command)
@click.argument("target", required=False, shell_complete=completed_by(rentals))
@click.argument("job", required=False)
@click.option("--grace", type=DURATION, default="10s", show_default=True, help="The time between SIGTERM and SIGKILL.")
def stop_job(session: Session, *, target: str | None, job: str | None, grace: timedelta) -> None:
    """End all processes of a job. It asks."""
    from netmind_rentgpu.cli.jobs import stop_job as stop

    stop(session, target, job, grace)


@command.command("remove", cls=Command)
@click.argument("target", required=False, shell_complete=completed_by(rentals))
@click.argument("job", required=False)
def remove_job(session: Session, *, target: str | None, job: str | None) -> None:
    """Delete the files of a job that is over, its log included. It asks."""
    from netmind_rentgpu.cli.jobs import remove_job as remove

    remove(session, target, job)

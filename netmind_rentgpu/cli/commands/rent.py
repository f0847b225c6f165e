"""`rentgpu rent`: a machine for a command, a shell or a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from netmind_rentgpu.cli.columns import OFFERS_WITH_COST
from netmind_rentgpu.cli.completions import files
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.needs import offer_arguments, rent_arguments, with_needs
from netmind_rentgpu.cli.options import VARIABLE, Command, completed_by
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


@click.command("rent", cls=Command, takes_command=True, options_metavar="[NEEDS]")
@with_needs(renting=True)
@click.option(
    "--upload",
    multiple=True,
    metavar="PATH",
    help="Copy it into the command's working folder before.",
    shell_complete=completed_by(files),
)
@click.option("--download", multiple=True, metavar="PATH", help="Fetch it from there afterwards, into this folder.")
@click.option(
    "--exclude-file", multiple=True, metavar="PATTERN", help="Do not upload such files; .git and .venv never are."
)
@click.option("--env", multiple=True, type=VARIABLE, metavar="NAME[=VALUE]", help="A variable of the command.")
@click.option(
    "--count",
    type=int,
    metavar="N",
    help="Rent so many, and run the command on each, with RENTGPU_INDEX and RENTGPU_COUNT. The worst exit code counts.",
)
@click.option("-d", "--detach", is_flag=True, help="Leave the command running as a job, and print the rental's name.")
@click.option("-t", "--tty", is_flag=True, help="Connect the command to this terminal.")
@click.option(
    "--dry-run", is_flag=True, help="List what would be tried, and what each would cost at most. Rents nothing."
)
@click.option(
    "--report",
    metavar="FILE",
    help="Write how it went into this file, as JSON.",
    shell_complete=completed_by(files),
)
def command(session: Session, **options: Any) -> int:
    """Rent a machine, run a command there, and give it back.

    Without a command, it opens a shell. The command's output and exit status become those of this program.
    """
    _use_defaults(session, options)
    wanted = rent_arguments(options, session.now())
    if options["dry_run"]:
        return _dry_run(session, options, wanted)
    return _rent(session, options, wanted)


def _use_defaults(session: Session, options: dict[str, Any]) -> None:
    """Fill in the defaults of the configuration file, in place of options that were not given."""
    defaults = session.defaults
    if options["ttl"] is None and options["until"] is None:
        options["ttl"] = defaults.ttl
    for name, value in (("budget", defaults.budget), ("image", defaults.image)):
        if options[name] is None:
            options[name] = value


def _rent(session: Session, options: dict[str, Any], wanted: dict[str, Any]) -> int:
    from netmind_rentgpu import arguments
    from netmind_rentgpu.cli.copying import Upload, check_distinct, check_local, local_target
    from netmind_rentgpu.cli.rent_run import RentRun, Work
    from netmind_rentgpu.ssh.commands import prepared

    line, is_detached, has_terminal = session.command_line(), options["detach"], options["tty"]
    if is_detached and (has_terminal or options["download"]):
        raise CommandError(ExitCode.USAGE, "-d leaves the command running: it goes with neither -t nor --download")
    if (has_terminal or (line is None and not is_detached)) and not session.has_terminal():
        raise CommandError(ExitCode.USAGE, "no terminal is here for a shell", "Give a command behind --, or -d.")
    count = options["count"]
    if count is not None and (is_detached or has_terminal or line is None):
        raise CommandError(ExitCode.USAGE, "--count goes with a command behind --, and with neither -d nor -t")
    environment = dict(options["env"])
    if is_detached and line is None and environment:
        raise CommandError(ExitCode.USAGE, "--env goes with a command or a shell")
    if options["exclude_file"] and not options["upload"]:
        raise CommandError(ExitCode.USAGE, "--exclude-file goes with --upload")
    for path in options["upload"]:
        check_local(path)
    uploads = [Upload.of(path) for path in options["upload"]]
    check_distinct("--upload", [upload.name for upload in uploads])
    check_distinct("--download", [local_target(path) for path in options["download"]])
    # Before a machine is rented for what could not run there.
    prepared(line or "true", environment or None, None)
    if (report := options["report"]) is not None:
        _check_writable(report)
    session.reads_only = False
    work = Work(
        command=line,
        is_detached=is_detached,
        has_terminal=has_terminal,
        uploads=uploads,
        downloads=options["download"],
        excluded=options["exclude_file"],
        environment=environment,
        report=report,
    )
    if count is not None:
        from netmind_rentgpu.cli.fleet_run import FleetRun

        return FleetRun(session, work, arguments.count("count", count)).run(wanted, offer_arguments(options))
    return RentRun(session, work).run(wanted, offer_arguments(options))


def _dry_run(session: Session, options: dict[str, Any], wanted: dict[str, Any]) -> int:
    from datetime import timedelta

    from netmind_rentgpu.cli.columns import offer_rows_with_cost

    session.reads_only = True
    offers = session.run(lambda gpu: gpu.offers(**offer_arguments(options)))
    ttl, budget = wanted.get("ttl", timedelta(hours=24)), wanted.get("budget")
    session.results.rows(offer_rows_with_cost(offers, session.now(), ttl, budget), OFFERS_WITH_COST)
    return ExitCode.DONE


def _check_writable(path: str) -> None:
    try:
        # Emptied, because an older report would be taken for this one.
        Path(path).open("wb").close()
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"--report {path} cannot be written: {error.strerror}") from error

"""`rentgpu config`: the settings of the command line."""

from __future__ import annotations

import os

import click

from netmind_rentgpu.cli.completions import settings
from netmind_rentgpu.cli.configuration import SETTINGS, settings_in_effect
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.options import Command, Group, completed_by
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.config_file import config_path

__all__ = ["command"]


@click.group("config", cls=Group)
def command() -> None:
    """List the settings, and show where each comes from.

    They are those of options, of the environment, of the account in use and of config.toml, in this order.
    """


@command.command("list", cls=Command, reads_only=True)
def list_settings(session: Session) -> None:
    """List each setting with its value and its source."""
    session.results.rows(settings_in_effect(session.options, os.environ, session.config), SETTINGS)


@command.command("get", cls=Command, reads_only=True)
@click.argument("name", shell_complete=completed_by(settings))
def get_setting(session: Session, *, name: str) -> None:
    """Print the value of one setting; of a token, only that it is set."""
    rows = {row["name"]: row for row in settings_in_effect(session.options, os.environ, session.config)}
    if name not in rows:
        raise CommandError(ExitCode.USAGE, f"{name!r} is no setting", f"It may be {', '.join(rows)}.")
    value = rows[name]["value"]
    session.results.text("" if value is None else value, rows[name])


@command.command("path", cls=Command, reads_only=True, prints=False)
def print_path(session: Session) -> None:
    """Print the path of config.toml, which need not exist."""
    path = str(config_path(os.environ))
    session.results.text(path, {"path": path})

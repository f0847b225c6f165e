"""`rentgpu demo`: a rental on an emulated service."""

from __future__ import annotations

import asyncio
from math import isfinite

import click

from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.options import Command
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session

__all__ = ["command"]


def _finite(_context: click.Context, _option: click.Parameter, value: float) -> float:
    if not isfinite(value):
        raise click.BadParameter(f"must be a finite number of seconds, not {value:g}")
    return value


@click.command("demo", cls=Command, prints=False)
@click.option(
    "--live", is_flag=True, help="Only read from the real service, with the token in NETMIND_API_KEY. Rents nothing."
)
@click.option("--sync", "synchronous", is_flag=True, help="Use RentGPU, the synchronous client.")
@click.option("--seed", default=7, show_default=True, help="The seed of the emulated machines and prices.")
@click.option(
    "--boot-seconds",
    type=click.FloatRange(min=0),
    callback=_finite,
    default=2.0,
    show_default=True,
    help="The approximate time that an emulated container takes to start.",
)
def command(session: Session, *, live: bool, synchronous: bool, seed: int, boot_seconds: float) -> None:
    """Run a rental on an emulated service.

    It rents, uses and releases a GPU, and makes every call of the service. It needs no account.
    """
    from netmind_rentgpu.cli.demo import Demo

    show, options = Demo(), session.client_options()
    try:
        if synchronous:
            show.live_synchronously(options) if live else show.emulated_synchronously(seed, boot_seconds)
        else:
            asyncio.run(show.live(options) if live else show.emulated(seed, boot_seconds))
    except AssertionError as error:
        raise CommandError(ExitCode.NO, str(error)) from error

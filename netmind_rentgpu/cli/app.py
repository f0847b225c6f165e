"""The commands and their options. Only this file imports click."""

from __future__ import annotations

import asyncio
import sys
from math import isfinite

import click

from netmind_rentgpu.errors import RentGPUError
from netmind_rentgpu.version import __version__

__all__ = ["app"]


def _finite(_context: click.Context, _option: click.Parameter, value: float) -> float:
    if not isfinite(value):
        raise click.BadParameter(f"must be a finite number of seconds, not {value:g}")
    return value


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def app() -> None:
    """Rent GPUs on NetMind."""


@app.command("help")
@click.argument("topic", nargs=-1)
def help_command(*, topic: tuple[str, ...]) -> None:
    """Print a page of the guide, or with `reference NAME` the documentation of a class or method."""
    from netmind_rentgpu.cli.guide import NoSuchTopicError, help_text

    try:
        text = help_text(list(topic))
    except NoSuchTopicError as error:
        raise click.ClickException(str(error)) from error
    if sys.stdout.isatty() and not (len(topic) == 2 and topic[0] == "reference"):
        from netmind_rentgpu.cli.markdown import print_markdown

        print_markdown(text)
    else:
        click.echo(text, nl=False)


@app.command()
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
def demo(*, live: bool, synchronous: bool, seed: int, boot_seconds: float) -> None:
    """Rent, use and release a GPU on a local emulator, which needs no account."""
    from netmind_rentgpu.cli.demo import Demo

    show = Demo()
    try:
        if synchronous:
            show.live_synchronously() if live else show.emulated_synchronously(seed, boot_seconds)
        else:
            asyncio.run(show.live() if live else show.emulated(seed, boot_seconds))
    except (RentGPUError, AssertionError) as error:
        raise click.ClickException(str(error)) from error

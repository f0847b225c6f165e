"""The options that say which machine is needed, for how long and for how much: those of `rent` and `offers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import click

from netmind_rentgpu.cli.completions import budgets
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.options import AMOUNT, DURATION, MOMENT, completed_by
from netmind_rentgpu.cli.problems import CommandError

__all__ = ["offer_arguments", "rent_arguments", "with_needs"]

Function = TypeVar("Function", bound=Callable[..., Any])

# By the name of the option's parameter: the client's argument. Those of the first apply to offers, too.
_SELECTING: Final[Mapping[str, str]] = {
    "gpu": "gpu_name",
    "gpus": "gpus",
    "region": "regions",
    "max_price": "max_price",
    "min_memory": "min_memory",
    "min_gpu_memory": "min_gpu_memory",
    "min_disk": "min_disk",
    "cuda": "min_cuda",
    "exclude": "exclude",
    "balance": "payment_type",
}
_RENTING: Final[Mapping[str, str]] = {
    "image": "image",
    "ttl": "ttl",
    "extendable_to": "extendable_to",
    "budget": "budget",
    "shared_budget": "shared_budget",
    "idle_timeout": "idle_timeout",
    "wait_for_stock": "wait_for_stock",
    "label": "label",
}


def with_needs(*, renting: bool) -> Callable[[Function], Function]:
    """Return a decorator that adds the options.

    Args:
        renting: False to hide those that have no effect on which machines there are.
    """

    def several(*names: str, metavar: str, text: str) -> Callable[[Function], Function]:
        return click.option(*names, multiple=True, metavar=metavar, help=text)

    def later(*names: str, text: str, **named: Any) -> Callable[[Function], Function]:
        return click.option(*names, help=text, hidden=not renting, **named)

    options = (
        several("--gpu", metavar="NAME", text="A GPU that will do, such as 4090 or 'RTX 4090'. May be repeated."),
        click.option("--gpus", type=int, metavar="N", help="The number of GPUs, 1 by default."),
        several("--region", metavar="CODE", text="A region that will do, as two letters. May be repeated."),
        click.option("--max-price", type=AMOUNT, help="The highest listed price, of a GPU and an hour."),
        click.option("--min-memory", type=float, metavar="N", help="The least memory, in the service's unit."),
        click.option("--min-gpu-memory", type=float, metavar="N", help="The least memory of a GPU, likewise."),
        click.option("--min-disk", type=float, metavar="N", help="The least disk, likewise."),
        click.option("--cuda", metavar="VERSION", help="The least CUDA version, such as 12.4."),
        several("--exclude", metavar="NODE", text="A machine not to rent. May be repeated."),
        click.option("--balance", metavar="CURRENCY", help="The balance to charge, usd by default."),
        later(
            "--image", metavar="IMAGE", text="A name, repository:tag, label or id. By default the newest for PyTorch."
        ),
        later("--ttl", type=DURATION, text="The longest time to rent, 24h by default. The machine is deleted then."),
        later("--until", type=MOMENT, text="The moment until which to rent, such as 18:30, in place of --ttl."),
        later("--extendable-to", type=DURATION, text="The longest time that `rentals extend` may give it."),
        later("--budget", type=AMOUNT, text="The most that it may cost. The machine is deleted then."),
        later(
            "--shared-budget",
            metavar="NAME",
            text="A budget of `rentgpu budgets` to keep to, too.",
            shell_complete=completed_by(budgets),
        ),
        later("--idle-timeout", type=DURATION, text="How long it may be idle: it is deleted then."),
        later("--wait-for-stock", type=DURATION, text="How long to wait for a machine if none is available."),
        later("--label", metavar="NAME", text="A name of your own, by which commands find it."),
    )

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def offer_arguments(needs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the client's arguments for offers."""
    return _given(needs, _SELECTING)


def rent_arguments(needs: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return the client's arguments for a rental.

    Raises:
        CommandError: the time is given twice, or has passed.
    """
    found = _given(needs, _SELECTING) | _given(needs, _RENTING)
    until: datetime | None = needs["until"]
    if until is None:
        return found
    if needs["ttl"] is not None:
        raise CommandError(ExitCode.USAGE, "--ttl and --until say the same thing: give one of them")
    if until - now <= timedelta(0):
        raise CommandError(ExitCode.USAGE, f"--until {until:%Y-%m-%d %H:%M:%S} has passed")
    return found | {"ttl": until - now}


def _given(needs: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    given = {argument: needs[option] for option, argument in names.items() if needs[option] not in (None, ())}
    image = given.get("image")
    return given if image is None or not image.isdecimal() else given | {"image": int(image)}

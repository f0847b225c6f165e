"""The defaults of the command line, from `config.toml`. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import TypeVar

import attrs

from netmind_rentgpu.cli import values
from netmind_rentgpu.cli.output import FORMATS, Format
from netmind_rentgpu.config_file import ConfigFile

__all__ = ["Defaults", "read_defaults"]

Value = TypeVar("Value")


@attrs.frozen(kw_only=True)
class Defaults:
    """The values of `[defaults]`; None for those that it does not have.

    Attributes:
        ttl, budget, image: those of `rent` without the option.
        output: the form of results without `--output`.
        ask_above: the highest cost for which `rent` does not ask.
    """

    ttl: timedelta | None = None
    budget: Decimal | None = None
    image: str | None = None
    output: Format | None = None
    ask_above: Decimal | None = None


def read_defaults(config: ConfigFile) -> Defaults:
    """Return the defaults of a configuration file.

    Raises:
        ConfigurationError: a value cannot be used; the error names it.
    """

    def read(name: str, reader: Callable[[str], Value]) -> Value | None:
        text = config.defaults.get(name)
        try:
            return None if text is None else reader(text)
        except ValueError as error:
            raise config.error(f"defaults.{name}: {error}") from None

    return Defaults(
        ttl=read("ttl", values.some_duration),
        budget=read("budget", _budget),
        image=read("image", str),
        output=read("output", _output),
        ask_above=read("ask_above", values.money),
    )


def _budget(text: str) -> Decimal:
    budget = values.money(text)
    if not budget:
        raise ValueError("must be above 0")
    return budget


def _output(text: str) -> Format:
    for form in FORMATS:
        if form == text:
            return form
    raise ValueError(f"{text!r} is no form of results; it may be {', '.join(FORMATS)}")

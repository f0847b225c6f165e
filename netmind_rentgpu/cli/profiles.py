"""`profile`: the profile in use, and a check of it by calls that only read."""

from __future__ import annotations

import os
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import attrs

from netmind_rentgpu.accounts import choose_account
from netmind_rentgpu.cli.cells import Column, Row
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.profile import ServiceProfile, profile_path

if TYPE_CHECKING:
    from netmind_rentgpu.cli.profile_check import Finding
    from netmind_rentgpu.cli.rows import ProfileValue, ProfileVerdict
    from netmind_rentgpu.client import AsyncRentGPU

__all__ = ["print_check", "print_profile"]


def _value(row: Row) -> str:
    value = row["value"]
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in cast("dict[str, int]", value).items()) or "none"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


_VALUES: Final = (
    Column("name", "NAME"),
    Column("value", "VALUE", show=_value),
    Column("source", "FROM", show=lambda row: row["file"] or row["source"]),
)
_VERDICTS: Final = (
    Column("name", "NAME"),
    Column("value", "VALUE", 2, show=_value),
    Column("verdict", "VERDICT"),
    Column("seen", "SEEN", 1),
)


def print_profile(session: Session) -> None:
    """Print each field of the profile in use.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    choice = choose_account(session.options.account, token=None, environment=os.environ)
    path = profile_path(session.options.profile, os.environ, choice)
    profile = ServiceProfile() if path is None else ServiceProfile.from_toml(path)
    in_file = set[str]() if path is None else tomllib.loads(Path(path).read_text(encoding="utf-8-sig")).keys()
    rows: list[ProfileValue] = [
        {
            "name": name,
            "value": value,
            "source": "file" if name in in_file else "default",
            "file": path if name in in_file else None,
        }
        for name, value in _values_of(profile).items()
    ]
    session.results.rows(rows, _VALUES)


def print_check(session: Session) -> int:
    """Print the verdict on each field of the profile in use, and return the exit code.

    Raises:
        RentGPUError: the service did not answer, or accepts the token in neither form.
    """
    from netmind_rentgpu.cli.profile_check import find_verdicts
    from netmind_rentgpu.client import AsyncRentGPU

    def with_profile(profile: ServiceProfile) -> AsyncRentGPU:
        options: dict[str, Any] = {**session.client_options(), "profile": profile}
        return AsyncRentGPU(**options)

    async def work(gpu: AsyncRentGPU) -> tuple[ServiceProfile, dict[str, Finding]]:
        return gpu.profile, await find_verdicts(gpu, with_profile)

    profile, findings = session.run(work)
    rows: list[ProfileVerdict] = [
        {"name": name, "value": value, "verdict": findings[name].verdict, "seen": findings[name].seen}
        for name, value in _values_of(profile).items()
    ]
    session.results.rows(rows, _VERDICTS)
    return ExitCode.NO if any(row["verdict"] == "contradicted" for row in rows) else ExitCode.DONE


def _values_of(profile: ServiceProfile) -> dict[str, Any]:
    """Return the fields as a TOML file has them."""
    found: dict[str, Any] = {}
    for field in attrs.fields(ServiceProfile):
        value = getattr(profile, field.name)
        if isinstance(value, timedelta):
            value = value.total_seconds()
        found[field.name] = value if isinstance(value, (str, int, float, bool)) else dict(value)
    return found

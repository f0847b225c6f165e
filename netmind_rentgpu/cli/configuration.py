"""The settings of the command line, each with its value and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from netmind_rentgpu.accounts import TOKEN_VARIABLES, choose_account
from netmind_rentgpu.cli.cells import Column
from netmind_rentgpu.cli.defaults import read_defaults
from netmind_rentgpu.cli.rows import Setting
from netmind_rentgpu.config_file import ConfigFile

if TYPE_CHECKING:
    from netmind_rentgpu.cli.session import GlobalOptions

__all__ = ["NAMES", "SETTINGS", "settings_in_effect"]

SETTINGS: Final[Sequence[Column]] = (
    Column("name", "SETTING"),
    Column("value", "VALUE"),
    Column("source", "FROM"),
)
NAMES: Final = (
    *("account", "token", "base_url", "profile", "state"),
    *("ttl", "budget", "image", "output", "ask_above"),
)


def settings_in_effect(options: GlobalOptions, environment: Mapping[str, str], config: ConfigFile) -> list[Setting]:
    """Return each setting with its value and its source; of a token, only that there is one.

    Raises:
        ConfigurationError: the account or a default cannot be used.
    """
    from netmind_rentgpu.profile import PROFILE_VARIABLE
    from netmind_rentgpu.settings import BASE_URL_VARIABLE, DEFAULT_BASE_URL
    from netmind_rentgpu.state_path import STATE_VARIABLE, state_path

    choice = choose_account(options.account, token=None, environment=environment)
    account, defaults = choice.account, read_defaults(config)

    def given(value: object, source: str) -> tuple[object, str] | None:
        return (value, source) if value else None

    def of_account(value: object) -> tuple[object, str] | None:
        return None if account is None else given(value, f"account {account.name}")

    def variable(name: str) -> tuple[object, str] | None:
        return given(environment.get(name), name)

    def default(value: object) -> tuple[object, str] | None:
        return given(value, "[defaults]")

    url = of_account(None if account is None else account.base_url)
    profile = of_account(None if account is None else account.profile)
    token = of_account("set") or next((("set", name) for name in TOKEN_VARIABLES if environment.get(name)), None)
    usual = "default"
    found: dict[str, tuple[object, str] | None] = {
        "account": None if account is None else (account.name, "--account" if choice.is_named else "config.toml"),
        "token": token,
        "base_url": choice.first(given(options.base_url, "--base-url"), variable(BASE_URL_VARIABLE), url)
        or (DEFAULT_BASE_URL, usual),
        "profile": choice.first(given(options.profile, "--profile"), variable(PROFILE_VARIABLE), profile),
        "state": given(options.state, "--state") or variable(STATE_VARIABLE) or (state_path(None, environment), usual),
        "ttl": default(config.defaults.get("ttl")) or ("24h", usual),
        "budget": default(config.defaults.get("budget")),
        "image": default(defaults.image),
        "output": given(options.output, "--output") or default(defaults.output) or ("table", usual),
        "ask_above": default(config.defaults.get("ask_above")),
    }
    return [
        {"name": name, "value": None if each is None else str(each[0]), "source": None if each is None else each[1]}
        for name, each in ((name, found[name]) for name in NAMES)
    ]

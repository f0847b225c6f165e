"""The configuration file: accounts, and defaults for the command line. It is read and checked here."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import attrs

from netmind_rentgpu.errors import ConfigurationError

__all__ = ["Account", "ConfigFile", "check_account_name", "config_path", "parse_config", "read_config"]

_ACCOUNT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OF_ACCOUNT: Final = ("token_command", "token_file", "profile", "base_url")
_OF_DEFAULTS: Final = ("ttl", "budget", "image", "output", "ask_above")
_LARGEST: Final = 10**12
_SETTINGS: Final = ("account", "defaults", "accounts")
# Names under which a token itself may be written, which does not belong in a file that is shown and shared.
_OF_TOKENS: Final = ("token", "api_token", "api_key", "key", "password", "secret")


@attrs.frozen(kw_only=True)
class Account:
    """An account of the configuration file.

    Attributes:
        token_command: the program that prints the token, and its arguments; None if the account has a `token_file`.
        token_file: the file that holds the token; None if the account has a `token_command`.
        profile: the file of its assumptions about the service; None for the default ones.
        base_url: the service's URL; None for the default one.
    """

    name: str
    # The arguments may hold a secret.
    token_command: tuple[str, ...] | None = attrs.field(default=None, repr=False)
    token_file: Path | None = None
    profile: Path | None = None
    base_url: str | None = None


@attrs.frozen(kw_only=True)
class ConfigFile:
    """The content of the configuration file.

    Attributes:
        path: the file, which need not exist.
        account: the name of the account in use; None if none is chosen.
        accounts: the accounts by their names.
        defaults: the values of `[defaults]`, as texts; the command line reads them.
    """

    path: Path
    account: str | None = None
    accounts: Mapping[str, Account] = attrs.field(factory=dict[str, Account])
    defaults: Mapping[str, str] = attrs.field(factory=dict[str, str])

    def get(self, name: str) -> Account:
        """Return an account.

        Raises:
            ConfigurationError: the file has no such account.
        """
        if (account := self.accounts.get(name)) is None:
            raise ConfigurationError(f"there is no account {name!r} in {self.path}; {self.known_accounts()}")
        return account

    def known_accounts(self) -> str:
        """Return a text that names the accounts."""
        if not self.accounts:
            return "it has no accounts; `rentgpu login` makes one"
        return f"it has {', '.join(self.accounts)}"

    def error(self, cause: str) -> ConfigurationError:
        """Return the error of a mistake in the file."""
        return ConfigurationError(f"cannot use the configuration file {self.path}: {cause}")


def config_path(environment: Mapping[str, str]) -> Path:
    """Return the path of the configuration file, which need not exist.

    Raises:
        ConfigurationError: the home folder is not known.
    """
    if sys.platform == "win32":
        folder = environment.get("APPDATA", "")
        usual = "~/AppData/Roaming"
    else:
        # The XDG base directory specification says to ignore a relative path.
        folder, usual = environment.get("XDG_CONFIG_HOME", ""), "~/.config"
    chosen = Path(folder if Path(folder).is_absolute() else usual)
    try:
        return chosen.expanduser() / "netmind-rentgpu" / "config.toml"
    except RuntimeError as error:
        raise ConfigurationError(f"no place for the configuration file: set XDG_CONFIG_HOME ({error})") from error


def read_config(environment: Mapping[str, str]) -> ConfigFile:
    """Return the configuration; an empty one if there is no file.

    Raises:
        ConfigurationError: the file cannot be read, or holds a mistake; the error names it.
    """
    path = config_path(environment)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ConfigFile(path=path)
    except OSError as error:
        raise ConfigFile(path=path).error(error.strerror or str(error)) from error
    return parse_config(content, path)


def parse_config(content: bytes, path: Path) -> ConfigFile:
    """Return the configuration that the content of a file stands for.

    Raises:
        ConfigurationError: the content holds a mistake; the error names it, and shows no value that may be a token.
    """
    import tomllib

    config = ConfigFile(path=path)
    try:
        values = tomllib.loads(content.decode("utf-8-sig"), parse_float=Decimal)
    except UnicodeDecodeError as error:
        raise config.error(f"it is not UTF-8: byte {error.start} cannot be read") from None
    except tomllib.TOMLDecodeError as error:
        raise config.error(f"it is no TOML: {error}") from None
    except (ValueError, ArithmeticError, RecursionError) as error:
        # It has a number of thousands of digits, say, or thousands of brackets.
        raise config.error(f"it cannot be read ({type(error).__name__})") from None
    _check_names(config, "", values, _SETTINGS)
    accounts = {name: _account(config, name, table) for name, table in _table(config, values, "accounts").items()}
    if len({name.casefold() for name in accounts}) < len(accounts):
        # Some systems would keep both tokens in one file.
        raise config.error("the names of two accounts differ in the case of their letters alone")
    config = attrs.evolve(config, accounts=accounts, defaults=_defaults(config, _table(config, values, "defaults")))
    if "account" in values:
        name = _text(config, "account", values["account"])
        if name not in accounts:
            raise config.error(f"account is {name!r}, which is not among its accounts; {config.known_accounts()}")
        config = attrs.evolve(config, account=name)
    return config


def check_account_name(name: str) -> str:
    """Return the name of an account as it is.

    Raises:
        ConfigurationError: it cannot be one.
    """
    if _ACCOUNT_NAME.fullmatch(name) is None:
        raise ConfigurationError(
            f"{name!r} cannot be the name of an account: use up to 64 letters, digits, dots, hyphens and underscores"
        )
    return name


def _account(config: ConfigFile, name: str, table: object) -> Account:
    try:
        check_account_name(name)
    except ConfigurationError as error:
        raise config.error(str(error)) from None
    place = f"accounts.{name}"
    if not isinstance(table, dict):
        raise config.error(f"{place} must be a table, [{place}]")
    values = cast("dict[str, Any]", table)
    _check_names(config, f"{place}.", values, _OF_ACCOUNT)
    if ("token_command" in values) == ("token_file" in values):
        both = "both token_command and token_file; keep one of them"
        neither = "neither token_command nor token_file; add one of them, or run `rentgpu login`"
        raise config.error(f"{place} has {both if 'token_file' in values else neither}")
    texts = {key: _text(config, f"{place}.{key}", values[key]) for key in _OF_ACCOUNT[1:] if key in values}
    if "base_url" in texts:
        _check_url(config, f"{place}.base_url", texts["base_url"])
    paths = {key: _path(config, f"{place}.{key}", texts[key]) for key in ("token_file", "profile") if key in texts}
    command = _command(config, f"{place}.token_command", values["token_command"]) if "token_command" in values else None
    return Account(name=name, token_command=command, base_url=texts.get("base_url"), **paths)


def _command(config: ConfigFile, place: str, value: object) -> tuple[str, ...]:
    """Return the words of a command, which is a list of texts, or a text with quotes as in a shell."""
    import shlex

    if isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise config.error(f"{place} cannot be split into words: {error}") from None
    else:
        found = cast("list[object]", value) if isinstance(value, list) else []
        words = [word for word in found if isinstance(word, str)]
        if len(words) != len(found) or not isinstance(value, list):
            raise config.error(f"{place} must be a text or a list of texts")
    if not words or not words[0]:
        raise config.error(f"{place} is empty")
    if any("\0" in word for word in words):
        raise config.error(f"{place} holds a null character")
    return tuple(words)


def _defaults(config: ConfigFile, table: Mapping[str, object]) -> dict[str, str]:
    _check_names(config, "defaults.", table, _OF_DEFAULTS)
    texts: dict[str, str] = {}
    for name, value in table.items():
        if name in ("budget", "ask_above") and not isinstance(value, str):
            amount = Decimal(value) if isinstance(value, (int, Decimal)) and not isinstance(value, bool) else None
            if amount is None or not amount.is_finite() or not 0 <= amount <= _LARGEST:
                raise config.error(f"defaults.{name} must be an amount of money")
            texts[name] = f"{amount:f}"
        else:
            texts[name] = _text(config, f"defaults.{name}", value)
    return texts


def _check_url(config: ConfigFile, place: str, url: str) -> None:
    # Neither is shown, because such a URL may hold a password.
    try:
        parts = urlsplit(url)
    except ValueError:
        raise config.error(f"{place} is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise config.error(f"{place} must be an http:// or https:// URL with a host")
    if parts.username is not None or parts.password is not None:
        raise config.error(f"{place} must not hold a user name or a password")


def _check_names(config: ConfigFile, place: str, values: Mapping[str, object], known: Iterable[str]) -> None:
    for name in values:
        if name in known:
            continue
        if name.casefold() in _OF_TOKENS:
            cause = "a token does not belong in this file; use token_command or token_file, or run `rentgpu login`"
            raise config.error(f"{place}{name}: {cause}")
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it may be {', '.join(known)}"
        raise config.error(f"{place}{name} is no setting; {hint}")


def _table(config: ConfigFile, values: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, dict):
        raise config.error(f"{name} must be a table, [{name}]")
    return cast("dict[str, Any]", table)


def _text(config: ConfigFile, place: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        kind = "an empty one" if isinstance(value, str) else type(value).__name__
        raise config.error(f"{place} must be a text, not {kind}")
    if "\0" in value:
        raise config.error(f"{place} holds a null character")
    return value


def _path(config: ConfigFile, place: str, text: str) -> Path:
    """Return a path, which counts from the file's folder."""
    try:
        return config.path.parent / Path(text).expanduser()
    except RuntimeError as error:
        raise config.error(f"{place}: {error}") from error

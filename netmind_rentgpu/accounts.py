"""The account of a client: chosen by an argument or the configuration file, and its token, read where the account says."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping
from typing import Final, TypeVar

import attrs

from netmind_rentgpu.config_file import Account, read_config
from netmind_rentgpu.errors import ConfigurationError

__all__ = ["TOKEN_VARIABLES", "AccountChoice", "choose_account", "read_token"]

TOKEN_VARIABLES: Final = ("NETMIND_API_KEY", "NETMIND_API_TOKEN")
Value = TypeVar("Value")

# In seconds: a password manager may ask its user first.
_LONGEST_COMMAND: Final = 120.0
_LONGEST_TOKEN: Final = 65_536


@attrs.frozen(kw_only=True)
class AccountChoice:
    """The account whose token a client uses.

    Attributes:
        account: the account; None if the token is an argument or a variable, or if there is none.
        is_named: True if the caller has named it, so that its settings go before those of the environment.
        hint: what to do if there is no token.
    """

    account: Account | None = None
    is_named: bool = False
    hint: str = ""

    def first(self, argument: Value | None, variable: Value | None, of_account: Value | None) -> Value | None:
        """Return the first value that is given: of an argument, of the environment, of the account.

        An account that the caller has named goes before the environment, because the caller means all that belongs to it.
        """
        order = (argument, of_account, variable) if self.is_named else (argument, variable, of_account)
        return next((value for value in order if value), None)


def choose_account(name: str | None, *, token: str | None, environment: Mapping[str, str]) -> AccountChoice:
    """Return the account that the caller names, or that of the configuration file if there is no other token.

    Args:
        name: the name that the caller gives; None without one.
        token: the token that the caller gives; None without one.

    Raises:
        ConfigurationError: both are given, there is no such account, or the configuration file cannot be used.
    """
    if name is not None:
        if token is not None:
            raise ConfigurationError("both a token and an account were given; give one of them")
        if not isinstance(name, str):
            raise ConfigurationError(f"account must be a text, not {type(name).__name__}")
        return AccountChoice(account=read_config(environment).get(name), is_named=True)
    if token is not None or any(environment.get(variable) for variable in TOKEN_VARIABLES):
        return AccountChoice()
    config = read_config(environment)
    if config.account is None:
        has_some = bool(config.accounts)
        return AccountChoice(
            hint=f"name an account: {config.path} has {', '.join(config.accounts)}" if has_some else ""
        )
    return AccountChoice(account=config.accounts[config.account])


def read_token(account: Account) -> str:
    """Return an account's token, by its command or from its file. A command may ask its user, and this waits for it.

    Raises:
        ConfigurationError: the command has failed or printed nothing, or the file is missing, empty or open to others.
    """
    found = _from_command(account.name, account.token_command) if account.token_command else _from_file(account)
    if not found.strip():
        source = "token_command printed nothing" if account.token_command else f"{account.token_file} is empty"
        raise _error(account.name, source)
    return found


def _from_command(name: str, command: tuple[str, ...]) -> str:
    # The error shows the program alone, because the arguments may hold a secret.
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=_LONGEST_COMMAND)  # noqa: S603  # the user's
    except OSError as error:
        raise _error(name, f"token_command could not run {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise _error(name, f"token_command {command[0]} printed no token within {_LONGEST_COMMAND:.0f} s") from None
    if done.returncode:
        raise _error(name, f"token_command {command[0]} exited with {done.returncode}")
    try:
        return done.stdout.decode()
    except UnicodeDecodeError:
        raise _error(name, f"token_command {command[0]} printed no text") from None


def _from_file(account: Account) -> str:
    path = account.token_file
    if path is None:
        raise _error(account.name, "it has no token_file")
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise _error(account.name, f"other users may use {path}; run `chmod 600 {path}`")
            return file.read(_LONGEST_TOKEN).decode()
    except FileNotFoundError:
        raise _error(account.name, f"{path} does not exist; run `rentgpu login {account.name}`") from None
    except OSError as error:
        raise _error(account.name, f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise _error(account.name, f"{path} is not UTF-8") from None


def _error(name: str, cause: str) -> ConfigurationError:
    return ConfigurationError(f"cannot read the token of account {name}: {cause}")

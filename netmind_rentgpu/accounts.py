"""The account of a client: chosen by an argument or the configuration file, and its token, read where the account says."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import attrs

from netmind_rentgpu.config_file import Account, read_config
from netmind_rentgpu.errors import ConfigurationError

__all__ = ["TOKEN_VARIABLES", "AccountChoice", "choose_account", "read_token", "shown_source"]

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

        The environment does not count for an account that the caller has named: its token goes to its own service alone,
        which is the usual one if it names none.
        """
        order = (argument, of_account) if self.is_named else (argument, variable, of_account)
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
        known = ", ".join(config.accounts)
        return AccountChoice(hint=f"choose an account by `rentgpu account use`: there is {known}" if known else "")
    return AccountChoice(account=config.accounts[config.account])


def read_token(account: Account) -> str:
    """Return an account's token, by its command or from its file. A command may ask its user, and this waits for it.

    Raises:
        ConfigurationError: the command has failed or printed nothing, or the file is missing, empty or open to others.
    """
    if account.token_command is not None:
        # Password managers print the password in the first line, and notes behind it.
        output = _from_command(account, account.token_command)
        found = next((line.strip() for line in output.splitlines() if line.strip()), "")
    else:
        found = _from_file(account).strip()
    source = shown_source(account)
    if not found:
        raise _error(account.name, f"{source} printed nothing" if account.token_command else f"{source} is empty")
    if not found.isascii() or any(character.isspace() for character in found.removeprefix("Bearer ")):
        raise _error(account.name, f"{source} holds more than a token")
    return found


def shown_source(account: Account) -> str:
    """Return the source of an account's token. Of a command, it is the program alone, because the rest may hold a secret."""
    if account.token_command is None:
        return str(account.token_file)
    program = account.token_command[0]
    # A token may stand in the place of a program by mistake.
    return f"the command {program}" if shutil.which(program) else "a command that is not there"


def _from_command(account: Account, command: tuple[str, ...]) -> str:
    name, source = account.name, shown_source(account)
    try:
        code, output = _run(command)
    except OSError as error:
        raise _error(name, f"{source}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise _error(name, f"{source} printed no token within {_LONGEST_COMMAND:.0f} s") from None
    if code:
        raise _error(name, f"{source} exited with {code}")
    try:
        return output.decode()
    except UnicodeDecodeError:
        raise _error(name, f"{source} printed no text") from None


def _run(command: tuple[str, ...]) -> tuple[int, bytes]:
    """Run a command to its end, and return its exit code and output. If this is interrupted, the command is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        # The command could read all of what is piped into this program.
        stdin = None if _is_terminal(0) else subprocess.DEVNULL
        started.append(subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE))  # noqa: S603  # the user's own

    try:
        # Signals interrupt the main thread alone, so a process that has just begun is never lost.
        with ThreadPoolExecutor(max_workers=1) as executor:
            executor.submit(start).result()
        output, _ = started[0].communicate(timeout=_LONGEST_COMMAND)
    except BaseException:
        for process in started:
            process.kill()
        raise
    finally:
        for process in started:
            with process:
                process.wait()
    return started[0].returncode, output


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _from_file(account: Account) -> str:
    path = account.token_file
    if path is None:
        raise _error(account.name, "it has no token_file")
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise _error(account.name, f"other users may use {path}; run `chmod 600 {path}`")
            return file.read(_LONGEST_TOKEN).decode("utf-8-sig")
    except FileNotFoundError:
        raise _error(account.name, f"{path} does not exist; run `rentgpu login {account.name}`") from None
    except OSError as error:
        raise _error(account.name, f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise _error(account.name, f"{path} is not UTF-8") from None


def _error(name: str, cause: str) -> ConfigurationError:
    return ConfigurationError(f"cannot read the token of account {name}: {cause}")

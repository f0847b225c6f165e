"""Accounts on the command line: logging in and out, and which of them is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netmind_rentgpu.accounts import TOKEN_VARIABLES, read_token, shown_source
from netmind_rentgpu.cli.cells import Column
from netmind_rentgpu.cli.config_writing import remove_account, save_account, token_path, use_account
from netmind_rentgpu.cli.exit_codes import ExitCode, code_of_error
from netmind_rentgpu.cli.problems import CommandError, problem_of
from netmind_rentgpu.cli.rows import AccountRow
from netmind_rentgpu.cli.secret_input import read_secret
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.config_file import Account, ConfigFile, check_account_name
from netmind_rentgpu.errors import AuthenticationError, ConfigurationError, PermissionDeniedError, RentGPUError
from netmind_rentgpu.settings import DEFAULT_BASE_URL

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU

__all__ = ["log_in", "log_out", "print_account", "print_accounts", "use"]

_USUAL_NAME: Final = "default"
_ACCOUNTS: Final = (
    Column("name", "ACCOUNT"),
    Column("is_used", "USED"),
    Column("base_url", "SERVICE", 1),
    Column("profile", "PROFILE", 2),
    Column("token_from", "TOKEN FROM"),
)
_LOGIN: Final = (*_ACCOUNTS, Column("check", "THE SERVICE SAYS"))


def log_in(session: Session, name: str | None, token_file: str | None) -> int:
    """Read a token, check it by one call that changes nothing, and save it.

    Args:
        name: the name of the account; None for the usual one.
        token_file: the file with the token, `-` for stdin; None to ask on the terminal.

    Raises:
        CommandError: no token was given.
        AuthenticationError, PermissionDeniedError: the service refuses the token; nothing was saved.
        ConfigurationError: the name, the token or the configuration file cannot be used.
        OSError: a file cannot be read or written.
    """
    config = session.config
    name = check_account_name(name or session.options.account or config.account or _USUAL_NAME)
    before = config.accounts.get(name)
    path = token_path(config, name)
    if before is not None and before.token_file != path:
        session.confirm(f"Account {name} of {config.path} has its token from elsewhere, which a saved token replaces.")
    token = read_secret(session, token_file, kind="token", option="--token-file", question="API token")
    if not token.strip():
        raise CommandError(ExitCode.USAGE, "no token was given")
    if token.strip() == name:
        raise CommandError(ExitCode.USAGE, "the name of the account is the token itself", "Give it a name of your own.")
    # The settings of the account, as the next command will find them.
    options = session.options
    url = options.base_url or (None if before is None else before.base_url)
    profile = options.profile or (None if before is None else before.profile)
    gpu = session.client(token=token, account=None, base_url=url, profile=profile, retries=1)
    settings = gpu._parts.settings  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the URL and the token, as they were checked
    problem = session.stopping.run(lambda: _refusal_or_failure(gpu))
    if isinstance(problem, (AuthenticationError, PermissionDeniedError)):
        problem.add_note("Nothing was saved.")
        raise problem
    account = Account(
        name=name,
        token_file=path,
        base_url=settings.base_url,
        profile=None if profile is None else Path(profile).absolute(),
    )
    saved = save_account(os.environ, account, settings.token)
    check = "the token works" if problem is None else "nothing: it was not reached"
    session.results.value({**_row(saved, saved.get(name)), "check": check}, _LOGIN)
    session.notes.say(f"saved in {path}, and named in {config.path}")
    if problem is None:
        return ExitCode.DONE
    session.show(problem_of(problem, reads_only=True), problem)
    return code_of_error(problem, reads_only=True)


async def _refusal_or_failure(gpu: AsyncRentGPU) -> RentGPUError | None:
    """Return the error of a call that changes nothing; None if it has none."""
    async with gpu:
        try:
            await gpu.containers.list(page_size=1)
        except RentGPUError as error:
            return error
    return None


def log_out(session: Session, name: str | None) -> int:
    """Remove an account, with its saved token. It asks; an account that is gone is no error.

    Raises:
        CommandError: no account is named, and none is in use; or the answer is no.
        ConfigurationError: the configuration file cannot be used.
        OSError: a file cannot be written or removed.
    """
    config = session.config
    wanted = name or session.options.account or config.account
    if wanted is None:
        raise CommandError(ExitCode.USAGE, "no account is in use", f"Name one: {config.known_accounts()}.")
    account = config.accounts.get(wanted)
    if account is None:
        # Its token may be left of a run that has failed.
        remove_account(os.environ, check_account_name(wanted))
        session.notes.say(f"account {wanted} is gone already")
        session.results.value({"name": wanted}, _ACCOUNTS)
        return ExitCode.DONE
    count = session.stopping.run(lambda: _open_rentals(session, account))
    left = (
        f"\n{count} of its rentals are on record, and cannot be given back from here without its token."
        if count
        else ""
    )
    session.confirm(f"Account {wanted} is removed from {config.path}, with the token that `login` has saved.{left}")
    row = _row(config, account)
    remove_account(os.environ, wanted)
    session.results.value({**row, "is_used": False}, _ACCOUNTS)
    return ExitCode.DONE


async def _open_rentals(session: Session, account: Account) -> int:
    """Return the number of an account's rentals on record; 0 if that cannot be found out. No request is sent."""
    try:
        async with session.client(account=account.name) as gpu:
            return len(await gpu.rentals.list())
    except RentGPUError:
        return 0


def use(session: Session, name: str) -> None:
    """Use an account from now on.

    Raises:
        ConfigurationError: there is no such account, or the configuration file cannot be used.
        OSError: the file cannot be written.
    """
    changed = use_account(os.environ, name)
    if (variable := next((each for each in TOKEN_VARIABLES if os.environ.get(each)), None)) is not None:
        session.notes.say(f"{variable} is set, and goes before the account in use")
    session.results.value(_row(changed, changed.get(name)), _ACCOUNTS)


def print_accounts(session: Session) -> None:
    """Print all accounts."""
    config = session.config
    session.results.rows([_row(config, account) for account in config.accounts.values()], _ACCOUNTS)


def print_account(session: Session, name: str | None) -> None:
    """Print one account, the one in use by default.

    Raises:
        CommandError: no account is named, and none is in use.
        ConfigurationError: there is no such account.
    """
    config = session.config
    wanted = name or session.options.account or config.account
    if wanted is None:
        raise CommandError(ExitCode.NOT_FOUND, "no account is in use", f"Name one: {config.known_accounts()}.")
    account = config.get(wanted)
    session.results.value(
        {**_row(config, account), "check": _state_of_token(account)}, (*_ACCOUNTS, Column("check", "TOKEN"))
    )


def _state_of_token(account: Account) -> str:
    # A command may ask its user, so it is left alone.
    if account.token_command is not None:
        return "is read when it is needed"
    try:
        read_token(account)
    except ConfigurationError as error:
        return str(error)
    return "can be read"


def _row(config: ConfigFile, account: Account) -> AccountRow:
    return {
        "name": account.name,
        "is_used": account.name == config.account,
        "base_url": account.base_url or DEFAULT_BASE_URL,
        "profile": None if account.profile is None else str(account.profile),
        "token_from": shown_source(account),
    }

"""Changes to `config.toml` that keep what its user has written, comments included, and the files that hold tokens."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from netmind_rentgpu.config_file import Account, ConfigFile, parse_config, read_config
from netmind_rentgpu.errors import ConfigurationError

__all__ = ["remove_account", "save_account", "token_path", "use_account"]


def token_path(config: ConfigFile, name: str) -> Path:
    """Return the path of the file in which `login` keeps the token of an account."""
    return config.path.parent / "tokens" / name


def save_account(environment: Mapping[str, str], account: Account, token: str) -> ConfigFile:
    """Write an account and its token, in the account's `token_file`; use the account if no other is in use.

    Returns:
        The new configuration.

    Raises:
        OSError: a file cannot be written; both are as before.
        ConfigurationError: the configuration file cannot be changed; both are as before.
    """
    path = account.token_file
    if path is None:
        raise ValueError("an account with a saved token has a file for it")

    def change(document: Any, config: ConfigFile) -> None:
        if "accounts" not in document:
            document["accounts"] = tomlkit.table(is_super_table=True)
        tables = document["accounts"]
        if account.name not in tables:
            tables[account.name] = {}
        table = tables[account.name]
        table.pop("token_command", None)
        folder = config.path.parent
        texts = {
            "token_file": str(path.relative_to(folder) if path.is_relative_to(folder) else path),
            "base_url": account.base_url,
            "profile": None if account.profile is None else str(account.profile),
        }
        for key, text in texts.items():
            if text is None:
                table.pop(key, None)
            else:
                table[key] = text
        if config.account is None:
            document["account"] = account.name

    with _changing(environment, change) as (changed, write):
        earlier = path.read_bytes() if path.exists() else None
        _make_private_folder(path.parent)
        _replace(path, f"{token}\n".encode())
        try:
            write()
        except BaseException:
            # Otherwise the new token would go to the earlier URL.
            with suppress(OSError):
                path.unlink() if earlier is None else _replace(path, earlier)
            raise
    return changed


def use_account(environment: Mapping[str, str], name: str) -> ConfigFile:
    """Write the name of the account in use, and return the new configuration.

    Raises:
        OSError: the file cannot be written.
        ConfigurationError: there is no such account, or the file cannot be changed.
    """

    def change(document: Any, config: ConfigFile) -> None:
        config.get(name)
        document["account"] = name

    with _changing(environment, change) as (changed, write):
        write()
    return changed


def remove_account(environment: Mapping[str, str], name: str) -> ConfigFile:
    """Remove an account, and the file of its token if `login` has written it; return the new configuration.

    An account that is gone is no error.

    Raises:
        OSError: a file cannot be written or removed.
        ConfigurationError: the file cannot be changed.
    """

    def change(document: Any, config: ConfigFile) -> None:
        if name in config.accounts:
            document["accounts"].pop(name)
        if config.account == name:
            document.pop("account")

    with _changing(environment, change) as (changed, write):
        token_path(changed, name).unlink(missing_ok=True)
        write()
    return changed


@contextmanager
def _changing(
    environment: Mapping[str, str], change: Callable[[Any, ConfigFile], None]
) -> Generator[tuple[ConfigFile, Callable[[], None]]]:
    """Change the document of the file while no other program does; yield the new configuration, and what writes it.

    Args:
        change: takes the document and what it says at present.
    """
    # A file that is a link, as of a folder with settings under version control, stays one.
    path = read_config(environment).path.resolve()
    _make_private_folder(path.parent)
    with _locked(path.with_name(".config.lock")):
        config = read_config(environment)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        try:
            document: Any = tomlkit.parse(path.read_bytes().decode("utf-8-sig") if path.exists() else "")
        except TOMLKitError as error:
            raise config.error(f"it cannot be changed: {error}") from error
        try:
            change(document, config)
            content = tomlkit.dumps(document).encode()
            changed = parse_config(content, config.path)
        except (TOMLKitError, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise config.error("its accounts are written in a way that can be changed by hand alone") from error
        yield changed, lambda: _replace(path, content, mode=mode)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Run the block while no other process runs it, on systems with locks for that."""
    with path.open("ab") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_private_folder(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True)
        # The umask may say otherwise.
        folder.chmod(0o700)


def _replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file as a whole, so that no reader finds a part of it, and the earlier content stays if the disk is full."""
    begun = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        begun.chmod(mode)
        begun.replace(path)
    except OSError as error:
        begun.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        begun.unlink(missing_ok=True)
        raise

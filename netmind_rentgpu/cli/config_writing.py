"""Changes to `config.toml` that keep what its user has written, comments included, and the files that hold tokens."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from netmind_rentgpu.config_file import Account, ConfigFile, parse_config
from netmind_rentgpu.errors import ConfigurationError

__all__ = ["remove_account", "save_account", "save_token", "token_path", "use_account"]


def token_path(config: ConfigFile, name: str) -> Path:
    """Return the path of the file in which `login` keeps the token of an account."""
    return config.path.parent / "tokens" / name


def save_token(path: Path, token: str) -> None:
    """Write a token into a file that its user alone may read.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _replace(path, f"{token}\n".encode())


def save_account(config: ConfigFile, account: Account) -> ConfigFile:
    """Write an account with a `token_file` into the configuration file; use it if no other is in use.

    Returns:
        The new configuration.

    Raises:
        OSError: the file cannot be written.
        ConfigurationError: the file cannot be changed.
    """
    folder = config.path.parent
    token_file = account.token_file
    is_below = token_file is not None and token_file.is_relative_to(folder)
    texts = {
        "token_file": str(token_file.relative_to(folder) if token_file is not None and is_below else token_file),
        "base_url": account.base_url,
        "profile": None if account.profile is None else str(account.profile),
    }

    def change(document: Any) -> None:
        if "accounts" not in document:
            document["accounts"] = tomlkit.table(is_super_table=True)
        tables = document["accounts"]
        if account.name not in tables:
            tables[account.name] = {}
        table = tables[account.name]
        table.pop("token_command", None)
        for key, text in texts.items():
            if text is None:
                table.pop(key, None)
            else:
                table[key] = text
        if config.account is None:
            document["account"] = account.name

    return _changed(config, change)


def use_account(config: ConfigFile, name: str) -> ConfigFile:
    """Write the name of the account in use, and return the new configuration.

    Raises:
        OSError: the file cannot be written.
        ConfigurationError: there is no such account, or the file cannot be changed.
    """
    config.get(name)
    return _changed(config, lambda document: document.__setitem__("account", name))


def remove_account(config: ConfigFile, name: str) -> ConfigFile:
    """Remove an account, and the file of its token if `login` has written it; return the new configuration.

    Raises:
        OSError: a file cannot be written or removed.
        ConfigurationError: there is no such account, or the file cannot be changed.
    """
    account = config.get(name)

    def change(document: Any) -> None:
        document["accounts"].pop(name)
        if config.account == name:
            document.pop("account")

    changed = _changed(config, change)
    path = token_path(config, name)
    if account.token_file == path:
        path.unlink(missing_ok=True)
    return changed


def _changed(config: ConfigFile, change: Callable[[Any], None]) -> ConfigFile:
    """Change the file, unless the result could not be read."""
    # A file that is a link, as of a folder with settings under version control, stays one.
    path = config.path.resolve()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        document = tomlkit.parse(path.read_bytes().decode() if path.exists() else "")
        change(document)
        content = tomlkit.dumps(document).encode()
        changed = parse_config(content, config.path)
    except (TOMLKitError, ValueError, ConfigurationError) as error:
        raise config.error("its accounts are written in a way that can be changed by hand alone") from error
    _replace(path, content, mode=path.stat().st_mode & 0o777 if path.exists() else 0o600)
    return changed


def _replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file as a whole, so that no reader finds a part of it, and the earlier content stays if the disk is full."""
    begun = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        begun.replace(path)
    except BaseException:
        begun.unlink(missing_ok=True)
        raise

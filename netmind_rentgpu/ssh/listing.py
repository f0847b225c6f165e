"""The files and folders that a copy takes, listed before any is copied, on either side."""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import re
import stat
import sys
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator
from contextlib import aclosing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar, cast
from unicodedata import normalize

import asyncssh
import attrs
from asyncssh.constants import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_REGULAR, FILEXFER_TYPE_SYMLINK

from netmind_rentgpu.ssh.limits import SSHLimits

__all__ = ["Copied", "Listing", "RemoteListing", "Server", "TransferError", "joined", "local_entries"]

_DEEPEST = 100
_LONGEST_NAME = 255
# Names that Windows cannot keep: with separators or stream marks, with endings that it removes, or of devices.
_NO_NAME_ON_WINDOWS = re.compile(
    r"""[\x00-\x1f<>:"\\|?*]|[. ]$|^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\ *(\.|$)""", re.IGNORECASE
)
# The errors of a link that leads nowhere, or to itself, and of a file that was deleted meanwhile.
_LEADS_NOWHERE = frozenset({errno.ENOENT, errno.ELOOP})
# The errors of a link whose target cannot be a path: it goes through a file, or is too long.
_CANNOT_LEAD = frozenset({errno.ENOTDIR, errno.ENAMETOOLONG})
_LINK_ERRORS = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPLinkLoop, asyncssh.SFTPNotADirectory)
# The words of servers that have no code for such a link.
_LINK_REASON = re.compile("symbolic link|not a directory|name too long", re.IGNORECASE)

Answer = TypeVar("Answer")


class TransferError(Exception):
    """A copy failed; the text says what could not be copied, and why."""


@attrs.frozen
class Copied:
    """One file or folder to copy.

    Attributes:
        path: the path below the copied file or folder; empty for that file or folder itself.
        mode: the permissions.
        size: the bytes of a file; None for a folder.
    """

    path: str
    mode: int
    size: int | None


@attrs.frozen
class Server:
    """The server of a copy, and the limits of the copy."""

    sftp: asyncssh.SFTPClient
    limits: SSHLimits

    async def wait_for(self, answer: Awaitable[Answer], seconds: float | None = None) -> Answer:
        """Wait for an answer of the server for a limited time.

        Args:
            seconds: the limit; None for `SSHLimits.answer`.

        Raises:
            TransferError: no answer has come in time.
        """
        seconds = self.limits.answer if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError as error:
            raise TransferError(f"the server has not answered for {seconds:g} s") from error


class Listing:
    """The choice of what a copy takes of a folder, and what it has passed over.

    Attributes:
        skipped: the paths, below the copied folder, of links that lead nowhere, sockets, pipes and devices.
    """

    def __init__(self, most: int, exclude: Iterable[str] = ()) -> None:
        """Set up.

        Args:
            most: the limit of all entries.
            exclude: patterns, as `AsyncShell.upload` documents them.
        """
        self._most = most
        self._entries = 0
        self.skipped: list[str] = []
        # The parts of each pattern, with True if it matches folders only.
        self._excluded: list[tuple[list[str], bool]] = []
        for pattern in exclude:
            parts = pattern.removeprefix("./").rstrip("/").split("/")
            if len(parts) == 1:
                parts.insert(0, "**")
            self._excluded.append((parts[1:] if parts[0] == "" else parts, pattern.endswith("/")))

    def count(self, here: str | Path) -> None:
        """Count an entry.

        Raises:
            TransferError: the entries are more than the limit.
        """
        self._entries += 1
        if self._entries > self._most:
            raise TransferError(f"there are more than {self._most:,} files and folders; the last was listed in {here}")

    def excludes(self, path: str, *, is_folder: bool) -> bool:
        """Return True if a pattern matches a path below the copied folder."""
        parts = path.split("/")
        return any(
            (is_folder or not only_folders) and _matches(parts, pattern) for pattern, only_folders in self._excluded
        )


def local_entries(
    root: Path, listing: Listing, path: str = "", above: tuple[tuple[int, int], ...] = ()
) -> Iterator[Copied]:
    """Yield a local file, or a folder and then all that is in it. Links are followed."""
    here = root / path
    try:
        found = here.stat()
    except OSError as error:
        if path and (error.errno in _LEADS_NOWHERE or (error.errno in _CANNOT_LEAD and here.is_symlink())):
            listing.skipped.append(path)
            return
        raise
    mode = _mode_of(found)
    if stat.S_ISREG(found.st_mode):
        yield Copied(path, mode, found.st_size)
    elif stat.S_ISDIR(found.st_mode):
        identity = (found.st_dev, found.st_ino)
        _check_depth(here, identity, above)
        yield Copied(path, mode, None)
        names: list[str] = []
        for entry in here.iterdir():
            listing.count(here)
            names.append(entry.name)
        for name in sorted(names):
            below = posixpath.join(path, name)
            if not listing.excludes(below, is_folder=(root / below).is_dir()):
                yield from local_entries(root, listing, below, (*above, identity))
    elif path:
        listing.skipped.append(path)
    else:
        raise TransferError(f"{here} is neither a file nor a folder")


class RemoteListing:
    """A search for the files and folders to copy from a server. Links are followed."""

    def __init__(self, server: Server, root: str, listing: Listing) -> None:
        self._server = server
        self._root = root
        self._listing = listing

    async def below(self, path: str, found: asyncssh.SFTPAttrs, above: tuple[str, ...] = ()) -> list[Copied]:
        """Return a file, or a folder and then all that is in it.

        Args:
            path: the path below the root; empty for the root itself.
            found: the attributes that the server reported.
            above: the real paths of the folders around it.
        """
        here = joined(self._root, path)
        if found.type == FILEXFER_TYPE_SYMLINK:
            try:
                found = await self._server.wait_for(self._server.sftp.stat(here))
            except asyncssh.SFTPError as error:
                if not isinstance(error, _LINK_ERRORS) and not _LINK_REASON.search(error.reason):
                    raise
                self._listing.skipped.append(path)
                return []
        mode = stat.S_IMODE(found.permissions or 0o644)
        if found.type == FILEXFER_TYPE_REGULAR:
            return [Copied(path, mode, found.size or 0)]
        if found.type != FILEXFER_TYPE_DIRECTORY and path:
            self._listing.skipped.append(path)
            return []
        if found.type != FILEXFER_TYPE_DIRECTORY:
            raise TransferError(f"{here} is neither a file nor a folder")
        identity = str(await self._server.wait_for(self._server.sftp.realpath(here)))
        _check_depth(here, identity, above)
        entries = [Copied(path, mode, None)]
        for name, attributes in (await self._entries(here)).items():
            entries += await self.below(posixpath.join(path, name), attributes, (*above, identity))
        return entries

    async def _entries(self, here: str) -> dict[str, asyncssh.SFTPAttrs]:
        """List a folder without `.` and `..`. A name that the server lists twice, as after a change, is kept once."""
        found: dict[str, asyncssh.SFTPAttrs] = {}
        by_local_name: dict[str, str] = {}
        async with aclosing(cast("AsyncGenerator[asyncssh.SFTPName]", self._server.sftp.scandir(here))) as entries:
            while (entry := await self._server.wait_for(anext(entries, None))) is not None:
                self._listing.count(here)
                name = str(entry.filename)
                # Check the name, because the server must not choose where on this machine a file is written.
                if not _can_be_name(name):
                    raise TransferError(f"{here} holds {name!r}, which cannot be a file's name on this machine")
                if len(name.encode(errors="surrogateescape")) > _LONGEST_NAME:
                    raise TransferError(f"{here} holds a name of more than {_LONGEST_NAME} bytes")
                if name not in (".", ".."):
                    if (other := by_local_name.setdefault(_collision_key(name), name)) != name:
                        raise TransferError(
                            f"{here} holds {other!r} and {name!r}, which this system may treat as one name"
                        )
                    # Keep only these attributes, because a server may add many, and up to a million entries are kept.
                    attrs_kept = {field: getattr(entry.attrs, field) for field in ("type", "permissions", "size")}
                    found.setdefault(name, asyncssh.SFTPAttrs(**attrs_kept))
        return found


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Return True if the parts of a path match those of a pattern, in which `**` stands for any number of parts."""
    if not parts or not pattern:
        return not parts and not pattern
    if pattern[0] == "**":
        return len(pattern) == 1 or any(_matches(parts[first:], pattern[1:]) for first in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _can_be_name(name: str) -> bool:
    """Return True if a text can be the name of a file in a folder of this machine."""
    if sys.platform == "win32" and name not in (".", "..") and _NO_NAME_ON_WINDOWS.search(name):
        return False
    return bool(name) and "/" not in name and "\0" not in name


def _collision_key(name: str) -> str:
    """Return a key that is the same for all names that this machine may treat as one."""
    return name if sys.platform == "linux" else normalize("NFC", normalize("NFC", name).casefold())


def _check_depth(here: str | Path, identity: object, above: tuple[object, ...]) -> None:
    """Raise TransferError if a folder is inside itself, by a link, or is too deep inside others."""
    if identity in above:
        raise TransferError(f"{here} is a link to a folder that contains it")
    if len(above) > _DEEPEST:
        raise TransferError(f"{here} is inside more than {_DEEPEST} folders")


def joined(root: str, path: str) -> str:
    """Return a path on the server: the root, or a path below it."""
    return posixpath.join(root, path) if path else root


def _mode_of(found: os.stat_result) -> int:
    """Return the permissions of a local file or folder; on Windows, defaults that let only the owner write."""
    if sys.platform == "win32":
        return 0o755 if stat.S_ISDIR(found.st_mode) else 0o644
    return stat.S_IMODE(found.st_mode)

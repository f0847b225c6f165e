"""Files and folders to a container and back, by SFTP: several at once, and never half a file under its own name.

Local files are read and written in the event loop, a block at a time: a thread could not be stopped when its transfer is,
and would write to whatever has the file's descriptor then.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import secrets
import stat
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar, cast
from unicodedata import normalize

import asyncssh
import attrs
from asyncssh.constants import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_REGULAR, FILEXFER_TYPE_SYMLINK

from netmind_rentgpu.results import OnTransferProgress, TransferProgress

__all__ = ["Copied", "TransferError", "download", "upload"]

_FILES_AT_ONCE = 8
_BLOCKS_AT_ONCE = 32
_LARGEST_BLOCK = 256 * 1024
_DEEPEST = 100
_LONGEST_SILENCE, _LONGEST_GOODBYE = 60.0, 5.0
# A listing without an end must not fill the memory.
_MOST_ENTRIES = 1_000_000
_LONGEST_NAME = 255
# Separators, streams, endings that Windows removes, and devices.
_NO_NAME_ON_WINDOWS = re.compile(
    r"""[\x00-\x1f<>:"\\|?*]|[. ]$|^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\ *(\.|$)""", re.IGNORECASE
)
# Files in /proc have content and a size of 0. What is read of such a file must have an end.
_LARGEST_UNSIZED = 64 * 1024 * 1024
# A downloaded file is to be read and run, and not to be run as another user.
_PERMISSIONS = 0o777


Answer = TypeVar("Answer")


class _Closable(Protocol):
    async def close(self) -> None: ...


File = TypeVar("File", bound=_Closable)


class TransferError(Exception):
    """Something cannot be copied; the text says what and why."""


@attrs.frozen
class Copied:
    """One file or folder to copy.

    Attributes:
        path: below what is copied; empty for that itself.
        mode: its permissions.
        size: of a file; None for a folder.
    """

    path: str
    mode: int
    size: int | None


class _Count:
    """Counts the entries of all folders of one copy."""

    def __init__(self) -> None:
        self._entries = 0

    def add(self, here: str | Path) -> None:
        """Count an entry.

        Raises:
            TransferError: there are too many.
        """
        self._entries += 1
        if self._entries > _MOST_ENTRIES:
            raise TransferError(f"more than {_MOST_ENTRIES:,} files and folders are listed, the last in {here}")


class _Progress:
    """Counts what has been copied, and tells of it."""

    def __init__(self, things: Iterable[Copied], tell: OnTransferProgress | None) -> None:
        sizes = [one.size for one in things if one.size is not None]
        self._tell = tell
        self._bytes_total, self._files_total = sum(sizes), len(sizes)
        self._bytes = self._files = 0

    def copied(self, path: str, count: int = 0, *, arrived: bool = False, unforeseen: bool = False) -> None:
        self._bytes += count
        self._bytes_total += count if unforeseen else 0
        self._files += arrived
        if self._tell is not None:
            self._tell(
                TransferProgress(
                    path=path,
                    bytes_done=self._bytes,
                    bytes_total=self._bytes_total,
                    files_done=self._files,
                    files_total=self._files_total,
                )
            )


async def upload(sftp: asyncssh.SFTPClient, local: Path, remote: str, on_progress: OnTransferProgress | None) -> None:
    """Copy a file, or a folder and all that is in it; of a file that grows meanwhile, as much as there was at first.

    Raises:
        TransferError, OSError, asyncssh.Error: it cannot be done.
    """
    things = await asyncio.to_thread(lambda: list(_below(local, _Count())))
    progress = _Progress(things, on_progress)
    parent = posixpath.dirname(remote.rstrip("/"))
    if parent:
        await _soon(sftp.makedirs(parent, exist_ok=True))
    made = [one for one in _folders(things) if await _make_remote_folder(sftp, _joined(remote, one.path))]

    async def send(thing: Copied) -> None:
        target = _joined(remote, thing.path)
        async with _partial(posixpath.dirname(target), sftp.remove) as partial:
            for_its_owner = asyncssh.SFTPAttrs(permissions=0o600)
            async with _opened(sftp.open(partial, "xb", for_its_owner, block_size=0)) as written:
                with _descriptor(local / thing.path, os.O_RDONLY) as source:

                    async def block(offset: int, size: int) -> None:
                        data = _read(source, size, offset)
                        if len(data) < size:
                            raise TransferError(f"{local / thing.path} became shorter while it was copied")
                        await _soon(written.write(data, offset))
                        progress.copied(thing.path, size)

                    largest = _block_size(sftp.limits.max_write_len)
                    await _at_once((_bound(block, *place) for place in _blocks(thing, largest)), _BLOCKS_AT_ONCE)
                    offset = 0
                    while not thing.size and (data := _read(source, largest, offset)):
                        await _soon(written.write(data, offset))
                        progress.copied(thing.path, len(data), unforeseen=True)
                        offset = _within_unsized(thing, offset + len(data))
            await _soon(sftp.chmod(partial, thing.mode))
            await _replace(sftp, partial, target)
        progress.copied(thing.path, arrived=True)

    await _at_once((_bound(send, thing) for thing in things if thing.size is not None), _FILES_AT_ONCE)
    for folder in reversed(made):
        await _soon(sftp.chmod(_joined(remote, folder.path), folder.mode))


async def download(sftp: asyncssh.SFTPClient, remote: str, local: Path, on_progress: OnTransferProgress | None) -> None:
    """Copy a file, or a folder and all that is in it; of a file that grows meanwhile, as much as there was at first.

    Raises:
        TransferError, OSError, asyncssh.Error: it cannot be done.
    """
    things = await _RemoteListing(sftp, remote).below("", await _soon(sftp.stat(remote)))
    progress = _Progress(things, on_progress)
    local.parent.mkdir(parents=True, exist_ok=True)  # as all else here, and quickly done
    made = [one for one in _folders(things) if _make_folder(local / one.path)]

    async def fetch(thing: Copied) -> None:
        target = local / thing.path

        async def remove(partial: str) -> None:
            os.unlink(partial)  # noqa: PTH108  # not Path's, which would have to be made first

        async with _partial(str(target.parent), remove) as partial:
            async with _opened(sftp.open(_joined(remote, thing.path), "rb", block_size=0)) as read:
                with _descriptor(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as written:

                    async def piece(offset: int, size: int) -> bytes:
                        data = cast("bytes", await _soon(read.read(size, offset)))  # pyright: ignore[reportUnknownArgumentType]  # AnyStr
                        if len(data) > size:
                            raise TransferError(f"the server sent {len(data)} bytes where {size} were asked for")
                        return data

                    async def block(offset: int, size: int) -> None:
                        while size:
                            data = await piece(offset, size)
                            if not data:
                                raise TransferError(f"{_joined(remote, thing.path)} became shorter while it was copied")
                            _write(written, data, offset)
                            progress.copied(thing.path, len(data))
                            offset, size = offset + len(data), size - len(data)

                    largest = _block_size(sftp.limits.max_read_len)
                    await _at_once((_bound(block, *place) for place in _blocks(thing, largest)), _BLOCKS_AT_ONCE)
                    offset = 0
                    while not thing.size and (data := await piece(offset, largest)):
                        _write(written, data, offset)
                        progress.copied(thing.path, len(data), unforeseen=True)
                        offset = _within_unsized(thing, offset + len(data))
            _put_in_place(partial, target, thing.mode)
        progress.copied(thing.path, arrived=True)

    await _at_once((_bound(fetch, thing) for thing in things if thing.size is not None), _FILES_AT_ONCE)
    for folder in reversed(made):
        _set_mode(local / folder.path, folder.mode)


# What there is to copy.


def _below(root: Path, count: _Count, path: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[Copied]:
    """Find what is there, a folder before what is in it. Links are followed."""
    here = root / path
    found = here.stat()
    mode = _mode_of(found)
    if stat.S_ISREG(found.st_mode):
        yield Copied(path, mode, found.st_size)
    elif stat.S_ISDIR(found.st_mode):
        identity = (found.st_dev, found.st_ino)
        _check_depth(here, identity, above)
        yield Copied(path, mode, None)
        names: list[str] = []
        for entry in here.iterdir():
            count.add(here)
            names.append(entry.name)
        for name in sorted(names):
            yield from _below(root, count, posixpath.join(path, name), (*above, identity))
    else:
        raise TransferError(f"{here} is neither a file nor a folder")


class _RemoteListing:
    """Finds what is to be copied from a server. Links are followed."""

    def __init__(self, sftp: asyncssh.SFTPClient, root: str) -> None:
        self._sftp = sftp
        self._root = root
        self._count = _Count()

    async def below(self, path: str, found: asyncssh.SFTPAttrs, above: tuple[str, ...] = ()) -> list[Copied]:
        """Return what stands at a path and below it, a folder before what is in it.

        Args:
            path: below the root; empty for that itself.
            found: what the server says of it.
            above: the folders that it stands in.
        """
        here = _joined(self._root, path)
        if found.type == FILEXFER_TYPE_SYMLINK:
            found = await _soon(self._sftp.stat(here))
        mode = stat.S_IMODE(found.permissions or 0o644)
        if found.type == FILEXFER_TYPE_REGULAR:
            return [Copied(path, mode, found.size or 0)]
        if found.type != FILEXFER_TYPE_DIRECTORY:
            raise TransferError(f"{here} is neither a file nor a folder")
        identity = str(await _soon(self._sftp.realpath(here)))
        _check_depth(here, identity, above)
        things = [Copied(path, mode, None)]
        for name, attributes in (await self._entries(here)).items():
            things += await self.below(posixpath.join(path, name), attributes, (*above, identity))
        return things

    async def _entries(self, here: str) -> dict[str, asyncssh.SFTPAttrs]:
        """List a folder, but for itself and the one above. What changes while it is listed may be shown twice."""
        found: dict[str, asyncssh.SFTPAttrs] = {}
        by_local_name: dict[str, str] = {}
        async with aclosing(cast("AsyncGenerator[asyncssh.SFTPName]", self._sftp.scandir(here))) as entries:
            while (entry := await _soon(anext(entries, None))) is not None:
                self._count.add(here)
                name = str(entry.filename)
                # A server may say anything, and must not choose where on this machine it is written.
                if not _can_be_name(name):
                    raise TransferError(f"{here} holds {name!r}, which can be no name")
                if len(name.encode(errors="surrogateescape")) > _LONGEST_NAME:
                    raise TransferError(f"{here} holds a name of more than {_LONGEST_NAME} bytes")
                if name not in (".", ".."):
                    if (other := by_local_name.setdefault(_as_told_apart(name), name)) != name:
                        raise TransferError(
                            f"{here} holds {other!r} and {name!r}, which this system may take for one name"
                        )
                    # Without what a server may have added: a million of them are kept.
                    attrs_kept = {field: getattr(entry.attrs, field) for field in ("type", "permissions", "size")}
                    found.setdefault(name, asyncssh.SFTPAttrs(**attrs_kept))
        return found


def _can_be_name(name: str) -> bool:
    """Return True for the name of one file in a folder of this machine."""
    if sys.platform == "win32" and name not in (".", "..") and _NO_NAME_ON_WINDOWS.search(name):
        return False
    return bool(name) and "/" not in name and "\0" not in name


def _as_told_apart(name: str) -> str:
    """Return what two names have in common if this machine may take them for one."""
    return name if sys.platform == "linux" else normalize("NFC", normalize("NFC", name).casefold())


def _check_depth(here: str | Path, identity: object, above: tuple[object, ...]) -> None:
    """Raise TransferError for a folder that stands in itself, by a link, or in too many others."""
    if identity in above:
        raise TransferError(f"{here} is a link to a folder that it stands in")
    if len(above) > _DEEPEST:
        raise TransferError(f"{here} stands in more than {_DEEPEST} folders")


def _folders(things: Iterable[Copied]) -> list[Copied]:
    return [one for one in things if one.size is None]


def _joined(root: str, path: str) -> str:
    return posixpath.join(root, path) if path else root


def _block_size(allowed: int) -> int:
    return min(_LARGEST_BLOCK, allowed)


def _blocks(thing: Copied, size: int) -> Iterator[tuple[int, int]]:
    total = thing.size or 0
    for offset in range(0, total, size):
        yield offset, min(size, total - offset)


def _within_unsized(thing: Copied, size: int) -> int:
    """Return how much of a file without a size was read.

    Raises:
        TransferError: it is too much.
    """
    if size > _LARGEST_UNSIZED:
        raise TransferError(
            f"{thing.path or 'the file'} has a size of 0 and more than {_LARGEST_UNSIZED // 1024**2} MiB"
        )
    return size


# How it is copied.


async def _soon(answer: Awaitable[Answer], seconds: float = _LONGEST_SILENCE) -> Answer:
    """Wait for a server's answer, and not for ever: it may be stuck, and its connection still be kept alive."""
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError as error:
        raise TransferError(f"the server has not answered for {seconds:g} s") from error


@asynccontextmanager
async def _opened(opening: Awaitable[File]) -> AsyncGenerator[File]:
    """Open a file on the server, and close it."""
    file = await _soon(opening)
    try:
        yield file
    except BaseException:
        with suppress(TransferError, OSError, asyncssh.Error):
            await _soon(file.close(), _LONGEST_GOODBYE)
        raise
    await _soon(file.close())


class _Job(Protocol):
    def __call__(self) -> Awaitable[None]: ...


def _bound(function: Callable[..., Awaitable[None]], *arguments: object) -> _Job:
    return lambda: function(*arguments)


async def _at_once(jobs: Iterator[_Job], count: int) -> None:
    """Do all, so many at a time. The first that fails, or who waits and is cancelled, ends the others."""

    async def some() -> None:
        for job in jobs:
            await job()

    tasks = [asyncio.create_task(some()) for _ in range(count)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _descriptor(path: str | Path, flags: int) -> Generator[int]:
    """Open a local file, for its owner alone if it is new."""
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)  # Windows would change the ends of lines
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# Windows lacks pread and pwrite. No other code moves the descriptor between the two calls.


def _read(descriptor: int, size: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    # A disk that becomes full takes a part first, and says so only when it is given the rest.
    while data:
        data = data[os.write(descriptor, data) :]


@asynccontextmanager
async def _partial(folder: str, remove: Callable[[str], Awaitable[None]]) -> AsyncGenerator[str]:
    """Give a path in a folder, under which nothing is left unless all went well."""
    # Not with the file's name in it, which may be as long as names may be.
    partial = posixpath.join(folder, f".{secrets.token_hex(8)}.part")
    try:
        yield partial
    except BaseException:
        with suppress(TransferError, OSError, asyncssh.Error):
            await _soon(remove(partial), _LONGEST_GOODBYE)
        raise


async def _replace(sftp: asyncssh.SFTPClient, partial: str, target: str) -> None:
    """Give a file its name, in place of one that has it."""
    if await _soon(sftp.isdir(target)):
        raise TransferError(f"{target} is a folder; name the file in it")
    try:
        await _soon(sftp.posix_rename(partial, target))
    except asyncssh.SFTPOpUnsupported:
        with suppress(asyncssh.SFTPNoSuchFile):
            await _soon(sftp.remove(target))
        await _soon(sftp.rename(partial, target))


async def _make_remote_folder(sftp: asyncssh.SFTPClient, path: str) -> bool:
    """Make a folder, for its owner alone until all has arrived; return False if it is there already."""
    if await _soon(sftp.isdir(path)):
        return False
    await _soon(sftp.mkdir(path, asyncssh.SFTPAttrs(permissions=0o700)))
    return True


def _make_folder(path: Path) -> bool:
    """Make a folder, for its owner alone until all has arrived; return False if it is there already."""
    if path.is_dir():
        return False
    path.mkdir(mode=0o700)
    return True


def _mode_of(found: os.stat_result) -> int:
    """Return the permissions of a local file or folder. Windows has none, and would let everybody write on the container."""
    if sys.platform == "win32":
        return 0o755 if stat.S_ISDIR(found.st_mode) else 0o644
    return stat.S_IMODE(found.st_mode)


def _set_mode(path: Path, mode: int) -> None:
    """Set the permissions of a copy. On Windows nothing could replace a copy that is read-only."""
    if sys.platform != "win32":
        path.chmod(mode & _PERMISSIONS)


def _put_in_place(partial: str, target: Path, mode: int) -> None:
    if target.is_dir():
        raise TransferError(f"{target} is a folder; name the file in it")
    _set_mode(Path(partial), mode)
    Path(partial).replace(target)

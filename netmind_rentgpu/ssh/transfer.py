"""Copies of files and folders to a container and back, by SFTP, with several files at once.

No unfinished file has its final name. The event loop itself reads and writes local files, a block at a time, because a
thread would outlive its cancelled transfer, and could then write to another file that has got the same descriptor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import posixpath
import secrets
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar, cast

import asyncssh

from netmind_rentgpu.results import OnTransferProgress, TransferProgress
from netmind_rentgpu.ssh.listing import (
    Copied,
    Listing,
    RemoteListing,
    Server,
    TransferError,
    joined,
    local_entries,
)

__all__ = ["download", "upload"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

_FILES_AT_ONCE = 8
_BLOCKS_AT_ONCE = 32
_LARGEST_BLOCK = 256 * 1024
_MOST_SHOWN = 3
# The permissions that a downloaded file may get. setuid and setgid are left out, so that it never runs as another user.
_PERMISSIONS = 0o777


class _Closable(Protocol):
    async def close(self) -> None: ...


File = TypeVar("File", bound=_Closable)


class _Progress:
    """A count of the copied bytes and files, which reports each change to the caller."""

    def __init__(
        self, entries: Iterable[Copied], source: str, skipped: Sequence[str], on_progress: OnTransferProgress | None
    ) -> None:
        """Set up, and report what is skipped.

        Args:
            source: the path of what is copied, as reports name a single file.
            skipped: the paths of what is not copied.
        """
        self._source = source
        self._skipped = tuple(skipped)
        sizes = [entry.size for entry in entries if entry.size is not None]
        self._on_progress = on_progress
        self._bytes_total, self._files_total = sum(sizes), len(sizes)
        self._bytes = self._files = 0
        if skipped:
            shown = ", ".join(skipped[:_MOST_SHOWN]) + (" and others" if len(skipped) > _MOST_SHOWN else "")
            logger.warning(
                "did not copy %s of %s: neither files nor folders, or links that lead nowhere", shown, source
            )
            self.copied(skipped[0])

    def copied(self, path: str, count: int = 0, *, arrived: bool = False, unforeseen: bool = False) -> None:
        self._bytes += count
        self._bytes_total += count if unforeseen else 0
        self._files += arrived
        if self._on_progress is not None:
            self._on_progress(
                TransferProgress(
                    path=path or self._source,
                    bytes_done=self._bytes,
                    bytes_total=self._bytes_total,
                    files_done=self._files,
                    files_total=self._files_total,
                    skipped=self._skipped,
                )
            )


async def upload(
    server: Server, local: Path, remote: str, on_progress: OnTransferProgress | None, exclude: Iterable[str] = ()
) -> None:
    """Copy a file or a folder to the server; a file that grows meanwhile is copied up to its size at the start.

    Raises:
        TransferError, OSError, asyncssh.Error: the copy failed.
    """
    sftp = server.sftp
    listing = Listing(server.limits.entries, exclude)
    entries = await asyncio.to_thread(lambda: list(local_entries(local, listing)))
    progress = _Progress(entries, str(local), listing.skipped, on_progress)
    parent = posixpath.dirname(remote.rstrip("/"))
    if parent:
        await server.wait_for(sftp.makedirs(parent, exist_ok=True))
    made = [folder for folder in _folders(entries) if await _make_remote_folder(server, joined(remote, folder.path))]

    async def send(entry: Copied) -> None:
        target = joined(remote, entry.path)

        async def remove(partial: str) -> None:
            await server.wait_for(sftp.remove(partial), server.limits.tidying)

        async with _partial(posixpath.dirname(target), remove) as partial:
            only_for_owner = asyncssh.SFTPAttrs(permissions=0o600)
            async with _opened(server, sftp.open(partial, "xb", only_for_owner, block_size=0)) as written:
                with _descriptor(local / entry.path, os.O_RDONLY) as source:

                    async def block(offset: int, size: int) -> None:
                        data = _read(source, size, offset)
                        if len(data) < size:
                            raise TransferError(f"{local / entry.path} became shorter while it was copied")
                        await server.wait_for(written.write(data, offset))
                        progress.copied(entry.path, size)

                    largest = _block_size(sftp.limits.max_write_len)
                    await _run_jobs((_bound(block, *place) for place in _blocks(entry, largest)), _BLOCKS_AT_ONCE)
                    offset = 0
                    while not entry.size and (data := _read(source, largest, offset)):
                        await server.wait_for(written.write(data, offset))
                        progress.copied(entry.path, len(data), unforeseen=True)
                        offset = _within(server.limits.unsized, entry, offset + len(data))
            await server.wait_for(sftp.chmod(partial, entry.mode))
            await _replace(server, partial, target)
        progress.copied(entry.path, arrived=True)

    await _run_jobs((_bound(send, entry) for entry in entries if entry.size is not None), _FILES_AT_ONCE)
    for folder in reversed(made):
        await server.wait_for(sftp.chmod(joined(remote, folder.path), folder.mode))


async def download(server: Server, remote: str, local: Path, on_progress: OnTransferProgress | None) -> None:
    """Copy a file or a folder from the server; a file that grows meanwhile is copied up to its size at the start.

    Raises:
        TransferError, OSError, asyncssh.Error: the copy failed.
    """
    sftp = server.sftp
    listing = Listing(server.limits.entries)
    entries = await RemoteListing(server, remote, listing).below("", await server.wait_for(sftp.stat(remote)))
    progress = _Progress(entries, remote, listing.skipped, on_progress)
    local.parent.mkdir(parents=True, exist_ok=True)  # in the event loop, because it is quick
    made = [folder for folder in _folders(entries) if _make_folder(local / folder.path)]

    async def fetch(entry: Copied) -> None:
        target = local / entry.path

        async def remove(partial: str) -> None:
            os.unlink(partial)  # noqa: PTH108  # Path's method would need a Path

        async with _partial(str(target.parent), remove) as partial:
            async with _opened(server, sftp.open(joined(remote, entry.path), "rb", block_size=0)) as read:
                with _descriptor(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as written:

                    async def piece(offset: int, size: int) -> bytes:
                        data = cast("bytes", await server.wait_for(read.read(size, offset)))  # pyright: ignore[reportUnknownArgumentType]  # AnyStr
                        if len(data) > size:
                            raise TransferError(f"the server sent {len(data)} bytes, but {size} were asked for")
                        return data

                    async def block(offset: int, size: int) -> None:
                        while size:
                            data = await piece(offset, size)
                            if not data:
                                raise TransferError(f"{joined(remote, entry.path)} became shorter while it was copied")
                            _write(written, data, offset)
                            progress.copied(entry.path, len(data))
                            offset, size = offset + len(data), size - len(data)

                    largest = _block_size(sftp.limits.max_read_len)
                    await _run_jobs((_bound(block, *place) for place in _blocks(entry, largest)), _BLOCKS_AT_ONCE)
                    offset = 0
                    while not entry.size and (data := await piece(offset, largest)):
                        _write(written, data, offset)
                        progress.copied(entry.path, len(data), unforeseen=True)
                        offset = _within(server.limits.unsized, entry, offset + len(data))
            _put_in_place(partial, target, entry.mode)
        progress.copied(entry.path, arrived=True)

    await _run_jobs((_bound(fetch, entry) for entry in entries if entry.size is not None), _FILES_AT_ONCE)
    for folder in reversed(made):
        _set_mode(local / folder.path, folder.mode)


def _folders(entries: Iterable[Copied]) -> list[Copied]:
    return [entry for entry in entries if entry.size is None]


def _block_size(allowed: int) -> int:
    return min(_LARGEST_BLOCK, allowed)


def _blocks(entry: Copied, size: int) -> Iterator[tuple[int, int]]:
    total = entry.size or 0
    for offset in range(0, total, size):
        yield offset, min(size, total - offset)


def _within(most: int, entry: Copied, size: int) -> int:
    """Return the number of bytes that were read of a file with a reported size of 0, if it is within the limit.

    Raises:
        TransferError: the file is larger than the limit.
    """
    if size > most:
        raise TransferError(f"{entry.path or 'the file'} reports a size of 0 but has more than {most // 1024**2} MiB")
    return size


@asynccontextmanager
async def _opened(server: Server, opening: Awaitable[File]) -> AsyncGenerator[File]:
    """Open a file on the server, and close it after the block."""
    file = await server.wait_for(opening)
    try:
        yield file
    except BaseException:
        with suppress(TransferError, OSError, asyncssh.Error):
            await server.wait_for(file.close(), server.limits.tidying)
        raise
    await server.wait_for(file.close())


class _Job(Protocol):
    def __call__(self) -> Awaitable[None]: ...


def _bound(function: Callable[..., Awaitable[None]], *arguments: object) -> _Job:
    return lambda: function(*arguments)


async def _run_jobs(jobs: Iterator[_Job], count: int) -> None:
    """Run all jobs, a number of them at a time. The first failure, or a cancellation of the caller, ends the others."""

    async def run_some() -> None:
        for job in jobs:
            await job()

    tasks = [asyncio.create_task(run_some()) for _ in range(count)]
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
    """Open a local file; only its owner can use a new file."""
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)  # otherwise Windows changes the line ends
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# These functions seek first, because Windows lacks pread and pwrite. No other code moves the descriptor in between.


def _read(descriptor: int, size: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    # Write again until all is written, because a disk that becomes full accepts a part first, and fails only then.
    while data:
        data = data[os.write(descriptor, data) :]


@asynccontextmanager
async def _partial(folder: str, remove: Callable[[str], Awaitable[None]]) -> AsyncGenerator[str]:
    """Yield the path of a partial file in a folder. The file is removed if the block fails."""
    # The path does not contain the file's name, which may already have the greatest length.
    partial = posixpath.join(folder, f".{secrets.token_hex(8)}.part")
    try:
        yield partial
    except BaseException:
        with suppress(TransferError, OSError, asyncssh.Error):
            await remove(partial)
        raise


async def _replace(server: Server, partial: str, target: str) -> None:
    """Rename a complete file to its final name, and replace an existing file."""
    if await server.wait_for(server.sftp.isdir(target)):
        raise TransferError(f"{target} is a folder; add a file name to the path")
    try:
        await server.wait_for(server.sftp.posix_rename(partial, target))
    except asyncssh.SFTPOpUnsupported:
        with suppress(asyncssh.SFTPNoSuchFile):
            await server.wait_for(server.sftp.remove(target))
        await server.wait_for(server.sftp.rename(partial, target))


async def _make_remote_folder(server: Server, path: str) -> bool:
    """Make a folder that only its owner can use until all has arrived; return False if it exists already."""
    if await server.wait_for(server.sftp.isdir(path)):
        return False
    await server.wait_for(server.sftp.mkdir(path, asyncssh.SFTPAttrs(permissions=0o700)))
    return True


def _make_folder(path: Path) -> bool:
    """Make a folder that only its owner can use until all has arrived; return False if it exists already."""
    if path.is_dir():
        return False
    path.mkdir(mode=0o700)
    return True


def _set_mode(path: Path, mode: int) -> None:
    """Set the permissions of a copy, except on Windows, where a read-only copy could not be replaced."""
    if sys.platform != "win32":
        path.chmod(mode & _PERMISSIONS)


def _put_in_place(partial: str, target: Path, mode: int) -> None:
    if target.is_dir():
        raise TransferError(f"{target} is a folder; add a file name to the path")
    _set_mode(Path(partial), mode)
    Path(partial).replace(target)

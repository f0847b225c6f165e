"""Downloads from a server that lists, sends or stalls without an end: an error in bounded time, memory and size."""

from __future__ import annotations

import asyncio
import gc
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_REGULAR

from netmind_rentgpu import AsyncRentGPU, AsyncShell, Container, InvalidArgumentError, SSHError, SSHTimeoutError
from netmind_rentgpu.ssh import listing, transfer
from netmind_rentgpu.ssh.limits import SSHLimits

FILE = asyncssh.SFTPAttrs(type=FILEXFER_TYPE_REGULAR, permissions=stat.S_IFREG | 0o644, size=0)
FOLDER = asyncssh.SFTPAttrs(type=FILEXFER_TYPE_DIRECTORY, permissions=stat.S_IFDIR | 0o755)


class HostileSFTP(asyncssh.SFTPServer):
    """A server that knows `folder` and `file`, and sends of a file as much as it is asked for, whatever its size.

    Attributes:
        size: what it says of the size of a file.
        more: how many bytes it sends beyond what it is asked for.
        entries: yields the entries of a folder.
        sent: how many bytes of files it has sent.
        stalls: True if it never answers a read.
    """

    size = 0
    more = 0
    entries: Callable[[], Any] = staticmethod(lambda: iter(()))
    sent = 0
    stalls = False

    def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        if path.endswith(b"file"):
            attributes = asyncssh.SFTPAttrs(**{name: getattr(FILE, name) for name in ("type", "permissions")})
            attributes.size = type(self).size
            return attributes
        return FOLDER

    lstat = stat

    def realpath(self, path: bytes) -> bytes:
        return path

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        for name, attributes in type(self).entries():
            yield asyncssh.SFTPName(name, b"", attributes)

    def open(self, path: bytes, pflags: int, attributes: asyncssh.SFTPAttrs) -> object:
        return self

    def close(self, file_obj: object) -> None:
        pass

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        if type(self).stalls:
            await asyncio.Event().wait()
        type(self).sent += size
        return b"x" * (size + type(self).more)


class Login(asyncssh.SSHServer):
    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return True


@asynccontextmanager
async def shell_on(gpu: AsyncRentGPU, **behaviour: Any) -> AsyncIterator[tuple[AsyncShell, type[HostileSFTP]]]:
    """Open a shell on a hostile server."""
    server: Any = type("Server", (HostileSFTP,), behaviour)
    key = asyncssh.generate_private_key("ssh-ed25519")
    async with asyncssh.listen(
        "127.0.0.1", 0, server_factory=Login, server_host_keys=[key], sftp_factory=server
    ) as listener:
        there = Container(id=1, ssh=f"ssh root@127.0.0.1 -p {listener.get_port()}")
        async with gpu.ssh(there, password="a-password") as shell:
            yield shell, server


def endless(*, folders: bool) -> Callable[[], Any]:
    def entries() -> Any:
        number = 0
        while True:
            number += 1
            yield (b"sub", FOLDER) if folders else (b"f%d" % number, FILE)

    return staticmethod(entries)


@pytest.mark.parametrize("entries", [endless(folders=False), endless(folders=True)], ids=["files", "one folder"])
async def test_endless_listing_ends_the_download(
    gpu: AsyncRentGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: Any
) -> None:
    gpu._credentials.limits = SSHLimits(entries=3000)
    async with shell_on(gpu, entries=entries) as (shell, _):
        with pytest.raises(SSHError, match="more than 3,000 files and folders; the last was listed in") as caught:
            await shell.download("folder", tmp_path / "down")
    assert caught.value.stage == "transfer"
    assert not (tmp_path / "down").exists()


async def test_name_longer_than_any_ends_the_download(gpu: AsyncRentGPU, tmp_path: Path) -> None:
    entries = staticmethod(lambda: iter([(b"x" * 100_000, FILE)]))
    async with shell_on(gpu, entries=entries) as (shell, _):
        with pytest.raises(SSHError, match="holds a name of more than 255 bytes"):
            await shell.download("folder", tmp_path / "down")


# What is a plain name on POSIX, and on Windows leads elsewhere, to a device, or to another name.
WINDOWS_TRAPS = [
    *(b"..\\..\\outside", b"\\outside", b"C:outside", b"file:stream", b".. ", b"...", b"file.", b"file "),
    *(b"nul", b"NUL.txt", b"Con", b"aux .log", b"com1", b"LPT9.tar.gz", "com\N{SUPERSCRIPT TWO}".encode(), b"CONIN$"),
    *(b"a?b", b"a*b", b'"', b"<", b">", b"|", b"a\x01b"),
]


@pytest.mark.parametrize("name", WINDOWS_TRAPS, ids=ascii)
async def test_name_that_is_none_on_windows_ends_the_download_there(
    gpu: AsyncRentGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    entries = staticmethod(lambda: iter([(name, FILE)]))
    monkeypatch.setattr(listing, "sys", SimpleNamespace(platform="win32"))
    async with shell_on(gpu, entries=entries) as (shell, _):
        with pytest.raises(SSHError, match="cannot be a file's name"):
            await shell.download("folder", tmp_path / "down")
    assert not (tmp_path / "down").exists()


@pytest.mark.parametrize("name", [b".hidden", b"console", b"com", b"com10", b"null.txt", b"a.nul", b"a b", b"lpt1x"])
@pytest.mark.parametrize("platform", ["linux", "win32"])
async def test_name_like_one_of_a_windows_device_is_downloaded(
    gpu: AsyncRentGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, platform: str
) -> None:
    file = asyncssh.SFTPAttrs(type=FILEXFER_TYPE_REGULAR, permissions=stat.S_IFREG | 0o644, size=3)
    monkeypatch.setattr(listing, "sys", SimpleNamespace(platform=platform))
    async with shell_on(gpu, entries=staticmethod(lambda: iter([(name, file)]))) as (shell, _):
        await shell.download("folder", tmp_path / "down")
    assert (tmp_path / "down" / name.decode()).read_bytes() == b"xxx"


@pytest.mark.parametrize(
    "names", [("Makefile", "makefile"), ("stra\u00dfe", "STRASSE"), ("caf\u00e9", "cafe\u0301"), ("\u01c5", "\u01c6")]
)
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
async def test_names_that_only_linux_tells_apart_are_not_written_over_each_other(
    gpu: AsyncRentGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str], platform: str
) -> None:
    file = asyncssh.SFTPAttrs(type=FILEXFER_TYPE_REGULAR, permissions=stat.S_IFREG | 0o644, size=3)
    # The same name twice, as a server may say of a folder that changes, is one file.
    listed = [(name.encode(), file) for name in (names[0], *names)]
    monkeypatch.setattr(listing, "sys", SimpleNamespace(platform=platform))
    async with shell_on(gpu, entries=staticmethod(lambda: iter(listed))) as (shell, _):
        if platform == "linux":
            await shell.download("folder", tmp_path / "down")
            assert {path.name for path in (tmp_path / "down").iterdir()} == set(names)
            return
        with pytest.raises(SSHError, match="may treat as one name"):
            await shell.download("folder", tmp_path / "down")
    assert not (tmp_path / "down").exists()


async def test_modes_that_windows_lacks_are_neither_sent_nor_set(
    shell: AsyncShell, site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (listing, transfer):
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform="win32"))
    (tmp_path / "up").mkdir(mode=0o777)
    (tmp_path / "up" / "file").write_bytes(b"as it is")
    for path in (tmp_path / "up", tmp_path / "up" / "file"):
        path.chmod(0o777)
    await shell.upload(tmp_path / "up", "there")
    assert [stat.S_IMODE((site.home / path).stat().st_mode) for path in ("there", "there/file")] == [0o755, 0o644]
    (site.home / "there" / "file").chmod(0o444)
    for _ in range(2):
        await shell.download("there/file", tmp_path / "down")
    assert (tmp_path / "down").stat().st_mode & 0o200


async def test_endless_depth_ends_the_download(gpu: AsyncRentGPU, tmp_path: Path) -> None:
    entries = staticmethod(lambda: iter([(b"sub", FOLDER)]))
    async with shell_on(gpu, entries=entries) as (shell, _):
        with pytest.raises(SSHError, match="is inside more than 100 folders"):
            await shell.download("folder", tmp_path / "down")


@pytest.mark.parametrize("size", [1, 1000, 300_000])
async def test_not_a_byte_is_read_beyond_the_announced_size(gpu: AsyncRentGPU, tmp_path: Path, size: int) -> None:
    async with shell_on(gpu, size=size) as (shell, server):
        await shell.download("file", tmp_path / "file")
        assert server.sent == size
    assert (tmp_path / "file").read_bytes() == b"x" * size


@pytest.mark.parametrize("size", [0, None])
async def test_endless_file_without_a_size_ends_the_download(
    gpu: AsyncRentGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    gpu._credentials.limits = SSHLimits(unsized=2 * 1024 * 1024)
    async with shell_on(gpu, size=size) as (shell, server):
        with pytest.raises(SSHError, match="reports a size of 0 but has more than 2 MiB"):
            await shell.download("file", tmp_path / "file")
        assert server.sent < 3 * 1024 * 1024
    assert list(tmp_path.glob("*file*")) == []
    assert list(tmp_path.glob(".*.part")) == []


@pytest.mark.parametrize("size", [0, 10, 600_000])
async def test_reply_longer_than_asked_for_ends_the_download(gpu: AsyncRentGPU, tmp_path: Path, size: int) -> None:
    async with shell_on(gpu, size=size, more=1) as (shell, _):
        with pytest.raises(SSHError, match=r"the server sent \d+ bytes, but \d+ were asked for"):
            await shell.download("file", tmp_path / "file")
    assert list(tmp_path.glob(".*.part")) == []


async def test_copy_that_takes_too_long_is_ended(
    gpu: AsyncRentGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu._credentials.limits = SSHLimits(tidying=0.1)
    (tmp_path / "local").write_text("x")
    async with shell_on(gpu, size=10, stalls=True) as (shell, _):
        with pytest.raises(SSHTimeoutError, match=r"cannot copy file to .*: it did not end within 0\.2 s") as caught:
            await shell.download("file", tmp_path / "file", timeout=0.2)
        assert caught.value.stage == "transfer"
        assert list(tmp_path.glob(".*.part")) == []
        with pytest.raises(InvalidArgumentError, match="timeout"):
            await shell.upload(tmp_path / "local", "file", timeout=-1)


async def test_server_without_an_answer_to_sftp_ends_the_copy(
    gpu: AsyncRentGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu._credentials.limits = SSHLimits(sftp_start=0.2)

    def fall_silent(server: HostileSFTP, channel: Any) -> None:
        channel.write = lambda *_: None
        asyncssh.SFTPServer.__init__(server, channel)

    async with shell_on(gpu, __init__=fall_silent) as (shell, _):
        with pytest.raises(SSHError, match="no answer in time"):
            await shell.download("file", tmp_path / "file")
    # The abandoned session fails after the download. The loop must not report that failure as unhandled.
    del shell
    gc.collect()


async def test_growing_file_is_copied_as_long_as_it_was_at_first(shell: AsyncShell, site: Any, tmp_path: Path) -> None:
    for source, copy, target in (
        (
            tmp_path / "file",
            lambda progress: shell.upload(tmp_path / "file", "up", on_progress=progress),
            site.home / "up",
        ),
        (
            site.home / "file",
            lambda progress: shell.download("file", tmp_path / "down", on_progress=progress),
            tmp_path / "down",
        ),
    ):
        source.write_bytes(b"a" * 100_000)

        def grow(_: Any, source: Path = source) -> None:
            with source.open("ab") as file:
                file.write(b"b" * 1000)

        await copy(grow)
        assert target.read_bytes() == b"a" * 100_000

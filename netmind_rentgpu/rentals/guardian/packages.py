"""Copies of the SDK and of the packages it needs, which outlive an upgrade or the removal of the virtual environment.

The copies of one set of versions serve all guardians that share a folder. Each holds a lock on them while it lives; the next
guardian with other versions removes those that no guardian holds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import attrs

from netmind_rentgpu.errors import ConfigurationError
from netmind_rentgpu.sqlite_file import make_folder

__all__ = ["Copies", "copy_packages", "user_id"]

_NAME: Final = "netmind_rentgpu"
# It imports what a guardian imports, which writes nothing there itself. Where a disk is full, Python may keep a part of a
# compiled file, which it cannot read again; here, such a file is left out.
_TRIAL: Final = """
import os, sys
from importlib.machinery import SourceFileLoader

def keep(loader, path, data, **_):
    begun = path + "." + str(os.getpid())
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(begun, "wb") as file:
            file.write(data)
        os.replace(begun, path)
    except OSError:
        if os.path.exists(begun):
            os.remove(begun)

SourceFileLoader.set_data = keep
sys.path.insert(0, {folder!r})
import aiohttp, anyio, anyio._backends._asyncio, cattrs, orjson
from netmind_rentgpu.rentals.guardian.look import AsyncRentGPU
AsyncRentGPU("token", base_url="http://localhost", state="/state")
import importlib.util
if importlib.util.find_spec("asyncssh"): import netmind_rentgpu.ssh.login
print("imported")
"""
_PREFIX: Final = "packages-"
_LONGEST_IMPORT: Final = 60.0  # seconds
# The compiled files may appear at any time, and are not needed.
_CODE: Final = (".py", ".sh", ".so", ".dylib")
# Folders that a guardian does not need.
_UNUSED: Final = ("__pycache__", "emulator", "guide", "tests", "_pyinstaller")


@attrs.frozen
class Copies:
    """The copies that a guardian uses.

    Attributes:
        folder: the folder to import from.
        lock: a descriptor of the folder, whose lock keeps the copies until it is closed in all processes.
    """

    folder: Path
    lock: int


def copy_packages(folder: Path, environment: Mapping[str, str]) -> Copies:
    """Copy the packages into a folder, unless it has them, and check that the SDK can be imported from there alone.

    Args:
        environment: the variables of a guardian.

    Raises:
        ConfigurationError: the packages were not found, cannot be copied, or are not all that the SDK needs.
    """
    try:
        files = dict(_files())
        target = folder / f"{_PREFIX}{_mark_of(files)}"
        make_folder(folder)
        _check_owner(folder)
        lock = _locked(target)
        try:
            for relative, source in files.items():
                _copy(source, target / relative)
            _try_out(target, environment)
            _remove_unused(folder, target)
        except BaseException:
            os.close(lock)
            raise
    except (OSError, subprocess.TimeoutExpired) as error:
        text = f"no guardian can be started: could not copy the packages it needs into {folder}: {error}"
        raise ConfigurationError(text) from error
    return Copies(target, lock)


def _mark_of(files: Mapping[Path, Path]) -> str:
    """Return a name for the present versions of files."""
    mark = hashlib.blake2s((sys.implementation.cache_tag or "").encode(), digest_size=8)
    for relative, source in sorted(files.items()):
        status = source.stat()
        mark.update(f"{relative} {status.st_size} {status.st_mtime_ns}\n".encode())
    return mark.hexdigest()


def user_id() -> int:
    """Return the id of this process's user."""
    if sys.platform == "win32":
        raise NotImplementedError
    return os.geteuid()


def _check_owner(folder: Path) -> None:
    """Raise ConfigurationError for a folder to which another user could add code."""
    status = folder.lstat()
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == user_id()
    if not is_ours or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        text = f"no guardian can be started: another user owns {folder}, or may write there; choose another state=..."
        raise ConfigurationError(text)


def _try_out(target: Path, environment: Mapping[str, str]) -> None:
    """Import the SDK from the copies alone, once, and compile it."""
    tried = target / ".imported"
    if tried.exists():
        return
    code = _TRIAL.format(folder=str(target))
    done = subprocess.run(  # noqa: S603  # this interpreter
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=dict(environment),
        check=False,
        timeout=_LONGEST_IMPORT,
    )
    # The program may have taken the status of this child by an `os.wait` of its own.
    if done.stdout.strip() != b"imported":
        why = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
        text = (
            f"no guardian can be started: {sys.executable} could not import the SDK from copies of its packages: {why}"
        )
        raise ConfigurationError(text)
    tried.touch()


def _copy(source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        if target.stat().st_size == source.stat().st_size:
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may copy at once.
    begun = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copy2(source, begun)
        begun.replace(target)
    except BaseException:
        # A part would keep a full disk full.
        begun.unlink(missing_ok=True)
        raise


def _locked(target: Path) -> int:
    """Make a folder if it is missing, and return a descriptor of it with a lock that others share."""
    if sys.platform == "win32":
        raise NotImplementedError
    import fcntl

    while True:
        target.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(target, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        # Another process may have removed it before this one had the lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), target.stat()):
                return descriptor
        os.close(descriptor)


def _remove_unused(folder: Path, used: Path) -> None:
    """Remove the copies that no guardian holds."""
    if sys.platform == "win32":
        raise NotImplementedError
    import fcntl

    for other in folder.glob(f"{_PREFIX}*"):
        if other == used:
            continue
        with suppress(OSError):
            descriptor = os.open(other, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other)
            finally:
                os.close(descriptor)


def _files() -> Iterator[tuple[Path, Path]]:
    """Yield the files to copy, each with its place below the folder to import from."""
    try:
        found = dict[str, Distribution]()
        _with_dependencies(_NAME, found)
        # An extra, by which the guardian looks at jobs.
        with suppress(PackageNotFoundError):
            _with_dependencies("asyncssh", found)
        names = {name for each in found.values() for name in _modules_of(each)}
    except PackageNotFoundError as error:
        text = f"no guardian can be started: the package {error.name} is not installed, so its files are not known"
        raise ConfigurationError(text) from error
    for name in sorted(names | {_NAME}):
        spec = importlib.util.find_spec(name)
        for place in () if spec is None else spec.submodule_search_locations or ():
            yield from _code_below(Path(place), Path(name))
        if spec is not None and spec.origin is not None and not spec.submodule_search_locations:
            origin = Path(spec.origin)
            yield Path(origin.name), origin


def _code_below(folder: Path, relative: Path) -> Iterator[tuple[Path, Path]]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            if entry.name not in _UNUSED:
                yield from _code_below(Path(entry.path), relative / entry.name)
        elif entry.name.endswith(_CODE):
            yield relative / entry.name, Path(entry.path)


def _with_dependencies(name: str, seen: dict[str, Distribution]) -> Iterable[Distribution]:
    """Return a distribution and all that it needs, without extras."""
    normal = re.sub(r"[-_.]+", "-", name).casefold()
    if normal in seen:
        return seen.values()
    seen[normal] = distribution(name)
    for requirement in seen[normal].requires or ():
        needed = re.match(r"[\w.-]+", requirement)
        if needed is None or re.search(r"\bextra\s*==", requirement):
            continue
        # A requirement of another system or Python is not installed.
        with suppress(PackageNotFoundError):
            _with_dependencies(needed[0], seen)
    return seen.values()


def _modules_of(found: Distribution) -> Iterator[str]:
    """Yield the names of the packages and modules that a distribution may have."""
    yield re.sub(r"[-.]", "_", found.name)
    for file in found.files or ():
        top, *below = file.parts
        if below and top.isidentifier() and top != "__pycache__":
            yield top
        elif top.endswith(".py"):
            yield top.removesuffix(".py")
    yield from (found.read_text("top_level.txt") or "").split()

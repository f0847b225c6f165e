"""The SQLite file: creating, opening, migrating and identifying it. This is the only module that knows SQLite."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias
from weakref import WeakValueDictionary

from netmind_rentgpu.concurrency.forks import at_fork
from netmind_rentgpu.errors import StateFileError, StateFolderError
from netmind_rentgpu.state_schema import MIGRATIONS

__all__ = [
    "Connection",
    "DatabaseError",
    "Identity",
    "add_rows",
    "check_version",
    "copy_in_memory",
    "fork_gate",
    "identity_of",
    "is_place_unusable",
    "make_folder",
    "open_file",
    "open_for_reading",
    "open_unchanged",
    "rows_of",
    "transaction",
]

_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# Files that other users may read, with modes that cannot be changed; each is logged once.
_shared_files: set[Path] = set()
_UNUSABLE_PLACES = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
)

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

Connection: TypeAlias = sqlite3.Connection
DatabaseError = sqlite3.Error
Identity: TypeAlias = tuple[int, int]
"""A file's device and inode."""

_PAUSE = 0.05
_MOST_OPENINGS = 5


class UsesFile(Protocol):
    """A user of SQLite connections, which may be open when the process forks."""

    def close_before_fork(self) -> None: ...

    def renew_after_fork(self) -> None: ...


class ForkGate:
    """A gate that keeps SQLite connections closed while the process forks.

    Otherwise a child that closes all its descriptors, or an inherited connection, would release its parent's locks, and its
    SQLite would write to any other file that has got the number of a closed descriptor.

    Attributes:
        longest_use: the seconds that a fork waits for a connection in use. A longer wait would seem to hang, so the fork
            then goes on; the child never touches inherited connections.
    """

    def __init__(self) -> None:
        self.longest_use: float = 5.0
        self._changed = threading.Condition()
        self._users = 0
        self._forks = 0
        self._files: WeakValueDictionary[int, UsesFile] = WeakValueDictionary()

    def register(self, file: UsesFile) -> None:
        """Register a file, whose connections are closed before each fork from now on."""
        self._files[id(file)] = file

    @contextmanager
    def using(self) -> Generator[None]:
        """Keep forks waiting while a `with` block uses connections; wait first for a fork that is under way."""
        with self._changed:
            self._changed.wait_for(lambda: not self._forks)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Keep new users from connections, and close all connections, unless one is still in use after `longest_use`."""
        with self._changed:
            self._forks += 1
            if self._changed.wait_for(lambda: not self._users, timeout=self.longest_use):
                for file in list(self._files.values()):
                    file.close_before_fork()

    def open(self) -> None:
        """Allow the use of connections again."""
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def renew(self) -> None:
        """Reset the gate in a forked child, which has none of the parent's threads that used connections."""
        self._changed = threading.Condition()
        self._users = self._forks = 0
        for file in list(self._files.values()):
            file.renew_after_fork()


fork_gate: Final = ForkGate()
at_fork(before=fork_gate.close, after_in_parent=fork_gate.open, after_in_child=fork_gate.renew)


def identity_of(path: Path) -> Identity | None:
    """Return the identity of the file at a path; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def rows_of(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Return all rows, by table; empty the write-ahead log, which SQLite would apply to a file that replaces this one."""
    connection.text_factory = _decoded
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    rows: dict[str, list[dict[str, Any]]] = {}
    for (table,) in tables:
        found = connection.execute(f"SELECT * FROM {table}")  # noqa: S608  # a table of ours
        names = [column[0] for column in found.description]
        rows[table] = [dict(zip(names, row, strict=True)) for row in found]
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return rows


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def add_rows(
    connection: Connection,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
    *,
    then: Callable[[Connection], object],
) -> None:
    """Add the rows of all tables, except those that are there already.

    Args:
        then: is called in the same transaction.

    Raises:
        StateFileError: a newer version of this package has migrated the file.
    """
    with transaction(connection, path):
        for table, content in rows.items():
            if content:
                # Quoted, because a name may be a word of SQL.
                names = ", ".join(f'"{name}"' for name in content[0])
                places = ", ".join(f":{name}" for name in content[0])
                insertion = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({places})"  # noqa: S608  # names of ours
                connection.executemany(insertion, content)
        then(connection)


@contextmanager
def transaction(connection: Connection, path: Path) -> Generator[None]:
    """Begin a transaction that may write, and commit it at the end of the `with` block, or roll it back after an error.

    Raises:
        StateFileError: a newer version of this package has migrated the file, while this process had it open.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        check_version(connection, path)
        yield
        connection.execute("COMMIT")
    except BaseException:
        # The transaction may be over, because an error of the whole file, such as a full disk, ends it.
        with suppress(DatabaseError):
            connection.execute("ROLLBACK")
        raise


def open_file(path: Path, longest_lock: float) -> tuple[Connection, Identity]:
    """Open a file, and migrate it; create it first if there is none.

    Args:
        longest_lock: the seconds for which another process or thread may lock the file before that is an error.

    Raises:
        StateFolderError: the path leads to no regular file, or to another user's.
        StateFileError: processes cannot share the file, or a newer version of this package wrote it.
        DatabaseError, OSError: the file cannot be opened.
    """
    # Resolved, so that the file is created at the target of a link that leads to no file yet.
    path = Path(os.path.realpath(path))
    for _ in range(_MOST_OPENINGS):
        make_folder(path.parent)
        if not path.exists():
            with _folder_locked(path.parent) as is_locked:
                if is_locked and not path.exists():
                    _remove_leftovers(path)
                _make(path)
        identity = identity_of(path)
        _keep_from_others(path)
        connection = sqlite3.connect(path, timeout=longest_lock, isolation_level=None, check_same_thread=False)
        try:
            _set_up(connection, path, longest_lock)
        except BaseException:
            connection.close()
            raise
        if identity is not None and identity_of(path) == identity:
            return connection, identity
        connection.close()
    raise OSError(f"it was replaced {_MOST_OPENINGS} times while it was being opened")


def is_place_unusable(path: Path, error: Exception) -> bool:
    """Return True if a file cannot be opened or written because of its place, and not because of its content."""
    if isinstance(error, sqlite3.Error):
        # The lower eight bits are the primary code; errors that Python itself raises have none. The folder is tested, too,
        # because SQLite reports a lack of file descriptors with the same code.
        refused = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        return refused and not os.access(path.parent, os.W_OK | os.X_OK)
    return isinstance(error, OSError) and error.errno in _UNUSABLE_PLACES


def make_folder(folder: Path) -> None:
    """Create a folder and the missing folders above it, each for its user alone under any umask."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        # Some file systems have no modes.
        with suppress(OSError):
            folder.chmod(0o700)


def _keep_from_others(path: Path) -> None:
    """Remove the permissions of other users on a file and its companions, because the file holds passwords.

    Raises:
        StateFolderError: one of them is no regular file, or belongs to another user who is not root.
    """
    user = os.geteuid() if hasattr(os, "geteuid") else None
    # Windows has no such users and modes.
    if user is None:
        return
    for part in (path, *_companions(path)):
        with suppress(FileNotFoundError):
            _keep_part_from_others(part, user)


def _keep_part_from_others(part: Path, user: int) -> None:
    # With `lstat`, because the path is resolved and SQLite creates no links: another user has planted any link found here.
    status = part.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise StateFolderError(
            f"cannot use the state file {part}: it is not a regular file; choose another place with state=..."
        )
    # Root may use every file, for example in a container that has a user's folder mounted.
    if user not in (status.st_uid, 0) and status.st_uid != 0:
        raise StateFolderError(
            f"cannot use the state file {part}: it belongs to {_name_of(status.st_uid)} (mode {mode:04o}), and would"
            " hold the password of this user's rentals; choose another place with state=..."
        )
    if mode & _OF_OTHERS:
        with suppress(OSError):
            part.chmod(mode & ~_OF_OTHERS)
        if part.lstat().st_mode & _OF_OTHERS and part not in _shared_files:
            _shared_files.add(part)
            logger.warning(
                "other users may read the state file %s, which holds the password of rentals: its mode is %04o, and"
                " cannot be changed; choose another place with state=...",
                part,
                mode,
            )


def _name_of(user: int) -> str:
    """Return a user's name and number, or the number alone if there is no name."""
    try:
        return f"{importlib.import_module('pwd').getpwuid(user).pw_name} (uid {user})"
    except (ImportError, KeyError):
        return f"uid {user}"


def _companions(path: Path) -> tuple[Path, ...]:
    """Return the files that SQLite keeps beside a file."""
    return tuple(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))


@contextmanager
def _folder_locked(folder: Path) -> Generator[bool]:
    """Keep other processes from creating the file in a folder meanwhile; yield False if the folder cannot be locked."""
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # some file systems cannot lock folders
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove the companions of a deleted file, because SQLite would take them for the new file's."""
    for companion in _companions(path):
        companion.unlink(missing_ok=True)


def _make(path: Path) -> None:
    """Create an empty file for its user alone, because SQLite would let others read the file.

    The file has another name until its descriptor is closed, because closing any descriptor of a file releases all locks
    that the process has on that file.
    """
    descriptor, new = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".new", dir=path.parent)
    os.close(descriptor)
    # Set again, because the umask may have removed the user's own permissions; some file systems have no modes.
    with suppress(OSError):
        Path(new).chmod(0o600)
    try:
        os.link(new, path)
    except FileExistsError:
        pass
    except (AttributeError, OSError):  # some systems and some file systems have no hard links
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    finally:
        Path(new).unlink()


def _set_up(connection: Connection, path: Path, longest_lock: float) -> None:
    if _execute_when_free(connection, "PRAGMA journal_mode = WAL", longest_lock) != "wal":
        raise StateFileError(
            f"cannot use the state file {path}: processes cannot share a file in this place; choose another with state=..."
        )
    connection.execute("PRAGMA synchronous = FULL")
    _migrate(connection, path)


def _execute_when_free(connection: Connection, pragma: str, seconds: float) -> Any:
    """Repeat a pragma while another process opens the file, because SQLite itself does not wait for that."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connection.execute(pragma).fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)


def _version_of(connection: Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check_version(connection: Connection, path: Path) -> None:
    """Check that no newer version of this package has migrated a file, within a transaction or before.

    Raises:
        StateFileError: it has.
    """
    if _version_of(connection) > len(MIGRATIONS):
        raise StateFileError(
            f"cannot use the state file {path}: a newer version of this package wrote it; upgrade netmind-rentgpu"
        )


def _migrate(connection: Connection, path: Path) -> None:
    check_version(connection, path)
    if _version_of(connection) == len(MIGRATIONS):
        return
    with transaction(connection, path):
        # Read again under the lock, because another process may have migrated the file meanwhile.
        for number in range(_version_of(connection), len(MIGRATIONS)):
            connection.execute(MIGRATIONS[number])
            connection.execute(f"PRAGMA user_version = {number + 1}")


def open_for_reading(path: Path, longest_lock: float) -> Connection:
    """Open a file to look something up, without creating or migrating it.

    A file of an earlier version is copied into memory, and the copy is migrated; a missing file reads as an empty one.

    Args:
        longest_lock: as for `open_file`.

    Raises:
        StateFolderError, StateFileError, DatabaseError, OSError: as for `open_file`.
    """
    path = Path(os.path.realpath(path))
    if not os.path.lexists(path):
        return _copy_in_memory(None, path)
    _keep_from_others(path)
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=longest_lock, isolation_level=None, check_same_thread=False
    )
    return _at_present_version(connection, path)


def open_unchanged(path: Path) -> Connection:
    """Open a file to read names from it, without a wait for locks; no file is changed or left beside it.

    Texts that are not UTF-8 are escaped.

    Raises:
        StateFileError: a newer version of this package wrote it.
        DatabaseError, OSError: there is no regular file, or it is locked or cannot be read.
    """
    path = Path(os.path.realpath(path))
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is not a regular file")
    # No process has a file without a write-ahead log open, and SQLite would leave an empty log. If a process opens the file
    # now, this reads what the file had before.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=0, isolation_level=None)
    connection = _at_present_version(connection, path)
    connection.text_factory = _decoded
    return connection


def _at_present_version(connection: Connection, path: Path) -> Connection:
    """Return a connection to a file of the present version, or else to a copy in memory that is migrated."""
    try:
        check_version(connection, path)
        return connection if _version_of(connection) == len(MIGRATIONS) else copy_in_memory(connection, path)
    except BaseException:
        connection.close()
        raise


def copy_in_memory(connection: Connection, path: Path) -> Connection:
    """Close a connection; return one to a copy of its file in memory, which is migrated."""
    try:
        return _copy_in_memory(connection, path)
    finally:
        connection.close()


def _copy_in_memory(source: Connection | None, path: Path) -> Connection:
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        if source is not None:
            source.backup(copy)
        _migrate(copy, path)
    except BaseException:
        copy.close()
        raise
    return copy

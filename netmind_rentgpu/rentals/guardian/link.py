"""The parent's side of its guardian: one guardian for each process, started when a client first needs it.

A forked child has none, and starts its own. The guardian confirms each message, so that no create is sent that it does not
know of. If it has died, the next message starts another, which takes over what the former ones guarded.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from netmind_rentgpu.concurrency.forks import at_fork_in_child
from netmind_rentgpu.concurrency.threads import run_in_thread, start_thread
from netmind_rentgpu.errors import ConfigurationError, RentGPUError, TransportError
from netmind_rentgpu.rentals.guardian.packages import Copies, copy_packages, user_id
from netmind_rentgpu.rentals.guardian.registration import key_of, read_registration, registration_of
from netmind_rentgpu.rentals.ledger.process_identity import (
    ProcessIdentity,
    ProcessLookup,
    look_up_process,
    this_process,
)
from netmind_rentgpu.rentals.ledger.rows import owner_text
from netmind_rentgpu.rentals.limits import RentalLimits
from netmind_rentgpu.settings import ClientParts

if TYPE_CHECKING:
    from netmind_rentgpu.resources.containers import AsyncContainers

__all__ = ["ClientGuardian", "check_guardian_possible"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")

# In seconds.
_LONGEST_START: Final = 30.0
_LONGEST_ANSWER: Final = 10.0
_MOST_STARTS: Final = 3
_PROGRAM: Final = (
    "import sys; sys.path.insert(0, {folder!r}); from netmind_rentgpu.rentals.guardian.process import main;"
    " main(sys.argv[1:])"
)
# The guardian's environment has these alone, so that it holds no token.
_KEPT_VARIABLES: Final = (
    *("PATH", "HOME", "LANG", "LANGUAGE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)


def check_guardian_possible(session: object) -> None:
    """Check that this process can start a guardian for a client.

    Args:
        session: the caller's own session; None without one.

    Raises:
        ConfigurationError: there is a session, the system has no forks, or `sys.executable` is no program.
    """
    if session is not None:
        raise ConfigurationError(
            "guardian=True cannot hand a session of your own to the guardian; pass proxy= or others"
        )
    if not hasattr(os, "fork"):
        raise ConfigurationError("guardian=True needs a system with forks, such as Linux or macOS")
    if not sys.executable or not os.access(sys.executable, os.X_OK):
        shown = repr(sys.executable or "")
        raise ConfigurationError(f"no guardian can be started: sys.executable is {shown}, which is no program")


class _Lists(Protocol):
    """A client's context, which lists containers."""

    @property
    def containers(self) -> AsyncContainers: ...


class _EndedError(Exception):
    """The guardian has ended, because nothing was left to guard."""


class _LostError(Exception):
    """The guardian has died, does not answer, or cannot be reached any longer."""


class _Connection:
    """A guardian that this process has started.

    Attributes:
        guardian: the guardian's identity.
    """

    def __init__(self, guardian: ProcessIdentity, end: socket.socket) -> None:
        self.guardian: ProcessIdentity = guardian
        self._socket = end
        self._file = os.fstat(end.fileno())
        self._begun = b""

    def ask(self, message: Mapping[str, Any]) -> None:
        """Send a message, and wait until the guardian has confirmed it.

        Raises:
            _EndedError: the guardian has ended by itself.
            _LostError: it does not answer.
        """
        if not self._is_usable():
            raise _LostError("this program has closed its end of the socket")
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # its last words may have come all the same
                self._socket.sendall(json.dumps(message).encode() + b"\n")
            answer = self.receive()
        except (OSError, ValueError) as error:
            raise _LostError(str(error) or type(error).__name__) from error
        if "ended" in answer:
            raise _EndedError
        if answer != {"done": True}:
            raise _LostError("it does not know this client")

    def receive(self) -> dict[str, Any]:
        """Return the guardian's next message."""
        while b"\n" not in self._begun:
            data = self._socket.recv(4096)
            if not data:
                raise OSError("its end of the socket is closed")
            self._begun += data
        line, _, self._begun = self._begun.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _is_usable(self) -> bool:
        """Return False if the program has closed the descriptor, which may be that of another file by now."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._socket.fileno()), self._file)
        return False

    def close(self) -> None:
        """Close this end of the socket; the guardian goes on with what is left to guard."""
        if self._is_usable():
            self._socket.close()
        else:
            self._socket.detach()


class _Link:
    """The guardian of this process, and the clients that it knows."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the guardian, because it is that of another process."""
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._former: list[str] = []
        # The last registration of each client, by its key; it stays known as long as something of it is guarded.
        self._registered: dict[str, dict[str, Any]] = {}
        self._open: Counter[str] = Counter()

    def close_inherited(self) -> None:
        """Close a forked child's copy of the socket, so that it ends when the parent does."""
        connection = self._connection
        self.reset()
        if connection is not None:
            connection.close()

    def watch(
        self, key: str, registration: dict[str, Any], folder: Path, seconds: float, *, is_new: bool
    ) -> ProcessIdentity:
        """Register a client, and a moment at which the guardian has to look at the state file; return the guardian.

        Args:
            seconds: the time until that moment.
            is_new: True for the first time that a client does so.

        Raises:
            ConfigurationError: no guardian can be started.
        """
        with self._lock:
            self._open[key] += is_new
            is_known = self._registered.get(key) == registration and not is_new
            self._registered[key] = registration
            # A new one may end at once, too.
            for _ in range(_MOST_STARTS):
                connection = self._connection or self._start(folder)
                try:
                    if connection is not self._connection:
                        self._register_all(connection)
                    elif not is_known:
                        connection.ask(self._registration_message(connection, key))
                    connection.ask({"do": "watch", "key": key, "seconds": seconds})
                except (_EndedError, _LostError) as error:
                    self._drop(connection, error)
                    is_known = False
                else:
                    return connection.guardian
        raise ConfigurationError("no guardian could be started: each has ended at once")

    def guards(self, guardian: ProcessIdentity | None) -> bool:
        """Return True if a guardian is this process's, or was."""
        present = None if self._connection is None else self._connection.guardian
        return guardian is not None and (guardian == present or owner_text(guardian) in self._former)

    def close(self, key: str, *, is_empty: bool) -> None:
        """Record that a client is closed.

        Args:
            is_empty: True if nothing with its key is guarded any longer.
        """
        with self._lock:
            self._open[key] -= 1
            if self._open[key] > 0 or key not in self._registered:
                return
            if is_empty:
                del self._registered[key]
            if self._connection is None:
                return
            try:
                self._connection.ask({"do": "close", "key": key, "is_empty": is_empty})
            except (_EndedError, _LostError) as error:
                self._drop(self._connection, error)
                return
            if not self._registered:
                self._drop(self._connection, _EndedError())

    def _drop(self, connection: _Connection, error: _EndedError | _LostError) -> None:
        """Forget a guardian that has ended, or is lost."""
        self._connection = None
        connection.close()
        process_id = connection.guardian.process_id
        if isinstance(error, _LostError):
            self._former.append(owner_text(connection.guardian))
            logger.error(
                "the guardian of this process, process %d, is lost: %s; another is started before the next create",
                process_id,
                error,
            )
        _collect(process_id)

    def _start(self, folder: Path) -> _Connection:
        environment = {
            name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES or name.startswith("LC_")
        }
        copies = copy_packages(folder, environment)
        try:
            connection = _started(copies, environment)
        finally:
            os.close(copies.lock)
        logger.debug("guarded by process %d", connection.guardian.process_id)
        return connection

    def _register_all(self, connection: _Connection) -> None:
        """Register all clients with a new guardian, which takes over what the former ones have guarded."""
        self._connection = connection
        for key in self._registered:
            connection.ask(self._registration_message(connection, key))
            if self._former:
                connection.ask({"do": "watch", "key": key, "seconds": 0.0})
            if self._open[key] <= 0:
                connection.ask({"do": "close", "key": key, "is_empty": False})

    def _registration_message(self, connection: _Connection, key: str) -> dict[str, Any]:
        own = {
            "guardian": owner_text(connection.guardian),
            "owner": owner_text(this_process()),
            "former": self._former,
        }
        return {"do": "register", "key": key, "registration": {**self._registered[key], **own}}


_link: Final = _Link()
at_fork_in_child(_link.close_inherited)


class ClientGuardian:
    """The guardian of this process, as one client uses it."""

    def __init__(
        self, parts: ClientParts, elsewhere: Callable[[ClientParts], AbstractAsyncContextManager[_Lists]]
    ) -> None:
        """Initialize.

        Args:
            elsewhere: opens the context of a client with other parts.
        """
        self._parts = parts
        self._elsewhere = elsewhere
        self._key = key_of(parts.settings)
        self._process: int | None = None
        # The certificate of a client cannot be read from a context.
        self._is_unproven = parts.ssl_context is not None

    async def watch(self, seconds: float, limits: RentalLimits) -> ProcessIdentity:
        """Register this client, and a moment at which the guardian has to look at its rentals; return the guardian.

        Args:
            seconds: the time until that moment.
            limits: the time limits by which the guardian acts.

        Raises:
            ConfigurationError: no guardian can be started.
        """
        if self._is_unproven:
            await self._check_tls()
            self._is_unproven = False
        is_new, self._process = self._process != os.getpid(), os.getpid()
        registration = {
            **registration_of(self._parts),
            "grace": limits.guardian,
            "between_job_looks": limits.between_job_looks,
            "reading_end": limits.reading_end,
        }
        # Users may share the folder of the state file, but not code.
        folder = self._parts.settings.state.parent / f"guardian-{user_id()}"
        return await run_in_thread(lambda: _link.watch(self._key, registration, folder, seconds, is_new=is_new))

    async def _check_tls(self) -> None:
        """Check that the TLS settings that the guardian gets let it connect."""
        async with self._elsewhere(read_registration(registration_of(self._parts))) as other:
            try:
                await other.containers.list(page_size=1)
            except TransportError as error:
                text = (
                    "the guardian cannot connect with this ssl_context: it gets neither a certificate of the client's own,"
                    f" nor authorities of a folder (capath): {error}"
                )
                raise ConfigurationError(text) from error
            except RentGPUError:
                pass

    def guards(self, guardian: ProcessIdentity | None) -> bool:
        """Return True if a rental's guardian is that of this process, or was."""
        return _link.guards(guardian)

    @property
    def was_used(self) -> bool:
        """True if this client has had something guarded by the guardian of this process."""
        return self._process == os.getpid()

    async def close(self, *, is_empty: bool) -> None:
        """Record that this client is closed.

        Args:
            is_empty: True if the state file has no rental of this client's account that the guardian guards.
        """
        self._process = None
        await run_in_thread(lambda: _link.close(self._key, is_empty=is_empty))


def _collect(process_id: int) -> None:
    """Wait for the end of a guardian, in a thread, if it is a child of this process, the first one of a container."""

    def wait() -> None:
        with suppress(OSError):
            os.waitpid(process_id, 0)

    if sys.platform != "win32":
        with suppress(OSError):
            if os.waitpid(process_id, os.WNOHANG) == (0, 0):
                start_thread(wait)


def _started(copies: Copies, environment: Mapping[str, str]) -> _Connection:
    """Start a guardian, and wait for its first words.

    Raises:
        ConfigurationError: that has failed.
    """
    try:
        ours, its_own = socket.socketpair()
    except OSError as error:
        raise ConfigurationError(f"no guardian can be started: {error}") from error
    pidfd = _own_pidfd()
    program = _PROGRAM.format(folder=str(copies.folder))
    passed = (its_own.fileno(), copies.lock, *(() if pidfd is None else (pidfd,)))
    arguments = [str(its_own.fileno()), str(-1 if pidfd is None else pidfd), str(os.getpid())]
    try:
        process = subprocess.Popen(  # noqa: S603  # this interpreter, and a file of ours
            [sys.executable, "-I", "-S", "-B", "-c", program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
            pass_fds=passed,
        )
    except OSError as error:
        ours.close()
        raise ConfigurationError(f"no guardian can be started with {sys.executable}: {error}") from error
    finally:
        its_own.close()
        if pidfd is not None:
            os.close(pidfd)
    ours.settimeout(_LONGEST_START)
    connection = _Connection(this_process(), ours)
    try:
        process_id = connection.receive()["process_id"]
        process.wait(_LONGEST_START)
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
        ours.close()
        process.kill()
        process.wait()
        text = f"no guardian can be started: {sys.executable} did not run it: {error or type(error).__name__}"
        raise ConfigurationError(text) from error
    ours.settimeout(_LONGEST_ANSWER)
    started = look_up_process(process_id)
    started_text = "" if isinstance(started, ProcessLookup) else started
    connection.guardian = attrs.evolve(this_process(), process_id=process_id, started=started_text)
    return connection


def _own_pidfd() -> int | None:
    """Return a descriptor by which another process notices the death of this one; None where the system has none."""
    if sys.platform == "linux":
        with suppress(OSError):
            return os.pidfd_open(os.getpid())
    return None

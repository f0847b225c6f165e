"""The login to a container: find the host, connect, check the host key, and only then send the password."""

from __future__ import annotations

import asyncio
import getpass
import logging
import socket
from types import SimpleNamespace
from typing import Any

import asyncssh
import attrs

from netmind_rentgpu.concurrency.threads import revive
from netmind_rentgpu.connecting import connect, look_up
from netmind_rentgpu.errors import ConfigurationError, SSHError, SSHStage, SSHTimeoutError
from netmind_rentgpu.models import SSHEndpoint

__all__ = ["Login", "check_login", "log_in"]

_MOST_UNANSWERED = 1

# Otherwise an application that logs at INFO would get hundreds of lines for each login, with the text of each command.
if logging.getLogger("asyncssh").level == logging.NOTSET:
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
# Processors have instructions for AES-GCM, so that a large file takes two thirds of the time.
_FASTEST_FIRST = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"


@attrs.frozen(kw_only=True)
class Login:
    """The endpoint and the credentials of a login.

    Attributes:
        label: the name of the container in errors.
        host_key: the key that the server must have, as `ssh-ed25519 AAAA...`; None to accept any.
        keepalive: the seconds without a packet after which the server is asked for one, and within which it has to answer.
    """

    label: str
    endpoint: SSHEndpoint
    username: str
    password: str = attrs.field(repr=False)
    host_key: str | None
    keepalive: float


async def log_in(login: Login, seconds: float) -> tuple[asyncssh.SSHClientConnection, str]:
    """Log in; return the connection and the server's host key.

    Raises:
        SSHError: the login failed; `stage` is the step that failed.
    """
    try:
        check_login(login.username)
    except ConfigurationError as error:
        raise SSHError(f"{login.label}: {error}", stage="password") from error
    server = _Server(login.host_key)
    where = f"{login.label}, {login.endpoint.host} port {login.endpoint.port}"
    try:
        async with asyncio.timeout(seconds):
            addresses = await look_up(login.endpoint.host, login.endpoint.port)
            server.stage = "connection"
            connection = await _handshake(login, server, await connect(addresses))
    except TimeoutError as error:
        problems = {"name": "the host's name was not resolved", "connection": "no SSH server answered"}
        problem = problems.get(server.stage, "the login did not finish")
        raise SSHTimeoutError(f"{where}: {problem} within {seconds:g} s", stage=server.stage) from error
    except (socket.gaierror, UnicodeError) as error:
        raise SSHError(f"{where}: the host's name cannot be resolved ({error})", stage="name") from error
    except (OSError, asyncssh.Error) as error:
        stage, problem = _problem(error, server)
        raise SSHError(f"{where}: {problem}", stage=stage) from error
    return connection, server.host_key


async def _handshake(login: Login, server: _Server, connected: socket.socket) -> asyncssh.SSHClientConnection:
    try:
        try:
            return await _greet(login, server, connected)
        except RuntimeError as error:
            if "shutdown" not in str(error):
                raise
            # asyncssh needs a thread of the loop's executor, which starts none once the main thread has ended.
            revive(asyncio.get_running_loop())
            return await _greet(login, server, connected)
    except BaseException:
        connected.close()
        raise


async def _greet(login: Login, server: _Server, connected: socket.socket) -> asyncssh.SSHClientConnection:
    return await asyncssh.connect(
        login.endpoint.host,
        login.endpoint.port,
        sock=connected,
        client_factory=lambda: server,
        password=login.password,
        keepalive_interval=login.keepalive,
        keepalive_count_max=_MOST_UNANSWERED,
        **_options(login.username, login.host_key),
    )


def check_login(username: str) -> None:
    """Check that this process can log in to containers as a user.

    Raises:
        ConfigurationError: asyncssh cannot send the name, or finds no home folder.
    """
    _ensure_local_username()
    try:
        asyncssh.SSHClientConnectionOptions(**_options(username, None))
    except ValueError as error:
        text = f"cannot log in as {username!r}: {error}; set ServiceProfile.ssh_username to a name that can be sent"
        raise ConfigurationError(text) from error
    except RuntimeError as error:
        raise ConfigurationError(f"cannot log in to containers: {error}; set the environment variable HOME") from error


def _ensure_local_username() -> None:
    """Replace asyncssh's look-up of the local user's name if the user has none, as under an arbitrary uid in a container.

    asyncssh looks up the name whenever it connects, fails without a name, and does not use the name here.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        asyncssh.connection.__dict__["getpass"] = SimpleNamespace(getuser=lambda: "unknown")


def _options(username: str, host_key: str | None) -> dict[str, Any]:
    """Return the options of a connection, apart from the password."""
    return {
        "username": username,
        # These switch off ~/.ssh and SSH agents, because the user's own keys are not meant for a rented machine.
        "config": None,
        "client_keys": None,
        "client_username": username,
        "agent_path": None,
        "gss_host": None,
        "x509_trusted_certs": None,
        "known_hosts": ([], [], []),
        "encryption_algs": _FASTEST_FIRST,
        "server_host_key_algs": _preferred(host_key),
        # A server that accepts logins without a password is not the container's.
        "disable_trivial_auth": True,
        "preferred_auth": ["password", "keyboard-interactive"],
    }


def _preferred(host_key: str | None) -> str:
    """Return the host key algorithms to ask for: that of the known key first, then all others, to detect a changed key."""
    if host_key is None:
        return "default"
    kind = host_key.split()[0]
    wanted = ["rsa-sha2-512", "rsa-sha2-256"] if kind == "ssh-rsa" else [kind]
    return f"^{','.join(wanted)}"


class _Server(asyncssh.SSHClient):
    """The server's host key, and the progress of the login.

    Attributes:
        stage: the step that is under way.
        host_key: the server's key; empty until it is known.
    """

    def __init__(self, expected: str | None) -> None:
        self._expected = expected
        self.stage: SSHStage = "name"
        self.host_key: str = ""
        self._fingerprint = ""
        self._connection: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connection = conn

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            # `wait_disconnected` returns it as the cause.
            self._connection.set_extra_info(connection_lost=exc)
            self._connection = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        del host, addr, port
        self.stage = "host key"
        self._fingerprint = key.get_fingerprint()
        self.host_key = " ".join(key.export_public_key().decode().split()[:2])
        if self._expected not in (None, self.host_key):
            return False
        self.stage = "password"
        return True

    def describe_changed_key(self) -> str:
        """Return the problem of a server whose key is not the expected one."""
        expected = asyncssh.import_public_key(self._expected or "").get_fingerprint()
        return (
            f"the server's host key has changed: it is {self._fingerprint}, but the container's was {expected}. "
            "Another machine may have this address now, or may intercept the connection. The password was not sent. "
            "If you know why the key has changed, accept it with accept_new_host_key=True"
        )


def _problem(error: Exception, server: _Server) -> tuple[SSHStage, str]:
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return "host key", server.describe_changed_key()
    refused = isinstance(error, asyncssh.DisconnectError) and not isinstance(error, asyncssh.ConnectionLost)
    if isinstance(error, asyncssh.PermissionDenied) or (refused and server.stage == "password"):
        return "password", f"the password was refused ({error})"
    if isinstance(error, OSError):
        return "connection", f"no connection ({error})"
    return "connection", f"the SSH connection failed ({error})"

"""`containers ssh-config`: the part of OpenSSH's configuration by which it finds containers, and knows their host keys."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.output import write_bytes
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session

if TYPE_CHECKING:
    from netmind_rentgpu.cli.rows import SSHHost
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.models import Container
    from netmind_rentgpu.state_file import State

__all__ = ["config_block", "find_host", "print_config"]

# The service's texts become lines of a configuration that can run programs, so nothing else is written into it.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WORD: Final = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:@-]*")
_KEY: Final = re.compile(r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+")
_FOLDER: Final = "known_hosts"


def print_config(session: Session, ids: Sequence[int], password_file: str | None) -> None:
    """Print a block for each container, whose host key has been seen by then.

    Args:
        password_file: a file with the password of a first login; None to ask the service for it.

    Raises:
        CommandError: a container has no address yet, or no password for a first login is known.
        RentGPUError: a container was not found, or the first login has failed.
    """

    async def work(gpu: AsyncRentGPU) -> list[tuple[SSHHost, Container]]:
        password = None
        if password_file is not None:
            from netmind_rentgpu.cli.secret_input import read_secret

            password = read_secret(
                session, password_file, kind="password", option="--password-file", question="Password"
            )
        found: list[tuple[SSHHost, Container]] = []
        for container_id in dict.fromkeys(ids):
            container = await gpu.containers.get(container_id)
            found.append((await find_host(gpu, container, password), container))
        return found

    hosts = session.run(work)
    if session.results.format == "table":
        write_bytes("\n".join(config_block(host, container) for host, container in hosts).encode())
    else:
        session.results.rows([host for host, _ in hosts], ())


async def find_host(gpu: AsyncRentGPU, container: Container, password: str | None) -> SSHHost:
    """Return a container as OpenSSH finds it, and write its host key into a file for OpenSSH.

    Args:
        password: the password of a first login; None to ask the service for it.

    Raises:
        CommandError: the container has no address yet, or no password for a first login is known.
        RentGPUError: the first login has failed, or the state file cannot be used.
    """
    state: State = gpu._state  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the host keys are no public value
    endpoint = container.ssh_endpoint
    if endpoint is None:
        raise CommandError(
            ExitCode.NO,
            f"container {container.id} has no address that can be read yet: its ssh is {container.ssh!r}",
            f"`rentgpu containers wait {container.id}` waits for it.",
        )
    key = await state.host_key(container.id)
    if key is None:
        await _log_in_once(gpu, container, password)
        key = await state.host_key(container.id)
    if key is None or not _KEY.fullmatch(key):
        raise CommandError(ExitCode.LOST, f"the state file has no host key of container {container.id}")
    # With a mark of the account, because two accounts may have a container with the same id.
    alias = f"rentgpu-{container.id}-{hashlib.sha256(str(state.fingerprint).encode()).hexdigest()[:12]}"
    path = state.path.parent / _FOLDER / alias
    _write_whole(path, f"{alias} {key}\n")
    hosts = [f"container-{container.id}"]
    if container.name is not None and _NAME.fullmatch(container.name):
        hosts.append(container.name)
    return {
        "id": container.id,
        "hosts": hosts,
        "host_name": endpoint.host,
        "port": endpoint.port,
        "user": endpoint.username or gpu.profile.ssh_username,
        "host_key": key,
        "host_key_alias": alias,
        "known_hosts_file": str(path),
    }


async def _log_in_once(gpu: AsyncRentGPU, container: Container, password: str | None) -> None:
    """Log in, so that the state file has the host key.

    Raises:
        CommandError: the service does not show the password.
        SSHError: the login has failed for another reason.
    """
    shown = password or (None if container.auth_id is None else (await gpu.auths.get(container.auth_id)).value)
    if not shown:
        raise CommandError(
            ExitCode.NO,
            f"the host key of container {container.id} is known only after a login, and the service does not show the"
            " password for one",
            "Give the password with --password-file FILE, where - is stdin.",
        )
    async with gpu.ssh(container, password=shown):
        pass


def config_block(host: SSHHost, container: Container) -> str:
    """Return the lines of a container in OpenSSH's configuration.

    Raises:
        CommandError: a part of them cannot stand there.
    """
    for word in (host["host_name"], host["user"]):
        if not _WORD.fullmatch(word):
            raise CommandError(
                ExitCode.NO, f"OpenSSH's configuration cannot hold {word!r} of the ssh of container {host['id']}"
            )
    password = "" if container.auth_id is None else f" The password: rentgpu auths show {container.auth_id} --reveal"
    lines = (
        f"HostName {host['host_name']}",
        f"Port {host['port']}",
        f"User {host['user']}",
        f"HostKeyAlias {host['host_key_alias']}",
        f"UserKnownHostsFile {_quoted(Path(host['known_hosts_file']))}",
        "StrictHostKeyChecking yes",
    )
    head = f"# Container {host['id']}.{password}\nHost {' '.join(host['hosts'])}\n"
    return head + "".join(f"    {line}\n" for line in lines)


def _quoted(path: Path) -> str:
    """Return a path as OpenSSH's configuration has it.

    Raises:
        CommandError: it cannot hold the path.
    """
    text = path.as_posix()
    if '"' in text or "${" in text or "\\" in text or not text.isprintable():
        raise CommandError(
            ExitCode.USAGE, f"OpenSSH's configuration cannot hold the path {text!r}", "Choose a --state."
        )
    text = text.replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that no other program sees a part of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise

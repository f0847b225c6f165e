"""A real OpenSSH server, with users and passwords of its own: Debian's openssh-server, and libnss-wrapper for the users."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

INSTALL = "apt-get install openssh-server openssh-client libnss-wrapper busybox tmux zsh fish"
"""The command that installs what these tests need."""
PASSWORD = "a-real-servers-password"
# Of that password, by `openssl passwd -6`.
_HASH = "$6$netmindtests$YdwjL0nvRiqKNyc4nZ/q.NwYTiqwNX0k4kaw99F62H0a7ZwbJ80cq0OLv/oS.SzCRKVoiPaypXbCNAXnb1Hcr/"
_CONFIG = """
# Otherwise a forwarded port may be bound for IPv6 alone, where another server has it for IPv4.
AddressFamily inet
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile none
UsePAM no
PermitRootLogin yes
PasswordAuthentication yes
KbdInteractiveAuthentication no
PubkeyAuthentication no
StrictModes no
PrintMotd no
MaxStartups 500
MaxSessions {sessions}
Subsystem sftp internal-sftp
# A test may put programs of its own there, such as nvidia-smi.
SetEnv PATH={folder}/home/bin:{path}
"""


@dataclass
class OpenSSH:
    """The server."""

    port: int
    home: Path


def missing(what: str) -> None:
    """Skip a test, and fail it where CI should have installed what it needs."""
    text = f"{what} is missing: {INSTALL}"
    if "CI" in os.environ and sys.platform == "linux":
        pytest.fail(text)
    pytest.skip(text)


def program(name: str) -> str:
    """Return the path of one of OpenSSH's programs."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        missing(name)
    assert found is not None
    return found


@contextmanager
def openssh_server(folder: Path, port: int, *, sessions: int = 10) -> Iterator[OpenSSH]:
    """Serve on a port of this machine.

    Args:
        sessions: the sessions of a connection; 10 is OpenSSH's default.
    """
    server, keygen = program("sshd"), program("ssh-keygen")
    if not list(Path("/usr/lib").glob("*/libnss_wrapper.so*")):
        missing("libnss-wrapper")
    home = folder / "home"
    home.mkdir(parents=True)
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")], check=True)
    user = f"{os.getuid()}:{os.getgid()}"
    (folder / "passwd").write_text(f"root:x:{user}::{home}:/bin/bash\nsshd:x:65533:65534::/:/bin/false\n")
    (folder / "group").write_text(f"root:x:{os.getgid()}:\nnogroup:x:65534:\n")
    (folder / "shadow").write_text(f"root:{_HASH}:19000:0:99999:7:::\n")
    (folder / "config").write_text(_CONFIG.format(port=port, folder=folder, sessions=sessions, path=os.environ["PATH"]))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    wrapped = {
        "LD_PRELOAD": "libnss_wrapper.so",
        **{f"NSS_WRAPPER_{name.upper()}": str(folder / name) for name in ("passwd", "group", "shadow")},
    }
    command, environment = [server, "-D", "-e", "-f", str(folder / "config")], {"PATH": os.environ["PATH"], **wrapped}
    with _listening(command, environment) as process:
        try:
            yield OpenSSH(port, home)
        finally:
            process.kill()
            kill_processes_of(home)


def kill_processes_of(home: Path, command: str = "") -> None:
    """Kill the processes that logins with a home folder have left behind.

    A process that outlives its server names the server's port in its environment, and another server may get that port.

    Args:
        command: a text that the command line of a process must hold to be killed.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # because the process may end meanwhile
            is_of_home = f"HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0")
            if is_of_home and command.encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def _listening(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a server, again for a while if another program has its port for a moment, as for a connection of its own."""
    deadline = time.monotonic() + 60
    while True:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, start_new_session=True)
        assert process.stderr is not None
        told = b""
        while b"Server listening" not in told and (line := process.stderr.readline()):
            told += line
        if b"Server listening" in told:
            return process
        process.stderr.close()
        process.wait()
        assert b"Address already in use" in told, told.decode()
        assert time.monotonic() < deadline, told.decode()
        time.sleep(0.1)

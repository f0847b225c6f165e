"""`activity.sh` in several shells, without a connection, and what the client reads from its answers."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from job_folder import SHELLS
from openssh import missing
from until import until

from netmind_rentgpu import ActivityReading
from netmind_rentgpu.ssh.activity import activity_command, activity_from

linux = pytest.mark.skipif(sys.platform != "linux", reason="the script reads /proc")

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LINE, SCRIPT = activity_command()
PROGRAMS = ("cat", "grep", "printf", "sed", "sh", "sleep", "setsid")
# A machine of its own within this one: the next process there has the next number.
APART = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.fixture(params=[*SHELLS, "/bin/ksh93", "/bin/mksh", "/bin/yash"])
def sh(request: pytest.FixtureRequest) -> str:
    """A shell to run the script."""
    program = request.param.split()[0]
    if shutil.which(program) is None:
        if request.param in SHELLS:
            missing(program)
        pytest.skip(f"{program} is missing")
    return str(request.param)


class Login:
    """A connection to a server, the variables of its login, and processes that logins have started.

    Attributes:
        port: the server's port.
        variable: what the server sets SSH_CONNECTION to.
    """

    def __init__(self, client: socket.socket, folder: Path) -> None:
        here, there = client.getsockname(), client.getpeername()
        self.port = int(there[1])
        self.variable = f"{here[0]} {here[1]} {there[0]} {self.port}"
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def environment(self, variable: str | None = None, **others: str) -> dict[str, str]:
        programs = {"PATH": f"{self.folder}:{os.environ['PATH']}", "HOME": str(self.folder), "SHELL": "/bin/sh"}
        return {**programs, "SSH_CONNECTION": self.variable if variable is None else variable, **others}

    def start(self, *command: str, variable: str | None = None) -> None:
        """Start a process of a login."""
        process = subprocess.Popen(command, env=self.environment(variable), start_new_session=True)
        self.processes.append(process)

    async def read(self, sh: str, **environment: str) -> ActivityReading:
        """Run the script as a server runs it."""
        return await self.read_by("/bin/sh", "-c", LINE.replace("/bin/sh", sh), **environment)

    async def read_by(self, *command: str, **environment: str) -> ActivityReading:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**self.environment(), **environment},
            start_new_session=True,
        )
        async with asyncio.timeout(120):
            output, errors = await process.communicate(SCRIPT.encode())
        assert errors == b""
        return activity_from(output.decode(), operations=0, read_at=NOW)


def has_processes_of_logins(port: int) -> bool:
    """Return True if a process is left of logins to another server that had the port, as that of another test."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            for variable in environ.read_bytes().split(b"\0"):
                if variable.startswith(b"SSH_CONNECTION=") and variable.endswith(b" %d" % port):
                    return True
    return False


@contextmanager
def logged_in(host: str, client_host: str, folder: Path) -> Iterator[Login]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        while True:
            server = stack.enter_context(socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::"))
            if not has_processes_of_logins(server.getsockname()[1]):
                break
        client = stack.enter_context(socket.create_connection((client_host, server.getsockname()[1])))
        login = Login(client, folder)
        smi = folder / "nvidia-smi"
        smi.write_text("#!/bin/sh\necho 0\n")
        smi.chmod(0o755)
        try:
            yield login
        finally:
            for process in login.processes:
                process.kill()
                process.wait()


@pytest.fixture
def login(tmp_path: Path) -> Iterator[Login]:
    with logged_in("127.0.0.1", "127.0.0.1", tmp_path) as login:
        yield login


@linux
async def test_script_counts_nothing_of_its_own(login: Login, sh: str) -> None:
    reading = await login.read(sh)
    assert (reading.processes, reading.connections, reading.gpu_use, reading.unknown) == (0, 0, (0,), ())


@linux
async def test_shell_that_waits_for_the_script_is_not_counted(login: Login, sh: str) -> None:
    # A forced command may run it so.
    reading = await login.read_by("/bin/sh", "-c", f"{sh} -c 'eval \"$(cat)\"'; exit 0")
    assert (reading.processes, reading.connections) == (0, 0)


@linux
async def test_processes_of_logins_to_the_same_port_are_counted(login: Login, sh: str) -> None:
    odd = login.folder / "a) Z 1 (b\nc"
    shutil.copy("/bin/sleep", odd)
    login.start("/bin/sleep", "10000")
    login.start(str(odd), "10000", variable=f"10.0.0.1 5 10.0.0.2 {login.port}")
    login.start("/bin/sleep", "10000", variable=f"127.0.0.1 {login.port} 127.0.0.1 1{login.port}")
    login.start("/bin/sleep", "10000", variable="")
    login.start("/bin/true")
    # It is over, and nothing has waited for it.
    await until(lambda: Path(f"/proc/{login.processes[-1].pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert (await login.read(sh)).processes == 2


@linux
async def test_commands_in_one_session_of_a_server_are_counted(login: Login, sh: str) -> None:
    # The session's leader is no process of a login, as with Dropbear.
    serve = (
        'export SSH_CONNECTION="$0"; sleep 10000 </dev/null >/dev/null 2>&1 & '
        # Until then it is a shell without the variable.
        "until grep -aq SSH_CONNECTION=1 /proc/$!/environ; do :; done; "
        f'export SSH_CONNECTION="$0"; {sh} -c \'eval "$(cat)"\'; kill $!'
    )
    reading = await login.read_by("/bin/sh", "-c", serve, login.variable, SSH_CONNECTION="")
    assert reading.processes == 1


@linux
async def test_other_connections_are_counted(login: Login, sh: str) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", login.port)))
        assert (await login.read(sh)).connections == 3


@linux
@pytest.mark.parametrize(("host", "client_host"), [("::1", "::1"), ("::", "127.0.0.1")])
async def test_own_connection_is_found_among_those_of_ipv6(
    tmp_path: Path, sh: str, host: str, client_host: str
) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    # A server that listens for both sees a client of IPv4 at an address of IPv6.
    with logged_in(host, client_host, tmp_path) as login:
        reading = await login.read(sh)
        assert (reading.processes, reading.connections) == (0, 0)


@linux
async def test_locale_and_options_of_the_login_change_nothing(login: Login, sh: str) -> None:
    login.start("/bin/sleep", "10000")
    for variables in (
        {"LC_ALL": "C.UTF-8", "LANGUAGE": "de", "GREP_COLORS": "ne", "POSIXLY_CORRECT": "1"},
        {"LC_ALL": "C", "SHELLOPTS": "noclobber:noglob:nounset:errexit"} if "bash" in sh else {"IFS": "/0"},
    ):
        reading = await login.read(sh, **variables)
        assert (reading.processes, reading.connections, reading.gpu_use) == (1, 0, (0,))


@linux
@pytest.mark.parametrize("variable", ["", "1 2 3", "127.0.0.1 5 127.0.0.1 ssh", "* * * *"])
async def test_login_without_its_connection_in_the_environment_is_unknown(login: Login, sh: str, variable: str) -> None:
    reading = await login.read(sh, SSH_CONNECTION=variable)
    assert (reading.processes, reading.connections, reading.gpu_use, reading.is_busy) == (None, None, (0,), True)
    cause = "SSH_CONNECTION does not name the connection of the login"
    assert [sentence.rpartition(": ")[2] for sentence in reading.unknown] == [cause] * 2


@linux
async def test_connection_that_the_container_does_not_see_is_unknown(login: Login, sh: str) -> None:
    reading = await login.read(sh, SSH_CONNECTION=f"10.1.2.3 4 10.1.2.4 {login.port}")
    assert (reading.processes, reading.connections) == (0, None)
    (sentence,) = reading.unknown
    assert sentence.endswith("/proc/net/tcp does not show the connection of the login from 10.1.2.3 port 4")


@linux
@pytest.mark.parametrize(("absent", "processes", "connections"), [("grep", None, 0), ("sed", 0, None)])
async def test_container_without_a_program_is_unknown(
    login: Login, absent: str, processes: int | None, connections: int | None
) -> None:
    for name in PROGRAMS:
        if name != absent:
            (login.folder / name).symlink_to(str(shutil.which(name)))
    reading = await login.read("/bin/dash", PATH=str(login.folder))
    assert (reading.processes, reading.connections, reading.gpu_use) == (processes, connections, (0,))
    assert len(reading.unknown) == 1


def check_apart() -> None:
    """Skip a test if this user cannot have a machine apart."""
    if subprocess.run([*APART, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user cannot make namespaces")


@linux
async def test_container_without_proc_is_unknown(login: Login, sh: str) -> None:
    check_apart()
    hide = f"mount -t tmpfs none /proc && exec {sh} -c 'eval \"$(cat)\"'"
    reading = await login.read_by(*APART, "/bin/sh", "-c", hide)
    assert (reading.processes, reading.connections, reading.is_busy) == (None, None, True)
    assert reading.unknown[0].endswith("the container has no /proc that shows all processes")


@linux
def test_script_starts_few_processes_however_many_run(login: Login, sh: str) -> None:
    check_apart()
    started = []
    for count in (1, 300):
        command = (
            f"i=0; while [ $i -lt {count} ]; do sleep 10000 </dev/null >/dev/null 2>&1 & i=$((i + 1)); done\n"
            # A process shows no environment at the moment at which it becomes another program.
            f"until [ $(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -cx 10000) -ge {count} ]; do :; done\n"
            f"sh -c 'echo $$'; setsid -w {sh} -c 'eval \"$(cat)\"'; sh -c 'echo $$'"
        )
        done = subprocess.run(
            [*APART, "/bin/sh", "-c", command],
            input=SCRIPT,
            text=True,
            capture_output=True,
            check=True,
            env=login.environment(),
        )
        first, *answers, last = done.stdout.splitlines()
        started.append(int(last) - int(first))
        # The shell that has started them is one of a login, too.
        assert f"netmind-activity processes {count + 1}" in answers
    assert started[0] == started[1]
    assert started[0] <= 12


LOGIN = "netmind-activity login 10.0.0.1 40000 10.0.0.2 22\n"
OWN = "netmind-activity connection 0200000A:0016 0100000A:9C40\n"
WHOLE = (
    f"Welcome!\n\n{LOGIN}netmind-activity processes 2\n{OWN}netmind-activity connections-read\n"
    "netmind-activity gpus\n0\n 97 \n\nnetmind-activity gpus-read 0\nbye\n"
)


def seen(reading: ActivityReading) -> tuple[Any, ...]:
    return reading.processes, reading.connections, reading.gpu_use, len(reading.unknown)


def test_whole_answer_becomes_a_reading() -> None:
    reading = activity_from(WHOLE, operations=3, read_at=NOW, failure="unused")
    assert reading == ActivityReading(
        read_at=NOW, processes=2, connections=0, gpu_use=(0, 97), operations=3, unknown=()
    )


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("", (None, None, None, 3)),
        (WHOLE.replace("processes 2", "processes many"), (None, 0, (0, 97), 1)),
        (WHOLE.replace("processes 2", "processes \N{ARABIC-INDIC DIGIT TWO}"), (None, 0, (0, 97), 1)),
        (WHOLE.replace("netmind-activity connections-read\n", ""), (2, None, (0, 97), 1)),
        (WHOLE.replace(OWN, ""), (2, None, (0, 97), 1)),
        (WHOLE.replace("9C40", "9C41"), (2, None, (0, 97), 1)),
        (WHOLE.replace("0100000A", "0100000B"), (2, None, (0, 97), 1)),
        (WHOLE.replace("0100000A", "0A000001"), (2, 0, (0, 97), 0)),
        (WHOLE.replace("0100000A", "0000000000000000FFFF00000100000A"), (2, 0, (0, 97), 0)),
        (WHOLE.replace("0100000A", "xyz"), (2, None, (0, 97), 1)),
        (WHOLE.replace(OWN, OWN * 2), (2, 0, (0, 97), 0)),
        (WHOLE.replace(OWN, OWN + OWN.replace("9C40", "9C41")), (2, 1, (0, 97), 0)),
        (WHOLE.replace(LOGIN, ""), (2, None, (0, 97), 1)),
        (WHOLE.replace("login 10.0.0.1 40000 10.0.0.2 22", "login"), (2, None, (0, 97), 1)),
        (WHOLE.replace(" 97 ", "97 %"), (2, 0, None, 1)),
        (WHOLE.replace(" 97 ", "9" * 5000), (2, 0, None, 1)),
        (WHOLE.replace("gpus-read 0", "gpus-read 1"), (2, 0, None, 1)),
        (WHOLE.replace("0\n 97 \n", ""), (2, 0, (), 0)),
        (WHOLE.partition(" 97")[0], (2, 0, None, 1)),
        (WHOLE.partition("netmind-activity gpus")[0], (2, 0, None, 1)),
        (WHOLE.partition("processes 2")[0] + "processes 2", (None, None, None, 3)),
    ],
)
def test_answer_that_lacks_something_leaves_it_unknown(output: str, expected: tuple[Any, ...]) -> None:
    reading = activity_from(output, operations=0, read_at=NOW)
    assert seen(reading) == expected
    assert (None in expected) == bool(reading.unknown)
    assert reading.is_busy


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fe80::1"])
def test_zone_of_an_address_does_not_matter(address: str) -> None:
    own = "000080FE000000000000000001000000:9C40"
    output = WHOLE.replace("10.0.0.1", address).replace("0100000A:9C40", own)
    assert activity_from(output, operations=0, read_at=NOW).connections == 0


def test_unknown_causes_are_short_and_cannot_control_a_terminal() -> None:
    answer = "netmind-activity gpus\n\x1b[2J" + "x" * 1000 + "\nnetmind-activity gpus-read 9\n"
    sentences = activity_from(answer, operations=0, read_at=NOW, failure="the line\nwas cut").unknown
    assert sentences[:2] == (
        "the processes that logins have started could not be counted: the line was cut",
        "the SSH connections could not be counted: the line was cut",
    )
    assert "\x1b" not in sentences[2]
    assert len(sentences[2]) < 300


@pytest.mark.parametrize(
    ("changes", "is_busy"),
    [
        ({}, False),
        ({"processes": 1}, True),
        ({"connections": 1}, True),
        ({"operations": 1}, True),
        ({"gpu_use": (0, 4)}, False),
        ({"gpu_use": (0, 5)}, True),
        ({"gpu_use": (100,)}, True),
        ({"gpu_use": ()}, True),
        ({"processes": None}, True),
        ({"connections": None}, True),
        ({"gpu_use": None}, True),
    ],
)
def test_reading_is_busy_unless_everything_is_known_to_be_idle(changes: dict[str, Any], is_busy: bool) -> None:
    idle: dict[str, Any] = {"processes": 0, "connections": 0, "gpu_use": (0, 0), "operations": 0}
    assert ActivityReading(read_at=NOW, **{**idle, **changes}).is_busy == is_busy

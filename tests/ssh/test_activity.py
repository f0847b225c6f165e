"""Readings of whether a container is in use, of containers with the emulator's SSH server and with a real OpenSSH server."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import canaries
import openssh
import pytest
from openssh import missing
from openssh_programs import OpenSSHPrograms
from ssh_client import LASTING, login, port_of, rent
from until import is_running, until

from netmind_rentgpu import ActivityReading, AsyncShell, ClientStateError
from netmind_rentgpu.ssh import activity
from netmind_rentgpu.ssh.activity import read_activity

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="readings need /proc")

HANGING = 'echo $$ >"$HOME/hanging"; exec sleep 10000'


def password(site: Any) -> str:
    return openssh.PASSWORD if site.kind == "OpenSSH" else canaries.PASSWORD


def install_nvidia_smi(site: Any, script: str) -> None:
    """Install another `nvidia-smi` in the container."""
    folder = site.home / "bin" if site.kind == "OpenSSH" else site.home.parent / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def set_gpu_use(site: Any, percent: int) -> None:
    if site.kind == "OpenSSH":
        install_nvidia_smi(site, f"echo 0; echo {percent}")
    else:
        site.emulator.set_gpu_use(site.container.id, percent)


async def read(shell: AsyncShell, operations: int = 0) -> ActivityReading:
    return await read_activity(shell._connection, operations)


async def read_until(shell: AsyncShell, condition: Callable[[ActivityReading], bool]) -> ActivityReading:
    """Read until a reading meets a condition, and return it: connections and processes end some time after their clients."""
    readings: list[ActivityReading] = []

    async def is_met() -> bool:
        readings.append(await read(shell))
        return condition(readings[-1])

    try:
        await until(is_met)
    except TimeoutError:
        pytest.fail(f"no reading met the condition; the last ones: {readings[-3:]}")
    return readings[-1]


async def read_idle(shell: AsyncShell) -> ActivityReading:
    return await read_until(shell, lambda reading: not reading.is_busy)


@pytest.fixture
async def idle_shell(site: Any, shell: AsyncShell) -> AsyncShell:
    """A shell on a container in which nothing else runs."""
    set_gpu_use(site, 0)
    await read_idle(shell)
    return shell


@asynccontextmanager
async def running(shell: AsyncShell, command: str) -> AsyncIterator[None]:
    """Run a command over a shell while the block runs."""
    task = asyncio.create_task(shell.run(command))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def kill_left(site: Any) -> None:
    """Kill what commands have left behind in a container."""
    openssh.kill_processes_of(site.home, "10000")


async def test_connection_of_the_reader_alone_is_idle(idle_shell: AsyncShell) -> None:
    before = datetime.now(UTC)
    reading = await read(idle_shell)
    assert (reading.processes, reading.connections, reading.unknown, reading.is_busy) == (0, 0, (), False)
    assert reading.gpu_use is not None
    assert set(reading.gpu_use) == {0}
    assert before <= reading.read_at <= datetime.now(UTC)


async def test_operations_of_the_client_make_it_busy(idle_shell: AsyncShell) -> None:
    reading = await read(idle_shell, operations=2)
    assert (reading.processes, reading.connections, reading.operations, reading.is_busy) == (0, 0, 2, True)


async def test_command_of_the_same_connection_is_counted(idle_shell: AsyncShell) -> None:
    async with running(idle_shell, LASTING):
        reading = await read_until(idle_shell, lambda reading: bool(reading.processes))
        assert (reading.processes, reading.connections, reading.is_busy) == (1, 0, True)
    await read_idle(idle_shell)


@pytest.mark.parametrize(
    "command", ["nohup sleep 10000", "setsid sleep 10000", "nohup setsid sh -c 'exec sleep 10000'"]
)
async def test_process_that_a_command_has_left_behind_is_counted(
    site: Any, idle_shell: AsyncShell, command: str
) -> None:
    async with site.shell() as other:
        await other.run(f"{command} </dev/null >/dev/null 2>&1 &")
    reading = await read_until(idle_shell, lambda reading: (reading.processes, reading.connections) == (1, 0))
    assert reading.is_busy
    kill_left(site)
    await read_idle(idle_shell)


async def test_session_of_a_detached_tmux_is_counted(site: Any, idle_shell: AsyncShell) -> None:
    if shutil.which("tmux") is None:
        missing("tmux")
    tmux = f"TMUX_TMPDIR={site.home} tmux"
    async with site.shell() as other:
        await other.run(f"{tmux} new-session -d 'exec sleep 10000'", check=True)
    reading = await read_until(idle_shell, lambda reading: reading.connections == 0)
    # The server of tmux, and the command that it runs.
    assert reading.processes == 2
    await idle_shell.run(f"{tmux} kill-server", check=True)
    await read_idle(idle_shell)


async def test_job_is_counted_until_it_is_over(idle_shell: AsyncShell) -> None:
    job = await idle_shell.start(LASTING)
    reading = await read(idle_shell)
    assert reading.processes
    assert reading.is_busy
    await job.stop()
    await read_idle(idle_shell)


async def test_connection_without_a_session_is_counted(site: Any, idle_shell: AsyncShell) -> None:
    async with login(port_of(site.container), password=password(site)):
        reading = await read(idle_shell)
        assert (reading.processes, reading.connections, reading.is_busy) == (0, 1, True)
    await read_idle(idle_shell)


@pytest.mark.parametrize("terminal", [None, "dumb"])
async def test_session_of_another_connection_is_counted(
    site: Any, idle_shell: AsyncShell, terminal: str | None
) -> None:
    async with login(port_of(site.container), password=password(site)) as connection:
        async with connection.create_process(LASTING, term_type=terminal):
            reading = await read_until(idle_shell, lambda reading: bool(reading.processes))
            assert (reading.processes, reading.connections, reading.is_busy) == (1, 1, True)
            # OpenSSH waits for a command without a terminal, although the client has closed its channel.
            kill_left(site)
    await read_idle(idle_shell)


async def test_forward_of_openssh_without_a_command_is_counted(
    site: Any, idle_shell: AsyncShell, tmp_path: Path
) -> None:
    programs = OpenSSHPrograms(tmp_path / "programs", port_of(site.container), password(site))
    socket = programs.folder / "socket"
    client = await programs.start("ssh", "-N", "-L", f"{socket}:127.0.0.1:1", "root@127.0.0.1")
    try:
        await until(socket.exists)
        reading = await read(idle_shell)
        assert (reading.processes, reading.connections, reading.is_busy) == (0, 1, True)
    finally:
        client.terminate()
        await client.communicate()
    await read_idle(idle_shell)


async def test_copy_of_another_client_is_counted(site: Any, idle_shell: AsyncShell) -> None:
    (site.home / "file").write_bytes(os.urandom(1_000_000))
    async with login(port_of(site.container), password=password(site)) as connection:
        async with connection.start_sftp_client() as sftp:
            async with sftp.open("file", "rb") as file:
                assert len(await file.read(1000)) == 1000
                reading = await read(idle_shell)
                assert (reading.connections, reading.is_busy) == (1, True)
    await read_idle(idle_shell)


async def test_other_container_on_the_same_machine_is_not_counted(site: Any, idle_shell: AsyncShell) -> None:
    other = await rent(site.gpu, "other", "other-password")
    async with site.gpu.ssh(other) as shell, running(shell, LASTING):
        reading = await read_until(shell, lambda reading: bool(reading.processes))
        assert (reading.processes, reading.connections) == (1, 0)
        assert not (await read(idle_shell)).is_busy


@pytest.mark.parametrize(("percent", "is_busy"), [(0, False), (4, False), (5, True), (100, True)])
async def test_gpu_in_use_by_five_percent_makes_it_busy(
    site: Any, idle_shell: AsyncShell, percent: int, is_busy: bool
) -> None:
    set_gpu_use(site, percent)
    reading = await read(idle_shell)
    assert reading.gpu_use is not None
    assert (max(reading.gpu_use), reading.is_busy, reading.unknown) == (percent, is_busy, ())


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("echo '[N/A]'", "nvidia-smi reported '[N/A]', which is no number"),
        ("echo 3; echo '[Not Supported]'", "nvidia-smi reported '[Not Supported]', which is no number"),
        ("echo No devices were found; exit 6", "nvidia-smi ended with status 6: No devices were found"),
        ("exit 9", "nvidia-smi ended with status 9"),
        ("kill -9 $$", "nvidia-smi ended with status 137"),
    ],
)
async def test_gpus_that_cannot_be_read_make_it_busy(
    site: Any, idle_shell: AsyncShell, script: str, cause: str
) -> None:
    install_nvidia_smi(site, script)
    reading = await read(idle_shell)
    assert (reading.processes, reading.connections, reading.gpu_use, reading.is_busy) == (0, 0, None, True)
    assert reading.unknown == (f"the use of the GPUs could not be read: {cause}",)


async def test_container_without_nvidia_smi_is_busy(site: Any, idle_shell: AsyncShell) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an nvidia-smi")
    for folder in (site.home / "bin", site.home.parent / "bin"):
        (folder / "nvidia-smi").unlink(missing_ok=True)
    reading = await read(idle_shell)
    assert (reading.processes, reading.connections, reading.gpu_use, reading.is_busy) == (0, 0, None, True)
    assert reading.unknown == ("the use of the GPUs could not be read: the container has no nvidia-smi",)


async def test_nvidia_smi_that_hangs_is_ended_and_leaves_the_rest_known(
    site: Any, idle_shell: AsyncShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(site, HANGING)
    monkeypatch.setattr(activity, "_LONGEST_READING", 2)
    reading = await read_until(idle_shell, lambda reading: reading.connections is not None)
    assert (reading.processes, reading.connections, reading.gpu_use, reading.is_busy) == (0, 0, None, True)
    assert reading.unknown == ("the use of the GPUs could not be read: no answer came within 2 s",)
    await until(lambda: not is_running(int((site.home / "hanging").read_text())))
    set_gpu_use(site, 0)


async def test_cancelled_reading_ends_its_command(site: Any, idle_shell: AsyncShell) -> None:
    install_nvidia_smi(site, HANGING)
    reading = asyncio.create_task(read(idle_shell))
    await until(lambda: (site.home / "hanging").exists() and (site.home / "hanging").read_text())
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: not is_running(int((site.home / "hanging").read_text())))


async def test_startup_script_of_the_login_changes_no_reading(site: Any, idle_shell: AsyncShell) -> None:
    (site.home / ".bashrc").write_text("echo hello; set -C; alias grep=false; printf 'no line end'\n")
    assert "hello" in (await idle_shell.run("true")).stdout
    assert not (await read(idle_shell)).is_busy


async def test_login_that_runs_no_command_makes_it_busy(site: Any, idle_shell: AsyncShell) -> None:
    (site.home / ".bashrc").write_text("echo closed for today >&2; exit 3\n")
    reading = await read(idle_shell)
    assert (reading.processes, reading.connections, reading.gpu_use, reading.is_busy) == (None, None, None, True)
    assert len(reading.unknown) == 3
    assert all(sentence.endswith("ended with status 3: closed for today") for sentence in reading.unknown)


async def test_reading_waits_for_no_turn(idle_shell: AsyncShell) -> None:
    turns = idle_shell._connection.operations.turns
    async with AsyncExitStack() as stack:
        for _ in range(turns.limit.commands):
            await stack.enter_async_context(turns)
        reading = await read(idle_shell)
        assert (reading.processes, reading.connections, reading.gpu_use, reading.is_busy) == (None, None, None, True)
        cause = "8 commands run, and the connection allows no more at once"
        assert [sentence.rpartition(": ")[2] for sentence in reading.unknown] == [cause] * 3
        assert turns.limit.commands == 8
    assert not (await read(idle_shell)).is_busy


async def test_lost_connection_makes_it_busy_and_a_closed_shell_raises(site: Any) -> None:
    async with site.shell() as shell:
        connection = shell._connection._connection
        assert connection is not None
        connection.abort()
        await shell.wait_disconnected()
        reading = await read(shell)
        assert (reading.processes, reading.connections, reading.gpu_use, reading.is_busy) == (None, None, None, True)
        assert len(reading.unknown) == 3
        assert all(sentence.endswith("the connection was lost") for sentence in reading.unknown)
    with pytest.raises(ClientStateError):
        await read(shell)


@pytest.mark.parametrize("site", [1], indirect=True)
async def test_server_that_refuses_a_further_session_makes_it_busy(site: Any, shell: AsyncShell) -> None:
    async with running(shell, f"touch began; {LASTING}"):
        await until((site.home / "began").exists)
        reading = await read(shell)
        assert (reading.processes, reading.connections, reading.gpu_use, reading.is_busy) == (None, None, None, True)
        assert all("the command could not be started" in sentence for sentence in reading.unknown)
        # No session is left for the command that would end it.
        kill_left(site)

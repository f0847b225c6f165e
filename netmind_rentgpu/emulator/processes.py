"""The processes of an emulated container. They run on this machine, in the container's folder, and end with the container.

Windows cannot import this module.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from netmind_rentgpu.emulator.namespaces import NetworkNamespace
from netmind_rentgpu.emulator.nvidia_smi import GPUs, nvidia_smi

__all__ = ["ContainerProcesses", "login_variables", "set_terminal_size"]

_SHELL = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
# A terminal that the leader of a session opens becomes the session's controlling terminal.
_ON_TERMINAL = 'exec "$@" <"$0" >"$0" 2>&1'
_MARK = "NETMIND_EMULATED_CONTAINER"
# The argument of the process that runs a job of the client in a container.
_SUPERVISOR = b"netmind-job-supervisor"
# The seconds of real time between two looks for a supervisor.
_INTERVAL = 0.1


class ContainerProcesses:
    """A container's folder, and the processes that run in it.

    Attributes:
        home: the home folder of the container's user, and the root folder over SFTP.
        namespace: the network namespace that the processes run in; None for this machine's network.
    """

    def __init__(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Make the folder.

        Args:
            tasks: gets the tasks that wait for processes, until each has ended.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="netmind-emulator-")).resolve()
        self.home: Path = self._folder / "home"
        self.namespace: NetworkNamespace | None = None
        self._programs = self._folder / "bin"
        self.home.mkdir(mode=0o700)
        self._programs.mkdir(mode=0o700)
        self._gpu_use = self._folder / "gpu-use"
        self.set_gpu_use(0)
        self._mark = secrets.token_hex(16)
        self._running: set[int] = set()
        self._tasks = tasks

    def install(self, gpus: GPUs) -> None:
        """Install `nvidia-smi` on the container's path."""
        program = self._programs / "nvidia-smi"
        program.write_text(nvidia_smi(gpus, self._gpu_use), encoding="utf-8")
        program.chmod(0o755)

    def set_gpu_use(self, percent: int) -> bool:
        """Set the use of each GPU, as `nvidia-smi` reports it; return False if the container's folder has been removed."""
        try:
            new = self._gpu_use.with_suffix(f".{secrets.token_hex(4)}")
            new.write_text(str(percent), encoding="ascii")
            # At once, because `nvidia-smi` may be reading it.
            new.replace(self._gpu_use)
        except FileNotFoundError:
            return False
        return True

    async def start(
        self,
        command: str | None,
        *,
        environment: Mapping[str, str],
        streams: tuple[int, int, int],
        terminal: str | None = None,
    ) -> asyncio.subprocess.Process:
        """Start a process.

        Args:
            command: the command for the shell; None for a shell without a command.
            environment: variables beside the usual ones, such as HOME and PATH.
            streams: the descriptors of its standard input, output and error.
            terminal: the path of a terminal to use for all three; None to use `streams`.
        """
        arguments: Sequence[str] = (_SHELL, *(("-c", command) if command is not None else ("-i",) if terminal else ()))
        if terminal is not None:
            arguments = ("/bin/sh", "-c", _ON_TERMINAL, terminal, *arguments)
        if self.namespace is not None:
            arguments = (*self.namespace.entry(), *arguments)
        stdin, stdout, stderr = streams
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=self.home,
            env={
                **environment,
                "HOME": str(self.home),
                "USER": "root",
                "LOGNAME": "root",
                "SHELL": _SHELL,
                "PATH": f"{self._programs}:{os.environ.get('PATH', os.defpath)}",
                _MARK: self._mark,
            },
            start_new_session=True,
        )
        self._running.add(process.pid)
        return process

    @contextmanager
    def keep_task(self) -> Generator[None]:
        """Keep the present task: asyncio would let it be collected while it waits for a pipe, and its client is gone."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def ended(self, process: asyncio.subprocess.Process) -> int:
        """Wait for a process, and return its status; minus the signal's number if a signal ended it."""
        try:
            return await process.wait()
        finally:
            self._running.discard(process.pid)

    def signal(self, process: asyncio.subprocess.Process, name: str) -> None:
        """Send a signal to a process and its group.

        Args:
            name: the signal's name in SSH, such as `TERM`.
        """
        if sys.platform == "win32":
            raise NotImplementedError
        number = getattr(signal, f"SIG{name}", None)
        if isinstance(number, signal.Signals) and process.pid in self._running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def end(self) -> None:
        """Kill all processes of the container."""
        if sys.platform == "win32":
            raise NotImplementedError
        for pid in tuple(self._running):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        # Processes that left their group still have the mark in their environment. Without /proc, they go on.
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # because the process may end meanwhile
                if self._has_mark(process):
                    os.kill(int(process.name), signal.SIGKILL)

    async def kill_supervisor(self, seconds: float) -> None:
        """Wait for a supervisor of a job in the container, and kill the oldest one once it has run for some seconds.

        Without Linux's /proc, it does nothing.

        Args:
            seconds: the age, in seconds of real time.
        """
        if sys.platform != "linux":
            return
        while True:
            delay = _INTERVAL
            supervisors = sorted(self._supervisors())
            if supervisors:
                started, pid = supervisors[0]
                delay = started + seconds - time.clock_gettime(time.CLOCK_BOOTTIME)
                if delay <= 0:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        return
            await asyncio.sleep(max(0, min(delay, _INTERVAL)))

    def _supervisors(self) -> Iterator[tuple[float, int]]:
        """Find the supervisors of jobs: the start of each, in seconds since the machine's start, and its process id."""
        if sys.platform == "win32":
            raise NotImplementedError
        ticks = os.sysconf("SC_CLK_TCK")
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # because the process may end meanwhile
                if _SUPERVISOR in (process / "cmdline").read_bytes().split(b"\0") and self._has_mark(process):
                    # The name, in parentheses, may have spaces, and the start is the 20th field after it.
                    fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
                    yield int(fields[19]) / ticks, int(process.name)

    def _has_mark(self, process: Path) -> bool:
        """Check if a process, given by its folder in /proc, belongs to the container."""
        return f"{_MARK}={self._mark}".encode() in (process / "environ").read_bytes().split(b"\0")

    def remove(self) -> None:
        """Kill all processes of the container, and remove its folder and its namespace."""
        self.end()
        if self.namespace is not None:
            self.namespace.close()
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
        except RecursionError:  # because folders are nested too deeply
            subprocess.run(["rm", "-rf", "--", str(self._folder)], check=False)  # noqa: S603, S607  # every POSIX system has it


def login_variables(client: tuple[str, int], server: tuple[str, int]) -> dict[str, str]:
    """Return the variables by which OpenSSH tells a login's processes the addresses and ports of their connection."""
    return {
        "SSH_CLIENT": f"{client[0]} {client[1]} {server[1]}",
        "SSH_CONNECTION": f"{client[0]} {client[1]} {server[0]} {server[1]}",
    }


def set_terminal_size(descriptor: int, width: int, height: int) -> None:
    """Set a terminal's width in columns and its height in rows."""
    if sys.platform == "win32":
        raise NotImplementedError
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

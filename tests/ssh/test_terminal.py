"""`interact` at a terminal: keys, output, sizes, statuses, and the terminal's settings afterwards."""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import suppress
from textwrap import dedent

import pytest
from programs import LONGEST, WARNINGS, with_programs
from scripts import BEGIN_SCRIPT, Served

pytestmark = pytest.mark.slow

# The shell leads a session, so that the terminal it opens becomes that session's own.
ON_TERMINAL = 'exec "$@" <"$0" >"$0" 2>&1'
INTERACT = (
    "with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell: print('status', shell.interact({command!r}).exit_status)"
)
IN_LOOP = """
import {loop}
async def main():
    async with AsyncRentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
        print('status', (await shell.interact({command!r})).exit_status)
{loop}.run(main())
"""


class Terminal:
    """A terminal that the test owns, and a program at it."""

    def __init__(self) -> None:
        self.outer, self.inner = pty.openpty()
        self.before = termios.tcgetattr(self.inner)
        self.shown = ""
        self.process: asyncio.subprocess.Process | None = None

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def start(self, served: Served, code: str) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", ON_TERMINAL, os.ttyname(self.inner)),
            *(sys.executable, *WARNINGS, "-c", BEGIN_SCRIPT + dedent(code)),
            env={**with_programs(os.environ), **served.environment},
            start_new_session=True,
        )

    def press(self, keys: str) -> None:
        os.write(self.outer, keys.encode())

    async def until(self, text: str) -> str:
        """Wait until a text is shown; return the output between the last awaited text and this one."""
        async with asyncio.timeout(LONGEST):
            while text not in self.shown:
                self.shown += await self._read()
        shown, _, self.shown = self.shown.partition(text)
        return shown

    async def ended(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(LONGEST):
            status = await self.process.wait()
        assert termios.tcgetattr(self.inner) == self.before
        return status

    async def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()
        os.close(self.outer)
        os.close(self.inner)

    async def _read(self) -> str:
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(self.outer, lambda: readable.done() or readable.set_result(None))
        try:
            await readable
        finally:
            loop.remove_reader(self.outer)
        return os.read(self.outer, 65536).decode()


@pytest.fixture
async def terminal() -> AsyncIterator[Terminal]:
    terminal = Terminal()
    terminal.resize(100, 30)
    yield terminal
    await terminal.close()


@pytest.mark.parametrize(
    "code",
    [INTERACT, *(IN_LOOP.replace("{loop}", name) for name in ("asyncio", "uvloop"))],
    ids=["sync", "asyncio", "uvloop"],
)
async def test_keys_reach_the_command_and_output_comes_back(served: Served, terminal: Terminal, code: str) -> None:
    command = "stty size; read line; echo got $line; exit 7"
    await terminal.start(served, code.format(command=command))
    await terminal.until("30 100\r\n")
    terminal.press("hello\r")
    # The container's terminal echoes the keys, and the local one does not.
    assert await terminal.until("got hello\r\n") == "hello\r\n"
    await terminal.until("status 7\r\n")
    assert await terminal.ended() == 0


async def test_interact_without_a_command_opens_a_login_shell(served: Served, terminal: Terminal) -> None:
    await terminal.start(served, INTERACT.format(command=None))
    terminal.press("echo $((6 * 7))\r")
    await terminal.until("42\r\n")
    terminal.press("tty\r")
    await terminal.until("/dev/pts/")
    terminal.press("exit 5\r")
    await terminal.until("status 5\r\n")
    assert await terminal.ended() == 0


async def test_resized_terminal_reports_its_new_size_to_the_command(served: Served, terminal: Terminal) -> None:
    command = 'echo ready; while [ "$(stty size)" != "50 120" ]; do sleep 0.05; done; echo seen'
    await terminal.start(served, INTERACT.format(command=command))
    await terminal.until("ready\r\n")
    terminal.resize(120, 50)
    await terminal.until("seen\r\n")
    await terminal.until("status 0\r\n")
    assert await terminal.ended() == 0


async def test_ctrl_c_at_the_terminal_reaches_the_command(served: Served, terminal: Terminal) -> None:
    # In the background, because a command that is just being started may swallow the interrupt and live on.
    command = "sleep 1000 & trap 'echo trapped; kill $!; exit 3' INT; echo ready; wait"
    await terminal.start(served, INTERACT.format(command=command))
    await terminal.until("ready\r\n")
    terminal.press("\x03")
    await terminal.until("trapped\r\n")
    await terminal.until("status 3\r\n")
    assert await terminal.ended() == 0


async def test_result_of_interact_has_signal_and_command_without_output(served: Served, terminal: Terminal) -> None:
    code = """
        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
            done = shell.interact("kill -KILL $$")
            print([done.command, done.exit_status, done.exit_signal, done.stdout, done.stderr, done.ok])
            print("command", [shell.interact().command])
    """
    await terminal.start(served, code)
    await terminal.until("['kill -KILL $$', None, 'KILL', '', '', False]\r\n")
    terminal.press("exit\r")
    await terminal.until("command ['']\r\n")
    assert await terminal.ended() == 0


async def test_large_output_is_shown_whole(served: Served, terminal: Terminal) -> None:
    await terminal.start(served, INTERACT.format(command="head -c 4000000 /dev/zero | tr '\\0' x; echo over"))
    assert len(await terminal.until("over\r\n")) == 4_000_000
    await terminal.until("status 0\r\n")
    assert await terminal.ended() == 0


async def test_lost_connection_restores_the_terminal(served: Served, terminal: Terminal) -> None:
    code = """
        try:
            with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
                shell.interact("echo ready; sleep 1000")
        except SSHError as error:
            print(error.stage)
    """
    await terminal.start(served, code)
    await terminal.until("ready\r\n")
    assert termios.tcgetattr(terminal.inner) != terminal.before
    await served.gpu.containers.stop(served.container)
    await terminal.until("connection\r\n")
    assert await terminal.ended() == 0


async def test_interrupt_restores_the_terminal_and_ends_the_command(served: Served, terminal: Terminal) -> None:
    code = """
        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
            alive = Alive()
            try:
                shell.interact(alive.command("echo ready"))
            except KeyboardInterrupt:
                print("interrupted")
            alive.began(); alive.wait()
            print(shell.run("echo usable").stdout)
    """
    await terminal.start(served, code)
    await terminal.until("ready\r\n")
    assert terminal.process is not None
    os.kill(terminal.process.pid, signal.SIGINT)
    await terminal.until("interrupted\r\nusable\r\n")
    assert await terminal.ended() == 0


async def test_interact_without_a_terminal_is_refused(served: Served) -> None:
    program = await served.run("""
        with RentGPU() as gpu, gpu.ssh(CONTAINER) as shell:
            for stdin in (sys.stdin, None):
                sys.stdin = stdin
                try:
                    shell.interact()
                except ClientStateError as error:
                    print(error)
    """)
    program.assert_silent("cannot interact: standard input is not a terminal; use run() or stream()\n" * 2)

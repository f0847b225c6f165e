"""Commands on a container: what they get, what is got of them, and that they end with whoever waits for them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netmind_rentgpu import AsyncShell, ClientStateError, InvalidArgumentError, OutputLine, SSHError, SSHTimeoutError
from netmind_rentgpu.ssh import login
from netmind_rentgpu.ssh.commands import Capture, Lines

LONG = 60


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not true():
            await asyncio.sleep(0.005)


FAMILY = "trap '' HUP; sleep 3600 & echo $! > child; echo $$ > parent; touch up; wait; sleep 3600"


async def started(home: Path) -> list[int]:
    """Wait until a family has started; return their process ids."""
    await until((home / "up").exists)
    return [int((home / name).read_text()) for name in ("parent", "child")]


async def test_what_a_command_gets_and_gives(shell: AsyncShell) -> None:
    done = await shell.run("cat; echo wrong >&2; pwd; exit 3", input="given\n")
    home = done.stdout.splitlines()[1]
    assert (done.exit_status, done.exit_signal, done.truncated, done.ok) == (3, None, False, False)
    assert (done.stdout, done.stderr) == (f"given\n{home}\n", "wrong\n")
    assert (await shell.run("echo $HOME; whoami", check=True)).stdout == f"{home}\nroot\n"
    assert (await shell.run("cat", input=b"\xff\x00end")).stdout == "\N{REPLACEMENT CHARACTER}\x00end"
    # What it does not read is no fault of its.
    assert (await shell.run("true", input="x" * 3_000_000)).ok
    assert (await shell.run("wc -c", input="x" * 3_000_000)).stdout.strip() == "3000000"
    assert not (await shell.run("kill -USR1 $$")).exit_status
    assert (await shell.run("kill -USR1 $$")).exit_signal == "USR1"


async def test_variables_come_as_they_are_and_stand_on_no_command_line(shell: AsyncShell) -> None:
    value = 'it\'s "$HOME" `id`\n\ttwo lines \\ \N{SNOWMAN}'
    environment = {"ONE": value, "_2": ""}
    done = await shell.run('printf %s "$ONE"; printf "|%s|" "${_2-unset}"; cat', environment=environment, input="rest")
    assert done.stdout == f"{value}||rest"
    told = await shell.run("cat /proc/$$/cmdline /proc/$PPID/cmdline", environment={"SECRET": "very-secret"})
    assert "very-secret" not in told.stdout
    for name in ("", "1A", "A=B", "A B", "\N{SNOWMAN}"):
        with pytest.raises(InvalidArgumentError, match="environment"):
            await shell.run("true", environment={name: "x"})
    for wrong in (7, "a\0b"):
        with pytest.raises(InvalidArgumentError, match="environment"):
            await shell.run("true", environment={"A": wrong})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("command", ""), ("command", "a\0b"), ("timeout", 0), ("timeout", True), ("max_output", -1), ("max_output", 1.5)],
)
async def test_arguments_that_cannot_be_used(shell: AsyncShell, argument: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=argument):
        await shell.run(**{"command": "true", argument: value})


async def test_a_failure_is_an_error_where_that_is_wanted(shell: AsyncShell) -> None:
    with pytest.raises(SSHError, match=r"'no-such-program' ended with status 127: .*not found") as caught:
        await shell.run("no-such-program", check=True)
    assert caught.value.stage == "command"
    assert caught.value.result is not None
    assert caught.value.result.exit_status == 127
    with pytest.raises(SSHError, match="ended with signal KILL"):
        await shell.run("kill -KILL $$", check=True)
    assert not (await shell.run("false")).ok


async def test_of_too_much_the_end_is_kept(shell: AsyncShell) -> None:
    done = await shell.run("seq 300000; seq 10 >&2; echo end", max_output=1000)
    assert done.truncated
    assert len(done.stdout) == 1000
    assert done.stdout.endswith("\n299999\n300000\nend\n")
    assert done.stderr.startswith("1\n2\n")
    assert (await shell.run("echo x", max_output=0)).stdout == ""


async def test_what_takes_too_long_is_ended_with_all_that_it_started(shell: AsyncShell, site: Any) -> None:
    with pytest.raises(SSHTimeoutError, match=r"did not end within 0\.7 s") as caught:
        await shell.run(f"echo begun; {FAMILY}", timeout=0.7)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.stage == "command"
    assert caught.value.result is not None
    assert (caught.value.result.stdout, caught.value.result.exit_signal) == ("begun\n", "TERM")
    pids = await started(site.home)
    await until(lambda: not any(map(alive, pids)))
    assert (await shell.run("true")).ok


async def test_what_does_not_want_to_end_is_killed(shell: AsyncShell, site: Any) -> None:
    with pytest.raises(SSHTimeoutError):
        await shell.run(f"trap '' TERM; {FAMILY}", timeout=0.7)
    pids = await started(site.home)
    await until(lambda: not any(map(alive, pids)))


async def test_cancelled_at_any_step_a_command_ends_and_the_shell_goes_on(shell: AsyncShell, site: Any) -> None:
    before = asyncio.all_tasks()
    for steps in range(40):
        (site.home / "up").unlink(missing_ok=True)
        task = asyncio.create_task(shell.run(FAMILY, input="x" * 100_000))
        for _ in range(steps):
            await asyncio.sleep(0 if steps < 30 else 0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if (site.home / "up").exists():
            pids = await started(site.home)
            await until(lambda pids=pids: not any(map(alive, pids)))  # type: ignore[misc]
    assert (await shell.run("echo still here")).stdout == "still here\n"
    # The server's own tasks among them.
    await until(lambda: all(task.done() for task in asyncio.all_tasks() - before))


async def test_cancelled_twice_it_ends_all_the_same(shell: AsyncShell, site: Any) -> None:
    task = asyncio.create_task(shell.run(f"trap '' TERM; {FAMILY}"))
    pids = await started(site.home)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not any(map(alive, pids)))


async def test_in_a_cancelled_scope_it_ends_when_the_shell_is_left(site: Any) -> None:
    import anyio

    async with site.shell() as shell:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def leave() -> None:
                    await started(site.home)
                    scope.cancel()

                group.start_soon(leave)
                await shell.run(FAMILY)
        pids = await started(site.home)
    await until(lambda: not any(map(alive, pids)))


async def test_lines_come_as_they_are_written(shell: AsyncShell, site: Any) -> None:
    lines: list[OutputLine] = []
    command = "echo one; echo two >&2; while [ ! -e go ]; do sleep 0.01; done; printf 'three\\r\\n\\n'; printf four"
    async for line in shell.stream(command, environment={"X": "y"}, input="unread"):
        lines.append(line)
        if len(lines) == 2:
            (site.home / "go").touch()
    assert sorted(lines[:2], key=str) == [OutputLine("one", "stdout"), OutputLine("two", "stderr")]
    assert [str(line) for line in lines[2:]] == ["three", "", "four"]


async def test_a_slow_reader_slows_the_command_and_loses_nothing(shell: AsyncShell, site: Any) -> None:
    command = "for i in $(seq 200); do head -c 49999 /dev/zero | tr '\\0' x; echo; echo $i > at; done"
    count = 0
    async for line in shell.stream(command):
        assert len(line.text) == 49_999
        count += 1
        if count == 5:
            # It can be ahead by what the windows and pipes between hold, and no further.
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert int((site.home / "at").read_text() or 0) < 150
    assert count == 200


async def test_a_stream_that_is_left_ends_its_command(shell: AsyncShell, site: Any) -> None:
    stream = shell.stream(f"echo go; {FAMILY}")
    async for line in stream:
        assert line.text == "go"
        break
    pids = await started(site.home)
    await stream.aclose()
    await until(lambda: not any(map(alive, pids)))
    (site.home / "up").unlink()

    async def read() -> None:
        async for _ in shell.stream(FAMILY):
            pass

    task = asyncio.create_task(read())
    pids = await started(site.home)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not any(map(alive, pids)))


async def test_a_stream_can_be_checked(shell: AsyncShell) -> None:
    lines: list[str] = []
    with pytest.raises(SSHError, match="ended with status 4"):
        async for line in shell.stream("echo x; exit 4", check=True):
            lines.append(line.text)
    assert lines == ["x"]
    assert [line async for line in shell.stream("exit 4")] == []


async def test_many_commands_at_once_wait_for_their_turn(shell: AsyncShell) -> None:
    done = await asyncio.gather(*(shell.run(f"echo {number}", timeout=LONG) for number in range(40)))
    assert [one.stdout for one in done] == [f"{number}\n" for number in range(40)]


async def test_a_greeting_of_the_logins_own_is_left_alone(shell: AsyncShell, site: Any) -> None:
    if site.kind == "emulator":
        pytest.skip("no login script is run there")
    (site.home / ".bashrc").write_text("echo welcome\nprintf 'no end'\n")
    assert (await shell.run("echo x")).stdout == "welcome\nno endx\n"


async def test_a_connection_that_is_lost_is_not_made_again(site: Any) -> None:
    async with site.shell() as shell:
        task = asyncio.create_task(shell.run("sleep 3600"))
        stream = shell.stream("echo x; sleep 3600")
        assert (await anext(stream)).text == "x"
        if site.kind == "emulator":
            await site.gpu.containers.stop(site.container.id)
        else:
            pid = int((await shell.run("echo $PPID")).stdout)
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SSHError, match="the connection was lost; what ran there may still run") as caught:
            await task
        assert caught.value.stage == "connection"
        with pytest.raises(SSHError, match="lost"):
            await anext(stream)
        for call in (
            lambda: shell.run("true"),
            lambda: shell.upload(__file__, "x"),
            lambda: anext(shell.stream("true")),
        ):
            with pytest.raises(SSHError, match="the connection was lost") as caught:
                await call()
            assert caught.value.stage == "connection"
        assert "open" in repr(shell)
    assert "closed" in repr(shell)


async def test_a_connection_that_dies_silently_is_noticed(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if site.kind == "emulator":
        pytest.skip("it is this very process, which cannot be stopped")
    monkeypatch.setattr(login, "_KEEP_ALIVE_SECONDS", 0.2)
    async with site.shell() as shell:
        server = int((await shell.run("echo $PPID")).stdout)
        task = asyncio.create_task(shell.run("sleep 3600"))
        await shell.upload(__file__, "copy")
        os.kill(server, signal.SIGSTOP)
        try:
            async with asyncio.timeout(LONG):
                for call in (task, shell.upload(__file__, "again")):
                    with pytest.raises(SSHError, match="the connection was lost") as caught:
                        await call
                    assert caught.value.stage == "connection"
        finally:
            os.kill(server, signal.SIGKILL)


async def test_a_shell_is_used_while_it_is_open(site: Any) -> None:
    shell = site.shell()
    assert re.search("is not open yet", repr(shell))
    with pytest.raises(ClientStateError, match="not open yet"):
        await shell.run("true")
    with pytest.raises(ClientStateError):
        _ = shell.container
    async with shell:
        assert shell.container == site.container
        with pytest.raises(ClientStateError, match="open already"):
            await shell.__aenter__()
    with pytest.raises(ClientStateError, match="closed"):
        await shell.run("true")
    with pytest.raises(ClientStateError, match="closed"):
        await shell.__aenter__()
    await shell.close()


# What is kept, without any server.


def test_what_is_captured_is_the_end_whatever_the_pieces() -> None:
    for size in (1, 3, 7, 100):
        capture = Capture(10)
        text = bytes(range(65, 91))
        for start in range(0, len(text), size):
            assert capture.take(text[start : start + size], error=False)
        assert capture.text(error=False) == text[-10:].decode()
        assert capture.truncated
        assert capture.text(error=True) == ""


def test_lines_are_the_same_whatever_the_pieces() -> None:
    text = "one\r\ntwo\n\n\N{SNOWMAN}\nlast".encode()
    for size in range(1, len(text) + 1):
        lines = Lines()
        for start in range(0, len(text), size):
            lines.take(text[start : start + size], error=False)
        lines.finish()
        found: list[str] = []
        while (line := lines.next()) is not None:
            assert not line[1]
            found.append(line[0])
        assert found == ["one", "two", "", "\N{SNOWMAN}", "last"]


def test_a_line_without_end_is_given_in_pieces() -> None:
    lines = Lines()
    assert not lines.take(b"x" * 3_000_000, error=True)
    lengths: list[int] = []
    while (line := lines.next()) is not None:
        lengths.append(len(line[0]))
    assert lengths == [1024 * 1024, 1024 * 1024]
    assert lines.room
    lines.finish()
    assert lines.next() == ("x" * (3_000_000 - 2 * 1024 * 1024), True)

"""Commands on a container: input, environment, output, exit status, and streamed lines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from netmind_rentgpu import AsyncShell, InvalidArgumentError, OutputLine, SSHError
from netmind_rentgpu.ssh.output import Capture, Lines

LONG = 60


async def test_command_receives_input_and_returns_output_and_status(shell: AsyncShell) -> None:
    done = await shell.run("cat; echo wrong >&2; pwd; exit 3", input="given\n")
    home = done.stdout.splitlines()[1]
    assert (done.exit_status, done.exit_signal, done.truncated, done.ok) == (3, None, False, False)
    assert (done.stdout, done.stderr) == (f"given\n{home}\n", "wrong\n")
    assert (await shell.run("echo $HOME; whoami", check=True)).stdout == f"{home}\nroot\n"
    assert (await shell.run("cat", input=b"\xff\x00end")).stdout == "\N{REPLACEMENT CHARACTER}\x00end"
    # Input that a command does not read is no error.
    assert (await shell.run("true", input="x" * 3_000_000)).ok
    assert (await shell.run("wc -c", input="x" * 3_000_000)).stdout.strip() == "3000000"
    assert not (await shell.run("kill -USR1 $$")).exit_status
    assert (await shell.run("kill -USR1 $$")).exit_signal == "USR1"


async def test_environment_arrives_unchanged_and_on_no_command_line(shell: AsyncShell) -> None:
    value = 'it\'s "$HOME" `id`\n\ttwo lines \\ \N{SNOWMAN}'
    environment = {"ONE": value, "_2": ""}
    done = await shell.run('printf %s "$ONE"; printf "|%s|" "${_2-unset}"; cat', environment=environment, input="rest")
    assert done.stdout == f"{value}||rest"
    shown = await shell.run("cat /proc/$$/cmdline /proc/$PPID/cmdline", environment={"SECRET": "very-secret"})
    assert "very-secret" not in shown.stdout
    for name in ("", "1A", "A=B", "A B", "\N{SNOWMAN}"):
        with pytest.raises(InvalidArgumentError, match="environment"):
            await shell.run("true", environment={name: "x"})
    for wrong in (7, "a\0b"):
        with pytest.raises(InvalidArgumentError, match="environment"):
            await shell.run("true", environment={"A": wrong})  # type: ignore[dict-item]


async def test_failed_command_raises_only_with_check(shell: AsyncShell) -> None:
    with pytest.raises(SSHError, match=r"'no-such-program' ended with status 127: .*not found") as caught:
        await shell.run("no-such-program", check=True)
    assert caught.value.stage == "command"
    assert caught.value.result is not None
    assert caught.value.result.exit_status == 127
    with pytest.raises(SSHError, match="ended with signal KILL"):
        await shell.run("kill -KILL $$", check=True)
    assert not (await shell.run("false")).ok


async def test_output_over_the_limit_keeps_its_end(shell: AsyncShell) -> None:
    done = await shell.run("seq 300000; seq 10 >&2; echo end", max_output=1000)
    assert done.truncated
    assert len(done.stdout) == 1000
    assert done.stdout.endswith("\n299999\n300000\nend\n")
    assert done.stderr.startswith("1\n2\n")
    assert (await shell.run("echo x", max_output=0)).stdout == ""


async def test_streamed_lines_come_as_soon_as_they_are_written(shell: AsyncShell, site: Any) -> None:
    lines: list[OutputLine] = []
    command = "echo one; echo two >&2; while [ ! -e go ]; do sleep 0.01; done; printf 'three\\r\\n\\n'; printf four"
    async for line in shell.stream(command, environment={"X": "y"}, input="unread"):
        lines.append(line)
        if len(lines) == 2:
            (site.home / "go").touch()
    assert sorted(lines[:2], key=str) == [OutputLine("one", "stdout"), OutputLine("two", "stderr")]
    assert [str(line) for line in lines[2:]] == ["three", "", "four"]


async def test_slow_reader_slows_the_command_and_loses_no_line(shell: AsyncShell, site: Any) -> None:
    command = "for i in $(seq 200); do head -c 49999 /dev/zero | tr '\\0' x; echo; echo $i > at; done"
    count = 0
    async for line in shell.stream(command):
        assert len(line.text) == 49_999
        count += 1
        if count == 5:
            # The command can be ahead only by the content of the windows and pipes between.
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert int((site.home / "at").read_text() or 0) < 150
    assert count == 200


async def test_failed_stream_raises_only_with_check(shell: AsyncShell) -> None:
    lines: list[str] = []
    with pytest.raises(SSHError, match="ended with status 4"):
        async for line in shell.stream("echo x; exit 4", check=True):
            lines.append(line.text)
    assert lines == ["x"]
    assert [line async for line in shell.stream("exit 4")] == []


async def test_many_commands_at_once_wait_for_their_turn(shell: AsyncShell) -> None:
    done = await asyncio.gather(*(shell.run(f"echo {number}", timeout=LONG) for number in range(40)))
    assert [result.stdout for result in done] == [f"{number}\n" for number in range(40)]


async def test_output_of_the_login_script_is_kept(shell: AsyncShell, site: Any) -> None:
    if site.kind == "emulator":
        pytest.skip("the emulator runs no login script")
    (site.home / ".bashrc").write_text("echo welcome\nprintf 'no end'\n")
    assert (await shell.run("echo x")).stdout == "welcome\nno endx\n"


# The buffers of output, without a server.


def test_capture_keeps_the_end_however_output_is_split() -> None:
    for size in (1, 3, 7, 100):
        capture = Capture(10)
        text = bytes(range(65, 91))
        for start in range(0, len(text), size):
            assert capture.take(text[start : start + size], error=False)
        assert capture.text(error=False) == text[-10:].decode()
        assert capture.truncated
        assert capture.text(error=True) == ""


def test_lines_are_the_same_however_output_is_split() -> None:
    text = "one\r\ntwo\n\n\N{SNOWMAN}\nlast".encode()
    for size in range(1, len(text) + 1):
        lines = Lines()
        for start in range(0, len(text), size):
            lines.take(text[start : start + size], error=False)
        lines.finish()
        found: list[str] = []
        while (line := lines.next()) is not None:
            assert line.stream == "stdout"
            if not line.is_update:  # of a line end in two pieces
                found.append(line.text)
        assert found == ["one", "two", "", "\N{SNOWMAN}", "last"]


def test_endless_line_is_returned_in_pieces() -> None:
    lines = Lines()
    assert not lines.take(b"x" * 3_000_000, error=True)
    lengths: list[int] = []
    while (line := lines.next()) is not None:
        lengths.append(len(line.text))
    assert lengths == [1024 * 1024, 1024 * 1024]
    assert lines.room
    lines.finish()
    assert lines.next() == OutputLine("x" * (3_000_000 - 2 * 1024 * 1024), "stderr")


def test_empty_lines_count_against_the_buffer() -> None:
    lines = Lines()
    assert not lines.take(b"\n" * 20_000, error=False)
    while lines.next() is not None:
        pass
    assert lines.room


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"GOOD": "1", "X": 1}, "environment: X must be a text, not int"),
        ({"X": None}, "environment: X must be a text, not NoneType"),
        ({"X": b"1"}, "environment: X must be a text, not bytes"),
        ({"X": "a\0b"}, "environment: X holds a null character"),
        ({7: "1"}, "environment: 7 is not a variable's name"),
        ({"GOOD": "1", "X": "\ud800"}, "environment: X holds half a character"),
    ],
)
async def test_variable_that_cannot_be_sent_is_named(shell: AsyncShell, environment: Any, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{problem}"):
        await shell.run("true", environment=environment)


def test_updates_of_a_progress_bar_are_lines_however_output_is_split() -> None:
    text = b"start\r\n\r10%\r20%\r100%\nend\r\r\n\rlast"
    for size in range(1, len(text) + 1):
        lines = Lines()
        for start in range(0, len(text), size):
            lines.take(text[start : start + size], error=False)
        lines.finish()
        found: list[OutputLine] = []
        while (line := lines.next()) is not None:
            found.append(line)
        # In small pieces, an update comes in small pieces, too; final lines are the same in any.
        final = [line.text for line in found if not line.is_update]
        assert final == ["start", "100%", "", "last"]
        updates = [line.text for line in found if line.is_update]
        assert {"10%", "20%", "end"} <= set(updates)
        if size > 4:
            assert len(updates) <= 8


async def test_stream_gives_updates_as_they_come(shell: AsyncShell) -> None:
    # Each update is written only once the last one was read.
    command = "printf '1%%\\r'; read a; printf '2%%\\r'; read b; printf 'done\\n'"
    found = [line async for line in shell.stream(command, input="x\ny\n")]
    assert found == [
        OutputLine("1%", "stdout", is_update=True),
        OutputLine("2%", "stdout", is_update=True),
        OutputLine("done", "stdout"),
    ]


def all_of(lines: Lines) -> list[tuple[str, bool]]:
    """Return the lines that wait, each with whether it is an update."""
    found: list[tuple[str, bool]] = []
    while (line := lines.next()) is not None:
        found.append((line.text, line.is_update))
    return found


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # With the return before the text, as tqdm writes it, and behind it.
        ([b"\r 10%", b"\r 20%", b"\n"], [[(" 10%", True)], [(" 20%", True)], [(" 20%", False)]]),
        ([b" 10%\r", b" 20%\r", b"\n"], [[(" 10%", True)], [(" 20%", True)], [(" 20%", False)]]),
        # A line end in two pieces is no update that a later line replaces: its line comes again, as a final one.
        ([b"abc\r", b"\nx\n"], [[("abc", True)], [("abc", False), ("x", False)]]),
        ([b"abc\r\nx\n"], [[("abc", False), ("x", False)]]),
        ([b"a\rb\rc\n"], [[("a", True), ("b", True), ("c", False)]]),
        ([b"\r\r\n"], [[("", False)]]),
        ([b"plain", b" text\n"], [[], [("plain text", False)]]),
    ],
)
def test_update_is_handed_on_with_its_piece(pieces: list[bytes], expected: list[list[tuple[str, bool]]]) -> None:
    lines = Lines()
    found: list[list[tuple[str, bool]]] = []
    for piece in pieces:
        lines.take(piece, error=False)
        found.append(all_of(lines))
    assert found == expected
    lines.finish()
    assert all_of(lines) == []

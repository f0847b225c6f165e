"""Notes on stderr: on a terminal, in a pipe, and on a descriptor that fails."""

from __future__ import annotations

import asyncio
import os
import pty
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from descriptors import Stream, in_place_of, pipe, terminal

from netmind_rentgpu.cli import writing
from netmind_rentgpu.cli.notes import Notes

CLEAR = "\r\x1b[K"


def written(stream: Stream, use: Callable[[Notes], object], *, is_quiet: bool = False) -> str:
    """Return the text that notes write."""
    use(Notes(stream.descriptor, is_quiet=is_quiet))
    return stream.written()


@pytest.mark.parametrize("stream_of", [pipe, terminal])
def test_terminal_is_known_by_its_descriptor(stream_of: Callable[[], Stream]) -> None:
    stream = stream_of()
    assert Notes(stream.descriptor).is_terminal is (stream_of is terminal)
    assert Notes(stream.descriptor, is_terminal=True).is_terminal is True
    assert Notes(stream.descriptor, is_terminal=False).is_terminal is False
    stream.written()
    assert Notes(-1).is_terminal is False


def test_note_is_a_line_with_what_a_terminal_would_obey_spelled_out() -> None:
    def use(notes: Notes) -> None:
        notes.say("first\nsecond\t!")
        notes.insist("\x1b[2J\r\u202e\udc80é")

    assert written(pipe(), use) == "first\nsecond\t!\n\\x1b[2J\\r\\u202e\\udc80é\n"


@pytest.mark.parametrize("stream_of", [pipe, terminal])
def test_quiet_notes_are_errors_questions_and_bytes_alone(stream_of: Callable[[], Stream]) -> None:
    def use(notes: Notes) -> None:
        notes.say("hidden")
        notes.progress("hidden, too")
        notes.insist("an error")
        notes.ask("sure? ")
        asyncio.run(notes.pass_on(b"\x1b[1mraw"))

    assert written(stream_of(), use, is_quiet=True) == "an error\nsure? \x1b[1mraw"


def test_progress_on_a_terminal_replaces_the_last_and_yields_to_other_output() -> None:
    def use(notes: Notes) -> None:
        notes.progress("1 of 3")
        notes.progress("1 of 3")
        notes.progress("2 of\n3")
        notes.say("a note")
        notes.clear()
        notes.progress("3 of 3")
        asyncio.run(notes.pass_on(b"bytes\n"))
        notes.progress("4 of 3")
        notes.ask("more? ")
        notes.progress("\x1b[2J")
        notes.clear()
        notes.clear()

    assert written(terminal(), use) == (
        f"{CLEAR}1 of 3{CLEAR}2 of 3{CLEAR}a note\n"
        f"{CLEAR}3 of 3{CLEAR}bytes\n"
        f"{CLEAR}4 of 3{CLEAR}more? "
        f"{CLEAR}\\x1b[2J{CLEAR}"
    )


def test_progress_on_a_terminal_is_drawn_again_after_other_output() -> None:
    def use(notes: Notes) -> None:
        notes.progress("waiting")
        notes.say("a note")
        notes.progress("waiting")

    assert written(terminal(), use) == f"{CLEAR}waiting{CLEAR}a note\n{CLEAR}waiting"


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (200, "copying 4 of 19 files"),
        (22, "copying 4 of 19 files"),
        (21, "copying 4 of 19 file"),
        (5, "copy"),
        (1, "c"),
    ],
)
def test_progress_on_a_terminal_is_cut_to_less_than_its_width(columns: int, shown: str) -> None:
    assert written(terminal(columns), lambda notes: notes.progress("copying 4 of 19 files")) == f"{CLEAR}{shown}"


def test_progress_on_a_terminal_without_a_width_is_cut_to_80_columns() -> None:
    assert written(terminal(0), lambda notes: notes.progress("x" * 100)) == CLEAR + "x" * 79


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("日本語の名前", "日本語の"),
        ("a日本語の名前", "a日本語の"),
        ("ab日本語の名前", "ab日本語"),
        ("e\u0301" * 20, "e\u0301" * 9),
        ("a\tb\tc", "a b c"),
        ("\U0001f600" * 9, "\U0001f600" * 4),
    ],
)
def test_progress_is_cut_by_the_room_that_its_characters_have_on_the_terminal(text: str, shown: str) -> None:
    assert written(terminal(10), lambda notes: notes.progress(text)) == f"{CLEAR}{shown}"


def test_note_on_a_terminal_is_not_cut() -> None:
    assert written(terminal(10), lambda notes: notes.say("x" * 30)) == "x" * 30 + "\n"


def at_times(*changes: tuple[float, str]) -> str:
    """Return the text in a pipe of progress at some moments of a monotonic clock."""
    stream, present = pipe(), [0.0]
    notes = Notes(stream.descriptor, clock=lambda: present[0])
    for moment, text in changes:
        present[0] = moment
        notes.progress(text)
        notes.clear()
    return stream.written()


def test_progress_in_a_pipe_is_at_most_one_line_in_30_seconds() -> None:
    assert at_times((500, "a"), (501, "b"), (529.9, "c"), (530, "d\ne"), (559, "f"), (600, "g")) == "a\nd e\ng\n"


def test_first_progress_in_a_pipe_is_written_just_after_the_start_of_the_clock() -> None:
    assert at_times((0, "first")) == "first\n"


def test_progress_in_a_pipe_that_does_not_change_is_one_line() -> None:
    assert at_times((0, "a"), (40, "a"), (80, "a")) == "a\n"


def test_change_within_the_30_seconds_is_written_once_they_are_over() -> None:
    assert at_times((0, "a"), (10, "b"), (31, "b"), (62, "b")) == "a\nb\n"


def test_notes_between_do_not_count_as_progress() -> None:
    stream, present = pipe(), [100.0]
    notes = Notes(stream.descriptor, clock=lambda: present[0])
    notes.say("x")
    notes.progress("a")
    notes.say("y")
    present[0] += 5
    notes.progress("b")
    assert stream.written() == "x\na\ny\n"


def use_all(notes: Notes) -> None:
    notes.say("x")
    notes.insist("x")
    notes.ask("x")
    notes.progress("x")
    asyncio.run(notes.pass_on(b"x"))
    with notes.raw():
        notes.say("x")
        notes.leave_raw()
    notes.clear()


@pytest.mark.parametrize("is_terminal", [True, False, None])
def test_notes_go_on_without_an_error_if_the_reader_has_left(*, is_terminal: bool | None) -> None:
    stream = pipe()
    os.close(stream.reader)
    use_all(Notes(stream.descriptor, is_terminal=is_terminal))
    os.close(stream.descriptor)


@pytest.mark.parametrize("is_terminal", [True, False, None])
def test_notes_go_on_without_an_error_if_the_descriptor_is_not_open(*, is_terminal: bool | None) -> None:
    use_all(Notes(987, is_terminal=is_terminal))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_notes_go_on_without_an_error_on_a_full_disk() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        use_all(Notes(full.fileno()))
        use_all(Notes(full.fileno(), is_terminal=True))


def test_notes_go_on_without_an_error_if_the_terminal_has_hung_up() -> None:
    stream = terminal()
    notes = Notes(stream.descriptor)
    notes.progress("before")
    os.close(stream.reader)
    use_all(notes)
    os.close(stream.descriptor)


def test_note_that_a_non_blocking_descriptor_has_no_room_for_is_written_whole() -> None:
    stream, text = pipe(), "x" * 300_000
    os.set_blocking(stream.descriptor, False)
    writer = threading.Thread(target=Notes(stream.descriptor).say, args=(text,))
    writer.start()
    found = b""
    while len(found) <= len(text):
        found += os.read(stream.reader, 65_536)
    writer.join(60)
    assert found.decode() == f"{text}\n"
    assert stream.written() == ""


def test_lines_end_with_a_return_to_the_left_while_a_terminal_is_raw() -> None:
    def use(notes: Notes) -> None:
        notes.progress("before")
        with notes.raw():
            notes.insist("a\nb")
            asyncio.run(notes.pass_on(b"c\n"))
        notes.say("d")

    assert written(terminal(), use) == f"{CLEAR}before{CLEAR}a\r\nb\r\nc\nd\n"


def test_lines_end_as_before_if_the_work_in_raw_mode_fails() -> None:
    def use(notes: Notes) -> None:
        with pytest.raises(ZeroDivisionError), notes.raw():
            notes.say("a")
            raise ZeroDivisionError
        notes.say("b")

    assert written(terminal(), use) == "a\r\nb\n"


@pytest.fixture
def stdin() -> Iterator[int]:
    """Put a terminal in the place of stdin, as it is before a shell."""
    leader, follower = pty.openpty()
    with in_place_of(0, follower):
        yield 0
    os.close(follower)
    os.close(leader)


def test_leaving_raw_mode_restores_the_settings_of_the_terminal(stdin: int) -> None:
    before = termios.tcgetattr(stdin)

    def use(notes: Notes) -> None:
        with notes.raw():
            tty.setraw(stdin)
            assert termios.tcgetattr(stdin) != before
            notes.say("a")
            notes.leave_raw()
            assert termios.tcgetattr(stdin) == before
            notes.say("b")

    assert written(pipe(), use).split("\n")[1] == "b"


def test_leaving_raw_mode_changes_no_terminal_that_is_not_raw(stdin: int) -> None:
    def use(notes: Notes) -> None:
        notes.leave_raw()
        with notes.raw():
            pass
        # A later program may have made the terminal raw on its own.
        tty.setraw(stdin)
        raw = termios.tcgetattr(stdin)
        notes.leave_raw()
        assert termios.tcgetattr(stdin) == raw

    assert written(pipe(), use) == ""


def test_leaving_raw_mode_without_a_terminal_as_stdin_does_nothing() -> None:
    source = pipe()
    with in_place_of(0, source.reader):

        def use(notes: Notes) -> None:
            with notes.raw():
                notes.leave_raw()
                notes.say("a")

        assert written(pipe(), use).strip() == "a"
    source.written()


def test_reader_that_makes_no_room_is_waited_for_once_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    find = writing.is_writable

    def is_writable(descriptor: int, seconds: float) -> bool:
        waited.append(seconds)
        return find(descriptor, min(seconds, 0.01))

    monkeypatch.setattr(writing, "is_writable", is_writable)
    reading, descriptor = os.pipe()
    os.set_blocking(descriptor, False)
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, bytes(4096))
    os.set_blocking(descriptor, True)
    notes = Notes(descriptor)
    for _ in range(3):
        notes.insist("dropped")
    assert [round(seconds, 1) for seconds in waited] == [1.0, 0.0, 0.0]
    os.set_blocking(reading, False)
    with suppress(BlockingIOError):
        while True:
            os.read(reading, 65536)
    notes.insist("read")
    assert os.read(reading, 100) == b"read\n"
    os.close(descriptor)
    os.close(reading)

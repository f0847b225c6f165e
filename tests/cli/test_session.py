"""A session's colour, and its remote command."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator
from itertools import product
from typing import Literal

import pytest
from descriptors import Stream, in_place_of, pipe, terminal
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import GlobalOptions, Session, has_colour

Wanted = Literal["auto", "always", "never"]
NO_COLOR = [None, "", "1", "0"]
FORCE_COLOR = [None, "", "0", "1", "3"]
TERM = [None, "xterm-256color", "dumb"]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a session sets in logging."""
    logger = logging.getLogger("netmind_rentgpu")
    level, handlers, propagate = logger.level, list(logger.handlers), logger.propagate
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
    logger.propagate = propagate


@pytest.fixture
def streams() -> Iterator[dict[bool, Stream]]:
    """Return a terminal and a pipe."""
    streams = {True: terminal(), False: pipe()}
    yield streams
    for stream in streams.values():
        stream.written()


def expected_colour(no_color: str | None, force_color: str | None, term: str | None, *, is_terminal: bool) -> bool:
    """Return True if `--color auto` is to colour: a variable that is empty counts as none."""
    if no_color:
        return False
    if force_color in ("1", "3"):
        return True
    return is_terminal and term != "dumb"


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("wanted", ["auto", "always", "never"])
def test_colour_is_by_the_option_then_by_the_variables_then_by_the_terminal(
    streams: dict[bool, Stream], wanted: Wanted, *, is_terminal: bool
) -> None:
    descriptor = streams[is_terminal].descriptor
    for no_color, force_color, term in product(NO_COLOR, FORCE_COLOR, TERM):
        variables = {"NO_COLOR": no_color, "FORCE_COLOR": force_color, "TERM": term}
        environment = {name: value for name, value in variables.items() if value is not None}
        automatic = expected_colour(no_color, force_color, term, is_terminal=is_terminal)
        expected = {"auto": automatic, "always": True, "never": False}[wanted]
        assert has_colour(wanted, descriptor, environment) is expected, environment


@pytest.mark.parametrize(
    ("environment", "on_terminal", "in_pipe"),
    [
        ({}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ({"FORCE_COLOR": "0"}, True, False),
    ],
)
def test_colour_by_itself_is_that_of_the_environment(
    streams: dict[bool, Stream], environment: dict[str, str], *, on_terminal: bool, in_pipe: bool
) -> None:
    assert has_colour("auto", streams[True].descriptor, environment) is on_terminal
    assert has_colour("auto", streams[False].descriptor, environment) is in_pipe


def test_stream_that_is_not_open_has_no_colour() -> None:
    assert has_colour("auto", -1, {}) is False
    assert has_colour("always", -1, {}) is True


def test_session_has_the_colour_of_its_stdout(monkeypatch: pytest.MonkeyPatch, streams: dict[bool, Stream]) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for is_terminal, stream in streams.items():
        with in_place_of(1, stream.descriptor):
            assert Session(GlobalOptions(), None).has_colour is is_terminal
            assert Session(GlobalOptions(color="never"), None).has_colour is False


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (None, None),
        # A single word is a line for the shell.
        (["nvidia-smi"], "nvidia-smi"),
        (["cd /data && ls *.pt | wc -l"], "cd /data && ls *.pt | wc -l"),
        ([" ls "], " ls "),
        # Several are passed on one by one.
        (["python", "train.py"], "python train.py"),
        (
            ["echo", "two words", "it's", 'say "x"', "$HOME", "*"],
            "echo 'two words' 'it'\"'\"'s' 'say \"x\"' '$HOME' '*'",
        ),
        (["printf", "", "a\nb"], "printf '' 'a\nb'"),
        (["ls", "--", "-x"], "ls -- -x"),
        (["", ""], "'' ''"),
    ],
)
def test_remote_command_is_its_words_quoted_or_its_only_word(words: list[str] | None, line: str | None) -> None:
    assert Session(GlobalOptions(), words).command_line() == line


@pytest.mark.parametrize("words", [[], [""], ["  "], ["\n\t"]])
def test_remote_command_that_is_empty_is_refused(words: list[str]) -> None:
    with pytest.raises(CommandError, match=r"^the command behind -- is empty$") as caught:
        Session(GlobalOptions(), words).command_line()
    assert caught.value.code is ExitCode.USAGE


@given(st.lists(st.text(), min_size=2))
def test_several_words_are_the_words_that_a_shell_reads(words: list[str]) -> None:
    line = Session(GlobalOptions(), words).command_line()
    assert line is not None
    assert shlex.split(line) == words


@pytest.mark.parametrize(("yes", "no_input"), [(False, False), (False, True), (True, False), (True, True)])
def test_question_without_a_terminal_is_answered_by_yes_alone(*, yes: bool, no_input: bool) -> None:
    empty = os.open(os.devnull, os.O_RDWR)
    with in_place_of(0, empty):
        session = Session(GlobalOptions(yes=yes, no_input=no_input), None)
        if yes:
            session.confirm("delete all?")
        else:
            with pytest.raises(CommandError, match=r"^delete all\?\nNothing was done") as caught:
                session.confirm("delete all?")
            assert (caught.value.code, caught.value.hint) == (ExitCode.USAGE, "Add --yes.")
    os.close(empty)

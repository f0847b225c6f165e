"""The command line on a real terminal: questions, shells, progress, sizes, colours, Ctrl-C."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from command_line import PROGRAM, Here, Site
from terminals import Terminal, terminal
from until import until_sync

pytestmark = pytest.mark.slow

CLEAR = "\r\x1b[K"


def on_terminal(site: Site, *words: str, **options: Any) -> AbstractContextManager[Terminal]:
    return terminal([*PROGRAM, *words], folder=site.folder, environment=site.environment, **options)


@pytest.fixture
def rented(site: Site, here: Here) -> Iterator[str]:
    """The name of a detached rental with the label `mine`."""
    yield here.run("rent", "--gpu", "4090", "--label", "mine", "-d", "-q").text.strip()
    here.run("rentals", "release", "mine", "-y")
    until_sync(site.has_ended)


def test_question_shows_what_dies_and_takes_no_for_an_answer(site: Site, rented: str) -> None:
    for keys, code, words in (("\n", 1, "Nothing was done"), ("n\n", 1, "Nothing was done"), ("\x03", 130, "")):
        with on_terminal(site, "rentals", "release") as shown:
            shown.until(rf"Delete {rented}: 1 x NVIDIA_GeForce_RTX_4090 on .* cost so far [\d.]+ USD.*\[y/N\] ")
            shown.type(keys)
            assert shown.end() == code
            assert words in shown.shown
        assert site.rented == 1
    with on_terminal(site, "rentals", "release", "mine") as shown:
        shown.until(r"\[y/N\] ")
        shown.type("yes\n")
        assert shown.end() == 0
    assert site.rented == 0


def test_progress_is_one_line_that_is_redrawn_and_gone_before_the_output(site: Site) -> None:
    with on_terminal(site, "rent", "--gpu", "4090", "--", "echo out; test -t 1 || echo no terminal") as shown:
        assert shown.end() == 0
    assert f"{CLEAR}created on node-" in shown.shown
    before, _, behind = shown.shown.partition("out\r\n")
    assert "no terminal\r\n" in behind
    # What was left of progress is cleared.
    assert before.rpartition(CLEAR)[2].count("\n") == before.rpartition(CLEAR)[2].count("\r\n")
    assert before.endswith("\n")
    progress = [
        part for part in re.split(r"\r\n|\r\x1b\[K", shown.shown) if part.startswith(("created on", "waiting for"))
    ]
    assert all(len(part) < 100 for part in progress)


def test_ctrl_c_gives_the_machine_back(site: Site) -> None:
    with on_terminal(site, "rent", "--gpu", "4090", "--", "echo up; sleep 1000") as shown:
        shown.until("up\r\n")
        shown.type("\x03")
        shown.until("SIGINT: giving back rg-")
        assert shown.end() == 130
    assert "the machine is given back" in shown.shown
    assert site.rented == 0


def test_rented_shell_follows_the_size_and_has_its_variables_and_files(site: Site) -> None:
    (site.folder / "here.txt").write_text("content")
    words = ("--env", "A=a b", "--upload", "here.txt")
    with on_terminal(site, "rent", "--gpu", "4090", *words, columns=90, lines=20) as shown:
        shown.until("enforced by process")
        shown.type("echo $A; cat here.txt; stty size; ls -A ..; echo d''one\n")
        shown.until(r"a b\r\ncontent20 90\r\n")
        assert ".rentgpu-environment" not in shown.until("done")
        shown.resize(70, 15)
        shown.type("until [ \"$(stty size)\" = '15 70' ]; do sleep 0.1; done; echo resized$((1+1))\n")
        shown.until("resized2")
        # Ctrl-C is the remote shell's.
        # In the background, because a command that is just being started may swallow the interrupt and live on.
        shown.type("sleep 1000 & echo sta''rted; wait\n")
        shown.until("started\r\n")
        shown.type("\x03")
        shown.until("[#$] ")
        shown.type("kill %1; echo sti''ll here\n")
        shown.until("still here")
        shown.type("exit 4\n")
        assert shown.end() == 4
    assert site.rented == 0
    # The terminal is left as it was.
    assert shown.shown.endswith("the machine is given back\r\n")


@pytest.mark.parametrize("words", [("ssh",), ("ssh", "mine")])
def test_shell_on_a_rented_machine(site: Site, rented: str, words: tuple[str, ...]) -> None:
    with on_terminal(site, *words) as shown:
        shown.type("echo $((20 + 3))x; tty; exit 6\n")
        shown.until("23x")
        shown.until("/dev/pts/")
        assert shown.end() == 6
    assert site.rented == 1
    assert rented


def test_command_gets_a_terminal_only_if_asked(site: Site, rented: str) -> None:
    for words, found in ((("run", "-t", "mine"), "/dev/pts/"), (("run", "mine"), "not a tty")):
        with on_terminal(site, *words, "--", "tty; true") as shown:
            assert shown.end() == 0
        assert found in shown.shown
    assert rented


def test_table_on_a_narrow_terminal_leaves_out_whole_columns_and_says_so(site: Site, rented: str) -> None:
    with on_terminal(site, "rentals", "list", columns=60) as shown:
        assert shown.end() == 0
    assert "Left out, because the terminal is too narrow: " in shown.shown
    assert "ENFORCED BY" not in shown.shown.partition("Left out")[0]
    assert rented in shown.shown
    with on_terminal(site, "rentals", "list", columns=40) as shown:
        assert shown.end() == 0
    # A name is never cut, however narrow the terminal is.
    assert rented in shown.shown
    with on_terminal(site, "rentals", "list", columns=250) as shown:
        assert shown.end() == 0
    assert "Left out" not in shown.shown
    assert "\x1b[1mNAME" in shown.shown


@pytest.mark.parametrize(
    ("words", "variables", "is_coloured"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        (["-o", "json"], {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colour_is_chosen_by_option_then_variables_then_terminal(
    site: Site, words: list[str], variables: dict[str, str], is_coloured: bool
) -> None:
    site.variables.update(variables)
    with on_terminal(site, "offers", "--gpu", "4090", *words) as shown:
        assert shown.end() == 0
    assert ("\x1b[1m" in shown.shown) == is_coloured
    assert ("\x1b" in shown.shown) == is_coloured


def test_watch_redraws_its_table_until_ctrl_c(site: Site, rented: str) -> None:
    with on_terminal(site, "rentals", "watch", "--interval", "0.2s", columns=120) as shown:
        shown.until("1 machine is rented")
        shown.until(rented)
        assert site.run("rentals", "release", "-y").code == 0
        shown.until("nothing is rented")
        shown.type("\x03")
        assert shown.end() == 130
    assert "\x1b[?25h" in shown.shown  # the cursor is back


def test_output_in_a_pipe_beside_a_terminal_is_whole_and_plain(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with (
        path.open("wb") as file,
        on_terminal(site, "offers", "--gpu", "4090", stdout=file.fileno(), columns=40) as shown,
    ):
        assert shown.end() == 0
    assert shown.shown == ""
    assert {line.count("\t") for line in path.read_text().splitlines()} == {8}

"""The words that complete a line: which names there are, and their form in each shell."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import PROGRAM
from state_files import record, state_at, write_records

from netmind_rentgpu.cli.app import app, run
from netmind_rentgpu.cli.completing import answer, read_line
from netmind_rentgpu.cli.completions import (
    Completion,
    Typed,
    accounts,
    budgets,
    containers,
    places,
    rental_before_ports,
    rentals,
    results,
    settings,
    topics,
)
from netmind_rentgpu.cli.options import Invocation
from netmind_rentgpu.rentals.ledger.budget_ledger import BudgetLedger
from netmind_rentgpu.rentals.ledger.clocks import ClockReading
from netmind_rentgpu.rentals.ledger.shared_budgets import SharedBudget
from netmind_rentgpu.state_schema import MIGRATIONS


def texts(found: list[Completion]) -> list[str]:
    return [word.text for word in found]


@pytest.fixture
def typed(tmp_path: Path) -> Typed:
    return Typed(state=str(tmp_path / "state.sqlite3"))


def path_of(typed: Typed) -> Path:
    assert typed.state is not None
    return Path(typed.state)


# The names.


def test_open_rental_completes_by_its_name_and_its_label_with_its_machine_and_stage(typed: Typed) -> None:
    write_records(
        path_of(typed),
        record("rg-1", label="desk", gpu_name="RTX_4090", gpus=2),
        record("rg-2", stage="ready", gpu_name="RTX_4090"),
        record("rg-3", stage="intended"),
        record("rg-4", refused=True),
    )
    assert rentals(typed) == [
        Completion("rg-1", "desk, detached"),
        Completion("desk", "2 x RTX_4090, detached"),
        Completion("rg-2", "1 x RTX_4090, ready"),
        Completion("rg-3", "intended"),
    ]


def test_label_that_names_no_rental_or_cannot_be_typed_is_left_out(typed: Typed) -> None:
    labels = ("shared", "shared", "-dash", "\x1b[31mred")
    write_records(path_of(typed), *(record(f"rg-{number}", label=label) for number, label in enumerate(labels)))
    assert texts(rentals(typed)) == ["rg-0", "rg-1", "rg-2", "rg-3"]
    assert rentals(typed)[3].description == r"\x1b[31mred, detached"


def test_label_of_two_accounts_is_offered_once(typed: Typed) -> None:
    write_records(path_of(typed), record("rg-1", label="desk"))
    write_records(path_of(typed), record("rg-2", label="desk"), account="https://service.example another")
    assert texts(rentals(typed)) == ["rg-1", "desk", "rg-2"]


def test_rental_that_was_typed_before_is_left_out(typed: Typed) -> None:
    write_records(path_of(typed), record("rg-1", label="desk"), record("rg-2"))
    for word in ("rg-1", "desk"):
        assert texts(rentals(typed._replace(earlier=(word,)))) == ["rg-2"]


def test_forward_completes_a_rental_and_no_port(typed: Typed) -> None:
    write_records(path_of(typed), record("rg-1"))
    assert texts(rental_before_ports(typed)) == ["rg-1"]
    assert rental_before_ports(typed._replace(earlier=("rg-1",))) == []


def test_place_of_a_copy_is_a_target_with_a_colon_or_a_file(typed: Typed) -> None:
    write_records(path_of(typed), record("rg-1", label="a/b"), record("rg-2", label="a:b"), record("rg-3", label="a b"))
    targets = [("rg-1:", "part"), ("rg-2:", "part"), ("rg-3:", "part"), ("a b:", "part")]
    assert [(word.text, word.kind) for word in places(typed)] == [*targets, ("", "file")]
    assert places(typed._replace(current="rg-1:mod")) == []
    assert places(typed._replace(current="./rg-1:mod"))[-1].kind == "file"


def test_container_of_a_rental_completes_by_its_id(typed: Typed) -> None:
    first, second = record("rg-1", container_id=5, label="desk"), record("rg-2", container_id=6)
    write_records(path_of(typed), first, second, record("rg-3"))
    assert containers(typed) == [Completion("5", "desk"), Completion("6", "rg-2")]
    assert texts(containers(typed._replace(earlier=("5",)))) == ["6"]


def test_commands_with_results_complete_word_by_word() -> None:
    assert {"offers", "rentals"} <= set(texts(results(Typed())))
    assert texts(results(Typed(earlier=("account",)))) == ["list", "use", "show"]
    assert results(Typed(earlier=("offers",))) == results(Typed(earlier=("account", "list"))) == []


def test_settings_complete_by_their_names() -> None:
    assert texts(settings(Typed()))[:2] == ["account", "token"]


async def test_budget_completes_by_its_name_with_its_limits_unless_a_fleet_has_made_it(typed: Typed) -> None:
    state, now = state_at(path_of(typed)), ClockReading(datetime.now(UTC))
    ledger = BudgetLedger(state)
    for name, fields in {
        "both": {"limit": Decimal(20), "per": "month", "hourly": Decimal("1.5")},
        "total": {"limit": Decimal(5)},
        "fleet": {"limit": Decimal(5), "expires_at": now.wall},
    }.items():
        await ledger.set(SharedBudget(name=name, currency="USD", **fields), now)
    state.close()
    assert budgets(typed) == [Completion("both", "20 USD a month, 1.5 USD an hour"), Completion("total", "5 USD")]


def test_account_completes_by_its_name_unless_the_configuration_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert accounts(Typed()) == []
    config = tmp_path / "netmind-rentgpu" / "config.toml"
    config.parent.mkdir()
    config.write_text("[accounts.work]\ntoken_file = 'a'\n[accounts.home]\ntoken_file = 'b'\n")
    assert texts(accounts(Typed())) == ["work", "home"]
    config.write_text("[accounts.work\n")
    assert accounts(Typed()) == []


def test_topic_is_a_page_and_behind_reference_a_public_name() -> None:
    assert Completion("command-line", "The command line") in topics(Typed())
    assert "reference" in texts(topics(Typed()))
    assert "AsyncRentGPU" in texts(topics(Typed(earlier=("reference",))))
    assert topics(Typed(earlier=("command-line",))) == []


# The state file.


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_look_at_the_state_file_changes_nothing_and_leaves_nothing_beside_it(typed: Typed, tmp_path: Path) -> None:
    assert rentals(typed) == []
    assert contents(tmp_path) == {}
    write_records(path_of(typed), record("rg-1"))
    path_of(typed).chmod(0o644)
    before = contents(tmp_path)
    assert list(before) == ["state.sqlite3"]
    assert texts(rentals(typed)) == ["rg-1"]
    assert contents(tmp_path) == before
    assert stat.S_IMODE(path_of(typed).stat().st_mode) == 0o644


def test_rental_that_an_open_client_has_written_is_found(typed: Typed) -> None:
    write_records(path_of(typed), record("rg-1"))
    with closing(sqlite3.connect(path_of(typed))) as other:
        # It is in the write-ahead log alone.
        other.execute("PRAGMA wal_autocheckpoint = 0")
        with other:
            other.execute("UPDATE rentals SET label = 'new'")
        assert texts(rentals(typed)) == ["rg-1", "new"]


def test_file_of_an_earlier_version_is_read_and_not_migrated(typed: Typed) -> None:
    with closing(sqlite3.connect(path_of(typed))) as connection, connection:
        for migration in MIGRATIONS[:8]:
            connection.execute(migration)
        connection.execute("PRAGMA user_version = 8")
        connection.execute(
            "INSERT INTO rentals (account, name, stage, node_name, gpus, intended_at, certain_at) VALUES"
            " ('an account', 'rg-1', 'ready', 'node', 1, '', '')"
        )
    before = path_of(typed).read_bytes()
    assert rentals(typed) == [Completion("rg-1", "ready")]
    assert path_of(typed).read_bytes() == before


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("UPDATE rentals SET label = 'new'")
        yield


def test_locked_file_gives_no_words_at_once(typed: Typed, capfd: pytest.CaptureFixture[str]) -> None:
    write_records(path_of(typed), record("rg-1"))
    with locked(path_of(typed)):
        assert rentals(typed) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["newer", "broken", "folder", "pipe", "null"])
def test_unusable_file_gives_no_words_and_no_error(
    typed: Typed, kind: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = path_of(typed)
    if kind == "newer":
        write_records(path, record("rg-1"))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    elif kind == "broken":
        path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 100)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        typed = typed._replace(state=f"{tmp_path}/\0")
    assert rentals(typed) == budgets(typed) == []
    assert capfd.readouterr() == ("", "")


# The form of the words.


@pytest.mark.parametrize(
    ("text", "words", "current"),
    [
        ("rentgpu ssh", ["rentgpu"], "ssh"),
        ("rentgpu ssh ", ["rentgpu", "ssh"], ""),
        ("rentgpu ssh my\\ la", ["rentgpu", "ssh"], "my la"),
        ("rentgpu ssh 'my la", ["rentgpu", "ssh"], "my la"),
        ("rentgpu ssh \"it's", ["rentgpu", "ssh"], "it's"),
        ("rentgpu ssh\nmy\\", ["rentgpu", "ssh"], "my"),
        ("rentgpu ssh '' #", ["rentgpu", "ssh", ""], "#"),
        ("A=1 /bin/rentgpu ssh", ["/bin/rentgpu"], "ssh"),
        ("alias ssh", ["alias"], "ssh"),
    ],
)
def test_line_is_split_as_a_shell_does(text: str, words: list[str], current: str) -> None:
    line = read_line(text)
    assert (list(line.words), line.current) == (words, current)


@pytest.mark.parametrize(
    ("text", "replaced", "inserted"),
    [
        ("rentgpu ssh ", "", ["my\\ \\$5\\!", "train:a", "train:b"]),
        ("rentgpu ssh tra", "tra", ["train:a", "train:b"]),
        # bash replaces only what stands behind a colon, an equals sign or an open quote.
        ("rentgpu ssh train:", "", ["a", "b"]),
        ("rentgpu ssh --x=tra", "tra", ["train:a", "train:b"]),
        ("rentgpu ssh 'my", "my", ["my $5!"]),
        ('rentgpu ssh "tra', "tra", ["train:a", "train:b"]),
        # Within double quotes, bash would read the exclamation mark as a word of its history.
        ('rentgpu ssh "my', "my", []),
    ],
)
def test_bash_gets_the_end_of_each_word_in_the_quotes_that_are_open(
    text: str, replaced: str, inserted: list[str]
) -> None:
    found = [Completion("my $5!"), Completion("train:a"), Completion("train:b")]
    lines = answer("bash", read_line(text, replaced), found).splitlines()
    assert lines == [f"plain\t{word}" for word in inserted]


def test_bash_gets_files_only_beside_words_because_it_finds_them_itself_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "data/deep", "desk"):
        Path(name).mkdir()
    for name in ("de $5", ".hidden", "data/x", "two\nlines"):
        Path(name).touch()
    found = [Completion("desk:", kind="part"), Completion("", kind="file")]

    def lines(current: str) -> list[str]:
        return answer("bash", read_line(f"rentgpu cp {current}", current), found).splitlines()

    assert lines("") == ["part\tdesk:", "part\tdata/", "plain\tde\\ \\$5", "part\tdesk/"]
    assert lines("des") == ["part\tdesk:", "part\tdesk/"]
    assert lines("da") == lines("none") == ["file\t"]


def test_zsh_and_fish_get_all_words_with_their_descriptions() -> None:
    found = [Completion("a:b \\", "one: two"), Completion("", kind="file")]
    line = read_line("rentgpu cp --x=zzz")
    assert answer("zsh", line, found) == "plain\t--x=a\\:b \\\\:one\\: two\nfile\t--x=\n"
    assert answer("fish", line, found) == "plain\t--x=a:b \\\tone: two\nfile\t--x=\n"
    assert answer("another", line, found) == ""


# The program.


def completed(line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], **variables: str) -> str:
    with monkeypatch.context() as patch:
        for name, value in {"_RENTGPU_COMPLETE": "fish", "_RENTGPU_LINE": line, **variables}.items():
            patch.setenv(name, value)
        assert run([]) == 0
    out, errors = capfd.readouterr()
    assert errors == ""
    return out


def test_program_completes_with_the_rentals_of_the_state_file_that_is_given(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_records(path_of(typed), record("rg-1"))
    write_records(tmp_path / "other", record("rg-2"))
    monkeypatch.setenv("NETMIND_RENTGPU_STATE", str(typed.state))
    for line, name in (("rentgpu ssh ", "rg-1"), (f"rentgpu --state '{tmp_path}/other' ssh ", "rg-2")):
        assert completed(line, monkeypatch, capfd) == f"plain\t{name}\tdetached\n"
    assert completed(f"rentgpu rentals show --state={tmp_path}/other r", monkeypatch, capfd).startswith("plain\trg-2")


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("", ""),
        ("rentgpu run desk -- ls --", ""),
        ("rentgpu compl", "plain\tcompletion\tPrint the completion of a shell.\n"),
        ("rentgpu completion z", "plain\tzsh\n"),
        ("rentgpu --output=jsonl --stat", "plain\t--state\tThe state file; NETMIND_RENTGPU_STATE by default.\n"),
        ("rentgpu rent --report ", "file\t\n"),
    ],
)
def test_program_completes_a_line(
    line: str, out: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert completed(line, monkeypatch, capfd) == out


def leaves(group: click.Group = app) -> Iterator[click.Command]:
    context = click.Context(group, obj=Invocation())
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from leaves(command) if isinstance(command, click.Group) else [command]


def test_every_argument_for_a_rental_completes_its_names(typed: Typed) -> None:
    write_records(path_of(typed), record("rg-1"))
    found = []
    for command in leaves():
        context = click.Context(command, obj=Invocation(given={"state": typed.state}))
        for argument in command.params:
            if argument.name in ("target", "rental", "rentals", "words", "sources"):
                words = [item.value for item in argument.shell_complete(context, "")]
                assert {"rg-1", "rg-1:"} & set(words), command.name
                found.append(command.name)
    assert sorted(filter(None, found)) == sorted(
        [*("ssh", "run", "cp", "forward", "logs"), *("list", "wait", "stop", "remove"), *("show", "extend", "release")]
    )


def test_completion_imports_no_client_and_needs_no_token(typed: Typed) -> None:
    write_records(path_of(typed), record("rg-1"))
    program = (
        "import sys; from netmind_rentgpu.cli.app import run; run([])\n"
        "print(*{'aiohttp', 'asyncio', 'asyncssh', 'cattrs', 'rich', 'ssl'} & sys.modules.keys(), 'imported')\n"
        "print(*{'netmind_rentgpu.client', 'netmind_rentgpu.settings'} & sys.modules.keys(), 'imported')"
    )
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if not name.startswith("NETMIND_")}
    environment |= {"_RENTGPU_COMPLETE": "bash", "_RENTGPU_LINE": "rentgpu ssh ", "NETMIND_RENTGPU_STATE": typed.state}
    done = subprocess.run(
        [PROGRAM[0], "-c", program], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("plain\trg-1\nimported\nimported\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_of_a_shell_is_for_both_names_of_the_program(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    out, errors = capfd.readouterr()
    assert errors == ""
    assert " rentgpu netmind-rentgpu\n" in out or "--command rentgpu --command netmind-rentgpu " in out


def test_help_of_completion_says_what_to_put_where(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "--help"]) == 0
    out, _ = capfd.readouterr()
    for text in ("~/.bashrc, bash 4.4 or newer:", 'eval "$(rentgpu completion zsh)"', "fish/config.fish"):
        assert text in out

"""The tree of commands: what each says, prints and imports, in every form."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from command_line import PROGRAM, Here, Site

from netmind_rentgpu.cli.app import app
from netmind_rentgpu.cli.options import Command, Invocation
from netmind_rentgpu.cli.schemas import RESULTS

IMAGE = ["--name", "a", "--image-name", "b", "--image-tag", "c", "--image-label", "d"]
# For each command that prints a thing: words that make it print, within a service on which nothing is rented.
PRINTING = {
    "rent": ["--dry-run"],
    "offers": [],
    "forward": None,
    "logs": None,
    "jobs list": None,
    "jobs wait": None,
    "jobs stop": None,
    "jobs remove": None,
    "rentals list": [],
    "rentals show": None,
    "rentals extend": None,
    "rentals release": None,
    "rentals reap": [],
    "rentals spend": [],
    "rentals watch": None,
    "budgets list": [],
    "budgets set": ["mine", "50"],
    "budgets remove": ["gone"],
    "login": ["--token-file", "token"],
    "logout": ["gone"],
    "account list": [],
    "account use": None,
    "account show": None,
    "config list": [],
    "config get": ["ttl"],
    "machines list": [],
    "auths list": [],
    "auths show": None,
    "auths ensure": None,
    "auths create": None,
    "images list": [],
    "images show": ["1"],
    "images ensure": IMAGE,
    "images create": IMAGE,
    "containers list": [],
    "containers get": None,
    "containers create": None,
    "containers stop": None,
    "containers restart": None,
    "containers delete": ["1"],
    "containers wait": ["1", "--until", "gone"],
    "containers watch": None,
    "containers ssh-config": None,
    "profile show": [],
    "profile check": [],
}
"""None for those that need a rented machine, a password or an account, whose own tests run them."""
# For each command that refuses to run without words: such words.
REQUIRED = {
    "cp": ["a", "b:"],
    "forward": ["1"],
    "jobs stop": ["x"],
    "jobs remove": ["x"],
    "budgets set": ["x"],
    "budgets remove": ["x"],
    "completion": ["bash"],
    "account use": ["x"],
    "config get": ["x"],
    "schema": ["offers"],
    "auths show": ["1"],
    "images show": ["1"],
    "images ensure": IMAGE,
    "images create": IMAGE,
    "containers create": ["--name", "a", "--auth", "1", "--machine", "b", "--image", "1"],
    **{f"containers {name}": ["1"] for name in ("get", "stop", "restart", "delete", "wait", "ssh-config")},
}


def commands(group: click.Group = app, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(app, obj=Invocation())
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands())
LEAVES = {name: command for name, command in COMMANDS.items() if not isinstance(command, click.Group)}


def test_table_has_every_command_that_prints_a_thing() -> None:
    assert {name for name, command in LEAVES.items() if isinstance(command, Command) and command.prints} == set(
        PRINTING
    )


def test_every_command_that_prints_a_thing_has_a_schema() -> None:
    assert set(RESULTS) == set(PRINTING)


def test_root_help_fits_on_a_screen_and_has_every_global_option(here: Here) -> None:
    text = here.run("--help", COLUMNS="100").text
    assert len(text.splitlines()) <= 44
    assert max(map(len, text.splitlines())) <= 100
    own = {option.opts[-1] for option in LEAVES["offers"].params if not option.expose_value}
    assert [name for name in own if name not in text] == []


def test_root_describes_each_command_as_the_command_does(here: Here) -> None:
    text = " ".join(here.run("--help").text.split())
    for name, command in COMMANDS.items():
        if " " not in name:
            assert f"{name} {command.get_short_help_str(limit=200)}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_command_describes_each_option(here: Here, name: str) -> None:
    if name == "emulator":
        return  # it describes itself
    done = here.run(*name.split(), "--help")
    assert (done.code, done.errors) == (0, "")
    assert done.text.startswith(f"Usage: rentgpu {name}")
    command = COMMANDS[name]
    for option in command.params:
        if isinstance(option, click.Option) and option.expose_value and not option.hidden:
            assert option.help, option.name
            assert option.opts[0] in done.text
    assert max(map(len, done.text.splitlines())) <= 80


@pytest.mark.parametrize("output", ["json", "jsonl", "csv", "table"])
@pytest.mark.parametrize("name", [name for name, words in PRINTING.items() if words is not None])
def test_every_command_prints_its_result_in_every_form(here: Here, name: str, output: str) -> None:
    words = [*name.split(), *(PRINTING[name] or [])]
    (here.site.folder / "token").write_text(here.site.emulator.token)
    done = here.run(*words, "-o", output, "-q", "--yes")
    assert (done.code, done.errors) == (0, ""), done.errors
    if output == "json":
        assert isinstance(done.json, (list, dict))
    if name in ("rentals list", "rentals reap", "budgets list", "rentals spend", "auths list", "containers list"):
        assert (done.text.strip() == {"json": "[]", "jsonl": "", "csv": ""}[output]) if output != "table" else done.text
    # The same, with the options before the command.
    again = here.run("-o", output, "-q", "--yes", *words)
    assert (again.code, len(again.text.splitlines())) == (0, len(done.text.splitlines()))


@pytest.mark.parametrize(
    ("words", "exit_code", "error"),
    [
        (["no-such"], 2, "UsageError"),
        (["rent", "--no-such"], 2, "UsageError"),
        (["rent", "--ttl", "soon"], 2, "UsageError"),
        (["rentals", "show"], 66, "CommandError"),
        (["rentals", "show", "no-such"], 66, "RentalNotFoundError"),
        (["offers", "--gpu", "no such"], 2, "InvalidArgumentError"),
        (["offers", "--base-url", "http://127.0.0.1:1", "--timeout", "1m"], 69, "APIConnectionError"),
        (["offers", "--base-url", "ftp://x"], 78, "ConfigurationError"),
        (["budgets", "set", "mine", "5", "--state", "/dev/null/x"], 74, "StateFolderError"),
        (["help", "no-such-topic"], 66, "CommandError"),
        (["offers", "--profile", "no-such-file"], 78, "ConfigurationError"),
    ],
)
@pytest.mark.parametrize("where", ["before", "behind"])
def test_error_is_a_line_of_json_if_results_are(
    here: Here, words: list[str], exit_code: int, error: str, where: str
) -> None:
    form = ["-o", "json"] if where == "before" else ["--output=jsonl"]
    done = here.run(*(form + words if where == "before" else words + form))
    assert (done.code, done.out) == (exit_code, b"")
    assert len(done.errors.splitlines()) == 1
    assert (done.problem["exit_code"], done.problem["error"]) == (exit_code, error)
    assert done.problem["message"]
    assert set(done.problem) == {
        *("exit_code", "error", "message", "code", "status", "request_id", "maybe_processed", "hint")
    }


def test_no_words_print_the_help_and_a_group_alone_its_own(here: Here) -> None:
    assert here.run() == here.run("--help")
    assert here.run().text.startswith("Usage: rentgpu [OPTIONS] COMMAND")
    done = here.run("rentals")
    # Older versions of click print the help as a result.
    assert "Usage: rentgpu rentals [OPTIONS] COMMAND" in done.errors + done.text
    assert done.code in (0, 2)


def test_refused_token_is_77_and_a_missing_one_78_with_what_to_do(here: Here) -> None:
    refused = here.run("offers", NETMIND_API_KEY="wrong")
    assert refused.code == 77
    assert "Run `rentgpu login`, or set NETMIND_API_KEY" in refused.errors
    missing = here.run("offers", NETMIND_API_KEY="")
    assert missing.code == 78
    assert "rentgpu emulator" in missing.errors


@pytest.mark.parametrize("name", [name for name in LEAVES if not getattr(LEAVES[name], "takes_command", False)])
def test_command_behind_two_dashes_is_refused_where_none_is_run(here: Here, name: str) -> None:
    done = here.run(*name.split(), *REQUIRED.get(name, []), "--", "echo")
    assert done.code == 2
    assert f"{name.rsplit(maxsplit=1)[-1]} takes no command behind --" in done.errors


def test_words_behind_the_first_two_dashes_are_the_commands_own(site: Site) -> None:
    # click would take the command for the machine.
    done = site.run("ssh", "--", "nvidia-smi")
    assert done.code == 66
    assert "no rental is open" in done.errors


@pytest.mark.parametrize(
    ("words", "variables", "missing"),
    [
        (["--help"], {}, ["aiohttp", "asyncssh", "rich", "asyncio", "netmind_rentgpu.client"]),
        (["rent", "--help"], {}, ["aiohttp", "asyncssh", "rich", "netmind_rentgpu.client"]),
        (["completion", "bash"], {}, ["aiohttp", "asyncssh", "rich", "netmind_rentgpu.client"]),
        ([], {"_RENTGPU_COMPLETE": "bash", "_RENTGPU_LINE": "rentgpu r"}, ["aiohttp", "asyncio", "rich"]),
        (["rentals", "list"], {}, ["aiohttp", "asyncssh", "rich"]),
        (["budgets", "list", "-o", "json"], {}, ["aiohttp", "asyncssh", "rich"]),
        (["rentals", "spend"], {}, ["aiohttp", "asyncssh", "rich"]),
        (["offers", "-o", "json"], {}, ["asyncssh", "rich"]),
        (["containers", "list"], {}, ["asyncssh", "rich"]),
        (["profile", "show"], {}, ["aiohttp", "asyncssh", "rich", "netmind_rentgpu.client"]),
        (["schema", "offers"], {}, ["aiohttp", "asyncssh", "rich", "netmind_rentgpu.client"]),
    ],
)
def test_command_imports_only_what_it_needs(
    site: Site, words: list[str], variables: dict[str, str], missing: list[str]
) -> None:
    code = (
        "import atexit, sys; from netmind_rentgpu.cli import main; sys.argv[0] = 'rentgpu'\n"
        f"found = lambda: [name for name in {missing!r} if name in sys.modules]\n"
        "atexit.register(lambda: print('imported', found(), file=sys.stderr))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**site.environment, **variables},
        cwd=site.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "imported []"
    assert done.stdout


@pytest.mark.parametrize("program", ["rentgpu", "netmind-rentgpu"])
def test_program_has_both_names(site: Site, program: str) -> None:
    done = site.shell(f"{program} --version; {program} offers --help | head -1")
    assert done.code == 0
    assert done.text.splitlines()[1] == f"Usage: {program} offers [NEEDS]"


def test_module_is_the_program(site: Site) -> None:
    done = site.run("offers", "--gpu", "4090", "-o", "csv")
    assert done.text.splitlines()[0].startswith("gpus,hourly_price,currency,node_name,gpu_name")
    assert PROGRAM[1:] == ("-m", "netmind_rentgpu")


def test_bug_says_so_and_debug_shows_where(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr("netmind_rentgpu.cli.session.Session.run", broken)
    done = here.run("offers")
    assert done.code == 70
    assert "KeyError" in done.errors
    assert "Traceback" not in done.errors
    assert "in broken" in here.run("offers", "--debug").errors


def test_nothing_secret_shows_in_the_most_talkative_run(here: Here, site: Site) -> None:
    done = here.run("offers", "--debug", "-v", "-o", "json")
    assert "GET /v1/rentgpu/machines -> 200" in done.errors
    assert site.emulator.token not in done.errors + done.text

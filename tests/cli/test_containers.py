"""`containers`: what the account has, by ids, with waits, and deletions that leave nothing behind unsaid."""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Iterator
from typing import Any

import canaries
import pytest
from command_line import PROGRAM, Done, Here, Site
from terminals import terminal
from until import until_sync

from netmind_rentgpu.emulator import Fault, World

pytestmark = pytest.mark.slow

FORMS = ["table", "json", "jsonl", "csv"]


def items(done: Done, form: str) -> list[dict[str, Any]]:
    """Return the items of a result in any form but a table."""
    match form:
        case "json":
            return done.json if isinstance(done.json, list) else [done.json]
        case "jsonl":
            return [json.loads(line) for line in done.text.splitlines()]
        case _:
            return list(csv.DictReader(io.StringIO(done.text)))


def create(here: Here, name: str, *words: str) -> Done:
    """Create a container, with a password that is stored before."""
    auth = here.run("auths", "ensure", "--password-file", "-", "-o", "json", given=canaries.PASSWORD.encode()).json
    return here.run(
        *("containers", "create", "--name", name, "--auth", str(auth["id"]), "--machine", "node-se-0012"),
        *("--image", "1", *words),
    )


@pytest.fixture
def first(site: Site, here: Here) -> Iterator[str]:
    """The id of a container with the name `mine`."""
    done = create(here, "mine", "-o", "json")
    assert done.code == 0, done.errors
    yield str(done.json["id"])
    site.emulator.faults.clear()
    for charge in site.emulator.running:
        here.run("containers", "delete", str(charge.container_id), "-y")


@pytest.mark.parametrize("form", FORMS)
def test_container_is_created_shown_and_deleted_in_every_form(here: Here, site: Site, form: str) -> None:
    done = create(here, "mine", "--gpus", "2", "-o", form)
    assert done.code == 0, done.errors
    assert done.errors.splitlines() == [
        "no record and no deadline ends it: it costs money until `rentgpu containers delete 1001`"
    ]
    listed, shown = here.run("containers", "list", "-o", form), here.run("containers", "get", "1001", "-o", form)
    stopped = here.run("containers", "stop", "1001", "-y", "-o", form)
    restarted = here.run("containers", "restart", "1001", "-y", "-o", form)
    waited = here.run("containers", "wait", "1001", "--until", "has-ssh", "-o", form, "-q")
    for result in (listed, shown, stopped, restarted, waited):
        assert (result.code, result.errors) == (0, "")
    deleted = here.run("containers", "delete", "1001", "--yes", "-o", form)
    assert (deleted.code, site.rented) == (0, 0)
    if form == "table":
        assert done.text.startswith("ID\t1001\nNAME\tmine\n")
        assert (
            listed.text.splitlines()[0]
            == waited.text.splitlines()[0]
            == "ID\tNAME\tSTATUS\tGPUS\tMACHINE\tSSH\tCREATED"
        )
        assert listed.text.splitlines()[1].startswith("1001\tmine\t")
        assert deleted.text == "ID\tNAME\tMACHINE\tSTATE\n1001\tmine\tnode-se-0012\tdeleted\n"
        return
    for result in (done, listed, shown, stopped, restarted, waited):
        (row,) = items(result, form)
        assert (str(row["id"]), row["name"], str(row["gpu"])) == ("1001", "mine", "2")
    (row,) = items(deleted, form)
    assert {name: str(value) for name, value in row.items()} == {
        "id": "1001",
        "name": "mine",
        "node_name": "node-se-0012",
        "state": "deleted",
    }


@pytest.mark.parametrize("verb", ["stop", "restart", "delete"])
def test_command_that_ends_processes_asks_first(here: Here, site: Site, first: str, verb: str) -> None:
    for words in ([], ["--no-input"]):
        done = here.run("containers", verb, first, *words)
        assert (done.code, done.out, site.rented) == (2, b"", 1)
        assert f"{verb.capitalize()} container {first} (mine) on node-se-0012" in done.errors
        assert "--yes" in done.errors
    for keys, code in (("n\n", 1), ("\x03", 130)):
        words = [*PROGRAM, "containers", verb, first]
        with terminal(words, folder=site.folder, environment=site.environment) as shown:
            shown.until(r"\[y/N\] ")
            shown.type(keys)
            assert shown.end() == code
    assert here.run("containers", "get", first, "-o", "json").json["status"] in (0, 1)


def test_container_that_is_gone_is_deleted_without_an_error_or_a_question(here: Here, first: str) -> None:
    done = here.run("containers", "delete", "999", first, "999", "-y", "-o", "json")
    assert done.code == 0
    assert [(row["id"], row["name"], row["state"]) for row in done.json] == [
        (999, None, "gone"),
        (int(first), "mine", "deleted"),
    ]
    done = here.run("containers", "delete", first, "-o", "json")
    assert (done.code, [row["state"] for row in done.json]) == (0, ["gone"])
    assert f"container {first} is gone already" in done.errors


def test_wrong_404_does_not_hide_a_container_that_costs_money(here: Here, site: Site, first: str) -> None:
    site.emulator.faults.add(Fault("status", status=404, call="get_container", times="all"))
    assert here.run("containers", "delete", first).code == 2
    done = here.run("containers", "delete", first, "-y", "-o", "json")
    assert (done.code, [row["state"] for row in done.json], site.rented) == (0, ["deleted"], 0)


@pytest.mark.parametrize("status", [403, 500])
def test_failed_deletion_is_125_and_does_not_keep_others(here: Here, site: Site, first: str, status: int) -> None:
    other = str(create(here, "other", "-o", "json").json["id"])
    site.emulator.faults.add(Fault("status", status=status, call="delete_container", times=1 if status == 403 else 4))
    done = here.run("containers", "delete", first, other, "-y", "-o", "json")
    assert (done.code, [row["id"] for row in done.json], site.rented) == (125, [int(other)], 1)
    assert done.problem["exit_code"] == 125


def test_deletion_that_is_interrupted_is_125_and_names_the_container(here: Here, site: Site, first: str) -> None:
    site.measured = False
    site.emulator.faults.add(Fault("hang", call="delete_container"))
    process = site.start("containers", "delete", first, "-y", "--debug")
    assert process.stderr is not None
    until_sync(lambda: not site.emulator.faults.unmet)
    process.send_signal(signal.SIGINT)
    done = site.end(process)
    assert done.code == 125
    assert f"container {first} may still cost money" in done.errors


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_one_failure_does_not_keep_others_from_being_acted_on(here: Here, first: str, verb: str) -> None:
    done = here.run("containers", verb, "999", first, "-y", "-o", "json")
    assert (done.code, [row["id"] for row in done.json]) == (1, [int(first)])
    assert "999" in done.errors
    assert here.run("containers", verb, "999", "-y").code == 66


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["get", "999"], 66, "404"),
        (["get", "x"], 2, "not a valid integer"),
        (["get"], 2, "Missing argument"),
        (["delete"], 2, "Missing argument"),
        (["wait", "999", "--until", "has-ssh"], 66, "container 999 does not exist"),
        (["wait", "999", "--until", "soon"], 2, "'soon' is no condition"),
        (["wait", "999", "--until", "status="], 2, "'status=' is no condition"),
        (["wait", "999", "--until", "gone=1"], 2, "'gone=1' is no condition"),
        (["create", "--name", "a"], 2, "Missing option"),
    ],
)
def test_mistake_with_a_container_has_its_code(here: Here, words: list[str], code: int, problem: str) -> None:
    done = here.run("containers", *words)
    assert done.code == code
    assert problem in done.errors


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["--gpus", "13"], 2, "--gpus: must be from 1 to 12"),
        (["--balance", "shells"], 2, "--balance: the profile has no number for 'shells'"),
        (["--auth", "999"], 66, "Auth"),
        (["--machine", "none"], 66, "Node not found"),
    ],
)
def test_create_that_cannot_be_has_its_code(here: Here, site: Site, words: list[str], code: int, problem: str) -> None:
    done = create(here, "mine", *words)
    assert (done.code, done.out, site.rented) == (code, b"", 0)
    assert problem in done.errors


@pytest.mark.parametrize("form", ["table", "json"])
def test_create_with_a_lost_answer_is_125_and_says_what_to_look_for(here: Here, site: Site, form: str) -> None:
    site.emulator.faults.add(Fault("drop", call="create_container", when="after"))
    done = create(here, "mine", "-o", form)
    assert (done.code, done.out, site.rented) == (125, b"", 1)
    assert "a container 'mine' may have been created: look for it in `rentgpu containers list`" in done.errors
    if form == "json":
        assert done.problem["exit_code"] == 125
    assert here.run("containers", "delete", "1001", "-y").code == 0


def test_create_that_is_interrupted_is_125_and_says_what_to_look_for(here: Here, site: Site) -> None:
    site.measured = False
    here.run("auths", "ensure", "--password-file", "-", given=canaries.PASSWORD.encode())
    site.emulator.faults.add(Fault("hang", call="create_container"))
    process = site.start(
        *("containers", "create", "--name", "mine", "--auth", "1", "--machine", "node-se-0012", "--image", "1")
    )
    until_sync(lambda: not site.emulator.faults.unmet)
    process.send_signal(signal.SIGTERM)
    done = site.end(process)
    assert done.code == 125
    assert "a container 'mine' may have been created" in done.errors


# Waits.


@pytest.mark.parametrize("until", ["ready", "reachable", "has-ssh", "has_ssh", "status=1", None])
def test_wait_ends_once_each_container_meets_the_condition(here: Here, first: str, until: str | None) -> None:
    other = str(create(here, "other", "-o", "json").json["id"])
    words = [] if until is None else ["--until", until]
    done = here.run("containers", "wait", first, other, first, *words, "-o", "json")
    assert done.code == 0, done.errors
    assert [row["name"] for row in done.json] == ["mine", "other"]
    assert "waiting for 2 of 2 containers: " in done.errors
    assert canaries.PASSWORD not in done.text + done.errors


def test_wait_until_a_container_is_gone_ends_then(here: Here, site: Site, first: str) -> None:
    process = site.start("containers", "wait", first, "--until", "gone", "-o", "json")
    assert process.stderr is not None
    assert process.stderr.readline() == f"waiting for container {first}: gone\n".encode()
    assert here.run("containers", "delete", first, "-y").code == 0
    assert site.end(process).code == 0


@pytest.mark.parametrize("site", [{"boot_seconds": 1000}], indirect=True)
@pytest.mark.parametrize("until", ["ready", "reachable", "has-ssh", "status=7"])
def test_wait_ends_with_124_after_the_timeout(here: Here, first: str, until: str) -> None:
    done = here.run("containers", "wait", first, "--until", until, "--timeout", "1s", "-o", "json")
    assert (done.code, done.json) == (124, [])
    assert "within 1 s: container" in done.errors


def test_wait_prints_what_has_arrived_beside_a_failure(here: Here, first: str) -> None:
    done = here.run("containers", "wait", first, "999", "-o", "json")
    assert (done.code, [row["id"] for row in done.json]) == (1, [int(first)])
    done = here.run("containers", "wait", first, "--until", "status=77", "--timeout", "1s")
    assert done.code == 124


@pytest.mark.parametrize("site", [{"world": World(members="new")}], indirect=True)
def test_wait_for_a_status_takes_the_name_that_the_profile_gives(here: Here, site: Site, first: str) -> None:
    assert here.run("containers", "wait", first, "--until", "has-ssh").code == 0
    status = here.run("containers", "get", first, "-o", "json").json["status"]
    with (site.folder / "profile.toml").open("a") as file:
        file.write(f"container_statuses = {{up = {status}}}\n")
    done = here.run("containers", "wait", first, "--until", "status=UP")
    assert done.code == 0, done.errors
    assert "\tup\t" in done.text


# Watches.


def test_watch_in_a_pipe_prints_a_line_of_json_for_each_change(here: Here, site: Site, first: str) -> None:
    assert here.run("containers", "wait", first, "--until", "has-ssh").code == 0
    process = site.start("containers", "watch", first)
    assert process.stdout is not None
    row = json.loads(process.stdout.readline())
    assert (row["change"], row["id"], row["name"]) == ("new", int(first), "mine")
    assert here.run("containers", "stop", first, "-y").code == 0
    row = json.loads(process.stdout.readline())
    assert (row["change"], row["status"]) == ("changed", 2)
    assert here.run("containers", "delete", first, "-y").code == 0
    # It ends, because all that it watches is gone.
    done = site.end(process)
    assert (done.code, json.loads(done.out.splitlines()[-1])["change"]) == (0, "gone")


def test_watch_of_all_goes_on_until_a_signal(here: Here, site: Site) -> None:
    process = site.start("containers", "watch", "-o", "csv")
    assert process.stdout is not None
    row = create(here, "mine", "-o", "json").json
    assert json.loads(process.stdout.readline()) | row == {"change": "new"} | row
    assert here.run("containers", "delete", str(row["id"]), "-y").code == 0
    while json.loads(process.stdout.readline())["change"] != "gone":
        pass
    process.send_signal(signal.SIGINT)
    assert site.end(process).code == 130


def test_watch_of_a_container_that_is_not_there_ends_with_66(here: Here) -> None:
    done = here.run("containers", "watch", "999", "998", "999")
    assert (done.code, done.out) == (66, b"")
    assert "the account has no container 999, 998" in done.errors


def test_watch_redraws_its_table_on_a_terminal(here: Here, site: Site, first: str) -> None:
    words = [*PROGRAM, "containers", "watch"]
    with terminal(words, folder=site.folder, environment=site.environment) as shown:
        shown.until("1 container; Ctrl-C ends this view")
        shown.until("mine")
        assert here.run("containers", "delete", first, "-y").code == 0
        shown.until("no container; Ctrl-C")
        shown.type("\x03")
        assert shown.end() == 130
    assert "\x1b[?25h" in shown.shown  # the cursor is back

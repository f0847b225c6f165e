"""`rentals` and `budgets`: what is rented, longer, less, and what it has cost."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from command_line import Done, Here, Site
from until import until_sync

from netmind_rentgpu.emulator import Fault

pytestmark = pytest.mark.slow


@pytest.fixture
def rented(site: Site, here: Here) -> Iterator[str]:
    """The name of a detached rental with the label `mine`."""
    done = here.run("rent", "--gpu", "4090", "--ttl", "2h", "--label", "mine", "-d", "-q")
    assert done.code == 0, done.errors
    yield done.text.strip()
    site.emulator.faults.clear()
    here.run("rentals", "release", "mine", "-y")
    until_sync(site.has_ended)


def test_rental_is_listed_with_its_cost_its_end_and_who_enforces_it(site: Site, here: Here, rented: str) -> None:
    (row,) = here.run("rentals", "list", "-o", "json").json
    assert (row["name"], row["label"], row["stage"], row["currency"]) == (rented, "mine", "detached", "USD")
    assert (row["hourly_price"], row["max_cost"]) == (0.531, pytest.approx(1.062, abs=0.001))
    assert 0 <= row["spent"] < 0.1
    assert row["enforced_by"] == f"guardian {site.guardians()[0]}"
    end = datetime.fromisoformat(row["expires_at"])
    assert timedelta(hours=1, minutes=50) < end - datetime.now(UTC) < timedelta(hours=2)
    head, line = here.run("rentals", "list").text.splitlines()
    assert len(head.split("\t")) == len(line.split("\t"))
    # Moments are shown in local time, here in one that is far from UTC.
    shown = here.run("rentals", "show", TZ="Asia/Kolkata")
    assert "guardian" in shown.errors
    assert f"rentgpu rentals extend {rented}" in shown.errors


def test_rental_with_an_idle_timeout_is_listed_with_its_seconds(here: Here) -> None:
    assert here.run("rent", "--gpu", "4090", "--idle-timeout", "20m", "-d", "-q", "-o", "json").code == 0
    done = here.run("rentals", "list", "-o", "json")
    assert (done.code, [row["idle_timeout"] for row in done.json]) == (0, [1200])
    assert here.run("rentals", "release", "-y").code == 0


@pytest.mark.parametrize("words", [["show"], ["show", "mine"], ["show", "1001"]])
def test_rental_is_shown_by_name_label_or_container(here: Here, rented: str, words: list[str]) -> None:
    assert here.run("rentals", *words, "-o", "json").json["name"] == rented


def test_deadline_moves_later_and_never_earlier(here: Here, rented: str) -> None:
    done = here.run("rentals", "extend", "mine", "--ttl", "3h", "-o", "json")
    assert done.code == 0
    assert done.json["max_cost"] == pytest.approx(1.593, abs=0.01)
    assert "at most 1.59" in done.errors
    assert f"rentgpu rentals extend {rented}" in done.errors
    for words in (["--ttl", "1h"], ["--ttl", "1000h"], []):
        done = here.run("rentals", "extend", "mine", *words)
        assert (done.code, done.out) == (2, b"")


def test_release_needs_yes_where_no_terminal_is_and_says_what_dies(site: Site, here: Here, rented: str) -> None:
    for words in ([], ["--no-input"]):
        done = here.run("rentals", "release", "mine", *words)
        assert (done.code, done.out, site.rented) == (2, b"", 1)
        assert f"Delete {rented}: 1 x NVIDIA_GeForce_RTX_4090" in done.errors
        assert "cost so far" in done.errors
        assert "--yes" in done.errors
    done = here.run("rentals", "release", "mine", "-y", "-o", "json")
    assert (done.code, site.rented) == (0, 0)
    (row,) = done.json
    assert (row["name"], row["state"], row["container_id"]) == (rented, "released", 1001)


def test_release_of_what_is_gone_is_success_and_said(here: Here, rented: str) -> None:
    assert here.run("rentals", "release", "-y").code == 0
    for wanted in (rented, "mine", "1001", rented[:9]):
        done = here.run("rentals", "release", wanted, "-o", "json")
        assert (done.code, done.json[0]["state"]) == (0, "gone")
        assert "is gone already" in done.errors
    assert here.run("rentals", "release", "never-was").code == 66


def test_release_of_a_label_that_is_over_deletes_no_other_machine(site: Site, here: Here, rented: str) -> None:
    assert here.run("rentals", "release", "-y").code == 0
    other = here.run("rent", "--gpu", "4090", "--label", "mine-too", "-d", "-q").text.strip()
    # The label and the id of what is over are parts of the other's name, too, if it has these letters.
    for wanted in ("mine", "1001", rented):
        done = here.run("rentals", "release", wanted, "-y", "-o", "json")
        assert (done.code, [row["state"] for row in done.json], site.rented) == (0, ["gone"], 1)
    assert here.run("rentals", "release", other, "-y").code == 0


def test_extension_that_is_printed_works(here: Here, rented: str) -> None:
    shown = here.run("rentals", "show").errors
    words = shlex.split(shown.partition("rentgpu ")[2].strip())
    assert words[:3] == ["rentals", "extend", rented]
    done = here.run(*words)
    assert done.code == 0, done.errors
    assert "it cannot be extended" in done.errors


def test_release_of_several_goes_on_after_a_failure(here: Here, rented: str) -> None:
    done = here.run("rentals", "release", "never-was", "mine", "-y", "-o", "json")
    assert done.code == 1
    assert [row["state"] for row in done.json] == ["released"]
    assert "never-was" in done.errors
    assert rented


def test_failed_deletion_is_125_and_a_reap_mends_it(site: Site, here: Here, rented: str) -> None:
    site.emulator.faults.add(Fault("status", status=403, call="delete_container", times="all"))
    done = here.run("rentals", "release", "mine", "-y")
    assert (done.code, done.out) == (125, b"NAME\tSTATE\tCONTAINER\tSPENT\n")
    assert "costs money" in done.errors
    done = here.run("rentals", "reap", "-o", "json")
    assert done.code in (0, 125)
    site.emulator.faults.clear()
    done = here.run("rentals", "reap", "--wait")
    assert done.code == 0
    assert site.rented == 0
    assert rented


def test_rental_in_use_is_released_only_by_force(site: Site, here: Here) -> None:
    process = site.start("rent", "--gpu", "4090", "--", "echo held; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    done = here.run("rentals", "release", "-y")
    assert done.code == 1
    assert "in use" in done.errors
    assert here.run("rentals", "release", "-y", "--force").code == 0
    ended = site.end(process)
    assert ended.code == 74, ended.errors
    until_sync(site.has_ended)


def test_several_open_rentals_have_to_be_named(site: Site, here: Here, rented: str) -> None:
    other = here.run("rent", "--gpu", "3090", "-d", "-q").text.strip()
    done = here.run("rentals", "show")
    assert done.code == 2
    assert rented in done.errors
    assert other in done.errors
    assert here.run("rentals", "show", "rg-").code == 2
    assert here.run("rentals", "release", other, "-y").code == 0


def test_spending_is_by_label_gpu_and_day(here: Here, rented: str) -> None:
    assert here.run("rentals", "release", "-y").code == 0
    (row,) = here.run("rentals", "spend", "-o", "json").json
    assert (row["group"], row["currency"], row["rentals"], row["unknown"]) == ("mine", "USD", 1, 0)
    (row,) = here.run("rentals", "spend", "--by", "gpu", "--since", "1h", "-o", "json").json
    assert row["group"] == "NVIDIA_GeForce_RTX_4090"
    done = here.run("rentals", "spend", "--by", "day")
    assert f"{datetime.now(UTC):%Y-%m-%d}\t1\t0\t" in done.text
    assert "in all about" in done.errors
    assert here.run("rentals", "spend", "--until", "2020-01-01", "-o", "json").json == []
    assert rented


def test_watch_prints_each_change_as_a_line_of_json(site: Site, here: Here, rented: str) -> None:
    process = site.start("rentals", "watch", "--interval", "0.2s")
    assert process.stdout is not None
    row = json.loads(process.stdout.readline())
    assert (row["name"], row["stage"]) == (rented, "detached")
    assert here.run("rentals", "extend", "--ttl", "3h").code == 0
    assert json.loads(process.stdout.readline())["expires_at"] > row["expires_at"]
    assert here.run("rentals", "release", "-y").code == 0
    stages = [json.loads(process.stdout.readline())["stage"] for _ in range(1)]
    while stages[-1] != "over":
        stages.append(json.loads(process.stdout.readline())["stage"])
    process.send_signal(signal.SIGTERM)
    assert site.end(process) == Done(143, b"", "")


def test_budget_is_set_kept_to_and_removed(site: Site, here: Here) -> None:
    assert here.run("budgets", "set", "team", "1.5", "--per", "month", "-o", "json").json["limit"] == 1.5
    assert here.run("budgets", "set", "team", "0.7", "--hourly", "12").code == 0
    (row,) = here.run("budgets", "list", "-o", "json").json
    assert (row["name"], row["limit"], row["hourly"], row["per"], row["holders"]) == ("team", 0.7, 12, None, [])
    done = here.run("rent", "--gpu", "4090", "--ttl", "2h", "--shared-budget", "team", "--", "true")
    assert done.code == 79
    assert "rentgpu budgets" in done.errors
    assert here.run("rent", "--gpu", "4090", "--ttl", "1h", "--shared-budget", "team", "-d", "-q").code == 0
    done = here.run("budgets", "remove", "team", "-y")
    assert done.code == 1
    assert "has open rentals" in done.errors
    assert here.run("rentals", "release", "-y").code == 0
    assert here.run("budgets", "remove", "team").code == 2
    assert here.run("budgets", "remove", "team", "-y").code == 0
    done = here.run("budgets", "remove", "team")
    assert (done.code, "gone already" in done.errors) == (0, True)
    assert here.run("budgets", "set", "nothing").code == 2
    until_sync(site.has_ended)

"""`rentgpu rent`: streams, exit codes, files, jobs, and a machine that is given back in every case."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Here, Site
from until import until_sync

from netmind_rentgpu.emulator import Fault

pytestmark = pytest.mark.slow

RENT = ("rent", "--gpu", "4090", "--ttl", "2h")


def test_command_has_its_own_streams_and_status_and_the_machine_is_given_back(site: Site) -> None:
    done = site.run(*RENT, "--", "sh", "-c", "printf 'out\\377\\n'; echo err >&2; exit 3")
    assert (done.code, done.out) == (3, b"out\xff\n")
    preview, *_, written, last = done.errors.splitlines()
    assert "1 x NVIDIA_GeForce_RTX_4090 on node-" in preview
    assert "at most 1.062 USD until" in preview
    assert "enforced by process " in done.errors
    assert "rentgpu rentals extend rg-" in done.errors
    assert written == "err"
    assert last.startswith("ran ")
    assert last.endswith("the machine is given back")
    assert site.rented == 0


@pytest.mark.parametrize(
    ("words", "given", "code", "out"),
    [
        # Several words are quoted, a single one is a line for the shell.
        (["printf", "%s|", "a b", "$HOME", "*"], b"", 0, b"a b|$HOME|*|"),
        (["echo $((20 + 3)) | tr 2 x"], b"", 0, b"x3\n"),
        (["cat"], b"\x00\xff" * 50_000, 0, b"\x00\xff" * 50_000),
        (["head", "-c", "3"], b"abc" * 100_000, 0, b"abc"),
        (["true"], b"unread" * 100_000, 0, b""),
        (["kill -KILL $$"], b"", 137, b""),
        (["exit 125"], b"", 125, b""),
        (["test -t 0 || test -t 1 || echo none"], b"", 0, b"none\n"),
    ],
)
def test_bytes_and_status_pass_unchanged(here: Here, words: list[str], given: bytes, code: int, out: bytes) -> None:
    done = here.run(*RENT, "-q", "--", *words, given=given)
    assert (done.code, done.out, done.errors) == (code, out, "")


def test_uploads_are_the_working_folder_and_downloads_come_after_a_failure(site: Site) -> None:
    for path in ("train.py", "data/a.csv", "data/b.txt", ".git/config", ".venv/pyvenv.cfg", "sub/.git/config"):
        (site.folder / "project" / path).parent.mkdir(parents=True, exist_ok=True)
        (site.folder / "project" / path).write_text(path)
    words = [
        "--upload",
        ".",
        "--upload",
        "../more",
        "--exclude-file",
        "*.csv",
        "--download",
        "out",
        "--download",
        "log",
    ]
    (site.folder / "more").mkdir()
    (site.folder / "more" / "x").write_text("x")
    script = "find . -type f | sort; mkdir out; echo $A $B > out/result; echo line > log; exit 9"
    process = subprocess.Popen(
        [sys.executable, "-m", "netmind_rentgpu", *RENT, *words, "--env", "A=1 2", "--env", "B", "--", script],
        cwd=site.folder / "project",
        env={**site.environment, "B": "from here"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    done = site.end(process)
    assert done.code == 9, done.errors
    assert done.text.split() == ["./data/b.txt", "./more/x", "./train.py"]
    assert "uploading . without .git, .venv, *.csv: 2 files, 18 bytes" in done.errors
    assert (site.folder / "project" / "out" / "result").read_text() == "1 2 from here\n"
    assert (site.folder / "project" / "log").read_text() == "line\n"


def test_download_that_is_missing_after_a_success_is_not_all_done(site: Site, here: Here) -> None:
    done = here.run(*RENT, "--download", "missing", "--download", "there", "--", "echo x > there")
    assert done.code == 1
    assert "missing" in done.errors
    assert (site.folder / "there").read_text() == "x\n"


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["--upload", "missing", "--", "true"], 66, "there is no file or folder 'missing' here"),
        (["--download", "..", "--", "true"], 2, "it has no name"),
        (["--until", "2020-01-01", "--", "true"], 2, "has passed"),
        (["--ttl", "1h", "--until", "18:30", "--", "true"], 2, "say the same thing"),
        (["-d", "-t", "--", "true"], 2, "goes with neither"),
        (["-d", "--download", "x", "--", "true"], 2, "goes with neither"),
        ([], 2, "no terminal is here"),
        (["-t", "--", "true"], 2, "no terminal is here"),
        (["--"], 2, "is empty"),
        (["--", " "], 2, "is empty"),
        (["true"], 2, "unexpected extra argument"),
        (["--env", "1A=2", "--", "true"], 2, "is no name of a variable"),
        (["--env", "UNSET_HERE", "--", "true"], 2, "is not set here"),
        (["--report", "no/such/folder", "--", "true"], 2, "cannot be written"),
        (["--image", "no such image", "--", "true"], 2, "--image: no official or own image"),
        (["--gpu", "no such gpu", "--", "true"], 2, "--gpu: no GPU is called"),
        (["--env", "UID=1000", "--", "true"], 2, "--env: UID cannot be set"),
        (["--env", "A=1", "-d"], 2, "--env goes with a command"),
        (["--exclude-file", "*", "--", "true"], 2, "goes with --upload"),
        (["--download", "a/x", "--download", "b/x", "--", "true"], 2, "would be called 'x'"),
        (["--upload", ".", "--upload", ".", "--", "true"], 2, "would be called '.'"),
        (["--budget", "0", "--", "true"], 2, "--budget: must be above 0"),
        (["--max-price", "0.0001", "--", "true"], 75, "rentgpu offers"),
    ],
)
def test_mistake_is_found_before_anything_is_rented(
    site: Site, here: Here, words: list[str], code: int, problem: str
) -> None:
    done = here.run("rent", *words)
    assert (done.code, done.out) == (code, b"")
    assert problem in done.errors
    assert len(site.emulator.requests.of("create_container")) == 0


def test_time_that_is_up_ends_the_command_with_124(here: Here) -> None:
    done = here.run("rent", "--gpu", "4090", "--ttl", "6s", "--", "echo begun; sleep 1000")
    # The command may not have begun, if this machine is slow.
    assert (done.code, done.out in (b"begun\n", b"")) == (124, True)
    assert "is up" in done.errors
    assert "the machine is given back" in done.errors


def test_detached_command_goes_on_and_the_machine_is_given_back_at_its_end(site: Site) -> None:
    # The pipe ends with the program, because the guardian does not hold it.
    done = site.shell(
        'name=$(rentgpu rent --gpu 4090 -q -d --env A=1 -- "until [ -e go ]; do sleep 0.1; done"); echo "<$name>"'
    )
    assert done.code == 0
    name = done.text.strip().strip("<>")
    assert name.startswith("rg-")
    assert (done.errors, site.rented) == ("", 1)
    (job,) = site.run("jobs", "list", name, "-o", "json").json
    assert (job["state"], job["command"]) == ("running", "until [ -e go ]; do sleep 0.1; done")
    assert site.run("run", "--", "touch go").code == 0
    until_sync(site.has_ended)
    (past,) = site.run("rentals", "spend", "-o", "json").json
    assert past["rentals"] == 1


def test_detached_machine_without_a_command_stays_until_it_is_released(site: Site, here: Here) -> None:
    done = here.run(*RENT, "-d", "--label", "mine", "-o", "json")
    assert done.code == 0, done.errors
    assert (done.json["label"], done.json["job"]) == ("mine", None)
    assert here.run("rentals", "release", "mine", "--yes").code == 0
    until_sync(site.has_ended)


def test_detached_machine_whose_name_cannot_be_printed_is_given_back(site: Site) -> None:
    with Path("/dev/full").open("wb") as full:
        done = site.run(*RENT, "-d", "--", "sleep 1000", stdout=full)
    assert done.code == 74
    assert "No space left on device" in done.errors
    until_sync(site.has_ended)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("rentgpu rent --gpu 4090 -- yes | head -1; exit ${PIPESTATUS[0]}", 141),
        ("rentgpu rent --gpu 4090 -- yes > /dev/full", 74),
        ("rentgpu rent --gpu 4090 -- 'echo err >&2; exit 4' 2>&-", 4),
        pytest.param("rentgpu rent --gpu 4090 -- 'echo err >&2; exit 4' 2>/dev/full", 4, marks=pytest.mark.full),
        ("rentgpu rent --gpu 4090 -- 'echo out; exit 4' >&-", 4),
        pytest.param("rentgpu rent --gpu 4090 -- 'cat; exit 4' <&-", 4, marks=pytest.mark.full),
        # As nohup does at a terminal.
        ("rentgpu rent --gpu 4090 -- 'cat; exit 4' 0>/dev/null", 4),
        ("(rentgpu rent --gpu 4090 -- 'sleep 1; echo err >&2; exit 4'; echo $? >&3) 3>&1 2>&1 >/dev/null | head -0", 0),
    ],
)
def test_streams_that_are_gone_leave_nothing_rented(site: Site, script: str, code: int) -> None:
    done = site.shell(script)
    assert done.code == code, done.errors
    assert "Traceback" not in done.errors
    until_sync(site.has_ended)


@pytest.mark.parametrize(
    ("command", "code", "origin"),
    [("exit 75", 75, "command"), ("kill -TERM $$", 143, "command"), ("true", 0, "command")],
)
def test_report_tells_a_status_of_the_command_from_ours(
    site: Site, here: Here, command: str, code: int, origin: str
) -> None:
    assert here.run(*RENT, "--label", "l", "--report", "report.json", "--", command).code == code
    report = json.loads((site.folder / "report.json").read_text())
    assert (report["exit_code"], report["origin"], report["label"]) == (code, origin, "l")
    assert report["name"].startswith("rg-")
    assert report["spent"] > 0
    assert (report["still_rented"], report["error"]) == ([], None)


def test_report_of_a_failure_has_its_error(site: Site, here: Here) -> None:
    assert here.run("rent", "--max-price", "0.0001", "--report", "report.json", "--", "true").code == 75
    report = json.loads((site.folder / "report.json").read_text())
    assert (report["origin"], report["exit_status"], report["name"]) == ("rentgpu", None, None)
    assert report["error"]["error"] == "NoMachineError"


def test_run_whose_creates_are_refused_says_nothing_of_a_machine_that_is_given_back(site: Site, here: Here) -> None:
    site.emulator.faults.add(Fault("status", status=409, call="create_container", times="all"))
    done = here.run(*RENT, "--", "true")
    assert (done.code, done.out) == (75, b""), done.errors
    assert "given back" not in done.errors
    assert "ran " not in done.errors


def test_machine_that_cannot_be_deleted_is_said_and_beats_the_commands_status(site: Site) -> None:
    site.emulator.faults.add(Fault("status", status=403, call="delete_container"))
    done = site.run(*RENT, "--report", "report.json", "--", "exit 0")
    assert done.code == 125
    assert "may still be rented" in done.errors
    assert "rentgpu rentals reap" in done.errors
    report = json.loads((site.folder / "report.json").read_text())
    assert (report["exit_code"], report["origin"], report["exit_status"]) == (125, "rentgpu", 0)
    assert report["still_rented"] == [report["name"]]
    assert report["error"]["error"] in ("ReleaseError", "StillRentedError")
    site.emulator.faults.clear()
    until_sync(site.has_ended)


def test_report_of_a_run_that_could_not_begin_replaces_an_older_one(site: Site, here: Here) -> None:
    (site.folder / "report.json").write_text('{"exit_code": 0}')
    assert here.run("rent", "--report", "report.json", "--", "true", NETMIND_API_KEY="").code == 78
    report = json.loads((site.folder / "report.json").read_text())
    assert (report["exit_code"], report["error"]["error"]) == (78, "ConfigurationError")


def test_report_that_cannot_be_written_hides_no_other_code(site: Site, here: Here) -> None:
    for command, code in (("exit 3", 3), ("true", 74)):
        done = here.run(*RENT, "--report", "/dev/full", "--", command)
        assert done.code == code
        assert "could not write the report to /dev/full" in done.errors
    site.emulator.faults.add(Fault("status", status=403, call="delete_container", times="all"))
    assert site.run(*RENT, "--report", "/dev/full", "--", "true").code == 125
    site.emulator.faults.clear()
    until_sync(site.has_ended)


@pytest.mark.parametrize("when", ["before", "after"])
def test_lost_answer_of_a_create_is_waited_out_and_is_no_machine_that_is_left(
    site: Site, here: Here, when: str
) -> None:
    site.emulator.faults.add(
        Fault("status", status=502, call="create_container", when="after" if when == "after" else "before")
    )
    done = here.run(*RENT, "--", "echo used")
    # There is one such machine, and a create that was not done is not done again before it is certain.
    assert (done.code, done.out) == ((0, b"used\n") if when == "after" else (75, b"")), done.errors
    assert "may still be rented" not in done.errors
    assert site.rented == 0


def test_stderr_that_is_not_read_keeps_no_machine(site: Site) -> None:
    site.measured = False
    reading, writing = os.pipe()
    process = site.start(*RENT, "--", "echo held; yes >&2", stderr=writing)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    until_sync(lambda: not select.select([], [writing], [], 0)[1])
    process.terminate()
    assert process.wait(60) == 143
    assert site.rented == 0
    process.stdout.close()
    os.close(reading)
    os.close(writing)


def test_preview_lists_each_offer_with_its_highest_cost(site: Site, here: Here) -> None:
    rows = here.run(*RENT, "--budget", "0.5", "--dry-run", "-o", "json").json
    offers = here.run("offers", "--gpu", "4090", "-o", "json").json
    assert [row["node_name"] for row in rows] == [row["node_name"] for row in offers]
    assert {row["max_cost"] for row in rows} == {0.5}
    rows = here.run(*RENT, "--dry-run", "-o", "json").json
    assert [row["max_cost"] for row in rows] == pytest.approx([2 * row["hourly_price"] for row in rows])
    assert len(site.emulator.requests.of("create_container")) == 0


def test_quiet_run_says_nothing_of_its_own(here: Here) -> None:
    done = here.run(*RENT, "-q", "--", "echo out; echo err >&2")
    assert (done.code, done.out, done.errors) == (0, b"out\n", "err\n")


def test_state_file_that_cannot_grow_rents_nothing_or_gives_it_back(site: Site, full: bool) -> None:
    site.measured = False
    assert site.run(*RENT, "--", "true").code == 0
    largest = max(path.stat().st_size for path in site.folder.glob("state.sqlite3*"))
    for kilobytes in range(0, largest // 1024 + 60, 20 if full else 50):
        done = site.shell(f"ulimit -f {kilobytes}; rentgpu rent --gpu 4090 -- echo used")
        assert (done.code, done.out) in ((74, b""), (0, b"used\n")), done.errors
        assert "Traceback" not in done.errors
        until_sync(site.has_ended)

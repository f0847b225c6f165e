"""`ssh`, `run`, `cp`, `forward`, `jobs` and `logs` on a machine that is rented already."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import Here, Site, serving
from until import until_sync

from netmind_rentgpu import RentGPU
from netmind_rentgpu.emulator import Fault

# In one group, because each worker would rent a machine for this file otherwise.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("machines")]


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service with one detached rental, whose label is `mine`, for all tests of this file."""
    with serving(tmp_path_factory.mktemp("site")) as site:
        assert site.run("rent", "--gpu", "4090", "--label", "mine", "-d", "-q").code == 0
        yield site
        assert site.run("rentals", "release", "mine", "-y").code == 0
        until_sync(site.has_ended)


@pytest.fixture
def site(module_site: Site, tmp_path: Path) -> Site:
    """The service, and a folder of the test's own."""
    return module_site.in_folder(tmp_path)


@pytest.mark.parametrize("words", [["run", "mine"], ["run"], ["ssh", "mine"], ["ssh"], ["run", "1001"], ["run", "rg-"]])
def test_command_runs_on_the_machine_that_is_meant(here: Here, words: list[str]) -> None:
    done = here.run(*words, "--", "cat; echo err >&2; exit 3", given=b"in\x00")
    assert (done.code, done.out, done.errors) == (3, b"in\x00", "err\n")


def test_variables_and_timeout_of_a_command(here: Here) -> None:
    done = here.run("run", "mine", "--env", "A=1 2", "--env", "B", "--", "echo $A $B", B="b")
    assert (done.code, done.out) == (0, b"1 2 b\n")
    done = here.run("run", "mine", "--timeout", "1s", "--", "echo begun; sleep 1000")
    # The command may not have begun, if this machine is slow.
    assert (done.code, done.out in (b"begun\n", b"")) == (124, True)


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["run", "mine"], 2, "there is no command"),
        (["ssh", "mine"], 2, "no terminal is here"),
        (["ssh", "no-such", "--", "true"], 66, "no rental 'no-such' is on record"),
        (["run", "999", "--", "true"], 66, "999"),
        (["cp", "a", "b"], 2, "one side of a copy is on a machine"),
        (["cp", "mine:a", "other:b"], 2, "one side of a copy is on a machine"),
        (["cp", "mine:a", "other:b", "."], 2, "one side of a copy is on a machine"),
        (["cp", "no-such-file", "mine:"], 66, "no file or folder 'no-such-file'"),
        (["cp", "mine:no-such-file", "."], 74, "no-such-file"),
        (["cp", "mine:no-such-file", "-"], 74, "No such file"),
        (["cp", "mine:a", "mine:b", "missing-folder"], 2, "need a folder"),
        (["cp", "-", "profile.toml", "mine:x"], 2, "copied alone"),
        (["cp", "mine:x", ".", "--exclude-file", "*"], 2, "goes with a copy to a machine"),
        (["forward", "x"], 2, "is no port"),
        (["forward", "mine", "x"], 2, "is no port"),
        (["forward", "mine", "70000"], 2, "is no port"),
        (["logs", "mine", "no-such-job"], 66, "no job no-such-job"),
        (["logs", "mine", "x", "--since", "1h", "--tail", "3"], 2, "say where to begin"),
    ],
)
def test_mistake_has_its_code(
    here: Here,
    words: list[str],
    code: int,
    problem: str,
) -> None:
    done = here.run(*words)
    assert (done.code, done.out) == (code, b"")
    assert problem in done.errors


def test_copies_go_both_ways_as_with_cp(site: Site, here: Here) -> None:
    folder = site.folder
    (folder / "tree" / "sub").mkdir(parents=True)
    (folder / "tree" / "sub" / "b.bin").write_bytes(b"\x00\xff" * 1000)
    (folder / "tree" / "skip.csv").write_text("x")
    (folder / "a:b").write_text("colon")
    assert here.run("cp", "tree", "mine:copy", "--exclude-file", "*.csv").code == 0
    # Into a folder that is there, under its own name.
    assert here.run("cp", "tree", "./a:b", "mine:copy").code == 0
    assert here.run("run", "--", "cd copy; find . -type f | sort").text.split() == [
        *("./a:b", "./sub/b.bin", "./tree/skip.csv", "./tree/sub/b.bin")
    ]
    assert here.run("cp", ":copy/sub", "back").code == 0
    assert (folder / "back" / "b.bin").read_bytes() == b"\x00\xff" * 1000
    assert here.run("cp", "mine:copy/a:b", "mine:copy/sub", ".").code == 0
    assert (folder / "sub" / "b.bin").exists()
    big = bytes(range(256)) * 20_000
    assert here.run("cp", "-", "mine:~/stream", given=big).code == 0
    assert here.run("cp", "-", "mine:copy", given=b"x").code == 2
    assert here.run("cp", "-", "mine:-x", given=b"dash").code == 0
    assert here.run("cp", ":-x", "-").out == b"dash"
    assert here.run("cp", "mine:stream", "-").out == big
    done = site.shell("rentgpu cp mine:stream - | head -c 3; exit ${PIPESTATUS[0]}")
    assert (done.code, done.out, done.errors) == (141, big[:3], "")
    with Path("/dev/full").open("wb") as full:
        done = site.run("cp", "mine:stream", "-", stdout=full)
    assert (done.code, "No space left" in done.errors) == (74, True)


def test_ports_are_forwarded_until_a_signal_and_over_a_lost_connection(site: Site) -> None:
    site.emulator.faults.add(Fault("ssh drop", after_bytes=60_000))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = site.start("forward", "mine", f"0:{port}", "-o", "jsonl")
        assert process.stdout is not None
        assert process.stderr is not None
        row = json.loads(process.stdout.readline())
        assert (row["remote_port"], row["name"][:3]) == (port, "rg-")
        assert b"until Ctrl-C" in process.stderr.readline()
        greet(server, row["local_port"])
        with socket.create_connection(("127.0.0.1", row["local_port"]), timeout=60) as client:
            server.accept()[0].close()
            with suppress(OSError):
                client.sendall(bytes(200_000))
        assert b"lost the connection" in process.stderr.readline()
        assert b"until Ctrl-C" in process.stderr.readline()
        greet(server, row["local_port"])
        process.send_signal(signal.SIGINT)
        assert site.end(process).code == 130


def greet(server: socket.socket, port: int) -> None:
    """Connect to a forwarded port, and get an answer from the server."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"hello")
            accepted.shutdown(socket.SHUT_WR)
            assert client.makefile("rb").read() == b"hello"


def test_jobs_are_listed_followed_waited_for_stopped_and_removed(site: Site, here: Here) -> None:
    name = here.run(
        "rent", "--gpu", "4090", "-d", "-q", "--", "echo out; echo err >&2; until [ -e go ]; do sleep 0.1; done; exit 7"
    ).text.strip()
    (job,) = here.run("jobs", "list", name, "-o", "json").json
    assert (job["state"], job["exit_status"], job["machine"]) == ("running", None, name)
    following = site.start("logs", name, "-f")
    waiting = site.start("jobs", "wait", name)
    # Both are logged in now, because the machine is given back soon after the job's end.
    assert following.stdout is not None
    assert waiting.stderr is not None
    assert following.stdout.readline() == b"out\n"
    assert waiting.stderr.readline().startswith(b"waiting for job")
    assert here.run("jobs", "wait", name, "--timeout", "1s").code == 124
    assert here.run("jobs", "remove", name, "-y").code == 1
    done = here.run("logs", name, "--tail", "5")
    assert (done.code, done.out, done.errors) == (0, b"out\n", "err\n")
    lines = [json.loads(line) for line in here.run("logs", name, "-o", "jsonl").text.splitlines()]
    assert {(line["text"], line["stream"]) for line in lines} == {("out", "stdout"), ("err", "stderr")}
    assert len(here.run("logs", name, job["name"], "-o", "json", "--since", "1h").json) == 2
    assert here.run("run", name, "--", "touch go").code == 0
    assert site.end(waiting).code == 7
    done = site.end(following)
    assert (done.code, done.out) == (0, b"")
    until_sync(lambda: site.rented == 1)


def test_job_is_stopped_only_with_yes_where_no_terminal_is(site: Site, here: Here) -> None:
    name = here.run("rent", "--gpu", "4090", "-d", "-q", "--", "sleep 1000").text.strip()
    done = here.run("jobs", "stop", name)
    assert done.code == 2
    assert "is ended: sleep 1000" in done.errors
    assert "--yes" in done.errors
    done = here.run("jobs", "stop", name, "-y", "-o", "json")
    assert done.code == 0, done.errors
    assert [row["state"] for row in done.json] == ["signaled"]
    until_sync(lambda: site.rented == 1)


def test_job_that_is_over_is_removed_and_one_that_is_gone_is_no_error(site: Site, here: Here) -> None:
    # By its label, because another test's rental may still be on record.
    row = here.run("rentals", "show", "mine", "-o", "json").json
    state = site.environment["NETMIND_RENTGPU_STATE"]
    with RentGPU(site.emulator.token, base_url=site.emulator.url, state=state) as gpu:
        with gpu.ssh(row["container_id"]) as shell:
            shell.start("echo over", name="over").wait()
    assert "over" in here.run("jobs", "list", "mine").text
    assert here.run("jobs", "wait", "mine", "over", "-o", "json").json[0]["exit_status"] == 0
    done = here.run("jobs", "remove", "mine", "over")
    assert (done.code, "5 bytes" in done.errors, "--yes" in done.errors) == (2, True, True)
    assert here.run("jobs", "remove", "mine", "over", "-y").code == 0
    done = here.run("jobs", "remove", "mine", "over", "-y")
    assert (done.code, "is gone already" in done.errors) == (0, True)
    assert here.run("logs", "mine").code == 66

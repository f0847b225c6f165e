"""Signals to `rentgpu rent` at any moment: the program or its guardian deletes the machine, without a reaper."""

from __future__ import annotations

import random
import signal
import subprocess
import time

import pytest
from command_line import Done, Site
from until import until_sync

from netmind_rentgpu.emulator import Fault

pytestmark = pytest.mark.slow

RENT = ("rent", "--gpu", "4090", "--ttl", "2h", "--")
HOLD = (*RENT, "echo held; sleep 1000")
IGNORING = ("/bin/sh", "-c", 'trap "" $0; exec "$@"')


@pytest.fixture(autouse=True)
def unmeasured(site: Site) -> None:
    site.measured = False


def held(site: Site, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """Start a run, and wait until its command runs."""
    process = site.start(*words, before=before)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == b"held\n", process.communicate()
    return process


def ended_by(site: Site, process: subprocess.Popen[bytes], number: int) -> Done:
    process.send_signal(number)
    return site.end(process)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_signal_at_any_moment_leaves_nothing_rented(
    site: Site, name: str, full: bool, pytestconfig: pytest.Config
) -> None:
    """`--full` sends six, and `--crash-stride=1` sixty."""
    number, drawn = signal.Signals[name], random.Random(name)
    began = time.monotonic()
    assert site.run(*RENT, "true").code == 0
    whole = time.monotonic() - began
    for _ in range(60 if pytestconfig.getoption("--crash-stride") == 1 else 6 if full else 1):
        process = site.start(*HOLD)
        moment = drawn.uniform(0, 1.5 * whole)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(moment)
        done = ended_by(site, process, number)
        until_sync(site.has_ended)
        # Before the program has begun to handle signals, it dies of them.
        assert done.code in (-number, *(() if name == "SIGKILL" else (128 + number,))), done.errors
        assert "Traceback" not in done.errors
        if done.code == 128 + number and "created" in done.errors:
            assert f"rentgpu: {name}: giving back rg-" in done.errors
            assert "the machine is given back" in done.errors


@pytest.mark.parametrize(
    ("first", "second"),
    [("SIGINT", "SIGINT"), ("SIGHUP", "SIGTERM"), pytest.param("SIGTERM", "SIGINT", marks=pytest.mark.full)],
)
def test_second_signal_ends_at_once_with_125_and_the_guardian_goes_on(site: Site, first: str, second: str) -> None:
    process = held(site, *HOLD)
    site.emulator.faults.add(Fault("slow", call="delete_container", seconds=3))
    process.send_signal(signal.Signals[first])
    assert process.stderr is not None
    said = b""
    while b"giving back" not in said:
        said += process.stderr.readline()
    while process.poll() is None:
        # Those within half a second count as the first.
        process.send_signal(signal.Signals[second])
        time.sleep(0.05)
    done = site.end(process)
    assert done.code == 125, done.errors
    assert f"{first}: giving back".encode() in said
    assert "may still be rented; the guardian goes on deleting it" in done.errors
    until_sync(site.has_ended)


def test_two_signals_at_once_count_as_one(site: Site) -> None:
    # As `timeout` sends them.
    process = held(site, *HOLD)
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
    done = site.end(process)
    assert done.code == 143, done.errors
    assert done.errors.count("giving back") == 1
    assert site.rented == 0


@pytest.mark.parametrize(
    ("ignored", "other"), [("INT", "TERM"), ("HUP", "INT"), pytest.param("TERM", "HUP", marks=pytest.mark.full)]
)
def test_signal_that_was_ignored_at_the_start_stays_so(site: Site, ignored: str, other: str) -> None:
    process = held(site, *RENT, "echo held; read line; echo $line; sleep 1000", before=(*IGNORING, ignored))
    process.send_signal(signal.Signals[f"SIG{ignored}"])
    assert site.run("rentals", "list", "-o", "json").json[0]["stage"] == "ready"
    done = ended_by(site, process, signal.Signals[f"SIG{other}"])
    assert done.code == 128 + signal.Signals[f"SIG{other}"]
    assert f"SIG{ignored}" not in done.errors
    assert site.rented == 0


def test_program_under_nohup_goes_on_without_its_terminal(site: Site) -> None:
    process = held(site, *RENT, "echo held; sleep 1; exit 5", before=("nohup",))
    assert ended_by(site, process, signal.SIGHUP).code == 5
    assert site.rented == 0


def test_program_in_the_background_of_a_script_is_not_interrupted(site: Site) -> None:
    script = "rentgpu rent --gpu 4090 -- 'echo held; sleep 1; exit 6' > out & process=$!"
    done = site.shell(f"{script}; until [ -s out ]; do sleep 0.1; done; kill -INT $process; wait $process")
    assert done.code == 6
    assert "SIGINT" not in done.errors


def test_signal_while_the_machine_starts_gives_it_back(site: Site) -> None:
    site.emulator.faults.add(Fault("never starts"))
    process = site.start(*HOLD)
    until_sync(lambda: site.rented)
    done = ended_by(site, process, signal.SIGINT)
    assert (done.code, done.out) == (130, b"")
    assert "giving back" in done.errors
    assert site.rented == 0


def test_signal_during_an_upload_gives_the_machine_back(site: Site) -> None:
    with (site.folder / "large").open("wb") as file:
        file.truncate(2**30)
    site.emulator.faults.add(Fault("ssh bandwidth", bytes_per_second=500_000, times="all"))
    process = site.start("rent", "--gpu", "4090", "--upload", "large", "--", "true")
    assert process.stderr is not None
    said = b""
    while b"uploading" not in said:
        said += process.stderr.readline()
    done = ended_by(site, process, signal.SIGTERM)
    assert done.code == 143
    assert site.rented == 0

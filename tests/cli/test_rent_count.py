"""`rentgpu rent --count`: a command on several machines, and the worst exit code; and machines that idle or are missing."""

from __future__ import annotations

import json
import random
import signal

import pytest
from command_line import Here, Site
from short_forms import thinned
from until import until_sync

from netmind_rentgpu import RentGPU
from netmind_rentgpu.cli.fleet_run import PrefixedLines
from netmind_rentgpu.emulator import Fault

RENT = ("rent", "--gpu", "4090", "--ttl", "2h")


@pytest.mark.parametrize("seed", range(5))
async def test_each_line_has_its_prefix_however_it_is_cut(seed: int) -> None:
    chance, written = random.Random(seed), b""

    async def write(data: bytes) -> None:
        nonlocal written
        # Whole lines alone, so that those of others do not mix in.
        assert data.endswith(b"\n")
        written += data

    text = b"one\n\ntwo \xff\r50 %\rthree\n last"
    lines, rest = PrefixedLines("[3] ", write), text
    while rest:
        size = chance.choice((1, 2, 5, 100))
        await lines.write(rest[:size])
        rest = rest[size:]
    await lines.finish()
    await lines.finish()
    assert written == b"[3] one\n[3] \n[3] two \xff\r50 %\rthree\n[3]  last\n"


async def test_line_without_an_end_is_passed_on_in_pieces() -> None:
    pieces: list[int] = []

    async def write(data: bytes) -> None:
        pieces.append(len(data))

    lines = PrefixedLines("", write)
    for _ in range(10):
        await lines.write(b"x" * 40_000)
    await lines.finish()
    assert max(pieces) <= 110_000
    assert sum(pieces) == 400_000 + len(pieces)


@pytest.mark.parametrize(
    "words",
    [
        ["--count", "2"],
        ["--count", "2", "-d", "--", "true"],
        ["--count", "2", "-t", "--", "true"],
        ["--count", "0", "--", "true"],
        ["--count", "many", "--", "true"],
        ["--idle-timeout", "0s", "--", "true"],
        ["--wait-for-stock", "soon", "--", "true"],
    ],
)
def test_wishes_that_do_not_go_together_are_refused(here: Here, words: list[str]) -> None:
    assert here.run("rent", *words).code == 2


@pytest.mark.slow
def test_command_runs_on_each_machine_and_the_worst_status_counts(site: Site) -> None:
    command = (
        "echo $RENTGPU_INDEX of $RENTGPU_COUNT; echo err >&2; printf tail;"
        " echo $RENTGPU_INDEX > out; exit $RENTGPU_INDEX"
    )
    words = ("--count", "3", "--budget", "5", "--download", "out", "--report", "report.json")
    done = site.run("rent", *words, "--", command)
    assert done.code == 2
    assert sorted(done.out.decode().splitlines()) == [
        *("[0] 0 of 3", "[0] tail", "[1] 1 of 3", "[1] tail", "[2] 2 of 3", "[2] tail")
    ]
    assert {f"[{number}] err" for number in range(3)} <= set(done.errors.splitlines())
    assert "3 machines are ready, until " in done.errors
    assert done.errors.splitlines()[-1].endswith("; all 3 machines are given back")
    assert [(site.folder / str(number) / "out").read_text() for number in range(3)] == ["0\n", "1\n", "2\n"]
    report = json.loads((site.folder / "report.json").read_text())
    assert (report["exit_code"], report["origin"], report["still_rented"]) == (2, "command", [])
    assert [machine["exit_status"] for machine in report["machines"]] == [0, 1, 2]
    assert len({machine["name"] for machine in report["machines"]}) == 3
    assert site.rented == 0


@pytest.mark.slow
def test_too_few_machines_are_an_error_and_none_is_left(site: Site) -> None:
    done = site.run("rent", "--gpu", "4090", "--gpus", "4", "--count", "40", "-o", "json", "--", "true")
    assert done.problem["error"] == "NoMachineError"
    assert done.code == 75
    assert done.out == b""
    assert site.rented == 0


@pytest.mark.slow
def test_lost_machine_fails_alone(site: Site) -> None:
    site.emulator.faults.add(Fault("vanishes", seconds=3))
    done = site.run("rent", "--count", "2", "--", "sleep 6; echo done")
    assert done.code not in (0, 125)
    assert done.out.splitlines() in ([b"[0] done"], [b"[1] done"])
    assert site.rented == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned(["SIGINT", "SIGTERM", "SIGKILL"], every=2))
def test_signal_gives_all_machines_back(site: Site, name: str) -> None:
    site.measured = False
    number = signal.Signals[name]
    process = site.start("rent", "--count", "3", "--", "echo held; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline().endswith(b"held\n")
    process.send_signal(number)
    done = site.end(process)
    assert done.code == (-number if name == "SIGKILL" else 128 + number)
    if name != "SIGKILL":
        assert f"rentgpu: {name}: giving back the machines" in done.errors
    until_sync(site.has_ended)
    assert site.rented == 0


@pytest.mark.slow
def test_idle_machine_is_given_back_and_its_command_line_says_why(site: Site) -> None:
    done = site.run(*RENT, "--idle-timeout", "3s", "-d")
    assert done.code == 0
    name = done.out.decode().strip()
    until_sync(site.has_ended)
    variables = site.environment
    state = variables["NETMIND_RENTGPU_STATE"]
    with RentGPU(variables["NETMIND_API_KEY"], base_url=variables["NETMIND_BASE_URL"], state=state) as gpu:
        until_sync(gpu.rentals.history)
        (past,) = gpu.rentals.history()
    assert (past.name, past.cause) == (name, "idle")


@pytest.mark.slow
def test_wait_for_stock_ends_with_an_error_that_may_be_tried_again(site: Site) -> None:
    # A busy machine may need seconds for the first list.
    done = site.run("rent", "--max-price", "0.00001", "--wait-for-stock", "8s", "--", "true")
    assert done.code == 75
    assert "no machine is available: " in done.errors
    assert "none was available within 8 s" in done.errors
    assert site.rented == 0

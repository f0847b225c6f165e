"""The README shows only what works: its programs are run as they stand, and its commands are those of CI."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from string import Template
from typing import Any

import attrs
import pytest
from nested_pytest import QUICK, own_folder

from netmind_rentgpu import AsyncRentGPU, PaymentType, ServiceProfile
from netmind_rentgpu.emulator import Emulator

pytestmark = pytest.mark.slow

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^## (.+?)$|^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
OUTPUT = {
    "Rent a GPU": (
        r"NVIDIA_GeForce_RTX_4090, 0\.5310 an hour: GPU 0: NVIDIA GeForce RTX 4090 \(.*\)\nspent about 0\.\d{6}\n"
    ),
    "Rentals": (
        r"(node-\w\w-\d+ \d\.\d+ USD\n){3}none of the 60 machines on offer will do: 58 have another GPU,"
        r" 2 have a price above max_price; the lowest of these prices is 2\.1360\n"
        r"\['detached'\]\nname\nthe time of rg-[\w-]+ is up since .* UTC; the deletion of container \d+ has begun\n"
    ),
    "Reap": r"deleted: \('rg-[\w-]+',\) failed: \(\)\n",
    "Call by call": r"NVIDIA_GeForce_RTX_4090 in \w\w, 0\.\d+ an hour: ssh root@127\.0\.0\.1 -p \d+\n",
    "Wait and watch": (
        r"0 of 3\n3 of 3\nSSHEndpoint\(host='127\.0\.0\.1', port=\d+, username='root'\)\n"
        r"no SSH server answered within 3 s: container 1001 \(example-\w+\) has status 1, .*\n(100[123] is gone\n){3}"
    ),
    "A shell on the container": (r"(GPU \d: .*\n)+3 given\nstdout step 1\nstdout step 2\n(\d\n)+command 127\n"),
    "Without asyncio": r"GPU 0: .*\n(node-\w\w-\d+ 0\.\d+\n)+1 PyTorch 2\.4\n(\d .*\n){3}2\nContainer not found\n",
    "Lists": r"2 \['PyTorch 2\.4', 'PyTorch 2\.1'\]\n(\w+ \['TensorFlow 2\.16', 'Ubuntu 22\.04'\]\n)(4 \[\]\n)?\[.*\]\n",
    "Errors": r"404 Container not found\n",
    "The emulator": (
        r"POST /v1/rentgpu/auths/: the service closed the connection without an answer\n\[1\] made, though no answer came\n"
        r"1 POST /v1/rentgpu/auths/ None drop\n(2 GET /v1/rentgpu/auths/ 200 None\n)+rented: \[\] spent: 0 USD\n"
    ),
}
TESTS = "Test your own code"
LOGGING_IN = {"Rent a GPU", "Rentals", "Reap", "A shell on the container", "Without asyncio"}
LEFT_BEHIND = """
import os
from netmind_rentgpu import RentGPU
with RentGPU() as gpu, gpu.rent(image=1):
    os._exit(0)
"""


def programs() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    section = ""
    for heading, program in PROGRAMS:
        section = heading or section
        if program:
            found.setdefault(section, []).append(program)
    return found


def test_every_readme_program_has_an_expected_output() -> None:
    assert programs().keys() == {*OUTPUT, TESTS}
    assert {section: len(found) for section, found in programs().items()} == {**dict.fromkeys(OUTPUT, 1), TESTS: 2}


@pytest.mark.parametrize("section", OUTPUT)
async def test_readme_program_prints_its_expected_output(section: str, tmp_path: Path) -> None:
    import anyio

    async with Emulator(seed=7, boot_seconds=0, ssh=section in LOGGING_IN) as emulator:
        environment = {
            **os.environ,
            "NETMIND_BASE_URL": emulator.url,
            "NETMIND_API_KEY": emulator.token,
            "NETMIND_RENTGPU_STATE": str(tmp_path / "state.sqlite3"),
        }

        def run(program: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-W", "error", "-c", program]
            return subprocess.run(
                command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=environment
            )

        if emulator_has_a_container := "shell" in section:
            await rent_one(emulator)
        if section == "Reap":
            await anyio.to_thread.run_sync(run, LEFT_BEHIND)
            assert len(emulator.running) == 1
        done = await anyio.to_thread.run_sync(run, programs()[section][0])
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(OUTPUT[section], done.stdout), done.stdout
        assert len(emulator.running) == emulator_has_a_container


async def rent_one(emulator: Emulator) -> None:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
        auth = await gpu.auths.create("a-long-password")
        await gpu.containers.create(
            name="mine",
            auth_id=auth.id,
            node_name=(await gpu.machines.list())[0].node_name,
            image_template_id=1,
            payment_type=PaymentType.USD,
        )


@pytest.mark.parametrize("with_fixture", [False, True])
def test_readme_tests_pass_and_fail_as_described(with_fixture: bool, tmp_path: Path) -> None:
    test, conftest = programs()[TESTS]
    (tmp_path / "test_mine.py").write_text(test)
    if with_fixture:
        (tmp_path / "conftest.py").write_text(conftest)
    assert pytest_summary(tmp_path) == "3 passed"
    # The text explains the last line of the first test, and the marker of the second.
    for part, left in (("    rentgpu.containers.delete", "mine"), ("@pytest.mark.rentgpu_may_leave_rented\n", "lost")):
        assert test.count(part) == 1
        changed = "".join(line for line in test.splitlines(keepends=True) if not line.startswith(part.rstrip("\n")))
        (tmp_path / "test_mine.py").write_text(changed)
        assert pytest_summary(tmp_path, f"{left} (container 1001)") == "3 passed, 1 error"


def pytest_summary(folder: Path, text: str = "") -> str:
    command = [sys.executable, "-m", "pytest", "-q", *QUICK, own_folder(folder), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)
    assert text in done.stdout
    return done.stdout.strip().rpartition("\n")[2].partition(" in ")[0]


def test_readme_emulator_commands_print_the_shown_output(tmp_path: Path) -> None:
    section = TEXT.partition("## The emulator from any language")[2].partition("\n## ")[0]
    command, curls = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    arguments, exports = command.removeprefix("$ .venv/bin/python ").split("\n", 1)
    process = subprocess.Popen(
        [sys.executable, *arguments.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    with process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            if not first:  # the port is taken on this machine
                pytest.skip("port 8000 is taken")
            assert first + process.stdout.readline() == exports
            variables = dict(re.findall(r"^export (\w+)=(\S+)$", exports, re.MULTILINE))
            answers = 0
            for line, answer in re.findall(r"^\$ curl (.*)\n(?:([^$].*)\n)?", curls, re.MULTILINE):
                answered = curl(Template(line).substitute(variables))
                if answer:
                    assert answered == json.loads(answer)
                    answers += 1
            assert (curls.count("$ curl"), answers) == (7, 2)
        finally:
            process.terminate()


def curl(line: str) -> Any:
    """Send the request of a curl command, because a machine may have no curl; return the decoded JSON answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-H", dest="header", default="Accept: */*")
    parser.add_argument("-X", dest="method", default="GET")
    parser.add_argument("-d", dest="data", default="")
    parser.add_argument("url")
    wanted = parser.parse_args(shlex.split(line))
    name, value = wanted.header.split(": ")
    request = urllib.request.Request(
        wanted.url, method=wanted.method, data=wanted.data.encode() or None, headers={name: value}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)


def test_readme_shows_exactly_two_shell_commands() -> None:
    assert re.findall(r"^```sh\n(.*?)\n```$", TEXT, re.MULTILINE | re.DOTALL) == [
        "python3 -m venv .venv && .venv/bin/pip install '.[all]' && .venv/bin/netmind-rentgpu demo",
        "python3 -m venv .venv && .venv/bin/pip install '.[all,test]' && .venv/bin/pytest",
    ]


def test_readme_lists_every_field_of_the_profile() -> None:
    section = TEXT.partition("## What we do not know")[2]
    for field in attrs.fields(ServiceProfile):
        assert f"`{field.name}" in section

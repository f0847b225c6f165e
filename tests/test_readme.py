"""The README shows only what works: its programs are run as they stand, its commands are the ones CI runs."""

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from string import Template

import attrs
import pytest

from netmind_rentgpu import ServiceProfile
from netmind_rentgpu.emulator import Emulator

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^## (.+?)$|^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
OUTPUT = {
    "Rent a GPU": r"NVIDIA_GeForce_RTX_4090 in \w\w, 0\.\d+ an hour: ssh root@127\.0\.0\.1 -p \d+\n",
    "Without asyncio": r"(node-\w\w-\d+ 0\.\d+\n)+1 PyTorch 2\.4\n(\d .*\n){3}2\nContainer not found\n",
    "Lists": r"2 \['PyTorch 2\.4', 'PyTorch 2\.1'\]\n(\w+ \['TensorFlow 2\.16', 'Ubuntu 22\.04'\]\n)(4 \[\]\n)?\[.*\]\n",
    "Errors": r"404 Container not found\n",
    "The emulator": r"60 machines\nstill rented: \[\] spent: 0 USD\n",
}


def programs() -> dict[str, str]:
    found: dict[str, str] = {}
    section = ""
    for heading, program in PROGRAMS:
        section = heading or section
        if program:
            assert section not in found
            found[section] = program
    return found


def test_every_program_is_known() -> None:
    assert programs().keys() == OUTPUT.keys()


@pytest.mark.parametrize("section", OUTPUT)
async def test_a_program_runs_as_it_stands(section: str, tmp_path: Path) -> None:
    import anyio

    async with Emulator(seed=7, boot_seconds=0) as emulator:
        environment = {"NETMIND_BASE_URL": emulator.url, "NETMIND_API_KEY": emulator.token}
        done = await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                [sys.executable, "-W", "error", "-c", programs()[section]],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                cwd=tmp_path,
                env={**os.environ, **environment},
            )
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(OUTPUT[section], done.stdout), done.stdout
        assert emulator.running == []


def test_the_emulators_command_prints_what_is_shown(tmp_path: Path) -> None:
    shown = re.search(r"^\$ \.venv/bin/(python .*)\n(export .*\nexport .*)$", TEXT, re.MULTILINE)
    assert shown
    arguments = shown[1].split()[1:]
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    with process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            if not first:  # the port is taken on this machine
                pytest.skip("port 8000 is taken")
            assert first + process.stdout.readline() == f"{shown[2]}\n"
            variables = dict(re.findall(r"^export (\w+)=(\S+)$", shown[2], re.MULTILINE))
            curl = re.search(r'^\$ curl -H "(\S+): (.+?)" "(.+)"$', TEXT, re.MULTILINE)
            assert curl
            name, value, url = (Template(part).substitute(variables) for part in curl.groups())
            with urllib.request.urlopen(urllib.request.Request(url, headers={name: value}), timeout=30) as answer:
                assert answer.status == 200
        finally:
            process.terminate()


def test_there_are_two_commands() -> None:
    assert re.findall(r"^```sh\n(.*?)\n```$", TEXT, re.MULTILINE | re.DOTALL) == [
        "python3 -m venv .venv && .venv/bin/pip install '.[cli]' && .venv/bin/netmind-rentgpu demo",
        "python3 -m venv .venv && .venv/bin/pip install '.[cli,test]' && .venv/bin/pytest",
    ]


def test_every_guess_is_told() -> None:
    section = TEXT.partition("## What we do not know")[2]
    for field in attrs.fields(ServiceProfile):
        assert f"`{field.name}" in section

"""The emulator keeps to its own description: schemathesis looks for a call that does not."""

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.emulator.calls import CALLS
from netmind_rentgpu.emulator.openapi import openapi

# It holds every service to 401 where the Authorization header is missing; the page documents 422, and test_service pins it.
EXCLUDED = "--exclude-checks=missing_required_header"


SHORT = ("--max-examples=3", "--phases=examples,fuzzing")


# Apart, since the controls can make the service answer anything: a fault, or another beginning. The phase that combines all
# values of their parameters has 3,600 cases.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("paths", "calls", "long"),
    [
        ("/v1/.+", 13, ("--max-examples=8",)),
        ("/_emulator/.+", 12, ("--max-examples=40", "--phases=examples,fuzzing")),
    ],
)
async def test_schemathesis_finds_no_deviation_from_the_description(
    full: bool, paths: str, calls: int, long: tuple[str, ...], tmp_path: Path
) -> None:
    async with Emulator(seed=7, boot_seconds=0) as emulator:
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{emulator.url}/openapi.json",
            "--header",
            f"Authorization: Bearer {emulator.token}",
            f"--include-path-regex={paths}",
            EXCLUDED,
            *(long if full else SHORT),
            "--seed=1",
            "--no-color",
        ]
        # Coverage has nothing to see there.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        done = await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
                cwd=tmp_path,
                env={**environment, "CI": "1"},
            )
        )
    assert done.returncode == 0, done.stdout[-5000:]
    assert f"Selected: {calls}/25" in done.stdout
    assert f"Tested: {calls}" in done.stdout


async def test_description_is_served_to_any_token() -> None:
    async with Emulator() as emulator, AsyncRentGPU("any-token", base_url=emulator.url) as gpu:
        description = await gpu.request("GET", "/openapi.json")
    assert sum(len(path) for path in description["paths"].values()) == 25


def test_operation_ids_are_the_names_of_calls() -> None:
    named = {
        call["operationId"] for path in openapi()["paths"].values() for call in path.values() if "operationId" in call
    }
    assert named == set(CALLS)

"""Rentals in fixtures, as pytest-asyncio and anyio's plugin run them: runs of pytest in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

QUICK = [f"-pno:{plugin}" for plugin in ("cacheprovider", "hypothesispytest", "schemathesis")]
# The emulator lives as long as the run, and is looked at in the end: what the plugin says of a test is not enough.
CONFTEST = """
import pytest
from netmind_rentgpu.emulator import Emulator

@pytest.fixture(scope="session")
def rentgpu_emulator():
    with Emulator(ssh=True, boot_seconds=0.05) as emulator:
        yield emulator
        emulator.assert_nothing_rented()
        print(f"<{len(emulator.charges)} rented>")

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
BEGIN = """
import asyncio
from datetime import timedelta
import anyio, pytest, pytest_asyncio
from netmind_rentgpu import *

TTL = timedelta(hours=1)
"""
# A client of the fixture's own, so that it is the fixture that has to delete.
FIXTURE = """
@{fixture}
async def rental(rentgpu_emulator, tmp_path):
    gpu = AsyncRentGPU(rentgpu_emulator.token, base_url=rentgpu_emulator.url, state=tmp_path / "state")
    async with gpu.rent(gpu_name="RTX 4090", image="PyTorch 2.4", ttl=TTL) as rental:
        yield rental
    assert await gpu.rentals.open() == []
    await gpu.close()
"""
PLUGINS = {
    "pytest-asyncio": ("pytest_asyncio.fixture", "@pytest.mark.asyncio", "", "-pno:anyio"),
    "pytest-asyncio, one loop": (
        "pytest_asyncio.fixture(loop_scope='session', scope='module')",
        "@pytest.mark.asyncio(loop_scope='session')",
        "",
        "-pno:anyio",
    ),
    "anyio's": ("pytest.fixture", "@pytest.mark.anyio", "", "-pno:asyncio"),
    "anyio's, in auto mode": ("pytest.fixture", "", "anyio_mode = auto", "-pno:asyncio"),
}


def run(folder: Path, plugin: str, test: str) -> tuple[dict[str, int], str]:
    """Run a test file; return how many tests did what, and all that was printed."""
    fixture, mark, ini, without = PLUGINS[plugin]
    made = FIXTURE.format(fixture=fixture)
    if "module" in fixture:
        made = made.replace("tmp_path)", "tmp_path_factory)").replace(
            "tmp_path /", "tmp_path_factory.mktemp('rental') /"
        )
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(BEGIN + made + dedent(test).replace("@mark", mark))
    if without != "-pno:asyncio":
        ini += "\nasyncio_default_fixture_loop_scope = function"
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    command = [sys.executable, "-m", "pytest", *QUICK, without, "-rN", "-s", "-W", "error", str(folder)]
    if without == "-pno:asyncio":
        (folder / "test_it.py").write_text((folder / "test_it.py").read_text().replace(", pytest_asyncio", ""))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=folder, env={**os.environ}
    )
    last = done.stdout.strip().rpartition("\n")[2]
    counts = {kind.rstrip("s"): int(number) for number, kind in re.findall(r"(\d+) (\w+)", last.rpartition(" in ")[0])}
    return counts, done.stdout + done.stderr


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_rental_is_a_fixture_whatever_becomes_of_the_test(plugin: str, tmp_path: Path) -> None:
    test = """
    @mark
    async def test_passes(rental):
        assert (await rental.run("echo usable")).stdout == "usable\\n"

    @mark
    async def test_fails(rental):
        assert not await rental.run("true")

    @mark
    async def test_takes_too_long(rental):
        async with asyncio.timeout(0.1):
            await rental.run("sleep 1000")

    @mark
    async def test_takes_too_long_for_anyio(rental):
        with anyio.fail_after(0.1):
            await rental.run("sleep 1000")

    @mark
    async def test_is_cancelled(rental):
        with anyio.move_on_after(0.1):
            await rental.run("sleep 1000")
        running = asyncio.create_task(rental.run("sleep 1000"))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await rental.run("echo usable")).stdout == "usable\\n"

    @mark
    async def test_is_skipped(rental):
        pytest.skip("not today")
    """
    counts, text = run(tmp_path, plugin, test)
    assert counts == {"passed": 2, "failed": 3, "skipped": 1}, text
    assert f"<{1 if 'one loop' in plugin else 6} rented>" in text
    assert text.count("TimeoutError") >= 2
    assert "still rented" not in text


@pytest.mark.parametrize("plugin", ["pytest-asyncio", "anyio's"])
def test_a_rental_that_expires_during_the_test_is_told(plugin: str, tmp_path: Path) -> None:
    test = """
    TTL = timedelta(seconds=1.5)

    async def gone(rentgpu_emulator):
        async with asyncio.timeout(20):
            while rentgpu_emulator.running:
                await asyncio.sleep(0.01)

    @mark
    async def test_it(rental, rentgpu_emulator):
        try:
            await gone(rentgpu_emulator)
        except asyncio.CancelledError:
            # The task that entered the block is the test's, too.
            assert "one loop" not in __name__
            asyncio.current_task().uncancel()
            await gone(rentgpu_emulator)
        with pytest.raises(RentalExpiredError):
            await rental.run("true")
    """
    counts, text = run(tmp_path, plugin, test)
    assert counts == {"passed": 1, "error": 1}, text
    assert "RentalExpiredError" in text
    assert "<1 rented>" in text
    assert "still rented" not in text


@pytest.mark.parametrize("plugin", ["pytest-asyncio", "anyio's"])
def test_a_setup_that_fails_leaves_nothing(plugin: str, tmp_path: Path) -> None:
    test = """
    TTL = timedelta(seconds=0.01)

    @mark
    async def test_it(rental):
        pass
    """
    counts, text = run(tmp_path, plugin, test)
    assert counts == {"error": 1}, text
    assert "RentalExpiredError" in text
    assert "<1 rented>" in text
    assert "still rented" not in text

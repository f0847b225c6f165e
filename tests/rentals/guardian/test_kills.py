"""Processes with a guardian are killed at random points of renting, using and leaving: nothing is left, though no one reaps.

`--full` kills 30 processes, and `--crash-stride=1` 200; the test prints how many that were.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from random import Random

import attrs
import pytest
from crashing import KINDS, Forge, Job
from guardian_copies import share_copies
from guardians import guardians
from rented import client
from until import until

from netmind_rentgpu import RentalRecord
from netmind_rentgpu.emulator import Emulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the test looks guardians up in /proc"),
]


@pytest.fixture
def kills(request: pytest.FixtureRequest, full: bool) -> int:
    if request.config.getoption("--crash-stride"):
        return 200
    return 30 if full else 6


async def test_process_with_a_guardian_that_is_killed_leaks_nothing(tmp_path: Path, kills: int) -> None:
    random = Random()
    seconds: list[float] = []
    detached = killed = 0
    share_copies(tmp_path)
    async with Emulator(ssh=True, boot_seconds=0.02, machines=20) as emulator, Forge() as forge:
        living = client(emulator, tmp_path / "living.sqlite3")
        async with living, living.rent(image="PyTorch 2.4") as mine:
            job = Job(
                act="rent", url=emulator.url, token=emulator.token, state=str(tmp_path / "0.sqlite3"), guardian=True
            )
            counts = {act: (await forge.run(attrs.evolve(job, act=act))).counts for act in ("rent", "hand on")}
            assert counts["rent"]["loop step"] > 50
            for number in count(1):
                if killed == kills:
                    break
                act, kind = random.choice(list(counts)), random.choice(KINDS)
                # Not the first third, in which nothing is rented yet.
                most = counts[act][kind]
                state = tmp_path / f"{number}.sqlite3"
                n = random.randint(1 + most // 3, most)
                outcome = await forge.run(attrs.evolve(job, act=act, kind=kind, n=n, state=str(state)))
                killed += outcome.killed
                began = time.monotonic()
                detached += await is_detached_when_the_guardian_rests(emulator, tmp_path, state)
                seconds.append(time.monotonic() - began)
                told = f"{act} killed at {kind} {n}: {outcome}, {list(emulator.requests)[-20:]}"
                assert [charge.container_id for charge in emulator.running] == [mine.container.id], told
                async with client(emulator, state) as other:
                    assert await other.rentals.list() == [], told
                    ours = {past.name for past in await other.rentals.history()}
                    assert outcome.killed or ours, told
        emulator.assert_nothing_rented()
    print(
        f"{killed} processes were killed, {detached} of those seen with a detached rental; their guardians took"
        f" {max(seconds):.1f} s at most, {sum(seconds) / len(seconds):.1f} s on average"
    )


async def is_detached_when_the_guardian_rests(emulator: Emulator, folder: Path, state: Path) -> bool:
    """Wait until a guardian has ended, or only guards a detached rental, which is released then; return True for that."""

    async def detached() -> list[RentalRecord]:
        async with client(emulator, state) as gpu:
            return [record for record in await gpu.rentals.list() if record.stage == "detached"]

    async def rests() -> bool:
        return not guardians(folder) or (len(guardians(folder)) == 1 and bool(await detached()))

    await until(rests)
    for record in await detached():
        assert record.container_id in {charge.container_id for charge in emulator.running}
        async with client(emulator, state) as gpu:
            await gpu.rentals.release(record)
        # Otherwise it would look again only after minutes.
        for guardian in guardians(folder):
            os.kill(guardian, signal.SIGTERM)
        await until(lambda: not guardians(folder))
        return True
    return False

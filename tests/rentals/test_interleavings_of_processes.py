"""Extend, expiry, detach, attach, release and reap, by three processes at once, in random order and real time.

After each run, no machine has lived past its deadline once the reaper ran, none was deleted before it unless a user ended
it, nothing is on record, and each machine is a past rental, once.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from renters import Service, renting
from short_forms import thinned
from until import until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("machine")]

# Seconds by which the two clocks of one machine may differ, and a bound against a reaper that never comes.
TOLERANCE, LATEST = 0.05, 60.0
# The longest ttl that these programs choose, in seconds.
LONGEST_TTL = 3.0


@pytest.mark.parametrize("seed", thinned(range(10), every=10))
async def test_processes_that_act_at_once_agree_on_each_deadline(tmp_path: Path, seed: int) -> None:
    async with renting(tmp_path) as service:
        programs = await asyncio.gather(
            *(service.run_file("interleaving_user.py", str(10 * seed + number), measured=False) for number in range(3))
        )
        deadlines: dict[int, float] = {}
        ended_by_hand: set[int] = set()
        for program in programs:
            assert (program.status, program.errors) == (0, "")
            for heard in map(json.loads, program.output.splitlines()):
                if "ended" in heard:
                    ended_by_hand.add(heard["container"])
                else:
                    deadlines[heard["container"]] = max(deadlines.get(heard["container"], 0.0), heard["deadline"])
        await reap_all(service)
        deleted: dict[int, float] = {}
        for request in service.emulator.requests.of("delete_container"):
            deleted.setdefault(int(request.path.rstrip("/").rpartition("/")[2]), request.time)
        rented = [charge.container_id for charge in service.emulator.charges]
        assert len(rented) >= 3
        early = [
            container_id
            for container_id, time in deleted.items()
            if container_id not in ended_by_hand and time < deadlines.get(container_id, 0.0) - TOLERANCE
        ]
        async with service.client() as gpu:
            history = await gpu.rentals.history()
        assert sorted(past.container_id or 0 for past in history) == sorted(rented)
        # Of a rental that has expired while it started, no program hears the deadline.
        unheard = {past.container_id: past.intended_at.timestamp() + LONGEST_TTL for past in history}
        latest = {container_id: deadlines.get(container_id, unheard[container_id]) + LATEST for container_id in rented}
        late = [container_id for container_id, time in deleted.items() if time > latest[container_id]]
        assert (early, late) == ([], [])
        print(f"{len(rented)} rentals, {len(ended_by_hand)} of them ended by hand")


async def reap_all(service: Service) -> None:
    """Reap until nothing is left, because what is detached expires in seconds."""
    async with service.client() as gpu:

        async def is_clear() -> bool:
            await gpu.rentals.reap(wait=True)
            return await gpu.rentals.list() == []

        await until(is_clear)
    service.emulator.assert_nothing_rented()

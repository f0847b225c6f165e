"""Many processes that share one state file, and some that are killed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from renters import Service, renting

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("machine")]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with renting(tmp_path, machines=400) as service:
        yield service


async def test_many_processes_rent_and_return_at_once(full: bool, service: Service) -> None:
    count = 100 if full else 10
    program = await service.run_file("many_renters.py", str(count), measured=False)
    program.assert_silent("{0}\n")
    service.emulator.assert_nothing_rented()
    # A refused create is looked for once more.
    await service.assert_one_reap_clears()
    asked = service.emulator.requests
    assert len(asked.of("create_auth")) == 1
    # No process deleted the container of another.
    deleted = [request.path for request in asked.of("delete_container")]
    assert len(deleted) == len(set(deleted)) == len(service.emulator.charges) == count


async def test_one_reap_deletes_the_rentals_of_killed_processes_and_no_others(full: bool, service: Service) -> None:
    count, kills = (30, 20) if full else (6, 4)
    program = await service.run_file("killed_renters.py", str(count), str(kills), measured=False)
    program.assert_silent("{0}\n")
    await service.assert_nothing_left()

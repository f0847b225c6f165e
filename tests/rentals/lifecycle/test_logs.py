"""The INFO log: one line for each step of a rental, and none of asyncssh."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from lifecycle import set_limits
from rented import IMAGE

from netmind_rentgpu import AsyncRentGPU, NoMachineError
from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.emulator import Emulator, Fault


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the SDK has logged at INFO or above, without the rentals' names."""
    records = [
        record for record in caplog.records if record.name == "netmind_rentgpu" and record.levelno > logging.DEBUG
    ]
    return [record.getMessage().partition(": ")[2] or record.getMessage() for record in records]


async def test_life_of_a_rental_is_logged_with_machine_price_and_cost(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.faults.add(Fault("stock-out"))
    first, second, *_ = await gpu.offers()
    with caplog.at_level(logging.INFO):
        async with gpu.rent(image=IMAGE) as rental:
            assert (await rental.run("echo a-secret-command")).ok
    lines = [line for line in lines_of(caplog) if not line.startswith("waiting for container ")]
    asked, refused, asked_again, created, ready, releasing, released = lines
    for line, offer in ((asked, first), (asked_again, second)):
        machine = offer.machine
        assert line == f"asking {machine.node_name} for 1 x {machine.gpu_name} at {offer.hourly_price} USD an hour"
    assert refused.startswith(f"{first.machine.node_name} refused: ")
    number, node = rental.container.id, second.machine.node_name
    assert created == f"created on {node} as container {number}, at {second.hourly_price} USD an hour"
    assert ready.startswith(f"ready on {node}, ")
    assert releasing == f"releasing container {number} on {node}: its user has ended it"
    assert released.startswith(f"released container {number} on {node}; it cost about 0.0")
    assert released.endswith(" USD")
    assert "a-secret-command" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("asyncssh")]


async def test_failed_starts_detached_and_released_rentals_are_logged(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.faults.add(Fault("dies", times=3))
    set_limits(gpu, deletion=5.0)
    with caplog.at_level(logging.INFO), pytest.raises(NoMachineError):
        async with gpu.rent(image=IMAGE, fail=status_in(3)):
            pytest.fail("a machine was rented")
    assert sum(" did not start: " in line for line in lines_of(caplog)) == 3
    caplog.clear()
    with caplog.at_level(logging.INFO):
        async with gpu.rent(image=IMAGE) as rental:
            record = await rental.detach()
        await gpu.rentals.release(record)
    *_, detached, released = lines_of(caplog)
    assert record.expires_at is not None
    moment = f"{record.expires_at:%Y-%m-%d %H:%M:%S}"
    end = f"runs on until {moment} UTC; rentals.reap() deletes it then"
    assert detached == f"detached; container {record.container_id} {end}"
    assert released.startswith(f"released container {record.container_id} on {record.node_name}; it cost about 0.0")


@pytest.mark.parametrize(("before", "after"), [("NOTSET", "WARNING"), ("DEBUG", "DEBUG"), ("ERROR", "ERROR")])
def test_level_of_asyncssh_is_set_only_where_the_program_has_set_none(before: str, after: str) -> None:
    program = f"""
import logging
logging.getLogger("asyncssh").setLevel(logging.{before})
import netmind_rentgpu.ssh.login
print(logging.getLevelName(logging.getLogger("asyncssh").level))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == f"{after}\n"


async def test_release_of_an_adopted_rental_is_logged(
    gpu: AsyncRentGPU, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.faults.add(Fault("drop", call="create_container", when="after"))
    with caplog.at_level(logging.INFO):
        async with gpu.rent(image=IMAGE) as rental:
            pass
    *_, ready, _, released = lines_of(caplog)
    assert ready.endswith(" USD an hour")
    assert released.startswith(f"released container {rental.container.id} on ")

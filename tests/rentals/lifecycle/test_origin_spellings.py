"""Rentals whose service is spelled in several ways: they are one account's, also those that earlier versions recorded."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rented import IMAGE, PROFILE, TIMEOUTS

from netmind_rentgpu import AsyncRentGPU, Retries
from netmind_rentgpu.emulator import Emulator


def spelled_client(emulator: Emulator, state: Path, url: str) -> AsyncRentGPU:
    """Open a client of the emulator at its URL in another spelling."""
    retries = Retries(base_delay=0.01, max_delay=0.05)
    return AsyncRentGPU(emulator.token, base_url=url, state=state, profile=PROFILE, timeout=TIMEOUTS, retries=retries)


@pytest.fixture
def spelling(emulator: Emulator) -> str:
    return emulator.url.replace("http://127.0.0.1", "HTTP://127.0.0.1") + "/"


async def test_rental_is_listed_and_attached_under_another_spelling(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, spelling: str
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    async with spelled_client(emulator, state, spelling) as other:
        assert await other.rentals.list() == [record]
        async with other.rentals.attach(record) as attached:
            assert (await attached.run("true")).ok
    emulator.assert_nothing_rented()
    assert len(emulator.requests.of("create_auth")) == 1


async def test_rows_of_an_earlier_version_under_another_spelling_are_found(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    # An earlier version told accounts apart by the origin as it was spelled.
    origin = emulator.url.replace("http://127.0.0.1:", "http://127.0.0.1.:")
    earlier = f"{origin} {hashlib.sha256(f'{origin} {emulator.token}'.encode()).hexdigest()[:32]}"
    stranger = f"{origin} {'0' * 32}"
    with closing(sqlite3.connect(state)) as connection:
        for table in ("rentals", "host_keys", "passwords"):
            assert connection.execute(f"UPDATE {table} SET account = ?", (earlier,)).rowcount == 1
        connection.execute(
            "INSERT INTO host_keys (account, container_id, public_key) VALUES (?, 1, 'key')", (stranger,)
        )
        connection.commit()
    async with spelled_client(emulator, state, emulator.url) as other:
        assert await other.rentals.list() == [record]
        async with other.rentals.attach(record):
            pass
        async with other.rent(image=IMAGE) as rental:
            assert rental.container.auth_id == 1
    emulator.assert_nothing_rented()
    assert len(emulator.requests.of("create_auth")) == 1
    with closing(sqlite3.connect(state)) as connection:
        found = connection.execute("SELECT account FROM host_keys WHERE container_id = 1").fetchall()
    assert found == [(stranger,)]


async def test_row_under_both_spellings_stays_as_it_is_under_that_of_today(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    await gpu._state.pin_host_key(1, "today's")
    earlier = str(gpu._parts.settings.fingerprint).replace("127.0.0.1:", "127.0.0.1.:")
    origin = earlier.rpartition(" ")[0]
    earlier = f"{origin} {hashlib.sha256(f'{origin} {emulator.token}'.encode()).hexdigest()[:32]}"
    with closing(sqlite3.connect(state)) as connection:
        for container_id in (1, 2):
            values = (earlier, container_id)
            connection.execute("INSERT INTO host_keys (account, container_id, public_key) VALUES (?, ?, 'old')", values)
        connection.commit()
    async with spelled_client(emulator, state, emulator.url) as other:
        found = [await other._state.host_key(container_id) for container_id in (1, 2)]
    assert found == ["today's", "old"]

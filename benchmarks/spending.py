"""`rentals.spent` and `rentals.history` over 100,000 past rentals, beside one bare query that sums them all."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.sqlite_file import open_file

URL = "http://127.0.0.1:9"
PAST = 100_000
BARE = "a bare sum of all rows"
NOW = datetime(2026, 12, 1, tzinfo=UTC)
# A year of rentals has to be summed in the time of a few bare scans.
LIMITS = {"spent by label": 25.0, "spent by GPU": 25.0, "spent by day": 60.0, "spent by label, one month": 25.0}


def _fill(path: Path, account: str) -> None:
    choose = random.Random(7)  # noqa: S311  # no secret
    connection, _ = open_file(path, 30.0)
    with closing(connection):
        connection.execute("BEGIN IMMEDIATE")
        for number in range(PAST):
            began = NOW - timedelta(seconds=choose.uniform(0, 364 * 86_400))
            # Some run over midnight.
            ended = began + timedelta(hours=choose.expovariate(0.5))
            connection.execute(
                "INSERT INTO past_rentals (account, name, label, container_id, gpu_name, gpus, node_name, hourly_price,"
                " currency, intended_at, created_at, ready_at, ended_at, cause, spent)"
                " VALUES (?, ?, ?, ?, ?, 1, ?, '0.5310', 'USD', ?, ?, ?, ?, 'released', ?)",
                (
                    account,
                    f"rg-{number:010}",
                    f"sweep-{number % 50}",
                    number,
                    f"GPU {number % 12}",
                    f"node-{number % 500}",
                    *(moment.isoformat(timespec="microseconds") for moment in (began, began, began, ended)),
                    choose.randrange(10**7),
                ),
            )
        connection.execute("COMMIT")


async def _measure(rounds: int, folder: Path) -> bool:
    path = folder / "state.sqlite3"
    async with AsyncRentGPU("a-token", base_url=URL, state=path) as gpu:
        _fill(path, str(Fingerprint(URL, "a-token")))
        month = NOW - timedelta(days=30)

        async def bare() -> Any:
            with closing(sqlite3.connect(path)) as connection:
                return connection.execute("SELECT count(*), sum(spent) FROM past_rentals").fetchone()

        acts: dict[str, Callable[[], Awaitable[Any]]] = {
            BARE: bare,
            "spent by label": lambda: gpu.rentals.spent(by="label"),
            "spent by GPU": lambda: gpu.rentals.spent(by="gpu"),
            "spent by day": lambda: gpu.rentals.spent(by="day"),
            "spent by label, one month": lambda: gpu.rentals.spent(since=month, by="label"),
            "history of one day": lambda: gpu.rentals.history(since=NOW - timedelta(days=1)),
            "list of the open rentals": gpu.rentals.list,
            "history of the whole year": gpu.rentals.history,
        }
        measured: list[dict[str, float]] = []
        for _ in range(rounds):
            times: dict[str, float] = {}
            for name, act in acts.items():
                began = time.perf_counter()
                await act()
                times[name] = 1000 * (time.perf_counter() - began)
            measured.append(times)
    return report(f"{PAST:,} past rentals", measured, BARE, "ms", LIMITS)


def run(rounds: int) -> bool:
    """Measure look-ups in a state file with many past rentals."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(min(rounds, 11), Path(folder)))

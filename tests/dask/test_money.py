"""The time and money of a cluster: one budget and one end for all machines, and what happens then."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from dask_sites import MANY, client_of, endless, entries, open_site, seen_workers, tenfold, until_running
from distributed.client import FutureCancelledError
from distributed.core import Status
from lifecycle import set_clock, set_limits
from until import until

from netmind_rentgpu import (
    AsyncRental,
    AsyncRentGPU,
    BudgetExceededError,
    InsufficientBudgetError,
    RentalEndedError,
    RentalExpiredError,
    RentalIdleError,
    StateFileError,
)
from netmind_rentgpu.dask import RentGPUCluster, Software
from netmind_rentgpu.dask.failures import FailuresInARow
from netmind_rentgpu.dask.machine_workers import WorkersPhase

_LEASE = 6.0
# Machines that are prepared for ever cost as much as those that work, and need no worker.
_ENDLESS = Software(setup=("sleep 600",))
_SECOND = Decimal(1) / 3600


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers again at once after a failure."""
    monkeypatch.setattr(FailuresInARow, "pause", 0.0)


def _lease_shortly(gpu: AsyncRentGPU) -> None:
    set_limits(gpu, lease=_LEASE)


@pytest.mark.slow
async def test_spending_stays_within_the_budget_while_a_cluster_scales_and_its_clock_is_set(tmp_path: Path) -> None:
    async with open_site(tmp_path, change=_lease_shortly) as site:
        async with site.client() as gpu:
            price = max(offer.hourly_price or Decimal(0) for offer in (await gpu.offers())[:8])
        # Thirty seconds of a machine, for all of them together.
        limit = price * 30 * _SECOND
        async with site.cluster(1, software=_ENDLESS, budget=limit, max_failures=MANY) as cluster:
            wanted, most = 1, 0
            moves = {4: timedelta(hours=2), 12: timedelta(hours=-5)}
            for step in count():
                if cluster.reason is not None:
                    break
                if (by := moves.get(step)) is not None:
                    set_clock(cluster._client, by)
                cluster.scale(wanted)
                wanted = wanted % 3 + 1
                most = max(most, len(site.emulator.running))
                async with site.client() as gpu:
                    assert len(await gpu.budgets.list()) == 1
                await asyncio.sleep(0.5)
            await until(lambda: cluster.status is Status.closed)
            assert isinstance(cluster.reason, (BudgetExceededError, InsufficientBudgetError))
            assert most > 1
            assert step > max(moves)
            spent = cluster.spent
        # A second for each machine, which is the time of its deletion.
        tick = price * _SECOND * len(site.emulator.charges)
        assert limit / 10 < site.emulator.spent <= limit + tick
        assert spent is not None
        assert abs(spent - site.emulator.spent) <= tick


@pytest.mark.slow
async def test_spent_budget_ends_the_cluster_and_its_futures_with_a_reason(tmp_path: Path) -> None:
    async with open_site(tmp_path, change=_lease_shortly) as site:
        async with site.client() as gpu:
            price = (await gpu.offers())[0].hourly_price or Decimal(0)
        limit = price * 30 * _SECOND
        async with site.cluster(2, budget=limit, max_failures=MANY) as cluster:
            async with client_of(cluster) as client, asyncio.timeout(120):
                futures = client.map(endless, range(2))
                for future in futures:
                    with pytest.raises(FutureCancelledError):
                        await future
            await until(lambda: cluster.status is Status.closed)
            assert isinstance(cluster.reason, BudgetExceededError)
        assert site.emulator.spent <= limit + 2 * price * _SECOND


async def test_price_and_cost_include_machines_that_are_prepared(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site, site.cluster(2, software=_ENDLESS) as cluster:
        await until(lambda: len(entries(cluster, WorkersPhase.PREPARING)) == 2)
        async with site.client() as gpu:
            records = await gpu.rentals.list()
        assert cluster.hourly_price == sum(record.hourly_price or 0 for record in records) > 0
        assert cluster.spent is not None
        assert cluster.spent > 0


async def test_machine_that_boots_for_longer_than_a_lease_is_waited_for(tmp_path: Path) -> None:
    def lease(gpu: AsyncRentGPU) -> None:
        set_limits(gpu, lease=2.0)

    async with open_site(tmp_path, change=lease, boot_seconds=5) as site:
        async with site.cluster(1, software=_ENDLESS, budget=5) as cluster:
            await until(lambda: entries(cluster, WorkersPhase.PREPARING) or cluster.reason)
            assert cluster.reason is None
            assert len(site.emulator.charges) == 1


async def test_budget_without_room_for_a_machine_rents_none(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site, site.cluster(2, budget=Decimal("0.00001")) as cluster:
        with pytest.raises(InsufficientBudgetError, match="no room"):
            await cluster.wait_for_workers(1)
        await until(lambda: cluster.status is Status.closed)
        assert site.emulator.charges == []


@pytest.mark.slow
async def test_end_of_the_time_ends_the_cluster_and_its_futures_with_a_reason(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        cluster: Any
        async with site.cluster(1, ttl=timedelta(seconds=12), max_failures=MANY) as cluster:
            async with client_of(cluster) as client, asyncio.timeout(120):
                future = client.submit(endless, 1)
                with pytest.raises(FutureCancelledError):
                    await future
            await until(lambda: cluster.status is Status.closed)
            assert isinstance(cluster.reason, RentalExpiredError)
            with pytest.raises(RentalExpiredError):
                await cluster.wait_for_workers(1)


async def test_end_of_the_time_ends_machines_that_are_not_ready_yet(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        async with site.cluster(2, software=_ENDLESS, ttl=timedelta(seconds=4), max_failures=MANY) as cluster:
            await until(lambda: cluster.status is Status.closed)
            assert isinstance(cluster.reason, RentalExpiredError)


async def test_cluster_without_tasks_ends_and_says_so(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        async with site.cluster(2, software=_ENDLESS, idle_timeout=timedelta(seconds=2)) as cluster:
            with pytest.raises(RentalIdleError):
                await cluster.wait_for_workers(1)
            await until(lambda: cluster.status is Status.closed)
            assert isinstance(cluster.reason, RentalIdleError)
            assert "no tasks for 0:00:02" in str(cluster.reason)
            site.emulator.assert_nothing_rented()


async def test_cluster_whose_scheduler_ends_otherwise_ends_and_says_so(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site, site.cluster(2, software=_ENDLESS) as cluster:
        await until(lambda: entries(cluster, WorkersPhase.PREPARING))
        assert cluster.scheduler is not None
        await cluster.scheduler.close()
        await until(lambda: cluster.status is Status.closed)
        assert type(cluster.reason) is RentalEndedError
        assert "its scheduler has ended" in str(cluster.reason)
        site.emulator.assert_nothing_rented()


async def _scale(cluster: RentGPUCluster, _: pytest.MonkeyPatch) -> None:
    cluster.scale(2)


async def _adapt(cluster: RentGPUCluster, _: pytest.MonkeyPatch) -> None:
    cluster.adapt(minimum=2, maximum=3, interval="100ms", wait_count=2)


async def _expire_one(cluster: RentGPUCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    _let_expire(cluster, monkeypatch, "gpu-2")


async def _expire_each(cluster: RentGPUCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    _let_expire(cluster, monkeypatch, *cluster.rentals)


async def _expire_all(cluster: RentGPUCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the leases of all machines end at one time, as of a budget that is spent."""
    assert cluster._rentals.budget is not None
    cluster._rentals.budget.is_spent = True
    _let_expire(cluster, monkeypatch, *cluster.rentals)


async def _expire_two(cluster: RentGPUCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the leases of two machines end, as if the budget had no more room for them, nor for others."""
    assert cluster._rentals.budget is not None
    cluster._rentals.budget.is_spent = True
    _let_expire(cluster, monkeypatch, "gpu-2", "gpu-3")


def _let_expire(cluster: RentGPUCluster, monkeypatch: pytest.MonkeyPatch, *entries: str) -> None:
    """Let the leases of some machines end, as if the state file could not be written for them."""
    extend, names = AsyncRental._extend_lease, {cluster.rentals[entry].name for entry in entries}

    async def extend_others(self: AsyncRental, until: Any, *, is_whole: bool) -> None:
        if self.name in names:
            raise StateFileError("cannot be written")
        await extend(self, until, is_whole=is_whole)

    monkeypatch.setattr(AsyncRental, "_extend_lease", extend_others)


@pytest.mark.slow
async def test_last_worker_keeps_the_data_when_all_leases_end_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lease(gpu: AsyncRentGPU) -> None:
        set_limits(gpu, lease=16.0)

    async with open_site(tmp_path, change=lease) as site, site.cluster(3, budget=5) as cluster:
        await until_running(cluster, 3)
        async with client_of(cluster) as client, asyncio.timeout(120):
            values = [bytes([number]) * 1000 for number in range(9)]
            scattered = await client.scatter(values, hash=False)
            await _expire_all(cluster, monkeypatch)
            await until(lambda: len(seen_workers(cluster)) == 1)
            assert await client.gather(scattered) == values
        await until(lambda: cluster.status is Status.closed)
        assert isinstance(cluster.reason, BudgetExceededError)


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        _scale,
        pytest.param(_adapt, marks=pytest.mark.full),
        _expire_two,
        pytest.param(_expire_one, marks=pytest.mark.full),
        pytest.param(_expire_each, marks=pytest.mark.full),
    ],
    ids=["scale", "adapt", "expiry", "expiry of one that is replaced", "expiry of all, which are replaced"],
)
async def test_scattered_data_stays_when_workers_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Any) -> None:
    workers = {_expire_one: 3, _expire_each: 2}.get(end, 4)

    def lease(gpu: AsyncRentGPU) -> None:
        # Where all are replaced, others have to start within half of that.
        set_limits(gpu, lease=40.0 if end is _expire_each else 16.0)

    async with open_site(tmp_path, change=lease) as site, site.cluster(workers, budget=5) as cluster:
        await until_running(cluster, workers)
        async with client_of(cluster) as client, asyncio.timeout(120):
            values = [bytes([number]) * 1000 for number in range(3 * workers)]
            scattered = await client.scatter(values, hash=False)
            assert len(set((await client.who_has(scattered)).values())) == workers
            machines = {charge.container_id for charge in site.emulator.running}
            await end(cluster, monkeypatch)
            wanted = workers if end in (_expire_one, _expire_each) else 2
            await until(
                lambda: (
                    len(seen_workers(cluster)) == wanted == len(site.emulator.running)
                    and {charge.container_id for charge in site.emulator.running} != machines
                )
            )
            assert await client.gather(scattered) == values
            assert await client.gather(client.map(tenfold, range(20))) == list(range(0, 200, 10))
        assert isinstance(cluster.reason, BudgetExceededError) if end is _expire_two else cluster.reason is None

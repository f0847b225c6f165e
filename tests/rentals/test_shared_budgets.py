"""Budgets that processes share: rentals keep to them together, also while some are killed."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import attrs
import pytest
from lifecycle import put_as_it_is, set_clock
from rented import IMAGE
from renters import renting

from netmind_rentgpu import (
    AsyncRentGPU,
    InsufficientBudgetError,
    InvalidArgumentError,
    NoMachineError,
    PermissionDeniedError,
    RentGPU,
)
from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger.process_identity import this_process

HOUR = timedelta(hours=1)


async def cheapest(gpu: AsyncRentGPU) -> Decimal:
    """Return the lowest price of an hour."""
    price = (await gpu.offers())[0].hourly_price
    assert price is not None
    return price


async def test_rental_reserves_its_price_and_gives_back_what_it_did_not_cost(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    price = await cheapest(gpu)
    await gpu.budgets.set("team", 3 * price)
    async with gpu.rent(image=IMAGE, ttl=2 * HOUR, extendable_to=9 * HOUR, shared_budget="team") as rental:
        (record,) = await gpu.rentals.list()
        assert record.shared_budget == "team"
        (budget,) = await gpu.budgets.list()
        assert budget.reserved == pytest.approx(2 * price, abs=Decimal("0.00001"))
        assert (budget.spent, budget.holders) == (0, (rental.name,))
        creates = len(emulator.requests.of("create_container"))
        with pytest.raises(InsufficientBudgetError, match=f"reserved by {rental.name}") as raised:
            await gpu.rent(image=IMAGE, ttl=2 * HOUR, shared_budget="team").open()
        assert raised.value.holders == (rental.name,)
        # Nothing was asked.
        assert len(emulator.requests.of("create_container")) == creates
        # A shorter rental has room, and so has one without the budget.
        async with gpu.rent(image=IMAGE, ttl=0.9 * HOUR, max_price=price * 2, gpus=1), gpu.rent(image=IMAGE):
            pass
        with pytest.raises(InsufficientBudgetError, match="has no room for"):
            await rental.extend(ttl=4 * HOUR)
        assert (await rental.extend(ttl=2.5 * HOUR)).expires_at == rental.expires_at
    (budget,) = await gpu.budgets.list()
    (past,) = [past for past in await gpu.rentals.history() if past.shared_budget == "team"]
    assert (budget.spent, budget.reserved, budget.hourly_now, budget.holders) == (past.spent, 0, 0, ())
    await gpu.budgets.remove("team")
    assert await gpu.budgets.list() == []
    assert {past.shared_budget for past in await gpu.rentals.history()} == {None}
    emulator.assert_nothing_rented()


async def test_hourly_limit_bounds_what_runs_at_once(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    # Room for one, which need not be the cheapest: the list may not yet show that machine again.
    await gpu.budgets.set("team", hourly=await cheapest(gpu) * Decimal("1.5"))
    async with gpu.rent(image=IMAGE, shared_budget="team"):
        with pytest.raises(InsufficientBudgetError, match="an hour run already by rg-"):
            await gpu.rent(image=IMAGE, shared_budget="team").open()
    async with gpu.rent(image=IMAGE, shared_budget="team"):
        pass
    emulator.assert_nothing_rented()


async def test_refused_machine_gives_its_reservation_back_before_the_next_is_asked(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    price = await cheapest(gpu)
    emulator.faults.add(Fault("stock-out"))
    (_, second, *_) = await gpu.offers()
    assert second.hourly_price is not None
    await gpu.budgets.set("team", max(price, second.hourly_price) * Decimal("1.5"))
    async with gpu.rent(image=IMAGE, ttl=HOUR, shared_budget="team"):
        assert len((await gpu.budgets.list())[0].holders) == 1
    emulator.assert_nothing_rented()


async def test_machines_that_do_not_start_count_with_what_they_cost(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("dies", times="all"))
    await gpu.budgets.set("team", 100)
    with pytest.raises(NoMachineError):
        await gpu.rent(image=IMAGE, fail=status_in(3), shared_budget="team").open()
    (budget,) = await gpu.budgets.list()
    costs = [past.spent or 0 for past in await gpu.rentals.history()]
    assert len(costs) == 3
    assert (budget.spent, budget.reserved) == (sum(costs), 0)


async def test_rental_that_runs_on_after_its_end_counts_as_long_as_it_runs(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    price = await cheapest(gpu)
    await gpu.budgets.set("team", 10 * price)
    async with gpu.rent(image=IMAGE, ttl=HOUR, shared_budget="team") as rental:
        record = await rental.detach()
    set_clock(gpu, 8 * HOUR, boot="another")
    (budget,) = await gpu.budgets.list()
    assert budget.reserved == pytest.approx(8 * price, abs=Decimal("0.001"))
    assert budget.hourly_now == price
    await gpu.rentals.release(record)
    (budget,) = await gpu.budgets.list()
    assert budget.spent == pytest.approx(8 * price, abs=Decimal("0.001"))
    emulator.assert_nothing_rented()


async def test_budget_of_one_rental_fits_in_an_empty_shared_one_at_any_price(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    for number, offer in enumerate(await gpu.offers()):
        await gpu.budgets.set(f"team-{number}", 5)
        others = [other.machine.node_name for other in await gpu.offers() if other != offer]
        async with gpu.rent(
            image=IMAGE, ttl=timedelta(days=900), budget=5, shared_budget=f"team-{number}", exclude=others
        ) as rental:
            assert rental.max_cost == 5
    emulator.assert_nothing_rented()


async def test_room_that_a_killed_process_holds_is_reaped_before_a_refusal(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    price = await cheapest(gpu)
    # Room for one, which need not be the cheapest: the list may not yet show that machine again.
    await gpu.budgets.set("team", hourly=price * Decimal("1.5"))
    async with gpu.rent(image=IMAGE, shared_budget="team") as rental:
        record = await rental.detach()
    dead = attrs.evolve(this_process(), started="before")
    # As if it was killed during its create.
    intent = {"container_id": None, "shown_name": None, "created_at": None, "ready_at": None}
    await put_as_it_is(gpu, attrs.evolve(record, stage="intended", owner=dead, **intent))
    set_clock(gpu, 30 * HOUR, boot="another")
    (budget,) = await gpu.budgets.list()
    assert (budget.hourly_now, budget.holders) == (price, (record.name,))
    async with gpu.rent(image=IMAGE, shared_budget="team"):
        assert len(emulator.running) == 1
    emulator.assert_nothing_rented()


async def test_budget_with_a_refused_create_alone_is_removed(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="create_container", status=403))
    await gpu.budgets.set("team", 50)
    with pytest.raises(PermissionDeniedError):
        await gpu.rent(image=IMAGE, shared_budget="team").open()
    assert [budget.holders for budget in await gpu.budgets.list()] == [()]
    await gpu.budgets.remove("team")
    assert await gpu.budgets.list() == []


async def test_lower_limit_of_an_hour_refuses_no_extension(gpu: AsyncRentGPU) -> None:
    await gpu.budgets.set("team", 50, hourly=10)
    async with gpu.rent(image=IMAGE, shared_budget="team") as rental:
        await gpu.budgets.set("team", 50, hourly=0.001)
        assert (await rental.extend(ttl=30 * HOUR)).expires_at == rental.expires_at
        # A larger budget of its own moves no deadline, so that the shared one has no say.
        await gpu.budgets.set("team", 0.001)
        await rental.extend(budget=100)


async def test_unusable_budgets_are_refused(gpu: AsyncRentGPU) -> None:
    for options, text in (
        ({}, "limit: is missing; give limit=, hourly= or both"),
        ({"limit": 0}, "limit: must be above 0"),
        ({"hourly": -1}, "hourly: must be above 0"),
        ({"limit": 1, "per": "week"}, "per: must be day, month or None, not 'week'"),
        ({"hourly": 1, "per": "day"}, "per: has no effect without limit="),
        ({"limit": "much"}, "limit: must be a number"),
        ({"limit": 1, "currency": "EUR"}, "currency: must be one of USD, NMT, CNY, not 'EUR'"),
    ):
        with pytest.raises(InvalidArgumentError, match=text):
            await gpu.budgets.set("team", **options)
    with pytest.raises(InvalidArgumentError, match="name: must be a text of 1 to 100 printable characters"):
        await gpu.budgets.set("", 1)
    with pytest.raises(InvalidArgumentError, match="shared_budget: there is no budget 'team'; there are none"):
        await gpu.rent(image=IMAGE, shared_budget="team").open()
    with pytest.raises(InvalidArgumentError, match="shared_budget: cannot be enforced with keep=True"):
        gpu.rent(image=IMAGE, shared_budget="team", keep=True)
    await gpu.budgets.set("team", 1, currency="cny")
    with pytest.raises(InvalidArgumentError, match="'team' is in CNY, and the rental in USD"):
        await gpu.rent(image=IMAGE, shared_budget="team").open()


@pytest.mark.slow
@pytest.mark.xdist_group("machine")
async def test_processes_never_hold_more_than_their_budget_together(full: bool, tmp_path: Path) -> None:
    count, kills = (20, 6) if full else (8, 3)
    async with renting(tmp_path, machines=200) as service, service.client() as gpu:
        # Each takes a machine of at most 1 USD an hour, for an hour.
        limit = Decimal("2.5")
        await gpu.budgets.set("team", limit, hourly=limit)
        running = asyncio.create_task(service.run_file("budget_renters.py", str(count), str(kills), measured=False))
        most = Decimal(0)
        while not running.done():
            most = max(most, sum((charge.hourly_price for charge in service.emulator.running), Decimal(0)))
            await asyncio.sleep(0.005)
        program = running.result()
        assert (program.status, program.errors) == (0, "")
        assert program.output == f"[{-signal.SIGKILL}, 0] {kills}\n"
        assert 0 < most <= limit
        print(f"at most {most} of {limit} USD an hour ran at once")
        await gpu.rentals.reap(wait=True)
        (budget,) = await gpu.budgets.list()
        assert (budget.reserved, budget.hourly_now, budget.holders) == (0, 0, ())
        assert budget.spent <= limit
        assert len(service.emulator.charges) == count
        service.emulator.assert_nothing_rented()


def test_synchronous_budgets_are_the_same(tmp_path: Path) -> None:
    with RentGPU("a-token", base_url="http://127.0.0.1:9", state=tmp_path / "state") as gpu:
        gpu.budgets.set("team", 5, per="day")
        (budget,) = gpu.budgets.list()
        assert (budget.name, budget.limit, budget.per, budget.currency) == ("team", 5, "day", "USD")
        gpu.budgets.remove("team")
        assert gpu.budgets.list() == []

"""Entering and leaving a fleet, its commands, its money, and its errors."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import attrs
import pytest
from lifecycle import expire, refuse_deletes, set_clock, set_limits
from rented import IMAGE, cancel_twice
from until import until

from netmind_rentgpu import (
    AsyncRentGPU,
    AuthenticationError,
    BudgetExceededError,
    ClientStateError,
    InsufficientBudgetError,
    InvalidArgumentError,
    NoMachineError,
    RateLimitError,
    ReleaseError,
    RentalEndedError,
    RentalExpiredError,
    SSHError,
)
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals.ledger.shared_budgets import SharedBudget

HOUR = timedelta(hours=1)


async def all_but(gpu: AsyncRentGPU, count: int) -> list[str]:
    """Return the nodes of all machines but so many that have one GPU each."""
    offers = await gpu.offers()
    kept = [offer.machine.node_name for offer in offers if offer.machine.gpu_count == 1][:count]
    assert len(kept) == count
    return [offer.machine.node_name for offer in offers if offer.machine.node_name not in kept]


async def test_fleet_has_all_its_machines_and_gives_them_back(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    fleet = gpu.rent_many(5, image=IMAGE, label="sweep", ttl=HOUR)
    assert (fleet.rentals, fleet.expires_at, fleet.spent) == ((), None, 0)
    assert repr(fleet) == "<AsyncFleet of 5 machines: nothing is rented yet>"
    before = datetime.now(UTC)
    async with fleet as entered:
        assert entered is fleet
        assert len({rental.name for rental in fleet.rentals}) == 5
        assert {rental.label for rental in fleet.rentals} == {"sweep"}
        assert fleet.expires_at is not None
        assert before + HOUR <= fleet.expires_at <= datetime.now(UTC) + HOUR
        # The time is the fleet's, so that no machine has more of it.
        assert all(rental.expires_at and rental.expires_at <= fleet.expires_at for rental in fleet.rentals)
        assert len(emulator.running) == 5
        assert fleet.spent is not None
        assert fleet.spent > 0
        assert repr(fleet) == "<AsyncFleet of 5 machines: 5 are up>"
    assert fleet.rentals == ()
    assert repr(fleet) == "<AsyncFleet of 5 machines: left>"
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []
    with pytest.raises(ClientStateError, match="was left"):
        await fleet.run("true")
    with pytest.raises(ClientStateError, match="entered or closed before"):
        await fleet.open()


async def test_command_runs_on_each_machine_and_results_are_in_the_order_of_the_rentals(gpu: AsyncRentGPU) -> None:
    async with gpu.rent_many(3, image=IMAGE) as fleet:
        names = [rental.name for rental in fleet.rentals]
        for rental in fleet.rentals:
            await rental.run(f"echo {rental.name} > name", check=True)
        results = await fleet.run("cat name; cat", input="given")
        assert [result.stdout for result in results] == [f"{name}\ngiven" for name in names]
        assert [result.exit_status for result in await fleet.run("exit 3")] == [3, 3, 3]
        with pytest.raises(SSHError, match="ended with status 3"):
            await fleet.run("exit 3", check=True)
        one = fleet.rentals[1]
        with pytest.raises(SSHError, match="with status 4"):
            await fleet.run(f'[ "$(cat name)" = {one.name} ] && exit 4; exec sleep 3600', check=True)


async def test_fleet_without_a_block_is_given_back_by_close(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    fleet = await gpu.rent_many(2, image=IMAGE).open()
    assert len(fleet.rentals) == 2
    await fleet.close()
    await fleet.close()
    emulator.assert_nothing_rented()
    never = gpu.rent_many(2, image=IMAGE)
    await never.close()
    with pytest.raises(ClientStateError, match="entered or closed before"):
        await never.open()


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"count": 0}, "count"),
        ({"count": 2.5}, "count"),
        ({"count": 2, "at_least": 0}, "at_least"),
        ({"count": 2, "at_least": 3}, "at_least"),
        ({"count": 2, "ttl": timedelta(0)}, "ttl"),
        ({"count": 2, "budget": 0}, "budget"),
        ({"count": 2, "budget": 5, "shared_budget": "team"}, "shared_budget"),
        ({"count": 2, "gpus": 0}, "gpus"),
        ({"count": 2, "timeout": 0}, "timeout"),
        ({"count": 2, "idle_when": len}, "idle_when"),
        ({"count": 2, "wait_for_stock": 5}, "wait_for_stock"),
    ],
)
async def test_arguments_that_cannot_be_used_are_refused_before_anything_is_rented(
    gpu: AsyncRentGPU, emulator: Emulator, options: dict[str, Any], argument: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{argument}:"):
        gpu.rent_many(image=IMAGE, **options)
    with pytest.raises(TypeError, match="keep"):
        gpu.rent_many(2, keep=True)  # type: ignore[call-arg]  # refused
    assert len(emulator.requests) == 0


async def test_iterators_among_the_arguments_are_for_each_machine(gpu: AsyncRentGPU) -> None:
    others = await all_but(gpu, 2)
    async with gpu.rent_many(2, image=IMAGE, exclude=iter(others), regions=None, labels=iter(())) as fleet:
        assert not {rental.machine.node_name for rental in fleet.rentals} & set(others)


async def test_fleet_waits_for_stock_beyond_its_time_to_start(gpu: AsyncRentGPU) -> None:
    with pytest.raises(NoMachineError, match=r"1\. none of the .*; none was available within 4 s"):
        await gpu.rent_many(
            1, image=IMAGE, max_price=Decimal("0.000001"), timeout=3.5, wait_for_stock=timedelta(seconds=4)
        ).open()


async def test_fleet_with_fewer_machines_than_wanted_is_entered_if_there_are_enough(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent_many(5, at_least=3, image=IMAGE, exclude=await all_but(gpu, 3)) as fleet:
        assert len(fleet.rentals) == 3
        assert [result.stdout for result in await fleet.run("echo here")] == ["here\n"] * 3
    emulator.assert_nothing_rented()


async def test_fleet_with_too_few_machines_gives_them_back_and_says_why_of_each(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    others = await all_but(gpu, 3)
    with pytest.raises(
        NoMachineError, match=r"3 of 5 machines could be rented, and 4 are needed; .*: 1\. .*, 2\. "
    ) as raised:
        async with gpu.rent_many(5, at_least=4, image=IMAGE, exclude=others):
            raise AssertionError("it was entered")
    assert isinstance(raised.value.__cause__, ExceptionGroup)
    assert len(raised.value.__cause__.exceptions) == 2
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_fleet_without_any_machine_lists_the_refusals(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(NoMachineError, match="0 of 2 machines could be rented") as raised:
        await gpu.rent_many(2, image=IMAGE, max_price=Decimal("0.000001")).open()
    assert raised.value.refusals == ()
    emulator.faults.add(Fault("stock-out", times="all"))
    with pytest.raises(NoMachineError) as raised:
        await gpu.rent_many(2, image=IMAGE, gpu_name="RTX 4090").open()
    assert raised.value.refusals
    emulator.assert_nothing_rented()


async def test_error_that_all_machines_would_have_is_raised_once_and_as_it_is(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    emulator.revoke_token(emulator.token)
    with pytest.raises(AuthenticationError):
        await gpu.rent_many(20, at_least=1, image=IMAGE).open()
    emulator.assert_nothing_rented()


async def test_error_of_a_function_of_the_user_is_raised_as_it_is(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(InvalidArgumentError, match="key: cannot be used to sort offers"):
        await gpu.rent_many(3, at_least=1, image=IMAGE, key=lambda offer: 1 / 0).open()
    emulator.assert_nothing_rented()


async def test_machines_that_are_late_are_given_back_when_the_time_is_up(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("never starts", times=2))
    async with gpu.rent_many(4, at_least=2, image=IMAGE, timeout=3) as fleet:
        assert len(fleet.rentals) == 2
        assert [result.stdout for result in await fleet.run("echo here")] == ["here\n"] * 2
        await until(lambda: len(emulator.running) == 2)
    emulator.assert_nothing_rented()
    emulator.faults.add(Fault("never starts", times=2))
    with pytest.raises(NoMachineError, match="2 of 4 machines"):
        await gpu.rent_many(4, image=IMAGE, timeout=3).open()
    emulator.assert_nothing_rented()


@pytest.mark.rentgpu_may_leave_unmet_faults
@pytest.mark.parametrize("cancel", [lambda task: task.cancel(), cancel_twice], ids=["once", "twice"])
@pytest.mark.parametrize("moment", ["list_machines", "create_container", "get_container", "ready"])
async def test_cancelled_entry_leaves_nothing_rented(
    gpu: AsyncRentGPU, emulator: Emulator, moment: str, cancel: Callable[[asyncio.Task[Any]], Any]
) -> None:
    # Otherwise all four may be ready before the next look.
    emulator.faults.add(Fault("never starts"))
    entered = asyncio.create_task(gpu.rent_many(4, image=IMAGE).open())
    if moment == "ready":
        await until(lambda: any(rental.ready_at for rental in ready) if (ready := gpu_records(gpu)) else False)
    else:
        await until(lambda: emulator.requests.of(moment))
    ended = cancel(entered)
    if asyncio.iscoroutine(ended):
        await ended
    with pytest.raises(asyncio.CancelledError):
        await entered
    # After two interrupts, what one attempt has not deleted is on record.
    await gpu.rentals.reap(wait=True)
    emulator.assert_nothing_rented()


def gpu_records(gpu: AsyncRentGPU) -> list[Any]:
    """Return the records of the attempts that this client has under way."""
    return [
        tracked.attempt.record for rental in gpu._context.live for tracked in rental._provisioner._attempts.values()
    ]


async def test_error_of_the_body_passes_and_everything_is_given_back(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with gpu.rent_many(2, image=IMAGE):
            raise KeyError("mine")
    emulator.assert_nothing_rented()


async def test_machine_that_cannot_be_deleted_is_an_error_or_a_note(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    set_limits(gpu, deletion=0.2)
    refuse_deletes(emulator, "all")
    with pytest.raises(ReleaseError, match="delete") as raised:
        async with gpu.rent_many(2, image=IMAGE):
            pass
    assert len(raised.value.__notes__) == 1
    with pytest.raises(KeyError) as noted:
        async with gpu.rent_many(2, image=IMAGE):
            raise KeyError("mine")
    assert len(noted.value.__notes__) == 2
    emulator.faults.clear()
    assert len((await gpu.rentals.reap(wait=True)).deleted) == 4
    emulator.assert_nothing_rented()


async def test_closing_the_client_gives_the_fleet_back(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    fleet = await gpu.rent_many(3, image=IMAGE, budget=5).open()
    await gpu.close()
    emulator.assert_nothing_rented()
    assert fleet.rentals == ()
    with pytest.raises((ClientStateError, RentalEndedError)):
        await fleet.run("true")
    await fleet.close()


async def test_time_of_the_fleet_ends_all_its_machines(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent_many(2, image=IMAGE) as fleet:
        rentals = fleet.rentals
        for rental in rentals:
            expire(rental)
        await until(lambda: not emulator.running)
        assert fleet.rentals == ()
        with pytest.raises(RentalExpiredError, match="is up since"):
            await fleet.run("true")
        with pytest.raises(RentalExpiredError, match="is up since"):
            await rentals[0].run("true")
    emulator.assert_nothing_rented()


async def test_budget_is_a_shared_one_in_which_each_machine_reserves_a_lease(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent_many(3, image=IMAGE, budget=Decimal(2), ttl=5 * HOUR) as fleet:
        (budget,) = await gpu.budgets.list()
        prices = [rental.hourly_price or 0 for rental in fleet.rentals]
        assert (budget.limit, budget.expires_at) == (2, fleet.expires_at and fleet.expires_at + 5 * HOUR)
        assert budget.name.startswith("fleet ")
        assert set(budget.holders) == {rental.name for rental in fleet.rentals}
        # Ten minutes of each.
        assert budget.reserved == pytest.approx(sum(prices) / 6, rel=Decimal("0.01"))
        assert all(record.budget is None for record in await gpu.rentals.list())
    assert await gpu.budgets.list() == []
    emulator.assert_nothing_rented()


@pytest.mark.slow
async def test_leases_are_extended_while_the_budget_has_room_and_machines_end_by_it_then(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    # Long enough for a machine that is busy with other tests to extend it in time.
    set_limits(gpu, lease=5.0)
    price = (await gpu.offers())[0].hourly_price or Decimal(0)
    events: list[str] = []
    # Ten seconds of two machines.
    limit = price * Decimal(20) / 3600
    async with gpu.rent_many(
        2, image=IMAGE, budget=limit, ttl=HOUR, on_event=lambda event: events.append(event.kind)
    ) as fleet:
        first = fleet.rentals[0]
        ends = {first.expires_at}

        def has_ended() -> bool:
            if not first.ended:
                ends.add(first.expires_at)
            return not emulator.running

        await until(has_ended)
        assert len(ends) > 2
        with pytest.raises(BudgetExceededError, match=r"no machine of the fleet is left: its budget of .* is spent"):
            await fleet.run("true")
        with pytest.raises(BudgetExceededError, match="has no room for more"):
            await first.run("true")
        with pytest.raises(BudgetExceededError, match="is spent"):
            await fleet.map(lambda rental, item: rental.run("true"), [1])
    assert "extended" not in events
    past = await gpu.rentals.history()
    assert {rental.cause for rental in past} == {"budget"}
    # The price of each is the listed one, so that the sum is exact; a lease more is promised.
    assert sum(rental.spent or 0 for rental in past) <= limit + 2 * 5 * price / 3600
    emulator.assert_nothing_rented()


async def test_machine_whose_lease_the_fleet_extends_cannot_be_detached(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent_many(1, image=IMAGE, budget=5) as fleet:
        with pytest.raises(ClientStateError, match="belongs to a fleet with a budget"):
            await fleet.rentals[0].detach()
    emulator.assert_nothing_rented()
    async with gpu.rent_many(2, image=IMAGE) as fleet:
        record = await fleet.rentals[0].detach()
        assert len(fleet.rentals) == 1
    assert len(emulator.running) == 1
    await gpu.rentals.release(record)
    emulator.assert_nothing_rented()


async def test_fleet_that_its_budget_has_no_room_for_is_not_rented(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    price = (await gpu.offers())[0].hourly_price or Decimal(0)
    with pytest.raises(NoMachineError, match="has no room for") as raised:
        await gpu.rent_many(2, image=IMAGE, budget=price / 1000).open()
    assert isinstance(raised.value.__cause__, ExceptionGroup)
    assert {type(error) for error in raised.value.__cause__.exceptions} == {InsufficientBudgetError}
    assert len(emulator.requests.of("create_container")) == 0
    assert await gpu.budgets.list() == []


async def test_machines_that_did_not_start_count_in_the_budget(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("never starts", times=2))
    async with gpu.rent_many(2, image=IMAGE, budget=5, start_timeout=1) as fleet:
        spent = fleet.spent
        (budget,) = await gpu.budgets.list()
        assert budget.spent > 0
        assert spent is not None
        assert spent >= budget.spent
    emulator.assert_nothing_rented()


async def test_named_shared_budget_holds_the_whole_time_of_each_machine(gpu: AsyncRentGPU) -> None:
    await gpu.budgets.set("team", 50)
    async with gpu.rent_many(2, image=IMAGE, shared_budget="team", ttl=2 * HOUR) as fleet:
        (budget,) = await gpu.budgets.list()
        prices = sum(rental.hourly_price or 0 for rental in fleet.rentals)
        assert budget.reserved == pytest.approx(2 * prices, rel=Decimal("0.01"))


async def test_budget_of_a_killed_fleet_is_removed_once_it_has_expired(gpu: AsyncRentGPU) -> None:
    budget = SharedBudget(name="fleet left", limit=Decimal(1), currency="USD", expires_at=datetime.now(UTC) + HOUR)
    await gpu._context.budgets.set(budget, gpu._context.clock())
    await gpu.budgets.set("team", 5)
    assert [found.name for found in await gpu.budgets.list()] == ["fleet left", "team"]
    set_clock(gpu, 2 * HOUR)
    await gpu.budgets.set("other", 5)
    assert [found.name for found in await gpu.budgets.list()] == ["other", "team"]


async def test_expired_budget_of_a_fleet_stays_while_it_has_a_rental(gpu: AsyncRentGPU) -> None:
    async with gpu.rent_many(1, image=IMAGE, budget=1) as fleet:
        (budget,) = await gpu.budgets.list()
        moment = attrs.evolve(budget, expires_at=datetime.now(UTC) - HOUR)
        await gpu._context.budgets.remove(budget.name) if not budget.holders else None
        assert fleet.rentals
        state = gpu._context.ledger._state
        await state.write(
            lambda connection: connection.execute(
                "UPDATE budgets SET expires_at = ?",
                (moment.expires_at.isoformat(timespec="microseconds"),),  # type: ignore[union-attr]  # set above
            )
        )
        await gpu.budgets.set("team", 5)
        assert [found.name for found in await gpu.budgets.list()] == [budget.name, "team"]


async def test_idle_machine_of_a_fleet_ends_alone(gpu: AsyncRentGPU) -> None:
    async with gpu.rent_many(2, image=IMAGE, idle_timeout=HOUR) as fleet:
        assert {record.idle_timeout for record in await gpu.rentals.list()} == {HOUR}
        fleet.rentals[0]._end_idle()
        assert len(fleet.rentals) == 1
        assert len(await fleet.run("true")) == 1


async def test_rate_limit_of_all_creates_is_told_for_each(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("rate limit", call="create_container", times="all"))
    with pytest.raises(NoMachineError) as raised:
        await gpu.rent_many(2, image=IMAGE).open()
    assert isinstance(raised.value.__cause__, ExceptionGroup)
    assert {type(error) for error in raised.value.__cause__.exceptions} <= {RateLimitError, NoMachineError}
    emulator.assert_nothing_rented()


async def test_fleet_belongs_to_its_loop_and_process(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent_many(1, image=IMAGE) as fleet:

        def use_elsewhere() -> None:
            with pytest.raises(ClientStateError, match="another event loop"):
                asyncio.run(fleet.run("true"))

        await asyncio.to_thread(use_elsewhere)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(fleet)
        with pytest.raises(ClientStateError, match="another process"):
            await copy.copy(fleet).run("true")
        assert emulator.running

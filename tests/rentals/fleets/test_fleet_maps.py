"""Maps over the machines of a fleet: lost machines, lost connections, errors, and replacements."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from lifecycle import expire, set_limits
from rented import IMAGE
from until import until

from netmind_rentgpu import (
    AsyncRental,
    AsyncRentGPU,
    ClientStateError,
    InvalidArgumentError,
    RentalEndedError,
    RentalExpiredError,
    SSHError,
)
from netmind_rentgpu.emulator import Emulator, Fault


async def echo(rental: AsyncRental, item: object) -> str:
    return str(await rental.run(f"echo {item}", check=True)).strip()


async def test_each_item_has_its_result_in_the_order_of_the_items(gpu: AsyncRentGPU) -> None:
    async with gpu.rent_many(3, image=IMAGE) as fleet:
        assert await fleet.map(echo, range(10)) == [str(number) for number in range(10)]
        assert await fleet.map(echo, iter("ab")) == ["a", "b"]
        assert await fleet.map(echo, []) == []


async def test_each_machine_works_on_one_item_at_a_time_and_all_machines_work(gpu: AsyncRentGPU) -> None:
    working: Counter[str] = Counter()
    most: Counter[str] = Counter()
    arrived, go = 0, asyncio.Event()

    async def work(rental: AsyncRental, item: int) -> int:
        nonlocal arrived
        working[rental.name] += 1
        most[rental.name] = max(most[rental.name], working[rental.name])
        arrived += 1
        if arrived == 3:
            go.set()
        await go.wait()
        working[rental.name] -= 1
        return item

    async with gpu.rent_many(3, image=IMAGE) as fleet:
        assert await fleet.map(work, range(12)) == list(range(12))
        assert most == {rental.name: 1 for rental in fleet.rentals}


async def test_item_of_a_deleted_container_goes_to_another_machine(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    tried: defaultdict[int, list[str]] = defaultdict(list)

    async def work(rental: AsyncRental, item: int) -> int:
        tried[item].append(rental.name)
        if item == 4 and len(tried[4]) == 1:
            await gpu.containers.delete(rental.container.id)
        await rental.run("true", check=True)
        return item

    async with gpu.rent_many(3, image=IMAGE) as fleet:
        assert await fleet.map(work, range(9)) == list(range(9))
        assert len(fleet.rentals) == 2
        assert len(set(tried[4])) == 2
        assert {len(names) for item, names in tried.items() if item != 4} == {1}
    emulator.assert_nothing_rented()


async def test_function_is_cancelled_when_its_machine_ends_and_its_item_goes_on_elsewhere(gpu: AsyncRentGPU) -> None:
    cancelled: list[str] = []

    async def work(rental: AsyncRental, item: int) -> str:
        if item == 0 and not cancelled:
            expire(rental)
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.append(rental.name)
                raise
        return rental.name

    async with gpu.rent_many(2, image=IMAGE) as fleet:
        (name,) = await fleet.map(work, [0])
        assert cancelled
        assert cancelled != [name]


async def test_item_whose_connection_was_lost_is_worked_on_again_by_the_same_machine(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    tries = 0

    async def work(rental: AsyncRental, item: int) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            assert rental.shell._connection._connection is not None
            rental.shell._connection._connection.abort()
        return await echo(rental, item)

    async with gpu.rent_many(1, image=IMAGE) as fleet:
        assert await fleet.map(work, [7]) == ["7"]
        assert (tries, len(fleet.rentals)) == (2, 1)
        tries = 0
        with pytest.raises(SSHError) as raised:
            await fleet.map(work, [7], retries=0)
        assert raised.value.stage == "connection"


async def test_machine_that_allows_no_login_is_given_back(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent_many(2, image=IMAGE) as fleet:
        bad = fleet.rentals[0]
        emulator.faults.add(Fault("ssh refuse", path=f"/v1/rentgpu/containers/{bad.container.id}", times="all"))
        bad._connections.longest_outage = 1.0
        assert bad.shell._connection._connection is not None
        bad.shell._connection._connection.abort()
        assert await fleet.map(echo, range(4)) == ["0", "1", "2", "3"]
        assert bad not in fleet.rentals
        await until(lambda: len(emulator.running) == 1)


async def test_one_refused_login_loses_no_machine(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent_many(1, image=IMAGE) as fleet:
        (rental,) = fleet.rentals
        emulator.faults.add(Fault("ssh refuse", path=f"/v1/rentgpu/containers/{rental.container.id}", times=2))
        assert rental.shell._connection._connection is not None
        rental.shell._connection._connection.abort()
        assert await fleet.map(echo, [1, 2]) == ["1", "2"]
        assert fleet.rentals == (rental,)
    emulator.assert_nothing_rented()


async def test_machine_that_hangs_does_not_stop_the_others(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    done: list[int] = []

    async def work(rental: AsyncRental, item: int) -> int:
        if item == 0 and not done:
            emulator.faults.add(
                Fault("ssh freeze", path=f"/v1/rentgpu/containers/{rental.container.id}", after_bytes=0)
            )
            assert rental.shell._connection._connection is not None
            rental.shell._connection._connection.abort()
        if item == 0:
            # As long as the others have something to do, the lost connection is made again beside them.
            return int(await echo(rental, item))
        done.append(int(await echo(rental, item)))
        return item

    async with gpu.rent_many(2, image=IMAGE) as fleet:
        mapping = asyncio.create_task(fleet.map(work, range(6)))
        await until(lambda: len(done) == 5)
        mapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mapping


async def test_map_that_runs_when_the_fleet_is_left_ends_and_rents_nothing(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent_many(2, replace=True, image=IMAGE) as fleet:
        mapping = asyncio.create_task(fleet.map(lambda rental, item: rental.run("sleep 3600"), range(9)))
        await until(lambda: len(fleet._members.busy) == 2)
        creates = len(emulator.requests.of("create_container"))
    with pytest.raises(ClientStateError, match="this fleet was left"):
        await mapping
    assert len(emulator.requests.of("create_container")) == creates
    emulator.assert_nothing_rented()


async def test_two_maps_at_once_share_the_machines(gpu: AsyncRentGPU) -> None:
    working: Counter[str] = Counter()
    most = 0

    async def work(rental: AsyncRental, item: int) -> int:
        nonlocal most
        working[rental.name] += 1
        most = max(most, working[rental.name])
        await rental.run("true", check=True)
        working[rental.name] -= 1
        return item

    async with gpu.rent_many(2, image=IMAGE) as fleet:
        found = await asyncio.gather(fleet.map(work, range(6)), fleet.map(work, range(6, 12)))
        assert found == [list(range(6)), list(range(6, 12))]
        assert most == 1


async def test_function_may_detach_or_close_its_machine(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async def detach(rental: AsyncRental, item: int) -> str:
        return (await rental.detach()).name

    async def close(rental: AsyncRental, item: int) -> None:
        await rental.close()
        raise ValueError("mine")

    async with gpu.rent_many(3, replace=True, image=IMAGE) as fleet:
        names = await fleet.map(detach, range(2))
        assert {record.name for record in await gpu.rentals.list()} >= set(names)
        creates = len(emulator.requests.of("create_container"))
        with pytest.raises(ValueError, match="mine"):
            await fleet.map(close, [1])
        assert len(emulator.requests.of("create_container")) == creates
        assert fleet.rentals == ()
        with pytest.raises(RentalEndedError, match="no machine of the fleet is left"):
            await fleet.map(echo, [1])
    for name in names:
        await gpu.rentals.release(name)
    emulator.assert_nothing_rented()


async def test_results_are_kept_beside_the_error_of_a_fleet_without_machines(gpu: AsyncRentGPU) -> None:
    async def work(rental: AsyncRental, item: int) -> int:
        if item == 2:
            await gpu.containers.delete(rental.container.id)
            await rental.run("true")
        return item

    async with gpu.rent_many(1, image=IMAGE) as fleet:
        results: list[Any] = await fleet.map(work, range(4), return_exceptions=True)
        assert results[:2] == [0, 1]
        assert [type(result) for result in results[2:]] == [RentalEndedError] * 2


async def test_machine_that_was_lost_outside_a_map_is_replaced_by_the_next(gpu: AsyncRentGPU) -> None:
    async with gpu.rent_many(2, replace=True, image=IMAGE) as fleet:
        lost = fleet.rentals[0]
        await gpu.containers.delete(lost.container.id)
        with pytest.raises(RentalEndedError):
            await fleet.run("true")
        assert await fleet.map(echo, [1, 2]) == ["1", "2"]
        await until(lambda: len(fleet.rentals) == 2)
        assert lost not in fleet.rentals


async def test_loss_in_a_group_of_errors_is_a_loss(gpu: AsyncRentGPU) -> None:
    tries = 0

    async def work(rental: AsyncRental, item: int) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            assert rental.shell._connection._connection is not None
            rental.shell._connection._connection.abort()
        async with asyncio.TaskGroup() as group:
            echoing = group.create_task(echo(rental, item))
        return echoing.result()

    async with gpu.rent_many(1, image=IMAGE) as fleet:
        assert await fleet.map(work, [7]) == ["7"]


@pytest.mark.parametrize("retries", [0, 2])
async def test_item_that_loses_every_machine_ends_the_map_after_its_retries(
    gpu: AsyncRentGPU, emulator: Emulator, retries: int
) -> None:
    lost: list[str] = []

    async def work(rental: AsyncRental, item: int) -> None:
        lost.append(rental.name)
        await gpu.containers.delete(rental.container.id)
        await rental.run("true")

    async with gpu.rent_many(4, image=IMAGE) as fleet:
        with pytest.raises(RentalEndedError, match="is gone"):
            await fleet.map(work, [1], retries=retries)
        assert len(set(lost)) == len(lost) == retries + 1
        results: list[Any] = await fleet.map(work, [1], retries=0, return_exceptions=True)
        assert [type(result) for result in results] == [RentalEndedError]
    emulator.assert_nothing_rented()


async def test_map_without_any_machine_left_ends_with_the_last_loss(gpu: AsyncRentGPU) -> None:
    async def work(rental: AsyncRental, item: int) -> None:
        await gpu.containers.delete(rental.container.id)
        await rental.run("true")

    async with gpu.rent_many(2, image=IMAGE) as fleet:
        with pytest.raises(
            RentalEndedError, match=r"no machine of the fleet is left; the last was lost: .* is gone"
        ) as raised:
            await fleet.map(work, range(5), retries=9)
        assert isinstance(raised.value.__cause__, RentalEndedError)
        with pytest.raises(RentalEndedError, match="no machine of the fleet is left"):
            await fleet.map(echo, [1])


async def test_error_of_the_function_ends_the_others_or_is_its_items_result(gpu: AsyncRentGPU) -> None:
    begun: list[int] = []
    ended: list[int] = []
    go = asyncio.Event()

    async def work(rental: AsyncRental, item: int) -> int:
        begun.append(item)
        try:
            if len(begun) == 2:
                go.set()
            await go.wait()
            if item == 0:
                raise KeyError("mine")
            await asyncio.sleep(3600 if item == 1 else 0)
        finally:
            ended.append(item)
        return item

    async with gpu.rent_many(2, image=IMAGE) as fleet:
        with pytest.raises(KeyError, match="mine"):
            await fleet.map(work, range(9))
        assert sorted(begun) == sorted(ended) == [0, 1]
        # The machines stay, and work on.
        assert await fleet.map(echo, [5]) == ["5"]

        async def fails_for_odd(rental: AsyncRental, item: int) -> int:
            if item % 2:
                raise ValueError(item)
            return item

        results: list[Any] = await fleet.map(fails_for_odd, range(4), return_exceptions=True)
        assert [repr(result) for result in results] == ["0", "ValueError(1)", "2", "ValueError(3)"]


async def test_command_that_fails_is_no_lost_machine(gpu: AsyncRentGPU) -> None:
    tries = 0

    async def work(rental: AsyncRental, item: int) -> None:
        nonlocal tries
        tries += 1
        await rental.run("exit 3", check=True)

    async with gpu.rent_many(2, image=IMAGE) as fleet:
        with pytest.raises(SSHError, match="ended with status 3"):
            await fleet.map(work, [1])
        assert (tries, len(fleet.rentals)) == (1, 2)


async def test_cancelled_map_cancels_its_calls_and_leaves_the_machines(gpu: AsyncRentGPU) -> None:
    running = 0

    async def work(rental: AsyncRental, item: int) -> None:
        nonlocal running
        running += 1
        try:
            await rental.run("sleep 3600")
        finally:
            running -= 1

    async with gpu.rent_many(2, image=IMAGE) as fleet:
        mapping = asyncio.create_task(fleet.map(work, range(5)))
        await until(lambda: running == 2)
        mapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mapping
        assert running == 0
        assert await fleet.map(echo, [1, 2]) == ["1", "2"]


async def test_lost_machine_is_replaced_if_the_fleet_replaces(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    lost = 0

    async def work(rental: AsyncRental, item: int) -> int:
        nonlocal lost
        if item in (1, 5) and lost < 2:
            lost += 1
            await gpu.containers.delete(rental.container.id)
            await rental.run("true")
        return item

    async with gpu.rent_many(2, replace=True, image=IMAGE) as fleet:
        before = set(fleet.rentals)
        assert await fleet.map(work, range(8)) == list(range(8))
        await until(lambda: len(fleet.rentals) == 2)
        assert len(before & set(fleet.rentals)) < 2
        # All machines at once are replaced, too.
        lost = 1
        assert await fleet.map(work, [1]) == [1]
    emulator.assert_nothing_rented()
    async with gpu.rent_many(1, replace=True, image=IMAGE) as fleet:
        lost = 1
        assert await fleet.map(work, [5]) == [5]
    emulator.assert_nothing_rented()


async def test_nothing_is_rented_for_a_lost_machine_once_the_fleet_has_no_time_or_money(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    async with gpu.rent_many(1, replace=True, image=IMAGE, budget=5) as fleet:
        assert fleet._members.rentals.budget is not None
        fleet._members.rentals.budget.is_spent = True
        creates = len(emulator.requests.of("create_container"))

        async def work(rental: AsyncRental, item: int) -> None:
            expire(rental)
            await asyncio.sleep(3600)

        with pytest.raises(RentalEndedError):
            await fleet.map(work, [1])
        assert len(emulator.requests.of("create_container")) == creates
    async with gpu.rent_many(1, replace=True, image=IMAGE, ttl=timedelta(seconds=2)) as fleet:
        creates = len(emulator.requests.of("create_container"))
        with pytest.raises(RentalExpiredError):
            await fleet.map(lambda rental, item: rental.run("sleep 3600"), [1])
        assert len(emulator.requests.of("create_container")) == creates
    emulator.assert_nothing_rented()


@pytest.mark.parametrize(
    ("function", "options", "argument"),
    [
        (None, {}, "function"),
        (lambda rental, item: item, {}, "function"),
        (echo, {"retries": -1}, "retries"),
        (echo, {"retries": True}, "retries"),
        (echo, {"retries": 1.5}, "retries"),
    ],
)
async def test_arguments_of_a_map_that_cannot_be_used_are_refused(
    gpu: AsyncRentGPU, function: Any, options: dict[str, Any], argument: str
) -> None:
    async with gpu.rent_many(1, image=IMAGE) as fleet:
        with pytest.raises(InvalidArgumentError, match=f"^{argument}:"):
            await fleet.map(function, [1], **options)


# Thirty machines log in 12 ms of processor time each, and 300 commands run; the form without --full is a third of it.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("machines", "items"), [(10, 60), pytest.param(30, 300, marks=pytest.mark.full)], ids=["ten", "thirty"]
)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.full), pytest.param(3, marks=pytest.mark.full)])
async def test_map_has_each_result_once_though_machines_refuse_never_start_and_vanish(
    gpu: AsyncRentGPU, emulator: Emulator, machines: int, items: int, seed: int
) -> None:
    """20 % of the creates are refused, 10 % of the machines never start, and 5 % vanish."""
    set_limits(gpu, lease=20.0)
    emulator.faults.add(Fault("stock-out", probability=0.2))
    emulator.faults.add(Fault("never starts", probability=0.1))
    emulator.faults.add(Fault("vanishes", probability=0.05, seconds=1 + seed))
    calls: Counter[int] = Counter()
    limit = Decimal(5)

    async def work(rental: AsyncRental, item: int) -> int:
        calls[item] += 1
        done = await rental.run(f"echo {item}", check=True)
        return int(done.stdout)

    async with gpu.rent_many(
        machines, at_least=machines // 2, replace=True, image=IMAGE, budget=limit, start_timeout=8, timeout=100
    ) as fleet:
        lease = sum(rental.hourly_price or 0 for rental in fleet.rentals) * 20 / 3600
        assert await fleet.map(work, range(items)) == list(range(items))
        assert set(calls) == set(range(items))
    emulator.assert_nothing_rented()
    past = await gpu.rentals.history()
    assert sum(rental.spent or 0 for rental in past) <= limit + lease
    assert await gpu.rentals.list() == []
    assert await gpu.budgets.list() == []

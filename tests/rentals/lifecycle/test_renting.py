"""Renting: a machine is chosen, its container is used, and deleted in the end."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import canaries
import pytest
from rented import IMAGE, client

from netmind_rentgpu import (
    AsyncRentGPU,
    ClientStateError,
    InsufficientBalanceError,
    NoMachineError,
    PermissionDeniedError,
    WaitTimeoutError,
)
from netmind_rentgpu.emulator import Emulator, Fault


async def test_rental_is_created_used_and_deleted(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    rental = gpu.rent(gpu_name="RTX 4090", image=IMAGE)
    with pytest.raises(ClientStateError, match="not entered yet"):
        _ = rental.container
    assert "nothing is rented yet" in repr(rental)
    async with rental as entered:
        assert entered is rental
        (charge,) = emulator.running
        assert charge.name == rental.name
        assert charge.container_id == rental.container.id
        assert charge.hourly_price == rental.hourly_price
        assert rental.machine.gpu_name == "NVIDIA_GeForce_RTX_4090"
        assert (await rental.run("echo $((6 * 7))", check=True)).stdout == "42\n"
        (record,) = await gpu.rentals.list()
        assert (record.name, record.stage, record.container_id) == (rental.name, "ready", rental.container.id)
        assert record.expires_at == rental.expires_at
        spent = rental.spent
        assert spent is not None
        assert 0 < spent < Decimal("0.01")
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []
    spent = rental.spent
    await asyncio.sleep(0)
    assert rental.spent == spent == round(spent or 0, 6)
    with pytest.raises(ClientStateError, match="it was left"):
        await rental.run("true")
    with pytest.raises(ClientStateError, match="it was left"):
        _ = rental.shell
    with pytest.raises(ClientStateError, match="it was left"):
        await rental.__aenter__()
    await rental.close()
    assert len(emulator.requests.of("delete_container")) == 1


async def test_error_in_the_body_comes_out_unchanged(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        async with gpu.rent(image=IMAGE):
            raise ZeroDivisionError
    assert not getattr(raised.value, "__notes__", [])
    emulator.assert_nothing_rented()


async def test_second_rental_sends_few_requests(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    async with gpu.rent(image=IMAGE):
        pass
    earlier = len(emulator.requests)
    async with gpu.rent(image=IMAGE):
        pass
    calls = [request.call for request in list(emulator.requests)[earlier:]]
    assert calls.count("create_container") == calls.count("delete_container") == 1
    assert set(calls) <= {
        *("create_container", "delete_container", "get_container", "list_containers", "get_auth", "list_machines")
    }
    # The list is read once, because the deletion is verified.
    assert calls.count("list_containers") == 1


async def test_machine_that_refused_is_not_tried_again_at_once(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("stock-out", times=2))
    offers = await gpu.offers()
    async with gpu.rent(image=IMAGE) as rental:
        assert rental.machine == offers[2].machine
    # The machines that refused stay excluded for a while.
    async with gpu.rent(image=IMAGE) as rental:
        assert rental.machine == offers[2].machine
    assert len(emulator.requests.of("create_container")) == 4
    emulator.assert_nothing_rented()


async def test_no_machine_error_gives_the_reason_of_each_machine(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    with pytest.raises(
        NoMachineError, match=r"none of the 60 machines on offer will do: .* have another GPU"
    ) as no_machine:
        await gpu.rent(image=IMAGE, gpu_name="RTX 4090", max_price=Decimal("0.01")).__aenter__()
    assert no_machine.value.refusals == ()
    emulator.faults.add(Fault("stock-out", times="all"))
    with pytest.raises(NoMachineError, match=r"could (not )?be rented") as no_machine:
        await gpu.rent(image=IMAGE, gpu_name="RTX 4090").__aenter__()
    tried = len(emulator.requests.of("create_container"))
    assert len(no_machine.value.refusals) == tried > 0
    assert all("free GPUs" in str(refusal.error) for refusal in no_machine.value.refusals)
    # The machines are excluded now, and the error still gives their refusals.
    with pytest.raises(NoMachineError) as again:
        await gpu.rent(image=IMAGE, gpu_name="RTX 4090").__aenter__()
    assert len(again.value.refusals) == tried
    assert len(emulator.requests.of("create_container")) == tried
    # A rental tries 50 machines at most.
    with pytest.raises(NoMachineError, match=r"5\d have refused") as many:
        await gpu.rent(image=IMAGE).__aenter__()
    assert len(emulator.requests.of("create_container")) == tried + 50
    assert len(many.value.refusals) >= 50


async def test_refusal_of_the_account_is_raised_without_trying_another_machine(state: Path) -> None:
    async with (
        Emulator(seed=7, balance=Decimal(0), token=canaries.TOKEN) as emulator,
        client(emulator, state) as gpu,
    ):
        with pytest.raises(InsufficientBalanceError):
            await gpu.rent(image=IMAGE).__aenter__()
        assert len(emulator.requests.of("create_container")) == 1
        emulator.faults.add(Fault("status", call="create_container", status=403))
        with pytest.raises(PermissionDeniedError):
            await gpu.rent(image=IMAGE).__aenter__()
        assert len(emulator.requests.of("create_container")) == 2
        emulator.assert_nothing_rented()


async def test_container_that_never_allows_a_login_is_deleted(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    for fault in ("never starts", "never reachable", "dies"):
        emulator.faults.add(Fault(fault))
        with pytest.raises(WaitTimeoutError, match="no login succeeded"):
            await gpu.rent(image=IMAGE, timeout=0.5).__aenter__()
        emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_no_machine_error_counts_what_is_no_refusal_apart(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="create_container", status=500))
    emulator.faults.add(Fault("stock-out", times="all"))
    with pytest.raises(NoMachineError) as found:
        await gpu.rent(image=IMAGE, regions=["US", "DE"], min_gpu_memory=24).__aenter__()
    count = len(found.value.refusals)
    assert count >= 2
    assert f"; {count - 1} {'has' if count == 2 else 'have'} refused, 1 gave no clear answer: " in str(found.value)


async def test_no_machine_error_of_one_machine_is_singular(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("stock-out"))
    with pytest.raises(
        NoMachineError, match="the only machine that meets the requirements could not be rented; 1 has refused: "
    ):
        await gpu.rent(image=IMAGE, gpu_name="RTX 4090", key=None).__aenter__()

"""Fleets of a synchronous program: plain functions in threads, errors, interrupts and forgotten fleets."""

from __future__ import annotations

import contextvars
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rented import IMAGE, PROFILE, TIMEOUTS
from until import until_sync

from netmind_rentgpu import ClientStateError, InvalidArgumentError, Rental, RentGPU, SSHError
from netmind_rentgpu.emulator import Emulator


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(seed=7, boot_seconds=0.02, ssh=True) as emulator:
        yield emulator


@pytest.fixture
def gpu(emulator: Emulator, tmp_path: Path) -> Iterator[RentGPU]:
    with RentGPU(
        emulator.token, base_url=emulator.url, state=tmp_path / "state.sqlite3", profile=PROFILE, timeout=TIMEOUTS
    ) as gpu:
        yield gpu


def echo(rental: Rental, item: object) -> str:
    return rental.run(f"echo {item}", check=True).stdout.strip()


def test_fleet_runs_maps_and_is_given_back(gpu: RentGPU, emulator: Emulator) -> None:
    with gpu.rent_many(3, image=IMAGE, budget=5) as fleet:
        assert [type(rental) for rental in fleet.rentals] == [Rental] * 3
        # The same objects each time, because a rental is deleted with its last synchronous form.
        assert fleet.rentals == fleet.rentals
        assert [result.stdout for result in fleet.run("echo here")] == ["here\n"] * 3
        assert fleet.map(echo, range(7)) == [str(number) for number in range(7)]
        assert fleet.expires_at is not None
        assert fleet.spent is not None
        assert repr(fleet) == "<Fleet of 3 machines: 3 are up>"
        gc.collect()
        assert len(emulator.running) == 3
    emulator.assert_nothing_rented()
    assert fleet.rentals == ()


def test_calls_run_at_once_in_threads_with_the_callers_context(gpu: RentGPU) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("mine")
    barrier = threading.Barrier(3)

    def work(rental: Rental, item: int) -> tuple[int, str]:
        barrier.wait(60)
        found = variable.get()
        variable.set("changed")
        return item, found

    with gpu.rent_many(3, image=IMAGE) as fleet:
        assert fleet.map(work, range(3)) == [(number, "mine") for number in range(3)]
        # Items may come from calls of this client.
        assert fleet.map(lambda rental, name: name, (rental.name for rental in gpu.rentals.list())) == [
            record.name for record in gpu.rentals.list()
        ]


def test_item_of_a_lost_machine_goes_to_another(gpu: RentGPU, emulator: Emulator) -> None:
    tried: list[str] = []

    def work(rental: Rental, item: int) -> int:
        if item == 2:
            tried.append(rental.name)
            if len(tried) == 1:
                gpu.containers.delete(rental.container.id)
        rental.run("true", check=True)
        return item

    with gpu.rent_many(2, image=IMAGE) as fleet:
        assert fleet.map(work, range(5)) == list(range(5))
        assert len(set(tried)) == 2
        assert len(fleet.rentals) == 1
    emulator.assert_nothing_rented()


@pytest.mark.parametrize("error", [KeyError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_error_of_the_function_is_raised_here(gpu: RentGPU, emulator: Emulator, error: type[BaseException]) -> None:
    def work(rental: Rental, item: int) -> None:
        raise error("mine")

    with gpu.rent_many(1, image=IMAGE) as fleet:
        with pytest.raises(error, match="mine"):
            fleet.map(work, [1, 2])
        if error is KeyError:
            results: list[Any] = fleet.map(work, [1, 2], return_exceptions=True)
            assert [type(result) for result in results] == [KeyError, KeyError]
        else:
            with pytest.raises(error, match="mine"):
                fleet.map(work, [1, 2], return_exceptions=True)
        assert fleet.map(echo, [1]) == ["1"]
    emulator.assert_nothing_rented()


def test_call_that_goes_on_after_an_error_ends_with_its_machine(gpu: RentGPU) -> None:
    ended: list[Exception] = []
    begun = threading.Event()

    def work(rental: Rental, item: int) -> None:
        if item == 1:
            begun.wait(60)
            raise KeyError("mine")
        begun.set()
        try:
            rental.run("sleep 3600")
        except Exception as error:
            ended.append(error)
            raise

    with gpu.rent_many(2, image=IMAGE) as fleet, pytest.raises(KeyError):
        fleet.map(work, [0, 1])
    until_sync(lambda: ended)
    assert isinstance(ended[0], (SSHError, ClientStateError))


def test_fleet_without_a_block(gpu: RentGPU, emulator: Emulator) -> None:
    fleet = gpu.rent_many(2, image=IMAGE).open()
    with pytest.raises(ClientStateError, match="entered or closed before"):
        fleet.open()
    # The second entry has not closed it.
    assert len(fleet.run("true")) == 2
    fleet.close()
    fleet.close()
    emulator.assert_nothing_rented()
    with pytest.raises(InvalidArgumentError, match=r"^function:"):
        gpu.rent_many(1).map(None, [])  # type: ignore[arg-type]  # refused


def test_forgotten_fleet_is_given_back(gpu: RentGPU, emulator: Emulator) -> None:
    fleet = gpu.rent_many(2, image=IMAGE).open()
    assert len(emulator.running) == 2
    del fleet
    gc.collect()
    until_sync(lambda: not emulator.running)

"""Tests with an emulator of the user's own, whose fixture has the scope SCOPE and adds faults of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from netmind_rentgpu import APIConnectionError, RentGPU
from netmind_rentgpu.emulator import Emulator, Fault


@pytest.fixture(scope=os.environ["SCOPE"])
def rentgpu_emulator() -> Iterator[Emulator]:
    with Emulator(boot_seconds=0, faults=[Fault("drop", call="get_auth")]) as emulator:
        emulator.faults.add(Fault("drop", call="stop_container"))
        yield emulator


def test_meets_no_fault_of_the_fixture(rentgpu_emulator: Emulator) -> None:
    assert len(rentgpu_emulator.faults.unmet) == 2


def test_adds_an_unmet_fault(rentgpu_emulator: Emulator) -> None:
    rentgpu_emulator.faults.add(Fault("drop", call="create_image"))


def test_adds_a_fault_like_that_of_the_fixture(rentgpu_emulator: Emulator) -> None:
    rentgpu_emulator.faults.add(Fault("drop", call="get_auth"))


def test_meets_its_fault(rentgpu_emulator: Emulator) -> None:
    rentgpu_emulator.faults.add(Fault("drop", call="list_machines"))
    with RentGPU(retries=0) as gpu, pytest.raises(APIConnectionError):
        gpu.machines.list()

"""Tests of where a client without a token or URL sends its requests."""

from __future__ import annotations

import pytest

from netmind_rentgpu import ConfigurationError, RentGPU
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.testing import EmulatorFactory


def test_client_without_an_emulator_is_refused(rentgpu_emulator_factory: EmulatorFactory) -> None:
    with pytest.raises(ConfigurationError):
        RentGPU()


def test_client_finds_the_first_emulator(rentgpu_emulator_factory: EmulatorFactory) -> None:
    first, second = rentgpu_emulator_factory(), rentgpu_emulator_factory()
    with RentGPU() as gpu:
        gpu.machines.list()
    assert (len(first.requests), len(second.requests)) == (1, 0)


@pytest.fixture
def rentgpu_emulator(rentgpu_emulator_factory: EmulatorFactory) -> Emulator:
    rentgpu_emulator_factory()
    return rentgpu_emulator_factory()


def test_client_finds_the_emulator_of_the_fixture(rentgpu: RentGPU, rentgpu_emulator: Emulator) -> None:
    with RentGPU() as gpu:
        gpu.machines.list()
    assert len(rentgpu_emulator.requests) == 1

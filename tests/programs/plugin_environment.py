"""Tests that the environment leads to the emulator during a test, and is as before afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netmind_rentgpu import RentGPU
from netmind_rentgpu.emulator import Emulator

BEFORE = dict(os.environ)
SEEN: list[str] = []


@pytest.mark.parametrize("number", [1, 2])
def test_environment_leads_to_the_emulator(rentgpu_emulator: Emulator, number: int) -> None:
    with RentGPU() as gpu:
        assert len(gpu.machines.list()) == 60
    assert os.environ["NETMIND_BASE_URL"] == rentgpu_emulator.url
    SEEN.append(os.environ["NETMIND_RENTGPU_STATE"])
    assert Path(SEEN[-1]).parent.is_dir()


def test_environment_is_as_before() -> None:
    now = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    before = {name: value for name, value in BEFORE.items() if name != "PYTEST_CURRENT_TEST"}
    assert now == before
    assert len(set(SEEN)) == 2

"""The machine that a user means by a number that is in no record."""

from __future__ import annotations

import pytest

from netmind_rentgpu import AsyncRentGPU, RentalNotFoundError
from netmind_rentgpu.cli.targets import Target, find_target


@pytest.mark.parametrize(("text", "container_id"), [("4711", 4711), ("007", 7)])
async def test_number_that_is_in_no_record_is_a_container(gpu: AsyncRentGPU, text: str, container_id: int) -> None:
    target = await find_target(gpu, text)
    assert target == Target(container_id)
    assert target.name == str(container_id)


@pytest.mark.parametrize("text", ["train", "-4", "4.0", "²", "12③"])
async def test_other_text_that_is_in_no_record_is_no_machine(gpu: AsyncRentGPU, text: str) -> None:
    with pytest.raises(RentalNotFoundError):
        await find_target(gpu, text)

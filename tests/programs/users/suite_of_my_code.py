"""A pytest suite of one's own, with the package's fixtures."""

import pytest

from netmind_rentgpu import AsyncRentGPU, NoMachineError, RentGPU, TransportError
from netmind_rentgpu.emulator import Emulator, Fault


def start(gpu: RentGPU, name: str) -> int:
    machine = min(gpu.machines.list(), key=lambda machine: machine.price or 0)
    auth = gpu.auths.ensure("a-long-password")
    return gpu.containers.create(
        name=name, auth_id=auth.id, node_name=machine.node_name, image_template_id=1, payment_type="USD"
    ).id


def test_container_is_started_and_deleted(rentgpu: RentGPU, rentgpu_emulator: Emulator) -> None:
    container_id = start(rentgpu, "mine")
    assert [charge.name for charge in rentgpu_emulator.running] == ["mine"]
    rentgpu.containers.delete(container_id)


@pytest.mark.rentgpu_may_leave_rented
def test_lost_answer_may_leave_a_container(rentgpu: RentGPU, rentgpu_emulator: Emulator) -> None:
    rentgpu_emulator.faults.add(Fault("drop", call="create_container", when="after"))
    with pytest.raises(TransportError) as caught:
        start(rentgpu, "lost")
    assert caught.value.maybe_processed


def test_forgotten_container_fails_this_test(rentgpu: RentGPU) -> None:
    start(rentgpu, "forgotten")


@pytest.mark.asyncio
async def test_stock_out_raises_no_machine(async_rentgpu: AsyncRentGPU, rentgpu_emulator: Emulator) -> None:
    rentgpu_emulator.faults.add(Fault("stock-out", times="all"))
    with pytest.raises(NoMachineError):
        async with async_rentgpu.rent(gpu_name="RTX 4090", image="PyTorch 2.4"):
            pytest.fail("a machine was rented")

"""The use of a container's GPUs, which a test sets and `nvidia-smi` reports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import canaries
import pytest
from ssh_client import login, port_of, rent

from netmind_rentgpu import AsyncRentGPU
from netmind_rentgpu.emulator import Emulator

pytest.importorskip("asyncssh")

pytestmark = pytest.mark.usefixtures("temporary_folder")

USE = "nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits"


@pytest.fixture
async def emulator(clock: Any) -> AsyncIterator[Emulator]:
    async with Emulator(seed=7, boot_seconds=0, ssh=True, token=canaries.TOKEN, clock=clock) as emulator:
        yield emulator


async def use_of(gpu: AsyncRentGPU, container_id: int) -> list[str]:
    async with login(port_of(await gpu.containers.get(container_id))) as connection:
        return str((await connection.run(USE, check=True)).stdout).split()


async def test_gpus_are_idle_until_their_use_is_set(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    mine, other = await rent(gpu, gpus=2), await rent(gpu, "other", "other-password")
    assert await use_of(gpu, mine.id) == ["0", "0"]
    emulator.set_gpu_use(mine.id, 100)
    emulator.set_gpu_use(other.id, 3)
    assert await use_of(gpu, mine.id) == ["100", "100"]
    async with login(port_of(mine)) as connection:
        assert str((await connection.run("nvidia-smi", check=True)).stdout).count("100% |") == 2
    emulator.set_gpu_use(mine.id, 7)
    assert await use_of(gpu, mine.id) == ["7", "7"]


async def test_use_of_gpus_outlasts_a_restart(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    emulator.set_gpu_use(container.id, 42)
    await gpu.containers.restart(container.id)
    assert await use_of(gpu, container.id) == ["42"]


async def test_use_of_gpus_is_set_over_http(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    headers = {"Authorization": f"Bearer {canaries.TOKEN}"}
    async with aiohttp.ClientSession(f"{emulator.url}/_emulator/", headers=headers) as http:
        wanted = {"container_id": container.id, "percent": 55}
        async with http.post("gpus", json=wanted) as answer:
            assert (answer.status, await answer.json()) == (200, wanted)
        assert await use_of(gpu, container.id) == ["55"]
        for body, status, message in (
            ({**wanted, "percent": 101}, 422, "the use of a GPU must be a whole number from 0 to 100, not 101"),
            ({"percent": 5}, 422, "give 'container_id' and 'percent'"),
            ({**wanted, "container_id": 7}, 404, "there is no container 7 with an SSH server"),
        ):
            async with http.post("gpus", json=body) as answer:
                assert (answer.status, await answer.json()) == (status, {"detail": message})
    assert await use_of(gpu, container.id) == ["55"]


@pytest.mark.parametrize("percent", [-1, 101, 5.0, True, "5"])
async def test_use_that_is_no_percentage_is_refused(emulator: Emulator, gpu: AsyncRentGPU, percent: Any) -> None:
    container = await rent(gpu)
    with pytest.raises(ValueError, match="the use of a GPU must be a whole number from 0 to 100"):
        emulator.set_gpu_use(container.id, percent)


async def test_use_of_a_container_without_programs_is_refused(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    container = await rent(gpu)
    await gpu.containers.delete(container.id)
    with pytest.raises(ValueError, match=f"there is no container {container.id} with an SSH server"):
        emulator.set_gpu_use(container.id, 5)
    async with (
        Emulator(seed=7, boot_seconds=0) as without_ssh,
        AsyncRentGPU(without_ssh.token, base_url=without_ssh.url) as gpu_without_ssh,
    ):
        container = await rent(gpu_without_ssh)
        with pytest.raises(ValueError, match=f"there is no container {container.id} with an SSH server"):
            without_ssh.set_gpu_use(container.id, 5)

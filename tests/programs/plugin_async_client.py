"""Async tests of the async client; MARK and LOOP_SCOPE say which plugin runs them, and in which loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from container_creation import create

from netmind_rentgpu import AsyncRentGPU, Container
from netmind_rentgpu.emulator import Emulator

MARK = os.environ["MARK"]
OPTIONS = {"loop_scope": os.environ["LOOP_SCOPE"]} if "LOOP_SCOPE" in os.environ else {}


def marked(test: Any) -> Any:
    """Mark a test for the plugin that is to run it; in a plugin's auto mode none needs a mark."""
    return getattr(pytest.mark, MARK)(**OPTIONS)(test) if MARK else test


def fixture(function: Any) -> Any:
    """Make a fixture, as the plugin wants to have it."""
    if MARK != "asyncio":
        return pytest.fixture(function)
    import pytest_asyncio

    return pytest_asyncio.fixture(**OPTIONS)(function)


@fixture
async def container(async_rentgpu: AsyncRentGPU) -> AsyncIterator[Container]:
    container = await create(async_rentgpu)
    yield container
    await async_rentgpu.containers.delete(container.id)


class TestAsyncClient:
    @marked
    async def test_container_starts(
        self, async_rentgpu: AsyncRentGPU, container: Container, rentgpu_emulator: Emulator
    ) -> None:
        assert type(async_rentgpu) is AsyncRentGPU
        async with asyncio.timeout(60):
            while (await async_rentgpu.containers.get(container.id)).ssh_endpoint is None:
                await asyncio.sleep(0.01)
        assert [charge.name for charge in rentgpu_emulator.running] == ["mine"]

    @marked
    async def test_container_is_listed(self, async_rentgpu: AsyncRentGPU, container: Container) -> None:
        assert [listed.name async for listed in async_rentgpu.containers.list()] == ["mine"]

"""Cancelled at any point, a call leaves no request running, no connection leased and no warning."""

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import anyio
import hostile
import pytest
from hostile import Hostile, answer

from netmind_rentgpu import AsyncRentGPU, PaymentType, Retries, Timeouts

CALLS = ["get", "create", "list"]


def call(gpu: AsyncRentGPU, name: str) -> Coroutine[Any, Any, object]:
    if name == "get":
        return gpu.containers.get(1)
    if name == "list":
        return gpu.containers.list().first_page()
    return gpu.containers.create(name="n", auth_id=1, node_name="n", image_template_id=1, payment_type=PaymentType.USD)


def leased(gpu: AsyncRentGPU) -> int:
    """Count the connections that aiohttp's pools hold to be in use."""
    transport: Any = gpu._caller._transport
    return sum(len(session.connector._acquired) for session in transport._own_sessions.values())


async def cancelled_at(step: int, gpu: AsyncRentGPU, name: str, *, native: bool) -> bool:
    """Start a call, cancel it after so many turns of the loop; return True if it had ended by then."""
    if native:
        task = asyncio.ensure_future(call(gpu, name))
        for _ in range(step):
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return ended
    with anyio.CancelScope() as scope:

        async def cancel() -> None:
            for _ in range(step):
                await asyncio.sleep(0)
            scope.cancel()

        canceller = asyncio.ensure_future(cancel())
        await call(gpu, name)
    await canceller
    return not scope.cancelled_caught


@pytest.mark.parametrize("native", [True, False], ids=["native", "anyio"])
@pytest.mark.parametrize("name", CALLS)
async def test_call_cancelled_at_any_turn_of_the_loop_leaves_nothing_behind(name: str, native: bool) -> None:
    body = answer([hostile.CONTAINER] if name == "list" else None)
    loop = asyncio.get_running_loop()
    problems: list[dict[str, Any]] = []
    before = asyncio.all_tasks(loop)
    usual = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: problems.append(context))
    steps = 0
    async with Hostile([body]) as server, AsyncRentGPU("t", base_url=server.url, max_connections=1) as gpu:
        with anyio.fail_after(60):
            # First on a client without a connection, later on a client that has a connection.
            while not await cancelled_at(steps, gpu, name, native=native):
                assert leased(gpu) == 0
                steps += 1
            # The only slot is free, and a call goes through.
            await call(gpu, name)
            assert leased(gpu) == 0
    assert steps > 3
    gc.collect()
    loop.set_exception_handler(usual)
    assert problems == []
    assert asyncio.all_tasks(loop) == before


@pytest.mark.parametrize("behaviour", [hostile.stall, hostile.stall_after_head, hostile.drip])
@pytest.mark.parametrize("name", CALLS)
async def test_call_cancelled_while_the_service_stalls_closes_its_connection(
    name: str, behaviour: hostile.Behaviour
) -> None:
    async with Hostile([behaviour]) as server, AsyncRentGPU("t", base_url=server.url) as gpu:
        task = asyncio.ensure_future(call(gpu, name))
        await server.until(lambda: bool(server.seen))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert leased(gpu) == 0
        # The service sees the connection close.
        await server.until(lambda: not server.open)


async def test_call_cancelled_during_a_backoff_releases_its_slot() -> None:
    async with Hostile([answer(b"", 503)]) as server:
        retries = Retries(base_delay=1000, max_delay=1000, max_elapsed=10_000)
        async with AsyncRentGPU(
            "t", base_url=server.url, retries=retries, timeout=Timeouts(total=None), max_connections=1
        ) as gpu:
            task = asyncio.ensure_future(gpu.containers.get(1))
            await server.until(lambda: bool(server.seen))
            await anyio.wait_all_tasks_blocked()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(server.seen) == 1
            assert not gpu._caller._slots.locked()


async def test_call_cancelled_while_connecting_leaves_no_connection() -> None:
    with hostile.full_listener() as url:
        async with AsyncRentGPU("t", base_url=url) as gpu:
            task = asyncio.ensure_future(gpu.containers.get(1))
            await anyio.wait_all_tasks_blocked()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert leased(gpu) == 0

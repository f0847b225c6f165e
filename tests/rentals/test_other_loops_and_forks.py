"""Use of a client and its rentals in event loops, forked children and threads that they do not belong to."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from programs import Program
from rented import IMAGE, client
from renters import QUIETLY, Service, run_quietly
from short_forms import thinned
from until import until

from netmind_rentgpu import AsyncRental, AsyncRentGPU, ClientStateError, RentGPUError
from netmind_rentgpu.emulator import Emulator

pytestmark = pytest.mark.slow


async def error_in_another_loop(call: Callable[[], Awaitable[Any]]) -> RentGPUError:
    """Run a call in the event loop of another thread; return the error that it raises."""

    async def run() -> Any:
        return await call()

    def run_in_thread() -> RentGPUError:
        with pytest.raises(RentGPUError) as raised:
            asyncio.run(run())
        return raised.value

    return await asyncio.to_thread(run_in_thread)


CALLS: dict[str, Callable[[AsyncRentGPU, AsyncRental], Awaitable[Any]]] = {
    "rent": lambda gpu, _: gpu.rent(image=IMAGE).__aenter__(),
    "attach": lambda gpu, rental: gpu.rentals.attach(rental.name).__aenter__(),
    "offers": lambda gpu, _: gpu.offers(),
    "reap": lambda gpu, _: gpu.rentals.reap(),
    "reap by name": lambda gpu, _: gpu.rentals.reap(by_name=True),
    "close the client": lambda gpu, _: gpu.close(),
    "close the rental": lambda _, rental: rental.close(),
    "leave": lambda _, rental: rental.__aexit__(None, None, None),
    "detach": lambda _, rental: rental.detach(),
    "extend": lambda _, rental: rental.extend(ttl=timedelta(hours=1)),
    "run": lambda _, rental: rental.run("true"),
    "log in": lambda gpu, rental: gpu.ssh(rental.container, password="secret").__aenter__(),
    "create": lambda gpu, rental: gpu.containers.create(
        name="x", auth_id=1, node_name=rental.machine.node_name, image_template_id=1, payment_type="USD"
    ),
}


@pytest.mark.parametrize("call", thinned(CALLS, every=3))
async def test_call_from_another_event_loop_is_refused_and_changes_nothing(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path, call: str
) -> None:
    async with gpu.rent(image=IMAGE) as rental:
        requests = len(emulator.requests.of("get_container"))
        # In its debug mode, asyncio also refuses calls from other threads.
        asyncio.get_running_loop().set_debug(True)
        waiting = asyncio.create_task(gpu.containers.wait(rental.container.id, until=lambda _: False))
        await until(lambda: len(emulator.requests.of("get_container")) > requests)
        error = await error_in_another_loop(lambda: CALLS[call](gpu, rental))
        assert isinstance(error, ClientStateError), error
        assert "event loop" in str(error)
        # Another client of this process reaps, and must not take this rental for an abandoned one.
        async with client(emulator, state) as other, other.rent(image=IMAGE):
            pass
        assert [charge.name for charge in emulator.running] == [rental.name]
        assert (await rental.run("echo here")).stdout == "here\n"
        # The wait in this loop goes on.
        requests = len(emulator.requests.of("get_container"))
        await until(lambda: len(emulator.requests.of("get_container")) > requests)
        waiting.cancel()
        await asyncio.wait({waiting})
    emulator.assert_nothing_rented()
    assert await gpu.rentals.list() == []


async def test_client_without_rentals_closed_in_another_loop_stays_usable(
    gpu: AsyncRentGPU, emulator: Emulator
) -> None:
    await gpu.machines.list()
    assert isinstance(await error_in_another_loop(gpu.close), ClientStateError)
    async with gpu.rent(image=IMAGE):
        pass
    emulator.assert_nothing_rented()


async def test_calls_refused_in_another_event_loop_lose_no_queued_write(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with gpu.rent(image=IMAGE):
        pass
    with sqlite3.connect(state, isolation_level=None) as lock:
        lock.execute("BEGIN IMMEDIATE")
        entering = [asyncio.create_task(gpu.rent(image=IMAGE).__aenter__())]
        await until(lambda: gpu._state._writing and not gpu._state._waiting)
        entering.append(asyncio.create_task(gpu.rent(image=IMAGE).__aenter__()))
        await until(lambda: bool(gpu._state._waiting))
        for call in (lambda: gpu.rent(image=IMAGE).__aenter__(), lambda: gpu._state.write(lambda _: None)):
            assert isinstance(await error_in_another_loop(call), ClientStateError)
        lock.execute("COMMIT")
    lock.close()
    async with asyncio.timeout(120):
        for rental in await asyncio.gather(*entering):
            await rental.close()
    emulator.assert_nothing_rented()


async def test_close_refused_in_another_loop_does_not_stop_the_deletion_at_exit(service: Service) -> None:
    program = await run_quietly(
        service,
        """
        gpu = AsyncRentGPU()

        async def main():
            global rental
            rental = await gpu.rent(image="PyTorch 2.4").__aenter__()

        asyncio.run(main())
        for closing in (rental, gpu):
            try:
                asyncio.run(closing.close())
            except ClientStateError as error:
                print("event loop" in str(error))
        print(len(rented()))
        """,
    )
    assert (program.status, program.output) == (0, "True\nTrue\n1\n")
    await service.assert_nothing_left()


async def test_rental_made_before_a_fork_can_be_entered_in_the_child(service: Service) -> None:
    program = await run_quietly(
        service,
        """
        gpu = AsyncRentGPU()
        rental = gpu.rent(image="PyTorch 2.4")

        async def use():
            async with rental:
                print((await rental.run("echo in")).stdout, end="", flush=True)
            await gpu.close()

        if (child := os.fork()) == 0:
            asyncio.run(use())
            print(len(rented()), flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
    )
    assert (program.status, program.output) == (0, "in\n0\n0\n")
    await service.assert_nothing_left()


async def test_forked_child_cannot_use_or_end_its_parents_rental(service: Service) -> None:
    program = Program(file="async_rental_in_forked_child.py", environment=service.environment)
    await program.run(service.emulator.url, QUIETLY)
    assert "Traceback" not in program.errors, program.errors
    assert (program.status, program.output) == (0, "refused\n" * 3 + "1\n")
    await service.assert_nothing_left()


async def test_attached_rental_is_deleted_at_exit(service: Service) -> None:
    program = await run_quietly(
        service,
        """
        gpu = AsyncRentGPU()

        async def main():
            async with gpu.rent(image="PyTorch 2.4") as rental:
                record = await rental.detach()
            await gpu.rentals.attach(record).__aenter__()

        asyncio.run(main())
        print(len(rented()))
        """,
    )
    assert (program.status, program.output) == (0, "1\n")
    await service.assert_nothing_left()


@pytest.mark.parametrize("made", ["before", "in the child", "with what the parent has learned"])
async def test_worker_process_that_never_leaves_its_rental_deletes_it_at_exit(service: Service, made: str) -> None:
    program = await run_quietly(
        service,
        f"""
        import multiprocessing

        made, gpu = "{made}", AsyncRentGPU()
        rental = gpu.rent(image="PyTorch 2.4") if made != "in the child" else None

        async def use():
            entered = rental if made == "before" else gpu.rent(image="PyTorch 2.4")
            await entered.__aenter__()
            print(len(rented()), flush=True)

        worker = multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(use()))
        worker.start()
        worker.join()
        print(worker.exitcode, len(rented()))
        """,
    )
    assert (program.status, program.output) == (0, "1\n0 0\n")
    await service.assert_nothing_left()

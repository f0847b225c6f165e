"""Programs that end while they have a rental."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from programs import Program
from renters import QUIETLY, Service, run_quietly
from short_forms import paired, thinned

from netmind_rentgpu.emulator import Emulator, Fault

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "end",
    thinned(
        [
            "",
            "sys.exit(3)",
            "raise ZeroDivisionError",
            "asyncio.get_running_loop().stop()",
            "os.kill(os.getpid(), signal.SIGINT); await asyncio.sleep(10)",
        ],
        every=2,
    ),
    ids=["just ends", "exits", "fails", "stops its loop", "is interrupted"],
)
async def test_rental_never_left_is_deleted_at_exit(emulator: Emulator, state: Path, end: str) -> None:
    program = Program(
        f"""
        async def main():
            gpu = AsyncRentGPU("{emulator.token}")
            rental = await gpu.rent(image="PyTorch 2.4").__aenter__()
            print(rental.name, flush=True)
            {end}

        asyncio.run(main())
        """,
        environment={"NETMIND_RENTGPU_STATE": str(state)},
        begin="import asyncio, os, signal, sys\nfrom netmind_rentgpu import AsyncRentGPU\n",
    )
    await program.run(emulator.url, QUIETLY)
    assert program.output.startswith("rg-"), program.errors
    assert len(emulator.charges) == 1
    emulator.assert_nothing_rented()


EVENTS = ["asking", "created", "ready", "releasing", "released"]


@pytest.mark.parametrize("kind", thinned(EVENTS, every=2))
async def test_interrupt_within_a_function_for_events_leaves_nothing_rented(service: Service, kind: str) -> None:
    program = await service.program(
        f"""
        def on_event(event):
            if event.kind == "{kind}":
                raise KeyboardInterrupt  # as Ctrl-C does there

        async def main():
            async with AsyncRentGPU() as gpu, gpu.rent(**WANTED, on_event=on_event) as rental:
                await rental.run("true")

        asyncio.run(main())
        """,
        measured=False,
    ).run(service.emulator.url, QUIETLY)
    assert program.status in (1, -signal.SIGINT)
    assert program.errors.rstrip().endswith("KeyboardInterrupt")
    service.emulator.assert_nothing_rented()
    await service.assert_one_reap_clears()


async def test_interrupt_within_a_function_for_events_of_the_blocking_client_is_the_functions_own_error(
    service: Service,
) -> None:
    program = await service.run(
        f"""
        for kind in {EVENTS}:
            def on_event(event):
                if event.kind == kind:
                    raise KeyboardInterrupt  # in the client's own thread

            with RentGPU() as gpu, gpu.rent(**WANTED, on_event=on_event) as rental:
                print(rental.run("echo goes on"), end="")
            print(rented())
        """,
        measured=False,
    )
    assert (program.status, program.output) == (0, "goes on\n[]\n" * len(EVENTS))
    await service.assert_nothing_left()


async def test_interrupted_block_deletes_its_rental_once(emulator: Emulator, state: Path) -> None:
    program = Program(
        f"""
        async def main():
            async with AsyncRentGPU("{emulator.token}") as gpu:
                async with gpu.rent(image="PyTorch 2.4") as rental:
                    os.kill(os.getpid(), signal.SIGINT)
                    await asyncio.sleep(10)

        asyncio.run(main())
        """,
        environment={"NETMIND_RENTGPU_STATE": str(state)},
        begin="import asyncio, os, signal, sys\nfrom netmind_rentgpu import AsyncRentGPU\n",
    )
    await program.run(emulator.url)
    assert "KeyboardInterrupt" in program.errors
    assert len(emulator.requests.of("delete_container")) == 1
    emulator.assert_nothing_rented()


async def test_rentals_of_several_clients_are_deleted_at_exit(service: Service) -> None:
    program = await run_quietly(
        service,
        """
        keep = []

        async def main():
            for number in range(3):
                gpu = AsyncRentGPU(state=HERE / str(number))
                await gpu.rent(image="PyTorch 2.4").__aenter__()
                keep.append(gpu)

        asyncio.run(main())
        print(len(rented()))
        """,
    )
    assert (program.status, program.output) == (0, "3\n")
    service.emulator.assert_nothing_rented()


@pytest.mark.parametrize("closed", [False, True])
async def test_rental_over_the_callers_own_session_is_deleted_at_exit(service: Service, closed: bool) -> None:
    program = await run_quietly(
        service,
        f"""
        import aiohttp

        async def main():
            global gpu
            session = aiohttp.ClientSession()
            gpu = AsyncRentGPU(session=session)
            await gpu.rent(image="PyTorch 2.4").__aenter__()
            if {closed}:
                await session.close()

        asyncio.run(main())
        print(len(rented()))
        """,
    )
    assert (program.status, program.output) == (0, "1\n")
    await service.assert_nothing_left()


async def test_rental_of_a_daemon_threads_loop_is_deleted_at_exit(service: Service) -> None:
    program = await run_quietly(
        service,
        """
        entered = threading.Event()

        async def main():
            async with AsyncRentGPU() as gpu, gpu.rent(image="PyTorch 2.4"):
                entered.set()
                await asyncio.Event().wait()

        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        entered.wait()
        print(len(rented()))
        """,
    )
    assert (program.status, program.output) == (0, "1\n")
    await service.assert_nothing_left()


# With a host name, the program has to look up a name and log in after executors have stopped accepting work.
BY_NAME = "os.environ['NETMIND_BASE_URL'] = os.environ['NETMIND_BASE_URL'].replace('127.0.0.1', 'localhost')\n"


async def test_thread_that_outlives_the_main_thread_can_rent(service: Service) -> None:
    program = await service.program(
        BY_NAME
        + """
async def main():
    while threading.main_thread().is_alive():
        await asyncio.sleep(0.01)
    async with AsyncRentGPU() as gpu, gpu.rent(image="PyTorch 2.4") as rental:
        print((await rental.run("echo done")).stdout, end="", flush=True)
    print(rented(), flush=True)

threading.Thread(target=lambda: asyncio.run(main())).start()
"""
    ).run(service.emulator.url, QUIETLY)
    # The errors are not compared, because Python 3.12 cannot shut down a loop's executor that late and complains.
    assert program.output == "done\n[]\n", program.errors
    await service.assert_nothing_left()


async def test_thread_that_outlives_the_main_thread_can_rent_with_the_blocking_client(service: Service) -> None:
    program = await service.run(
        BY_NAME
        + """
gpu = RentGPU()
gpu.offers()

def rent():
    threading.main_thread().join()
    with gpu.rent(**WANTED) as rental:
        print(rental.run("echo done").stdout, end="", flush=True)
    print(rented(), flush=True)

threading.Thread(target=rent).start()
"""
    )
    program.assert_silent("done\n[]\n")
    await service.assert_nothing_left()


@pytest.mark.parametrize(("synchronously", "logged"), paired([False, True], [False, True]))
async def test_failed_deletion_at_exit_is_reported_once(service: Service, synchronously: bool, logged: bool) -> None:
    rent = """
        gpu = RentGPU()
        rental = gpu.rent(**WANTED)
        rental.__enter__()
    """
    if not synchronously:
        rent = """
        async def main():
            global gpu
            gpu = AsyncRentGPU()
            await gpu.rent(**WANTED).__aenter__()

        asyncio.run(main())
    """
    begin = "import logging; logging.basicConfig(format='logged: %(message)s')" if logged else ""
    service.emulator.faults.add(Fault("status", call="delete_container", status=401, times="all"))
    program = await run_quietly(service, f"\n        {begin}\n{rent}")
    lines = [line for line in program.errors.splitlines() if "could not be deleted" in line]
    assert len(lines) == 1, program.errors
    assert lines[0].startswith("logged: rental rg-" if logged else "netmind_rentgpu: rental rg-")
    assert "on record" in lines[0]
    service.emulator.faults.clear()
    await service.assert_one_reap_clears()


async def test_one_ctrl_c_at_exit_does_not_stop_the_deletion(service: Service) -> None:
    service.emulator.faults.add(Fault("slow", call="delete_container", seconds=2))
    program = service.program("""
        gpu = RentGPU()
        rental = gpu.rent(**WANTED)
        rental.__enter__()
    """)
    await service.interrupted(program, service.asked("delete_container"))
    program.assert_silent("")
    await service.assert_nothing_left()


@pytest.mark.parametrize("interrupts", [1, 2])
async def test_deletion_at_exit_outlasts_one_ctrl_c_before_it_begins_but_not_two(
    service: Service, interrupts: int
) -> None:
    program = await run_quietly(
        service,
        f"""
        class Interrupted(asyncio.Runner):
            left = {interrupts}

            def __enter__(self):
                if Interrupted.left:
                    Interrupted.left -= 1
                    raise KeyboardInterrupt
                return super().__enter__()

        async def main():
            await AsyncRentGPU().rent(image="PyTorch 2.4").__aenter__()

        asyncio.run(main())
        asyncio.Runner = Interrupted
        """,
    )
    assert program.status == 0
    assert ("interrupted twice" in program.errors) is (interrupts == 2), program.errors
    if interrupts == 1:
        await service.assert_nothing_left()
    else:
        await service.assert_one_reap_clears()


@pytest.mark.parametrize("logs", [False, True])
async def test_second_ctrl_c_at_exit_gives_up_the_deletion_and_reports_it(service: Service, logs: bool) -> None:
    service.emulator.faults.add(Fault("status", call="delete_container", status=503, times="all"))
    program = service.program(f"""
        import logging
        if {logs}:
            logging.basicConfig(level=logging.ERROR)
        gpu = RentGPU(retries=0)
        rental = gpu.rent(**WANTED)
        rental.__enter__()
    """)
    asked = service.asked("delete_container")
    # The second comes after two more attempts, because the program has noticed the first by then.
    await service.interrupted(program, asked, lambda: asked() >= 3)
    assert program.status == 0
    # In the log, where that is shown, and else on stderr.
    begin = "ERROR:netmind_rentgpu:" if logs else "netmind_rentgpu: "
    assert program.errors.startswith(f"{begin}interrupted twice while closing"), program.errors
    assert program.errors.count("interrupted twice") == 1
    service.emulator.faults.clear()
    await service.assert_one_reap_clears()


async def test_rental_collected_just_before_the_exit_is_deleted(service: Service) -> None:
    service.emulator.faults.add(Fault("slow", call="delete_container", seconds=0.5))
    program = await service.run("""
        def rent():
            gpu = RentGPU()
            gpu.rent(**WANTED).__enter__()

        rent()
        gc.collect()
    """)
    program.assert_silent("")
    await service.assert_nothing_left()


async def test_exit_leaves_an_expired_rental_of_another_process_alone(service: Service) -> None:
    async with service.client() as gpu:
        async with gpu.rent(image="PyTorch 2.4") as rental:
            other = await rental.detach()
        program = await run_quietly(
            service,
            f"""
            import sqlite3

            async def main():
                global gpu
                gpu = AsyncRentGPU()
                await gpu.rent(image="PyTorch 2.4").__aenter__()
                with sqlite3.connect(os.environ["NETMIND_RENTGPU_STATE"]) as connection:
                    connection.execute("UPDATE rentals SET expires_at = intended_at WHERE name = {other.name!r}")
                connection.close()

            asyncio.run(main())
            print(len(rented()))
            """,
        )
        assert (program.status, program.output) == (0, "2\n")
        assert [charge.name for charge in service.emulator.running] == [other.name]
        assert (await gpu.rentals.reap()).deleted == (other.name,)


@pytest.mark.parametrize("method", thinned(["fork", "spawn", "forkserver"], every=2))
@pytest.mark.parametrize("synchronously", [False, True])
async def test_multiprocessing_worker_deletes_its_rental_at_exit(
    service: Service, method: str, synchronously: bool
) -> None:
    program = await service.program(
        f"""
        import multiprocessing
        import renting_worker

        process = multiprocessing.get_context({method!r}).Process(target=renting_worker.rent, args=({synchronously},))
        process.start()
        process.join()
        print(process.exitcode, rented())
        """
    ).run(service.emulator.url, QUIETLY)
    assert (program.status, program.output) == (0, "0 []\n"), program.errors
    assert len(service.emulator.charges) == 1
    await service.assert_nothing_left()

"""The thread that runs the event loop of all synchronous clients, and the calls in it."""

from __future__ import annotations

import pytest
from hostile import Hostile, answer
from programs import Program
from served import GET, UNSERVED, connections


async def test_call_cancelled_from_within_raises_client_state_error() -> None:
    program = Program("""
        async def work():
            raise asyncio.CancelledError

        try:
            portal.call(work)
        except ClientStateError as error:
            print(error)
    """)
    (await program.run(UNSERVED)).assert_silent("the call was cancelled by code in its event loop\n")


async def test_loop_thread_that_cannot_be_started_fails_the_call() -> None:
    program = Program(file="threads_refused.py")
    (await program.run(UNSERVED)).assert_silent(
        "ClientStateError the event loop's thread cannot be started: can't start new thread\n"
        "ConfigurationError the event loop cannot be started: can't start new thread\n"
    )


async def test_event_loop_that_breaks_down_fails_its_calls_and_is_replaced() -> None:
    program = Program("""
        async def breaks():
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.Event().wait()

        gpu = RentGPU()
        gpu.containers.get(1)
        try:
            portal.call(breaks)
        except ClientStateError as error:
            print(error)
        print(gpu.containers.get(1).id)
    """)
    async with Hostile([GET]) as server:
        await program.run(server.url)
    program.assert_silent("the call did not finish: its event loop has ended\n1\n")


async def test_failed_call_keeps_no_object_of_its_caller() -> None:
    program = Program(file="failed_calls.py")
    async with Hostile([answer({"detail": "no"}, status=404)]) as server:
        (await program.run(server.url)).assert_silent("0\n0\n0\n")


async def test_uvloop_runs_the_calls_only_if_the_environment_asks_for_it() -> None:
    pytest.importorskip("uvloop")
    code = """
        async def loop():
            return type(asyncio.get_running_loop()).__module__

        gpu = RentGPU()
        gpu.containers.get(1)
        if (pid := os.fork()) == 0:
            gpu.containers.get(2)
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gpu.containers.get(1)
        print(portal.call(loop))
    """
    async with Hostile([GET]) as server:
        asked = await Program(code, {"NETMIND_RENTGPU_UVLOOP": "1"}).run(server.url)
        asked.assert_silent("uvloop\n")
        assert set(connections(server, "1")) == {1}
        # The event loop policy of a program governs only the loops that the program makes itself.
        policy = "import uvloop, warnings; warnings.simplefilter('ignore'); uvloop.install()"
        not_asked = await Program(policy + "\n" + "\n".join(line[8:] for line in code.splitlines())).run(server.url)
        not_asked.assert_silent("netmind_rentgpu.concurrency.event_loops\n")


async def test_missing_uvloop_fails_each_call_with_the_import_error_as_cause() -> None:
    program = Program(
        """
        sys.modules["uvloop"] = None
        for _ in range(2):
            try:
                RentGPU().containers.get(1)
            except ConfigurationError as error:
                print(type(error.__cause__).__name__)
        """,
        {"NETMIND_RENTGPU_UVLOOP": "1"},
    )
    (await program.run(UNSERVED)).assert_silent("ModuleNotFoundError\n" * 2)


async def test_async_client_imports_no_module_of_the_synchronous_client() -> None:
    program = Program(
        begin="import asyncio, sys\nfrom netmind_rentgpu import AsyncRentGPU\n",
        code="""
        async def main():
            async with AsyncRentGPU() as gpu:
                assert (await gpu.containers.get(1)).id == 1

        asyncio.run(main())
        print(sorted({"netmind_rentgpu.sync.portal", "netmind_rentgpu.sync.client", "anyio.from_thread"} & {*sys.modules}))
        """,
    )
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("[]\n")

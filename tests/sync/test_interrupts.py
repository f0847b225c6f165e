"""Interrupts and signals during synchronous calls, each program in a process of its own."""

from __future__ import annotations

import os
import signal

import pytest
from hostile import Hostile, Peer
from programs import Program
from served import GET, UNSERVED, connections, target

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("signals")]


async def test_ctrl_c_cancels_the_call_and_the_client_stays_usable() -> None:
    program = Program("""
        with RentGPU() as gpu:
            for _ in range(10):
                try:
                    gpu.containers.get(1)  # the server interrupts the program instead of answering
                except KeyboardInterrupt as error:
                    print(type(error).__name__)
                assert gpu.containers.get(2).id == 1
            assert not portal._loop._calls
    """)

    def interrupt(peer: Peer) -> None:
        if target(peer) == "1":
            os.kill(program.pid, signal.SIGINT)
        else:
            GET(peer)

    async with Hostile([interrupt]) as server:
        await program.run(server.url)
        program.assert_silent("KeyboardInterrupt\n" * 10)
        assert len(connections(server, "1")) == len(connections(server, "2")) == 10


async def test_interrupted_call_cleans_up_before_the_interrupt_is_raised() -> None:
    program = Program("""
        async def work():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)
                print("cleaned up")

        try:
            portal.call(work)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    (await program.run(UNSERVED)).assert_silent("cleaned up\ninterrupted\n")


async def test_second_interrupt_cancels_the_cleanup_of_the_call() -> None:
    program = Program(file="second_interrupt.py")
    (await program.run(UNSERVED)).assert_silent("cancelled again\ninterrupted\n")


async def test_interrupts_at_random_moments_leave_no_pending_call(full: bool) -> None:
    times = 300 if full else 60
    program = Program(
        measured=False,
        environment={"TIMES": str(times)},
        code="""
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        interrupted = 0
        with RentGPU() as gpu:
            gpu.containers.get(1)
            for _ in range(int(os.environ["TIMES"])):
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.random() * 0.005 + 1e-6)
                    while True:
                        gpu.containers.get(1)
                except KeyboardInterrupt:
                    interrupted += 1
                assert gpu.containers.get(1).id == 1
                assert not portal._loop._calls
        print(interrupted)
    """,
    )
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent(f"{times}\n")


async def test_interrupt_during_the_collection_of_a_handle_closes_its_value_at_exit_at_worst() -> None:
    program = Program(file="interrupted_collection.py", measured=False)
    (await program.run(UNSERVED)).assert_silent("True\n")


async def test_interrupt_while_the_loop_thread_starts_leaves_the_client_usable(full: bool) -> None:
    # Each child starts a loop thread of its own.
    times = 60 if full else 8
    program = Program(
        measured=False,
        environment={"TIMES": str(times)},
        code="""
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        gpu = RentGPU()
        gpu.containers.get(1)
        for _ in range(int(os.environ["TIMES"])):
            if (pid := os.fork()) == 0:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.random() * 0.003 + 1e-6)
                    while True:
                        gpu.containers.get(1)
                except KeyboardInterrupt:
                    pass
                assert gpu.containers.get(1).id == 1
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        print("done")
    """,
    )
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("done\n")


async def test_signal_handler_can_call_the_client_while_the_loop_thread_starts(full: bool) -> None:
    times = 40 if full else 8
    program = Program(
        measured=False,
        environment={"TIMES": str(times)},
        code="""
        def on_signal(*_):
            found.append(gpu.containers.get(1).id)

        signal.signal(signal.SIGALRM, on_signal)
        gpu = RentGPU()
        for _ in range(int(os.environ["TIMES"])):
            if (pid := os.fork()) == 0:
                found = []
                signal.setitimer(signal.ITIMER_REAL, random.random() * 0.003 + 1e-6)
                while not found:
                    assert gpu.containers.get(1).id == 1
                assert found == [1]
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    """,
    )
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("")


async def test_two_signals_at_once_cancel_the_call() -> None:
    program = Program(file="two_signals.py", measured=False)
    (await program.run(UNSERVED)).assert_silent("")


async def test_ctrl_c_together_with_another_signal_interrupts_the_call_at_once() -> None:
    program = Program(
        measured=False,
        code="""
        signal.signal(signal.SIGTERM, lambda *_: None)
        gpu = RentGPU()
        for _ in range(20):
            try:
                gpu.containers.get(1)  # is never answered
            except KeyboardInterrupt:
                pass
        # The last SIGTERM may come after Python has removed the handlers.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    """,
    )

    def send_both(_: Peer) -> None:
        os.kill(program.pid, signal.SIGINT)
        os.kill(program.pid, signal.SIGTERM)

    async with Hostile([send_both]) as server:
        (await program.run(server.url)).assert_silent("")
        assert len(server.seen) == 20


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("ValueError", "KeyboardInterrupt", "KeyboardInterrupt ValueError"),
        ("KeyboardInterrupt", "ValueError", "KeyboardInterrupt None"),
        ("ValueError", "KeyError", "KeyError ValueError"),
        ("SystemExit", "KeyboardInterrupt", "KeyboardInterrupt SystemExit"),
    ],
)
async def test_second_exception_during_cleanup_is_raised_unless_it_ranks_lower(
    first: str, second: str, expected: str
) -> None:
    program = Program(file="interrupted_cleanup.py", arguments=[first, second])
    (await program.run(UNSERVED)).assert_silent(f"{expected}\n")


async def test_exception_raised_by_a_signal_handler_reaches_the_caller() -> None:
    program = Program("""
        def on_signal(*_):
            sys.exit(0)

        signal.signal(signal.SIGTERM, on_signal)
        RentGPU().containers.get(1)
    """)

    def terminate(_: Peer) -> None:
        os.kill(program.pid, signal.SIGTERM)

    async with Hostile([terminate]) as server:
        (await program.run(server.url)).assert_silent("")

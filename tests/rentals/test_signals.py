"""SIGTERM and SIGHUP of programs whose clients handle signals: rentals are released first, wherever the program stands."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from programs import INSTALLED, LONGEST, with_programs
from renters import QUIETLY, Service
from short_forms import paired, thinned
from until import until

from netmind_rentgpu import AsyncRentGPU, ClientStateError, ConfigurationError, InvalidArgumentError, RentGPU
from netmind_rentgpu.emulator import Emulator, Fault
from netmind_rentgpu.rentals import signals

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("signals")]

SYNCHRONOUS = {
    "a command": """
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            print("held", flush=True)
            rental.run(f"kill -{sent} {os.getpid()}; sleep 1000")
    """,
    "the block's own code": """
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            print("held", flush=True)
            os.kill(os.getpid(), sent)
            time.sleep(1000)
    """,
    "no block": """
        gpu = RentGPU(handle_signals=True)
        rental = gpu.rent(**WANTED).open()
        print("held", flush=True)
        os.kill(os.getpid(), sent)
        rental.run("sleep 1000")
    """,
    "another thread": """
        def work():
            with gpu.rent(**WANTED) as rental:
                print("held", flush=True)
                os.kill(os.getpid(), sent)
                rental.run("sleep 1000")

        with RentGPU(handle_signals=True) as gpu:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    """,
    "an asyncio task": """
        async def main():
            async with AsyncRentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
                print("held", flush=True)
                await rental.run(f"kill -{sent} {os.getpid()}; sleep 1000")

        asyncio.run(main())
    """,
    "an asyncio task that waits": """
        async def main():
            async with AsyncRentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
                print("held", flush=True)
                os.kill(os.getpid(), sent)
                await asyncio.Event().wait()

        asyncio.run(main())
    """,
}
# Their rentals are released in another event loop, which is logged.
ELSEWHERE = {
    "an event loop that computes": """
        async def main():
            async with AsyncRentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
                print("held", flush=True)
                os.kill(os.getpid(), sent)
                time.sleep(1000)

        asyncio.run(main())
    """,
    "an event loop that is paused": """
        loop = asyncio.new_event_loop()
        gpu = AsyncRentGPU(handle_signals=True)
        rental = loop.run_until_complete(gpu.rent(**WANTED).open())
        print("held", flush=True)
        os.kill(os.getpid(), sent)
        time.sleep(1000)
    """,
    "an event loop that has ended": """
        async def main():
            return await AsyncRentGPU(handle_signals=True).rent(**WANTED).open()

        gpu = RentGPU(handle_signals=True)
        rental = asyncio.run(main())
        print("held", flush=True)
        os.kill(os.getpid(), sent)
        time.sleep(1000)
    """,
}


@pytest.mark.parametrize(("name", "number"), paired(SYNCHRONOUS, [signal.SIGTERM, signal.SIGHUP]))
async def test_program_that_gets_a_signal_releases_its_rentals_and_dies_of_it(
    service: Service, name: str, number: int
) -> None:
    program = await service.run(f"sent = {number:d}\n" + dedent(SYNCHRONOUS[name]), measured=False)
    assert (program.status, program.output, program.errors) == (-number, "held\n", "")
    await service.assert_nothing_left()
    async with service.client() as gpu:
        (past,) = await gpu.rentals.history()
    assert past.cause == "released"


@pytest.mark.parametrize("code", ELSEWHERE.values(), ids=ELSEWHERE)
async def test_rental_of_an_event_loop_that_does_not_run_is_released_elsewhere(service: Service, code: str) -> None:
    program = await service.program(f"sent = {signal.SIGTERM:d}\n" + dedent(code), measured=False).run(
        service.emulator.url, QUIETLY
    )
    assert (program.status, program.output) == (-signal.SIGTERM, "held\n")
    assert "Traceback" not in program.errors
    await service.assert_nothing_left()


async def test_rental_that_another_client_begins_meanwhile_is_released_too(service: Service) -> None:
    service.emulator.faults.add(Fault("slow", call="delete_container", seconds=2))
    program = await service.run(
        """
        def rent_again():
            try:
                with other.rent(**WANTED) as rental:
                    time.sleep(1000)
            except ClientStateError as error:
                print(error, flush=True)

        with RentGPU(handle_signals=True) as gpu, RentGPU(handle_signals=True) as other:
            with gpu.rent(**WANTED) as rental:
                threading.Timer(0.1, rent_again).start()
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1000)
        """,
        measured=False,
    )
    assert program.status == -signal.SIGTERM
    assert program.output in ("", "nothing more is rented, because a signal has come that ends the program\n")
    await service.assert_nothing_left()


async def test_rental_of_a_client_without_the_option_stays(service: Service) -> None:
    program = await service.run(
        """
        called = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: (print("handler", len(rented()), flush=True), called.set()))
        with RentGPU(handle_signals=True) as gpu, RentGPU() as other, other.rent(**WANTED) as rental:
            with gpu.rent(image="PyTorch 2.4", max_price=1):
                os.kill(os.getpid(), signal.SIGTERM)
                called.wait()
            print(rental.run("echo goes on"), end="")
        """,
        measured=False,
    )
    program.assert_silent("handler 1\ngoes on\n")


async def test_callback_of_an_event_loop_is_called_once(service: Service) -> None:
    program = await service.run(
        """
        async def main():
            async with AsyncRentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
                called = asyncio.Event()
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: (print("callback"), called.set()))
                os.kill(os.getpid(), signal.SIGTERM)
                await called.wait()
                print(await rental.run("echo goes on"), end="")

        asyncio.run(main())
        """,
        measured=False,
    )
    program.assert_silent("callback\ngoes on\n")


async def test_callback_that_was_set_before_is_called_once(service: Service) -> None:
    program = await service.run(
        """
        async def main():
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: (print("callback"), stop.set()))
            async with AsyncRentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
                os.kill(os.getpid(), signal.SIGTERM)
                await stop.wait()
            print(rented())

        asyncio.run(main())
        """,
        measured=False,
    )
    program.assert_silent("callback\n[]\n")


async def test_program_that_ignores_the_signal_meanwhile_goes_on(service: Service) -> None:
    service.emulator.faults.add(Fault("slow", call="delete_container", seconds=0.3))
    program = await service.run(
        """
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("goes on", rented())
        """,
        measured=False,
    )
    program.assert_silent("goes on []\n")


async def test_program_without_another_thread_passes_the_signal_on_at_once(service: Service) -> None:
    program = await service.run(
        """
        import _thread
        from netmind_rentgpu.rentals import signals

        def refuse(*_):
            raise RuntimeError("can't start new thread")

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            signals._thread.start_new_thread, start = refuse, _thread.start_new_thread
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1000)
            finally:
                _thread.start_new_thread = start
        """,
        measured=False,
    )
    assert program.status == 3
    assert "what is rented could not be released; it is on record: can't start new thread" in program.errors
    await service.assert_nothing_left()


async def test_two_kinds_of_signals_are_no_second_press(service: Service) -> None:
    service.emulator.faults.add(Fault("status", call="delete_container", status=503, times=4))
    program = await service.run(
        """
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(1000)
        """,
        measured=False,
    )
    assert (program.status, program.errors) == (-signal.SIGTERM, "")
    await service.assert_nothing_left()


async def test_first_process_of_a_container_ends_too(service: Service) -> None:
    if (unshare := shutil.which("unshare")) is None or subprocess.run(
        [unshare, "--pid", "--fork", "true"], check=False, capture_output=True
    ).returncode:
        pytest.skip("processes of their own namespace cannot be started here")
    code = """
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            print(os.getpid(), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1000)
        """
    program = service.program(code, measured=False)
    # Without coverage, whose own handler would wait for the signal to end the process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment = {**with_programs(environment), **INSTALLED, **program.environment}
    command = [unshare, "--pid", "--fork", sys.executable, "-c", program.begin + dedent(code)]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(LONGEST):
        output, _ = await process.communicate()
    assert (process.returncode, output) == (128 + signal.SIGTERM, b"1\n")
    service.emulator.assert_nothing_rented()


@pytest.mark.parametrize("fault", [Fault("never reachable"), Fault("slow", call="create_container", seconds=2)])
async def test_signal_while_a_rental_starts_releases_it(service: Service, fault: Fault) -> None:
    service.emulator.faults.add(fault)
    program = service.program(
        """
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            print("never")
        """,
        measured=False,
    )
    await end_by_a_signal(service, program, signal.SIGTERM, service.asked("create_container"))
    assert (program.status, program.output, program.errors) == (-signal.SIGTERM, "", "")
    await service.assert_one_reap_clears()
    assert len(service.emulator.charges) == 1


async def end_by_a_signal(service: Service, program: Any, number: int, happened: Any) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(program.run(service.emulator.url))
        await until(lambda: running.done() or happened())
        if not running.done():
            os.kill(program.pid, number)


@pytest.mark.parametrize("request_number", thinned(range(1, 19), every=6))
async def test_signal_at_any_request_of_a_rental_leaves_nothing_rented(service: Service, request_number: int) -> None:
    program = service.program(
        """
        async def main():
            async with AsyncRentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
                await rental.run("true")

        gpu = RentGPU(handle_signals=True)  # whose handlers are set before the first request
        asyncio.run(main())
        """,
        measured=False,
    )
    requests = service.emulator.requests
    await end_by_a_signal(service, program, signal.SIGTERM, lambda: len(requests) >= request_number)
    # The last requests may come from a program that has ended a moment later.
    assert program.status in (-signal.SIGTERM, 0)
    assert program.errors == ""
    service.emulator.assert_nothing_rented()
    await service.assert_one_reap_clears()


async def test_handler_of_the_program_is_called_after_the_release(service: Service) -> None:
    program = await service.run(
        """
        def handler(number, frame):
            print("handler", number, rented())
            sys.exit(3)

        signal.signal(signal.SIGTERM, handler)
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1000)
        """,
        measured=False,
    )
    assert (program.status, program.output, program.errors) == (3, f"handler {signal.SIGTERM:d} []\n", "")
    await service.assert_nothing_left()


async def test_program_goes_on_after_its_own_handler_without_its_rental(service: Service) -> None:
    program = await service.run(
        """
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            os.kill(os.getpid(), signal.SIGTERM)
            stop.wait()
            print(rented())
            try:
                rental.run("true")
            except ClientStateError as error:
                print(error)
        # Nothing is rented any longer, so the handler is called at once.
        stop.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        print(stop.is_set())
        """,
        measured=False,
    )
    program.assert_silent("[]\nthis rental cannot be used: it was closed\nTrue\n")


async def test_ignored_signal_stays_ignored(service: Service) -> None:
    program = await service.run(
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            os.kill(os.getpid(), signal.SIGHUP)
            print(rental.run("echo goes on"), end="")
        print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
        """,
        measured=False,
    )
    program.assert_silent("goes on\nTrue\n")


async def test_second_signal_cuts_a_deletion_short_that_fails(service: Service) -> None:
    service.emulator.faults.add(Fault("status", call="delete_container", status=503, times="all"))
    program = service.program(
        """
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1000)
        """,
        measured=False,
    )
    await end_by_a_signal(service, program, signal.SIGTERM, service.asked("delete_container"))
    assert program.status == -signal.SIGTERM
    assert "could not be deleted" in program.errors
    service.emulator.faults.clear()
    await service.assert_one_reap_clears()


async def test_client_without_the_option_changes_no_handler(service: Service) -> None:
    program = await service.run(
        """
        with RentGPU() as gpu, gpu.rent(**WANTED) as rental:
            print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
        """,
        measured=False,
    )
    program.assert_silent("True\n")


async def test_handler_that_is_set_afterwards_is_warned_of(service: Service) -> None:
    program = await service.run(
        """
        import logging
        logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
        with RentGPU(handle_signals=True) as gpu:
            signal.signal(signal.SIGTERM, lambda *_: None)
            with gpu.rent(**WANTED) as rental:
                pass
        """,
        measured=False,
    )
    program.assert_silent(
        "SIGTERM releases nothing, because another handler was set after the client was created with handle_signals=True;"
        " set it before\n"
    )


async def test_forked_child_that_gets_a_signal_leaves_its_parents_rental_alone(service: Service) -> None:
    program = await service.run(
        """
        with RentGPU(handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1000)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), rental.run("echo goes on"), end="")
        """,
        measured=False,
    )
    program.assert_silent(f"-{signal.SIGTERM:d} goes on\n")
    await service.assert_nothing_left()


# In this process, whose handlers are put back.


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Handle SIGTERM as a client does; return the signals that were passed on."""
    passed: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: passed.append(number))
    monkeypatch.setattr(signals, "_handling", handling := signals._Handling())
    signals.handle_signals()
    assert signal.getsignal(signal.SIGTERM) == handling.on_signal
    yield passed
    for number, found in handling.previous.items():
        signal.signal(number, found)
    signal.signal(signal.SIGTERM, before)


async def test_signal_is_passed_on_in_the_event_loop_of_the_main_thread(
    gpu: AsyncRentGPU, emulator: Emulator, passed: list[int]
) -> None:
    gpu._context.handles_signals = True
    rental = await gpu.rent(image="PyTorch 2.4").open()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(ClientStateError, match="nothing more is rented, because a signal has come"):
        await gpu.rent(image="PyTorch 2.4").open()
    await until(lambda: passed)
    assert passed == [signal.SIGTERM]
    await rental.close()
    emulator.assert_nothing_rented()
    # Nothing is rented any longer.
    signal.raise_signal(signal.SIGTERM)
    assert passed == [signal.SIGTERM] * 2


def test_signal_is_passed_on_in_a_main_thread_without_an_event_loop(tmp_path: Path, passed: list[int]) -> None:
    with Emulator(seed=7, boot_seconds=0.02, ssh=True) as own:
        gpu = RentGPU(own.token, base_url=own.url, state=tmp_path / "state", handle_signals=True)
        with gpu, gpu.rent(image="PyTorch 2.4"):
            signal.raise_signal(signal.SIGTERM)
        assert passed == [signal.SIGTERM]
        own.assert_nothing_rented()


def test_only_the_main_thread_may_handle_signals() -> None:
    errors: list[Exception] = []

    def create(kind: type[Any]) -> None:
        try:
            kind("a-token", handle_signals=True)
        except ConfigurationError as error:
            errors.append(error)

    for kind in (RentGPU, AsyncRentGPU):
        thread = threading.Thread(target=create, args=(kind,))
        thread.start()
        thread.join()
    assert [str(error) for error in errors] == [
        "handle_signals=True works in the main thread only; create the client there"
    ] * 2


def test_option_that_is_no_truth_value_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="handle_signals: must be True or False, not 'yes'"):
        RentGPU("a-token", handle_signals="yes")  # type: ignore[arg-type]  # what is refused

"""The emulator as a context manager of synchronous programs."""

import socket
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest
from programs import Program

from netmind_rentgpu.emulator import Emulator


def get(url: str) -> int:
    """Return the status of the description's page."""
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=60) as answer:
        return int(answer.status)


def serving() -> int:
    """Return the number of threads that serve emulators."""
    return sum(thread.name == "netmind_rentgpu.emulator" for thread in threading.enumerate())


def test_emulator_serves_from_a_thread_until_its_block_ends() -> None:
    with Emulator(seed=7) as emulator:
        assert get(emulator.url) == 200
        assert serving() == 1
        assert emulator.running == []
    assert serving() == 0
    with pytest.raises(urllib.error.URLError):
        get(emulator.url)


def test_error_at_the_start_is_raised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="Address already in use"):
        Emulator(port=taken.getsockname()[1]).__enter__()
    with Emulator() as emulator:
        with pytest.raises(RuntimeError, match="started once"):
            emulator.__enter__()
    assert serving() == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"boot_seconds": float("nan")}, ValueError, "0 or more, not 60 and nan"),
        ({"boot_seconds": -5}, ValueError, "0 or more"),
        ({"machines": -1}, ValueError, "0 or more"),
        ({"world": "nowhere"}, KeyError, "no preset is called nowhere; there are documented, pairs-01"),
        ({"faults": ["drop"]}, TypeError, "a fault must be a Fault, not 'drop'"),
    ],
)
def test_invalid_setting_is_refused(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Emulator(**options)


async def test_callers_that_connect_while_it_stops_leave_nothing_behind() -> None:
    program = Program(
        """
        import logging, socket
        from netmind_rentgpu.emulator import Emulator

        # asyncio warns of slow callbacks, which a busy machine has.
        logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing"))
        for number in range(60):
            with Emulator() as emulator:
                address = ("127.0.0.1", int(emulator.url.rpartition(":")[2]))
                callers = [socket.create_connection(address, timeout=30) for _ in range(number % 4)]
            for caller in callers:
                caller.close()
        gc.collect()
        """,
        environment={"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"},
    )
    (await program.run("http://127.0.0.1:1")).assert_silent("")


def test_error_in_the_block_stops_the_emulator_and_is_raised() -> None:
    with pytest.raises(ZeroDivisionError), Emulator() as emulator:
        raise ZeroDivisionError
    with pytest.raises(urllib.error.URLError):
        get(emulator.url)


async def test_forked_child_that_leaves_the_block_does_not_stop_the_emulator() -> None:
    program = Program("""
        from netmind_rentgpu.emulator import Emulator

        with Emulator(seed=7) as emulator, RentGPU(emulator.token, base_url=emulator.url) as gpu:
            if (pid := os.fork()) == 0:
                assert len(gpu.machines.list()) == 60
                sys.exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert len(gpu.machines.list()) == 60
    """)
    (await program.run("http://127.0.0.1:1")).assert_silent("")

"""The emulator as a context manager of programs that are not asynchronous."""

import socket
import threading
import urllib.error
import urllib.request

import pytest
from programs import Program

from netmind_rentgpu.emulator import Emulator


def get(url: str) -> int:
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=30) as answer:
        return int(answer.status)


def serving() -> int:
    return sum(thread.name == "netmind_rentgpu.emulator" for thread in threading.enumerate())


def test_it_serves_from_a_thread_until_the_block_is_left() -> None:
    with Emulator(seed=7) as emulator:
        assert get(emulator.url) == 200
        assert serving() == 1
        assert emulator.running == []
    assert serving() == 0
    with pytest.raises(urllib.error.URLError):
        get(emulator.url)


def test_what_keeps_it_from_starting_is_raised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="address already in use"):
        Emulator(port=taken.getsockname()[1]).__enter__()
    with Emulator() as emulator, pytest.raises(RuntimeError, match="started once"):
        emulator.__enter__()


def test_an_error_in_the_block_comes_out_and_stops_it() -> None:
    with pytest.raises(ZeroDivisionError), Emulator() as emulator:
        raise ZeroDivisionError
    with pytest.raises(urllib.error.URLError):
        get(emulator.url)


async def test_a_child_that_leaves_the_block_does_not_stop_it() -> None:
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

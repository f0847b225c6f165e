"""Enter rentals and never leave them, in each of the ways whose names are given."""

from __future__ import annotations

import atexit
import gc
import sys
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress

import preamble
from renter import WANTED, control, rented, until

from netmind_rentgpu import ClientStateError, RentGPU

preamble.install()
KEPT: list[object] = []
"""Values that live until the interpreter's end."""


def collected() -> None:
    """Let the collector find the rental while its client lives."""

    def rent() -> None:
        rental = gpu.rent(**WANTED)
        rental.__enter__()
        assert rented()

    gpu = RentGPU()
    rent()
    until(lambda: not rented())


def collected_with_its_client() -> None:
    """Let the collector of cycles find the rental together with its client."""

    def rent() -> None:
        rental = RentGPU().rent(**WANTED)
        rental.__enter__()
        assert rented()
        rental.me = rental

    rent()
    gc.collect()
    until(lambda: not rented())


def alive_at_the_end() -> None:
    """Keep the rental until the interpreter's end."""
    rental = RentGPU().rent(**WANTED)
    KEPT.append(rental)
    rental.__enter__()
    assert rented()


def shell_in_use_at_the_end() -> None:
    """Keep the rental until the interpreter's end, and a command that runs on it."""
    rental = RentGPU().rent(**WANTED)
    lines = rental.__enter__().shell.stream("echo one; sleep 1000")
    KEPT.extend((rental, lines))
    next(lines)


def left_at_exit() -> None:
    """Leave the rental while the interpreter exits."""
    gpu = RentGPU()
    rental = gpu.rent(**WANTED)
    KEPT.extend((gpu, rental))
    rental.__enter__()
    atexit.register(rental.__exit__, None, None, None)


def used_by_a_daemon_thread() -> None:
    """Use the rental in a daemon thread until the interpreter's end."""

    def rent() -> None:
        with gpu.rent(**WANTED) as rental:
            entered.set()
            rental.run("sleep 1000")

    gpu, entered = RentGPU(), threading.Event()
    KEPT.append(gpu)
    threading.Thread(target=rent, daemon=True).start()
    entered.wait()


def entered_by_a_daemon_thread() -> None:
    """Let a daemon thread be about to enter the rental at the interpreter's end."""

    def rent() -> None:
        with gpu.rent(**WANTED):
            pass

    gpu = RentGPU()
    KEPT.append(gpu)
    threading.Thread(target=rent, daemon=True).start()
    until(rented)


def used_after_the_main_thread() -> None:
    """Use the rental in a thread that outlives the main thread."""

    def rent() -> None:
        with gpu.rent(**WANTED):
            entered.set()
            threading.main_thread().join()

    gpu, entered = RentGPU(), threading.Event()
    KEPT.append(gpu)
    threading.Thread(target=rent).start()
    entered.wait()


def client_closed() -> None:
    """Close the client within the block."""
    gpu = RentGPU()
    with gpu.rent(**WANTED) as rental:
        gpu.close()
        assert not rented()
        with suppress(ClientStateError):
            rental.run("true")


def client_closed_while_entering() -> None:
    """Close the client while another thread enters the rental."""

    def rent() -> None:
        with suppress(ClientStateError), gpu.rent(**WANTED):
            print("never")

    gpu = RentGPU()
    urllib.request.urlopen(control("faults", b'{"what": "never starts"}')).close()
    thread = threading.Thread(target=rent)
    thread.start()
    until(rented)
    gpu.close()
    assert not rented()
    thread.join()


def rental_closed() -> None:
    """Close the rental within the block."""
    with RentGPU() as gpu, gpu.rent(**WANTED) as rental:
        rental.close()
        assert not rented()


WAYS: dict[str, Callable[[], None]] = {
    "collected": collected,
    "collected with its client": collected_with_its_client,
    "at the end": alive_at_the_end,
    "at the end, with a shell in use": shell_in_use_at_the_end,
    "while the interpreter exits": left_at_exit,
    "in a daemon thread": used_by_a_daemon_thread,
    "while it is entered by a daemon thread": entered_by_a_daemon_thread,
    "in a thread that outlives the main one": used_after_the_main_thread,
    "its client closed": client_closed,
    "its client closed by another thread while it is entered": client_closed_while_entering,
    "closed": rental_closed,
}
for way in sys.argv[1:]:
    WAYS[way]()

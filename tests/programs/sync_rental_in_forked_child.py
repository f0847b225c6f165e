"""Fork within the blocks of rentals, and end each child in one of the given ways; the parent can go on."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

import preamble
from renter import WANTED, on_record, rented

from netmind_rentgpu import ClientStateError, Rental, RentGPU

preamble.install()


def leave_the_block(rental: Rental, gpu: RentGPU) -> None:
    """Go on to the end of the block."""


def exit_interpreter(rental: Rental, gpu: RentGPU) -> None:
    """Exit with the interpreter's exit functions."""
    sys.exit(0)


def exit_at_once(rental: Rental, gpu: RentGPU) -> None:
    """Exit without the interpreter's exit functions."""
    os._exit(0)


def fail(rental: Rental, gpu: RentGPU) -> None:
    """Raise an error that ends the process."""
    sys.excepthook = lambda *_: os._exit(0)
    raise ZeroDivisionError


def collect(rental: Rental, gpu: RentGPU) -> None:
    """Drop the references and collect cycles."""
    del rental, gpu
    gc.collect()


def close(rental: Rental, gpu: RentGPU) -> None:
    """Close the rental and the client."""
    rental.close()
    gpu.close()


def reap(rental: Rental, gpu: RentGPU) -> None:
    """Reap with a client of the child's own."""
    assert RentGPU().rentals.reap(wait=True).deleted == ()


ENDS: dict[str, Callable[[Rental, RentGPU], None]] = {
    "the end of the block": leave_the_block,
    "sys.exit": exit_interpreter,
    "os._exit": exit_at_once,
    "an error": fail,
    "collection": collect,
    "close": close,
    "a reap": reap,
}


def fork_and_end(end: Callable[[Rental, RentGPU], None]) -> None:
    """Rent, fork, and end the child within the block."""
    with RentGPU() as gpu:
        with gpu.rent(**WANTED) as rental:
            if (pid := os.fork()) == 0:
                try:
                    rental.run("true")
                except ClientStateError as error:
                    print(error, flush=True)
                end(rental, gpu)
                del rental
            else:
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
                assert rented() == [rental.container.id]
                assert [record.name for record in on_record()] == [rental.name]
                print(rental.run("echo usable").stdout.strip(), flush=True)
        if pid:
            assert not rented()
    if not pid:
        sys.exit(0)


for name in sys.argv[1:]:
    fork_and_end(ENDS[name])

"""Rent in a daemon that closes every descriptor it has inherited, and in its parent, before, meanwhile and after."""

from __future__ import annotations

import os

import preamble
from renter import HERE, WANTED, rented

from netmind_rentgpu import RentGPU

preamble.install()

with RentGPU() as gpu, gpu.rent(**WANTED) as rental:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.closerange(3, 256)
            own = [os.open(HERE / f"own-{number}", os.O_RDWR | os.O_CREAT, 0o600) for number in range(40)]
            with RentGPU() as another, another.rent(**WANTED) as second:
                assert second.run("true").ok
                assert {record.name for record in another.rentals.list()} >= {rental.name, second.name}
            status = 0 if all(os.fstat(descriptor).st_size == 0 for descriptor in own) else 2
        finally:
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    with gpu.rent(**WANTED) as third:
        print(third.run("echo hello").stdout.strip())
        print(len(gpu.rentals.list()))
print(len(rented()))

"""Rent with the blocking client, use the rental and its shell, and try to use the rental after it was left."""

from __future__ import annotations

import preamble
from renter import HERE, WANTED, rented

from netmind_rentgpu import ClientStateError, RentGPU

preamble.install()

with RentGPU() as gpu:
    waiting = gpu.rent(**WANTED)
    print(waiting)
    with waiting as rental:
        assert rental is waiting
        assert "4090" in rental.run("nvidia-smi", check=True).stdout
        assert rental.container.id == gpu.containers.get(rental.container.id).id == rented()[0]
        assert rental.name == rental.container.name
        assert "4090" in rental.machine.gpu_name
        assert rental.hourly_price
        assert rental.expires_at
        assert 0 < rental.spent < rental.hourly_price
        assert [record.name for record in gpu.rentals.list()] == [rental.name]

        (HERE / "up").write_bytes(b"x" * 1000)
        shell = rental.shell
        shell.upload(HERE / "up", "there")
        shell.download("there", HERE / "down")
        assert rental.shell is shell
        print((HERE / "down").stat().st_size, rental.run("wc -c < there").stdout.strip())
    assert not rented()
    assert gpu.rentals.list() == []
    for use in (lambda: rental.run("true"), lambda: rental.shell, rental.detach, rental.__enter__):
        try:
            use()
        except ClientStateError as error:
            print(error)
    rental.close()

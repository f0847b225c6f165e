"""Rents a machine, prints its name, and keeps it until its input ends."""

import sys

from netmind_rentgpu import RentGPU

with RentGPU() as gpu, gpu.rent(image="PyTorch 2.4") as rental:
    print(rental.name, flush=True)
    sys.stdin.read()
print("left", flush=True)

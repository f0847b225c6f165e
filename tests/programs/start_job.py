"""Start a job, say so, and wait for it.

Arguments: the id of the container, its `ssh` field, the job's name, and its command.
"""

from __future__ import annotations

import sys

import attrs

from netmind_rentgpu import RentGPU

container_id, ssh, name, command = sys.argv[1:]
with RentGPU() as gpu:
    container = attrs.evolve(gpu.containers.get(int(container_id)), ssh=ssh)
    with gpu.ssh(container) as shell:
        job = shell.start(command, name=name)
        print("started", flush=True)
        job.wait()

"""Use the synchronous client under gevent's monkey patching, with or without threads patched; signals still arrive."""

from __future__ import annotations

import sys

from gevent import monkey

monkey.patch_all(thread="threads" in sys.argv)

import signal  # noqa: E402  # gevent wants to patch first

from netmind_rentgpu import ConfigurationError, RentGPU  # noqa: E402  # as above

mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
for _ in range(2):
    try:
        with RentGPU() as gpu:
            print(len(gpu.machines.list()) > 0)
    except ConfigurationError as error:
        print(error)
print(signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask)

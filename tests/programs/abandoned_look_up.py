"""Interrupt a call while a name is looked up, let the look-up end afterwards, and make another call."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any

import preamble

from netmind_rentgpu import RentGPU

preamble.install()
looking, go_on, look_up = threading.Event(), threading.Event(), socket.getaddrinfo


def look_up_slowly(*arguments: Any, **keywords: Any) -> Any:
    """Look a name up once the call has been interrupted."""
    looking.set()
    go_on.wait()
    return look_up(*arguments, **keywords)


gpu = RentGPU(base_url=os.environ["NETMIND_BASE_URL"].replace("127.0.0.1", "localhost"), retries=0)
socket.getaddrinfo = look_up_slowly
threading.Thread(target=lambda: (looking.wait(), os.kill(os.getpid(), signal.SIGINT))).start()
try:
    gpu.containers.get(1)
except KeyboardInterrupt:
    go_on.set()
socket.getaddrinfo = look_up
print(gpu.containers.get(1).id)

"""The request, the bill and the records, for programs that rent."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netmind_rentgpu import RentalRecord, RentGPU

HERE = Path(os.environ["HERE"])
WANTED: dict[str, Any] = {"gpu_name": "RTX 4090", "image": "PyTorch 2.4"}


def control(name: str, body: bytes | None = None) -> urllib.request.Request:
    """Return a request for one of the emulator's controls."""
    headers = {"Authorization": f"Bearer {os.environ['NETMIND_API_KEY']}"}
    return urllib.request.Request(f"{os.environ['NETMIND_BASE_URL']}/_emulator/{name}", body, headers)


def rented() -> list[int]:
    """Return the ids of the containers that cost money now, by the service's own bill."""
    with urllib.request.urlopen(control("bill")) as answer:
        bill = json.load(answer)
    return [charge["container_id"] for charge in bill["charges"] if charge["running"]] + bill["pending_creates"]


def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition is true; the bound is against hanging."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def on_record() -> list[RentalRecord]:
    """Return the records of what is open."""
    with RentGPU() as gpu:
        return gpu.rentals.list()

"""Every call outside an asyncio event loop, as under trio, raises a ConfigurationError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netmind_rentgpu import AsyncRentGPU, ConfigurationError, Container, PaymentType
from netmind_rentgpu.conditions import has_ssh

CONTAINER = Container(id=1, ssh="ssh root@127.0.0.1 -p 1")
CALLS: dict[str, Callable[[AsyncRentGPU], Any]] = {
    "the client's block": lambda gpu: gpu.__aenter__(),
    "close": lambda gpu: gpu.close(),
    "request": lambda gpu: gpu.request("GET", "machines"),
    "machines.list": lambda gpu: gpu.machines.list(),
    "auths.create": lambda gpu: gpu.auths.create("a-password"),
    "auths.get": lambda gpu: gpu.auths.get(1),
    "auths.list": lambda gpu: gpu.auths.list().first_page(),
    "auths.list, iterated": lambda gpu: gpu.auths.list().__aiter__().__anext__(),
    "auths.ensure": lambda gpu: gpu.auths.ensure("a-password"),
    "images.get": lambda gpu: gpu.images.get(1),
    "containers.create": lambda gpu: gpu.containers.create(
        name="x", auth_id=1, node_name="n", image_template_id=1, payment_type=PaymentType.USD
    ),
    "containers.get": lambda gpu: gpu.containers.get(1),
    "containers.stop": lambda gpu: gpu.containers.stop(1),
    "containers.restart": lambda gpu: gpu.containers.restart(1),
    "containers.delete": lambda gpu: gpu.containers.delete(1, missing_ok=True),
    "containers.wait": lambda gpu: gpu.containers.wait(1, until=has_ssh),
    "containers.wait_all": lambda gpu: gpu.containers.wait_all([1, 2], until=has_ssh),
    "containers.wait_reachable": lambda gpu: gpu.containers.wait_reachable(1),
    "containers.wait_ready": lambda gpu: gpu.containers.wait_ready(1),
    "containers.watch": lambda gpu: gpu.containers.watch([1]).__aiter__().__anext__(),
    "offers": lambda gpu: gpu.offers(),
    "rent": lambda gpu: gpu.rent(image=1).__aenter__(),
    "rentals.list": lambda gpu: gpu.rentals.list(),
    "rentals.extend": lambda gpu: gpu.rentals.extend("rg", budget=1),
    "rentals.reap": lambda gpu: gpu.rentals.reap(),
    "rentals.reap, by name": lambda gpu: gpu.rentals.reap(by_name=True),
    "ssh": lambda gpu: gpu.ssh(CONTAINER).__aenter__(),
}


@pytest.mark.parametrize("call", CALLS)
def test_call_without_an_event_loop_is_refused(tmp_path: Path, call: str) -> None:
    gpu = AsyncRentGPU("token", base_url="http://127.0.0.1:1", state=tmp_path / "state.sqlite3")
    with pytest.raises(ConfigurationError, match="no asyncio event loop runs here; use RentGPU"):
        CALLS[call](gpu).__await__().send(None)

"""The image and the account password of a rental."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from rented import IMAGE, client

from netmind_rentgpu import AsyncRentGPU, Image, InvalidArgumentError
from netmind_rentgpu.emulator import Emulator, Fault


async def test_image_is_found_by_object_id_name_reference_or_label(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    own = await gpu.images.create(name="mine", image_name="me/it", image_tag="1", image_label="special")
    official = await gpu.images.get(1)
    for image, image_id in (
        (official, 1),
        (1, 1),
        ("PyTorch 2.4", 1),
        ("pytorch/pytorch:2.4.0", 1),
        ("mine", own.id),
        ("special", own.id),
    ):
        async with gpu.rent(image=image) as rental:
            assert rental.container.image_template_id == image_id
    for image, message in (
        ("pytorch", "matches several images"),
        ("Stable Diffusion web UI", "no official or own image"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            await gpu.rent(image=image).__aenter__()
    assert isinstance(official, Image)
    emulator.assert_nothing_rented()


async def test_account_password_is_created_once_and_found_again(
    gpu: AsyncRentGPU, emulator: Emulator, state: Path
) -> None:
    async with gpu.rent(image=IMAGE):
        pass
    async with client(emulator, state) as other, other.rent(image=IMAGE):
        pass
    assert len(emulator.requests.of("create_auth")) == 1
    # The password is found by its content when its recorded id is missing or wrong.
    for auth_id in ("NULL", "999"):
        with sqlite3.connect(state) as connection:
            connection.execute(f"UPDATE passwords SET auth_id = {auth_id}")
        connection.close()
        async with client(emulator, state) as other, other.rent(image=IMAGE):
            pass
    assert len(emulator.requests.of("create_auth")) == 1
    async with client(emulator, state) as other, other.rent(image=IMAGE, auth="a password of mine"):
        pass
    auth = await gpu.auths.ensure("a password of mine")
    for given in (auth, auth.id):
        async with gpu.rent(image=IMAGE, auth=given) as rental:
            assert rental.container.auth_id == auth.id


async def test_failed_password_creation_does_not_block_the_next_rental(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    emulator.faults.add(Fault("status", call="create_auth", status=400))
    with pytest.raises(Exception, match="400"):
        await gpu.rent(image=IMAGE).__aenter__()
    async with asyncio.timeout(10), gpu.rent(image=IMAGE):
        pass

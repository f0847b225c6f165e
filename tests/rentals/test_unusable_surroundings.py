"""A process that cannot log in, or cannot keep a record, rents nothing; one whose user has no name can rent."""

from __future__ import annotations

import getpass
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import asyncssh.connection
import attrs
import pytest
from rented import IMAGE, PROFILE, client

from netmind_rentgpu import AsyncRentGPU, ConfigurationError, Container, SSHError, StateFileError
from netmind_rentgpu.emulator import Emulator


def failing(error: Exception) -> Callable[..., NoReturn]:
    """Return a function that raises an error."""

    def fail(*_: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("No username set in the environment")])
async def test_user_without_a_name_can_rent(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # Python raises KeyError up to 3.12, OSError from 3.13. The module is restored because asyncssh gets another one.
    monkeypatch.setattr(asyncssh.connection, "getpass", getpass)
    monkeypatch.setattr(getpass, "getuser", failing(error))
    async with gpu.rent(image=IMAGE) as rental:
        assert (await rental.run("echo here")).stdout == "here\n"
    emulator.assert_nothing_rented()


async def test_user_without_a_home_folder_rents_nothing(
    gpu: AsyncRentGPU, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", failing(KeyError("uid not found")))
    with pytest.raises(ConfigurationError, match=r"cannot log in to containers: .*; set the environment variable HOME"):
        async with gpu.rent(image=IMAGE):
            pass
    assert not emulator.requests.of("create_container")


@pytest.mark.parametrize("username", ["bell\a", "two\nlines", "left א and right"])
async def test_username_that_cannot_be_sent_rents_nothing(emulator: Emulator, state: Path, username: str) -> None:
    async with client(emulator, state, attrs.evolve(PROFILE, ssh_username=username)) as gpu:
        with pytest.raises(ConfigurationError, match=r"cannot log in as .*; set ServiceProfile\.ssh_username"):
            async with gpu.rent(image=IMAGE):
                pass
        assert not emulator.requests.of("create_container")
        with pytest.raises(SSHError, match="cannot log in as") as caught:
            async with gpu.ssh(Container(id=1, ssh="ssh 127.0.0.1 -p 1"), password="a-password"):
                pass
    assert caught.value.stage == "password"


@pytest.mark.parametrize("place", ["/dev/null/folder/state.sqlite3", "/proc/nowhere/state.sqlite3", "{folder}"])
async def test_place_where_no_state_file_can_be_rents_nothing(emulator: Emulator, tmp_path: Path, place: str) -> None:
    path = Path(place.format(folder=tmp_path))
    async with client(emulator, path) as gpu:
        with pytest.raises(ConfigurationError, match=r"choose .* with state=\.\.\.") as caught:
            async with gpu.rent(image=IMAGE):
                pass
    assert isinstance(caught.value, StateFileError)
    assert str(path) in str(caught.value)
    assert not emulator.requests.of("create_container")

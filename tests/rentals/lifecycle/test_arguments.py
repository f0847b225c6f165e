"""Arguments of a rental that are refused before any request."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from rented import IMAGE

from netmind_rentgpu import AsyncRentGPU, ConfigurationError, InvalidArgumentError
from netmind_rentgpu.emulator import Emulator


@pytest.mark.parametrize(
    "invalid",
    [
        {"gpus": 0},
        {"gpus": 13},
        {"gpu_name": []},
        {"gpu_name": 7},
        {"regions": ""},
        {"max_price": "cheap"},
        {"min_memory": "much"},
        {"min_cuda": "new"},
        {"nvlink": "yes"},
        {"key": 7},
        {"payment_type": "GOLD"},
        {"ttl": 7},
        {"ttl": timedelta(0)},
        {"ttl": timedelta(days=100_000)},
        {"budget": 0},
        {"budget": 1, "keep": True},
        {"image": 1.5},
        {"auth": "short"},
        {"auth": 1.5},
        {"timeout": 0},
    ],
    ids=str,
)
async def test_invalid_argument_is_refused_before_any_request(
    gpu: AsyncRentGPU, emulator: Emulator, invalid: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        gpu.rent(**{"image": IMAGE, **invalid})
    assert raised.value.argument in {*invalid}
    assert not emulator.requests


async def test_rental_without_asyncssh_raises_configuration_error(
    gpu: AsyncRentGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netmind_rentgpu.ssh.credentials.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="asyncssh"):
        gpu.rent(image=IMAGE)


async def test_limit_in_an_unknown_currency_is_refused(gpu: AsyncRentGPU) -> None:
    with pytest.raises(InvalidArgumentError, match=r"budget.*currency"):
        gpu.rent(image=IMAGE, payment_type=7, budget=1)
    with pytest.raises(InvalidArgumentError, match=r"max_price.*currency"):
        gpu.rent(image=IMAGE, payment_type=7, max_price=1)
    assert await gpu.offers(payment_type=7)

"""The offers of a client: their order and their prices."""

from __future__ import annotations

import pytest

from netmind_rentgpu import AsyncRentGPU, InvalidArgumentError, PaymentType
from netmind_rentgpu.emulator import Emulator


async def test_offers_are_ranked_by_hourly_price(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    offers = await gpu.offers(gpus=2, max_price=1)
    prices = [offer.hourly_price for offer in offers]
    assert None not in prices
    assert prices == sorted(prices)  # type: ignore[type-var]  # the line above excludes None
    assert all(offer.hourly_price == 2 * (offer.machine.price or 0) for offer in offers)
    dearest = await gpu.offers(gpus=2, max_price=1, key=lambda offer: -offer.hourly_price)
    assert dearest[0].hourly_price == prices[-1]
    with pytest.raises(InvalidArgumentError, match="may mean any of"):
        await gpu.offers(gpu_name="A100")
    with pytest.raises(InvalidArgumentError, match="key"):
        await gpu.offers(key=lambda offer: offer.nothing)
    with pytest.raises(InvalidArgumentError, match=r"no GPU is called 'a GPU of next year'; .*NVIDIA_GeForce_RTX_4090"):
        await gpu.offers(gpu_name="a GPU of next year")
    with pytest.raises(InvalidArgumentError, match="no GPU is called 'RTX 9999'"):
        async with gpu.rent(gpu_name=["RTX 4090", "RTX 9999"], image=1):
            pytest.fail("a machine was rented")
    assert not emulator.requests.of("create_container")


@pytest.mark.parametrize("payment_type", [PaymentType.NMT, "NMT", 1, PaymentType(1)])
async def test_offers_are_priced_in_the_currency_of_the_payment_type(
    gpu: AsyncRentGPU, emulator: Emulator, payment_type: PaymentType | str | int
) -> None:
    offers = await gpu.offers(payment_type=payment_type)
    assert {offer.currency for offer in offers} == {"NMT"}
    assert emulator.requests.of("list_machines")[-1].query["currency"] == "NMT"

"""`gpu.machines`, against the emulator."""

from decimal import Decimal
from typing import Any, get_args

import pytest
from hostile import Hostile, answer

from netmind_rentgpu import (
    AsyncRentGPU,
    Container,
    GPUName,
    ImageType,
    InvalidArgumentError,
    Machine,
    RegionCode,
    ServiceProfile,
)
from netmind_rentgpu.conditions import status_in
from netmind_rentgpu.emulator import Emulator

RTX_4090 = "NVIDIA_GeForce_RTX_4090"


async def test_every_field_of_a_machine_is_read(gpu: AsyncRentGPU) -> None:
    machines = await gpu.machines.list()
    assert len(machines) == 60
    for machine in machines:
        assert machine.extra == {}
        assert None not in [getattr(machine, name) for name in Machine.__attrs_attrs__[1:] for name in [name.name]]
    assert all(type(machine.price) is Decimal for machine in machines)


async def test_each_machine_filter_narrows_the_list(gpu: AsyncRentGPU) -> None:
    everything = await gpu.machines.list()
    region = everything[0].region
    assert region is not None
    prices = sorted(machine.price or 0 for machine in everything)
    middle = prices[len(prices) // 2]
    for arguments, holds in (
        ({"gpu_names": [RTX_4090]}, lambda m: m.gpu_name == RTX_4090),
        ({"gpu_names": RTX_4090}, lambda m: m.gpu_name == RTX_4090),
        (
            {"gpu_names": ["NVIDIA_ A800_PCIe_40GB", "TITAN_V"]},
            lambda m: m.gpu_name in ("NVIDIA_ A800_PCIe_40GB", "TITAN_V"),
        ),
        ({"region": region}, lambda m: m.region == region),
        ({"gpu": 4}, lambda m: m.gpu_count >= 4),
        ({"min_memory": 256}, lambda m: m.memory_total >= 256),
        ({"max_memory": 64}, lambda m: m.memory_total <= 64),
        ({"min_disk": 1600}, lambda m: m.disk_total >= 1600),
        ({"max_disk": 400}, lambda m: m.disk_total <= 400),
        ({"min_price": 1}, lambda m: m.price >= 1),
        ({"max_price": 1}, lambda m: m.price <= 1),
        ({"max_price": middle}, lambda m: m.price <= middle),
        ({"min_price": Decimal("0.5"), "max_price": 0.9}, lambda m: Decimal("0.5") <= m.price <= Decimal("0.9")),
    ):
        keywords: dict[str, Any] = arguments
        found = await gpu.machines.list(**keywords)
        assert found == [machine for machine in everything if holds(machine)]
        assert 0 < len(found) < len(everything)


async def test_machine_prices_depend_on_the_currency(gpu: AsyncRentGPU) -> None:
    dollars, yuan = await gpu.machines.list(), await gpu.machines.list(currency="CNY")
    assert (yuan[0].price or 0) > (dollars[0].price or 0)


async def asked(arguments: dict[str, Any], profile: ServiceProfile | None = None) -> dict[str, str]:
    from urllib.parse import parse_qsl

    async with Hostile([answer([])]) as server, AsyncRentGPU("t", base_url=server.url, profile=profile) as gpu:
        await gpu.machines.list(**arguments)
        return dict(parse_qsl(server.seen[0].target.partition("?")[2]))


async def test_machine_filters_are_sent_in_the_query() -> None:
    assert await asked({}) == {"currency": "USD"}
    assert await asked(
        {
            "gpu_names": [RTX_4090, "NVIDIA_ A800_PCIe_40GB"],
            "region": "US",
            "gpu": 2,
            "currency": "NMT",
            "min_memory": 1,
            "max_memory": 2,
            "min_disk": 3,
            "max_disk": 4,
            "min_price": 0,
            "max_price": Decimal("2.0"),
        }
    ) == {
        "gpu_names": f"{RTX_4090},NVIDIA_ A800_PCIe_40GB",
        "region": "US",
        "gpu": "2",
        "currency": "NMT",
        "min_memory": "1",
        "max_memory": "2",
        "min_disk": "3",
        "max_disk": "4",
        "min_price": "0",
        "max_price": "2",
    }
    # The query takes whole numbers only, and a rounded bound would be another bound.
    assert await asked({"max_price": Decimal("0.5")}) == {"currency": "USD"}


async def test_machine_query_follows_the_profile() -> None:
    profile = ServiceProfile(gpu_names_parameter="gpu", currency="CNY")
    assert await asked({"gpu_names": [RTX_4090], "gpu": 2}, profile) == {"currency": "CNY", "gpu": RTX_4090}
    assert await asked({"gpu": 2}, profile) == {"currency": "CNY", "gpu": "2"}


MACHINES = [
    {"node_name": "plain", "gpu_name": "NVIDIA GeForce RTX 4090", "region": "us", "gpu_count": 1, "price": "0.4"},
    {"node_name": "nulls", "gpu_name": None, "region": None, "gpu_count": None, "price": None},
    {"node_name": "other", "gpu_name": "TITAN_V", "region": "JP", "gpu_count": 8, "price": 0.9},
    {"node_name": "odd", "gpu_name": RTX_4090, "region": "US", "gpu_count": 4, "price": "ask us", "memory_total": 10},
]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, ["plain", "nulls", "other", "odd"]),
        ({"gpu_names": [RTX_4090]}, ["plain", "nulls", "odd"]),
        ({"region": "US"}, ["plain", "nulls", "odd"]),
        ({"gpu": 4}, ["nulls", "other", "odd"]),
        ({"min_memory": 11}, ["plain", "nulls", "other"]),
        # A machine of unknown price does not meet a price bound.
        ({"max_price": Decimal("0.5")}, ["plain"]),
        ({"min_price": 0}, ["plain", "other"]),
    ],
    ids=str,
)
async def test_machine_filters_hold_even_if_the_service_ignores_them(
    arguments: dict[str, Any], names: list[str]
) -> None:
    async with Hostile([answer(MACHINES)]) as server, AsyncRentGPU("t", base_url=server.url) as gpu:
        assert [machine.node_name for machine in await gpu.machines.list(**arguments)] == names


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"gpu_names": []}, "gpu_names: names nothing"),
        ({"gpu_names": ["a,b"]}, "gpu_names: is sent as a comma-separated list"),
        ({"gpu_names": [""]}, "gpu_names: is sent as a comma-separated list"),
        ({"gpu_names": [3]}, "gpu_names: must be a text"),
        ({"gpu_names": 5}, "gpu_names: must be texts, not int"),
        ({"gpu": 0}, "gpu: must be at least 1"),
        ({"gpu": "1"}, "gpu: must be a whole number"),
        ({"gpu": True}, "gpu: must be a whole number"),
        ({"min_memory": 1.5}, "min_memory: must be a whole number"),
        ({"max_price": "1"}, "max_price: must be a number, not str"),
        ({"max_price": True}, "max_price: must be a number, not bool"),
        ({"max_price": float("nan")}, "max_price: must be a finite number"),
        ({"min_price": Decimal("Infinity")}, "min_price: must be a finite number"),
        ({"max_price": Decimal("sNaN")}, "max_price: must be a finite number"),
        ({"max_price": Decimal("1e99")}, "max_price: must be a finite number"),
        ({"region": "\udcff"}, "region: holds half a character"),
        ({"region": 3}, "region: must be texts"),
        ({"currency": 3}, "currency: must be a text"),
    ],
    ids=str,
)
async def test_unsendable_machine_arguments_are_refused(
    gpu: AsyncRentGPU, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        await gpu.machines.list(**arguments)
    assert caught.value.argument == problem.partition(":")[0]


async def test_documented_names_are_offered_and_known_to_the_emulator(emulator: Emulator, gpu: AsyncRentGPU) -> None:
    offered = {name for part in get_args(GPUName) for name in get_args(part)}
    assert len(offered) == 43
    assert len({name for part in get_args(RegionCode) for name in get_args(part)}) == 32
    assert {machine.gpu_name for machine in await gpu.machines.list()} == offered
    assert {machine.region for machine in await gpu.machines.list()} <= {
        n for p in get_args(RegionCode) for n in get_args(p)
    }


# Names as users write them.


@pytest.mark.parametrize(
    "wanted", ["RTX 4090", "rtx4090", ["4090"], "nvidia geforce rtx 4090", ("RTX 4090", RTX_4090)], ids=str
)
async def test_gpu_is_listed_under_any_unambiguous_name(gpu: AsyncRentGPU, wanted: Any) -> None:
    expected = await gpu.machines.list(gpu_names=RTX_4090)
    assert expected
    assert await gpu.machines.list(gpu_names=wanted) == expected
    assert {offer.machine.node_name for offer in await gpu.offers(gpu_name=wanted)} <= {
        machine.node_name for machine in expected
    }


async def test_other_filters_hold_for_a_gpu_that_is_named_in_part(gpu: AsyncRentGPU) -> None:
    for filters in ({"gpu": 4}, {"max_price": Decimal("0.4")}, {"min_memory": 128}, {"region": ["US", "de"]}):
        keywords: dict[str, Any] = filters
        by_part = await gpu.machines.list(gpu_names="4090", **keywords)
        assert by_part == await gpu.machines.list(gpu_names=RTX_4090, **keywords)


async def test_documented_name_costs_one_filtered_request_and_any_other_one_unfiltered() -> None:
    assert (await asked({"gpu_names": RTX_4090, "gpu": 2}))["gpu_names"] == RTX_4090
    machine = {"node_name": "n", "gpu_name": "NVIDIA_B300"}
    async with Hostile([answer([machine])]) as server, AsyncRentGPU("t", base_url=server.url) as gpu:
        # A new GPU, which is not documented yet.
        assert [found.node_name for found in await gpu.machines.list(gpu_names="NVIDIA_B300")] == ["n"]
        assert [found.node_name for found in await gpu.machines.list(gpu_names="B300", region="us")] == ["n"]
        assert [found.target.partition("?")[2] for found in server.seen] == ["currency=USD"] * 2


async def test_gpu_that_nothing_is_called_is_refused_with_those_on_offer(gpu: AsyncRentGPU) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"no GPU is called 'RTX 9999'; the GPUs on offer are .*{RTX_4090}"):
        await gpu.machines.list(gpu_names=["RTX 4090", "RTX 9999"])
    with pytest.raises(InvalidArgumentError, match=r"gpu_names: 'A100' may mean any of NVIDIA_A100"):
        await gpu.machines.list(gpu_names="A100")
    # A documented GPU that is not on offer is no mistake.
    there = {machine.gpu_name for machine in await gpu.machines.list()}
    for name in set(get_args(get_args(GPUName)[0])) - there:
        assert await gpu.machines.list(gpu_names=name) == []


async def test_regions_take_any_case_and_several(gpu: AsyncRentGPU) -> None:
    everything = await gpu.machines.list()
    for regions in ("us", ["US"], ["us", "De"]):
        wanted = {region.upper() for region in ([regions] if isinstance(regions, str) else regions)}
        found = await gpu.machines.list(region=regions)
        assert found == [machine for machine in everything if machine.region in wanted]
        assert found
    assert (await asked({"region": "us"}))["region"] == "US"
    assert "region" not in await asked({"region": ["us", "de"]})


async def test_region_that_is_not_documented_is_found_if_a_machine_is_there() -> None:
    machines = [{"node_name": "n", "region": "MARS"}, {"node_name": "m", "region": "us"}]
    async with Hostile([answer(machines)]) as server, AsyncRentGPU("t", base_url=server.url) as gpu:
        assert [found.node_name for found in await gpu.machines.list(region=["mars"], gpu=1)] == ["n"]
        assert [found.node_name for found in await gpu.machines.list(region=["Mars", "US"])] == ["n", "m"]
        # A documented region without machines is no mistake.
        assert [found.node_name for found in await gpu.machines.list(region="LT")] == []
        with pytest.raises(InvalidArgumentError, match=r"region: no machine is in 'Venus'; .* on offer are MARS, us"):
            await gpu.machines.list(region=["us", "Venus"], gpu_names=RTX_4090)
        assert [found.target.partition("?")[2] for found in server.seen] == [
            "currency=USD",
            "currency=USD",
            "currency=USD&region=LT",
            "currency=USD",
        ]
    async with Hostile([answer([])]) as server, AsyncRentGPU("t", base_url=server.url) as gpu:
        with pytest.raises(InvalidArgumentError, match="the regions on offer are none"):
            await gpu.machines.list(region="Venus")


async def test_enumerations_take_names_in_any_case(gpu: AsyncRentGPU, emulator: Emulator) -> None:
    assert await gpu.machines.list(currency="cny") == await gpu.machines.list(currency="CNY")
    for image_type in ("custom", "Custom", ImageType("custom")):
        assert [image.id async for image in gpu.images.list(image_type=image_type)] == []
    assert {request.query["image_type"] for request in emulator.requests.of("list_images")} == {"2"}
    assert (await gpu.offers(payment_type="cny"))[0].currency == "CNY"


def test_status_names_match_in_any_case() -> None:
    condition = status_in("Running", 3)
    assert condition(Container(id=1, status=7, status_name="RUNNING"))
    assert condition(Container(id=1, status="running"))
    assert condition(Container(id=1, status=3))
    assert not condition(Container(id=1, status=7, status_name="stopped"))


async def test_empty_list_of_regions_is_refused(gpu: AsyncRentGPU) -> None:
    with pytest.raises(InvalidArgumentError, match="region: names nothing"):
        await gpu.machines.list(region=[])

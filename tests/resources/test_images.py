"""`gpu.images`, against the emulator."""

from typing import Any, cast

import pytest

from netmind_rentgpu import AsyncRentGPU, ImageType, InvalidArgumentError, NotFoundError, ServiceProfile
from netmind_rentgpu.emulator import Emulator
from tests.support.hostile import Hostile, answer

REQUIRED: dict[str, str] = {
    "name": "mine",
    "image_name": "pytorch/pytorch",
    "image_tag": "2.4.0",
    "image_label": "pytorch",
}
ALL: dict[str, str] = {
    **REQUIRED,
    "description": "what it is for",
    "docker_username": "me",
    "docker_passwd": "registry-password",
    "docker_registry": "https://registry.example/v1/",
    "public_port": "8080",
    "onstart": "echo hello",
    "options": "-e A=B --add-host x:10.0.0.1 -h name -w /root",
}


async def test_image_returns_every_argument_of_its_create(gpu: AsyncRentGPU) -> None:
    image = await gpu.images.create(**ALL)
    assert {name: getattr(image, name) for name in ALL} == ALL
    assert (image.image_type, image.extra) == (ImageType.CUSTOM, {})
    assert await gpu.images.get(image.id) == image
    with pytest.raises(NotFoundError):
        await gpu.images.get(99)


async def test_image_arguments_left_out_get_the_service_defaults(gpu: AsyncRentGPU) -> None:
    image = await gpu.images.create(**REQUIRED)
    assert image.docker_registry == "https://index.docker.io/v1/"
    for name in ALL.keys() - REQUIRED.keys() - {"docker_registry"}:
        assert getattr(image, name) is None


async def test_images_are_listed_by_type(gpu: AsyncRentGPU) -> None:
    mine = await gpu.images.create(**REQUIRED)
    official = [image async for image in gpu.images.list()]
    assert [image.image_label for image in official] == ["pytorch", "pytorch", "tensorflow", "ubuntu"]
    assert official == [image async for image in gpu.images.list(image_type="OFFICIAL", page_size=2)]
    assert [image.image_type async for image in gpu.images.list(image_type=1)] == [ImageType.PUBLIC]
    assert (await gpu.images.list(image_type=ImageType.CUSTOM)).items == (mine,)
    assert (await gpu.images.list(marker="1", page_size=1)).items == (official[1],)


async def test_lists_of_several_image_types_follow_each_other(gpu: AsyncRentGPU) -> None:
    mine = await gpu.images.create(**REQUIRED)
    official = [image async for image in gpu.images.list()]
    both = gpu.images.list(image_type=["custom", ImageType.OFFICIAL, 2], page_size=2)
    assert [image async for image in both] == [mine, *official]
    assert [len(page) async for page in both.pages()] == [1, 2, 2]
    assert (await gpu.images.list(image_type={ImageType.CUSTOM})).items == (mine,)
    assert (await both).items == (mine,)
    with pytest.raises(InvalidArgumentError, match="marker: is an id in the list of one type"):
        gpu.images.list(image_type=["custom", "official"], marker=1)
    for nothing in ([], ()):
        with pytest.raises(InvalidArgumentError, match="image_type: names nothing"):
            gpu.images.list(image_type=nothing)
    for wrong in (None, 1.5, [None], b"x"):
        with pytest.raises(InvalidArgumentError, match="image_type"):
            gpu.images.list(image_type=cast("Any", wrong))


async def test_first_page_of_several_image_types_is_not_empty(emulator: Emulator) -> None:
    async with AsyncRentGPU(emulator.token, base_url=emulator.url) as gpu:
        page = await gpu.images.list(image_type=["custom", "official"])
    assert len(page) == 4
    assert len(emulator.requests.of("list_images")) == 2


async def test_image_of_two_lists_is_given_once() -> None:
    # A service that ignores the type.
    walk = [answer([{"id": 1}, {"id": 2}]), answer([])]
    async with Hostile([*walk, *walk]) as server, AsyncRentGPU("t", base_url=server.url) as gpu:
        assert [image.id async for image in gpu.images.list(image_type=["custom", "public"])] == [1, 2]


async def test_image_types_use_the_numbers_of_the_profile(emulator: Emulator) -> None:
    profile = ServiceProfile(image_types={"PUBLIC": 0})
    async with AsyncRentGPU(emulator.token, base_url=emulator.url, profile=profile) as gpu:
        found = [image.image_type async for image in gpu.images.list(image_type=ImageType.PUBLIC)]
        assert found == [ImageType.PUBLIC] * 4
        with pytest.raises(InvalidArgumentError, match="no number for 'OFFICIAL'"):
            gpu.images.list()


@pytest.mark.parametrize("content", [REQUIRED, ALL], ids=["required", "all"])
async def test_ensure_finds_an_image_by_its_content(gpu: AsyncRentGPU, content: dict[str, str]) -> None:
    first = await gpu.images.ensure(**content)
    assert await gpu.images.ensure(**content) == first
    for name in content:
        other: dict[str, Any] = {**content, name: "-h other" if name == "options" else "other"}
        assert (await gpu.images.ensure(**other)).id != first.id
    if content is REQUIRED:
        same = {**REQUIRED, "docker_registry": "https://index.docker.io/v1/", "description": ""}
        assert await gpu.images.ensure(**same) == first


@pytest.mark.parametrize(
    "options",
    ["", "-e A=B", "-eA=B", "--add-host=x:1.2.3.4", "--add-host x:1.2.3.4 -e 'A=b c'", "-w /x -h y", "-e --privileged"],
)
async def test_documented_image_options_are_accepted(gpu: AsyncRentGPU, options: str) -> None:
    assert (await gpu.images.create(**REQUIRED, options=options)).options == options


@pytest.mark.parametrize(
    "options",
    ["--privileged", "-v /:/host", "-e A=B --privileged", "canary", "--add-hosts x", "-e A=canary -p 1", "-e 'canary"],
)
async def test_other_image_options_are_refused_and_their_values_not_shown(gpu: AsyncRentGPU, options: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await gpu.images.create(**REQUIRED, options=options)
    assert caught.value.argument == "options"
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "shown"), [("--privileged=canary", "--privileged"), ("-pcanary", "-p"), ("-e A=B canary", "a word")]
)
async def test_refused_image_option_is_named(gpu: AsyncRentGPU, options: str, shown: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"not {shown}$"):
        await gpu.images.create(**REQUIRED, options=options)


async def test_unsendable_image_arguments_are_refused(gpu: AsyncRentGPU) -> None:
    content: dict[str, Any] = {**REQUIRED, "public_port": 8080}
    with pytest.raises(InvalidArgumentError, match="public_port: must be a text"):
        await gpu.images.create(**content)
    with pytest.raises(InvalidArgumentError, match="image_id: must be a whole number"):
        await gpu.images.get(True)

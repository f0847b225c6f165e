"""Which image a text means: the only one of that name, else of that repository and tag, else of that label."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.models import Image
from netmind_rentgpu.rentals.supplies import matching_image

TORCH = Image(id=1, name="PyTorch 2.4", image_name="pytorch/pytorch", image_tag="2.4.0", image_label="pytorch")
OLD_TORCH = Image(id=2, name="PyTorch 2.1", image_name="pytorch/pytorch", image_tag="2.1.0", image_label="pytorch")
UBUNTU = Image(id=3, name="Ubuntu", image_name="ubuntu", image_tag="24.04", image_label="os")
MIRROR = Image(id=4, name="Mirror", image_name="ubuntu", image_tag="24.04", image_label="mirror")
# Of one's own, named like other images' sources and labels.
MINE = Image(id=5, name="os", image_name="me/work", image_tag="1", image_label="work")
MINE_TOO = Image(id=6, name="ubuntu:24.04", image_name="me/work", image_tag="2", image_label="os")
NAMELESS = Image(id=7)
LABELLED = Image(id=8, name="Labelled", image_label="ubuntu:24.04")


@pytest.mark.parametrize(
    ("text", "images", "expected"),
    [
        ("Ubuntu", [TORCH, UBUNTU, MIRROR], UBUNTU),
        ("pytorch/pytorch:2.1.0", [TORCH, OLD_TORCH], OLD_TORCH),
        ("os", [TORCH, UBUNTU, NAMELESS], UBUNTU),
        # A name comes before a source, and both before a label, however many there are of those.
        ("os", [UBUNTU, MINE, MINE_TOO], MINE),
        ("ubuntu:24.04", [UBUNTU, MIRROR, MINE_TOO], MINE_TOO),
        ("ubuntu:24.04", [LABELLED, UBUNTU], UBUNTU),
        ("work", [MINE], MINE),
    ],
)
def test_an_image_is_found(text: str, images: list[Image], expected: Image) -> None:
    assert matching_image(text, images) is expected
    assert matching_image(text, reversed(images)) is expected


@pytest.mark.parametrize(
    ("text", "images", "candidates"),
    [
        ("pytorch", [TORCH, UBUNTU, OLD_TORCH], "'PyTorch 2.4' (1), 'PyTorch 2.1' (2)"),
        ("ubuntu:24.04", [UBUNTU, TORCH, MIRROR], "'Ubuntu' (3), 'Mirror' (4)"),
        # The label that only one has does not decide between names.
        ("os", [MINE, Image(id=9, name="os"), UBUNTU], "'os' (5), 'os' (9)"),
    ],
)
def test_what_may_be_several_is_refused_with_their_names_and_ids(
    text: str, images: list[Image], candidates: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        matching_image(text, images)
    assert str(caught.value) == f"image: '{text}' may be any of {candidates}; give one's name or id"
    assert caught.value.argument == "image"


@pytest.mark.parametrize("text", ["", "ubuntu", "PYTORCH", "pytorch/pytorch", "pytorch/pytorch:2", "torch", "7"])
def test_part_of_a_name_is_none(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'PyTorch 2\.4', 'Ubuntu'"):
        matching_image(text, [TORCH, UBUNTU])
    with pytest.raises(InvalidArgumentError, match="there are none"):
        matching_image(text, [])


def test_an_image_that_is_listed_twice_is_one() -> None:
    # As it is where the service lists all images whatever type is asked for.
    assert matching_image("Ubuntu", [UBUNTU, TORCH, UBUNTU, TORCH]) == UBUNTU
    assert matching_image("pytorch/pytorch:2.4.0", [TORCH, TORCH]) == TORCH


texts = st.sampled_from(["a", "b", "a:b", "b:a"])
images_drawn = st.lists(
    st.builds(
        Image,
        id=st.integers(1),
        name=st.none() | texts,
        image_name=st.none() | texts,
        image_tag=st.none() | texts,
        image_label=st.none() | texts,
    ),
    unique_by=lambda image: image.id,
)


@given(text=texts, images=images_drawn)
def test_what_is_found_is_called_so_and_the_only_one(text: str, images: list[Image]) -> None:
    names = {image.id: {image.name, f"{image.image_name}:{image.image_tag}", image.image_label} for image in images}
    called_so = [image for image in images if text in names[image.id]]
    try:
        found = matching_image(text, images)
    except InvalidArgumentError as error:
        assert len(called_so) != 1
        assert ("may be any of" in str(error)) is (len(called_so) > 1)
        return
    assert found in called_so
    assert found.name == text or all(image.name != text for image in called_so)
    assert matching_image(text, images[::-1]) is found

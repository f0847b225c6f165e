"""Resolution of a text to an image: the only image of that name, else of that repository and tag, else of that label."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.models import Image
from netmind_rentgpu.rentals.selection.images import matching_image

TORCH = Image(id=1, name="PyTorch 2.4", image_name="pytorch/pytorch", image_tag="2.4.0", image_label="pytorch")
OLD_TORCH = Image(id=2, name="PyTorch 2.1", image_name="pytorch/pytorch", image_tag="2.1.0", image_label="pytorch")
UBUNTU = Image(id=3, name="Ubuntu", image_name="ubuntu", image_tag="24.04", image_label="os")
MIRROR = Image(id=4, name="Mirror", image_name="ubuntu", image_tag="24.04", image_label="mirror")
# The user's own images, named like other images' sources and labels.
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
        # A name comes before a source, and both before a label, even if several images have that source or label.
        ("os", [UBUNTU, MINE, MINE_TOO], MINE),
        ("ubuntu:24.04", [UBUNTU, MIRROR, MINE_TOO], MINE_TOO),
        ("ubuntu:24.04", [LABELLED, UBUNTU], UBUNTU),
        ("work", [MINE], MINE),
    ],
)
def test_text_matches_an_image_by_name_then_source_then_label(text: str, images: list[Image], expected: Image) -> None:
    assert matching_image(text, images) is expected
    assert matching_image(text, reversed(images)) is expected


@pytest.mark.parametrize(
    ("text", "images", "candidates"),
    [
        ("pytorch", [TORCH, UBUNTU, OLD_TORCH], "'PyTorch 2.4' (1), 'PyTorch 2.1' (2)"),
        ("ubuntu:24.04", [UBUNTU, TORCH, MIRROR], "'Ubuntu' (3), 'Mirror' (4)"),
        # A label that only one image has does not decide between two names.
        ("os", [MINE, Image(id=9, name="os"), UBUNTU], "'os' (5), 'os' (9)"),
    ],
)
def test_text_of_several_images_is_refused_with_their_names_and_ids(
    text: str, images: list[Image], candidates: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        matching_image(text, images)
    assert str(caught.value) == f"image: '{text}' matches several images: {candidates}; give the name or id of one"
    assert caught.value.argument == "image"


@pytest.mark.parametrize("text", ["", "ubuntu", "PYTORCH", "pytorch/pytorch", "pytorch/pytorch:2", "torch", "7"])
def test_part_of_an_image_name_matches_no_image(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'PyTorch 2\.4', 'Ubuntu'"):
        matching_image(text, [TORCH, UBUNTU])
    with pytest.raises(InvalidArgumentError, match="there are none"):
        matching_image(text, [])


def test_image_listed_twice_matches_as_one_image() -> None:
    # An image appears twice if the service lists all images for each type.
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
def test_matched_image_has_the_text_as_its_name_source_or_label(text: str, images: list[Image]) -> None:
    names = {image.id: {image.name, f"{image.image_name}:{image.image_tag}", image.image_label} for image in images}
    with_text = [image for image in images if text in names[image.id]]
    try:
        found = matching_image(text, images)
    except InvalidArgumentError as error:
        assert len(with_text) != 1
        assert ("matches several images" in str(error)) is (len(with_text) > 1)
        return
    assert found in with_text
    assert found.name == text or all(image.name != text for image in with_text)
    assert matching_image(text, images[::-1]) is found

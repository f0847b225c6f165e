"""The lookup of images by name, by repository and tag, or by label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import inf

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.models import Image, ImageType
from netmind_rentgpu.rentals.selection.offers import version
from netmind_rentgpu.resources.images import AsyncImages

__all__ = ["ImageResolver", "ResolvedImage", "default_image", "matching_image"]


@attrs.frozen
class ResolvedImage:
    """The image that a rental starts.

    Attributes:
        text: the image as its user named it, or the name of the default.
    """

    id: int
    text: str


class ImageResolver:
    """Finds images, and remembers them."""

    def __init__(self, images: AsyncImages) -> None:
        self._images = images
        self._found: defaultdict[str | None, SingleFlight[Image]] = defaultdict(lambda: SingleFlight(fresh=inf))

    async def resolved(self, image: int | str | Image | None) -> ResolvedImage:
        """Return the image that is meant: a text is looked up, as by `matching_image`; None is the `default_image`.

        Raises:
            InvalidArgumentError: the text matches no image, or several; the id cannot be sent; or there is no default.
        """
        if isinstance(image, Image):
            return ResolvedImage(image.id, str(image.name))
        if isinstance(image, int):
            return ResolvedImage(arguments.identifier("image", image), str(image))
        found = await self._found[image].get(lambda: self._find_image(image))
        return ResolvedImage(found.id, str(found.name) if image is None else image)

    def forget(self) -> None:
        """Forget the images, so that each is looked up again after the service has refused a create."""
        for shared in self._found.values():
            shared.forget()

    async def _find_image(self, text: str | None) -> Image:
        # Public images are left out, because any user may give an image a well-known name.
        kinds = (ImageType.OFFICIAL,) if text is None else (ImageType.OFFICIAL, ImageType.CUSTOM)
        found = [image for kind in kinds async for image in self._images.list(image_type=kind)]
        return default_image(found) if text is None else matching_image(text, found)


def default_image(official: Iterable[Image]) -> Image:
    """Return the official image for PyTorch of the highest version, or the only official image.

    Raises:
        InvalidArgumentError: there is no such image.
    """
    known = list({image.id: image for image in official}.values())
    for_torch = [image for image in known if "pytorch" in f"{image.image_label} {image.name}".casefold()]
    if for_torch:
        return max(for_torch, key=lambda image: (version(image.image_tag), version(image.name), image.id))
    if len(known) == 1:
        return known[0]
    names = ", ".join(repr(image.name) for image in known[:20])
    raise InvalidArgumentError(
        "image", f"is missing, and no official image is for PyTorch; there are {names or 'none'}"
    )


def matching_image(text: str, images: Iterable[Image]) -> Image:
    """Return the only image whose name is the text, else whose `repository:tag` is, else whose label is.

    Raises:
        InvalidArgumentError: the text matches no image, or several.
    """
    # The service may list an image under both types.
    known = list({image.id: image for image in images}.values())
    by_name = [image for image in known if image.name == text]
    by_source = [image for image in known if f"{image.image_name}:{image.image_tag}" == text]
    by_label = [image for image in known if image.image_label == text]
    for found in (by_name, by_source, by_label):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{image.name!r} ({image.id})" for image in found)
            raise InvalidArgumentError("image", f"{text!r} matches several images: {names}; give the name or id of one")
    names = ", ".join(repr(image.name) for image in known[:20])
    raise InvalidArgumentError("image", f"no official or own image is called {text!r}; there are {names or 'none'}")

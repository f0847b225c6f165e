"""Finds the image that a name means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import inf

from netmind_rentgpu import arguments
from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.models import Image, ImageType
from netmind_rentgpu.resources.images import AsyncImages

__all__ = ["ImageResolver", "matching_image"]


class ImageResolver:
    """Finds images by name, and remembers what it found."""

    def __init__(self, images: AsyncImages) -> None:
        self._images = images
        self._found: defaultdict[str, SingleFlight[int]] = defaultdict(lambda: SingleFlight(fresh=inf))

    async def image_id(self, image: int | str | Image) -> int:
        """Return the id of the image that is meant.

        Raises:
            InvalidArgumentError: no image is called so, or several are.
        """
        if isinstance(image, Image):
            return image.id
        if not isinstance(image, str):
            return arguments.identifier("image", image)
        return await self._found[image].get(lambda: self._find_image(image))

    def forget(self) -> None:
        """Look every image up again the next time, because the service has refused a create."""
        for shared in self._found.values():
            shared.forget()

    async def _find_image(self, text: str) -> int:
        # Not among the public ones: anybody may give an image of theirs a well-known name.
        found = [
            image
            for image_type in (ImageType.OFFICIAL, ImageType.CUSTOM)
            async for image in self._images.list(image_type=image_type)
        ]
        return matching_image(text, found).id


def matching_image(text: str, images: Iterable[Image]) -> Image:
    """Return the one image of a name, else of a repository and tag, else of a label.

    Raises:
        InvalidArgumentError: there is none, or several.
    """
    # A service may list one under both types.
    known = list({image.id: image for image in images}.values())
    by_name = [image for image in known if image.name == text]
    by_source = [image for image in known if f"{image.image_name}:{image.image_tag}" == text]
    by_label = [image for image in known if image.image_label == text]
    for found in (by_name, by_source, by_label):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{image.name!r} ({image.id})" for image in found)
            raise InvalidArgumentError("image", f"{text!r} may be any of {names}; give one's name or id")
    names = ", ".join(repr(image.name) for image in known[:20])
    raise InvalidArgumentError("image", f"no official or own image is called {text!r}; there are {names or 'none'}")

"""The lookup of images by name, by repository and tag, or by label."""

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
    """Finds images, and remembers their ids."""

    def __init__(self, images: AsyncImages) -> None:
        self._images = images
        self._found: defaultdict[str, SingleFlight[int]] = defaultdict(lambda: SingleFlight(fresh=inf))

    async def image_id(self, image: int | str | Image) -> int:
        """Return the id of an image; a text is looked up, as by `matching_image`.

        Raises:
            InvalidArgumentError: the text matches no image, or several; or the id cannot be sent.
        """
        if isinstance(image, Image):
            return image.id
        if not isinstance(image, str):
            return arguments.identifier("image", image)
        return await self._found[image].get(lambda: self._find_image(image))

    def forget(self) -> None:
        """Forget the ids, so that each image is looked up again after the service has refused a create."""
        for shared in self._found.values():
            shared.forget()

    async def _find_image(self, text: str) -> int:
        # Public images are left out, because any user may give an image a well-known name.
        found = [
            image
            for image_type in (ImageType.OFFICIAL, ImageType.CUSTOM)
            async for image in self._images.list(image_type=image_type)
        ]
        return matching_image(text, found).id


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

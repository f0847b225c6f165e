"""Images, which containers start from. They cannot be deleted, so do not create one for each container."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import cast

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.models import Image, ImageType
from netmind_rentgpu.requests import ListQuery, NewImage
from netmind_rentgpu.resources.listing import list_pager
from netmind_rentgpu.resources.paths import API
from netmind_rentgpu.settings import DEFAULT, TimeoutOption
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.messages import Request
from netmind_rentgpu.wire.paging import AsyncPager, PageSize

__all__ = ["AsyncImages"]

_PATH = f"{API}images/"
_DEFAULT_REGISTRY = "https://index.docker.io/v1/"


class AsyncImages:
    """`client.images`: the images that containers start from."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._sizes = PageSize(caller.profile.page_size)
        self._ensuring = asyncio.Lock()
        self._created: dict[tuple[str | None, ...], Image] = {}

    async def create(
        self,
        *,
        name: str,
        image_name: str,
        image_tag: str,
        image_label: str,
        description: str | None = None,
        docker_username: str | None = None,
        docker_passwd: str | None = None,
        docker_registry: str | None = None,
        public_port: str | None = None,
        onstart: str | None = None,
        options: str | None = None,
        timeout: TimeoutOption = DEFAULT,
    ) -> Image:
        """Create a custom image (`POST /v1/rentgpu/images/`).

        Args:
            name: the name in the list of images.
            image_name: the repository, such as pytorch/pytorch.
            image_tag: the tag, such as 2.4.0 or latest.
            image_label: the label, such as pytorch or tensorflow.
            docker_username, docker_passwd: the login of a private registry.
            docker_registry: the registry; by default the service uses Docker Hub.
            public_port: a port to expose.
            onstart: a command to run when a container starts.
            options: options of the container; only --add-host, -e, -h and -w are supported.

        Raises:
            InvalidArgumentError: an option is not supported, or an argument is no text.
            RentGPUError: any of the client's errors. The create is not retried once the service may have acted on it.
        """
        new = NewImage(
            name=name,
            image_name=image_name,
            image_tag=image_tag,
            image_label=image_label,
            description=description,
            docker_username=docker_username,
            docker_passwd=docker_passwd,
            docker_registry=docker_registry,
            public_port=public_port,
            onstart=onstart,
            options=options,
        )
        return await self._create(new, timeout)

    def list(
        self,
        *,
        image_type: ImageType | str | int | Collection[ImageType | str | int] = ImageType.OFFICIAL,
        marker: int | str | None = None,
        page_size: int | None = None,
        timeout: TimeoutOption = DEFAULT,
    ) -> AsyncPager[Image]:
        """List images of some type (`GET /v1/rentgpu/images/`): iterate the list for all, or get a `first_page()`.

        Args:
            image_type: one or several types; the profile has their numbers. The lists of several types follow each other.
            marker: the id after which the list begins; None for the whole list. Not with several types.
            page_size: the number of items to ask for at a time; by default the profile's. The pager asks for fewer if the
                service refuses so many.
            timeout: the timeout of each page.

        Raises:
            InvalidArgumentError: the profile has no number for `image_type`, or an argument cannot be sent.
            RentGPUError: any of the client's errors.
        """
        several = isinstance(image_type, Collection) and not isinstance(image_type, (str, bytes))
        types = cast("Collection[ImageType | str | int]", image_type if several else [image_type])
        numbers = dict.fromkeys(self._caller.codec.image_type_number(kind) for kind in types)
        if not numbers:
            raise InvalidArgumentError("image_type", "names nothing; leave it out for official images")
        if marker is not None and len(numbers) > 1:
            raise InvalidArgumentError("marker", "is an id in the list of one type, and `image_type` names several")
        query = ListQuery(marker=marker, page_size=page_size)
        return list_pager(self._caller, Image, _PATH, query, self._sizes, image_types=numbers, timeout=timeout)

    async def get(self, image_id: int, *, timeout: TimeoutOption = DEFAULT) -> Image:
        """Get one image (`GET /v1/rentgpu/images/{image_id}`).

        Raises:
            NotFoundError: the account has none with that id.
            RentGPUError: any other of the client's errors.
        """
        request = Request(method="GET", path=f"{_PATH}{arguments.identifier('image_id', image_id)}")
        return await self._caller.one(Image, request, timeout)

    async def ensure(
        self,
        *,
        name: str,
        image_name: str,
        image_tag: str,
        image_label: str,
        description: str | None = None,
        docker_username: str | None = None,
        docker_passwd: str | None = None,
        docker_registry: str | None = None,
        public_port: str | None = None,
        onstart: str | None = None,
        options: str | None = None,
        timeout: TimeoutOption = DEFAULT,
    ) -> Image:
        """Find a custom image with exactly this content, and create it if there is none.

        A missing argument matches an image that has nothing in its place, or the default registry. Calls of one client run
        one after the other, so that they create no image twice; two clients may.

        Args:
            timeout: the timeout of each request. The other arguments are those of `create`.

        Raises:
            InvalidArgumentError: as for `create`.
            RentGPUError: any of the client's errors.
        """
        new = NewImage(
            name=name,
            image_name=image_name,
            image_tag=image_tag,
            image_label=image_label,
            description=description,
            docker_username=docker_username,
            docker_passwd=docker_passwd,
            docker_registry=docker_registry,
            public_port=public_port,
            onstart=onstart,
            options=options,
        )
        wanted = _stored(new)
        async with self._caller.one_at_a_time(self._ensuring, timeout):
            # Remembered, because the list may not show yet what was just created.
            if wanted in self._created:
                return self._created[wanted]
            async for image in self.list(image_type=ImageType.CUSTOM, timeout=timeout):
                if _stored(image) == wanted:
                    return image
            self._created[wanted] = await self._create(new, timeout)
            return self._created[wanted]

    async def _create(self, new: NewImage, timeout: TimeoutOption) -> Image:
        request = Request(
            method="POST",
            path=_PATH,
            body=self._caller.codec.written(new),
            idempotent=False,
            avoid_idle_connection=True,
            secrets=(new.docker_passwd,) if new.docker_passwd else (),
        )
        return await self._caller.one(Image, request, timeout)


_FIELDS = tuple(field.name for field in attrs.fields(NewImage))


def _stored(image: NewImage | Image) -> tuple[str | None, ...]:
    """Return an image's content in a comparable form, as the service stores it; empty and missing texts are the same."""
    values = {name: getattr(image, name) or None for name in _FIELDS}
    return tuple({**values, "docker_registry": values["docker_registry"] or _DEFAULT_REGISTRY}.values())

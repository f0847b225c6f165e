"""What a rental needs beside a machine: an image, and a password to log in with."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from math import inf

from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import InvalidArgumentError, NotFoundError
from netmind_rentgpu.models import Auth, Image, ImageType
from netmind_rentgpu.resources import arguments
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.resources.images import AsyncImages
from netmind_rentgpu.state_file import Connection, State

__all__ = ["Supplies", "matching_image"]

_LONGEST_CLAIM = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Supplies:
    """Finds images by name, and this account's own password. What was found is remembered by the client."""

    def __init__(self, images: AsyncImages, auths: AsyncAuths, state: State, account: str) -> None:
        self._images = images
        self._auths = auths
        self._state = state
        self._account = account
        self._named: defaultdict[str, SingleFlight[int]] = defaultdict(_remembered)
        # None stands for the account's own.
        self._given: defaultdict[str | None, SingleFlight[int]] = defaultdict(_remembered)

    async def image_id(self, image: int | str | Image) -> int:
        """Return the id of the image that is meant.

        Raises:
            InvalidArgumentError: no image is called so, or several are.
        """
        if isinstance(image, Image):
            return image.id
        if not isinstance(image, str):
            return arguments.identifier("image", image)
        return await self._named[image].get(lambda: self._find_image(image))

    async def auth_id(self, auth: int | str | Auth | None) -> int:
        """Return the id of the password that is meant: an auth's, a password's, or that of this account's own password."""
        if isinstance(auth, Auth):
            return auth.id
        if isinstance(auth, int):
            return arguments.identifier("auth", auth)
        return await self._given[auth].get(lambda: self._own_auth() if auth is None else self._ensure(auth))

    def forget(self) -> None:
        """Look everything up again the next time: the service has refused something."""
        for shared in (*self._named.values(), *self._given.values()):
            shared.forget()

    async def _find_image(self, text: str) -> int:
        # Not among the public ones: anybody may give an image of theirs a well-known name.
        found = [
            image
            for image_type in (ImageType.OFFICIAL, ImageType.CUSTOM)
            async for image in self._images.list(image_type=image_type)
        ]
        return matching_image(text, found).id

    async def _ensure(self, password: str) -> int:
        return (await self._auths.ensure(password)).id

    async def _own_auth(self) -> int:
        """Return the auth of this account's own password, which is made once, whoever begins at the same time."""
        pause = _FIRST_PAUSE
        while True:
            value, known, ours = await self._state.write(self._claim)
            if known is not None and await self._holds(known, value):
                return known
            if ours or known is not None:
                return await self._make_auth(value)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)

    async def _make_auth(self, value: str) -> int:
        try:
            made = await self._auths.ensure(value)
        except BaseException:
            # The next one may try.
            await self._state.write(lambda connection: self._keep(connection, None))
            raise
        await self._state.write(lambda connection: self._keep(connection, made.id))
        return made.id

    async def _holds(self, auth_id: int, value: str) -> bool:
        try:
            return (await self._auths.get(auth_id)).value in (value, None)
        except NotFoundError:
            return False

    def _claim(self, connection: Connection) -> tuple[str, int | None, bool]:
        """Return the password, its auth where that is known, and whether it is ours to make that."""
        connection.execute(
            "INSERT INTO passwords (account, value) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (self._account, secrets.token_urlsafe(24)),
        )
        now = time.time()
        claimed = connection.execute(
            "UPDATE passwords SET claimed_at = ? WHERE account = ? AND auth_id IS NULL"
            " AND claimed_at NOT BETWEEN ? AND ?",
            (now, self._account, now - _LONGEST_CLAIM, now),
        )
        value, auth_id = connection.execute(
            "SELECT value, auth_id FROM passwords WHERE account = ?", (self._account,)
        ).fetchone()
        return value, auth_id, bool(claimed.rowcount)

    def _keep(self, connection: Connection, auth_id: int | None) -> None:
        connection.execute(
            "UPDATE passwords SET auth_id = ?, claimed_at = 0 WHERE account = ?", (auth_id, self._account)
        )


def _remembered() -> SingleFlight[int]:
    return SingleFlight(fresh=inf)


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

"""Auths: the passwords of containers' SSH logins. They cannot be deleted, so do not create one for each container."""

from __future__ import annotations

import asyncio

from netmind_rentgpu import arguments
from netmind_rentgpu.models import Auth
from netmind_rentgpu.requests import ListQuery, NewAuth
from netmind_rentgpu.resources.listing import list_pager
from netmind_rentgpu.resources.paths import API
from netmind_rentgpu.settings import DEFAULT, TimeoutOption
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.messages import Request
from netmind_rentgpu.wire.paging import AsyncPager, PageSize

__all__ = ["AsyncAuths"]

_PATH = f"{API}auths/"


class AsyncAuths:
    """`client.auths`: the account's passwords for SSH logins."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._sizes = PageSize(caller.profile.page_size)
        self._ensuring = asyncio.Lock()
        self._created: dict[str, Auth] = {}

    async def create(self, value: str, *, timeout: TimeoutOption = DEFAULT) -> Auth:
        """Store a password (`POST /v1/rentgpu/auths/`).

        Args:
            value: the password, 8 to 32 characters.

        Raises:
            InvalidArgumentError: the password is too short or too long.
            RentGPUError: any of the client's errors. The create is not retried once the service may have acted on it.
        """
        request = Request(
            method="POST",
            path=_PATH,
            body=self._caller.codec.written(NewAuth(value=value)),
            idempotent=False,
            avoid_idle_connection=True,
            secrets=(value,),
        )
        return await self._caller.one(Auth, request, timeout)

    def list(
        self,
        *,
        marker: int | str | None = None,
        page_size: int | None = None,
        timeout: TimeoutOption = DEFAULT,
    ) -> AsyncPager[Auth]:
        """List the account's passwords (`GET /v1/rentgpu/auths/`): iterate the list for all, or get a `first_page()`.

        Args:
            marker: the id after which the list begins; None for the whole list.
            page_size: the number of items to ask for at a time; by default the profile's. The pager asks for fewer if the
                service refuses so many.
            timeout: the timeout of each page.

        Raises:
            InvalidArgumentError: `marker` or `page_size` cannot be sent.
            RentGPUError: any of the client's errors.
        """
        query = ListQuery(marker=marker, page_size=page_size)
        return list_pager(self._caller, Auth, _PATH, query, self._sizes, timeout=timeout)

    async def get(self, auth_id: int, *, timeout: TimeoutOption = DEFAULT) -> Auth:
        """Get one password (`GET /v1/rentgpu/auths/{auth_id}`).

        Raises:
            NotFoundError: the account has none with that id.
            RentGPUError: any other of the client's errors.
        """
        request = Request(method="GET", path=f"{_PATH}{arguments.identifier('auth_id', auth_id)}")
        return await self._caller.one(Auth, request, timeout)

    async def ensure(self, value: str, *, timeout: TimeoutOption = DEFAULT) -> Auth:
        """Find a password among the account's, and store it if it is not there.

        Calls of one client run one after the other, so that they store no password twice; two clients may.

        Args:
            value: the password, 8 to 32 characters.
            timeout: the timeout of each request.

        Raises:
            InvalidArgumentError: the password is too short or too long.
            RentGPUError: any of the client's errors.
        """
        arguments.password(value)
        async with self._caller.one_at_a_time(self._ensuring, timeout):
            # Remembered, because the list may not show yet what was just created.
            if value in self._created:
                return self._created[value]
            async for auth in self.list(timeout=timeout):
                if auth.value == value:
                    return auth
            self._created[value] = await self.create(value, timeout=timeout)
            return self._created[value]

"""The auth that a rental's container is created with: the caller's, or the account's own, which is created once.

A login does not read the password here: `ssh/credentials.py` asks the service for the auth of the container.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from math import inf

from netmind_rentgpu import arguments
from netmind_rentgpu.concurrency.backoff import backoff
from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import NotFoundError
from netmind_rentgpu.models import Auth
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.settings import Timeouts
from netmind_rentgpu.state_file import Connection, State

__all__ = ["AccountPassword"]

# In seconds. After the longest claim, another process may create the auth.
_LONGEST_CLAIM = 60.0


class AccountPassword:
    """Finds the auth of a password, and remembers its id; keeps the account's own password in the state file."""

    def __init__(self, auths: AsyncAuths, state: State) -> None:
        self._auths = auths
        self._state = state
        # The ids by password; None is the account's own password.
        self._found: defaultdict[str | None, SingleFlight[int]] = defaultdict(lambda: SingleFlight(fresh=inf))

    async def auth_id(self, auth: int | str | Auth | None) -> int:
        """Return the id of the auth that a rental logs in with.

        Args:
            auth: an auth, its id, or its password; None for the account's own password.
        """
        if isinstance(auth, Auth):
            return auth.id
        if isinstance(auth, int):
            return arguments.identifier("auth", auth)
        return await self._found[auth].get(lambda: self._own_auth() if auth is None else self._ensure(auth))

    async def shown(self, auth_id: int, timeout: Timeouts) -> str | None:
        """Return the password that the service shows for an auth.

        Raises:
            RentGPUError: any of the client's errors.
        """
        return (await self._auths.get(auth_id, timeout=timeout)).value

    def forget(self) -> None:
        """Forget the ids, so that each password is looked up again after the service has refused a create."""
        for shared in self._found.values():
            shared.forget()

    async def _ensure(self, password: str) -> int:
        return (await self._auths.ensure(password)).id

    async def _own_auth(self) -> int:
        """Return the auth id of the account's own password; of several processes, one creates it and the others wait."""
        pauses = backoff(first=0.05, longest=1.0)
        while True:
            value, known, is_claimed = await self._state.write(self._claim)
            if known is not None and await self._holds(known, value):
                return known
            if is_claimed or known is not None:
                return await self._make_auth(value)
            await asyncio.sleep(next(pauses))

    async def _make_auth(self, value: str) -> int:
        try:
            made = await self._auths.ensure(value)
        except BaseException:
            # End the claim, because another process would wait for `_LONGEST_CLAIM` otherwise.
            await self._state.write(lambda connection: self._keep(connection, value, None))
            raise
        await self._state.write(lambda connection: self._keep(connection, value, made.id))
        return made.id

    async def _holds(self, auth_id: int, value: str) -> bool:
        try:
            return (await self._auths.get(auth_id)).value in (value, None)
        except NotFoundError:
            return False

    def _claim(self, connection: Connection) -> tuple[str, int | None, bool]:
        """Return the password, its auth id if it is known, and True if this call has claimed the creation of the auth."""
        account = self._state.account(connection)
        connection.execute(
            "INSERT INTO passwords (account, value) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (account, secrets.token_urlsafe(24)),
        )
        now = time.time()
        claimed = connection.execute(
            "UPDATE passwords SET claimed_at = ? WHERE account = ? AND auth_id IS NULL"
            " AND claimed_at NOT BETWEEN ? AND ?",
            (now, account, now - _LONGEST_CLAIM, now),
        )
        value, auth_id = connection.execute(
            "SELECT value, auth_id FROM passwords WHERE account = ?", (account,)
        ).fetchone()
        return value, auth_id, bool(claimed.rowcount)

    def _keep(self, connection: Connection, value: str, auth_id: int | None) -> None:
        # The account may have another password by now, if it was joined with another account.
        connection.execute(
            "UPDATE passwords SET auth_id = ?, claimed_at = 0 WHERE account = ? AND value = ?",
            (auth_id, self._state.account(connection), value),
        )

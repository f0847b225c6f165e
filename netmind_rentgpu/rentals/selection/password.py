"""The password that a rental logs in with: one that the caller gives, or the account's own, which is made once."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from math import inf

from netmind_rentgpu import arguments
from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.errors import NotFoundError
from netmind_rentgpu.models import Auth
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.settings import Timeouts
from netmind_rentgpu.state_file import Connection, State

__all__ = ["AccountPassword"]

_LONGEST_CLAIM = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class AccountPassword:
    """Finds the auth of a password, and remembers it; keeps the account's own password in the state file."""

    def __init__(self, auths: AsyncAuths, state: State) -> None:
        self._auths = auths
        self._state = state
        # By password; None stands for the account's own.
        self._found: defaultdict[str | None, SingleFlight[int]] = defaultdict(lambda: SingleFlight(fresh=inf))

    async def auth_id(self, auth: int | str | Auth | None) -> int:
        """Return the id of the password that is meant: an auth's, a password's, or that of this account's own password."""
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
        """Look every password up again the next time, because the service has refused a create."""
        for shared in self._found.values():
            shared.forget()

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
        """Return the password, its auth where that is known, and whether it is ours to make that."""
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
        # By then the account may have another password, that of an account which turned out to be the same.
        connection.execute(
            "UPDATE passwords SET auth_id = ?, claimed_at = 0 WHERE account = ? AND value = ?",
            (auth_id, self._state.account(connection), value),
        )

"""The emulated service itself: its accounts, which tokens lead to them, and what time it is. No I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

from netmind_rentgpu.emulator.account import Account
from netmind_rentgpu.emulator.billing import Charge, PendingCreate
from netmind_rentgpu.emulator.clock import Clock, Timeline
from netmind_rentgpu.emulator.dialect import Dialect
from netmind_rentgpu.emulator.market import Market
from netmind_rentgpu.emulator.ports import Ports
from netmind_rentgpu.emulator.validation import InvalidRequest, Refusal
from netmind_rentgpu.emulator.world import World

__all__ = ["FIRST_ACCOUNT", "Service"]

FIRST_ACCOUNT = "default"


class Service:
    """Everything behind the thirteen calls, which are those of its accounts.

    Attributes:
        timeline: what time it is, and what is to happen.
        tokens: the names of the accounts that the accepted tokens lead to.
    """

    def __init__(
        self,
        *,
        seed: int,
        machines: int,
        boot_seconds: float,
        token: str,
        balance: Decimal | None,
        world: World,
        clock: Clock,
        ports: Ports,
        numbers: Iterator[int],
    ) -> None:
        self.world = world
        self.timeline: Timeline = Timeline(clock)
        self._market = Market(
            seed=seed, machines=machines, boot_seconds=boot_seconds, world=world, timeline=self.timeline, ports=ports
        )
        self.dialect: Dialect = self._market.dialect
        self.tokens: dict[str, str] = {}
        self._accounts: dict[str, Account] = {}
        self._balance = balance
        self._numbers = numbers
        # A test may look from another thread than the one that serves.
        self._lock = threading.RLock()
        self.accept(token, FIRST_ACCOUNT)

    def at_once(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Go to the present, and make a call; nothing comes between."""
        with self._lock:
            self.timeline.settle()
            return call(*arguments)

    def later(self, seconds: float, call: Callable[..., bytes], *arguments: Any) -> None:
        """Make a call in a while, by the clock; whether it is refused then, nobody learns."""

        def act() -> None:
            with suppress(Refusal):
                call(*arguments)

        self.timeline.plan(self.timeline.now + seconds, act)

    def accept(self, token: str, account: str) -> None:
        """Accept a token from now on, for an account, which is opened if there is none of that name."""
        if account not in self._accounts:
            self._accounts[account] = Account(
                account, self._market, balance=self._balance, next_number=lambda: next(self._numbers)
            )
        self.tokens[token] = account

    def authorize(self, header: str | None) -> Account:
        """Return the account that an `Authorization` header leads to."""
        if header is None:
            raise InvalidRequest(
                [{"loc": ["header", "authorization"], "msg": "field required", "type": "value_error.missing"}]
            )
        form = "Bearer " if self.world.token == "bearer" else ""  # noqa: S105  # a form, no token
        account = self.tokens.get(header.removeprefix(form)) if header.startswith(form) else None
        if account is None:
            raise self.dialect.bad_token()
        return self._accounts[account]

    def charges(self) -> list[Charge]:
        """Return what each container of every account has cost until now."""
        return self._market.bill.charges(self.timeline.now)

    def pending_creates(self) -> list[PendingCreate]:
        """Return the creates of all accounts that are still to be done, without those that can only be refused."""
        found = [one for account in self._accounts.values() for one in account.pending_creates()]
        return sorted(found, key=lambda one: one.number)

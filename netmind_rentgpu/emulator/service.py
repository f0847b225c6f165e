"""The emulated service: its accounts, their tokens, and its timeline. No I/O."""

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
    """The state behind the thirteen calls, which are methods of `Account`.

    Attributes:
        timeline: the present time and the planned actions.
        tokens: the accepted tokens, each with the name of its account.
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
        # A test's thread may read the state while the server's thread changes it.
        self._lock = threading.RLock()
        self.accept(token, FIRST_ACCOUNT)

    def at_once(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Run all due actions and then a call, under a lock against other threads."""
        with self._lock:
            self.timeline.settle()
            return call(*arguments)

    def later(self, seconds: float, call: Callable[..., bytes], *arguments: Any) -> None:
        """Schedule a call, whose result or refusal is discarded.

        Args:
            seconds: the delay by the emulator's clock.
        """

        def act() -> None:
            with suppress(Refusal):
                call(*arguments)

        self.timeline.plan(self.timeline.now + seconds, act)

    def accept(self, token: str, account: str) -> None:
        """Accept a token from now on, for an account that is opened if it does not exist."""
        if account not in self._accounts:
            self._accounts[account] = Account(
                account, self._market, balance=self._balance, next_number=lambda: next(self._numbers)
            )
        self.tokens[token] = account

    def authorize(self, header: str | None) -> Account:
        """Return the account of an `Authorization` header's token.

        Raises:
            Refusal: there is no header, or no account has its token.
        """
        if header is None:
            raise InvalidRequest(
                [{"loc": ["header", "authorization"], "msg": "field required", "type": "value_error.missing"}]
            )
        form = "Bearer " if self.world.token == "bearer" else ""  # noqa: S105  # not a token
        account = self.tokens.get(header.removeprefix(form)) if header.startswith(form) else None
        if account is None:
            raise self.dialect.bad_token()
        return self._accounts[account]

    def set_gpu_use(self, container_id: int, percent: int) -> bool:
        """Set the use of each of a container's GPUs; return False if nothing can run in the container, or it is gone."""
        return self._market.ports.set_gpu_use(container_id, percent)

    def charges(self) -> list[Charge]:
        """Return the charges of all accounts' containers until now."""
        return self._market.bill.charges(self.timeline.now)

    def pending_creates(self) -> list[PendingCreate]:
        """Return the creates that the service will still do, without creates that it would refuse now."""
        pending = [create for account in self._accounts.values() for create in account.pending_creates()]
        return sorted(pending, key=lambda create: create.number)

"""The wait for machines that are not there yet: all waiting rentals of a client share one list of machines a tick."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from netmind_rentgpu.concurrency.single_flight import copy_of_error
from netmind_rentgpu.errors import RateLimitError, RentGPUError, ServerError, TransportError, UnexpectedResponseError
from netmind_rentgpu.models import Machine
from netmind_rentgpu.waiting.strategy import AdaptiveInterval

__all__ = ["StockWatch"]

logger: logging.Logger = logging.getLogger("netmind_rentgpu")


class StockWatch:
    """The lists of machines that the waiting rentals of one client share, at the pace of the list of containers."""

    def __init__(self, list_machines: Callable[[str], Awaitable[list[Machine]]]) -> None:
        """Set up.

        Args:
            list_machines: lists the machines, with their prices in a currency.
        """
        self._list_machines = list_machines
        self._ticks: dict[str, _Tick] = {}

    async def next_list(self, currency: str) -> list[Machine]:
        """Wait for the next list of the machines, which all callers that wait by then get.

        Raises:
            RentGPUError: the machines cannot be listed, and a retry would not help.
        """
        tick = self._ticks.setdefault(currency, _Tick())
        if tick.task is None or tick.task.done():
            tick.task = asyncio.get_running_loop().create_task(self._list_soon(currency, tick.interval))
        tick.waiting += 1
        try:
            found = await asyncio.shield(tick.task)
        finally:
            tick.waiting -= 1
            if not tick.waiting and not tick.task.done():
                tick.task.cancel()
                del self._ticks[currency]
        if isinstance(found, RentGPUError):
            # Each caller gets an error of its own, with a traceback and notes of its own.
            raise copy_of_error(found) from found.__cause__
        return found

    async def _list_soon(self, currency: str, interval: AdaptiveInterval) -> list[Machine] | RentGPUError:
        pause = interval.after_look(random.random(), changed=False)  # noqa: S311  # spreads requests, and guards no secret
        while True:
            await asyncio.sleep(pause)
            try:
                return await self._list_machines(currency)
            except (TransportError, ServerError, RateLimitError, UnexpectedResponseError) as error:
                logger.info("could not list the machines, and tries again: %s", error)
                pause = interval.after_failure(random.random(), error)  # noqa: S311  # as above
            except RentGPUError as error:
                return error


class _Tick:
    """The next list of the machines in one currency.

    Attributes:
        waiting: the number of callers that wait for it.
        task: lists the machines.
    """

    def __init__(self) -> None:
        self.interval: AdaptiveInterval = AdaptiveInterval()
        self.waiting: int = 0
        self.task: asyncio.Task[list[Machine] | RentGPUError] | None = None

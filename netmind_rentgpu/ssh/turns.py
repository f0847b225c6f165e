"""Turns of commands: the number that run at once over one connection, and the search for a higher limit.

A server does not say how many sessions it allows on a connection. OpenSSH allows ten by default.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType

import attrs

__all__ = ["CommandTurns", "ProbeResult", "SessionLimit"]

_COMMANDS_AT_FIRST = 8
# One session for copies, and one for ending commands.
_RESERVED = 2
# Probes that the server may leave without all its answers.
_MOST_UNANSWERED = 3
# The first refusal may come because the server still counts sessions that have just ended, so another probe follows, after a
# pause in seconds.
_REFUSED_BEFORE_FINAL = 2
_PAUSE = 0.2


@attrs.frozen
class ProbeResult:
    """The sessions that were open together on one connection.

    Attributes:
        opened: the number of sessions that the probe opened.
        refused: the number of sessions that the server refused; it may not have answered for all.
        running: the number of commands that ran beside them.
    """

    opened: int
    refused: int
    running: int


@attrs.frozen
class SessionLimit:
    """The number of commands that may run at once.

    Attributes:
        commands: the number, without the two sessions that are reserved for copies and for ending commands.
        is_final: True if two probes after each other were refused sessions and have not raised the number, or the server
            has left too many probes without all its answers.
        refused: the number of probes since the last rise that were refused sessions.
        unanswered: the number of probes for which the server had not answered in time.
    """

    commands: int = _COMMANDS_AT_FIRST
    is_final: bool = False
    refused: int = 0
    unanswered: int = 0

    @property
    def probes(self) -> int:
        """The number of sessions to ask for, in order to double the limit and keep the reserve."""
        return self.commands + _RESERVED

    def after(self, probe: ProbeResult) -> SessionLimit:
        """Return the limit after a probe, during which the server had all of the probe's sessions open at once."""
        commands = max(self.commands, probe.opened + probe.running - _RESERVED)
        if probe.opened + probe.refused < self.probes:
            # A slow server may allow more.
            unanswered = self.unanswered + 1
            return SessionLimit(commands, unanswered == _MOST_UNANSWERED, unanswered=unanswered)
        refused = self.refused + 1 if probe.refused and commands == self.commands else 0
        return SessionLimit(commands, refused == _REFUSED_BEFORE_FINAL, refused, self.unanswered)


class CommandTurns:
    """The turns of one connection; `async with` holds one. Callers get theirs in the order of their arrival.

    When all are taken and another caller wants one, sessions are opened as a probe, and the limit rises by what the server
    allowed. No turn begins during a probe, because a new command could be refused then.

    Attributes:
        limit: the present limit.
        begun: the number of turns and claims of the reserve that have begun.
    """

    def __init__(self, probe: Callable[[int], Awaitable[ProbeResult]]) -> None:
        """Set up.

        Args:
            probe: opens a number of sessions at once, and ends them.
        """
        self.limit: SessionLimit = SessionLimit()
        self.begun: int = 0
        self._probe = probe
        self._taken = 0
        self._reserve_claims = 0
        # True after an answered probe that raised no limit, until a turn ends: another probe would find the same before.
        self._is_probe_vain = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._probing: asyncio.Task[None] | None = None

    @property
    def has_free_turn(self) -> bool:
        """True if a caller gets a turn at once."""
        return self._probing is None and self._taken < self.limit.commands

    async def __aenter__(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.begun += 1
        self._hand_out()
        if turn.done():
            return
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._give_back()

    @property
    def under_way(self) -> int:
        """The number of turns that are taken or waited for, and of claims of the reserve."""
        return self._taken + len(self._waiting) + self._reserve_claims

    async def claim_reserve(self, *, timeout: float | None = None) -> None:
        """Keep probes from using the reserved sessions, until `return_reserve`; wait for a probe that is under way.

        The caller has to call `return_reserve` afterwards, even if this raises.

        Args:
            timeout: the seconds to wait; None for as long as the probe lasts.
        """
        self.begun += 1
        self._reserve_claims += 1
        if self._probing is not None:
            await asyncio.wait({self._probing}, timeout=timeout)

    def return_reserve(self) -> None:
        """Allow probes again."""
        self._reserve_claims -= 1
        self._hand_out()

    def _give_back(self) -> None:
        self._taken -= 1
        self._is_probe_vain = False
        self._hand_out()

    def _hand_out(self) -> None:
        if self._probing is not None:
            return
        while self._waiting and self._taken < self.limit.commands:
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)
        wanted = any(not turn.done() for turn in self._waiting)
        if wanted and not (self.limit.is_final or self._is_probe_vain or self._reserve_claims):
            self._probing = asyncio.get_running_loop().create_task(self._find_limit())

    async def _find_limit(self) -> None:
        # No other limit is found if the probe fails, as with the connection.
        limit = attrs.evolve(self.limit, is_final=True)
        try:
            if self.limit.refused:
                await asyncio.sleep(_PAUSE)
            limit = self.limit.after(await self._probe(self.limit.probes))
        finally:
            self._is_probe_vain = limit == self.limit
            self.limit, self._probing = limit, None
            self._hand_out()

"""The rules by which a guardian acts. It imports little, because it is part of the process that waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

__all__ = ["Guard", "Step"]

# In seconds.
_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 300.0
_AFTER_END_OF_FILE = 1.0
_LONGEST_TRY = 7 * 86400.0
_LONGEST_MISSING = 3600.0
_NEVER = float("inf")


class Step(Enum):
    """The next step of the guardian."""

    WAIT = "wait"
    LOOK = "fork a child that looks at the state file, and ends what is due"
    END = "end, because nothing is left to guard"


class _Client:
    """A client of the parent.

    Attributes:
        registration: what the child needs to know of the client.
        is_open: True if the client may rent more.
        has_changed: True if something has happened to it since the present look has begun.
        failures: how many looks in a row could not end something of it.
        failing_since: the time of the first of them.
    """

    def __init__(self, registration: Mapping[str, Any]) -> None:
        self.registration = registration
        self.is_open = True
        self.has_changed = True
        self.failures = 0
        self.failing_since = _NEVER


class Guard:
    """The knowledge of the guardian, and the rules by which it acts. It does no I/O.

    Attributes:
        clients: the clients of the parent, by their keys, that may have something to guard.
        parent_is_gone: True once the parent is dead, or is another program by now.
        is_looking: True while a child looks.
        is_asked_to_end: True once a signal has asked the guardian to end.
    """

    def __init__(self) -> None:
        self.clients: dict[str, _Client] = {}
        self.parent_is_gone: bool = False
        self.is_looking: bool = False
        self.is_asked_to_end: bool = False
        self._is_told: bool = True
        self._was_used = False
        self._only_waits = False
        self._look_at: float | None = None

    def obey(self, message: Mapping[str, Any], now: float) -> bool:
        """Handle a message of the parent; return False if it is of an unknown kind, or of an unknown client."""
        client = self.clients.get(message["key"])
        if message["do"] == "register":
            client = self.clients[message["key"]] = _Client(message["registration"])
            self._was_used = True
        elif message["do"] == "watch" and client is not None:
            self.look_by(now + message["seconds"])
        elif message["do"] == "close" and client is not None:
            client.is_open = False
            if message["is_empty"]:
                del self.clients[message["key"]]
            else:
                self.look_by(now)
        else:
            return False
        client.has_changed = True
        return True

    def look_by(self, moment: float) -> None:
        """Look at the state file at a moment, unless an earlier look is due anyway."""
        self._look_at = moment if self._look_at is None else min(self._look_at, moment)

    def lose_channel(self, now: float) -> None:
        """Record that the parent cannot say anything any longer, although it may live."""
        self._is_told = False
        for client in self.clients.values():
            client.is_open, client.has_changed = False, True
        # Not at once, because a process that ends closes its descriptors a moment earlier.
        self.look_by(now + _AFTER_END_OF_FILE)

    def lose_parent(self, now: float) -> None:
        """Record the parent's death."""
        self.parent_is_gone = True
        self.lose_channel(now)
        self.look_by(now)

    def begin_look(self) -> None:
        """Record that a child looks."""
        self.is_looking = True
        self._look_at = None
        for client in self.clients.values():
            client.has_changed = False

    def end_look(self, found: Mapping[str, float | None] | None, looked_for: Iterable[str], now: float) -> None:
        """Record what a child has found.

        Args:
            found: for each client, what `Look` returns; None if the child has failed.
            looked_for: the keys of the clients whose rentals the child has looked for.
        """
        self.is_looking = False
        self._only_waits = True
        for key, seconds in (dict.fromkeys(looked_for, 0.0) if found is None else found).items():
            if (client := self.clients.get(key)) is not None:
                self._note(key, client, seconds, now)

    def _note(self, key: str, client: _Client, seconds: float | None, now: float) -> None:
        """Record what a child has found of one client."""
        if seconds is not None and seconds <= 0:
            client.failures += 1
            client.failing_since = min(client.failing_since, now)
            if self.parent_is_gone and now - client.failing_since > (
                _LONGEST_TRY if seconds == 0 else _LONGEST_MISSING
            ):
                del self.clients[key]
            else:
                self._only_waits = False
                self.look_by(now + min(_FIRST_PAUSE * 2 ** min(client.failures - 1, 16), _LONGEST_PAUSE))
            return
        client.failures, client.failing_since = 0, _NEVER
        if seconds is not None:
            # Another process may end the rental earlier, and a parent that is gone does not say so.
            self.look_by(now + (seconds if client.is_open else min(seconds, _LONGEST_PAUSE)))
        elif client.is_open:
            return
        elif client.has_changed:
            # Something may have been rented since the child has looked.
            self.look_by(now)
        else:
            del self.clients[key]

    def step(self, now: float) -> Step:
        """Return the next step."""
        if self.is_looking:
            return Step.WAIT
        if not self.clients and (self._was_used or not self._is_told):
            return Step.END
        is_due = self._look_at is not None and now >= self._look_at
        if self.is_asked_to_end and self.parent_is_gone and self._only_waits and not is_due:
            return Step.END
        return Step.LOOK if is_due else Step.WAIT

    def pause(self, now: float) -> float | None:
        """Return the seconds until the next step, unless something happens; None without a limit."""
        if self.is_looking or self._look_at is None:
            return None
        return max(0.0, self._look_at - now)

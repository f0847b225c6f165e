"""The guardian's own process, which waits for its parent's death and for deadlines, and forks a child that acts then.

`link` runs this file as a script, with `-I` and `-S`, from the copies of the packages. It imports nothing of the package, so
that it stays small, and so that it needs no file of the virtual environment. The parent sends it messages, each a line of
JSON, over a socket; each is answered by a line.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Protocol, Self

__all__ = ["Channel", "Guard", "Look", "Parent", "Step", "main", "run"]

# In seconds.
_LONGEST_WAIT = 30.0
_LONGEST_LOOK = 1800.0
_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 300.0
_AFTER_END_OF_FILE = 1.0
_LONGEST_TRY = 7 * 86400.0
_NEVER = float("inf")


class Look(Protocol):
    """The work of a child: it ends what is due.

    It takes the clients' keys and registrations, and True if the parent is gone. It returns, for each key, the seconds until
    something is due, which are 0 if something could not be ended; None if nothing is left to guard.
    """

    def __call__(
        self, clients: list[tuple[str, Mapping[str, Any]]], *, parent_is_gone: bool
    ) -> Mapping[str, float | None]: ...


class Step(Enum):
    """The next step of the guardian."""

    WAIT = "wait"
    LOOK = "fork a child that looks at the state file, and ends what is due"
    END = "end, because nothing is left to guard, or nothing could be ended for a week"


class _Client:
    """A client of the parent.

    Attributes:
        registration: what the child needs to know of the client.
        is_open: True if the client may rent more.
    """

    def __init__(self, registration: Mapping[str, Any]) -> None:
        self.registration = registration
        self.is_open = True


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
        self._was_used = False
        self._only_waits = False
        self._look_at: float | None = None
        self._failures = 0
        self._failing_since = _NEVER

    def obey(self, message: Mapping[str, Any], now: float) -> None:
        """Handle a message of the parent."""
        match message["do"]:
            case "register":
                self.clients[message["key"]] = _Client(message["registration"])
                self._was_used = True
            case "watch":
                self.look_by(now + message["seconds"])
            case "close":
                if (client := self.clients.get(message["key"])) is not None:
                    client.is_open = False
                if message["is_empty"]:
                    self.clients.pop(message["key"], None)
                else:
                    self.look_by(now)
            case _:
                pass

    def look_by(self, moment: float) -> None:
        """Look at the state file at a moment, unless an earlier look is due anyway."""
        self._look_at = moment if self._look_at is None else min(self._look_at, moment)

    def lose_channel(self, now: float) -> None:
        """Record that the parent cannot say anything any longer, although it may live."""
        for client in self.clients.values():
            client.is_open = False
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

    def end_look(self, found: Mapping[str, float | None] | None, looked_for: Iterable[str], now: float) -> None:
        """Record what a child has found.

        Args:
            found: for each client, what `Look` returns; None if the child has failed.
            looked_for: the keys of the clients whose rentals the child has looked for.
        """
        self.is_looking = False
        results = dict.fromkeys(looked_for, 0.0) if found is None else dict(found)
        for key, seconds in results.items():
            client = self.clients.get(key)
            is_open = client is not None and client.is_open
            if seconds is None and not is_open:
                self.clients.pop(key, None)
            elif seconds:
                # Another process may end the rental earlier, and a parent that is gone does not say so.
                self.look_by(now + (seconds if is_open else min(seconds, _LONGEST_PAUSE)))
        has_failed = 0.0 in results.values()
        self._failures = self._failures + 1 if has_failed else 0
        self._failing_since = min(self._failing_since, now) if has_failed else _NEVER
        if has_failed:
            self.look_by(now + min(_FIRST_PAUSE * 2 ** min(self._failures - 1, 16), _LONGEST_PAUSE))
        self._only_waits = not has_failed

    def step(self, now: float) -> Step:
        """Return the next step."""
        if self.is_looking:
            return Step.WAIT
        if self.parent_is_gone and now - self._failing_since > _LONGEST_TRY:
            return Step.END
        if not self.clients and (self._was_used or self.parent_is_gone):
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


class Channel:
    """The guardian's end of the socket to its parent."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        self._begun = b""

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages that have come; None at the end of the file, or after an error."""
        if self.descriptor is None:
            return None
        try:
            data = os.read(self.descriptor, 65536)
            *lines, self._begun = (self._begun + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            data, messages = b"", []
        if not data:
            self.close()
            return None
        return messages

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, unless the parent cannot receive it any longer."""
        if self.descriptor is None:
            return
        try:
            os.write(self.descriptor, json.dumps(message).encode() + b"\n")
        except OSError:
            self.close()

    def close(self) -> None:
        """Close the socket."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Parent:
    """The parent, as the system shows it.

    The descriptor becomes readable at its death: a pidfd on Linux, a kqueue elsewhere. Without one, the parent is looked up
    once its end of the socket is closed.
    """

    def __init__(self, process_id: int, pidfd: int | None) -> None:
        self._process_id = process_id
        self._started = _start_of(process_id)
        self._program = _program_of(process_id)
        self._kqueue: Any = None
        self.descriptor: int | None = pidfd
        if pidfd is None and hasattr(select, "kqueue"):
            self._kqueue = _kqueue_of(process_id)
            self.descriptor = None if self._kqueue is None else self._kqueue.fileno()

    def close(self) -> None:
        """Close the descriptor, which would stay readable."""
        if self._kqueue is not None:
            self._kqueue.close()
        elif self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor = None

    def is_gone(self) -> bool:
        """Return True if the parent is dead, as far as the system says."""
        started = _start_of(self._process_id)
        if started is not None and self._started is not None:
            return started != self._started
        try:
            os.kill(self._process_id, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False

    def is_another_program(self) -> bool:
        """Return True if the parent runs another program by now, which it has begun by an `exec`."""
        program = _program_of(self._process_id)
        return program is not None and self._program is not None and program != self._program


def _start_of(process_id: int) -> bytes | None:
    """Return the start of a process; None if it does not exist, or if the system does not say it."""
    try:
        with open(f"/proc/{process_id}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return b"" if fields[0] in (b"Z", b"X") and fields[17] in (b"0", b"1") else fields[19]


def _program_of(process_id: int) -> bytes | None:
    """Return what the kernel has told a program at its start, random addresses included; None if that is not known."""
    try:
        with open(f"/proc/{process_id}/auxv", "rb") as file:
            return file.read() or None
    except OSError:
        return None


def _kqueue_of(process_id: int) -> Any:
    """Return a kqueue that becomes readable at a process's death; None if there is none."""
    if sys.platform == "linux" or sys.platform == "win32":
        return None
    queue = select.kqueue()
    event = select.kevent(process_id, filter=select.KQ_FILTER_PROC, flags=select.KQ_EV_ADD, fflags=select.KQ_NOTE_EXIT)
    try:
        queue.control([event], 0)
    except OSError:
        queue.close()
        return None
    return queue


def _now() -> float:
    """Return the seconds by the clock that goes on while the machine sleeps, where there is one."""
    if sys.platform == "win32":
        raise NotImplementedError
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _Child:
    """A child that looks at the state file.

    Attributes:
        keys: the keys of the clients whose rentals it looks for.
        descriptor: the pipe by which it reports.
    """

    def __init__(self, guard: Guard, look: Look, unused: Iterable[int | None]) -> None:
        self.keys = list(guard.clients)
        self._began = _now()
        self._report = b""
        self._process_id = 0
        self.descriptor, end = os.pipe()
        if sys.platform == "win32":
            raise NotImplementedError
        try:
            self._process_id = os.fork()
        except OSError:
            os.close(self.descriptor)
            os.close(end)
            raise
        if self._process_id:
            os.close(end)
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for descriptor in (self.descriptor, *unused):
                if descriptor is not None:
                    os.close(descriptor)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            clients = [(key, client.registration) for key, client in guard.clients.items()]
            with open(end, "w", encoding="utf-8") as file:
                json.dump(look(clients, parent_is_gone=guard.parent_is_gone), file)
            code = 0
        finally:
            os._exit(code)

    @property
    def time_left(self) -> float:
        return self._began + _LONGEST_LOOK - _now()

    def kill(self) -> None:
        """Kill the child, which takes too long."""
        if sys.platform == "win32":
            raise NotImplementedError
        os.kill(self._process_id, signal.SIGKILL)

    def receive(self) -> bool:
        """Read what it reports; return True once it has ended."""
        if data := os.read(self.descriptor, 65536):
            self._report += data
            return False
        os.close(self.descriptor)
        os.waitpid(self._process_id, 0)
        return True

    def result(self) -> dict[str, float | None] | None:
        """Return what the look has returned; None if the child has failed."""
        try:
            found: dict[str, float | None] = json.loads(self._report)
        except ValueError:
            return None
        return found


def run(guard: Guard, channel: Channel, parent: Parent, look: Look) -> None:
    """Watch the parent and the deadlines of its rentals until nothing is left to guard."""
    child: _Child | None = None
    with _Wakeups(guard) as wakeups:
        while (step := guard.step(_now())) is not Step.END:
            if step is Step.LOOK:
                guard.begin_look()
                try:
                    child = _Child(guard, look, (channel.descriptor, parent.descriptor, *wakeups.descriptors))
                except OSError:
                    guard.end_look(None, tuple(guard.clients), _now())
            reports = None if child is None else child.descriptor
            watched = (channel.descriptor, parent.descriptor, reports, wakeups.descriptors[0])
            ready = _wait_for(watched, _pause(guard, child, channel, parent))
            if wakeups.descriptors[0] in ready:
                wakeups.clear()
            if child is not None and reports in ready and child.receive():
                guard.end_look(child.result(), child.keys, _now())
                child = None
            elif child is not None and child.time_left <= 0:
                child.kill()
            if channel.descriptor in ready:
                _receive(guard, channel)
            if not guard.parent_is_gone and _is_gone(channel, parent, ready):
                channel.close()
                parent.close()
                guard.lose_parent(_now())
    channel.send({"ended": True})


def _receive(guard: Guard, channel: Channel) -> None:
    messages = channel.receive()
    if messages is None:
        guard.lose_channel(_now())
        return
    for message in messages:
        guard.obey(message, _now())
        channel.send({"done": True})


def _is_gone(channel: Channel, parent: Parent, ready: Iterable[int]) -> bool:
    """Return True if the parent is gone. Programs close descriptors, so the end of the socket alone is not its death."""
    if parent.descriptor is not None and parent.descriptor in ready:
        return True
    return channel.descriptor is None and (parent.is_gone() or parent.is_another_program())


def _pause(guard: Guard, child: _Child | None, channel: Channel, parent: Parent) -> float | None:
    pauses = [guard.pause(_now())]
    if child is not None:
        pauses.append(child.time_left)
    if channel.descriptor is None and not guard.parent_is_gone:
        # It may begin another program, or its death has to be looked up.
        pauses.append(_LONGEST_WAIT if parent.descriptor is not None else _AFTER_END_OF_FILE)
    known = [pause for pause in pauses if pause is not None]
    # The clock of a wait stands still while the machine sleeps.
    return max(0.0, min(*known, _LONGEST_WAIT)) if known else None


def _wait_for(descriptors: Iterable[int | None], seconds: float | None) -> set[int]:
    """Return those descriptors that can be read, or have ended."""
    if sys.platform == "win32":
        raise NotImplementedError
    poll = select.poll()
    for descriptor in descriptors:
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if seconds is None else int(seconds * 1000) + 1)}


class _Wakeups:
    """The signals that ask the guardian to end, which it does once only deadlines are left.

    A service manager sends them to all processes of a service, and the guardian is needed then. The pipe wakes a wait.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.descriptors: tuple[int, int] = (-1, -1)

    def __enter__(self) -> Self:
        if sys.platform == "win32":
            raise NotImplementedError
        self.descriptors = os.pipe()
        for descriptor in self.descriptors:
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self.descriptors[1], warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for descriptor in self.descriptors:
            os.close(descriptor)

    def _ask(self, number: int, frame: object) -> None:
        del number, frame
        self._guard.is_asked_to_end = True

    def clear(self) -> None:
        os.read(self.descriptors[0], 4096)


def _look(clients: list[tuple[str, Mapping[str, Any]]], *, parent_is_gone: bool) -> Mapping[str, float | None]:
    if not any(os.path.exists(registration["state"]) for _, registration in clients):
        return dict.fromkeys((key for key, _ in clients), None)
    # The copies of the packages, of which this file is one.
    sys.path.insert(0, os.path.dirname(__file__).rpartition("netmind_rentgpu")[0])
    from netmind_rentgpu.rentals.guardian.look import look

    return look(clients, parent_is_gone=parent_is_gone)


def main(arguments: list[str]) -> None:
    """Split off, by another fork, from the process that is a child of the parent, and run the guardian.

    Args:
        arguments: the descriptor of the socket; the parent's pidfd, or -1; and the parent's process id.
    """
    if sys.platform == "win32":
        raise NotImplementedError
    descriptor, pidfd, process_id = map(int, arguments)
    if os.fork():
        os._exit(0)
    channel = Channel(descriptor)
    parent = Parent(process_id, pidfd if pidfd >= 0 else None)
    channel.send({"process_id": os.getpid()})
    run(Guard(), channel, parent, _look)


if __name__ == "__main__":
    main(sys.argv[1:])

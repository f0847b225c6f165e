"""The guardian's own process, which waits for its parent's death and for deadlines, and forks a child that acts then.

`link` runs it, with `-I`, `-S` and `-B`, from the copies of the packages, so that it needs no file of the virtual
environment, and writes none of its own. It imports little, so that it stays small. The parent sends it messages, each a line
of JSON, over a socket; each is answered by a line.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self

from netmind_rentgpu.rentals.guardian.guard import Guard, Step

__all__ = ["Channel", "Look", "Parent", "main", "run"]

# In seconds.
_LONGEST_WAIT = 30.0
_LONGEST_LOOK = 1800.0
_BETWEEN_LOOK_UPS = 1.0


class Look(Protocol):
    """The work of a child: it ends what is due.

    It takes the clients' keys and registrations, and True if the parent is gone. It returns, for each key, the seconds until
    something is due, which are 0 if something could not be ended, and below 0 if there is no state file; None if nothing is
    left to guard.
    """

    def __call__(
        self, clients: list[tuple[str, Mapping[str, Any]]], *, parent_is_gone: bool
    ) -> Mapping[str, float | None]: ...


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
        """Kill the child, which takes too long, or has begun before the parent's death."""
        if sys.platform == "win32":
            raise NotImplementedError
        os.kill(self._process_id, signal.SIGKILL)
        self._began = _now()

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
                if child is not None:
                    child.kill()
    channel.send({"ended": True})


def _receive(guard: Guard, channel: Channel) -> None:
    messages = channel.receive()
    if messages is None:
        guard.lose_channel(_now())
        return
    for message in messages:
        channel.send({"done": guard.obey(message, _now())})


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
        pauses.append(_LONGEST_WAIT if parent.descriptor is not None else _BETWEEN_LOOK_UPS)
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
    missing = {key: -1.0 for key, registration in clients if not os.path.exists(registration["state"])}
    if len(missing) == len(clients):
        return missing
    from netmind_rentgpu.rentals.guardian.look import look

    found = look([(key, each) for key, each in clients if key not in missing], parent_is_gone=parent_is_gone)
    return {**found, **missing}


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

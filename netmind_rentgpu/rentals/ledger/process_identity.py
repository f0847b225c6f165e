"""The owner of a rental: a process, on a machine, since a boot. An owner that is not provably dead counts as alive.

`liveness_of` is pure. The other functions read `/proc` on Linux. On other systems they ask psutil, which no other file
imports, whether a process exists.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import sys
import uuid
from collections.abc import Callable
from enum import Enum
from functools import cache
from pathlib import Path

import attrs

from netmind_rentgpu.concurrency.forks import at_fork_in_child

__all__ = ["Liveness", "ProcessIdentity", "ProcessLookup", "liveness_of", "look_up_process", "this_process"]


class ProcessLookup(Enum):
    """The reason why the start of a process is not known."""

    GONE = "no such process exists"
    UNKNOWN = "the process may exist, and the system does not say when it started"


@attrs.frozen
class ProcessIdentity:
    """The identity of a process, which no other process shares. A text that the system does not provide is empty.

    Attributes:
        machine: a fingerprint of the machine's id and host name.
        boot: the id of the kernel's boot.
        namespace: the namespace of `process_id`. If neither machine nor boot is known, it is random, so that no process of
            another such machine is mistaken for this one.
        started: the start of the process, as the kernel counts it.
    """

    machine: str
    boot: str
    namespace: str
    process_id: int
    started: str


class Liveness(Enum):
    """The state of an owner, as far as it is known."""

    DEAD = "it has ended for certain"
    ALIVE = "it runs for certain"
    UNKNOWN = "it may have ended, and counts as running"


def liveness_of(owner: ProcessIdentity, here: ProcessIdentity, see: Callable[[int], str | ProcessLookup]) -> Liveness:
    """Return the state of an owner, as far as it is known.

    The same boot id means the same machine, even if its host name has changed. Another boot id proves death only on a
    machine with the same id and host name, because cloned disks share machine ids.

    Args:
        here: the process that asks.
        see: returns the start of a process, as `here` sees it, or the reason why that is not known.
    """
    both_booted = bool(owner.boot and here.boot)
    if not (both_booted and owner.boot == here.boot):
        if not owner.machine or owner.machine != here.machine:
            return Liveness.UNKNOWN
        if both_booted:
            return Liveness.DEAD
    if owner.namespace != here.namespace:
        return Liveness.UNKNOWN
    seen = see(owner.process_id)
    if seen is ProcessLookup.GONE:
        return Liveness.DEAD
    if isinstance(seen, ProcessLookup) or not owner.started:
        return Liveness.UNKNOWN
    return Liveness.ALIVE if seen == owner.started else Liveness.DEAD


def this_process() -> ProcessIdentity:
    """Return the identity of this process."""
    return _process(os.getpid())


@cache
def _process(process_id: int) -> ProcessIdentity:
    started = look_up_process(process_id)
    machine, boot = _machine(), _text("/proc/sys/kernel/random/boot_id")
    return ProcessIdentity(
        machine=machine,
        boot=boot,
        namespace=_namespace() if machine or boot else uuid.uuid4().hex,
        process_id=process_id,
        started="" if isinstance(started, ProcessLookup) else started,
    )


def look_up_process(process_id: int) -> str | ProcessLookup:
    """Return the start of a process, which only Linux states, or the reason why it is not known."""
    if sys.platform != "linux":
        return _exists_elsewhere(process_id)
    try:
        status = Path(f"/proc/{process_id}/stat").read_bytes()
    except OSError:
        return _exists(process_id)
    # The name, in parentheses, may hold any character. A process that has ended, and that its parent has not collected yet,
    # counts as gone, unless only its first thread has ended.
    fields = status.rpartition(b")")[2].split()
    state, threads, started = fields[0], fields[17], fields[19]
    return ProcessLookup.GONE if state in (b"Z", b"X") and threads in (b"0", b"1") else started.decode()


def _exists(process_id: int) -> ProcessLookup:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return ProcessLookup.GONE
    except OSError:
        pass
    return ProcessLookup.UNKNOWN


def _exists_elsewhere(process_id: int) -> ProcessLookup:
    # On Windows os.kill would interrupt the process, or end it.
    try:
        exists = bool(importlib.import_module("psutil").pid_exists(process_id))
    except Exception:  # noqa: BLE001  # psutil may be missing or fail; a process that may exist keeps its rentals
        return ProcessLookup.UNKNOWN
    return ProcessLookup.UNKNOWN if exists else ProcessLookup.GONE


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _machine() -> str:
    """Return a fingerprint of the machine's id and host name; empty where the machine has no id of its own.

    Copies of one disk share the id, as do containers of one image.
    """
    marks = [_text("/etc/machine-id"), platform.node()]
    if not marks[0]:
        number = uuid.getnode()
        if number >> 40 & 1:  # a random number, because Python found no network card
            return ""
        marks[0] = f"{number:x}"
    return hashlib.blake2s("\n".join(marks).encode(), digest_size=8).hexdigest()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


# The system may reuse a process id once its process has ended, even for a descendant.
at_fork_in_child(_process.cache_clear)

"""The owner of a rental: a process, on a machine, since a boot. An owner that is not provably dead counts as alive.

The test itself is pure. This module reads Linux's `/proc`. Elsewhere it asks psutil, which no other file knows, whether
a process exists.
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
    """What can be seen of a process."""

    GONE = "there is no such process"
    UNKNOWN = "it cannot be told"


@attrs.frozen
class ProcessIdentity:
    """A process that nothing else can be taken for. What cannot be told of it is empty.

    Attributes:
        machine: a fingerprint of the machine's id and host name.
        boot: of its kernel.
        namespace: in which `process_id` is counted. Where neither machine nor boot is known, it is made up, so that no
            process of another such machine is taken for this one.
        started: when the process was, as the kernel counts it.
    """

    machine: str
    boot: str
    namespace: str
    process_id: int
    started: str


class Liveness(Enum):
    """What is known of an owner."""

    DEAD = "it has surely ended"
    ALIVE = "it surely runs"
    UNKNOWN = "it cannot be told, and so is taken to run"


def liveness_of(owner: ProcessIdentity, here: ProcessIdentity, see: Callable[[int], str | ProcessLookup]) -> Liveness:
    """Return what is known of an owner.

    One boot id is one machine, whatever its name is by now. Another boot id proves death only on a machine with the same
    id and host name, because cloned disks share machine ids.

    Args:
        here: the process that asks.
        see: returns when a process was started, as seen from `here`, or why that cannot be told.
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
    """Return who we are."""
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
    """Return when a process was started, which only Linux tells; it may be gone, or hidden from us."""
    if sys.platform != "linux":
        return _exists_elsewhere(process_id)
    try:
        status = Path(f"/proc/{process_id}/stat").read_bytes()
    except OSError:
        return _exists(process_id)
    # The name, in parentheses, may hold anything. What is dead but not collected yet has nothing under way any more, unless
    # only its first thread has ended.
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
    except Exception:  # noqa: BLE001  # psutil may be missing or fail; only a process that is gone loses its rentals
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
        if number >> 40 & 1:  # made up, since no network card could be found
            return ""
        marks[0] = f"{number:x}"
    return hashlib.blake2s("\n".join(marks).encode(), digest_size=8).hexdigest()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


# A number is given again once its process has ended, even to a descendant.
at_fork_in_child(_process.cache_clear)

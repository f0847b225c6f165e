"""Who is provably dead: a table of owners, and real processes in every state that one can be in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.rentals.owners import Life, Owner, Sight, life_of, see_process, this_process

HERE = Owner(machine="m", boot="b", namespace="ns", process_id=1, started="10")
OWNER = attrs.evolve(HERE, process_id=7, started="100")
GONE, UNKNOWN = Sight.GONE, Sight.UNKNOWN
DEAD, ALIVE, UNSURE = Life.DEAD, Life.ALIVE, Life.UNKNOWN


def seen(sight: str | Sight) -> Callable[[int], str | Sight]:
    """See one process, the owner's, and be asked about no other."""

    def see(process_id: int) -> str | Sight:
        assert process_id == OWNER.process_id
        return sight

    return see


@pytest.mark.parametrize(
    ("owner", "here", "sight", "life"),
    [
        (OWNER, HERE, "100", ALIVE),
        (OWNER, HERE, GONE, DEAD),
        (OWNER, HERE, UNKNOWN, UNSURE),
        # Its number is another's by now.
        (OWNER, HERE, "101", DEAD),
        (attrs.evolve(OWNER, started=""), HERE, "101", UNSURE),
        (attrs.evolve(OWNER, started=""), HERE, GONE, DEAD),
        # Of another machine nothing is known, and of one that cannot be told from others neither.
        (attrs.evolve(OWNER, machine="other"), HERE, GONE, UNSURE),
        (attrs.evolve(OWNER, machine="other", boot="other"), HERE, GONE, UNSURE),
        (attrs.evolve(OWNER, machine=""), HERE, GONE, UNSURE),
        (OWNER, attrs.evolve(HERE, machine=""), GONE, UNSURE),
        (attrs.evolve(OWNER, machine=""), attrs.evolve(HERE, machine=""), GONE, UNSURE),
        (attrs.evolve(OWNER, machine="", boot="other"), attrs.evolve(HERE, machine=""), GONE, UNSURE),
        # Nothing outlives a boot, in whatever namespace it was.
        (attrs.evolve(OWNER, boot="other"), HERE, "100", DEAD),
        (attrs.evolve(OWNER, boot="other", namespace="other"), HERE, UNKNOWN, DEAD),
        (attrs.evolve(OWNER, boot=""), HERE, "100", ALIVE),
        (attrs.evolve(OWNER, boot=""), HERE, UNKNOWN, UNSURE),
        (attrs.evolve(OWNER, boot=""), HERE, GONE, DEAD),
        (OWNER, attrs.evolve(HERE, boot=""), "100", ALIVE),
        # Numbers of another namespace mean other processes.
        (attrs.evolve(OWNER, namespace="other"), HERE, GONE, UNSURE),
        (attrs.evolve(OWNER, namespace="other"), HERE, "101", UNSURE),
        (attrs.evolve(OWNER, namespace=""), HERE, GONE, UNSURE),
        (OWNER, attrs.evolve(HERE, namespace=""), GONE, UNSURE),
    ],
)
def test_who_is_alive_and_who_is_dead(owner: Owner, here: Owner, sight: str | Sight, life: Life) -> None:
    assert life_of(owner, here, seen(sight)) is life


marks = st.sampled_from(["", "a", "b"])
starts = st.sampled_from(["", "1", "2"])
owners = st.builds(
    Owner, machine=marks, boot=marks, namespace=marks, process_id=st.just(OWNER.process_id), started=starts
)
sights: st.SearchStrategy[str | Sight] = st.sampled_from(["1", "2", GONE, UNKNOWN])


@given(owner=owners, here=owners, sight=sights)
def test_the_dead_are_of_this_machine_and_of_another_boot_or_seen_not_to_be(
    owner: Owner, here: Owner, sight: str | Sight
) -> None:
    life = life_of(owner, here, seen(sight))
    if life is ALIVE:
        assert (owner.machine, owner.namespace, owner.started) == (here.machine, here.namespace, sight)
    if life is not DEAD:
        return
    assert owner.machine == here.machine != ""
    another_boot = owner.boot != here.boot and "" not in (owner.boot, here.boot)
    another_process = isinstance(sight, str) and "" != owner.started != sight
    assert another_boot or (owner.namespace == here.namespace and (sight is GONE or another_process))


@given(owner=owners, sight=sights, unknown=st.sets(st.sampled_from(["machine", "boot", "namespace", "started"])))
def test_who_knows_less_holds_nobody_else_dead(owner: Owner, sight: str | Sight, unknown: set[str]) -> None:
    here = attrs.evolve(HERE, machine="a", boot="a", namespace="a")
    less = attrs.evolve(owner, **dict.fromkeys(unknown, ""))
    if life_of(less, here, seen(sight)) is DEAD:
        assert life_of(owner, here, seen(sight)) is DEAD


@given(owner=owners, hidden=st.booleans())
def test_nobody_is_dead_to_itself(owner: Owner, hidden: bool) -> None:
    assert life_of(owner, owner, seen(UNKNOWN if hidden else owner.started or "1")) is not DEAD


# Real processes. What is told of them needs /proc; elsewhere less is known, and nobody is held dead for that.
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="what is tested is what /proc tells")


def owner_of(process_id: int) -> Owner:
    """Return the owner that a process of this machine would call itself."""
    started = see_process(process_id)
    return attrs.evolve(this_process(), process_id=process_id, started="" if isinstance(started, Sight) else started)


def is_dead(owner: Owner) -> bool:
    return life_of(owner, this_process(), see_process) is DEAD


@contextmanager
def program(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that says when it is ready, and then ends with its standard input."""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


WAITING = "print('ready', flush=True); input()"


def test_this_process_is_alive_and_stays_the_same() -> None:
    owner = this_process()
    assert owner == this_process()
    assert owner.process_id == os.getpid()
    assert owner == owner_of(os.getpid())
    assert not is_dead(owner)
    # As it is kept in the state file.
    assert Owner(**json.loads(json.dumps(attrs.asdict(owner)))) == owner


@needs_proc
def test_all_is_told_of_this_process() -> None:
    owner = this_process()
    # A machine without a number and without a network card cannot be told from others.
    told = attrs.asdict(owner, filter=lambda field, _: field.name != "machine")
    assert "" not in told.values()
    assert owner.started.isdecimal()
    assert owner.namespace.startswith("pid:[")


def test_a_child_lives_until_it_is_killed_and_collected() -> None:
    with program(WAITING) as process:
        owner = owner_of(process.pid)
        assert owner != this_process()
        assert see_process(process.pid) is not GONE
        assert see_process(process.pid) == see_process(process.pid)
        assert not is_dead(owner)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert see_process(process.pid) is GONE
        assert is_dead(owner)


def test_a_process_that_is_stopped_lives() -> None:
    with program(WAITING) as process:
        owner = owner_of(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert not is_dead(owner)


@needs_proc
def test_who_has_a_dead_ones_number_is_not_the_dead_one() -> None:
    with program(WAITING) as process:
        owner = owner_of(process.pid)
        earlier = attrs.evolve(owner, started=str(int(owner.started) - 1))
        assert is_dead(earlier)
        assert not is_dead(owner)


@needs_proc
def test_when_a_process_was_started_is_told_by_the_kernels_clock() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    with program(WAITING) as process:
        after = time.clock_gettime(time.CLOCK_BOOTTIME)
        started = int(owner_of(process.pid).started) / os.sysconf("SC_CLK_TCK")
        # It counts in hundredths of a second, usually.
        assert before - 0.1 <= started <= after


@needs_proc
def test_a_zombie_is_dead() -> None:
    with program(WAITING) as process:
        owner = owner_of(process.pid)
        process.kill()
        # It has ended, and is left uncollected.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}/stat").exists()
        assert see_process(process.pid) is GONE
        assert is_dead(owner)


@needs_proc
def test_a_process_may_be_called_anything() -> None:
    rename = "open('/proc/self/comm', 'w').write(') Z 1 (Z) 2')"
    with program(f"{rename}; {WAITING}") as process:
        assert b"() Z 1 (Z) 2)" in Path(f"/proc/{process.pid}/stat").read_bytes()
        assert see_process(process.pid) == owner_of(process.pid).started
        assert owner_of(process.pid).started.isdecimal()
        assert not is_dead(owner_of(process.pid))


# In a program that embeds Python, the first thread may end before the others; the process is shown as a zombie then.
WITHOUT_ITS_FIRST_THREAD = """
import ctypes, os, sys, threading

def go_on():
    state = b""
    while state != b"Z":
        with open("/proc/self/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(7)

threading.Thread(target=go_on).start()
libc = ctypes.CDLL(None)
libc.pthread_exit.argtypes = [ctypes.c_void_p]
libc.pthread_exit(None)
"""


@needs_proc
def test_a_process_whose_first_thread_has_ended_lives() -> None:
    with program(WITHOUT_ITS_FIRST_THREAD) as process:
        assert process.poll() is None
        assert see_process(process.pid) is not GONE
        process.communicate()
        assert process.returncode == 7
        assert see_process(process.pid) is GONE


def test_the_first_process_of_all_is_never_gone() -> None:
    assert see_process(1) is not GONE
    assert not is_dead(owner_of(1))


def test_a_forked_child_is_somebody_else() -> None:
    parent = this_process()
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads
        child = os.fork()
    if child == 0:
        try:
            os.close(to_child)
            found = {"owner": attrs.asdict(this_process()), "dead": [is_dead(parent), is_dead(this_process())]}
            os.write(to_parent, json.dumps(found).encode() + b"\n")
            os.read(from_parent, 1)
        finally:
            os._exit(0)
    os.close(to_parent)
    os.close(from_parent)
    with os.fdopen(from_child) as told:
        found = json.loads(told.readline())
    owner = Owner(**found["owner"])
    assert owner.process_id == child
    assert owner == attrs.evolve(parent, process_id=child, started=owner.started)
    assert owner == owner_of(child)
    assert found["dead"] == [False, False]
    assert not is_dead(owner)
    assert this_process() == parent
    os.close(to_child)
    assert os.waitpid(child, 0) == (child, 0)
    assert is_dead(owner)
    assert not is_dead(parent)

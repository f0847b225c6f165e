"""Proof that an owner is dead: a table of owners, and real processes in every state that a process can be in."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import FOLDER

from netmind_rentgpu.rentals.ledger import process_identity
from netmind_rentgpu.rentals.ledger.process_identity import (
    Liveness,
    ProcessIdentity,
    ProcessLookup,
    liveness_of,
    look_up_process,
    this_process,
)

HERE = ProcessIdentity(machine="m", boot="b", namespace="ns", process_id=1, started="10")
OWNER = attrs.evolve(HERE, process_id=7, started="100")
GONE, UNKNOWN = ProcessLookup.GONE, ProcessLookup.UNKNOWN
DEAD, ALIVE, UNSURE = Liveness.DEAD, Liveness.ALIVE, Liveness.UNKNOWN


def seen(sight: str | ProcessLookup) -> Callable[[int], str | ProcessLookup]:
    """Return a lookup that knows only the owner's process."""

    def see(process_id: int) -> str | ProcessLookup:
        assert process_id == OWNER.process_id
        return sight

    return see


@pytest.mark.parametrize(
    ("owner", "here", "sight", "life"),
    [
        (OWNER, HERE, "100", ALIVE),
        (OWNER, HERE, GONE, DEAD),
        (OWNER, HERE, UNKNOWN, UNSURE),
        # Another process has its number by now.
        (OWNER, HERE, "101", DEAD),
        (attrs.evolve(OWNER, started=""), HERE, "101", UNSURE),
        (attrs.evolve(OWNER, started=""), HERE, GONE, DEAD),
        # One boot is one machine, whatever its host name is by now, and though it cannot be told from others.
        (attrs.evolve(OWNER, machine="other"), HERE, GONE, DEAD),
        (attrs.evolve(OWNER, machine="other"), HERE, "101", DEAD),
        (attrs.evolve(OWNER, machine="other"), HERE, "100", ALIVE),
        (attrs.evolve(OWNER, machine=""), HERE, GONE, DEAD),
        (OWNER, attrs.evolve(HERE, machine=""), "100", ALIVE),
        (attrs.evolve(OWNER, machine="other", namespace="other"), HERE, GONE, UNSURE),
        # Nothing is known of processes on another machine, nor of a machine that cannot be told from others.
        (attrs.evolve(OWNER, machine="other", boot="other"), HERE, GONE, UNSURE),
        (attrs.evolve(OWNER, machine="other", boot=""), HERE, GONE, UNSURE),
        (attrs.evolve(OWNER, machine="other"), attrs.evolve(HERE, boot=""), GONE, UNSURE),
        (attrs.evolve(OWNER, machine="", boot=""), attrs.evolve(HERE, machine="", boot=""), GONE, UNSURE),
        (attrs.evolve(OWNER, machine="", boot="other"), attrs.evolve(HERE, machine=""), GONE, UNSURE),
        # No process of any namespace outlives a boot.
        (attrs.evolve(OWNER, boot="other"), HERE, "100", DEAD),
        (attrs.evolve(OWNER, boot="other", namespace="other"), HERE, UNKNOWN, DEAD),
        (attrs.evolve(OWNER, boot=""), HERE, "100", ALIVE),
        (attrs.evolve(OWNER, boot=""), HERE, UNKNOWN, UNSURE),
        (attrs.evolve(OWNER, boot=""), HERE, GONE, DEAD),
        (OWNER, attrs.evolve(HERE, boot=""), "100", ALIVE),
        # The numbers of another namespace mean other processes.
        (attrs.evolve(OWNER, namespace="other"), HERE, GONE, UNSURE),
        (attrs.evolve(OWNER, namespace="other"), HERE, "101", UNSURE),
        (attrs.evolve(OWNER, namespace=""), HERE, GONE, UNSURE),
        (OWNER, attrs.evolve(HERE, namespace=""), GONE, UNSURE),
    ],
)
def test_owner_is_alive_dead_or_unknown(
    owner: ProcessIdentity, here: ProcessIdentity, sight: str | ProcessLookup, life: Liveness
) -> None:
    assert liveness_of(owner, here, seen(sight)) is life


marks = st.sampled_from(["", "a", "b"])
starts = st.sampled_from(["", "1", "2"])
owners = st.builds(
    ProcessIdentity, machine=marks, boot=marks, namespace=marks, process_id=st.just(OWNER.process_id), started=starts
)
sights: st.SearchStrategy[str | ProcessLookup] = st.sampled_from(["1", "2", GONE, UNKNOWN])


@given(owner=owners, here=owners, sight=sights)
def test_dead_owner_is_of_this_boot_or_machine_and_of_another_boot_or_its_process_is_gone(
    owner: ProcessIdentity, here: ProcessIdentity, sight: str | ProcessLookup
) -> None:
    life = liveness_of(owner, here, seen(sight))
    same_boot, same_machine = owner.boot == here.boot != "", owner.machine == here.machine != ""
    if life is ALIVE:
        assert (owner.namespace, owner.started) == (here.namespace, sight)
    if life is not UNSURE:
        assert same_boot or same_machine
    if life is not DEAD:
        return
    another_boot = owner.boot != here.boot and "" not in (owner.boot, here.boot)
    another_process = isinstance(sight, str) and "" != owner.started != sight
    assert another_boot or (owner.namespace == here.namespace and (sight is GONE or another_process))


@given(owner=owners, sight=sights, unknown=st.sets(st.sampled_from(["machine", "boot", "namespace", "started"])))
def test_owner_of_which_less_is_known_is_not_more_often_dead(
    owner: ProcessIdentity, sight: str | ProcessLookup, unknown: set[str]
) -> None:
    here = attrs.evolve(HERE, machine="a", boot="a", namespace="a")
    less = attrs.evolve(owner, **dict.fromkeys(unknown, ""))
    if liveness_of(less, here, seen(sight)) is DEAD:
        assert liveness_of(owner, here, seen(sight)) is DEAD


@given(owner=owners, hidden=st.booleans())
def test_process_is_never_dead_to_itself(owner: ProcessIdentity, hidden: bool) -> None:
    assert liveness_of(owner, owner, seen(UNKNOWN if hidden else owner.started or "1")) is not DEAD


# Real processes. Without /proc less is known of them, and no owner counts as dead for that reason.
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the test reads /proc")


def owner_of(process_id: int) -> ProcessIdentity:
    """Return the owner that a process of this machine would put on record."""
    started = look_up_process(process_id)
    return attrs.evolve(
        this_process(), process_id=process_id, started="" if isinstance(started, ProcessLookup) else started
    )


def is_dead(owner: ProcessIdentity) -> bool:
    return liveness_of(owner, this_process(), look_up_process) is DEAD


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program that prints "ready", and that ends when its standard input is closed."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


WAITING = "print('ready', flush=True); input()"


def test_this_process_is_alive_and_keeps_its_identity() -> None:
    owner = this_process()
    assert owner == this_process()
    assert owner.process_id == os.getpid()
    assert owner == owner_of(os.getpid())
    assert not is_dead(owner)
    # The state file keeps it as JSON.
    assert ProcessIdentity(**json.loads(json.dumps(attrs.asdict(owner)))) == owner


@needs_proc
def test_every_field_of_this_process_is_known() -> None:
    owner = this_process()
    # The machine is left out, because a machine without an id and a network card cannot be told from others.
    known = attrs.asdict(owner, filter=lambda field, _: field.name != "machine")
    assert "" not in known.values()
    assert owner.started.isdecimal()
    assert owner.namespace.startswith("pid:[")


def test_child_is_alive_until_it_is_killed_and_collected() -> None:
    with program("-c", WAITING) as process:
        owner = owner_of(process.pid)
        assert owner != this_process()
        assert look_up_process(process.pid) is not GONE
        assert look_up_process(process.pid) == look_up_process(process.pid)
        assert not is_dead(owner)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert look_up_process(process.pid) is GONE
        assert is_dead(owner)


def test_stopped_process_is_alive() -> None:
    with program("-c", WAITING) as process:
        owner = owner_of(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert not is_dead(owner)


@needs_proc
def test_earlier_process_with_the_number_of_a_live_process_is_dead() -> None:
    with program("-c", WAITING) as process:
        owner = owner_of(process.pid)
        earlier = attrs.evolve(owner, started=str(int(owner.started) - 1))
        assert is_dead(earlier)
        assert not is_dead(owner)


@needs_proc
def test_start_time_of_a_process_is_on_the_kernels_boot_clock() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    with program("-c", WAITING) as process:
        after = time.clock_gettime(time.CLOCK_BOOTTIME)
        started = int(owner_of(process.pid).started) / os.sysconf("SC_CLK_TCK")
        # The kernel usually counts in hundredths of a second.
        assert before - 0.1 <= started <= after


@needs_proc
def test_zombie_is_dead() -> None:
    with program("-c", WAITING) as process:
        owner = owner_of(process.pid)
        process.kill()
        # The process has ended and is left uncollected.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}/stat").exists()
        assert look_up_process(process.pid) is GONE
        assert is_dead(owner)


@needs_proc
def test_process_with_a_misleading_name_is_alive() -> None:
    rename = "open('/proc/self/comm', 'w').write(') Z 1 (Z) 2')"
    with program("-c", f"{rename}; {WAITING}") as process:
        assert b"() Z 1 (Z) 2)" in Path(f"/proc/{process.pid}/stat").read_bytes()
        assert look_up_process(process.pid) == owner_of(process.pid).started
        assert owner_of(process.pid).started.isdecimal()
        assert not is_dead(owner_of(process.pid))


@needs_proc
def test_process_whose_first_thread_has_ended_is_alive() -> None:
    with program(str(FOLDER / "end_first_thread.py")) as process:
        assert process.poll() is None
        assert look_up_process(process.pid) is not GONE
        process.communicate()
        assert process.returncode == 7
        assert look_up_process(process.pid) is GONE


def test_first_process_of_the_machine_is_never_gone() -> None:
    assert look_up_process(1) is not GONE
    assert not is_dead(owner_of(1))


def test_forked_child_is_another_owner_than_its_parent() -> None:
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
    with os.fdopen(from_child) as pipe:
        found = json.loads(pipe.readline())
    owner = ProcessIdentity(**found["owner"])
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


# The first byte of a network card's address: its lowest bit is set in none, but in what Python makes up without a card.
CARD, OTHER_CARD, MADE_UP = 0xFE_42_AC_11_00_02, 0xFE_42_AC_11_00_03, 0x01_42_AC_11_00_02


def machine(monkeypatch: pytest.MonkeyPatch, *, machine_id: str, card: int, host: str = "host") -> str:
    """Return the fingerprint of a machine that has these marks."""
    with monkeypatch.context() as patch:
        patch.setattr(process_identity, "_text", {"/etc/machine-id": machine_id}.__getitem__)
        patch.setattr(uuid, "getnode", lambda: card)
        patch.setattr(platform, "node", lambda: host)
        return process_identity._machine()


def test_machine_is_known_by_its_id_and_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = machine(monkeypatch, machine_id="one", card=CARD)
    assert len(known) == 16
    for card in (OTHER_CARD, MADE_UP):
        assert machine(monkeypatch, machine_id="one", card=card) == known
    # Containers of one image share the id, so that the host's name counts, too.
    assert machine(monkeypatch, machine_id="one", card=CARD, host="other") != known
    assert machine(monkeypatch, machine_id="two", card=CARD) != known


def test_machine_without_an_id_is_known_by_its_network_card_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    known = machine(monkeypatch, machine_id="", card=CARD)
    assert known == machine(monkeypatch, machine_id="", card=CARD)
    assert len({known, machine(monkeypatch, machine_id="", card=OTHER_CARD), ""}) == 3
    assert machine(monkeypatch, machine_id="", card=CARD, host="other") != known
    # A number that was made up differs in each process, so that all others would seem to be dead.
    assert machine(monkeypatch, machine_id="", card=MADE_UP) == ""


def test_unreadable_machine_id_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "machine-id").write_bytes(b"\xff")
    assert process_identity._text(str(tmp_path / "machine-id")) == ""
    assert process_identity._text(str(tmp_path / "missing")) == ""
    (tmp_path / "machine-id").write_text("one\n")
    assert process_identity._text(str(tmp_path / "machine-id")) == "one"


@pytest.fixture(params=["darwin", "win32"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim another system, on which a signal of 0 would end a process."""

    def kill(process_id: int, number: int) -> None:
        raise AssertionError(f"os.kill({process_id}, {number})")

    monkeypatch.setattr(process_identity, "sys", SimpleNamespace(platform=request.param))
    monkeypatch.setattr(process_identity, "os", SimpleNamespace(kill=kill, getpid=os.getpid))


@pytest.mark.usefixtures("elsewhere")
def test_owner_off_linux_is_dead_only_where_its_process_does_not_exist() -> None:
    with program("-c", WAITING) as process:
        owner = attrs.evolve(HERE, process_id=process.pid, started="")
        assert look_up_process(process.pid) is UNKNOWN
        # Its number may be another's by now, which cannot be told.
        assert liveness_of(owner, HERE, look_up_process) is UNSURE
        process.kill()
        process.wait()
        assert look_up_process(process.pid) is GONE
        assert liveness_of(owner, HERE, look_up_process) is DEAD


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("process_id", [-1, 0, 1, 2**40])
def test_odd_process_id_off_linux_sends_no_signal_and_raises_nothing(process_id: int) -> None:
    assert look_up_process(process_id) in (GONE, UNKNOWN)
    assert look_up_process(1) is UNKNOWN


@pytest.mark.usefixtures("elsewhere")
def test_process_off_linux_is_unknown_without_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert look_up_process(2**22 + 1) is UNKNOWN

"""The guardian's own process: the rules by which it acts, and its loop, run here with real descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from until import until_sync

from netmind_rentgpu.rentals.guardian import guard as rules
from netmind_rentgpu.rentals.guardian import process
from netmind_rentgpu.rentals.guardian.guard import Guard, Step
from netmind_rentgpu.rentals.guardian.process import Channel, Parent, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guardian's tests read /proc")
NEVER = 10.0**9


def guarding(*keys: str) -> Guard:
    """Return a guard that knows some clients, at the time 0."""
    guard = Guard()
    for key in keys:
        guard.obey({"do": "register", "key": key, "registration": {}}, 0)
    return guard


def looked(guard: Guard, now: float, **found: float | None) -> None:
    """Have a look begin and end."""
    guard.begin_look()
    guard.end_look(found, (), now)


# The rules.


def test_guard_waits_until_something_is_due() -> None:
    guard = Guard()
    assert (guard.step(0), guard.pause(0)) == (Step.WAIT, None)
    guard = guarding("a")
    assert (guard.step(0), guard.pause(0)) == (Step.WAIT, None)
    assert guard.obey({"do": "watch", "key": "a", "seconds": 30.0}, 100)
    assert guard.obey({"do": "watch", "key": "a", "seconds": 50.0}, 100)
    assert (guard.step(129), guard.pause(129)) == (Step.WAIT, 1)
    assert (guard.step(130), guard.pause(131)) == (Step.LOOK, 0)


def test_message_of_an_unknown_kind_changes_nothing() -> None:
    guard = guarding("a")
    assert not guard.obey({"do": "dance", "key": "a"}, 0)
    assert not guard.obey({"do": "watch", "key": "b", "seconds": 0}, 0)
    assert guard.step(NEVER) is Step.WAIT


def test_look_under_way_is_awaited() -> None:
    guard = guarding("a")
    guard.lose_parent(0)
    assert guard.step(0) is Step.LOOK
    guard.begin_look()
    assert (guard.step(NEVER), guard.pause(NEVER)) == (Step.WAIT, None)
    guard.end_look({"a": None}, (), 1)
    assert guard.step(1) is Step.END


def test_deadline_that_comes_up_during_a_look_is_kept() -> None:
    guard = guarding("a")
    guard.begin_look()
    guard.obey({"do": "watch", "key": "a", "seconds": 5.0}, 10)
    guard.end_look({"a": None}, (), 11)
    assert (guard.step(14), guard.step(15)) == (Step.WAIT, Step.LOOK)


def test_death_of_the_parent_during_a_look_is_followed_by_another_look() -> None:
    guard = guarding("a")
    guard.begin_look()
    guard.lose_parent(1)
    guard.end_look({"a": 50.0}, (), 2)
    assert guard.step(2) is Step.LOOK


def test_client_is_guarded_until_it_is_closed_and_nothing_of_it_is_left() -> None:
    guard = guarding("a", "b")
    looked(guard, 0, a=None, b=None)
    assert guard.step(NEVER) is Step.WAIT
    guard.obey({"do": "close", "key": "a", "is_empty": True}, 0)
    assert guard.clients.keys() == {"b"}
    guard.obey({"do": "close", "key": "b", "is_empty": False}, 5)
    assert guard.step(5) is Step.LOOK
    looked(guard, 6, b=20.0)
    assert guard.step(6) is Step.WAIT
    looked(guard, 26, b=None)
    assert guard.step(26) is Step.END


def test_client_that_is_registered_again_is_open_again() -> None:
    guard = guarding("a")
    guard.obey({"do": "close", "key": "a", "is_empty": False}, 0)
    guard.obey({"do": "register", "key": "a", "registration": {"token": "another"}}, 0)
    looked(guard, 0, a=None)
    assert guard.clients["a"].registration == {"token": "another"}
    assert guard.step(0) is Step.WAIT


def test_closing_an_unknown_client_changes_nothing() -> None:
    guard = guarding("a")
    assert not guard.obey({"do": "close", "key": "b", "is_empty": True}, 0)
    assert guard.clients.keys() == {"a"}


def test_parent_that_dies_before_it_has_a_client_leaves_nothing_to_guard() -> None:
    guard = Guard()
    assert guard.step(0) is Step.WAIT
    guard.lose_parent(0)
    assert guard.step(0) is Step.END


@pytest.mark.parametrize("found", [{"a": 0.0}, {"a": 0.0, "b": 90.0}, None])
def test_what_could_not_be_ended_is_tried_again_after_longer_and_longer_pauses(
    found: dict[str, float | None] | None,
) -> None:
    guard = guarding("a", "b")
    guard.lose_parent(0)
    pauses: list[float] = []
    for _ in range(12):
        guard.begin_look()
        guard.end_look(found, ("a", "b"), 0)
        pauses.append(guard.pause(0) or 0)
    assert pauses[:3] == [2, 4, 8]
    assert pauses[-1] == (300 if found is None or "b" not in found else 90)
    assert guard.clients.keys() == {"a", "b"}


@pytest.mark.parametrize(("found", "longest"), [(0.0, 7 * 86400), (-1.0, 3600)])
def test_client_of_the_dead_of_which_nothing_can_be_ended_is_given_up_after_a_time(
    found: float, longest: float
) -> None:
    guard = guarding("a", "b")
    looked(guard, 0, a=found, b=50.0)
    looked(guard, 2 * longest, a=found, b=50.0)
    # The parent may yet say what is to be done.
    assert guard.clients.keys() == {"a", "b"}
    guard.lose_parent(3 * longest)
    looked(guard, 3 * longest, a=50.0, b=50.0)
    looked(guard, 4 * longest, a=found, b=50.0)
    looked(guard, 4.9 * longest, a=found, b=50.0)
    assert guard.clients.keys() == {"a", "b"}
    looked(guard, 5.1 * longest, a=found, b=50.0)
    assert guard.clients.keys() == {"b"}
    assert guard.step(5.1 * longest) is Step.WAIT


@pytest.mark.parametrize(
    "change",
    [
        lambda guard: guard.lose_parent(1),
        lambda guard: guard.lose_channel(1),
        lambda guard: guard.obey({"do": "register", "key": "a", "registration": {}}, 1),
        lambda guard: (
            guard.obey({"do": "watch", "key": "a", "seconds": 100.0}, 1)
            and guard.obey({"do": "close", "key": "a", "is_empty": False}, 1)
        ),
    ],
    ids=["death", "closed socket", "registration", "rental and close"],
)
def test_look_that_found_nothing_before_something_has_happened_does_not_count(
    change: Callable[[Guard], object],
) -> None:
    guard = guarding("a")
    guard.begin_look()
    change(guard)
    guard.end_look({"a": None}, ("a",), 60)
    assert guard.clients.keys() == {"a"}


def test_guardian_that_lost_its_parent_before_the_first_client_ends() -> None:
    guard = Guard()
    guard.lose_channel(0)
    assert guard.step(0) is Step.END


def test_success_begins_the_pauses_anew() -> None:
    guard = guarding("a")
    for _ in range(3):
        looked(guard, 0, a=0.0)
    looked(guard, 100, a=3600.0)
    looked(guard, 200, a=0.0)
    assert guard.pause(200) == 2


def test_what_is_due_later_is_looked_at_earlier_once_no_parent_tells_of_its_end() -> None:
    guard = guarding("a")
    looked(guard, 0, a=3600.0)
    assert guard.pause(0) == 3600
    guard.lose_parent(0)
    looked(guard, 0, a=3600.0)
    assert guard.pause(0) == 300


def test_parent_that_has_closed_its_descriptors_is_guarded_on() -> None:
    guard = guarding("a")
    guard.lose_channel(0)
    assert (guard.step(0.5), guard.step(1)) == (Step.WAIT, Step.LOOK)
    looked(guard, 1, a=3600.0)
    assert not guard.parent_is_gone
    assert guard.step(200) is Step.WAIT
    guard.lose_parent(200)
    assert guard.step(200) is Step.LOOK


def test_signal_ends_the_guard_once_it_waits_for_deadlines_alone() -> None:
    guard = guarding("a")
    guard.is_asked_to_end = True
    looked(guard, 0, a=3600.0)
    assert guard.step(0) is Step.WAIT
    guard.lose_parent(1)
    assert guard.step(1) is Step.LOOK
    looked(guard, 1, a=0.0)
    assert guard.step(2) is Step.WAIT
    looked(guard, 3, a=3600.0)
    assert guard.step(3) is Step.END


# The loop.


class Guarded:
    """A guardian's loop in a thread's stead: `run` in this process, and a parent of its own."""

    def __init__(self, folder: Path, *, pidfd: bool) -> None:
        self.folder = folder
        self.parent = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        self.ours, its_own = socket.socketpair()
        self.ours.settimeout(60)
        self.descriptor = its_own.detach()
        self.pidfd = os.pidfd_open(self.parent.pid) if pidfd else None
        self.guard = Guard()

    def look(self, clients: list[tuple[str, Mapping[str, Any]]], *, parent_is_gone: bool) -> Mapping[str, float | None]:
        """Do in the guardian's child what a test wants of it, and note it in a file."""
        with (self.folder / "looks").open("a") as file:
            file.write(f"{'gone' if parent_is_gone else 'alive'} {' '.join(key for key, _ in clients)}\n")
        wanted = self.folder / ("if gone" if parent_is_gone else "if alive")
        if not wanted.exists():
            return dict.fromkeys((key for key, _ in clients), None)
        if wanted.read_text() == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        found: dict[str, float | None] = json.loads(wanted.read_text())
        return found

    @property
    def looks(self) -> list[str]:
        file = self.folder / "looks"
        return file.read_text().splitlines() if file.exists() else []

    def ask(self, **message: Any) -> dict[str, Any]:
        self.ours.sendall(json.dumps(message).encode() + b"\n")
        return self.heard()

    def heard(self) -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):
            data = self.ours.recv(1)
            assert data
            line += data
        message: dict[str, Any] = json.loads(line)
        return message

    def run(self, test: Any) -> None:
        """Run the loop here, which alone may set signal handlers, and a test of it in a thread."""
        errors: list[BaseException] = []

        def act() -> None:
            try:
                test()
            except BaseException as error:  # noqa: BLE001  # raised below
                errors.append(error)
                self.parent.kill()
                self.parent.wait()

        thread = threading.Thread(target=act)
        thread.start()
        run(self.guard, Channel(self.descriptor), Parent(self.parent.pid, self.pidfd), self.look)
        thread.join(60)
        if errors:
            raise errors[0]

    def end(self) -> None:
        self.parent.kill()
        assert self.parent.stdin is not None
        self.parent.stdin.close()
        self.parent.wait()


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(params=[True, False], ids=["pidfd", "no pidfd"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path, handlers: None) -> Iterator[Guarded]:
    made = Guarded(tmp_path, pidfd=request.param)
    yield made
    made.ours.close()
    made.end()


REGISTER: dict[str, Any] = {"do": "register", "key": "a", "registration": {}}


def test_death_of_the_parent_is_followed_by_a_look_and_the_end(guarded: Guarded) -> None:
    def test() -> None:
        assert guarded.ask(**REGISTER) == {"done": True}
        assert guarded.looks == []
        guarded.parent.kill()
        if guarded.pidfd is None:
            guarded.ours.close()

    guarded.run(test)
    assert "gone a" in guarded.looks


def test_parent_counts_as_dead_although_it_was_not_waited_for(guarded: Guarded) -> None:
    def test() -> None:
        guarded.ask(**REGISTER)
        guarded.parent.kill()
        until_sync(lambda: "Z" in Path(f"/proc/{guarded.parent.pid}/stat").read_text().rpartition(")")[2])
        guarded.ours.close()

    guarded.run(test)
    assert guarded.parent.poll() is not None
    assert guarded.looks[-1] == "gone a"


def test_end_of_the_last_client_ends_the_guardian_which_says_so(guarded: Guarded) -> None:
    def test() -> None:
        guarded.ask(**REGISTER)
        guarded.ask(**{**REGISTER, "key": "b"})
        guarded.ask(do="close", key="a", is_empty=True)
        assert guarded.ask(do="close", key="b", is_empty=True) == {"done": True}
        assert guarded.heard() == {"ended": True}

    guarded.run(test)
    assert guarded.looks == []


def test_deadline_is_looked_at_while_the_parent_lives(guarded: Guarded) -> None:
    (guarded.folder / "if alive").write_text('{"a": 3600.0}')

    def test() -> None:
        guarded.ask(**REGISTER)
        guarded.ask(do="watch", key="a", seconds=0.0)
        until_sync(lambda: guarded.looks == ["alive a"])
        guarded.ask(do="close", key="a", is_empty=True)

    guarded.run(test)
    assert guarded.looks == ["alive a"]


def test_closed_socket_of_a_living_parent_is_not_its_death(guarded: Guarded) -> None:
    (guarded.folder / "if alive").write_text('{"a": 3600.0}')

    def test() -> None:
        guarded.ask(**REGISTER)
        guarded.ours.close()
        until_sync(lambda: guarded.looks == ["alive a"])
        guarded.parent.kill()

    guarded.run(test)
    assert guarded.looks == ["alive a", "gone a"]


def test_child_that_dies_has_found_nothing_out(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_FIRST_PAUSE", 0.01)
    (guarded.folder / "if gone").write_text("die")

    def test() -> None:
        guarded.ask(**REGISTER)
        guarded.parent.kill()
        guarded.ours.close()
        until_sync(lambda: guarded.looks.count("gone a") >= 2)
        (guarded.folder / "if gone").unlink()

    guarded.run(test)
    assert guarded.looks.count("gone a") >= 2


def test_failed_fork_is_tried_again(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_FIRST_PAUSE", 0.01)
    fork, failures = os.fork, [OSError("no memory"), OSError("no memory")]

    def fail() -> int:
        if failures:
            raise failures.pop()
        return fork()

    monkeypatch.setattr(os, "fork", fail)

    def test() -> None:
        guarded.ask(**REGISTER)
        guarded.parent.kill()
        guarded.ours.close()

    guarded.run(test)
    assert not failures
    assert guarded.looks[-1] == "gone a"


def test_child_that_takes_too_long_is_killed(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_LONGEST_LOOK", 0.2)
    monkeypatch.setattr(rules, "_FIRST_PAUSE", 0.01)
    look = guarded.look

    def look_long(clients: list[tuple[str, Mapping[str, Any]]], *, parent_is_gone: bool) -> Mapping[str, float | None]:
        if len(guarded.looks) < 2:
            look(clients, parent_is_gone=parent_is_gone)
            select.select([], [], [], 1000)
        return look(clients, parent_is_gone=parent_is_gone)

    monkeypatch.setattr(guarded, "look", look_long)

    def test() -> None:
        guarded.ask(**REGISTER)
        guarded.parent.kill()
        guarded.ours.close()

    guarded.run(test)
    assert len(guarded.looks) >= 2


def test_signal_ends_a_guardian_that_waits_for_a_deadline_alone(guarded: Guarded) -> None:
    for case in ("if alive", "if gone"):
        (guarded.folder / case).write_text('{"a": 3600.0}')

    def test() -> None:
        guarded.ask(**REGISTER)
        os.kill(os.getpid(), signal.SIGTERM)
        until_sync(lambda: guarded.guard.is_asked_to_end)
        assert guarded.ask(do="watch", key="a", seconds=3600.0) == {"done": True}
        guarded.parent.kill()
        guarded.ours.close()

    guarded.run(test)
    assert guarded.looks[-1] == "gone a"


@pytest.mark.parametrize("sent", [b"no JSON\n", b"\xff\xfe\n"])
def test_message_that_cannot_be_read_closes_the_socket(guarded: Guarded, sent: bytes) -> None:
    def test() -> None:
        guarded.ask(**REGISTER)
        guarded.ours.sendall(sent)
        assert guarded.ours.recv(1) == b""
        guarded.parent.kill()

    guarded.run(test)
    assert guarded.looks[-1] == "gone a"


def test_messages_may_come_in_pieces_and_together() -> None:
    ours, its_own = socket.socketpair()
    channel = Channel(its_own.detach())
    ours.sendall(b'{"do": "wa')
    assert channel.receive() == []
    ours.sendall(b'tch"}\n{"do": "close"}\n{')
    assert channel.receive() == [{"do": "watch"}, {"do": "close"}]
    ours.close()
    assert channel.receive() is None
    assert channel.descriptor is None
    channel.send({"done": True})
    assert channel.receive() is None


def test_answer_to_a_parent_that_is_gone_closes_the_socket() -> None:
    ours, its_own = socket.socketpair()
    channel = Channel(its_own.detach())
    ours.close()
    with contextlib.suppress(BrokenPipeError):
        channel.send({"done": True})
    assert channel.descriptor is None


# The parent.


def test_parent_that_begins_another_program_is_another() -> None:
    code = "import os, sys; sys.stdin.readline(); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    again = "import sys; print('again', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "-c", again], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        # So that the first program runs, and not a copy of this one.
        until_sync(lambda: b"-c" in Path(f"/proc/{started.pid}/cmdline").read_bytes())
        parent = Parent(started.pid, None)
        assert not parent.is_another_program()
        started.stdin.write("\n")
        started.stdin.flush()
        assert started.stdout.readline() == "again\n"
        assert parent.is_another_program()
        assert not parent.is_gone()
        started.kill()
    assert parent.is_gone()
    assert not parent.is_another_program()


def test_parent_whose_process_id_has_another_process_by_now_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Parent(os.getpid(), None)
    assert not parent.is_gone()
    monkeypatch.setattr(parent, "_started", b"1")
    assert parent.is_gone()


def test_parent_is_looked_up_where_the_system_does_not_say_when_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_start_of", lambda _: None)
    monkeypatch.setattr(process, "_program_of", lambda _: None)
    parent = Parent(os.getpid(), None)
    assert not parent.is_gone()
    assert not parent.is_another_program()
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError))
    assert not parent.is_gone()
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(ProcessLookupError))
    assert parent.is_gone()

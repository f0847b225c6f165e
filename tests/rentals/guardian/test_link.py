"""The parent's side of its guardian: what is refused, and what follows when a guardian cannot be started or is lost."""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from guardian_copies import share_copies
from hostile import Hostile, answer
from lifecycle import set_limits
from rented import IMAGE, PROFILE, TIMEOUTS
from until import is_running, until

from netmind_rentgpu import AsyncRentGPU, ConfigurationError, RentGPU, Retries
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.guardian import link
from netmind_rentgpu.rentals.guardian.link import ClientGuardian
from netmind_rentgpu.rentals.ledger.process_identity import ProcessIdentity
from netmind_rentgpu.rentals.limits import RentalLimits
from netmind_rentgpu.settings import ClientParts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tests look guardians up in /proc")


@pytest.fixture
def gpu_with_a_guardian(emulator: Emulator, tmp_path: Path) -> Callable[..., AsyncRentGPU]:
    share_copies(tmp_path)

    def make(**options: Any) -> AsyncRentGPU:
        return AsyncRentGPU(
            emulator.token,
            base_url=emulator.url,
            state=tmp_path / "state.sqlite3",
            profile=PROFILE,
            timeout=TIMEOUTS,
            retries=Retries(base_delay=0.01, max_delay=0.05),
            guardian=True,
            **options,
        )

    return make


async def test_guardian_of_this_process_lives_as_long_as_its_clients(
    gpu_with_a_guardian: Callable[..., AsyncRentGPU], emulator: Emulator
) -> None:
    async with gpu_with_a_guardian() as first:
        async with gpu_with_a_guardian() as second, second.rent(image=IMAGE):
            (record,) = await second.rentals.list()
            assert record.guardian is not None
            guardian = record.guardian.process_id
            async with first.rent(image=IMAGE):
                assert {each.guardian for each in await first.rentals.list()} == {record.guardian}
                assert record.to_dict()["enforced_by"] == f"process {os.getpid()} and guardian {guardian}"
        assert is_running(guardian)
    await until(lambda: not is_running(guardian))
    emulator.assert_nothing_rented()


async def test_session_of_the_caller_does_not_go_with_a_guardian(
    gpu_with_a_guardian: Callable[..., AsyncRentGPU],
) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ConfigurationError, match="session"):
            gpu_with_a_guardian(session=session)


@pytest.mark.parametrize("executable", ["", None, "/no/such/file", "/etc/passwd"])
def test_unusable_executable_is_refused_at_once(executable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    for kind in (AsyncRentGPU, RentGPU):
        with pytest.raises(ConfigurationError, match=r"no guardian can be started: sys\.executable is"):
            kind("a token", guardian=True)


def test_system_without_forks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(ConfigurationError, match="a system with forks"):
        AsyncRentGPU("a token", guardian=True)


@pytest.mark.parametrize("program", ["/bin/true", "#!/bin/sh\nexit 0\n", "#!/no/such/program\n"])
async def test_executable_that_starts_no_guardian_is_an_error_before_anything_is_rented(
    gpu_with_a_guardian: Callable[..., AsyncRentGPU],
    emulator: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
) -> None:
    if program.startswith("#!"):
        file = tmp_path / "python"
        file.write_text(program)
        file.chmod(0o700)
        program = str(file)
    monkeypatch.setattr(sys, "executable", program)
    async with gpu_with_a_guardian() as gpu:
        with pytest.raises(ConfigurationError, match="no guardian can be started"):
            await gpu.rent(image=IMAGE).open()
        assert not emulator.requests.of("create_container")
        assert await gpu.rentals.list() == []


async def test_guardian_that_says_nothing_at_its_start_is_an_error(
    gpu_with_a_guardian: Callable[..., AsyncRentGPU], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gpu_with_a_guardian() as gpu, gpu.rent(image=IMAGE):
        pass
    file = tmp_path / "python"
    file.write_text("#!/bin/sh\nexec sleep 1000\n")
    file.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(file))
    monkeypatch.setattr(link, "_LONGEST_START", 0.3)
    async with gpu_with_a_guardian() as gpu:
        with pytest.raises(ConfigurationError, match="did not run it: timed out"):
            await gpu.rent(image=IMAGE).open()


async def test_attach_waits_for_the_guardian_too(
    gpu_with_a_guardian: Callable[..., AsyncRentGPU], emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gpu_with_a_guardian() as gpu:
        async with gpu.rent(image=IMAGE) as rental:
            record = await rental.detach()
        with monkeypatch.context() as patch:

            async def fail(*_: Any, **__: Any) -> ProcessIdentity:
                raise ConfigurationError("no guardian")

            patch.setattr(ClientGuardian, "watch", fail)
            with pytest.raises(ConfigurationError, match="no guardian"):
                await gpu.rentals.attach(record).open()
        assert (await gpu.rentals.get(record)).stage == "detached"
        async with gpu.rentals.attach(record):
            assert (await gpu.rentals.get(record)).guardian == record.guardian
    emulator.assert_nothing_rented()


async def test_guardian_that_ends_by_itself_is_followed_by_another_without_an_error(
    gpu_with_a_guardian: Callable[..., AsyncRentGPU], emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    lost = list(link._link._former)
    for _ in range(2):
        async with gpu_with_a_guardian() as gpu, gpu.rent(image=IMAGE):
            pass
    # A client that leaves something behind is closed for the guardian, which ends once that is gone.
    async with gpu_with_a_guardian() as gpu, gpu.rent(image=IMAGE) as rental:
        record = await rental.detach()
    guardian = record.guardian
    assert guardian is not None
    async with gpu_with_a_guardian() as gpu:
        await gpu.rentals.release(record)
        async with gpu.rent(image=IMAGE):
            pass
    assert link._link._former == lost
    assert not [entry for entry in caplog.records if entry.levelname == "ERROR"]
    emulator.assert_nothing_rented()
    await until(lambda: not is_running(guardian.process_id))


# TLS settings.


@pytest.fixture
def authority() -> Any:
    import trustme

    return trustme.CA()


@pytest.fixture
def guardian_over_tls(tmp_path: Path) -> Callable[..., ClientGuardian]:
    def make(url: str, context: ssl.SSLContext) -> ClientGuardian:
        state = tmp_path / "state.sqlite3"
        gpu = AsyncRentGPU("t", base_url=url, ssl_context=context, guardian=True, state=state, retries=0)
        found = gpu._context.guardian
        assert found is not None
        return found

    return make


@pytest.mark.parametrize("has_own_certificate", [False, True])
async def test_tls_settings_are_tried_out_before_the_guardian_gets_them(
    authority: Any, guardian_over_tls: Callable[..., ClientGuardian], has_own_certificate: bool
) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if has_own_certificate:
        # The guardian cannot get it.
        authority.configure_trust(server)
        server.verify_mode = ssl.CERT_REQUIRED
        authority.issue_cert("client@example.com").configure_cert(context)
    async with Hostile([answer()] * 3, ssl_context=server) as service:
        guardian = guardian_over_tls(service.url, context)
        if has_own_certificate:
            with pytest.raises(ConfigurationError, match="neither a certificate of the client's own"):
                await guardian.watch(11, RentalLimits())
            return
        found = await guardian.watch(11, RentalLimits())
        await guardian.close(is_empty=True)
    await until(lambda: not is_running(found.process_id))


# The guardian's answers.


class Scripted:
    """A guardian that answers as a test wants it."""

    def __init__(self) -> None:
        ours, self.its_own = socket.socketpair()
        ours.settimeout(0.5)
        self.connection = link._Connection(ProcessIdentity("", "", "", 2**22, ""), ours)

    def answers(self, *texts: str) -> None:
        def act() -> None:
            for text in texts:
                self.its_own.recv(65536)
                self.its_own.sendall(text.encode())

        threading.Thread(target=act).start()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.connection.close()
    made.its_own.close()


def test_answer_may_come_in_pieces(scripted: Scripted) -> None:
    scripted.answers('{"done": true}\n{"done"', ": true}\n")
    scripted.connection.ask({"do": "watch"})
    scripted.connection.ask({"do": "watch"})


def test_last_words_are_read_although_nothing_can_be_sent_any_longer(scripted: Scripted) -> None:
    scripted.its_own.sendall(json.dumps({"ended": True}).encode() + b"\n")
    scripted.its_own.close()
    with pytest.raises(link._EndedError):
        scripted.connection.ask({"do": "watch"})


@pytest.mark.parametrize("said", ["no JSON\n", None])
def test_guardian_that_answers_nonsense_or_nothing_is_lost(scripted: Scripted, said: str | None) -> None:
    if said is not None:
        scripted.answers(said)
    with pytest.raises(link._LostError):
        scripted.connection.ask({"do": "watch"})


def test_nothing_is_sent_to_another_file_that_has_the_descriptor(scripted: Scripted, tmp_path: Path) -> None:
    descriptor = scripted.connection._socket.fileno()
    other = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.dup2(other, descriptor)
    with pytest.raises(link._LostError, match="closed its end"):
        scripted.connection.ask({"do": "register", "token": "secret"})
    scripted.connection.close()
    # It is still the other file's.
    os.fstat(descriptor)
    os.close(descriptor)
    os.close(other)
    assert (tmp_path / "file").read_bytes() == b""


async def test_grace_is_that_of_the_client(gpu_with_a_guardian: Callable[..., AsyncRentGPU], monkeypatch: Any) -> None:
    told: list[Any] = []
    watch = link._Link.watch

    def note(
        self: Any, key: str, registration: dict[str, Any], folder: Path, seconds: float, **rest: bool
    ) -> ProcessIdentity:
        told.append((registration["grace"], round(seconds)))
        return watch(self, key, registration, folder, seconds, **rest)

    monkeypatch.setattr(link._Link, "watch", note)
    async with gpu_with_a_guardian() as gpu:
        set_limits(gpu, guardian=3.0)
        async with gpu.rent(image=IMAGE):
            pass
    assert told == [(3.0, 24 * 3600 + 3)]


def test_parts_show_no_token() -> None:
    gpu = AsyncRentGPU("a secret token", guardian=True)
    parts = gpu._parts
    assert isinstance(parts, ClientParts)
    assert "a secret token" not in repr(parts)
    assert attrs.evolve(parts) == parts

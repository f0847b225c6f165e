"""Programs with a guardian that are killed, stopped, or hang: their machines are deleted, and nothing of the living is."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from importlib.metadata import Distribution
from pathlib import Path
from textwrap import dedent

import pytest
from guardians import guardians
from programs import INSTALLED, LONGEST, with_programs
from renters import QUIETLY, Service, renting
from short_forms import thinned
from until import command_line, is_running, until

from netmind_rentgpu import RentalRecord
from netmind_rentgpu.emulator import Fault
from netmind_rentgpu.rentals.guardian.packages import _files, _with_dependencies, user_id

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the tests look guardians up in /proc"),
]

# A rental that its program holds, and prints, until it is told to go on by a line on its standard input.
BEGIN = """
    import attrs, logging, subprocess

    WANTED = {"image": "PyTorch 2.4"}

    def grace(gpu, seconds):
        # The guardian acts that long after a missed deadline.
        gpu._context.limits = attrs.evolve(gpu._context.limits, guardian=seconds)

    def tell(*values):
        print(*values, flush=True)
"""
HOLD = """
    async def main():
        async with AsyncRentGPU(guardian=True) as gpu, gpu.rent(**WANTED) as rental:
            tell("held")
            await asyncio.sleep(1000)

    asyncio.run(main())
"""
RENT_TWICE = """\
    with RentGPU(guardian=True) as gpu, gpu.rent(**WANTED) as rental:
        tell("held")
        sys.stdin.readline()
        with gpu.rent(**WANTED):
            tell("held")
            time.sleep(1000)
"""
EXPIRE = """
    async def main():
        async with AsyncRentGPU(guardian=True) as gpu:
            grace(gpu, 0.3)
            try:
                async with gpu.rent(**WANTED, ttl=timedelta(seconds=16), timeout=15) as rental:
                    tell("held")
                    await until_expired()
                    tell("used on")
            except RentalExpiredError:
                tell("expired")
            await asyncio.to_thread(sys.stdin.readline)

    asyncio.run(main())
"""


class Running:
    """A program that runs until it is killed, or told to end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(LONGEST):
            return (await self._process.stdout.readline()).decode().rstrip("\n")

    async def tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        await self._process.stdin.drain()

    async def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)
        # Its own children may hold its pipes.
        await until(lambda: not is_running(self.pid))

    async def end(self) -> tuple[int, str]:
        async with asyncio.timeout(LONGEST):
            _, errors = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, errors.decode()


class Site:
    """A service, and programs with a guardian that rent there."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.emulator = service.emulator
        self.folder = service.folder
        self._started: list[asyncio.subprocess.Process] = []

    async def start(self, code: str, *, python: str = sys.executable, **environment: str) -> Running:
        program = self.service.program(dedent(BEGIN) + dedent(code), measured=False)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        process = await asyncio.create_subprocess_exec(
            *(python, *QUIETLY, "-c", program.begin + dedent(program.code)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**with_programs(inherited), **INSTALLED, **program.environment, **environment},
        )
        self._started.append(process)
        return Running(process)

    @property
    def rented(self) -> int:
        return len(self.emulator.running)

    def guardians(self) -> list[int]:
        return guardians(self.folder)

    def copies(self) -> set[Path]:
        """Return all files of the copies that the guardians run from."""
        (folder,) = (self.folder / f"guardian-{user_id()}").glob("packages-*")
        return {each for each in folder.resolve().rglob("*") if each.is_file()}

    async def all_ended(self) -> None:
        """Wait until no guardian is left, and assert that nothing else is."""
        await until(lambda: not self.guardians())
        await self.service.assert_nothing_left()

    async def causes(self) -> list[str | None]:
        async with self.service.client() as gpu:
            return [past.cause for past in await gpu.rentals.history()]

    async def record(self) -> RentalRecord:
        (record,) = await self.service.records()
        return record

    async def close(self) -> None:
        for process in self._started:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        for pid in self.guardians():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with renting(tmp_path) as service:
        made = Site(service)
        yield made
        await made.close()


# Death.


async def test_machine_of_a_killed_program_is_deleted(site: Site) -> None:
    program = await site.start(HOLD)
    assert await program.line() == "held"
    assert site.rented == 1
    record = await site.record()
    assert record.guardian is not None
    assert site.guardians() == [record.guardian.process_id]
    assert record.enforced_by == f"process {program.pid} and guardian {record.guardian.process_id}"
    copies = site.copies()
    await program.kill()
    await site.all_ended()
    assert await site.causes() == ["reaped"]
    # Another guardian that runs from them must not find files that this one has half written.
    assert copies == site.copies()


@pytest.mark.parametrize(
    "end",
    thinned(
        ["os.kill(os.getpid(), signal.SIGTERM)", "os._exit(3)", "import ctypes; ctypes.string_at(0)", "os.abort()"],
        every=2,
    ),
)
async def test_machine_of_a_program_that_ends_without_cleanup_is_deleted(site: Site, end: str) -> None:
    program = await site.start(f"""
    with RentGPU(guardian=True) as gpu, gpu.rent(**WANTED) as rental:
        tell("held")
        {end}
        time.sleep(1000)
    """)
    assert await program.line() == "held"
    assert (await program.end())[0] != 0
    await site.all_ended()
    assert await site.causes() == ["reaped"]


@pytest.mark.parametrize("fault", [Fault("drop", call="create_container", when="after"), Fault("never reachable")])
async def test_machine_whose_create_was_unclear_or_that_starts_is_deleted(site: Site, fault: Fault) -> None:
    site.emulator.faults.add(fault)
    program = await site.start(HOLD)
    await until(site.service.asked("create_container"))
    await program.kill()
    await site.all_ended()


async def test_failing_service_is_asked_again_until_the_machine_is_deleted(site: Site) -> None:
    program = await site.start(HOLD)
    assert await program.line() == "held"
    site.emulator.faults.add(Fault("status", call="delete_container", status=403, times=2))
    await program.kill()
    await site.all_ended()
    assert len(site.emulator.requests.of("delete_container")) == 3


async def test_clean_end_leaves_no_guardian_and_needs_no_child_of_it(site: Site) -> None:
    program = await site.start("""
    for _ in range(2):
        with RentGPU(guardian=True) as gpu:
            for _ in range(2):
                with gpu.rent(**WANTED):
                    tell(gpu.rentals.list()[0].guardian.process_id)
    """)
    first, second, third, fourth = [await program.line() for _ in range(4)]
    assert (first, third) == (second, fourth)
    assert first != third
    assert await program.end() == (0, "")
    await site.all_ended()
    assert await site.causes() == ["released"] * 4


async def test_signal_that_releases_ends_the_guardian_too(site: Site) -> None:
    program = await site.start("""
    with RentGPU(guardian=True, handle_signals=True) as gpu, gpu.rent(**WANTED) as rental:
        tell("held")
        time.sleep(1000)
    """)
    assert await program.line() == "held"
    os.kill(program.pid, signal.SIGTERM)
    assert await program.end() == (-signal.SIGTERM, "")
    await site.all_ended()
    assert await site.causes() == ["released"]


async def test_machine_that_is_kept_is_the_users_own(site: Site) -> None:
    program = await site.start("""
    with RentGPU(guardian=True) as gpu, gpu.rent(**WANTED, keep=True) as rental:
        tell("held")
        os._exit(0)
    """)
    assert await program.line() == "held"
    await program.end()
    await until(lambda: not site.guardians())
    assert site.rented == 1


async def test_client_that_is_never_closed_leaves_no_guardian(site: Site) -> None:
    program = await site.start("""
    gpu = RentGPU(guardian=True)
    rental = gpu.rent(**WANTED).open()
    tell("held")
    """)
    assert await program.line() == "held"
    assert await program.end() == (0, "")
    await site.all_ended()


async def test_client_that_rents_nothing_starts_no_guardian(site: Site) -> None:
    program = await site.start("""
    with RentGPU(guardian=True) as gpu:
        gpu.machines.list()
        gpu.rentals.list()
        tell("looked")
        sys.stdin.readline()
    """)
    assert await program.line() == "looked"
    assert site.guardians() == []
    await program.tell()
    assert await program.end() == (0, "")


async def test_machines_of_the_living_stay(site: Site) -> None:
    living = await site.start(HOLD)
    unguarded = await site.start(HOLD.replace("guardian=True", ""))
    killed = await site.start(HOLD)
    for program in (living, unguarded, killed):
        assert await program.line() == "held"
    owners = {record.owner.process_id: record for record in await site.service.records() if record.owner}
    await killed.kill()
    await until(lambda: len(site.guardians()) == 1)
    assert {charge.container_id for charge in site.emulator.running} == {
        owners[program.pid].container_id for program in (living, unguarded)
    }
    assert owners[unguarded.pid].guardian is None
    assert owners[unguarded.pid].enforced_by == f"process {unguarded.pid}"
    await unguarded.kill()
    await living.kill()
    await until(lambda: not site.guardians())
    # The one without a guardian is left for `reap`.
    assert site.rented == 1
    await site.service.assert_one_reap_clears()


async def test_machine_of_a_client_that_was_opened_again_is_deleted(site: Site) -> None:
    # So that each closed client leaves something of its account that is guarded, if by another guardian.
    other = await site.start(HOLD)
    assert await other.line() == "held"
    program = await site.start("""
    with RentGPU(guardian=True, state=HERE / "another.sqlite3") as idle, idle.rent(**WANTED):
        for _ in range(3):
            with RentGPU(guardian=True) as gpu, gpu.rent(**WANTED):
                time.sleep(0.7)  # so that the guardian looks meanwhile
                tell("held")
        with RentGPU(guardian=True) as gpu, gpu.rent(**WANTED):
            tell("held")
            time.sleep(1000)
    """)
    for _ in range(4):
        assert await program.line() == "held"
    assert site.rented == 3
    await program.kill()
    await until(lambda: len(site.guardians()) == 1)
    assert site.rented == 1
    await other.kill()
    await site.all_ended()


async def test_detached_and_then_reopened_client_is_guarded_on(site: Site) -> None:
    program = await site.start("""
    with RentGPU(guardian=True) as gpu:
        with gpu.rent(**WANTED) as rental:
            record = rental.detach()
    with RentGPU(guardian=True) as gpu:
        gpu.rentals.release(record)
        with gpu.rent(**WANTED):
            time.sleep(1)  # so that the guardian looks meanwhile
            tell("held")
            time.sleep(1000)
    """)
    assert await program.line() == "held"
    await program.kill()
    await site.all_ended()


async def test_machine_that_is_rented_while_the_guardian_looks_is_deleted(site: Site) -> None:
    site.emulator.faults.add(Fault("status", call="delete_container", status=503, times=40))
    program = await site.start("""
    async def hold(gpu, held):
        grace(gpu, 0.0)
        async with gpu.rent(**WANTED, ttl=timedelta(seconds=16), timeout=15):
            held.set()
            await asyncio.sleep(1000)

    async def main():
        held = asyncio.Event()
        async with AsyncRentGPU(guardian=True) as first:
            async with AsyncRentGPU(guardian=True, state=HERE / "another.sqlite3") as second:
                holding = asyncio.create_task(hold(second, held))
                await held.wait()
                os.kill(os.getpid(), signal.SIGSTOP)
                async with first.rent(**WANTED):
                    tell("held")
                    time.sleep(1000)

    asyncio.run(main())
    """)
    await until(site.service.asked("delete_container"))
    os.kill(program.pid, signal.SIGCONT)
    assert await program.line() == "held"
    await program.kill()
    site.emulator.faults.clear()
    await until(lambda: not site.guardians())
    site.emulator.assert_nothing_rented()


async def test_state_file_that_is_missing_for_a_moment_is_read_once_it_is_back(site: Site) -> None:
    program = await site.start(HOLD)
    assert await program.line() == "held"
    files = list(site.folder.glob("state.sqlite3*"))
    for file in files:
        file.rename(site.folder / f"moved-{file.name}")
    (guardian,) = site.guardians()
    await program.kill()
    # The guardian has looked, and waits before it looks again.
    await until(lambda: "State:\tS" in Path(f"/proc/{guardian}/status").read_text() and site.guardians() == [guardian])
    for file in files:
        (site.folder / f"moved-{file.name}").rename(file)
    await site.all_ended()


# Deadlines.


async def test_machine_of_a_stopped_program_is_deleted_after_its_deadline(site: Site) -> None:
    program = await site.start(EXPIRE.replace("until_expired()", "asyncio.sleep(1000)"))
    assert await program.line() == "held"
    os.kill(program.pid, signal.SIGSTOP)
    await until(lambda: not site.rented)
    os.kill(program.pid, signal.SIGCONT)
    assert await program.line() == "expired"
    assert len(site.emulator.charges) == 1
    assert site.rented == 0
    await program.tell()
    assert await program.end() == (0, "")
    await site.all_ended()
    assert await site.causes() == ["expired"]


async def test_program_stopped_while_its_machine_starts_rents_nothing_again(site: Site) -> None:
    site.emulator.faults.add(Fault("never reachable", times=5))
    program = await site.start(EXPIRE.replace("timeout=15", "timeout=30"))
    await until(site.service.asked("create_container"))
    os.kill(program.pid, signal.SIGSTOP)
    await until(lambda: site.emulator.charges and not site.rented)
    os.kill(program.pid, signal.SIGCONT)
    await program.tell()
    await program.end()
    assert len(site.emulator.requests.of("create_container")) == 1
    await site.all_ended()


async def test_machine_of_a_program_that_hangs_is_deleted_after_its_deadline(site: Site) -> None:
    program = await site.start(EXPIRE.replace("await until_expired()", "time.sleep(24); await asyncio.sleep(1000)"))
    assert await program.line() == "held"
    await until(lambda: not site.rented)
    assert is_running(program.pid)
    assert await program.line() == "expired"
    await program.tell()
    assert await program.end() == (0, "")
    await site.all_ended()


async def test_program_that_lives_deletes_its_machine_itself(site: Site) -> None:
    program = await site.start(EXPIRE.replace("until_expired()", "asyncio.sleep(1000)").replace("0.3", "20"))
    assert await program.line() == "held"
    assert await program.line() == "expired"
    await program.tell()
    assert await program.end() == (0, "")
    await site.all_ended()


async def test_deadline_that_another_process_has_moved_counts(site: Site) -> None:
    code = EXPIRE.replace("until_expired()", "asyncio.sleep(1000)")
    program = await site.start(code)
    assert await program.line() == "held"
    os.kill(program.pid, signal.SIGSTOP)
    async with site.service.client() as gpu:
        record = await gpu.rentals.extend(await site.record(), ttl=timedelta(seconds=20))
        assert record.expires_at is not None
        await until(gpu.rentals.history)
        (past,) = await gpu.rentals.history()
        assert past.ended_at >= record.expires_at
    os.kill(program.pid, signal.SIGKILL)
    await program.end()
    await site.all_ended()


# Detached rentals.

DETACH = """
    with RentGPU(guardian=True) as gpu:
        with gpu.rent(**WANTED, ttl=timedelta(seconds={ttl}), timeout=60) as rental:
            record = rental.detach()
        assert record.enforced_by == f"guardian {{record.guardian.process_id}}"
        tell(record.guardian.process_id)
"""


async def test_detached_rental_is_deleted_at_its_expiry_when_its_program_has_ended(site: Site) -> None:
    program = await site.start(DETACH.format(ttl=15))
    guardian = await program.line()
    assert await program.end() == (0, "")
    assert site.rented == 1
    record = await site.record()
    assert (record.owner, record.enforced_by) == (None, f"guardian {guardian}")
    assert record.expires_at is not None
    await site.all_ended()
    async with site.service.client() as gpu:
        (past,) = await gpu.rentals.history()
    assert past.cause == "expired"
    assert past.ended_at >= record.expires_at


async def test_caller_that_reads_a_program_to_its_end_does_not_wait_for_the_guardian(site: Site) -> None:
    program = await site.start(DETACH.format(ttl=100))
    # `end` reads all output, to the end of the file.
    assert await program.line()
    assert await program.end() == (0, "")
    assert site.guardians()
    async with site.service.client() as gpu:
        await gpu.rentals.release(await site.record())


async def test_detached_rental_that_another_process_has_attached_is_its_own(site: Site) -> None:
    first = await site.start(DETACH.format(ttl=30))
    assert await first.line()
    assert await first.end() == (0, "")
    second = await site.start("""
    with RentGPU(guardian=True) as gpu:
        (record,) = gpu.rentals.list()
        with gpu.rentals.attach(record) as rental:
            # Not before, because the first guardian would then plan its next look for a later deadline.
            rental.extend(ttl=timedelta(minutes=30))
            tell(gpu.rentals.list()[0].guardian.process_id, record.guardian.process_id)
            time.sleep(1000)
    """)
    new, old = map(int, (await second.line()).split())
    assert new != old
    # At the first deadline, the first guardian finds that nothing is left for it.
    await until(lambda: site.guardians() == [new])
    assert site.rented == 1
    await second.kill()
    await site.all_ended()


async def test_failed_attach_leaves_the_rental_to_its_guardian(site: Site) -> None:
    first = await site.start(DETACH.format(ttl=1000))
    guardian = await first.line()
    await first.end()
    site.emulator.faults.add(Fault("status", call="get_container", status=403))
    second = await site.start("""
    with RentGPU() as gpu:
        (record,) = gpu.rentals.list()
        try:
            with gpu.rentals.attach(record):
                pass
        except PermissionDeniedError:
            tell(gpu.rentals.list()[0].enforced_by)
    """)
    assert await second.line() == f"guardian {guardian}"
    assert (await second.end())[0] == 0
    async with site.service.client() as gpu:
        record = await site.record()
        assert (await gpu.rentals.extend(record, ttl=timedelta(minutes=30))).enforced_by == f"guardian {guardian}"
        await gpu.rentals.release(record)


async def test_attach_without_a_guardian_leaves_the_expiry_to_the_former_one(site: Site) -> None:
    first = await site.start(DETACH.format(ttl=30))
    guardian = await first.line()
    await first.end()
    second = await site.start("""
    with RentGPU() as gpu:
        (record,) = gpu.rentals.list()
        with gpu.rentals.attach(record):
            tell(gpu.rentals.list()[0].enforced_by)
            os.kill(os.getpid(), signal.SIGSTOP)
    """)
    assert await second.line() == f"process {second.pid} and guardian {guardian}"
    await until(lambda: not site.rented)
    await second.kill()
    await site.all_ended()


# The process.


async def test_guardian_holds_nothing_of_its_program(site: Site) -> None:
    # This guardian makes its own copies, because it is to hold no file outside its folder.
    shutil.rmtree(site.folder / f"guardian-{user_id()}")
    program = await site.start(HOLD, NETMIND_SECRET="canary", LC_ALL="C.UTF-8", https_proxy="http://127.0.0.1:1")
    assert await program.line() == "held"
    (guardian,) = site.guardians()
    place = Path(f"/proc/{guardian}")
    variables = dict(text.split("=", 1) for text in (place / "environ").read_text().split("\0") if text)
    kept = {"PATH", "HOME", "LANG", "LANGUAGE", "SSL_CERT_FILE", "SSL_CERT_DIR", "https_proxy", "LC_ALL"}
    assert variables.keys() <= kept
    assert variables["https_proxy"] == "http://127.0.0.1:1"
    assert (place / "cwd").readlink() == Path("/")
    assert all((place / "fd" / str(number)).readlink() == Path("/dev/null") for number in range(3))
    others = sorted(str(file.readlink()).split(":")[0] for file in (place / "fd").iterdir() if int(file.name) > 2)
    assert [other for other in others if not other.startswith(str(site.folder))] == [
        *("anon_inode", "pipe", "pipe", "socket")
    ]
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)
    assert int(status["VmRSS"].split()[0]) < 25 * 1024
    assert os.getsid(guardian) not in (os.getsid(0), os.getsid(program.pid), guardian)
    assert int(status["PPid"]) != program.pid
    secrets = (site.emulator.token, "canary")
    for pid in (guardian, program.pid):
        assert not any(secret in command_line(pid) for secret in secrets)
    assert not any(secret in (place / "environ").read_text() for secret in secrets)
    await program.kill()
    await site.all_ended()


async def test_program_never_meets_its_guardian_as_a_child(site: Site) -> None:
    program = await site.start("""
    with RentGPU(guardian=True) as gpu, gpu.rent(**WANTED) as rental:
        own = subprocess.Popen(["true"])
        pid, status = os.wait()
        tell(pid == own.pid)
        own.returncode = 0
        try:
            os.wait()
        except ChildProcessError:
            tell("no other child")
    """)
    assert [await program.line(), await program.line()] == ["True", "no other child"]
    assert await program.end() == (0, "")
    await site.all_ended()


@pytest.mark.parametrize("change", thinned(["upgraded", "removed"], every=2))
async def test_guardian_acts_after_the_virtual_environment_was_changed(site: Site, change: str) -> None:
    environment = site.folder / "venv"
    python = await asyncio.to_thread(make_environment, environment)
    program = await site.start(HOLD, python=str(python), PYTHONPATH=with_programs({})["PYTHONPATH"])
    assert await program.line() == "held", await program.end()
    if change == "removed":
        shutil.rmtree(environment)
    else:
        for file in environment.glob("lib/*/site-packages/*/*.py"):
            file.write_text("raise ImportError('another version')\n")
    await program.kill()
    await site.all_ended()
    assert await site.causes() == ["reaped"]


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with copies of the packages that the SDK needs; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for relative, source in _files():
        (site_packages / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, site_packages / relative)
    found = dict[str, Distribution]()
    for name in ("netmind_rentgpu", "asyncssh"):
        _with_dependencies(name, found)
    for distribution in found.values():
        metadata: Path = distribution._path  # type: ignore[attr-defined]  # of those in a folder
        shutil.copytree(metadata, site_packages / metadata.name)
    return folder / "bin" / "python"


async def test_program_that_begins_another_program_loses_its_machine(site: Site) -> None:
    program = await site.start("""
    with RentGPU(guardian=True) as gpu, gpu.rent(**WANTED) as rental:
        tell("held")
        os.execv(sys.executable, [sys.executable, "-c", "print('again', flush=True); input()"])
    """)
    assert [await program.line(), await program.line()] == ["held", "again"]
    await until(lambda: not site.rented)
    assert is_running(program.pid)
    await program.tell()
    await program.end()
    await site.all_ended()


@pytest.mark.parametrize("reuse", thinned(["held = [open('/dev/null', 'w') for _ in range(200)]", ""], every=2))
async def test_program_that_closes_its_descriptors_is_guarded_on(site: Site, reuse: str) -> None:
    program = await site.start(f"""
    from netmind_rentgpu.rentals.guardian import link

    async def main():
        async with AsyncRentGPU(guardian=True) as gpu, gpu.rent(**WANTED) as rental:
            os.close(link._link._connection._socket.fileno())
            {reuse}
            (first,) = await gpu.rentals.list()
            async with gpu.rent(**WANTED) as other:
                tell(first.guardian.process_id, (await gpu.rentals.list())[1].guardian.process_id)
                await asyncio.sleep(1000)

    asyncio.run(main())
    """)
    first, second = map(int, (await program.line()).split())
    assert first != second
    assert site.rented == 2
    await program.kill()
    await site.all_ended()


async def test_guardian_that_dies_is_replaced_before_the_next_create(site: Site) -> None:
    program = await site.start("    logging.basicConfig(level=logging.ERROR)\n" + RENT_TWICE)
    assert await program.line() == "held"
    (first,) = site.guardians()
    os.kill(first, signal.SIGKILL)
    await until(lambda: not is_running(first))
    assert (await site.record()).enforced_by == f"process {program.pid}"
    await program.tell()
    assert await program.line() == "held"
    await until(lambda: len(site.guardians()) == 1)
    (second,) = site.guardians()

    async def are_guarded() -> bool:
        guarded = [record.guardian and record.guardian.process_id for record in await site.service.records()]
        return guarded == [second, second]

    await until(are_guarded)
    await program.kill()
    _, errors = await program.end()
    assert f"the guardian of this process, process {first}, is lost" in errors
    await site.all_ended()
    assert await site.causes() == ["reaped", "reaped"]


async def test_guardian_that_does_not_answer_is_replaced(site: Site) -> None:
    code = "    from netmind_rentgpu.rentals.guardian import link\n    link._LONGEST_ANSWER = 0.2\n"
    program = await site.start(code + RENT_TWICE)
    assert await program.line() == "held"
    (first,) = site.guardians()
    os.kill(first, signal.SIGSTOP)
    await program.tell()
    assert await program.line() == "held"
    await program.kill()
    await until(lambda: site.guardians() == [first])
    await site.service.assert_nothing_left()
    os.kill(first, signal.SIGCONT)
    await site.all_ended()


async def test_forked_child_has_a_guardian_of_its_own(site: Site) -> None:
    program = await site.start("""
    with RentGPU(guardian=True) as gpu, gpu.rent(**WANTED) as rental:
        if os.fork() == 0:
            with RentGPU(guardian=True) as own, own.rent(**WANTED):
                tell("held")
                time.sleep(1000)
        tell("held")
        time.sleep(1000)
    """)
    assert [await program.line(), await program.line()] == ["held", "held"]
    records = await site.service.records()
    assert len({record.guardian for record in records}) == 2
    assert len(site.guardians()) == 2
    await program.kill()
    await until(lambda: len(site.guardians()) == 1)
    (left,) = await site.service.records()
    assert left.owner is not None
    assert left.owner.process_id != program.pid
    await until(lambda: site.rented == 1)
    os.kill(left.owner.process_id, signal.SIGKILL)
    await site.all_ended()


async def test_clients_of_several_tokens_and_state_files_have_one_guardian(site: Site) -> None:
    other = site.emulator.add_token()
    program = await site.start(f"""
    second = RentGPU({other!r}, guardian=True)
    third = RentGPU(guardian=True, state=HERE / "another.sqlite3")
    with RentGPU(guardian=True) as first, first.rent(**WANTED), second.rent(**WANTED), third.rent(**WANTED):
        tell("held")
        time.sleep(1000)
    """)
    assert await program.line() == "held"
    assert (site.rented, len(site.guardians())) == (3, 1)
    await program.kill()
    await until(lambda: not site.guardians())
    site.emulator.assert_nothing_rented()


async def test_signal_to_end_does_not_end_a_guardian_that_is_needed(site: Site) -> None:
    program = await site.start(HOLD)
    assert await program.line() == "held"
    (guardian,) = site.guardians()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(guardian, number)
    # As when a service manager ends a service, whose processes it signals all.
    await program.kill(signal.SIGTERM)
    await site.all_ended()
    assert await site.causes() == ["reaped"]


async def test_guardian_and_reapers_end_the_machines_of_the_dead_together(site: Site) -> None:
    programs = [await site.start(HOLD) for _ in range(4)]
    for program in programs:
        assert await program.line() == "held"
    for program in programs:
        os.kill(program.pid, signal.SIGKILL)
    async with site.service.client() as first, site.service.client() as second:
        reports = await asyncio.gather(first.rentals.reap(wait=True), second.rentals.reap(wait=True))
    assert all(report.clean for report in reports)
    for program in programs:
        await program.end()
    await site.all_ended()
    causes = await site.causes()
    # One that finds a container gone, because another has just deleted it, may close its record first.
    assert len(causes) == 4
    assert set(causes) <= {"reaped", "gone"}


async def test_guardian_is_not_left_as_a_child_of_the_first_process_of_a_container(site: Site) -> None:
    if (unshare := shutil.which("unshare")) is None or subprocess.run(
        [unshare, "--pid", "--fork", "--mount-proc", "true"], check=False, capture_output=True
    ).returncode:
        pytest.skip("processes of their own namespace cannot be started here")
    script = site.folder / "python"
    script.write_text(f'#!/bin/sh\nexec {unshare} --pid --fork --mount-proc {sys.executable} "$@"\n')
    script.chmod(0o700)
    program = await site.start(
        """
        with RentGPU(guardian=True) as gpu, gpu.rent(**WANTED) as rental:
            guardian = gpu.rentals.list()[0].guardian.process_id
        until(lambda: not os.path.exists(f"/proc/{guardian}"))
        tell(os.getpid(), "no child")
        """,
        python=str(script),
    )
    assert await program.line() == "1 no child"
    assert await program.end() == (0, "")
    site.emulator.assert_nothing_rented()

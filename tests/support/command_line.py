"""The command line as a user has it: an emulated service, a state file, and runs of the program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import canaries
from guardian_copies import share_copies
from guardians import guardians

from netmind_rentgpu.cli.app import run
from netmind_rentgpu.emulator import Emulator
from netmind_rentgpu.rentals.guardian import link

LONGEST = 120
PROGRAM = (sys.executable, "-m", "netmind_rentgpu")
PROFILE = "list_lag = 0.2\ncreate_lag = 0.3\n"


@dataclass
class Done:
    """A run of the program that has ended."""

    code: int
    out: bytes
    errors: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def problem(self) -> dict[str, Any]:
        """The line of JSON on stderr."""
        found: dict[str, Any] = json.loads(self.errors.strip().splitlines()[-1])
        return found


@dataclass
class Site:
    """An emulated service, and a folder in which the program runs.

    Attributes:
        measured: False for programs that are killed, get signals, or cannot write files: coverage would be in their way, and
            would leave data that cannot be read.
    """

    emulator: Emulator
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    measured: bool = True

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in ("NO_COLOR", "FORCE_COLOR") and (self.measured or not name.startswith("COVERAGE_"))
            },
            "NETMIND_BASE_URL": self.emulator.url,
            "NETMIND_API_KEY": self.emulator.token,
            "NETMIND_RENTGPU_STATE": str(self.folder / "state.sqlite3"),
            "NETMIND_RENTGPU_PROFILE": str(self.folder / "profile.toml"),
            "XDG_STATE_HOME": str(self.folder),
            **self.variables,
        }

    def in_folder(self, folder: Path) -> Site:
        """Return the same service and state file, for programs that run in another folder."""
        (folder / "profile.toml").write_text((self.folder / "profile.toml").read_text())
        variables = {"NETMIND_RENTGPU_STATE": str(self.folder / "state.sqlite3"), "XDG_STATE_HOME": str(self.folder)}
        return Site(self.emulator, folder, variables)

    def start(self, *words: str, before: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[bytes]:
        """Start the program, in a session of its own.

        Args:
            before: the words of a program that starts it, such as `nohup`.
        """
        return subprocess.Popen(
            [*before, *PROGRAM, *words],
            cwd=self.folder,
            env={**self.environment, **options.pop("env", {})},
            start_new_session=True,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **options,
            },
        )

    def run(self, *words: str, given: bytes = b"", **options: Any) -> Done:
        """Run the program to its end.

        Args:
            given: its stdin.
        """
        return self.end(self.start(*words, stdin=subprocess.PIPE, **options), given)

    def end(self, process: subprocess.Popen[bytes], given: bytes | None = None) -> Done:
        """Wait for the end of a run."""
        with process:
            try:
                out, errors = process.communicate(given, timeout=LONGEST)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Done(process.returncode, out or b"", (errors or b"").decode())

    def shell(self, script: str, **options: Any) -> Done:
        """Run a script of bash, in which `rentgpu` is the program."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            ["/bin/bash", "-c", script],
            cwd=self.folder,
            env={**self.environment, "PATH": path},
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        return self.end(process)

    @property
    def rented(self) -> int:
        return len(self.emulator.running)

    def guardians(self) -> list[int]:
        return guardians(self.folder)

    def has_ended(self) -> bool:
        """Return True if nothing is rented."""
        return not self.rented


@dataclass
class Here:
    """The command line within this process, for runs that need no process of their own, because a start takes a second."""

    site: Site
    monkeypatch: Any
    capfdbinary: Any

    def run(self, *words: str, given: bytes = b"", **variables: str) -> Done:
        """Run the program's main function, and return what it wrote to stdout and stderr.

        Args:
            given: its stdin.
        """
        with self.monkeypatch.context() as patch, standard_streams(given):
            for name, value in {**self.site.environment, **variables}.items():
                patch.setenv(name, value)
            patch.chdir(self.site.folder)
            self.capfdbinary.readouterr()
            before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
            try:
                code = run(words)
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        out, errors = self.capfdbinary.readouterr()
        return Done(code, out, errors.decode())

    def close(self) -> None:
        """Forget the guardian of this process, because the service of the next test has another."""
        link._link.close_inherited()


@contextmanager
def standard_streams(given: bytes) -> Iterator[None]:
    """Replace stdin by a pipe with some bytes, and restore stdout and stderr, which the program may have replaced."""
    reading, writing = os.pipe()

    def write() -> None:
        # The program need not read all of it.
        with suppress(BrokenPipeError), os.fdopen(writing, "wb") as stream:
            stream.write(given)

    before = [os.dup(descriptor) for descriptor in range(3)]
    os.dup2(reading, 0)
    os.close(reading)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        for descriptor, copy in enumerate(before):
            os.dup2(copy, descriptor)
            os.close(copy)
        thread.join()


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Site]:
    """Serve machines that can be logged into, and assert in the end that nothing is rented."""
    (folder / "profile.toml").write_text(PROFILE)
    share_copies(folder)
    with Emulator(**{"seed": 7, "boot_seconds": 0.05, "ssh": True, "token": canaries.TOKEN, **options}) as emulator:
        yield Site(emulator, folder)
        emulator.assert_nothing_rented()
        # One that has nothing left to guard notices that minutes later, if another process has ended its rental.
        for process in guardians(folder):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

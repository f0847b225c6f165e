"""The software of a worker's machine: real Pythons and pip on the emulator's containers, without a network."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import wheels
from until import is_running, until

from netmind_rentgpu import AsyncShell, CommandResult, ConfigurationError, InvalidArgumentError, SSHTimeoutError
from netmind_rentgpu.dask import Software, software
from netmind_rentgpu.dask.software import Difference, Versions, differences, pip_arguments, prepare, versions_here

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# A made-up package stands for those of Dask, which take seconds to install.
TINY = Versions(python=PYTHON, packages={"tiny": "1.0"})


class Recorded:
    """A machine that records its commands."""

    def __init__(self, machine: AsyncShell) -> None:
        self._machine = machine
        self.commands: list[str] = []

    async def run(
        self, command: str, *, timeout: float | None = None, environment: Mapping[str, str] | None = None
    ) -> CommandResult:
        assert timeout is not None
        self.commands.append(command)
        return await self._machine.run(command, timeout=timeout, environment=environment)

    @property
    def installations(self) -> list[str]:
        return [command for command in self.commands if "-m pip install" in command]


class Answering:
    """A machine whose every command ends with the same result."""

    def __init__(self, stdout: str, status: int = 0, signal: str | None = None) -> None:
        self._result = {"exit_status": status if signal is None else None, "exit_signal": signal, "stdout": stdout}

    async def run(
        self, command: str, *, timeout: float | None = None, environment: Mapping[str, str] | None = None
    ) -> CommandResult:
        return CommandResult(command=command, stderr="", **self._result)  # type: ignore[arg-type]  # of several types


class Hanging(Answering):
    """A machine whose commands write something and end by a timeout."""

    async def run(
        self, command: str, *, timeout: float | None = None, environment: Mapping[str, str] | None = None
    ) -> CommandResult:
        raise SSHTimeoutError("a timeout", stage="command", result=await super().run(command))


@pytest.fixture
def machine(shell: AsyncShell) -> Recorded:
    return Recorded(shell)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder of wheels: pip's only index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        wheels.made_up(folder, "tiny", version)
    wheels.made_up(folder, "further", "3.1")
    return folder


@pytest.fixture
def environment(index: Path) -> dict[str, str]:
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_NO_COMPILE": "1"}


def script(path: Path, text: str) -> str:
    """Write a program for a POSIX shell, and return its path."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


async def version_of(shell: AsyncShell, python: str, package: str) -> str:
    code = f"from importlib import metadata; print(metadata.version({package!r}))"
    return (await shell.run(shlex.join([python, "-c", code]), check=True)).stdout.strip()


# Values.


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"python": ""}, "python: must be a name or path"),
        ({"python": 3}, "python: must be a text"),
        ({"python": "a\0b"}, "python: must be a name or path"),
        ({"install": "always"}, "install: must be one of 'missing', 'venv', 'never', not 'always'"),
        ({"install": []}, "install: must be one of"),
        (
            {"packages": ["--proxy=http://user:secret@host"]},
            "packages: must be requirements for pip, and no options",
        ),
        ({"packages": [""]}, "packages: must be requirements"),
        ({"packages": ["a\n-e b"]}, "packages: must be requirements"),
        ({"packages": [7]}, "packages: must be a text"),
        ({"packages": 7}, "packages: must be texts"),
        ({"packages": "pandas", "install": "never"}, "packages: cannot be installed with install='never'"),
        ({"setup": ["true", " "]}, "setup: must be commands"),
        ({"setup": ["a\0b"]}, "setup: must be commands"),
        ({"setup": None}, "setup: must be texts"),
    ],
)
def test_argument_that_cannot_be_used_is_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{problem}"):
        Software(**arguments)


def test_single_text_is_one_item_and_lists_are_copied() -> None:
    packages = ["pandas>=2", "pyarrow"]
    wanted = Software(packages=packages, setup="apt-get update")
    packages.clear()
    assert (wanted.packages, wanted.setup) == (("pandas>=2", "pyarrow"), ("apt-get update",))
    assert Software() == Software(python="python3", install="missing", packages=(), setup=())


def test_versions_here_are_of_this_python_and_of_dask() -> None:
    here = versions_here()
    assert here.python == PYTHON
    assert list(here.packages) == ["dask", "distributed", "cloudpickle", "msgpack"]
    assert None not in here.packages.values()


def test_difference_of_python_is_the_only_one() -> None:
    here = Versions(python="3.11", packages={"a": "1", "b": "2", "c": "3"})
    there = Versions(python="3.11", packages={"a": "1", "b": None, "c": "3.1"})
    assert differences(here, here) == ()
    assert differences(here, there) == (
        Difference(name="b", here="2", there=None),
        Difference(name="c", here="3", there="3.1"),
    )
    [only] = differences(here, Versions(python="3.12", packages={}))
    assert str(only) == "Python is 3.12 on the machine and 3.11 here"


def test_pip_is_given_all_versions_and_the_further_packages() -> None:
    here = Versions(python="3.11", packages={"dask": "2026.8.0", "msgpack": "1.2.4"})
    assert pip_arguments("python3", here, ["pandas>=2"]) == [
        *("python3", "-m", "pip", "install"),
        *("dask==2026.8.0", "msgpack==1.2.4", "pandas>=2"),
    ]


@pytest.mark.parametrize(
    "output",
    [
        "",
        "[]",
        "7",
        "{",
        "[" * 100_000,
        '{"python": "3.11"}',
        '{"python": "3.11", "executable": "", "packages": []}',
        "\udcff",
    ],
)
async def test_output_without_versions_is_no_python(output: str) -> None:
    answering = Answering(f"Welcome!\nnetmind-rentgpu-versions {output}\n")
    with pytest.raises(
        ConfigurationError, match=r"^python3 cannot be run on the machine: status 0; choose an image with"
    ):
        await prepare(answering, Software(), None, TINY)


async def test_python_that_a_signal_ends_is_named_with_the_signal() -> None:
    with pytest.raises(ConfigurationError, match=r"python3 cannot be run on the machine: signal SEGV; .*\n  Oh$"):
        await prepare(Answering("Oh\n", signal="SEGV"), Software(), {}, TINY)


# Machines with the right Python, or another one.


@pytest.mark.parametrize("install", ["missing", "never"])
async def test_machine_with_the_same_versions_gets_nothing_installed(machine: Recorded, install: Any) -> None:
    wanted = Software(python=sys.executable, install=install)
    assert await prepare(machine, wanted, None, versions_here()) == sys.executable
    assert len(machine.commands) == 1


async def test_noise_around_the_answer_is_passed_over(machine: Recorded, tmp_path: Path) -> None:
    noisy = f"echo Welcome; printf 'and more'; {sys.executable} \"$@\"; printf 'end of noise'"
    python = script(tmp_path / "python", noisy)
    assert await prepare(machine, Software(python=python, install="never"), None, versions_here()) == python


@pytest.mark.parametrize("install", ["missing", "venv", "never"])
async def test_another_python_is_refused_before_anything_is_installed(
    machine: Recorded, tmp_path: Path, install: Any
) -> None:
    code = "import sys; sys.version_info = (3, 7, 9); question = sys.argv.pop(1); exec(question)"
    python = script(tmp_path / "python", f'shift; exec {sys.executable} -c {shlex.quote(code)} "$@"')
    with pytest.raises(ConfigurationError) as caught:
        await prepare(machine, Software(python=python, install=install), None, TINY)
    assert str(caught.value) == (
        f"{python} cannot run workers: it is Python 3.7 on the machine, and this program runs on {PYTHON}; choose an image "
        f"with Python {PYTHON}, or name one by Software(python='python{PYTHON}')"
    )
    assert len(machine.commands) == 1


async def test_missing_python_is_named_with_the_shells_words(machine: Recorded) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^python9 cannot be run on the machine: status 127; .*\n  .*not found$"
    ):
        await prepare(machine, Software(python="python9"), None, TINY)


async def test_names_with_spaces_and_quotes_are_quoted(machine: Recorded, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "folder" $(exit 1)'
    folder.mkdir()
    python = script(folder / "python", f'exec {sys.executable} "$@"')
    assert await prepare(machine, Software(python=python), None, versions_here()) == python


# Commands of setup.


async def test_setup_runs_first_and_in_order(machine: Recorded) -> None:
    setup = [
        "mkdir -p bin",
        f"printf '#!/bin/sh\\nexec {sys.executable} \"$@\"\\n' > bin/python",
        "chmod +x bin/python",
    ]
    wanted = Software(python="bin/python", setup=setup)
    assert await prepare(machine, wanted, None, versions_here()) == "bin/python"
    assert machine.commands[:3] == setup


async def test_failed_setup_ends_the_preparation(machine: Recorded) -> None:
    setup = ["true", "echo one; echo two >&2; exit 3", "touch third"]
    with pytest.raises(ConfigurationError) as caught:
        await prepare(machine, Software(setup=setup), None, TINY)
    assert str(caught.value) == (
        "command 2 of setup, 'echo one; echo two >&2; exit 3', failed on the machine: status 3; correct it in "
        "Software(setup=...). Its output ends with:\n  one\n  two"
    )
    assert len(machine.commands) == 2


async def test_setup_that_hangs_is_ended(machine: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_LONGEST_INSTALLATION", 0.5)
    with pytest.raises(
        SSHTimeoutError, match=r"setup, 'sleep 1000', did not end within 0.5 s on the machine$"
    ) as caught:
        await prepare(machine, Software(setup="sleep 1000"), None, TINY)
    assert caught.value.stage == "command"


# Installations by pip. Those of made-up packages stand for Dask's.


async def test_missing_package_is_installed_once(
    machine: Recorded, shell: AsyncShell, python: Path, environment: dict[str, str]
) -> None:
    wanted = Software(python=str(python))
    with pytest.raises(ConfigurationError) as caught:
        await prepare(machine, Software(python=str(python), install="never"), environment, TINY)
    assert str(caught.value) == (
        f"{python} cannot run workers: tiny is missing on the machine and 1.0 here; choose an image with these versions, "
        "or use install='missing' or 'venv'"
    )
    assert machine.installations == []
    assert await prepare(machine, wanted, environment, TINY) == str(python)
    assert await version_of(shell, str(python), "tiny") == "1.0"
    assert machine.installations == [f"{python} -m pip install tiny==1.0"]
    assert await prepare(machine, wanted, environment, TINY) == str(python)
    assert len(machine.installations) == 1


@pytest.mark.parametrize("there", ["0.9", "2.0"])
async def test_older_or_newer_version_is_replaced(
    machine: Recorded, shell: AsyncShell, python: Path, environment: dict[str, str], index: Path, there: str
) -> None:
    wheels.install(wheels.made_up(index, "tiny", there), python)
    with pytest.raises(ConfigurationError, match=rf": tiny is {there} on the machine and 1.0 here; "):
        await prepare(machine, Software(python=str(python), install="never"), environment, TINY)
    await prepare(machine, Software(python=str(python)), environment, TINY)
    assert await version_of(shell, str(python), "tiny") == "1.0"


async def test_further_packages_are_installed_and_replace_no_version(
    machine: Recorded, shell: AsyncShell, python: Path, environment: dict[str, str]
) -> None:
    await prepare(machine, Software(python=str(python), packages=["further>=3"]), environment, TINY)
    assert await version_of(shell, str(python), "further") == "3.1"
    for packages, problem in (
        ("tiny>=2", r"pip failed on the machine: status 1; change Software\(packages=...\), which (?s:.*)tiny>=2"),
        (
            ["no-such-package"],
            r"pip failed on the machine: status 1; check Software\(packages=...\), and the index (?s:.*)\n  ERROR",
        ),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            await prepare(machine, Software(python=str(python), packages=packages), environment, TINY)
    assert await version_of(shell, str(python), "tiny") == "1.0"


async def test_version_that_no_index_has_is_named(machine: Recorded, python: Path, environment: dict[str, str]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^pip \(tiny is missing on the machine and 7.0 here\) failed .* index"
    ):
        await prepare(
            machine, Software(python=str(python)), environment, Versions(python=PYTHON, packages={"tiny": "7.0"})
        )


async def test_files_that_hide_what_pip_installs_are_an_error(
    machine: Recorded, python: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    hiding = tmp_path / "hiding" / "tiny-0.1.dist-info"
    hiding.mkdir(parents=True)
    (hiding / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 0.1\n")
    hidden = {**environment, "PYTHONPATH": str(hiding.parent), "PIP_IGNORE_INSTALLED": "1"}
    with pytest.raises(ConfigurationError, match=r"tiny is 0.1 on the machine and 1.0 here; pip succeeded, but other"):
        await prepare(machine, Software(python=str(python)), hidden, TINY)


@pytest.mark.slow
async def test_virtual_environment_is_made_once_and_shows_the_images_packages(
    machine: Recorded, shell: AsyncShell, python: Path, environment: dict[str, str], index: Path
) -> None:
    wheels.install(wheels.made_up(index, "tiny", "1.0"), python)
    wheels.install(wheels.made_up(index, "further", "3.1"), python)
    wanted, newer = Software(python=str(python), install="venv"), Versions(python=PYTHON, packages={"tiny": "2.0"})
    home = (await shell.run("pwd")).stdout.strip()
    inner = await prepare(machine, wanted, environment, newer)
    assert inner == f"{home}/.netmind_rentgpu/dask-venv/bin/python"
    assert [await version_of(shell, inner, name) for name in ("tiny", "further")] == ["2.0", "3.1"]
    # The image's own Python is as it was.
    assert await version_of(shell, str(python), "tiny") == "1.0"
    await shell.run("touch .netmind_rentgpu/dask-venv/kept", check=True)
    assert await prepare(machine, wanted, environment, newer) == inner
    assert len(machine.installations) == 1
    assert (await shell.run("test -e .netmind_rentgpu/dask-venv/kept")).ok
    # An interrupted one is made anew.
    await shell.run("cd .netmind_rentgpu/dask-venv && rm made", check=True)
    assert await prepare(machine, wanted, environment, newer) == inner
    assert not (await shell.run("test -e .netmind_rentgpu/dask-venv/kept")).ok


async def test_externally_managed_python_asks_for_a_virtual_environment_which_works(
    machine: Recorded, shell: AsyncShell, python: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    managed = tmp_path / "managed"
    managed.mkdir()
    (managed / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=Use apt-get.\n")
    # pip refuses only outside of a virtual environment, where the standard library has that file.
    (wheels.libraries_of(python) / "sitecustomize.py").write_text(
        "import sys, sysconfig\n"
        "sys.base_prefix = sys.prefix\n"
        "get_path = sysconfig.get_path\n"
        f"sysconfig.get_path = lambda name, *a, **k: {str(managed)!r} if name == 'stdlib' else get_path(name, *a, **k)\n"
    )
    with pytest.raises(ConfigurationError, match=r"status 1; use Software\(install='venv'\)\. (?s:.*)Use apt-get"):
        await prepare(machine, Software(python=str(python)), environment, TINY)
    inner = await prepare(machine, Software(python=str(python), install="venv"), environment, TINY)
    assert await version_of(shell, inner, "tiny") == "1.0"


async def test_python_without_pip_or_venv_is_named(machine: Recorded, shell: AsyncShell, tmp_path: Path) -> None:
    await shell.run(f"{sys.executable} -m venv --without-pip bare", check=True)
    with pytest.raises(ConfigurationError, match=r"status 1; choose an image whose Python has pip, or install it by"):
        await prepare(machine, Software(python="bare/bin/python"), None, TINY)
    libraries = await shell.run("echo bare/lib/python*/site-packages", check=True)
    hide = f"printf 'import sys; sys.modules.update(venv=None)' > {libraries.stdout.strip()}/sitecustomize.py"
    await shell.run(hide, check=True)
    with pytest.raises(ConfigurationError, match=r"^venv failed on the machine: status 1; .*"):
        await prepare(machine, Software(python="bare/bin/python", install="venv"), None, TINY)


async def test_pip_that_hangs_is_ended(machine: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_LONGEST_INSTALLATION", 0.5)
    pid = tmp_path / "pid"
    hang = f'if [ "$2" = pip ]; then echo $$ > {pid}; exec sleep 1000; fi'
    python = script(tmp_path / "python", f'{hang}\nexec {sys.executable} "$@"')
    with pytest.raises(SSHTimeoutError, match=r"^pip \(tiny is missing .*\) did not end within 0.5 s on the machine$"):
        await prepare(machine, Software(python=python), None, TINY)
    # On a busy machine it may have been ended before it wrote its id.
    await until(lambda: not pid.exists() or not is_running(int(pid.read_text() or 0)))


async def test_output_before_a_timeout_is_shown_without_secrets() -> None:
    with pytest.raises(SSHTimeoutError) as caught:
        await prepare(Hanging("Looking in very-secret\n"), Software(setup="x"), {"SECRET": "very-secret"}, TINY)
    assert str(caught.value) == (
        "command 1 of setup, 'x', did not end within 600 s on the machine. Its output ends with:\n  Looking in ***"
    )
    assert (caught.value.stage, caught.value.result) == ("command", None)
    assert caught.value.__context__ is None


# Secrets.


async def test_environment_is_on_no_command_line_and_in_no_error(
    machine: Recorded, python: Path, environment: dict[str, str]
) -> None:
    secrets = {
        "PIP_EXTRA_INDEX_URL": "https://someone:pass%20word@one.invalid/simple https://a-token@two.invalid",
        "KEY": "first line\nsecond line",
        "SHORT": "1",
        "LONG": "x" * 500,
    }
    shown = (
        *secrets.values(),
        "someone",
        "pass%20word",
        "pass word",
        "a-token",
        "second",
        "xxxx",
        environment["PIP_FIND_LINKS"],
    )
    for wanted in (
        Software(python=str(python), setup="echo $LONG; env | grep KEY -A1; exit 3"),
        Software(
            python=str(python),
            setup="echo $PIP_EXTRA_INDEX_URL | tr @:/ '   '; echo ${PIP_EXTRA_INDEX_URL%@one*}; exit 3",
        ),
        Software(python=str(python), packages="no-such-package"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            await prepare(machine, wanted, {**environment, **secrets}, TINY)
        text = f"{caught.value} {caught.value!r} {vars(caught.value)} {caught.value.__context__!r}"
        assert "***" in text
        assert [secret for secret in shown if len(secret) > 1 and secret in text] == []
    assert [
        secret for secret in shown if any(len(secret) > 1 and secret in command for command in machine.commands)
    ] == []


# Dask itself.


@pytest.mark.slow
async def test_dask_of_the_same_versions_is_installed_and_works(
    machine: Recorded, shell: AsyncShell, python: Path, environment: dict[str, str], index: Path
) -> None:
    here, never = versions_here(), Software(python=str(python), install="never")
    wheels.repacked(index, *here.packages)
    with pytest.raises(ConfigurationError, match=r"dask is missing on the machine and .* msgpack is missing"):
        await prepare(machine, never, environment, here)
    await prepare(machine, Software(python=str(python)), environment, here)
    assert await prepare(machine, never, environment, here) == str(python)
    # The image's Dask then also serves a virtual environment.
    inner = await prepare(machine, Software(python=str(python), install="venv"), environment, here)
    code = "import distributed; print(distributed.LocalCluster.__name__, distributed.__version__)"
    for found in (str(python), inner):
        done = await shell.run(shlex.join([found, "-c", code]), check=True)
        assert done.stdout.split() == ["LocalCluster", here.packages["distributed"]]
    assert len(machine.installations) == 1

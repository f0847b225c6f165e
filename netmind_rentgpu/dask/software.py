"""The software of a worker's machine: the versions that must be those of this machine, and their installation by pip."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Final, Literal, Protocol, TypeAlias, get_args
from urllib.parse import unquote

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import ConfigurationError, InvalidArgumentError, SSHTimeoutError
from netmind_rentgpu.results import CommandResult

__all__ = [
    "Difference",
    "Machine",
    "Software",
    "Versions",
    "differences",
    "pip_arguments",
    "prepare",
    "versions_here",
]

_Install: TypeAlias = Literal["missing", "venv", "never"]
# Dask only warns if these differ, and then tasks or messages cannot be read.
_PACKAGES: Final = ("dask", "distributed", "cloudpickle", "msgpack")
# Seconds for each command of `setup`, for a new virtual environment, and for pip; and for a question.
_LONGEST_INSTALLATION = 600.0
_LONGEST_QUESTION = 60.0
# The folder of the virtual environment, from the login's home folder.
_VENV: Final = ".netmind_rentgpu/dask-venv"
_MARK: Final = "netmind-rentgpu-versions "
# This runs on any Python, the second one included, because its version is what the error then shows.
_QUESTION: Final = """
import json, sys
found = {}
for name in sys.argv[1:]:
    try:
        from importlib import metadata
        found[name] = metadata.version(name)
    except Exception:
        found[name] = None
answer = {"python": "%d.%d" % sys.version_info[:2], "executable": sys.executable, "packages": found}
print("\\n" + MARK + json.dumps(answer))
""".strip().replace("MARK", repr(_MARK))
# If Python itself runs in a virtual environment, a new one shows the packages of the Python beneath both.
_SHOW_OUTER_VENV: Final = """
import os, sys, sysconfig
if sys.prefix != sys.base_prefix:
    libraries = os.path.join(sys.argv[1], "lib", "python%d.%d" % sys.version_info[:2], "site-packages")
    with open(os.path.join(libraries, "image.pth"), "w") as file:
        file.write("import site; site.addsitedir(%r)\\n" % sysconfig.get_path("purelib"))
""".strip()
# Variables beside the caller's, for pip and venv. The width keeps pip from breaking a line within a secret.
_VARIABLES: Final = {
    "COLUMNS": "10000",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_PROGRESS_BAR": "off",
    "PIP_ROOT_USER_ACTION": "ignore",
}
# Words in the output of a pip or venv that failed, and the advice for each.
_ADVICE: Final = {
    "externally-managed-environment": "use Software(install='venv')",
    "No module named pip": "choose an image whose Python has pip, or install it by Software(setup=...)",
    "No module named venv": "choose an image whose Python has venv, or install it by Software(setup=...)",
    "ensurepip": "choose an image whose Python has pip, or install it by Software(setup=...)",
    "conflicting dependencies": "change Software(packages=...), which exclude the versions of this machine",
    "No matching distribution found": "check Software(packages=...), and the index that the machine uses (PIP_INDEX_URL)",
}
_LINES, _LINE_LENGTH = 8, 300
# Shorter values, such as `1`, are no secrets, and would make holes in every text.
_SHORTEST_SECRET = 4


def _install(_: object, field: attrs.Attribute[_Install], value: str) -> None:
    if value not in get_args(_Install):
        known = ", ".join(map(repr, get_args(_Install)))
        raise InvalidArgumentError(field.name, f"must be one of {known}, not {arguments.shown_value(value)}")


def _word(_: object, field: attrs.Attribute[str], value: str) -> None:
    if not arguments.text(field.name, value).strip() or "\0" in value:
        raise InvalidArgumentError(field.name, f"must be a name or path, not {arguments.shown_value(value)}")


def _packages(value: Iterable[str] | str) -> tuple[str, ...]:
    found = tuple(arguments.texts("packages", value))
    for item in found:
        # An option would apply to all packages, and may hold a password, which the command line would show.
        if not item.strip() or item.lstrip().startswith("-") or not item.isprintable():
            problem = f"must be requirements for pip, and no options, not {arguments.shown_value(item)}"
            raise InvalidArgumentError("packages", problem)
    return found


def _setup(value: Iterable[str] | str) -> tuple[str, ...]:
    found = tuple(arguments.texts("setup", value))
    for item in found:
        if not item.strip() or "\0" in item:
            raise InvalidArgumentError("setup", f"must be commands for a shell, not {arguments.shown_value(item)}")
    return found


@attrs.frozen(kw_only=True)
class Software:
    """The Python of a cluster's workers, and what is installed there before a worker starts.

    Python's major and minor version, and the versions of dask, distributed, cloudpickle and msgpack, must be those of this
    machine. A machine with another Python is always refused.

    Attributes:
        python: the Python on the machine: a name on the login's PATH, or a path from the login's home folder.
        install: `missing` to install by pip, into that Python, what is missing or has another version; `venv` to do so in a
            virtual environment, which also shows the packages of that Python; `never` to accept only what is there.
        packages: further requirements for pip, such as `"pandas>=2"`. A single text is one requirement.
        setup: commands for the login's shell, which run first, one after the other; each must end with status 0. They run
            each time that a machine is prepared. A single text is one command.

    Raises:
        InvalidArgumentError: an attribute cannot be used.
    """

    python: str = attrs.field(default="python3", validator=_word)
    install: Literal["missing", "venv", "never"] = attrs.field(default="missing", validator=_install)
    packages: Sequence[str] = attrs.field(default=(), converter=_packages)
    setup: Sequence[str] = attrs.field(default=(), converter=_setup)

    def __attrs_post_init__(self) -> None:
        if self.packages and self.install == "never":
            raise InvalidArgumentError("packages", "cannot be installed with install='never'")


@attrs.frozen(kw_only=True)
class Versions:
    """The versions that must agree, on one machine.

    Attributes:
        python: Python's major and minor version, such as `3.11`.
        packages: the version of each package by its name; None for a package that is missing.
    """

    python: str
    packages: Mapping[str, str | None]


@attrs.frozen(kw_only=True)
class Difference:
    """A version that is not that of this machine.

    Attributes:
        name: `Python`, or a package's name.
        here: the version on this machine.
        there: the version on the other machine; None if it is missing.
    """

    name: str
    here: str | None
    there: str | None

    def __str__(self) -> str:
        there = "missing" if self.there is None else self.there[:_LINE_LENGTH]
        return f"{self.name} is {there} on the machine and {self.here} here"


class Machine(Protocol):
    """A machine that runs commands, such as `AsyncRental` and `AsyncShell`."""

    async def run(
        self, command: str, *, timeout: float | None = None, environment: Mapping[str, str] | None = None
    ) -> CommandResult:
        """Run a command in the login's shell, and wait for it."""
        ...


def versions_here() -> Versions:
    """Return the versions on this machine.

    Raises:
        PackageNotFoundError: a package is missing here (also an ImportError).
    """
    return Versions(
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        packages={name: metadata.version(name) for name in _PACKAGES},
    )


def differences(here: Versions, there: Versions) -> tuple[Difference, ...]:
    """Compare the versions on two machines. If Python differs, this is the only difference."""
    if here.python != there.python:
        return (Difference(name="Python", here=here.python, there=there.python),)
    return tuple(
        Difference(name=name, here=version, there=there.packages.get(name))
        for name, version in here.packages.items()
        if there.packages.get(name) != version
    )


def pip_arguments(python: str, here: Versions, packages: Sequence[str]) -> list[str]:
    """Return the command that installs the packages of this machine's versions, and further ones.

    It names each version, also of what is there already, so that no further package replaces it by another version.
    """
    pinned = [f"{name}=={version}" for name, version in here.packages.items()]
    return [python, "-m", "pip", "install", *pinned, *packages]


async def prepare(machine: Machine, software: Software, environment: Mapping[str, str] | None, here: Versions) -> str:
    """Prepare a machine for workers, once at a time, and return the path or name of the Python to start them with.

    If the machine is prepared already, nothing is installed.

    Args:
        environment: variables for each command, such as `PIP_INDEX_URL`. They appear on no command line and in no error.
        here: the versions that the machine must have.

    Raises:
        ConfigurationError: a command of `setup` failed, the versions differ, or what is missing cannot be installed.
        SSHTimeoutError: a step took too long.
        RentGPUError: as for the machine's `run`.
    """
    return await _Preparation(machine, software, environment or {}, here).run()


class _Preparation:
    """The steps that prepare one machine."""

    def __init__(self, machine: Machine, software: Software, environment: Mapping[str, str], here: Versions) -> None:
        self._machine = machine
        self._software = software
        self._environment = {**_VARIABLES, **environment}
        self._secrets = _secrets(environment)
        self._here = here

    async def run(self) -> str:
        """Run the steps, and return the path or name of the Python for workers."""
        software, python = self._software, self._software.python
        for number, command in enumerate(software.setup, 1):
            step = f"command {number} of setup, {arguments.shown_value(self._masked(command))},"
            await self._do(step, command, lambda _: "correct it in Software(setup=...)")
        there, _ = await self._ask(python)
        if there.python != self._here.python:
            raise ConfigurationError(_of_another_python(python, self._here, there))
        if software.install == "venv":
            python = await self._make_venv()
            there, path = await self._ask(python)
            # The path that this Python has of itself is also valid in other folders.
            python = path or python
        found = differences(self._here, there)
        if found and software.install == "never":
            advice = "choose an image with these versions, or use install='missing' or 'venv'"
            raise ConfigurationError(_of_differences(python, found, advice))
        if found or software.packages:
            await self._install(python, found)
        return python

    async def _make_venv(self) -> str:
        """Make the virtual environment if it is not there, and return the path of its Python.

        The packages of the image's Python stay visible, because PyTorch and the like are large and fit the image's driver.
        """
        inner, outer = f"{_VENV}/bin/python", self._software.python
        new = shlex.join([outer, "-m", "venv", "--clear", "--system-site-packages", "--without-pip", _VENV])
        shown = shlex.join([outer, "-c", _SHOW_OUTER_VENV, _VENV])
        # The image's own pip also works in there, and takes no seconds to install.
        pip = f"{{ {inner} -m pip --version >/dev/null 2>&1 || {inner} -m ensurepip; }}"
        # A file says that it is complete, because an interruption leaves a part of it.
        script = f"test -e {_VENV}/made || {{ {new} && {shown} && {pip} && : > {_VENV}/made; }}"
        await self._do("venv", shlex.join(["/bin/sh", "-c", script]), _advice)
        return inner

    async def _install(self, python: str, found: Sequence[Difference]) -> None:
        step = f"pip ({_listed(found)})" if found else "pip"
        await self._do(step, shlex.join(pip_arguments(python, self._here, self._software.packages)), _advice)
        there, _ = await self._ask(python)
        if found := differences(self._here, there):
            advice = "pip succeeded, but other files come first; remove them, for example from PYTHONPATH"
            raise ConfigurationError(_of_differences(python, found, advice))

    async def _ask(self, python: str) -> tuple[Versions, str]:
        """Return the versions of a Python of the machine, and the path that it has of itself."""
        command = shlex.join([python, "-c", _QUESTION, *self._here.packages])
        done = await self._run(f"asking {python} for its versions", command, _LONGEST_QUESTION)
        if (found := _answer_in(done.stdout)) is None:
            raise ConfigurationError(
                f"{python} cannot be run on the machine: {_end_of(done)}; choose an image with Python {self._here.python}, "
                f"or name its Python by Software(python=...){self._output_of(done)}"
            )
        return found

    async def _do(self, step: str, command: str, advise: Callable[[str], str]) -> None:
        """Run a command that installs something."""
        done = await self._run(step, command, _LONGEST_INSTALLATION)
        if not done.ok:
            advice = advise(done.stdout + done.stderr)
            raise ConfigurationError(f"{step} failed on the machine: {_end_of(done)}; {advice}{self._output_of(done)}")

    async def _run(self, step: str, command: str, limit: float) -> CommandResult:
        try:
            return await self._machine.run(command, timeout=limit, environment=self._environment)
        except SSHTimeoutError as error:
            so_far = error.result
        # Not in the except block, because the other error would then be this error's context, with the output as it is.
        text = f"{step} did not end within {limit:g} s on the machine"
        raise SSHTimeoutError(text + ("" if so_far is None else self._output_of(so_far)), stage="command")

    def _output_of(self, done: CommandResult) -> str:
        """Return the end of a command's output for an error, without the values of the environment."""
        text = self._masked(f"{done.stdout}\n{done.stderr}")
        lines = [f"\n  {line[:_LINE_LENGTH]}" for line in text.splitlines() if line.strip()][-_LINES:]
        return f". Its output ends with:{''.join(lines)}" if lines else ""

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the secrets that some variables may hold: their values, and the words, users and passwords in them."""
    found: set[str] = set()
    for value in environment.values():
        for word in value.split():
            user, _, password = re.sub(r".*://", "", word).rpartition("@")[0].partition(":")
            found |= {word, user, password, unquote(user), unquote(password)}
        found.add(value)
    # The longest first, because a shorter one may be a part of it.
    return sorted((text for text in found if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)


def _answer_in(output: str) -> tuple[Versions, str] | None:
    """Return the versions, and the path of Python, in the output of the question; None if there are none."""
    lines = [line.removeprefix(_MARK) for line in output.splitlines() if line.startswith(_MARK)]
    try:
        answer = json.loads(lines[-1])
        packages = {str(name): None if found is None else str(found) for name, found in answer["packages"].items()}
        return Versions(python=str(answer["python"]), packages=packages), str(answer["executable"])
    except (IndexError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _end_of(done: CommandResult) -> str:
    return f"status {done.exit_status}" if done.exit_signal is None else f"signal {done.exit_signal}"


def _advice(output: str) -> str:
    """Return the advice for an output of venv or pip, which has failed."""
    for sign, advice in _ADVICE.items():
        if sign in output:
            return advice
    return "choose another image, or install what is missing by Software(setup=...)"


def _listed(found: Iterable[Difference]) -> str:
    return ", ".join(map(str, found))


def _of_another_python(python: str, here: Versions, there: Versions) -> str:
    return (
        f"{python} cannot run workers: it is Python {there.python[:_LINE_LENGTH]} on the machine, and this program runs on "
        f"{here.python}; choose an image with Python {here.python}, or name one by Software(python='python{here.python}')"
    )


def _of_differences(python: str, found: Sequence[Difference], advice: str) -> str:
    return f"{python} cannot run workers: {_listed(found)}; {advice}"

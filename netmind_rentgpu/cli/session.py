"""One run of the command line: its global options, its client, its output, and its questions."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from netmind_rentgpu.cli.defaults import Defaults, read_defaults
from netmind_rentgpu.cli.exit_codes import ExitCode, code_of_signal
from netmind_rentgpu.cli.notes import Notes
from netmind_rentgpu.cli.output import Format, Results
from netmind_rentgpu.cli.problems import CommandError, Problem, in_own_words
from netmind_rentgpu.cli.stopping import Stopping
from netmind_rentgpu.config_file import ConfigFile, read_config
from netmind_rentgpu.wire.payload import dump_exactly

if TYPE_CHECKING:
    from netmind_rentgpu.client import AsyncRentGPU

__all__ = ["GlobalOptions", "Session", "is_terminal", "show"]

Returned = TypeVar("Returned")

_logger: logging.Logger = logging.getLogger("netmind_rentgpu")
_silent: logging.Handler = logging.NullHandler()
# Seconds.
_STEP = 0.5


@attrs.frozen(kw_only=True)
class GlobalOptions:
    """The options that every command has.

    Attributes:
        timeout: the longest time of a call, a start, a copy, a remote command or a wait; None for the usual ones.
    """

    output: Format | None = None
    account: str | None = None
    profile: str | None = None
    base_url: str | None = None
    state: str | None = None
    timeout: timedelta | None = None
    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    color: Literal["auto", "always", "never"] = "auto"
    no_input: bool = False
    yes: bool = False

    @property
    def seconds(self) -> float | None:
        """The timeout in seconds; None for the usual ones."""
        return None if self.timeout is None else self.timeout.total_seconds()


class Session:
    """The surroundings of a command.

    Attributes:
        options: the global options.
        command: the words behind `--`; None without any.
        notes: the writer to stderr.
        has_colour: True if stdout is coloured.
        results: the writer to stdout.
        stopping: the handling of signals.
        reads_only: True as long as the command changes nothing at the service.
    """

    def __init__(self, options: GlobalOptions, command: list[str] | None) -> None:
        self.options: GlobalOptions = options
        self.command: list[str] | None = command
        self.notes: Notes = Notes(is_quiet=options.quiet)
        self.has_colour: bool = has_colour(options.color, 1, os.environ)
        self.results: Results = Results(
            options.output or "table", now=self.now, note=self.notes.say, has_colour=self.has_colour
        )
        self.stopping: Stopping = Stopping()
        self.stopping.on_second = self.end_at_once
        self.reads_only: bool = True
        self._handler = _NotesHandler(self.notes, has_times=options.debug)
        self._handler.setLevel(logging.WARNING)
        self._begin_logging()

    def _begin_logging(self) -> None:
        if self.options.debug or self.options.verbose:
            level = logging.DEBUG if self.options.debug else logging.INFO
            self._handler.setLevel(level)
            _logger.setLevel(level)
        _logger.addHandler(self._handler)
        # Otherwise Python writes the warnings of libraries to stderr.
        logging.getLogger().addHandler(_silent)

    def close(self) -> None:
        """Remove the line of progress, and end the logging to stderr."""
        self.notes.clear()
        _logger.removeHandler(self._handler)
        logging.getLogger().removeHandler(_silent)

    def now(self) -> datetime:
        """Return the present time in the local time zone."""
        return datetime.now().astimezone()

    def use_default_output(self) -> None:
        """Choose the form of results that the configuration file names, unless an option says another.

        Raises:
            ConfigurationError: the configuration file cannot be used.
        """
        if self.options.output is None and self.defaults.output is not None:
            self.results.format = self.defaults.output

    @cached_property
    def config(self) -> ConfigFile:
        """The configuration file.

        Raises:
            ConfigurationError: it cannot be used.
        """
        return read_config(os.environ)

    @cached_property
    def defaults(self) -> Defaults:
        """The defaults of the configuration file.

        Raises:
            ConfigurationError: it cannot be used.
        """
        return read_defaults(self.config)

    def client(self, *, guardian: bool = False, **arguments: Any) -> AsyncRentGPU:
        """Return a client with the options and the environment.

        Args:
            arguments: further arguments of the client, or others in place of those of the options.

        Raises:
            ConfigurationError: a setting is missing or cannot be used.
        """
        from netmind_rentgpu.client import AsyncRentGPU

        class CommandClient(AsyncRentGPU):
            _imports_late = True

        # An account's token_command may take long.
        with self.stopping.asking():
            return CommandClient(**{**self.client_options(), **arguments}, guardian=guardian)

    def client_options(self) -> dict[str, Any]:
        """Return the arguments of a client."""
        from netmind_rentgpu.settings import DEFAULT

        options = self.options
        return {
            "account": options.account,
            "base_url": options.base_url,
            "profile": options.profile,
            "state": options.state,
            "timeout": DEFAULT if options.seconds is None else options.seconds,
        }

    def run(self, work: Callable[[AsyncRentGPU], Awaitable[Returned]]) -> Returned:
        """Run work with a client in an event loop.

        Raises:
            StoppedError: a signal has ended the work.
        """

        async def with_client() -> Returned:
            async with self.client() as gpu:
                return await work(gpu)

        return self.stopping.run(with_client)

    def end_at_once(self, number: int) -> int:
        """Restore the terminal, and return the exit code, because a second signal ends this program at once."""
        self.notes.leave_raw()
        return code_of_signal(number)

    def show(self, problem: Problem, error: BaseException | None = None) -> None:
        """Write an error: a line of JSON if the results are JSON, and else a text; nothing if the output was closed."""
        if error is not None and self.options.debug:
            self.notes.insist("".join(traceback.format_exception(error)).rstrip())
        if problem.exit_code != ExitCode.OUTPUT_CLOSED:
            show(problem, self.notes, self.results.format)

    def command_line(self) -> str | None:
        """Return the remote command: several words are quoted and joined, a single one is a line for the shell.

        Raises:
            CommandError: there is nothing behind `--`, or an empty line.
        """
        import shlex

        if self.command is None:
            return None
        line = self.command[0] if len(self.command) == 1 else shlex.join(self.command)
        if not line.strip():
            raise CommandError(ExitCode.USAGE, "the command behind -- is empty")
        return line

    def has_terminal(self) -> bool:
        """Return True if a user can type and see: stdin and stdout are terminals."""
        return is_terminal(0) and is_terminal(1)

    def confirm(self, question: str) -> None:
        """Ask before something is destroyed; `--yes` answers.

        Raises:
            CommandError: the answer is no, or there is no terminal to ask on.
        """
        if self.options.yes:
            return
        if self.options.no_input or not (is_terminal(0) and self.notes.is_terminal):
            raise CommandError(
                ExitCode.USAGE, f"{question}\nNothing was done, because no terminal is here to ask on.", "Add --yes."
            )
        with self.stopping.asking():
            self.notes.ask(f"{question} [y/N] ")
            _wait_for_input()
            answer = sys.stdin.readline().strip().lower()
        if answer not in ("y", "yes"):
            raise CommandError(ExitCode.NO, "Nothing was done.")

    def ask_unseen(self, question: str, option: str) -> str:
        """Ask for a secret, which the terminal does not show.

        Args:
            option: the option that names a file with the secret.

        Raises:
            CommandError: there is no terminal to ask on, or no answer.
            StoppedError: a signal has come meanwhile.
        """
        if self.options.no_input or not (is_terminal(0) and self.notes.is_terminal):
            raise CommandError(
                ExitCode.USAGE,
                f"{question}: no terminal is here to ask for it on",
                f"Give it with {option} FILE, where - is stdin.",
            )
        from getpass import getpass

        self.notes.clear()
        with self.stopping.asking():
            try:
                answer = getpass(f"{question}: ")
            except EOFError:
                answer = ""
            except UnicodeDecodeError:
                # Without its cause, whose text shows a part of the answer.
                raise CommandError(ExitCode.USAGE, f"{question}: the answer is no text in UTF-8") from None
        if not answer:
            raise CommandError(ExitCode.NO, "Nothing was done.")
        return answer


def _wait_for_input() -> None:
    """Wait in short steps until stdin can be read, because a signal just before a read would not interrupt it."""
    if sys.platform == "win32":
        return
    import select

    while not select.select([0], [], [], _STEP)[0]:
        pass


def show(problem: Problem, notes: Notes, output: str | None) -> None:
    """Write an error in the form of the results."""
    is_json = output in ("json", "jsonl")
    notes.insist(dump_exactly(problem.to_dict()).decode() if is_json else f"rentgpu: {problem.text}")


def has_colour(wanted: Literal["auto", "always", "never"], descriptor: int, environment: Mapping[str, str]) -> bool:
    """Return True if a stream is to be coloured: by `--color`, else NO_COLOR, else FORCE_COLOR, else for a terminal."""
    if wanted != "auto":
        return wanted == "always"
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return is_terminal(descriptor) and environment.get("TERM") != "dumb"


def is_terminal(descriptor: int) -> bool:
    """Return True if a descriptor is open on a terminal."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


class _NotesHandler(logging.Handler):
    """A handler that writes log records as notes."""

    def __init__(self, notes: Notes, *, has_times: bool) -> None:
        super().__init__()
        self._notes = notes
        self._has_times = has_times

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        moment = (
            f"{datetime.fromtimestamp(record.created).astimezone():%H:%M:%S.%f}"[:-3] + " " if self._has_times else ""
        )
        text = f"{moment}{level}: {in_own_words(record.getMessage())}"
        if record.exc_info is not None and self._has_times:
            text += f"\n{logging.Formatter().formatException(record.exc_info)}"
        self._notes.insist(text)

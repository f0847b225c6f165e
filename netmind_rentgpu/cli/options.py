"""The parts that commands share of click: kinds of values, global options, commands and groups that know them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from netmind_rentgpu.cli import completions, values
from netmind_rentgpu.cli.output import FORMATS, OutputClosedError
from netmind_rentgpu.cli.session import GlobalOptions, Session
from netmind_rentgpu.errors import RentGPUError

__all__ = [
    "AMOUNT",
    "DURATION",
    "MOMENT",
    "PORTS",
    "SINCE",
    "VARIABLE",
    "WAIT_CONDITION",
    "Command",
    "Group",
    "Invocation",
    "completed_by",
    "write_global_options",
    "write_section",
]

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _ParamType = click.ParamType[Any]
else:  # not generic in each version of click
    _ParamType = click.ParamType


class _Kind(_ParamType):
    """A kind of value, by a function that reads its text and raises ValueError."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of a text."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _moment(text: str) -> datetime:
    return values.moment(text, datetime.now().astimezone())


def _since(text: str) -> datetime | timedelta:
    try:
        return values.duration(text)
    except ValueError:
        return _moment(text)


DURATION: Final = _Kind("duration", values.some_duration)
MOMENT: Final = _Kind("moment", _moment)
SINCE: Final = _Kind("duration or moment", _since)
AMOUNT: Final = _Kind("amount", values.money)
PORTS: Final = _Kind("[local:]remote", values.port_pair)
WAIT_CONDITION: Final = _Kind("condition", values.wait_condition)
VARIABLE: Final = _Kind("name[=value]", lambda text: values.variable(text, os.environ))


@attrs.define
class Invocation:
    """One run of the program, as far as its words were read.

    Attributes:
        command: the words behind the first `--`; None without one.
        given: the global options that were given, before or behind the command's name; the last one counts.
        session: the session of the command that runs; None before.
    """

    command: list[str] | None = None
    given: dict[str, Any] = attrs.Factory(dict[str, Any])
    session: Session | None = None

    def begin(self) -> Session:
        """Return the session of the command that is about to run."""
        self.session = Session(GlobalOptions(**self.given), self.command)
        return self.session


def completed_by(
    find: Callable[[completions.Typed], Iterable[completions.Completion]],
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return the `shell_complete` of an argument or an option, by a function that finds its words."""

    def complete(context: click.Context, parameter: click.Parameter, current: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        earlier = context.params.get(parameter.name or "")
        invocation = context.find_object(Invocation)
        typed = completions.Typed(
            current,
            earlier if isinstance(earlier, tuple) else (),
            None if invocation is None else invocation.given.get("state"),
        )
        return [CompletionItem(word.text, type=word.kind, help=word.description) for word in find(typed)]

    return complete


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value is not None and value is not False:
        context.find_object(Invocation).given[option.name] = value  # type: ignore[union-attr]  # the program sets it


def _global_options() -> list[click.Option]:
    def flag(*names: str, text: str) -> click.Option:
        return click.Option(names, is_flag=True, default=False, help=text, expose_value=False, callback=_remember)

    def valued(*names: str, kind: Any = str, text: str, **named: Any) -> click.Option:
        return click.Option(names, type=kind, default=None, help=text, expose_value=False, callback=_remember, **named)

    files = completed_by(completions.files)

    return [
        valued(
            *("-o", "--output"),
            kind=click.Choice(FORMATS),
            metavar="FORM",
            text="The form of results: table (by default), json, jsonl or csv.",
        ),
        valued(
            "--account",
            metavar="NAME",
            text="An account of config.toml, in place of the one in use.",
            shell_complete=completed_by(completions.accounts),
        ),
        valued("--profile", metavar="FILE", text="A TOML file of assumptions about the service.", shell_complete=files),
        valued("--base-url", metavar="URL", text="The service; NETMIND_BASE_URL by default."),
        valued(
            "--state", metavar="FILE", text="The state file; NETMIND_RENTGPU_STATE by default.", shell_complete=files
        ),
        valued("--timeout", kind=DURATION, text="Longest time of a call, of rent's start, or of run, cp or wait."),
        valued(
            "--color",
            kind=click.Choice(("auto", "always", "never")),
            metavar="WHEN",
            text="Colours: auto (by default), always or never.",
        ),
        flag("-q", "--quiet", text="Hide notes and progress, but no result and no error."),
        flag("-v", "--verbose", text="Log what the client does."),
        flag("--debug", text="Log each request, and where an error happened."),
        flag("--no-input", text="Never ask."),
        flag("-y", "--yes", text="Answer questions with yes."),
    ]


def write_global_options(context: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the section of the global options, related ones in one line."""
    records = {option.name: option.get_help_record(context) or ("", "") for option in _global_options()}
    for first, second in (("verbose", "debug"), ("no_input", "yes")):
        (names, text), (other_names, other) = records[first], records.pop(second)
        records[first] = (f"{names}; {other_names}", f"{text.removesuffix('.')}; {other[0].lower()}{other[1:]}")
    write_section(formatter, "Global options, before or behind the command", list(records.values()))


def write_section(formatter: click.HelpFormatter, title: str, records: Sequence[tuple[str, str]]) -> None:
    """Write a section of two columns without an empty line before, because the root's help has to fit on a screen."""
    formatter.write_heading(title)
    with formatter.indentation():
        formatter.write_dl(records)


class Command(click.Command):
    """A command that has the global options, too, and whose function gets the session first.

    Attributes:
        takes_command: True if words behind `--` are its remote command.
        reads_only: True if it changes nothing at the service.
        prints: True if its result is a thing or a list, which `-o json` prints as JSON.
    """

    def __init__(
        self,
        *arguments: Any,
        takes_command: bool = False,
        reads_only: bool = False,
        prints: bool = True,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self.takes_command: bool = takes_command
        self.reads_only: bool = reads_only
        self.prints: bool = prints
        self._own: list[click.Parameter] = list(self.params)
        self.params.extend(_global_options())

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the words of the usage line."""
        return [*super().collect_usage_pieces(ctx), *(["[-- COMMAND...]"] if self.takes_command else [])]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, and where the global ones are described."""
        records = [record for option in self._own if (record := option.get_help_record(ctx)) is not None]
        help_option = self.get_help_option(ctx)
        if help_option is not None and (record := help_option.get_help_record(ctx)) is not None:
            records.append(record)
        with formatter.section("Options"):
            formatter.write_dl(records)
        formatter.write_paragraph()
        formatter.write_text("`rentgpu --help` lists the options of all commands, such as --output and --quiet.")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with a session."""
        invocation = ctx.find_object(Invocation)
        if invocation is None:
            raise RuntimeError("the command line runs by its own main function")
        if invocation.command is not None and not self.takes_command:
            raise click.UsageError(f"{self.name} takes no command behind --", ctx)
        session = invocation.begin()
        session.reads_only = self.reads_only
        if self.prints:
            session.use_default_output()
        ctx.params = {"session": session, **ctx.params}
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno != errno.EPIPE or isinstance(error, RentGPUError):
                raise
            # click would end the program with 1.
            raise OutputClosedError("the reader of the output has closed it") from error


class Group(click.Group):
    """A group of commands."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params.extend(_global_options())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the group's commands."""
        self.format_commands(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text("`rentgpu --help` lists the options of all commands.")

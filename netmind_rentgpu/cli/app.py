"""The tree of commands, each loaded when it is called, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

import click

from netmind_rentgpu.cli.exit_codes import ExitCode, code_of_signal
from netmind_rentgpu.cli.notes import Notes
from netmind_rentgpu.cli.options import Group, Invocation, write_global_options, write_section
from netmind_rentgpu.cli.problems import CommandError, Problem, problem_of
from netmind_rentgpu.cli.session import show
from netmind_rentgpu.cli.stopping import StoppedError
from netmind_rentgpu.version import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMPLETION_VARIABLE", "app", "run"]

COMPLETION_VARIABLE: Final = "_RENTGPU_COMPLETE"
"""The variable by which the script of a shell asks for the words that complete a line; it holds the shell's name."""

# By section: the name of each command, and the line that describes it. A command is `command` in its module of that name.
_TREE: Final[Mapping[str, Mapping[str, str]]] = {
    "Rent and use a machine": {
        "rent": "Rent a machine, run a command there, and give it back.",
        "offers": "List the machines that rent would try, the best first.",
        "ssh": "Open a shell on a machine, or run a command there.",
        "run": "Run a command on a machine.",
        "cp": "Copy files to or from a machine.",
        "forward": "Forward ports of this machine to those of a machine.",
        "logs": "Print what a job has written.",
        "jobs": "List, stop, wait for and remove jobs.",
    },
    "Look after rentals": {
        "rentals": "List, show, extend, release and count rentals.",
        "budgets": "List, set and remove limits that several programs share.",
    },
    "The service": {
        "machines": "List the machines on offer.",
        "auths": "List, show and create passwords of SSH logins.",
        "images": "List, show and create images that containers start from.",
        "containers": "List, create, wait for, stop and delete containers.",
    },
    "Settings": {
        "login": "Check an API token, and save it for further commands.",
        "logout": "Remove an account and its saved token. It asks.",
        "account": "List, choose and show accounts.",
        "config": "List the settings, and show where each comes from.",
        "profile": "Show and check the assumptions about the service.",
    },
    "More": {
        "schema": "Print the JSON Schema of a command's results.",
        "emulator": "Serve an emulated service, which needs no account.",
        "demo": "Run a rental on an emulated service.",
        "completion": "Print the completion of a shell.",
        "help": "Print a page of the guide, or of the reference.",
    },
}
_COMMANDS: Final = {name: text for section in _TREE.values() for name, text in section.items()}


class _Tree(Group):
    """The root, whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"netmind_rentgpu.cli.commands.{cmd_name}")
        return cast("click.Command", module.command)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that may be meant, without importing them, or the options."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=text) for name, text in _COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section, and the options of all commands, all on one screen."""
        self.format_usage(ctx, formatter)
        with formatter.indentation():
            formatter.write_text(self.help or "")
        formatter.write_paragraph()
        for section, commands in _TREE.items():
            write_section(formatter, section, list(commands.items()))
        write_global_options(ctx, formatter)
        formatter.write_text(self.epilog or "")


@click.group(
    cls=_Tree,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`rentgpu help` prints the guide, and `rentgpu help exit-codes` the exit codes.",
)
@click.version_option(__version__, message="rentgpu %(version)s")
def app() -> None:
    """Rent GPUs on NetMind, and never pay for a forgotten machine."""


def run(arguments: Sequence[str], prog_name: str = "rentgpu") -> int:
    """Run the command line, and return its exit code. Errors are written to stderr."""
    _open_missing_descriptors()
    if (shell := os.environ.get(COMPLETION_VARIABLE)) is not None:
        return _complete(shell, os.environ)
    words, command = _split(arguments)
    words = words or ["--help"]
    invocation = Invocation(command)
    try:
        result = app.main(
            words, prog_name=prog_name, complete_var=COMPLETION_VARIABLE, standalone_mode=False, obj=invocation
        )
    except StoppedError as error:
        return code_of_signal(error.number)
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without its command; not in each version of click
            Notes().insist(error.format_message())
        else:
            show(_usage_problem(error), Notes(), _output_format(words))
        return ExitCode.USAGE
    except Exception as error:  # noqa: BLE001  # the last place that can show it
        return _code_after(error, invocation, words)
    finally:
        if invocation.session is not None:
            invocation.session.close()
    return result if isinstance(result, int) else ExitCode.DONE


def _complete(shell: str, environment: Mapping[str, str]) -> int:
    """Print the words that complete the line of a shell, for the shell's script."""
    from click.shell_completion import ShellComplete

    from netmind_rentgpu.cli.completing import answer, read_line
    from netmind_rentgpu.cli.completions import Completion
    from netmind_rentgpu.cli.output import write_bytes

    line = read_line(environment.get("_RENTGPU_LINE", ""), environment.get("_RENTGPU_REPLACED", ""))
    if not line.words or "--" in line.words:
        return ExitCode.DONE  # a remote command
    source = ShellComplete(app, {"obj": Invocation()}, line.words[0], COMPLETION_VARIABLE)
    items = source.get_completions(list(line.words[1:]), line.current)
    found = [Completion(item.value, item.help or "", item.type) for item in items]
    write_bytes(answer(shell, line, found).encode(errors="surrogateescape"))
    return ExitCode.DONE


def _code_after(error: Exception, invocation: Invocation, words: Sequence[str]) -> int:
    """Show an error, and return its exit code."""
    session = invocation.session
    problem = problem_of(error, reads_only=session is None or session.reads_only)
    if isinstance(error, OSError):
        _discard_stdout()
    if session is not None:
        session.show(problem, error)
    else:
        show(problem, Notes(), _output_format(words))
    return problem.exit_code


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Split the words at the first `--`, which click would drop."""
    if "--" not in arguments:
        return list(arguments), None
    index = list(arguments).index("--")
    return list(arguments[:index]), list(arguments[index + 1 :])


def _usage_problem(error: click.ClickException) -> Problem:
    text = error.format_message()
    context = getattr(error, "ctx", None)
    hint = f"See `{context.command_path} --help`." if context is not None else ""
    return problem_of(CommandError(ExitCode.USAGE, text, hint))


def _output_format(words: Sequence[str]) -> str | None:
    """Return the form of results that was asked for, from words that could not be read to their end."""
    found: str | None = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in ("-o", "--output"):
            found = following
        elif word.startswith("--output="):
            found = word.removeprefix("--output=")
        elif word.startswith("-o") and not word.startswith("--"):
            found = word[2:]
    return found


def _open_missing_descriptors() -> None:
    """Open stdin, stdout and stderr if they are closed, because a file opened later would else be taken for one of them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one.
            os.open(os.devnull, os.O_RDWR)


def _discard_stdout() -> None:
    """Replace stdout by nothing: otherwise Python fails once more at its exit, when it flushes what it could not write."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)

"""The examples of a page, run as a reader runs them: programs, files, shell sessions and crontab lines, with their output.

- `python`: a program, which runs as it stands. If its first line is a comment with a file's name, it is that file instead.
- `toml`: a file, named in the same way.
- `text`: the output of the program before it; `...` stands for any text.
- `console`: commands after `$`, each followed by its output. An emulator keeps running until the end of the page. A table
  may be shown as on a terminal, because two spaces stand for any gap.
- `crontab`: a line of a crontab, whose command runs once.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from guardian_copies import share_copies
from isolation import require_isolation
from nested_pytest import QUICK, own_folder
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser

from netmind_rentgpu.emulator import Emulator

LONGEST = 120
FENCE = re.compile(r"^ *```(.*)$", re.MULTILINE)
SERVER = re.compile(r"python -m netmind_rentgpu\.emulator\b|rentgpu emulator\b")
FILE = re.compile(r"# ([\w.-]+\.(?:py|toml))\n")


def as_pattern(expected: str) -> str:
    """Return the pattern of an output, in which `...` stands for any text."""
    return ".*?".join(re.escape(part) for part in expected.strip().split("..."))


def difference(expected: str, output: str) -> str | None:
    """Return what a failed test shows if an output is not the expected one."""
    if re.fullmatch(as_pattern(expected), output.strip(), re.DOTALL):
        return None
    return f"expected:\n{expected}\nbut the output was:\n{output}"


def with_even_gaps(text: str) -> str:
    """Return a text with two spaces for each gap between columns, which is a tab in a pipe and spaces on a terminal."""
    return re.sub(r" +$", "", re.sub(r" *\t[ \t]*| {2,}", "  ", text), flags=re.MULTILINE)


class PageRun:
    """One reader who follows one page, in an empty folder, with an emulator as the service."""

    def __init__(self, folder: Path, closing: ExitStack) -> None:
        self.folder = folder
        self._closing = closing
        self._output: str | None = None
        # Hidden, because a page's `pytest` would collect tests from the copies.
        state = folder / ".state"
        share_copies(state)
        emulator = closing.enter_context(Emulator(seed=7, boot_seconds=0, ssh=True))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NETMIND", "PYTEST"))},
            "NETMIND_BASE_URL": emulator.url,
            "NETMIND_API_KEY": emulator.token,
            "NETMIND_RENTGPU_STATE": str(state / "state.sqlite3"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONWARNINGS": "error",
            "PYTEST_ADDOPTS": " ".join([*QUICK, "-oasyncio_default_fixture_loop_scope=function", own_folder(folder)]),
            "COLUMNS": "100",
        }

    def parsers(self) -> list[CodeBlockParser]:
        kinds: dict[str, Callable[[Example], str | None]] = {
            "python": self.run_program,
            "toml": self.keep_file,
            "text": self.compare_output,
            "console": self.run_session,
            "crontab": self.run_crontab,
        }
        return [CodeBlockParser(language, evaluator) for language, evaluator in kinds.items()]

    def run_program(self, example: Example) -> str | None:
        if FILE.match(example.parsed):
            return self.keep_file(example)
        if left := self.unread_output():
            return left
        (self.folder / "example.py").write_text(example.parsed, encoding="utf-8")
        done = self._run([sys.executable, "example.py"])
        if done.returncode or done.stderr:
            return f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
        self._output = done.stdout
        return None

    def keep_file(self, example: Example) -> str | None:
        named = FILE.match(example.parsed)
        if named is None:
            return "the first line does not name the file"
        (self.folder / named[1]).write_text(example.parsed, encoding="utf-8")
        return None

    def compare_output(self, example: Example) -> str | None:
        output, self._output = self._output, None
        return "no program stands before this output" if output is None else difference(example.parsed, output)

    def unread_output(self) -> str | None:
        """Return a complaint if the output of the last program is not shown."""
        return f"the output of a program is not shown:\n{self._output}" if self._output else None

    def run_session(self, example: Example) -> str | None:
        for command, expected in commands_of(example.parsed):
            if exported := re.fullmatch(r"export (\w+)=(\S+)", command):
                self.environment[exported[1]] = exported[2]
                continue
            is_server = SERVER.match(command) is not None
            output = self._serve(command, expected.count("\n")) if is_server else self._output_of(command)
            if problem := difference(with_even_gaps(expected), with_even_gaps(output)):
                return f"$ {command}\n{problem}"
        return None

    def run_crontab(self, example: Example) -> str | None:
        command = example.parsed.strip().split(maxsplit=5)[-1]
        done = self._run(["/bin/sh", "-c", command])
        return None if not done.returncode else f"exit status {done.returncode}\n{done.stdout}{done.stderr}"

    def _output_of(self, command: str) -> str:
        done = self._run(["bash", "-c", command])
        return done.stdout + done.stderr

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def _serve(self, command: str, lines: int) -> str:
        """Start a server; return its first lines of output."""
        process = subprocess.Popen(
            shlex.split(command),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._closing.callback(partial(stop, process))
        assert process.stdout is not None
        output = "".join(process.stdout.readline() for _ in range(lines))
        # The page asks its reader to paste these lines.
        self.environment.update(re.findall(r"^export (\w+)=(\S+)$", output, re.MULTILINE))
        return output


def stop(process: subprocess.Popen[str]) -> None:
    with process:
        process.send_signal(signal.SIGTERM)


def commands_of(session: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a session, and its output."""
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command = command.removesuffix("\\") + more.removeprefix("> ").strip()
        yield command, output


def languages_of(text: str) -> list[str]:
    """Return the language of each fence of a page."""
    return FENCE.findall(text)[::2]


def is_used(file: str, later: str) -> bool:
    # Of a folder, pytest collects these by itself.
    return file in later or (file.startswith(("test_", "conftest")) and "$ pytest" in later)


def run_page(page: Path, folder: Path) -> int:
    """Run all examples of a page in their order; return their number."""
    if re.search(r"^\$ .*--isolated", page.read_text(encoding="utf-8"), re.MULTILINE):
        require_isolation()
    with ExitStack() as closing:
        run = PageRun(folder, closing)
        examples = list(Document.parse(str(page), *run.parsers()))
        for position, example in enumerate(examples):
            example.evaluate()
            later = " ".join(other.parsed for other in examples[position + 1 :])
            if (file := FILE.match(example.parsed)) and not is_used(file[1], later):
                raise AssertionError(f"no later example uses {file[1]}")
        if left := run.unread_output():
            raise AssertionError(left)
        return len(examples)

"""Passwords and tokens that a command needs: from a file, from stdin, or typed unseen; never from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.problems import CommandError
from netmind_rentgpu.cli.session import Session, is_terminal

__all__ = ["read_secret"]

# More is no secret, and a device such as /dev/zero has no end.
_LONGEST: Final = 64 * 1024


def read_secret(session: Session, path: str | None, *, kind: str, option: str, question: str) -> str:
    """Return a secret, without the line end behind it.

    Args:
        path: the file; `-` for stdin, and None to ask on the terminal.
        kind: the kind of secret, as errors name it, such as `password`.
        option: the option that names the file.
        question: the question for a terminal, such as `Password`.

    Raises:
        CommandError: the file cannot be read or holds no secret, or there is no terminal to ask on.
        StoppedError: a signal has come meanwhile.
    """
    if path is None or (path == "-" and is_terminal(0)):
        return session.ask_unseen(question, option)
    place = "stdin" if path == "-" else f"the file {path!r}"
    with session.stopping.asking():
        try:
            # By its descriptor, because stdin may have been replaced since Python has started.
            data = _read(0) if path == "-" else _read(Path(path))
        except OSError as error:
            code = ExitCode.NOT_FOUND if isinstance(error, FileNotFoundError) else ExitCode.LOST
            raise CommandError(code, f"could not read the {kind} from {place}: {error.strerror}") from error
    if len(data) > _LONGEST:
        raise CommandError(ExitCode.USAGE, f"{place} has more than {_LONGEST // 1024} KiB, which is no {kind}")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        # Without its cause, whose text shows a part of the secret.
        raise CommandError(ExitCode.USAGE, f"{place} is no text in UTF-8, so it holds no {kind}") from None
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise CommandError(ExitCode.USAGE, f"{place} is empty, so it holds no {kind}")
    return secret


def _read(place: int | Path) -> bytes:
    with open(place, "rb", closefd=isinstance(place, Path)) as file:
        return file.read(_LONGEST + 1)

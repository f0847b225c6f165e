"""Secrets that differ from run to run, so that where one of them shows, it was not the source that showed it."""

import copyreg
import io
import logging
import pickle
import secrets
import traceback
from collections.abc import Iterator
from typing import Any

from netmind_rentgpu import Auth, Container, Image, Machine, RentGPUError

TOKEN = f"token-{secrets.token_hex(8)}"
PASSWORD = f"password-{secrets.token_hex(8)}"
DOCKER_PASSWORD = f"docker-{secrets.token_hex(8)}"
ALL = (TOKEN, PASSWORD, DOCKER_PASSWORD)


def _pickled(error: BaseException) -> bytes:
    """Pickle an error as a program does that has not imported Dask, which changes the pickling of all errors."""
    written = io.BytesIO()
    pickler = pickle.Pickler(written)
    pickler.dispatch_table = {
        kind: reduce for kind, reduce in copyreg.dispatch_table.items() if not issubclass(kind, BaseException)
    }
    pickler.dump(error)
    return written.getvalue()


class Watch(logging.Handler):
    """Sees every error raised, every model read, every client made and every line logged during a test."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.errors: list[RentGPUError] = []
        self.things: list[Any] = []
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def shown(self) -> Iterator[tuple[str, bytes]]:
        yield from (("a log line", line.encode(errors="replace")) for line in self.lines)
        for error in self.errors:
            yield "an error's str", str(error).encode(errors="replace")
            yield "an error's repr", repr(error).encode(errors="replace")
            yield "an error's attributes", repr(vars(error)).encode(errors="replace")
            yield "an error's pickle", _pickled(error)
            yield "a traceback", "".join(traceback.format_exception(error)).encode(errors="replace")
            cause = error.__cause__
            yield (
                "an error's cause",
                f"{cause!r} {vars(cause) if hasattr(cause, '__dict__') else ''}".encode(errors="replace"),
            )
        for thing in self.things:
            yield "a repr", repr(thing).encode(errors="replace")
            yield "a str", str(thing).encode(errors="replace")
            if isinstance(thing, Machine | Auth | Image | Container):
                yield "a pickle", pickle.dumps(thing)

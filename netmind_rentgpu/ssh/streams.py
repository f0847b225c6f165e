"""The caller's sources and sinks of bytes: bytes, descriptors, binary files and streams of an event loop.

Descriptors and files are read and written in threads. A thread waits until a pipe, a socket or a terminal is ready before it
touches it, and is woken when the command ends, so that none is left behind. Nothing here knows SSH.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import io
import os
import select
import stat
import sys
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar, cast

from netmind_rentgpu.arguments import shown_value
from netmind_rentgpu.concurrency.cancellation import wait_shielded
from netmind_rentgpu.concurrency.threads import run_in_thread
from netmind_rentgpu.errors import InvalidArgumentError

__all__ = [
    "PipeSink",
    "PipeSource",
    "Sink",
    "Source",
    "check_descriptors",
    "check_no_event_loop_streams",
    "open_sink",
    "open_source",
]

_PIECE = 256 * 1024
# A terminal that reports to be writable has room for so many bytes on Linux.
_TERMINAL_PIECE = 256
# Seconds to wait for a thread that is inside a read or write of the caller's object when the call ends.
_LONGEST_FAREWELL = 1.0
Result = TypeVar("Result")


class _BinaryReader(Protocol):
    def read(self, size: int, /) -> bytes | Awaitable[bytes] | None: ...


class _BinaryWriter(Protocol):
    def write(self, data: bytes, /) -> object: ...


class _Sender(Protocol):
    def send(self, item: bytes, /) -> Awaitable[None]: ...


PipeSource: TypeAlias = bytes | bytearray | memoryview | int | _BinaryReader | AsyncIterable[bytes]
PipeSink: TypeAlias = int | _BinaryWriter | _Sender


class Source(Protocol):
    """A source of bytes."""

    async def read(self) -> bytes | memoryview:
        """Return the next piece; empty at the end."""
        ...

    def close(self) -> None:
        """Close what was opened here, never the caller's object."""
        ...


class Sink(Protocol):
    """A receiver of bytes."""

    async def write(self, data: bytes) -> None:
        """Write all of a piece."""
        ...

    async def finish(self) -> None:
        """Flush what was written."""
        ...

    def close(self) -> None:
        """Close what was opened here, never the caller's object."""
        ...


def check_no_event_loop_streams(**streams: object) -> None:
    """Check that no argument is a stream of an event loop, which code of another thread cannot use.

    Raises:
        InvalidArgumentError: an argument is one.
    """
    for argument, stream in streams.items():
        names = ("read", "send", "write", "drain")
        if hasattr(stream, "__aiter__") or any(_is_asynchronous(stream, name) for name in names):
            problem = (
                "is a stream of an event loop, which only an AsyncShell can use; pass a binary file or a descriptor"
            )
            raise InvalidArgumentError(argument, f"{problem}: {shown_value(stream)}")


def check_descriptors(*streams: object) -> None:
    """Check that those of the caller's streams that are descriptors are open.

    Raises:
        OSError: a descriptor is closed.
    """
    for stream in streams:
        if type(stream) is int and stream >= 0:
            os.fstat(stream)


def open_source(argument: str, source: PipeSource) -> Source:
    """Return the adapter of a caller's source.

    Raises:
        InvalidArgumentError: the object is no source of bytes.
        OSError: the descriptor is closed.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _Bytes(source)
    if isinstance(source, int):
        return _DescriptorSource(_descriptor(argument, source))
    _refuse_texts(argument, source)
    if _is_asynchronous(source, "read"):
        return _AsyncReader(argument, source)
    if hasattr(source, "__aiter__"):
        return _AsyncItems(argument, cast("AsyncIterable[bytes]", source))
    if callable(getattr(source, "read", None)):
        return _FileSource(argument, source)
    kinds = "bytes, a binary file, a descriptor, an asynchronous reader or an asynchronous iterable of bytes"
    raise InvalidArgumentError(argument, f"must be {kinds}, not {type(source).__name__}")


def open_sink(argument: str, sink: PipeSink) -> Sink:
    """Return the adapter of a caller's sink.

    Raises:
        InvalidArgumentError: the object is no receiver of bytes.
        OSError: the descriptor is closed.
    """
    if isinstance(sink, int):
        return _DescriptorSink(_descriptor(argument, sink))
    _refuse_texts(argument, sink)
    if _is_asynchronous(sink, "send"):
        return _AsyncSender(sink)
    if callable(getattr(sink, "write", None)):
        is_asynchronous = _is_asynchronous(sink, "write") or _is_asynchronous(sink, "drain")
        return _AsyncWriter(sink) if is_asynchronous else _file_sink(sink)
    kinds = "a binary file, a descriptor, an asynchronous writer, or an object with an asynchronous send()"
    raise InvalidArgumentError(argument, f"must be {kinds}, not {type(sink).__name__}")


def _is_asynchronous(stream: object, name: str) -> bool:
    return inspect.iscoroutinefunction(getattr(stream, name, None))


def _descriptor(argument: str, value: int) -> int:
    if isinstance(value, bool) or value < 0:
        raise InvalidArgumentError(argument, f"must be a descriptor, a number of 0 or more: {shown_value(value)}")
    return value


def _refuse_texts(argument: str, stream: object) -> None:
    if isinstance(stream, (str, io.TextIOBase)):
        advice = "encode it" if isinstance(stream, str) else "open the file in binary mode, or pass its buffer"
        raise InvalidArgumentError(argument, f"must have bytes, not text; {advice}")


def _checked(argument: str, data: Any) -> bytes:
    if isinstance(data, bytes):
        return data
    if not isinstance(data, (bytearray, memoryview)):
        raise InvalidArgumentError(argument, f"must have bytes, but has given {type(data).__name__}")
    # A copy, because its owner may change it.
    return bytes(cast("bytearray", data))


class _Unopened:
    """An adapter that has opened nothing."""

    async def finish(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


# Sources and sinks of the event loop.


class _Bytes(_Unopened):
    """Bytes in memory, in one piece."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        self._data = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())

    async def read(self) -> memoryview:
        data, self._data = self._data, memoryview(b"")
        return data

    def close(self) -> None:
        self._data = memoryview(b"")


class _AsyncReader(_Unopened):
    """An object with an asynchronous `read`, such as `asyncio.StreamReader`."""

    def __init__(self, argument: str, reader: Any) -> None:
        self._argument = argument
        self._reader = reader

    async def read(self) -> bytes:
        return _checked(self._argument, await self._reader.read(_PIECE))


class _AsyncItems(_Unopened):
    """An asynchronous iterable of bytes, such as anyio's streams."""

    def __init__(self, argument: str, items: AsyncIterable[bytes]) -> None:
        self._argument = argument
        self._items: AsyncIterator[bytes] = aiter(items)

    async def read(self) -> bytes:
        while True:
            try:
                item = await anext(self._items)
            except StopAsyncIteration:
                return b""
            # An empty item is not the end.
            if piece := _checked(self._argument, item):
                return piece


class _AsyncSender(_Unopened):
    """An object with an asynchronous `send`, such as anyio's streams."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    async def write(self, data: bytes) -> None:
        await self._sender.send(data)


class _AsyncWriter(_Unopened):
    """An object with `write` and an asynchronous `drain`, such as `asyncio.StreamWriter`, or an asynchronous `write`."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    async def write(self, data: bytes) -> None:
        written = self._writer.write(data)
        if inspect.isawaitable(written):
            await written
        if (drain := getattr(self._writer, "drain", None)) is not None:
            await drain()


# Sources and sinks of threads.


class _Failure:
    """The error of a function that ran in a thread."""

    def __init__(self, error: Exception) -> None:
        self._errors = [error]

    def raise_error(self) -> NoReturn:
        """Raise the error, and forget it: its traceback refers to the thread's frames, which refer to this object."""
        raise self._errors.pop()


class _Thread:
    """The thread of one source or sink, one piece of work at a time.

    Attributes:
        descriptor: a duplicate, which only this object closes, so that a late thread never uses a descriptor that has been
            closed and opened for another file meanwhile; None without one.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor: int | None = None if descriptor is None else os.dup(descriptor)
        self._wake: tuple[int, int] | None = None
        if self.descriptor is not None and sys.platform != "win32":
            try:
                self._wake = os.pipe()
            except OSError:
                os.close(self.descriptor)
                raise
        self._lock = threading.Lock()
        self._is_busy = False
        self._is_over = False

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run a function in a thread. After a cancellation, wait a moment for the function to return."""

        def run() -> Result | _Failure:
            try:
                return work()
            except Exception as error:  # noqa: BLE001  # the caller gets it
                return _Failure(error)
            finally:
                with self._lock:
                    self._is_busy = False
                    if self._is_over:
                        self._release()

        self._is_busy = True
        done = run_in_thread(run)
        try:
            outcome = await asyncio.shield(done)
        except asyncio.CancelledError:
            self._end()
            await wait_shielded(asyncio.ensure_future(asyncio.wait({done}, timeout=_LONGEST_FAREWELL)))
            raise
        if isinstance(outcome, _Failure):
            outcome.raise_error()
        return outcome

    def wait_until_ready(self, *, writable: bool) -> int | None:
        """Wait, in the thread, until the descriptor is readable or writable; return it, or None once the call is over."""
        # Windows cannot wait for a pipe.
        if sys.platform != "win32" and self.descriptor is not None and self._wake is not None:
            poll = select.poll()
            poll.register(self.descriptor, select.POLLOUT if writable else select.POLLIN)
            poll.register(self._wake[0], select.POLLIN)
            poll.poll()
        return None if self._is_over else self.descriptor

    def close(self) -> None:
        """Close the duplicate, or have the thread close it if it is late."""
        self._end()
        with self._lock:
            if not self._is_busy:
                self._release()

    def _end(self) -> None:
        with self._lock:
            was_over, self._is_over = self._is_over, True
            if not was_over and self._wake is not None:
                os.write(self._wake[1], b"x")

    def _release(self) -> None:
        opened = (self.descriptor, *(self._wake or ()))
        self.descriptor = self._wake = None
        for descriptor in opened:
            if descriptor is not None:
                os.close(descriptor)


class _DescriptorSource:
    """A descriptor to read."""

    def __init__(self, descriptor: int) -> None:
        self._thread = _Thread(descriptor)

    async def read(self) -> bytes:
        return await self._thread.run(self._read)

    def close(self) -> None:
        self._thread.close()

    def _read(self) -> bytes:
        while (descriptor := self._thread.wait_until_ready(writable=False)) is not None:
            try:
                return os.read(descriptor, _PIECE)
            except BlockingIOError:
                continue  # another process was faster
        return b""


class _FileSource:
    """A binary file to read."""

    def __init__(self, argument: str, file: Any) -> None:
        self._argument = argument
        self._file = file
        # A piece of any size will do, so that a slow writer's bytes come at once.
        self._read_some: Callable[[int], Any] = getattr(file, "read1", file.read)
        self._thread = _Thread(_descriptor_of(file))

    async def read(self) -> bytes:
        return _checked(self._argument, await self._thread.run(self._read))

    def close(self) -> None:
        self._thread.close()

    def _read(self) -> Any:
        if self._thread.descriptor is None:
            return self._read_some(_PIECE)
        while self._thread.wait_until_ready(writable=False) is not None:
            # A file without blocking gives None if another process was faster.
            if (data := self._read_some(_PIECE)) is not None:
                return data
        return b""


class _DescriptorSink:
    """A descriptor to write, and the file object to flush before, if the descriptor is a file object's."""

    def __init__(self, descriptor: int, file: Any = None) -> None:
        self._thread = _Thread(descriptor)
        self._file = file
        self._largest = _largest_write(descriptor)

    async def write(self, data: bytes) -> None:
        await self._thread.run(lambda: self._write(data))

    async def finish(self) -> None:
        """Do nothing, because nothing is buffered."""

    def close(self) -> None:
        self._thread.close()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left and (descriptor := self._thread.wait_until_ready(writable=True)) is not None:
            if self._file is not None:
                self._file.flush()
                self._file = None
                continue
            try:
                left = left[os.write(descriptor, left[: self._largest]) :]
            except BlockingIOError:
                continue  # another process was faster


class _FileSink:
    """A binary file to write."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._thread = _Thread(None)

    async def write(self, data: bytes) -> None:
        await self._thread.run(lambda: self._write(data))

    async def finish(self) -> None:
        flush = getattr(self._file, "flush", None)
        if callable(flush):
            await self._thread.run(flush)

    def close(self) -> None:
        self._thread.close()

    def _write(self, data: bytes) -> None:
        while data:
            count = self._file.write(data)
            if count is None and not isinstance(self._file, io.RawIOBase):
                return  # as files of other libraries do
            if not count:
                raise BlockingIOError(errno.EAGAIN, "the file accepted no byte")
            data = data[count:]


def _file_sink(file: Any) -> Sink:
    descriptor = _descriptor_of(file)
    if descriptor is None or stat.S_ISREG(os.fstat(descriptor).st_mode):
        return _FileSink(file)
    return _DescriptorSink(descriptor, file)


def _descriptor_of(file: object) -> int | None:
    """Return the descriptor of a file of Python's own, whose readiness says when it can be read or written.

    Other files may hold bytes of their own, such as decompressed ones, of which their descriptor knows nothing.
    """
    raw = getattr(file, "raw", file) if isinstance(file, io.BufferedIOBase) else file
    return raw.fileno() if isinstance(raw, io.FileIO) else None


def _largest_write(descriptor: int) -> int:
    """Return the most bytes that a descriptor accepts without blocking once it is writable."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return _PIECE
    if os.isatty(descriptor):
        return _TERMINAL_PIECE
    return getattr(select, "PIPE_BUF", 512)

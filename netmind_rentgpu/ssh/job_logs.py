"""The output of a job, read from the frames of `job.sh`. It does no I/O."""

from __future__ import annotations

import re
from collections import deque
from datetime import datetime, timedelta
from math import floor
from typing import Final

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.arguments import shown_value
from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.results import OutputLine
from netmind_rentgpu.ssh.job_scripts import ANSWER, moment_from
from netmind_rentgpu.ssh.output import Lines

__all__ = ["LogReader", "LogRequest", "log_request"]

_POSITION: Final = re.compile(r"(\d{1,18})-(\d{1,18})", re.ASCII)
_LONGEST_FRAME: Final = 4096
_BEGIN: Final = re.compile(rf"{ANSWER} logs (\d{{1,18}}) (\d{{1,18}})", re.ASCII)
_FRAME: Final = re.compile(
    r"T (?P<time>\d{1,18}) (?P<out>\d{1,18}) (?P<err>\d{1,18})|(?P<stream>[OE]) (?P<size>\d{1,9})|C|X|S|K", re.ASCII
)


@attrs.frozen(kw_only=True)
class LogRequest:
    """The part of a log that is asked for.

    Attributes:
        follow: True to go on until the job is over.
        tail: the number of the last lines to begin with; None for all.
        since: the moment to begin with; None for the start.
        after: the sizes of stdout and stderr to go on behind; None if no line was read.
    """

    follow: bool
    tail: int | None = None
    since: datetime | None = None
    after: tuple[int, int] | None = None

    def arguments(self, now: datetime) -> tuple[str | int, ...]:
        """Return the arguments for `job.sh`."""
        out, err = self.after or (0, 0)
        tail: str | int = "-" if self.tail is None or self.after is not None else self.tail
        since: str | int = "-" if self.since is None or self.after is not None else floor(self.since.timestamp())
        # By the present time, the container sees how wrong its clock is.
        return out, err, "yes" if self.follow else "no", tail, since, floor(now.timestamp())

    def behind(self, line: OutputLine) -> LogRequest:
        """Return the request for what follows a line."""
        return attrs.evolve(self, after=_offsets(line.position or ""))


def log_request(
    *, follow: bool, tail: int | None, since: datetime | timedelta | None, after: str | None, now: datetime
) -> LogRequest:
    """Return the request of a caller.

    Args:
        now: the present moment, from which a `since` that is a timedelta counts back.

    Raises:
        InvalidArgumentError: an argument cannot be used, or two of them are given that exclude each other.
    """
    if sum(value is not None for value in (tail, since, after)) > 1:
        raise InvalidArgumentError("after", "of tail, since and after, only one can be given")
    if tail is not None and (type(tail) is not int or not 0 <= tail <= 1_000_000):
        raise InvalidArgumentError("tail", f"must be a number of lines, 0 to 1,000,000: {shown_value(tail)}")
    if isinstance(since, timedelta):
        since = now - since
    offsets = None if after is None else _offsets(after)
    if after is not None and offsets is None:
        raise InvalidArgumentError("after", f"must be the position of a line of this job: {shown_value(after)}")
    begin = None if since is None else arguments.moment("since", since)
    return LogRequest(follow=bool(follow), tail=tail, since=begin, after=offsets)


def _offsets(position: str) -> tuple[int, int] | None:
    found = _POSITION.fullmatch(position) if isinstance(position, str) else None
    return None if found is None else (int(found[1]), int(found[2]))


class LogReader:
    """The lines of a job's log, from the frames that arrive.

    Within a sample, the lines of stdout come first. A sample's output is handed on once it has arrived, so little is kept.

    Attributes:
        answer: the answer of the container if it has not sent a log that can be read, such as `missing`; else empty.
        is_whole: True once all has arrived that was asked for.
        problem: the end of what the container's shell has written to stderr.
    """

    def __init__(self, request: LogRequest) -> None:
        self._request = request
        self._lines = Lines((0, 0))
        self._last: deque[OutputLine] | None = None
        if request.tail is not None and request.after is None:
            self._last = deque(maxlen=request.tail)
        self._begun = b""
        self._has_begun = False
        # The stream of the frame that arrives, and how many of its bytes have not arrived.
        self._stream, self._left = 0, 0
        self._samples: deque[tuple[datetime | None, int, int]] = deque()
        self._waiting = (bytearray(), bytearray())
        self._sizes = [0, 0]
        self._is_inside_line = [False, False]
        self._is_over = False
        self.answer: str = ""
        self.is_whole: bool = False
        self.problem: str = ""

    def take(self, data: bytes, *, error: bool) -> bool:
        """Receive a piece of what the container sends; return True if there is room for more at once."""
        if error:
            self.problem = (self.problem + data.decode(errors="replace"))[-1000:]
            return True
        self._begun += data
        while self._begun:
            if self._left:
                piece, self._begun = self._begun[: self._left], self._begun[self._left :]
                self._left -= len(piece)
                self._waiting[self._stream].extend(piece)
                self._hand_on()
                continue
            line, end, rest = self._begun.partition(b"\n")
            if not end and len(line) < _LONGEST_FRAME:
                break
            self._begun = rest
            self._read_frame(line.decode(errors="replace"))
        return self.room

    @property
    def room(self) -> bool:
        """True if the waiting lines leave room for more."""
        return self._lines.room

    def next(self) -> OutputLine | None:
        """Return the next line; None if no line waits."""
        if self._last is not None:
            while (line := self._lines.next()) is not None:
                self._last.append(line)
            return None
        return self._lines.next()

    def finish(self) -> None:
        """Do nothing: what is left without a frame that says so was cut off, and is asked for again."""

    def _read_frame(self, frame: str) -> None:
        if not self._has_begun:
            # A login's startup script may print something first.
            if (begin := _BEGIN.fullmatch(frame)) is not None:
                self._begin(int(begin[1]), int(begin[2]))
            elif frame.startswith(f"{ANSWER} "):
                self.answer = frame.removeprefix(f"{ANSWER} ")
            return
        found = _FRAME.fullmatch(frame)
        if found is None:
            self.answer = self.answer or f"the log was changed while it was read: {frame[:100]!r}"
        elif found["time"]:
            self._samples.append((moment_from(found["time"]), int(found["out"]), int(found["err"])))
            self._hand_on()
        elif found["stream"]:
            self._stream, self._left = int(found["stream"] == "E"), int(found["size"])
        elif frame == "X":
            self._lines.finish()
            self._is_over = True
        elif frame == "S":
            self.answer = "the job has shortened its own output"
        elif frame == "C":
            self._catch_up()

    def _begin(self, out: int, err: int) -> None:
        self._has_begun = True
        self._lines = Lines((out, err))
        self._sizes = [out, err]
        if self._request.after is None:
            # The container begins a byte earlier than asked for, so that a line is not cut.
            self._is_inside_line = [out > 0, err > 0]

    def _hand_on(self) -> None:
        """Pass on the output that belongs to the known samples."""
        while self._samples:
            moment, *ends = self._samples[0]
            self._lines.moment = moment
            for stream, end in enumerate(ends):
                waiting = self._waiting[stream]
                wanted = end - self._sizes[stream]
                if wanted > 0 and waiting:
                    piece = bytes(waiting[:wanted])
                    del waiting[:wanted]
                    self._sizes[stream] += len(piece)
                    self._take_piece(piece, stream)
                if self._sizes[stream] < end:
                    return
            self._samples.popleft()

    def _take_piece(self, piece: bytes, stream: int) -> None:
        if self._is_inside_line[stream]:
            found = re.search(rb"[\r\n]", piece)
            cut = len(piece) if found is None else found.end()
            self._is_inside_line[stream] = found is None
            self._lines.skip(cut, error=bool(stream))
            piece = piece[cut:]
        if piece:
            self._lines.take(piece, error=bool(stream))

    def _catch_up(self) -> None:
        """Pass on the output that was held back, because all that the job has written so far has arrived."""
        self.is_whole = (self._is_over or not self._request.follow) and not any(self._waiting)
        if self.is_whole and not self._is_over:
            self._lines.show_unfinished()
        if self._last is not None:
            self.next()
            self._lines.put_back(self._last)
            self._last = None

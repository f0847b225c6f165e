"""The values that texts of the command line stand for, and texts for values: durations, moments, amounts, paths. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final, Literal

import attrs

from netmind_rentgpu.amounts import in_own_context, rounded

__all__ = [
    "Place",
    "PortPair",
    "WaitCondition",
    "duration",
    "moment",
    "money",
    "place",
    "port_pair",
    "shown_duration",
    "shown_moment",
    "shown_money",
    "shown_size",
    "some_duration",
    "variable",
    "wait_condition",
]

_UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(?:(\d+(?:\.\d+)?)([smhdw]))", re.IGNORECASE)
_TIME_OF_DAY: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# More than that is a mistake, and overflows a date.
_LONGEST: Final = timedelta(days=36_500)


def duration(text: str) -> timedelta:
    """Return the duration that a text such as `90s`, `45m`, `1h30m` or `2d` stands for.

    Raises:
        ValueError: the text is no duration; the message says what one looks like.
    """
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise ValueError(f"{text!r} is no duration; write it like 90s, 45m, 8h, 1h30m or 2d")
    seconds = sum(Decimal(number) * _UNITS[unit.lower()] for number, unit in parts)
    if seconds > Decimal(_LONGEST.total_seconds()):
        raise ValueError(f"{text!r} is longer than {_LONGEST.days} days")
    return timedelta(seconds=float(seconds))


def some_duration(text: str) -> timedelta:
    """Return the duration that a text stands for, as `duration` does.

    Raises:
        ValueError: the text is no duration, or one of no time at all.
    """
    length = duration(text)
    if not length:
        raise ValueError(f"{text!r} is no time at all; write it like 90s, 45m, 8h, 1h30m or 2d")
    return length


def moment(text: str, now: datetime) -> datetime:
    """Return the moment that a text stands for: a time of day, which is the next one, or a date and time.

    Args:
        text: such as `18:30`, `2026-12-01 09:00` or `2026-12-01T09:00:00Z`; without an offset, it is the local time.
        now: the present time, with the local time zone.

    Raises:
        ValueError: the text is no moment; the message says what one looks like.
    """
    if (found := _TIME_OF_DAY.fullmatch(text.strip())) is not None:
        hour, minute, second = (int(part or 0) for part in found.groups())
        if hour < 24 and minute < 60 and second < 60:
            # Without its zone, because the offset may differ between now and then.
            today = now.replace(hour=hour, minute=minute, second=second, microsecond=0, tzinfo=None)
            # Each day twice, because the end of summer time repeats an hour.
            candidates = ((today + timedelta(days=days)).replace(fold=fold) for days in (0, 1, 2) for fold in (0, 1))
            return next(candidate for day in candidates if (candidate := day.astimezone()) > now)
    else:
        try:
            return datetime.fromisoformat(text.strip()).astimezone()
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"{text!r} is no moment; write it like 18:30, '2026-12-01 09:00' or 2026-12-01T09:00Z")


def money(text: str) -> Decimal:
    """Return an amount of money.

    Raises:
        ValueError: the text is no number, or below 0.
    """
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{text!r} is no amount; write it like 5 or 0.75")
    return amount


def variable(text: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the name and the value of a variable, from `NAME=VALUE`, or from `NAME` and an environment that has it.

    Raises:
        ValueError: the name cannot be one, or the environment does not have it. The message holds no value.
    """
    name, equals, value = text.partition("=")
    if _VARIABLE.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no name of a variable; write NAME=VALUE, or NAME for the value that it has here")
    if equals:
        return name, value
    if name not in environment:
        raise ValueError(f"the variable {name} is not set here; set it, or write {name}=VALUE")
    return name, environment[name]


@attrs.frozen
class Place:
    """A path here or on a rented machine.

    Attributes:
        target: the machine, as its user names it; None for a path here, and empty for the only open rental.
        path: the path; `-` here is stdin or stdout.
    """

    target: str | None
    path: str

    @property
    def is_stream(self) -> bool:
        """True for stdin or stdout."""
        return self.target is None and self.path == "-"

    def __str__(self) -> str:
        return self.path if self.target is None else f"{self.target}:{self.path}"


def place(text: str, *, has_drives: bool = False) -> Place:
    """Return the place that an argument of `cp` stands for: `TARGET:path`, or a path here.

    A colon behind a slash is a part of a path here, so that `./a:b` is one.

    Args:
        has_drives: True on a system where a letter and a colon are a drive.
    """
    target, colon, path = text.partition(":")
    is_here = not colon or "/" in target or "\\" in target or (has_drives and len(target) == 1)
    if is_here:
        return Place(None, text)
    # From the login's home folder in any case.
    return Place(target, "" if path == "~" else path.removeprefix("~/"))


@attrs.frozen
class PortPair:
    """A port here and one of a rented machine; 0 here is any free port."""

    local: int
    remote: int


def port_pair(text: str) -> PortPair:
    """Return the ports that `[LOCAL:]REMOTE` stands for.

    Raises:
        ValueError: they are no ports.
    """
    local, colon, remote = text.rpartition(":")
    if not re.fullmatch(r"\d{1,5}", remote) or (colon and not re.fullmatch(r"\d{1,5}", local)):
        raise ValueError(f"{text!r} is no port; write it like 8888, or 9000:8888 for port 9000 here")
    pair = PortPair(int(local or remote), int(remote))
    if pair.local > 65_535 or not 0 < pair.remote <= 65_535:
        raise ValueError(f"{text!r} is no port; a port is at most 65535, and that of the machine is at least 1")
    return pair


@attrs.frozen
class WaitCondition:
    """A condition of a wait for a container.

    Attributes:
        kind: the condition.
        statuses: for `status`, the status as a name or a number.
    """

    kind: Literal["ready", "reachable", "has-ssh", "gone", "status"]
    statuses: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        return f"status={self.statuses[-1]}" if self.statuses else self.kind


def wait_condition(text: str) -> WaitCondition:
    """Return the condition that a text stands for, such as `ready`, `has-ssh` or `status=running`.

    Raises:
        ValueError: the text is no condition.
    """
    name, equals, value = text.strip().partition("=")
    if name == "status" and value:
        # The service may send a number as a text.
        return WaitCondition("status", (int(value), value) if value.isascii() and value.isdecimal() else (value,))
    kinds: tuple[Literal["ready", "reachable", "has-ssh", "gone"], ...] = ("ready", "reachable", "has-ssh", "gone")
    for kind in kinds:
        if not equals and name.replace("_", "-") == kind:
            return WaitCondition(kind)
    raise ValueError(f"{text!r} is no condition; write ready, reachable, has-ssh, gone, or status=2")


def shown_duration(length: timedelta) -> str:
    """Return a duration in its two largest units, rounded, such as `1 h 30 min`."""
    seconds = max(0, round(length.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    if seconds >= 600:
        unit = 3600 if seconds >= 86_400 else 60
        seconds = (seconds + unit // 2) // unit * unit
    parts = ((seconds // 86_400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s"))
    first = next(number for number, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)


def shown_moment(when: datetime, now: datetime) -> str:
    """Return a moment in the local time zone: the time alone if it is today, and else with its day.

    Args:
        now: the present time, with the local time zone.
    """
    local = when.astimezone(now.tzinfo) if now.tzinfo is UTC else when.astimezone()
    if local.date() == now.date():
        return f"{local:%H:%M:%S}"
    if abs((local.date() - now.date()).days) < 7:
        return f"{local:%a %d %b %H:%M}"
    return f"{local:%Y-%m-%d %H:%M}"


@in_own_context
def shown_money(amount: Decimal | None, currency: str | None) -> str:
    """Return an amount with its currency and at least two digits behind the point; a question mark if it is not known."""
    if amount is None:
        return "?"
    exact = rounded(amount).normalize()
    exponent = exact.as_tuple().exponent
    shown = f"{exact:f}" if isinstance(exponent, int) and exponent < -2 else f"{exact:.2f}"
    return f"{shown} {currency}" if currency else shown


def shown_size(count: int) -> str:
    """Return a number of bytes in a unit that fits, such as `3.4 MB`."""
    size, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if round(size, 1) < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"

"""A client's settings: token, URL, proxy, timeouts and retries, read from arguments and the environment, and checked once.

This module reads the environment and the system's proxy settings, and does no other I/O.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit, urlunsplit

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.accounts import TOKEN_VARIABLES, AccountChoice, read_token
from netmind_rentgpu.errors import ConfigurationError, InvalidArgumentError
from netmind_rentgpu.fingerprint import Fingerprint
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.state_path import state_path

if TYPE_CHECKING:
    from ssl import SSLContext

__all__ = ["A_YEAR", "DEFAULT", "ClientParts", "Retries", "RetriesOption", "Settings", "TimeoutOption", "Timeouts"]

BASE_URL_VARIABLE: Final = "NETMIND_BASE_URL"
DEFAULT_BASE_URL: Final = "https://api.netmind.ai"
A_YEAR: Final = timedelta(days=365)
_LONGEST_HISTORY: Final = 100 * A_YEAR


class _Default(Enum):
    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return self.value


DEFAULT: Final = _Default.DEFAULT
"""A stand-in for the client's own setting, for arguments whose None means something else."""


def _seconds(_: Any, field: attrs.Attribute[Any], value: float | None) -> None:
    if value is None:
        return
    if not arguments.is_seconds(value, above_zero=True):
        raise InvalidArgumentError(
            field.name, f"must be a number of seconds above 0, or None for no limit: {arguments.shown_value(value)}"
        )


@attrs.frozen(kw_only=True)
class Timeouts:
    """The time limits of a call, in seconds; None for no limit.

    Attributes:
        total: the limit for the whole call, with its retries and the pauses between them, from when the call first gets a
            connection.
        connect: the limit for finding and connecting to the host, TLS included.
        read: the longest time without data from the service, while the client waits for an answer or reads it.
        slot: the longest wait before each attempt until one of the client's connections is free, and until a pause that the
            service asked for is over.
    """

    total: float | None = attrs.field(default=120.0, validator=_seconds)
    connect: float | None = attrs.field(default=10.0, validator=_seconds)
    read: float | None = attrs.field(default=60.0, validator=_seconds)
    slot: float | None = attrs.field(default=120.0, validator=_seconds)


TimeoutOption: TypeAlias = Timeouts | float | Literal[_Default.DEFAULT] | None
"""`Timeouts`, or a number of seconds for `total` alone; None for no `total` limit."""


def timeouts_for(option: TimeoutOption, client: Timeouts) -> Timeouts:
    """Return the timeouts of a call with an option, for a client with timeouts of its own.

    Raises:
        InvalidArgumentError: the option is not a number of seconds above 0.
    """
    if option is DEFAULT:
        return client
    if isinstance(option, Timeouts):
        return option
    try:
        return attrs.evolve(client, total=option)
    except InvalidArgumentError:
        raise InvalidArgumentError(
            "timeout", f"must be Timeouts, seconds above 0, or None: {arguments.shown_value(option)}"
        ) from None


def _require_count(argument: str, value: int, minimum: int) -> None:
    if type(value) is not int or value < minimum:
        raise InvalidArgumentError(
            argument, f"must be a whole number, at least {minimum}: {arguments.shown_value(value)}"
        )


def _at_least_one(_: Any, field: attrs.Attribute[int], value: int) -> None:
    _require_count(field.name, value, 1)


def _delay(_: Any, field: attrs.Attribute[float], value: float) -> None:
    if not arguments.is_seconds(value, above_zero=False):
        raise InvalidArgumentError(
            field.name, f"must be a number of seconds, at least 0: {arguments.shown_value(value)}"
        )


def _duration(_: Any, field: attrs.Attribute[Any], value: timedelta | None) -> None:
    if value is not None and (not isinstance(value, timedelta) or not timedelta(0) <= value <= _LONGEST_HISTORY):
        raise InvalidArgumentError(
            field.name, f"must be a timedelta of 0 to {_LONGEST_HISTORY.days} days: {arguments.shown_value(value)}"
        )


def _flag(_: Any, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidArgumentError(field.name, f"must be True or False, not {arguments.shown_value(value)}")


@attrs.frozen(kw_only=True)
class Retries:
    """The rules for retrying a failed call.

    The client retries an idempotent call (any but the creates and `restart`) after a connection error other than one of TLS,
    a timeout, a 408, 429, 500, 502, 503 or 504, or an answer that was cut short. It retries a create, of any resource, and
    `restart` only if the request was certainly not sent, or was refused with a 429.

    The wait before the n-th retry is drawn evenly from 0 to `base_delay * 2**(n-1)`, at most `max_delay`. If the service
    names a time in `Retry-After`, the client waits at least that long; if the time is longer than `max_retry_after`, the
    client raises the error at once.

    Attributes:
        max_attempts: the most attempts of one call; 1 for no retries.
        base_delay, max_delay: seconds of the wait before a retry, as above.
        max_retry_after: the longest `Retry-After`, in seconds, that the client waits for.
        max_elapsed: the seconds, from when the call first gets a connection, after which no retry may be planned, even for a
            call without a total timeout. (A planned retry may still have to wait for a connection.)
    """

    max_attempts: int = attrs.field(default=4, validator=_at_least_one)
    base_delay: float = attrs.field(default=0.5, validator=_delay)
    max_delay: float = attrs.field(default=8.0, validator=_delay)
    max_retry_after: float = attrs.field(default=60.0, validator=_delay)
    max_elapsed: float = attrs.field(default=120.0, validator=_delay)


RetriesOption: TypeAlias = Retries | int | Literal[_Default.DEFAULT]
"""`Retries`, or the most retries of one call: 0 for none."""


@attrs.frozen(kw_only=True)
class Settings:
    """A client's settings, complete before its first call."""

    token: str = attrs.field(repr=False)
    base_url: str
    proxy: str | None = attrs.field(repr=False)
    timeouts: Timeouts
    retries: Retries
    max_connections: int = attrs.field(validator=_at_least_one)
    state: Path
    keep_history: timedelta | None = attrs.field(default=A_YEAR, validator=_duration)
    handle_signals: bool = attrs.field(default=False, validator=_flag)
    guardian: bool = attrs.field(default=False, validator=_flag)

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint by which the state file knows the token."""
        return Fingerprint(self.base_url, self.token)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("settings hold a token and cannot be pickled")

    @classmethod
    def resolve(
        cls,
        *,
        token: str | None,
        base_url: str | None,
        proxy: str | None,
        timeout: TimeoutOption,
        retries: RetriesOption,
        max_connections: int,
        allow_insecure_http: bool,
        environment: Mapping[str, str],
        choice: AccountChoice | None = None,
        state: str | os.PathLike[str] | None = None,
        keep_history: timedelta | None = A_YEAR,
        handle_signals: bool = False,
        guardian: bool = False,
    ) -> Settings:
        """Merge arguments, environment and account.

        Args:
            choice: the account whose token and URL the client uses; none by default.

        Raises:
            ConfigurationError: no token, or a URL, proxy or state path that cannot be used.
            InvalidArgumentError: a timeout, a retry setting, `max_connections` or `keep_history` is out of range.
        """
        for argument, value in (("token", token), ("base_url", base_url), ("proxy", proxy)):
            if value is not None and not isinstance(value, str):
                raise ConfigurationError(f"{argument} must be a text, not {type(value).__name__}")
        choice = choice or AccountChoice()
        of_account = None if choice.account is None else choice.account.base_url
        wanted = choice.first(base_url, environment.get(BASE_URL_VARIABLE), of_account) or DEFAULT_BASE_URL
        try:
            url = _base_url(wanted, allow_insecure_http=allow_insecure_http)
        except ConfigurationError as error:
            if choice.account is None or wanted != of_account:
                raise
            raise ConfigurationError(f"account {choice.account.name}: {error}") from None
        if retries is DEFAULT:
            retries = Retries()
        elif not isinstance(retries, Retries):
            _require_count("retries", retries, 0)
            retries = Retries(max_attempts=retries + 1)
        chosen = _checked_proxy(proxy) if proxy else _proxy_from_environment(url)
        if (
            chosen
            and url.scheme == "http"
            and not allow_insecure_http
            and not is_loopback(urlsplit(chosen).hostname or "")
        ):
            raise ConfigurationError(
                "the proxy would see the token in plain http; use https, or pass allow_insecure_http=True"
            )
        return cls(
            token=_token(token, environment, choice),
            base_url=urlunsplit(url),
            proxy=chosen,
            timeouts=timeouts_for(timeout, Timeouts()),
            retries=retries,
            max_connections=max_connections,
            state=state_path(state, environment),
            keep_history=keep_history,
            handle_signals=handle_signals,
            guardian=guardian,
        )


@attrs.frozen
class ClientParts:
    """The parts from which a client is made.

    Attributes:
        settings: the client's settings.
        profile: its assumptions about the service.
        ssl_context: its TLS settings; None for the system's.
    """

    settings: Settings
    profile: ServiceProfile
    ssl_context: SSLContext | None


def _token(token: str | None, environment: Mapping[str, str], choice: AccountChoice) -> str:
    if choice.account is not None:
        token = read_token(choice.account)
    elif token is None:
        token = next((environment[name] for name in TOKEN_VARIABLES if environment.get(name)), "")
    # As it stands in the examples of other clients. The profile decides on the form of the header.
    found = re.sub(r"(?i)^bearer\s+", "", token.strip())
    if not found or found.casefold() == "bearer":
        ways = f"pass token=..., or set {' or '.join(TOKEN_VARIABLES)}, or {choice.hint or 'run `rentgpu login`'}"
        raise ConfigurationError(f"no API token: {ways}")
    if not (found.isascii() and found.isprintable()):
        raise ConfigurationError(
            "the API token cannot be sent in a header: it holds characters other than printable ASCII"
        )
    return found


def is_loopback(host: str) -> bool:
    """Return True if a host can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_host(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return re.fullmatch(r"[\w.-]+", host.encode("idna").decode()) is not None
    except UnicodeError:
        return False


def _base_url(url: str, *, allow_insecure_http: bool) -> SplitResult:
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError as error:
        raise ConfigurationError(f"the base URL cannot be read: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("the base URL must not hold a user name or password")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"the base URL must look like {DEFAULT_BASE_URL}: {url!r}")
    if not _is_host(parts.hostname):
        raise ConfigurationError(f"the base URL's host cannot be read: {url!r}")
    if "/v1/rentgpu" in parts.path or parts.path.rstrip("/").endswith("/v1"):
        raise ConfigurationError(f"the base URL must end before /v1, which the client adds: {url!r}")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"the base URL must not hold a query or fragment: {url!r}")
    if parts.scheme == "http" and not (allow_insecure_http or is_loopback(parts.hostname)):
        raise ConfigurationError(
            f"the base URL {url!r} would send the token over plain http to another machine; use https, or pass "
            "allow_insecure_http=True"
        )
    return parts._replace(path=parts.path.rstrip("/"))


def _checked_proxy(proxy: str, source: str = "the argument proxy") -> str:
    try:
        parts = urlsplit(proxy.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # The error shows nothing else of the URL, because that may hold a password.
        scheme = re.match(r"(socks[45][ah]?|socks|ftp)(?=://)", proxy.strip())
        problem = "" if scheme is None else f" its scheme is {scheme[0]!r}, and"
        raise ConfigurationError(
            f"cannot use the proxy in {source}:{problem} it must be an http:// or https:// URL with a host"
        )
    return proxy.strip()


def _proxy_from_environment(url: SplitResult) -> str | None:
    """Read the system's proxy settings as urllib does; return None for a service on this machine."""
    from urllib.request import getproxies, proxy_bypass

    host = url.hostname or ""
    if is_loopback(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.netloc) or _is_in_a_network(host, proxies.get("no", "")):
        return None
    names = (f"{url.scheme}_proxy", f"{url.scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    source = next((f"the variable {name}" for name in names if os.environ.get(name) == proxy), "the system's settings")
    return _checked_proxy(proxy if "://" in proxy else f"http://{proxy}", source)


def _is_in_a_network(host: str, no_proxy: str) -> bool:
    """Return True if a host is an address in a network of NO_PROXY, such as 10.0.0.0/8, which urllib does not read."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in re.split(r"[,\s]+", no_proxy):
        with suppress(ValueError):
            if "/" in entry and address in ipaddress.ip_network(entry, strict=False):
                return True
    return False

"""What a client is told: token, URL, proxy, timeouts and retries, from arguments and the environment, checked once.

Touches the environment, and nothing else outside.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit, urlunsplit

import attrs

from netmind_rentgpu import arguments
from netmind_rentgpu.errors import ConfigurationError, InvalidArgumentError
from netmind_rentgpu.fingerprint import Fingerprint

__all__ = ["DEFAULT", "Retries", "RetriesOption", "Settings", "TimeoutOption", "Timeouts"]

TOKEN_VARIABLES: Final = ("NETMIND_API_KEY", "NETMIND_API_TOKEN")
BASE_URL_VARIABLE: Final = "NETMIND_BASE_URL"
STATE_VARIABLE: Final = "NETMIND_RENTGPU_STATE"
DEFAULT_BASE_URL: Final = "https://api.netmind.ai"


class _Default(Enum):
    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return self.value


DEFAULT: Final = _Default.DEFAULT
"""Stands for "as the client is set", where None means something else."""


def _seconds(_: Any, field: attrs.Attribute[Any], value: float | None) -> None:
    if value is None:
        return
    if not arguments.is_seconds(value, above_zero=True):
        raise InvalidArgumentError(
            field.name, f"must be a number of seconds above 0, or None for no limit: {arguments.shown_value(value)}"
        )


@attrs.frozen(kw_only=True)
class Timeouts:
    """How long a call may take, in seconds; None for no limit.

    Attributes:
        total: the whole call, its retries and the pauses between them included, from when it first holds a connection.
        connect: finding and connecting to the host, TLS included.
        read: the longest silence while an answer is awaited or read.
        slot: the longest wait, each time before the call is sent, until one of the client's connections is free and a
            pause that the service asked for is over.
    """

    total: float | None = attrs.field(default=120.0, validator=_seconds)
    connect: float | None = attrs.field(default=10.0, validator=_seconds)
    read: float | None = attrs.field(default=60.0, validator=_seconds)
    slot: float | None = attrs.field(default=120.0, validator=_seconds)


TimeoutOption: TypeAlias = Timeouts | float | Literal[_Default.DEFAULT] | None
"""`Timeouts`, or a number of seconds for `total` alone; None takes the limit off `total`."""


def timeouts_for(option: TimeoutOption, client: Timeouts) -> Timeouts:
    """Return what an option means for a client that has its own timeouts.

    Raises:
        InvalidArgumentError: not a number of seconds above 0.
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


@attrs.frozen(kw_only=True)
class Retries:
    """When a call that failed is sent again.

    A call that changes nothing when repeated (all but the creates and `restart`) is sent again after a connection error, a
    timeout, a 408, 429, 500, 502, 503 or 504, or an answer cut short. A create, of anything, and `restart`: only if the
    request surely was not sent, or was refused with a 429.

    The wait before the n-th retry is drawn evenly from 0 to `base_delay * 2**(n-1)`, at most `max_delay`. Where the service
    names a time in `Retry-After`, it is kept; where that is longer than `max_retry_after`, the error is raised at once.

    Attributes:
        max_attempts: how often a call is sent at most; 1 for no retries.
        base_delay, max_delay, max_retry_after: seconds.
        max_elapsed: no retry is planned for later than this many seconds after the call first held a connection, whether
            or not the call has a total timeout. (It may still have to wait for a connection then.)
    """

    max_attempts: int = attrs.field(default=4, validator=_at_least_one)
    base_delay: float = attrs.field(default=0.5, validator=_delay)
    max_delay: float = attrs.field(default=8.0, validator=_delay)
    max_retry_after: float = attrs.field(default=60.0, validator=_delay)
    max_elapsed: float = attrs.field(default=120.0, validator=_delay)


RetriesOption: TypeAlias = Retries | int | Literal[_Default.DEFAULT]
"""`Retries`, or how often to send a call again at most: 0 for never."""


@attrs.frozen(kw_only=True)
class Settings:
    """Everything a client needs to know before its first call."""

    token: str = attrs.field(repr=False)
    base_url: str
    proxy: str | None = attrs.field(repr=False)
    timeouts: Timeouts
    retries: Retries
    max_connections: int = attrs.field(validator=_at_least_one)
    state: Path

    @property
    def fingerprint(self) -> Fingerprint:
        """What the state file knows the token by."""
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
        state: str | os.PathLike[str] | None = None,
    ) -> Settings:
        """Put arguments and environment together.

        Raises:
            ConfigurationError: no token, or a URL or proxy that cannot be used.
            InvalidArgumentError: a timeout, a retry setting or `max_connections` out of range.
        """
        for argument, value in (("token", token), ("base_url", base_url), ("proxy", proxy)):
            if value is not None and not isinstance(value, str):
                raise ConfigurationError(f"{argument} must be a text, not {type(value).__name__}")
        url = _base_url(
            base_url or environment.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL, allow_insecure_http=allow_insecure_http
        )
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
            token=_token(token, environment),
            base_url=urlunsplit(url),
            proxy=chosen,
            timeouts=timeouts_for(timeout, Timeouts()),
            retries=retries,
            max_connections=max_connections,
            state=_state_file(state, environment),
        )


def _state_file(state: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> Path:
    if state is not None and not isinstance(state, (str, os.PathLike)):
        raise ConfigurationError(f"state must be a path, not {type(state).__name__}")
    chosen = state or environment.get(STATE_VARIABLE)
    if not chosen:
        # As the XDG base directory specification has it.
        chosen = Path(environment.get("XDG_STATE_HOME") or "~/.local/state") / "netmind-rentgpu" / "state.sqlite3"
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError as error:  # nobody knows where that is
        raise ConfigurationError(
            f"no place for the state file: pass state=..., or set {STATE_VARIABLE} ({error})"
        ) from error


def _token(token: str | None, environment: Mapping[str, str]) -> str:
    if token is None:
        token = next((environment[name] for name in TOKEN_VARIABLES if environment.get(name)), "")
    found = token.strip()
    if not found:
        raise ConfigurationError(f"no API token: pass token=..., or set {' or '.join(TOKEN_VARIABLES)}")
    if not (found.isascii() and found.isprintable()):
        raise ConfigurationError("the API token holds characters that cannot stand in a header")
    return found


def is_loopback(host: str) -> bool:
    """Tell whether a host can only be this machine."""
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
    if "/v1/rentgpu" in parts.path:
        raise ConfigurationError(f"the base URL must end before /v1/rentgpu: {url!r}")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"the base URL must not hold a query or fragment: {url!r}")
    if parts.scheme == "http" and not (allow_insecure_http or is_loopback(parts.hostname)):
        raise ConfigurationError(
            f"the base URL {url!r} would send the token over plain http to another machine; use https, or pass "
            "allow_insecure_http=True"
        )
    return parts._replace(path=parts.path.rstrip("/"))


def _checked_proxy(proxy: str) -> str:
    try:
        parts = urlsplit(proxy.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # The URL itself may hold a password, so it is not shown.
        raise ConfigurationError("the proxy must be an http:// or https:// URL with a host")
    return proxy.strip()


def _proxy_from_environment(url: SplitResult) -> str | None:
    """Read the system's proxy settings as urllib does. What stays on this machine needs no proxy."""
    from urllib.request import getproxies, proxy_bypass

    host = url.hostname or ""
    if is_loopback(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.netloc):
        return None
    return _checked_proxy(proxy if "://" in proxy else f"http://{proxy}")

"""Faults by rule: the rules decide which request or SSH connection meets which fault. No I/O; the servers carry it out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from random import Random
from typing import Any, Literal, Self, TypeAlias, get_args

import attrs

from netmind_rentgpu.emulator.calls import CALLS, ROUTES, Call

__all__ = [
    "CALLS_OF",
    "LARGEST",
    "METHODS",
    "OF_CONNECTIONS",
    "OPTIONS",
    "STATUSES",
    "Fault",
    "Faults",
    "Starting",
    "What",
]

# The faults that happen to an SSH connection to a container.
_OfConnection: TypeAlias = Literal[
    "ssh refuse",
    "ssh drop",
    "ssh freeze",
    "ssh no forwarding",
    "ssh latency",
    "ssh bandwidth",
    "kill supervisor",
]
OF_CONNECTIONS: tuple[_OfConnection, ...] = get_args(_OfConnection)
What: TypeAlias = Literal[
    "drop",
    "status",
    "rate limit",
    "hang",
    "slow",
    "html",
    "cut body",
    "wrong json",
    "wrong shape",
    "stock-out",
    "late commit",
    "never starts",
    "never reachable",
    "dies",
    "vanishes",
    "moves",
    _OfConnection,
]
# More bytes than a login by password needs, which are about 6,000.
_AFTER_THE_LOGIN = 16_384
# The options of each fault beside its choice of requests, with their defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "drop": {"when": "before"},
    "status": {"when": "before", "status": None},
    "rate limit": {"retry_after": None},
    "hang": {"when": "before"},
    "slow": {"when": "before", "seconds": 1.0},
    "html": {"when": "before"},
    "late commit": {"seconds": 5.0},
    "vanishes": {"seconds": 10.0},
    "ssh drop": {"after_bytes": _AFTER_THE_LOGIN},
    "ssh freeze": {"after_bytes": None, "seconds": None},
    "ssh latency": {"seconds": 0.2},
    "ssh bandwidth": {"bytes_per_second": 65_536},
    "kill supervisor": {"seconds": 1.0},
}
_ALL_OPTIONS = ("when", "status", "retry_after", "seconds", "after_bytes", "bytes_per_second")
_BOOT: tuple[Call, ...] = ("create_container", "restart_container")
# The faults that only some calls can meet. Without `call`, a fault is for the first of these. No call is an SSH connection.
CALLS_OF: dict[str, tuple[Call, ...]] = {
    "stock-out": ("create_container",),
    "late commit": (
        "create_container",
        "create_auth",
        "create_image",
        "stop_container",
        "restart_container",
        "delete_container",
    ),
    "never starts": _BOOT,
    "never reachable": _BOOT,
    "dies": _BOOT,
    "vanishes": _BOOT,
    "moves": ("restart_container",),
    **dict.fromkeys(OF_CONNECTIONS, ()),
}
# The faults that happen to a container that starts. All that are in neither list happen to a request.
_OF_CONTAINERS = frozenset({"stock-out", "never starts", "never reachable", "dies", "vanishes", "moves"})
_NOT_OF_ANSWERS = _OF_CONTAINERS.union(OF_CONNECTIONS)
_CONTAINER = ROUTES["get_container"][1]
LARGEST = 1e9
METHODS = ("GET", "POST", "DELETE")
STATUSES = (400, 401, 403, 404, 408, 409, 500, 502, 503, 504)


def _one_of(choices: Any) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in choices:
            raise ValueError(f"'{attribute.name}' must be one of {', '.join(map(repr, choices))}, not {value!r}")

    return check


def _from(least: float, most: float) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        # By `type`, because `isinstance(True, int)` is true.
        if type(value) not in (int, float) or not least <= value <= most:
            raise ValueError(f"'{attribute.name}' must be a number from {least:g} to {most:g}, not {value!r}")

    return check


def _count(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not int or value < 1:
        or_all = ', or "all"' if attribute.name == "times" else ""
        raise ValueError(f"'{attribute.name}' must be a whole number from 1 on{or_all}, not {value!r}")


def _size(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise ValueError(f"'{attribute.name}' must be a whole number from 0 to {LARGEST:g}, not {value!r}")


def _times(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value != "all":
        _count(instance, attribute, value)


def _default_times(fault: Fault) -> int | Literal["all"]:
    return 1 if fault.probability is None else "all"


def _may_match(pattern: str, route: str) -> bool:
    """Check if a pattern can match a path of a route, judged by the pattern's text before its first wildcard."""
    literal = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    if literal == pattern:
        return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), pattern) is not None
    before, variable, _ = route.partition("{")
    return before.startswith(literal) or (bool(variable) and literal.startswith(before))


def _or_none(validator: Any) -> Any:
    return attrs.validators.optional(validator)


def _whole(value: Any) -> Any:
    """Convert a float such as 5.0 to 5, because JSON does not tell them apart. The validator refuses any other float."""
    return int(value) if type(value) is float and value.is_integer() else value


def _optional(validator: Any, converter: Any = None) -> Any:
    return attrs.field(default=None, kw_only=True, validator=_or_none(validator), converter=converter)


@attrs.frozen
class Fault:
    """A fault, and the rule that chooses the requests or SSH connections that meet it.

    Faults that happen to an answer:
        drop: the connection breaks without an answer.
        status: an error answer with the number in `status`.
        rate limit: 429, always before the service acts. The header `Retry-After` is `retry_after`, rounded up, if given.
        hang: no answer for as long as the emulator runs.
        slow: the answer takes `seconds` longer. The service acts even if the client disconnects meanwhile.
        html: a page of HTML with status 200, as from a gateway.
        cut body: the connection breaks halfway through the answer's body, or without an answer if that has no body.
        wrong json: the service's answer with a body that is not JSON. In place of a 204, the connection breaks.
        wrong shape: the service's answer with a body of an undocumented shape. In place of a 204, the connection breaks.
        late commit: the connection breaks without an answer, and the service acts `seconds` later.

    Faults that happen to a container:
        stock-out: the service refuses the create, though the machine is listed with enough free GPUs.
        never starts: the container stays in its starting state.
        never reachable: the container seems to run, but its endpoint has port 1, where nothing listens.
        dies: the container fails halfway through its start. It costs money until it is deleted.
        vanishes: the container disappears `seconds` after it begins to run, as if it was deleted.
        moves: the container has another address after a restart.

    Faults that happen to an SSH connection to a container, of an emulator with `ssh=True`:
        ssh refuse: the connection is closed before the server sends its banner.
        ssh drop: the TCP connection is reset once `after_bytes` bytes have passed in both directions together.
        ssh freeze: nothing passes in either direction any more, and the connection stays open.
        ssh no forwarding: the server refuses to forward ports, in both directions.
        ssh latency: each piece of data passes `seconds` later, in each direction. The throughput has no limit.
        ssh bandwidth: each direction passes at most `bytes_per_second`.
        kill supervisor: the supervisor of a job is killed by SIGKILL once it has run for `seconds`.

    A stock-out is for create_container, and moves is for restart_container. The faults never starts, never reachable, dies
    and vanishes are for both. A late commit is for both, create_auth, create_image, stop_container and delete_container. All
    other faults of an answer are for any call.

    A connection meets all faults of SSH connections that match it: latencies add up, and of several limits the least
    counts. Every TCP connection to a container's port counts when it is accepted, even if the client sends nothing. A
    connection freezes after `after_bytes` bytes in both directions together or `seconds` after it was accepted, whichever
    comes first.

    For kill supervisor, the emulator looks for the container's oldest process with the argument `netmind-job-supervisor`,
    from the start of the connection until it has killed one, or until the container stops. The fault counts as met at once.
    Only Linux, which has /proc, finds the process.

    Attributes:
        what: the name of the fault, from the lists above.
        call: the call that can meet the fault; None for any call. The calls are list_machines, create_auth, list_auths,
            get_auth, create_image, list_images, get_image, create_container, list_containers, get_container,
            stop_container, restart_container and delete_container. A late commit and the faults of a container are for
            create_container by default, and moves for restart_container.
        method, path: the HTTP method and the path of the requests that can meet the fault; None for any. A path begins with
            /v1/rentgpu/, and * in it matches any text. A fault of an SSH connection takes the path of the container, such as
            /v1/rentgpu/containers/7, and neither call nor method.
        when: "before" if the fault happens before the service acts, "after" if it happens afterwards; by default before.
        status: the number for the fault `status`: 400, 401, 403, 404, 408, 409, 500, 502, 503 or 504.
        retry_after: seconds.
        seconds: seconds of real time for `slow` and for faults of SSH connections, seconds by the emulator's clock for other
            faults.
        after_bytes: a number of bytes on the TCP connection. A login needs about 6,000. The default is 16,384, but `ssh
            freeze` with `seconds` has no default.
        bytes_per_second: the bytes on the TCP connection in a second, from 1 on; by default 65,536.
        nth: the first of the matching requests or connections that can meet the fault, counted from 1. For a fault of a
            container, only requests that start a container count; for a stock-out, the requests that it refuses count, too.
        times: how many requests or connections meet the fault at most, or "all". The default is 1, or "all" if a probability
            is given.
        probability: the probability with which each of these requests or connections meets the fault, drawn by the
            emulator's seed; None for certainty.
    """

    what: What = attrs.field(validator=_one_of(get_args(What)))
    call: Call | None = _optional(_one_of(CALLS))
    method: Literal["GET", "POST", "DELETE"] | None = _optional(_one_of(METHODS))
    path: str | None = _optional(attrs.validators.instance_of(str))
    when: Literal["before", "after"] | None = _optional(_one_of(("before", "after")))
    status: int | None = _optional(_one_of(STATUSES), _whole)
    retry_after: float | None = _optional(_from(0, LARGEST))
    seconds: float | None = _optional(_from(0, LARGEST))
    after_bytes: int | None = _optional(_size, _whole)
    bytes_per_second: float | None = _optional(_from(1, LARGEST))
    nth: int = attrs.field(default=1, kw_only=True, validator=_count, converter=_whole)
    probability: float | None = _optional(_from(0, 1))
    times: int | Literal["all"] = attrs.field(
        default=attrs.Factory(_default_times, takes_self=True), kw_only=True, validator=_times, converter=_whole
    )

    def __attrs_post_init__(self) -> None:
        options = OPTIONS.get(self.what, {})
        for name in _ALL_OPTIONS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, options.get(name))
            elif name not in options:
                raise ValueError(f"{self.what!r} takes no {name}")
        if self.what == "status" and self.status is None:
            raise ValueError("'status' needs its number: status=502")
        if self.what == "ssh freeze" and self.after_bytes is None and self.seconds is None:
            object.__setattr__(self, "after_bytes", _AFTER_THE_LOGIN)
        calls = CALLS_OF.get(self.what)
        if calls:
            if self.call is None:
                object.__setattr__(self, "call", calls[0])
            elif self.call not in calls:
                raise ValueError(f"{self.what!r} is for {', '.join(calls)}, not {self.call}")
        self._check_matchable()

    def _check_matchable(self) -> None:
        """Raise ValueError if no request or SSH connection can meet the fault."""
        if self.what in OF_CONNECTIONS:
            for name in ("call", "method"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{self.what!r} takes no {name}, because SSH connections meet it; choose containers by path"
                    )
            if self.path is not None and not _may_match(self.path, _CONTAINER):
                raise ValueError(f"'path' matches no path that can meet this: {_CONTAINER}")
            return
        routes = [ROUTES[call] for call in CALLS if self.call in (None, call)]
        if all(self.method not in (None, method) for method, _ in routes):
            raise ValueError(f"{self.call} is a {routes[0][0]}, so that no {self.method} can meet this")
        paths = [path for method, path in routes if self.method in (None, method)]
        if self.path is not None and not any(_may_match(self.path, path) for path in paths):
            raise ValueError(f"'path' matches no path that can meet this: {', '.join(paths)}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Build a fault from a parsed TOML table or JSON object.

        Raises:
            ValueError: the mapping does not describe a fault.
        """
        names = [field.name for field in attrs.fields(cls)]
        if not isinstance(mapping, Mapping):  # because a file or a client may contain any value
            raise ValueError(f"a fault has {', '.join(names)}")  # noqa: TRY004  # the input is wrong, not the program
        if unknown := sorted(mapping.keys() - set(names)):
            raise ValueError(f"unknown: {', '.join(unknown)}; a fault has {', '.join(names)}")
        if nulls := [name for name, value in mapping.items() if value is None]:
            raise ValueError(f"{', '.join(nulls)} must not be null")
        if "what" not in mapping:
            raise ValueError(f"a fault needs 'what': one of {', '.join(get_args(What))}")
        try:
            return cls(**mapping)
        except (TypeError, ValueError) as error:
            # Only the message, because an error from attrs has the attribute and more in its args.
            raise ValueError(str(error.args[0])) from None

    def to_mapping(self) -> dict[str, Any]:
        """Convert the fault to a mapping that `from_mapping` reads."""
        return {name: value for name, value in attrs.asdict(self).items() if value is not None}


@attrs.define
class _Rule:
    """A fault in force, and how many requests or SSH connections it has seen.

    Attributes:
        first: True if the fault was in force in the beginning.
        matched: the number of requests or connections that matched.
        hit: the number of requests or connections that met the fault.
        counts_as_met: True if chance has decided about one of them, or if the fault was met before a reset.
    """

    fault: Fault
    random: Random
    first: bool
    matched: int = 0
    hit: int = 0
    counts_as_met: bool = False

    @property
    def met(self) -> bool:
        """True if a request or connection met the fault, or if chance decided that one of them did not meet it."""
        return self.hit > 0 or self.counts_as_met

    def matches(self, call: str, method: str, path: str) -> bool:
        fault = self.fault
        return fault.call in (None, call) and fault.method in (None, method) and self.matches_path(path)

    def matches_path(self, path: str) -> bool:
        return self.fault.path is None or fnmatchcase(path, self.fault.path)

    def would_hit(self) -> bool:
        """Decide if the next matching request or connection meets the fault."""
        fault = self.fault
        if self.matched + 1 < fault.nth or self.hit == fault.times:
            return False
        if fault.probability is None:
            return True
        self.counts_as_met = True
        return self.random.random() < fault.probability


class Faults:
    """The faults in force.

    If several faults of an answer match one request, the request meets the fault that was added first. The others wait for a
    later request. All faults of a container that match its start happen to it. All faults of an SSH connection that match a
    connection happen to it.
    """

    def __init__(self, seed: int, faults: Iterable[Fault] = ()) -> None:
        if isinstance(faults, Fault):
            raise TypeError("faults must be a list: [Fault(...)]")
        self._seed = seed
        self._first = tuple(faults)
        self._added = 0
        self._rules: tuple[_Rule, ...] = ()
        self._cleared: tuple[_Rule, ...] = ()
        self._begin()

    def reset(self) -> None:
        """Restore the faults of the beginning. `unmet` forgets all other faults."""
        met = [rule.met for rule in (*self._cleared, *self._rules) if rule.first]
        self._begin()
        # Otherwise `unmet` would list a fault that was met before the reset.
        for rule, was_met in zip(self._rules, met, strict=True):
            rule.counts_as_met = was_met

    def _begin(self) -> None:
        self._added = 0
        self._rules = self._cleared = ()
        for fault in self._first:
            self._add(fault, first=True)

    def add(self, fault: Fault) -> None:
        """Add a fault, which counts matching requests or SSH connections from now on."""
        self._add(fault, first=False)

    def _add(self, fault: Fault, *, first: bool) -> None:
        if not isinstance(fault, Fault):  # because tests are rarely type-checked
            raise TypeError(f"a fault must be a Fault, not {fault!r}")
        # Each rule has its own random sequence, because otherwise an additional rule would change the others' chances.
        random = Random(f"{self._seed} {self._added}")  # noqa: S311  # repeatable on purpose
        self._added += 1
        # A new tuple, because another thread may iterate over the old tuple.
        self._rules = (*self._rules, _Rule(fault, random, first))

    def clear(self) -> None:
        """Remove all faults. `unmet` still lists the faults that nothing has met."""
        self._cleared = (*self._cleared, *(rule for rule in self._rules if rule.first or not rule.met))
        self._rules = ()

    @property
    def unmet(self) -> tuple[Fault, ...]:
        """The faults since the last reset that no request or SSH connection has met.

        A test with an unmet fault proves nothing about it. A fault counts as met after its first request or connection, also
        if its `times` are not used up. A fault with a `probability` counts as met after chance has decided about one.
        """
        return tuple(rule.fault for rule in (*self._cleared, *self._rules) if not rule.met)

    def __iter__(self) -> Iterator[Fault]:
        return (rule.fault for rule in self._rules)

    def meet(self, call: str, method: str, path: str) -> Fault | None:
        """Count a request to the service, and return the fault that its answer meets; None if there is none."""
        met: _Rule | None = None
        for rule in self._rules:
            if rule.fault.what in _NOT_OF_ANSWERS or not rule.matches(call, method, path):
                continue
            # Every rule draws, because otherwise one rule's result would change another rule's random sequence.
            if rule.would_hit() and met is None:
                met = rule
            rule.matched += 1
        if met is None:
            return None
        met.hit += 1
        return met.fault

    def start(self, call: str, method: str, path: str) -> Starting:
        """Choose the faults of the container that a request may start."""
        rules = [rule for rule in self._rules if rule.fault.what in _OF_CONTAINERS and rule.matches(call, method, path)]
        return Starting(rules, [rule for rule in rules if rule.would_hit()])

    def connect(self, container_id: int) -> tuple[Fault, ...]:
        """Count an SSH connection to a container, and return the faults that it meets."""
        path = _CONTAINER.format(container_id=container_id)
        met: list[Fault] = []
        for rule in self._rules:
            if rule.fault.what in OF_CONNECTIONS and rule.matches_path(path):
                if rule.would_hit():
                    rule.hit += 1
                    met.append(rule.fault)
                rule.matched += 1
        return tuple(met)


class Starting:
    """The start of a container, with the faults that happen to it if the service starts it.

    Attributes:
        faults: the faults of the container.
    """

    def __init__(self, rules: Sequence[_Rule], hitting: Sequence[_Rule]) -> None:
        self._rules = rules
        self._hitting = hitting
        self.faults: tuple[Fault, ...] = tuple(rule.fault for rule in hitting)

    def done(self) -> None:
        """Count the start, because the service started the container."""
        self._count(self._rules, self._hitting)

    def refused(self) -> None:
        """Count the stock-out that prevented the start. The other faults wait for the next container."""
        self._count(
            [rule for rule in self._rules if rule.fault.what == "stock-out"],
            [rule for rule in self._hitting if rule.fault.what == "stock-out"][:1],
        )

    @staticmethod
    def _count(rules: Sequence[_Rule], hitting: Sequence[_Rule]) -> None:
        for rule in rules:
            rule.matched += 1
        for rule in hitting:
            rule.hit += 1

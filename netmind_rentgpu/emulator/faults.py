"""What goes wrong, by rule: which request meets which fault. No I/O; who serves the request does what is decided here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from random import Random
from typing import Any, Literal, Self, TypeAlias, get_args

import attrs

from netmind_rentgpu.emulator.calls import CALLS, ROUTES, Call

__all__ = ["CALLS_OF", "LARGEST", "METHODS", "OPTIONS", "STATUSES", "Fault", "Faults", "Starting", "What"]

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
]
# What each may be told beside which requests it is for, and the default.
OPTIONS: dict[str, dict[str, Any]] = {
    "drop": {"when": "before"},
    "status": {"when": "before", "status": None},
    "rate limit": {"retry_after": None},
    "hang": {"when": "before"},
    "slow": {"when": "before", "seconds": 1.0},
    "html": {"when": "before"},
    "late commit": {"seconds": 5.0},
    "vanishes": {"seconds": 10.0},
}
_BOOT: tuple[Call, ...] = ("create_container", "restart_container")
# Those that are for some calls only; the first is meant where none is named.
CALLS_OF: dict[str, tuple[Call, ...]] = {
    "stock-out": ("create_container",),
    "late commit": ("create_container", "create_auth", "create_image", *CALLS[-3:]),
    "never starts": _BOOT,
    "never reachable": _BOOT,
    "dies": _BOOT,
    "vanishes": _BOOT,
    "moves": ("restart_container",),
}
# They wait for a container to meet; all others meet requests.
_OF_CONTAINERS = frozenset({"stock-out", "never starts", "never reachable", "dies", "vanishes", "moves"})
LARGEST = 1e9
METHODS = ("GET", "POST", "DELETE")
STATUSES = (400, 401, 403, 404, 408, 409, 500, 502, 503, 504)


def _one_of(choices: Any) -> Any:
    return attrs.validators.in_(choices)


def _from(least: float, most: float) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        # To Python, True is 1.
        if type(value) not in (int, float) or not least <= value <= most:
            raise ValueError(f"'{attribute.name}' must be a number from {least:g} to {most:g}, not {value!r}")

    return check


def _count(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not int or value < 1:
        also = ', or "all"' if attribute.name == "times" else ""
        raise ValueError(f"'{attribute.name}' must be a whole number from 1 on{also}, not {value!r}")


def _times(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value != "all":
        _count(instance, attribute, value)


def _usual_times(fault: Fault) -> int | Literal["all"]:
    return 1 if fault.probability is None else "all"


def _may_match(pattern: str, route: str) -> bool:
    """Tell whether a pattern may match a path of a route, as far as what comes before its first wildcard tells."""
    literal = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    if literal == pattern:
        return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), pattern) is not None
    before, variable, _ = route.partition("{")
    return before.startswith(literal) or (bool(variable) and literal.startswith(before))


def _or_none(validator: Any) -> Any:
    return attrs.validators.optional(validator)


def _whole(value: Any) -> Any:
    """Read 5.0 as 5, as JSON does, and leave to the field's check what is no whole number."""
    return int(value) if type(value) is float and value.is_integer() else value


def _optional(validator: Any, converter: Any = None) -> Any:
    return attrs.field(default=None, kw_only=True, validator=_or_none(validator), converter=converter)


@attrs.frozen
class Fault:
    """A rule: some requests meet this.

    What happens to an answer:
        drop: the connection breaks without one.
        status: an error, its number in `status`.
        rate limit: 429, with `Retry-After: retry_after`, rounded up, where that is given; always before the service acts.
        hang: nothing is answered, as long as the emulator runs.
        slow: it takes `seconds` longer; a client that leaves meanwhile does not keep the service from acting.
        html: a page of HTML with status 200, as from a gateway.
        cut body: the connection breaks halfway through the service's answer, or before one without a body.
        wrong json: the service's answer, but its body is not JSON. In place of a 204, the connection breaks.
        wrong shape: the service's answer, but its body has a shape that nobody documented. A 204 as above.

    What happens to a container:
        stock-out: the machine refuses, though it is listed.
        late commit: the connection breaks, and `seconds` later the service acts after all.
        never starts: it stays as it is while it starts, for good.
        never reachable: it seems to run, and names an endpoint where nothing listens (port 1).
        dies: halfway through its start; it costs until it is deleted.
        vanishes: `seconds` after it began to run it is gone, as if deleted.
        moves: a restart brings it back on another address.

    A stock-out is for create_container, and moves is for restart_container. The other four that happen to a container, never
    starts, never reachable, dies and vanishes, are for both; a late commit is for both, create_auth, create_image,
    stop_container and delete_container. Where no call is named, these mean create_container. All that happens to an answer
    is for any call.

    Attributes:
        what: one of these.
        call: for which of the service's calls, as `create_container`; any, where the fault is not for some only.
        method, path: for which requests; in a path, which begins with /v1/rentgpu/, * stands for anything.
        when: before the service acts, or after.
        status: of `status`: one of 400, 401, 403, 404, 408, 409, 500, 502, 503 and 504.
        retry_after: seconds.
        seconds: of `slow`, real ones; of the others, by the emulator's clock.
        nth: the first of the matching requests that can meet it, from 1 on. Of what happens to a container: the first of
            those that the service starts, or else would have started; what it refuses anyway uses nothing up.
        times: how many meet it at most, from that one on, or "all". Where this is not given: one, and all where a
            probability is given, 1.0 included.
        probability: with which each of those meets it, under the emulator's seed; None for 1.0.
    """

    what: What = attrs.field(validator=_one_of(get_args(What)))
    call: Call | None = _optional(_one_of(CALLS))
    method: Literal["GET", "POST", "DELETE"] | None = _optional(_one_of(METHODS))
    path: str | None = _optional(attrs.validators.instance_of(str))
    when: Literal["before", "after"] | None = _optional(_one_of(("before", "after")))
    status: int | None = _optional(_one_of(STATUSES), _whole)
    retry_after: float | None = _optional(_from(0, LARGEST))
    seconds: float | None = _optional(_from(0, LARGEST))
    nth: int = attrs.field(default=1, kw_only=True, validator=_count, converter=_whole)
    probability: float | None = _optional(_from(0, 1))
    times: int | Literal["all"] = attrs.field(
        default=attrs.Factory(_usual_times, takes_self=True), kw_only=True, validator=_times, converter=_whole
    )

    def __attrs_post_init__(self) -> None:
        options = OPTIONS.get(self.what, {})
        for name in ("when", "status", "retry_after", "seconds"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, options.get(name))
            elif name not in options:
                raise ValueError(f"{self.what!r} takes no {name}")
        if self.what == "status" and self.status is None:
            raise ValueError("'status' needs its number: status=502")
        calls = CALLS_OF.get(self.what)
        if calls is not None:
            if self.call is None:
                object.__setattr__(self, "call", calls[0])
            elif self.call not in calls:
                raise ValueError(f"{self.what!r} is for {', '.join(calls)}, not {self.call}")
        self._check_that_a_request_can_meet_it()

    def _check_that_a_request_can_meet_it(self) -> None:
        routes = [ROUTES[call] for call in CALLS if self.call in (None, call)]
        if all(self.method not in (None, method) for method, _ in routes):
            raise ValueError(f"{self.call} is a {routes[0][0]}, so that no {self.method} can meet this")
        paths = [path for method, path in routes if self.method in (None, method)]
        if self.path is not None and not any(_may_match(self.path, path) for path in paths):
            raise ValueError(f"'path' matches no path that can meet this: {', '.join(paths)}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Read a rule from what TOML or JSON gives.

        Raises:
            ValueError: it is none.
        """
        names = [field.name for field in attrs.fields(cls)]
        if not isinstance(mapping, Mapping):  # a file or a client may send anything
            raise ValueError(f"a fault has {', '.join(names)}")  # noqa: TRY004  # what was sent is what is wrong
        if unknown := sorted(mapping.keys() - set(names)):
            raise ValueError(f"unknown: {', '.join(unknown)}; a fault has {', '.join(names)}")
        if nothing := [name for name, value in mapping.items() if value is None]:
            raise ValueError(f"{', '.join(nothing)} must not be null")
        if "what" not in mapping:
            raise ValueError(f"a fault needs 'what': one of {', '.join(get_args(What))}")
        try:
            return cls(**mapping)
        except (TypeError, ValueError) as error:
            # attrs' own go on with the whole attribute.
            raise ValueError(str(error.args[0])) from None

    def to_mapping(self) -> dict[str, Any]:
        """Write it as `from_mapping` reads it."""
        return {name: value for name, value in attrs.asdict(self).items() if value is not None}


@attrs.define
class _Rule:
    fault: Fault
    random: Random
    first: bool
    matched: int = 0
    hit: int = 0
    counts_as_met: bool = False

    @property
    def met(self) -> bool:
        """True if a request met the fault, or could have: by chance it did not."""
        return self.hit > 0 or self.counts_as_met

    def matches(self, call: str, method: str, path: str) -> bool:
        fault = self.fault
        return (
            fault.call in (None, call)
            and fault.method in (None, method)
            and (fault.path is None or fnmatchcase(path, fault.path))
        )

    def would_hit(self) -> bool:
        """Decide for the next request that matches."""
        fault = self.fault
        if self.matched + 1 < fault.nth or self.hit == fault.times:
            return False
        if fault.probability is None:
            return True
        self.counts_as_met = True
        return self.random.random() < fault.probability


class Faults:
    """The rules in force. Of those that would change one answer, the first one added does, and the others wait."""

    def __init__(self, seed: int, faults: Iterable[Fault] = ()) -> None:
        if isinstance(faults, Fault):
            raise TypeError("faults must be a list of them: [Fault(...)]")
        self._seed = seed
        self._first = tuple(faults)
        self._added = 0
        self._rules: tuple[_Rule, ...] = ()
        self._cleared: tuple[_Rule, ...] = ()
        self._begin()

    def reset(self) -> None:
        """Put into force what was in the beginning, and nothing else; `unmet` forgets all others."""
        met = [rule.met for rule in (*self._cleared, *self._rules) if rule.first]
        self._begin()
        # A fault of the beginning that was met once need not be met again.
        for rule, was_met in zip(self._rules, met, strict=True):
            rule.counts_as_met = was_met

    def _begin(self) -> None:
        self._added = 0
        self._rules = self._cleared = ()
        for fault in self._first:
            self._add(fault, first=True)

    def add(self, fault: Fault) -> None:
        """Put a rule into force; it counts requests from now on."""
        self._add(fault, first=False)

    def _add(self, fault: Fault, *, first: bool) -> None:
        if not isinstance(fault, Fault):  # tests are rarely type-checked
            raise TypeError(f"a fault must be a Fault, not {fault!r}")
        # A random sequence for each rule, so that one rule more leaves the others as they were.
        random = Random(f"{self._seed} {self._added}")  # noqa: S311  # to be repeatable is the point
        self._added += 1
        # A new tuple, because another thread may iterate over the old one.
        self._rules = (*self._rules, _Rule(fault, random, first))

    def clear(self) -> None:
        """Put all rules out of force; `unmet` still lists those that no request has met."""
        self._cleared = (*self._cleared, *(rule for rule in self._rules if rule.first or not rule.met))
        self._rules = ()

    @property
    def unmet(self) -> tuple[Fault, ...]:
        """The faults since the last reset that no request has met, so that a test with them proves nothing of them.

        A fault counts as met once one request has met it, whatever its `times`, and a fault with a `probability` once
        chance has decided about one request.
        """
        return tuple(rule.fault for rule in (*self._cleared, *self._rules) if not rule.met)

    def __iter__(self) -> Iterator[Fault]:
        return (rule.fault for rule in self._rules)

    def meet(self, call: str, method: str, path: str) -> Fault | None:
        """Count a request of the service, and decide what happens to its answer."""
        met: _Rule | None = None
        for rule in self._rules:
            if rule.fault.what in _OF_CONTAINERS or not rule.matches(call, method, path):
                continue
            # Each draws for itself, whatever the others do.
            if rule.would_hit() and met is None:
                met = rule
            rule.matched += 1
        if met is None:
            return None
        met.hit += 1
        return met.fault

    def start(self, call: str, method: str, path: str) -> Starting:
        """Decide what happens to the container that a request is about to start."""
        rules = [rule for rule in self._rules if rule.fault.what in _OF_CONTAINERS and rule.matches(call, method, path)]
        return Starting(rules, [rule for rule in rules if rule.would_hit()])


class Starting:
    """What happens to a container, if the service starts it.

    Attributes:
        faults: what happens to it.
    """

    def __init__(self, rules: Sequence[_Rule], hitting: Sequence[_Rule]) -> None:
        self._rules = rules
        self._hitting = hitting
        self.faults: tuple[Fault, ...] = tuple(rule.fault for rule in hitting)

    def done(self) -> None:
        """Count it: the service did start it."""
        self._count(self._rules, self._hitting)

    def refused(self) -> None:
        """Count the stock-out for which the service did not; what else was to happen waits for another container."""
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

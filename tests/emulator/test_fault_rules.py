"""Rules of faults: the requests that a rule chooses, and the rules that are refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.emulator import Emulator, Fault, Faults
from netmind_rentgpu.emulator.faults import CALLS_OF, OF_CONNECTIONS, OPTIONS

GET = [("list_containers", "GET", "/v1/rentgpu/containers/")]
ONE = [("get_container", "GET", "/v1/rentgpu/containers/7")]
DELETE = [("delete_container", "DELETE", "/v1/rentgpu/containers/7")]


def hits(fault: Fault, requests: list[tuple[str, str, str]], seed: int = 0) -> list[int]:
    """Return the numbers of the requests that meet a fault."""
    faults = Faults(seed, [fault])
    return [number for number, request in enumerate(requests, 1) if faults.meet(*request) is not None]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, [1]),
        ({"times": "all"}, [1, 2, 3, 4, 5, 6]),
        ({"nth": 3}, [3]),
        ({"nth": 3, "times": 2}, [3, 4]),
        ({"nth": 5, "times": "all"}, [5, 6]),
        ({"nth": 7}, []),
        ({"call": "get_container"}, [2]),
        ({"call": "get_container", "nth": 2}, [5]),
        ({"method": "DELETE", "times": "all"}, [3, 6]),
        ({"path": "*/containers/7", "times": "all"}, [2, 3, 5, 6]),
        ({"path": "*/containers/7", "method": "GET", "nth": 2}, [5]),
        ({"path": "/v1/rentgpu/containers/8"}, []),
        ({"path": "/v1/rentgpu/containers/[78]", "times": "all"}, [2, 3, 5, 6]),
        ({"probability": 0.0, "times": "all"}, []),
        ({"probability": 0.999999, "call": "get_container"}, [2, 5]),
        ({"probability": 0.999999, "times": 1}, [1]),
        ({"probability": 1.0}, [1, 2, 3, 4, 5, 6]),
        ({"probability": 1, "times": 2}, [1, 2]),
    ],
)
def test_rule_chooses_the_requests_that_meet_its_fault(rule: dict[str, Any], expected: list[int]) -> None:
    assert hits(Fault("drop", **rule), [*GET, *ONE, *DELETE] * 2) == expected


@given(st.integers(), st.floats(0, 1))
def test_probability_draws_follow_the_seed(seed: int, probability: float) -> None:
    fault = Fault("drop", probability=probability, times="all")
    assert hits(fault, GET * 200, seed) == hits(fault, GET * 200, seed)
    # Another rule does not change the draws.
    faults = Faults(seed, [fault, Fault("hang", probability=0.5, times="all")])
    met = [faults.meet(*GET[0]) for _ in range(200)]
    assert [number for number, answer in enumerate(met, 1) if answer == fault] == hits(fault, GET * 200, seed)


def test_rules_for_the_same_requests_apply_in_turn() -> None:
    faults = Faults(0, [Fault("status", status=500, times=2), Fault("status", status=502), Fault("drop", nth=2)])
    met = [faults.meet(*GET[0]) for _ in range(6)]
    assert [None if fault is None else fault.status or fault.what for fault in met] == [
        500,
        500,
        502,
        "drop",
        None,
        None,
    ]


def test_probability_is_the_share_of_requests_that_meet_the_fault() -> None:
    assert 250 < len(hits(Fault("drop", probability=0.3, times="all"), GET * 1000)) < 350


def test_faults_can_be_added_and_cleared() -> None:
    faults = Faults(0)
    assert faults.meet(*GET[0]) is None
    faults.add(Fault("drop"))
    assert list(faults) == [Fault("drop")]
    faults.clear()
    assert list(faults) == []


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"what": "sabotage"}, "'what' must be one of"),
        ({"what": "drop", "call": "list_everything"}, "'call' must be one of"),
        ({"what": "drop", "method": "get"}, "'method' must be one of"),
        ({"what": "drop", "path": 7}, "'path' must be <class 'str'>"),
        ({"what": "drop", "when": "during"}, "'when' must be one of"),
        ({"what": "drop", "seconds": 1}, "'drop' takes no seconds"),
        ({"what": "drop", "status": 500}, "'drop' takes no status"),
        ({"what": "status"}, "'status' needs its number"),
        ({"what": "status", "status": 200}, "'status' must be one of"),
        ({"what": "rate limit", "when": "after"}, "'rate limit' takes no when"),
        ({"what": "rate limit", "retry_after": -1}, "'retry_after' must be a number from 0 to 1e+09, not -1"),
        ({"what": "cut body", "when": "before"}, "'cut body' takes no when"),
        ({"what": "slow", "seconds": float("nan")}, "'seconds' must be a number"),
        ({"what": "slow", "seconds": True}, "'seconds' must be a number"),
        ({"what": "moves", "call": "create_container"}, "'moves' is for restart_container, not create_container"),
        ({"what": "late commit", "call": "get_auth"}, "'late commit' is for create_container, "),
        ({"what": "drop", "nth": 0}, "'nth' must be a whole number from 1 on, not 0"),
        ({"what": "drop", "nth": True}, "'nth' must be a whole number"),
        ({"what": "drop", "times": 1.5}, "'times' must be a whole number from 1 on, or \"all\", not 1.5"),
        ({"what": "drop", "times": None}, "times must not be null"),
        ({"what": "drop", "probability": 1.1}, "'probability' must be a number from 0 to 1, not 1.1"),
        ({"what": "drop", "call": None}, "call must not be null"),
        ({"what": "drop", "call": "get_auth", "method": "POST"}, "get_auth is a GET, so that no POST can meet this"),
        ({"what": "dies", "method": "DELETE"}, "create_container is a POST, so that no DELETE can meet this"),
        (
            {"what": "drop", "path": "/containers/7"},
            "'path' matches no path that can meet this: /v1/rentgpu/machines, ",
        ),
        ({"what": "drop", "path": "/containers/*"}, "'path' matches no path"),
        ({"what": "drop", "path": "/v1/rentgpu/machines/"}, "'path' matches no path"),
        ({"what": "drop", "path": "/v1/rentgpu/machines/*", "call": "list_machines"}, "'path' matches no path"),
        (
            {"what": "drop", "path": "/v1/rentgpu/containers/7/*", "method": "GET", "call": "get_auth"},
            "'path' matches no",
        ),
        ({"what": "drop", "path": "*/machines", "method": "DELETE", "call": None}, "call must not be null"),
        (
            {"what": "ssh refuse", "call": "get_container"},
            "'ssh refuse' takes no call, because SSH connections meet it; choose containers by path",
        ),
        ({"what": "kill supervisor", "method": "GET"}, "'kill supervisor' takes no method, because SSH connections"),
        ({"what": "ssh drop", "seconds": 1}, "'ssh drop' takes no seconds"),
        ({"what": "ssh drop", "after_bytes": -1}, "'after_bytes' must be a whole number from 0 to 1e+09, not -1"),
        ({"what": "ssh drop", "after_bytes": 1.5}, "'after_bytes' must be a whole number from 0 to 1e+09, not 1.5"),
        ({"what": "ssh drop", "after_bytes": True}, "'after_bytes' must be a whole number"),
        ({"what": "ssh drop", "after_bytes": None}, "after_bytes must not be null"),
        ({"what": "ssh freeze", "seconds": -1}, "'seconds' must be a number from 0 to 1e+09, not -1"),
        ({"what": "ssh refuse", "after_bytes": 0}, "'ssh refuse' takes no after_bytes"),
        ({"what": "ssh no forwarding", "when": "after"}, "'ssh no forwarding' takes no when"),
        (
            {"what": "ssh bandwidth", "bytes_per_second": 0.5},
            "'bytes_per_second' must be a number from 1 to 1e+09, not",
        ),
        ({"what": "ssh latency", "bytes_per_second": 5}, "'ssh latency' takes no bytes_per_second"),
        ({"what": "hang", "after_bytes": 5}, "'hang' takes no after_bytes"),
        (
            {"what": "ssh drop", "path": "/v1/rentgpu/containers/"},
            "'path' matches no path that can meet this: /v1/rentgpu/c",
        ),
        ({"what": "ssh drop", "path": "/v1/rentgpu/machines"}, "'path' matches no path"),
        ({"what": "drop", "path": "/v1/rentgpu/containers/7/stop", "call": "get_container"}, "'path' matches no path"),
    ],
)
def test_invalid_rule_is_refused_with_its_reason(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared below
        Fault.from_mapping(rule)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop", when="after", call="get_auth", nth=3, times="all"),
        Fault("status", status=502, method="GET", path="*"),
        Fault("vanishes", seconds=0.5, probability=0.25),
        *map(Fault, OF_CONNECTIONS),
        Fault("ssh drop", after_bytes=0, path="/v1/rentgpu/containers/7", nth=3, times="all"),
        Fault("ssh freeze", after_bytes=7, seconds=0.5, path="*/containers/*"),
        Fault("ssh freeze", seconds=1.5),
        Fault("ssh bandwidth", bytes_per_second=1.5, probability=0.5),
    ],
)
def test_rule_survives_a_round_trip_through_json(fault: Fault) -> None:
    assert Fault.from_mapping(json.loads(json.dumps(fault.to_mapping()))) == fault


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faults": Fault("drop")}, "faults must be a list: [Fault(...)]"),
        ({"faults": [{"what": "drop"}]}, "a fault must be a Fault, not {'what': 'drop'}"),
        ({"world": {"ssh": "url"}}, "world must be a World or the name of a preset, not {'ssh': 'url'}"),
        ({"world": None}, "world must be a World or the name of a preset, not None"),
        ({"clock": 0}, "clock must be a Clock, as Clock(scale=0), not 0"),
    ],
)
def test_emulator_refuses_options_of_the_wrong_type(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        Emulator(**options)
    assert str(caught.value) == message


def test_docstring_of_fault_names_the_calls_of_each_fault() -> None:
    text = " ".join((Fault.__doc__ or "").split())
    for what, calls in CALLS_OF.items():
        assert what in text
        assert all(call in text for call in calls)
    for what in OF_CONNECTIONS:
        assert all(option in text for option in OPTIONS.get(what, {}))


def test_whole_number_may_be_a_json_float() -> None:
    assert Fault.from_mapping({"what": "status", "status": 502.0, "nth": 2.0}) == Fault("status", status=502, nth=2)

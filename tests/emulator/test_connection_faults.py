"""The combined faults of one SSH connection, and the arithmetic of its bytes and moments."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.emulator import Fault, Faults
from netmind_rentgpu.emulator.connection_faults import PIECE, ConnectionFaults, Pace, Quota


@pytest.mark.parametrize(
    ("faults", "expected", "needs_a_relay"),
    [
        ([], {}, False),
        ([Fault("ssh refuse")], {"is_refused": True}, False),
        ([Fault("ssh no forwarding")], {"forwards_ports": False}, False),
        ([Fault("kill supervisor"), Fault("kill supervisor", seconds=5)], {"supervisor_ages": (1.0, 5.0)}, False),
        ([Fault("ssh drop", after_bytes=9), Fault("ssh drop", after_bytes=0)], {"drop_after": 0}, True),
        ([Fault("ssh freeze")], {"freeze_after": 16_384}, True),
        ([Fault("ssh freeze", seconds=0)], {"freeze_at": 0}, True),
        (
            [Fault("ssh freeze", seconds=3, after_bytes=9), Fault("ssh freeze", seconds=2)],
            {"freeze_at": 2, "freeze_after": 9},
            True,
        ),
        ([Fault("ssh latency"), Fault("ssh latency", seconds=0.3)], {"latency": 0.5}, True),
        ([Fault("ssh latency", seconds=0)], {}, False),
        ([Fault("ssh bandwidth"), Fault("ssh bandwidth", bytes_per_second=1e9)], {"bandwidth": 65_536}, True),
        (
            [Fault("ssh drop"), Fault("ssh latency", seconds=2), Fault("ssh no forwarding")],
            {"drop_after": 16_384, "latency": 2, "forwards_ports": False},
            True,
        ),
    ],
)
def test_all_faults_of_a_connection_are_combined(
    faults: list[Fault], expected: dict[str, Any], needs_a_relay: bool
) -> None:
    combined = ConnectionFaults.of(faults)
    assert combined == ConnectionFaults(**expected)
    assert combined.need_a_relay is needs_a_relay


@given(st.integers(0, 500), st.lists(st.integers(0, 200), max_size=20))
def test_quota_allows_exactly_its_bytes(limit: int, sizes: list[int]) -> None:
    quota = Quota(drop_after=limit)
    allowed = [quota.reserve(size) for size in sizes]
    assert sum(allowed) == min(limit, sum(sizes))
    # Bytes on the way do not count yet.
    assert quota.is_spent is (limit == 0)
    for size in allowed:
        quota.confirm(size)
    assert quota.is_spent is (sum(sizes) >= limit)


@pytest.mark.parametrize(
    ("limits", "stop"),
    [
        ({"drop_after": 5}, "drop"),
        ({"freeze_after": 5}, "freeze"),
        ({"drop_after": 5, "freeze_after": 6}, "drop"),
        ({"drop_after": 6, "freeze_after": 5}, "freeze"),
        ({"drop_after": 5, "freeze_after": 5}, "drop"),
    ],
)
def test_smaller_quota_decides_how_the_connection_stops(limits: dict[str, float], stop: str) -> None:
    quota = Quota(**limits)
    assert quota.stop == stop
    quota.confirm(quota.reserve(5))
    assert quota.is_spent


def test_quota_without_a_limit_is_never_spent() -> None:
    quota = Quota()
    assert quota.reserve(10**12) == 10**12
    quota.confirm(10**12)
    assert not quota.is_spent


@given(st.floats(1, 1e9), st.lists(st.tuples(st.floats(0, 10), st.integers(0, PIECE)), min_size=1))
def test_pace_never_exceeds_the_bandwidth(bandwidth: float, arrivals: list[tuple[float, int]]) -> None:
    pace = Pace(bandwidth)
    assert 1 <= pace.piece <= PIECE
    now = free = 0.0
    for pause, size in arrivals:
        now += pause
        moment = pace.moment(now, size)
        assert moment >= max(now, free)
        assert moment - max(now, free) == pytest.approx(size / bandwidth, abs=1e-6)
        free = moment


def test_pace_without_a_limit_delays_nothing() -> None:
    pace = Pace(inf)
    assert (pace.piece, pace.moment(7.0, PIECE)) == (PIECE, 7.0)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, [1]),
        ({"nth": 2, "times": 2}, [2, 3]),
        ({"times": "all"}, [1, 2, 3, 4, 5, 6]),
        ({"path": "/v1/rentgpu/containers/8", "nth": 2}, [4]),
        ({"path": "*/[78]", "times": "all"}, [1, 2, 3, 4, 5, 6]),
        ({"path": "*/9"}, []),
        ({"probability": 1.0, "times": 2}, [1, 2]),
        ({"probability": 0.0}, []),
    ],
)
def test_rule_chooses_connections_in_their_order(rule: dict[str, Any], expected: list[int]) -> None:
    faults = Faults(0, [Fault("ssh drop", **rule)])
    assert [number for number, container in enumerate([7, 8] * 3, 1) if faults.connect(container)] == expected
    assert (faults.unmet == ()) is bool(expected or "probability" in rule)


def test_one_connection_meets_all_its_faults_and_no_fault_of_requests() -> None:
    first, second = Fault("ssh latency"), Fault("ssh bandwidth", times="all")
    faults = Faults(0, [Fault("drop", times="all"), first, second, Fault("ssh drop", nth=2), Fault("dies")])
    assert faults.connect(7) == (first, second)
    assert faults.connect(7) == (second, Fault("ssh drop", nth=2))
    assert [fault.what for fault in faults.unmet] == ["drop", "dies"]


def test_requests_meet_no_fault_of_connections() -> None:
    faults = Faults(0, [Fault("ssh refuse", times="all"), Fault("kill supervisor", probability=0.5)])
    create = ("create_container", "POST", "/v1/rentgpu/containers/")
    assert faults.meet(*create) is None
    assert faults.start(*create).faults == ()
    assert len(faults.unmet) == 2


def test_probability_on_connections_follows_the_seed() -> None:
    fault = Fault("ssh refuse", probability=0.5)

    def chosen(seed: int) -> list[bool]:
        faults = Faults(seed, [fault])
        return [bool(faults.connect(7)) for _ in range(100)]

    assert chosen(3) == chosen(3)
    assert chosen(3) != chosen(4)
    assert 25 < sum(chosen(3)) < 75


def test_reset_counts_connections_from_the_beginning() -> None:
    faults = Faults(0, [Fault("ssh drop", nth=2)])
    assert [bool(faults.connect(7)) for _ in range(3)] == [False, True, False]
    faults.reset()
    assert faults.unmet == ()
    assert [bool(faults.connect(7)) for _ in range(3)] == [False, True, False]

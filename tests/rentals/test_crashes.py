"""A renting process is killed at any point, under any fault: after one `reap` nothing is rented, and nothing foreign gone.

The short forms take a few points of each kind. `--full` takes every 12th loop step, every third of the other points, and
every third fault at each request; `--crash-stride=1` takes all. The tests print how many runs that were.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, get_args

import crashing
import pytest
from crashing import KINDS, Forge, Job
from short_forms import thinned

from netmind_rentgpu.emulator import Charge, Clock, Emulator, Fault, World
from netmind_rentgpu.emulator.calls import Call
from netmind_rentgpu.emulator.faults import CALLS_OF, OPTIONS, What
from netmind_rentgpu.rentals.ledger.names import new_name

# The full forms are cut into parts, which keep several workers busy.
PARTS = 4
pytestmark = [pytest.mark.slow, pytest.mark.rentgpu_may_leave_unmet_faults]
# What a rental asks for from its beginning to its end.
CALLS: tuple[tuple[Call, int], ...] = (
    ("list_images", 4),
    ("list_auths", 1),
    ("create_auth", 1),
    ("list_machines", 1),
    ("create_container", 1),
    ("get_container", 2),
    ("get_auth", 2),
    ("delete_container", 1),
)
# How late a commit may come, and how long a slow answer takes: longer than the client waits, and within its create_lag.
SECONDS = {"late commit": 0.25, "slow": 0.4, "vanishes": 0.05}


def faults() -> Iterator[Fault]:
    """Give every fault that the emulator knows, at every request of a rental, before and after the service acts."""
    for what in get_args(What):
        for call, times in CALLS:
            if what in CALLS_OF and call not in CALLS_OF[what]:
                continue
            options: dict[str, Any] = {}
            if what in SECONDS:
                options["seconds"] = SECONDS[what]
            for nth in range(1, times + 1):
                for when in ("before", "after") if "when" in OPTIONS.get(what, {}) else (None,):
                    for status in (400, 401, 403, 404, 409, 502) if what == "status" else (None,):
                        yield Fault(what, call=call, nth=nth, when=when, status=status, **options)


class Site:
    """An emulator, a forge, and what is somebody else's there."""

    def __init__(self, emulator: Emulator, forge: Forge, folder: Path, profile: dict[str, Any] | None = None) -> None:
        """Prepare.

        Args:
            profile: fields of the profile of all clients.
        """
        self._emulator = emulator
        self._forge = forge
        self._folder = folder
        self._profile = profile or {}
        self._runs = 0
        self.killed = 0
        self.met = 0
        self.most_doubtful = 0

    async def crash(
        self,
        fault: Fault | None = None,
        *,
        act: str = "rent",
        clean: bool = False,
        rotates: bool = False,
        reap_at: tuple[str, int] | None = None,
        **job: Any,
    ) -> crashing.Outcome:
        """Rent, be killed or not, reap once, and see what is left.

        Args:
            clean: nothing may be left before that.
            rotates: the token is exchanged for another before that.
            reap_at: kind and number of the point at which a reap is killed before that.
        """
        self._runs += 1
        emulator, state = self._emulator, str(self._folder / f"{self._runs}.sqlite3")
        emulator.reset()
        others = await asyncio.to_thread(self._others)
        if fault is not None:
            emulator.faults.add(fault)
        place = {"url": emulator.url, "token": emulator.token, "state": state, "profile": self._profile}
        outcome = await self._forge.run(Job(act=act, **place, **job))
        assert outcome.error != "it hung"
        self._check_creates(others, fault)
        self.killed += outcome.killed
        self.met += any(request.fault is not None for request in emulator.requests)
        emulator.faults.clear()
        if clean:
            emulator.assert_nothing_rented(apart_from=others)
        if rotates:
            place["token"] = emulator.add_token()
            emulator.revoke_token(emulator.token)
        if reap_at is not None:
            self.killed += (await self._forge.run(Job(act="reap", kind=reap_at[0], n=reap_at[1], **place))).killed
        reaped = await self._forge.run(Job(act="reap", **place))
        told = f"{job} under {fault}: {outcome}, then {reaped}, of {emulator.requests}"
        assert not reaped.killed, told
        assert reaped.error is None, told
        assert not reaped.report["failed"], told
        assert not reaped.report["doubtful"], told
        left = {charge.container_id for charge in emulator.running}
        assert left == {charge.container_id for charge in others}, told
        emulator.assert_nothing_rented(apart_from=others)
        self._check_history(reaped.report["history"], {charge.name for charge in others}, outcome, fault, told)
        return outcome

    def _check_history(
        self, history: list[str], others: set[str], outcome: crashing.Outcome, fault: Fault | None, told: str
    ) -> None:
        """See that each container of ours is a past rental, once; of a killed process, unless its trace was lost with it."""
        # A misleading service has other names for them, which hold the right ones.
        ours = {charge.name.casefold() for charge in self._emulator.charges} - {name.casefold() for name in others}
        assert len(history) == len(set(history)), told
        assert all(any(past in name for name in ours) for past in history), told
        vanished = fault is not None and fault.what == "vanishes"
        assert outcome.killed or vanished or all(any(past in name for past in history) for name in ours), told

    def _others(self) -> list[Charge]:
        """Have others rent: one by hand, one of another state file, whose time is not up, and one that looks like ours."""
        names = ("by-hand", new_name(datetime.now(UTC) + timedelta(days=1)), "rg-0000000000-0000000000")
        auth = self._post("auths/", {"value": "a password of theirs"})["id"]
        nodes = iter(self._get("machines"))
        for name in names:
            self._post(
                "containers/",
                {
                    "name": name,
                    "auth_id": auth,
                    "gpu": 1,
                    "node_name": next(nodes)["node_name"],
                    "image_template_id": 1,
                    "payment_type": 0,
                },
            )
        return self._emulator.running

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._get(path, json.dumps(body).encode())

    def _get(self, path: str, body: bytes | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self._emulator.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._emulator.url}/v1/rentgpu/{path}", body, headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def _check_creates(self, others: Iterable[Charge], fault: Fault | None) -> None:
        """See that no create followed one that was accepted and not deleted, or was in doubt and not looked for."""
        theirs = {charge.container_id for charge in others}
        # A service that says it has refused what it has done is believed, until what it has done is found.
        lies = fault is not None and fault.what == "status" and fault.when == "after" and (fault.status or 0) < 500
        assert lies or sum(charge.container_id not in theirs for charge in self._emulator.running) <= 1
        requests = list(self._emulator.requests)
        creates = [
            index
            for index, request in enumerate(requests)
            if request.call == "create_container" and index > len(theirs) + 1
        ]
        for first, second in pairwise(creates):
            refused = requests[first].status is not None and 400 <= (requests[first].status or 0) < 500
            between = {request.call for request in requests[first:second]}
            assert refused or between & {"list_containers", "delete_container"}, requests
            self.most_doubtful += not refused


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with Emulator(ssh=True, boot_seconds=0.02, machines=20) as emulator, Forge() as forge:
        yield Site(emulator, forge, tmp_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--full") or metafunc.config.getoption("--crash-stride")
    if "kinds" in metafunc.fixturenames:
        metafunc.parametrize("kinds", [(kind,) for kind in KINDS] if full else [KINDS], ids=KINDS if full else ["all"])
    if "part" in metafunc.fixturenames:
        metafunc.parametrize(
            "part", [slice(start, None, PARTS) for start in range(PARTS)] if full else [slice(None)], ids=str
        )


@pytest.fixture
def stride(request: pytest.FixtureRequest, full: bool) -> int:
    """How many loop steps lie between two points; 0 to take a few points of each kind."""
    return int(request.config.getoption("--crash-stride") or (12 if full else 0))


@pytest.fixture
def every(stride: int) -> int:
    """Take one in so many of the other points and of the faults; there are fewer of these than of loop steps."""
    return max(1, stride // 4)


def points(kind: str, count: int, stride: int, every: int) -> range:
    """Return the points at which to kill, out of as many as a whole run took and a few more, since runs differ."""
    last = count + 4
    if stride:
        return range(1, last + 1, stride if kind == "loop step" else every)
    return range(2, last + 1, max(1, last // 2))


@pytest.mark.parametrize("act", ["rent", "hand on", "expire"])
async def test_process_killed_at_any_point_leaks_nothing(
    site: Site, act: str, kinds: tuple[str, ...], stride: int, every: int
) -> None:
    whole = await site.crash(act=act)
    assert whole.error is None
    assert whole.counts.keys() == set(KINDS)
    chosen = [(kind, n) for kind in kinds for n in points(kind, whole.counts[kind], stride, every)]
    for kind, n in chosen:
        await site.crash(act=act, kind=kind, n=n)
    print(f"{act}, {', '.join(kinds)}: killed at {site.killed} of {len(chosen)} points")
    assert site.killed > len(chosen) / 2


async def test_reaper_killed_at_any_point_leaks_nothing(
    site: Site, kinds: tuple[str, ...], stride: int, every: int
) -> None:
    await site.crash(act="detach")
    # A whole reap of one rental, which differs from run to run.
    counts = {"loop step": 80, "before commit": 3, "after commit": 3, "before write": 8, "after write": 8}
    chosen = [(kind, n) for kind in kinds for n in points(kind, counts[kind], stride, every)]
    for point in chosen:
        await site.crash(act="detach", reap_at=point)
    print(f"{', '.join(kinds)}: reaper killed at {site.killed} of {len(chosen)} points")
    # A reap has two or three commits.
    assert site.killed > 0


async def test_any_fault_leaks_nothing(site: Site, stride: int, every: int, part: slice) -> None:
    chosen = list(faults())[::every]
    if not stride:
        creates = [fault for fault in chosen if fault.call == "create_container"]
        chosen = Random(7).sample(creates, 4) + Random(8).sample(chosen, 4)
    for fault in chosen[part]:
        await site.crash(fault)
    print(
        f"{len(chosen[part])} faults, of which {site.met} were met; {site.most_doubtful} creates followed one in doubt"
    )
    assert site.met > len(chosen[part]) / 2


async def test_process_killed_under_faults_leaks_nothing(site: Site, stride: int, every: int, part: slice) -> None:
    random = Random(9)
    faulty = [fault for fault in faults() if fault.call in ("create_container", "delete_container")]
    chosen = [
        (random.choice(faulty), random.choice(KINDS), random.random()) for _ in range(300 // every if stride else 6)
    ]
    for fault, kind, place in chosen[part]:
        most = {"loop step": 170, "before commit": 9, "after commit": 9}.get(kind, 40)
        await site.crash(fault, kind=kind, n=round(most * (1 + place) / 2))
    print(f"killed {site.killed} times under faults")
    assert site.killed > 0


async def test_rental_cancelled_at_any_step_leaks_nothing(site: Site, stride: int, part: slice) -> None:
    whole = await site.crash()
    random = Random(10)
    for n in range(1, whole.counts["loop step"], stride or 80)[part]:
        await site.crash(clean=True, cancel_at=(n,))
        await site.crash(cancel_at=(n, n + random.randint(1, 12)))
        # A task in a cancelled scope of anyio is cancelled again at each wait.
        await site.crash(clean=True, cancel_at=(n,), scope=True)


async def test_handover_cancelled_at_any_step_leaks_nothing(site: Site, stride: int, part: slice) -> None:
    whole = await site.crash(act="hand on")
    for n in range(1, whole.counts["loop step"], stride or 120)[part]:
        await site.crash(act="hand on", cancel_at=(n,))
        await site.crash(act="hand on", cancel_at=(n, n + 3))


# Worlds that mislead, and what the profile has to say of them. The clock is so fast that 20 s pass in a third of one.
MISLEADING: dict[str, tuple[World, dict[str, Any]]] = {
    **{
        f"{switch}={value}": (World(**{switch: value}), {})
        for switch, value in (
            ("altered_names", "upper case"),
            ("altered_names", "prefix"),
            ("altered_names", "suffix"),
            ("create_answer", "another"),
            ("ids", "reused"),
            ("delete_lag", "20 s"),
            ("other_accounts", "403"),
        )
    },
    "deleted=listed": (World(deleted="listed"), {"deleted_stay_listed": True}),
}


@pytest.mark.parametrize("world", thinned(MISLEADING, every=2))
@pytest.mark.parametrize("lost", [pytest.param(False, marks=pytest.mark.full), True], ids=["answered", "lost"])
async def test_process_killed_in_a_misleading_world_leaks_nothing(
    tmp_path: Path, world: str, stride: int, every: int, *, lost: bool
) -> None:
    served, profile = MISLEADING[world]
    fault = Fault("drop", call="create_container", when="after") if lost else None
    clock = Clock(scale=60)
    async with Emulator(ssh=True, boot_seconds=1, machines=20, world=served, clock=clock) as emulator, Forge() as forge:
        site = Site(emulator, forge, tmp_path, profile)
        whole = await site.crash(fault)
        assert whole.error is None
        # There are 16 of these worlds.
        chosen = [(kind, n) for kind in KINDS for n in points(kind, whole.counts[kind], 12 * stride, 12 * every)]
        killed = Counter[str]()
        for kind, n in chosen if stride else chosen[::5]:
            # Every other one is reaped by another token of the account.
            killed[kind] += (await site.crash(fault, kind=kind, n=n, rotates=n % 2 == 0)).killed
        print(f"{world}: killed {dict(killed)} times at {len(chosen)} points")
        assert min(killed.values()) > 0 if stride else site.killed > 0


async def test_process_killed_while_a_machine_is_replaced_leaks_nothing(
    site: Site, kinds: tuple[str, ...], stride: int, every: int
) -> None:
    fault = Fault("dies")
    whole = await site.crash(fault)
    assert whole.error is None
    chosen = [(kind, n) for kind in kinds for n in points(kind, whole.counts[kind], stride, every)]
    for kind, n in chosen:
        await site.crash(fault, kind=kind, n=n, rotates=n % 2 == 0)
    print(f"{', '.join(kinds)}: killed at {site.killed} of {len(chosen)} points")
    assert site.killed > len(chosen) / 2


async def test_rental_cancelled_while_a_machine_is_replaced_leaks_nothing(site: Site, stride: int, part: slice) -> None:
    fault = Fault("dies")
    whole = await site.crash(fault)
    random = Random(11)
    for n in range(1, whole.counts["loop step"], stride or 100)[part]:
        await site.crash(fault, clean=True, cancel_at=(n,))
        await site.crash(fault, cancel_at=(n, n + random.randint(1, 12)))
        await site.crash(fault, clean=True, cancel_at=(n,), scope=True)

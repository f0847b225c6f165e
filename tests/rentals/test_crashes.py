"""Killed at any point, under any fault: after one `reap`, nothing is rented, and nothing of anybody else's is gone.

The short run takes some points of each kind. `NETMIND_RENTGPU_CRASHES=all` takes each point in turn, and all faults at all
requests, beside kills under faults; it prints how many runs that were.
"""

from __future__ import annotations

import asyncio
import json
import os
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

from netmind_rentgpu.emulator import Charge, Emulator, Fault
from netmind_rentgpu.emulator.calls import Call
from netmind_rentgpu.emulator.faults import CALLS_OF, OPTIONS, What
from netmind_rentgpu.rentals.names import new_name

ALL = os.environ.get("NETMIND_RENTGPU_CRASHES") == "all"
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

    def __init__(self, emulator: Emulator, forge: Forge, folder: Path) -> None:
        self._emulator = emulator
        self._forge = forge
        self._folder = folder
        self._runs = 0
        self.killed = 0
        self.met = 0
        self.most_doubtful = 0

    async def crash(
        self, fault: Fault | None = None, *, act: str = "rent", clean: bool = False, **job: Any
    ) -> crashing.Outcome:
        """Rent, be killed or not, reap once, and see what is left.

        Args:
            clean: nothing may be left before that.
        """
        self._runs += 1
        emulator, state = self._emulator, str(self._folder / f"{self._runs}.sqlite3")
        emulator.reset()
        others = await asyncio.to_thread(self._others)
        if fault is not None:
            emulator.faults.add(fault)
        place = {"url": emulator.url, "token": emulator.token, "state": state}
        outcome = await self._forge.run(Job(act=act, **place, **job))
        assert outcome.error != "it hung"
        self._check_creates(others, fault)
        self.killed += outcome.killed
        self.met += any(request.fault is not None for request in emulator.requests)
        emulator.faults.clear()
        if clean:
            emulator.assert_nothing_rented(apart_from=others)
        reaped = await self._forge.run(Job(act="reap", **place))
        told = f"{job} under {fault}: {outcome}, then {reaped}, of {emulator.requests}"
        assert not reaped.killed, told
        assert reaped.error is None, told
        assert not reaped.report["failed"], told
        assert not reaped.report["doubtful"], told
        left = {charge.container_id for charge in emulator.running}
        assert left == {charge.container_id for charge in others}, told
        emulator.assert_nothing_rented(apart_from=others)
        return outcome

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
        """See that no create followed one that was accepted, or was in doubt and not looked for."""
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
            looked = any(request.call == "list_containers" for request in requests[first:second])
            assert refused or looked, requests
            self.most_doubtful += not refused


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with Emulator(ssh=True, boot_seconds=0.02, machines=20) as emulator, Forge() as forge:
        yield Site(emulator, forge, tmp_path)


async def each_point(site: Site, act: str, every: int) -> Counter[str]:
    """Kill at every so manyth point of each kind."""
    whole = await site.crash(act=act)
    assert whole.error is None
    assert whole.counts.keys() == set(KINDS)
    done: Counter[str] = Counter()
    for kind in KINDS:
        # A few more than a run took, since none takes as many steps as the one before.
        for n in range(1, whole.counts[kind] + 5, every if whole.counts[kind] > every else 1):
            await site.crash(act=act, kind=kind, n=n)
            done[kind] += 1
    return done


@pytest.mark.parametrize("act", ["rent", "hand on"])
async def test_killed_at_any_point(site: Site, act: str) -> None:
    done = await each_point(site, act, every=1 if ALL else 25)
    print(f"{act}: killed at {site.killed} of {done.total()} points: {dict(done)}")
    assert site.killed > done.total() / 2


async def test_under_every_fault(site: Site) -> None:
    chosen = list(faults())
    if not ALL:
        chosen = Random(7).sample([fault for fault in chosen if fault.call == "create_container"], 12) + Random(
            8
        ).sample(chosen, 12)
    for fault in chosen:
        await site.crash(fault)
    print(f"{len(chosen)} faults, of which {site.met} were met; {site.most_doubtful} creates followed one in doubt")
    assert site.met > len(chosen) / 2


async def test_killed_under_faults(site: Site) -> None:
    random = Random(9)
    chosen = [fault for fault in faults() if fault.call in ("create_container", "delete_container")]
    for _ in range(300 if ALL else 8):
        fault, kind = random.choice(chosen), random.choice(KINDS)
        most = {"loop step": 170, "before commit": 9, "after commit": 9}.get(kind, 40)
        await site.crash(fault, kind=kind, n=random.randint(most // 2, most))
    print(f"killed {site.killed} times under faults")
    assert site.killed > 0


async def test_cancelled_at_any_step(site: Site) -> None:
    whole = await site.crash()
    steps = whole.counts["loop step"]
    random = Random(10)
    for n in range(1, steps, 1 if ALL else 24):
        await site.crash(clean=True, cancel_at=(n,))
        await site.crash(cancel_at=(n, n + random.randint(1, 12)))
        # Whoever is in a cancelled scope of anyio is cancelled again at each wait.
        await site.crash(clean=True, cancel_at=(n,), scope=True)


async def test_handing_on_is_cancelled_at_any_step(site: Site) -> None:
    whole = await site.crash(act="hand on")
    for n in range(1, whole.counts["loop step"], 1 if ALL else 24):
        await site.crash(act="hand on", cancel_at=(n,))
        await site.crash(act="hand on", cancel_at=(n, n + 3))

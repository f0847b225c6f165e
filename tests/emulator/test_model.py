"""The emulator beside a small model of it: random calls over HTTP, and always the same containers, stock and bill."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from netmind_rentgpu.emulator import Clock, Emulator, Fault, World

SHORTEST_BOOT, LONGEST_BOOT, VANISHES_AFTER = 7.5, 12.5, 60.0
LIVES = ["dies", "vanishes", "never starts", "never reachable"]
# What a create can meet, whether the service acts nevertheless, and what is answered: "own" for what the service says, "cut"
# for half of that, "garbled" for its status alone. A hang is left out: it lasts as long as the emulator.
CREATES: dict[str, tuple[dict[str, Any] | None, bool, int | str | None]] = {
    "": (None, True, "own"),
    "drop before": ({"what": "drop"}, False, None),
    "drop after": ({"what": "drop", "when": "after"}, True, None),
    "502 before": ({"what": "status", "status": 502}, False, 502),
    "502 after": ({"what": "status", "status": 502, "when": "after"}, True, 502),
    "rate limit": ({"what": "rate limit", "retry_after": 1}, False, 429),
    "slow before": ({"what": "slow", "seconds": 0}, True, "own"),
    "slow after": ({"what": "slow", "seconds": 0, "when": "after"}, True, "own"),
    "html before": ({"what": "html"}, False, 200),
    "html after": ({"what": "html", "when": "after"}, True, 200),
    "cut body": ({"what": "cut body"}, True, "cut"),
    "wrong json": ({"what": "wrong json"}, True, "garbled"),
    "wrong shape": ({"what": "wrong shape"}, True, "garbled"),
    "stock-out": ({"what": "stock-out"}, False, 400),
    **{
        life: ({"what": life, **({"seconds": VANISHES_AFTER} if life == "vanishes" else {})}, True, "own")
        for life in LIVES
    },
}
LIST_LAG = 20.0


@dataclass
class Known:
    """What the model knows of a container; `costs_since` is when it last began to cost, None while it does not."""

    id: int
    name: str
    node: str
    gpu: int
    price: Decimal
    created: float
    state: str = "booting"
    life: str = ""
    booted: float = 0.0
    port: int | None = None
    cost_seconds: float = 0.0
    costs_since: float | None = 0.0


class Machine(RuleBasedStateMachine):
    """Rents, stops, restarts, deletes, lists and waits, with faults on the way."""

    containers = Bundle("containers")

    def __init__(self) -> None:
        super().__init__()
        self.emulator: Emulator | None = None

    @initialize(
        lag=st.booleans(),
        descending=st.booleans(),
        inclusive=st.booleans(),
        ends=st.booleans(),
        moves=st.booleans(),
        seed=st.integers(0, 3),
    )
    def start(self, *, lag: bool, descending: bool, inclusive: bool, ends: bool, moves: bool, seed: int) -> None:
        self.world = World(
            list_lag="20 s" if lag else "none",
            order="descending" if descending else "ascending",
            marker="inclusive" if inclusive else "exclusive",
            stop_billing="ends" if ends else "goes on",
            restart_port="changed" if moves else "kept",
        )
        self.clock = Clock(scale=0, start=1_700_000_000.0)
        self.emulator = Emulator(seed=seed, machines=4, boot_seconds=10, world=self.world, clock=self.clock)
        self.emulator.__enter__()
        port = int(self.emulator.url.rpartition(":")[2])
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.known: dict[int, Known] = {}
        self.late: list[tuple[float, Known]] = []
        assert self.ask("POST", "auths/", {"value": "a-password"})[0] == 200
        _, machines = self.ask("GET", "machines")
        self.size = {machine["node_name"]: machine["gpu_count"] for machine in machines}
        self.price = {machine["node_name"]: Decimal(machine["price"]) for machine in machines}

    def teardown(self) -> None:
        if self.emulator is not None:
            self.connection.close()
            self.emulator.__exit__(None, None, None)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int | None, Any]:
        assert self.emulator is not None
        headers = {"Authorization": f"Bearer {self.emulator.token}"}
        try:
            self.connection.request(method, f"/v1/rentgpu/{path}", None if body is None else json.dumps(body), headers)
            answer = self.connection.getresponse()
            content = answer.read()
            try:
                return answer.status, json.loads(content)
            except ValueError:
                return answer.status, None
        except (http.client.RemoteDisconnected, ConnectionResetError):
            self.connection.close()
            return None, None

    # The model.

    @property
    def now(self) -> float:
        return self.clock.now

    def alive(self) -> list[Known]:
        return [one for one in self.known.values() if one.state != "gone"]

    def free(self, node: str) -> int:
        return self.size[node] - sum(one.gpu for one in self.alive() if one.node == node)

    def commit(self, one: Known) -> None:
        """What a create does, at its moment, if there is stock then."""
        if self.free(one.node) >= one.gpu:
            one.id = max(self.known, default=1000) + 1
            self.known[one.id] = one

    def end(self, one: Known, when: float) -> None:
        if one.costs_since is not None:
            one.cost_seconds += when - one.costs_since
        one.state, one.costs_since = "gone", None

    def boot(self, one: Known, life: str = "") -> None:
        one.state, one.booted, one.life = "booting", self.now, life

    # What happens.

    @rule(
        target=containers,
        node=st.integers(0, 3),
        gpu=st.integers(1, 4),
        fault=st.sampled_from(["", "", *CREATES, *LIVES * 2]),
    )
    def create(self, node: int, gpu: int, fault: str) -> Any:
        assert self.emulator is not None
        rule, acted, answered = CREATES[fault]
        if rule is not None:
            self.emulator.faults.add(Fault(**{"call": "create_container", **rule}))
        name = list(self.size)[node]
        enough = self.free(name) >= gpu
        try:
            status, answer = self.ask("POST", "containers/", self.wanted(name, gpu))
        except http.client.IncompleteRead:
            assert answered == "cut"
            self.connection.close()
            status, answer = 0, None
        self.emulator.faults.clear()
        own = 200 if enough else 400
        assert status == {"own": own, "garbled": own, "cut": 0}.get(str(answered), answered)
        acted = acted and enough
        if not acted:
            return multiple()
        one = self.new(name, gpu)
        self.commit(one)
        if fault in LIVES:
            one.life = fault
        if answered == "own":
            assert answer["id"] == one.id
        return one.id

    def wanted(self, node: str, gpu: int) -> dict[str, Any]:
        return {
            "name": f"for-{gpu}",
            "auth_id": 1,
            "gpu": gpu,
            "node_name": node,
            "image_template_id": 1,
            "payment_type": 0,
        }

    def new(self, node: str, gpu: int, when: float | None = None) -> Known:
        when = self.now if when is None else when
        one = Known(0, f"for-{gpu}", node, gpu, self.price[node] * gpu, when, costs_since=when)
        one.booted = when
        return one

    @rule(node=st.integers(0, 3), gpu=st.integers(1, 4), seconds=st.sampled_from([0.0, 3.0, 30.0]))
    def create_late(self, node: int, gpu: int, seconds: float) -> None:
        assert self.emulator is not None
        self.emulator.faults.add(Fault("late commit", seconds=seconds))
        name = list(self.size)[node]
        assert self.ask("POST", "containers/", self.wanted(name, gpu)) == (None, None)
        self.emulator.faults.clear()
        self.late.append((self.now + seconds, self.new(name, gpu, self.now + seconds)))
        self.catch_up()

    def catch_up(self) -> None:
        """Let happen in the model what was due by now, in the order of its moments."""
        due: list[tuple[float, Any]] = [
            (when, lambda one=one: self.commit(one)) for when, one in self.late if when <= self.now
        ]
        self.late = [one for one in self.late if one[0] > self.now]
        assert self.emulator is not None
        for charge in self.emulator.charges:
            one = self.known.get(charge.container_id)
            if one is not None and one.life == "vanishes" and one.state == "booting" and not charge.running:
                # How long its start took is drawn; the bill says when it ended, and that must be possible.
                when = self.ended(one, charge.seconds)
                since_boot = when - one.booted - VANISHES_AFTER
                assert SHORTEST_BOOT - 1e-3 <= since_boot <= LONGEST_BOOT + 1e-3
                due.append((when, lambda one=one, when=when: self.end(one, when)))
        for _, happens in sorted(due, key=lambda event: event[0]):
            happens()
        for one in self.alive():
            if one.life == "vanishes" and one.state == "booting":
                assert self.now - one.booted < LONGEST_BOOT + VANISHES_AFTER

    def ended(self, one: Known, seconds: float) -> float:
        assert one.costs_since is not None
        return one.costs_since + seconds - one.cost_seconds

    @rule(seconds=st.sampled_from([0.5, 6.5, 13.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.catch_up()

    @rule(container=containers)
    def delete(self, container: int) -> None:
        one = self.known[container]
        status, answer = self.ask("DELETE", f"containers/{container}")
        assert status == (404 if one.state == "gone" else 200)
        if one.state != "gone":
            assert answer["id"] == container
            self.end(one, self.now)

    @rule(container=containers)
    def stop(self, container: int) -> None:
        one = self.known[container]
        status, answer = self.ask("POST", f"containers/{container}/stop")
        assert status == (404 if one.state == "gone" else 200)
        if one.state == "gone":
            return
        assert answer["status"] == 2
        one.state = "stopped"
        if self.world.stop_billing == "ends" and one.costs_since is not None:
            one.cost_seconds, one.costs_since = one.cost_seconds + self.now - one.costs_since, None

    @rule(container=containers, life=st.sampled_from(["", "", "moves", *LIVES]))
    def restart(self, container: int, life: str) -> None:
        assert self.emulator is not None
        one = self.known[container]
        if life:
            rule: dict[str, Any] = {"what": life, "call": "restart_container"}
            self.emulator.faults.add(Fault(**rule, seconds=VANISHES_AFTER if life == "vanishes" else None))
        status, _ = self.ask("POST", f"containers/{container}/restart")
        self.emulator.faults.clear()
        assert status == (404 if one.state == "gone" else 200)
        if one.state == "gone":
            return
        self.boot(one, life)
        if self.world.restart_port == "changed" or life == "moves":
            one.port = None
        if one.costs_since is None:
            one.costs_since = self.now

    @rule(container=containers)
    def look_again(self, container: int) -> None:
        self.look(self.known[container])

    def look(self, one: Known) -> None:
        status, answer = self.ask("GET", f"containers/{one.id}")
        if one.state == "gone":
            assert status == 404
            return
        assert (status, answer["id"], answer["name"]) == (200, one.id, one.name)
        assert (answer["gpu"], answer["node_name"]) == (one.gpu, one.node)
        assert answer["status"] in self.possible(one)
        assert bool(answer["ssh"]) is (answer["status"] == 1)
        if answer["ssh"]:
            port = int(answer["ssh"].rpartition(" ")[2])
            if one.life == "never reachable":
                assert port == 1
                return
            one.port = one.port or port
            assert port == one.port != 1

    def possible(self, one: Known) -> set[int]:
        """The statuses that a container can have: how long a start takes is drawn, and the model does not draw."""
        if one.state == "stopped":
            return {2}
        age = self.now - one.booted
        if one.life == "never starts":
            return {0}
        # One that vanishes runs until then.
        factor, last = (0.5, 3) if one.life == "dies" else (1.0, 1)
        if age < SHORTEST_BOOT * factor:
            return {0}
        return {last} if age >= LONGEST_BOOT * factor else {0, last}

    @rule(limit=st.integers(1, 7))
    def walk(self, limit: int) -> None:
        seen: list[int] = []
        marker = ""
        while True:
            status, page = self.ask("GET", f"containers/?limit={limit}{marker}")
            assert status == 200
            fresh = [one["id"] for one in page if one["id"] not in seen]
            if self.world.marker == "exclusive" or not seen:
                assert fresh == [one["id"] for one in page]
            seen += fresh
            if len(page) < limit or not fresh:
                break
            marker = f"&marker={seen[-1]}"
            if self.world.marker == "inclusive" and limit == 1:
                break
        lag = LIST_LAG if self.world.list_lag != "none" else 0.0
        listed = sorted(one.id for one in self.alive() if self.now - one.created >= lag)
        if self.world.order == "descending":
            listed.reverse()
        whole = self.world.marker == "exclusive" or limit > 1
        assert seen == (listed if whole else listed[:1])

    @invariant()
    def the_same_containers_stock_and_bill(self) -> None:
        if self.emulator is None:
            return
        for one in self.alive()[-4:]:
            self.look(one)
        charges = {charge.container_id: charge for charge in self.emulator.charges}
        assert charges.keys() == self.known.keys()
        for one in self.known.values():
            charge = charges[one.id]
            seconds = one.cost_seconds + (0.0 if one.costs_since is None else self.now - one.costs_since)
            assert (charge.running, charge.name, charge.gpu) == (one.state != "gone", one.name, one.gpu)
            assert charge.hourly_price == one.price
            assert abs(charge.seconds - seconds) < 1e-3
            assert abs(charge.cost - one.price * Decimal(seconds) / 3600) < Decimal("1e-6")
        assert self.emulator.spent == sum(charge.cost for charge in charges.values())
        assert sorted(charge.container_id for charge in self.emulator.running) == sorted(one.id for one in self.alive())
        # What can never be is not said to come.
        coming = [(one.name, one.node) for _, one in self.late if one.gpu <= self.size[one.node]]
        assert sorted((one.name, one.node_name) for one in self.emulator.coming) == sorted(coming)
        status, machines = self.ask("GET", "machines")
        assert status == 200
        assert {machine["node_name"] for machine in machines} == {node for node in self.size if self.free(node) > 0}
        for gpu in (2, 4):
            _, machines = self.ask("GET", f"machines?gpu={gpu}")
            assert {machine["node_name"] for machine in machines} == {
                node for node in self.size if self.free(node) >= gpu
            }


TestModel = Machine.TestCase
TestModel.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)

"""The emulated service itself: accounts for auths, images, machines and, through its fleet, containers. No I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from random import Random
from typing import Any

import attrs

from netmind_rentgpu.emulator.billing import Charge, PendingCreate
from netmind_rentgpu.emulator.clock import Clock, Timeline
from netmind_rentgpu.emulator.dialect import Dialect
from netmind_rentgpu.emulator.faults import Fault
from netmind_rentgpu.emulator.fleet import Fleet, as_json
from netmind_rentgpu.emulator.inventory import Node, draw_nodes, official_images
from netmind_rentgpu.emulator.ports import Ports
from netmind_rentgpu.emulator.validation import Checker, InvalidRequest, Refusal
from netmind_rentgpu.emulator.world import World

__all__ = ["Service"]

# Only USD is documented. The rates are made up.
_RATES = {"USD": Decimal(1), "NMT": Decimal(4), "CNY": Decimal("7.2")}
_IMAGE_DEFAULTS = {
    "description": None,
    "docker_username": None,
    "docker_passwd": None,
    "docker_registry": "https://index.docker.io/v1/",
    "public_port": None,
    "onstart": None,
    "options": None,
}


@attrs.frozen
class _Expected:
    body: Mapping[str, Any]
    how: str
    moment: float | None


class Service:
    """Everything behind the thirteen calls, for one account. A call returns JSON, as bytes, or raises a Refusal.

    Attributes:
        timeline: what time it is, and what is to happen.
    """

    def __init__(
        self,
        *,
        seed: int,
        machines: int,
        boot_seconds: float,
        token: str,
        balance: Decimal | None,
        world: World,
        clock: Clock,
        ports: Ports,
        numbers: Iterator[int],
    ) -> None:
        self.world = world
        self.dialect: Dialect = Dialect(world)
        self.timeline: Timeline = Timeline(clock)
        self._token = token
        random = Random(seed)  # noqa: S311  # to be repeatable is the point
        nodes = sorted(draw_nodes(random, machines), key=lambda node: (node.price, node.name))
        self._nodes = {node.name: node for node in nodes}
        self._machines: dict[tuple[str, str], bytes] = {}
        self._auths: dict[int, dict[str, Any]] = {}
        self._images: dict[int, dict[str, Any]] = {}
        for content in official_images():
            self._add_image(content)
        self._numbers = numbers
        self._expected: dict[int, _Expected] = {}
        self._fleet = Fleet(
            world=world,
            dialect=self.dialect,
            timeline=self.timeline,
            random=random,
            boot_seconds=boot_seconds,
            balance=balance,
            ports=ports,
        )
        # A test may look from another thread than the one that serves.
        self._lock = threading.RLock()

    def at_once(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Go to the present, and make a call; nothing comes between."""
        with self._lock:
            self.timeline.settle()
            return call(*arguments)

    def later(self, seconds: float, call: Callable[..., bytes], *arguments: Any) -> None:
        """Make a call in a while, by the clock; whether it is refused then, nobody learns."""

        def act() -> None:
            with suppress(Refusal):
                call(*arguments)

        self.timeline.plan(self.timeline.now + seconds, act)

    def expect(self, body: Mapping[str, Any], how: str, seconds: float | None) -> int:
        """Take in that a create is still to be done; return the number to give it then.

        Args:
            how: by which fault.
            seconds: by the clock, until then.
        """
        number = next(self._numbers)
        self._expected[number] = _Expected(body, how, None if seconds is None else self.timeline.now + seconds)
        return number

    def authorize(self, header: str | None) -> None:
        """Check an `Authorization` header."""
        if header is None:
            raise InvalidRequest(
                [{"loc": ["header", "authorization"], "msg": "field required", "type": "value_error.missing"}]
            )
        if header != (f"Bearer {self._token}" if self.world.token == "bearer" else self._token):  # noqa: S105  # a form, no token
            raise self.dialect.bad_token()

    def charges(self) -> list[Charge]:
        """Return what each container has cost until now."""
        return self._fleet.charges()

    def pending_creates(self) -> list[PendingCreate]:
        """Return the creates that are still to be done, without those that can only be refused."""
        pending_creates: list[PendingCreate] = []
        for number, expected in self._expected.items():
            with suppress(Refusal):
                wanted, _, node = self._wanted(expected.body)
                gpu = wanted["gpu"]
                if gpu <= node.gpu_count and self._fleet.affords():
                    pending_creates.append(
                        PendingCreate(
                            number=number,
                            name=wanted["name"],
                            node_name=node.name,
                            gpu=gpu,
                            hourly_price=node.price * gpu,
                            how=expected.how,
                            seconds=None if expected.moment is None else expected.moment - self.timeline.now,
                        )
                    )
        return pending_creates

    # Machines

    def list_machines(self, query: Mapping[str, str]) -> bytes:
        """`GET /v1/rentgpu/machines`: what has enough free GPUs and passes every filter, the cheapest first."""
        check = Checker("query", query, textual=True)
        currency = check.member("currency", tuple(_RATES), default="USD")
        region = check.text("region", default=None)
        gpu = check.integer("gpu", default=1)
        names = check.text("gpu_names", default=None)
        limits = {
            name: check.integer(name, default=None)
            for name in ("min_memory", "max_memory", "min_disk", "max_disk", "min_price", "max_price")
        }
        check.raise_if_wrong()
        wanted = None if names is None else names.split(",")
        rate = _RATES[currency]
        found = [
            node
            for node in self._nodes.values()
            if node.free >= max(gpu, 1)
            and (region is None or node.region == region)
            and (wanted is None or node.gpu_name in wanted)
            and _within(node.memory_per_gpu * node.gpu_count, limits["min_memory"], limits["max_memory"])
            and _within(node.disk_per_gpu * node.gpu_count, limits["min_disk"], limits["max_disk"])
            and _within(node.price * rate, limits["min_price"], limits["max_price"])
        ]
        return b"[%s]" % b",".join([self._machine(node, currency) for node in found])

    def _machine(self, node: Node, currency: str) -> bytes:
        if (node.name, currency) not in self._machines:
            self._machines[node.name, currency] = as_json(self._listing(node, _RATES[currency]))
        return self._machines[node.name, currency]

    def _listing(self, node: Node, rate: Decimal) -> dict[str, Any]:
        price = self.dialect.price(node.price * rate)
        listing = {
            **node.listing,
            "node_name": node.name,
            "gpu_name": node.gpu_name,
            "gpu_id": node.gpu_id,
            "gpu_count": node.gpu_count,
            "region": node.region,
            "price": price,
            "original_price": price,
            "cpu_per_gpu": node.cpu_per_gpu,
            "memory_per_gpu": node.memory_per_gpu,
            "memory_total": node.memory_per_gpu * node.gpu_count,
            "disk_per_gpu": node.disk_per_gpu,
            "disk_total": node.disk_per_gpu * node.gpu_count,
        }
        return self.dialect.thing("machine", listing)

    # Auths

    def create_auth(self, body: Mapping[str, Any]) -> bytes:
        """`POST /v1/rentgpu/auths/`."""
        check = Checker("body", body, textual=False)
        value = check.text("value", shortest=8, longest=32)
        check.raise_if_wrong()
        auth_id = len(self._auths) + 1
        self._auths[auth_id] = {"id": auth_id, "value": value, "created_at": self._stamp()}
        return self.get_auth(auth_id)

    def list_auths(self, query: Mapping[str, str]) -> bytes:
        """`GET /v1/rentgpu/auths/`."""
        ids = tuple(self._auths)
        chosen = ids[self.dialect.page("auth", ids, query)]
        return as_json([self.dialect.thing("auth", self._auths[one]) for one in chosen])

    def get_auth(self, auth_id: int) -> bytes:
        """`GET /v1/rentgpu/auths/{auth_id}`."""
        return as_json(self.dialect.thing("auth", _found(self._auths, auth_id, "Auth")))

    # Images

    def create_image(self, body: Mapping[str, Any]) -> bytes:
        """`POST /v1/rentgpu/images/`."""
        check = Checker("body", body, textual=False)
        content = {name: check.text(name) for name in ("name", "image_name", "image_tag", "image_label")}
        content |= {name: check.text(name, default=default) for name, default in _IMAGE_DEFAULTS.items()}
        check.raise_if_wrong()
        return self.get_image(self._add_image({**content, "image_type": 2}))

    def list_images(self, query: Mapping[str, str]) -> bytes:
        """`GET /v1/rentgpu/images/`."""
        check = Checker("query", query, textual=True)
        image_type = check.member("image_type", (0, 1, 2), default=0)
        check.raise_if_wrong()
        ids = [one for one, image in self._images.items() if image["image_type"] == image_type]
        chosen = ids[self.dialect.page("image", ids, query)]
        return as_json([self.dialect.thing("image", self._images[one]) for one in chosen])

    def get_image(self, image_id: int) -> bytes:
        """`GET /v1/rentgpu/images/{image_id}`."""
        return as_json(self.dialect.thing("image", _found(self._images, image_id, "Image")))

    def _add_image(self, content: dict[str, Any]) -> int:
        image_id = len(self._images) + 1
        self._images[image_id] = {**_IMAGE_DEFAULTS, **content, "id": image_id, "created_at": self._stamp()}
        return image_id

    # Containers

    def create_container(
        self, body: Mapping[str, Any], faults: Sequence[Fault] = (), number: int | None = None
    ) -> bytes:
        """`POST /v1/rentgpu/containers/`: takes stock and starts the bill.

        Args:
            number: the one that `expect` gave, where this was expected.
        """
        if number is None:
            number = next(self._numbers)
        self._expected.pop(number, None)
        wanted, auth, node = self._wanted(body)
        return self._fleet.rent(node, wanted, faults, number=number, password=auth["value"], stamp=self._stamp())

    def _wanted(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Node]:
        """Return what a create says, its auth and its machine."""
        check = Checker("body", body, textual=False)
        wanted = {
            "name": check.text("name"),
            "auth_id": check.integer("auth_id"),
            "gpu": check.integer("gpu", least=1, most=12),
            "node_name": check.text("node_name"),
            "image_template_id": check.integer("image_template_id"),
            "payment_type": check.member("payment_type", (0, 1, 2)),
        }
        check.raise_if_wrong()
        auth = _found(self._auths, wanted["auth_id"], "Auth")
        _found(self._images, wanted["image_template_id"], "Image")
        return wanted, auth, _found(self._nodes, wanted["node_name"], "Node")

    def list_containers(self, query: Mapping[str, str]) -> bytes:
        """`GET /v1/rentgpu/containers/`."""
        return self._fleet.page(query)

    def get_container(self, container_id: int) -> bytes:
        """`GET /v1/rentgpu/containers/{container_id}`."""
        return self._fleet.show(container_id)

    def stop_container(self, container_id: int) -> bytes:
        """`POST /v1/rentgpu/containers/{container_id}/stop`."""
        return self._fleet.stop(container_id)

    def restart_container(self, container_id: int, faults: Sequence[Fault] = ()) -> bytes:
        """`POST /v1/rentgpu/containers/{container_id}/restart`."""
        return self._fleet.restart(container_id, faults)

    def delete_container(self, container_id: int) -> bytes:
        """`DELETE /v1/rentgpu/containers/{container_id}`: gives the stock back and ends the bill."""
        return self._fleet.delete(container_id)

    def _stamp(self) -> Any:
        return self.dialect.stamp(self.timeline.now)


def _within(value: Any, least: int | None, most: int | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _found(things: Mapping[Any, Any], key: Any, kind: str) -> Any:
    if key not in things:
        raise Refusal(404, {"detail": f"{kind} not found"})
    return things[key]

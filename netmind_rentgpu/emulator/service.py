"""The emulated service itself: accounts for auths, images, containers and stock. No I/O; time comes from a clock.

Nothing happens in the background: what a container is, follows from when it was started and what time it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from random import Random
from typing import Any

import attrs

from netmind_rentgpu.emulator.billing import Bill, Charge
from netmind_rentgpu.emulator.dialect import Dialect
from netmind_rentgpu.emulator.inventory import Node, draw_nodes, official_images
from netmind_rentgpu.emulator.validation import Checker, InvalidRequest, Refusal
from netmind_rentgpu.emulator.world import World

__all__ = ["RUNNING", "STARTING", "STOPPED", "Service"]

# The service documents no status numbers. These are made up; no client may depend on them.
STARTING, RUNNING, STOPPED = 0, 1, 2

_HOST = "127.0.0.1"
_LIST_LAG = 20.0
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


@attrs.define(kw_only=True)
class _Container:
    """A container's record; `up_at` is when it is, or will be, ready, and None while it is stopped."""

    fields: dict[str, Any]
    node: Node
    gpu: int
    created: float
    up_at: float | None
    port: int


class Service:
    """Everything behind the thirteen calls, for one account."""

    def __init__(
        self,
        *,
        seed: int,
        machines: int,
        boot_seconds: float,
        token: str,
        balance: Decimal | None,
        world: World,
        clock: Callable[[], float],
    ) -> None:
        self.world = world
        self.dialect: Dialect = Dialect(world)
        self._balance = balance
        self._deleted: dict[int, _Container] = {}
        self._random = Random(seed)  # noqa: S311  # to be repeatable is the point
        self._clock = clock
        self._boot_seconds = boot_seconds
        self._token = token
        self._nodes = {node.name: node for node in draw_nodes(self._random, machines)}
        self._auths: dict[int, dict[str, Any]] = {}
        self._images: dict[int, dict[str, Any]] = {}
        self._containers: dict[int, _Container] = {}
        self._next_container_id = 1001
        self.bill: Bill = Bill()
        for content in official_images():
            self._add_image(content)

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
        return self.bill.charges(self._clock())

    # Machines

    def list_machines(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
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
        return [self._machine(node, rate) for node in sorted(found, key=lambda node: (node.price, node.name))]

    def _machine(self, node: Node, rate: Decimal) -> dict[str, Any]:
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

    def create_auth(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /v1/rentgpu/auths/`."""
        check = Checker("body", body, textual=False)
        value = check.text("value", shortest=8, longest=32)
        check.raise_if_wrong()
        auth_id = len(self._auths) + 1
        self._auths[auth_id] = {"id": auth_id, "value": value, "created_at": self._stamp()}
        return self.get_auth(auth_id)

    def list_auths(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """`GET /v1/rentgpu/auths/`."""
        return self.dialect.page("auth", self._auths.values(), query)

    def get_auth(self, auth_id: int) -> dict[str, Any]:
        """`GET /v1/rentgpu/auths/{auth_id}`."""
        return self.dialect.thing("auth", _found(self._auths, auth_id, "Auth"))

    # Images

    def create_image(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /v1/rentgpu/images/`."""
        check = Checker("body", body, textual=False)
        content = {name: check.text(name) for name in ("name", "image_name", "image_tag", "image_label")}
        content |= {name: check.text(name, default=default) for name, default in _IMAGE_DEFAULTS.items()}
        check.raise_if_wrong()
        return self.get_image(self._add_image({**content, "image_type": 2}))

    def list_images(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """`GET /v1/rentgpu/images/`."""
        check = Checker("query", query, textual=True)
        image_type = check.member("image_type", (0, 1, 2), default=0)
        check.raise_if_wrong()
        images = [image for image in self._images.values() if image["image_type"] == image_type]
        return self.dialect.page("image", images, query)

    def get_image(self, image_id: int) -> dict[str, Any]:
        """`GET /v1/rentgpu/images/{image_id}`."""
        return self.dialect.thing("image", _found(self._images, image_id, "Image"))

    def _add_image(self, content: dict[str, Any]) -> int:
        image_id = len(self._images) + 1
        self._images[image_id] = {**_IMAGE_DEFAULTS, **content, "id": image_id, "created_at": self._stamp()}
        return image_id

    # Containers

    def create_container(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /v1/rentgpu/containers/`: takes stock and starts the bill."""
        check = Checker("body", body, textual=False)
        name = check.text("name")
        auth_id = check.integer("auth_id")
        gpu = check.integer("gpu", least=1, most=12)
        node_name = check.text("node_name")
        image_id = check.integer("image_template_id")
        check.member("payment_type", (0, 1, 2))
        check.raise_if_wrong()
        _found(self._auths, auth_id, "Auth")
        _found(self._images, image_id, "Image")
        node = _found(self._nodes, node_name, "Node")
        if self._balance is not None and sum(charge.cost for charge in self.charges()) >= self._balance:
            raise self.dialect.balance_refusal()
        if self.world.long_names == "cut at 24":
            name = name[:24]
        if self.world.names == "unique" and any(one.fields["name"] == name for one in self._containers.values()):
            raise Refusal(409, {"detail": "a container of that name exists"})
        if node.free < gpu:
            raise Refusal(400, {"detail": f"node {node_name} has {node.free} free GPUs, {gpu} were asked for"})

        now = self._clock()
        container_id = self._next_container_id
        self._next_container_id += 1
        node.taken += gpu
        container = _Container(
            fields={
                "name": name,
                "auth_id": auth_id,
                "gpu": gpu,
                "node_name": node_name,
                "image_template_id": image_id,
                "enable_vscode": False,
                "enable_jupyter": False,
                "cpu": node.cpu_per_gpu * gpu,
                "disk_size": 200,
                "memory": node.memory_per_gpu * gpu,
                "gpu_name": self.dialect.container_gpu(node.gpu_id, node.gpu_name),
                "id": container_id,
                "created_at": self._stamp(),
            },
            node=node,
            gpu=gpu,
            created=now,
            up_at=now + self._boot_time(),
            port=20_000 + container_id % 40_000,
        )
        self._containers[container_id] = container
        self.bill.begin(container_id, name=name, node_name=node_name, gpu=gpu, price=node.price, now=now)
        return self._shown(container)

    def list_containers(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """`GET /v1/rentgpu/containers/`."""
        lag = 0 if self.world.list_lag == "none" else _LIST_LAG
        now = self._clock()
        listed = [one for one in self._containers.values() if now - one.created >= lag]
        return self.dialect.page("container", map(self._fields, listed), query)

    def get_container(self, container_id: int) -> dict[str, Any]:
        """`GET /v1/rentgpu/containers/{container_id}`."""
        return self._shown(_found(self._containers, container_id, "Container"))

    def stop_container(self, container_id: int) -> dict[str, Any]:
        """`POST /v1/rentgpu/containers/{container_id}/stop`."""
        container = _found(self._containers, container_id, "Container")
        container.up_at = None
        if self.world.stop_billing == "ends":
            self.bill.pause(container_id, self._clock())
        return self._shown(container)

    def restart_container(self, container_id: int) -> dict[str, Any]:
        """`POST /v1/rentgpu/containers/{container_id}/restart`."""
        container = _found(self._containers, container_id, "Container")
        container.up_at = self._clock() + self._boot_time()
        if self.world.restart_port == "changed":
            container.port += 1
        self.bill.resume(container_id, self._clock())
        return self._shown(container)

    def delete_container(self, container_id: int) -> Any:
        """`DELETE /v1/rentgpu/containers/{container_id}`: gives the stock back and ends the bill."""
        if container_id in self._deleted:
            refusal = self.dialect.second_delete()
            if refusal is not None:
                raise refusal
            return self.dialect.deleted(self._shown(self._deleted[container_id]))
        container = _found(self._containers, container_id, "Container")
        shown = self._shown(container)
        self._deleted[container_id] = self._containers.pop(container_id)
        container.node.taken -= container.gpu
        self.bill.end(container_id, self._clock())
        return self.dialect.deleted(shown)

    def _boot_time(self) -> float:
        return self._boot_seconds * self._random.uniform(0.75, 1.25)

    def _shown(self, container: _Container) -> dict[str, Any]:
        return self.dialect.thing("container", self._fields(container))

    def _fields(self, container: _Container) -> dict[str, Any]:
        status = STOPPED
        if container.up_at is not None:
            status = RUNNING if self._clock() >= container.up_at else STARTING
        up = status == RUNNING
        return {
            **container.fields,
            "status": status,
            "ssh": self.dialect.ssh(_HOST, container.port, up=up),
            **{
                f"{name}_service": self.dialect.service(name, _HOST, container.port, up=up)
                for name in ("exposed", "vscode", "jupyter")
            },
        }

    def _stamp(self) -> Any:
        return self.dialect.stamp(self._clock())


def _within(value: Any, least: int | None, most: int | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _found(things: Mapping[Any, Any], key: Any, kind: str) -> Any:
    if key not in things:
        raise Refusal(404, {"detail": f"{kind} not found"})
    return things[key]

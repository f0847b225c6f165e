"""The machines, official images and ids that all accounts of the emulated service share. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from random import Random
from typing import Any

from netmind_rentgpu.emulator.billing import Bill
from netmind_rentgpu.emulator.clock import Timeline
from netmind_rentgpu.emulator.dialect import Dialect, as_json
from netmind_rentgpu.emulator.ids import Ids
from netmind_rentgpu.emulator.inventory import Node, draw_nodes, official_images
from netmind_rentgpu.emulator.ports import Ports
from netmind_rentgpu.emulator.validation import Checker, Refusal
from netmind_rentgpu.emulator.world import World

__all__ = ["IMAGE_DEFAULTS", "Market"]

_FIRST_CONTAINER = 1001
# The value of a US dollar in each currency. The documentation has only USD as a currency of prices; the rates are made up.
_RATES = {"USD": Decimal(1), "NMT": Decimal(4), "CNY": Decimal("7.2")}
IMAGE_DEFAULTS = {
    "description": None,
    "docker_username": None,
    "docker_passwd": None,
    "docker_registry": "https://index.docker.io/v1/",
    "public_port": None,
    "onstart": None,
    "options": None,
}


class Market:
    """The machines, official images, time, bill and ids that all accounts share.

    Attributes:
        nodes: the machines, by name.
        images: the official and the public images, by id.
        auth_ids, image_ids, container_ids: the sources of ids, one for each kind of resource.
    """

    def __init__(
        self, *, seed: int, machines: int, boot_seconds: float, world: World, timeline: Timeline, ports: Ports
    ) -> None:
        self.world = world
        self.dialect: Dialect = Dialect(world)
        self.timeline = timeline
        self.random: Random = Random(seed)  # noqa: S311  # repeatable on purpose
        self.boot_seconds = boot_seconds
        self.ports = ports
        self.bill: Bill = Bill()
        nodes = sorted(draw_nodes(self.random, machines), key=lambda node: (node.price, node.name))
        self.nodes: dict[str, Node] = {node.name: node for node in nodes}
        self.auth_ids: Ids = Ids()
        self.image_ids: Ids = Ids()
        self.container_ids: Ids = Ids(first=_FIRST_CONTAINER, reused=world.ids == "reused")
        offered = [self.new_image(content) for content in official_images()]
        self.images: dict[int, dict[str, Any]] = {image["id"]: image for image in offered}
        self._machines: dict[tuple[str, str], bytes] = {}

    def stamp(self) -> Any:
        """Write the present as a `created_at`."""
        return self.dialect.stamp(self.timeline.now)

    def missing(self, kind: str, ids: Ids, wanted: int) -> Refusal:
        """Return the refusal for an id that the account does not have, though another account may.

        Args:
            kind: the kind of resource, such as `Auth`.
        """
        if wanted in ids and self.world.other_accounts == "403":
            return Refusal(403, {"detail": "Forbidden"})
        return Refusal(404, {"detail": f"{kind} not found"})

    def new_image(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return an image with a new id."""
        return {**IMAGE_DEFAULTS, **content, "id": self.image_ids.new(), "created_at": self.stamp()}

    def list_machines(self, query: Mapping[str, str]) -> bytes:
        """`GET /v1/rentgpu/machines`: list machines with enough free GPUs that pass every filter, the cheapest first."""
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
            for node in self.nodes.values()
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
        return self.dialect.resource("machine", listing)


def _within(value: Any, least: int | None, most: int | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)

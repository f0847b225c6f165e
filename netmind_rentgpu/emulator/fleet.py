"""The containers of an emulated service: their states, the GPUs that they use, and their bill.

A container's status is not stored: it is computed from the container's recorded times and the present time. The fleet plans
actions only to open ports, to remove containers, and to discard a container's cached JSON when its status changes.

A container's port opens at the first `Timeline.settle` after its `up_at`. Only an emulator with SSH opens real ports; for
any other, nothing ever listens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from math import inf
from typing import Any

import attrs

from netmind_rentgpu.emulator.dialect import as_json
from netmind_rentgpu.emulator.faults import Fault
from netmind_rentgpu.emulator.inventory import Node
from netmind_rentgpu.emulator.market import Market
from netmind_rentgpu.emulator.ports import Inside
from netmind_rentgpu.emulator.validation import Refusal

__all__ = ["DELETED", "FAILED", "RUNNING", "STARTING", "STOPPED", "Fleet"]

# These numbers are made up, because the service documents none. No client may depend on them.
STARTING, RUNNING, STOPPED, FAILED, DELETED = 0, 1, 2, 3, 4

_HOST = "127.0.0.1"
_NOTHING_LISTENS = 1
_LIST_LAG = _DELETE_LAG = 20.0
_NOT_WRITTEN = b""


@attrs.define(kw_only=True)
class _Container:
    """A container's record. Its times are seconds since 1970 by the emulator's clock; infinity means never.

    Attributes:
        inside: the password and the GPUs that a login finds.
        created: the time of its creation.
        endpoint_works: False for a container whose port is never opened, by the fault "never reachable".
        up_at: the time from which it runs; infinity if it is stopped or never starts.
        dies_at, vanishes_at: the times at which it fails or disappears by a fault.
        deleting: True if a delete was answered and takes effect later.
        deleted: True if it is deleted, though the list may still show it.
    """

    fields: dict[str, Any]
    node: Node
    gpu: int
    created: float
    port: int
    inside: Inside
    stopped: bool = False
    endpoint_works: bool = True
    up_at: float = inf
    dies_at: float = inf
    vanishes_at: float = inf
    deleting: bool = False
    deleted: bool = False


class Fleet:
    """All containers of one account."""

    def __init__(self, account: str, market: Market, *, balance: Decimal | None) -> None:
        self._account = account
        self._market = market
        self._world = market.world
        self._dialect = market.dialect
        self._timeline = market.timeline
        self._ports = market.ports
        self._balance = balance
        self._bill = market.bill
        self._containers: dict[int, _Container] = {}
        self._deleted: dict[int, bytes] = {}
        # The ids in rising order, and the JSON of each container at the same index, written at its first use. A page is
        # joined from these texts, because reading every container's record would take most of a request's time.
        self._ids: list[int] = []
        self._texts: list[bytes] = []
        self._names: Counter[str] = Counter()

    def affords(self) -> bool:
        """Return True if the balance allows another container. A spent balance never recovers."""
        if self._balance is None:
            return True
        charges = self._bill.charges(self._timeline.now)
        return sum(charge.cost for charge in charges if charge.account == self._account) < self._balance

    def rent(
        self,
        node: Node,
        wanted: Mapping[str, Any],
        faults: Sequence[Fault],
        *,
        number: int,
        password: str,
        stamp: Any,
    ) -> bytes:
        """Start a container, which reserves GPUs of a machine and begins a bill.

        Args:
            wanted: the checked fields of the create.
            faults: the faults that happen to the container.
            number: the container's number on the bill.
            password: the password of its SSH server.
            stamp: its `created_at`.

        Raises:
            Refusal: the balance is spent, the name exists in a world of unique names, or the machine has too few free GPUs.
        """
        gpu, name = wanted["gpu"], self._dialect.container_name(wanted["name"])
        if not self.affords():
            raise self._dialect.balance_refusal()
        if self._world.names == "unique" and self._names[name]:
            raise Refusal(409, {"detail": "a container of that name exists"})
        if node.free < gpu:
            raise _stock_out(node, gpu, node.free)
        if any(fault.what == "stock-out" for fault in faults):
            raise _stock_out(node, gpu, 0, by_rule=True)

        container_id = self._market.container_ids.new()
        self._deleted.pop(container_id, None)  # because the id of a deleted container may be reused
        now = self._timeline.now
        node.taken += gpu
        container = _Container(
            fields={
                "name": name,
                "auth_id": wanted["auth_id"],
                "gpu": gpu,
                "node_name": node.name,
                "image_template_id": wanted["image_template_id"],
                "enable_vscode": False,
                "enable_jupyter": False,
                "cpu": node.cpu_per_gpu * gpu,
                "disk_size": 200,
                "memory": node.memory_per_gpu * gpu,
                "gpu_name": self._dialect.container_gpu(node.gpu_id, node.gpu_name),
                "id": container_id,
                "created_at": stamp,
            },
            node=node,
            gpu=gpu,
            created=now,
            port=self._ports.new(container_id),
            inside=Inside(password, node.gpus(gpu)),
        )
        place = self._place(container_id)
        self._containers[container_id] = container
        self._ids.insert(place, container_id)
        self._texts.insert(place, _NOT_WRITTEN)
        self._names[name] += 1
        self._bill.begin(
            container_id,
            number=number,
            account=self._account,
            name=name,
            node_name=node.name,
            gpu=gpu,
            price=node.price,
            now=now,
        )
        self._boot(container, faults)
        others = (
            [other for other in self._ids if other != container_id] if self._world.create_answer == "another" else []
        )
        return self._shown(others[-1] if others else container_id)

    def page(self, query: Mapping[str, str]) -> bytes:
        """Return a page of the list, as JSON."""
        ids: Sequence[int] = self._ids
        if self._world.list_lag != "none":
            listed = self._timeline.now - _LIST_LAG
            if self._world.ids == "reused":
                ids = [container_id for container_id in ids if self._containers[container_id].created <= listed]
            else:
                ids = ids[: bisect_right(ids, listed, key=lambda container_id: self._containers[container_id].created)]
        chosen = self._dialect.page("container", ids, query)
        texts = self._texts[chosen]
        if _NOT_WRITTEN in texts or self._world.ids == "reused":
            texts = [self._shown(container_id) for container_id in ids[chosen]]
        return b"[%s]" % b",".join(texts)

    def show(self, container_id: int) -> bytes:
        """Return a container, as JSON."""
        if container_id not in self._containers:
            raise self._missing(container_id)
        return self._shown(container_id)

    def stop(self, container_id: int) -> bytes:
        """Stop a container."""
        container = self._found(container_id)
        self._shut_down(container_id, container)
        container.stopped = True
        if self._world.stop_billing == "ends":
            self._bill.pause(container_id, self._timeline.now)
        return self._shown(container_id)

    def restart(self, container_id: int, faults: Sequence[Fault]) -> bytes:
        """Restart a container, which may be in any state."""
        container = self._found(container_id)
        self._shut_down(container_id, container, new_host_key=self._world.restart_host_key == "changed")
        if self._world.restart_port == "changed" or any(fault.what == "moves" for fault in faults):
            container.port = self._ports.new(container_id)
        self._bill.resume(container_id, self._timeline.now)
        self._boot(container, faults)
        return self._shown(container_id)

    def delete(self, container_id: int) -> bytes:
        """Delete a container, at once or later as the world has it."""
        if container_id in self._deleted:
            refusal = self._dialect.second_delete()
            if refusal is not None:
                raise refusal
            return self._dialect.deleted(self._deleted[container_id])
        container = self._found(container_id)
        shown = self._shown(container_id)
        if self._world.delete_lag == "none":
            self._remove(container_id, container)
        elif self._world.delete_lag == "20 s" and not container.deleting:
            container.deleting = True
            removal = partial(self._remove_late, container_id, container)
            self._timeline.plan(self._timeline.now + _DELETE_LAG, removal)
        return self._dialect.deleted(shown)

    def _found(self, container_id: int) -> _Container:
        container = self._containers.get(container_id)
        if container is None or container.deleted:
            raise self._missing(container_id)
        return container

    def _missing(self, container_id: int) -> Refusal:
        if container_id in self._containers:  # it is deleted, but the list still shows it
            return Refusal(404, {"detail": "Container not found"})
        return self._market.missing("Container", self._market.container_ids, container_id)

    def _exists(self, container_id: int, container: _Container) -> bool:
        # By identity, because another container may have reused the id.
        return self._containers.get(container_id) is container and not container.deleted

    def _remove(self, container_id: int, container: _Container) -> None:
        self._deleted[container_id] = self._shown(container_id)
        container.deleted = True
        place = self._place(container_id)
        if self._world.deleted == "listed":
            self._texts[place] = _NOT_WRITTEN
        else:
            del self._ids[place], self._texts[place]
            del self._containers[container_id]
            self._market.container_ids.free(container_id)
        self._names[container.fields["name"]] -= 1
        container.node.taken -= container.gpu
        self._ports.remove(container_id)
        self._bill.end(container_id, self._timeline.now)

    def _remove_late(self, container_id: int, container: _Container) -> None:
        if self._exists(container_id, container):
            self._remove(container_id, container)

    def _boot(self, container: _Container, faults: Sequence[Fault]) -> None:
        now = self._timeline.now
        seconds = self._market.boot_seconds * self._market.random.uniform(0.75, 1.25)
        container.up_at = now + seconds
        faults_by_name = {fault.what: fault for fault in faults}
        container.endpoint_works = "never reachable" not in faults_by_name
        if "never starts" in faults_by_name or "dies" in faults_by_name:
            container.up_at = inf
        if "dies" in faults_by_name:
            container.dies_at = now + seconds / 2
        container_id = container.fields["id"]
        if container.up_at <= now:
            self._come_up(container_id, container, container.up_at)
        elif container.up_at < inf:
            self._timeline.plan(container.up_at, partial(self._come_up, container_id, container, container.up_at))
        if container.dies_at < inf:
            self._timeline.plan(container.dies_at, partial(self._rewrite, container_id))
        if "vanishes" in faults_by_name:
            container.vanishes_at = container.up_at + (faults_by_name["vanishes"].seconds or 0.0)
        if container.vanishes_at < inf:
            moment = container.vanishes_at
            self._timeline.plan(moment, partial(self._vanish, container_id, container, moment))

    def _come_up(self, container_id: int, container: _Container, moment: float) -> None:
        # Skipped if the container was stopped, restarted or deleted meanwhile.
        if container.up_at == moment and self._exists(container_id, container):
            self._rewrite(container_id)
            if container.endpoint_works:
                self._ports.open(container_id, container.inside)

    def _vanish(self, container_id: int, container: _Container, moment: float) -> None:
        if container.vanishes_at == moment and self._exists(container_id, container):
            self._remove(container_id, container)

    def _shut_down(self, container_id: int, container: _Container, *, new_host_key: bool = False) -> None:
        """Close a container's port, and cancel its planned start, failure and disappearance."""
        self._ports.close(container_id, new_host_key=new_host_key)
        container.stopped, container.endpoint_works = False, True
        container.up_at = container.dies_at = container.vanishes_at = inf
        self._rewrite(container_id)

    def _place(self, container_id: int) -> int:
        return bisect_left(self._ids, container_id)

    def _rewrite(self, container_id: int) -> None:
        """Discard a container's JSON, so that its next use writes it again."""
        if container_id in self._containers:
            self._texts[self._place(container_id)] = _NOT_WRITTEN

    def _shown(self, container_id: int) -> bytes:
        place = self._place(container_id)
        if self._texts[place] is _NOT_WRITTEN:
            fields = self._fields(self._containers[container_id])
            self._texts[place] = as_json(self._dialect.resource("container", fields))
        return self._texts[place]

    def _fields(self, container: _Container) -> dict[str, Any]:
        now = self._timeline.now
        if container.deleted:
            status = DELETED
        elif container.stopped:
            status = STOPPED
        elif now >= container.dies_at:
            status = FAILED
        else:
            status = RUNNING if now >= container.up_at else STARTING
        up = status == RUNNING
        port = container.port if container.endpoint_works else _NOTHING_LISTENS
        return {
            **container.fields,
            "status": status,
            "ssh": self._dialect.ssh(_HOST, port, up=up),
            **{
                f"{name}_service": self._dialect.service(name, _HOST, port, up=up)
                for name in ("exposed", "vscode", "jupyter")
            },
        }


def _stock_out(node: Node, gpu: int, free: int, *, by_rule: bool = False) -> Refusal:
    return Refusal(400, {"detail": f"node {node.name} has {free} free GPUs, {gpu} were asked for"}, by_rule=by_rule)

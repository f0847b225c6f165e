"""One account of the emulated service: its auths, its images and its fleet of containers. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

import attrs

from netmind_rentgpu.emulator.billing import PendingCreate
from netmind_rentgpu.emulator.dialect import as_json
from netmind_rentgpu.emulator.faults import Fault
from netmind_rentgpu.emulator.fleet import Fleet
from netmind_rentgpu.emulator.inventory import Node
from netmind_rentgpu.emulator.market import IMAGE_DEFAULTS, Market
from netmind_rentgpu.emulator.validation import Checker, Refusal

__all__ = ["Account"]


@attrs.frozen
class _ExpectedCreate:
    """A create that the service will do later.

    Attributes:
        how: the name of the fault that delays it.
        due: seconds since 1970, by the emulator's clock; None for the fault `slow`, which follows real time.
    """

    body: Mapping[str, Any]
    how: str
    due: float | None


class Account:
    """One account and its thirteen calls. Each call returns JSON as bytes, or raises a Refusal."""

    def __init__(self, name: str, market: Market, *, balance: Decimal | None, next_number: Callable[[], int]) -> None:
        """Open an account.

        Args:
            balance: in US dollars; None for an unlimited balance.
            next_number: returns the number of the next create on the bill.
        """
        self.name = name
        self._market = market
        self._dialect = market.dialect
        self._next_number = next_number
        self._auths: dict[int, dict[str, Any]] = {}
        self._images: dict[int, dict[str, Any]] = {}
        self._expected: dict[int, _ExpectedCreate] = {}
        self._fleet = Fleet(name, market, balance=balance)

    def expect(self, body: Mapping[str, Any], how: str, seconds: float | None) -> int:
        """Record a create that the service will do later, and return the number to pass to `create_container` then.

        Args:
            how: the name of the fault that delays the create.
            seconds: the delay by the emulator's clock; None for the fault `slow`, which follows real time.
        """
        number = self._next_number()
        due = None if seconds is None else self._market.timeline.now + seconds
        self._expected[number] = _ExpectedCreate(body, how, due)
        return number

    def pending_creates(self) -> list[PendingCreate]:
        """Return the creates that the service will still do, without creates that it would refuse now."""
        pending_creates: list[PendingCreate] = []
        for number, expected in self._expected.items():
            with suppress(Refusal):
                wanted, _, node = self._wanted(expected.body)
                gpu = wanted["gpu"]
                if gpu <= node.gpu_count and self._fleet.affords():
                    pending_creates.append(
                        PendingCreate(
                            number=number,
                            account=self.name,
                            name=wanted["name"],
                            node_name=node.name,
                            gpu=gpu,
                            hourly_price=node.price * gpu,
                            how=expected.how,
                            seconds=None if expected.due is None else expected.due - self._market.timeline.now,
                        )
                    )
        return pending_creates

    # Machines

    def list_machines(self, query: Mapping[str, str]) -> bytes:
        """`GET /v1/rentgpu/machines`: the list is the same for every account."""
        return self._market.list_machines(query)

    # Auths

    def create_auth(self, body: Mapping[str, Any]) -> bytes:
        """`POST /v1/rentgpu/auths/`."""
        check = Checker("body", body, textual=False)
        value = check.text("value", shortest=8, longest=32)
        check.raise_if_wrong()
        auth_id = self._market.auth_ids.new()
        self._auths[auth_id] = {"id": auth_id, "value": value, "created_at": self._market.stamp()}
        return self.get_auth(auth_id)

    def list_auths(self, query: Mapping[str, str]) -> bytes:
        """`GET /v1/rentgpu/auths/`."""
        ids = tuple(self._auths)
        chosen = ids[self._dialect.page("auth", ids, query)]
        return as_json([self._dialect.resource("auth", self._auths[auth_id]) for auth_id in chosen])

    def get_auth(self, auth_id: int) -> bytes:
        """`GET /v1/rentgpu/auths/{auth_id}`."""
        return as_json(self._dialect.resource("auth", self._auth(auth_id)))

    def _auth(self, auth_id: int) -> dict[str, Any]:
        if auth_id not in self._auths:
            raise self._market.missing("Auth", self._market.auth_ids, auth_id)
        return self._auths[auth_id]

    # Images

    def create_image(self, body: Mapping[str, Any]) -> bytes:
        """`POST /v1/rentgpu/images/`."""
        check = Checker("body", body, textual=False)
        content = {name: check.text(name) for name in ("name", "image_name", "image_tag", "image_label")}
        content |= {name: check.text(name, default=default) for name, default in IMAGE_DEFAULTS.items()}
        check.raise_if_wrong()
        image = self._market.new_image({**content, "image_type": 2})
        self._images[image["id"]] = image
        return self.get_image(image["id"])

    def list_images(self, query: Mapping[str, str]) -> bytes:
        """`GET /v1/rentgpu/images/`."""
        check = Checker("query", query, textual=True)
        image_type = check.member("image_type", (0, 1, 2), default=0)
        check.raise_if_wrong()
        images = {**self._market.images, **self._images}
        ids = [image_id for image_id, image in images.items() if image["image_type"] == image_type]
        chosen = ids[self._dialect.page("image", ids, query)]
        return as_json([self._dialect.resource("image", images[image_id]) for image_id in chosen])

    def get_image(self, image_id: int) -> bytes:
        """`GET /v1/rentgpu/images/{image_id}`."""
        return as_json(self._dialect.resource("image", self._image(image_id)))

    def _image(self, image_id: int) -> dict[str, Any]:
        image = self._images.get(image_id) or self._market.images.get(image_id)
        if image is None:
            raise self._market.missing("Image", self._market.image_ids, image_id)
        return image

    # Containers

    def create_container(
        self, body: Mapping[str, Any], faults: Sequence[Fault] = (), number: int | None = None
    ) -> bytes:
        """`POST /v1/rentgpu/containers/`: reserve the GPUs, start the container and its bill.

        Args:
            faults: the faults that happen to the container.
            number: the number that `expect` returned for this create; None if the create was not expected.
        """
        if number is None:
            number = self._next_number()
        self._expected.pop(number, None)
        wanted, auth, node = self._wanted(body)
        return self._fleet.rent(node, wanted, faults, number=number, password=auth["value"], stamp=self._market.stamp())

    def _wanted(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Node]:
        """Check a create's body; return its fields, its auth and its machine.

        Raises:
            Refusal: a field is wrong, or the auth, image or machine does not exist.
        """
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
        auth = self._auth(wanted["auth_id"])
        self._image(wanted["image_template_id"])
        node = self._market.nodes.get(wanted["node_name"])
        if node is None:
            raise Refusal(404, {"detail": "Node not found"})
        return wanted, auth, node

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
        """`DELETE /v1/rentgpu/containers/{container_id}`: release the GPUs and end the bill."""
        return self._fleet.delete(container_id)

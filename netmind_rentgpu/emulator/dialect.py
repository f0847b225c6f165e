"""The forms of an emulated service's answers in one world: fields, stamps, lists and refusals."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from netmind_rentgpu.emulator.validation import Checker, InvalidRequest, Refusal
from netmind_rentgpu.emulator.world import World

__all__ = ["Dialect", "as_json"]

_MISSING = object()
_DEFAULT_LIMIT = 10
# The fields that a renter can do without, by kind of resource.
_OPTIONAL = {
    "machine": frozenset(
        {
            *("on_demand", "labels", "cluster", "cpu_name", "cpu_count", "cpu_per_gpu", "original_price", "gpu_id"),
            *("network_upload_speed", "network_download_speed", "up_time", "online_rate", "organization"),
            *("driver_version", "cuda_version", "nvlink_status"),
        }
    ),
    "auth": frozenset({"created_at"}),
    "image": frozenset({"created_at", "description", "public_port", "onstart", "options"}),
    "container": frozenset(
        {"created_at", "enable_vscode", "enable_jupyter", "cpu", "disk_size", "memory", "gpu_name", "exposed_service"}
    ),
}
_UNKNOWN_MEMBER = 40


class Dialect:
    """Writes the service's answers as one world has them."""

    def __init__(self, world: World) -> None:
        self._world = world

    def resource(self, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Write a machine, auth, image or container."""
        world = self._world
        optional = _OPTIONAL[kind]
        shown: dict[str, Any] = {}
        for name, value in fields.items():
            if value is _MISSING or (name in optional and world.optional_fields == "absent"):
                continue
            shown[name] = None if name in optional and world.optional_fields == "null" else self._number(value)
        if world.members == "new" and isinstance(shown.get("status"), (int, float)):
            shown["status"] += _UNKNOWN_MEMBER
        if world.new_fields == "yes":
            shown |= {"new_field": {"nested": [1, None]}, "tags": ["x"]}
        return shown

    def page(self, kind: str, ids: Sequence[int], query: Mapping[str, str]) -> slice:
        """Return the slice of a list that a query asks for.

        Args:
            ids: the ids of the whole list, in rising order.
        """
        world = self._world
        cap = None if world.limit == "none" else int(world.limit)
        check = Checker("query", query, textual=True)
        # The documentation has an image's marker as a text, and all other markers as whole numbers.
        marker = check.text("marker", default=None) if kind == "image" else check.integer("marker", default=None)
        most = cap if world.over_limit == "refuse" else None
        limit = check.integer("limit", default=min(_DEFAULT_LIMIT, cap or _DEFAULT_LIMIT), least=0, most=most)
        check.raise_if_wrong()
        if isinstance(marker, str):
            marker = int(marker) if marker.isascii() and marker.isdigit() else -1
        count = limit if cap is None else min(limit, cap)
        first, end = (0, len(ids)) if marker is None else self._after(marker, ids)
        if world.order == "ascending":
            return slice(first, min(end, first + count))
        first = max(first, end - count)
        return slice(end - 1, first - 1 if first else None, -1) if first < end else slice(0)

    def _after(self, marker: int, ids: Sequence[int]) -> tuple[int, int]:
        """Return the start and the end of the part of a list that follows a marker."""
        world = self._world
        before, after = bisect_left(ids, marker), bisect_right(ids, marker)
        if before == after and world.dead_marker != "by value":
            if world.dead_marker == "404":
                raise Refusal(404, {"detail": "Marker not found"})
            return (0, 0) if world.dead_marker == "empty page" else (0, len(ids))
        if world.order == "ascending":
            return (before if world.marker == "inclusive" else after), len(ids)
        return 0, (after if world.marker == "inclusive" else before)

    def stamp(self, moment: float) -> Any:
        """Write a time.

        Args:
            moment: seconds since 1970.
        """
        when = datetime.fromtimestamp(moment, UTC)
        match self._world.stamps:
            case "zone":
                return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            case "naive":
                return when.replace(tzinfo=None).isoformat()
            case "space":
                return when.strftime("%Y-%m-%d %H:%M:%S")
            case "missing":
                return _MISSING

    def price(self, price: Decimal) -> str | float:
        """Write a price."""
        exact = price.quantize(Decimal("0.0001"))
        return float(exact) if self._world.prices == "number" else str(exact)

    def container_name(self, name: str) -> str:
        """Return a container's name as the service alters it."""
        altered = {"no": name, "upper case": name.upper(), "prefix": f"u7-{name}", "suffix": f"{name}-u7"}
        return altered[self._world.altered_names][: 24 if self._world.long_names == "cut at 24" else None]

    def container_gpu(self, number: int, name: str) -> int | str:
        """Write a container's `gpu_name`."""
        return number if self._world.gpu_name == "number" else name

    def ssh(self, host: str, port: int, *, up: bool) -> Any:
        """Write a container's `ssh`."""
        if not up:
            return {"empty": "", "null": None, "absent": _MISSING}[self._world.ssh_not_yet]
        return {
            "ssh user@host -p port": f"ssh root@{host} -p {port}",
            "ssh -p port user@host": f"ssh -p {port} root@{host}",
            "host:port": f"{host}:{port}",
            "url": f"ssh://root@{host}:{port}",
            "other text": "see the console for how to log in",
        }[self._world.ssh]

    def service(self, name: str, host: str, port: int, *, up: bool) -> Any:
        """Write a container's `exposed_service`, `vscode_service` or `jupyter_service`."""
        if self._world.services == "url":
            return f"http://{host}:{port}/{name}" if up else ""
        return {"empty": "", "null": None, "absent": _MISSING}[self._world.services]

    def bad_token(self) -> Refusal:
        """Return the refusal of a wrong token."""
        match self._world.bad_token:
            case "403 error":
                return Refusal(403, {"error": {"message": "Invalid api token"}}, by_gateway=True)
            case "403 message":
                return Refusal(403, {"message": "Invalid API key"}, by_gateway=True)
            case "401 detail":
                return Refusal(401, {"detail": "Not authenticated"}, by_gateway=True)

    def balance_refusal(self) -> Refusal:
        """Return the refusal of a create that the balance does not allow."""
        match self._world.balance_refusal:
            case "400 detail":
                return Refusal(400, {"detail": "balance not enough, please top up"})
            case "403 code":
                return Refusal(403, {"code": "INSUFFICIENT_BALANCE", "message": "Insufficient account balance"})
            case "402 empty":
                return Refusal(402, {})

    def second_delete(self) -> Refusal | None:
        """Return the refusal of a second delete; None if the service answers it like the first."""
        match self._world.second_delete:
            case "404":
                return Refusal(404, {"detail": "Container not found"})
            case "400":
                return Refusal(400, {"detail": "Container is already deleted"})
            case "409":
                return Refusal(409, {"detail": "Container is already deleted"})
            case "200":
                return None

    def deleted(self, shown: bytes) -> bytes:
        """Write the answer to a delete.

        Args:
            shown: the JSON of the container before it was deleted.

        Raises:
            Refusal: the answer has no JSON, so that its status and an empty body are sent.
        """
        match self._world.delete_answer:
            case "object":
                return shown
            case "null":
                return b"null"
            case "empty":
                raise Refusal(200, b"")
            case "204":
                raise Refusal(204, b"")

    def refusal(self, refusal: Refusal) -> tuple[bytes, str]:
        """Write the body of a refusal, and return it with its content type."""
        if isinstance(refusal.body, bytes):
            return refusal.body, "application/json"
        if refusal.by_gateway and self._world.errors == "html from a gateway":
            return (
                f"<html><head><title>{refusal.status}</title></head><body>gateway</body></html>".encode(),
                "text/html",
            )
        body = refusal.body
        if isinstance(refusal, InvalidRequest):
            form = _pydantic_1 if self._world.validation_errors == "pydantic 1" else _pydantic_2
            body = {"detail": [form(error) for error in body["detail"]]}
        return json.dumps(body).encode(), "application/json"

    def _number(self, value: Any) -> Any:
        whole = type(value) is int and self._world.numbers == "floats"
        return float(value) if whole else value


def _pydantic_1(error: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in error.items() if name != "input"}


def _pydantic_2(error: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(error["type"]).rpartition(".")[2]
    return {**error, "type": kind, "msg": str(error["msg"]).capitalize(), "url": f"https://errors.example/v/{kind}"}


def as_json(value: Any) -> bytes:
    """Write a value as JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()

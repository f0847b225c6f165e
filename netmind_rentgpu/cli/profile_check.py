"""The verdicts on a profile, by calls that change nothing: an assumption is open wherever the answers do not decide."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from netmind_rentgpu.errors import AuthenticationError, InvalidRequestError, NotFoundError, PermissionDeniedError
from netmind_rentgpu.models import Container, Machine
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.wire.payload import as_array, as_object

if TYPE_CHECKING:
    from netmind_rentgpu.cli.rows import Verdict
    from netmind_rentgpu.client import AsyncRentGPU

__all__ = ["Finding", "deciding_bound", "find_verdicts", "judge_filter"]

_REFUSED: Final = (AuthenticationError, PermissionDeniedError)
_FIELDS: Final[Mapping[str, Sequence[str]]] = {
    "memory": ("memory_total", "memory_per_gpu", "gpu_memory"),
    "disk": ("disk_total", "disk_per_gpu"),
}


@attrs.frozen
class Finding:
    """The verdict on one assumption.

    Attributes:
        verdict: the verdict.
        seen: the answer that it rests on, or the cause why the assumption is open.
    """

    verdict: Verdict
    seen: str


_UNSEEN: Final[Mapping[str, Finding]] = {
    **dict.fromkeys(("price_period", "price_basis", "payment_types"), Finding("open", "only a bill shows it")),
    **dict.fromkeys(("list_lag", "create_lag"), Finding("open", "only a create shows it")),
    **dict.fromkeys(("delete_lag", "deleted_stay_listed"), Finding("open", "only a deletion shows it")),
}


async def find_verdicts(
    gpu: AsyncRentGPU, with_profile: Callable[[ServiceProfile], AsyncRentGPU]
) -> dict[str, Finding]:
    """Return the verdict on each field of a client's profile.

    Args:
        with_profile: returns a client with another profile, for a service that refuses the token in this form.

    Raises:
        RentGPUError: the service did not answer, or refuses the token in both forms.
    """
    profile = gpu.profile
    form = f"the token in the form {profile.authorization!r}"
    try:
        await _ask_as_account(gpu)
    except _REFUSED:
        other = attrs.evolve(profile, authorization="bare" if profile.authorization == "bearer" else "bearer")
        async with with_profile(other) as accepted:
            await _ask_as_account(accepted)
            refused = f"the service refuses {form}, and accepts it in the form {other.authorization!r}"
            return {**await _Checks(accepted).run(), "authorization": Finding("contradicted", refused)}
    return {**await _Checks(gpu).run(), "authorization": Finding("confirmed", f"the service accepts {form}")}


async def _ask_as_account(gpu: AsyncRentGPU) -> None:
    # Not for machines, which a service may list for any token.
    await gpu.request("GET", "containers/", params={"limit": 1})


class _Checks:
    """The checks by one client, whose token the service accepts."""

    def __init__(self, gpu: AsyncRentGPU) -> None:
        self._gpu = gpu
        self._profile = gpu.profile

    async def run(self) -> dict[str, Finding]:
        """Return the verdicts on all fields but the form of the token."""
        currency, machines = await self._currency()
        containers = [container async for container in self._gpu.containers.list()]
        return {
            **_UNSEEN,
            "currency": currency,
            "gpu_names_parameter": await self._gpu_names_parameter(machines),
            "memory_field": await self._filter_field("memory", self._profile.memory_field, machines),
            "disk_field": await self._filter_field("disk", self._profile.disk_field, machines),
            "image_types": await self._image_types(),
            "page_size": await self._page_size(),
            "validation_errors_key": await self._validation_errors_key(),
            "container_statuses": self._container_statuses(containers),
            "ssh_username": self._ssh_username(containers),
        }

    async def _machines(self, **params: str | int) -> list[dict[str, Any]]:
        answer = await self._gpu.request("GET", "machines", params={"currency": self._profile.currency, **params})
        return [item for item in map(as_object, as_array(answer) or ()) if item is not None]

    async def _currency(self) -> tuple[Finding, list[Machine]]:
        name = self._profile.currency
        try:
            machines = await self._gpu.machines.list()
        except InvalidRequestError:
            return Finding("contradicted", f"the service refuses the currency {name}"), []
        priced = sum(machine.price is not None for machine in machines)
        return Finding("open", f"{priced} machines have prices, and no answer names their currency"), machines

    async def _gpu_names_parameter(self, machines: Sequence[Machine]) -> Finding:
        names = sorted({machine.gpu_name for machine in machines if machine.gpu_name and "," not in machine.gpu_name})
        if len(names) < 2:
            return Finding("open", "fewer than two GPUs are on offer")
        parameter = self._profile.gpu_names_parameter
        try:
            answer = await self._machines(**{parameter: names[0]})
        except InvalidRequestError:
            return Finding("contradicted", f"the service refuses {parameter}={names[0]}")
        found = {item.get("gpu_name") for item in answer}
        if found == {names[0]}:
            return Finding("confirmed", f"{parameter}={names[0]} lists this GPU alone")
        if found - {names[0]}:
            return Finding("contradicted", f"{parameter}={names[0]} lists other GPUs, too")
        return Finding("open", f"{parameter}={names[0]} lists no machine")

    async def _filter_field(
        self, kind: Literal["memory", "disk"], assumed: str, machines: Sequence[Machine]
    ) -> Finding:
        bound = deciding_bound(machines, assumed, kind)
        if bound is None:
            return Finding("open", "the machines on offer do not tell the fields apart")
        parameter = f"min_{kind}"
        try:
            answer = await self._machines(**{parameter: bound})
        except InvalidRequestError:
            return Finding("open", f"the service refuses {parameter}={bound}")
        return judge_filter(machines, assumed, kind, bound, {str(item.get("node_name")) for item in answer})

    async def _image_types(self) -> Finding:
        for name, number in self._profile.image_types.items():
            try:
                images = as_array(await self._gpu.request("GET", "images/", params={"image_type": number})) or []
            except InvalidRequestError:
                return Finding("contradicted", f"the service refuses {number}, for {name}")
            shown = {item.get("image_type") for item in map(as_object, images) if item is not None}
            if shown - {number, None}:
                return Finding("contradicted", f"the list of type {number} has images of other types")
        numbers = ", ".join(map(str, self._profile.image_types.values())) or "none"
        return Finding("open", f"the service accepts the types {numbers}, and no answer names them")

    async def _page_size(self) -> Finding:
        size = self._profile.page_size
        try:
            first = await self._images(size)
        except InvalidRequestError:
            return Finding("contradicted", f"the service refuses pages of {size}; the client asks for fewer then")
        if len(first) >= size:
            return Finding("confirmed", f"a page has {len(first)} items")
        try:
            following = await self._images(size, marker=first[-1]) if first else []
        except (InvalidRequestError, NotFoundError):
            return Finding("open", f"the service accepts pages of {size}, and tells no next page of {len(first)} items")
        if any(image not in first for image in following):
            return Finding("contradicted", f"a page has {len(first)} items, and others follow")
        return Finding("open", f"the service accepts pages of {size}, and its list has only {len(first)} items")

    async def _images(self, size: int, **marker: Any) -> list[Any]:
        """Return the ids of a page of images."""
        answer = await self._gpu.request("GET", "images/", params={"limit": size, **marker})
        return [item.get("id") for item in map(as_object, as_array(answer) or ()) if item is not None]

    async def _validation_errors_key(self) -> Finding:
        key = self._profile.validation_errors_key
        try:
            await self._machines(gpu="not-a-number")
        except InvalidRequestError as error:
            if error.status != 422:
                return Finding("open", f"the service refuses a wrong count of GPUs with {error.status}, not with 422")
            body = as_object(error.body) or {}
            if error.fields:
                return Finding("confirmed", f"a 422 has the rejected fields under {key!r}")
            others = [name for name, value in body.items() if name != key and as_array(value)]
            if others:
                return Finding("contradicted", f"a 422 has a list under {others[0]!r}")
            return Finding("open", f"a 422 names no rejected fields under {key!r}, nor elsewhere")
        return Finding("open", "the service does not refuse a wrong count of GPUs")

    def _container_statuses(self, containers: Iterable[Container]) -> Finding:
        seen = {str(each.status): each.status_name for each in containers if each.status is not None}
        unnamed = sorted(number for number, name in seen.items() if name is None)
        if unnamed:
            return Finding("open", f"containers have status {', '.join(unnamed)}, without a name here")
        text = "no container is listed" if not seen else "each status has a name here, and no answer names them"
        return Finding("open", text)

    def _ssh_username(self, containers: Iterable[Container]) -> Finding:
        endpoints = [each.ssh_endpoint for each in containers if each.ssh_endpoint is not None]
        if endpoints and all(endpoint.username is not None for endpoint in endpoints):
            return Finding("open", "each container's ssh names its user, so that it is not needed")
        return Finding("open", "only a login shows it")


def deciding_bound(machines: Sequence[Machine], assumed: str, kind: Literal["memory", "disk"]) -> int | None:
    """Return a lower bound at which a field lists other machines than each other field does, and not all; None without one.

    Of several such bounds, it is the first at which most of the other fields differ, too.

    Args:
        assumed: the field.
        kind: the kind of field.
    """
    fields = _FIELDS[kind]
    everything = frozenset(machine.node_name for machine in machines)
    values = sorted({getattr(machine, field) for machine in machines for field in fields} - {None})
    best, most = None, 0
    for low, high in pairwise(values):
        # Between two values, because the bound itself may be in or out.
        bound = int(low) + 1
        listed = [_above(machines, field, bound) for field in fields]
        wanted, distinct = listed[fields.index(assumed)], len({everything, *listed})
        if bound < high and distinct > most and listed.count(wanted) == 1 and wanted != everything:
            best, most = bound, distinct
    return best


def judge_filter(
    machines: Sequence[Machine], assumed: str, kind: Literal["memory", "disk"], bound: int, listed: Collection[str]
) -> Finding:
    """Return the verdict on the field to which a filter applies.

    Args:
        machines: all machines.
        assumed: the field.
        kind: the kind of field.
        bound: the lower bound that the filter has asked for.
        listed: the names of the machines that the service has listed with it.
    """
    answer = f"min_{kind}={bound} lists"
    if len(listed) >= len(machines):
        return Finding("open", f"{answer} every machine, as if it was no filter")
    fitting = [field for field in _FIELDS[kind] if frozenset(listed) == _above(machines, field, bound)]
    if fitting == [assumed]:
        return Finding("confirmed", f"{answer} the machines by {assumed}, and by no other field")
    if fitting:
        return Finding("contradicted", f"{answer} the machines by {' or '.join(fitting)}")
    return Finding("open", f"{answer} {len(listed)} machines, which fits no field")


def _above(machines: Iterable[Machine], field: str, bound: int) -> frozenset[str]:
    values = ((machine.node_name, getattr(machine, field)) for machine in machines)
    return frozenset(name for name, value in values if value is not None and value >= bound)

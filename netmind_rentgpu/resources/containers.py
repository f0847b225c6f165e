"""Containers: rented environments. Each costs money until it is deleted."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncGenerator, Iterable

from netmind_rentgpu import arguments
from netmind_rentgpu.concurrency.single_flight import SingleFlight
from netmind_rentgpu.conditions import Condition
from netmind_rentgpu.errors import (
    ConflictError,
    InvalidArgumentError,
    InvalidRequestError,
    NotFoundError,
    RentGPUError,
)
from netmind_rentgpu.models import Container, PaymentType
from netmind_rentgpu.requests import ListQuery, NewContainer
from netmind_rentgpu.resources.listing import list_pager
from netmind_rentgpu.resources.paths import API
from netmind_rentgpu.settings import DEFAULT, TimeoutOption
from netmind_rentgpu.waiting.reachable import Ask, wait_until_reachable
from netmind_rentgpu.waiting.shared_poller import SharedPoller
from netmind_rentgpu.waiting.waits import OnProgress, wait_for_all
from netmind_rentgpu.waiting.watching import Change, watch
from netmind_rentgpu.wire.caller import Caller
from netmind_rentgpu.wire.messages import Request
from netmind_rentgpu.wire.paging import AsyncPager, PageSize

__all__ = ["AsyncContainers"]

_PATH = f"{API}containers/"
_PROBES_AT_ONCE = 100


class AsyncContainers:
    """`client.containers`."""

    def __init__(self, caller: Caller, log_in: Ask) -> None:
        """Set up.

        Args:
            log_in: logs in to a container; returns why that cannot be done yet.
        """
        self._caller = caller
        self._log_in = log_in
        self._sizes = PageSize(caller.profile.page_size)
        self._poller = SharedPoller(caller, self._sizes, _PATH)
        self._probes = asyncio.Semaphore(_PROBES_AT_ONCE)
        self._listed_ids: SingleFlight[frozenset[int]] = SingleFlight(fresh=0)

    async def create(
        self,
        *,
        name: str,
        auth_id: int,
        node_name: str,
        image_template_id: int,
        payment_type: PaymentType | str | int,
        gpu: int = 1,
        timeout: TimeoutOption = DEFAULT,
    ) -> Container:
        """Rent a container (`POST /v1/rentgpu/containers/`). It costs money from now on until it is deleted.

        Sent over no connection that has lain idle, and never again once the service may have acted on it. Where the error
        is a `TransportError` with `maybe_processed`, a `ServerError` or an `UnexpectedResponseError`, look for the name in
        `list()`: the container may exist.

        Args:
            name: the only mark by which it can be found again should the answer be lost, so make it unique.
            auth_id: an `Auth`'s id: the SSH login's password.
            node_name: a `Machine`'s.
            image_template_id: an `Image`'s id.
            payment_type: the balance to charge; its number is the profile's.
            gpu: how many GPUs, 1 to 12.

        Raises:
            InvalidArgumentError: an argument beyond a documented limit, or a payment type without a number.
            InsufficientBalanceError: the balance is too low.
            RentGPUError: any other of the client's errors.
        """
        new = NewContainer(
            name=name,
            auth_id=auth_id,
            gpu=gpu,
            node_name=node_name,
            image_template_id=image_template_id,
            payment_type=payment_type,
        )
        body = self._caller.codec.written(new)
        request = Request(method="POST", path=_PATH, body=body, idempotent=False, avoid_idle_connection=True)
        self._caller.check_usable()
        self._poller.creating(1)
        try:
            container = await self._caller.one(Container, request, timeout)
            self._poller.created(container.id)
        finally:
            self._poller.creating(-1)
        return container

    def list(
        self,
        *,
        marker: int | str | None = None,
        page_size: int | None = None,
        timeout: TimeoutOption = DEFAULT,
    ) -> AsyncPager[Container]:
        """List the account's containers (`GET /v1/rentgpu/containers/`): iterate it for all, or take a `first_page()`.

        A container that was created a moment ago may be missing: `ServiceProfile.list_lag`.

        Args:
            marker: an id to go on after.
            page_size: how many to ask for at a time; the profile's where it is None, fewer where the service refuses it.
            timeout: for each page.

        Raises:
            InvalidArgumentError: `marker` or `page_size` cannot be sent.
            RentGPUError: any of the client's errors.
        """
        query = ListQuery(marker=marker, page_size=page_size)
        return list_pager(self._caller, Container, _PATH, query, self._sizes, timeout=timeout)

    async def get(self, container_id: int, *, timeout: TimeoutOption = DEFAULT) -> Container:
        """Get one container (`GET /v1/rentgpu/containers/{container_id}`).

        Raises:
            NotFoundError: there is none with that id.
            RentGPUError: any other of the client's errors.
        """
        return await self._caller.one(Container, Request(method="GET", path=_path(container_id)), timeout)

    async def stop(self, container_id: int, *, timeout: TimeoutOption = DEFAULT) -> Container:
        """Stop a container (`POST /v1/rentgpu/containers/{container_id}/stop`).

        Whether a stopped container still costs money is not documented: delete what is not needed.

        Raises:
            NotFoundError: there is none with that id.
            RentGPUError: any other of the client's errors.
        """
        request = Request(method="POST", path=f"{_path(container_id)}/stop")
        try:
            return await self._caller.one(Container, request, timeout)
        finally:
            self._poller.touch(container_id)

    async def restart(self, container_id: int, *, timeout: TimeoutOption = DEFAULT) -> Container:
        """Restart a container (`POST /v1/rentgpu/containers/{container_id}/restart`).

        Not repeated once it may have been acted on, since a second restart would end what the first has started. Whether
        the SSH endpoint stays the same is not documented.

        Raises:
            NotFoundError: there is none with that id.
            RentGPUError: any other of the client's errors.
        """
        request = Request(method="POST", path=f"{_path(container_id)}/restart", idempotent=False)
        try:
            return await self._caller.one(Container, request, timeout)
        finally:
            self._poller.touch(container_id)

    async def delete(
        self, container_id: int, *, missing_ok: bool = False, timeout: TimeoutOption = DEFAULT
    ) -> Container | None:
        """Delete a container (`DELETE /v1/rentgpu/containers/{container_id}`), which ends what it costs.

        Args:
            missing_ok: return None if there is none with that id: neither the answer nor the list of containers shows it.
                The same holds in any case where an earlier attempt of this same call may have deleted it.

        Returns:
            The container as it was, where the service says so; it may answer with nothing.

        Raises:
            NotFoundError: there is none with that id (where the service says so in another way, it is that error). With
                `missing_ok`: the list shows the container, or could not be read to its end.
            RentGPUError: any other of the client's errors.
        """
        arguments.identifier("container_id", container_id)
        was_deleted = self._poller.is_deleted(container_id)
        try:
            return await self._delete(container_id, timeout=timeout)
        except (NotFoundError, ConflictError, InvalidRequestError) as error:
            # What a second delete answers is not documented. If it is about one that is gone, there is nothing to get.
            if not (missing_ok or error.earlier_attempt_unclear):
                raise
            if not isinstance(error, NotFoundError) and not await self._is_gone(container_id, timeout):
                raise
            if not was_deleted and not await self._is_unlisted(container_id, timeout):
                raise
            self._poller.touch(container_id, deleted=True)
            return None

    async def _is_unlisted(self, container_id: int, timeout: TimeoutOption) -> bool:
        """Return True if a walk over the whole list, shared by all who ask meanwhile, does not show a container.

        A gateway's 404 must not hide a container that still costs money.
        """

        async def walk() -> frozenset[int]:
            ids: set[int] = set()
            async for page in self.list(timeout=timeout).pages():
                ids.update(container.id for container in page.items)
                if page.unreadable:
                    raise page.unreadable[0]
            return frozenset(ids)

        try:
            return container_id not in await self._listed_ids.get(walk)
        except RentGPUError:
            return False

    async def _delete(self, container_id: int, *, timeout: TimeoutOption) -> Container | None:
        """Delete a container; raise what the service answers, also where an earlier attempt may have been why."""
        request = Request(method="DELETE", path=_path(container_id))
        deleted = False
        try:
            container = await self._caller.one_or_none(Container, request, timeout)
            deleted = True
        finally:
            self._poller.touch(container_id, deleted=deleted)
        return container

    async def wait(
        self, container_id: int, *, until: Condition, timeout: float = 600, fail: Condition | None = None
    ) -> Container:
        """Wait until a container is as it should be; return it as it was seen then.

        All waits and watches of a client share their looks at the containers, which cost as much for ten thousand waits as
        for ten. Looks come 0.25 to 5 seconds apart, and a container that others wait for may have been seen so long ago. A
        look that fails is tried again.

        Args:
            until: a condition; with `conditions.gone`, what is returned is the container as it was last seen.
            timeout: seconds in which it has to be met.
            fail: a condition for a failure from which the container will not come back.

        Raises:
            WaitTimeoutError: it was not met in time.
            ContainerFailedError: `fail` was met.
            ContainerGoneError: there is no such container, or no longer.
            InvalidArgumentError: an argument that cannot be used.
            ClientStateError: the client was closed.
        """
        ids = (arguments.identifier("container_id", container_id),)
        return (await wait_for_all(self._poller, ids, until=until, timeout=timeout, fail=fail))[container_id]

    async def wait_all(
        self,
        ids: Iterable[int],
        *,
        until: Condition,
        timeout: float = 600,
        fail: Condition | None = None,
        on_progress: OnProgress | None = None,
    ) -> builtins.list[Container]:
        """Wait until each of some containers is as it should be; return them in the order of the ids, each as seen then.

        Looks are shared and repeated as those of `wait`. The first container that fails or is gone ends the wait for all;
        the error says what had arrived and what was still to come.

        Args:
            until: a condition, for each of them by itself.
            timeout: seconds in which all have to meet it.
            fail: a condition for a failure from which a container will not come back.
            on_progress: called with a `WaitProgress` at the beginning and whenever more have arrived, in the event loop.

        Raises:
            WaitTimeoutError: not all met it in time. `arrived` are those that did, `pending` the others as last seen.
            ContainerFailedError: `fail` was met by one.
            ContainerGoneError: one does not exist, or no longer.
            InvalidArgumentError: an argument that cannot be used.
            ClientStateError: the client was closed.
        """
        wanted = _identifiers(ids)
        found = await wait_for_all(
            self._poller, wanted, until=until, timeout=timeout, fail=fail, on_progress=on_progress
        )
        return [found[one] for one in wanted]

    def watch(self, ids: Iterable[int] | None = None) -> AsyncGenerator[Change]:
        """Watch containers: iterate it for every change that a look finds, as it comes.

        The first look says how things are, and each that follows what has changed since. Looks are shared and repeated as
        those of `wait`, and none is made while the loop's body runs, unless for others: what has changed meanwhile comes
        next, several changes of a container as one. It ends when all containers that were named are gone.

        Args:
            ids: which; all of the account's, those that are yet to be made included, where it is None.

        Raises:
            InvalidArgumentError: what is no id.
            RentGPUError: why all looks have failed for five minutes; or the client was closed.
        """
        return watch(self._poller, None if ids is None else _identifiers(ids))

    async def wait_reachable(
        self, container_id: int, *, timeout: float = 600, fail: Condition | None = None
    ) -> Container:
        """Wait until an SSH server answers where a container's `ssh` says; return the container as it was seen then.

        That it answers does not mean that it lets you in. The server is asked for its greeting alone.

        Args:
            timeout: seconds in which it has to answer.
            fail: a condition for a failure from which the container will not come back.

        Raises:
            WaitTimeoutError: none answered in time; the text says what was found instead.
            ContainerFailedError: `fail` was met.
            ContainerGoneError: there is no such container, or no longer.
            InvalidArgumentError: an argument that cannot be used.
            ClientStateError: the client was closed.
        """
        wanted = arguments.identifier("container_id", container_id)
        return await wait_until_reachable(self._poller, self._probes, wanted, timeout=timeout, fail=fail)

    async def wait_ready(self, container_id: int, *, timeout: float = 600, fail: Condition | None = None) -> Container:
        """Wait until a container lets us log in; return it as it was seen then.

        What refuses us meanwhile is asked again, as a container that starts may have its password later than its SSH server.
        Its host key is kept from then on, as by `gpu.ssh`. Needs `netmind-rentgpu[ssh]`.

        Args:
            timeout: seconds in which it has to.
            fail: a condition for a failure from which the container will not come back.

        Raises:
            WaitTimeoutError: it did not in time; the text says why.
            ContainerFailedError: `fail` was met.
            ContainerGoneError: there is no such container, or no longer.
            SSHError: the server is not the one that this container had (`stage` is `host key`).
            StateFileError: the state file cannot be used.
            ConfigurationError: asyncssh is missing.
            InvalidArgumentError: an argument that cannot be used.
            ClientStateError: the client was closed.
        """
        wanted = arguments.identifier("container_id", container_id)
        return await wait_until_reachable(
            self._poller,
            self._probes,
            wanted,
            timeout=timeout,
            fail=fail,
            ask=self._log_in,
            missed="it did not let us log in",
        )

    async def _is_gone(self, container_id: int, timeout: TimeoutOption) -> bool:
        try:
            await self.get(container_id, timeout=timeout)
        except NotFoundError:
            return True
        return False


def _path(container_id: int) -> str:
    return f"{_PATH}{arguments.identifier('container_id', container_id)}"


def _identifiers(ids: Iterable[int]) -> list[int]:
    if not isinstance(ids, Iterable):
        raise InvalidArgumentError("ids", f"must be ids, not {type(ids).__name__}")
    return [arguments.identifier("ids", one) for one in ids]

"""Containers: rented environments. Each costs money until it is deleted."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

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
    """`client.containers`: the account's containers, and waits for them."""

    def __init__(self, caller: Caller, log_in: Ask, on_delete: Callable[[int], Awaitable[None]] | None = None) -> None:
        """Set up the resource.

        Args:
            log_in: tries to log in to a container; returns None, or the reason why the login has failed.
            on_delete: gets the id of each container that a user has deleted.
        """
        self._on_delete = on_delete
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

        The create never uses an idle connection, and is not retried once the service may have acted on it. After a
        `TransportError` with `maybe_processed`, a `ServerError` or an `UnexpectedResponseError`, look for the name in
        `list()`, because the container may exist.

        Args:
            name: a unique name, because only the name identifies the container if the answer is lost.
            auth_id: the id of the `Auth` whose password the SSH login has.
            node_name: the `node_name` of a `Machine`.
            image_template_id: the id of an `Image`.
            payment_type: the balance to charge; the profile has its number.
            gpu: the number of GPUs, 1 to 12.

        Raises:
            InvalidArgumentError: an argument breaks a documented limit, or the profile has no number for the payment type.
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
        return await self._create(new, timeout)

    async def _create(
        self, new: NewContainer, timeout: TimeoutOption = DEFAULT, *, check: Callable[[], object] | None = None
    ) -> Container:
        """Create a container.

        Args:
            check: as in `Request`.
        """
        body = self._caller.codec.written(new)
        request = Request(
            method="POST", path=_PATH, body=body, idempotent=False, avoid_idle_connection=True, check=check
        )
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
        """List the account's containers (`GET /v1/rentgpu/containers/`): iterate the list for all, or get a `first_page()`.

        A container that was created less than `ServiceProfile.list_lag` ago may be missing.

        Args:
            marker: the id after which the list begins; None for the whole list.
            page_size: the number of items to ask for at a time; by default the profile's. The pager asks for fewer if the
                service refuses so many.
            timeout: the timeout of each page.

        Raises:
            InvalidArgumentError: `marker` or `page_size` cannot be sent.
            RentGPUError: any of the client's errors.
        """
        query = ListQuery(marker=marker, page_size=page_size)
        return list_pager(self._caller, Container, _PATH, query, self._sizes, timeout=timeout)

    async def get(self, container_id: int, *, timeout: TimeoutOption = DEFAULT) -> Container:
        """Get one container (`GET /v1/rentgpu/containers/{container_id}`).

        Raises:
            NotFoundError: the account has none with that id.
            RentGPUError: any other of the client's errors.
        """
        return await self._caller.one(Container, Request(method="GET", path=_path(container_id)), timeout)

    async def stop(self, container_id: int, *, timeout: TimeoutOption = DEFAULT) -> Container:
        """Stop a container (`POST /v1/rentgpu/containers/{container_id}/stop`).

        The service does not document whether a stopped container costs money, so delete a container that you do not need.

        Raises:
            NotFoundError: the account has none with that id.
            RentGPUError: any other of the client's errors.
        """
        request = Request(method="POST", path=f"{_path(container_id)}/stop")
        try:
            return await self._caller.one(Container, request, timeout)
        finally:
            self._poller.touch(container_id)

    async def restart(self, container_id: int, *, timeout: TimeoutOption = DEFAULT) -> Container:
        """Restart a container (`POST /v1/rentgpu/containers/{container_id}/restart`).

        The client does not retry the call once the service may have acted on it, because a second restart would end the
        processes that have started after the first. The service does not document whether the SSH endpoint stays the same.

        Raises:
            NotFoundError: the account has none with that id.
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
        """Delete a container (`DELETE /v1/rentgpu/containers/{container_id}`), so that it costs nothing more.

        Args:
            missing_ok: True to return None if the account has none with that id; the list of containers has to confirm it.
                False has the same effect if an earlier attempt of the same call may have deleted the container.

        Returns:
            The container as it was, if the service answers with it; else None.

        Raises:
            NotFoundError: the account has none with that id (or the error with which the service says so instead). With
                `missing_ok`, the list shows the container, or could not be read to its end.
            RentGPUError: any other of the client's errors.
        """
        arguments.identifier("container_id", container_id)
        deleted = await self._delete_once(container_id, missing_ok=missing_ok, timeout=timeout)
        if self._on_delete is not None:
            await self._on_delete(container_id)
        return deleted

    async def _delete_once(self, container_id: int, *, missing_ok: bool, timeout: TimeoutOption) -> Container | None:
        was_deleted = self._poller.is_deleted(container_id)
        try:
            return await self._delete(container_id, timeout=timeout)
        except (NotFoundError, ConflictError, InvalidRequestError) as error:
            # The answer to a second delete is not documented, so a GET and the list have to show that the container is gone.
            if not (missing_ok or error.earlier_attempt_unclear):
                raise
            if not isinstance(error, NotFoundError) and not await self._is_gone(container_id, timeout):
                raise
            if not was_deleted and not await self._is_unlisted(container_id, timeout):
                raise
            self._poller.touch(container_id, deleted=True)
            return None

    async def _is_unlisted(self, container_id: int, timeout: TimeoutOption) -> bool:
        """Return True if a walk over the whole list does not show a container. Calls at the same time share the walk.

        The list has to confirm a 404, because a gateway's wrong 404 must not hide a container that still costs money.
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
        """Delete a container; raise the service's error even if an earlier attempt of the call may be its cause."""
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
        """Wait until a container meets a condition; return the container as it was then.

        All waits and watches of a client share one poll of the containers, which costs as much for ten thousand waits as for
        ten. The client polls every 0.25 to 5 seconds, so that it may judge a container by an answer of up to that age. It
        retries a poll that fails.

        Args:
            until: the condition; with `conditions.gone`, the method returns the container as it was last seen.
            timeout: the seconds in which the container has to meet the condition.
            fail: a condition that is met by a container that cannot meet `until` any more, and ends the wait.

        Raises:
            WaitTimeoutError: the container did not meet the condition in time.
            ContainerFailedError: the container met `fail`.
            ContainerGoneError: the container does not exist, or does not exist any more.
            InvalidArgumentError: an argument cannot be used.
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
        """Wait until each of several containers meets a condition; return them in the order of the ids, each as it was then.

        The client polls as for `wait`. The first container that fails or is gone ends the whole wait; the error says which
        containers had met the condition, and which had not.

        Args:
            until: the condition, which each container has to meet once.
            timeout: the seconds in which all containers have to meet the condition.
            fail: a condition that is met by a container that cannot meet `until` any more, and ends the wait.
            on_progress: a function that the client calls with a `WaitProgress`, in its event loop, at the beginning and
                whenever more containers meet the condition.

        Raises:
            WaitTimeoutError: not all containers met the condition in time; `arrived` holds those that did, `pending` the
                others as they were last seen.
            ContainerFailedError: a container met `fail`.
            ContainerGoneError: a container does not exist, or does not exist any more.
            InvalidArgumentError: an argument cannot be used.
            ClientStateError: the client was closed.
        """
        wanted = _identifiers(ids)
        found = await wait_for_all(
            self._poller, wanted, until=until, timeout=timeout, fail=fail, on_progress=on_progress
        )
        return [found[container_id] for container_id in wanted]

    def watch(self, ids: Iterable[int] | None = None, *, initial: bool = False) -> AsyncGenerator[Change]:
        """Watch containers: iterate the result for every change that a poll finds.

        The first poll finds the state that later polls are compared with; with `initial`, each container of the first poll
        is a change whose `before` is None. The client polls as for `wait`, but while the body
        of the loop runs, only for other waits and watches. Changes during that time come next, several changes of one
        container as one. The iteration ends once all containers in `ids` are gone.

        Args:
            ids: the containers to watch; None for all containers of the account, future ones included.
            initial: True to begin with the containers as they are at the first poll.

        Raises:
            InvalidArgumentError: an id is no whole number.
            RentGPUError: all polls have failed for five minutes, with the error of the last; or the client was closed.
        """
        return watch(self._poller, None if ids is None else _identifiers(ids), initial=initial)

    async def wait_reachable(
        self, container_id: int, *, timeout: float = 600, fail: Condition | None = None
    ) -> Container:
        """Wait until an SSH server answers at the endpoint in a container's `ssh`; return the container as it was then.

        The client reads only the server's greeting, so a login may still fail; `wait_ready` waits for the login.

        Args:
            timeout: the seconds in which a server has to answer.
            fail: a condition that is met by a container that will not start any more, and ends the wait.

        Raises:
            WaitTimeoutError: no server answered in time; the text says what the client found instead.
            ContainerFailedError: the container met `fail`.
            ContainerGoneError: the container does not exist, or does not exist any more.
            InvalidArgumentError: an argument cannot be used.
            ClientStateError: the client was closed.
        """
        wanted = arguments.identifier("container_id", container_id)
        return await wait_until_reachable(self._poller, self._probes, wanted, timeout=timeout, fail=fail)

    async def wait_ready(self, container_id: int, *, timeout: float = 600, fail: Condition | None = None) -> Container:
        """Wait until the client can log in to a container; return the container as it was then.

        The client also retries a login that the server refuses, because a starting container may get its password later than
        its SSH server. The first login pins the host key, as `gpu.ssh` does. Needs the extra `ssh`.

        Args:
            timeout: the seconds in which a login has to succeed.
            fail: a condition that is met by a container that will not start any more, and ends the wait.

        Raises:
            WaitTimeoutError: no login succeeded in time; the text says why.
            ContainerFailedError: the container met `fail`.
            ContainerGoneError: the container does not exist, or does not exist any more.
            SSHError: the server has another host key than this container had (`stage` is `host key`), or the service does
                not show the password (`stage` is `password`).
            StateFileError: the state file cannot be used.
            ConfigurationError: asyncssh is missing.
            InvalidArgumentError: an argument cannot be used.
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
            missed="no login succeeded",
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
    return [arguments.identifier("ids", container_id) for container_id in ids]

"""`containers`: the containers of the account, by their ids, whether a rental has them or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from netmind_rentgpu.cli.cells import Column
from netmind_rentgpu.cli.columns import CONTAINER, CONTAINERS
from netmind_rentgpu.cli.exit_codes import ExitCode
from netmind_rentgpu.cli.problems import problem_of
from netmind_rentgpu.cli.session import Session
from netmind_rentgpu.cli.stopping import StoppedError
from netmind_rentgpu.cli.values import WaitCondition
from netmind_rentgpu.errors import NotFoundError, RentGPUError

if TYPE_CHECKING:
    from netmind_rentgpu.cli.rows import DeletedContainer
    from netmind_rentgpu.client import AsyncRentGPU
    from netmind_rentgpu.models import Container

__all__ = ["create", "delete", "print_container", "print_containers", "restart", "stop", "wait"]

_DELETED: Final = (
    Column("id", "ID", is_number=True),
    Column("name", "NAME"),
    Column("node_name", "MACHINE", 1),
    Column("state", "STATE"),
)
# Seconds, as in the client.
_USUAL_WAIT: Final = 600.0


def print_containers(session: Session) -> None:
    """Print the account's containers."""

    async def work(gpu: AsyncRentGPU) -> list[Container]:
        return [container async for container in gpu.containers.list()]

    session.results.rows([container.to_dict() for container in session.run(work)], CONTAINERS)


def print_container(session: Session, container_id: int) -> None:
    """Print one container."""
    container = session.run(lambda gpu: gpu.containers.get(container_id))
    session.results.value(container.to_dict(), CONTAINER)


def create(session: Session, wanted: dict[str, Any]) -> int:
    """Create a container, print it, and return the exit code.

    Args:
        wanted: the arguments of `AsyncContainers.create`.
    """
    creating = _Creating(session, wanted)
    try:
        session.run(creating.create)
    except StoppedError as error:
        if creating.container is None:
            if not creating.is_sent:
                raise
            session.notes.insist(f"rentgpu: {error}, and {creating.doubt}")
            return ExitCode.STILL_RENTED
        # The container is there, and its id must not be lost.
    except RentGPUError as error:
        problem = problem_of(error)
        if problem.exit_code == ExitCode.UNCLEAR:
            problem = attrs.evolve(problem, exit_code=ExitCode.STILL_RENTED, hint=f"Now {creating.doubt}.")
        session.show(problem, error)
        return problem.exit_code
    if creating.container is not None:
        session.results.value(creating.container.to_dict(), CONTAINER)
        number = creating.container.id
        session.notes.say(
            f"no record and no deadline ends it: it costs money until `rentgpu containers delete {number}`"
        )
    return ExitCode.DONE


class _Creating:
    """The create of a container.

    Attributes:
        is_sent: True from when the create may have been sent.
        container: the container; None before the answer.
    """

    def __init__(self, session: Session, wanted: dict[str, Any]) -> None:
        self._session = session
        self._wanted = wanted
        self._lag = 0.0
        self.is_sent: bool = False
        self.container: Container | None = None

    @property
    def doubt(self) -> str:
        """The words for a create without a clear answer."""
        return (
            f"a container {self._wanted['name']!r} may have been created: look for it in `rentgpu containers list`,"
            f" which may miss it for {self._lag:g} s, and delete it"
        )

    async def create(self, gpu: AsyncRentGPU) -> None:
        """Create the container."""
        self._lag = gpu.profile.list_lag.total_seconds()
        self.is_sent = True
        self.container = await gpu.containers.create(**self._wanted)
        self._session.stopping.end()


def stop(session: Session, ids: Sequence[int]) -> int:
    """Stop containers, print them, and return the exit code."""

    async def act(gpu: AsyncRentGPU, container: Container) -> Container:
        return await gpu.containers.stop(container.id)

    return _act_on(session, ids, "Stop", act)


def restart(session: Session, ids: Sequence[int]) -> int:
    """Restart containers, print them, and return the exit code."""

    async def act(gpu: AsyncRentGPU, container: Container) -> Container:
        return await gpu.containers.restart(container.id)

    return _act_on(session, ids, "Restart", act)


def _act_on(
    session: Session,
    ids: Sequence[int],
    verb: str,
    act: Callable[[AsyncRentGPU, Container], Awaitable[Container]],
) -> int:
    """Ask, and act on containers one after the other; one failure does not keep the others from being acted on."""
    rows: list[dict[str, Any]] = []
    failures = _Failures(session)

    async def work(gpu: AsyncRentGPU) -> None:
        found: list[Container] = []
        for container_id in dict.fromkeys(ids):
            with failures.collected(reads_only=True):
                found.append(await gpu.containers.get(container_id))
        if found:
            session.confirm("\n".join(f"{verb} {_described(each)}, which ends all that runs there." for each in found))
        for container in found:
            with failures.collected():
                rows.append((await act(gpu, container)).to_dict())

    session.run(work)
    session.results.rows(rows, CONTAINERS)
    return failures.exit_code(len(set(ids)))


def delete(session: Session, ids: Sequence[int]) -> int:
    """Delete containers, print what became of each, and return the exit code.

    One failure does not keep the others from being deleted.
    """
    deleting = _Deleting(session)
    try:
        session.run(lambda gpu: deleting.delete(gpu, list(dict.fromkeys(ids))))
    except StoppedError as error:
        if deleting.current is None:
            raise
        deleting.failures.codes.append(ExitCode.STILL_RENTED)
        session.notes.insist(
            f"rentgpu: {error}, and container {deleting.current} may still cost money; see `rentgpu containers list`"
        )
    session.results.rows(deleting.rows, _DELETED)
    return deleting.failures.exit_code(len(set(ids)))


class _Deleting:
    """The deletion of several containers.

    Attributes:
        rows: what is gone.
        failures: the other containers.
        current: the id of the container whose deletion is under way; None without one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.rows: list[DeletedContainer] = []
        self.failures: _Failures = _Failures(session)
        self.current: int | None = None

    async def delete(self, gpu: AsyncRentGPU, ids: Sequence[int]) -> None:
        """Find the containers, ask, and delete them."""
        found: list[Container] = []
        missing: list[int] = []
        for container_id in ids:
            with self.failures.collected(reads_only=True):
                try:
                    found.append(await gpu.containers.get(container_id))
                except NotFoundError:
                    missing.append(container_id)
        if missing:
            found += await self._find_listed(gpu, missing)
        if found:
            self._session.confirm("\n".join(f"Delete {_described(container)}." for container in found))
        for container in found:
            self.current = container.id
            with self.failures.collected(as_code=ExitCode.STILL_RENTED):
                await gpu.containers.delete(container.id, missing_ok=True)
                self.rows.append(_deleted_row(container, "deleted"))
        self.current = None

    async def _find_listed(self, gpu: AsyncRentGPU, ids: Sequence[int]) -> list[Container]:
        """Return those of the containers that the list shows, because a gateway may be wrong with its 404."""
        from netmind_rentgpu.models import Container

        with self.failures.collected(as_code=ExitCode.STILL_RENTED):
            listed = {container.id: container async for container in gpu.containers.list()}
            for container_id in ids:
                if container_id not in listed:
                    self._session.notes.say(f"container {container_id} is gone already")
                    self.rows.append(_deleted_row(Container(id=container_id), "gone"))
            return [listed[container_id] for container_id in ids if container_id in listed]
        return []


class _Failures:
    """The failures of a command for several containers.

    Attributes:
        codes: the exit code of each.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.codes: list[int] = []

    @contextmanager
    def collected(self, *, reads_only: bool = False, as_code: ExitCode | None = None) -> Generator[None]:
        """Show an error of the client, and go on.

        Args:
            reads_only: True if the call changes nothing at the service.
            as_code: the exit code of each such error; None for its own.
        """
        try:
            yield
        except RentGPUError as error:
            problem = problem_of(error, reads_only=reads_only)
            if as_code is not None:
                problem = attrs.evolve(problem, exit_code=as_code)
            self._session.show(problem, error)
            self.codes.append(problem.exit_code)

    def exit_code(self, count: int) -> int:
        """Return the exit code of a command for so many containers."""
        for code in (ExitCode.STILL_RENTED, ExitCode.TIME_UP):
            if code in self.codes:
                return code
        if not self.codes:
            return ExitCode.DONE
        return self.codes[0] if count == 1 else ExitCode.NO


def wait(session: Session, ids: Sequence[int], until: WaitCondition) -> int:
    """Wait until each container meets a condition, print those that do, and return the exit code."""
    failures = _Failures(session)
    seconds = session.options.seconds or _USUAL_WAIT
    left = dict.fromkeys(ids)
    waits = len(left)

    def show() -> None:
        names = f"container {next(iter(left))}" if len(left) == 1 else f"{len(left)} of {waits} containers"
        session.notes.progress(f"waiting for {names}: {until}")

    async def work(gpu: AsyncRentGPU) -> list[Container | BaseException]:
        async def one(container_id: int) -> Container:
            try:
                return await _wait_for(gpu, container_id, until, seconds)
            finally:
                left.pop(container_id)
                if left:
                    show()

        show()
        return await asyncio.gather(*map(one, list(left)), return_exceptions=True)

    arrived: list[Container] = []
    for outcome in session.run(work):
        with failures.collected(reads_only=True):
            if isinstance(outcome, BaseException):
                raise outcome
            arrived.append(outcome)
    session.notes.clear()
    session.results.rows([container.to_dict() for container in arrived], CONTAINERS)
    return failures.exit_code(waits)


async def _wait_for(gpu: AsyncRentGPU, container_id: int, until: WaitCondition, seconds: float) -> Container:
    from netmind_rentgpu.conditions import gone, has_ssh, status_in

    containers = gpu.containers
    match until.kind:
        case "ready":
            return await containers.wait_ready(container_id, timeout=seconds)
        case "reachable":
            return await containers.wait_reachable(container_id, timeout=seconds)
        case "has-ssh":
            return await containers.wait(container_id, until=has_ssh, timeout=seconds)
        case "gone":
            return await containers.wait(container_id, until=gone, timeout=seconds)
        case "status":
            return await containers.wait(container_id, until=status_in(*until.statuses), timeout=seconds)


def _described(container: Container) -> str:
    name = "" if container.name is None else f" ({container.name})"
    machine = "" if container.node_name is None else f" on {container.node_name}"
    return f"container {container.id}{name}{machine}"


def _deleted_row(container: Container, state: Literal["deleted", "gone"]) -> DeletedContainer:
    return {"id": container.id, "name": container.name, "node_name": container.node_name, "state": state}

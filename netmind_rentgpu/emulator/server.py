"""`Emulator`: a context manager that serves the emulated service, and the controls for tests."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from decimal import Decimal
from functools import partial
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Self

from netmind_rentgpu.emulator.billing import Charge, PendingCreate
from netmind_rentgpu.emulator.clock import Clock
from netmind_rentgpu.emulator.control_plane import ControlPlane
from netmind_rentgpu.emulator.faults import Fault, Faults
from netmind_rentgpu.emulator.ports import MadeUpPorts, Ports
from netmind_rentgpu.emulator.presets import preset_world
from netmind_rentgpu.emulator.recording import Recording
from netmind_rentgpu.emulator.service import FIRST_ACCOUNT, Service
from netmind_rentgpu.emulator.web import Server
from netmind_rentgpu.emulator.world import World

if TYPE_CHECKING:
    from netmind_rentgpu.emulator.shells import Shells

__all__ = ["Emulator"]

_HOST = "127.0.0.1"
# With SSH, due actions run at this interval, in real seconds, because SSH servers must start without a request.
_TICK = 0.05


class Emulator:
    """A Rent GPU service on a port of this machine, for the duration of its `async with` block.

    In a program that is not asynchronous, `with` serves from a thread. Containers change their state as the clock advances.

    With `ssh=True`, a running container has an SSH server on a port of 127.0.0.1, with the user root and the auth's
    password. **Commands in a container run on this machine, as your user**, in a folder of the container. The folder keeps
    files apart, but is no protection. The emulator kills a container's processes when the container is stopped or deleted,
    and removes the folder of a deleted container. On macOS, which has no /proc, processes that left their group go on.

    With `isolated=True`, too, each container has a network of its own, a network namespace of Linux: its commands reach the
    container's own loopback interface, and neither this machine, the internet nor another container. Servers of two
    containers can use the same port, and a client reaches them through SSH alone. **Only the network is isolated**: files,
    processes, users and sockets in the file system are this machine's, and it is no protection either.

    Attributes:
        token: the API token that the emulator accepts from the beginning.
        world: the behaviour where the service's documentation is silent.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        port: int = 0,
        machines: int = 60,
        boot_seconds: float = 2.0,
        token: str | None = None,
        world: World | str = "documented",
        balance: Decimal | None = None,
        clock: Clock | None = None,
        faults: Iterable[Fault] = (),
        keep_requests: int | None = None,
        ssh: bool = False,
        isolated: bool = False,
        allow_hosts: Iterable[str] = (),
    ) -> None:
        """Configure a service, which starts with `async with` or `with`.

        Args:
            seed: the seed of machines, prices, start-up times and faults with a probability.
            port: the port on 127.0.0.1; 0 for any free port.
            machines: the number of machines.
            boot_seconds: the approximate seconds until a container's `ssh` names an endpoint, by the emulator's clock.
            token: the API token. None derives it from the seed, or draws it at random with `ssh`, because the token then
                gives access to a shell on this machine.
            world: the behaviour where the service's documentation is silent: a `World`, or the name of a preset.
            balance: the balance of each account in US dollars; None for an unlimited balance. The service refuses creates of
                an account that has spent its balance.
            clock: the clock that start-up times and costs follow; None for real time.
            faults: the faults in force from the first request on.
            keep_requests: how many of the newest requests to keep; None for all.
            ssh: True to accept SSH logins to containers, which needs the extra `ssh`. The controls over HTTP then
                need the token.
            isolated: True to give each container a network namespace of its own, which needs `ssh` and Linux. A user who is
                not root must be allowed to make user namespaces, so that `unshare -Urn true` succeeds; the commands cannot
                become another user then, as by sudo.
            allow_hosts: host names beside those of the loopback that requests may be addressed to (`Host`) or come from
                (`Origin`). Other requests are refused, so that no web page reaches the emulator through a browser.

        Raises:
            ModuleNotFoundError: asyncssh, which `ssh` needs, is not installed.
            NotImplementedError: the system, such as Windows, lacks the POSIX functions that `ssh` needs, or lacks or forbids
                the namespaces that `isolated` needs.
            KeyError: no preset has the name `world`.
            ValueError: a number is negative, infinite or not a number, or `isolated` is given without `ssh`.
            TypeError: a fault is not a Fault, the clock is not a Clock, or the world is not a World.
        """
        if not (machines >= 0 and 0 <= boot_seconds < math.inf):
            raise ValueError(f"machines and boot_seconds must be 0 or more, not {machines!r} and {boot_seconds!r}")
        if isolated and not ssh:
            raise ValueError("isolated=True needs ssh=True, because no commands run in containers without SSH")
        generated = f"emulator-token-{secrets.token_urlsafe(24)}" if ssh else f"emulator-token-{seed:08x}"
        self.token: str = token or generated
        self._allow_hosts = tuple(allow_hosts)
        self._port = port
        emulator_clock = Clock() if clock is None else clock
        self.world: World = preset_world(world) if isinstance(world, str) else world
        if not isinstance(self.world, World):
            raise TypeError(f"world must be a World or the name of a preset, not {world!r}")
        if not isinstance(emulator_clock, Clock):
            raise TypeError(f"clock must be a Clock, as Clock(scale=0), not {clock!r}")
        self._shells = _shells(self._connect, isolated=isolated) if ssh else None
        numbers = count(1)

        def make() -> Service:
            ports: Ports = MadeUpPorts()
            if self._shells is not None:
                self._shells = self._shells.renewed()
                ports = self._shells
            return Service(
                seed=seed,
                machines=machines,
                boot_seconds=boot_seconds,
                token=self.token,
                balance=balance,
                world=self.world,
                clock=emulator_clock,
                ports=ports,
                numbers=numbers,
            )

        self._control_plane = ControlPlane(
            make=make,
            seed=seed,
            token=self.token,
            guessable_tokens=not ssh,
            faults=faults,
            keep=keep_requests,
            clock=emulator_clock,
        )
        self._server: Server | None = None
        self._url: str | None = None
        self._clock_task: asyncio.Task[None] | None = None
        self._stop: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._process: int | None = None

    @property
    def url(self) -> str:
        """The base URL, http://127.0.0.1:PORT."""
        if self._url is None:
            raise RuntimeError("the emulator has no URL before it is started with 'async with' or 'with'")
        return self._url

    @property
    def clock(self) -> Clock:
        """The emulator's clock."""
        return self._control_plane.clock

    @property
    def faults(self) -> Faults:
        """The faults in force. `faults.add(Fault(...))` adds a fault."""
        return self._control_plane.faults

    @property
    def requests(self) -> Recording:
        """The requests until now."""
        return self._control_plane.recorder.recording()

    @property
    def charges(self) -> list[Charge]:
        """The charge of each container until now, deleted containers included."""
        return self._control_plane.charges()

    @property
    def running(self) -> list[Charge]:
        """The charges of containers that are rented now."""
        return [charge for charge in self.charges if charge.running]

    @property
    def pending_creates(self) -> list[PendingCreate]:
        """The creates that the service will still do, delayed by a late commit or a slow answer."""
        return self._control_plane.pending_creates()

    @property
    def spent(self) -> Decimal:
        """The cost of all accounts' containers until now, in US dollars."""
        return sum((charge.cost for charge in self.charges), Decimal(0))

    def assert_nothing_rented(self, *, apart_from: Collection[int | Charge | PendingCreate] = ()) -> None:
        """Check that every container was deleted, and that the service will do no more creates.

        Args:
            apart_from: containers and creates to allow: ids, or earlier values of `running` and `pending_creates`. After a
                reset, an id may belong to another container, but the earlier values still mean the same containers.

        Raises:
            AssertionError: a container is still rented or will be; the message names each and its cost.
        """
        leaked = self._control_plane.leaked(apart_from)
        if leaked:
            raise AssertionError(leaked)

    def add_token(self, account: str = FIRST_ACCOUNT, token: str | None = None) -> str:
        """Accept another token from now on, and return it.

        Args:
            account: the name of the token's account, which is opened if it does not exist. Each account has its own auths,
                images and containers. All accounts share the machines.
            token: the token; None to generate it.

        Raises:
            ValueError: the token belongs to another account, or the token or the account's name has spaces or characters
                that are not ASCII.
        """
        return self._control_plane.add_token(account, token)

    def revoke_token(self, token: str) -> None:
        """Refuse a token from now on. The containers of its account go on.

        Raises:
            ValueError: the token was not accepted before.
        """
        self._control_plane.revoke_token(token)

    def set_gpu_use(self, container_id: int, percent: int) -> None:
        """Set the use of each GPU that a container's `nvidia-smi` reports, which is 0 in the beginning.

        It needs `ssh=True`, and lasts until it is set again.

        Args:
            container_id: the container's id.
            percent: the use, from 0 to 100.

        Raises:
            ValueError: the use is not from 0 to 100, or there is no such container with an SSH server.
        """
        self._control_plane.set_gpu_use(container_id, percent)

    def reset(self) -> None:
        """Restore the initial state: no containers, auths, own images or requests, and only the first faults and token.

        The clock goes on.
        """
        self._control_plane.reset()

    def _connect(self, container_id: int) -> Sequence[Fault]:
        # A method, because the control plane, which has the faults, is created later than the shells.
        return self.faults.connect(container_id)

    async def __aenter__(self) -> Self:
        self._check_new()
        control_token = None if self._shells is None else self.token
        self._server = Server(self._control_plane, hosts=self._allow_hosts, control_token=control_token)
        self._url = f"http://{_HOST}:{await self._server.start(_HOST, self._port)}"
        if self._shells is not None:
            self._shells.start()
            self._clock_task = asyncio.create_task(self._follow_the_clock())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.stop()
        if self._shells is not None and self._clock_task is not None:
            self._clock_task.cancel()
            await self._shells.stop()

    async def _follow_the_clock(self) -> None:
        """Run due actions, such as the opening of a port, without waiting for a request."""
        while True:
            self._control_plane.charges()
            await asyncio.sleep(_TICK)

    def _check_new(self) -> None:
        if self._server is not None:
            raise RuntimeError("an emulator is started once; create another one")

    def __enter__(self) -> Self:
        self._check_new()
        started: Future[None] = Future()
        self._process = os.getpid()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="netmind_rentgpu.emulator", daemon=True
        )
        self._thread.start()
        if started.exception() is not None:
            self._thread.join()
        started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A process that was forked within the block must not stop the server, which runs in its parent.
        if self._stop is not None and self._thread is not None and self._process == os.getpid():
            self._stop()
            self._thread.join()

    async def _serve(self, started: Future[None]) -> None:
        """Serve until `_stop` is called, and report the start or its error to the thread that waits for `started`."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            await self.__aenter__()
        except Exception as error:  # noqa: BLE001  # `__enter__` raises it
            started.set_exception(error)
            return
        self._stop = partial(loop.call_soon_threadsafe, stop.set)
        started.set_result(None)
        try:
            await stop.wait()
        finally:
            await self.__aexit__(None, None, None)

    def __repr__(self) -> str:
        return f"<Emulator at {self._url or 'no port yet'}>"


def _shells(connect: Callable[[int], Sequence[Fault]], *, isolated: bool) -> Shells:
    try:
        from netmind_rentgpu.emulator.namespaces import check_namespaces
        from netmind_rentgpu.emulator.shells import Shells
    except ModuleNotFoundError as error:
        if error.name in ("fcntl", "termios"):
            raise NotImplementedError("an emulator with SSH needs POSIX, which this system lacks") from error
        if error.name != "asyncssh":
            raise
        raise ModuleNotFoundError(
            "an emulator with SSH needs asyncssh, which the extra `ssh` installs: run pip install '.[ssh]' in the folder of"
            " this package's source",
            name="asyncssh",
        ) from None
    if isolated:
        check_namespaces()
    return Shells(connect, isolated=isolated)

"""`Emulator`: the service on a port, for as long as a block lasts, and what tests ask of it."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterable
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
# With SSH, what is due happens also while nobody asks: seconds from one look at the clock to the next.
_TICK = 0.05


class Emulator:
    """A Rent GPU service on a port of this machine, for as long as the `async with` block.

    What a container is follows from what time it is. In a program that is not asynchronous, `with` serves from a thread.

    With `ssh=True`, a container that is up has an SSH server on a port of 127.0.0.1: user root, the auth's password. **What
    is run there runs on this machine, as you**, in a folder of the container's own that is removed with it. The folder keeps
    things apart, and protects nothing. With the container its processes end; on macOS, which has no /proc, those that left
    their group go on.

    Attributes:
        url: what to give a client as base URL.
        token: the API token that it accepts from the beginning on.
        world: how it behaves where the service's documentation is silent.
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
        allow_hosts: Iterable[str] = (),
    ) -> None:
        """Set up a service; it is there from `async with` on.

        Args:
            seed: machines, prices, start-up times and what happens by chance follow from it.
            port: on 127.0.0.1; 0 for any that is free.
            machines: how many machines there are.
            boot_seconds: about how long a container takes until `ssh` names an endpoint.
            token: made up from the seed where it is None; at random with `ssh`, because it gives a shell on this machine.
            world: how the service behaves where its documentation is silent: a `World`, or the name of a preset.
            balance: US dollars of each account; once as much is spent, its creates are refused. None for no end.
            clock: containers start and costs grow by it; real time where it is None.
            faults: what goes wrong, from the first request on.
            keep_requests: how many of the newest requests to keep; None for all.
            ssh: let containers be logged into; needs `netmind-rentgpu[ssh]`. The controls over HTTP then need the token.
            allow_hosts: names, beside those of the loopback, that requests may be addressed to (`Host`) or come from
                (`Origin`). Others are refused, so that no web page reaches the emulator through a browser.

        Raises:
            ModuleNotFoundError: `ssh` without asyncssh.
            NotImplementedError: `ssh` on a system without POSIX, such as Windows.
            KeyError: there is no preset of that name.
            ValueError: a number is negative or none.
            TypeError: a fault is no Fault, the clock no Clock, or the world no World.
        """
        if not (machines >= 0 and 0 <= boot_seconds < math.inf):
            raise ValueError(f"machines and boot_seconds must be 0 or more, not {machines!r} and {boot_seconds!r}")
        made_up = f"emulator-token-{secrets.token_urlsafe(24)}" if ssh else f"emulator-token-{seed:08x}"
        self.token: str = token or made_up
        self._allow_hosts = tuple(allow_hosts)
        self._port = port
        ticking = Clock() if clock is None else clock
        self.world: World = preset_world(world) if isinstance(world, str) else world
        if not isinstance(self.world, World):
            raise TypeError(f"world must be a World or the name of a preset, not {world!r}")
        if not isinstance(ticking, Clock):
            raise TypeError(f"clock must be a Clock, as Clock(scale=0), not {clock!r}")
        self._shells = _shells() if ssh else None
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
                clock=ticking,
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
            clock=ticking,
        )
        self._server: Server | None = None
        self._url: str | None = None
        self._following: asyncio.Task[None] | None = None
        self._stop: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._process: int | None = None

    @property
    def url(self) -> str:
        """The base URL, as http://127.0.0.1:PORT."""
        if self._url is None:
            raise RuntimeError("the emulator has no URL before it is started with 'async with' or 'with'")
        return self._url

    @property
    def clock(self) -> Clock:
        """What time it is there."""
        return self._control_plane.clock

    @property
    def faults(self) -> Faults:
        """What goes wrong there; `faults.add(Fault(...))` adds to it."""
        return self._control_plane.faults

    @property
    def requests(self) -> Recording:
        """What it was asked until now."""
        return self._control_plane.recorder.recording()

    @property
    def charges(self) -> list[Charge]:
        """What each container has cost until now, those that are gone included."""
        return self._control_plane.charges()

    @property
    def running(self) -> list[Charge]:
        """What is rented now."""
        return [charge for charge in self.charges if charge.running]

    @property
    def pending_creates(self) -> list[PendingCreate]:
        """Which creates are still to be done, by a late commit or a slow answer."""
        return self._control_plane.pending_creates()

    @property
    def spent(self) -> Decimal:
        """The cost of all accounts' containers until now, in US dollars."""
        return sum((charge.cost for charge in self.charges), Decimal(0))

    def assert_nothing_rented(self, *, apart_from: Collection[int | Charge | PendingCreate] = ()) -> None:
        """Check that every container was deleted, and that no create is still to be done.

        Args:
            apart_from: what may be there: ids of containers, or what `pending_creates` and `running` once were. An id may be
                another container's after a reset; those may not.

        Raises:
            AssertionError: one was not; the message names each and what it costs.
        """
        leaked = self._control_plane.leaked(apart_from)
        if leaked:
            raise AssertionError(leaked)

    def add_token(self, account: str = FIRST_ACCOUNT, token: str | None = None) -> str:
        """Accept another token from now on; return it.

        Args:
            account: whose it is; of a name that is new, another account is opened. Accounts have auths, images and
                containers of their own, and share the machines.
            token: made up where it is None.

        Raises:
            ValueError: it is another account's already, or cannot stand in a header.
        """
        return self._control_plane.add_token(account, token)

    def revoke_token(self, token: str) -> None:
        """Accept a token no more. What its account has goes on.

        Raises:
            ValueError: it was not accepted.
        """
        self._control_plane.revoke_token(token)

    def reset(self) -> None:
        """Begin again: nothing was ever rented, made or asked, and the first faults are in force. Only the clock goes on.

        Only the first token is accepted again.
        """
        self._control_plane.reset()

    async def __aenter__(self) -> Self:
        self._check_new()
        control_token = None if self._shells is None else self.token
        self._server = Server(self._control_plane, hosts=self._allow_hosts, control_token=control_token)
        self._url = f"http://{_HOST}:{await self._server.start(_HOST, self._port)}"
        if self._shells is not None:
            self._shells.start()
            self._following = asyncio.create_task(self._follow_the_clock())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.stop()
        if self._shells is not None and self._following is not None:
            self._following.cancel()
            await self._shells.stop()

    async def _follow_the_clock(self) -> None:
        """Open and close ports when it is time."""
        while True:
            self._control_plane.charges()
            await asyncio.sleep(_TICK)

    def _check_new(self) -> None:
        if self._server is not None:
            raise RuntimeError("an emulator is started once; make another one")

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
        # A child that was forked within the block leaves it, too, but the server is its parent's.
        if self._stop is not None and self._thread is not None and self._process == os.getpid():
            self._stop()
            self._thread.join()

    async def _serve(self, started: Future[None]) -> None:
        """Serve until told to stop; what keeps it from starting is for the thread that waits for that."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            await self.__aenter__()
        except Exception as error:  # noqa: BLE001  # told elsewhere
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


def _shells() -> Shells:
    try:
        from netmind_rentgpu.emulator.shells import Shells
    except ModuleNotFoundError as error:
        if error.name in ("fcntl", "termios"):
            raise NotImplementedError("an emulator with SSH needs POSIX, which this system has not") from error
        if error.name != "asyncssh":
            raise
        raise ModuleNotFoundError(
            "an emulator with SSH needs asyncssh: pip install 'netmind-rentgpu[ssh]'", name="asyncssh"
        ) from None
    return Shells()

"""`RentGPU`: the methods of `AsyncRentGPU`, by name. The logic is in the asynchronous classes and in `portal`."""

from __future__ import annotations

import os
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from netmind_rentgpu.client import AsyncRentGPU
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.rentals.budgets_api import AsyncBudgets
from netmind_rentgpu.rentals.rentals_api import AsyncRentals
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.resources.images import AsyncImages
from netmind_rentgpu.resources.machines import AsyncMachines
from netmind_rentgpu.settings import A_YEAR, DEFAULT, RetriesOption, TimeoutOption
from netmind_rentgpu.sync.fleet import Fleet
from netmind_rentgpu.sync.handles import Rental, Shell
from netmind_rentgpu.sync.portal import OwnedHandle
from netmind_rentgpu.sync.wrappers import Pager, sync_handle, sync_iterator, sync_method, sync_pager, with_own_names

if TYPE_CHECKING:
    from ssl import SSLContext

__all__ = ["Auths", "Budgets", "Containers", "Images", "Machines", "Pager", "RentGPU", "Rental", "Rentals", "Shell"]


class _Resource:
    def __init__(self, client: OwnedHandle[AsyncRentGPU]) -> None:
        self._client = client


class Machines(_Resource):
    """`client.machines`: the machines on offer."""

    @property
    def _async(self) -> AsyncMachines:
        return self._client.value.machines

    list: Final = sync_method(AsyncMachines.list)


class Auths(_Resource):
    """`client.auths`: the account's passwords for SSH logins."""

    @property
    def _async(self) -> AsyncAuths:
        return self._client.value.auths

    create: Final = sync_method(AsyncAuths.create)
    list: Final = sync_pager(AsyncAuths.list)
    get: Final = sync_method(AsyncAuths.get)
    ensure: Final = sync_method(AsyncAuths.ensure)


class Images(_Resource):
    """`client.images`: the images that containers start from."""

    @property
    def _async(self) -> AsyncImages:
        return self._client.value.images

    create: Final = sync_method(AsyncImages.create)
    list: Final = sync_pager(AsyncImages.list)
    get: Final = sync_method(AsyncImages.get)
    ensure: Final = sync_method(AsyncImages.ensure)


class Containers(_Resource):
    """`client.containers`: the account's containers, and waits for them."""

    @property
    def _async(self) -> AsyncContainers:
        return self._client.value.containers

    create: Final = sync_method(AsyncContainers.create)
    list: Final = sync_pager(AsyncContainers.list)
    get: Final = sync_method(AsyncContainers.get)
    stop: Final = sync_method(AsyncContainers.stop)
    restart: Final = sync_method(AsyncContainers.restart)
    delete: Final = sync_method(AsyncContainers.delete)
    wait: Final = sync_method(AsyncContainers.wait)
    wait_all: Final = sync_method(AsyncContainers.wait_all)
    watch: Final = sync_iterator(AsyncContainers.watch)
    wait_reachable: Final = sync_method(AsyncContainers.wait_reachable)
    wait_ready: Final = sync_method(AsyncContainers.wait_ready)


class Rentals(_Resource):
    """`client.rentals`: this account's rentals on record in the state file, of this process and others."""

    @property
    def _async(self) -> AsyncRentals:
        return self._client.value.rentals

    list: Final = sync_method(AsyncRentals.list)
    get: Final = sync_method(AsyncRentals.get)
    release: Final = sync_method(AsyncRentals.release)
    extend: Final = sync_method(AsyncRentals.extend)
    history: Final = sync_method(AsyncRentals.history)
    spent: Final = sync_method(AsyncRentals.spent)
    reap: Final = sync_method(AsyncRentals.reap)
    attach: Final = sync_handle(AsyncRentals.attach, Rental)


class Budgets(_Resource):
    """`client.budgets`: the budgets of this service in the state file, which the rentals of several processes share."""

    @property
    def _async(self) -> AsyncBudgets:
        return self._client.value.budgets

    set: Final = sync_method(AsyncBudgets.set)
    list: Final = sync_method(AsyncBudgets.list)
    remove: Final = sync_method(AsyncBudgets.remove)


@with_own_names
class RentGPU:
    """A synchronous client for NetMind's Rent GPU service.

    Use it as `with RentGPU() as gpu: ...`, or call `close()` at the end; a forgotten client is closed when it is collected
    or the interpreter exits. It has the methods, arguments, results and errors of `AsyncRentGPU`, and any number of threads
    may share it. One event loop serves all clients, in a thread that starts at the first call; with
    `NETMIND_RENTGPU_UVLOOP=1` in the environment, it is an event loop of uvloop. After a fork, the client works in both
    processes, each with its own connections.

    The client retries failed calls as `Retries` says. It retries a create, of any resource, only if the create was certainly
    not sent, or was refused with a 429. A create goes over a connection that is new or was in use a moment ago: on a stale
    one it could fail without showing whether the service acted on it. A 429 pauses the whole client for as long as the
    service asks, if that is at most `Retries.max_retry_after`. An interrupt, such as Ctrl-C, cancels the current call; the
    service may have acted on an interrupted create.

    Attributes:
        machines, auths, images, containers: the service's resources.
        rentals: the rentals on record in the state file, of this process and others.
        budgets: the budgets that the rentals of several processes share, in the state file.
    """

    machines: Machines
    auths: Auths
    images: Images
    containers: Containers
    rentals: Rentals
    budgets: Budgets

    def __init__(
        self,
        token: str | None = None,
        *,
        account: str | None = None,
        base_url: str | None = None,
        profile: ServiceProfile | str | os.PathLike[str] | None = None,
        timeout: TimeoutOption = DEFAULT,
        retries: RetriesOption = DEFAULT,
        max_connections: int = 100,
        proxy: str | None = None,
        ssl_context: SSLContext | None = None,
        allow_insecure_http: bool = False,
        state: str | os.PathLike[str] | None = None,
        keep_history: timedelta | None = A_YEAR,
        handle_signals: bool = False,
        guardian: bool = False,
    ) -> None:
        """Set up a client; it opens nothing before its first call.

        `AsyncRentGPU`'s argument `session` is missing here, because a session belongs to the event loop that created it.

        Args:
            token: the API token; by default `NETMIND_API_KEY` from the environment, then `NETMIND_API_TOKEN`, then the token
                of the account that `config.toml` names.
            account: an account of `config.toml`, whose token is used in place of all others. It goes to the URL of that
                account, and never to one of the environment. Reading a token may run a command, for which this waits.
            base_url: the service's URL; by default `NETMIND_BASE_URL`, then that of the account in use, then
                https://api.netmind.ai. The client sends the token nowhere else.
            profile: the assumptions about the service where its documentation is silent: a `ServiceProfile`, or the path
                of a TOML file; by default the file that `NETMIND_RENTGPU_PROFILE` names, then that of the account whose
                token is used, then `ServiceProfile()`.
            timeout: `Timeouts`, or the seconds that a whole call may take. Every call accepts a `timeout` of its own, too.
            retries: `Retries`, or the most retries of one call.
            max_connections: the most requests that may be under way at once; further requests wait.
            proxy: an http:// or https:// URL; by default the system's settings, as urllib reads them.
            ssl_context: TLS settings, such as the certificates to trust; by default the client trusts the system's.
            allow_insecure_http: True if the token may be sent over plain http to another machine.
            state: the path of the state file, which keeps rentals and the containers' host keys and is created when first
                needed; by default `NETMIND_RENTGPU_STATE`, then `netmind-rentgpu/state.sqlite3` in the user's state folder.
            keep_history: the time for which the state file keeps this account's past rentals; None to remove none. Each
                client removes older ones by its own setting, so that the shortest of several counts.
            handle_signals: True if SIGTERM and SIGHUP release what this client rents, before they end the process, or reach
                the handler that the program has set before. A signal that is ignored stays so.
            guardian: True if a small process deletes what this client has rented once this process is killed, or misses a
                deadline because it is stopped or hangs. It keeps the expiries of detached rentals, too. It starts before the
                first create and ends by itself, and a reboot, `docker stop` or the like ends it with all other processes.

        Raises:
            ConfigurationError: no token, or a URL, proxy or profile that cannot be used.
            ConfigurationError: both `token` and `account` are given, or `config.toml` or its account cannot be used.
            ConfigurationError: `handle_signals` is True outside the main thread.
            ConfigurationError: `guardian` is True on a system without forks, or `sys.executable` is no program.
            InvalidArgumentError: a timeout, a retry setting, `max_connections` or `keep_history` is out of range.
        """
        self._client = OwnedHandle(
            AsyncRentGPU(
                token,
                account=account,
                base_url=base_url,
                profile=profile,
                timeout=timeout,
                retries=retries,
                max_connections=max_connections,
                proxy=proxy,
                ssl_context=ssl_context,
                allow_insecure_http=allow_insecure_http,
                state=state,
                keep_history=keep_history,
                handle_signals=handle_signals,
                guardian=guardian,
            )
        )
        self._text = repr(self._client.value).removeprefix("Async")
        self.machines = Machines(self._client)
        self.auths = Auths(self._client)
        self.images = Images(self._client)
        self.containers = Containers(self._client)
        self.rentals = Rentals(self._client)
        self.budgets = Budgets(self._client)

    @property
    def _async(self) -> AsyncRentGPU:
        return self._client.value

    @property
    def profile(self) -> ServiceProfile:
        """The client's assumptions where the service's documentation is silent."""
        return self._async.profile

    rent: Final = sync_handle(AsyncRentGPU.rent, Rental)
    rent_many: Final = sync_handle(AsyncRentGPU.rent_many, Fleet)
    offers: Final = sync_method(AsyncRentGPU.offers)
    ssh: Final = sync_handle(AsyncRentGPU.ssh, Shell)
    request: Final = sync_method(AsyncRentGPU.request)

    def close(self) -> None:
        """Delete the containers that this client still rents, and close its connections. A second call does nothing.

        Raises:
            ReleaseError: a container could not be deleted, and stays on record.
            ClientStateError: this is the thread of the client's own event loop.
        """
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return self._text

    def __reduce__(self) -> Any:
        raise TypeError("a client holds connections and a token, and cannot be pickled; make one in each process")

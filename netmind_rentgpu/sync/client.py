"""`RentGPU`: the methods of `AsyncRentGPU`, by name. No logic: that is the asynchronous side's, or the portal's."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from netmind_rentgpu.client import AsyncRentGPU
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.rentals.rentals_api import AsyncRentals
from netmind_rentgpu.resources.auths import AsyncAuths
from netmind_rentgpu.resources.containers import AsyncContainers
from netmind_rentgpu.resources.images import AsyncImages
from netmind_rentgpu.resources.machines import AsyncMachines
from netmind_rentgpu.settings import DEFAULT, RetriesOption, TimeoutOption
from netmind_rentgpu.sync.handles import Rental, Shell
from netmind_rentgpu.sync.portal import OwnedHandle
from netmind_rentgpu.sync.wrappers import Pager, sync_handle, sync_iterator, sync_method, sync_pager

if TYPE_CHECKING:
    from ssl import SSLContext

__all__ = ["Auths", "Containers", "Images", "Machines", "Pager", "RentGPU", "Rental", "Rentals", "Shell"]


class _Resource:
    def __init__(self, client: OwnedHandle[AsyncRentGPU]) -> None:
        self._client = client


class Machines(_Resource):
    """`client.machines`."""

    @property
    def _async(self) -> AsyncMachines:
        return self._client.value.machines

    list: Final = sync_method(AsyncMachines.list)


class Auths(_Resource):
    """`client.auths`."""

    @property
    def _async(self) -> AsyncAuths:
        return self._client.value.auths

    create: Final = sync_method(AsyncAuths.create)
    list: Final = sync_pager(AsyncAuths.list)
    get: Final = sync_method(AsyncAuths.get)
    ensure: Final = sync_method(AsyncAuths.ensure)


class Images(_Resource):
    """`client.images`."""

    @property
    def _async(self) -> AsyncImages:
        return self._client.value.images

    create: Final = sync_method(AsyncImages.create)
    list: Final = sync_pager(AsyncImages.list)
    get: Final = sync_method(AsyncImages.get)
    ensure: Final = sync_method(AsyncImages.ensure)


class Containers(_Resource):
    """`client.containers`."""

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
    """`client.rentals`: what the state file knows to be rented by this account, whichever process did that."""

    @property
    def _async(self) -> AsyncRentals:
        return self._client.value.rentals

    list: Final = sync_method(AsyncRentals.list)
    reap: Final = sync_method(AsyncRentals.reap)
    attach: Final = sync_handle(AsyncRentals.attach, Rental)


class RentGPU:
    """NetMind's Rent GPU service, for programs that are not asynchronous.

    Use it as `with RentGPU() as gpu: ...`, or call `close()` in the end; one that is forgotten is closed when it is
    collected or the interpreter exits. It has the methods, arguments, results and errors of `AsyncRentGPU`, and any number
    of threads may share it. All clients are served by one event loop, in a thread that starts at the first call; with
    `NETMIND_RENTGPU_UVLOOP=1` in the environment that loop is uvloop's. After a fork a client goes on in both processes,
    with connections of their own.

    Calls that failed are sent again as `Retries` says. A create, of anything, is sent again only if it surely was not sent
    or was refused with a 429; it goes over a connection that is new or was in use a moment ago, so that a stale one leaves
    no doubt about that. A 429 pauses the whole client for as long as the service asks, if that is not longer than
    `Retries.max_retry_after`. What interrupts a call, such as Ctrl-C, cancels it; a create that was interrupted may have
    been done.

    Attributes:
        machines, auths, images, containers: the service's resources.
        rentals: what was rented by `rent`, in whichever process.
    """

    machines: Machines
    auths: Auths
    images: Images
    containers: Containers
    rentals: Rentals

    def __init__(
        self,
        token: str | None = None,
        *,
        base_url: str | None = None,
        profile: ServiceProfile | str | os.PathLike[str] | None = None,
        timeout: TimeoutOption = DEFAULT,
        retries: RetriesOption = DEFAULT,
        max_connections: int = 100,
        proxy: str | None = None,
        ssl_context: SSLContext | None = None,
        allow_insecure_http: bool = False,
        state: str | os.PathLike[str] | None = None,
    ) -> None:
        """Set up a client; nothing is opened before the first call.

        Of `AsyncRentGPU`'s arguments, `session` is missing: a session belongs to the event loop that it was made in.

        Args:
            token: the API token; else `NETMIND_API_KEY`, else `NETMIND_API_TOKEN`.
            base_url: else `NETMIND_BASE_URL`, else https://api.netmind.ai. The token is sent there and nowhere else.
            profile: what to assume where the service's documentation is silent: a value, or the path of a TOML file; else
                the file that `NETMIND_RENTGPU_PROFILE` names, else the defaults.
            timeout: `Timeouts`, or seconds for a call as a whole. Every call takes one of its own, too.
            retries: `Retries`, or how often to send a call again at most.
            max_connections: how many requests may be under way at once; the others wait for their turn.
            proxy: an http:// or https:// URL; else the system's settings, as urllib reads them.
            ssl_context: for certificates of one's own; else the system's are trusted.
            allow_insecure_http: let the token go over plain http to another machine.
            state: the file that remembers rentals and the containers' host keys, made when it is first needed; else
                `NETMIND_RENTGPU_STATE`, else `netmind-rentgpu/state.sqlite3` in the user's folder for state.

        Raises:
            ConfigurationError: no token, or a URL, proxy or profile that cannot be used.
            InvalidArgumentError: a timeout, a retry setting or `max_connections` out of range.
        """
        self._client = OwnedHandle(
            AsyncRentGPU(
                token,
                base_url=base_url,
                profile=profile,
                timeout=timeout,
                retries=retries,
                max_connections=max_connections,
                proxy=proxy,
                ssl_context=ssl_context,
                allow_insecure_http=allow_insecure_http,
                state=state,
            )
        )
        self._text = repr(self._client.value).removeprefix("Async")
        self.machines = Machines(self._client)
        self.auths = Auths(self._client)
        self.images = Images(self._client)
        self.containers = Containers(self._client)
        self.rentals = Rentals(self._client)

    @property
    def _async(self) -> AsyncRentGPU:
        return self._client.value

    @property
    def profile(self) -> ServiceProfile:
        """What this client assumes where the service's documentation is silent."""
        return self._async.profile

    rent: Final = sync_handle(AsyncRentGPU.rent, Rental)
    offers: Final = sync_method(AsyncRentGPU.offers)
    ssh: Final = sync_handle(AsyncRentGPU.ssh, Shell)
    request: Final = sync_method(AsyncRentGPU.request)

    def close(self) -> None:
        """Delete what is still rented, and close the client's connections. Closing twice is closing once.

        Raises:
            ReleaseError: something could not be deleted, and stays on record.
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

"""`AsyncRentGPU`: settings, one transport, the resources. What costs time is imported when a client is made."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from netmind_rentgpu.literals import GPUName, RegionCode
from netmind_rentgpu.models import PaymentType
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.settings import DEFAULT, RetriesOption, Settings, TimeoutOption

if TYPE_CHECKING:
    from ssl import SSLContext

    import asyncssh
    from aiohttp import ClientSession

    from netmind_rentgpu.conditions import Condition
    from netmind_rentgpu.models import Auth, Container, Image
    from netmind_rentgpu.rentals.context import RentalContext
    from netmind_rentgpu.rentals.rental import AsyncRental
    from netmind_rentgpu.rentals.rentals_api import AsyncRentals
    from netmind_rentgpu.rentals.selection.offers import Offer, OfferKey
    from netmind_rentgpu.resources.auths import AsyncAuths
    from netmind_rentgpu.resources.containers import AsyncContainers
    from netmind_rentgpu.resources.images import AsyncImages
    from netmind_rentgpu.resources.machines import AsyncMachines
    from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = ["AsyncRentGPU"]


class AsyncRentGPU:
    """NetMind's Rent GPU service, for asyncio.

    Use it as `async with AsyncRentGPU() as gpu: ...`, or call `close()` in the end. Making one needs no running loop; from
    its first call on it belongs to the loop of that call. All calls share one pool of connections.

    Calls that failed are sent again as `Retries` says. A create, of anything, is sent again only if it surely was not sent
    or was refused with a 429; it goes over a connection that is new or was in use a moment ago, so that a stale one leaves
    no doubt (a session of the caller's own chooses by itself). A 429 pauses the whole client for as long as the service
    asks, if that is not longer than `Retries.max_retry_after`.

    Attributes:
        machines, auths, images, containers: the service's resources.
        rentals: what was rented by `rent`, in whichever process.
    """

    machines: AsyncMachines
    auths: AsyncAuths
    images: AsyncImages
    containers: AsyncContainers
    rentals: AsyncRentals

    def __init__(
        self,
        token: str | None = None,
        *,
        base_url: str | None = None,
        profile: ServiceProfile | str | os.PathLike[str] | None = None,
        timeout: TimeoutOption = DEFAULT,
        retries: RetriesOption = DEFAULT,
        max_connections: int = 100,
        session: ClientSession | None = None,
        proxy: str | None = None,
        ssl_context: SSLContext | None = None,
        allow_insecure_http: bool = False,
        state: str | os.PathLike[str] | None = None,
    ) -> None:
        """Set up a client; nothing is opened before the first call.

        Args:
            token: the API token; else `NETMIND_API_KEY`, else `NETMIND_API_TOKEN`.
            base_url: else `NETMIND_BASE_URL`, else https://api.netmind.ai. The token is sent there and nowhere else.
            profile: what to assume where the service's documentation is silent: a value, or the path of a TOML file; else
                the file that `NETMIND_RENTGPU_PROFILE` names, else the defaults.
            timeout: `Timeouts`, or seconds for a call as a whole. Every call takes one of its own, too.
            retries: `Retries`, or how often to send a call again at most.
            max_connections: how many requests may be under way at once; the others wait for their turn.
            session: an aiohttp session to use; it is not closed here. Its cookies, headers and connector apply.
            proxy: an http:// or https:// URL; else the system's settings, as urllib reads them.
            ssl_context: for certificates of one's own; else the system's are trusted.
            allow_insecure_http: let the token go over plain http to another machine.
            state: the file that remembers rentals and the containers' host keys, made when it is first needed; else
                `NETMIND_RENTGPU_STATE`, else `netmind-rentgpu/state.sqlite3` in the user's folder for state.

        Raises:
            ConfigurationError: no token, or a URL, proxy, profile or session that cannot be used.
            InvalidArgumentError: a timeout, a retry setting or `max_connections` out of range.
        """
        self._settings = Settings.resolve(
            token=token,
            base_url=base_url,
            proxy=proxy,
            timeout=timeout,
            retries=retries,
            max_connections=max_connections,
            allow_insecure_http=allow_insecure_http,
            environment=os.environ,
            state=state,
        )
        self._connect(ServiceProfile.resolve(profile, os.environ), session, ssl_context)

    def _connect(self, profile: ServiceProfile, session: ClientSession | None, ssl_context: SSLContext | None) -> None:
        from netmind_rentgpu.rentals.context import RentalContext
        from netmind_rentgpu.rentals.rentals_api import AsyncRentals
        from netmind_rentgpu.rentals.renting import Renting
        from netmind_rentgpu.resources.auths import AsyncAuths
        from netmind_rentgpu.resources.containers import AsyncContainers
        from netmind_rentgpu.resources.images import AsyncImages
        from netmind_rentgpu.resources.machines import AsyncMachines
        from netmind_rentgpu.ssh.credentials import ContainerLogin
        from netmind_rentgpu.state_file import State
        from netmind_rentgpu.wire.caller import Caller
        from netmind_rentgpu.wire.transport import Transport

        secret = self._settings.token
        transport = Transport(
            self._settings,
            authorization=f"Bearer {secret}" if profile.authorization == "bearer" else secret,
            session=session,
            ssl_context=ssl_context,
        )
        self._session = session
        self._ssl_context = ssl_context
        self._caller = Caller(transport, self._settings, profile)
        self.machines = AsyncMachines(self._caller)
        self.auths = AsyncAuths(self._caller)
        self.images = AsyncImages(self._caller)
        self._state = State(self._settings.state, self._settings.fingerprint)
        self._credentials = ContainerLogin(self.auths, self._state, profile.ssh_username)
        self.containers = AsyncContainers(self._caller, self._credentials.try_to_log_in)
        self._context = RentalContext.of_client(
            machines=self.machines,
            auths=self.auths,
            images=self.images,
            containers=self.containers,
            state=self._state,
            profile=profile,
            timeouts=self._settings.timeouts,
            check_usable=self._caller.check_usable,
            check_login=self._credentials.check,
            shell_on=self.ssh,
            elsewhere=self._elsewhere,
        )
        self._renting = Renting(self._context, self._caller.codec.payment_type_number)
        self.rentals = AsyncRentals(self._context)

    @property
    def profile(self) -> ServiceProfile:
        """What this client assumes where the service's documentation is silent."""
        return self._caller.profile

    def rent(
        self,
        *,
        image: int | str | Image,
        gpu_name: GPUName | Iterable[GPUName] | None = None,
        gpus: int = 1,
        regions: RegionCode | Iterable[RegionCode] | None = None,
        max_price: Decimal | float | None = None,
        min_memory: float | None = None,
        min_gpu_memory: float | None = None,
        min_disk: float | None = None,
        min_cuda: str | None = None,
        nvlink: bool | None = None,
        labels: Iterable[str] = (),
        exclude: Iterable[str] = (),
        key: OfferKey | None = None,
        auth: int | str | Auth | None = None,
        payment_type: PaymentType | str | int = PaymentType.USD,
        ttl: timedelta = timedelta(hours=24),
        budget: Decimal | float | None = None,
        keep: bool = False,
        fail: Condition | None = None,
        start_timeout: float = 600,
        timeout: float = 1800,
    ) -> AsyncRental:
        """Return a machine to rent: `async with gpu.rent(...) as rental: ...`. Needs `netmind-rentgpu[ssh]`.

        The first machine that can be had is rented when the block is entered, and usable then; it is deleted when the block
        is left, however that is. What this process cannot delete any more is on record in the state file: `rentals.reap`
        deletes it, and so does the first `rent` of the next client.

        What the service does not tell of a machine is not held against it, apart from its GPU's name and its price; such
        machines come last.

        A machine that does not start is deleted, and the next one is tried; three at most, and none where another would not
        help, as where the password is not known. For half an hour it comes last for that image, for all processes that share
        the state file, until it has started it.

        Args:
            image: what to start: an id, an `Image`, or the name, `repository:tag` or label of exactly one official image or
                one of the account's own.
            gpu_name: any of these GPUs, each by its name or an unambiguous part of it: "RTX 4090", "h100".
            gpus: how many of them, 1 to 12.
            regions: any of these, as two-letter codes.
            max_price: on `Machine.price`: as the profile has it, for an hour of one GPU. Unless it is 0, free machines come
                last.
            min_memory, min_disk: as in `machines.list`.
            min_gpu_memory: on `Machine.gpu_memory`.
            min_cuda: the lowest CUDA version, such as "12.4".
            nvlink: with it, or without.
            labels: all of these, in any case.
            exclude: the `node_name`s of machines not to be rented.
            key: what to sort offers by, the lowest first; else by what an hour costs.
            auth: the login's password: an id, an `Auth`, or a text; else one that is made once for this account, and kept
                in the state file.
            payment_type: the balance to charge; machines are listed in its currency.
            ttl: how long it may be had, from now on. It is deleted then, whether or not the block has ended.
            budget: what all of it may cost, in the same currency, machines that did not start included; it is deleted when
                that is spent by its listed price. A machine with a price of 0 never spends it.
            keep: do not delete it: from when it is handed over on, it is the user's own to delete.
            fail: a condition for a container that will not start any more, so that its end need not be waited for.
            start_timeout: seconds in which each machine has to let us in.
            timeout: seconds in which one of them has to.

        Raises:
            InvalidArgumentError: an argument that cannot be used; when it is entered, an image or a GPU that is not the only
                one of its name.
            ConfigurationError: asyncssh is missing.
            NoMachineError: when it is entered, nothing can be had, or three machines did not start; `refusals` says why.
            StateFileError: when it is entered, the state file cannot be used; nothing was rented, or it was deleted.
            WaitTimeoutError: when it is entered, no machine let us in within `timeout`; what was rented was deleted.
            SSHError: when it is entered, a login failed for a reason that is no machine's; `stage` names it.
            RentalExpiredError, BudgetExceededError: when it is left, or used, it was deleted before.
            ReleaseError: when it is left, it could not be deleted, and stays on record.
            RentGPUError: when it is entered, any other of the client's errors.
        """
        from netmind_rentgpu.rentals.lifecycle.starting import StartLimits
        from netmind_rentgpu.waiting.waits import checked_timeout

        request = self._renting.request(
            gpu_name=gpu_name,
            gpus=gpus,
            regions=regions,
            max_price=max_price,
            min_memory=min_memory,
            min_gpu_memory=min_gpu_memory,
            min_disk=min_disk,
            min_cuda=min_cuda,
            nvlink=nvlink,
            labels=labels,
            exclude=exclude,
            key=key,
            payment_type=payment_type,
        )
        limits = StartLimits(
            total=checked_timeout(timeout), each=checked_timeout(start_timeout, argument="start_timeout")
        )
        return self._renting.rent(
            request, image=image, auth=auth, ttl=ttl, budget=budget, keep=keep, fail=fail, limits=limits
        )

    async def offers(
        self,
        *,
        gpu_name: GPUName | Iterable[GPUName] | None = None,
        gpus: int = 1,
        regions: RegionCode | Iterable[RegionCode] | None = None,
        max_price: Decimal | float | None = None,
        min_memory: float | None = None,
        min_gpu_memory: float | None = None,
        min_disk: float | None = None,
        min_cuda: str | None = None,
        nvlink: bool | None = None,
        labels: Iterable[str] = (),
        exclude: Iterable[str] = (),
        key: OfferKey | None = None,
        payment_type: PaymentType | str | int = PaymentType.USD,
    ) -> list[Offer]:
        """Return what `rent` would try, the best first, without renting. The arguments are those of `rent`.

        Machines that lately failed to start an image are where they are by rank: which image it will be is not known here.

        Raises:
            InvalidArgumentError: an argument that cannot be used, or a GPU that is not the only one of its name.
            RentGPUError: any of the client's errors.
        """
        request = self._renting.request(
            gpu_name=gpu_name,
            gpus=gpus,
            regions=regions,
            max_price=max_price,
            min_memory=min_memory,
            min_gpu_memory=min_gpu_memory,
            min_disk=min_disk,
            min_cuda=min_cuda,
            nvlink=nvlink,
            labels=labels,
            exclude=exclude,
            key=key,
            payment_type=payment_type,
        )
        return await self._renting.offers(request)

    def ssh(
        self,
        container: Container | int,
        *,
        password: str | None = None,
        accept_new_host_key: bool = False,
        timeout: float = 30,
    ) -> AsyncShell:
        """Return a shell on a container, to be opened by `async with`. Needs `netmind-rentgpu[ssh]`.

        The first server that lets us in is the container's from then on: its host key is kept in the state file, for this
        account and this container, and another is refused before it is told the password. Nothing of the user's own SSH
        configuration or keys is used.

        Args:
            container: one that names an endpoint, or its id. Where `ssh` is not there yet, the container is asked for again.
            password: else that of the container's auth.
            accept_new_host_key: take the key that the server has now for the container's.
            timeout: seconds for connecting and logging in.

        Raises:
            SSHError: when it is opened, it cannot be; `stage` says why.
            StateFileError: when it is opened, the state file cannot be used.
            ConfigurationError: asyncssh is missing.
            InvalidArgumentError: an argument that cannot be used.
            RentGPUError: when it is opened, any other of the client's errors.
        """
        from netmind_rentgpu import arguments
        from netmind_rentgpu.models import Container
        from netmind_rentgpu.ssh.arguments import text
        from netmind_rentgpu.ssh.credentials import check_asyncssh
        from netmind_rentgpu.ssh.shell import AsyncShell
        from netmind_rentgpu.waiting.waits import checked_timeout

        check_asyncssh()
        if password is not None:
            text("password", password)
        seconds = checked_timeout(timeout)
        wanted = container if isinstance(container, Container) else arguments.identifier("container", container)

        async def log_in() -> tuple[Container, asyncssh.SSHClientConnection]:
            self._caller.check_usable()
            found = wanted if isinstance(wanted, Container) else await self.containers.get(wanted)
            if found.ssh_endpoint is None and found is wanted:
                found = await self.containers.get(found.id)
            connection = await self._credentials.log_in(
                found, seconds, password=password, accept_new_host_key=accept_new_host_key
            )
            return found, connection

        return AsyncShell(log_in)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | float] | None = None,
        json: Any = None,
        timeout: TimeoutOption = DEFAULT,
    ) -> Any:
        """Make any call and return its JSON as it came; None where the answer is empty.

        The way out where the typed calls do not do what is needed. GET, HEAD, OPTIONS, PUT and DELETE are repeated after a
        failure, other methods as a create.

        Args:
            method: such as GET.
            path: below /v1/rentgpu/, as `machines` or `containers/7/stop`; below the base URL if it begins with a slash.
            params: the query.
            json: the body.

        Raises:
            InvalidArgumentError: a path that could lead elsewhere, or a body that is not JSON.
            RentGPUError: any of the client's errors.
        """
        from netmind_rentgpu.resources.raw import raw_request

        return (await self._caller.call(raw_request(method, path, params or {}, json), timeout)).payload

    async def close(self) -> None:
        """Delete what is still rented, and close the client's connections. Closing twice is closing once.

        Raises:
            ReleaseError: something could not be deleted, and stays on record.
            ClientStateError: the client was used in another event loop.
        """
        try:
            await self._context.release_all()
        finally:
            try:
                await self._caller.close()
            finally:
                self._state.close()

    @asynccontextmanager
    async def _elsewhere(self) -> AsyncGenerator[RentalContext]:
        async with self._again(None) as other:  # a session of the caller's own belongs to its loop
            yield other._context  # noqa: SLF001  # one of our own

    async def __aenter__(self) -> Self:
        from netmind_rentgpu.concurrency.running_loop import running_loop

        running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncRentGPU(base_url={self._settings.base_url!r})"

    def __copy__(self) -> Self:
        """Return a client with the same settings, and with connections of its own."""
        return self._again(self._session)

    def _again(self, session: ClientSession | None) -> Self:
        other = object.__new__(type(self))
        other._settings = self._settings
        other._connect(self._caller.profile, session, self._ssl_context)
        return other

    def __reduce__(self) -> Any:
        raise TypeError("a client holds connections and a token, and cannot be pickled; make one in each process")
